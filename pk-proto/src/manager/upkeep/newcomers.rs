//! Newcomers to full buckets. A node without room starts no garbage collection round: it waits as a
//! replacement for a contact that leaves. Only if it has asked something or answered, the least
//! recently seen contact of its bucket is probed, that one alone, and only after a long silence. A
//! probe asks nothing, so that it makes this node no newcomer elsewhere.

use core::time::Duration;

use super::super::node::NodeManager;
use super::super::state::upkeep::Errand;
use super::far::HALF;
use crate::graph::PendingNode;
use crate::graph::outcome::SetNodeOutcome;
use crate::machine::phase::Phase;
use crate::types::id::{BucketIndex, NodeId};

/// Contacts of a bucket that leave for nearer nodes, without a probe, before it is full of those:
/// an attacker whose ids are near displaces a fifth of one bucket. In a calm network two nodes in
/// twenty-five have one such contact too many.
const DISPLACED: u32 = 4;
/// Time after which one more may.
const DISPLACED_FOR: Duration = Duration::from_secs(6 * 60 * 60);

impl NodeManager {
    /// A question between this node and a peer was answered. If the peer waits for room in its
    /// bucket, a contact there may be probed.
    pub(in crate::manager) fn wants_room(&mut self, node: &NodeId) {
        let Some(bucket) = self.cx.own().bucket_index(node) else { return };
        if self.cx.phase() != Phase::Running || !self.nodes.pending.contains(bucket, node) {
            return;
        }
        // Half of all nodes are in the farther half: one of them is no neighbor, even if it is one
        // of the nearest contacts.
        if bucket != HALF && self.is_neighbor(node) && self.displace_for(bucket, node) {
            return;
        }
        let (now, interval) = (self.cx.now, self.cx.config.collect_interval);
        let rounds = self.nodes.collections.entry(bucket).or_default();
        if rounds.active || rounds.probed.is_some_and(|at| now.since(at) < interval) {
            return;
        }
        // The checks find a dead contact within their cycle: only where they are late or off, it is
        // probed for a newcomer.
        let cycle = if self.keeps_records() { self.check_cycle() } else { Duration::ZERO };
        let silence = self.cx.config.upkeep.fresh.max(cycle);
        if let Some(oldest) = self.silent_contact(Some(bucket), silence) {
            if let Some(rounds) = self.nodes.collections.get_mut(&bucket) {
                rounds.probed = Some(now);
            }
            self.dial_contact(oldest, Errand::Newcomer);
        }
    }

    /// Returns whether a node is nearer than the farthest of the nearest contacts.
    fn is_neighbor(&self, node: &NodeId) -> bool {
        let own = self.cx.own();
        let count = self.cx.config.bucket_limit;
        let farthest = self.nodes.graph.closest(&own, count).into_iter().nth(count - 1);
        farthest.is_some_and(|(farthest, _)| own.distance(node) < own.distance(&farthest))
    }

    /// A node that waits would be among the nearest contacts: it takes the place of the farthest
    /// one of its bucket, which is not, and which waits instead of it. Returns whether it did.
    fn displace_for(&mut self, bucket: BucketIndex, node: &NodeId) -> bool {
        let (now, own) = (self.cx.now, self.cx.own());
        let rounds = self.nodes.collections.entry(bucket).or_default();
        if now.since(rounds.displaced_at) >= DISPLACED_FOR {
            rounds.displaced_at = now;
            rounds.displaced = rounds.displaced.saturating_sub(1);
        }
        if rounds.active || rounds.displaced >= DISPLACED {
            return false;
        }
        let contacts = self.nodes.graph.bucket(bucket);
        let farthest = contacts.map(|(id, _)| id).max_by_key(|id| own.distance(id));
        let farthest = farthest.filter(|id| own.distance(id) > own.distance(node));
        let before = farthest.and_then(|id| Some((id, self.nodes.graph.get(&id)?.clone())));
        let Some((farthest, before)) = before else { return false };
        let Some(pending) = self.nodes.pending.remove(bucket, node) else { return false };
        let proven = !self.nodes.unproven.contains(&farthest);
        let seen = self.nodes.graph.seen(&farthest);
        self.nodes.graph.unset(&farthest);
        let outcome = self.set_in_graph(pending.node, pending.address.clone(), pending.data);
        if outcome != SetNodeOutcome::Added {
            self.nodes.graph.restore(farthest, &before);
            seen.into_iter().for_each(|at| self.nodes.graph.set_seen(&farthest, at));
            self.add_pending(pending);
            return false;
        }
        self.left_graph(&farthest);
        self.admitted(*node);
        if let Some(rounds) = self.nodes.collections.get_mut(&bucket) {
            rounds.displaced += 1;
        }
        if let Some((address, data)) = before.iter().next().cloned() {
            self.add_pending(PendingNode { node: farthest, address, data, proven });
        }
        true
    }

    /// Admits nodes that wait for room in the bucket of a node that has left.
    pub(in crate::manager) fn refill(&mut self, node: &NodeId) {
        if let Some(bucket) = self.cx.own().bucket_index(node) {
            self.fill(bucket);
        }
    }
}
