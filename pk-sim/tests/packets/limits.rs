//! What happens at the limits of application streams.

use std::time::Duration;

use pk_sim::{PacketWorld, Reader};

#[test]
fn newest_unread_streams_over_the_memory_limit_are_reset_and_the_node_protocol_continues() {
    let mut world = PacketWorld::with_hosts(64, 2);
    world.connect(0, 1);
    world.host_mut(1).reader = Reader::Paused;
    for _ in 0..64 {
        let stream = world.open(0, 1);
        world.write(0, stream, 4 << 20);
    }
    for _ in 0..20 {
        for (from, to) in [(0, 1), (1, 0)] {
            let took = world.ask(from, to).unwrap();
            assert!(took <= Duration::from_millis(310), "{took:?}");
        }
        world.pass(Duration::from_millis(50));
    }
    let metrics = world.metrics(1);
    assert!((40..64).contains(&metrics.streams_unread), "{metrics:?}");
    world.host_mut(1).reader = Reader::Eager;
    world.read_all(1);
    assert!(world.host(1).failed().len() as u64 >= metrics.streams_unread);
    world.stop_all();
}
