//! Equal seeds have equal datagrams, byte by byte.

use std::time::Duration;

use pk_quic::TransportSettings;
use pk_sim::{Link, PacketWorld};

fn run(seed: u64, plant: impl Fn(&mut PacketWorld)) -> (blake3::Hash, u64) {
    let mut world = PacketWorld::with_hosts(seed, 4);
    let link = Link::ms(30).jitter(Duration::from_millis(20)).loss(50).disorder(50);
    world.network_mut().set_default_link(link);
    for n in 1..4 {
        world.join(n, 0);
    }
    plant(&mut world);
    let stream = world.open(1, 2);
    world.write(1, stream, 300_000);
    world.roam(2, false);
    world.pass(Duration::from_secs(20));
    world.restart(3);
    world.find(3, 1);
    world.pass(Duration::from_secs(60));
    world.stop_all();
    (world.digest(), world.counters().sent)
}

#[test]
fn equal_seeds_have_equal_bytes() {
    let (first, sent) = run(7, |_| {});
    assert!(sent > 500, "{sent}");
    assert_eq!(run(7, |_| {}), (first, sent));
    assert_ne!(run(8, |_| {}).0, first);
}

/// The digest differs for a difference of one datagram, and of one setting.
#[test]
fn planted_difference_changes_the_digest() {
    let (first, _) = run(7, |_| {});
    let from = std::net::SocketAddr::from(([203, 0, 113, 1], 9));
    let forged = run(7, |world| {
        let (to, bytes) = (world.host(0).addr(), vec![0xc0; 1200]);
        world.forge(pk_sim::Seen { from, to, ecn: 0, bytes }, Duration::ZERO);
    });
    assert_ne!(forged.0, first);
    let restarted = run(7, |world| {
        let transport = TransportSettings::default();
        world.host_mut(3).transport = transport;
        world.host_mut(3).config.bucket_limit = 19;
        world.restart(3);
    });
    assert_ne!(restarted.0, first);
}
