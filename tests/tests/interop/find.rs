//! Nodes of both kinds find each other through nodes of both kinds.

use pk_driver::Node;
use pk_interop::{Peer, Polykey};
use pk_proto::{FindEnd, FindNodeOptions, NodeId};
use pk_tests::Rt;
use pk_tests::node::{connect, connections_with, shutdown, start};
use pk_tests::wait::within;
use serde_json::json;

use crate::kit::{
    PATIENCE, ask, dial, dialed, disconnected, introduce, reached, text, their_connections, theirs,
};

cases!(
    we_find_ours_and_theirs_through_theirs,
    they_find_ours_and_theirs_through_us,
    nobody_is_found_who_is_not_there,
);

/// Nodes of theirs look around whenever they learn of a new node, so that they may be there before
/// they are looked for; then they are forgotten and looked for again, this often.
const ATTEMPTS: usize = 20;

/// We find a node that we know only through another one.
async fn we_find<R: Rt>(runtime: &R, ours: &Node<R>, target: NodeId, through: NodeId) {
    for _ in 0..ATTEMPTS {
        disconnected(runtime, ours, target).await;
        ours.unset_node(target).await.unwrap();
        let found = within(
            runtime,
            PATIENCE,
            "we search",
            ours.find_node(target, FindNodeOptions::default()),
        )
        .await
        .unwrap();
        assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
        if found.trace.iter().any(|step| step.node == target && step.reported_by == Some(through)) {
            return;
        }
    }
    panic!("{target} was always there before it was looked for");
}

/// They find a node that they do not know.
async fn they_find<R: Rt>(runtime: &R, theirs: &Peer, target: NodeId) {
    for _ in 0..ATTEMPTS {
        ask(runtime, theirs, "disconnect", json!({ "nodeId": target })).await;
        ask(runtime, theirs, "unsetNode", json!({ "nodeId": target })).await;
        let connected = their_connections(runtime, theirs, target).await;
        let known = ask(runtime, theirs, "graph", json!({})).await;
        let found = ask(runtime, theirs, "find", json!({ "nodeId": target })).await;
        assert!(!found.is_null(), "they do not find it");
        assert!(!their_connections(runtime, theirs, target).await.is_empty());
        if connected.is_empty() && known.get(target.to_string()).is_none() {
            return;
        }
    }
    panic!("{target} was always there before it was looked for");
}

async fn we_find_ours_and_theirs_through_theirs<R: Rt>(runtime: R, polykey: Polykey) {
    let (between, far) = (theirs(&runtime, &polykey).await, theirs(&runtime, &polykey).await);
    let (ours, other) = (start(&runtime, 1).await, start(&runtime, 2).await);
    introduce(&runtime, &far, &between).await;
    dial(&runtime, &other, &between).await;
    dial(&runtime, &ours, &between).await;
    we_find(&runtime, &ours, far.node_id(), between.node_id()).await;
    we_find(&runtime, &ours, other.own_id(), between.node_id()).await;
    // Found through theirs, and spoken to in our own dialect.
    let connection = connections_with(&ours, other.own_id()).await;
    assert!(connection.iter().all(|one| one.shared_id.len() == 32), "{connection:?}");
    shutdown(&runtime, &[&ours, &other]).await;
}

async fn they_find_ours_and_theirs_through_us<R: Rt>(runtime: R, polykey: Polykey) {
    let (theirs_a, theirs_b) = (theirs(&runtime, &polykey).await, theirs(&runtime, &polykey).await);
    let (between, other) = (start(&runtime, 1).await, start(&runtime, 2).await);
    connect(&runtime, &other, &between).await;
    dialed(&runtime, &theirs_b, &between).await;
    dialed(&runtime, &theirs_a, &between).await;
    they_find(&runtime, &theirs_a, other.own_id()).await;
    they_find(&runtime, &theirs_a, theirs_b.node_id()).await;
    let found = ask(&runtime, &theirs_b, "find", json!({ "nodeId": between.own_id() })).await;
    assert!(found.to_string().contains(&reached(&between).port().to_string()), "{found}");
    shutdown(&runtime, &[&between, &other]).await;
}

async fn nobody_is_found_who_is_not_there<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (theirs(&runtime, &polykey).await, start(&runtime, 1).await);
    dial(&runtime, &ours, &peer).await;
    let absent = pk_tests::node::key(99).node_id();
    let found =
        within(&runtime, PATIENCE, "we search", ours.find_node(absent, FindNodeOptions::default()))
            .await
            .unwrap();
    assert_eq!((found.found, found.ended), (None, FindEnd::Exhausted));
    let found = ask(&runtime, &peer, "find", json!({ "nodeId": absent })).await;
    assert!(found.is_null(), "{found}");
    // They look for themselves all the time.
    let found = ask(&runtime, &peer, "find", json!({ "nodeId": peer.node_id() })).await;
    assert!(found.is_null(), "{found}");
    let connections = ask(&runtime, &peer, "connections", json!({})).await;
    assert_eq!(text(&connections[0], "nodeId"), ours.own_id().to_string());
    shutdown(&runtime, &[&ours]).await;
}
