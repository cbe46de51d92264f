//! The ids closest to a target in an ordered map, without looking at the others.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::id::{BucketIndex, NodeId};

/// Returns the `limit` keys closest to `target`, nearest first.
///
/// The ids with a common prefix are a range of the map, and within it those that have the next bit
/// of the target are nearer than the others. So ranges are split at the first bit in which their
/// ends differ, and the nearer half comes first. The number of splits depends on `limit` and on the
/// depth of the ids, not on the size of the map.
pub(crate) fn closest<V>(map: &BTreeMap<NodeId, V>, target: &NodeId, limit: usize) -> Vec<NodeId> {
    let ends = |low: NodeId, high: NodeId| {
        let mut range = map.range(low..=high).map(|(id, _)| *id);
        let first = range.next()?;
        Some((first, range.next_back().unwrap_or(first)))
    };
    split(ends, target, limit)
}

/// Splits ranges until `limit` ids are found. `ends` returns the least and the greatest id of a
/// range.
fn split(
    mut ends: impl FnMut(NodeId, NodeId) -> Option<(NodeId, NodeId)>,
    target: &NodeId,
    limit: usize,
) -> Vec<NodeId> {
    let mut closest = Vec::new();
    let mut ranges = Vec::new();
    ranges.extend(ends(NodeId::from_bytes([0; 32]), NodeId::from_bytes([255; 32])));
    while closest.len() < limit
        && let Some((first, last)) = ranges.pop()
    {
        let Some(bucket) = first.bucket_index(&last) else {
            closest.push(first);
            continue;
        };
        // `first` has 0 at this bit, `last` has 1.
        let zeros = ends(first, filled(&first, bucket, true));
        let ones = ends(filled(&last, bucket, false), last);
        let (near, far) = if bit(target, bucket) { (ones, zeros) } else { (zeros, ones) };
        ranges.extend(far);
        ranges.extend(near);
    }
    closest
}

/// Returns an id of a bucket of `own`.
pub(crate) fn member(own: &NodeId, bucket: BucketIndex) -> NodeId {
    let mut bytes = *own.as_bytes();
    if let Some(byte) = bytes.get_mut(31 - usize::from(bucket.0 / 8)) {
        *byte ^= 1 << (bucket.0 % 8);
    }
    NodeId::from_bytes(bytes)
}

fn bit(id: &NodeId, bucket: BucketIndex) -> bool {
    let byte = id.as_bytes().get(31 - usize::from(bucket.0 / 8)).copied().unwrap_or_default();
    byte & 1 << (bucket.0 % 8) != 0
}

/// Returns an id with all bits below this one set or cleared.
fn filled(id: &NodeId, below: BucketIndex, set: bool) -> NodeId {
    let mut bytes = *id.as_bytes();
    let at = 31 - usize::from(below.0 / 8);
    let low = (1u8 << (below.0 % 8)) - 1;
    for (place, byte) in bytes.iter_mut().enumerate().skip(at) {
        let mask = if place == at { low } else { 255 };
        *byte = if set { *byte | mask } else { *byte & !mask };
    }
    NodeId::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids of which many share long prefixes.
    fn ids(count: u64) -> Vec<NodeId> {
        let id = |number: u64| {
            let mut bytes = [0; 32];
            let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
            bytes[..2].copy_from_slice(&(random as u16 % 37).to_be_bytes());
            bytes[24..].copy_from_slice(&(random >> (number % 50)).to_be_bytes());
            NodeId::from_bytes(bytes)
        };
        (0..count).map(id).collect()
    }

    #[test]
    fn closest_ids_are_those_of_a_sorted_list() {
        for count in [0, 1, 2, 3, 50, 400] {
            let map: BTreeMap<NodeId, ()> = ids(count).into_iter().map(|id| (id, ())).collect();
            for target in ids(40).into_iter().chain([NodeId::from_bytes([255; 32])]) {
                for limit in [0, 1, 7, 20, 1000] {
                    let mut sorted: Vec<_> = map.keys().copied().collect();
                    sorted.sort_unstable_by_key(|id| id.distance(&target));
                    sorted.truncate(limit);
                    assert_eq!(closest(&map, &target, limit), sorted, "{count} {limit}");
                }
            }
        }
    }

    /// The number of look-ups does not grow with the map, so that it is a test of growth that
    /// counts and needs no clock.
    #[test]
    fn fifty_times_as_many_ids_cost_hardly_more_look_ups() {
        let random = |seed: u64| {
            let hash = blake3::hash(&seed.to_be_bytes());
            NodeId::from_bytes(*hash.as_bytes())
        };
        let look_ups = |count: u64| {
            let map: BTreeMap<NodeId, ()> = (0..count).map(|seed| (random(seed), ())).collect();
            let mut look_ups = 0;
            for target in 0..50 {
                let ends = |low: NodeId, high: NodeId| {
                    look_ups += 1;
                    let mut range = map.range(low..=high).map(|(id, _)| *id);
                    let first = range.next()?;
                    Some((first, range.next_back().unwrap_or(first)))
                };
                assert_eq!(split(ends, &random(1_000_000 + target), 20).len(), 20);
            }
            look_ups
        };
        let (few, many) = (look_ups(100), look_ups(5000));
        assert!(many * 2 <= few * 3, "{few} and {many}");
    }

    #[test]
    fn member_is_in_its_bucket() {
        let own = NodeId::from_bytes([0xa5; 32]);
        for bucket in 0..=255 {
            let bucket = BucketIndex(bucket);
            assert_eq!(own.bucket_index(&member(&own, bucket)), Some(bucket));
        }
    }
}
