//! The candidates of a search, by their distance to the target; the farthest idle one leaves when there are too many.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::State;
use crate::address::NodeAddress;
use crate::connect::Learnt;
use crate::id::{Distance, NodeId};

/// Relays remembered for one candidate.
const MAX_RELAYS: usize = 4;

/// A node that a search has heard of.
#[derive(Debug)]
pub(super) struct Candidate {
    node: NodeId,
    /// Who told of it first; `None` if we knew it ourselves.
    pub(super) told_by: Option<NodeId>,
    /// Where it may be, in the order in which we were told, and how we know.
    pub(super) addresses: Vec<(NodeAddress, Learnt)>,
    /// Connected nodes that are connected with it, and can signal.
    pub(super) relays: Vec<NodeId>,
    /// It was asked on a connection that was dead already.
    pub(super) was_lost: bool,
    pub(super) state: State,
}

/// What a search learns by a word about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing, or there is no room for it.
    None,
    /// An address or a relay of a node that it knew.
    Way,
    /// A node.
    Node,
}

/// All candidates of a search.
#[derive(Debug)]
pub(super) struct Candidates {
    target: NodeId,
    limit: usize,
    address_limit: usize,
    by_distance: BTreeMap<Distance, Candidate>,
}

impl Candidates {
    pub(super) fn new(target: NodeId, limit: usize, address_limit: usize) -> Self {
        Self { target, limit, address_limit, by_distance: BTreeMap::new() }
    }

    /// Takes in a node, or new addresses or another relay of a known one; one that had failed gets another chance by
    /// them, as long as there is room.
    pub(super) fn add(
        &mut self,
        node: NodeId,
        told_by: Option<NodeId>,
        addresses: impl IntoIterator<Item = (NodeAddress, Learnt)>,
        relay: Option<NodeId>,
    ) -> News {
        let distance = self.target.distance(&node);
        let known = self.by_distance.contains_key(&distance);
        let candidate = self.by_distance.entry(distance).or_insert_with(|| Candidate {
            node,
            told_by,
            addresses: Vec::new(),
            relays: Vec::new(),
            was_lost: false,
            state: State::Known,
        });
        let mut news = if known { News::None } else { News::Node };
        let mut new_way = false;
        for address in addresses {
            let known = candidate.addresses.iter().any(|(known, _)| *known == address.0);
            if candidate.addresses.len() < self.address_limit && !known {
                candidate.addresses.push(address);
                new_way = true;
            }
        }
        if let Some(relay) = relay
            && candidate.relays.len() < MAX_RELAYS
            && !candidate.relays.contains(&relay)
        {
            candidate.relays.push(relay);
            new_way = true;
        }
        if new_way && known {
            news = News::Way;
        }
        if new_way && candidate.state == State::Failed {
            candidate.state = State::Known;
        }
        if self.by_distance.len() > self.limit {
            let idle = self.by_distance.iter().rev().find(|(_, c)| !matches!(c.state, State::Running { .. }));
            if let Some(farthest) = idle.map(|(distance, _)| *distance) {
                self.by_distance.remove(&farthest);
                return if farthest == distance { News::None } else { news };
            }
        }
        news
    }

    pub(super) fn get(&self, node: &NodeId) -> Option<&Candidate> {
        self.by_distance.get(&self.target.distance(node))
    }

    pub(super) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Candidate> {
        self.by_distance.get_mut(&self.target.distance(node))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Candidate)> {
        self.by_distance.values().map(|candidate| (candidate.node, candidate))
    }

    /// The nearest candidates up to and including the `count`-th that has not failed.
    pub(super) fn closest(&self, count: usize) -> impl Iterator<Item = (NodeId, &Candidate)> {
        let alive = self.by_distance.values().filter(|candidate| candidate.state != State::Failed);
        alive.take(count).map(|candidate| (candidate.node, candidate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(first: u8) -> NodeId {
        let mut bytes = [0; 32];
        bytes[0] = first;
        NodeId::from_bytes(bytes)
    }

    fn address(text: &str) -> [(NodeAddress, Learnt); 1] {
        [(text.parse().unwrap(), Learnt::DIRECT)]
    }

    fn nodes(candidates: &Candidates, count: usize) -> Vec<NodeId> {
        candidates.closest(count).map(|(node, _)| node).collect()
    }

    #[test]
    fn the_farthest_leaves_when_there_are_too_many() {
        let mut candidates = Candidates::new(id(0), 2, 2);
        for first in [3, 1, 2] {
            assert_eq!(candidates.add(id(first), None, address("10.0.0.1:1"), None), News::Node);
        }
        assert_eq!(nodes(&candidates, 9), [id(1), id(2)]);
        assert_eq!(
            candidates.add(id(9), None, address("10.0.0.1:1"), None),
            News::None,
            "a farther one does not enter"
        );
        assert_eq!(nodes(&candidates, 9), [id(1), id(2)]);
    }

    #[test]
    fn a_running_contact_is_never_dropped() {
        let mut candidates = Candidates::new(id(0), 1, 2);
        candidates.add(id(3), None, address("10.0.0.1:1"), None);
        candidates.get_mut(&id(3)).unwrap().state = State::Running { step: 0, stalled: false };
        candidates.add(id(1), None, address("10.0.0.1:1"), None);
        assert!(candidates.get(&id(3)).is_some());
    }

    #[test]
    fn failed_ones_make_room_for_the_next_and_a_new_address_is_another_chance() {
        let mut candidates = Candidates::new(id(0), 9, 2);
        for first in [1, 2, 3] {
            candidates.add(id(first), None, address("10.0.0.1:1"), None);
        }
        candidates.get_mut(&id(1)).unwrap().state = State::Failed;
        assert_eq!(nodes(&candidates, 2), [id(2), id(3)]);
        assert_eq!(candidates.add(id(1), Some(id(2)), address("10.0.0.1:1"), None), News::None);
        assert_eq!(nodes(&candidates, 2), [id(2), id(3)], "the same address is no news");
        assert_eq!(candidates.add(id(1), Some(id(2)), address("10.0.0.2:1"), None), News::Way);
        assert_eq!(nodes(&candidates, 2), [id(1), id(2)]);
    }
}
