//! The simulator as a measuring instrument: light mode, warm starts, costs, and nodes that are
//! added later.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use pk_proto::{
    ConnectionId, FindEnd, FindNodeOptions, Input, Instant, NodeId, Output, Reply, Request,
    UnixMillis,
};
use pk_sim::{
    CheckerSet, Cluster, Dependence, Host, HostId, Key, Link, Machine, NatConfig, Observation,
    Place, Warm, World, genesis,
};

use crate::common::*;

/// The same joins, whatever is observed.
fn joined(observation: Observation) -> Cluster {
    let mut cluster = Cluster::builder().nodes(8).seed(5).observe(observation).start();
    let request = |cluster: &Cluster| Request::SyncNodeGraph {
        seeds: vec![cluster.seed_node(0)],
        blocking: true,
        options: NO,
    };
    for node in 1..8 {
        let join = request(&cluster);
        cluster.request(node, join);
        cluster.drive(10 * SECOND);
    }
    cluster
}

#[test]
fn light_mode_has_the_same_run_and_keeps_nothing_else() {
    let mut full = joined(Observation::default());
    let mut light = joined(Observation::LIGHT);
    assert_eq!(full.digest(), light.digest());
    assert_eq!(full.counters().outputs, light.counters().outputs);
    assert!(full.check_counters().outputs > 100 && full.check_counters().nodes > 10);
    assert_eq!(light.check_counters(), pk_sim::CheckCounters::default());
    assert!((0..8).all(|node| light.events(node).is_empty() && light.dials(node).is_empty()));
    assert!((1..8).all(|node| !full.events(node).is_empty()));
    let completed = light.take_completed();
    assert_eq!(
        (completed.len(), light.take_completed().len(), full.take_completed().len()),
        (7, 0, 0)
    );
    assert!(completed.iter().all(|done| done.result.is_ok() && done.life == 0));
    let none = Observation { digest: false, ..Observation::LIGHT };
    assert_ne!(joined(none).digest(), full.digest());
    let some = joined(Observation { log: Some(3), ..Observation::default() });
    assert!((1..8).all(|node| (3..=6).contains(&some.events(node).len())));
    full.stop_all();
}

#[test]
fn each_checker_can_be_switched_off() {
    let counters =
        |checkers| joined(Observation { checkers, ..Observation::default() }).check_counters();
    let all = counters(CheckerSet::ALL);
    assert!(all.gauges > 0 && all.sends > 0 && all.stored > 0 && all.nodes > 0 && all.timers > 0);
    let without = CheckerSet { caps: false, ..CheckerSet::ALL };
    assert_eq!((counters(without).gauges, counters(without).nodes), (0, all.nodes));
    let without = CheckerSet { windows: false, ..CheckerSet::ALL };
    assert_eq!((counters(without).sends, counters(without).gauges > 0), (0, true));
    let without = CheckerSet { stored: false, ..CheckerSet::ALL };
    assert_eq!((counters(without).stored, counters(without).sends), (0, all.sends));
    let without = CheckerSet { graph: false, ..CheckerSet::ALL };
    assert_eq!((counters(without).nodes, counters(without).stored), (0, all.stored));
    let without = CheckerSet { timers: false, ..CheckerSet::ALL };
    assert_eq!((counters(without).timers, counters(without).nodes), (0, all.nodes));
    for without in [
        CheckerSet { requests: false, ..CheckerSet::ALL },
        CheckerSet { discipline: false, ..CheckerSet::ALL },
        CheckerSet { forks: false, ..CheckerSet::ALL },
        CheckerSet { phases: false, ..CheckerSet::ALL },
    ] {
        assert_eq!(counters(without).nodes, all.nodes, "{without:?}");
    }
}

#[test]
fn warm_start_knows_the_true_network_and_survives_restarts() {
    let mut cluster = Cluster::quiet().nodes(60).seed(4).build();
    let hosts: Vec<HostId> = (0..60).collect();
    cluster.start_warm(&hosts, Warm::default());
    cluster.drive(20 * SECOND);
    let truth = cluster.directory();
    for node in 0..60 {
        let own = cluster.id(node);
        let known: BTreeSet<NodeId> = cluster.node(node).graph().iter().map(|(id, _)| id).collect();
        assert!(truth.closest(&own, 10).iter().all(|(id, _)| known.contains(id)), "{node}");
    }
    for target in 1..20 {
        let target = cluster.id(target);
        let found = cluster.ask(40, Request::FindNode { target, find: FindNodeOptions::default() });
        assert!(
            matches!(found, Ok(Reply::FindNode(outcome)) if outcome.ended == FindEnd::Connected)
        );
    }
    let before = cluster.node(7).metrics().nodes;
    cluster.restart(7);
    assert_eq!(cluster.node(7).metrics().nodes, before, "the store has the table");
    assert!(cluster.check_counters().stored > 100);
    cluster.stop_all();
}

#[test]
fn nodes_are_added_later_and_join_together_through_their_seeds() {
    let mut cluster = Cluster::builder().nodes(4).seed(6).link(Link::ms(20)).start();
    cluster.join_all();
    let config = cluster.node(0).config().clone();
    let added: Vec<HostId> = (0..5).map(|_| cluster.add_node(config.clone())).collect();
    added.iter().for_each(|node| cluster.start_node(*node));
    cluster.drive(Duration::ZERO);
    let joins: Vec<_> = added.iter().map(|node| (*node, vec![node % 4])).collect();
    let joined = cluster.join_through(&joins);
    assert_eq!(
        joined.iter().map(|joined| joined.node).collect::<BTreeSet<_>>(),
        added.into_iter().collect()
    );
    for joined in joined {
        assert!(joined.result.is_ok(), "{joined:?}");
        // At least a handshake, a Hello and a question.
        assert!((100..10_000).contains(&joined.took.as_millis()), "{joined:?}");
    }
    assert_eq!(cluster.len(), 9);
    cluster.drive(60 * SECOND);
    assert!(cluster.assert_converged() > 0);
    cluster.stop_all();
}

#[test]
fn latency_follows_the_places_of_the_hosts() {
    let mut cluster = Cluster::quiet().nodes(3).seed(1).link(Link::ms(10)).build();
    for (host, x, y) in [(0, 0, 0), (1, 0, 0), (2, 30_000, 40_000)] {
        cluster.network_mut().set_place(host, Place { x, y });
    }
    assert_eq!(cluster.network().link(0, 1).latency, Duration::from_millis(10));
    assert_eq!(cluster.network().link(0, 2).latency, Duration::from_millis(60));
    (0..3).for_each(|host| cluster.start_node(host));
    cluster.drive(Duration::ZERO);
    let mut took = |to| {
        let begun = cluster.now();
        assert!(cluster.connect(0, to).is_ok());
        cluster.now().since(begun)
    };
    let (near, far) = (took(1), took(2));
    assert!(far > 3 * near, "{near:?} {far:?}");
}

#[test]
fn connection_costs_what_was_sent() {
    let mut cluster = Cluster::quiet().nodes(2).seed(1).start();
    cluster.connect(0, 1).unwrap();
    let request = ping(&cluster, 1);
    assert!(cluster.ask(0, request).is_ok());
    let [a, b] = cluster.traffic()[..] else { panic!() };
    assert_eq!((a.dials, b.dials, a.handshakes, b.handshakes), (1, 0, 1, 1));
    assert!(a.stream_bytes > 20 && b.stream_bytes > 20 && a.stream_bytes < 1000);
    assert!(a.datagrams >= 4 && a.wire_bytes > 1200 + a.stream_bytes && a.messages >= 4, "{a:?}");
    // An idle connection costs each end one datagram in ten seconds.
    cluster.drive(50 * SECOND);
    let [later, _] = cluster.traffic()[..] else { panic!() };
    assert_eq!((later - a).stream_bytes, 0);
    assert!((4..=7).contains(&(later - a).datagrams), "{:?}", later - a);
    cluster.stop_all();
}

#[test]
fn three_hundred_hosts_behind_one_nat_have_their_own_addresses() {
    let mut cluster = Cluster::quiet().nodes(301).seed(1).observe(Observation::LIGHT).build();
    let nat = cluster.add_nat(NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort));
    (1..301).for_each(|host| cluster.put_behind(host, nat));
    let inner: BTreeSet<SocketAddr> = (1..301).map(|host| cluster.host(host).addrs()[0]).collect();
    assert_eq!(inner.len(), 300);
    (0..301).for_each(|host| cluster.start_node(host));
    cluster.drive(Duration::ZERO);
    for host in [1, 254, 255, 256, 300] {
        let request =
            Request::Connect { target: cluster.id(0), address: cluster.address(0), options: NO };
        cluster.request(host, request);
        cluster.drive(SECOND);
        assert!(cluster.take_completed().iter().all(|done| done.result.is_ok()), "{host}");
    }
    assert_eq!(cluster.node(0).connections().len(), 5);
    let ports: BTreeSet<_> =
        cluster.node(0).connections().iter().map(|info| info.address.to_string()).collect();
    assert_eq!(ports.len(), 5, "each has its own port");
}

/// A machine that only dials.
#[derive(Debug, Default)]
struct Dialer(VecDeque<Output>);

impl Machine for Dialer {
    fn handle_input(&mut self, _: Input, _: Instant) {}

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_output(&mut self) -> Option<Output> {
        self.0.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

/// A world of hosts on which nothing runs but the transport.
fn bare(hosts: usize) -> World<Dialer> {
    let mut world = World::observed(1, Observation { digest: false, ..Observation::LIGHT });
    for host in 0..hosts {
        let key = Key::numbered(1, host as u64);
        let [.., middle, low] = (host as u64).to_be_bytes();
        let addr = format!("30.{middle}.{low}.1:1").parse().unwrap();
        let identity = genesis(&key, UnixMillis(1_767_000_000_000));
        world.add_host(Host::new(vec![addr], key, identity));
        world.start(host, |_| Dialer::default());
    }
    world.drive(SECOND);
    world
}

#[test]
fn idle_connection_costs_the_simulator_little_memory() {
    const COUNT: u64 = 400;
    let mut world = bare(2);
    let (addr, expect) = (world.host(1).addrs()[0], Key::numbered(1, 1).id());
    let used = allocation_counter::measure(|| {
        for conn in 0..COUNT {
            let (dial, stream) = (ConnectionId(2 * conn), pk_proto::StreamId(2 * conn));
            world.call(0, |dialer, now| {
                let expect = BTreeSet::from([expect]);
                let deadline = now + 5 * SECOND;
                dialer.0.push_back(Output::Dial { conn: dial, addr, expect, deadline });
            });
            world.drive(SECOND);
            world.call(0, |dialer, _| {
                dialer.0.push_back(Output::OpenStream { conn: dial, stream });
                dialer.0.push_back(Output::SendStream {
                    stream,
                    bytes: vec![0; 9].into(),
                    fin: false,
                });
            });
            world.drive(SECOND);
        }
        world.drive(60 * SECOND);
    });
    assert_eq!(world.connection_count() as u64, COUNT);
    let each = used.bytes_current / COUNT as i64;
    assert!((100..3000).contains(&each), "{each} bytes for a connection with an open stream");
}

#[test]
fn partition_costs_as_much_as_its_hosts() {
    const HOSTS: usize = 2000;
    let mut world = bare(HOSTS);
    let hosts: Vec<HostId> = (0..HOSTS).collect();
    let used = allocation_counter::measure(|| world.partition(&[&hosts[..1000], &hosts[1000..]]));
    assert!(used.bytes_total < 400_000, "{} bytes; pairs would be millions", used.bytes_total);
    let network = world.network();
    assert!(network.is_cut(0, 1000) && network.is_cut(1999, 3) && !network.is_cut(0, 999));
    // A second partition adds to the first one.
    world.partition(&[&[0], &[1]]);
    assert!(world.network().is_cut(0, 1) && world.network().is_cut(0, 1000));
    assert!(!world.network().is_cut(0, 2));
    let used = allocation_counter::measure(|| world.heal());
    assert!(used.bytes_total < 400_000, "{}", used.bytes_total);
    assert!(!world.network().is_cut(0, 1000) && !world.network().is_cut(0, 1));
}

#[test]
fn kill_costs_as_much_as_the_connections_of_the_host() {
    let costs = |others: usize| {
        let mut world = bare(3 + others);
        let dial = |world: &mut World<Dialer>, from: HostId, to: HostId| {
            let (addr, expect) = (world.host(to).addrs()[0], Key::numbered(1, to as u64).id());
            world.call(from, |dialer, now| {
                let (conn, expect) = (ConnectionId(0), BTreeSet::from([expect]));
                dialer.0.push_back(Output::Dial { conn, addr, expect, deadline: now + 5 * SECOND });
            });
        };
        (2..2 + others).for_each(|from| dial(&mut world, from, from + 1));
        dial(&mut world, 0, 1);
        world.drive(10 * SECOND);
        assert_eq!(world.connection_count(), 1 + others);
        allocation_counter::measure(|| world.kill(0)).bytes_total
    };
    let (few, many) = (costs(2), costs(500));
    assert!(many <= 2 * few.max(500), "{few} and {many} bytes");
}
