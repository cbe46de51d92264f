//! Application streams beside the node protocol: reserved ids and window, and throughput.

use std::time::Duration;

use pk_quic::TransportSettings;

use crate::world::{MS, Reader, World};

/// Two connected nodes, of which host 0 has `streams` open to host 1, with `bytes` unread on each.
fn unread(streams: usize, bytes: usize) -> World {
    let mut world = World::with_hosts(70 + streams as u64, 2);
    world.connect(0, 1);
    world.hosts[1].reader = Reader::Paused;
    for _ in 0..streams {
        let stream = world.open(0, 1);
        world.write(0, stream, bytes);
    }
    world
}

/// Questions in both directions. Returns the slowest.
fn questions(world: &mut World) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        for (n, to) in [(0, 1), (1, 0)] {
            slowest = slowest.max(world.ask(n, to).unwrap());
        }
        world.pass(50 * MS);
    }
    slowest
}

#[test]
fn the_node_protocol_goes_on_beside_idle_and_unread_application_streams() {
    for (streams, bytes) in
        [(0, 0), (99, 0), (250, 0), (16, 4 << 20), (99, 64 << 10), (250, 64 << 10)]
    {
        let mut world = unread(streams, bytes);
        let slowest = questions(&mut world);
        let metrics = world.hosts[1].node.transport().metrics();
        println!(
            "{streams} streams, {} KiB written to each: slowest question {slowest:?}, {} reset",
            bytes >> 10,
            metrics.streams_unread
        );
        assert!(slowest <= 310 * MS, "{streams} streams of {bytes} bytes: {slowest:?}");
        assert_eq!(metrics.streams_unread, 0);
        // Everything arrives as soon as it is read.
        world.hosts[1].reader = Reader::Eager;
        let ids: Vec<_> = world.hosts[1].opened.iter().map(|opened| opened.stream).collect();
        let now = world.now;
        for id in ids {
            world.hosts[1].read(now, id);
        }
        world.flush(1);
        let total = streams * bytes;
        assert!(
            world.until(Duration::from_secs(60), |world| {
                world.hosts[1].total_received() == total
            }),
            "{} of {total}",
            world.hosts[1].total_received()
        );
    }
}

#[test]
fn beyond_its_memory_the_newest_unread_streams_are_reset() {
    let mut world = unread(64, 4 << 20);
    let slowest = questions(&mut world);
    let metrics = world.hosts[1].node.transport().metrics();
    println!("64 streams of 4 MiB: slowest question {slowest:?}, {} reset", metrics.streams_unread);
    assert!(metrics.streams_unread >= 40, "{metrics:?}");
    assert!(slowest <= 310 * MS, "{slowest:?}");
}

#[test]
fn one_stream_carries_ten_mebibytes_a_second_at_a_hundred_milliseconds() {
    let mut world = World::with_hosts(80, 2);
    world.connect(0, 1);
    let stream = world.open(0, 1);
    world.write(0, stream, 60 << 20);
    world.pass(Duration::from_secs(1));
    let before = world.hosts[1].total_received();
    world.pass(Duration::from_secs(3));
    let rate = (world.hosts[1].total_received() - before) as f64 / 3.0 / f64::from(1 << 20);
    println!(
        "stream window {} KiB, round trip 100 ms: {rate:.1} MiB/s",
        TransportSettings::default().stream_window >> 10
    );
    assert!(rate >= 10.0, "{rate}");
}
