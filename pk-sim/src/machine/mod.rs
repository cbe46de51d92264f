//! The interface of what the simulator drives: any machine that uses [`pk_proto::api`].

pub(crate) mod coverage;
pub(crate) mod directory;
pub(crate) mod misbehaving;
pub(crate) mod scripted_peer;

use pk_proto::{
    BucketIndex, Input, Instant, Metrics, NodeContact, NodeId, NodeManager, Output, Phase,
    UnixMillis,
};

/// A state machine without IO, driven like [`NodeManager`]: call it, drain the outputs, read the
/// timeout.
pub trait Machine {
    /// Handles an input.
    fn handle_input(&mut self, input: Input, now: Instant);

    /// Fires every timer that is due.
    fn handle_timeout(&mut self, now: Instant);

    /// Returns the next output, in order; drained until `None`.
    fn poll_output(&mut self) -> Option<Output>;

    /// Returns when to call `handle_timeout` if nothing else happens.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Returns the phase of the machine. `None` if it has none.
    fn phase(&self) -> Option<Phase> {
        None
    }

    /// Returns the gauges and counters that the checkers compare with the limits. `None` disables
    /// the check.
    fn gauges(&self) -> Option<Metrics> {
        None
    }

    /// Returns the graph, and the result of a search in it for `probe`. `None` disables the check.
    fn graph_view(&self, probe: NodeId, limit: usize) -> Option<GraphView<'_>> {
        let _ = (probe, limit);
        None
    }

    /// Returns what the store must contain. `None` if nothing is stored, or not all of it is
    /// written.
    fn stored_view(&self) -> Option<StoredView<'_>> {
        None
    }
}

/// What a node must find in its store at its next start.
#[derive(Debug, Clone)]
pub struct StoredView<'a> {
    /// Id of the node.
    pub own: NodeId,
    /// Stored contacts, in the order of their ids.
    pub contacts: Vec<(NodeId, &'a NodeContact)>,
    /// Time of the last refresh of each bucket.
    pub refreshed: Vec<(BucketIndex, UnixMillis)>,
}

/// The graph of a node, from its getters.
#[derive(Debug, Clone)]
pub struct GraphView<'a> {
    /// Id that the buckets are relative to.
    pub own: NodeId,
    /// Every bucket that has contacts, ascending, with its contacts in the order of their ids.
    pub buckets: Vec<(BucketIndex, Vec<(NodeId, &'a NodeContact)>)>,
    /// Result of the search for the probe, nearest first.
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

    fn phase(&self) -> Option<Phase> {
        Some(self.phase())
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
        let mut contacts: Vec<_> =
            self.graph().iter().filter(|(node, _)| self.is_proven(*node)).collect();
        contacts.sort_unstable_by_key(|(node, _)| *node);
        let all = (0..=u8::MAX).map(BucketIndex);
        let refreshed =
            all.filter_map(|bucket| Some((bucket, self.refreshed_at(bucket)?))).collect();
        Some(StoredView { own: self.own_id(), contacts, refreshed })
    }
}
