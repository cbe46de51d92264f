//! After a quiet period, every node knows its neighborhood, and a node in every bucket.

use std::collections::{BTreeMap, BTreeSet};

use pk_proto::{BucketIndex, ConnectionInfo, NodeId};

use super::violation::Violation;

/// Checks the contacts of live nodes: each has the `bucket_limit` nearest ones, as far as a bucket
/// has room for all of its nodes, and a node in each bucket that has live nodes. Returns the number
/// of checked pairs.
pub(crate) fn check(
    nodes: &[(NodeId, BTreeSet<NodeId>)],
    bucket_limit: usize,
) -> Result<u64, Violation> {
    let mut pairs = 0;
    for (own, known) in nodes {
        let mut others: Vec<_> =
            nodes.iter().map(|(node, _)| *node).filter(|node| node != own).collect();
        others.sort_by_key(|node| own.distance(node));
        let in_bucket = |bucket: Option<BucketIndex>| {
            others.iter().filter(move |node| own.bucket_index(node) == bucket)
        };
        for (place, other) in others.iter().enumerate() {
            let bucket = own.bucket_index(other);
            let near = place < bucket_limit && in_bucket(bucket).count() <= bucket_limit;
            if near && !known.contains(other) {
                return Err(violation(format!(
                    "{own} has no contact for {other}, its neighbor number {place}"
                )));
            }
            if !in_bucket(bucket).any(|node| known.contains(node)) {
                return Err(violation(format!(
                    "{own} has no contact in bucket {bucket:?}, where {other} is"
                )));
            }
            pairs += 1;
        }
    }
    Ok(pairs)
}

/// Checks the connections between live nodes: none is suspected, and both ends use the same one.
/// Returns the number of checked pairs.
pub(crate) fn check_primaries(nodes: &[(NodeId, Vec<ConnectionInfo>)]) -> Result<u64, Violation> {
    let mut primaries = BTreeMap::new();
    for (own, connections) in nodes {
        for info in
            connections.iter().filter(|info| nodes.iter().any(|(node, _)| *node == info.node))
        {
            if info.suspected {
                return Err(violation(format!(
                    "{own} still suspects connection {} with {}",
                    info.conn, info.node
                )));
            }
            if info.primary && primaries.insert((*own, info.node), info.shared_id.clone()).is_some()
            {
                return Err(violation(format!(
                    "{own} has two primary connections with {}",
                    info.node
                )));
            }
        }
    }
    for ((own, peer), used) in &primaries {
        let theirs = primaries.get(&(*peer, *own));
        if theirs != Some(used) {
            return Err(violation(format!(
                "{own} uses connection {used:?} with {peer}, which uses {theirs:?}"
            )));
        }
    }
    Ok(primaries.len() as u64)
}

fn violation(what: String) -> Violation {
    Violation::new("convergence", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::identity::Key;

    fn all(count: u64) -> Vec<(NodeId, BTreeSet<NodeId>)> {
        let ids: BTreeSet<_> = (0..count).map(|index| Key::numbered(3, index).id()).collect();
        ids.iter()
            .map(|id| (*id, ids.iter().copied().filter(|other| other != id).collect()))
            .collect()
    }

    fn connected(with: NodeId, shared_id: u8, primary: bool) -> ConnectionInfo {
        ConnectionInfo {
            conn: pk_proto::ConnectionId(shared_id.into()),
            node: with,
            address: "10.0.0.1:1".parse().unwrap(),
            data: pk_proto::NodeContactAddressData {
                mode: pk_proto::ContactMode::Direct,
                connected_time: pk_proto::UnixMillis(0),
                scopes: pk_proto::Scopes::GLOBAL,
            },
            shared_id: vec![shared_id].into(),
            primary,
            suspected: false,
            idle_in: None,
        }
    }

    #[test]
    fn planted_disagreements_are_caught() {
        let [a, b] = [1, 2].map(|index| Key::numbered(3, index).id());
        let agreed = vec![
            (a, vec![connected(b, 1, true), connected(b, 2, false)]),
            (b, vec![connected(a, 1, true), connected(a, 2, false)]),
        ];
        assert_eq!(check_primaries(&agreed), Ok(2));
        let mut other = agreed.clone();
        other[1].1 = vec![connected(a, 1, false), connected(a, 2, true)];
        assert!(check_primaries(&other).unwrap_err().what.contains("which uses"));
        let mut dead = agreed.clone();
        dead[1].1.clear();
        assert!(check_primaries(&dead).unwrap_err().what.contains("which uses None"));
        let mut silent = agreed;
        silent[0].1[1].suspected = true;
        assert!(check_primaries(&silent).unwrap_err().what.contains("still suspects"));
    }

    #[test]
    fn complete_graphs_have_converged() {
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
        // A missing far node does not matter, the missing nearest one does.
        assert!(nodes[7].1.remove(order.last().unwrap()));
        assert!(check(&nodes, 3).is_ok());
        assert!(nodes[7].1.remove(&order[0]));
        assert!(check(&nodes, 3).unwrap_err().what.contains("neighbor number 0"));
        // No node in the farther half of all ids.
        let mut nodes = all(60);
        nodes[7].1.retain(|node| own.bucket_index(node) != Some(BucketIndex(255)));
        assert!(check(&nodes, 3).unwrap_err().what.contains("no contact in bucket"));
    }
}
