//! Counts the entries of a table by node, by network, and in total.
//!
//! Everything that peers can fill is counted here or in the same way. An entry counts for its
//! [`Source`]. When a limit of one source is reached, only that source is refused; the entries of
//! others are not affected.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::types::id::NodeId;
use crate::types::network::Network;
use crate::types::refusal::Refusal;

/// What an entry of a table counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    /// Oldest id that the node has proved. It does not change with renewals and is the same on all
    /// connections, so that no node has more than one share.
    pub(crate) node: NodeId,
    /// Network of the node.
    pub(crate) network: Network,
}

impl Source {
    /// Returns the source of a node, from the ids that it has proved, newest first.
    pub(crate) fn of(chain: &[NodeId], network: Network) -> Self {
        Self { node: chain.last().copied().unwrap_or(NodeId::from_bytes([0; 32])), network }
    }
}

/// Whose limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The limit of the node.
    Node,
    /// The limit of the network.
    Network,
    /// The limit of the table.
    Table,
}

impl From<Full> for Refusal {
    /// The refusal for a full table: the peer itself requests too much, or others do.
    fn from(full: Full) -> Self {
        match full {
            Full::Node | Full::Network => Self::RateLimited,
            Full::Table => Self::Busy,
        }
    }
}

/// Limits of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) total: usize,
    pub(crate) network: usize,
    pub(crate) node: usize,
}

impl Limits {
    /// Limits of a table with `total` entries, of which one network may have `share` percent, at
    /// least one, and one node half of that.
    pub(crate) fn new(total: usize, share: u32) -> Self {
        let share = usize::try_from(share).unwrap_or(100).min(100);
        let network = total.saturating_mul(share).div_ceil(100).max(1);
        Self { total, network, node: network.div_ceil(2) }
    }

    /// Sets the limit of one node.
    pub(crate) fn per_node(self, node: usize) -> Self {
        Self { node, ..self }
    }

    fn check(&self, total: usize, network: usize, node: usize) -> Result<(), Full> {
        if node >= self.node {
            Err(Full::Node)
        } else if network >= self.network {
            Err(Full::Network)
        } else if total >= self.total {
            Err(Full::Table)
        } else {
            Ok(())
        }
    }

    /// Returns whether there is room for another entry of a source beside those of some tables.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(crate) fn check_beside(&self, source: &Source, tables: &[&Shares]) -> Result<(), Full> {
        let sum =
            |of: fn(&Shares, &Source) -> usize| tables.iter().map(|table| of(table, source)).sum();
        self.check(sum(|table, _| table.total), sum(Shares::of_network), sum(Shares::of_node))
    }
}

/// Counts of one table.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    total: usize,
    networks: BTreeMap<Network, usize>,
    nodes: BTreeMap<NodeId, usize>,
}

impl Shares {
    /// Counts another entry of a source, if there is room.
    ///
    /// # Errors
    /// The limit that is reached. Nothing is counted.
    pub(crate) fn take(&mut self, source: &Source, limits: &Limits) -> Result<(), Full> {
        limits.check_beside(source, &[self])?;
        self.add(source);
        Ok(())
    }

    /// Counts another entry of a source, without a limit.
    fn add(&mut self, source: &Source) {
        self.total += 1;
        *self.networks.entry(source.network).or_default() += 1;
        *self.nodes.entry(source.node).or_default() += 1;
    }

    fn of_network(&self, source: &Source) -> usize {
        self.networks.get(&source.network).copied().unwrap_or_default()
    }

    fn of_node(&self, source: &Source) -> usize {
        self.nodes.get(&source.node).copied().unwrap_or_default()
    }

    /// Removes an entry of a source.
    pub(crate) fn give_back(&mut self, source: &Source) {
        self.total = self.total.saturating_sub(1);
        decrement(&mut self.networks, &source.network);
        decrement(&mut self.nodes, &source.node);
    }
}

/// Decrements a count, and removes it at zero.
pub(crate) fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
        if counts.is_empty() {
            // An emptied tree holds memory, a new one does not.
            *counts = BTreeMap::new();
        }
    }
}

/// An entry of a table that contains its source, which does not change.
pub(crate) trait Charged {
    fn source(&self) -> &Source;
}

/// Entries that contain their source, each counted for it.
#[derive(Debug)]
pub(crate) struct Counted<K, V> {
    entries: BTreeMap<K, V>,
    shares: Shares,
}

impl<K, V> Default for Counted<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), shares: Shares::default() }
    }
}

impl<K: Ord, V: Charged> Counted<K, V> {
    /// Adds an entry, or replaces the one with the same key.
    pub(crate) fn insert(&mut self, key: K, entry: V) {
        self.shares.add(entry.source());
        if let Some(before) = self.entries.insert(key, entry) {
            self.shares.give_back(before.source());
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.shares.give_back(entry.source());
        Some(entry)
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// Returns an entry to change; its source must stay the same.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values()
    }

    pub(crate) fn len(&self) -> usize {
        debug_assert_eq!(self.entries.len(), self.shares.total);
        self.entries.len()
    }

    pub(crate) fn shares(&self) -> &Shares {
        &self.shares
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Keys that are stored until a time, each counted for a source.
#[derive(Debug)]
pub(crate) struct Remembered<K, T> {
    entries: BTreeMap<K, (T, Source)>,
    /// The same, by time.
    order: BTreeSet<(T, K)>,
    shares: Shares,
}

impl<K, T> Default for Remembered<K, T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), order: BTreeSet::new(), shares: Shares::default() }
    }
}

impl<K: Ord + Copy, T: Ord + Copy> Remembered<K, T> {
    /// Drops the keys whose time is before `now`.
    pub(crate) fn forget_before(&mut self, now: T) {
        while let Some((until, key)) = self.order.first().copied()
            && until < now
        {
            self.order.pop_first();
            if let Some((_, source)) = self.entries.remove(&key) {
                self.shares.give_back(&source);
            }
        }
    }

    /// Returns until when a key is stored; `None` if it is not.
    pub(crate) fn until(&self, key: &K) -> Option<T> {
        self.entries.get(key).map(|(until, _)| *until)
    }

    /// Stores a key until a time. A key that is already stored stays counted for its source.
    ///
    /// # Errors
    /// There is no room for a new key. Nothing was changed.
    pub(crate) fn remember(
        &mut self,
        key: K,
        until: T,
        source: &Source,
        limits: &Limits,
    ) -> Result<(), Full> {
        match self.entries.get_mut(&key) {
            Some((known, _)) => {
                self.order.remove(&(*known, key));
                *known = until;
            }
            None => {
                self.shares.take(source, limits)?;
                self.entries.insert(key, (until, *source));
            }
        }
        self.order.insert((until, key));
        Ok(())
    }

    /// Returns the number of keys.
    pub(crate) fn len(&self) -> usize {
        debug_assert_eq!(self.entries.len(), self.order.len());
        debug_assert_eq!(self.entries.len(), self.shares.total);
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(node: u8, network: u8) -> Source {
        Source { node: NodeId::from_bytes([node; 32]), network: Network::V4([10, 0, network]) }
    }

    #[test]
    fn network_has_its_share_and_a_node_half_of_it() {
        assert_eq!(Limits::new(256, 25), Limits { total: 256, network: 64, node: 32 });
        assert_eq!(Limits::new(3, 25), Limits { total: 3, network: 1, node: 1 });
        assert_eq!(Limits::new(8, 100).per_node(2), Limits { total: 8, network: 8, node: 2 });
    }

    #[test]
    fn each_limit_refuses_its_own_source_only() {
        let limits = Limits { total: 4, network: 3, node: 2 };
        let (mut shares, empty) = (Shares::default(), Shares::default());
        let taken = [source(1, 1), source(1, 1), source(2, 1)];
        for source in &taken {
            assert_eq!(shares.take(source, &limits), Ok(()));
        }
        for (source, expected) in [
            (source(1, 2), Err(Full::Node)),
            (source(3, 1), Err(Full::Network)),
            (source(4, 2), Ok(())),
        ] {
            assert_eq!(limits.check_beside(&source, &[&shares]), expected);
            assert_eq!(limits.check_beside(&source, &[&empty, &shares, &empty]), expected);
            assert_eq!(shares.take(&source, &limits), expected);
        }
        assert_eq!(shares.take(&source(5, 3), &limits), Err(Full::Table));
        for source in taken.iter().chain(&[source(4, 2)]) {
            shares.give_back(source);
        }
        assert_eq!((shares.total, shares.networks.len(), shares.nodes.len()), (0, 0, 0));
    }

    impl Charged for Source {
        fn source(&self) -> &Source {
            self
        }
    }

    #[test]
    fn entries_of_a_table_are_counted_until_they_are_replaced_or_removed() {
        let limits = Limits { total: 9, network: 2, node: 1 };
        let mut table = Counted::default();
        table.insert(1, source(1, 1));
        table.insert(1, source(1, 1));
        assert_eq!(limits.check_beside(&source(1, 2), &[table.shares()]), Err(Full::Node));
        table.insert(2, source(2, 1));
        assert_eq!(limits.check_beside(&source(3, 1), &[table.shares()]), Err(Full::Network));
        table.insert(1, source(4, 2));
        assert_eq!(limits.check_beside(&source(1, 1), &[table.shares()]), Ok(()));
        assert_eq!((table.remove(&2), table.remove(&2)), (Some(source(2, 1)), None));
        assert_eq!((table.len(), table.get(&1)), (1, Some(&source(4, 2))));
        table.clear();
        assert_eq!((table.len(), table.shares().nodes.len()), (0, 0));
    }

    #[test]
    fn remembered_entries_expire_and_release_their_room() {
        let limits = Limits { total: 9, network: 9, node: 2 };
        let mut known = Remembered::default();
        assert_eq!(known.remember(1u8, 10u64, &source(1, 1), &limits), Ok(()));
        assert_eq!(known.remember(2, 20, &source(1, 1), &limits), Ok(()));
        assert_eq!(known.remember(3, 20, &source(1, 1), &limits), Err(Full::Node));
        assert_eq!(
            known.remember(1, 30, &source(2, 2), &limits),
            Ok(()),
            "known: later, and charged as before"
        );
        known.forget_before(20);
        assert_eq!((known.until(&1), known.until(&2), known.len()), (Some(30), Some(20), 2));
        known.forget_before(21);
        assert_eq!((known.until(&2), known.len()), (None, 1));
        assert_eq!(known.remember(3, 40, &source(1, 1), &limits), Ok(()));
    }
}
