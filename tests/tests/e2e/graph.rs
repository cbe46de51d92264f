//! A full bucket over real sockets: nodes that answer stay, and pending nodes replace those that do
//! not.

use std::collections::BTreeSet;
use std::time::Duration;

use pk_driver::Node;
use pk_proto::{BucketIndex, NodeId, SetNodeOptions, SetNodeOutcome, SetNodeRejection};
use pk_tests::Rt;
use pk_tests::node::{
    address, connect, global_address_data, key, options, shutdown, start, start_with,
};
use pk_tests::wait::{soon, until};

pk_tests::cases!(full_bucket_keeps_answering_nodes_and_replaces_silent_ones);

const FARTHEST: BucketIndex = BucketIndex(255);

/// The nodes in the bucket.
async fn bucket<R: Rt>(node: &Node<R>) -> BTreeSet<NodeId> {
    node.bucket(FARTHEST).await.unwrap().into_iter().map(|(node, _)| node).collect()
}

async fn full_bucket_keeps_answering_nodes_and_replaces_silent_ones<R: Rt>(runtime: R) {
    let a = start_with(&runtime, 1, |config| {
        config.core.bucket_limit = 2;
        config.core.collect_interval = Duration::ZERO;
        // Nothing else changes the graph.
        config.core.retry_delay = Duration::ZERO;
        config.core.refresh_delay = Duration::ZERO;
    })
    .await;
    // All in one bucket of A.
    let seeds =
        (2..).filter(|seed| a.own_id().bucket_index(&key(*seed).node_id()) == Some(FARTHEST));
    let mut peers = Vec::new();
    for seed in seeds.take(5) {
        peers.push(start(&runtime, seed).await);
    }
    let ids: Vec<_> = peers.iter().map(Node::own_id).collect();
    for peer in &peers[..2] {
        connect(&runtime, peer, &a).await;
    }
    until(&runtime, "a full bucket", async || bucket(&a).await.len() == 2).await;

    // The third connects: it waits, and nothing is probed.
    connect(&runtime, &peers[2], &a).await;
    until(&runtime, "a pending node", async || a.metrics().await.unwrap().nodes_pending == 1).await;
    assert_eq!(a.metrics().await.unwrap().collections, 0);
    assert_eq!(bucket(&a).await, BTreeSet::from([ids[0], ids[1]]));

    // The embedder sets the fourth: the event follows at once, or when the round has ended.
    let patience = options(Duration::from_secs(5), Duration::from_millis(500));
    let set = async |n: usize, block, force| {
        let how = SetNodeOptions { block, force, options: patience };
        soon(&runtime, "set", a.set_node(ids[n], address(&peers[n]), global_address_data(), how))
            .await
            .unwrap()
    };
    let outcome = set(3, false, false).await;
    assert!(
        matches!(
            outcome,
            SetNodeOutcome::Pending | SetNodeOutcome::Rejected(SetNodeRejection::BucketFull)
        ),
        "{outcome:?}"
    );
    until(&runtime, "a round", async || a.metrics().await.unwrap().nodes_pending == 0).await;
    assert_eq!(set(3, true, false).await, SetNodeOutcome::Rejected(SetNodeRejection::BucketFull));
    assert_eq!(bucket(&a).await, BTreeSet::from([ids[0], ids[1]]));

    // One of them has stopped.
    shutdown(&runtime, &[&peers[0]]).await;
    assert_eq!(set(3, true, false).await, SetNodeOutcome::Added);
    assert_eq!(bucket(&a).await, BTreeSet::from([ids[1], ids[3]]));
    // And for a node that must enter, the one that was connected least recently is removed.
    assert_eq!(set(4, false, true).await, SetNodeOutcome::Replaced(ids[3]));
    assert_eq!(bucket(&a).await, BTreeSet::from([ids[1], ids[4]]));
    println!("{}: {} rounds", R::NAME, a.metrics().await.unwrap().collections);
    let all: Vec<_> = peers.iter().chain([&a]).collect();
    shutdown(&runtime, &all).await;
}
