//! Context of every part of the simulator: the clock, the agenda, random streams, the network and
//! the hosts.

pub(crate) mod packet;
pub(crate) mod traffic;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use pk_proto::{EffectId, Input, Instant};

use self::packet::{Arrival, EndIndex, Packet};
use self::traffic::Traffic;
use crate::host::Host;
use crate::host::id::HostId;
use crate::network::Network;
use crate::rng_streams::RngStreams;

/// A future event.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    /// A machine receives an input.
    Deliver { host: HostId, life: u32, input: Input },
    /// A packet of a connection reaches its end.
    Arrive(Arrival),
    /// A dial has taken too long.
    DialDeadline { serial: u64 },
    /// An end of a connection has received nothing since before it became unreachable.
    Idle { serial: u64, side: EndIndex, since: Instant },
    /// An end of a connection learns that its peer does not know it.
    Forgotten { serial: u64, side: EndIndex },
    /// An end of a connection has waited for an answer since then.
    Unanswered { serial: u64, side: EndIndex, since: Instant },
    /// An end of a connection gets an acknowledgement.
    Heard { serial: u64, side: EndIndex },
    /// A store has done its first job.
    Store { host: HostId, life: u32 },
    /// Ends a browse.
    BrowseEnd { host: HostId, life: u32, id: EffectId },
    /// A packet of a connection behind a NAT is sent again.
    Resend(Arrival),
    /// An end of a connection behind a NAT sends a keep-alive, and checks whether it has received
    /// as many.
    Beat { serial: u64, side: EndIndex },
    /// A punch datagram of a host reaches an address.
    Punched { by: HostId, from: SocketAddr, to: SocketAddr },
}

/// The environment of all machines.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) now: Instant,
    pub(crate) rngs: RngStreams,
    pub(crate) network: Network,
    pub(crate) hosts: Vec<Host>,
    /// What each host has sent.
    pub(crate) traffic: Vec<Traffic>,
    agenda: BTreeMap<(Instant, u64), Happening>,
    sequence: u64,
}

impl Wire {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Instant::ORIGIN,
            rngs: RngStreams::new(seed),
            network: Network::default(),
            hosts: Vec::new(),
            traffic: Vec::new(),
            agenda: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// Counts a message that a host sends.
    pub(crate) fn sends(&mut self, host: HostId, packet: &Packet, again: bool) {
        if let Some(traffic) = self.traffic.get_mut(host) {
            traffic.sent(packet, again);
        }
    }

    /// Adds an event to the agenda, after all events of the same moment.
    pub(crate) fn schedule(&mut self, at: Instant, happening: Happening) {
        self.agenda.insert((at.max(self.now), self.sequence), happening);
        self.sequence += 1;
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn pop(&mut self) -> Option<(Instant, Happening)> {
        self.agenda.pop_first().map(|((at, _), happening)| (at, happening))
    }

    pub(crate) fn agenda(&self) -> impl Iterator<Item = (Instant, &Happening)> {
        self.agenda.iter().map(|((at, _), happening)| (*at, happening))
    }

    /// Delivers an input to a host's machine, as soon as its driver handles it.
    pub(crate) fn deliver(&mut self, host: HostId, input: Input) {
        self.deliver_after(host, Duration::ZERO, input);
    }

    /// Delivers an input to a host's machine after a delay.
    pub(crate) fn deliver_after(&mut self, host: HostId, delay: Duration, input: Input) {
        let of = &mut self.hosts[host];
        // A driver reports events in order, also when its delay has become shorter.
        of.reported = of.reported.max(self.now + of.input_delay);
        let (at, life) = (of.reported + delay, of.life);
        self.schedule(at, Happening::Deliver { host, life, input });
    }

    /// Whether a packet that leaves the one host now is taken by the other.
    pub(crate) fn passes(&self, from: HostId, to: HostId) -> bool {
        self.hosts[to].listening && !self.network.is_cut(from, to)
    }
}
