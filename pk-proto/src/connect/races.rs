//! The races in progress, by node and by waiter, so that nothing looks through all of them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::race::Race;
use crate::types::id::{ConnectionId, NodeId, RaceId, RequestId};
use crate::types::time::Instant;

/// All races in progress.
#[derive(Debug, Default)]
pub(super) struct Races {
    races: BTreeMap<RaceId, Race>,
    /// The race to each node that others may join.
    open: BTreeMap<NodeId, RaceId>,
    /// The races to each node.
    to: BTreeMap<NodeId, BTreeSet<RaceId>>,
    /// The races that each request waits for.
    of: BTreeMap<RequestId, BTreeSet<RaceId>>,
    /// The races whose next address waits for a place among the dials.
    delayed: BTreeSet<RaceId>,
    /// Those of them that the embedder waits for.
    urgent: BTreeSet<RaceId>,
    next: u64,
}

impl Races {
    /// Adds a race; `open`: others may join it.
    pub(super) fn start(&mut self, race: Race, open: bool) -> RaceId {
        let id = RaceId(self.next);
        self.next = self.next.saturating_add(1);
        if open {
            self.open.insert(race.node, id);
        }
        self.to.entry(race.node).or_default().insert(id);
        self.races.insert(id, race);
        id
    }

    /// Adds a waiter with its deadline, unless it waits already. Returns the race, and whether this
    /// is its first waiter.
    pub(super) fn join(
        &mut self,
        id: RaceId,
        waiter: RequestId,
        deadline: Instant,
    ) -> Option<(&mut Race, bool)> {
        let race = self.races.get_mut(&id)?;
        let first = race.waiters.is_empty();
        race.waiters.insert(waiter, deadline);
        self.of.entry(waiter).or_default().insert(id);
        Some((race, first))
    }

    /// Removes a waiter. Returns the race, if the waiter was one.
    pub(super) fn leave(&mut self, id: RaceId, waiter: RequestId) -> Option<&mut Race> {
        remove(&mut self.of, &waiter, id);
        let race = self.races.get_mut(&id)?;
        race.waiters.remove(waiter).then_some(race)
    }

    /// Removes a race with all its waiters.
    pub(super) fn remove(&mut self, id: RaceId) -> Option<Race> {
        let race = self.races.remove(&id)?;
        if self.open.get(&race.node) == Some(&id) {
            self.open.remove(&race.node);
        }
        remove(&mut self.to, &race.node, id);
        for waiter in race.waiters.ids() {
            remove(&mut self.of, &waiter, id);
        }
        self.set_delayed(id, false);
        Some(race)
    }

    pub(super) fn get(&self, id: RaceId) -> Option<&Race> {
        self.races.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: RaceId) -> Option<&mut Race> {
        self.races.get_mut(&id)
    }

    /// Returns the race to a node that others may join.
    pub(super) fn open_to(&self, node: &NodeId) -> Option<RaceId> {
        self.open.get(node).copied()
    }

    /// Returns the races to a node.
    pub(super) fn to(&self, node: &NodeId) -> impl Iterator<Item = (RaceId, &Race)> {
        let ids = self.to.get(node).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.races.get(id)?)))
    }

    /// Returns the races that a request waits for.
    pub(super) fn of(&self, waiter: RequestId) -> Vec<RaceId> {
        self.of.get(&waiter).into_iter().flatten().copied().collect()
    }

    /// Notes whether the next address of a race waits for a place among the dials.
    pub(super) fn set_delayed(&mut self, id: RaceId, delayed: bool) {
        if delayed {
            self.delayed.insert(id);
            if self.races.get(&id).is_some_and(|race| race.foreground) {
                self.urgent.insert(id);
            }
        } else {
            self.delayed.remove(&id);
            self.urgent.remove(&id);
        }
    }

    /// The embedder waits for a race. Returns its dials.
    pub(super) fn bring_forward(&mut self, id: RaceId) -> Vec<ConnectionId> {
        let Some(race) = self.races.get_mut(&id).filter(|race| !race.foreground) else {
            return Vec::new();
        };
        race.foreground = true;
        if self.delayed.contains(&id) {
            self.urgent.insert(id);
        }
        race.dialing.keys().copied().collect()
    }

    /// Returns the races that the embedder waits for and whose next address waits for a place among
    /// the dials.
    pub(super) fn urgent(&self) -> impl Iterator<Item = (RaceId, &Race)> {
        self.urgent.iter().filter_map(|id| Some((*id, self.races.get(id)?)))
    }

    /// Returns the ids of all races.
    pub(super) fn ids(&self) -> impl Iterator<Item = RaceId> {
        self.races.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.races.len()
    }
}

/// Removes a race from one set of a table, and the set if it is empty.
fn remove<K: Ord>(table: &mut BTreeMap<K, BTreeSet<RaceId>>, key: &K, id: RaceId) {
    if let Some(ids) = table.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            table.remove(key);
        }
    }
    if table.is_empty() {
        // An emptied tree holds memory, a new one does not.
        *table = BTreeMap::new();
    }
}
