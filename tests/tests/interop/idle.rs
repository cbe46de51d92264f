//! Connections that are not used for longer than the idle timeout of the transport are held by
//! their keep-alive.

use std::env;
use std::time::{Duration, Instant};

use pk_interop::Polykey;
use pk_proto::RequestOptions;
use pk_tests::Rt;
use pk_tests::node::{shutdown, start};
use pk_tests::wait::{sleep, soon, within};
use serde_json::json;

use crate::kit::{
    PATIENCE, ask, dial, dialed, local_connections, polykey_connections, polykey_node,
};

/// Duration in seconds, unless `PK_IDLE_SECS` is set: more than twice each idle timeout.
const IDLE_SECS: u64 = 75;

long_cases!(leased_idle_connection_stays_open within Duration::from_secs(idle_secs() + 240));

fn idle_secs() -> u64 {
    env::var("PK_IDLE_SECS")
        .ok()
        .map_or(IDLE_SECS, |secs| secs.parse().expect("PK_IDLE_SECS is a number of seconds"))
}

/// One connection that the local node dialed, and one that a Polykey node dialed.
async fn leased_idle_connection_stays_open<R: Rt>(runtime: R, polykey: Polykey) {
    let (a, b, ours) = (
        polykey_node(&runtime, &polykey).await,
        polykey_node(&runtime, &polykey).await,
        start(&runtime, 1).await,
    );
    dial(&runtime, &ours, &a).await;
    dialed(&runtime, &b, &ours).await;
    // The leases prevent a close of unused connections, on both sides.
    let lease_a =
        soon(&runtime, "hold", ours.acquire_connection(a.node_id(), RequestOptions::default()))
            .await
            .unwrap();
    let lease_b =
        soon(&runtime, "hold", ours.acquire_connection(b.node_id(), RequestOptions::default()))
            .await
            .unwrap();
    let before =
        [local_connections(&ours, a.node_id()).await, local_connections(&ours, b.node_id()).await];
    let turns = ours.driver_metrics().turns;
    let (secs, begun) = (idle_secs(), Instant::now());
    sleep(&runtime, Duration::from_secs(secs)).await;
    // Of this time only: what follows causes turns.
    let turns = ours.driver_metrics().turns - turns;
    println!("{}: {turns} turns, for both nodes' searches of themselves", R::NAME);
    // Every 45 s each node refreshes: a few small requests, and nothing else.
    let refreshes = begun.elapsed().as_secs() / 45 + 1;
    assert!(turns <= 60 * refreshes, "{turns}");
    let after =
        [local_connections(&ours, a.node_id()).await, local_connections(&ours, b.node_id()).await];
    assert_eq!(before, after);
    assert_eq!(before.iter().map(Vec::len).sum::<usize>(), 2, "{before:?}");
    for (peer, held) in [&a, &b].into_iter().zip(&after) {
        assert_eq!(polykey_connections(&runtime, peer, ours.own_id()).await, *held);
        within(
            &runtime,
            PATIENCE,
            "ping",
            ours.ping_node(peer.node_id(), RequestOptions::default()),
        )
        .await
        .unwrap();
        ask(&runtime, peer, "closest", json!({ "nodeId": peer.node_id(), "via": ours.own_id() }))
            .await;
    }
    println!("idle for {secs} s: 2 connections held, none dropped");
    drop((lease_a, lease_b));
    shutdown(&runtime, &[&ours]).await;
}
