//! Guarantees of the simulator: exact timers, checkers that fail the run, detected livelocks,
//! determinism.

use pk_proto::{
    BucketIndex, Config, ConnectionId, ContactMode, Event, Failure, Input, Instant, Metrics,
    NodeContact, NodeContactAddressData, NodeId, Output, RequestId, Scopes, StreamId, UnixMillis,
};
use pk_sim::{GraphView, Link, Machine, ScriptedPeer, World};

use crate::{SECOND, connect, dial, ms, scripted_peer, scripted_peers};

#[test]
fn timers_fire_exactly_when_due() {
    let mut world = scripted_peers(1, 1);
    let due = world.now() + ms(1234);
    world.call(0, |scripted_peer, _| scripted_peer.timer = Some(due));
    world.drive(ms(1000));
    world.spurious_timeout(0);
    assert_eq!((world.counters().timeouts, world.counters().spurious_timeouts), (1, 1));
    assert_eq!(scripted_peer(&world, 0).timer, Some(due));
    assert_eq!(world.next(), Some(due));
    world.drive(SECOND);
    assert_eq!((world.counters().timeouts, world.counters().spurious_timeouts), (2, 1));
    assert_eq!((scripted_peer(&world, 0).timer, world.next()), (None, None));
    assert_eq!(world.now(), Instant::ORIGIN + ms(2000));

    // A moved timer does not fire at its old time, and one in the past fires at once.
    let later = world.now() + ms(50);
    world.call(0, |scripted_peer, _| scripted_peer.timer = Some(later));
    world.call(0, |scripted_peer, _| scripted_peer.timer = Some(Instant::ORIGIN));
    assert!(world.step() && !world.step());
    assert_eq!((world.now(), world.check_counters().timers), (Instant::ORIGIN + ms(2000), 2));
}

#[test]
fn inputs_precede_timers_of_the_same_instant() {
    let mut world = scripted_peers(2, 1);
    let due = world.now() + ms(20);
    world.call(0, |scripted_peer, _| scripted_peer.timer = Some(due));
    dial(&mut world, 0, 1);
    world.drive_until(|world| scripted_peer(world, 0).connected().is_some(), SECOND);
    assert_eq!((world.now(), scripted_peer(&world, 0).timer), (due, Some(due)));
}

/// A machine with a planted bug that the simulator must detect.
#[derive(Debug)]
enum Bug {
    /// A timer that stays after it has fired.
    StuckTimer,
    /// A timer after `Stopped`.
    TimerAfterStop(bool),
    /// A request for a signature after each signature.
    AnswersForever(u64),
}

impl Machine for Bug {
    fn handle_input(&mut self, input: Input, _: Instant) {
        match (self, input) {
            (Self::AnswersForever(next), _) => *next += 1,
            (Self::TimerAfterStop(stop), _) => *stop = true,
            _ => {}
        }
    }

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_output(&mut self) -> Option<Output> {
        match self {
            Self::AnswersForever(next) if *next % 2 == 1 => {
                *next += 1;
                let (id, key) = (pk_proto::EffectId(*next / 2), crate::id(0));
                Some(Output::Sign { id, key, bytes: bytes::Bytes::new() })
            }
            Self::TimerAfterStop(stop) => {
                std::mem::take(stop).then_some(Output::Event(Event::Stopped))
            }
            _ => None,
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::AnswersForever(_) => None,
            _ => Some(Instant::ORIGIN + SECOND),
        }
    }
}

fn run(bug: Bug) {
    let mut world = World::new(0);
    world.add_host(crate::host(0));
    world.start(0, |_| bug);
    world.drive(2 * SECOND);
}

#[test]
#[should_panic(expected = "checker `timers`: a timer due at 1.000000s fired without an output")]
fn stuck_timer_ends_the_run() {
    run(Bug::StuckTimer);
}

#[test]
#[should_panic(expected = "checker `timers`: stopped, but a timer is due")]
fn timer_of_a_stopped_machine_ends_the_run() {
    run(Bug::TimerAfterStop(false));
}

#[test]
#[should_panic(expected = "answers in one drain: a livelock")]
fn endless_answers_end_the_run() {
    run(Bug::AnswersForever(0));
}

#[test]
#[should_panic(expected = "checker `discipline`: connection number 0 used again")]
fn undisciplined_output_ends_the_run() {
    let mut world = scripted_peers(2, 1);
    dial(&mut world, 0, 1);
    world.call(0, |scripted_peer, now| {
        let deadline = now + SECOND;
        let expect = [crate::id(1)].into();
        scripted_peer.say(Output::Dial {
            conn: ConnectionId(0),
            addr: "10.0.1.1:1".parse().unwrap(),
            expect,
            deadline,
        });
    });
}

#[test]
#[should_panic(expected = "checker `windows`: stream 0 has 65537 unconfirmed bytes")]
fn too_many_bytes_end_the_run() {
    let mut world = scripted_peers(2, 1);
    world.host_mut(0).caps = Some(pk_proto::Config::default());
    world.kill(0);
    world.start(0, |_| ScriptedPeer::default());
    let (conn, _) = connect(&mut world, 0, 1);
    world.call(0, |scripted_peer, _| {
        let stream = scripted_peer.open(conn);
        scripted_peer.send(stream, vec![0; 65_537], false);
    });
}

#[test]
#[should_panic(expected = "checker `requests`: stopped, but request 3 has not ended")]
fn forgotten_request_ends_the_run() {
    let mut world = scripted_peers(1, 1);
    world.begin(0, |_, _| Ok::<_, ()>(RequestId(3))).unwrap();
    world.call(0, |scripted_peer, _| scripted_peer.say(Output::Event(Event::Stopped)));
}

#[test]
#[should_panic(expected = "the condition is not met within 100 steps: a livelock?")]
fn exceeded_bound_ends_the_run() {
    let mut world = scripted_peers(2, 1);
    world.partition(&[&[0], &[1]]);
    // Two hosts that repeatedly dial each other without success.
    for _ in 0..100 {
        dial(&mut world, 0, 1);
    }
    world.drive_bounded(100, |world| scripted_peer(world, 0).connected().is_some());
}

#[test]
fn unmet_condition_is_reported() {
    let mut world = scripted_peers(2, 1);
    dial(&mut world, 0, 1);
    world.drive_bounded(100, |world| scripted_peer(world, 0).connected().is_some());
    assert!(!world.drive_until(|world| scripted_peer(world, 1).opened().is_some(), SECOND));
    let request = world.begin(0, |_, _| Ok::<_, ()>(RequestId(0))).unwrap();
    assert_eq!(world.done(0, request), None);
    let done = Event::Done { id: request, result: Err(Failure::Cancelled) };
    world.call(0, |scripted_peer, _| scripted_peer.say(Output::Event(done.clone())));
    assert_eq!(world.done(0, request), Some(&Err(Failure::Cancelled)));
    assert_eq!(world.events(0), [(world.now(), done)]);
    world.finish();
    assert_eq!(world.check_counters().requests, 1);
}

/// A machine whose getters return one node: itself, or a node in the wrong bucket, or impossible
/// counts.
#[derive(Debug)]
struct FalseGauges(Metrics, Vec<(BucketIndex, NodeId)>, NodeContact);

impl Machine for FalseGauges {
    fn handle_input(&mut self, _: Input, _: Instant) {}

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_output(&mut self) -> Option<Output> {
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn gauges(&self) -> Option<Metrics> {
        Some(self.0)
    }

    fn graph_view(&self, _: NodeId, _: usize) -> Option<GraphView<'_>> {
        let buckets = self.1.iter().map(|(index, node)| (*index, vec![(*node, &self.2)])).collect();
        Some(GraphView {
            own: crate::id(0),
            buckets,
            closest: self.1.iter().map(|(_, node)| *node).collect(),
        })
    }
}

fn run_with_gauges(change: impl FnOnce(&mut FalseGauges)) -> World<FalseGauges> {
    let seen = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: UnixMillis(0),
        scopes: Scopes::GLOBAL,
    };
    let contact = NodeContact::new("10.0.0.9:1".parse().unwrap(), seen);
    let mut machine = FalseGauges(Metrics::default(), Vec::new(), contact);
    change(&mut machine);
    let mut world = World::new(0);
    let mut host = crate::host(0);
    host.caps = Some(Config::default());
    world.add_host(host);
    world.start(0, |_| machine);
    // The graph is checked after a fixed number of drains even if no event reports a change.
    for _ in 0..100 {
        world.call(0, |_, _| {});
    }
    world
}

#[test]
#[should_panic(expected = "belongs into bucket")]
fn node_in_the_wrong_bucket_ends_the_run() {
    let right = crate::id(0).bucket_index(&crate::id(1)).unwrap();
    let world = run_with_gauges(|machine| machine.1.push((right, crate::id(1))));
    assert!(world.check_counters().nodes > 0 && world.check_counters().searches > 0);
    run_with_gauges(|machine| machine.1.push((BucketIndex(right.0 - 1), crate::id(1))));
}

#[test]
#[should_panic(expected = "checker `caps`: connections + connections_pending: 1, over 0")]
fn impossible_connection_count_ends_the_run() {
    assert!(run_with_gauges(|_| {}).check_counters().gauges > 0);
    run_with_gauges(|machine| machine.0.connections_pending = 1);
}

/// A scenario that uses every random stream.
fn scenario(seed: u64) -> blake3::Hash {
    let mut world = scripted_peers(3, seed);
    world.network_mut().set_default_link(Link::ms(10).jitter(ms(30)).loss(100).disorder(100));
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let conn = dial(&mut world, from, to);
        world.drive(20 * SECOND);
        world.call(from, |scripted_peer, _| {
            let stream = scripted_peer.open(conn);
            scripted_peer.send(stream, vec![from as u8; 20_000], true);
        });
        world.drive(5 * SECOND);
        let stream = scripted_peer(&world, to).opened().unwrap_or(StreamId(1));
        world.call(to, |scripted_peer, _| scripted_peer.grant(stream, 50_000));
    }
    world.kill(2);
    world.drive(60 * SECOND);
    world.digest()
}

#[test]
fn same_seed_gives_the_same_run_and_another_seed_another() {
    assert_eq!(scenario(1), scenario(1));
    assert_ne!(scenario(1), scenario(2));
}
