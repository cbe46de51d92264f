//! Two nodes, one of each kind: they connect, call each other, and agree on their connections.

use std::time::{Duration, Instant};

use pk_driver::Node;
use pk_interop::{Peer, Polykey};
use pk_proto::{ClosestNodesQuery, NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{connect, shutdown, start};
use pk_tests::wait::{all, seen_within, soon, try_within, until, within};
use serde_json::{Value, json};
use smol::future::zip;

use crate::kit::{
    PATIENCE, ask, ask_expecting_error, dial, dialed, list, local_connections, polykey_connections,
    polykey_node, reached, target, text,
};

cases!(
    local_node_dials_a_polykey_node,
    polykey_node_dials_the_local_node,
    both_ends_agree_on_connection_ids_and_the_primary,
    cancelled_dial_leaves_no_connection_at_one_end_only,
    both_nodes_return_their_contacts,
    five_hundred_calls_each_way_succeed,
    invalid_call_returns_an_error_of_the_reference,
);

const BOTH: ClosestNodesQuery = ClosestNodesQuery { known: true, connected: true };

/// Both nodes ping each other over existing connections, and list the same connections.
async fn ping_both_ways<R: Rt>(runtime: &R, ours: &Node<R>, theirs: &Peer) {
    let pong =
        soon(runtime, "we ping", ours.ping_node(theirs.node_id(), RequestOptions::default()))
            .await
            .unwrap();
    assert_eq!(pong.address, theirs.seed().address);
    let found = ask(runtime, theirs, "ping", json!({ "nodeId": ours.own_id() })).await;
    assert!(!found.is_null(), "they ping");
    let (us, them) = (theirs.node_id(), ours.own_id());
    assert_eq!(local_connections(ours, us).await, polykey_connections(runtime, theirs, them).await);
}

async fn local_node_dials_a_polykey_node<R: Rt>(runtime: R, polykey: Polykey) {
    let (theirs, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    let connection = dial(&runtime, &ours, &theirs).await;
    assert_eq!((connection.node, &connection.address), (theirs.node_id(), &theirs.seed().address));
    ping_both_ways(&runtime, &ours, &theirs).await;
    // The Polykey node stores the address that the local node listens on.
    until(&runtime, "they know us", async || {
        let graph = ask(&runtime, &theirs, "graph", json!({})).await;
        let contact = graph.get(ours.own_id().to_string());
        contact.is_some_and(|contact| {
            contact.get(format!("127.0.0.1-{}", reached(&ours).port())).is_some()
        })
    })
    .await;
    // A clean close by the local node is one for the Polykey node.
    ours.disconnect(theirs.node_id()).await.unwrap();
    until(&runtime, "they see the end", async || {
        polykey_connections(&runtime, &theirs, ours.own_id()).await.is_empty()
    })
    .await;
    assert_eq!(theirs.faults(), [""; 0]);
    shutdown(&runtime, &[&ours]).await;
}

async fn polykey_node_dials_the_local_node<R: Rt>(runtime: R, polykey: Polykey) {
    let (theirs, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dialed(&runtime, &theirs, &ours).await;
    until(&runtime, "we have it", async || {
        !local_connections(&ours, theirs.node_id()).await.is_empty()
    })
    .await;
    ping_both_ways(&runtime, &ours, &theirs).await;
    let contact = ours.contact(theirs.node_id()).await.unwrap().expect("it is in our graph");
    assert_eq!(
        contact.iter().map(|(address, _)| address.clone()).collect::<Vec<_>>(),
        [theirs.seed().address]
    );
    // Without a connection, the contact in the graph is used.
    let there = ask(&runtime, &theirs, "pingAddress", target(ours.own_id(), reached(&ours))).await;
    assert_eq!(there, Value::Bool(true));
    // A clean close by the Polykey node is one for the local node.
    ask(&runtime, &theirs, "disconnect", json!({ "nodeId": ours.own_id() })).await;
    until(&runtime, "we see the end", async || {
        local_connections(&ours, theirs.node_id()).await.is_empty()
    })
    .await;
    shutdown(&runtime, &[&ours]).await;
}

async fn both_ends_agree_on_connection_ids_and_the_primary<R: Rt>(runtime: R, polykey: Polykey) {
    let (theirs, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    let (us, them) = (ours.own_id(), theirs.node_id());
    let mut several = 0;
    for _ in 0..10 {
        zip(dial(&runtime, &ours, &theirs), dialed(&runtime, &theirs, &ours)).await;
        // A third connection, so that there is a choice of the primary.
        dialed(&runtime, &theirs, &ours).await;
        let mut connections = Vec::new();
        until(&runtime, "both have the same connections", async || {
            connections = local_connections(&ours, them).await;
            !connections.is_empty()
                && connections == polykey_connections(&runtime, &theirs, us).await
        })
        .await;
        let smallest = connections.iter().map(|(name, _)| name).min().cloned();
        let primary: Vec<_> =
            connections.iter().filter(|(_, primary)| *primary).map(|(name, _)| name).collect();
        assert_eq!(primary, smallest.iter().collect::<Vec<_>>(), "{connections:?}");
        several += usize::from(connections.len() >= 2);
        // The primary ends, and both replace it by the same connection; no request fails.
        zip(
            async {
                within(&runtime, PATIENCE, "ping", ours.ping_node(them, RequestOptions::default()))
                    .await
                    .unwrap()
            },
            ask(&runtime, &theirs, "ping", json!({ "nodeId": us })),
        )
        .await;
        ours.disconnect(them).await.unwrap();
        until(&runtime, "the end", async || {
            polykey_connections(&runtime, &theirs, us).await.is_empty()
        })
        .await;
    }
    println!("{}: {several} of 10 times several connections at once", R::NAME);
    assert!(several >= 5, "{several}");
    shutdown(&runtime, &[&ours]).await;
}

/// The reference can treat a connection that ends at once as live, and would send calls over it.
async fn cancelled_dial_leaves_no_connection_at_one_end_only<R: Rt>(runtime: R, polykey: Polykey) {
    let (theirs, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    let (us, them) = (ours.own_id(), theirs.node_id());
    let (mut called_off, mut slowest) = (0, Duration::ZERO);
    for n in 0..60 {
        let patience = Duration::from_micros(500 * n);
        let connect = ours.connect(them, theirs.seed().address, RequestOptions::default());
        called_off += usize::from(try_within(&runtime, patience, connect).await.is_none());
        // The reference can treat a connection that ends while it verifies the certificate as live,
        // until its transport has received nothing for 30 s.
        let begun = Instant::now();
        seen_within(&runtime, PATIENCE, "both have the same connections", async || {
            let before = local_connections(&ours, them).await;
            let theirs = polykey_connections(&runtime, &theirs, us).await;
            // The local node has counted its dials meanwhile; if none is in progress, nothing can
            // change.
            let settled = ours.driver_metrics().transport.dials_pending == 0;
            (settled && before == theirs && local_connections(&ours, them).await == theirs)
                .then_some(())
        })
        .await;
        slowest = slowest.max(begun.elapsed());
        // Start without any connection, whatever the outcome of this dial.
        until(&runtime, "the end", async || {
            ours.disconnect(them).await.unwrap();
            ask(&runtime, &theirs, "disconnect", json!({ "nodeId": us })).await;
            local_connections(&ours, them).await.is_empty()
                && polykey_connections(&runtime, &theirs, us).await.is_empty()
        })
        .await;
    }
    println!(
        "{}: {called_off} of 60 dials were cancelled, the slowest agreement took {slowest:?}",
        R::NAME
    );
    assert!((5..60).contains(&called_off), "{called_off}");
    shutdown(&runtime, &[&ours]).await;
}

async fn both_nodes_return_their_contacts<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours, other) = (
        polykey_node(&runtime, &polykey).await,
        start(&runtime, 1).await,
        start(&runtime, 2).await,
    );
    dial(&runtime, &ours, &peer).await;
    dial(&runtime, &other, &peer).await;
    // What the Polykey node returns about the other node.
    let told =
        ours.query_closest_nodes(peer.node_id(), other.own_id(), BOTH, RequestOptions::default());
    let told = soon(&runtime, "ask for the closest", told).await.unwrap();
    let (node, contact) = told.known.first().expect("it knows the other");
    assert_eq!(*node, other.own_id());
    let at: Vec<_> =
        contact.iter().map(|(address, data)| (address.to_string(), data.scopes.global)).collect();
    assert_eq!(at, [(reached(&other).to_string(), true)]);
    let active = told
        .connected
        .iter()
        .find(|active| active.node == other.own_id())
        .expect("it is connected to the other");
    let theirs_of_other = local_connections(&other, peer.node_id()).await;
    let names: Vec<_> = active
        .connections
        .iter()
        .map(|one| String::from_utf8_lossy(&one.shared_id).into_owned())
        .collect();
    assert_eq!(names, theirs_of_other.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    assert!(active.connections.iter().all(|one| one.primary));

    // What the local node returns about the other node.
    connect(&runtime, &ours, &other).await;
    let with = json!({ "nodeId": other.own_id(), "via": ours.own_id() });
    let local = ask(&runtime, &peer, "closest", with.clone()).await;
    let first = list(&local).first().expect("we know the other");
    assert_eq!(text(first, "nodeIdEncoded"), other.own_id().to_string());
    let contact = first.get("nodeContact").and_then(Value::as_object).expect("it has a contact");
    let (address, data) = contact.iter().next().expect("it has an address");
    assert_eq!(*address, format!("127.0.0.1-{}", reached(&other).port()));
    assert_eq!((text(data, "mode"), data.get("scopes")), ("direct", Some(&json!(["global"]))));
    assert!(data.get("connectedTime").is_some_and(Value::is_number), "{data}");
    let active = ask(&runtime, &peer, "active", with).await;
    let ids: Vec<_> = list(&active).iter().map(|one| text(one, "nodeId").to_owned()).collect();
    assert_eq!(ids.first(), Some(&other.own_id().to_string()), "{active}");
    let connection = list(&active)
        .first()
        .and_then(|one| one.get("connections")?.as_object()?.values().next().cloned());
    let connection = connection.expect("it is connected");
    assert_eq!(
        (text(&connection, "host"), connection.get("port")),
        ("127.0.0.1", Some(&json!(reached(&other).port())))
    );
    assert_eq!(connection.get("primary"), Some(&Value::Bool(true)));
    assert_eq!(peer.faults(), [""; 0]);
    shutdown(&runtime, &[&ours, &other]).await;
}

async fn five_hundred_calls_each_way_succeed<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dial(&runtime, &ours, &peer).await;
    let calls = 500;
    let us = async {
        for round in 0..calls / 10 {
            let ask = |n: u64| {
                let query = ClosestNodesQuery {
                    known: n.is_multiple_of(2),
                    connected: !n.is_multiple_of(2),
                };
                ours.query_closest_nodes(
                    peer.node_id(),
                    NodeId::from_bytes([round as u8; 32]),
                    query,
                    RequestOptions::default(),
                )
            };
            let asked = all((0..10).map(ask));
            for answer in within(&runtime, PATIENCE, "ten calls of ours", asked).await {
                answer.unwrap_or_else(|error| panic!("a call of ours fails: {error}"));
            }
        }
    };
    let them = async {
        let with =
            json!({ "nodeId": ours.own_id(), "via": ours.own_id(), "times": calls, "width": 10 });
        let done =
            within(&runtime, Duration::from_secs(200), "their calls", peer.ask("repeat", with))
                .await
                .unwrap();
        assert_eq!(done, json!({ "failures": [] }));
    };
    zip(us, them).await;
    assert_eq!(ours.connections().await.unwrap().len(), 1, "over the one connection");
    println!("{}: {calls} calls each way, none failed", R::NAME);
    shutdown(&runtime, &[&ours]).await;
}

async fn invalid_call_returns_an_error_of_the_reference<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dial(&runtime, &ours, &peer).await;
    let via = ours.own_id();
    for id in ["", "v", "not a node id", "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte"] {
        for what in ["closest", "active"] {
            let error =
                ask_expecting_error(&runtime, &peer, what, json!({ "nodeId": id, "via": via }))
                    .await;
            let found = error.find("ErrorValidation").unwrap_or_else(|| panic!("{error}"));
            assert_eq!(found.message, "Node ID must be multibase base32hex encoded public-keys");
        }
    }
    // An unknown method: as between two nodes of the reference, a reset with code 1.
    for (what, method) in [
        ("unary", "nodesClaimNetworkVerify"),
        ("unary", "no such method"),
        ("stream", "no such stream"),
    ] {
        let with = json!({ "via": via, "method": method, "params": {} });
        let error = ask_expecting_error(&runtime, &peer, what, with).await;
        println!("{}: {method}: {error}", R::NAME);
        assert_eq!(
            (error.name.as_str(), error.causes.len()),
            ("ErrorRPCHandlerFailed", 0),
            "{error}"
        );
    }
    // None of it counts as a fault of the Polykey node.
    assert_eq!(ours.connections().await.unwrap().len(), 1);
    ping_both_ways(&runtime, &ours, &peer).await;
    shutdown(&runtime, &[&ours]).await;
}
