//! The graph as it changes: every change is said, counted, and written behind.

use alloc::string::String;
use alloc::vec::Vec;

use super::{NodeManager, Phase};
use crate::address::{NodeAddress, NodeContactAddressData};
use crate::error::Failure;
use crate::id::{EffectId, NodeId};
use crate::io::{Event, Output, StoreOp};
use crate::request::{Reply, SetNodeOutcome, SetNodeRejection};

impl NodeManager {
    /// Puts a node into the graph and says so.
    pub(super) fn set_in_graph(
        &mut self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
    ) -> SetNodeOutcome {
        let outcome = self.graph.set(node, address, data);
        self.was_set(node, outcome);
        outcome
    }

    /// Says and counts what became of a node that was to be put into the graph.
    pub(super) fn was_set(&mut self, node: NodeId, outcome: SetNodeOutcome) {
        match outcome {
            SetNodeOutcome::Rejected(SetNodeRejection::BucketFull) => self.cx.metrics.bucket_full += 1,
            SetNodeOutcome::Rejected(SetNodeRejection::Diversity) => self.cx.metrics.diversity_refused += 1,
            SetNodeOutcome::Rejected(_) => {}
            SetNodeOutcome::Added | SetNodeOutcome::Updated | SetNodeOutcome::Replaced(_) | SetNodeOutcome::Pending => {
                if outcome == SetNodeOutcome::Added {
                    self.cx.event(Event::NodeAdded { node });
                }
                self.store.changed(&mut self.cx, node);
                if let Some(bucket) = self.cx.own().bucket_index(&node) {
                    self.bucket_touched(bucket);
                }
            }
        }
    }

    /// A node that has renewed its key is one node, by its newest id: takes its former ids out. Gives where it was known to
    /// be, if a connection had proven it there.
    pub(super) fn leave_former(&mut self, chain: &[NodeId]) -> Vec<(NodeAddress, NodeContactAddressData)> {
        let mut known = Vec::new();
        for former in chain.iter().skip(1) {
            if let Some(bucket) = self.cx.own().bucket_index(former) {
                self.pending.remove(bucket, former);
            }
            if self.is_proven(*former) {
                known.extend(self.graph.get(former).into_iter().flat_map(|contact| contact.iter().rev().cloned()));
            }
            self.remove_from_graph(former);
        }
        known
    }

    /// Takes a node out of the graph and says so; returns whether it was there.
    pub(super) fn remove_from_graph(&mut self, node: &NodeId) -> bool {
        let there = self.graph.unset(node).is_some();
        if there {
            self.left_graph(node);
        }
        there
    }

    /// Says that a node is no longer in the graph.
    pub(super) fn left_graph(&mut self, node: &NodeId) {
        self.unproven.remove(node);
        self.store.changed(&mut self.cx, *node);
        self.cx.event(Event::NodeRemoved { node: *node });
    }

    /// Writes what has changed in the graph.
    pub(super) fn write_graph(&mut self) {
        self.store.write(&mut self.cx, &self.graph, &self.unproven, &self.refreshed);
    }

    /// Writes rows, in a store that knows whose it is.
    pub(super) fn persist(&mut self, id: EffectId, mut ops: Vec<StoreOp>, durable: bool) {
        ops.extend(self.store.missing_meta(self.cx.own()));
        self.cx.output(Output::Persist { id, ops, durable });
    }

    /// A transaction is over.
    pub(super) fn persisted(&mut self, id: EffectId, result: Result<(), String>) {
        if self.claim_persisted(id, &result) {
            return;
        }
        if self.renewal_persisted(id, &result) {
            self.write_if_awaited();
            return;
        }
        if self.links_persisted(id, &result) {
            return;
        }
        let Some((flushed, result)) = self.store.persisted(&mut self.cx, id, result) else {
            self.cx.metrics.late_inputs += 1;
            return;
        };
        for request in flushed {
            self.end(request, result.clone().map(|()| Reply::Flush).map_err(Failure::Store));
        }
        if result.is_err() && self.phase == Phase::Stopping {
            // There is no time to wait for better.
            self.store.forget();
        }
        if !self.write_if_awaited() {
            self.store.rearm(&mut self.cx);
        }
    }

    /// Writes what has changed in the graph, if anybody waits for it.
    pub(super) fn write_if_awaited(&mut self) -> bool {
        let awaited = self.store.is_flushing() || self.phase == Phase::Stopping;
        if awaited {
            self.write_graph();
        }
        awaited
    }
}
