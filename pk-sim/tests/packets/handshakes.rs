//! Handshakes: both dialects, Retry, refusals and failed dials.

use std::time::Duration;

use pk_proto::{Dialect, Event, Request, RequestOptions};
use pk_quic::Node;
use pk_sim::{Link, PacketWorld};

const MS: Duration = Duration::from_millis(1);

fn connect(world: &PacketWorld, to: usize, at: usize) -> Request {
    let (target, address) = (world.id(to), world.address(at));
    let deadline = Some(Duration::from_secs(15));
    Request::Connect { target, address, options: RequestOptions { deadline, ..Default::default() } }
}

#[test]
fn dialect_of_the_reference_works_with_and_without_loss() {
    for loss in [0, 100, 200] {
        let mut world = PacketWorld::with_hosts_of(90 + u64::from(loss), 2, |host| {
            host.transport.dialects = vec![Dialect::Polykey];
        });
        world.network_mut().set_default_link(Link::ms(50).loss(loss));
        let connected = world.connect(0, 1);
        world.ask(0, 1).unwrap();
        world.ask(1, 0).unwrap();
        // One more round trip than `pk/1`: until HANDSHAKE_DONE.
        assert!(loss > 0 || connected <= 310 * MS, "{connected:?}");
        let ids = [0, 1].map(|n| world.node(n).manager().connections()[0].shared_id.clone());
        assert_eq!(ids[0], ids[1], "both ends derive the same id");
    }
}

#[test]
fn many_handshakes_at_once_validate_their_addresses() {
    let mut world = PacketWorld::with_hosts_of(95, 8, |host| {
        host.transport.handshake_limit = 8;
        host.transport.handshake_network_limit = 8;
    });
    let requests: Vec<_> = (1..8).map(|n| (n, world.request(n, connect(&world, 0, 0)))).collect();
    world.pass(2000 * MS);
    for (n, id) in requests {
        assert!(matches!(world.result(n, id), Some(Ok(_))), "{:?}", world.result(n, id));
    }
    let metrics = world.metrics(0);
    assert_eq!((metrics.handshakes, metrics.handshakes_retried), (7, 3));
}

#[test]
fn node_of_another_id_is_refused_and_a_dead_address_times_out() {
    let mut world = PacketWorld::with_hosts(96, 3);
    let request = connect(&world, 2, 1);
    let (took, result) = world.perform(0, request);
    assert!(result.is_err() && took <= 300 * MS, "{took:?} {result:?}");
    world.kill(2);
    let request = connect(&world, 2, 2);
    let (took, result) = world.perform(0, request);
    assert!(result.is_err() && took <= 15_000 * MS, "{took:?} {result:?}");
    world.pass(10_000 * MS);
    assert!(world.node(0).manager().connections().is_empty());
}

/// Padding after the packets of a datagram is legal, but each byte of it costs memory.
#[test]
fn datagram_of_more_than_the_announced_length_is_dropped() {
    let mut world = PacketWorld::with_hosts(98, 2);
    world.set_cut(0, 1, true);
    world.observe();
    world.request(0, connect(&world, 1, 1));
    let first = world.observed().remove(0);
    for (length, handshakes) in [(1473, 0), (1472, 1)] {
        let mut padded = first.clone();
        padded.bytes.resize(length, 0);
        world.forge(padded, MS);
        world.pass(2 * MS);
        assert_eq!(world.metrics(1).handshakes, handshakes, "{length}");
    }
    assert_eq!(world.metrics(1).datagrams_too_long, 1);
}

#[test]
fn stopped_node_closes_its_connections() {
    let mut world = PacketWorld::with_hosts(97, 2);
    world.connect(0, 1);
    world.call(0, Node::stop);
    assert!(world.until(5000 * MS, |world| world.node(0).is_over()));
    let closed = |event: &Event| matches!(event, Event::ConnectionClosed { .. });
    assert!(world.host(1).events().iter().any(|(_, event)| closed(event)));
}
