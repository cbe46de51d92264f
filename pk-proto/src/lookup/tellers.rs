//! Which node reported which candidate. Beyond the closest nodes a search takes turns among the
//! reporters, so that a few that lie together do not choose all of its contacts.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::types::id::Distance;

/// Reporter of a candidate, by its distance; `None` is the local node.
pub(super) type Teller = Option<Distance>;

/// The candidates that were not contacted, by distance and by reporter.
#[derive(Debug, Default)]
pub(super) struct Tellers {
    nearest: BTreeSet<Distance>,
    tellers: BTreeMap<Teller, Told>,
    /// The nearest candidate of each reporter that has one, in the order of the turns.
    turns: BTreeSet<(u32, Distance, Teller)>,
}

/// The candidates of one reporter.
#[derive(Debug, Default)]
struct Told {
    candidates: BTreeSet<Distance>,
    /// Number of its candidates that were contacted.
    contacted: u32,
    /// Number of reporters from the local node to its candidates.
    depth: u32,
    /// Its entry in the turns.
    turn: Option<(u32, Distance)>,
}

impl Tellers {
    /// Adds a candidate that can be contacted.
    pub(super) fn add(&mut self, teller: Teller, depth: u32, candidate: Distance) {
        self.nearest.insert(candidate);
        let told = self.tellers.entry(teller).or_insert_with(|| Told { depth, ..Told::default() });
        told.candidates.insert(candidate);
        self.take_turn(teller);
    }

    /// Removes a candidate.
    pub(super) fn remove(&mut self, teller: Teller, candidate: Distance) {
        self.nearest.remove(&candidate);
        if let Some(told) = self.tellers.get_mut(&teller) {
            told.candidates.remove(&candidate);
        }
        self.take_turn(teller);
    }

    /// Counts a contacted candidate of a reporter.
    pub(super) fn contacted(&mut self, teller: Teller) {
        let told = self.tellers.entry(teller).or_default();
        told.contacted = told.contacted.saturating_add(1);
        self.take_turn(teller);
    }

    /// Returns the nearest candidate.
    pub(super) fn nearest(&self) -> Option<Distance> {
        self.nearest.first().copied()
    }

    /// Returns the nearest candidate of the reporter whose turn it is: that of the fewest
    /// contacted candidates. Each step of depth counts as two of these. The local node knows
    /// many buckets, so that its candidates count a quarter.
    pub(super) fn next_in_turn(&self) -> Option<Distance> {
        self.turns.first().map(|(_, candidate, _)| *candidate)
    }

    fn take_turn(&mut self, teller: Teller) {
        let Some(told) = self.tellers.get_mut(&teller) else { return };
        if let Some((order, candidate)) = told.turn.take() {
            self.turns.remove(&(order, candidate, teller));
        }
        if let Some(candidate) = told.candidates.first().copied() {
            let weight = if teller.is_none() { 4 } else { 1 };
            let order = (told.contacted / weight).saturating_add(2 * told.depth);
            told.turn = Some((order, candidate));
            self.turns.insert((order, candidate, teller));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(first: u8) -> Distance {
        let mut bytes = [0; 32];
        bytes[0] = first;
        Distance::from_bytes(bytes)
    }

    #[test]
    fn reporters_take_turns_and_each_reports_its_nearest() {
        let mut tellers = Tellers::default();
        let (one, other) = (Some(at(100)), Some(at(101)));
        for candidate in [1, 2, 3] {
            tellers.add(one, 2, at(candidate));
        }
        tellers.add(other, 2, at(9));
        assert_eq!((tellers.nearest(), tellers.next_in_turn()), (Some(at(1)), Some(at(1))));
        tellers.remove(one, at(1));
        tellers.contacted(one);
        assert_eq!((tellers.nearest(), tellers.next_in_turn()), (Some(at(2)), Some(at(9))));
        tellers.remove(other, at(9));
        assert_eq!(tellers.next_in_turn(), Some(at(2)), "the other has none left");
        tellers.add(None, 1, at(200));
        assert_eq!(tellers.next_in_turn(), Some(at(200)), "a step of depth counts as two");
    }
}
