//! Changes of address: of the dialer, of the acceptor, and of a NAT before either.

use std::net::SocketAddr;
use std::time::Duration;

use pk_proto::Event;

use crate::world::{MS, World, ip};

fn lost(world: &World) -> usize {
    let closed =
        |(_, event): &&(pk_proto::Instant, Event)| matches!(event, Event::ConnectionClosed { .. });
    world.hosts.iter().flat_map(|host| &host.events).filter(closed).count()
}

/// A connected pair, of which host 0 has dialed.
fn pair(seed: u64) -> World {
    let mut world = World::with_hosts(seed, 2);
    world.connect(0, 1);
    for _ in 0..3 {
        world.ask(0, 1).unwrap();
    }
    world.pass(Duration::from_secs(1));
    world
}

fn moved(n: usize) -> SocketAddr {
    SocketAddr::from(([172, 16, n as u8, 9], 4000))
}

/// The host gets another address. If it knows, it announces that.
fn change(world: &mut World, n: usize, knows: bool) {
    world.hosts[n].addr = moved(n);
    if knows {
        let (now, own) = (world.now, [ip(moved(n))]);
        world.hosts[n].node.local_changed(now, &own);
        world.flush(n);
    }
}

#[test]
fn an_end_that_moves_is_reached_again_within_round_trips_of_its_next_packet() {
    for (n, what) in [(0, "dialer"), (1, "acceptor")] {
        for knows in [true, false] {
            let mut world = pair(20 + n as u64);
            change(&mut world, n, knows);
            // The end that has moved asks, so that a packet of it leaves.
            let other = 1 - n;
            let first = world.ask(n, other).unwrap();
            let back = world.ask(other, n).unwrap();
            let next = world.ask(n, other).unwrap();
            println!(
                "{what} moves, {}: its question {first:?}, the peer's {back:?}, then {next:?}",
                if knows { "announced" } else { "a NAT, silently" }
            );
            assert_eq!(lost(&world), 0, "{what}");
            assert!(first <= 400 * MS && back <= 300 * MS && next <= 110 * MS, "{what}");
            let to = world.hosts[other].sent_to.get(&moved(n)).copied().unwrap_or_default();
            assert!(to > 0);
        }
    }
}

#[test]
fn an_announced_move_needs_no_traffic_of_the_end_that_moves() {
    for n in [0, 1] {
        let mut world = pair(30 + n as u64);
        change(&mut world, n, true);
        world.pass(200 * MS);
        let took = world.ask(1 - n, n).unwrap();
        println!("host {n} announces its move: the peer's question takes {took:?}");
        assert_eq!(lost(&world), 0);
        assert!(took <= 210 * MS, "{took:?}");
    }
}

#[test]
fn a_transfer_survives_a_move_of_either_end() {
    for (n, what) in [(0, "dialer"), (1, "acceptor")] {
        for (from, to) in [(0, 1), (1, 0)] {
            let mut world = pair(40 + n as u64);
            let stream = world.open(from, to);
            world.write(from, stream, 6_000_000);
            world.pass(Duration::from_millis(600));
            let before = world.hosts[to].total_received();
            change(&mut world, n, true);
            let begun = world.now;
            assert!(world.until(Duration::from_secs(20), |world| {
                world.hosts[to].total_received() > before + 500_000
            }));
            let resumed = world.now.since(begun);
            assert!(world.until(Duration::from_secs(30), |world| {
                world.hosts[to].total_received() == 6_000_000
            }));
            println!("{what} moves while host {from} sends: 500 KB more after {resumed:?}");
            assert_eq!(lost(&world), 0);
            assert!(resumed <= Duration::from_secs(3), "{resumed:?}");
        }
    }
}
