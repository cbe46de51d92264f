//! Forged sources against the dialer's way to follow an acceptor.

use std::net::SocketAddr;
use std::time::Duration;

use crate::world::{MS, World};

fn victim(n: usize) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, n as u8], 9))
}

/// Authentic packets of the acceptor are copied and arrive first, from forged sources.
#[test]
fn a_forged_source_gets_at_most_three_times_what_it_sent() {
    for seed in 0..8 {
        let mut world = World::with_hosts(50 + seed, 2);
        world.connect(0, 1);
        (world.loss, world.jitter) = (seed * 3, seed as u32 * 2 * MS);
        let stream = world.open(0, 1);
        world.write(0, stream, 20_000_000);
        world.pass(Duration::from_millis(500));
        let (dialer, acceptor) = (world.hosts[0].addr, world.hosts[1].addr);
        for round in 0..60usize {
            // The observer is nearer than the acceptor: its copies arrive before the originals.
            world.observed = Some(Vec::new());
            world.pass(7 * MS);
            let seen = world.observed.take().unwrap();
            let source = victim(1 + (round / 12) % 4);
            let delay = std::mem::replace(&mut world.delay, 10 * MS);
            let copies =
                seen.into_iter().filter(|(from, to, ..)| (*from, *to) == (acceptor, dialer));
            for (_, _, ecn, bytes) in copies {
                world.send(source, dialer, ecn, &bytes);
            }
            world.delay = delay;
        }
        world.pass(Duration::from_secs(5));
        let mut worst = 0.0f64;
        for n in 1..5 {
            let host = &world.hosts[0];
            let sent = host.sent_to.get(&victim(n)).copied().unwrap_or_default();
            let received = host.heard_from.get(&victim(n)).copied().unwrap_or_default();
            assert!(
                sent <= 3 * received,
                "seed {seed}: {sent} bytes for {received} to {}",
                victim(n)
            );
            worst = worst.max(sent as f64 / received.max(1) as f64);
        }
        let metrics = world.hosts[0].node.transport().metrics();
        println!(
            "seed {seed}: followed {}, returned {}, withheld {}; at most {worst:.2} times",
            metrics.followed, metrics.follow_failed, metrics.follow_withheld
        );
        assert!(world.ask(0, 1).is_ok(), "the connection continues");
    }
}

#[test]
fn garbage_and_old_packets_from_another_address_change_nothing() {
    let mut world = World::with_hosts(60, 2);
    world.connect(0, 1);
    world.observed = Some(Vec::new());
    for _ in 0..3 {
        world.ask(0, 1).unwrap();
    }
    let seen = world.observed.take().unwrap();
    let (dialer, acceptor) = (world.hosts[0].addr, world.hosts[1].addr);
    for (from, to, ecn, mut bytes) in seen {
        if (from, to) == (acceptor, dialer) {
            world.send(victim(1), dialer, ecn, &bytes);
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            world.send(victim(2), dialer, ecn, &bytes);
        }
    }
    world.pass(Duration::from_secs(1));
    assert_eq!(world.hosts[0].node.transport().metrics().followed, 0);
    assert!(world.ask(0, 1).unwrap() <= 110 * MS);
}
