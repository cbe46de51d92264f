//! The Kademlia table: every known node in the bucket of its distance from the own id.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::address::{NodeAddress, NodeContactAddressData};
use crate::graph::bucket::Bucket;
use crate::graph::bucket_set::BucketSet;
use crate::graph::contact::NodeContact;
use crate::graph::diversity::{Diversity, DiversityLimits};
use crate::id::{BucketIndex, NodeId};
use crate::request::{SetNodeOutcome, SetNodeRejection};

/// By what the nodes of a bucket are ordered. Ties are broken by node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeOrder {
    /// The node id, as big-endian bytes.
    NodeId,
    /// The XOR distance from the own id.
    Distance,
    /// When a connection with the node was last made.
    ConnectedTime,
}

/// Which end of an order comes first. Each direction is the exact reverse of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// The least first: the smallest id, the nearest, the oldest.
    Ascending,
    /// The greatest first: the largest id, the farthest, the newest.
    Descending,
}

/// The contacts of this node in 256 buckets (specification: NodeGraph; Kademlia section 2.2).
///
/// A bucket exists only while it holds a node; an empty graph has no heap memory. The graph is a plain container: it knows
/// neither time nor peers, and every answer depends only on what was set and unset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeGraph {
    own: NodeId,
    bucket_limit: usize,
    address_limit: usize,
    diversity: Diversity,
    len: usize,
    /// Which buckets exist.
    occupied: BucketSet,
    /// These buckets, the farthest first: most nodes are far, so most buckets are found without counting many bits.
    buckets: Vec<Bucket>,
}

impl NodeGraph {
    /// The greatest `bucket_limit`, as in [`Config::bucket_limit`](crate::Config::bucket_limit).
    pub const BUCKET_LIMIT_MAX: usize = 255;

    /// An empty graph of the node `own`, with at most `bucket_limit` nodes in a bucket (clamped to 1 to 255) and
    /// `address_limit` addresses of a node (at least 1). Allocates nothing.
    pub fn new(own: NodeId, bucket_limit: usize, address_limit: usize) -> Self {
        Self {
            own,
            bucket_limit: bucket_limit.clamp(1, Self::BUCKET_LIMIT_MAX),
            address_limit: address_limit.max(1),
            diversity: Diversity::new(DiversityLimits { per_bucket: 0, per_table: 0 }),
            len: 0,
            occupied: BucketSet::default(),
            buckets: Vec::new(),
        }
    }

    /// The same graph with limits on the nodes of one network, for nodes that come from now on. Only addresses that are
    /// routed globally are counted.
    #[must_use]
    pub fn with_diversity(mut self, limits: DiversityLimits) -> Self {
        self.diversity = Diversity::new(limits);
        for bucket in &self.buckets {
            for (_, contact) in bucket.iter() {
                self.diversity.add(bucket.index(), contact);
            }
        }
        self
    }

    /// The id from which distances are measured; never in the graph itself.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many nodes there are in one bucket.
    pub fn bucket_len(&self, index: BucketIndex) -> usize {
        self.existing(index).map_or(0, Bucket::len)
    }

    /// What is known of a node; `None` if it is not in the graph.
    pub fn get(&self, node: &NodeId) -> Option<&NodeContact> {
        self.existing(self.own.bucket_index(node)?)?.get(node)
    }

    /// Whether the node is in the graph.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.get(node).is_some()
    }

    /// Adds a node, or an address to a known node, or what is newly known of a known address.
    ///
    /// Of a known node with more addresses than the limit, the one with the oldest `connected_time` is dropped. A node that
    /// is rejected, because it is the own id or its bucket is full, leaves the graph as it was.
    pub fn set(&mut self, node: NodeId, address: NodeAddress, data: NodeContactAddressData) -> SetNodeOutcome {
        let Some(index) = self.own.bucket_index(&node) else {
            return SetNodeOutcome::Rejected(SetNodeRejection::OwnNode);
        };
        let at = self.occupied.count_above(index);
        if !self.occupied.contains(index) {
            self.occupied.insert(index);
            self.buckets.insert(at, Bucket::new(index));
        }
        let Some(bucket) = self.buckets.get_mut(at) else {
            return SetNodeOutcome::Rejected(SetNodeRejection::BucketFull); // Not reached: the bucket exists by now.
        };
        let before = bucket.get(&node);
        if before.is_none() && bucket.len() >= self.bucket_limit {
            return SetNodeOutcome::Rejected(SetNodeRejection::BucketFull);
        }
        if !self.diversity.allows(index, before, &address) {
            self.drop_if_empty(at, index);
            return SetNodeOutcome::Rejected(SetNodeRejection::Diversity);
        }
        if let Some(before) = before {
            self.diversity.remove(index, before);
        }
        let outcome = bucket.set(node, address, data, self.bucket_limit, self.address_limit);
        if let Some(after) = bucket.get(&node) {
            self.diversity.add(index, after);
        }
        self.len += usize::from(outcome == SetNodeOutcome::Added);
        outcome
    }

    /// Adds a node with all that another graph, or an earlier one, knew of it, as far as there is room. The addresses stay in
    /// their order.
    pub(crate) fn restore(&mut self, node: NodeId, contact: &NodeContact) {
        // Of equal times the one that is set last comes first.
        for (address, data) in contact.iter().rev() {
            self.set(node, address.clone(), *data);
        }
    }

    /// Takes a node out, and returns what was known of it.
    pub fn unset(&mut self, node: &NodeId) -> Option<NodeContact> {
        let index = self.own.bucket_index(node)?;
        let at = self.occupied.contains(index).then(|| self.occupied.count_above(index))?;
        let bucket = self.buckets.get_mut(at)?;
        let contact = bucket.unset(node)?;
        self.diversity.remove(index, &contact);
        self.drop_if_empty(at, index);
        self.len -= 1;
        Some(contact)
    }

    /// The nodes of one bucket, ordered by node id.
    pub fn bucket(&self, index: BucketIndex) -> impl Iterator<Item = (NodeId, &NodeContact)> {
        self.existing(index).into_iter().flat_map(Bucket::iter)
    }

    /// The nodes of one bucket in the order asked for. The least recently connected node first, as garbage collection
    /// wants it, is [`ConnectedTime`](NodeOrder::ConnectedTime), [`Ascending`](Direction::Ascending).
    pub fn bucket_sorted(
        &self,
        index: BucketIndex,
        order: NodeOrder,
        direction: Direction,
    ) -> Vec<(NodeId, &NodeContact)> {
        let mut nodes: Vec<_> = self.bucket(index).collect();
        match order {
            NodeOrder::NodeId => {}
            NodeOrder::Distance => nodes.sort_unstable_by_key(|(node, _)| self.own.distance(node)),
            NodeOrder::ConnectedTime => nodes.sort_unstable_by_key(|(node, contact)| (contact.connected_time(), *node)),
        }
        if direction == Direction::Descending {
            nodes.reverse();
        }
        nodes
    }

    /// All nodes, bucket by bucket from the nearest on, each bucket ordered by node id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &NodeContact)> {
        self.buckets.iter().rev().flat_map(Bucket::iter)
    }

    /// The buckets that hold nodes, and how many, from the nearest on.
    pub fn buckets(&self) -> impl Iterator<Item = (BucketIndex, usize)> {
        self.buckets.iter().rev().map(|bucket| (bucket.index(), bucket.len()))
    }

    /// The `limit` nodes closest to `target`, nearest first: exactly those that sorting all nodes by XOR distance would
    /// put first. Fewer only if the graph has fewer. The target is among them if it is in the graph; the own id never is.
    pub fn closest(&self, target: &NodeId, limit: usize) -> Vec<(NodeId, &NodeContact)> {
        // Nodes of bucket i differ from us first in bit i, nodes of lower buckets agree with us there. Where the target
        // differs from us in bit i too, bucket i is closer to it than all lower ones; else it is farther than all of them.
        // So first come the buckets of the set bits of our distance, from the highest on, then the others, from the lowest.
        let differing = BucketSet::of(&self.own.distance(target));
        let mut closer = self.occupied.and(&differing);
        let mut farther = self.occupied.without(&differing);
        let mut closest = Vec::with_capacity(limit.min(self.len));
        let mut keys = Vec::new();
        while let Some(room) = limit.checked_sub(closest.len()).filter(|room| *room != 0) {
            let Some(index) = closer.pop_last().or_else(|| farther.pop_first()) else { break };
            if let Some(bucket) = self.existing(index) {
                bucket.closest(target, room, &mut keys, &mut closest);
            }
        }
        closest
    }

    /// A bucket exists only while it holds a node.
    fn drop_if_empty(&mut self, at: usize, index: BucketIndex) {
        if self.buckets.get(at).is_some_and(Bucket::is_empty) {
            self.buckets.remove(at);
            self.occupied.remove(index);
        }
    }

    /// The bucket, if it holds a node.
    fn existing(&self, index: BucketIndex) -> Option<&Bucket> {
        self.occupied.contains(index).then(|| self.buckets.get(self.occupied.count_above(index)))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_graph_has_no_heap_memory() {
        let mut graph = NodeGraph::new(NodeId::from_bytes([7; 32]), 20, 5);
        assert_eq!(graph.buckets.capacity(), 0);
        assert_eq!(graph.closest(&NodeId::from_bytes([1; 32]), 20).capacity(), 0);
        assert_eq!(graph.unset(&NodeId::from_bytes([1; 32])), None);
        assert_eq!(graph.buckets.capacity(), 0);
    }
}
