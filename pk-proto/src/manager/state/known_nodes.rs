//! The node graph, and further state of its nodes and buckets.

use alloc::collections::{BTreeMap, BTreeSet};

use super::bucket_gc::Collections;
use crate::graph::{NodeGraph, PendingNodes};
use crate::types::id::{BucketIndex, NodeId};
use crate::types::time::UnixMillis;

/// The nodes in the graph, pending nodes and the refresh state.
#[derive(Debug)]
pub(in crate::manager) struct KnownNodes {
    pub(in crate::manager) graph: NodeGraph,
    /// Nodes of the graph that no connection has proved. They are not included in responses to
    /// peers.
    pub(in crate::manager) unproven: BTreeSet<NodeId>,
    /// Nodes that wait for room in their bucket.
    pub(in crate::manager) pending: PendingNodes,
    pub(in crate::manager) collections: Collections,
    /// Time of the last refresh of each bucket.
    pub(in crate::manager) refreshed: BTreeMap<BucketIndex, UnixMillis>,
    /// Buckets whose refresh after a join has not started.
    pub(in crate::manager) due_after_join: BTreeSet<BucketIndex>,
}

impl KnownNodes {
    /// Creates the state from the stored graph and refresh times.
    pub(in crate::manager) fn new(
        graph: NodeGraph,
        refreshed: BTreeMap<BucketIndex, UnixMillis>,
    ) -> Self {
        Self {
            graph,
            unproven: BTreeSet::new(),
            pending: PendingNodes::default(),
            collections: Collections::new(),
            refreshed,
            due_after_join: BTreeSet::new(),
        }
    }
}
