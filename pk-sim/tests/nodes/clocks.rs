//! Wrong wall clocks, and clocks that are set while nodes run.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use pk_proto::{
    BucketIndex, ConnectionId, ContactMode, DialFailure, Failure, NodeAddress,
    NodeContactAddressData, NodeId, Refusal, Reply, Request, RequestOptions, RpcRequest,
    RpcResponse, Scopes, SetNodeOptions, SetNodeOutcome, UnixMillis,
};
use pk_sim::{Cluster, Dependence, HostId, Key, NatConfig};

use crate::common::signals::{self, in_seconds, punch, request};
use crate::common::{Peer, Reaction, SECOND};

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;
const CONE: NatConfig = NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort);

// -- signalling

const RELAY: HostId = 0;
const SOURCE: HostId = 1;
const TARGET: HostId = 2;

/// Sets a clock, and informs its machine.
fn set_clock(cluster: &mut Cluster, node: HostId, ahead: i64) {
    cluster.set_clock(node, ahead);
    cluster.drive(SECOND);
}

/// A relay, and two nodes behind NATs that are connected to it, with these offsets of their clocks.
fn around_a_relay(skews: [i64; 3]) -> Cluster {
    // Only the test connects nodes.
    let mut cluster = Cluster::quiet()
        .nodes(3)
        .seed(1)
        // A relay would connect nodes whose signals are refused.
        .config(|config| config.relay.paths = 0)
        .build();
    for node in [SOURCE, TARGET] {
        let nat = cluster.add_nat(CONE);
        cluster.put_behind(node, nat);
    }
    for (node, ahead) in skews.into_iter().enumerate() {
        cluster.set_clock(node, ahead);
        cluster.start_node(node);
    }
    cluster.drive(Duration::ZERO);
    for node in [SOURCE, TARGET] {
        cluster.connect(node, RELAY).unwrap();
    }
    cluster.drive(SECOND);
    cluster
}

/// Connects the source with the target through the relay, and closes the connection again.
fn signal(cluster: &mut Cluster) -> Result<(), Failure> {
    let (target, relay) = (cluster.id(TARGET), cluster.id(RELAY));
    let through = Request::ConnectThrough { target, relay, options: RequestOptions::default() };
    let before = counts(cluster);
    let reply = cluster.ask(SOURCE, through)?;
    assert!(matches!(reply, Reply::Connect(_)));
    cluster.drive(SECOND);
    assert_eq!(counts(cluster), (before.0 + 1, before.1), "signalled, and the target has punched");
    let own = cluster.id(SOURCE);
    for (node, other) in [(SOURCE, target), (TARGET, own)] {
        cluster.call(node, |node, now| node.disconnect(other, now));
    }
    cluster.drive(20 * SECOND);
    Ok(())
}

/// The numbers of requests that the relay has forwarded, and that the target has refused.
fn counts(cluster: &Cluster) -> (u64, u64) {
    (cluster.node(RELAY).metrics().signals_relayed, cluster.node(TARGET).metrics().punches_refused)
}

#[test]
fn clocks_that_differ_by_up_to_an_hour_do_not_prevent_signalling() {
    for minutes in [
        [0, 3, 0],
        [0, -3, 0],
        [0, 60, 0],
        [0, -60, 0],
        [0, 0, 60],
        [0, 0, -60],
        [60, 0, 0],
        [-60, 0, 0],
        [60, 0, 60],
        [0, 30, -30],
        [0, -30, 30],
        [-30, 30, 0],
        [30, 0, 60],
        [-60, 0, -60],
    ] {
        let mut cluster = around_a_relay(minutes.map(|minutes| minutes * MINUTE));
        for round in 0..3 {
            assert_eq!(signal(&mut cluster), Ok(()), "{minutes:?} round {round}");
        }
    }
}

#[test]
fn clocks_set_forward_and_back_do_not_prevent_signalling() {
    for node in [RELAY, SOURCE, TARGET] {
        let mut cluster = around_a_relay([0; 3]);
        for minutes in [0, 50, -50, 0, 3, -3, 60, 0] {
            set_clock(&mut cluster, node, minutes * MINUTE);
            assert_eq!(signal(&mut cluster), Ok(()), "node {node}, {minutes}");
        }
        // While the clock is decades off, no new node is accepted; after it is corrected, nodes are
        // accepted again.
        for days in [-20_000, 400, 1_000_000] {
            set_clock(&mut cluster, node, days * DAY);
            let _ = signal(&mut cluster);
            cluster.drive(30 * SECOND);
            set_clock(&mut cluster, node, 0);
            for other in [SOURCE, TARGET] {
                cluster.connect(other, RELAY).unwrap();
            }
            cluster.drive(SECOND);
            assert_eq!(signal(&mut cluster), Ok(()), "node {node}, after {days} days");
        }
    }
}

/// The first certificates of the cluster are a day old, and a relay does not verify them again on a
/// live connection.
#[test]
fn failure_names_the_clock_if_the_clock_of_the_source_is_hours_off() {
    let mut cluster = around_a_relay([0; 3]);
    set_clock(&mut cluster, SOURCE, 300 * DAY);
    let own_clock = cluster.unix(SOURCE).to_string();
    let Err(Failure::Dial(failures)) = signal(&mut cluster) else { panic!("it was signalled") };
    let [(_, DialFailure::Signal(why))] = &failures[..] else { panic!("{failures:?}") };
    assert!(why.contains("clock") && why.contains(&own_clock[..13]), "{why}");
}

#[test]
fn source_signs_by_its_new_time_if_the_old_one_is_refused() {
    let mut cluster = Cluster::builder().nodes(1).scripted_peers(1).seed(3).start();
    // The times that a relay of an earlier version accepts; at first, all.
    let accepted = Rc::new(Cell::new((0, u64::MAX)));
    let accepts = Rc::clone(&accepted);
    let mut relay = Peer::new(1, move |question| match question {
        RpcRequest::Signal(request) => {
            let (from, to) = accepts.get();
            let fits = (from..=to).contains(&signals::expires(&request).0);
            Reaction::answer(RpcResponse::Refused(if fits {
                Refusal::NotConnected
            } else {
                Refusal::Expired
            }))
        }
        RpcRequest::Ping { nonce } => Reaction::answer(RpcResponse::Pong { nonce }),
        _ => Reaction::Silence,
    });
    relay.connect(&mut cluster, 0);
    let (target, via) = (crate::common::absent(7), cluster.id(1));
    for (minutes, asked) in [(3, 1), (0, 3)] {
        set_clock(&mut cluster, 0, minutes * MINUTE);
        let id = cluster.request(
            0,
            Request::ConnectThrough { target, relay: via, options: RequestOptions::default() },
        );
        relay.drive(&mut cluster, 2 * SECOND);
        let signals =
            relay.asked.iter().filter(|question| matches!(question, RpcRequest::Signal(_))).count();
        assert_eq!(signals, asked, "asked again once, by the clock as it is now");
        let Some(Err(Failure::Dial(failures))) = cluster.done(0, id) else {
            panic!("{:?}", cluster.done(0, id))
        };
        let why = format!("{:?}", failures[0].1);
        assert!(why.contains(&Refusal::NotConnected.to_string()), "{minutes}: {why}");
        let right = cluster.unix(1).0;
        accepted.set((right, right + 245_000));
    }
}

// -- replays

/// Node 0 as a target; the scripted peers 1 and 2 are relays, and the key of host 3 is the source.
struct Target {
    cluster: Cluster,
    relays: [(Peer, ConnectionId); 2],
    keys: [Key; 4],
    skew: i64,
}

impl Target {
    /// Offset of the clock of the source, in seconds.
    fn new(skew: i64) -> Self {
        let mut cluster = Cluster::builder().nodes(1).scripted_peers(2).seed(6).start();
        let relays = [1, 2].map(|host| {
            let mut relay = Peer::honest(host);
            let conn = relay.connect(&mut cluster, 0);
            (relay, conn)
        });
        Self { cluster, relays, keys: [0, 1, 2, 3].map(|host| Key::numbered(6, host)), skew }
    }

    /// A request that the source signs now.
    fn signed(&self, nonce: u8) -> pk_proto::SignalRequest {
        request(
            &self.keys[3],
            self.keys[0].id(),
            in_seconds(&self.cluster, 0, 120 + self.skew),
            nonce,
        )
    }

    /// A relay forwards a request.
    fn forward(&mut self, relay: usize, request: &pk_proto::SignalRequest) -> RpcResponse {
        let at: NodeAddress = "77.0.0.1:7".parse().unwrap();
        let punch = punch(&self.keys[relay], self.keys[3].id(), at, request.clone());
        let (peer, conn) = &mut self.relays[relay - 1];
        peer.ask_one(&mut self.cluster, *conn, RpcRequest::Punch(Box::new(punch))).unwrap()
    }

    /// Lets time pass, while both relays react.
    fn drive(&mut self, time: Duration) {
        let end = self.cluster.now() + time;
        while self.cluster.next().is_some_and(|at| at <= end) {
            self.cluster.step();
            self.relays.iter_mut().for_each(|(relay, _)| relay.react(&mut self.cluster));
        }
        let rest = end.since(self.cluster.now());
        self.cluster.drive(rest);
    }

    fn reconnect(&mut self, relay: usize) {
        let node = self.keys[relay].id();
        self.cluster.call(0, |target, now| target.disconnect(node, now));
        self.drive(SECOND);
        let (peer, conn) = &mut self.relays[relay - 1];
        *conn = peer.connect(&mut self.cluster, 0);
    }
}

fn refused(answer: &RpcResponse) -> bool {
    matches!(answer, RpcResponse::Refused(Refusal::Replayed | Refusal::Expired))
}

#[test]
fn target_punches_once_per_request_for_any_clock_of_the_source() {
    for minutes in [0, 60, -60] {
        let mut target = Target::new(60 * minutes);
        let recorded = target.signed(1);
        assert_eq!(target.forward(1, &recorded), RpcResponse::Punching, "{minutes}");
        assert_eq!(target.forward(1, &recorded), RpcResponse::Refused(Refusal::Replayed));
        assert_eq!(
            target.forward(2, &recorded),
            RpcResponse::Refused(Refusal::Replayed),
            "through another relay"
        );
        let mut passed = 0;
        for wait in [1, 2, 3, 5, 9, 11, 30, 61, 63, 70, 100, 121, 123, 150, 250, 400] {
            target.drive(60 * SECOND * (wait - passed));
            passed = wait;
            target.reconnect(1);
            target.reconnect(2);
            for relay in [1, 2] {
                let answer = target.forward(relay, &recorded);
                assert!(refused(&answer), "{minutes}, after {wait} minutes: {answer:?}");
            }
        }
        let fresh = target.signed(2);
        assert_eq!(target.forward(1, &fresh), RpcResponse::Punching, "{minutes}");
    }
}

#[test]
fn request_delayed_by_a_relay_is_refused_once_the_clock_of_the_source_is_known() {
    for minutes in [0, 59, -59] {
        let mut target = Target::new(60 * minutes);
        let kept = target.signed(1);
        let other = target.signed(2);
        assert_eq!(target.forward(1, &other), RpcResponse::Punching);
        target.drive(250 * SECOND);
        target.reconnect(1);
        assert_eq!(target.forward(1, &kept), RpcResponse::Refused(Refusal::Expired), "{minutes}");
        target.reconnect(1);
        assert_eq!(target.forward(1, &kept), RpcResponse::Refused(Refusal::Expired), "{minutes}");
        // A new request is accepted, and the old one still is not.
        target.reconnect(2);
        let fresh = target.signed(3);
        assert_eq!(target.forward(2, &fresh), RpcResponse::Punching);
        assert!(refused(&target.forward(2, &kept)));
    }
}

// -- the graph

/// Two nodes, the first of which is started with its clock ahead by this much.
fn started_with_skew(skew: i64) -> Cluster {
    let mut cluster = Cluster::builder().nodes(2).seed(9).build();
    cluster.set_clock(0, skew);
    (0..2).for_each(|node| cluster.start_node(node));
    cluster.drive(Duration::ZERO);
    cluster
}

fn set(cluster: &mut Cluster, node: NodeId, port: u16, force: bool) -> SetNodeOutcome {
    let address = format!("{}.0.0.1:{port}", 20 + port).parse().unwrap();
    let connected_time = cluster.unix(0);
    let data = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time,
        scopes: Scopes::GLOBAL,
    };
    let how = SetNodeOptions { force, ..SetNodeOptions::default() };
    let Ok(Reply::SetNode(outcome)) = cluster.ask(0, Request::SetNode { node, address, data, how })
    else {
        panic!()
    };
    outcome
}

fn ports(cluster: &Cluster, node: NodeId) -> Vec<u16> {
    cluster.node(0).contact(node).unwrap().iter().map(|(address, _)| address.port).collect()
}

fn latest(cluster: &Cluster) -> UnixMillis {
    let contacts = cluster.node(0).graph().iter().map(|(_, contact)| contact.connected_time());
    contacts.max().unwrap()
}

#[test]
fn newer_addresses_replace_those_from_a_clock_that_was_ahead() {
    for restart in [false, true] {
        for days in [1, 300] {
            let mut cluster = started_with_skew(days * DAY);
            let node = cluster.id(1);
            for port in 1..=5 {
                set(&mut cluster, node, port, false);
                cluster.drive(SECOND);
            }
            if restart {
                // Only proven nodes are kept over a restart.
                cluster.connect(0, 1).unwrap();
                cluster.stop(0);
                cluster.set_clock(0, 0);
                cluster.restart(0);
                cluster.drive(SECOND);
            } else {
                set_clock(&mut cluster, 0, 0);
                assert_eq!(ports(&cluster, node), [5, 4, 3, 2, 1], "they keep their order");
            }
            assert!(latest(&cluster) <= cluster.unix(0), "no time is of the future");
            for port in [8, 9] {
                set(&mut cluster, node, port, false);
                assert_eq!(
                    ports(&cluster, node)[0],
                    port,
                    "{days} {restart}: the newest comes first"
                );
                assert!(latest(&cluster) <= cluster.unix(0));
                cluster.drive(SECOND);
            }
            // The checkers of the simulator compare the store with the graph.
            cluster.drive(60 * SECOND);
        }
    }
}

#[test]
fn oldest_node_of_a_bucket_stays_the_oldest_after_the_clock_was_ahead() {
    let mut cluster = started_with_skew(300 * DAY);
    let own = cluster.id(0);
    let mut far = (0..)
        .map(crate::common::absent)
        .filter(|node| own.bucket_index(node) == Some(BucketIndex(255)));
    let early: Vec<_> = far.by_ref().take(19).collect();
    for (node, port) in early.iter().zip(1..) {
        set(&mut cluster, *node, port, false);
        cluster.drive(SECOND);
    }
    set_clock(&mut cluster, 0, 0);
    let late = far.next().unwrap();
    assert_eq!(set(&mut cluster, late, 50, false), SetNodeOutcome::Added);
    cluster.drive(SECOND);
    let forced = set(&mut cluster, far.next().unwrap(), 51, true);
    assert_eq!(forced, SetNodeOutcome::Replaced(early[0]), "not the one that has come last");
}

#[test]
fn clock_that_was_ahead_delays_no_refresh() {
    let mut cluster = started_with_skew(300 * DAY);
    cluster.connect(0, 1).unwrap();
    cluster.drive(2 * 3600 * SECOND);
    let refreshes = cluster.node(0).metrics().refreshes;
    assert!(refreshes > 0);
    cluster.kill(0);
    cluster.set_clock(0, 0);
    cluster.start_node(0);
    cluster.drive(2 * 3600 * SECOND);
    assert!(
        cluster.node(0).metrics().refreshes > 0,
        "what was remembered is of the future, and delays nothing"
    );
}
