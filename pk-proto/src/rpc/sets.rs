//! Sets of streams of one connection whose questions are answered without looking at all of them.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::types::id::StreamId;

/// Streams, and how many of them the peer has opened.
#[derive(Debug, Default, Clone)]
pub(super) struct StreamSet {
    ids: BTreeSet<StreamId>,
    theirs: usize,
}

impl StreamSet {
    pub(super) fn insert(&mut self, id: StreamId) {
        self.theirs += usize::from(self.ids.insert(id) && !id.is_ours());
    }

    pub(super) fn remove(&mut self, id: StreamId) {
        self.theirs -= usize::from(self.ids.remove(&id) && !id.is_ours());
    }

    pub(super) fn contains(&self, id: StreamId) -> bool {
        self.ids.contains(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the number of streams that the peer has opened.
    pub(super) fn theirs(&self) -> usize {
        self.theirs
    }

    /// Returns the streams, ordered by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = StreamId> {
        self.ids.iter().copied()
    }
}

/// Streams in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct StreamQueue {
    order: BTreeMap<u64, StreamId>,
    turns: BTreeMap<StreamId, u64>,
}

impl StreamQueue {
    /// Adds a stream behind all others, unless it waits already.
    pub(super) fn push(&mut self, id: StreamId) {
        if !self.turns.contains_key(&id) {
            let turn = self.order.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
            self.order.insert(turn, id);
            self.turns.insert(id, turn);
        }
    }

    pub(super) fn remove(&mut self, id: StreamId) {
        if let Some(turn) = self.turns.remove(&id) {
            self.order.remove(&turn);
        }
    }

    pub(super) fn first(&self) -> Option<StreamId> {
        self.order.first_key_value().map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_the_peer_are_counted_once() {
        let mut set = StreamSet::default();
        for id in [1, 2, 3, 3, 4] {
            set.insert(StreamId(id));
        }
        assert_eq!((set.len(), set.theirs()), (4, 2));
        for id in [3, 3, 4, 9] {
            set.remove(StreamId(id));
        }
        assert_eq!((set.len(), set.theirs()), (2, 1));
        assert_eq!(set.iter().collect::<alloc::vec::Vec<_>>(), [StreamId(1), StreamId(2)]);
    }

    #[test]
    fn queue_keeps_its_order_after_removals() {
        let mut queue = StreamQueue::default();
        for id in [5, 1, 9, 5, 3] {
            queue.push(StreamId(id));
        }
        queue.remove(StreamId(1));
        queue.push(StreamId(1));
        let order: alloc::vec::Vec<_> = core::iter::from_fn(|| {
            let first = queue.first()?;
            queue.remove(first);
            Some(first.0)
        })
        .collect();
        assert_eq!(order, [5, 9, 3, 1]);
    }
}
