//! Changes of address while connected: of either end, and of a NAT in front of it.

use pk_proto::Event;
use pk_quic::TransportSettings;
use pk_sim::{Dependence, NatConfig, NatId, PacketWorld};

use super::{ROUND_TRIP, Row, round_trips};

/// How an end moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// It has another address, and is informed of it.
    Announced,
    /// It has another address, and detects it when the system refuses to send from the former one.
    Refused,
    /// It has another address and does not detect it: its socket names no addresses.
    Silent,
    /// The NAT in front of it drops its mappings.
    Nat,
}

/// Hosts 0 and 1, connected by host 0. With a NAT in front of one of them.
fn pair(seed: u64, how: Move, behind: Option<usize>) -> (PacketWorld, Option<NatId>) {
    let mut world = PacketWorld::new(seed);
    let mut nat = None;
    for n in 0..3 {
        let inner = (behind == Some(n))
            .then(|| world.add_nat(NatConfig::new(Dependence::Nothing, Dependence::Nothing)));
        let id = world.add_stopped(TransportSettings::default(), inner);
        world.host_mut(id).has_local_addresses = how != Move::Silent;
        world.start(id);
        nat = nat.or(inner);
    }
    match (behind, nat) {
        (Some(1), Some(nat)) => {
            // Its mapping exists once it has sent something.
            world.observe();
            world.connect(1, 2);
            let ip = world.network().nat_ip(nat);
            let seen = world.observed();
            let outer = seen.iter().map(|seen| seen.from).find(|from| from.ip() == ip).unwrap();
            world.connect_at(0, 1, outer.into());
        }
        _ => drop(world.connect(0, 1)),
    }
    for _ in 0..3 {
        world.ask(0, 1).unwrap();
    }
    world.pass(10 * ROUND_TRIP);
    (world, nat)
}

fn lost(world: &PacketWorld) -> usize {
    let events = [0, 1].into_iter().flat_map(|n| world.host(n).events());
    events.filter(|(_, event)| matches!(event, Event::ConnectionClosed { .. })).count()
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (n, end) in [(0, "dialer"), (1, "acceptor")] {
        for how in [Move::Announced, Move::Refused, Move::Silent, Move::Nat] {
            let (mut world, nat) = pair(20 + n as u64, how, (how == Move::Nat).then_some(n));
            let what = match how {
                Move::Announced => "has another address, and announces it",
                Move::Refused => "has another address, and learns it by a refused datagram",
                Move::Silent => "has another address, and does not notice",
                Move::Nat => "is behind a NAT that restarts",
            };
            match nat {
                Some(nat) => world.network_mut().reboot_nat(nat),
                None => world.roam(n, how == Move::Announced),
            }
            // The moved end sends a request, so that its next packet is sent now.
            let other = 1 - n;
            let [first, back, next] = [(n, other), (other, n), (n, other)]
                .map(|(from, to)| world.ask(from, to).unwrap().saturating_sub(ROUND_TRIP));
            let figure = format!(
                "{}; the peer's next {}, then {}",
                round_trips(first),
                round_trips(back),
                round_trips(next)
            );
            let holds = lost(&world) == 0
                && first <= 3 * ROUND_TRIP
                && back <= 2 * ROUND_TRIP
                && next <= ROUND_TRIP / 10;
            rows.push(Row::new(
                format!("{end} {what}: interruption of its question"),
                figure,
                "≤ 3 RTT",
                holds,
            ));
            world.stop_all();
        }
    }
    rows.extend(announced());
    rows.extend(transfers());
    rows
}

/// An announced move needs no traffic of the end that moves.
fn announced() -> Vec<Row> {
    let row = |(n, end): (usize, &str)| {
        let (mut world, _) = pair(30 + n as u64, Move::Announced, None);
        world.roam(n, true);
        world.pass(2 * ROUND_TRIP);
        let took = world.ask(1 - n, n).unwrap().saturating_sub(ROUND_TRIP);
        let holds = lost(&world) == 0 && took <= 11 * ROUND_TRIP / 10;
        Row::new(
            format!("{end} announces a move and is quiet: interruption of the peer's question"),
            round_trips(took),
            "≤ 1 RTT",
            holds,
        )
    };
    [(0, "dialer"), (1, "acceptor")].map(row).into()
}

/// A transfer during a move.
fn transfers() -> Vec<Row> {
    let mut rows = Vec::new();
    for (n, end) in [(0, "dialer"), (1, "acceptor")] {
        for (from, to) in [(0, 1), (1, 0)] {
            let (mut world, _) = pair(40 + n as u64, Move::Announced, None);
            let stream = world.open(from, to);
            world.write(from, stream, 6_000_000);
            world.pass(6 * ROUND_TRIP);
            let before = world.host(to).total_received();
            world.roam(n, true);
            let begun = world.now();
            let resumed = world.until(200 * ROUND_TRIP, |world| {
                world.host(to).total_received() > before + 500_000
            });
            let took = world.now().since(begun);
            let complete =
                world.until(300 * ROUND_TRIP, |world| world.host(to).total_received() == 6_000_000);
            rows.push(Row::new(
                format!("{end} moves while host {from} sends 6 MB: 500 kB more"),
                round_trips(took),
                "≤ 30 RTT, complete",
                resumed && complete && lost(&world) == 0 && took <= 30 * ROUND_TRIP,
            ));
        }
    }
    rows
}
