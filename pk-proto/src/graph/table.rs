//! The Kademlia table: every contact in the bucket of its distance from the local id.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, UNCHECKED};
use super::bucket_set::BucketSet;
use super::diversity::{Diversity, DiversityLimits};
use super::outcome::{SetNodeOutcome, SetNodeRejection};
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::contact::NodeContact;
use crate::types::id::{BucketIndex, NodeId};
use crate::types::time::{Instant, UnixMillis};

/// Order of the contacts of a bucket. Ties are broken by node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeOrder {
    /// Node id, as big-endian bytes.
    NodeId,
    /// XOR distance from the local id.
    Distance,
    /// Time of the last connection.
    ConnectedTime,
}

/// Direction of an order. Each is the exact reverse of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// The smallest first: the smallest id, the nearest, the oldest.
    Ascending,
    /// The greatest first: the largest id, the farthest, the newest.
    Descending,
}

/// The contacts of this node in 256 buckets (specification: NodeGraph; k-buckets of Kademlia).
///
/// A bucket exists only while it has contacts; an empty graph uses no heap memory. The graph is a
/// plain container without time and peers; every result depends only on earlier `set` and `unset`
/// calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeGraph {
    own: NodeId,
    bucket_limit: usize,
    address_limit: usize,
    diversity: Diversity,
    len: usize,
    /// Indices of the existing buckets.
    occupied: BucketSet,
    /// The existing buckets, the farthest first: most contacts are far, so that most buckets are
    /// found without counting many bits.
    buckets: Vec<Bucket>,
}

impl NodeGraph {
    /// Maximum of `bucket_limit`, as in [`Config::bucket_limit`](crate::Config::bucket_limit).
    pub const BUCKET_LIMIT_MAX: usize = 255;

    /// Creates an empty graph of the node `own`, with at most `bucket_limit` contacts per bucket
    /// (clamped to 1 to 255) and `address_limit` addresses per contact (at least 1). Allocates
    /// nothing.
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

    /// Sets limits per network for contacts that are added later. Only globally routable addresses
    /// count.
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

    /// Returns the id that distances are relative to; it is never in the graph.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// Returns the number of contacts.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no contact.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of contacts in one bucket.
    pub fn bucket_len(&self, index: BucketIndex) -> usize {
        self.existing(index).map_or(0, Bucket::len)
    }

    /// Returns a contact; `None` if it is not in the graph.
    pub fn get(&self, node: &NodeId) -> Option<&NodeContact> {
        self.existing(self.own.bucket_index(node)?)?.get(node)
    }

    /// Returns whether the node is in the graph.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.get(node).is_some()
    }

    /// Adds a contact, or an address of a contact, or newer data of an address.
    ///
    /// If a contact has more addresses than the limit, the one with the oldest `connected_time` is
    /// dropped. A rejected node, because it is the local id or its bucket is full, leaves the graph
    /// unchanged.
    pub fn set(
        &mut self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
    ) -> SetNodeOutcome {
        let Some(index) = self.own.bucket_index(&node) else {
            return SetNodeOutcome::Rejected(SetNodeRejection::OwnNode);
        };
        let at = self.occupied.count_above(index);
        let existing = self.occupied.contains(index).then(|| self.buckets.get_mut(at)).flatten();
        let place = match existing.as_ref().map_or(Err(0), |bucket| bucket.find(&node)) {
            Ok(place) => return self.update(index, at, place, address, data),
            Err(_) if existing.as_ref().is_some_and(|bucket| bucket.len() >= self.bucket_limit) => {
                return SetNodeOutcome::Rejected(SetNodeRejection::BucketFull);
            }
            Err(place) => place,
        };
        if let Some(counted) = self.diversity.place(index, &address) {
            if !self.diversity.has_room(counted) {
                return SetNodeOutcome::Rejected(SetNodeRejection::Diversity);
            }
            self.diversity.insert(counted);
        }
        let contact = NodeContact::new(address, data);
        self.len += 1;
        if let Some(bucket) = existing {
            bucket.insert(place, node, contact, self.bucket_limit);
        } else {
            let mut bucket = Bucket::new(index);
            bucket.insert(place, node, contact, self.bucket_limit);
            self.occupied.insert(index);
            // There are few buckets, and seldom one more.
            self.buckets.reserve_exact(1);
            self.buckets.insert(at, bucket);
        }
        SetNodeOutcome::Added
    }

    /// Updates the contact at this place of the bucket at `at`.
    fn update(
        &mut self,
        index: BucketIndex,
        at: usize,
        place: usize,
        address: NodeAddress,
        data: NodeContactAddressData,
    ) -> SetNodeOutcome {
        let Some(contact) = self.buckets.get_mut(at).and_then(|bucket| bucket.contact_mut(place))
        else {
            return SetNodeOutcome::Rejected(SetNodeRejection::BucketFull); // Not reached: the contact exists.
        };
        if contact.contains(&address) {
            contact.set(address, data, self.address_limit);
            return SetNodeOutcome::Updated;
        }
        let counted = self.diversity.place(index, &address);
        let full = |counted| {
            !self.diversity.counts(index, contact, counted) && !self.diversity.has_room(counted)
        };
        if counted.is_some_and(full) {
            return SetNodeOutcome::Rejected(SetNodeRejection::Diversity);
        }
        self.diversity.remove(index, contact);
        contact.set(address, data, self.address_limit);
        self.diversity.add(index, contact);
        SetNodeOutcome::Updated
    }

    /// Removes an address of a contact that has others. Returns whether it was removed.
    pub(crate) fn unset_address(&mut self, node: &NodeId, address: &NodeAddress) -> bool {
        let Some(index) = self.own.bucket_index(node).filter(|it| self.occupied.contains(*it))
        else {
            return false;
        };
        let bucket = self.buckets.get_mut(self.occupied.count_above(index));
        let contact = bucket.and_then(|bucket| bucket.contact_mut(bucket.find(node).ok()?));
        let Some(contact) = contact.filter(|it| it.len() > 1 && it.contains(address)) else {
            return false;
        };
        self.diversity.remove(index, contact);
        contact.remove(address);
        self.diversity.add(index, contact);
        true
    }

    /// Adds a contact with all its addresses, from another or an earlier graph, if there is room.
    /// The order of the addresses is kept.
    pub(crate) fn restore(&mut self, node: NodeId, contact: &NodeContact) {
        // Of equal times the one set last comes first.
        for (address, data) in contact.iter().rev() {
            self.set(node, address.clone(), *data);
        }
    }

    /// Sets every `connected_time` later than `now` to `now` or shortly before it: the latest to
    /// `now`, each earlier one to a millisecond less. Such times come from a clock that was ahead;
    /// they keep their order, and later connections are newer. Returns the changed contacts.
    pub(crate) fn limit_times(&mut self, now: UnixMillis) -> Vec<NodeId> {
        let later = self.iter().flat_map(|(_, contact)| contact.times()).filter(|time| *time > now);
        let later: BTreeSet<UnixMillis> = later.collect();
        if later.is_empty() {
            return Vec::new();
        }
        // Not before a time that stays, which is an older one.
        let stays =
            self.iter().flat_map(|(_, contact)| contact.times()).filter(|time| *time <= now).max();
        let limited = (0..)
            .map(|step| UnixMillis(now.0.saturating_sub(step)).max(stays.unwrap_or(UnixMillis(0))));
        let times: BTreeMap<_, _> = later.into_iter().rev().zip(limited).collect();
        let contacts = self.buckets.iter_mut().flat_map(Bucket::contacts_mut);
        contacts
            .filter_map(|(node, contact)| contact.replace_times(&times).then_some(node))
            .collect()
    }

    /// Removes and returns a contact.
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

    /// Returns the contacts of one bucket, ordered by node id.
    pub fn bucket(&self, index: BucketIndex) -> impl Iterator<Item = (NodeId, &NodeContact)> {
        self.existing(index).into_iter().flat_map(Bucket::iter)
    }

    /// Returns the contacts of one bucket in the given order. Garbage collection uses
    /// [`ConnectedTime`](NodeOrder::ConnectedTime), [`Ascending`](Direction::Ascending): the least
    /// recently connected first.
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
            NodeOrder::ConnectedTime => {
                nodes.sort_unstable_by_key(|(node, contact)| (contact.connected_time(), *node));
            }
        }
        if direction == Direction::Descending {
            nodes.reverse();
        }
        nodes
    }

    /// Returns all contacts, bucket by bucket from the nearest on, each bucket ordered by node id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &NodeContact)> {
        self.buckets.iter().rev().flat_map(Bucket::iter)
    }

    /// Returns the existing buckets and their sizes, from the nearest on.
    pub fn buckets(&self) -> impl Iterator<Item = (BucketIndex, usize)> {
        self.buckets.iter().rev().map(|bucket| (bucket.index(), bucket.len()))
    }

    /// Returns the `limit` contacts closest to `target`, nearest first: exactly those that sorting
    /// all contacts by XOR distance would put first. The target is among them if it is in the
    /// graph; the local id never is.
    pub fn closest(&self, target: &NodeId, limit: usize) -> Vec<(NodeId, &NodeContact)> {
        // Contacts of bucket i differ from the local id first in bit i, those of lower buckets
        // agree with it there. If the target differs from the local id in bit i too, bucket i is
        // closer to it than all lower ones; otherwise it is farther than all of them. The order is
        // therefore: first the buckets of the set bits of our distance, from the highest on, then
        // the others, from the lowest.
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

    /// Returns when a contact was last seen alive, [`Instant::ORIGIN`] if it was not since the
    /// start of the node.
    pub(crate) fn seen(&self, node: &NodeId) -> Option<Instant> {
        self.existing(self.own.bucket_index(node)?)?.seen(node)
    }

    /// Sets when a contact was last seen alive.
    pub(crate) fn set_seen(&mut self, node: &NodeId, at: Instant) {
        let index = self.own.bucket_index(node).filter(|index| self.occupied.contains(*index));
        let Some(index) = index else { return };
        if let Some(bucket) = self.buckets.get_mut(self.occupied.count_above(index)) {
            bucket.set_seen(node, at);
        }
    }

    /// Takes a contact out of the order of checks, until it is seen again.
    pub(crate) fn leave_unchecked(&mut self, node: &NodeId) {
        self.set_seen(node, UNCHECKED);
    }

    /// Returns the contact that was seen least recently, in one bucket or in all. Looks through the
    /// contacts of one bucket.
    pub(crate) fn least_recently_seen(&self, index: Option<BucketIndex>) -> Option<NodeId> {
        let bucket = match index {
            Some(index) => self.existing(index),
            None => self.buckets.iter().min_by_key(|bucket| bucket.oldest()),
        };
        bucket?.least_recently_seen()
    }

    /// A bucket exists only while it has contacts.
    fn drop_if_empty(&mut self, at: usize, index: BucketIndex) {
        if self.buckets.get(at).is_some_and(Bucket::is_empty) {
            self.buckets.remove(at);
            self.occupied.remove(index);
        }
    }

    /// Returns the bucket, if it exists.
    fn existing(&self, index: BucketIndex) -> Option<&Bucket> {
        self.occupied.contains(index).then(|| self.buckets.get(self.occupied.count_above(index)))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_removed_from_a_contact_that_has_others_and_does_not_count_any_longer() {
        let (node, limits) = (NodeId::from_bytes([1; 32]), (1, 1));
        let limits = DiversityLimits { per_bucket: limits.0, per_table: limits.1 };
        let mut graph = NodeGraph::new(NodeId::from_bytes([0; 32]), 20, 5).with_diversity(limits);
        let data = NodeContactAddressData {
            mode: crate::types::address::ContactMode::Direct,
            connected_time: UnixMillis(1),
            scopes: crate::types::address::Scopes::GLOBAL,
        };
        let [first, second]: [NodeAddress; 2] =
            ["20.0.0.1:1", "30.0.0.1:1"].map(|text| text.parse().unwrap());
        for address in [&first, &second] {
            graph.set(node, address.clone(), data);
        }
        let other = NodeId::from_bytes([2; 32]);
        assert!(!graph.unset_address(&other, &first));
        let full = SetNodeOutcome::Rejected(SetNodeRejection::Diversity);
        assert_eq!(graph.set(other, first.clone(), data), full);
        assert!(graph.unset_address(&node, &first));
        assert!(!graph.unset_address(&node, &first));
        assert!(!graph.unset_address(&node, &second), "the last one");
        assert_eq!(graph.get(&node), Some(&NodeContact::new(second, data)));
        assert_eq!(graph.set(other, first, data), SetNodeOutcome::Added);
    }

    #[test]
    fn empty_graph_has_no_heap_memory() {
        let mut graph = NodeGraph::new(NodeId::from_bytes([7; 32]), 20, 5);
        assert_eq!(graph.buckets.capacity(), 0);
        assert_eq!(graph.closest(&NodeId::from_bytes([1; 32]), 20).capacity(), 0);
        assert_eq!(graph.unset(&NodeId::from_bytes([1; 32])), None);
        assert_eq!(graph.buckets.capacity(), 0);
    }
}
