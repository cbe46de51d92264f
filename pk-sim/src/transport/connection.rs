//! A connection: two ends, and the messages between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::cert::Verified;
use pk_proto::{ConnectionId, Dialect, Identity, Input, Instant, NodeId, StreamId};

use super::half::Half;
use crate::host::id::HostId;
use crate::wire::packet::{Arrival, DIALER, EndIndex, Packet, Path, StreamKey};
use crate::wire::traffic::Traffic;
use crate::wire::{Happening, Wire};

/// Maximum interval of retransmissions. RFC 9002 sets no limit, but the keep-alives and new data
/// that also run into a partition are not simulated, and each would try again earlier.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// First retransmission interval of a handshake, when no round trip was measured (RFC 9002 section
/// 6.2.2).
const FIRST_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndState {
    /// The acceptor, before the first packet has arrived.
    Absent,
    /// The handshake is in progress.
    Handshaking,
    /// The dialer has completed its part and waits for HANDSHAKE_DONE (dialect `quic`).
    AwaitingDone,
    /// The connection was reported to the machine of this end, or the report is queued.
    Open,
    /// Closed; the peer is or will be informed.
    Closed,
    /// Closed silently.
    Gone,
}

impl EndState {
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Gone)
    }
}

/// What a stream carries at one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    /// A path with this address.
    Path(SocketAddr),
    /// What the other stream of a circuit receives.
    Circuit(StreamId),
}

/// The way of a relayed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relayed {
    /// Relay.
    pub(crate) by: HostId,
    /// Stream of each end.
    pub(crate) streams: [StreamId; 2],
    /// Whether the circuit exists.
    pub(crate) is_open: bool,
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
    /// Identity that the dialer presents.
    pub(crate) identity: Identity,
    pub(crate) heard: Instant,
    /// Time since which nothing can be received.
    pub(crate) deaf: Option<Instant>,
    /// Time since which sent data is unanswered.
    pub(crate) unanswered: Option<Instant>,
    /// Whether `Suspected` was reported to the machine.
    pub(crate) suspected: bool,
    /// Packets that arrived before the end of the handshake.
    pub(crate) held: Vec<Packet>,
    /// Total number of streams that this end has opened.
    pub(crate) opened: u64,
    /// Number of streams that this end has opened and that have not ended at the peer.
    pub(crate) open: u32,
    /// Number of streams of the peer that were reported to this end.
    pub(crate) told: u64,
}

impl End {
    pub(crate) fn new(
        host: HostId,
        life: u32,
        state: EndState,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Self {
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
            unanswered: None,
            suspected: false,
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
    /// Application of the stream, at each end.
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
    /// Its packets are forwarded by a relay.
    pub(crate) relayed: Option<Relayed>,
    /// Host that the dialed address belonged to.
    pub(crate) first_peer: HostId,
    /// Whether a first packet has reached the acceptor.
    pub(crate) bound: bool,
    /// Whether the dialer has sent the last message of its handshake, which creates the acceptor's
    /// end.
    pub(crate) finished: bool,
    /// What the acceptor proved to a dialer that waits for HANDSHAKE_DONE.
    pub(crate) proven: Option<Verified>,
    /// Boxed, because a map reserves room for eleven.
    pub(crate) streams: BTreeMap<StreamKey, Box<Stream>>,
}

impl Connection {
    /// A direct connection whose dialer has sent nothing yet.
    pub(crate) fn new(
        serial: u64,
        ends: [End; 2],
        expect: BTreeSet<NodeId>,
        now: Instant,
    ) -> Connection {
        Connection {
            serial,
            first_peer: ends[1 - DIALER].host,
            ends,
            expect,
            dialect: Dialect::Native,
            shared_id: Bytes::new(),
            began: now,
            translated: false,
            relayed: None,
            bound: false,
            finished: false,
            proven: None,
            streams: BTreeMap::new(),
        }
    }

    /// The hosts that it is listed for.
    pub(crate) fn hosts(&self) -> [HostId; 3] {
        [self.ends[DIALER].host, self.ends[1].host, self.first_peer]
    }

    /// Returns whether packets of an end reach its peer, if both are alive.
    pub(crate) fn passes(&self, wire: &Wire, from: EndIndex) -> bool {
        let [here, there] = [self.ends[from].host, self.ends[1 - from].host];
        match self.relayed {
            None => wire.passes(here, there),
            Some(Relayed { by, is_open, .. }) => {
                is_open && wire.passes(here, by) && wire.passes(by, there)
            }
        }
    }

    /// Adds the keep-alives that both ends have sent; those of a translated connection are sent as
    /// messages.
    pub(crate) fn count_keep_alives(&self, wire: &Wire, traffic: &mut [Traffic]) {
        if self.translated || !self.finished {
            return;
        }
        let [ours, theirs] = [&self.ends[0], &self.ends[1]].map(|end| &wire.hosts[end.host]);
        let interval = ours.transport.keep_alive.min(theirs.transport.keep_alive);
        let idle = wire.now.since(self.began);
        for end in &self.ends {
            if let Some(traffic) = traffic.get_mut(end.host) {
                traffic.keeps_alive(idle, interval);
            }
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        let [dialer, acceptor] = &self.ends;
        let stillborn =
            !self.finished && matches!(acceptor.state, EndState::Absent | EndState::Handshaking);
        dialer.state.is_over() && (acceptor.state.is_over() || stillborn)
    }

    /// Sends a message from one end to the other.
    pub(crate) fn send(&self, wire: &mut Wire, from: EndIndex, packet: Packet) {
        let to = 1 - from;
        wire.sends(self.ends[from].host, &packet, false);
        if self.translated {
            return self
                .transmit(wire, Arrival { serial: self.serial, to, packet, tries: 0, path: None });
        }
        let wait = self.wait(wire, &packet);
        let [here, there] = [self.ends[from].host, self.ends[to].host];
        let delay = match self.relayed {
            None => wire.network.link(here, there).reliable(&mut wire.rngs.links, wait),
            Some(Relayed { by, .. }) => {
                wire.sends(by, &packet, false);
                let legs = [wire.network.link(here, by), wire.network.link(by, there)];
                legs.map(|link| link.reliable(&mut wire.rngs.links, wait)).iter().sum()
            }
        };
        let arrival = Arrival { serial: self.serial, to, packet, tries: 0, path: None };
        wire.schedule(wire.now + delay, Happening::Arrive(arrival));
    }

    /// Sends a message again that did not get through.
    pub(crate) fn send_again(&self, wire: &mut Wire, arrival: Arrival) {
        wire.sends(self.ends[1 - arrival.to].host, &arrival.packet, true);
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
        let delay = link.reliable(&mut wire.rngs.links, wait);
        wire.schedule(wire.now + delay, Happening::Arrive(arrival));
    }

    /// A packet arrives where NATs are on the path. Returns whether it reaches its end: NATs admit
    /// it, and its end knows it. An acceptor accepts first packets from any address, and follows
    /// its peer to another address (RFC 9000 section 9); a dialer accepts packets only from the
    /// address that it dialed.
    pub(crate) fn find_way(&mut self, wire: &mut Wire, to: EndIndex, path: Path) -> bool {
        let Some((host, local)) = wire.network.enter(wire.now, path.from, path.to) else {
            return false;
        };
        if !wire.passes(self.ends[1 - to].host, host) {
            return false;
        }
        if to == DIALER {
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

    /// Retransmits a lost packet. The intervals of handshakes grow (RFC 9002 section 6.2.1).
    pub(crate) fn transmit_again(&self, wire: &mut Wire, sent: Instant, mut arrival: Arrival) {
        let wait = self.wait(wire, &arrival.packet) * (1 << arrival.tries.min(8));
        let wait =
            if matches!(arrival.packet, Packet::Handshake(_)) { wait } else { wait.min(MAX_WAIT) };
        arrival.tries += 1;
        wire.schedule(sent + wait, Happening::Resend(arrival));
    }

    /// Whether a message has to wait for the end of the handshake at this end.
    pub(crate) fn holds(&self, to: EndIndex, packet: &Packet) -> bool {
        let early = matches!(
            self.ends[to].state,
            EndState::Absent | EndState::Handshaking | EndState::AwaitingDone
        );
        early
            && !matches!(packet, Packet::Handshake(_) | Packet::Close { .. } | Packet::Alive { .. })
    }

    /// Checks whether an end can receive from its peer, and sets its idle timeout if it cannot.
    pub(crate) fn listen(&mut self, wire: &mut Wire, side: EndIndex) {
        let (end, peer) = (&self.ends[side], &self.ends[1 - side]);
        if end.state != EndState::Open {
            return;
        }
        let there = &wire.hosts[peer.host];
        let forgotten = peer.state == EndState::Gone;
        let unheard = !there.alive || there.frozen || !self.passes(wire, 1 - side);
        if !forgotten && !unheard {
            self.ends[side].deaf = None;
            return;
        }
        let (ours, theirs) = (wire.hosts[end.host].transport, there.transport);
        let keep_alive = ours.keep_alive.min(theirs.keep_alive);
        let remembers = there.life == peer.life || theirs.keeps_secret;
        if forgotten && !unheard && remembers && theirs.stateless_reset {
            let round_trip = 2 * wire.network.link(end.host, peer.host).latency;
            wire.schedule(
                wire.now + keep_alive + round_trip,
                Happening::Forgotten { serial: self.serial, side },
            );
        }
        // Behind a NAT keep-alives are simulated, because it is not known in advance whether they
        // arrive.
        if end.deaf.is_none() && !self.translated {
            // Keep-alives were received until now; only their effect is simulated.
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
            _ => wire.network.link(self.ends[DIALER].host, self.ends[1].host).probe_timeout(),
        }
    }
}
