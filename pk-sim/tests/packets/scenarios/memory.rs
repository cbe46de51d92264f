//! The memory that one hostile peer can fill.

use std::time::Duration;

use pk_quic::TransportSettings;
use pk_sim::{PacketWorld, Reader};

use super::Row;

const MIB: u64 = 1024 * 1024;

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
            format!("{} KiB", held / 1024),
            format!("≤ {} KiB", limit / 1024),
            held <= limit,
        ));
    }
    rows
}

/// The most memory that host 1 holds while host 0 sends and the applications read nothing.
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
