//! QUIC at the level of the vocabulary: handshakes that prove identities, streams of bytes with
//! credit, ends of connections.
//!
//! A packet is not simulated; a message is: a step of a handshake, a piece of a stream, a close.
//! Each takes the time of its link, a loss makes it late, a partition holds it back until it is
//! healed or the connection is over.

mod circuit;
mod connection;
pub(crate) mod flow;
mod half;
mod handshake;
mod silence;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use pk_proto::{ConnectionId, DisconnectReason, Input, StreamId};

use crate::host::app::{AppAction, AppStream};
use crate::host::id::HostId;
use crate::wire::packet::{ACCEPTOR, Arrival, DIALER, EndIndex, Packet, StreamKey};
use crate::wire::traffic::Traffic;
use crate::wire::{Happening, Wire};
use connection::{Carries, Connection, EndState};

/// Every connection of the world.
#[derive(Debug, Default)]
pub(crate) struct Transport {
    /// Boxed, because a map reserves room for eleven.
    connections: BTreeMap<u64, Box<Connection>>,
    /// The connections of each host, by either end.
    of_host: BTreeSet<(HostId, u64)>,
    /// Dials to some addresses.
    pub(crate) watched: BTreeMap<SocketAddr, u64>,
    by_number: BTreeMap<(HostId, ConnectionId), (u64, EndIndex)>,
    by_stream: BTreeMap<(HostId, StreamId), (u64, EndIndex, StreamKey)>,
    /// Every stream that was ever handed over.
    pub(crate) apps: Vec<AppStream>,
    /// What applications want done, in order.
    wanted: VecDeque<(u64, EndIndex, StreamKey, AppAction)>,
    /// What streams carry, and the streams of paths by their addresses.
    carriers: BTreeMap<(HostId, StreamId), Carries>,
    paths: BTreeMap<(HostId, SocketAddr), StreamId>,
    /// Streams of the nodes that have requested circuits.
    owners: BTreeSet<(HostId, StreamId)>,
    /// Relayed connections.
    relayed: BTreeSet<u64>,
    performing: bool,
    serial: u64,
    pub(crate) counters: TransportCounters,
}

/// Counters of the transport, which show that a test was not vacuous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransportCounters {
    /// Dials that were started.
    pub dials: u64,
    /// Handshakes that both ends completed.
    pub handshakes: u64,
    /// Ends of connections that timed out.
    pub idle_timeouts: u64,
    /// Ends of connections that were suspected.
    pub suspicions: u64,
    /// Messages that a partition or a dead host held back and that were retransmitted.
    pub retransmissions: u64,
    /// Streams that were opened.
    pub streams: u64,
    /// Streams that could not be opened.
    pub streams_failed: u64,
    /// Bytes of streams that machines and applications have read.
    pub bytes_read: u64,
    /// Times that a writer waited for the window.
    pub blocked: u64,
    /// Outputs about connections and streams that had already ended.
    pub late_outputs: u64,
    /// Punch datagrams sent.
    pub punches_sent: u64,
    /// Punch datagrams that arrived.
    pub punches_arrived: u64,
    /// Circuits that relays have opened.
    pub circuits: u64,
    /// Relayed connections that were probed for a direct path.
    pub paths_probed: u64,
    /// Relayed connections that have become direct.
    pub upgrades: u64,
}

impl Transport {
    /// How many connections there are at a host, handshakes included.
    pub(crate) fn connections_of(&self, host: HostId) -> usize {
        self.by_number.range((host, ConnectionId(0))..=(host, ConnectionId(u64::MAX))).count()
    }

    /// `CloseConnection`.
    pub(crate) fn close(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        conn: ConnectionId,
        code: u64,
        reason: String,
    ) {
        let Some(&(serial, side)) = self.by_number.get(&(host, conn)) else {
            self.counters.late_outputs += 1;
            return;
        };
        wire.deliver(host, Input::Disconnected { conn, why: DisconnectReason::Local });
        self.end(wire, serial, side, Some(DisconnectReason::Peer { code, reason }));
    }

    /// The process of a host disappears without a close.
    pub(crate) fn crash(&mut self, wire: &mut Wire, host: HostId) {
        self.forget_carriers(wire, host);
        for (serial, side) in self.numbers_of(host) {
            self.end(wire, serial, side, None);
        }
        // Handshakes that its driver had accepted and not reported to its machine yet.
        for serial in self.serials_of(host) {
            let Some(connection) = self.connections.get_mut(&serial) else { continue };
            let end = &mut connection.ends[ACCEPTOR];
            if end.host == host && end.state == EndState::Handshaking {
                end.state = EndState::Gone;
            }
        }
        self.requeue_host(wire, host);
    }

    /// A host's driver ends: it closes what the machine left open.
    pub(crate) fn shut_down(&mut self, wire: &mut Wire, host: HostId) {
        for (serial, side) in self.numbers_of(host) {
            self.end(
                wire,
                serial,
                side,
                Some(DisconnectReason::Peer { code: 0, reason: String::new() }),
            );
        }
    }

    /// Every peer of a host sees it at a new address.
    pub(crate) fn moved(&mut self, wire: &mut Wire, host: HostId) {
        for (serial, side) in self.numbers_of(host) {
            let Some(connection) = self.connections.get_mut(&serial) else { continue };
            let remote = connection.ends[side].remote;
            let same_family = |addr: &&std::net::SocketAddr| addr.is_ipv4() == remote.is_ipv4();
            let Some(addr) = wire.hosts[host].addrs.iter().find(same_family).copied() else {
                continue;
            };
            connection.ends[side].local = addr;
            connection.send(wire, side, Packet::Moved { addr });
        }
    }

    /// A message reaches an end, or what is before it.
    pub(crate) fn arrive(&mut self, wire: &mut Wire, arrival: Arrival) {
        let (serial, to) = (arrival.serial, arrival.to);
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let arrives = match arrival.path {
            Some(path) => {
                let before = connection.ends[to].host;
                let found = connection.find_way(wire, to, path);
                // The first packet decides which host behind a NAT it is.
                let after = connection.ends[to].host;
                if after != before {
                    self.of_host.insert((after, serial));
                }
                found
            }
            None => connection.passes(wire, 1 - to),
        };
        self.acknowledge(wire, &arrival, arrives);
        if arrives {
            return self.take_in(wire, serial, to, arrival.packet);
        }
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        // A dead process retransmits nothing.
        if connection.ends[1 - to].state != EndState::Gone
            && !matches!(arrival.packet, Packet::Alive { .. })
        {
            self.counters.retransmissions += 1;
            match arrival.path {
                Some(path) => connection.transmit_again(wire, path.sent, arrival),
                None => {
                    connection.send_again(wire, Arrival { tries: arrival.tries + 1, ..arrival });
                }
            }
        }
    }

    /// A packet is sent again.
    pub(crate) fn resend(&mut self, wire: &mut Wire, arrival: Arrival) {
        let Some(connection) = self.connections.get(&arrival.serial) else { return };
        if connection.ends[1 - arrival.to].state != EndState::Gone {
            connection.transmit(wire, arrival);
        }
    }

    /// An end sends a keep-alive, and checks whether it has received as many.
    pub(crate) fn beat(&mut self, wire: &mut Wire, serial: u64, side: EndIndex) {
        let Some(connection) = self.connections.get(&serial) else { return };
        let [end, peer] = [&connection.ends[side], &connection.ends[1 - side]];
        if end.state != EndState::Open {
            return;
        }
        let (ours, theirs) = (wire.hosts[end.host].transport, wire.hosts[peer.host].transport);
        if wire.now.since(end.heard) >= ours.idle_timeout.min(theirs.idle_timeout) {
            self.counters.idle_timeouts += 1;
            return self.lost(wire, serial, side, DisconnectReason::TimedOut);
        }
        connection.send(wire, side, Packet::Alive { answer: false });
        wire.schedule(
            wire.now + ours.keep_alive.min(theirs.keep_alive),
            Happening::Beat { serial, side },
        );
    }

    /// An end gets a message.
    fn take_in(&mut self, wire: &mut Wire, serial: u64, to: EndIndex, packet: Packet) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let host = connection.ends[to].host;
        connection.ends[to].heard = wire.now;
        self.heard(wire, serial, to);
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        if connection.holds(to, &packet) {
            connection.ends[to].held.push(packet);
            return;
        }
        match packet {
            Packet::Handshake(step) => self.handshake(wire, serial, *step),
            Packet::Close { why } => self.closed(wire, serial, to, why),
            Packet::Stream { key, frame } => self.frame(wire, serial, to, key, frame),
            // A dead process and a closed connection do not answer.
            Packet::Alive { answer: false }
                if !matches!(connection.ends[to].state, EndState::Gone | EndState::Closed) =>
            {
                connection.send(wire, to, Packet::Alive { answer: true });
            }
            Packet::Alive { .. } => {}
            Packet::StreamOver => {
                connection.ends[to].open = connection.ends[to].open.saturating_sub(1);
            }
            Packet::Moved { addr } => {
                connection.ends[to].remote = addr;
                if let (EndState::Open, Some(conn)) =
                    (connection.ends[to].state, connection.ends[to].number)
                {
                    wire.deliver(host, Input::RemoteAddressChanged { conn, addr });
                }
            }
        }
    }

    /// Nothing was received for the idle timeout.
    pub(crate) fn idle(
        &mut self,
        wire: &mut Wire,
        serial: u64,
        side: EndIndex,
        since: pk_proto::Instant,
    ) {
        let Some(connection) = self.connections.get(&serial) else { return };
        if connection.ends[side].deaf == Some(since) {
            self.counters.idle_timeouts += 1;
            self.lost(wire, serial, side, DisconnectReason::TimedOut);
        }
    }

    /// Handles a stateless reset: the peer has no state of the connection.
    pub(crate) fn forgotten(&mut self, wire: &mut Wire, serial: u64, side: EndIndex) {
        let Some(connection) = self.connections.get(&serial) else { return };
        if connection.ends[side].state == EndState::Open
            && connection.passes(wire, side)
            && connection.passes(wire, 1 - side)
        {
            self.lost(wire, serial, side, DisconnectReason::Reset);
        }
    }

    /// The reachability of some hosts may have changed. Costs only what their connections cost.
    pub(crate) fn requeue_hosts(
        &mut self,
        wire: &mut Wire,
        hosts: impl IntoIterator<Item = HostId>,
    ) {
        let serials: BTreeSet<_> =
            hosts.into_iter().flat_map(|host| self.serials_of(host)).collect();
        for serial in serials {
            let Some(connection) = self.connections.get_mut(&serial) else { continue };
            connection.listen(wire, DIALER);
            connection.listen(wire, ACCEPTOR);
            self.sweep_one(wire, serial);
        }
    }

    /// The reachability of a host may have changed.
    pub(crate) fn requeue_host(&mut self, wire: &mut Wire, host: HostId) {
        self.requeue_hosts(wire, [host]);
    }

    /// The number of connections, handshakes included.
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// What all hosts have sent, the keep-alives of live connections included.
    pub(crate) fn traffic(&self, wire: &Wire) -> Vec<Traffic> {
        let mut all = wire.traffic.clone();
        for connection in self.connections.values() {
            connection.count_keep_alives(wire, &mut all);
        }
        all
    }

    /// The peer has closed.
    fn closed(&mut self, wire: &mut Wire, serial: u64, side: EndIndex, why: DisconnectReason) {
        let Some(connection) = self.connections.get(&serial) else { return };
        let end = &connection.ends[side];
        match (end.state, end.number) {
            (EndState::Open, Some(conn)) => {
                wire.deliver(end.host, Input::Disconnected { conn, why });
                self.end(wire, serial, side, None);
            }
            (EndState::AwaitingDone, Some(_)) => {
                self.dial_failed(wire, serial, handshake::refused(why));
            }
            _ => self.end(wire, serial, side, None),
        }
    }

    fn lost(&mut self, wire: &mut Wire, serial: u64, side: EndIndex, why: DisconnectReason) {
        let Some(connection) = self.connections.get(&serial) else { return };
        let end = &connection.ends[side];
        if let (EndState::Open, Some(conn)) = (end.state, end.number) {
            wire.deliver(end.host, Input::Disconnected { conn, why });
        }
        self.end(wire, serial, side, None);
    }

    /// One end closes; its peer is informed, unless it closes silently. Ends the streams of this
    /// end silently.
    fn end(
        &mut self,
        wire: &mut Wire,
        serial: u64,
        side: EndIndex,
        tell: Option<DisconnectReason>,
    ) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let end = &mut connection.ends[side];
        end.state = if tell.is_some() { EndState::Closed } else { EndState::Gone };
        end.held.clear();
        end.deaf = None;
        if let Some(conn) = end.number {
            self.by_number.remove(&(end.host, conn));
        }
        let host = end.host;
        let mut ended = Vec::new();
        for stream in connection.streams.values() {
            if let Some(id) = stream.ids[side] {
                self.by_stream.remove(&(host, id));
                ended.push(id);
            }
            if let Some(app) = stream.apps[side] {
                self.apps[app].lose();
            }
        }
        if let Some(why) = tell {
            connection.send(wire, side, Packet::Close { why });
        }
        connection.listen(wire, 1 - side);
        for stream in ended {
            self.carrier_over(wire, host, stream, false);
        }
        self.sweep_one(wire, serial);
    }

    fn numbers_of(&self, host: HostId) -> Vec<(u64, EndIndex)> {
        let range = (host, ConnectionId(0))..=(host, ConnectionId(u64::MAX));
        self.by_number.range(range).map(|(_, place)| *place).collect()
    }

    fn serials_of(&self, host: HostId) -> Vec<u64> {
        self.of_host.range((host, 0)..=(host, u64::MAX)).map(|(_, serial)| *serial).collect()
    }

    fn sweep_one(&mut self, wire: &mut Wire, serial: u64) {
        if !self.connections.get(&serial).is_some_and(|connection| connection.is_over()) {
            return;
        }
        let Some(connection) = self.connections.remove(&serial) else { return };
        self.relayed.remove(&serial);
        let mut traffic = std::mem::take(&mut wire.traffic);
        connection.count_keep_alives(wire, &mut traffic);
        wire.traffic = traffic;
        for host in connection.hosts() {
            self.of_host.remove(&(host, serial));
        }
    }
}
