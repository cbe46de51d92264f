//! Choice of the primary connection with a node: the only place that orders connections.
//!
//! Among several connections with a node, those that are not suspected come first, of these those
//! that are not relayed, and of these the one with the smallest shared id. Both ends have the same
//! shared ids, so that they choose the same connection as soon as they suspect the same ones: a
//! connection that is dead for one end ends for the other; on a slow one both ends receive packets
//! again, because an answer to one end is a packet that the other has received. Until then the ends
//! may use different connections, and both serve what arrives on either.

use alloc::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::connection::Connection;
use crate::types::id::{ConnectionId, NodeId};

/// Accepted connections by every id that their peers have proved.
#[derive(Debug, Default)]
pub(super) struct ByNode {
    ranks: BTreeMap<NodeId, BTreeSet<Rank>>,
    /// Number of ids whose best connection is not suspected.
    live: usize,
}

/// Rank of a connection among those with its node: the smaller, the better.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    suspected: bool,
    relayed: bool,
    shared_id: Bytes,
    conn: ConnectionId,
}

impl Rank {
    fn of(conn: ConnectionId, connection: &Connection) -> Self {
        Self {
            suspected: connection.suspected,
            relayed: connection.is_relayed(),
            shared_id: connection.shared_id.clone(),
            conn,
        }
    }
}

impl ByNode {
    pub(super) fn insert(&mut self, conn: ConnectionId, connection: &Connection) {
        for id in &connection.chain {
            let ranks = self.ranks.entry(*id).or_default();
            let live = is_live(ranks);
            ranks.insert(Rank::of(conn, connection));
            self.live += usize::from(is_live(ranks) && !live);
        }
    }

    /// Removes a connection, whose suspicion must be that of its insertion. Returns whether it was
    /// present.
    pub(super) fn remove(&mut self, conn: ConnectionId, connection: &Connection) -> bool {
        let rank = Rank::of(conn, connection);
        let mut removed = false;
        for id in &connection.chain {
            if let Some(ranks) = self.ranks.get_mut(id) {
                let live = is_live(ranks);
                removed |= ranks.remove(&rank);
                self.live -= usize::from(live && !is_live(ranks));
                if ranks.is_empty() {
                    self.ranks.remove(id);
                }
            }
        }
        removed
    }

    /// Returns the best connection with a node, which is suspected only if all are.
    pub(super) fn best(&self, node: &NodeId) -> Option<ConnectionId> {
        self.ranks.get(node)?.first().map(|rank| rank.conn)
    }

    /// Returns the best connection with a node, if it is not suspected.
    pub(super) fn live(&self, node: &NodeId) -> Option<ConnectionId> {
        self.ranks.get(node)?.first().filter(|rank| !rank.suspected).map(|rank| rank.conn)
    }

    /// Returns all connections with a node, the best first.
    pub(super) fn all(&self, node: &NodeId) -> impl Iterator<Item = ConnectionId> {
        self.ranks.get(node).into_iter().flatten().map(|rank| rank.conn)
    }

    /// Returns the suspected connections with a node.
    pub(super) fn suspected(&self, node: &NodeId) -> impl Iterator<Item = ConnectionId> {
        self.ranks
            .get(node)
            .into_iter()
            .flatten()
            .filter(|rank| rank.suspected)
            .map(|rank| rank.conn)
    }

    /// Returns whether there are connections with several nodes, and all of them are suspected.
    pub(super) fn is_silent(&self) -> bool {
        if self.live > 0 {
            return false;
        }
        // A connection has as many entries as its peer has proved ids, which are few.
        let mut best = self.ranks.values().filter_map(BTreeSet::first);
        best.next().is_some_and(|first| best.any(|other| other.conn != first.conn))
    }
}

/// Returns whether the best connection is not suspected.
fn is_live(ranks: &BTreeSet<Rank>) -> bool {
    ranks.first().is_some_and(|rank| !rank.suspected)
}
