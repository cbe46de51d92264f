//! A node that restarts at its address: its peers notice with their next packet.

use std::time::Duration;

use pk_proto::{DisconnectReason, Event};

use crate::world::{MS, World};

fn resets(world: &World, n: usize) -> usize {
    let reset = |event: &Event| {
        matches!(event, Event::ConnectionClosed { why: DisconnectReason::Reset, .. })
    };
    world.hosts[n].events.iter().filter(|(_, event)| reset(event)).count()
}

#[test]
fn the_next_packet_shows_a_restart_to_dialer_and_acceptor() {
    for (dialer, acceptor) in [(0, 1), (1, 0)] {
        let mut world = World::with_hosts(5, 2);
        world.connect(dialer, acceptor);
        world.pass(Duration::from_secs(1));
        world.restart(1);
        let took = world.ask(0, 1).unwrap();
        assert_eq!(resets(&world, 0), 1);
        println!("host {dialer} dialed, host 1 restarted: the next question took {took:?}");
        assert!(took <= 700 * MS, "{took:?}");
    }
}

#[test]
fn fifty_peers_notice_a_restart_at_once() {
    let mut world = World::with_hosts(6, 51);
    for n in 1..51 {
        world.connect(n, 0);
    }
    world.pass(Duration::from_secs(1));
    world.restart(0);
    let mut matched_id = Vec::new();
    for n in 1..51 {
        let request = pk_proto::Request::QueryClosestNodes {
            via: world.id(0),
            target: world.id(0),
            query: pk_proto::ClosestNodesQuery { known: true, connected: false },
            options: crate::world::options(Duration::from_secs(10)),
        };
        matched_id.push((n, world.request(n, request)));
    }
    world.pass(100 * MS);
    let noticed = (1..51).filter(|n| resets(&world, *n) == 1).count();
    let begun = world.now;
    world.until(Duration::from_secs(10), |world| {
        matched_id.iter().all(|(n, id)| world.result(*n, *id).is_some())
    });
    let answered = matched_id.iter().filter(|(n, id)| matches!(world.result(*n, *id), Some(Ok(_))));
    println!(
        "{noticed} of 50 peers noticed within a round trip; {} answered after {:?}",
        answered.clone().count(),
        world.now.since(begun) + 100 * MS
    );
    assert_eq!((noticed, answered.count()), (50, 50));
    assert_eq!(world.hosts[0].node.transport().metrics().resets_dropped, 0);
}
