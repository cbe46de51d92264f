//! Network isolation on `quic`: nodes of 1.15.1, which know no networks, and one with the method of
//! later versions, whose messages each case states (docs/WIRE.md section 14).

use std::time::Duration;

use pk_driver::{Node, NodeError};
use pk_interop::{Peer, Polykey, Settings};
use pk_proto::{DialFailure, Failure, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{connections_with, shutdown, start_with};
use pk_tests::wait::{soon, until};
use serde_json::{Value, json};

use crate::kit::{
    ask, ask_expecting_error, dial, dialed, polykey_node, reached, start_polykey, target,
};

cases!(
    node_with_a_network_meets_nodes_of_1_15_1_unless_it_requires_the_network,
    caller_authenticates_the_connection,
    caller_refuses_what_is_not_its_network,
    responder_authenticates_the_connection_also_twice,
    responder_refuses_what_is_not_its_network,
    responder_that_requires_its_network_answers_nothing_else_and_closes_a_silent_connection,
);

async fn node<R: Rt>(runtime: &R, required: bool) -> Node<R> {
    start_with(runtime, 1, |config| {
        config.core.network = Some("mainnet".parse().unwrap());
        config.core.network_required = required;
        config.core.hello_timeout = Duration::from_secs(3);
    })
    .await
}

fn success() -> Value {
    json!({ "type": "success", "success": true })
}

fn none() -> Value {
    json!({ "type": "NodesAuthenticateConnectionMessageNone" })
}

fn member(network: &str) -> Value {
    json!({ "type": "NodesAuthenticateConnectionMessageBasicPublic", "networkId": network })
}

async fn peer_with<R: Rt>(runtime: &R, polykey: &Polykey, steps: Value) -> Peer {
    let settings = Settings { authentication: Some(steps), ..Settings::default() };
    start_polykey(runtime, polykey, settings).await
}

/// The Polykey node dials the local node, which does not accept the connection yet.
async fn reach<R: Rt>(runtime: &R, theirs: &Peer, ours: &Node<R>) {
    ask(runtime, theirs, "connect", target(ours.own_id(), reached(ours))).await;
}

/// The failures of a dial, each because of the network.
async fn assert_refused<R: Rt>(runtime: &R, ours: &Node<R>, theirs: &Peer, what: &str) {
    let dial = ours.connect(theirs.node_id(), theirs.seed().address, RequestOptions::default());
    let result = soon(runtime, "the dial ends", dial).await;
    let Err(NodeError::Failure(Failure::Dial(failures))) = &result else {
        panic!("{what}: {result:?}")
    };
    let other = |why: &DialFailure| matches!(why, DialFailure::OtherNetwork(_));
    assert!(failures.iter().all(|(_, why)| other(why)), "{what}: {failures:?}");
    assert!(connections_with(ours, theirs.node_id()).await.is_empty(), "{what}");
    assert!(ours.contact(theirs.node_id()).await.unwrap().is_none(), "{what}");
}

async fn node_with_a_network_meets_nodes_of_1_15_1_unless_it_requires_the_network<R: Rt>(
    runtime: R,
    polykey: Polykey,
) {
    let theirs = polykey_node(&runtime, &polykey).await;
    let ours = node(&runtime, false).await;
    dial(&runtime, &ours, &theirs).await;
    ours.disconnect(theirs.node_id()).await.unwrap();
    dialed(&runtime, &theirs, &ours).await;
    let ping = ours.ping_node(theirs.node_id(), RequestOptions::default());
    soon(&runtime, "we ping", ping).await.unwrap();
    assert_eq!(theirs.faults(), [""; 0]);
    shutdown(&runtime, &[&ours]).await;
    drop(theirs);

    let theirs = polykey_node(&runtime, &polykey).await;
    let ours = node(&runtime, true).await;
    assert_refused(&runtime, &ours, &theirs, "1.15.1").await;
    // As a dialer it is closed when it has not named its network in time.
    reach(&runtime, &theirs, &ours).await;
    until(&runtime, "the connection is closed", async || {
        let connections = ask(&runtime, &theirs, "connections", json!({})).await;
        connections.as_array().is_some_and(Vec::is_empty)
    })
    .await;
    assert!(ours.contact(theirs.node_id()).await.unwrap().is_none());
    assert_eq!(theirs.faults(), [""; 0]);
    shutdown(&runtime, &[&ours]).await;
}

async fn caller_authenticates_the_connection<R: Rt>(runtime: R, polykey: Polykey) {
    let steps = json!(["read", success(), member("mainnet"), "read", success()]);
    let theirs = peer_with(&runtime, &polykey, steps).await;
    let ours = node(&runtime, true).await;
    // Each connection separately.
    for _ in 0..2 {
        dial(&runtime, &ours, &theirs).await;
        let ping = ours.ping_node(theirs.node_id(), RequestOptions::default());
        soon(&runtime, "we ping", ping).await.unwrap();
        assert!(ours.contact(theirs.node_id()).await.unwrap().is_some());
        ours.disconnect(theirs.node_id()).await.unwrap();
        until(&runtime, "they see the end", async || {
            let connections = ask(&runtime, &theirs, "connections", json!({})).await;
            connections.as_array().is_some_and(Vec::is_empty)
        })
        .await;
    }
    assert_eq!(theirs.faults(), [""; 0]);
    shutdown(&runtime, &[&ours]).await;
}

async fn caller_refuses_what_is_not_its_network<R: Rt>(runtime: R, polykey: Polykey) {
    for (steps, what) in [
        (json!(["read", success(), member("testnet"), "read"]), "another network"),
        (json!(["read", success(), none(), "read"]), "no network"),
        (json!(["read", "read"]), "silence"),
    ] {
        let theirs = peer_with(&runtime, &polykey, steps).await;
        let ours = node(&runtime, true).await;
        assert_refused(&runtime, &ours, &theirs, what).await;
        shutdown(&runtime, &[&ours]).await;
    }
    // Out of order: a fault.
    let theirs = peer_with(&runtime, &polykey, json!(["read", member("mainnet"), "read"])).await;
    let ours = node(&runtime, true).await;
    let dial = ours.connect(theirs.node_id(), theirs.seed().address, RequestOptions::default());
    let result = soon(&runtime, "the dial ends", dial).await;
    assert!(result.is_err(), "{result:?}");
    assert!(connections_with(&ours, theirs.node_id()).await.is_empty());
    shutdown(&runtime, &[&ours]).await;
}

async fn responder_authenticates_the_connection_also_twice<R: Rt>(runtime: R, polykey: Polykey) {
    let (theirs, ours) = (polykey_node(&runtime, &polykey).await, node(&runtime, true).await);
    reach(&runtime, &theirs, &ours).await;
    let steps = json!([member("mainnet"), "read", "read", success(), "read"]);
    for turn in 0..2 {
        let call = json!({ "via": ours.own_id(), "steps": steps });
        let read = ask(&runtime, &theirs, "authenticate", call).await;
        let read = read.as_array().unwrap();
        let types: Vec<_> = read.iter().map(|message| &message["type"]).collect();
        assert_eq!(types, ["success", "NodesAuthenticateConnectionMessageBasicPublic", "success"]);
        assert_eq!(read[1]["networkId"], "mainnet", "{turn}");
        let closest = json!({ "via": ours.own_id(), "nodeId": theirs.node_id() });
        ask(&runtime, &theirs, "closest", closest).await;
    }
    until(&runtime, "it is a contact", async || {
        ours.contact(theirs.node_id()).await.unwrap().is_some()
    })
    .await;
    assert_eq!(theirs.faults(), [""; 0]);
    shutdown(&runtime, &[&ours]).await;
}

async fn responder_refuses_what_is_not_its_network<R: Rt>(runtime: R, polykey: Polykey) {
    for (steps, what) in [
        (json!([member("testnet"), "read"]), "another network"),
        (json!([none(), "read"]), "no network"),
        (json!([success(), "read"]), "out of order"),
    ] {
        let (theirs, ours) = (polykey_node(&runtime, &polykey).await, node(&runtime, true).await);
        reach(&runtime, &theirs, &ours).await;
        let call = json!({ "via": ours.own_id(), "steps": steps });
        let error = ask_expecting_error(&runtime, &theirs, "authenticate", call).await;
        println!("{what}: {error}");
        until(&runtime, "the connection is closed", async || {
            let connections = ask(&runtime, &theirs, "connections", json!({})).await;
            connections.as_array().is_some_and(Vec::is_empty)
        })
        .await;
        assert!(ours.contact(theirs.node_id()).await.unwrap().is_none(), "{what}");
        shutdown(&runtime, &[&ours]).await;
    }
}

async fn responder_that_requires_its_network_answers_nothing_else_and_closes_a_silent_connection<
    R: Rt,
>(
    runtime: R,
    polykey: Polykey,
) {
    let (theirs, ours) = (polykey_node(&runtime, &polykey).await, node(&runtime, true).await);
    reach(&runtime, &theirs, &ours).await;
    let closest = json!({ "via": ours.own_id(), "nodeId": theirs.node_id() });
    let denied = ask_expecting_error(&runtime, &theirs, "closest", closest).await;
    assert!(denied.find("ErrorNodeConnectionManagerRPCDenied").is_some(), "{denied}");
    until(&runtime, "the connection is closed", async || {
        let connections = ask(&runtime, &theirs, "connections", json!({})).await;
        connections.as_array().is_some_and(Vec::is_empty)
    })
    .await;
    assert_eq!(theirs.faults(), [""; 0]);
    shutdown(&runtime, &[&ours]).await;
}
