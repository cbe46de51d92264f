//! The nodes that a race may ask to relay, each of them once.

use alloc::vec::Vec;

use crate::types::id::NodeId;

/// Maximum number of nodes that one race asks to relay.
const LIMIT: usize = 12;

/// The nodes that may relay for one race.
#[derive(Debug, Default)]
pub(super) struct Forwarders {
    /// Those that were not asked, in the order in which they became known.
    waiting: Vec<NodeId>,
    asked: Vec<NodeId>,
}

impl Forwarders {
    /// Adds a node, unless it is known or there are too many. Returns whether it was added.
    pub(super) fn add(&mut self, node: NodeId) -> bool {
        let known = self.waiting.contains(&node) || self.asked.contains(&node);
        if known || self.waiting.len() + self.asked.len() >= LIMIT {
            return false;
        }
        self.waiting.push(node);
        true
    }

    /// Returns the next node to ask: the first one with the least `rank`.
    pub(super) fn next<R: Ord>(&mut self, rank: impl Fn(&NodeId) -> R) -> Option<NodeId> {
        let best = self.waiting.iter().enumerate().min_by_key(|(_, node)| rank(node));
        let at = best.map(|(at, _)| at)?;
        let node = self.waiting.remove(at);
        self.asked.push(node);
        Some(node)
    }

    /// Returns the nodes that wait to be asked.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &NodeId> {
        self.waiting.iter()
    }

    /// Returns whether no node waits to be asked.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns whether a node was asked.
    pub(super) fn has_asked(&self) -> bool {
        !self.asked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    #[test]
    fn node_with_the_least_rank_is_asked_first_and_each_once() {
        let mut forwarders = Forwarders::default();
        for (number, added) in [(3, true), (1, true), (2, true), (1, false)] {
            assert_eq!(forwarders.add(node(number)), added);
        }
        assert!(!forwarders.has_asked());
        let asked: Vec<_> = core::iter::from_fn(|| forwarders.next(|node| *node)).collect();
        assert_eq!(asked, [node(1), node(2), node(3)]);
        assert!(forwarders.is_empty() && forwarders.has_asked());
        assert!(!forwarders.add(node(2)), "it was asked");
    }

    #[test]
    fn one_race_asks_a_bounded_number_of_nodes() {
        let mut forwarders = Forwarders::default();
        let added = (0..40).filter(|number| forwarders.add(node(*number))).count();
        let asked = core::iter::from_fn(|| forwarders.next(|_| ())).count();
        let later = (40..80).filter(|number| forwarders.add(node(*number))).count();
        assert_eq!((added, asked, later), (LIMIT, LIMIT, 0));
    }
}
