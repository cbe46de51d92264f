//! Connections through a relay, in virtual time: signalling, punching, NATs (docs/DESIGN.md,
//! Searches).

use std::time::Duration;

use pk_proto::{
    ActiveConnection, ActiveNode, ClosestNodes, ContactMode, DialFailure, Failure, FindEnd,
    FindNodeOptions, FindOutcome, FindStepEnd, NodeAddress, NodeId, Refusal, Reply, Request,
    RequestError, RequestOptions, RpcRequest, RpcResponse, SignalRequest, SignalTerms, Strategies,
    UnixMillis,
};
use pk_sim::{Cluster, Dependence, HostId, Key, NatConfig};

use crate::common::relays::{RELAY, SOURCE, TARGET, behind_nats};
use crate::common::signals::{in_seconds, punch, request};
use crate::common::{Peer, Reaction, SECOND, assert_consistent, find, find_with, ms};

const CONE: NatConfig = NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort);
const SYMMETRIC: NatConfig = NatConfig::new(Dependence::AddressAndPort, Dependence::AddressAndPort);

/// A public relay, and two nodes that are connected only to it, each behind the given NAT.
fn around_a_relay(seed: u64, source: Option<NatConfig>, target: Option<NatConfig>) -> Cluster {
    behind_nats(seed, [source, target], no_relaying)
}

/// `tests/nodes/relay.rs` has relayed connections.
fn no_relaying(config: &mut pk_proto::Config) {
    config.relay.paths = 0;
}

/// The end of the contact with a node in a search.
fn step(outcome: &FindOutcome, node: NodeId) -> &FindStepEnd {
    &outcome.trace.iter().rev().find(|step| step.node == node).unwrap().end
}

fn failures(outcome: &FindOutcome, node: NodeId) -> Vec<DialFailure> {
    match step(outcome, node) {
        FindStepEnd::Unreachable(failures) => failures.iter().map(|(_, why)| why.clone()).collect(),
        other => panic!("{other:?}"),
    }
}

/// The mode of the contact that a node has for another one.
fn mode(cluster: &Cluster, node: HostId, with: HostId) -> ContactMode {
    let peer = cluster.id(with);
    let connections = cluster.node(node).connections();
    connections.iter().find(|info| info.node == peer && info.primary).unwrap().data.mode
}

// -- through one relay

#[test]
fn embedder_connects_through_a_named_relay() {
    let mut cluster = around_a_relay(1, Some(CONE), Some(CONE));
    let (target, relay) = (cluster.id(TARGET), cluster.id(RELAY));
    let through = |target, relay| Request::ConnectThrough {
        target,
        relay,
        options: RequestOptions::default(),
    };
    let Ok(Reply::Connect(info)) = cluster.ask(SOURCE, through(target, relay)) else { panic!() };
    assert_eq!((info.node, info.data.mode), (target, ContactMode::Signal));
    // Nothing is in progress.
    let Ok(Reply::Connect(again)) = cluster.ask(SOURCE, through(target, relay)) else { panic!() };
    assert_eq!(again.conn, info.conn);
    assert_eq!(cluster.node(SOURCE).metrics().signals_sent, 1);
    // A relay that is not connected to the node, and one that is unreachable.
    let absent = Key::from_seed([99; 32]).id();
    let Err(Failure::Dial(failures)) = cluster.ask(SOURCE, through(absent, relay)) else {
        panic!()
    };
    assert!(matches!(&failures[..], [(_, DialFailure::Signal(_))]), "{failures:?}");
    let Err(Failure::NotFound(_)) =
        cluster.ask(SOURCE, through(Key::from_seed([98; 32]).id(), absent))
    else {
        panic!()
    };
    let own = cluster.id(SOURCE);
    for (target, relay) in [(own, relay), (target, own)] {
        let refused = cluster.try_request(SOURCE, through(target, relay));
        assert_eq!(refused, Err(RequestError::OwnNode));
    }
}

// -- NATs

/// Every kind of NAT on both sides, with and without port preservation, and none: nodes connect
/// exactly if they can.
#[test]
fn search_through_a_relay_succeeds_if_the_nats_allow_it() {
    let sides: Vec<_> =
        std::iter::once(None).chain(NatConfig::all().into_iter().map(Some)).collect();
    let (mut direct, mut signalled, mut impossible) = (0, 0, 0);
    for source in &sides {
        for target in &sides {
            let mut cluster = around_a_relay(7, *source, *target);
            let possible = cluster.network().direct_path_possible(SOURCE, TARGET);
            let id = cluster.id(TARGET);
            let outcome = find(&mut cluster, SOURCE, id);
            let what = format!("{source:?} → {target:?}: {outcome:?}");
            assert_eq!(outcome.found.is_some(), possible, "{what}");
            assert_consistent(&outcome);
            // A node that admits every packet is reached without signalling.
            let open = target.is_none_or(|nat| {
                nat.filtering == Dependence::Nothing
                    && (nat.mapping == Dependence::Nothing || nat.preserve_ports)
            });
            if possible {
                let expected = if open { ContactMode::Direct } else { ContactMode::Signal };
                cluster.drive(SECOND);
                let modes = [mode(&cluster, SOURCE, TARGET), mode(&cluster, TARGET, SOURCE)];
                assert_eq!(modes, [expected; 2], "{what}");
                assert!(outcome.stats.elapsed < 4 * SECOND, "{what}");
                *(if open { &mut direct } else { &mut signalled }) += 1;
            } else {
                assert_eq!(outcome.ended, FindEnd::Exhausted, "{what}");
                assert!(outcome.stats.elapsed < 16 * SECOND, "{what}");
                assert!(
                    failures(&outcome, id).contains(&DialFailure::TimedOutAfterSignal),
                    "{what}"
                );
                impossible += 1;
            }
        }
    }
    assert_eq!((direct, signalled, impossible), (95, 182, 84));
}

#[test]
fn two_nodes_that_share_only_a_relay_connect_through_it_in_both_directions() {
    for (from, to) in [(SOURCE, TARGET), (TARGET, SOURCE)] {
        let mut cluster = around_a_relay(1, Some(CONE), Some(CONE));
        let target = cluster.id(to);
        let outcome = find(&mut cluster, from, target);
        let (address, data) = outcome.found.clone().unwrap();
        assert_eq!((address.port, data.mode), (40_000, ContactMode::Signal), "{outcome:?}");
        let metrics = [RELAY, from, to].map(|node| cluster.node(node).metrics());
        assert_eq!(
            metrics.map(|of| (of.signals_relayed, of.signals_sent, of.punches)),
            [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
        );
        // Both have its mode in their graphs.
        cluster.drive(SECOND);
        for (node, other) in [(from, to), (to, from)] {
            let contact = cluster.node(node).contact(cluster.id(other)).unwrap();
            assert!(
                contact.iter().all(|(_, data)| data.mode == ContactMode::Signal),
                "{contact:?}"
            );
        }
        cluster.stop_all();
    }
}

/// The NAT of the target uses another port for each peer, so that only a dial by the target
/// succeeds.
#[test]
fn target_behind_a_symmetric_nat_dials_back() {
    let mut cluster = around_a_relay(1, None, Some(SYMMETRIC));
    let target = cluster.id(TARGET);
    let outcome = find(&mut cluster, SOURCE, target);
    let (address, data) = outcome.found.unwrap();
    assert_ne!(address.port, 40_000, "not where the relay sees it");
    assert_eq!(data.mode, ContactMode::Signal);
    cluster.drive(SECOND);
    assert_eq!(
        [mode(&cluster, SOURCE, TARGET), mode(&cluster, TARGET, SOURCE)],
        [ContactMode::Signal; 2]
    );
    assert_eq!(cluster.node(TARGET).metrics().punches, 1);
    cluster.stop_all();
}

#[test]
fn target_that_dials_back_before_the_relay_answers_counts_as_signalled() {
    let mut cluster = Cluster::builder().nodes(1).scripted_peers(2).seed(3).start();
    let target = cluster.id(2);
    let mut relay = Peer::new(1, move |question| match question {
        RpcRequest::Closest { .. } => {
            Reaction::answer(RpcResponse::Closest(active(target, "77.0.0.1:7")))
        }
        _ => Reaction::Silence,
    });
    relay.connect(&mut cluster, 0);
    let strategies = Strategies { direct: false, signal: true, mdns: false, relay: false };
    let find = FindNodeOptions { strategies: Some(strategies), ..FindNodeOptions::default() };
    let request = cluster.request(0, Request::FindNode { target, find });
    for _ in 0..100 {
        relay.drive(&mut cluster, ms(10));
    }
    assert_eq!(cluster.node(0).metrics().signals_sent, 1);
    Peer::honest(2).connect(&mut cluster, 0);
    let Ok(Reply::FindNode(outcome)) = cluster.await_done(0, request) else {
        panic!("the search failed")
    };
    assert_eq!(outcome.found.unwrap().1.mode, ContactMode::Signal);
    cluster.stop_all();
}

// -- relays

/// A search of node 0, which is connected to a scripted peer that reports a connection to the
/// target.
struct ConfirmingRelay {
    cluster: Cluster,
    relay: Peer,
    target: NodeId,
}

/// Node 0 and the scripted peer 1, which reports a target at an address without a node, and
/// confirms every signal.
fn search_with_confirming_relay(
    signal: impl Fn(&SignalRequest) -> Reaction + 'static,
) -> ConfirmingRelay {
    let mut cluster = Cluster::builder().nodes(1).scripted_peers(1).seed(3).start();
    let target = crate::common::absent(0);
    let mut relay = Peer::new(1, move |question| match question {
        RpcRequest::Signal(request) => signal(&request),
        RpcRequest::Closest { .. } => {
            Reaction::answer(RpcResponse::Closest(active(target, "77.0.0.1:7")))
        }
        _ => Reaction::Silence,
    });
    relay.connect(&mut cluster, 0);
    ConfirmingRelay { cluster, relay, target }
}

fn active(node: NodeId, at: &str) -> ClosestNodes {
    let address: NodeAddress = at.parse().unwrap();
    let shared_id = vec![1; 32].into();
    let connection = ActiveConnection { shared_id, address, primary: true, idle_in_ms: None };
    ClosestNodes {
        known: Vec::new(),
        connected: vec![ActiveNode { node, connections: vec![connection] }],
    }
}

impl ConfirmingRelay {
    fn search(&mut self) -> FindOutcome {
        let id = self.cluster.request(
            0,
            pk_proto::Request::FindNode { target: self.target, find: FindNodeOptions::default() },
        );
        for _ in 0..60 {
            self.relay.drive(&mut self.cluster, SECOND);
            if let Some(result) = self.cluster.done(0, id) {
                return match result.clone() {
                    Ok(pk_proto::Reply::FindNode(outcome)) => outcome,
                    other => panic!("{other:?}"),
                };
            }
        }
        panic!("the search has not ended");
    }

    fn signals(&self) -> usize {
        self.relay.asked.iter().filter(|question| matches!(question, RpcRequest::Signal(_))).count()
    }
}

#[test]
fn search_without_a_relay_sends_no_signal() {
    let mut cluster = Cluster::builder().nodes(3).start();
    cluster.connect(SOURCE, RELAY).unwrap();
    let target = cluster.id(TARGET);
    let outcome = find(&mut cluster, SOURCE, target);
    assert_eq!((outcome.ended, outcome.stats.attempts), (FindEnd::Exhausted, 0));
    assert_eq!(cluster.node(SOURCE).metrics().signals_sent, 0);
    cluster.stop_all();
}

#[test]
fn relay_without_the_target_reports_it() {
    let mut claimed = search_with_confirming_relay(|_| {
        Reaction::answer(RpcResponse::Refused(Refusal::NotConnected))
    });
    let outcome = claimed.search();
    assert_eq!(outcome.ended, FindEnd::Exhausted);
    let failures = failures(&outcome, claimed.target);
    let lost = DialFailure::Signal(Refusal::NotConnected.to_string());
    assert!(failures.contains(&lost) && failures.contains(&DialFailure::TimedOut), "{failures:?}");
    assert_eq!(claimed.signals(), 1);
}

/// The relay never answers, another one does, and others receive queries as well: none waits for
/// the first.
#[test]
fn silent_relay_delays_neither_the_search_nor_another_relay() {
    let mut cluster = Cluster::builder().nodes(4).scripted_peers(1).seed(2).build();
    let [source, relay, target, other, silent] = [0, 1, 2, 3, 4];
    for node in [source, target] {
        let nat = cluster.add_nat(CONE);
        cluster.put_behind(node, nat);
    }
    (0..5).for_each(|node| cluster.start_node(node));
    cluster.drive(Duration::ZERO);
    cluster.connect(target, relay).unwrap();
    cluster.connect(other, relay).unwrap();
    let id = cluster.id(target);
    let mut scripted_peer = Peer::new(silent, move |question| match question {
        RpcRequest::Closest { .. } => {
            Reaction::answer(RpcResponse::Closest(active(id, "77.0.0.1:7")))
        }
        _ => Reaction::Silence,
    });
    // The scripted peer is the first to report the target, the relay a little later.
    let (address, node) = (cluster.host(silent).addrs()[0].into(), cluster.id(silent));
    let connect = pk_proto::Request::Connect {
        target: node,
        address,
        options: pk_proto::RequestOptions::default(),
    };
    cluster.request(source, connect);
    scripted_peer.drive(&mut cluster, SECOND);
    let slow = pk_sim::Link::ms(100);
    cluster.network_mut().set_link(source, relay, slow);
    let connect = pk_proto::Request::Connect {
        target: cluster.id(relay),
        address: cluster.address(relay),
        options: pk_proto::RequestOptions::default(),
    };
    cluster.request(source, connect);
    scripted_peer.drive(&mut cluster, 2 * SECOND);
    let begun = cluster.now();
    let search = cluster.request(
        source,
        pk_proto::Request::FindNode { target: id, find: FindNodeOptions::default() },
    );
    while cluster.done(source, search).is_none() {
        scripted_peer.drive(&mut cluster, ms(10));
        assert!(cluster.now().since(begun) < 4 * SECOND, "{:?}", scripted_peer.asked);
    }
    let Some(Ok(pk_proto::Reply::FindNode(outcome))) = cluster.done(source, search).cloned() else {
        panic!()
    };
    assert!(outcome.found.is_some(), "{outcome:?}");
    assert!(
        scripted_peer.asked.iter().any(|question| matches!(question, RpcRequest::Signal(_))),
        "it was asked first"
    );
    assert!(matches!(
        step(&outcome, cluster.id(other)),
        FindStepEnd::Answered { .. } | FindStepEnd::Pending
    ));
}

/// A search asks each scripted relay once, however often they report the target.
#[test]
fn search_asks_a_relay_once() {
    for reaction in [Reaction::answer(RpcResponse::Refused(Refusal::Busy)), Reaction::Silence] {
        let mut claimed = search_with_confirming_relay(move |_| reaction.clone());
        let outcome = claimed.search();
        assert!(outcome.found.is_none());
        assert_eq!(claimed.signals(), 1);
        assert!(outcome.stats.elapsed < 16 * SECOND, "{outcome:?}");
    }
}

#[test]
fn search_without_the_strategy_asks_no_relay() {
    for (direct, signal) in [(true, false), (false, true)] {
        let mut cluster = around_a_relay(1, Some(CONE), Some(CONE));
        let strategies = Some(pk_proto::Strategies { direct, signal, mdns: false, relay: false });
        let target = cluster.id(TARGET);
        let outcome = find_with(
            &mut cluster,
            SOURCE,
            target,
            FindNodeOptions { strategies, ..FindNodeOptions::default() },
        );
        assert_eq!(outcome.found.is_some(), signal);
        assert_eq!(cluster.node(SOURCE).metrics().signals_sent, u64::from(signal));
    }
}

// -- the local node as a relay

/// Node 0 between scripted peers: the first ones send signals, the last one is their target and
/// answers nothing.
struct RelayBetween {
    cluster: Cluster,
    seed: u64,
    /// The scripted sources, and the ids of their connections.
    sources: Vec<(Peer, pk_proto::ConnectionId)>,
    target: NodeId,
    target_host: HostId,
}

fn relay_between(sources: usize) -> RelayBetween {
    let seed = 5;
    let mut cluster = Cluster::builder().nodes(1).scripted_peers(sources + 1).seed(seed).start();
    let connect = |cluster: &mut Cluster, host| {
        let mut peer = Peer::honest(host);
        let conn = peer.connect(cluster, 0);
        (peer, conn)
    };
    let sources: Vec<_> = (1..=sources).map(|host| connect(&mut cluster, host)).collect();
    let target_host = sources.len() + 1;
    drop(connect(&mut cluster, target_host));
    let target = cluster.id(target_host);
    RelayBetween { cluster, seed, sources, target, target_host }
}

impl RelayBetween {
    fn key(&self, source: usize) -> Key {
        Key::numbered(self.seed, self.sources[source].0.host() as u64)
    }

    fn signed(&self, source: usize, seconds: i64, nonce: u8) -> SignalRequest {
        request(&self.key(source), self.target, in_seconds(&self.cluster, 0, seconds), nonce)
    }

    fn ask(&mut self, source: usize, requests: Vec<SignalRequest>) -> Vec<RpcResponse> {
        let (peer, conn) = &mut self.sources[source];
        let questions = requests.into_iter().map(RpcRequest::Signal).collect();
        peer.ask(&mut self.cluster, *conn, questions).into_iter().map(Option::unwrap).collect()
    }

    fn ask_one(&mut self, source: usize, request: SignalRequest) -> RpcResponse {
        self.ask(source, vec![request]).remove(0)
    }

    /// Calls that the target has received.
    fn forwarded(&self) -> usize {
        let opened =
            |input: &&pk_proto::Input| matches!(input, pk_proto::Input::StreamOpened { .. });
        self.cluster.scripted_peer(self.target_host).inputs().filter(opened).count()
    }
}

/// The terms of a request with expiry and nonce.
fn once(request: &mut SignalRequest) -> (&mut UnixMillis, &mut [u8; 16]) {
    match &mut request.terms {
        SignalTerms::Once { expires, nonce } => (expires, nonce),
        SignalTerms::Plain => panic!("a plain one"),
    }
}

fn is_signalled(answer: &RpcResponse) -> bool {
    matches!(answer, RpcResponse::Signalled { .. })
}

#[test]
fn relay_forwards_fresh_signed_requests_and_returns_the_address_of_the_target() {
    let mut between = relay_between(1);
    let request = between.signed(0, 120, 1);
    let address = between.cluster.address(between.target_host);
    assert_eq!(between.ask_one(0, request), RpcResponse::Signalled { address });
    assert_eq!(between.forwarded(), 1);
    let metrics = between.cluster.node(0).metrics();
    assert_eq!((metrics.signals_relayed, metrics.signals_refused), (1, 0));
}

#[test]
fn relay_refuses_replayed_expired_foreign_and_changed_requests() {
    let mut between = relay_between(2);
    let fresh = between.signed(0, 120, 1);
    assert!(is_signalled(&between.ask_one(0, fresh.clone())));
    let flipped = |mut request: SignalRequest, change: fn(&mut SignalRequest)| {
        change(&mut request);
        request
    };
    let gone = crate::common::absent(3);
    let cases = vec![
        (0, fresh.clone(), Refusal::Replayed),
        // Of another node, otherwise valid.
        (1, between.signed(0, 120, 2), Refusal::Signature),
        (0, between.signed(0, -1, 3), Refusal::Expired),
        (0, between.signed(0, 260, 4), Refusal::Expired),
        (
            0,
            flipped(between.signed(0, 120, 5), |request| once(request).1[0] ^= 1),
            Refusal::Signature,
        ),
        (
            0,
            flipped(between.signed(0, 120, 6), |request| once(request).0.0 += 1),
            Refusal::Signature,
        ),
        (
            0,
            flipped(between.signed(0, 120, 7), |request| request.signature.0[40] ^= 1),
            Refusal::Signature,
        ),
        (
            0,
            request(&between.key(0), gone, in_seconds(&between.cluster, 0, 120), 8),
            Refusal::NotConnected,
        ),
        // For the relay itself.
        (
            0,
            request(
                &between.key(0),
                between.cluster.id(0),
                in_seconds(&between.cluster, 0, 120),
                9,
            ),
            Refusal::NotConnected,
        ),
    ];
    let count = cases.len() as u64;
    for (source, request, refusal) in cases {
        assert_eq!(between.ask_one(source, request), RpcResponse::Refused(refusal));
    }
    let metrics = between.cluster.node(0).metrics();
    assert_eq!(
        (metrics.signals_relayed, metrics.signals_refused, between.forwarded()),
        (1, count, 1)
    );
    // A request that was refused for its signature has not used its nonce.
    let second = between.signed(0, 120, 5);
    assert!(is_signalled(&between.ask_one(0, second)));
}

#[test]
fn relay_accepts_twenty_signals_of_a_source_at_once_and_ten_a_second() {
    let mut between = relay_between(1);
    let burst: Vec<_> = (0..30).map(|nonce| between.signed(0, 120, nonce)).collect();
    let answers = between.ask(0, burst);
    assert_eq!(answers.iter().filter(|answer| is_signalled(answer)).count(), 20);
    assert_eq!(
        answers
            .iter()
            .filter(|answer| **answer == RpcResponse::Refused(Refusal::RateLimited))
            .count(),
        10
    );
    // A second has passed since.
    let more: Vec<_> = (30..60).map(|nonce| between.signed(0, 120, nonce)).collect();
    let answers = between.ask(0, more);
    assert!(
        (10..=11).contains(&answers.iter().filter(|answer| is_signalled(answer)).count()),
        "{answers:?}"
    );
    assert!(between.cluster.node(0).metrics().signals_refused >= 29);
}

#[test]
fn signals_to_one_target_are_limited_over_all_sources() {
    let mut between = relay_between(4);
    let mut passed = 0;
    for source in 0..4 {
        let requests: Vec<_> = (0..10).map(|nonce| between.signed(source, 120, nonce)).collect();
        let answers = between.ask(source, requests);
        passed += answers.iter().filter(|answer| is_signalled(answer)).count();
    }
    // Twenty, and ten for each second that has passed; each source alone would have had all of its
    // requests forwarded.
    assert_eq!(passed, 40, "the seconds between them are enough");
    let mut between = common_burst(4);
    passed = between.forwarded();
    assert_eq!(passed, 20);
    let metrics = between.cluster.node(0).metrics();
    assert_eq!((metrics.signals_relayed, metrics.signals_refused), (20, 20));
    between.cluster.drive(SECOND);
}

/// Ten signals of every source, all at one instant.
fn common_burst(sources: usize) -> RelayBetween {
    let mut between = relay_between(sources);
    for source in 0..sources {
        for nonce in 0..10 {
            let question = RpcRequest::Signal(between.signed(source, 120, nonce));
            let call = pk_proto::native::encode(&pk_proto::native::Message::V1(
                pk_proto::native::V1::Call { deadline_ms: 5000, request: question },
            ));
            let (peer, conn) = &mut between.sources[source];
            peer.send(&mut between.cluster, *conn, call.unwrap(), true);
        }
    }
    between.cluster.drive(SECOND);
    between
}

// -- the local node as a target

/// Node 0, which the scripted peer 1 asks to punch for the scripted peer 2.
struct TargetWithRelay {
    cluster: Cluster,
    relay: Peer,
    conn: pk_proto::ConnectionId,
    keys: [Key; 3],
}

fn target_with_relay() -> TargetWithRelay {
    let seed = 6;
    let mut cluster = Cluster::builder().nodes(1).scripted_peers(2).seed(seed).start();
    let mut relay = Peer::honest(1);
    let conn = relay.connect(&mut cluster, 0);
    TargetWithRelay { cluster, relay, conn, keys: [0, 1, 2].map(|host| Key::numbered(seed, host)) }
}

impl TargetWithRelay {
    fn request(&self, source: &Key, nonce: u8) -> SignalRequest {
        request(source, self.keys[0].id(), in_seconds(&self.cluster, 0, 120), nonce)
    }

    /// A request of the scripted peer 2, from this address.
    fn punch(&self, nonce: u8, at: &str) -> pk_proto::PunchRequest {
        let [_, relay, source] = &self.keys;
        punch(relay, source.id(), at.parse().unwrap(), self.request(source, nonce))
    }

    fn ask(&mut self, punches: Vec<pk_proto::PunchRequest>) -> Vec<RpcResponse> {
        let questions =
            punches.into_iter().map(|punch| RpcRequest::Punch(Box::new(punch))).collect();
        self.relay
            .ask(&mut self.cluster, self.conn, questions)
            .into_iter()
            .map(Option::unwrap)
            .collect()
    }

    fn ask_one(&mut self, punch: pk_proto::PunchRequest) -> RpcResponse {
        self.ask(vec![punch]).remove(0)
    }

    fn datagrams(&self) -> u64 {
        self.cluster.coverage().count("Output::Punch")
    }
}

#[test]
fn target_punches_for_fifteen_seconds_and_dials_back() {
    let mut told = target_with_relay();
    let request = told.punch(1, "77.0.0.1:7");
    assert_eq!(told.ask_one(request), RpcResponse::Punching);
    let metrics = told.cluster.node(0).metrics();
    assert_eq!((metrics.punches, metrics.dials), (1, 1));
    told.cluster.drive(13 * SECOND);
    assert_eq!(told.datagrams(), 8);
    told.cluster.drive(2 * SECOND);
    assert_eq!(told.datagrams(), 9);
    told.cluster.drive(60 * SECOND);
    assert_eq!(told.datagrams(), 9);
    assert_eq!(told.cluster.node(0).metrics().connections_pending, 0);
}

#[test]
fn punching_ends_when_the_source_is_connected() {
    let mut told = target_with_relay();
    // The source connects from another port than the relay has observed, as behind a symmetric NAT.
    let request = told.punch(1, "22.0.0.1:7");
    assert_eq!(told.ask_one(request), RpcResponse::Punching);
    let sent = told.datagrams();
    Peer::honest(2).connect(&mut told.cluster, 0);
    told.cluster.drive(20 * SECOND);
    assert!(told.datagrams() <= sent + 2, "{} {sent}", told.datagrams());
    assert_eq!(mode(&told.cluster, 0, 2), ContactMode::Signal);
    // Punching does not start for a connected node, either.
    let again = told.punch(2, "22.0.0.1:8");
    let sent = told.datagrams();
    assert_eq!(told.ask_one(again), RpcResponse::Punching);
    assert_eq!(told.datagrams(), sent);
}

#[test]
fn target_refuses_replayed_expired_foreign_and_changed_requests() {
    let mut told = target_with_relay();
    let at = |text: &str| -> NodeAddress { text.parse().unwrap() };
    let good = told.punch(1, "77.0.0.1:7");
    assert_eq!(told.ask_one(good.clone()), RpcResponse::Punching);
    let [own, relay, source] = told.keys.clone();
    let expired = request(&source, own.id(), in_seconds(&told.cluster, 0, -1), 2);
    let mut changed = told.punch(3, "77.0.0.1:7");
    (changed.address, changed.address_text) = (at("77.0.0.2:7"), "77.0.0.2-7".into());
    let mut spoilt = told.punch(4, "77.0.0.1:7");
    once(&mut spoilt.request).1[0] ^= 1;
    let foreign_relay = punch(&source, source.id(), at("77.0.0.1:7"), told.request(&source, 5));
    let foreign_source = punch(&relay, source.id(), at("77.0.0.1:7"), told.request(&relay, 6));
    let in_seconds = in_seconds(&told.cluster, 0, 120);
    let other_target =
        punch(&relay, source.id(), at("77.0.0.1:7"), request(&source, relay.id(), in_seconds, 7));
    let ourselves = punch(&relay, own.id(), at("77.0.0.1:7"), told.request(&own, 8));
    let cases = [
        (good, Refusal::Replayed),
        (punch(&relay, source.id(), at("77.0.0.1:7"), expired), Refusal::Expired),
        (changed, Refusal::RelaySignature),
        (spoilt, Refusal::RelaySignature),
        (foreign_relay, Refusal::RelaySignature),
        (foreign_source, Refusal::Signature),
        (other_target, Refusal::NotTarget),
        (ourselves, Refusal::NotTarget),
    ];
    let count = cases.len() as u64;
    for (request, refusal) in cases {
        assert_eq!(told.ask_one(request), RpcResponse::Refused(refusal));
    }
    let metrics = told.cluster.node(0).metrics();
    assert_eq!((metrics.punches, metrics.punches_refused), (1, count));
}

#[test]
fn at_most_three_punches_go_to_one_host_and_one_to_each_address() {
    let mut told = target_with_relay();
    let ports = [1, 2, 3, 4, 1, 2, 5];
    let requests: Vec<_> = ports
        .iter()
        .zip(0..)
        .map(|(port, nonce)| told.punch(nonce, &format!("77.0.0.1:{port}")))
        .collect();
    let answers = told.ask(requests);
    let (yes, busy) = (RpcResponse::Punching, RpcResponse::Refused(Refusal::Busy));
    let expected = [&yes, &yes, &yes, &busy, &yes, &yes, &busy];
    assert_eq!(answers.iter().collect::<Vec<_>>(), expected);
    told.cluster.drive(60 * SECOND);
    assert_eq!(told.datagrams(), 3 * 9);
    let metrics = told.cluster.node(0).metrics();
    assert_eq!((metrics.punches, metrics.punches_refused, metrics.dials), (3, 2, 3));
}
