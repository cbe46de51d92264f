//! The places of connections in the table, and their value.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::api::transport::Side;
use crate::shares::decrement;
use crate::types::id::{ConnectionId, NodeId};
use crate::types::network::Network;
use crate::types::time::Instant;

/// Counts greeting, live and retired connections.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// In both directions.
    pub(super) total: usize,
    pub(super) nodes: BTreeMap<NodeId, usize>,
    pub(super) incoming: usize,
    /// Incoming ones of each network in the order of eviction: the oldest use first.
    pub(super) networks: BTreeMap<Network, BTreeMap<Turn, ConnectionId>>,
    /// The networks by the number of their incoming connections.
    pub(super) sizes: BTreeSet<(usize, Network)>,
    next_turn: u64,
}

/// A connection that might be evicted.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) conn: ConnectionId,
    pub(crate) node: NodeId,
    /// Whether the peer has sent its Hello.
    pub(crate) accepted: bool,
    /// Whether it is accepted, and the only one with its node.
    pub(crate) only: bool,
}

/// Value of a connection when another one needs its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worth {
    /// None.
    Unused,
    /// It is the only one with a contact, and unused.
    Contact,
    /// It is never evicted.
    InUse,
}

/// Time of the last use or check of a connection; the number distinguishes those of the same time.
type Turn = (Instant, u64);

/// The place that a connection occupies from its handshake until it is being closed.
#[derive(Debug)]
pub(super) struct Place {
    /// Only of an incoming one.
    pub(super) turn: Option<Turn>,
}

impl Room {
    /// Returns the number of connections in both directions.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    pub(super) fn take(
        &mut self,
        conn: ConnectionId,
        network: Network,
        side: Side,
        now: Instant,
    ) -> Place {
        self.total += 1;
        let turn = (side == Side::Acceptor).then(|| {
            self.incoming += 1;
            self.enqueue(conn, network, now)
        });
        Place { turn }
    }

    pub(super) fn give_back(&mut self, place: &Place, network: Network) {
        self.total = self.total.saturating_sub(1);
        if let Some(turn) = place.turn {
            self.incoming = self.incoming.saturating_sub(1);
            self.dequeue(network, turn);
        }
    }

    /// A connection counts for its node from now on, until it is closed or the local identity is
    /// renewed.
    pub(super) fn join_node(&mut self, node: NodeId) {
        *self.nodes.entry(node).or_default() += 1;
    }

    /// A connection no longer counts for its node.
    pub(super) fn leave_node(&mut self, node: &NodeId) {
        decrement(&mut self.nodes, node);
    }

    /// Puts an incoming connection behind all others of its network.
    pub(super) fn move_back(
        &mut self,
        place: &mut Place,
        conn: ConnectionId,
        network: Network,
        now: Instant,
    ) {
        if let Some(turn) = place.turn.as_mut()
            && let Some(queue) = self.networks.get_mut(&network)
        {
            queue.remove(turn);
            *turn = (now, self.next_turn);
            self.next_turn = self.next_turn.saturating_add(1);
            queue.insert(*turn, conn);
        }
    }

    pub(super) fn of_node(&self, node: &NodeId) -> usize {
        self.nodes.get(node).copied().unwrap_or_default()
    }

    /// Returns the size and the network that follow in descending order; the first one after
    /// `None`.
    pub(super) fn largest_below(&self, last: Option<(usize, Network)>) -> Option<(usize, Network)> {
        match last {
            Some(last) => self.sizes.range(..last).next_back().copied(),
            None => self.sizes.last().copied(),
        }
    }

    pub(super) fn of_network(&self, network: Network) -> usize {
        self.networks.get(&network).map_or(0, BTreeMap::len)
    }

    fn enqueue(&mut self, conn: ConnectionId, network: Network, used_at: Instant) -> Turn {
        let turn = (used_at, self.next_turn);
        self.next_turn = self.next_turn.saturating_add(1);
        self.resize(network, |queue| queue.insert(turn, conn));
        turn
    }

    fn dequeue(&mut self, network: Network, turn: Turn) {
        self.resize(network, |queue| queue.remove(&turn));
    }

    /// Changes the queue of a network, and its size.
    fn resize(
        &mut self,
        network: Network,
        change: impl FnOnce(&mut BTreeMap<Turn, ConnectionId>) -> Option<ConnectionId>,
    ) {
        let queue = self.networks.entry(network).or_default();
        let before = queue.len();
        change(queue);
        let after = queue.len();
        if after == 0 {
            self.networks.remove(&network);
        }
        if before != after {
            self.sizes.remove(&(before, network));
            if after > 0 {
                self.sizes.insert((after, network));
            }
        }
        if self.networks.is_empty() {
            // An emptied tree holds memory, a new one does not.
            (self.networks, self.sizes) = (BTreeMap::new(), BTreeSet::new());
        }
    }
}
