//! Peers that misbehave do so.

use std::collections::BTreeSet;

use pk_proto::{ClosestNodesQuery, ContactMode, Failure, NodeId, Reply, Request, RequestOptions};
use pk_sim::{Cluster, HostId, Misbehavior, Warm};

use crate::common::relays::{SOURCE, TARGET, separate, start_around};
use crate::common::*;

const NODES: usize = 12;

/// A network of nodes and two accomplices, which all know each other; the number of the first
/// accomplice.
fn among(behavior: Misbehavior) -> (Cluster, HostId) {
    let mut cluster = Cluster::quiet().nodes(NODES).seed(2).build();
    let liar = cluster.add_misbehaving(behavior);
    cluster.add_misbehaving(behavior);
    let hosts: Vec<HostId> = (0..cluster.len()).collect();
    cluster.start_warm(&hosts, Warm::default());
    cluster.drive(30 * SECOND);
    cluster.conspire();
    (cluster, liar)
}

/// Asks the peer for the nodes closest to an id; gives its answer and the time that it took.
fn asked(
    cluster: &mut Cluster,
    liar: HostId,
    target: NodeId,
) -> (Result<BTreeSet<NodeId>, Failure>, u128) {
    let begun = cluster.now();
    let via = cluster.id_of_host(liar);
    let query = ClosestNodesQuery { known: true, connected: true };
    let request =
        Request::QueryClosestNodes { via, target, query, options: RequestOptions::default() };
    let answer = cluster.ask(0, request).map(|reply| match reply {
        Reply::QueryClosestNodes(closest) => closest.known.iter().map(|(id, _)| *id).collect(),
        other => panic!("{other:?}"),
    });
    (answer, cluster.now().since(begun).as_millis())
}

/// Lets the peer dial node 3 for a minute; gives the calls that node 3 answered for it.
fn visited(behavior: Misbehavior) -> (Cluster, HostId, u64) {
    let (mut cluster, liar) = among(behavior);
    cluster.drive(200 * SECOND);
    let before = cluster.node(3).metrics().answers;
    let victim = (cluster.id(3), cluster.host(3).addrs()[0]);
    cluster.instruct(liar, |peer, now| peer.dial_in_turn(vec![victim], now, 20 * SECOND));
    cluster.drive(59 * SECOND);
    let answered = cluster.node(3).metrics().answers - before;
    assert_eq!(cluster.misbehavior(liar).dials, 3);
    (cluster, liar, answered)
}

#[test]
fn silent_peer_answers_nothing() {
    let (mut cluster, liar) = among(Misbehavior::Silent);
    let target = cluster.id(5);
    let (answer, took) = asked(&mut cluster, liar, target);
    assert!(answer.is_err() && took > 5000, "{answer:?} after {took} ms");
    let done = cluster.misbehavior(liar);
    assert!(done.ignored > 0 && done.ignored == done.asked && done.truths + done.lies == 0);
}

#[test]
fn garbage_is_a_fault_of_the_peer() {
    let (mut cluster, liar) = among(Misbehavior::Garbage);
    let target = cluster.id(5);
    let (answer, _) = asked(&mut cluster, liar, target);
    assert!(answer.is_err(), "{answer:?}");
    assert!(cluster.node(0).metrics().stream_faults > 0 && cluster.misbehavior(liar).lies > 0);
}

#[test]
fn colluding_peers_report_only_each_other() {
    let (mut cluster, liar) = among(Misbehavior::Colluding);
    let target = cluster.id(5);
    let (answer, _) = asked(&mut cluster, liar, target);
    let accomplices = BTreeSet::from([liar, liar + 1].map(|host| cluster.id_of_host(host)));
    assert_eq!(answer, Ok(accomplices));
}

#[test]
fn poisoning_peers_report_nodes_that_do_not_exist() {
    let (mut cluster, liar) = among(Misbehavior::Poisoning);
    let target = cluster.id(5);
    let (answer, _) = asked(&mut cluster, liar, target);
    let invented = answer.unwrap();
    assert_eq!(invented.len(), 20);
    assert!(invented.iter().all(|id| cluster.number(*id).is_none()));
    let near = |id: &NodeId| target.bucket_index(id).is_some_and(|bucket| bucket.0 < 255 - 20);
    assert!(invented.iter().all(near), "all are closer than any node");
}

#[test]
fn slow_peer_answers_truthfully_and_late() {
    let (mut cluster, liar) = among(Misbehavior::Slow);
    let target = cluster.id(5);
    let truth: BTreeSet<_> =
        (0..NODES + 2).map(|host| cluster.id_of_host(host)).filter(|id| *id != target).collect();
    let (answer, took) = asked(&mut cluster, liar, target);
    assert_eq!(answer, Ok(truth));
    assert!((4000..6000).contains(&took), "{took}");
}

#[test]
fn flooding_peer_asks_as_much_as_it_can() {
    let (cluster, liar, answered) = visited(Misbehavior::Flooding);
    assert_eq!(cluster.misbehavior(liar).requests, 150);
    assert!(answered >= 50, "{answered}");
}

#[test]
fn stranger_asks_one_question_or_none() {
    let (cluster, liar, answered) = visited(Misbehavior::Asking);
    assert_eq!((cluster.misbehavior(liar).requests, answered), (3, 3));
    let (cluster, liar, answered) = visited(Misbehavior::Mute);
    assert_eq!((cluster.misbehavior(liar).requests, answered), (0, 0));
    assert!(cluster.node(3).connections().iter().any(|info| info.node == cluster.id_of_host(liar)));
}

#[test]
fn forged_claims_are_served_and_offered_and_never_accepted() {
    let (mut cluster, liar, _) = visited(Misbehavior::ForgingClaims);
    let target = cluster.id_of_host(liar);
    let request = Request::RequestChainData { target, since: None, limit: None, options: NO };
    let Ok(Reply::RequestChainData(chain)) = cluster.ask(0, request) else { panic!() };
    assert_eq!(chain.verified, 0);
    assert!(chain.fault.is_some());
    assert!(cluster.misbehavior(liar).lies > 0 && cluster.misbehavior(liar).requests == 6);
    assert_eq!(cluster.node(3).metrics().claims_signed, 0);
    cluster.stop_all();
}

/// Two nodes that cannot reach each other, connected with a relay; one connects to the other
/// through it. The number of the relay, and the result.
fn through(behavior: Misbehavior) -> (Cluster, HostId, Result<Reply, Failure>) {
    let mut cluster = Cluster::quiet().nodes(3).seed(5).build();
    let relay = cluster.add_misbehaving(behavior);
    separate(&mut cluster);
    start_around(&mut cluster, &[relay]);
    let (target, relay_id) = (cluster.id(TARGET), cluster.id_of_host(relay));
    let options = by(20 * SECOND);
    let request = Request::ConnectThrough { target, relay: relay_id, options };
    let result = cluster.ask(SOURCE, request);
    cluster.drive(SECOND);
    (cluster, relay, result)
}

#[test]
fn relay_that_drops_accepts_circuits_over_which_nothing_arrives() {
    let (mut cluster, relay, result) = through(Misbehavior::DroppingRelay);
    assert!(matches!(result, Err(Failure::Dial(_))), "{result:?}");
    assert_eq!(cluster.misbehavior(relay).lies, 1);
    assert_eq!(cluster.node(SOURCE).metrics().circuits_requested, 1);
    assert_eq!(cluster.node(TARGET).metrics().relayed_paths, 0);
    cluster.drive(60 * SECOND);
    assert_eq!(cluster.node(SOURCE).metrics().relayed_paths, 0, "the path is abandoned");
}

#[test]
fn relay_that_stalls_answers_no_request_of_a_circuit() {
    let (cluster, relay, result) = through(Misbehavior::StallingRelay);
    assert!(matches!(result, Err(Failure::Dial(_))), "{result:?}");
    assert_eq!(cluster.misbehavior(relay).ignored, 2, "a signal and a circuit");
    assert_eq!(cluster.node(SOURCE).metrics().relayed_paths, 0);
}

#[test]
fn relay_that_names_wrong_addresses_keeps_no_nodes_apart() {
    let (mut cluster, relay, result) = through(Misbehavior::MisnamingRelay);
    let Ok(Reply::Connect(info)) = result else { panic!("{result:?}") };
    assert_eq!(info.data.mode, ContactMode::Relay);
    assert_ne!(info.address, cluster.address(TARGET));
    assert_eq!(cluster.misbehavior(relay).lies, 2);
    // The nodes have tried the wrong addresses.
    cluster.drive(30 * SECOND);
    let target = cluster.id(TARGET);
    let mode = |cluster: &Cluster| {
        let connections = cluster.node(SOURCE).connections();
        connections.iter().find(|info| info.node == target).map(|info| info.data.mode)
    };
    assert_eq!(mode(&cluster), Some(ContactMode::Relay));
}

#[test]
fn relay_that_floods_fills_only_its_share_of_the_paths() {
    let (mut cluster, relay) = among(Misbehavior::FloodingRelay);
    let victim = (cluster.id(3), cluster.host(3).addrs()[0]);
    cluster.instruct(relay, |peer, now| peer.dial_in_turn(vec![victim], now, 100 * SECOND));
    cluster.drive(2 * SECOND);
    assert_eq!(cluster.misbehavior(relay).requests, 100);
    let metrics = cluster.node(3).metrics();
    assert_eq!(metrics.relayed_paths, 16, "a quarter of 64");
    assert!(metrics.circuits <= 16 && metrics.circuits_refused > 0, "{metrics:?}");
    cluster.drive(90 * SECOND);
    let metrics = cluster.node(3).metrics();
    assert_eq!((metrics.relayed_paths, metrics.circuits), (0, 0));
}
