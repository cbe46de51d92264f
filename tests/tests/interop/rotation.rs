//! Nodes that renew their key are found under their old ids, also by nodes of the other kind.

use pk_interop::Polykey;
use pk_proto::{FindEnd, FindNodeOptions, NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{shutdown, start};
use pk_tests::wait::{soon, until, within};
use serde_json::json;

use crate::kit::{
    PATIENCE, ask, dial, dialed, introduce, local_connections, polykey_connections, polykey_node,
    reached, target, text,
};

cases!(
    renewed_polykey_node_is_found_under_its_old_ids,
    renewed_local_node_is_found_under_its_old_ids
);

async fn renewed_polykey_node_is_found_under_its_old_ids<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dial(&runtime, &ours, &peer).await;
    let mut ids: Vec<NodeId> = vec![peer.node_id()];
    for _ in 0..2 {
        let renewed = ask(&runtime, &peer, "renew", json!({})).await;
        assert_eq!(text(&renewed, "old"), ids.last().unwrap().to_string());
        ids.push(text(&renewed, "new").parse().unwrap());
        let newest = *ids.last().unwrap();
        for id in &ids {
            for known in &ids {
                ours.disconnect(*known).await.unwrap();
            }
            until(&runtime, "the end", async || ours.connections().await.unwrap().is_empty()).await;
            let connected = soon(
                &runtime,
                "connect",
                ours.connect(*id, peer.seed().address, RequestOptions::default()),
            )
            .await;
            assert_eq!(connected.unwrap().node, newest, "asked for {id}");
            let pong = soon(&runtime, "ping", ours.ping_node(*id, RequestOptions::default()))
                .await
                .unwrap();
            assert_eq!(pong.address, peer.seed().address);
        }
        // The Polykey node dials with the chain.
        ours.disconnect(newest).await.unwrap();
        until(&runtime, "the end", async || ours.connections().await.unwrap().is_empty()).await;
        dialed(&runtime, &peer, &ours).await;
        until(&runtime, "we have it", async || !local_connections(&ours, newest).await.is_empty())
            .await;
    }
    shutdown(&runtime, &[&ours]).await;
}

async fn renewed_local_node_is_found_under_its_old_ids<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, between, ours) = (
        polykey_node(&runtime, &polykey).await,
        polykey_node(&runtime, &polykey).await,
        start(&runtime, 1).await,
    );
    dial(&runtime, &ours, &peer).await;
    let mut ids = vec![ours.own_id()];
    for _ in 0..2 {
        let renewed = within(&runtime, PATIENCE, "renew", ours.renew()).await.unwrap();
        assert_eq!(renewed.old, *ids.last().unwrap());
        ids.push(renewed.new);
        for id in &ids {
            for known in &ids {
                ask(&runtime, &peer, "disconnect", json!({ "nodeId": known })).await;
            }
            let connected = ask(&runtime, &peer, "connect", target(*id, reached(&ours))).await;
            assert_eq!(text(&connected, "nodeId"), renewed.new.to_string(), "asked for {id}");
            // It stores the connection under the requested id.
            assert_eq!(polykey_connections(&runtime, &peer, *id).await.len(), 1);
            let pong = ask(&runtime, &peer, "ping", json!({ "nodeId": id })).await;
            assert!(!pong.is_null());
        }
        // The local node dials with the chain, and is found under the new id through the Polykey
        // node.
        dial(&runtime, &ours, &between).await;
        introduce(&runtime, &peer, &between).await;
        let other = start(&runtime, 50).await;
        dial(&runtime, &other, &between).await;
        let found = within(
            &runtime,
            PATIENCE,
            "search",
            other.find_node(renewed.new, FindNodeOptions::default()),
        )
        .await
        .unwrap();
        assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
        shutdown(&runtime, &[&other]).await;
    }
    shutdown(&runtime, &[&ours]).await;
}
