//! Hole punching: the local node as source, relay and target with two Polykey nodes, also if the
//! relay receives IPv4 on an IPv6 socket.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use pk_driver::Node;
use pk_interop::{Peer, Polykey, Settings};
use pk_proto::{ContactMode, FindEnd, FindNodeOptions, Strategies};
use pk_tests::Rt;
use pk_tests::node::{connect, key, shutdown, start, start_with};
use pk_tests::wait::{until, within};
use serde_json::{Value, json};

use crate::kit::{
    PATIENCE, ask, ask_expecting_error, dial, dialed, introduce, list, local_connections,
    polykey_node, start_polykey, text,
};

cases!(
    local_node_connects_through_a_relay_as_the_source,
    local_node_relays_between_polykey_nodes,
    polykey_node_signals_the_local_node_through_a_relay,
    dual_stack_polykey_relay_connects_nodes,
    dual_stack_local_relay_connects_nodes,
    refused_signal_returns_an_error_of_the_reference,
);

/// A Polykey node on all addresses of both families.
async fn dual_stack_polykey_node<R: Rt>(runtime: &R, polykey: &Polykey) -> Peer {
    start_polykey(
        runtime,
        polykey,
        Settings { host: IpAddr::V6(Ipv6Addr::UNSPECIFIED), ..Settings::default() },
    )
    .await
}

/// The local node connects to `peer` by signalling through its relay.
async fn find_by_signalling<R: Rt>(runtime: &R, ours: &Node<R>, peer: &Peer) {
    let only = Strategies { direct: false, signal: true, mdns: false, relay: false };
    let find = FindNodeOptions { strategies: Some(only), ..FindNodeOptions::default() };
    let found =
        within(runtime, PATIENCE, "we search", ours.find_node(peer.node_id(), find)).await.unwrap();
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    let (address, data) = found.found.expect("it is connected");
    assert_eq!((address.to_string(), data.mode), (peer.reached().to_string(), ContactMode::Signal));
}

async fn local_node_connects_through_a_relay_as_the_source<R: Rt>(runtime: R, polykey: Polykey) {
    let (relay, peer, ours) = (
        polykey_node(&runtime, &polykey).await,
        polykey_node(&runtime, &polykey).await,
        start(&runtime, 1).await,
    );
    introduce(&runtime, &peer, &relay).await;
    dial(&runtime, &ours, &relay).await;
    find_by_signalling(&runtime, &ours, &peer).await;
    assert_eq!((relay.faults(), peer.faults()), (vec![], vec![]));
    shutdown(&runtime, &[&ours]).await;
}

async fn local_node_relays_between_polykey_nodes<R: Rt>(runtime: R, polykey: Polykey) {
    let (source, peer, ours) = (
        polykey_node(&runtime, &polykey).await,
        polykey_node(&runtime, &polykey).await,
        start(&runtime, 1).await,
    );
    dialed(&runtime, &source, &ours).await;
    dial(&runtime, &ours, &peer).await;
    let with = json!({ "nodeId": peer.node_id(), "relay": ours.own_id() });
    let connected = ask(&runtime, &source, "signal", with).await;
    assert_eq!(
        (text(&connected, "nodeId"), connected.get("port")),
        (&*peer.node_id().to_string(), Some(&json!(peer.addr().port())))
    );
    // The target has verified the signatures: otherwise it would have thrown.
    assert_eq!((source.faults(), peer.faults()), (vec![], vec![]));
    let metrics = ours.metrics().await.unwrap();
    println!("{}: {metrics:?}", R::NAME);
    shutdown(&runtime, &[&ours]).await;
}

/// The Polykey node `source` connects to the local node by signalling through `relay`.
async fn polykey_connects_by_signalling<R: Rt>(
    runtime: &R,
    source: &Peer,
    relay: Value,
    ours: &Node<R>,
) {
    let before = ours.driver_metrics().transport.punches;
    let with = json!({ "nodeId": ours.own_id(), "relay": relay });
    let connected = ask(runtime, source, "signal", with).await;
    assert_eq!(text(&connected, "nodeId"), ours.own_id().to_string());
    // The relay does not wait for the local node, and the source does not need its datagrams here;
    // they are sent nevertheless.
    until(runtime, "we punch", async || ours.driver_metrics().transport.punches > before).await;
    until(runtime, "we have it", async || {
        !local_connections(ours, source.node_id()).await.is_empty()
    })
    .await;
}

async fn polykey_node_signals_the_local_node_through_a_relay<R: Rt>(runtime: R, polykey: Polykey) {
    let (source, relay, ours) = (
        polykey_node(&runtime, &polykey).await,
        polykey_node(&runtime, &polykey).await,
        start(&runtime, 1).await,
    );
    introduce(&runtime, &source, &relay).await;
    dial(&runtime, &ours, &relay).await;
    polykey_connects_by_signalling(&runtime, &source, json!(relay.node_id()), &ours).await;
    shutdown(&runtime, &[&ours]).await;
}

async fn dual_stack_polykey_relay_connects_nodes<R: Rt>(runtime: R, polykey: Polykey) {
    let (relay, peer, ours) = (
        dual_stack_polykey_node(&runtime, &polykey).await,
        polykey_node(&runtime, &polykey).await,
        start(&runtime, 1).await,
    );
    introduce(&runtime, &peer, &relay).await;
    dial(&runtime, &ours, &relay).await;
    // It reports addresses as its socket sees them.
    let active = ask(&runtime, &relay, "connections", json!({})).await;
    println!("{}: {active}", R::NAME);
    find_by_signalling(&runtime, &ours, &peer).await;
    // And in the other direction, without a connection.
    ours.disconnect(peer.node_id()).await.unwrap();
    until(&runtime, "the end", async || local_connections(&ours, peer.node_id()).await.is_empty())
        .await;
    polykey_connects_by_signalling(&runtime, &peer, json!(relay.node_id()), &ours).await;
    shutdown(&runtime, &[&ours]).await;
}

async fn dual_stack_local_relay_connects_nodes<R: Rt>(runtime: R, polykey: Polykey) {
    let (source, peer) =
        (polykey_node(&runtime, &polykey).await, polykey_node(&runtime, &polykey).await);
    let relay = start_with(&runtime, 1, |config| {
        config.listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    })
    .await;
    dialed(&runtime, &source, &relay).await;
    dialed(&runtime, &peer, &relay).await;
    let with = json!({ "nodeId": peer.node_id(), "relay": relay.own_id() });
    let connected = ask(&runtime, &source, "signal", with).await;
    assert_eq!(text(&connected, "nodeId"), peer.node_id().to_string());
    assert_eq!((source.faults(), peer.faults()), (vec![], vec![]));
    // From a local node through the local relay, in two dialects.
    let ours = start(&runtime, 2).await;
    pk_tests::wait::soon(
        &runtime,
        "connect",
        ours.connect(
            relay.own_id(),
            pk_proto::NodeAddress::from_socket(crate::kit::reached(&relay)),
            pk_proto::RequestOptions::default(),
        ),
    )
    .await
    .unwrap();
    polykey_connects_by_signalling(&runtime, &source, json!(relay.own_id()), &ours).await;
    shutdown(&runtime, &[&relay, &ours]).await;
}

async fn refused_signal_returns_an_error_of_the_reference<R: Rt>(runtime: R, polykey: Polykey) {
    let (source, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dialed(&runtime, &source, &ours).await;
    let stranger = key(77).node_id();
    let with = json!({ "nodeId": stranger, "relay": ours.own_id() });
    let error = ask_expecting_error(&runtime, &source, "signal", with).await;
    assert!(error.find("ErrorNodeConnectionManagerConnectionNotFound").is_some(), "{error}");
    // A signature by another node, and none at all.
    let other = start(&runtime, 2).await;
    connect(&runtime, &other, &ours).await;
    let call = |signature: &str| {
        let params = json!({ "targetNodeIdEncoded": other.own_id(), "signature": signature });
        json!({ "via": ours.own_id(), "method": "nodesConnectionSignalInitial", "params": params })
    };
    let forged = "A".repeat(86);
    for signature in ["", &forged] {
        let error = ask_expecting_error(&runtime, &source, "unary", call(signature)).await;
        assert!(
            error.find("ErrorNodesConnectionSignalRelayVerificationFailed").is_some(),
            "{signature:?}: {error}"
        );
    }
    // More than its share: 20 at once. The outcome of the others is not checked.
    let signals = (0..40)
        .map(|_| source.ask("signal", json!({ "nodeId": other.own_id(), "relay": ours.own_id() })));
    let results = within(&runtime, PATIENCE, "forty signals", pk_tests::wait::all(signals)).await;
    let limited = results.iter().filter(|result| {
        matches!(result, Err(pk_interop::PeerError::Threw(error))
            if error.find("ErrorNodeConnectionManagerRequestRateExceeded").is_some())
    });
    let limited = limited.count();
    println!("{}: {limited} of 40 signals were too many", R::NAME);
    // The refused requests above counted too; on a slow machine the share grows meanwhile.
    assert!((1..=22).contains(&limited), "{limited}");
    let connections = ask(&runtime, &source, "connections", json!({})).await;
    assert!(
        list(&connections).iter().any(|one| text(one, "nodeId") == ours.own_id().to_string()),
        "{connections}"
    );
    shutdown(&runtime, &[&ours, &other]).await;
}
