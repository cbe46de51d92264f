//! A node that restarts at its address with the same keys and nothing in memory.

use pk_proto::{DisconnectReason, Event};
use pk_sim::PacketWorld;

use super::{ROUND_TRIP, Row, round_trips};

/// The time at which a host detected the restart of its peer.
fn reset(world: &PacketWorld, n: usize) -> Option<pk_proto::Instant> {
    world.host(n).events().iter().find_map(|(at, event)| {
        let why = DisconnectReason::Reset;
        matches!(event, Event::ConnectionClosed { why: it, .. } if *it == why).then_some(*at)
    })
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (dialer, acceptor, end) in [(0, 1, "acceptor"), (1, 0, "dialer")] {
        let mut world = PacketWorld::with_hosts(5, 2);
        world.connect(dialer, acceptor);
        world.pass(10 * ROUND_TRIP);
        world.restart_empty(1);
        let begun = world.now();
        let took = world.ask(0, 1).unwrap();
        let learned = reset(&world, 0).map(|at| at.since(begun));
        let learned_in = learned.map_or("never".to_owned(), round_trips);
        rows.push(Row::new(
            format!("{end} restarts: the peer learns it, its question is answered"),
            format!("{learned_in}, {}", round_trips(took)),
            "1 RTT, ≤ 7 RTT",
            learned.is_some_and(|it| it <= ROUND_TRIP * 11 / 10) && took <= 7 * ROUND_TRIP,
        ));
        world.stop_all();
    }
    rows.push(fifty());
    rows
}

/// Fifty peers send requests to a restarted node at one instant.
fn fifty() -> Row {
    let mut world = PacketWorld::with_hosts(6, 51);
    for n in 1..51 {
        world.connect(n, 0);
    }
    world.pass(10 * ROUND_TRIP);
    world.restart_empty(0);
    let begun = world.now();
    let questions: Vec<_> = (1..51).map(|n| (n, world.request(n, world.question(0)))).collect();
    world.until(100 * ROUND_TRIP, |world| {
        questions.iter().all(|(n, id)| world.result(*n, *id).is_some())
    });
    let took = world.now().since(begun);
    let answered =
        questions.iter().filter(|(n, id)| matches!(world.result(*n, *id), Some(Ok(_)))).count();
    let in_time = |at: &pk_proto::Instant| at.since(begun) <= ROUND_TRIP * 11 / 10;
    let learned = (1..51).filter_map(|n| reset(&world, n)).filter(in_time).count();
    Row::new(
        "a node with 50 peers restarts, and all ask at once: those that learn it within 1 RTT, answered",
        format!("{learned} of 50, {answered} of 50 after {}", round_trips(took)),
        "50, 50",
        learned == 50 && answered == 50 && world.metrics(0).resets_dropped == 0,
    )
}
