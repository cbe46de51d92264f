//! Paths of every MTU, and paths that carry less than before.

use std::time::Duration;

use pk_sim::{PacketWorld, PathLimits};

use super::{ROUND_TRIP, Row, ms};

/// Headers of IPv4 and UDP.
const HEADERS: usize = 28;

fn limits(mtu: usize) -> PathLimits {
    PathLimits { mtu: mtu - HEADERS, ..PathLimits::default() }
}

pub fn rows() -> Vec<Row> {
    let mut rows: Vec<_> = [1228, 1280, 1400, 1500].map(constant).into();
    rows.extend([1228, 1280, 1400].map(drop_while_sending));
    rows.extend([1228, 1280, 1400].map(drop_while_idle));
    rows
}

fn constant(mtu: usize) -> Row {
    let mut world = PacketWorld::with_hosts(3, 2);
    world.set_paths(limits(mtu));
    world.connect(0, 1);
    let stream = world.open(0, 1);
    world.write(0, stream, 2_000_000);
    let begun = world.now();
    let complete =
        world.until(100 * ROUND_TRIP, |world| world.host(1).total_received() == 2_000_000);
    let took = world.now().since(begun);
    let asked = world.ask(0, 1).unwrap();
    Row::new(
        format!("IP MTU {mtu}: 2 MB, then a question"),
        format!("{}, {}", ms(took), ms(asked)),
        "complete, ≤ 1.1 RTT",
        complete && asked <= ROUND_TRIP * 11 / 10,
    )
}

/// The longest time without progress of a transfer whose path loses its longest packets.
fn drop_while_sending(mtu: usize) -> Row {
    let mut world = PacketWorld::with_hosts(3, 2);
    world.set_paths(limits(1500));
    world.connect(0, 1);
    let stream = world.open(0, 1);
    world.write(0, stream, 8_000_000);
    world.pass(8 * ROUND_TRIP);
    world.set_paths(limits(mtu));
    let (mut last, mut stall) = (world.now(), Duration::ZERO);
    let mut received = world.host(1).total_received();
    let complete = world.until(600 * ROUND_TRIP, |world| {
        let present = world.host(1).total_received();
        if present > received {
            stall = stall.max(world.now().since(last));
            (received, last) = (present, world.now());
        }
        present == 8_000_000
    });
    let asked = world.ask(0, 1).unwrap();
    Row::new(
        format!("IP MTU 1500 falls to {mtu} during 8 MB: longest stall, a question afterwards"),
        format!("{}, {}", ms(stall), ms(asked)),
        "complete, stall ≤ 3 s",
        complete && stall <= Duration::from_secs(3) && asked <= 2 * ROUND_TRIP,
    )
}

/// A short request needs no long packet.
fn drop_while_idle(mtu: usize) -> Row {
    let mut world = PacketWorld::with_hosts(4, 2);
    world.set_paths(limits(1500));
    world.connect(0, 1);
    world.pass(20 * ROUND_TRIP);
    world.set_paths(limits(mtu));
    let asked = world.ask(0, 1).unwrap();
    let back = world.ask(1, 0).unwrap();
    Row::new(
        format!("IP MTU 1500 falls to {mtu} on an idle connection: the next questions"),
        format!("{}, {}", ms(asked), ms(back)),
        "≤ 1.1 RTT",
        asked.max(back) <= ROUND_TRIP * 11 / 10,
    )
}
