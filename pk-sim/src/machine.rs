//! What the simulator drives: anything that speaks the vocabulary of [`pk_proto::io`].

use pk_proto::{BucketIndex, Input, Instant, Metrics, NodeContact, NodeId, NodeManager, Output, UnixMillis};

/// A state machine without IO, driven as [`NodeManager`] is: call, drain the outputs, look at the timeout.
pub trait Machine {
    /// Takes in what the world did.
    fn handle_input(&mut self, input: Input, now: Instant);

    /// Fires every timer that is due.
    fn handle_timeout(&mut self, now: Instant);

    /// What is to be done next, in order; drained until `None`.
    fn poll_output(&mut self) -> Option<Output>;

    /// When `handle_timeout` is to be called, if nothing else happens.
    fn poll_timeout(&self) -> Option<Instant>;

    /// The gauges and counters that the checkers hold against the configured caps. `None`: nothing to check.
    fn gauges(&self) -> Option<Metrics> {
        None
    }

    /// The graph, and the answer to a search in it for `probe`. `None`: there is no graph to check.
    fn graph_view(&self, probe: NodeId, limit: usize) -> Option<GraphView<'_>> {
        let _ = (probe, limit);
        None
    }

    /// What should be in the store. `None`: nothing, or not all of it is written.
    fn stored_view(&self) -> Option<StoredView<'_>> {
        None
    }
}

/// What a node should find in its store when it starts again.
#[derive(Debug, Clone)]
pub struct StoredView<'a> {
    /// Who it is.
    pub own: NodeId,
    /// The nodes that are kept, in the order of their ids.
    pub contacts: Vec<(NodeId, &'a NodeContact)>,
    /// When each bucket was last refreshed.
    pub refreshed: Vec<(BucketIndex, UnixMillis)>,
}

/// A node's graph as its getters show it.
#[derive(Debug, Clone)]
pub struct GraphView<'a> {
    /// The id that the buckets are counted from.
    pub own: NodeId,
    /// Every bucket that holds somebody, ascending, its nodes in the order of their ids.
    pub buckets: Vec<(BucketIndex, Vec<(NodeId, &'a NodeContact)>)>,
    /// What the machine says is closest to the probe, nearest first.
    pub closest: Vec<NodeId>,
}

impl Machine for NodeManager {
    fn handle_input(&mut self, input: Input, now: Instant) {
        self.handle_input(input, now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout(now);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.poll_output()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.poll_timeout()
    }

    fn gauges(&self) -> Option<Metrics> {
        Some(self.metrics())
    }

    fn graph_view(&self, probe: NodeId, limit: usize) -> Option<GraphView<'_>> {
        let occupied = self.graph().buckets().map(|(index, _)| index);
        Some(GraphView {
            own: self.own_id(),
            buckets: occupied.map(|index| (index, self.bucket(index))).collect(),
            closest: self.closest_nodes(probe, limit).into_iter().map(|(node, _)| node).collect(),
        })
    }

    fn stored_view(&self) -> Option<StoredView<'_>> {
        if self.metrics().unwritten > 0 {
            return None;
        }
        let mut contacts: Vec<_> = self.graph().iter().filter(|(node, _)| self.is_proven(*node)).collect();
        contacts.sort_unstable_by_key(|(node, _)| *node);
        let all = (0..=u8::MAX).map(BucketIndex);
        let refreshed = all.filter_map(|bucket| Some((bucket, self.refreshed_at(bucket)?))).collect();
        Some(StoredView { own: self.own_id(), contacts, refreshed })
    }
}
