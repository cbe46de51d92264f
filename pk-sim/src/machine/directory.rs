//! The true network: ids with addresses, and the nodes closest to a target.

use std::net::SocketAddr;

use pk_proto::{ContactMode, NodeContact, NodeContactAddressData, NodeId, Scopes, UnixMillis};

/// Nodes with their addresses, in the order of their ids.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    nodes: Vec<(NodeId, SocketAddr)>,
}

impl Directory {
    /// Creates a directory. Of several entries with one id, the first is used.
    pub fn new(nodes: impl IntoIterator<Item = (NodeId, SocketAddr)>) -> Self {
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        nodes.sort_by_key(|(id, _)| *id);
        nodes.dedup_by_key(|(id, _)| *id);
        Self { nodes }
    }

    /// Returns the number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether it has no nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns all nodes, in the order of their ids.
    pub fn nodes(&self) -> &[(NodeId, SocketAddr)] {
        &self.nodes
    }

    /// Returns the address of a node.
    pub fn address(&self, id: &NodeId) -> Option<SocketAddr> {
        let at = self.nodes.binary_search_by_key(id, |(id, _)| *id).ok()?;
        Some(self.nodes[at].1)
    }

    /// Returns the `count` nodes closest to `target`, nearest first, without the target itself.
    /// Costs a logarithm of the number of nodes, and `count`.
    pub fn closest(&self, target: &NodeId, count: usize) -> Vec<(NodeId, SocketAddr)> {
        let mut found = Vec::with_capacity(count);
        self.descend(target, count, 0, 0..self.nodes.len(), &mut found);
        found
    }

    /// Returns the nodes that differ from `id` in bit `depth` first: its bucket `255 - depth`.
    pub fn beside(&self, id: &NodeId, depth: usize) -> &[(NodeId, SocketAddr)] {
        let mut range = 0..self.nodes.len();
        for bit in 0..depth.min(255) {
            range = self.halves(id, bit, range).0;
        }
        &self.nodes[self.halves(id, depth.min(255), range).1]
    }

    fn descend(
        &self,
        target: &NodeId,
        count: usize,
        depth: usize,
        range: std::ops::Range<usize>,
        found: &mut Vec<(NodeId, SocketAddr)>,
    ) {
        if range.is_empty() || found.len() >= count {
            return;
        }
        if range.len() == 1 || depth == 256 {
            let others = self.nodes[range].iter().filter(|(id, _)| id != target);
            found.extend(others.take(count - found.len()));
            return;
        }
        let (near, far) = self.halves(target, depth, range);
        self.descend(target, count, depth + 1, near, found);
        self.descend(target, count, depth + 1, far, found);
    }

    /// Splits a range, whose ids agree in the first `depth` bits, into the ids that agree with `id`
    /// in the next one, and the others.
    fn halves(
        &self,
        id: &NodeId,
        depth: usize,
        range: std::ops::Range<usize>,
    ) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let middle =
            range.start + self.nodes[range.clone()].partition_point(|(node, _)| !bit(node, depth));
        let (zeros, ones) = (range.start..middle, middle..range.end);
        if bit(id, depth) { (ones, zeros) } else { (zeros, ones) }
    }
}

/// Returns a contact with one direct, global address.
pub(crate) fn contact(address: SocketAddr, connected: UnixMillis) -> NodeContact {
    let data = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: connected,
        scopes: Scopes::GLOBAL,
    };
    NodeContact::new(address.into(), data)
}

fn bit(id: &NodeId, depth: usize) -> bool {
    id.as_bytes()[depth / 8] >> (7 - depth % 8) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::identity::Key;

    fn directory(count: u64) -> Directory {
        let address = "20.0.0.1:1".parse().unwrap();
        Directory::new((0..count).map(|index| (Key::numbered(5, index).id(), address)))
    }

    #[test]
    fn closest_nodes_are_those_of_brute_force() {
        let directory = directory(200);
        for index in [3, 77, 500] {
            let target = Key::numbered(5, index).id();
            let mut all: Vec<_> = directory.nodes().iter().map(|(id, _)| *id).collect();
            all.retain(|id| *id != target);
            all.sort_by_key(|id| target.distance(id));
            for count in [0, 1, 20, 300] {
                let found: Vec<_> =
                    directory.closest(&target, count).into_iter().map(|(id, _)| id).collect();
                assert_eq!(found, all[..count.min(all.len())], "{index} {count}");
            }
        }
        assert!(Directory::default().closest(&Key::numbered(5, 0).id(), 3).is_empty());
    }

    #[test]
    fn bucket_has_the_nodes_of_its_distance() {
        let directory = directory(200);
        let own = Key::numbered(5, 9).id();
        let mut count = 0;
        for depth in 0..12 {
            for (id, _) in directory.beside(&own, depth) {
                assert_eq!(
                    own.bucket_index(id).map(|bucket| usize::from(bucket.0)),
                    Some(255 - depth)
                );
                count += 1;
            }
        }
        assert!((190..200).contains(&count), "{count}");
    }
}
