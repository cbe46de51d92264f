//! Nodes that wait for room in a full bucket (specification: addPendingNode).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::diversity::Prefix;
use crate::address::{Host, NodeAddress, NodeContactAddressData};
use crate::id::{BucketIndex, NodeId};

/// A node that its bucket has no room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingNode {
    pub(crate) node: NodeId,
    pub(crate) address: NodeAddress,
    pub(crate) data: NodeContactAddressData,
    /// A connection has proven it; else the embedder has told of it.
    pub(crate) proven: bool,
}

impl PendingNode {
    /// The network that it came from; nodes by name share one.
    fn source(&self) -> Option<Prefix> {
        match self.address.host {
            Host::Ip(ip) => Some(Prefix::of(ip)),
            Host::Zoned(ip, _) => Some(Prefix::of(ip.into())),
            Host::Name(_) => None,
        }
    }
}

/// The pending list of each bucket: the newest proofs, and no more of one network than of another when it is full.
#[derive(Debug, Default)]
pub(crate) struct PendingNodes {
    /// The oldest proof first.
    buckets: BTreeMap<BucketIndex, Vec<PendingNode>>,
}

impl PendingNodes {
    /// Takes in a node; the newest proof of one node wins, and any proof over what was only told. Over `limit` nodes of the bucket, the oldest one of the network
    /// that has most leaves. Returns the one that left, which may be this one.
    pub(crate) fn add(&mut self, index: BucketIndex, pending: PendingNode, limit: usize) -> Option<PendingNode> {
        let bucket = self.buckets.entry(index).or_default();
        if !pending.proven && bucket.iter().any(|known| known.node == pending.node && known.proven) {
            return None;
        }
        bucket.retain(|known| known.node != pending.node);
        bucket.push(pending);
        if bucket.len() <= limit {
            return None;
        }
        let mut counts: BTreeMap<Option<Prefix>, usize> = BTreeMap::new();
        for known in bucket.iter() {
            *counts.entry(known.source()).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or_default();
        let leaves = bucket.iter().position(|known| counts.get(&known.source()) == Some(&most));
        leaves.map(|at| bucket.remove(at))
    }

    /// Takes the newest proof of a bucket.
    pub(crate) fn pop(&mut self, index: BucketIndex) -> Option<PendingNode> {
        let bucket = self.buckets.get_mut(&index)?;
        let pending = bucket.pop();
        if bucket.is_empty() {
            self.buckets.remove(&index);
        }
        pending
    }

    /// Takes a node out.
    pub(crate) fn remove(&mut self, index: BucketIndex, node: &NodeId) {
        if let Some(bucket) = self.buckets.get_mut(&index) {
            bucket.retain(|known| known.node != *node);
            if bucket.is_empty() {
                self.buckets.remove(&index);
            }
        }
    }

    /// Drops what waits for a bucket; returns how many.
    pub(crate) fn clear(&mut self, index: BucketIndex) -> usize {
        self.buckets.remove(&index).map_or(0, |bucket| bucket.len())
    }

    /// Takes everything out, for a new order of the buckets.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = PendingNode> {
        core::mem::take(&mut self.buckets).into_values().flatten()
    }

    /// How many nodes wait for a bucket.
    pub(crate) fn waiting(&self, index: BucketIndex) -> usize {
        self.buckets.get(&index).map_or(0, Vec::len)
    }

    /// Whether anything waits for a bucket.
    pub(crate) fn has(&self, index: BucketIndex) -> bool {
        self.buckets.contains_key(&index)
    }

    /// How many nodes wait.
    pub(crate) fn len(&self) -> usize {
        self.buckets.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ContactMode, Scopes};
    use crate::time::UnixMillis;

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
    fn one_network_cannot_push_the_others_out() {
        let mut list = PendingNodes::default();
        list.add(BUCKET, pending(1, "8.8.1.1:1"), 3);
        list.add(BUCKET, pending(2, "8.8.2.1:1"), 3);
        for node in 10..200 {
            list.add(BUCKET, pending(node, "9.9.9.9:1"), 3);
        }
        assert_eq!(list.len(), 3);
        let nodes: Vec<_> = core::iter::from_fn(|| list.pop(BUCKET)).map(|pending| pending.node).collect();
        assert_eq!(nodes, [199, 2, 1].map(|node| NodeId::from_bytes([node; 32])));
        assert!(!list.has(BUCKET));
    }

    #[test]
    fn the_newest_proof_of_a_node_wins_and_comes_first() {
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
