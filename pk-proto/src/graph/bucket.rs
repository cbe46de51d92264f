//! One bucket of the table: ids in one array for scanning, contacts in another.

use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::types::contact::NodeContact;
use crate::types::id::{BucketIndex, NodeId};
use crate::types::time::Instant;

/// Minimum capacity of an allocated bucket, in nodes.
const LEAST_CAPACITY: usize = 4;
/// Bits of a sort key for the position in the bucket: a bucket has at most 2^8 nodes.
const PLACE_BITS: u32 = 8;

/// The contacts of one bucket (specification: Bucket), ordered by node id.
///
/// All ids of a bucket agree in the bits above its index, so that 64 bits from there on, the
/// *window*, distinguish almost all of them. Searching and sorting compare windows; whole ids are
/// compared only where windows are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    index: BucketIndex,
    /// Ascending. `contacts` has the same order.
    ids: Vec<NodeId>,
    contacts: Vec<NodeContact>,
    /// When each contact was last seen alive; [`UNCHECKED`] if it is not to be checked.
    seen: Vec<Instant>,
    /// The least of `seen`.
    oldest: Instant,
}

/// Later than every time: a contact that the order of checks leaves out.
pub(crate) const UNCHECKED: Instant = Instant::FAR_FUTURE;

impl Bucket {
    /// Returns an empty bucket, without an allocation.
    pub(crate) const fn new(index: BucketIndex) -> Self {
        Self { index, ids: Vec::new(), contacts: Vec::new(), seen: Vec::new(), oldest: UNCHECKED }
    }

    pub(crate) fn index(&self) -> BucketIndex {
        self.index
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the contacts, ordered by id.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (NodeId, &NodeContact)> {
        self.ids.iter().copied().zip(&self.contacts)
    }

    pub(crate) fn get(&self, node: &NodeId) -> Option<&NodeContact> {
        self.contacts.get(self.find(node).ok()?)
    }

    /// Returns the contact at a place that `find` has returned.
    pub(crate) fn contact_mut(&mut self, place: usize) -> Option<&mut NodeContact> {
        self.contacts.get_mut(place)
    }

    /// Adds a contact at the place at which `find` would insert its node. `limit` is the maximum
    /// size of the bucket, at most 255.
    pub(crate) fn insert(
        &mut self,
        place: usize,
        node: NodeId,
        contact: NodeContact,
        limit: usize,
    ) {
        self.grow(limit);
        let place = place.min(self.len());
        self.ids.insert(place, node);
        self.contacts.insert(place, contact);
        self.seen.insert(place, Instant::ORIGIN);
        self.oldest = Instant::ORIGIN;
    }

    /// Returns when a contact was last seen alive, [`Instant::ORIGIN`] if it was not since the
    /// start of the node.
    pub(crate) fn seen(&self, node: &NodeId) -> Option<Instant> {
        self.seen.get(self.find(node).ok()?).copied()
    }

    /// Sets when a contact was last seen alive.
    pub(crate) fn set_seen(&mut self, node: &NodeId, at: Instant) {
        if let Some(seen) = self.find(node).ok().and_then(|place| self.seen.get_mut(place)) {
            *seen = at;
            self.update_oldest();
        }
    }

    /// Returns the least of the times at which contacts were seen.
    pub(crate) fn oldest(&self) -> Instant {
        self.oldest
    }

    /// Returns the contact that was seen least recently.
    pub(crate) fn least_recently_seen(&self) -> Option<NodeId> {
        let seen = self.ids.iter().zip(&self.contacts).zip(&self.seen);
        let oldest = seen.filter(|(_, at)| **at == self.oldest && **at != UNCHECKED);
        let oldest = oldest.min_by_key(|((id, contact), _)| (contact.connected_time(), **id));
        oldest.map(|((id, _), _)| *id)
    }

    fn update_oldest(&mut self) {
        self.oldest = self.seen.iter().min().copied().unwrap_or(UNCHECKED);
    }

    /// Returns the contacts, ordered by id. Their addresses must not be changed.
    pub(crate) fn contacts_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut NodeContact)> {
        self.ids.iter().copied().zip(&mut self.contacts)
    }

    pub(crate) fn unset(&mut self, node: &NodeId) -> Option<NodeContact> {
        let at = self.find(node).ok()?;
        self.ids.remove(at);
        self.seen.remove(at);
        self.update_oldest();
        Some(self.contacts.remove(at))
    }

    /// Appends the `room` contacts closest to `target`, nearest first; all if there are fewer.
    /// `keys` is scratch space.
    pub(crate) fn closest<'a>(
        &'a self,
        target: &NodeId,
        room: usize,
        keys: &mut Vec<u64>,
        closest: &mut Vec<(NodeId, &'a NodeContact)>,
    ) {
        let offset = self.offset();
        let aim = window(target, offset);
        // A key is the window's distance with its last bits replaced by the position, so that keys
        // can be sorted alone. The order is exact if no two distances agree in the remaining bits.
        // Because XOR with the same target keeps ids equal or different, two that agree are
        // adjacent in the order of ids too.
        let mut twins = false;
        let mut last = None;
        keys.clear();
        keys.extend((0..).zip(&self.ids).map(|(place, id): (u64, _)| {
            let distance = (window(id, offset) ^ aim) >> PLACE_BITS;
            twins |= last == Some(distance);
            last = Some(distance);
            distance << PLACE_BITS | place
        }));
        if twins {
            let mut nodes: Vec<_> = self.iter().collect();
            nodes.sort_unstable_by_key(|(id, _)| id.distance(target));
            closest.extend(nodes.into_iter().take(room));
            return;
        }
        if room < keys.len() {
            keys.select_nth_unstable(room);
            keys.truncate(room);
        }
        keys.sort_unstable();
        closest.extend(keys.iter().filter_map(|key| {
            let place = (key & ((1 << PLACE_BITS) - 1)) as usize;
            Some((*self.ids.get(place)?, self.contacts.get(place)?))
        }));
    }

    /// Returns the position of the node, or where it would be inserted.
    pub(crate) fn find(&self, node: &NodeId) -> Result<usize, usize> {
        let offset = self.offset();
        let aim = window(node, offset);
        let mut at = self.ids.partition_point(|id| window(id, offset) < aim);
        while let Some(id) = self.ids.get(at).filter(|id| window(id, offset) == aim) {
            match id.cmp(node) {
                Ordering::Less => at += 1,
                Ordering::Equal => return Ok(at),
                Ordering::Greater => break,
            }
        }
        Err(at)
    }

    /// Returns the first byte in which ids of this bucket may differ, limited so that 8 bytes
    /// follow.
    fn offset(&self) -> usize {
        usize::from((255 - self.index.0) / 8).min(NodeId::LEN - 8)
    }

    /// Makes room for one more node: more than doubles the capacity, up to `limit`. A bucket of 20
    /// nodes is allocated in three steps.
    fn grow(&mut self, limit: usize) {
        let len = self.len();
        if len == self.ids.capacity() {
            let more = (len * 3 / 2).max(LEAST_CAPACITY).min(limit.saturating_sub(len)).max(1);
            self.ids.reserve_exact(more);
            self.contacts.reserve_exact(more);
            self.seen.reserve_exact(more);
        }
    }
}

/// Returns 64 bits of an id from this byte on. Among ids that agree before it, windows are ordered
/// like the ids.
fn window(id: &NodeId, offset: usize) -> u64 {
    id.as_bytes()
        .get(offset..)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::address::{ContactMode, NodeAddress, NodeContactAddressData, Scopes};
    use crate::types::time::UnixMillis;

    const DATA: NodeContactAddressData = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: UnixMillis(1),
        scopes: Scopes::GLOBAL,
    };

    fn contact() -> NodeContact {
        NodeContact::new(NodeAddress { host: "10.0.0.1".parse().unwrap(), port: 1 }, DATA)
    }

    /// An id of bucket `index` as seen from zero: the bit of the index, and `low` in the last two
    /// bytes.
    fn id(index: u8, low: u16) -> NodeId {
        let mut bytes = [0; 32];
        bytes[30..].copy_from_slice(&low.to_be_bytes());
        bytes[31 - usize::from(index) / 8] |= 1 << (index % 8);
        NodeId::from_bytes(bytes)
    }

    fn add(bucket: &mut Bucket, node: NodeId, limit: usize) {
        let place = bucket.find(&node).unwrap_err();
        bucket.insert(place, node, contact(), limit);
    }

    fn filled(index: u8, lows: impl Iterator<Item = u16>) -> Bucket {
        let mut bucket = Bucket::new(BucketIndex(index));
        for low in lows {
            add(&mut bucket, id(index, low), 255);
        }
        bucket
    }

    #[test]
    fn memory_grows_with_the_nodes_up_to_the_limit() {
        let mut bucket = Bucket::new(BucketIndex(255));
        assert_eq!((bucket.ids.capacity(), bucket.contacts.capacity()), (0, 0));
        let mut capacities = Vec::new();
        for low in 0..20 {
            add(&mut bucket, id(255, low), 20);
            capacities.push(bucket.ids.capacity());
            assert_eq!(bucket.ids.capacity(), bucket.contacts.capacity());
            assert_eq!(bucket.ids.capacity(), bucket.seen.capacity());
        }
        capacities.dedup();
        assert_eq!(capacities, [4, 10, 20]);
    }

    #[test]
    fn node_is_found_wherever_its_id_differs_from_the_others() {
        // In bucket 255 the windows of all these ids are equal, in the others not.
        for index in [255, 200, 64, 63, 56, 24, 16] {
            let lows = [7, 3, 300, 255, 256, 65_535, 0, 9];
            let mut bucket = filled(index, lows.into_iter());
            assert!(bucket.ids.is_sorted());
            for low in lows {
                assert!(bucket.get(&id(index, low)).is_some(), "{index} {low}");
                assert!(bucket.get(&id(index, low ^ 0x4000)).is_none(), "{index} {low}");
            }
            for (left, low) in (0..lows.len()).rev().zip(lows) {
                assert!(bucket.unset(&id(index, low)).is_some());
                assert!(bucket.unset(&id(index, low)).is_none());
                assert_eq!((bucket.len(), bucket.is_empty()), (left, left == 0));
            }
        }
    }

    #[test]
    fn closest_nodes_are_exact_for_equal_and_different_windows() {
        // Room for one id in bucket 0, two in bucket 1 and so on; their last bits do not fit into a
        // sort key.
        for (index, lows) in [
            (0, 0..1u16),
            (1, 0..2),
            (3, 0..8),
            (7, 0..100),
            (8, 0..200),
            (60, 0..250),
            (255, 0..250),
        ] {
            let bucket =
                filled(index, lows.map(|low| low.wrapping_mul(if index < 9 { 1 } else { 257 })));
            for target in [
                id(index, 0),
                id(index, 90),
                id(255, 0xA5A5),
                id(9, 77),
                NodeId::from_bytes([0; 32]),
            ] {
                let mut expected: Vec<_> = bucket.ids.clone();
                expected.sort_by_key(|id| id.distance(&target));
                for room in [0, 1, 2, 19, 100, 249, 250, 1000] {
                    let (mut keys, mut closest) = (alloc::vec![99; 3], Vec::new());
                    bucket.closest(&target, room, &mut keys, &mut closest);
                    let closest: Vec<_> = closest.into_iter().map(|(id, _)| id).collect();
                    assert_eq!(closest, expected[..room.min(bucket.len())], "{index} {room}");
                }
            }
        }
    }
}
