//! An idle node wakes only when it must.

use std::time::Duration;

use pk_driver::{Node, NodeConfig};
use pk_proto::RequestOptions;
use pk_tests::Rt;
use pk_tests::case::slot;
use pk_tests::node::{address, start_with};
use pk_tests::wait::{sleep, soon};
use pk_tests::watched::Watched;

pk_tests::cases!(unslotted idle_node_wakes_only_for_due_timers);

const IDLE: Duration = Duration::from_secs(20);

/// For 20 s nothing but QUIC's keep-alives:
///
/// - three nodes, each connected to both others, that have no timer due;
/// - one node with a timer due each second: of a connection whose idle time is over, and which a
///   stream uses.
async fn idle_node_wakes_only_for_due_timers<R: Rt>(runtime: R) {
    let work = slot();
    let often = |config: &mut NodeConfig| {
        config.driver.transport.keep_alive = Duration::from_secs(1);
        config.driver.transport.idle_timeout = Duration::from_secs(5);
        // No upkeep of the graph: its first timers are due after 30 s, and that of a bucket at a
        // random time within an hour.
        config.core.refresh_delay = Duration::ZERO;
        config.core.retry_delay = Duration::ZERO;
        config.core.upkeep.check_first = Duration::from_secs(3600);
        config.core.upkeep.check_most = Duration::from_secs(3600);
    };
    let mut nodes = Vec::new();
    for seed in 1..=3 {
        let watched = Watched::new(runtime.clone());
        nodes.push((start_with(&watched, seed, often).await, watched));
    }
    let connect = async |from: &Node<Watched<R>>, to: &Node<Watched<R>>| {
        let connected = from.connect(to.own_id(), address(to), RequestOptions::default());
        soon(&runtime, "connect", connected).await.unwrap();
    };
    for (i, (node, _)) in nodes.iter().enumerate() {
        for (other, _) in &nodes[i + 1..] {
            connect(node, other).await;
        }
    }
    let ticking = start_with(&Watched::new(runtime.clone()), 4, |config| {
        often(config);
        config.core.connection_idle_timeout = Duration::from_secs(1);
        config.core.connection_idle_scale = Duration::ZERO;
    })
    .await;
    let idle = start_with(&Watched::new(runtime.clone()), 5, often).await;
    connect(&ticking, &idle).await;
    let mut acceptor = idle.accept_streams("held/1").await.unwrap();
    let opened = ticking.open_stream(idle.own_id(), "held/1", RequestOptions::default());
    let ours = soon(&runtime, "open a stream", opened).await.unwrap();
    let theirs = soon(&runtime, "accept", acceptor.accept()).await.unwrap();
    // Work that follows the handshakes: MTU discovery, new connection ids, and two checks for
    // silent peers.
    sleep(&runtime, Duration::from_secs(2)).await;
    let ticks_before = ticking.metrics().await.unwrap().timeouts;
    let timeouts = async || {
        let mut timeouts = Vec::new();
        for (node, _) in &nodes {
            timeouts.push(node.metrics().await.unwrap().timeouts);
        }
        timeouts
    };
    let core_before = timeouts().await;
    drop(work);

    let look = || {
        nodes
            .iter()
            .map(|(node, watched)| (node.driver_metrics(), watched.seen()))
            .collect::<Vec<_>>()
    };
    let (before, turns_before) = (look(), ticking.driver_metrics().turns);
    sleep(&runtime, IDLE).await;
    let (after, turns_after) = (look(), ticking.driver_metrics().turns);
    let ticking_after = ticking.metrics().await.unwrap();
    assert_eq!(timeouts().await, core_before, "no timer of the core is due");

    // Waits for other cases, during which the nodes continue: no counter is read after it.
    let _work = slot();
    for ((before, seen_before), (after, seen_after)) in before.iter().zip(&after) {
        assert_eq!(after.transport.connections, 2);
        let turns = after.turns - before.turns;
        let packets =
            seen_after.received - seen_before.received + seen_after.sent - seen_before.sent;
        println!("{}: {turns} turns, {packets} packets", R::NAME);
        // Events that could wake a node occurred: on each of two connections a keep-alive a second
        // in one direction at least, and an answer to it. A machine that is late sends fewer.
        assert!(packets >= 2 * 2 * 10, "{packets} packets");
        // One turn for each received packet, and one for each that a timer of QUIC sent. A packet
        // that arrives while a turn reads the socket is read by that turn, and its notification
        // then finds nothing: on a busy machine one packet in thirty. A node that wakes once a
        // second has a quarter more turns.
        assert!(turns <= packets + packets / 10 + 2, "{turns} turns for {packets} packets");
    }
    let ticks = ticking_after.timeouts - ticks_before;
    let turns = turns_after - turns_before;
    // More than one only if the machine was so busy that the first one seemed to be dead.
    let connections = ticking_after.dials + idle.metrics().await.unwrap().dials;
    println!("{}: {turns} turns for {ticks} timers, {connections} connections", R::NAME);
    assert!((1..=2).contains(&connections), "{connections} connections");
    assert!((10..=21 * connections).contains(&ticks), "{ticks} timers, one a second for each");
    // One turn for each timer, for each keep-alive and its acknowledgement in each direction, and
    // for each acknowledgement that a timer sent. One more for the first read of the counters,
    // which returned before its turn was counted.
    let keep_alives = IDLE.as_secs() * 2 * connections;
    assert!(turns <= ticks + 3 * keep_alives + 1, "{turns} turns for {ticks} timers");
    drop((ours, theirs));
    for node in nodes.iter().map(|(node, _)| node).chain([&ticking, &idle]) {
        soon(&runtime, "shutdown", node.shutdown()).await;
    }
}
