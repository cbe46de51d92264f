//! Forged sources against a dialer that follows its acceptor to another address.

use std::net::SocketAddr;
use std::time::Duration;

use pk_sim::{Link, PacketWorld, Seen};

const MS: Duration = Duration::from_millis(1);

fn victim(n: usize) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, n as u8], 9))
}

/// Authentic packets of the acceptor are copied and arrive first, from forged sources.
#[test]
fn forged_source_gets_at_most_three_times_what_it_sent() {
    let mut followed = 0;
    for seed in 0..8 {
        let mut world = PacketWorld::with_hosts(50 + seed, 2);
        world.connect(0, 1);
        let link = Link::ms(50).loss(3 * seed as u16).jitter(seed as u32 * 2 * MS);
        world.network_mut().set_default_link(link);
        let stream = world.open(0, 1);
        world.write(0, stream, 20_000_000);
        world.pass(500 * MS);
        let (dialer, acceptor) = (world.host(0).addr(), world.host(1).addr());
        for round in 0..60usize {
            world.observe();
            world.pass(7 * MS);
            let source = victim(1 + (round / 12) % 4);
            for seen in world.observed() {
                if (seen.from, seen.to) == (acceptor, dialer) {
                    // The observer is nearer than the acceptor.
                    world.forge(Seen { from: source, ..seen }, 10 * MS);
                }
            }
        }
        world.pass(Duration::from_secs(5));
        for n in 1..5 {
            let (sent, received) = world.exchanged(0, victim(n));
            assert!(sent <= 3 * received, "seed {seed}: {sent} bytes for {received} to {n}");
        }
        followed += world.metrics(0).followed;
        assert!(world.ask(0, 1).is_ok(), "the connection continues");
    }
    assert!(followed > 8, "{followed}");
}

#[test]
fn garbage_and_old_packets_from_another_address_change_nothing() {
    let mut world = PacketWorld::with_hosts(60, 2);
    world.connect(0, 1);
    world.observe();
    for _ in 0..3 {
        world.ask(0, 1).unwrap();
    }
    let (dialer, acceptor) = (world.host(0).addr(), world.host(1).addr());
    for mut seen in world.observed() {
        if (seen.from, seen.to) == (acceptor, dialer) {
            world.forge(Seen { from: victim(1), ..seen.clone() }, 50 * MS);
            *seen.bytes.last_mut().unwrap() ^= 1;
            world.forge(Seen { from: victim(2), ..seen }, 50 * MS);
        }
    }
    world.pass(1000 * MS);
    assert_eq!(world.metrics(0).followed, 0);
    assert!(world.ask(0, 1).unwrap() <= 110 * MS);
}
