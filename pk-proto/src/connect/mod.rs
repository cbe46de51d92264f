//! Connections: dial races, the state of each connection, the choice among several, and leases.
//!
//! A connection id is in one state (`State` in `connect/connection.rs`), and only
//! [`Connections::change`] in `connect/table.rs` changes it. Every change has a reason, which is
//! logged with the feature `tracing`.
//!
//! | from | change | to | when |
//! |---|---|---|---|
//! | none | `Dial` | dialing | a race dials an address |
//! | dialing | `CancelDial` | dialing, without a race | no race needs the dial any longer |
//! | dialing | `DialFailed` | none | the driver reports the end of the dial |
//! | dialing | `HandshakeDone` | none | the handshake is complete; `Greet` or `Refuse` follows |
//! | none | `Greet` | greeting | the handshake is complete, and there is room |
//! | none | `Refuse` | closing | there is no room, the peer is this node, or the dial was cancelled |
//! | greeting | `Accept` | live | the peer has sent `Hello` (`pk/1`), or HANDSHAKE_DONE (`quic`) |
//! | live, retired | `Retire` | retired | this node has another identity, and the connection is in use |
//! | greeting, live, retired | `Close` | closing | this node has a reason to close it |
//! | all but dialing | `Disconnect` | none | the driver reports the end of the connection |
//!
//! What is derived from the state, and kept right by the same function:
//!
//! | state | race | place in the room | counts for its node | can be chosen | timers |
//! |---|---|---|---|---|---|
//! | dialing | until cancelled | a slot of the dials | | | |
//! | greeting | if one waits for it | yes | yes | | `Hello` |
//! | live | | yes | yes | yes | `Idle`, `Silent` if suspected |
//! | retired | | yes | | | `Idle` |
//! | closing | | | | | |
//!
//! Only live and retired connections are *accepted*: they are listed, reported to peers and used.
//! Only live ones win races and start something new. Whether a connection is *suspected*
//! (`connect/suspicion.rs`) is no state: the driver reports it of every connection, and it only
//! changes which one is chosen (`connect/choice.rs`).

mod by_id;
mod change;
mod choice;
pub(crate) mod connection;
mod dialing;
pub(crate) mod event;
mod forwarders;
mod idle;
mod kept;
pub(crate) mod place;
mod race;
mod races;
mod room;
mod simultaneous;
mod suspicion;
pub(crate) mod table;

use alloc::collections::BTreeSet;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::net::SocketAddr;

use self::change::Change;
use self::connection::{Connection, State};
use self::dialing::rejected;
use self::event::ConnectEvent;
pub(crate) use self::place::{Candidate, Worth};
use self::race::Losers;
use self::table::Connections;
use crate::api::error::ConnectionErrorReason;
use crate::api::info::ConnectionInfo;
use crate::api::transport::{Connected, DialFailure, DisconnectReason, Side};
use crate::machine::cx::Cx;
pub(crate) use crate::machine::dial::AddressOrigin;
use crate::shares::{Full, Source};
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::{BucketIndex, ConnectionId, NodeId, RaceId, RequestId};
use crate::types::network::Network;
use crate::types::queue;
use crate::wire::dialect::Dialect;

impl Connections {
    // -- inputs

    /// A handshake completed. `incoming` is the origin of the peer of an incoming connection,
    /// `named` the address of the peer that a relay has named, if the path is relayed.
    pub(crate) fn connected(
        &mut self,
        cx: &mut Cx,
        connected: Connected,
        incoming: AddressOrigin,
        named: Option<NodeAddress>,
    ) {
        let conn = connected.conn;
        let mut race = match (connected.side, self.state(conn)) {
            // The dial ends first: its slot counts as room for its connection.
            (Side::Dialer, Some(State::Dialing { .. })) => {
                self.change(cx, conn, Change::HandshakeDone)
            }
            (Side::Acceptor, None) => None,
            _ => {
                cx.metrics.late_inputs += 1;
                return;
            }
        };
        let dialed =
            race.and_then(|race| self.races.get(race)).and_then(|race| race.dialing.get(&conn));
        let origin = dialed.map(|dial| dial.origin);
        let node = connected.leaf;
        let chain = if connected.chain.is_empty() { alloc::vec![node] } else { connected.chain };
        let signalled = self.was_signalled(&chain);
        let network = Network::of(connected.remote.ip());
        let source = Source { node, network };
        let own = chain.iter().any(|id| cx.is_own(id));
        let opposite =
            self.is_node_full(cx, &source).then(|| self.opposite(&node, connected.side)).flatten();
        let displaced = opposite.filter(|other| self.is_behind(*other, &connected.shared_id));
        let refusal = if own {
            cx.metrics.connections_to_self += 1;
            Some(ConnectionErrorReason::SameNode)
        } else if connected.side == Side::Dialer
            && race.is_none()
            && self.closes_after_cancel(conn, connected.dialect)
        {
            Some(ConnectionErrorReason::NotNeeded)
        } else {
            self.refusal(cx, &node, &source, connected.side, displaced.is_some())
        };
        let connection = Connection {
            node,
            chain,
            side: connected.side,
            dialect: connected.dialect,
            address: named.unwrap_or_else(|| NodeAddress::from_socket(connected.remote)),
            network,
            since: cx.unix(),
            shared_id: connected.shared_id,
            origin: origin.unwrap_or(match incoming {
                AddressOrigin::RELAYED | AddressOrigin::LOCAL => incoming,
                _ if signalled => AddressOrigin::SIGNALLED,
                incoming => incoming,
            }),
            suspected: false,
            leases: BTreeSet::new(),
            used_at: cx.now,
            round_trip: u16::MAX,
        };
        // Both ends may dial at the same time. Where one connection has to go for the other, the
        // race of the one continues with the other: both connect to the same node.
        match refusal {
            Some(reason) => {
                if reason == ConnectionErrorReason::TooMany
                    && let Some(other) = opposite.filter(|other| self.can_take_over(*other))
                    && let Some(race) =
                        race.take().and_then(|race| self.hand_race(race, conn, other))
                {
                    self.set_race(other, race);
                }
                self.change(cx, conn, Change::Refuse { connection, reason });
                self.race_lost(cx, race, conn, reason);
            }
            None => {
                if let Some(other) = displaced {
                    cx.metrics.connections_refused += 1;
                    if race.is_none() {
                        race = self
                            .take_race(other)
                            .and_then(|race| self.hand_race(race, other, conn));
                    }
                    self.close(cx, other, ConnectionErrorReason::TooMany);
                }
                self.change(cx, conn, Change::Greet { connection, race });
            }
        }
    }

    /// Returns why a connection is closed right after its handshake. `displaces`: another
    /// connection with its node is closed in its favour.
    fn refusal(
        &mut self,
        cx: &mut Cx,
        node: &NodeId,
        source: &Source,
        side: Side,
        displaces: bool,
    ) -> Option<ConnectionErrorReason> {
        let reason = match self.check_room(cx, source, side) {
            Ok(())
                if !self.is_node_full(cx, source)
                    || displaces
                    || self.replace_suspected(cx, node) =>
            {
                return None;
            }
            Err(Full::Network) if !self.is_full(cx, side) => {
                ConnectionErrorReason::TooManyOfNetwork
            }
            _ => ConnectionErrorReason::TooMany,
        };
        cx.metrics.connections_refused += 1;
        Some(reason)
    }

    /// Returns whether a relay informs a node of our address, or has done so: then the node dials
    /// back, and its connection may arrive before the relay's answer, or after our own dial.
    fn was_signalled(&self, chain: &[NodeId]) -> bool {
        let mut racing = chain.iter().flat_map(|id| self.races.to(id));
        let connected = chain.iter().flat_map(|id| self.by_id().of(id));
        let mut connected = connected.filter_map(|conn| self.connection(conn));
        racing.any(|(_, race)| race.signalled || race.signalling > 0)
            || connected.any(|other| {
                chain.contains(&other.node) && other.origin == AddressOrigin::SIGNALLED
            })
    }

    /// The driver reports the end of a connection.
    pub(crate) fn disconnected(&mut self, cx: &mut Cx, conn: ConnectionId, why: DisconnectReason) {
        let state = self.state(conn);
        let Some((state, connection)) = state.and_then(|state| Some((state, state.connection()?)))
        else {
            cx.metrics.late_inputs += 1;
            return;
        };
        let node = connection.node;
        let leases = connection.leases.iter().copied().collect();
        let accepted =
            state.is_accepted() || matches!(state, State::Closing { was_accepted: true, .. });
        if let Some(race) = self.change(cx, conn, Change::Disconnect(&why)) {
            let failure = match &why {
                DisconnectReason::Peer { code, reason } => rejected(*code, reason.clone()),
                DisconnectReason::Local => DialFailure::Cancelled,
                DisconnectReason::TimedOut => DialFailure::TimedOut,
                other => DialFailure::Transport(alloc::format!("{other}")),
            };
            self.dial_lost(cx, race, conn, failure);
        }
        self.events.push_back(ConnectEvent::Closed { conn, node, accepted, why, leases });
    }

    /// The peer sent its Hello: the connection counts from now on.
    pub(crate) fn accepted(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let Some(State::Greeting { connection, .. }) = self.state(conn) else { return };
        let (node, side) = (connection.node, connection.side);
        let primary = self.by_node().best(&node);
        cx.metrics.connections_accepted += 1;
        self.change(cx, conn, Change::Accept);
        self.end_races_with(cx, conn, side == Side::Acceptor);
        self.touch(cx, conn);
        self.watch_silence(cx, &node);
        // The previous primary connection lives no longer than the others.
        if let Some(before) = primary {
            self.arm(cx, before);
        }
    }

    /// A node is connected: every race to it has won. `theirs`: by an incoming connection, just
    /// now.
    fn end_races_with(&mut self, cx: &mut Cx, conn: ConnectionId, theirs: bool) {
        let Some(connection) = self.connection(conn) else { return };
        let losers = Losers::beside(theirs, connection.dialect);
        let won = connection.chain.iter().flat_map(|id| self.races.to(id));
        let won: BTreeSet<_> = won.map(|(id, _)| id).collect();
        for race in won {
            self.end_race(cx, race, Ok(conn), losers);
        }
    }

    pub(crate) fn remote_address_changed(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        addr: SocketAddr,
        path: (NodeAddress, AddressOrigin),
    ) {
        let state = self.state(conn);
        let Some((state, connection)) = state.and_then(|state| Some((state, state.connection()?)))
        else {
            cx.metrics.late_inputs += 1;
            return;
        };
        if state.is_accepted() {
            let node = connection.node;
            self.events.push_back(ConnectEvent::Moved { conn, node });
        }
        self.set_address(conn, addr, path, cx.now);
    }

    // -- timers

    pub(crate) fn hello_overdue(&mut self, cx: &mut Cx, conn: ConnectionId) {
        cx.metrics.hello_timeouts += 1;
        if self.dialect(conn) == Some(Dialect::Polykey) {
            // It has no Hello: what is missing is the network (`rpc/network.rs`).
            return self.close(cx, conn, ConnectionErrorReason::NoNetwork);
        }
        if let Some(race) = self.take_race(conn) {
            self.dial_lost(cx, race, conn, DialFailure::TimedOut);
        }
        self.close(cx, conn, ConnectionErrorReason::NoHello);
    }

    /// Closes a connection that the manager has found to be unused.
    pub(crate) fn close_idle(&mut self, cx: &mut Cx, conn: ConnectionId) {
        self.close(cx, conn, ConnectionErrorReason::Idle);
    }

    // -- ends

    /// Asks the driver to close a connection; `Disconnected` ends it. Nothing new is sent on it.
    pub(crate) fn close(&mut self, cx: &mut Cx, conn: ConnectionId, reason: ConnectionErrorReason) {
        let race = self.change(cx, conn, Change::Close(reason));
        self.race_lost(cx, race, conn, reason);
    }

    /// The race of a connection that this node closes continues without it.
    fn race_lost(
        &mut self,
        cx: &mut Cx,
        race: Option<RaceId>,
        conn: ConnectionId,
        reason: ConnectionErrorReason,
    ) {
        if let Some(race) = race {
            let why = match reason {
                ConnectionErrorReason::NotNeeded => DialFailure::Cancelled,
                ConnectionErrorReason::OtherNetwork | ConnectionErrorReason::NoNetwork => {
                    DialFailure::OtherNetwork(reason.to_string())
                }
                reason => DialFailure::Transport(reason.to_string()),
            };
            self.dial_lost(cx, race, conn, why);
        }
    }

    /// Closes every connection with a node; returns their number.
    pub(crate) fn disconnect(&mut self, cx: &mut Cx, node: &NodeId) -> usize {
        let is_open =
            |conn: &ConnectionId| !matches!(self.state(*conn), None | Some(State::Closing { .. }));
        let conns: Vec<_> = self.by_id().of(node).filter(is_open).collect();
        for conn in &conns {
            self.close(cx, *conn, ConnectionErrorReason::NotNeeded);
        }
        conns.len()
    }

    /// Returns whether a connection of a cancelled dial is closed at once. On `pk/1` always: the
    /// peer has not accepted it yet. On `quic` the peer has, and the reference does not notice a
    /// connection that closes that early: it may make it primary and send calls that fail. There it
    /// stays, as one more, and closes when it is idle, unless it presents an identity that is no
    /// longer that of this node, or the node stops ([`Self::invalidate_dials`]).
    fn closes_after_cancel(&self, conn: ConnectionId, dialect: Dialect) -> bool {
        dialect == Dialect::Native || Some(conn) <= self.invalidated_through
    }

    /// From now on, no dial in progress becomes a connection if it is cancelled.
    fn invalidate_dials(&mut self) {
        let last = self.dials().next_back().map(|(conn, _)| conn);
        self.invalidated_through = last.max(self.invalidated_through);
    }

    /// The identity was renewed. Unused connections and those that the peer has not accepted close;
    /// the others accept nothing new and close within [`connection::RETIREMENT`].
    pub(crate) fn retire(&mut self, cx: &mut Cx, in_use: impl Fn(ConnectionId) -> bool) {
        self.invalidate_dials();
        let races: Vec<_> = self.races.ids().collect();
        for race in races {
            self.restart(cx, race);
        }
        self.cancel_orphaned(cx);
        for conn in self.established() {
            let is_used = |connection: &Connection| in_use(conn) || !connection.leases.is_empty();
            match self.state(conn) {
                Some(State::Live { connection, .. } | State::Retired { connection, .. })
                    if is_used(connection) =>
                {
                    self.change(cx, conn, Change::Retire);
                }
                _ => self.close(cx, conn, ConnectionErrorReason::Renewed),
            }
        }
    }

    /// Returns whether a connection belongs to a former identity.
    pub(crate) fn is_retired(&self, conn: ConnectionId) -> bool {
        matches!(self.state(conn), Some(State::Retired { .. }))
    }

    /// Cancels every race and closes every connection.
    pub(crate) fn stop(&mut self, cx: &mut Cx) {
        self.invalidate_dials();
        let races: Vec<_> = self.races.ids().collect();
        for race in races {
            self.call_off(cx, race);
        }
        self.cancel_orphaned(cx);
        for conn in self.established() {
            self.close(cx, conn, ConnectionErrorReason::NotNeeded);
        }
    }

    /// Ends every dial and connection that the driver has not ended by now.
    pub(crate) fn abandon(&mut self, cx: &mut Cx) {
        for conn in self.dials().map(|(conn, _)| conn).collect::<Vec<_>>() {
            self.change(cx, conn, Change::DialFailed(&DialFailure::Cancelled));
        }
        for conn in self.established() {
            self.disconnected(cx, conn, DisconnectReason::Local);
        }
    }

    /// Returns the ids of all connections whose handshake is complete.
    fn established(&self) -> Vec<ConnectionId> {
        self.connections().map(|(conn, _)| conn).collect()
    }

    pub(crate) fn poll_event(&mut self) -> Option<ConnectEvent> {
        queue::take(&mut self.events)
    }

    // -- getters

    /// Returns the primary connection with a node, by any id that it proved; see [`choice`]. It may
    /// be suspected.
    pub(crate) fn primary(&self, node: &NodeId) -> Option<ConnectionId> {
        self.by_node().best(node)
    }

    /// Returns the primary connection with a node, if it is not suspected.
    pub(crate) fn live(&self, node: &NodeId) -> Option<ConnectionId> {
        self.by_node().live(node)
    }

    pub(super) fn is_primary(&self, conn: ConnectionId) -> bool {
        self.connection(conn).is_some_and(|connection| self.primary(&connection.node) == Some(conn))
    }

    /// Returns the state of an accepted connection.
    pub(crate) fn info(&self, cx: &Cx, conn: ConnectionId) -> Option<ConnectionInfo> {
        let connection = self.state(conn).filter(|state| state.is_accepted())?.connection()?;
        Some(ConnectionInfo {
            conn,
            node: connection.node,
            address: connection.address.clone(),
            data: connection.data(),
            shared_id: connection.shared_id.clone(),
            primary: self.is_primary(conn),
            suspected: connection.suspected,
            idle_in: connection
                .leases
                .is_empty()
                .then(|| self.idle_at(cx, conn, connection).since(cx.now)),
        })
    }

    /// Returns all accepted connections.
    pub(crate) fn infos(&self, cx: &Cx) -> Vec<ConnectionInfo> {
        self.accepted_connections().filter_map(|(conn, _)| self.info(cx, conn)).collect()
    }

    /// Returns the connected nodes closest to a target, nearest first, each by its newest id.
    pub(crate) fn closest(&self, target: &NodeId, limit: usize) -> Vec<NodeId> {
        self.by_id().closest(target, limit)
    }

    /// Returns the accepted connections with a node, the primary first.
    pub(crate) fn connections_with(&self, node: &NodeId) -> impl Iterator<Item = ConnectionId> {
        self.by_node().all(node)
    }

    /// Returns whether there is an accepted connection with a node of this bucket.
    pub(crate) fn has_connection_in(&self, cx: &Cx, bucket: BucketIndex) -> bool {
        self.by_id().one_in(&cx.own(), bucket).is_some()
    }

    /// Returns whether a relay forwards the datagrams of a connection that is not being closed.
    pub(crate) fn is_relayed(&self, conn: ConnectionId) -> bool {
        let state = self.state(conn).filter(|state| !matches!(state, State::Closing { .. }));
        state.and_then(State::connection).is_some_and(Connection::is_relayed)
    }

    /// Returns how a connection came about.
    pub(crate) fn origin(&self, conn: ConnectionId) -> Option<AddressOrigin> {
        self.connection(conn).map(|connection| connection.origin)
    }

    /// Returns the side of this node in the handshake of a connection.
    pub(crate) fn side(&self, conn: ConnectionId) -> Option<Side> {
        self.connection(conn).map(|connection| connection.side)
    }

    /// Returns the connection with a node that is neither suspected nor relayed, if there is one.
    pub(crate) fn direct(&self, node: &NodeId) -> Option<ConnectionId> {
        self.live(node).filter(|conn| !self.is_relayed(*conn))
    }

    /// Returns the peer of a connection, by its newest id.
    pub(crate) fn node(&self, conn: ConnectionId) -> Option<NodeId> {
        self.connection(conn).map(|connection| connection.node)
    }

    /// Returns the node of the race that waits for the peer to accept a connection, and the
    /// requests that wait for the race.
    pub(crate) fn awaited_by(&self, conn: ConnectionId) -> Option<(NodeId, Vec<RequestId>)> {
        let race = self.races.get(self.state(conn)?.race()?)?;
        Some((race.node, race.waiters.ids().collect()))
    }

    /// Returns the dialect of a connection.
    pub(crate) fn dialect(&self, conn: ConnectionId) -> Option<Dialect> {
        self.connection(conn).map(|connection| connection.dialect)
    }

    /// Returns every id that the peer of a connection proved, newest first.
    pub(crate) fn chain(&self, conn: ConnectionId) -> Vec<NodeId> {
        self.connection(conn).map(|connection| connection.chain.clone()).unwrap_or_default()
    }

    /// Returns the address of an accepted connection, and its data for the graph.
    pub(crate) fn address(
        &self,
        conn: ConnectionId,
    ) -> Option<(NodeAddress, NodeContactAddressData)> {
        let connection = self.connection(conn)?;
        Some((connection.address.clone(), connection.data()))
    }

    /// Writes the gauges of this component.
    pub(crate) fn measure(&self, metrics: &mut crate::api::metrics::Metrics) {
        let accepted = self.by_id().accepted();
        metrics.connections = accepted as u64;
        metrics.connections_pending = (self.room().total() + self.dial_count() - accepted) as u64;
    }
}
