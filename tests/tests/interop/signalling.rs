//! Hole punching: our node as source, relay and target beside two of theirs, also where the relay
//! sees IPv4 through an IPv6 socket.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use pk_driver::Node;
use pk_interop::{Peer, Polykey, Settings};
use pk_proto::{ContactMode, FindEnd, FindNodeOptions, Strategies};
use pk_tests::Rt;
use pk_tests::node::{connect, key, shutdown, start, start_with};
use pk_tests::wait::{until, within};
use serde_json::{Value, json};

use crate::kit::{
    PATIENCE, ask, ask_in_vain, dial, dialed, introduce, list, our_connections, start_theirs, text,
    theirs,
};

cases!(
    we_are_the_source,
    we_are_the_relay,
    we_are_the_target,
    a_dual_stack_relay_of_theirs,
    a_dual_stack_relay_of_ours,
    what_we_do_not_relay_is_refused_in_their_words,
);

/// Their node on all addresses of both families.
async fn dual<R: Rt>(runtime: &R, polykey: &Polykey) -> Peer {
    start_theirs(
        runtime,
        polykey,
        Settings { host: IpAddr::V6(Ipv6Addr::UNSPECIFIED), ..Settings::default() },
    )
    .await
}

/// Our node has `relay` signal `peer`, and connects.
async fn we_signal<R: Rt>(runtime: &R, ours: &Node<R>, peer: &Peer) {
    let only = Strategies { direct: false, signal: true, mdns: false };
    let find = FindNodeOptions { strategies: Some(only), ..FindNodeOptions::default() };
    let found =
        within(runtime, PATIENCE, "we search", ours.find_node(peer.node_id(), find)).await.unwrap();
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    let (address, data) = found.found.expect("it is connected");
    assert_eq!((address.to_string(), data.mode), (peer.reached().to_string(), ContactMode::Signal));
}

async fn we_are_the_source<R: Rt>(runtime: R, polykey: Polykey) {
    let (relay, peer, ours) = (
        theirs(&runtime, &polykey).await,
        theirs(&runtime, &polykey).await,
        start(&runtime, 1).await,
    );
    introduce(&runtime, &peer, &relay).await;
    dial(&runtime, &ours, &relay).await;
    we_signal(&runtime, &ours, &peer).await;
    assert_eq!((relay.faults(), peer.faults()), (vec![], vec![]));
    shutdown(&runtime, &[&ours]).await;
}

async fn we_are_the_relay<R: Rt>(runtime: R, polykey: Polykey) {
    let (source, peer, ours) = (
        theirs(&runtime, &polykey).await,
        theirs(&runtime, &polykey).await,
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
    // The target has verified what we signed: else it would have thrown.
    assert_eq!((source.faults(), peer.faults()), (vec![], vec![]));
    let metrics = ours.metrics().await.unwrap();
    println!("{}: {metrics:?}", R::NAME);
    shutdown(&runtime, &[&ours]).await;
}

/// Their `source` has `relay` signal our node, and connects.
async fn they_signal<R: Rt>(runtime: &R, source: &Peer, relay: Value, ours: &Node<R>) {
    let before = ours.driver_metrics().punches;
    let with = json!({ "nodeId": ours.own_id(), "relay": relay });
    let connected = ask(runtime, source, "signal", with).await;
    assert_eq!(text(&connected, "nodeId"), ours.own_id().to_string());
    // The relay does not wait for us, and the source does not need our datagrams here; they come
    // nevertheless.
    until(runtime, "we punch", async || ours.driver_metrics().punches > before).await;
    until(runtime, "we have it", async || {
        !our_connections(ours, source.node_id()).await.is_empty()
    })
    .await;
}

async fn we_are_the_target<R: Rt>(runtime: R, polykey: Polykey) {
    let (source, relay, ours) = (
        theirs(&runtime, &polykey).await,
        theirs(&runtime, &polykey).await,
        start(&runtime, 1).await,
    );
    introduce(&runtime, &source, &relay).await;
    dial(&runtime, &ours, &relay).await;
    they_signal(&runtime, &source, json!(relay.node_id()), &ours).await;
    shutdown(&runtime, &[&ours]).await;
}

async fn a_dual_stack_relay_of_theirs<R: Rt>(runtime: R, polykey: Polykey) {
    let (relay, peer, ours) = (
        dual(&runtime, &polykey).await,
        theirs(&runtime, &polykey).await,
        start(&runtime, 1).await,
    );
    introduce(&runtime, &peer, &relay).await;
    dial(&runtime, &ours, &relay).await;
    // It reports addresses as its socket sees them.
    let active = ask(&runtime, &relay, "connections", json!({})).await;
    println!("{}: {active}", R::NAME);
    we_signal(&runtime, &ours, &peer).await;
    // And the other way round, from the start.
    ours.disconnect(peer.node_id()).await.unwrap();
    until(&runtime, "the end", async || our_connections(&ours, peer.node_id()).await.is_empty())
        .await;
    they_signal(&runtime, &peer, json!(relay.node_id()), &ours).await;
    shutdown(&runtime, &[&ours]).await;
}

async fn a_dual_stack_relay_of_ours<R: Rt>(runtime: R, polykey: Polykey) {
    let (source, peer) = (theirs(&runtime, &polykey).await, theirs(&runtime, &polykey).await);
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
    // Through ours to ours, in two dialects.
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
    they_signal(&runtime, &source, json!(relay.own_id()), &ours).await;
    shutdown(&runtime, &[&relay, &ours]).await;
}

async fn what_we_do_not_relay_is_refused_in_their_words<R: Rt>(runtime: R, polykey: Polykey) {
    let (source, ours) = (theirs(&runtime, &polykey).await, start(&runtime, 1).await);
    dialed(&runtime, &source, &ours).await;
    let stranger = key(77).node_id();
    let with = json!({ "nodeId": stranger, "relay": ours.own_id() });
    let error = ask_in_vain(&runtime, &source, "signal", with).await;
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
        let error = ask_in_vain(&runtime, &source, "unary", call(signature)).await;
        assert!(
            error.find("ErrorNodesConnectionSignalRelayVerificationFailed").is_some(),
            "{signature:?}: {error}"
        );
    }
    // More than its share: 20 at once. What becomes of the others is another matter.
    let signals = (0..40)
        .map(|_| source.ask("signal", json!({ "nodeId": other.own_id(), "relay": ours.own_id() })));
    let results = within(&runtime, PATIENCE, "forty signals", pk_tests::wait::all(signals)).await;
    let limited = results.iter().filter(|result| {
        matches!(result, Err(pk_interop::PeerError::Threw(error))
            if error.find("ErrorNodeConnectionManagerRequestRateExceeded").is_some())
    });
    let limited = limited.count();
    println!("{}: {limited} of 40 signals were too many", R::NAME);
    // Those that were refused above counted too; on a slow machine the share grows meanwhile.
    assert!((1..=22).contains(&limited), "{limited}");
    let connections = ask(&runtime, &source, "connections", json!({})).await;
    assert!(
        list(&connections).iter().any(|one| text(one, "nodeId") == ours.own_id().to_string()),
        "{connections}"
    );
    shutdown(&runtime, &[&ours, &other]).await;
}
