//! What relayed connections carry, and what they cost a relay.

use std::time::Duration;

use pk_proto::RelayPolicy;
use pk_sim::{HostId, Link, PacketHost, PacketWorld, PathLimits};

use super::{Row, ms};

const SECOND: Duration = Duration::from_secs(1);
const RELAY: HostId = 0;
const MIB: u64 = 1024 * 1024;

/// Sources, and targets, of the relay with many circuits.
const SOURCES: usize = 20;
const TARGETS: usize = 10;

pub fn rows() -> Vec<Row> {
    let mut rows = vec![throughput()];
    rows.extend(many_circuits());
    rows.push(share());
    rows
}

/// A relay whose circuits have no limit of rate.
fn without_rates(host: &mut PacketHost) {
    host.config.relay.policy = RelayPolicy::All;
    host.config.relay.rate_per_node = 1 << 30;
    host.config.relay.rate = 1 << 30;
}

/// Bytes that a stream between two hosts carries in six seconds, after the first three.
fn carried(world: &mut PacketWorld, from: HostId, to: HostId) -> u64 {
    let stream = world.open(from, to);
    world.write(from, stream, 1 << 30);
    world.pass(3 * SECOND);
    let before = world.host(to).total_received();
    world.pass(6 * SECOND);
    world.host(to).total_received() - before
}

fn throughput() -> Row {
    // A queue of 100 ms.
    let limits =
        PathLimits { bandwidth: Some(25_000_000), queue: 2_500_000, ..PathLimits::default() };
    let mut world = PacketWorld::with_hosts(10, 2);
    world.set_paths(limits);
    world.connect(0, 1);
    let direct = carried(&mut world, 0, 1);
    let mut world = PacketWorld::with_hosts_of(10, 3, without_rates);
    world.set_cut(1, 2, true);
    // The same round trip, half of it on each leg.
    world.network_mut().set_default_link(Link::ms(25));
    world.set_paths(limits);
    for node in [1, 2] {
        world.connect(node, RELAY);
    }
    world.find(1, 2).unwrap();
    let relayed = carried(&mut world, 1, 2);
    let percent = relayed * 100 / direct.max(1);
    Row::new(
        "relayed stream, 25 MB/s on each leg, 100 ms: part of the direct one",
        format!("{percent} %, {:.1} MB/s", relayed as f64 / 6e6),
        "≥ 90 %",
        percent >= 90,
    )
}

/// Bytes that a call has allocated and not freed.
fn meter(call: &mut dyn FnMut()) -> i64 {
    allocation_counter::measure(call).bytes_current
}

/// A relay with sources and targets that are connected to it and cannot reach each other.
fn crowd(seed: u64, sources: usize, change: impl Fn(&mut PacketHost)) -> PacketWorld {
    let mut world = PacketWorld::with_hosts_of(seed, 1 + sources + TARGETS, |host| {
        host.config.relay.policy = RelayPolicy::All;
        // One relay may offer a quarter of them.
        host.config.relay.paths = 4 * SOURCES;
        // Circuits without traffic remain.
        host.config.connection_idle_timeout = Duration::from_secs(3600);
        change(host);
    });
    for node in 1..=sources + TARGETS {
        world.connect(node, RELAY);
    }
    for source in 1..=sources {
        for target in sources + 1..=sources + TARGETS {
            world.set_cut(source, target, true);
        }
    }
    world
}

fn many_circuits() -> Vec<Row> {
    let mut world = crowd(11, SOURCES, |_| {});
    let slowest = |world: &mut PacketWorld| {
        let asked = (1..=SOURCES).map(|node| world.ask(RELAY, node).unwrap());
        asked.max().unwrap_or_default()
    };
    let without = slowest(&mut world);
    world.host_mut(RELAY).meter = Some(meter);
    let mut found = 0;
    for source in 1..=SOURCES {
        for target in SOURCES + 1..=SOURCES + TARGETS {
            found += usize::from(world.find(source, target).is_some());
        }
    }
    let circuits = world.metrics(RELAY).circuits;
    let held = world.host(RELAY).held() / i64::try_from(circuits.max(1)).unwrap_or(1);
    let idle = slowest(&mut world);
    for source in 1..=SOURCES {
        let stream = world.open(source, SOURCES + 1 + source % TARGETS);
        world.write(source, stream, 4_000_000);
    }
    world.pass(SECOND);
    let busy = slowest(&mut world);
    vec![
        Row::new(
            format!("a relay with {circuits} circuits: memory of each at the relay"),
            format!("{:.1} KiB, {found} of {} found", held as f64 / 1024.0, SOURCES * TARGETS),
            "all found, ≤ 16 KiB",
            found == SOURCES * TARGETS && circuits == 200 && held <= 16 * 1024,
        ),
        Row::new(
            format!(
                "the slowest of {SOURCES} questions of that relay, while 20 circuits are busy (idle; without)"
            ),
            format!("{} ({}; {})", ms(busy), ms(idle), ms(without)),
            "≤ 2 RTT more",
            busy <= without + Duration::from_millis(200),
        ),
    ]
}

/// One node sends without end on ten circuits, another one on its only circuit.
fn share() -> Row {
    let rate = 2 * MIB;
    let mut world = crowd(12, 2, |host| host.config.relay.rate_per_node = rate);
    let targets = 3..3 + TARGETS;
    for target in targets.clone() {
        world.find(1, target).unwrap();
        let stream = world.open(1, target);
        world.write(1, stream, 1 << 28);
    }
    // The last target hears the other node, too.
    let last = targets.clone().next_back().unwrap_or_default();
    world.find(2, last).unwrap();
    world.pass(2 * SECOND);
    let greedy = |world: &PacketWorld| -> u64 {
        targets.clone().filter(|n| *n != last).map(|n| world.host(n).total_received()).sum()
    };
    let before = greedy(&world);
    let asked = (0..10).map(|_| world.ask(2, last).unwrap()).max().unwrap_or_default();
    let time = world.now();
    world.pass(10 * SECOND);
    let seconds = (world.now().since(time) + 10 * asked).as_secs_f64();
    let sent = (greedy(&world) - before) as f64 / seconds / MIB as f64;
    Row::new(
        "ten circuits of one node with 2 MiB/s: what they carry; the slowest question of another node",
        format!("{sent:.1} MiB/s; {}", ms(asked)),
        "≤ 2.1 MiB/s; ≤ 250 ms",
        sent <= 2.1 && asked <= Duration::from_millis(250),
    )
}
