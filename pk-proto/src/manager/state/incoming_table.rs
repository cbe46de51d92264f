//! The exchanges that peers have started, and what is derived from them, so that nothing looks
//! through all of them.

use alloc::collections::{BTreeMap, BTreeSet};
use core::ops::Bound;

use super::incoming::IncomingExchange;
use crate::claims::ClaimId;
use crate::shares::{Counted, Shares};
use crate::types::id::{NodeId, StreamId};
use crate::types::time::Instant;

/// The greatest stream id.
const LAST: StreamId = StreamId(u64::MAX);

/// Exchanges that peers have started, by stream.
#[derive(Debug, Default)]
pub(in crate::manager) struct IncomingTable {
    exchanges: Counted<StreamId, IncomingExchange>,
    /// Derived: the exchange of each claim, by its issuer and id.
    names: BTreeMap<(NodeId, ClaimId), StreamId>,
    /// Derived: those that wait for the local chain, by node.
    waiting: BTreeSet<(NodeId, StreamId)>,
    /// Derived: the same, by the end of the wait, which each has soon.
    waits: BTreeSet<(Option<Instant>, StreamId)>,
    /// Derived: those that have their turn, by its end.
    turns: BTreeSet<(Instant, StreamId)>,
}

impl IncomingTable {
    pub(in crate::manager) fn insert(&mut self, stream: StreamId, exchange: IncomingExchange) {
        self.remove(stream);
        self.names.insert(exchange.state.name(), stream);
        if exchange.waits() {
            self.waiting.insert((exchange.node, stream));
            self.waits.insert((exchange.until(), stream));
        } else if exchange.has_turn() {
            self.turns.extend(exchange.until().map(|until| (until, stream)));
        }
        self.exchanges.insert(stream, exchange);
    }

    pub(in crate::manager) fn remove(&mut self, stream: StreamId) -> Option<IncomingExchange> {
        let exchange = self.exchanges.remove(&stream)?;
        let name = exchange.state.name();
        if self.names.get(&name) == Some(&stream) {
            self.names.remove(&name);
        }
        self.waiting.remove(&(exchange.node, stream));
        self.waits.remove(&(exchange.until(), stream));
        if let Some(until) = exchange.until() {
            self.turns.remove(&(until, stream));
        }
        Some(exchange)
    }

    pub(in crate::manager) fn get(&self, stream: StreamId) -> Option<&IncomingExchange> {
        self.exchanges.get(&stream)
    }

    /// Changes an exchange, if there is one.
    pub(in crate::manager) fn update(
        &mut self,
        stream: StreamId,
        change: impl FnOnce(&mut IncomingExchange),
    ) {
        if let Some(mut exchange) = self.remove(stream) {
            change(&mut exchange);
            self.insert(stream, exchange);
        }
    }

    /// Returns all exchanges, ordered by stream.
    pub(in crate::manager) fn values(&self) -> impl Iterator<Item = &IncomingExchange> {
        self.exchanges.values()
    }

    pub(in crate::manager) fn len(&self) -> usize {
        self.exchanges.len()
    }

    /// Returns the numbers of exchanges by node, by network, and in total.
    pub(in crate::manager) fn shares(&self) -> &Shares {
        self.exchanges.shares()
    }

    /// Returns the exchange of a claim, by the issuer and the id of the claim.
    pub(in crate::manager) fn of_claim(
        &self,
        name: &(NodeId, ClaimId),
    ) -> Option<(StreamId, &IncomingExchange)> {
        let stream = *self.names.get(name)?;
        Some((stream, self.get(stream)?))
    }

    // -- turns

    /// Returns the exchange whose wait has ended first; `None` if none has waited long enough.
    pub(in crate::manager) fn overdue(&self, now: Instant) -> Option<StreamId> {
        let (until, stream) = self.waits.first()?;
        until.is_none_or(|until| until <= now).then_some(*stream)
    }

    /// Returns the waiting exchange whose node follows `last` in the circular order of all ids.
    pub(in crate::manager) fn next_after(&self, last: Option<NodeId>) -> Option<StreamId> {
        let behind = last.and_then(|last| {
            let range = (Bound::Excluded((last, LAST)), Bound::Unbounded);
            self.waiting.range(range).next()
        });
        behind.or_else(|| self.waiting.first()).map(|(_, stream)| *stream)
    }

    /// Returns the exchanges that have their turn, and for which others wait until then.
    pub(in crate::manager) fn turns(
        &self,
        now: Instant,
    ) -> impl Iterator<Item = (Instant, &IncomingExchange)> {
        let turns = self.turns.range((Bound::Excluded((now, LAST)), Bound::Unbounded));
        turns.filter_map(|(until, stream)| Some((*until, self.get(*stream)?)))
    }

    /// Returns the time after `now` at which the next turn or wait ends; `None` if no exchange
    /// waits.
    pub(in crate::manager) fn turn_ends(&self, now: Instant) -> Option<Instant> {
        if self.waiting.is_empty() {
            return None;
        }
        let waits = self.waits.range((Bound::Excluded((Some(now), LAST)), Bound::Unbounded));
        let wait = waits.filter_map(|(until, _)| *until).next();
        let turn = self.turns(now).next().map(|(until, _)| until);
        [wait, turn].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::incoming::Turn;
    use super::*;
    use crate::claims::exchange::Responder;
    use crate::shares::{Limits, Source};
    use crate::types::id::ConnectionId;
    use crate::types::network::Network;

    fn node(number: u64) -> NodeId {
        NodeId::from_bytes([number as u8; 32])
    }

    /// An exchange of a node. It is being appended; the turn says what it was before.
    fn exchange(number: u64, turn: Turn) -> IncomingExchange {
        let theirs = ClaimId::from_bytes([number as u8; 16]);
        let source = Source { node: node(number), network: Network::V4([10, 0, 0]) };
        let state = Responder::Appending { theirs, issuer: node(number) };
        IncomingExchange {
            conn: ConnectionId(number),
            node: node(number),
            source,
            approval: None,
            turn,
            state,
        }
    }

    #[test]
    fn turns_claims_and_shares_are_those_of_the_present_exchanges() {
        let at = Instant::from_micros;
        let mut table = IncomingTable::default();
        let turn = |until| Turn { wait_until: None, until: Some(at(until)) };
        table.insert(StreamId(1), exchange(1, turn(10)));
        table.insert(StreamId(3), exchange(3, turn(30)));
        table.insert(StreamId(5), exchange(5, Turn::default()));
        let turns = |table: &IncomingTable, now| -> Vec<_> {
            table.turns(at(now)).map(|(until, exchange)| (until, exchange.node)).collect()
        };
        assert_eq!(turns(&table, 9), [(at(10), node(1)), (at(30), node(3))]);
        assert_eq!(turns(&table, 10), [(at(30), node(3))]);
        assert_eq!(turns(&table, 30), []);
        // No exchange waits.
        assert_eq!((table.turn_ends(at(0)), table.overdue(at(99))), (None, None));
        assert_eq!(table.next_after(None), None);
        table.update(StreamId(1), |exchange| exchange.turn = turn(40));
        assert_eq!(turns(&table, 30), [(at(40), node(1))]);
        let name = (node(3), ClaimId::from_bytes([3; 16]));
        assert_eq!(table.of_claim(&name).map(|(stream, _)| stream), Some(StreamId(3)));
        let limits = Limits { total: 9, network: 4, node: 9 };
        let room = |table: &IncomingTable| {
            limits.check_beside(&exchange(7, Turn::default()).source, &[table.shares()])
        };
        assert_eq!((table.len(), room(&table).is_ok()), (3, true));
        table.insert(StreamId(7), exchange(7, turn(50)));
        assert_eq!((table.len(), room(&table).is_ok()), (4, false));
        for stream in [1, 3, 5, 7] {
            assert!(table.remove(StreamId(stream)).is_some());
        }
        assert!(table.of_claim(&name).is_none());
        assert_eq!((turns(&table, 0), table.len(), room(&table).is_ok()), (Vec::new(), 0, true));
    }
}
