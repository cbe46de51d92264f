//! Handshakes: both dialects, Retry, refusals and cancelled dials.

use std::time::Duration;

use pk_proto::{Dialect, Event, Request};
use pk_quic::TransportSettings;

use crate::world::{MS, World, options};

fn with(change: impl Fn(&mut TransportSettings)) -> TransportSettings {
    let mut settings = TransportSettings::default();
    change(&mut settings);
    settings
}

fn connect(world: &World, to: usize) -> Request {
    Request::Connect {
        target: world.id(to),
        address: world.hosts[to].addr.into(),
        options: options(Duration::from_secs(15)),
    }
}

#[test]
fn the_dialect_of_the_reference_works_with_and_without_loss() {
    for loss in [0, 100, 200] {
        let mut world = World::new(90 + loss);
        world.loss = loss;
        for _ in 0..2 {
            world.add(with(|settings| settings.dialects = vec![Dialect::Polykey]));
        }
        let connected = world.connect(0, 1);
        let matched_id = [world.ask(0, 1).unwrap(), world.ask(1, 0).unwrap()];
        println!(
            "`quic`, loss {} %: connected after {connected:?}, asked in {matched_id:?}",
            loss / 10
        );
        // One more round trip than `pk/1`: until HANDSHAKE_DONE.
        assert!(loss > 0 || connected <= 310 * MS, "{connected:?}");
        let ids = [0, 1].map(|n| world.hosts[n].node.manager().connections()[0].shared_id.clone());
        assert_eq!(ids[0], ids[1], "both ends derive the same id");
    }
}

#[test]
fn many_handshakes_at_once_validate_their_addresses() {
    let mut world = World::new(95);
    world.add(with(|settings| {
        (settings.handshake_limit, settings.handshake_network_limit) = (8, 8);
    }));
    for _ in 0..7 {
        world.add(TransportSettings::default());
    }
    let requests: Vec<_> = (1..8).map(|n| (n, world.request(n, connect(&world, 0)))).collect();
    world.pass(Duration::from_secs(2));
    let metrics = world.hosts[0].node.transport().metrics();
    println!("7 handshakes, limit 8: {} had to validate their address", metrics.handshakes_retried);
    for (n, id) in requests {
        assert!(matches!(world.result(n, id), Some(Ok(_))), "{:?}", world.result(n, id));
    }
    assert_eq!((metrics.handshakes, metrics.handshakes_retried), (7, 3));
}

#[test]
fn a_node_of_another_id_is_refused_and_a_dead_address_times_out() {
    let mut world = World::with_hosts(96, 3);
    let wrong = Request::Connect {
        target: world.id(2),
        address: world.hosts[1].addr.into(),
        options: options(Duration::from_secs(15)),
    };
    let (took, result) = world.perform(0, wrong, Duration::from_secs(20));
    println!("another node: {result:?} after {took:?}");
    assert!(result.is_err() && took <= 300 * MS);
    world.hosts[2].up = false;
    let request = connect(&world, 2);
    let (took, result) = world.perform(0, request, Duration::from_secs(40));
    assert!(result.is_err() && took <= Duration::from_secs(15), "{took:?} {result:?}");
    world.pass(Duration::from_secs(10));
    assert!(world.hosts[0].node.manager().connections().is_empty());
}

#[test]
fn a_stopped_node_says_goodbye_and_ends() {
    let mut world = World::with_hosts(97, 2);
    world.connect(0, 1);
    let now = world.now;
    world.hosts[0].node.stop(now);
    world.flush(0);
    assert!(world.until(Duration::from_secs(5), |world| world.hosts[0].node.is_over()));
    let closed = |(_, event): &(_, Event)| matches!(event, Event::ConnectionClosed { .. });
    assert!(world.hosts[1].events.iter().any(closed));
    println!("stopped and drained after {:?}", world.now.since(now));
}
