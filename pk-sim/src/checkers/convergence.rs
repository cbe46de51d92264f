//! After calm, everybody knows their neighbourhood, and somebody in every direction.

use std::collections::BTreeSet;

use pk_proto::{BucketIndex, NodeId};

use super::Violation;

/// Checks what live nodes know of each other: each knows the `bucket_limit` nearest ones, as far as a bucket has room for all of
/// its nodes, and somebody in each bucket that has nodes. Returns how many pairs were looked at.
pub(crate) fn check(nodes: &[(NodeId, BTreeSet<NodeId>)], bucket_limit: usize) -> Result<u64, Violation> {
    let mut pairs = 0;
    for (own, known) in nodes {
        let mut others: Vec<_> = nodes.iter().map(|(node, _)| *node).filter(|node| node != own).collect();
        others.sort_by_key(|node| own.distance(node));
        let in_bucket =
            |bucket: Option<BucketIndex>| others.iter().filter(move |node| own.bucket_index(node) == bucket);
        for (place, other) in others.iter().enumerate() {
            let bucket = own.bucket_index(other);
            let near = place < bucket_limit && in_bucket(bucket).count() <= bucket_limit;
            if near && !known.contains(other) {
                return Err(violation(format!("{own} does not know {other}, its neighbour number {place}")));
            }
            if !in_bucket(bucket).any(|node| known.contains(node)) {
                return Err(violation(format!("{own} knows nobody in bucket {bucket:?}, where {other} is")));
            }
            pairs += 1;
        }
    }
    Ok(pairs)
}

fn violation(what: String) -> Violation {
    Violation::new("convergence", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Key;

    fn all(count: u64) -> Vec<(NodeId, BTreeSet<NodeId>)> {
        let ids: BTreeSet<_> = (0..count).map(|index| Key::numbered(3, index).id()).collect();
        ids.iter().map(|id| (*id, ids.iter().copied().filter(|other| other != id).collect())).collect()
    }

    #[test]
    fn who_knows_everybody_has_converged() {
        assert_eq!(check(&all(10), 20), Ok(90));
        assert_eq!(check(&all(60), 2), Ok(60 * 59));
        assert_eq!(check(&[], 20), Ok(0));
    }

    #[test]
    fn planted_gaps_are_caught() {
        let mut nodes = all(60);
        let own = nodes[7].0;
        let mut order: Vec<_> = nodes[7].1.iter().copied().collect();
        order.sort_by_key(|node| own.distance(node));
        // One that is far away does not matter, the nearest one does.
        assert!(nodes[7].1.remove(order.last().unwrap()));
        assert!(check(&nodes, 3).is_ok());
        assert!(nodes[7].1.remove(&order[0]));
        assert!(check(&nodes, 3).unwrap_err().what.contains("neighbour number 0"));
        // Nobody in the farther half of all ids.
        let mut nodes = all(60);
        nodes[7].1.retain(|node| own.bucket_index(node) != Some(BucketIndex(255)));
        assert!(check(&nodes, 3).unwrap_err().what.contains("nobody in bucket"));
    }
}
