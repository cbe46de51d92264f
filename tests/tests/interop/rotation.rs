//! Nodes that change their key are found under their old ids, by the other kind too.

use pk_interop::Polykey;
use pk_proto::{FindEnd, FindNodeOptions, NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{shutdown, start};
use pk_tests::wait::{soon, until, within};
use serde_json::json;

use crate::kit::{
    PATIENCE, ask, dial, dialed, introduce, our_connections, reached, target, text,
    their_connections, theirs,
};

cases!(they_are_found_under_their_old_ids, we_are_found_under_our_old_ids);

async fn they_are_found_under_their_old_ids<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (theirs(&runtime, &polykey).await, start(&runtime, 1).await);
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
        // They dial us with the chain.
        ours.disconnect(newest).await.unwrap();
        until(&runtime, "the end", async || ours.connections().await.unwrap().is_empty()).await;
        dialed(&runtime, &peer, &ours).await;
        until(&runtime, "we have it", async || !our_connections(&ours, newest).await.is_empty())
            .await;
    }
    shutdown(&runtime, &[&ours]).await;
}

async fn we_are_found_under_our_old_ids<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, between, ours) = (
        theirs(&runtime, &polykey).await,
        theirs(&runtime, &polykey).await,
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
            // It files the connection under the id it asked for.
            assert_eq!(their_connections(&runtime, &peer, *id).await.len(), 1);
            let pong = ask(&runtime, &peer, "ping", json!({ "nodeId": id })).await;
            assert!(!pong.is_null());
        }
        // We dial them with the chain, and are found through them under the new id.
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
