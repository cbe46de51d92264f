//! A network of both kinds.

use std::time::{Duration, Instant};

use pk_driver::Node;
use pk_interop::{Peer, Polykey};
use pk_proto::{FindEnd, FindNodeOptions, NodeId};
use pk_tests::Rt;
use pk_tests::node::{join, shutdown, start};
use pk_tests::wait::within;
use serde_json::json;

use crate::kit::{PATIENCE, ask, disconnected, polykey_node, target};

long_cases!(every_node_finds_every_other_node within Duration::from_secs(400));

/// Three Polykey nodes and five local nodes, with one Polykey node as the seed of all.
async fn every_node_finds_every_other_node<R: Rt>(runtime: R, polykey: Polykey) {
    let seed = polykey_node(&runtime, &polykey).await;
    let theirs = [polykey_node(&runtime, &polykey).await, polykey_node(&runtime, &polykey).await];
    let mut ours = Vec::new();
    for n in 0..5 {
        ours.push(start(&runtime, n + 1).await);
    }
    for (theirs, ours) in theirs.iter().zip(&ours) {
        ask(&runtime, theirs, "sync", target(seed.node_id(), seed.addr())).await;
        join(&runtime, ours, seed.seed()).await;
    }
    for ours in &ours[2..] {
        join(&runtime, ours, seed.seed()).await;
    }
    let theirs: Vec<_> = std::iter::once(seed).chain(theirs).collect();
    let everyone: Vec<NodeId> =
        theirs.iter().map(Peer::node_id).chain(ours.iter().map(Node::own_id)).collect();
    let (mut found, mut reported) = (0, 0);
    let mut slowest = Duration::ZERO;
    for from in &ours {
        for to in everyone.iter().filter(|to| **to != from.own_id()) {
            // So that the nodes must be found.
            disconnected(&runtime, from, *to).await;
            from.unset_node(*to).await.unwrap();
            let search = from.find_node(*to, FindNodeOptions::default());
            let outcome = within(&runtime, PATIENCE, "a search of ours", search).await.unwrap();
            assert_eq!(outcome.ended, FindEnd::Connected, "{outcome:?}");
            slowest = slowest.max(outcome.stats.elapsed);
            reported += usize::from(
                outcome.trace.iter().any(|step| step.node == *to && step.reported_by.is_some()),
            );
            found += 1;
        }
    }
    println!(
        "{}: ours found {found}, {reported} of them through others, the slowest in {slowest:?}",
        R::NAME
    );
    // The others connected first: Polykey nodes search whenever a node connects.
    assert!(reported >= 10, "{reported}");
    slowest = Duration::ZERO;
    for from in &theirs {
        for to in everyone.iter().filter(|to| **to != from.node_id()) {
            ask(&runtime, from, "disconnect", json!({ "nodeId": to })).await;
            ask(&runtime, from, "unsetNode", json!({ "nodeId": to })).await;
            let begun = Instant::now();
            let outcome = ask(&runtime, from, "find", json!({ "nodeId": to })).await;
            assert!(!outcome.is_null(), "{} does not find {to}", from.node_id());
            slowest = slowest.max(begun.elapsed());
            found += 1;
        }
    }
    println!("{}: theirs as well, the slowest in {slowest:?}", R::NAME);
    assert_eq!(found, 8 * 7);
    for theirs in &theirs {
        assert_eq!(theirs.faults(), [""; 0]);
    }
    shutdown(&runtime, &ours.iter().collect::<Vec<_>>()).await;
}
