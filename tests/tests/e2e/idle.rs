//! A node with nothing to do does nothing.

use std::time::Duration;

use pk_tests::Rt;
use pk_tests::case::slot;
use pk_tests::node::{address, shutdown, start_with};
use pk_tests::wait::{sleep, soon};
use pk_tests::watched::Watched;

pk_tests::cases!(unslotted an_idle_node_turns_no_more_than_it_must);

const IDLE: Duration = Duration::from_secs(20);

/// Three nodes, each connected to both others, for 20 s of nothing but QUIC's keep-alives.
async fn an_idle_node_turns_no_more_than_it_must<R: Rt>(runtime: R) {
    let work = slot();
    let often = |config: &mut pk_driver::NodeConfig| {
        config.driver.keep_alive = Duration::from_secs(1);
        config.driver.idle_timeout = Duration::from_secs(5);
    };
    let mut nodes = Vec::new();
    for seed in 1..=3 {
        let watched = Watched::new(runtime.clone());
        nodes.push((start_with(&watched, seed, often).await, watched));
    }
    for (i, (node, _)) in nodes.iter().enumerate() {
        for (other, _) in &nodes[i + 1..] {
            let connected = node.connect(other.own_id(), address(other), pk_proto::Options::default());
            soon(&runtime, "connect", connected).await.unwrap();
        }
    }
    // What the handshakes leave to do: path MTU, key updates, retired connection ids.
    sleep(&runtime, Duration::from_secs(1)).await;
    drop(work);
    let look = || nodes.iter().map(|(node, watched)| (node.driver_metrics(), watched.seen())).collect::<Vec<_>>();
    let before = look();
    sleep(&runtime, IDLE).await;
    let after = look();
    for ((before, seen_before), (after, seen_after)) in before.iter().zip(&after) {
        assert_eq!(after.connections, 2);
        let turns = after.turns - before.turns;
        let packets = seen_after.received - seen_before.received + seen_after.sent - seen_before.sent;
        let timers = seen_after.timers_fired - seen_before.timers_fired;
        println!("{}: {turns} turns, {packets} packets, {timers} timers of QUIC and ours", R::NAME);
        // There was something that could have woken it: on each of two connections a keep-alive a second in one
        // direction at least, and an answer to it.
        assert!(packets >= 2 * 2 * 15, "{packets} packets");
        // No timer of the core is due within 20 s, and a keep-alive concerns QUIC alone.
        assert_eq!(turns, 0, "turns of a node that had nothing to do");
    }
    let _work = slot();
    for (node, _) in &nodes {
        soon(&runtime, "shutdown", node.shutdown()).await;
    }
    drop(nodes);
    shutdown::<R>(&runtime, &[]).await;
}
