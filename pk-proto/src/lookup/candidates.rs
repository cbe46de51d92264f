//! The candidates of a search, by their distance to the target; the farthest idle one is dropped if
//! there are too many.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::machine::dial::AddressOrigin;
use crate::types::address::NodeAddress;
use crate::types::id::{Distance, NodeId};

/// Maximum number of relays of one candidate.
const MAX_RELAYS: usize = 4;

/// A node that was reported to a search.
#[derive(Debug)]
pub(super) struct Candidate {
    node: NodeId,
    /// Node that reported it first; `None` if it came from the local node.
    pub(super) reported_by: Option<NodeId>,
    /// Addresses in the order of the reports, with their origin.
    pub(super) addresses: Vec<(NodeAddress, AddressOrigin)>,
    /// Connected nodes that are connected to it, and can signal.
    pub(super) relays: Vec<NodeId>,
    /// Whether it was asked on a connection that was already dead.
    pub(super) was_lost: bool,
    pub(super) state: State,
}

/// Result of adding a reported node to the candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inserted {
    /// Nothing new, or no room.
    Nothing,
    /// A new address or relay of a known candidate.
    Route,
    /// A new candidate.
    Candidate,
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

    /// Adds a node, or new addresses or another relay of a candidate. A failed candidate becomes
    /// eligible again by them, as long as there is room.
    pub(super) fn add(
        &mut self,
        node: NodeId,
        reported_by: Option<NodeId>,
        addresses: impl IntoIterator<Item = (NodeAddress, AddressOrigin)>,
        relay: Option<NodeId>,
    ) -> Inserted {
        let distance = self.target.distance(&node);
        let known = self.by_distance.contains_key(&distance);
        let candidate = self.by_distance.entry(distance).or_insert_with(|| Candidate {
            node,
            reported_by,
            addresses: Vec::new(),
            relays: Vec::new(),
            was_lost: false,
            state: State::Known,
        });
        let mut inserted = if known { Inserted::Nothing } else { Inserted::Candidate };
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
            inserted = Inserted::Route;
        }
        if new_way && candidate.state == State::Failed {
            candidate.state = State::Known;
        }
        if self.by_distance.len() > self.limit {
            // Running contacts occupy no place: a nearer node is never refused because of one.
            let mut idle =
                self.by_distance.iter().filter(|(_, c)| !matches!(c.state, State::Running { .. }));
            let farthest = idle.next_back().map(|(distance, _)| *distance);
            if let Some(farthest) = farthest.filter(|_| idle.count() >= self.limit) {
                self.by_distance.remove(&farthest);
                return if farthest == distance { Inserted::Nothing } else { inserted };
            }
        }
        inserted
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

    /// Returns the nearest candidates up to and including the `count`-th that has not failed.
    pub(super) fn closest(&self, count: usize) -> impl Iterator<Item = (NodeId, &Candidate)> {
        let alive = self.by_distance.values().filter(|candidate| candidate.state != State::Failed);
        alive.take(count).map(|candidate| (candidate.node, candidate))
    }
}

/// State of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not contacted, or not since it got new addresses.
    Known,
    /// Being dialed or asked.
    Running { step: usize, stalled: bool },
    /// Answered, or connected without a valid answer.
    Done,
    /// No connection.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(first: u8) -> NodeId {
        let mut bytes = [0; 32];
        bytes[0] = first;
        NodeId::from_bytes(bytes)
    }

    fn address(text: &str) -> [(NodeAddress, AddressOrigin); 1] {
        [(text.parse().unwrap(), AddressOrigin::DIRECT)]
    }

    fn nodes(candidates: &Candidates, count: usize) -> Vec<NodeId> {
        candidates.closest(count).map(|(node, _)| node).collect()
    }

    #[test]
    fn the_farthest_leaves_when_there_are_too_many() {
        let mut candidates = Candidates::new(id(0), 2, 2);
        for first in [3, 1, 2] {
            assert_eq!(
                candidates.add(id(first), None, address("10.0.0.1:1"), None),
                Inserted::Candidate
            );
        }
        assert_eq!(nodes(&candidates, 9), [id(1), id(2)]);
        assert_eq!(
            candidates.add(id(9), None, address("10.0.0.1:1"), None),
            Inserted::Nothing,
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
        assert!(candidates.get(&id(1)).is_some(), "nor does it turn a nearer one away");
        assert_eq!(candidates.add(id(2), None, address("10.0.0.1:1"), None), Inserted::Nothing);
    }

    #[test]
    fn failed_ones_make_room_for_the_next_and_a_new_address_is_another_chance() {
        let mut candidates = Candidates::new(id(0), 9, 2);
        for first in [1, 2, 3] {
            candidates.add(id(first), None, address("10.0.0.1:1"), None);
        }
        candidates.get_mut(&id(1)).unwrap().state = State::Failed;
        assert_eq!(nodes(&candidates, 2), [id(2), id(3)]);
        assert_eq!(
            candidates.add(id(1), Some(id(2)), address("10.0.0.1:1"), None),
            Inserted::Nothing
        );
        assert_eq!(nodes(&candidates, 2), [id(2), id(3)], "the same address is no news");
        assert_eq!(
            candidates.add(id(1), Some(id(2)), address("10.0.0.2:1"), None),
            Inserted::Route
        );
        assert_eq!(nodes(&candidates, 2), [id(1), id(2)]);
    }
}
