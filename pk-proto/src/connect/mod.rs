//! Connections: the table, from handshake to end, and leases. The dials before are in [`dialling`].
//!
//! A connection goes through three states: *dialling* (ours only), *greeting* (the handshake is done, the peer has not
//! said Hello), *accepted*. Only accepted ones count: they alone win races, carry calls and are told to others.

mod dialling;
mod race;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use bytes::Bytes;

pub(crate) use self::dialling::Goal;
use self::race::Race;
pub(crate) use self::race::{Learnt, RaceId};
use crate::address::{NodeAddress, NodeContactAddressData};
use crate::cx::Cx;
use crate::error::ConnectionErrorReason;
use crate::id::{BucketIndex, ConnectionId, EffectId, LeaseId, NodeId, RequestId};
use crate::io::{Connected, DialFailure, Dialect, DisconnectReason, Output, Role};
use crate::manager::RETIREMENT;
use crate::request::ConnectionInfo;
use crate::time::{Instant, UnixMillis};
use crate::timers::Timer;

/// What happened to connections, for the manager.
#[derive(Debug)]
pub(crate) enum ConnectEvent {
    /// A handshake is done: greet the peer.
    Greet { conn: ConnectionId, node: NodeId, role: Role, dialect: Dialect },
    /// Both sides accepted.
    Opened { conn: ConnectionId, node: NodeId, role: Role },
    /// An accepted connection leads elsewhere now.
    Moved { conn: ConnectionId, node: NodeId },
    /// The driver was asked to close it: nothing more may be said on it. `Closed` follows.
    Closing { conn: ConnectionId },
    /// A connection is over; `accepted` if `Opened` was reported.
    Closed { conn: ConnectionId, node: NodeId, accepted: bool, why: DisconnectReason, leases: Vec<LeaseId> },
    /// A race wants this relay to signal; [`Connections::signalled`] is due.
    Signal { race: RaceId, node: NodeId, relay: NodeId },
    /// A race ended: with a connection, or with what failed.
    RaceEnded {
        node: NodeId,
        waiters: BTreeSet<RequestId>,
        result: Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>,
    },
}

/// All connections of this node.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    table: BTreeMap<ConnectionId, Connection>,
    /// Accepted connections by every id that the peer proved, the primary first.
    by_node: BTreeMap<NodeId, BTreeSet<(Bytes, ConnectionId)>>,
    /// Dials under way; `None` once they are cancelled.
    dials: BTreeMap<ConnectionId, Option<RaceId>>,
    /// Up to this one, dials present who we were, or were begun before we stopped: none that was cancelled is kept.
    withdrawn: Option<ConnectionId>,
    races: BTreeMap<RaceId, Race>,
    /// The race that others may join.
    race_of: BTreeMap<NodeId, RaceId>,
    resolves: BTreeMap<EffectId, RaceId>,
    next_race: u64,
    leases: BTreeMap<LeaseId, ConnectionId>,
    events: VecDeque<ConnectEvent>,
}

/// A connection whose handshake is done.
#[derive(Debug)]
struct Connection {
    node: NodeId,
    chain: Vec<NodeId>,
    role: Role,
    dialect: Dialect,
    address: NodeAddress,
    since: UnixMillis,
    shared_id: Bytes,
    learnt: Learnt,
    /// The race it was dialled for, until it is accepted.
    race: Option<RaceId>,
    accepted: bool,
    /// It is of an identity that we no longer have: it finishes what it is at, and nothing else.
    retired: bool,
    /// We have asked the driver to close it.
    closing: bool,
    leases: BTreeSet<LeaseId>,
    /// When it was last used.
    used_at: Instant,
}

impl Connection {
    /// Accepted by both sides, and not being closed.
    fn is_live(&self) -> bool {
        self.accepted && !self.closing
    }

    fn data(&self) -> NodeContactAddressData {
        NodeContactAddressData { mode: self.learnt.mode, connected_time: self.since, scopes: self.learnt.scopes }
    }
}

impl Connections {
    // -- inputs

    /// A handshake is done. `incoming`: how the peer of an incoming connection is known to have come here.
    pub(crate) fn connected(&mut self, cx: &mut Cx, connected: Connected, incoming: Learnt) {
        let conn = connected.conn;
        let race = match connected.role {
            Role::Dialler => match self.dials.remove(&conn) {
                Some(race) => race,
                None => {
                    cx.metrics.late_inputs += 1;
                    return;
                }
            },
            Role::Acceptor => None,
        };
        if self.table.contains_key(&conn) {
            cx.metrics.late_inputs += 1;
            return;
        }
        let dialled = race.and_then(|race| self.races.get(&race)).and_then(|race| race.dialling.get(&conn));
        let learnt = dialled.map(|dial| dial.learnt);
        let node = connected.leaf;
        let chain = if connected.chain.is_empty() { alloc::vec![node] } else { connected.chain };
        let called = self.is_called(&chain);
        let own = chain.iter().any(|id| cx.is_own(id));
        let refusal = if own {
            cx.metrics.connections_to_self += 1;
            Some(ConnectionErrorReason::SameNode)
        } else if connected.role == Role::Dialler && race.is_none() && self.is_in_vain(conn, connected.dialect) {
            Some(ConnectionErrorReason::NotNeeded)
        } else if self.count() >= cx.config.connection_limit || self.of(&node) >= cx.config.connections_per_node {
            cx.metrics.connections_refused += 1;
            Some(ConnectionErrorReason::TooMany)
        } else {
            None
        };
        let connection = Connection {
            node,
            chain,
            role: connected.role,
            dialect: connected.dialect,
            address: NodeAddress::from_socket(connected.remote),
            since: cx.unix(),
            shared_id: connected.shared_id,
            learnt: learnt.unwrap_or(if called { Learnt::SIGNALLED } else { incoming }),
            race,
            accepted: false,
            retired: false,
            closing: false,
            leases: BTreeSet::new(),
            used_at: cx.now,
        };
        self.table.insert(conn, connection);
        match refusal {
            Some(reason) => self.close(cx, conn, reason),
            None => {
                cx.timers.set(Timer::Hello(conn), cx.now + cx.config.hello_timeout);
                let (role, dialect) = (connected.role, connected.dialect);
                self.events.push_back(ConnectEvent::Greet { conn, node, role, dialect });
            }
        }
    }

    /// Whether a relay tells a node where we are, or has told it: then it dials back, which may be here before the relay's
    /// answer, or after our own dial was first.
    fn is_called(&self, chain: &[NodeId]) -> bool {
        let racing = self.races.values().filter(|race| chain.contains(&race.node));
        let called = { racing }.any(|race| race.called || race.signalling > 0);
        called || self.table.values().any(|live| chain.contains(&live.node) && live.learnt == Learnt::SIGNALLED)
    }

    pub(crate) fn disconnected(&mut self, cx: &mut Cx, conn: ConnectionId, why: DisconnectReason) {
        let Some(connection) = self.table.remove(&conn) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        cx.timers.cancel(Timer::Hello(conn));
        cx.timers.cancel(Timer::Idle(conn));
        unlist(&mut self.by_node, conn, &connection);
        self.promote(cx, &connection.node);
        for lease in &connection.leases {
            self.leases.remove(lease);
        }
        if let Some(race) = connection.race {
            let failure = match &why {
                DisconnectReason::Peer { code, reason } => {
                    DialFailure::Rejected { code: *code, reason: reason.clone() }
                }
                DisconnectReason::Local => DialFailure::Cancelled,
                DisconnectReason::TimedOut => DialFailure::TimedOut,
                other => DialFailure::Transport(alloc::format!("{other}")),
            };
            self.dial_lost(cx, race, conn, failure);
        }
        self.events.push_back(ConnectEvent::Closed {
            conn,
            node: connection.node,
            accepted: connection.accepted,
            why,
            leases: connection.leases.into_iter().collect(),
        });
    }

    /// The peer said Hello: the connection counts from now on.
    pub(crate) fn accepted(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let Some(connection) = self.table.get_mut(&conn) else { return };
        if connection.accepted || connection.closing {
            return;
        }
        connection.accepted = true;
        connection.race = None;
        cx.metrics.connections_accepted += 1;
        cx.timers.cancel(Timer::Hello(conn));
        let (node, role, chain) = (connection.node, connection.role, connection.chain.clone());
        let primary = self.by_node.get(&node).and_then(BTreeSet::first).map(|(_, conn)| *conn);
        for id in &chain {
            self.by_node.entry(*id).or_default().insert((connection.shared_id.clone(), conn));
        }
        self.events.push_back(ConnectEvent::Opened { conn, node, role });
        let won: Vec<_> = self.races.iter().filter(|(_, race)| chain.contains(&race.node)).map(|(id, _)| *id).collect();
        for race in won {
            self.end_race(cx, race, Ok(conn));
        }
        self.touch(cx, conn);
        // The one that was primary until now lives no longer than the others.
        if let Some(before) = primary {
            self.arm(cx, before);
        }
    }

    pub(crate) fn remote_address_changed(&mut self, cx: &mut Cx, conn: ConnectionId, addr: SocketAddr) {
        match self.table.get_mut(&conn) {
            Some(connection) => {
                connection.address = NodeAddress::from_socket(addr);
                if connection.is_live() {
                    self.events.push_back(ConnectEvent::Moved { conn, node: connection.node });
                }
            }
            None => cx.metrics.late_inputs += 1,
        }
    }

    // -- timers

    pub(crate) fn hello_overdue(&mut self, cx: &mut Cx, conn: ConnectionId) {
        cx.metrics.hello_timeouts += 1;
        if let Some(race) = self.table.get_mut(&conn).and_then(|connection| connection.race.take()) {
            self.dial_lost(cx, race, conn, DialFailure::TimedOut);
        }
        self.close(cx, conn, ConnectionErrorReason::NoHello);
    }

    /// Closes a connection that nobody uses. The manager has made sure of that.
    pub(crate) fn close_idle(&mut self, cx: &mut Cx, conn: ConnectionId) {
        self.close(cx, conn, ConnectionErrorReason::Idle);
    }

    // -- use

    /// A connection was used: its idle time begins anew.
    pub(crate) fn touch(&mut self, cx: &mut Cx, conn: ConnectionId) {
        if let Some(connection) = self.table.get_mut(&conn).filter(|connection| !connection.retired) {
            connection.used_at = cx.now;
            self.arm(cx, conn);
        }
    }

    /// Sets the idle timer of an accepted connection.
    fn arm(&self, cx: &mut Cx, conn: ConnectionId) {
        if let Some(connection) = self.table.get(&conn).filter(|connection| connection.is_live()) {
            let at = match connection.leases.is_empty() {
                true => self.idle_at(cx, conn, connection),
                // The peer does not know of the lease: it has to hear of us before its own patience is over.
                false => connection.used_at + cx.config.connection_idle_timeout / 2,
            };
            cx.timers.set(Timer::Idle(conn), at);
        }
    }

    /// When a connection closes if nobody uses it.
    fn idle_at(&self, cx: &Cx, conn: ConnectionId, connection: &Connection) -> Instant {
        connection.used_at + idle_timeout(cx, &connection.node, self.is_primary(conn))
    }

    /// Whether a lease holds a connection.
    pub(crate) fn is_leased(&self, conn: ConnectionId) -> bool {
        self.table.get(&conn).is_some_and(|connection| !connection.leases.is_empty())
    }

    /// Holds a connection until `release`.
    pub(crate) fn acquire(&mut self, cx: &mut Cx, conn: ConnectionId) -> Option<LeaseId> {
        let connection = self.table.get_mut(&conn)?;
        let lease = cx.ids.lease();
        connection.leases.insert(lease);
        self.leases.insert(lease, conn);
        self.touch(cx, conn);
        Some(lease)
    }

    /// Ends a lease; nothing happens if it is over.
    pub(crate) fn release(&mut self, cx: &mut Cx, lease: LeaseId) {
        if let Some(conn) = self.leases.remove(&lease) {
            if let Some(connection) = self.table.get_mut(&conn) {
                connection.leases.remove(&lease);
            }
            self.touch(cx, conn);
        }
    }

    /// Asks the driver to close a connection; `Disconnected` ends it. What is being closed carries nothing new.
    pub(crate) fn close(&mut self, cx: &mut Cx, conn: ConnectionId, reason: ConnectionErrorReason) {
        let Some(connection) = self.table.get_mut(&conn).filter(|connection| !connection.closing) else { return };
        connection.closing = true;
        let (node, race) = (connection.node, connection.race.take());
        unlist(&mut self.by_node, conn, connection);
        cx.timers.cancel(Timer::Hello(conn));
        cx.timers.cancel(Timer::Idle(conn));
        let code = reason.code() as u64;
        cx.output(Output::CloseConnection { conn, code, reason: reason.to_string() });
        self.events.push_back(ConnectEvent::Closing { conn });
        self.promote(cx, &node);
        if let Some(race) = race {
            let why = match reason {
                ConnectionErrorReason::NotNeeded => DialFailure::Cancelled,
                reason => DialFailure::Transport(reason.to_string()),
            };
            self.dial_lost(cx, race, conn, why);
        }
    }

    /// One connection with a node is gone: the next one is primary now, and lives longer.
    fn promote(&self, cx: &mut Cx, node: &NodeId) {
        if let Some(next) = self.primary(node) {
            self.arm(cx, next);
        }
    }

    /// Closes every connection with a node; returns how many.
    pub(crate) fn disconnect(&mut self, cx: &mut Cx, node: &NodeId) -> usize {
        let conns: Vec<_> = self
            .table
            .iter()
            .filter(|(_, connection)| connection.chain.contains(node) && !connection.closing)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in &conns {
            self.close(cx, *conn, ConnectionErrorReason::NotNeeded);
        }
        conns.len()
    }

    /// Whether a connection that came of a cancelled dial is closed at once. Not on `quic`: the reference takes one that ends
    /// so soon for one that lives, and calls over it in vain; there it is one more, to be closed when it is idle.
    fn is_in_vain(&self, conn: ConnectionId, dialect: Dialect) -> bool {
        dialect == Dialect::Native || Some(conn) <= self.withdrawn
    }

    /// None of the dials that are under way now, once cancelled, becomes a connection.
    fn withdraw(&mut self) {
        self.withdrawn = self.dials.last_key_value().map(|(conn, _)| *conn).max(self.withdrawn);
    }

    /// We are another node from now on. Connections that nobody uses close; the others carry nothing new and close within
    /// [`RETIREMENT`].
    pub(crate) fn retire(&mut self, cx: &mut Cx, in_use: impl Fn(ConnectionId) -> bool) {
        self.withdraw();
        let races: Vec<_> = self.races.keys().copied().collect();
        for race in races {
            self.restart(cx, race);
        }
        self.cancel_kept(cx);
        let conns: Vec<_> = self.table.keys().copied().collect();
        for conn in conns {
            let Some(connection) = self.table.get_mut(&conn) else { continue };
            if in_use(conn) || !connection.leases.is_empty() {
                unlist(&mut self.by_node, conn, connection);
                connection.retired = true;
                cx.timers.set(Timer::Idle(conn), cx.now + RETIREMENT);
            } else {
                self.close(cx, conn, ConnectionErrorReason::Renewed);
            }
        }
    }

    /// Whether a connection is of an identity that we no longer have.
    pub(crate) fn is_retired(&self, conn: ConnectionId) -> bool {
        self.table.get(&conn).is_some_and(|connection| connection.retired)
    }

    /// Calls off every race and closes every connection.
    pub(crate) fn stop(&mut self, cx: &mut Cx) {
        self.withdraw();
        let races: Vec<_> = self.races.keys().copied().collect();
        for race in races {
            self.call_off(cx, race);
        }
        self.cancel_kept(cx);
        let conns: Vec<_> = self.table.keys().copied().collect();
        for conn in conns {
            self.close(cx, conn, ConnectionErrorReason::NotNeeded);
        }
    }

    /// Ends every dial and every connection that the driver has not ended by now.
    pub(crate) fn abandon(&mut self, cx: &mut Cx) {
        self.dials.clear();
        for conn in self.table.keys().copied().collect::<Vec<_>>() {
            self.disconnected(cx, conn, DisconnectReason::Local);
        }
    }

    /// Whether no dial and no connection is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty() && self.dials.is_empty()
    }

    pub(crate) fn poll_event(&mut self) -> Option<ConnectEvent> {
        self.events.pop_front()
    }

    // -- questions

    /// The connection in use with a node, by any id that it proved: the one with the smallest shared id.
    pub(crate) fn primary(&self, node: &NodeId) -> Option<ConnectionId> {
        self.by_node.get(node)?.first().map(|(_, conn)| *conn)
    }

    fn is_primary(&self, conn: ConnectionId) -> bool {
        self.table.get(&conn).is_some_and(|connection| self.primary(&connection.node) == Some(conn))
    }

    /// What is known of an accepted connection.
    pub(crate) fn info(&self, cx: &Cx, conn: ConnectionId) -> Option<ConnectionInfo> {
        let connection = self.table.get(&conn).filter(|connection| connection.is_live())?;
        Some(ConnectionInfo {
            conn,
            node: connection.node,
            address: connection.address.clone(),
            data: connection.data(),
            shared_id: connection.shared_id.clone(),
            primary: self.is_primary(conn),
            idle_in: connection.leases.is_empty().then(|| self.idle_at(cx, conn, connection).since(cx.now)),
        })
    }

    /// All accepted connections.
    pub(crate) fn infos(&self, cx: &Cx) -> Vec<ConnectionInfo> {
        self.table.keys().filter_map(|conn| self.info(cx, *conn)).collect()
    }

    /// The connected nodes closest to a target, nearest first, each by its newest id.
    pub(crate) fn closest(&self, target: &NodeId, limit: usize) -> Vec<NodeId> {
        let mut nodes: Vec<_> = self
            .table
            .values()
            .filter(|connection| connection.is_live())
            .map(|connection| (connection.node.distance(target), connection.node))
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.truncate(limit);
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// The accepted connections with a node, the primary first.
    pub(crate) fn with(&self, node: &NodeId) -> impl Iterator<Item = ConnectionId> {
        self.by_node.get(node).into_iter().flatten().map(|(_, conn)| *conn)
    }

    /// Whether there is an accepted connection with a node of this bucket.
    pub(crate) fn reaches(&self, cx: &Cx, bucket: BucketIndex) -> bool {
        let own = cx.own();
        let accepted = self.table.values().filter(|connection| connection.accepted && !connection.closing);
        accepted.map(|connection| own.bucket_index(&connection.node)).any(|index| index == Some(bucket))
    }

    /// Whose a connection is, by its newest id.
    pub(crate) fn node(&self, conn: ConnectionId) -> Option<NodeId> {
        self.table.get(&conn).map(|connection| connection.node)
    }

    /// What is spoken on a connection.
    pub(crate) fn dialect(&self, conn: ConnectionId) -> Option<Dialect> {
        self.table.get(&conn).map(|connection| connection.dialect)
    }

    /// Every id that the peer of a connection proved, the newest first.
    pub(crate) fn chain(&self, conn: ConnectionId) -> Vec<NodeId> {
        self.table.get(&conn).map(|connection| connection.chain.clone()).unwrap_or_default()
    }

    /// Where an accepted connection leads, and what the graph should know of it.
    pub(crate) fn address(&self, conn: ConnectionId) -> Option<(NodeAddress, NodeContactAddressData)> {
        let connection = self.table.get(&conn)?;
        Some((connection.address.clone(), connection.data()))
    }

    /// Connections in any state but closing.
    fn open(&self) -> impl Iterator<Item = &Connection> {
        self.table.values().filter(|connection| !connection.closing)
    }

    /// Connections with a node.
    fn of(&self, node: &NodeId) -> usize {
        self.open().filter(|connection| connection.node == *node).count()
    }

    /// Connections and dials.
    fn count(&self) -> usize {
        self.open().count() + self.dials.len()
    }

    /// Writes the gauges of this part.
    pub(crate) fn measure(&self, metrics: &mut crate::metrics::Metrics) {
        let live = self.table.values().filter(|connection| connection.is_live()).count();
        metrics.connections = live as u64;
        metrics.connections_pending = (self.count() - live) as u64;
    }
}

/// Takes a connection from those in use.
fn unlist(by_node: &mut BTreeMap<NodeId, BTreeSet<(Bytes, ConnectionId)>>, conn: ConnectionId, of: &Connection) {
    for id in &of.chain {
        if let Some(connections) = by_node.get_mut(id) {
            connections.remove(&(of.shared_id.clone(), conn));
            if connections.is_empty() {
                by_node.remove(id);
            }
        }
    }
}

/// 60 s, and for a primary connection up to 2 h more the nearer its node is (WIRE.md section 9). Integers only.
fn idle_timeout(cx: &Cx, node: &NodeId, primary: bool) -> Duration {
    let base = cx.config.connection_idle_timeout;
    match cx.own().bucket_index(node) {
        Some(bucket) if primary => base + cx.config.connection_idle_scale * u32::from(255 - bucket.0) / 255,
        _ => base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// `spec/vectors/distance.json`, `stickyIdleTimeout`, in whole milliseconds.
    #[test]
    fn the_nearer_the_longer_a_primary_connection_lives() {
        let own = NodeId::from_bytes([0; 32]);
        let cx = Cx::new(Config::default(), alloc::vec![own], [0; 32], Instant::ORIGIN, UnixMillis(0));
        for (bucket, ms) in [(255u8, 60_000), (254, 88_235), (200, 1_612_941), (128, 3_645_882), (0, 7_260_000)] {
            let mut bytes = [0; 32];
            bytes[31 - usize::from(bucket / 8)] = 1 << (bucket % 8);
            let node = NodeId::from_bytes(bytes);
            assert_eq!(own.bucket_index(&node).map(|index| index.0), Some(bucket));
            assert_eq!(idle_timeout(&cx, &node, true).as_millis(), ms, "bucket {bucket}");
            assert_eq!(idle_timeout(&cx, &node, false).as_millis(), 60_000);
        }
    }
}
