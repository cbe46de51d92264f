//! Searches, in virtual time.
#![allow(clippy::panic, reason = "helpers of tests")]

use std::time::Duration;

use pk_proto::{FindEnd, FindNode, FindOutcome, NodeId, Reply, Request};
use pk_sim::{Cluster, HostId};

fn find(cluster: &mut Cluster, from: HostId, target: NodeId) -> FindOutcome {
    match cluster.ask(from, Request::FindNode { target, find: FindNode::default() }) {
        Ok(Reply::FindNode(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_nodes_connect_and_know_each_other() {
    let mut cluster = Cluster::builder().nodes(2).start();
    assert!(matches!(cluster.connect(0, 1), Ok(Reply::Connect(info)) if info.node == cluster.id(1)));
    cluster.drive(Duration::from_secs(1));
    for (node, other) in [(0, 1), (1, 0)] {
        let other = cluster.id(other);
        assert!(cluster.node(node).contact(other).is_some(), "node {node} has the other in its graph");
        assert_eq!(cluster.node(node).connections().len(), 1);
    }
    cluster.stop_all();
}

#[test]
fn everyone_finds_everyone() {
    let mut cluster = Cluster::builder().nodes(30).seed(1).start();
    cluster.join_all();
    for from in 0..30 {
        for to in 0..30 {
            if from != to {
                let target = cluster.id(to);
                let outcome = find(&mut cluster, from, target);
                assert_eq!(outcome.ended, FindEnd::Connected, "{from} → {to}: {outcome:?}");
                assert_eq!(outcome.found.map(|(address, _)| address), Some(cluster.address(to)));
            }
        }
    }
    cluster.stop_all();
}
