//! Part D: what there is, borrowed where it is small.

use alloc::vec::Vec;

use super::{NodeManager, Phase};
use crate::config::Config;
use crate::graph::{Direction, NodeContact, NodeGraph, NodeOrder};
use crate::id::{BucketIndex, NodeId};
use crate::metrics::Metrics;
use crate::names::{NodeBucket, NodeBucketMeta};
use crate::request::ConnectionInfo;
use crate::time::UnixMillis;

/// D. Getters.
impl NodeManager {
    /// The id of our newest key.
    pub fn own_id(&self) -> NodeId {
        self.cx.own()
    }

    /// The graph: buckets, exact closest nodes, sorted listings.
    pub fn graph(&self) -> &NodeGraph {
        &self.graph
    }

    /// The nodes of one bucket, in the order of their ids (specification: getBucket).
    pub fn bucket(&self, index: BucketIndex) -> NodeBucket<'_> {
        self.graph.bucket_sorted(index, NodeOrder::NodeId, Direction::Ascending)
    }

    /// What there is to know of one bucket besides its nodes.
    pub fn bucket_meta(&self, index: BucketIndex) -> NodeBucketMeta {
        NodeBucketMeta {
            count: self.graph.bucket_len(index),
            pending: self.pending.waiting(index),
            refreshed: self.refreshed_at(index),
            refresh_at: self.refresh_at(index),
        }
    }

    /// The nodes of the graph closest to a target, nearest first; exact.
    pub fn closest_nodes(&self, target: NodeId, limit: usize) -> Vec<(NodeId, &NodeContact)> {
        self.graph.closest(&target, limit)
    }

    /// What is known of a node.
    pub fn contact(&self, node: NodeId) -> Option<&NodeContact> {
        self.graph.get(&node)
    }

    /// Whether a node of the graph has been connected. Others are told to nobody and not kept over restarts.
    pub fn is_proven(&self, node: NodeId) -> bool {
        self.graph.contains(&node) && !self.unproven.contains(&node)
    }

    /// When a bucket was last refreshed.
    pub fn refreshed_at(&self, bucket: BucketIndex) -> Option<UnixMillis> {
        self.refreshed.get(&bucket).copied()
    }

    /// The accepted connections, in the order of their numbers.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let mut infos = self.connections.infos(&self.cx);
        for info in &mut infos {
            self.note_use(info);
        }
        infos
    }

    /// The counters, and what there is now.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.cx.metrics;
        metrics.nodes = self.graph.len() as u64;
        metrics.nodes_pending = self.pending.len() as u64;
        metrics.requests_open = self.open_requests() as u64;
        metrics.timers = self.cx.timers.len() as u64;
        metrics.unwritten = self.store.unwritten() as u64;
        self.connections.measure(&mut metrics);
        self.rpc.measure(&mut metrics);
        self.measure_claims(&mut metrics);
        metrics
    }

    /// The settings it was made with.
    pub fn config(&self) -> &Config {
        &self.cx.config
    }

    /// Whether [`Event::Stopped`](crate::Event::Stopped) has been emitted: nothing follows any more.
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }
}
