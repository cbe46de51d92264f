//! Hosts that freeze, are killed and restart, NATs that expire mappings, and congested networks.

use std::time::Duration;

use pk_proto::Event;
use pk_quic::TransportSettings;
use pk_sim::{Dependence, Link, NatConfig, PacketWorld, PathLimits};

const MS: Duration = Duration::from_millis(1);

fn closed(world: &PacketWorld, n: usize) -> usize {
    let events = world.host(n).events().iter();
    events.filter(|(_, event)| matches!(event, Event::ConnectionClosed { .. })).count()
}

#[test]
fn frozen_host_continues_within_the_idle_timeout_and_is_disconnected_after_it() {
    for (frozen, lost) in [(10, 0), (60, 1)] {
        let mut world = PacketWorld::with_hosts(10, 2);
        world.connect(0, 1);
        world.freeze(1);
        let request = world.question(1);
        let id = world.request(0, request);
        world.pass(Duration::from_secs(frozen));
        assert!(world.result(0, id).is_none_or(Result::is_err));
        world.thaw(1);
        world.pass(2000 * MS);
        assert_eq!(closed(&world, 0), lost, "{frozen} s");
        if lost == 0 {
            assert!(matches!(world.result(0, id), Some(Ok(_))));
        } else {
            world.connect(0, 1);
        }
        assert!(world.ask(0, 1).is_ok());
        world.stop_all();
    }
}

/// Nothing answers for a killed host: its peers can only detect its silence.
#[test]
fn killed_host_is_suspected_in_round_trips_and_its_streams_end_with_the_idle_timeout() {
    for (killed, other) in [(0, 1), (1, 0)] {
        let mut world = PacketWorld::with_hosts(15, 2);
        world.connect(0, 1);
        let stream = world.open(other, killed);
        world.kill(killed);
        let begun = world.now();
        let request = world.question(killed);
        world.request(other, request);
        let connections = |world: &PacketWorld| world.node(other).manager().connections();
        let suspected = |world: &PacketWorld| connections(world).iter().all(|it| it.suspected);
        assert!(world.until(1000 * MS, suspected), "{:?}", connections(&world));
        let over = |world: &PacketWorld| world.host(other).failed().contains(&stream);
        assert!(world.until(Duration::from_secs(60), over));
        let took = world.now().since(begun);
        assert!((29_000 * MS..41_000 * MS).contains(&took), "{took:?}");
        assert!(connections(&world).is_empty());
        world.stop_all();
    }
}

#[test]
fn restarted_node_rejoins_from_its_store() {
    let mut world = PacketWorld::with_hosts(11, 4);
    for n in 1..4 {
        world.join(n, 0);
    }
    world.pass(Duration::from_secs(30));
    world.kill(3);
    world.pass(Duration::from_secs(120));
    world.start(3);
    assert!(world.find(3, 1).is_some() && world.find(2, 3).is_some());
    world.stop_all();
}

/// Keep-alives hold a mapping that expires later than their interval.
#[test]
fn nat_expiry_interrupts_only_connections_that_are_quiet_for_longer() {
    for (expiry, interrupted) in [(30, false), (5, true)] {
        let mut world = PacketWorld::with_hosts(12, 1);
        let expiry = Duration::from_secs(expiry);
        let filtering = Dependence::AddressAndPort;
        let nat = world.add_nat(NatConfig { expiry, ..NatConfig::new(filtering, filtering) });
        let id = world.add_behind(nat, TransportSettings::default());
        world.connect(id, 0);
        // Without a stream, the core closes idle connections.
        world.open(id, 0);
        world.pass(Duration::from_secs(300));
        assert_eq!(world.network().nat_counters(nat).expired > 0, interrupted);
        // Packets of the inner host create a new mapping, to which its peer migrates.
        assert!(world.ask(id, 0).unwrap() <= 310 * MS);
        assert!(world.ask(0, id).unwrap() <= 310 * MS);
        assert_eq!(closed(&world, 0), 0);
        world.stop_all();
    }
}

#[test]
fn full_queue_loses_datagrams_and_transfers_adapt() {
    let mut world = PacketWorld::with_hosts(13, 2);
    // 1 MB/s, a queue of 100 ms.
    let narrow = PathLimits { bandwidth: Some(1_000_000), queue: 100_000, ..Default::default() };
    world.set_path(0, 1, narrow);
    world.connect(0, 1);
    let stream = world.open(0, 1);
    world.write(0, stream, 5_000_000);
    let begun = world.now();
    assert!(world.until(20_000 * MS, |world| world.host(1).total_received() == 5_000_000));
    let took = world.now().since(begun);
    assert!((5000 * MS..9000 * MS).contains(&took), "{took:?}");
    assert!(world.path_counters().queue_full > 0);
    world.stop_all();
}

#[test]
fn cut_path_is_detected_and_used_again_when_it_is_restored() {
    let mut world = PacketWorld::with_hosts(14, 2);
    world.connect(0, 1);
    world.set_cut(0, 1, true);
    assert!(world.ask(0, 1).is_err());
    world.pass(Duration::from_secs(60));
    assert!(closed(&world, 0) > 0 && closed(&world, 1) > 0);
    world.set_cut(0, 1, false);
    world.connect(0, 1);
    assert!(world.ask(1, 0).is_ok());
    world.stop_all();
}

/// Random faults under the checkers.
#[test]
fn nodes_survive_combined_faults() {
    for seed in 0..3 {
        let mut world = PacketWorld::with_hosts(200 + seed, 5);
        let link = Link::ms(20).jitter(30 * MS).loss(50).disorder(50);
        world.network_mut().set_default_link(link);
        for n in 1..5 {
            world.join(n, 0);
        }
        for round in 0..12 {
            let n = 1 + (round + seed as usize) % 4;
            match round % 6 {
                0 => world.restart(n),
                1 => world.roam(n, true),
                2 => world.roam(n, false),
                3 => world.restart_empty(n),
                4 => world.freeze(n),
                _ => world.set_cut(n, 0, true),
            }
            for from in 0..5 {
                if world.host(from).node().is_some() && !(from == n && round % 6 == 4) {
                    let request = world.question((from + 1) % 5);
                    let node = world.node(from).manager();
                    if node.connections().iter().any(|it| it.node == world.id((from + 1) % 5)) {
                        world.request(from, request);
                    }
                }
            }
            world.pass(Duration::from_secs(7));
            world.thaw(n);
            world.set_cut(n, 0, false);
        }
        world.network_mut().set_default_link(Link::ms(20));
        world.pass(Duration::from_secs(120));
        for n in 1..5 {
            world.join(n, 0);
        }
        for (from, to) in [(1, 2), (2, 3), (3, 4), (4, 1)] {
            assert!(world.find(from, to).is_some(), "seed {seed}: {from} to {to}");
        }
        world.stop_all();
    }
}
