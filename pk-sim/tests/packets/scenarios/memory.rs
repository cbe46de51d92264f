//! The memory that one hostile peer can fill.

use std::time::Duration;

use pk_quic::TransportSettings;
use pk_sim::{PacketWorld, Reader};

use super::Row;
use super::hostile::Hostile;

const MIB: u64 = 1024 * 1024;

fn mib(bytes: u64) -> String {
    let tenths = bytes * 10 / MIB;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// Bytes that a call has allocated and not freed.
fn meter(call: &mut dyn FnMut()) -> i64 {
    allocation_counter::measure(call).bytes_current
}

pub fn rows() -> Vec<Row> {
    let settings = TransportSettings::default();
    let limit = settings.memory_per_peer();
    let mut rows = Vec::new();
    for (what, streams, bytes) in [
        ("opens every application stream it may, 64 KiB each", 512, 64 * 1024),
        ("sends on 64 application streams without end", 64, 64 * MIB),
        ("sends on 512 application streams without end", 512, 64 * MIB),
    ] {
        let held = received(streams, bytes);
        rows.push(Row::new(
            format!("a peer {what}, and nothing is read"),
            mib(held),
            format!("≤ {}", mib(limit)),
            held <= limit,
        ));
    }
    rows.extend(fragments(limit));
    rows
}

/// A peer whose datagrams are almost empty, so that each byte of a window costs more than a byte.
fn fragments(limit: u64) -> Vec<Row> {
    // QUIC copies the data of a stream when it has more than 2048 pieces.
    const PIECE: usize = 780;
    let mut world = PacketWorld::with_hosts(91, 1);
    world.network_mut().set_default_link(pk_sim::Link::ms(1));
    world.host_mut(0).reader = Reader::Paused;
    world.host_mut(0).meter = Some(meter);
    let mut peer = Hostile::connect(&mut world, 0);
    let mut rows = Vec::new();
    let mut row = |world: &PacketWorld, what: &str| {
        let held = u64::try_from(world.host(0).held()).unwrap_or_default();
        rows.push(Row::new(
            format!("a peer with {PIECE} bytes in each datagram of 1452 bytes {what}"),
            mib(held),
            format!("≤ {}", mib(limit)),
            held <= limit,
        ));
    };
    let mut streams = Vec::new();
    for _ in 0..512 {
        streams.extend(peer.open_application());
        peer.exchange(&mut world);
    }
    for _ in 0..20 {
        peer.exchange(&mut world);
    }
    assert_eq!(world.host(0).opened().len(), 512);
    row(&world, "opens 512 application streams");
    for stream in &streams[..20] {
        // The buffer of the stream and its window.
        peer.send_all(&mut world, *stream, (64 << 10) + (3 << 19), PIECE);
    }
    row(&world, "fills the memory of applications");
    for _ in 0..100 {
        if let Some(stream) = peer.open_message(60_000) {
            peer.send_all(&mut world, stream, 59_000, PIECE);
        }
    }
    row(&world, "and starts 100 messages");
    // A local application sends, and the peer acknowledges nothing.
    let stream = world.host(0).opened()[0].stream;
    world.write(0, stream, 16 * MIB);
    world.pass(Duration::from_secs(1));
    row(&world, "and acknowledges nothing of what a local application sends");
    let metrics = world.metrics(0);
    assert_eq!(metrics.streams_unread, 0);
    assert_eq!(world.node(0).manager().connections().len(), 1);
    rows
}

/// The peak memory of host 1 while host 0 sends and the applications read nothing.
fn received(streams: usize, bytes: u64) -> u64 {
    let mut world = PacketWorld::with_hosts_of(90, 2, |host| {
        // The peer has no limits of its own.
        host.transport.send_window = 64 * MIB as u32;
    });
    world.host_mut(1).transport = TransportSettings::default();
    world.restart_empty(1);
    world.host_mut(1).reader = Reader::Paused;
    world.host_mut(1).meter = Some(meter);
    world.connect(0, 1);
    for _ in 0..streams {
        let stream = world.open(0, 1);
        world.write(0, stream, bytes);
    }
    let mut most = 0;
    world.until(Duration::from_secs(20), |world| {
        most = most.max(world.host(1).held());
        false
    });
    assert!(world.check_counters().memory > 0);
    u64::try_from(most).unwrap_or_default()
}
