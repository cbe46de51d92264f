//! Newcomers to full buckets. A node without room starts no garbage collection round: it waits as a
//! replacement for a contact that leaves. Only if it has asked something or answered, the least
//! recently seen contact of its bucket is probed, that one alone, and only after a long silence. A
//! probe asks nothing, so that it makes this node no newcomer elsewhere.

use super::super::node::NodeManager;
use super::super::state::upkeep::Errand;
use crate::machine::phase::Phase;
use crate::types::id::NodeId;

impl NodeManager {
    /// A question between this node and a peer was answered. If the peer waits for room in its
    /// bucket, a contact there may be probed.
    pub(in crate::manager) fn wants_room(&mut self, node: &NodeId) {
        let Some(bucket) = self.cx.own().bucket_index(node) else { return };
        if self.cx.phase() != Phase::Running || !self.nodes.pending.contains(bucket, node) {
            return;
        }
        let (now, interval) = (self.cx.now, self.cx.config.collect_interval);
        let rounds = self.nodes.collections.entry(bucket).or_default();
        if rounds.active || rounds.probed.is_some_and(|at| now.since(at) < interval) {
            return;
        }
        let fresh = self.cx.config.upkeep.fresh;
        if let Some(oldest) = self.silent_contact(Some(bucket), fresh) {
            if let Some(rounds) = self.nodes.collections.get_mut(&bucket) {
                rounds.probed = Some(now);
            }
            self.dial_contact(oldest, Errand::Newcomer);
        }
    }

    /// Admits nodes that wait for room in the bucket of a node that has left.
    pub(in crate::manager) fn refill(&mut self, node: &NodeId) {
        if let Some(bucket) = self.cx.own().bucket_index(node) {
            self.fill(bucket);
        }
    }
}
