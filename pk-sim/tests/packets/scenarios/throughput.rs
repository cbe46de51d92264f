//! One stream at a round trip of 100 ms, with default settings.

use std::time::Duration;

use pk_sim::{PacketWorld, PathLimits};

use super::Row;

const MIB: u64 = 1024 * 1024;

pub fn rows() -> Vec<Row> {
    let free = PathLimits::default();
    // A queue of 100 ms.
    let narrow = PathLimits { bandwidth: Some(25_000_000), queue: 2_500_000, ..free };
    vec![
        row("no limit of bandwidth", free, 0, 1),
        row("no limit of bandwidth, acceptor sends", free, 1, 0),
        row("25 MB/s, queue of 100 ms", narrow, 0, 1),
    ]
}

fn row(what: &str, limits: PathLimits, from: usize, to: usize) -> Row {
    let mut world = PacketWorld::with_hosts(80, 2);
    world.set_paths(limits);
    world.connect(0, 1);
    let stream = world.open(from, to);
    world.write(from, stream, 80 * MIB);
    world.pass(Duration::from_secs(1));
    let begun = world.host(to).total_received();
    world.pass(Duration::from_secs(3));
    let tenths = (world.host(to).total_received() - begun) * 10 / 3 / MIB;
    Row::new(
        format!("one stream, {what}: second 2 to 4"),
        format!("{}.{} MiB/s", tenths / 10, tenths % 10),
        "≥ 10 MiB/s",
        tenths >= 100,
    )
}
