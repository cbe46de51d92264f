//! A connection: two ends, and the messages between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::cert::Verified;
use pk_proto::{ConnectionId, Dialect, Identity, Input, Instant, NodeId, StreamId};

use super::half::Half;
use super::{DIALLER, Packet, StreamKey};
use crate::HostId;
use crate::wire::{Happening, Wire};

/// Which end of a connection, as an index.
pub(crate) type Side = usize;

/// Waits between two attempts of something reliable grow no longer than this. RFC 9002 sets no limit, but the keep-alives and
/// new data that also run into a partition are not simulated, and each would try again earlier.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// The first wait of a handshake, when no round trip has been measured (RFC 9002 section 6.2.2).
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// A message that reaches an end.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) serial: u64,
    pub(crate) to: Side,
    pub(crate) packet: Packet,
    /// How often it was held back.
    pub(crate) tries: u32,
    /// On its way through NATs: where it comes from and goes to, as the far end sees it, and when it was sent.
    pub(crate) path: Option<Path>,
}

/// The way of a packet outside of NATs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) sent: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndState {
    /// The acceptor before anything has reached it.
    Absent,
    /// The handshake is under way.
    Handshaking,
    /// The dialler has done its part and waits for HANDSHAKE_DONE (dialect `quic`).
    AwaitingDone,
    /// Its machine knows it as connected, or is about to.
    Open,
    /// Over; the peer is or will be told.
    Closed,
    /// Over without a word.
    Gone,
}

impl EndState {
    fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Gone)
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) host: HostId,
    pub(crate) life: u32,
    pub(crate) state: EndState,
    pub(crate) number: Option<ConnectionId>,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// What the dialler presents.
    pub(crate) identity: Identity,
    pub(crate) heard: Instant,
    /// Since when nothing can be heard.
    pub(crate) deaf: Option<Instant>,
    /// What came before the end of the handshake.
    pub(crate) held: Vec<Packet>,
    /// Streams it has opened, ever.
    pub(crate) opened: u64,
    /// Streams it has opened that are not over at the peer.
    pub(crate) open: u32,
    /// Streams of the peer that it has been told of.
    pub(crate) told: u64,
}

impl End {
    pub(crate) fn new(host: HostId, life: u32, state: EndState, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            host,
            life,
            state,
            number: None,
            local,
            remote,
            identity: Identity { chain: Vec::new() },
            heard: Instant::ORIGIN,
            deaf: None,
            held: Vec::new(),
            opened: 0,
            open: 0,
            told: 0,
        }
    }
}

/// One stream of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Its number at each end.
    pub(crate) ids: [Option<StreamId>; 2],
    /// The application that has it, at each end.
    pub(crate) apps: [Option<usize>; 2],
    /// Its directions, by the side that writes.
    pub(crate) halves: [Half; 2],
    /// At which ends it is over.
    pub(crate) over: [bool; 2],
}

/// A connection, or what is to become one.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) serial: u64,
    pub(crate) ends: [End; 2],
    pub(crate) expect: BTreeSet<NodeId>,
    pub(crate) dialect: Dialect,
    pub(crate) shared_id: Bytes,
    pub(crate) began: Instant,
    /// Its packets pass a NAT, so that each has to find its way.
    pub(crate) translated: bool,
    /// A first packet has reached the acceptor.
    pub(crate) bound: bool,
    /// The dialler has sent the last message of its handshake, which makes the acceptor's end.
    pub(crate) finished: bool,
    /// What the acceptor proved to a dialler that waits for HANDSHAKE_DONE.
    pub(crate) proven: Option<Verified>,
    pub(crate) streams: BTreeMap<StreamKey, Stream>,
}

impl Connection {
    pub(crate) fn is_over(&self) -> bool {
        let [dialler, acceptor] = &self.ends;
        let stillborn = !self.finished && matches!(acceptor.state, EndState::Absent | EndState::Handshaking);
        dialler.state.is_over() && (acceptor.state.is_over() || stillborn)
    }

    /// Sends a message from one end to the other.
    pub(crate) fn send(&self, wire: &mut Wire, from: Side, packet: Packet) {
        let to = 1 - from;
        if self.translated {
            return self.transmit(wire, Arrival { serial: self.serial, to, packet, tries: 0, path: None });
        }
        let link = wire.network.link(self.ends[from].host, self.ends[to].host);
        let wait = self.wait(wire, &packet);
        let delay = link.reliable(&mut wire.dice.links, wait);
        let arrival = Arrival { serial: self.serial, to, packet, tries: 0, path: None };
        wire.schedule(wire.now + delay, Happening::Arrive(arrival));
    }

    /// Sends a message again that did not get through.
    pub(crate) fn send_again(&self, wire: &mut Wire, arrival: Arrival) {
        let wait = self.wait(wire, &arrival.packet) * (1 << arrival.tries.saturating_sub(1).min(8));
        wire.schedule(wire.now + wait.min(MAX_WAIT), Happening::Arrive(arrival));
    }

    /// Sends a packet from behind a NAT, or to one.
    pub(crate) fn transmit(&self, wire: &mut Wire, mut arrival: Arrival) {
        let end = &self.ends[1 - arrival.to];
        let Some(from) = wire.network.leave(wire.now, end.host, end.local, end.remote) else {
            return self.transmit_again(wire, wire.now, arrival);
        };
        arrival.path = Some(Path { from, to: end.remote, sent: wire.now });
        let link = wire.network.link(end.host, wire.network.owner(end.remote).unwrap_or(end.host));
        let wait = self.wait(wire, &arrival.packet);
        let delay = link.reliable(&mut wire.dice.links, wait);
        wire.schedule(wire.now + delay, Happening::Arrive(arrival));
    }

    /// A packet arrives where NATs are on the way. Returns whether it gets to its end: NATs let it through, and its end knows
    /// it. An acceptor takes first packets from anywhere, and follows its peer to another address (RFC 9000 section 9); a
    /// dialler hears nobody but whom it dialled.
    pub(crate) fn find_way(&mut self, wire: &mut Wire, to: Side, path: Path) -> bool {
        let Some((host, local)) = wire.network.enter(wire.now, path.from, path.to) else { return false };
        if !wire.passes(self.ends[1 - to].host, host) {
            return false;
        }
        if to == DIALLER {
            return self.ends[to].host == host && self.ends[to].remote == path.from;
        }
        let end = &mut self.ends[to];
        if !self.bound {
            self.bound = true;
            (end.host, end.local, end.remote) = (host, local, path.from);
        }
        if end.host != host {
            return false;
        }
        if end.remote != path.from {
            end.remote = path.from;
            if let (EndState::Open, Some(conn)) = (end.state, end.number) {
                wire.deliver(host, Input::RemoteAddressChanged { conn, addr: path.from });
            }
        }
        true
    }

    /// Has a packet sent again that was sent then and did not arrive. Handshakes wait longer and longer (RFC 9002 section
    /// 6.2.1).
    pub(crate) fn transmit_again(&self, wire: &mut Wire, sent: Instant, mut arrival: Arrival) {
        let wait = self.wait(wire, &arrival.packet) * (1 << arrival.tries.min(8));
        let wait = if matches!(arrival.packet, Packet::Handshake(_)) { wait } else { wait.min(MAX_WAIT) };
        arrival.tries += 1;
        wire.schedule(sent + wait, Happening::Resend(arrival));
    }

    /// Whether a message has to wait for the end of the handshake at this end.
    pub(crate) fn holds(&self, to: Side, packet: &Packet) -> bool {
        let early = matches!(self.ends[to].state, EndState::Absent | EndState::Handshaking | EndState::AwaitingDone);
        early && !matches!(packet, Packet::Handshake(_) | Packet::Close { .. } | Packet::Alive { .. })
    }

    /// Looks whether an end can hear its peer, and sets its idle timeout if it cannot.
    pub(crate) fn listen(&mut self, wire: &mut Wire, side: Side) {
        let (end, peer) = (&self.ends[side], &self.ends[1 - side]);
        if end.state != EndState::Open {
            return;
        }
        let there = &wire.hosts[peer.host];
        let forgotten = peer.state == EndState::Gone;
        let unheard = !there.alive || wire.network.is_cut(peer.host, end.host);
        if !forgotten && !unheard {
            self.ends[side].deaf = None;
            return;
        }
        let (ours, theirs) = (wire.hosts[end.host].transport, there.transport);
        let keep_alive = ours.keep_alive.min(theirs.keep_alive);
        if forgotten && !unheard && there.life == peer.life && theirs.stateless_reset {
            let round_trip = 2 * wire.network.link(end.host, peer.host).latency;
            wire.schedule(wire.now + keep_alive + round_trip, Happening::Forgotten { serial: self.serial, side });
        }
        // Behind a NAT keep-alives are really sent, since nobody knows in advance whether they arrive.
        if end.deaf.is_none() && !self.translated {
            // Keep-alives were heard until now; only what they would have said is simulated.
            let beats = wire.now.since(self.began).as_micros() / keep_alive.as_micros().max(1);
            let beat = self.began + keep_alive * u32::try_from(beats).unwrap_or(u32::MAX);
            let idle = end.heard.max(beat) + ours.idle_timeout.min(theirs.idle_timeout);
            self.ends[side].deaf = Some(wire.now);
            wire.schedule(idle, Happening::Idle { serial: self.serial, side, since: wire.now });
        }
    }

    fn wait(&self, wire: &Wire, packet: &Packet) -> Duration {
        match packet {
            Packet::Handshake(_) => FIRST_WAIT,
            _ => wire.network.link(self.ends[DIALLER].host, self.ends[1].host).probe_timeout(),
        }
    }
}
