//! The allow-list of claims, with the changes that are being written.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::shares::decrement;
use crate::types::id::NodeId;

/// The nodes on the allow-list.
#[derive(Debug, Default)]
pub(in crate::manager) struct AllowList {
    allowed: BTreeSet<NodeId>,
    /// Nodes that are being added, with the number of writes.
    adding: BTreeMap<NodeId, usize>,
    /// Number of those that are not on the list.
    coming: usize,
}

impl AllowList {
    pub(in crate::manager) fn new(allowed: impl Iterator<Item = NodeId>) -> Self {
        Self { allowed: allowed.collect(), ..Self::default() }
    }

    /// Returns the nodes on the list.
    pub(in crate::manager) fn nodes(&self) -> &BTreeSet<NodeId> {
        &self.allowed
    }

    /// Returns whether a node can be added within a limit, in addition to those that are being
    /// written. A node that is on the list, or is being added, needs no room.
    pub(in crate::manager) fn has_room_for(&self, node: &NodeId, limit: usize) -> bool {
        self.allowed.contains(node)
            || self.adding.contains_key(node)
            || self.allowed.len() + self.coming < limit
    }

    /// The write of a change begins.
    pub(in crate::manager) fn begin(&mut self, node: NodeId, allowed: bool) {
        if allowed {
            self.change(node, |list| *list.adding.entry(node).or_default() += 1);
        }
    }

    /// The write of a change has ended. If it was written, the change takes effect.
    pub(in crate::manager) fn end(&mut self, node: NodeId, allowed: bool, written: bool) {
        self.change(node, |list| {
            if allowed {
                decrement(&mut list.adding, &node);
            }
            match (written, allowed) {
                (true, true) => drop(list.allowed.insert(node)),
                (true, false) => drop(list.allowed.remove(&node)),
                (false, _) => {}
            }
        });
    }

    fn change(&mut self, node: NodeId, change: impl FnOnce(&mut Self)) {
        self.coming -= usize::from(self.is_coming(&node));
        change(self);
        self.coming += usize::from(self.is_coming(&node));
    }

    fn is_coming(&self, node: &NodeId) -> bool {
        self.adding.contains_key(node) && !self.allowed.contains(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_counts_listed_nodes_and_those_being_added_once() {
        let node = |number| NodeId::from_bytes([number; 32]);
        let mut list = AllowList::new([node(1)].into_iter());
        // Pending writes of each node, and whether it is listed.
        let mut model: BTreeMap<NodeId, (usize, bool)> = BTreeMap::from([(node(1), (0, true))]);
        let mut random = 1u64;
        for _ in 0..2000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(7);
            let (chosen, what) = (node((random >> 40) as u8 % 5), random >> 60);
            let (pending, listed) = model.entry(chosen).or_default();
            match what {
                0..6 => {
                    list.begin(chosen, true);
                    *pending += 1;
                }
                6..12 if *pending > 0 => {
                    list.end(chosen, true, what < 10);
                    *pending -= 1;
                    *listed |= what < 10;
                }
                _ => {
                    list.begin(chosen, false);
                    list.end(chosen, false, what < 15);
                    *listed &= what == 15;
                }
            }
            let used = model.values().filter(|(pending, listed)| *listed || *pending > 0).count();
            for limit in 0..6 {
                let (pending, listed) = model.get(&chosen).copied().unwrap_or_default();
                let expected = listed || pending > 0 || used < limit;
                assert_eq!(list.has_room_for(&chosen, limit), expected);
                assert_eq!(list.has_room_for(&node(9), limit), used < limit);
            }
            assert!(model.iter().all(|(node, (_, listed))| list.nodes().contains(node) == *listed));
        }
    }
}
