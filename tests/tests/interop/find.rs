//! Nodes of both kinds find each other through nodes of both kinds.

use pk_driver::Node;
use pk_interop::{Peer, Polykey};
use pk_proto::{FindEnd, FindNodeOptions, NodeId};
use pk_tests::Rt;
use pk_tests::node::{connect, connections_with, shutdown, start};
use pk_tests::wait::within;
use serde_json::json;

use crate::kit::{
    PATIENCE, ask, dial, dialed, disconnected, introduce, polykey_connections, polykey_node,
    reached, text,
};

cases!(
    local_node_finds_nodes_of_both_kinds_through_a_polykey_node,
    polykey_node_finds_nodes_of_both_kinds_through_the_local_node,
    absent_node_is_not_found,
);

/// Number of attempts. Polykey nodes search whenever they learn of a new node, so that they may be
/// connected before the search; then they are removed, and the search is repeated.
const ATTEMPTS: usize = 20;

/// Finds a node that the local node can only learn of through another one.
async fn find_through<R: Rt>(runtime: &R, ours: &Node<R>, target: NodeId, through: NodeId) {
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

/// Makes a Polykey node find a node that it has no contact for.
async fn polykey_finds<R: Rt>(runtime: &R, theirs: &Peer, target: NodeId) {
    for _ in 0..ATTEMPTS {
        ask(runtime, theirs, "disconnect", json!({ "nodeId": target })).await;
        ask(runtime, theirs, "unsetNode", json!({ "nodeId": target })).await;
        let connected = polykey_connections(runtime, theirs, target).await;
        let known = ask(runtime, theirs, "graph", json!({})).await;
        let found = ask(runtime, theirs, "find", json!({ "nodeId": target })).await;
        assert!(!found.is_null(), "they do not find it");
        assert!(!polykey_connections(runtime, theirs, target).await.is_empty());
        if connected.is_empty() && known.get(target.to_string()).is_none() {
            return;
        }
    }
    panic!("{target} was always there before it was looked for");
}

async fn local_node_finds_nodes_of_both_kinds_through_a_polykey_node<R: Rt>(
    runtime: R,
    polykey: Polykey,
) {
    let (between, far) =
        (polykey_node(&runtime, &polykey).await, polykey_node(&runtime, &polykey).await);
    let (ours, other) = (start(&runtime, 1).await, start(&runtime, 2).await);
    introduce(&runtime, &far, &between).await;
    dial(&runtime, &other, &between).await;
    dial(&runtime, &ours, &between).await;
    find_through(&runtime, &ours, far.node_id(), between.node_id()).await;
    find_through(&runtime, &ours, other.own_id(), between.node_id()).await;
    // Found through a Polykey node, and connected over `pk/1`.
    let connection = connections_with(&ours, other.own_id()).await;
    assert!(connection.iter().all(|one| one.shared_id.len() == 32), "{connection:?}");
    shutdown(&runtime, &[&ours, &other]).await;
}

async fn polykey_node_finds_nodes_of_both_kinds_through_the_local_node<R: Rt>(
    runtime: R,
    polykey: Polykey,
) {
    let (theirs_a, theirs_b) =
        (polykey_node(&runtime, &polykey).await, polykey_node(&runtime, &polykey).await);
    let (between, other) = (start(&runtime, 1).await, start(&runtime, 2).await);
    connect(&runtime, &other, &between).await;
    dialed(&runtime, &theirs_b, &between).await;
    dialed(&runtime, &theirs_a, &between).await;
    polykey_finds(&runtime, &theirs_a, other.own_id()).await;
    polykey_finds(&runtime, &theirs_a, theirs_b.node_id()).await;
    let found = ask(&runtime, &theirs_b, "find", json!({ "nodeId": between.own_id() })).await;
    assert!(found.to_string().contains(&reached(&between).port().to_string()), "{found}");
    shutdown(&runtime, &[&between, &other]).await;
}

async fn absent_node_is_not_found<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dial(&runtime, &ours, &peer).await;
    let absent = pk_tests::node::key(99).node_id();
    let found =
        within(&runtime, PATIENCE, "we search", ours.find_node(absent, FindNodeOptions::default()))
            .await
            .unwrap();
    assert_eq!((found.found, found.ended), (None, FindEnd::Exhausted));
    let found = ask(&runtime, &peer, "find", json!({ "nodeId": absent })).await;
    assert!(found.is_null(), "{found}");
    // The reference searches for its own id regularly.
    let found = ask(&runtime, &peer, "find", json!({ "nodeId": peer.node_id() })).await;
    assert!(found.is_null(), "{found}");
    let connections = ask(&runtime, &peer, "connections", json!({})).await;
    assert_eq!(text(&connections[0], "nodeId"), ours.own_id().to_string());
    shutdown(&runtime, &[&ours]).await;
}
