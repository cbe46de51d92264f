//! The table of connections, and everything that is derived from it. The state of a connection
//! changes only here, in [`Connections::change`].

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use core::net::SocketAddr;
use core::time::Duration;

use super::by_id::ById;
use super::change::Change;
use super::choice::ByNode;
use super::connection::{Connection, RETIREMENT, State};
use super::event::ConnectEvent;
use super::kept::Kept;
use super::place::Room;
use super::races::Races;
use crate::api::census::Census;
use crate::api::output::Output;
use crate::machine::cx::Cx;
use crate::machine::dial::AddressOrigin;
use crate::machine::timer::Timer;
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, LeaseId, RaceId};
use crate::types::network::Network;
use crate::types::time::Instant;

/// All connections of this node.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    states: BTreeMap<ConnectionId, State>,
    /// Derived: the ids that are dialing.
    dials: BTreeSet<ConnectionId>,
    /// Derived: those of them whose race is in progress, and that the embedder does not wait for.
    background: BTreeSet<ConnectionId>,
    /// Derived: the number of cancelled ones.
    cancelled: usize,
    /// Derived: the live connections of each node, in the order in which they are chosen.
    by_node: ByNode,
    /// Derived: the connections whose handshake is complete, by the ids of their peers.
    by_id: ById,
    /// Derived: the places of greeting, live and retired connections.
    room: Room,
    /// Derived: the connection of each lease.
    leases: BTreeMap<LeaseId, ConnectionId>,
    /// Times of the last suspicions; see `connect/suspicion.rs`.
    pub(super) suspicions: VecDeque<Instant>,
    /// Dials with ids up to this one presented a previous identity, or started before `stop`: if
    /// they are cancelled and complete their handshake, they are closed at once.
    pub(super) invalidated_through: Option<ConnectionId>,
    /// The connections that are kept open although nothing uses them.
    pub(super) kept: Kept,
    pub(super) races: Races,
    pub(super) events: VecDeque<ConnectEvent>,
}

impl Connections {
    /// Changes the state of a connection, and with it the derived tables, the timers and what the
    /// driver and the manager are sent about it. A change that the state does not allow (see the
    /// table of [`super`]) has no effect. Returns the race that the connection no longer belongs
    /// to.
    pub(super) fn change(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        change: Change<'_>,
    ) -> Option<RaceId> {
        let reason = logged(&change);
        let before = self.states.remove(&conn);
        let from = before.as_ref().map_or("new", State::name);
        let race = before.as_ref().and_then(State::race);
        let mut node =
            before.as_ref().and_then(State::connection).map(|connection| connection.node);
        let after = match (before, change) {
            (None, Change::Dial { race, expect, addr, deadline }) => {
                self.dials.insert(conn);
                if self.races.get(race).is_some_and(|race| !race.foreground) {
                    self.background.insert(conn);
                }
                cx.output(Output::Dial { conn, addr, expect: BTreeSet::from([expect]), deadline });
                Some(State::Dialing { race: Some(race) })
            }
            (Some(State::Dialing { race: Some(_) }), Change::CancelDial) => {
                self.background.remove(&conn);
                self.cancelled += 1;
                cx.output(Output::CancelDial { conn });
                Some(State::Dialing { race: None })
            }
            (Some(State::Dialing { race }), Change::DialFailed(_) | Change::HandshakeDone) => {
                self.dials.remove(&conn);
                self.background.remove(&conn);
                self.cancelled -= usize::from(race.is_none());
                None
            }
            (None, Change::Greet { connection, race }) => {
                self.by_id.join(conn, &connection.chain);
                self.room.join_node(connection.node);
                let place = self.room.take(conn, connection.network, connection.side, cx.now);
                cx.timers.set(Timer::Hello(conn), cx.now + cx.config.hello_timeout);
                let Connection { node, side, dialect, .. } = connection;
                self.events.push_back(ConnectEvent::Greet { conn, node, side, dialect });
                Some(State::Greeting { connection, place, race })
            }
            (None, Change::Refuse { connection, reason }) => {
                node = Some(connection.node);
                self.by_id.join(conn, &connection.chain);
                self.events.push_back(ConnectEvent::Closing { conn, reason });
                Some(State::Closing { connection, was_accepted: false })
            }
            (Some(State::Greeting { connection, place, .. }), Change::Accept) => {
                cx.timers.cancel(Timer::Hello(conn));
                self.by_node.insert(conn, &connection);
                self.by_id.accept(connection.node);
                let Connection { node, side, .. } = connection;
                self.events.push_back(ConnectEvent::Opened { conn, node, side });
                Some(State::Live { connection, place })
            }
            (Some(State::Live { connection, place }), Change::Retire) => {
                self.by_node.remove(conn, &connection);
                self.room.leave_node(&connection.node);
                self.kept.remove(conn);
                cx.timers.cancel(Timer::Silent(conn));
                cx.timers.set(Timer::Idle(conn), cx.now + RETIREMENT);
                Some(State::Retired { connection, place })
            }
            (Some(before @ State::Retired { .. }), Change::Retire) => {
                cx.timers.set(Timer::Idle(conn), cx.now + RETIREMENT);
                Some(before)
            }
            // Greeting, live or retired.
            (Some(before), Change::Close(reason)) if before.place().is_some() => {
                self.leave_tables(cx, conn, &before);
                self.events.push_back(ConnectEvent::Closing { conn, reason });
                let was_accepted = before.is_accepted();
                before
                    .into_connection()
                    .map(|connection| State::Closing { connection, was_accepted })
            }
            // All but dialing.
            (Some(before), Change::Disconnect(_)) if before.connection().is_some() => {
                self.leave_tables(cx, conn, &before);
                if let Some(connection) = before.connection() {
                    self.by_id.leave(conn, &connection.chain);
                }
                for lease in before.connection().iter().flat_map(|connection| &connection.leases) {
                    self.leases.remove(lease);
                }
                None
            }
            (before, _) => {
                if let Some(before) = before {
                    self.states.insert(conn, before);
                }
                return None;
            }
        };
        let to = after.as_ref().map_or("ended", State::name);
        if let Some(reason) = reason {
            log(conn, from, to, &reason);
        }
        let left = race.filter(|_| after.as_ref().and_then(State::race).is_none());
        let over = matches!(after, None | Some(State::Closing { .. }));
        if let Some(after) = after {
            self.states.insert(conn, after);
        } else if self.states.is_empty() {
            // An emptied tree holds memory, a new one does not.
            self.states = BTreeMap::new();
        }
        if let Some(node) = node.filter(|_| over) {
            // The next connection with the node is primary now, and stays open longer when it is
            // idle.
            self.promote(cx, &node);
        }
        left
    }

    /// Takes a connection that is being closed, or has ended, out of what is derived from its
    /// state.
    fn leave_tables(&mut self, cx: &mut Cx, conn: ConnectionId, state: &State) {
        if let State::Live { connection, .. } = state {
            self.by_node.remove(conn, connection);
            self.kept.remove(conn);
        }
        if let Some(connection) = state.connection().filter(|_| state.is_accepted()) {
            self.by_id.end(&connection.node);
        }
        if let State::Greeting { connection, .. } | State::Live { connection, .. } = state {
            self.room.leave_node(&connection.node);
        }
        if let Some((connection, place)) = state.connection().zip(state.place()) {
            self.room.give_back(place, connection.network);
        }
        for timer in [Timer::Hello(conn), Timer::Idle(conn), Timer::Silent(conn)] {
            cx.timers.cancel(timer);
        }
    }

    // -- what changes without the state

    /// Takes a greeting connection out of its race.
    pub(super) fn take_race(&mut self, conn: ConnectionId) -> Option<RaceId> {
        match self.states.get_mut(&conn) {
            Some(State::Greeting { race, .. }) => race.take(),
            _ => None,
        }
    }

    /// Puts a greeting connection into a race.
    pub(super) fn set_race(&mut self, conn: ConnectionId, id: RaceId) {
        if let Some(State::Greeting { race, .. }) = self.states.get_mut(&conn) {
            *race = Some(id);
        }
    }

    /// Marks a connection as suspected or not.
    pub(super) fn mark_suspected(&mut self, conn: ConnectionId, suspected: bool) {
        self.reorder(conn, |connection| connection.suspected = suspected);
    }

    /// Changes what a connection is ordered by among those of its node.
    fn reorder(&mut self, conn: ConnectionId, change: impl FnOnce(&mut Connection)) {
        let Some(state) = self.states.get_mut(&conn) else { return };
        let live = matches!(state, State::Live { .. });
        let Some(connection) = state.connection_mut() else { return };
        if live {
            self.by_node.remove(conn, connection);
        }
        change(connection);
        if live {
            self.by_node.insert(conn, connection);
        }
    }

    /// Notes a use of a connection. After `recent` since it was put there, an incoming one moves
    /// behind all others of its network. Returns `false` for a retired connection, which nothing
    /// changes, and for an unknown one.
    pub(super) fn note_use(&mut self, conn: ConnectionId, now: Instant, recent: Duration) -> bool {
        let Some(state) = self.states.get_mut(&conn) else { return false };
        if matches!(state, State::Retired { .. }) {
            return false;
        }
        let Some((connection, place)) = state.parts_mut() else { return false };
        connection.used_at = now;
        if let Some(place) = place
            && place.turn.is_some_and(|(at, _)| now.since(at) >= recent)
        {
            self.room.move_back(place, conn, connection.network, now);
        }
        true
    }

    /// An incoming connection makes room after all others of its network.
    pub(super) fn move_back(&mut self, conn: ConnectionId, now: Instant) {
        if let Some((connection, Some(place))) =
            self.states.get_mut(&conn).and_then(State::parts_mut)
        {
            self.room.move_back(place, conn, connection.network, now);
        }
    }

    /// The peer of a connection has another address, and its place counts for the network of that.
    /// `path` is the address and the origin that the connection has from now on.
    pub(super) fn set_address(
        &mut self,
        conn: ConnectionId,
        addr: SocketAddr,
        path: (NodeAddress, AddressOrigin),
        now: Instant,
    ) {
        self.reorder(conn, |connection| (connection.address, connection.origin) = path);
        let parts = self.states.get_mut(&conn).and_then(State::parts_mut);
        let Some((connection, place)) = parts else { return };
        let former = connection.network;
        connection.network = Network::of(addr.ip());
        if let Some(place) = place {
            self.room.give_back(place, former);
            *place = self.room.take(conn, connection.network, connection.side, now);
        }
    }

    /// Notes how long a call on a connection took.
    pub(crate) fn note_round_trip(&mut self, conn: ConnectionId, took: Duration) {
        if let Some(connection) = self.states.get_mut(&conn).and_then(State::connection_mut) {
            connection.round_trip = u16::try_from(took.as_millis()).unwrap_or(u16::MAX);
        }
    }

    pub(super) fn add_lease(&mut self, conn: ConnectionId, lease: LeaseId) {
        if let Some(connection) = self.states.get_mut(&conn).and_then(State::connection_mut) {
            connection.leases.insert(lease);
            self.leases.insert(lease, conn);
        }
    }

    /// Removes a lease; returns its connection.
    pub(super) fn remove_lease(&mut self, lease: LeaseId) -> Option<ConnectionId> {
        let conn = self.leases.remove(&lease)?;
        if let Some(connection) = self.states.get_mut(&conn).and_then(State::connection_mut) {
            connection.leases.remove(&lease);
        }
        Some(conn)
    }

    // -- reading

    pub(super) fn state(&self, conn: ConnectionId) -> Option<&State> {
        self.states.get(&conn)
    }

    /// A connection whose handshake is complete.
    pub(super) fn connection(&self, conn: ConnectionId) -> Option<&Connection> {
        self.states.get(&conn)?.connection()
    }

    /// Every id in use: dials, and connections until the driver has reported their end.
    pub(super) fn states(&self) -> impl Iterator<Item = (ConnectionId, &State)> {
        self.states.iter().map(|(conn, state)| (*conn, state))
    }

    /// The connections whose handshake is complete.
    pub(super) fn connections(&self) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        self.states().filter_map(|(conn, state)| Some((conn, state.connection()?)))
    }

    /// The connections that both ends have accepted, and that are not being closed.
    pub(super) fn accepted_connections(&self) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        let accepted = self.states().filter(|(_, state)| state.is_accepted());
        accepted.filter_map(|(conn, state)| Some((conn, state.connection()?)))
    }

    /// The dials in progress with their races, the oldest first.
    pub(super) fn dials(&self) -> impl DoubleEndedIterator<Item = (ConnectionId, Option<RaceId>)> {
        self.dials.iter().map(|conn| (*conn, self.states.get(conn).and_then(State::race)))
    }

    /// Returns the newest dial of a race that the embedder does not wait for.
    pub(super) fn newest_background_dial(&self) -> Option<ConnectionId> {
        self.background.last().copied()
    }

    /// The embedder waits for the race of these dials, or the race is over.
    pub(super) fn leave_background(&mut self, dials: impl Iterator<Item = ConnectionId>) {
        for conn in dials {
            self.background.remove(&conn);
        }
    }

    /// Whether a dial is cancelled and has not ended.
    pub(super) fn has_cancelled_dials(&self) -> bool {
        self.cancelled > 0
    }

    /// How many dials are in progress, with those that are cancelled and have not ended.
    pub(super) fn dial_count(&self) -> usize {
        self.dials.len()
    }

    pub(super) fn by_node(&self) -> &ByNode {
        &self.by_node
    }

    pub(super) fn by_id(&self) -> &ById {
        &self.by_id
    }

    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// Whether no dial and no connection is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Counts the tables of this component.
    pub(crate) fn count_tables(&self, census: &mut Census) {
        census.dials = self.dials.len();
        census.races = self.races.len();
        census.connections = self.states.len() - self.dials.len();
        census.leases = self.leases.len();
        census.events += self.events.len();
    }
}

/// The reason of a change, if changes are logged.
#[cfg(feature = "tracing")]
fn logged(change: &Change<'_>) -> Option<String> {
    tracing::enabled!(tracing::Level::DEBUG).then(|| alloc::format!("{change}"))
}

#[cfg(not(feature = "tracing"))]
fn logged(_: &Change<'_>) -> Option<String> {
    None
}

#[cfg(feature = "tracing")]
fn log(conn: ConnectionId, from: &str, to: &str, reason: &str) {
    tracing::debug!(conn = conn.0, from, to, reason, "connection");
}

#[cfg(not(feature = "tracing"))]
fn log(_: ConnectionId, _: &str, _: &str, _: &str) {}

#[cfg(test)]
mod tests {
    use crate::api::error::ConnectionErrorReason;
    use alloc::vec::Vec;

    use super::*;
    use crate::api::config::Config;
    use crate::api::transport::{DialFailure, DisconnectReason, Side};
    use crate::machine::dial::AddressOrigin;
    use crate::machine::phase::Phase;
    use crate::types::id::NodeId;
    use crate::types::time::UnixMillis;
    use crate::wire::dialect::Dialect;

    const CONN: ConnectionId = ConnectionId(1);
    const NODE: NodeId = NodeId::from_bytes([1; 32]);
    const RACE: RaceId = RaceId(7);
    const CHANGES: [&str; 10] = [
        "Dial",
        "CancelDial",
        "DialFailed",
        "HandshakeDone",
        "Greet",
        "Refuse",
        "Accept",
        "Retire",
        "Close",
        "Disconnect",
    ];

    fn connection() -> Connection {
        let addr: SocketAddr = "192.0.2.1:1".parse().unwrap();
        Connection {
            node: NODE,
            chain: alloc::vec![NODE],
            side: Side::Acceptor,
            dialect: Dialect::Native,
            address: NodeAddress::from_socket(addr),
            network: Network::of(addr.ip()),
            since: UnixMillis(0),
            shared_id: bytes::Bytes::from_static(b"1"),
            origin: AddressOrigin::DIRECT,
            suspected: false,
            leases: BTreeSet::new(),
            used_at: Instant::ORIGIN,
            round_trip: u16::MAX,
        }
    }

    fn change(name: &str) -> Change<'static> {
        let (addr, deadline) = ("192.0.2.1:1".parse().unwrap(), Instant::ORIGIN);
        match name {
            "Dial" => Change::Dial { race: RACE, expect: NODE, addr, deadline },
            "CancelDial" => Change::CancelDial,
            "DialFailed" => Change::DialFailed(&DialFailure::TimedOut),
            "HandshakeDone" => Change::HandshakeDone,
            "Greet" => Change::Greet { connection: connection(), race: Some(RACE) },
            "Refuse" => {
                Change::Refuse { connection: connection(), reason: ConnectionErrorReason::TooMany }
            }
            "Accept" => Change::Accept,
            "Retire" => Change::Retire,
            "Close" => Change::Close(ConnectionErrorReason::Idle),
            "Disconnect" => Change::Disconnect(&DisconnectReason::TimedOut),
            name => unreachable!("{name}"),
        }
    }

    /// A connection after some changes.
    fn after(changes: &[&str]) -> (Connections, Cx) {
        let own = alloc::vec![NodeId::from_bytes([0; 32])];
        let mut cx = Cx::new(Config::default(), own, [0; 32], Instant::ORIGIN, UnixMillis(0));
        cx.set_phase(Phase::Running);
        let mut connections = Connections::default();
        for name in changes {
            connections.change(&mut cx, CONN, change(name));
        }
        (connections, cx)
    }

    fn state(connections: &Connections) -> &'static str {
        connections.state(CONN).map_or("none", State::name)
    }

    /// What is derived from the state: dials, places, places of the node, connections to choose
    /// from.
    fn derived(connections: &Connections) -> [usize; 4] {
        let room = connections.room();
        [
            connections.dial_count(),
            room.total(),
            room.of_node(&NODE),
            connections.by_node().all(&NODE).count(),
        ]
    }

    #[test]
    fn states_change_as_in_the_table_of_the_module() {
        /// Changes, the state after them, its tables, and the allowed changes with their results.
        type Row = (&'static [&'static str], &'static str, [usize; 4], Allowed);
        type Allowed = &'static [(&'static str, &'static str)];
        let states: [Row; 7] = [
            (
                &[],
                "none",
                [0, 0, 0, 0],
                &[("Dial", "dialing"), ("Greet", "greeting"), ("Refuse", "closing")],
            ),
            (
                &["Dial"],
                "dialing",
                [1, 0, 0, 0],
                &[
                    ("CancelDial", "cancelled dial"),
                    ("DialFailed", "none"),
                    ("HandshakeDone", "none"),
                ],
            ),
            (
                &["Dial", "CancelDial"],
                "cancelled dial",
                [1, 0, 0, 0],
                &[("DialFailed", "none"), ("HandshakeDone", "none")],
            ),
            (
                &["Dial", "HandshakeDone", "Greet"],
                "greeting",
                [0, 1, 1, 0],
                &[("Accept", "live"), ("Close", "closing"), ("Disconnect", "none")],
            ),
            (
                &["Greet", "Accept"],
                "live",
                [0, 1, 1, 1],
                &[("Retire", "retired"), ("Close", "closing"), ("Disconnect", "none")],
            ),
            (
                &["Greet", "Accept", "Retire"],
                "retired",
                [0, 1, 0, 0],
                &[("Close", "closing"), ("Disconnect", "none")],
            ),
            (
                &["Greet", "Accept", "Retire", "Close"],
                "closing",
                [0, 0, 0, 0],
                &[("Disconnect", "none")],
            ),
        ];
        let tables = states.map(|(_, name, tables, _)| (name, tables));
        for (path, name, tables_of_state, allowed) in states {
            let (connections, _) = after(path);
            assert_eq!((state(&connections), derived(&connections)), (name, tables_of_state));
            for change in CHANGES {
                let (connections, _) = after(&[path, &[change]].concat());
                let expected = allowed
                    .iter()
                    .find(|(allowed, _)| *allowed == change)
                    .map_or(name, |(_, to)| *to);
                assert_eq!(state(&connections), expected, "{name}: {change}");
                assert!(tables.contains(&(expected, derived(&connections))), "{name}: {change}");
            }
        }
    }

    #[test]
    fn connection_leaves_its_race_when_it_is_accepted_or_ends() {
        for (path, last, left) in [
            (&["Dial"][..], "CancelDial", Some(RACE)),
            (&["Dial"], "DialFailed", Some(RACE)),
            (&["Dial"], "HandshakeDone", Some(RACE)),
            (&["Dial", "CancelDial"], "HandshakeDone", None),
            (&["Greet"], "Accept", Some(RACE)),
            (&["Greet"], "Close", Some(RACE)),
            (&["Greet"], "Disconnect", Some(RACE)),
            (&["Greet", "Accept"], "Close", None),
            (&["Greet"], "Retire", None),
        ] {
            let (mut connections, mut cx) = after(path);
            assert_eq!(connections.change(&mut cx, CONN, change(last)), left, "{path:?}, {last}");
        }
    }

    #[test]
    fn timers_end_with_the_state_that_they_belong_to() {
        let timers = |path: &[&str]| -> Vec<bool> {
            let (_, cx) = after(path);
            [Timer::Hello(CONN), Timer::Idle(CONN)]
                .map(|timer| cx.timers.get(timer).is_some())
                .to_vec()
        };
        assert_eq!(timers(&["Greet"]), [true, false]);
        assert_eq!(timers(&["Greet", "Accept"]), [false, false], "`touch` sets the idle timer");
        assert_eq!(timers(&["Greet", "Accept", "Retire"]), [false, true]);
        assert_eq!(timers(&["Greet", "Accept", "Retire", "Close"]), [false, false]);
        assert_eq!(timers(&["Greet", "Disconnect"]), [false, false]);
    }
}
