//! Limits of connections: the share of each network, the places reserved for dials, and eviction.

use core::time::Duration;

use super::connection::{Connection, State};
use super::place::{Candidate, Worth};
use super::table::Connections;
use crate::api::error::ConnectionErrorReason;
use crate::api::transport::{Connected, Side};
use crate::machine::cx::Cx;
use crate::shares::{Full, Limits, Source};
use crate::types::id::{ConnectionId, NodeId, RaceId};
use crate::types::network::Network;

/// Maximum number of connections that are checked for eviction.
const LOOKS: usize = 1024;
/// A connection used within this time is evicted only if there is no other. Uses within this time
/// after each other do not change the order of eviction.
pub(super) const RECENT: Duration = Duration::from_secs(1);

impl Connections {
    /// Returns what the peer of a connection counts for.
    pub(crate) fn source(&self, conn: ConnectionId) -> Option<Source> {
        let connection = self.connection(conn)?;
        Some(Source::of(&connection.chain, connection.network))
    }

    /// Returns whether the limit of connections with a node is reached. The connections of a node
    /// before and after its renewal count separately, because the old ones finish beside the new
    /// ones.
    pub(super) fn is_node_full(&self, cx: &Cx, source: &Source) -> bool {
        self.room().of_node(&source.node) >= cx.config.connections_per_node
    }

    /// Returns whether there is room for a connection of a network whose handshake is complete.
    pub(super) fn check_room(&self, cx: &Cx, source: &Source, side: Side) -> Result<(), Full> {
        let share = Limits::new(cx.config.connection_limit, cx.config.network_share).network;
        if side == Side::Acceptor && self.room().of_network(source.network) >= share {
            return Err(Full::Network);
        }
        if self.is_full(cx, side) { Err(Full::Table) } else { Ok(()) }
    }

    /// Returns whether the table is full, regardless of shares.
    pub(super) fn is_full(&self, cx: &Cx, side: Side) -> bool {
        let limit = cx.config.connection_limit;
        (side == Side::Acceptor && self.room().incoming >= limit - reserve(cx))
            || self.room().total() + self.dial_count() >= limit
    }

    /// Makes room for an incoming connection if there is none: evicts an unused connection of its
    /// own node if that has all it may have, of its own network if that has its share, otherwise of
    /// the network with the most.
    pub(crate) fn make_room_for(
        &mut self,
        cx: &mut Cx,
        connected: &Connected,
        judge: impl Fn(&Candidate) -> Worth,
    ) {
        if connected.side != Side::Acceptor || connected.chain.iter().any(|id| cx.is_own(id)) {
            return;
        }
        let network = Network::of(connected.remote.ip());
        let source = Source { node: connected.leaf, network };
        if self.is_node_full(cx, &source) && !self.evict_of_node(cx, &source.node, &judge) {
            return;
        }
        match self.check_room(cx, &source, Side::Acceptor) {
            Err(Full::Network) => {
                self.evict_of(cx, network, &judge, true, &mut { LOOKS });
            }
            Err(Full::Table) => {
                self.evict(cx, judge);
            }
            Ok(()) | Err(Full::Node) => {}
        }
    }

    /// Makes room for the next dial of a race, or ends the race.
    pub(crate) fn make_room_for_dial(
        &mut self,
        cx: &mut Cx,
        race: RaceId,
        judge: impl Fn(&Candidate) -> Worth,
    ) {
        if self.room().total() >= cx.config.connection_limit && !self.evict(cx, judge) {
            self.fail_waiting(race, &ConnectionErrorReason::TooMany);
        }
        self.race_next(cx, race);
    }

    /// Evicts the unused incoming connection of a node with the oldest use. A node that was
    /// restarted connects again beside connections of its former processes, which are dead and not
    /// noticed before something is sent on them. Suspected ones without a lease are replaced first
    /// (`replace_suspected`). Returns whether there was one.
    fn evict_of_node(
        &mut self,
        cx: &mut Cx,
        node: &NodeId,
        judge: &impl Fn(&Candidate) -> Worth,
    ) -> bool {
        if self.by_node().suspected(node).any(|conn| !self.is_leased(conn)) {
            return false;
        }
        let unused = self.by_node().all(node).filter_map(|conn| {
            let state = self.state(conn)?;
            let connection =
                state.connection().filter(|connection| connection.side == Side::Acceptor)?;
            (self.worth(conn, state, connection, judge) != Worth::InUse)
                .then_some((connection.used_at, conn))
        });
        let oldest = unused.min();
        oldest.is_some_and(|(_, conn)| self.close_evicted(cx, conn))
    }

    /// Evicts one unused incoming connection: of the network with the most, the one with the oldest
    /// use. Returns whether there was one.
    fn evict(&mut self, cx: &mut Cx, judge: impl Fn(&Candidate) -> Worth) -> bool {
        let mut looks = LOOKS;
        // What is checked and stays changes no size.
        let mut last = None;
        while looks > 0
            && let Some(next) = self.room().largest_below(last)
        {
            if self.evict_of(cx, next.1, &judge, false, &mut looks) {
                return true;
            }
            last = Some(next);
        }
        false
    }

    /// Evicts one unused connection of a network, the one with the oldest use; those with contacts
    /// only for a connection of their `own` network. In this order: those with strangers, those
    /// with contacts, and then, in the same order, those that were used just now. Checked
    /// connections move back in the order.
    fn evict_of(
        &mut self,
        cx: &mut Cx,
        network: Network,
        judge: &impl Fn(&Candidate) -> Worth,
        own: bool,
        looks: &mut usize,
    ) -> bool {
        let (mut contact, mut fresh, mut fresh_contact) = (None, None, None);
        for _ in 0..self.room().of_network(network).min(*looks) {
            *looks -= 1;
            let first =
                self.room().networks.get(&network).and_then(|queue| queue.first_key_value());
            let Some(conn) = first.map(|(_, conn)| *conn) else { break };
            let Some(state) = self.state(conn) else { break };
            let Some(connection) = state.connection() else { break };
            let recent = cx.now.since(connection.used_at) < RECENT;
            match self.worth(conn, state, connection, judge) {
                Worth::Unused if !recent => return self.close_evicted(cx, conn),
                Worth::Unused => drop(fresh.get_or_insert(conn)),
                Worth::Contact if own && !recent => drop(contact.get_or_insert(conn)),
                Worth::Contact if own => drop(fresh_contact.get_or_insert(conn)),
                Worth::Contact | Worth::InUse => {}
            }
            self.move_back(conn, cx.now);
        }
        contact.or(fresh).or(fresh_contact).is_some_and(|conn| self.close_evicted(cx, conn))
    }

    fn worth(
        &self,
        conn: ConnectionId,
        state: &State,
        connection: &Connection,
        judge: &impl Fn(&Candidate) -> Worth,
    ) -> Worth {
        if matches!(state, State::Retired { .. }) || !connection.leases.is_empty() {
            return Worth::InUse;
        }
        let accepted = state.is_accepted();
        let only = accepted && self.by_node().all(&connection.node).count() == 1;
        judge(&Candidate { conn, node: connection.node, accepted, only })
    }

    fn close_evicted(&mut self, cx: &mut Cx, conn: ConnectionId) -> bool {
        cx.metrics.connections_evicted += 1;
        self.close(cx, conn, ConnectionErrorReason::Evicted);
        true
    }
}

/// Returns the number of places that incoming connections never take. At least one place is left
/// to them.
fn reserve(cx: &Cx) -> usize {
    let share = usize::try_from(cx.config.dial_share).unwrap_or(100);
    let limit = cx.config.connection_limit;
    limit.saturating_mul(share).div_ceil(100).min(limit.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::super::place::Room;
    use super::*;
    use crate::api::config::Config;
    use crate::machine::dial::AddressOrigin;
    use crate::types::address::NodeAddress;
    use crate::types::time::Instant;
    use crate::types::time::UnixMillis;
    use crate::wire::dialect::Dialect;

    fn source(node: u8, network: u8) -> Source {
        Source { node: NodeId::from_bytes([node; 32]), network: Network::V4([10, 0, network]) }
    }

    #[test]
    fn slots_are_counted_and_released() {
        let (mut room, now) = (Room::default(), Instant::ORIGIN);
        let mut places = alloc::vec::Vec::new();
        for (n, (node, network, side)) in [
            (1, 1, Side::Acceptor),
            (1, 1, Side::Dialer),
            (2, 1, Side::Acceptor),
            (3, 2, Side::Acceptor),
        ]
        .into_iter()
        .enumerate()
        {
            let source = source(node, network);
            room.join_node(source.node);
            places.push((room.take(ConnectionId(n as u64), source.network, side, now), source));
        }
        assert_eq!((room.total(), room.incoming, room.of_node(&source(1, 1).node)), (4, 3, 2));
        let (one, two) = (source(0, 1).network, source(0, 2).network);
        assert_eq!(
            (room.of_network(one), room.of_network(two)),
            (2, 1),
            "what we dial counts for no network"
        );
        let sizes: alloc::vec::Vec<_> = room.sizes.iter().copied().collect();
        assert_eq!(sizes, [(1, two), (2, one)]);
        let order: alloc::vec::Vec<_> = room.networks[&one].values().map(|conn| conn.0).collect();
        assert_eq!(order, [0, 2]);
        for (place, source) in &places {
            room.leave_node(&source.node);
            room.give_back(place, source.network);
        }
        assert_eq!((room.total(), room.incoming, room.nodes.len()), (0, 0, 0));
        assert_eq!((room.networks.len(), room.sizes.len()), (0, 0));
    }

    #[test]
    fn retired_connection_that_moves_does_not_count_for_its_node_again() {
        let own = NodeId::from_bytes([0; 32]);
        let mut cx =
            Cx::new(Config::default(), alloc::vec![own], [0; 32], Instant::ORIGIN, UnixMillis(0));
        let (mut connections, conn, node) =
            (Connections::default(), ConnectionId(1), NodeId::from_bytes([1; 32]));
        let connected = Connected {
            conn,
            side: Side::Acceptor,
            dialect: Dialect::Native,
            leaf: node,
            chain: alloc::vec![node],
            remote: "192.0.2.1:1".parse().unwrap(),
            shared_id: bytes::Bytes::from_static(b"1"),
            matched_id: None,
            local: "192.0.2.2:1".parse().unwrap(),
        };
        connections.connected(&mut cx, connected, AddressOrigin::DIRECT, None);
        connections.accepted(&mut cx, conn);
        connections.retire(&mut cx, |_| true);
        assert_eq!((connections.room().total(), connections.room().of_node(&node)), (1, 0));
        let moved: core::net::SocketAddr = "198.51.100.1:1".parse().unwrap();
        let path = (NodeAddress::from_socket(moved), AddressOrigin::DIRECT);
        connections.remote_address_changed(&mut cx, conn, moved, path);
        assert_eq!((connections.room().total(), connections.room().of_node(&node)), (1, 0));
        connections.close(&mut cx, conn, ConnectionErrorReason::Idle);
        assert_eq!((connections.room().total(), connections.room().of_node(&node)), (0, 0));
    }
}
