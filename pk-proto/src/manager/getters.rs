//! Getters (part D of the contract).

use alloc::vec::Vec;

use super::node::NodeManager;
use super::state::bucket_gc::Rounds;
use crate::api::census::Census;
use crate::api::config::Config;
use crate::api::info::{ConnectionInfo, NodeBucketMeta};
use crate::api::metrics::Metrics;
use crate::graph::{Direction, NodeGraph, NodeOrder};
use crate::machine::phase::Phase;
use crate::types::contact::NodeContact;
use crate::types::id::{BucketIndex, ConnectionId, NodeId};
use crate::types::time::UnixMillis;

/// D. Getters.
impl NodeManager {
    /// Returns the newest local id.
    pub fn own_id(&self) -> NodeId {
        self.cx.own()
    }

    /// Returns the node graph, which has buckets, exact closest nodes and sorted listings.
    pub fn graph(&self) -> &NodeGraph {
        &self.nodes.graph
    }

    /// Returns the contacts of one bucket, in the order of their ids (specification: getBucket).
    pub fn bucket(&self, index: BucketIndex) -> Vec<(NodeId, &NodeContact)> {
        self.nodes.graph.bucket_sorted(index, NodeOrder::NodeId, Direction::Ascending)
    }

    /// Returns the state of one bucket besides its contacts.
    pub fn bucket_meta(&self, index: BucketIndex) -> NodeBucketMeta {
        NodeBucketMeta {
            count: self.nodes.graph.bucket_len(index),
            pending: self.nodes.pending.waiting(index),
            refreshed: self.refreshed_at(index),
            refresh_at: self.refresh_at(index),
        }
    }

    /// Returns the contacts closest to a target, nearest first. The result is exact.
    pub fn closest_nodes(&self, target: NodeId, limit: usize) -> Vec<(NodeId, &NodeContact)> {
        self.nodes.graph.closest(&target, limit)
    }

    /// Returns a contact.
    pub fn contact(&self, node: NodeId) -> Option<&NodeContact> {
        self.nodes.graph.get(&node)
    }

    /// Returns whether a connection has proved a contact. Other contacts are not sent to peers and
    /// not stored.
    pub fn is_proven(&self, node: NodeId) -> bool {
        self.nodes.graph.contains(&node) && !self.nodes.unproven.contains(&node)
    }

    /// Returns the time of the last refresh of a bucket.
    pub fn refreshed_at(&self, bucket: BucketIndex) -> Option<UnixMillis> {
        self.nodes.refreshed.get(&bucket).copied()
    }

    /// Returns the accepted connections, in the order of their ids.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let mut infos = self.connections.infos(&self.cx);
        for info in &mut infos {
            self.note_use(info);
        }
        infos
    }

    /// Returns the counters, and the current sizes of tables.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.cx.metrics;
        metrics.nodes = self.nodes.graph.len() as u64;
        metrics.nodes_failing = self.upkeep.failing.len() as u64;
        metrics.nodes_lost = self.upkeep.lost.len() as u64;
        metrics.nodes_pending = self.nodes.pending.len() as u64;
        metrics.requests_open = self.requests.by_embedder() as u64;
        metrics.timers = self.cx.timers.len() as u64;
        metrics.unwritten = self.graph_writer.unwritten() as u64;
        self.connections.measure(&mut metrics);
        self.rpc.measure(&mut metrics);
        self.relay.measure(&mut metrics);
        self.measure_claims(&mut metrics);
        metrics
    }

    /// Returns the number of entries of each table. Visits every timer, so it is meant for tests
    /// and diagnosis.
    pub fn census(&self) -> Census {
        let rounds = self.nodes.collections.values();
        let (reaches, silent) = self.upkeep.reaches.len();
        let mut census = Census {
            requests: self.requests.len(),
            runnable_searches: self.requests.runnable_searches(),
            collections: rounds.clone().filter(|rounds| rounds.is_active()).count(),
            collection_waiters: rounds.map(Rounds::waiters).sum(),
            flushes: self.graph_writer.flushes(),
            outputs: self.cx.outputs_waiting(),
            nodes: self.nodes.graph.len(),
            unproven: self.nodes.unproven.len(),
            pending: self.nodes.pending.len(),
            failing: self.upkeep.failing.len(),
            lost: self.upkeep.lost.len(),
            reaches,
            silent,
            collected: self.nodes.collections.len(),
            timers: self.cx.timers.kinds(),
            ..Census::default()
        };
        self.cx.effects.count(&mut census);
        self.connections.count_tables(&mut census);
        self.rpc.count_tables(&mut census);
        self.signalling.count_tables(&mut census);
        self.relay.count_tables(&mut census);
        self.count_claim_tables(&mut census);
        census
    }

    /// Returns the settings of the machine.
    pub fn config(&self) -> &Config {
        &self.cx.config
    }

    /// Returns whether [`Event::Stopped`](crate::Event::Stopped) has been emitted. No output
    /// follows it.
    pub fn is_stopped(&self) -> bool {
        self.cx.phase() == Phase::Stopped
    }

    // -- for the modules of the manager

    /// Returns the state of an accepted connection.
    pub(super) fn connection_info(&self, conn: ConnectionId) -> Option<ConnectionInfo> {
        let mut info = self.connections.info(&self.cx, conn)?;
        self.note_use(&mut info);
        Some(info)
    }

    /// Removes the idle time of a connection that has open streams.
    fn note_use(&self, info: &mut ConnectionInfo) {
        if self.rpc.in_use(info.conn) {
            info.idle_in = None;
        }
    }
}
