//! Nodes that wait for room in a full bucket (specification: addPendingNode).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::{BucketIndex, NodeId};
use crate::types::network::Network;

/// A node without room in its bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingNode {
    pub(crate) node: NodeId,
    pub(crate) address: NodeAddress,
    pub(crate) data: NodeContactAddressData,
    /// Whether a connection has proved it; otherwise the embedder has added it.
    pub(crate) proven: bool,
}

impl PendingNode {
    /// Returns the network of its address; host names share one.
    fn source(&self) -> Option<Network> {
        Network::of_address(&self.address)
    }
}

/// The pending list of each bucket: the most recently proved nodes, shared among networks when it
/// is full.
#[derive(Debug, Default)]
pub(crate) struct PendingNodes {
    /// Ordered by the time of the proof, the oldest first.
    buckets: BTreeMap<BucketIndex, Vec<PendingNode>>,
}

impl PendingNodes {
    /// Adds a node; the newest proof of one node counts, and any proof counts more than an unproved
    /// entry. Above `limit` nodes of the bucket, the oldest one of the network with the most is
    /// dropped. Returns the dropped node, which may be this one.
    pub(crate) fn add(
        &mut self,
        index: BucketIndex,
        pending: PendingNode,
        limit: usize,
    ) -> Option<PendingNode> {
        let bucket = self.buckets.entry(index).or_default();
        if !pending.proven && bucket.iter().any(|known| known.node == pending.node && known.proven)
        {
            return None;
        }
        bucket.retain(|known| known.node != pending.node);
        bucket.push(pending);
        if bucket.len() <= limit {
            return None;
        }
        let mut counts: BTreeMap<Option<Network>, usize> = BTreeMap::new();
        for known in bucket.iter() {
            *counts.entry(known.source()).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or_default();
        let leaves = bucket.iter().position(|known| counts.get(&known.source()) == Some(&most));
        leaves.map(|at| bucket.remove(at))
    }

    /// Removes and returns the most recently proved node of a bucket.
    pub(crate) fn pop(&mut self, index: BucketIndex) -> Option<PendingNode> {
        let bucket = self.buckets.get_mut(&index)?;
        let pending = bucket.pop();
        if bucket.is_empty() {
            self.buckets.remove(&index);
        }
        pending
    }

    /// Removes and returns a node.
    pub(crate) fn remove(&mut self, index: BucketIndex, node: &NodeId) -> Option<PendingNode> {
        let bucket = self.buckets.get_mut(&index)?;
        let place = bucket.iter().position(|known| known.node == *node)?;
        let pending = bucket.remove(place);
        if bucket.is_empty() {
            self.buckets.remove(&index);
        }
        Some(pending)
    }

    /// Returns whether a node is pending for a bucket.
    pub(crate) fn contains(&self, index: BucketIndex, node: &NodeId) -> bool {
        self.buckets
            .get(&index)
            .is_some_and(|bucket| bucket.iter().any(|known| known.node == *node))
    }

    /// Drops the pending nodes of a bucket; returns their number.
    pub(crate) fn clear(&mut self, index: BucketIndex) -> usize {
        self.buckets.remove(&index).map_or(0, |bucket| bucket.len())
    }

    /// Removes and returns all nodes, for a new order of the buckets.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = PendingNode> {
        core::mem::take(&mut self.buckets).into_values().flatten()
    }

    /// Returns the number of pending nodes of a bucket.
    pub(crate) fn waiting(&self, index: BucketIndex) -> usize {
        self.buckets.get(&index).map_or(0, Vec::len)
    }

    /// Returns whether a bucket has pending nodes.
    pub(crate) fn has(&self, index: BucketIndex) -> bool {
        self.buckets.contains_key(&index)
    }

    /// Returns the number of pending nodes.
    pub(crate) fn len(&self) -> usize {
        self.buckets.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::address::ContactMode;
    use crate::types::address::Scopes;
    use crate::types::time::UnixMillis;

    const BUCKET: BucketIndex = BucketIndex(255);

    fn pending(node: u8, address: &str) -> PendingNode {
        PendingNode {
            node: NodeId::from_bytes([node; 32]),
            address: address.parse().unwrap(),
            data: NodeContactAddressData {
                mode: ContactMode::Direct,
                connected_time: UnixMillis(u64::from(node)),
                scopes: Scopes::GLOBAL,
            },
            proven: true,
        }
    }

    #[test]
    fn one_network_cannot_displace_the_others() {
        let mut list = PendingNodes::default();
        list.add(BUCKET, pending(1, "8.8.1.1:1"), 3);
        list.add(BUCKET, pending(2, "8.8.2.1:1"), 3);
        for node in 10..200 {
            list.add(BUCKET, pending(node, "9.9.9.9:1"), 3);
        }
        assert_eq!(list.len(), 3);
        let nodes: Vec<_> =
            core::iter::from_fn(|| list.pop(BUCKET)).map(|pending| pending.node).collect();
        assert_eq!(nodes, [199, 2, 1].map(|node| NodeId::from_bytes([node; 32])));
        assert!(!list.has(BUCKET));
    }

    #[test]
    fn newest_proof_of_a_node_is_kept_and_first() {
        let mut list = PendingNodes::default();
        list.add(BUCKET, pending(1, "8.8.1.1:1"), 3);
        list.add(BUCKET, pending(2, "8.8.2.1:1"), 3);
        list.add(BUCKET, pending(1, "8.8.3.1:1"), 3);
        list.add(BUCKET, PendingNode { proven: false, ..pending(1, "8.8.4.1:1") }, 3);
        assert_eq!(list.pop(BUCKET), Some(pending(1, "8.8.3.1:1")));
        list.remove(BUCKET, &NodeId::from_bytes([2; 32]));
        assert_eq!((list.len(), list.clear(BUCKET)), (0, 0));
    }
}
