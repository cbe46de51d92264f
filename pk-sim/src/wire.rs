//! What every part of the simulator is handed: the clock, the agenda, chance, the network and the hosts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use pk_proto::{EffectId, Input, Instant};

use crate::HostId;
use crate::dice::Dice;
use crate::host::Host;
use crate::network::Network;
use crate::transport::{Arrival, Side};

/// Something that is going to happen.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    /// A machine hears of something.
    Deliver { host: HostId, life: u32, input: Input },
    /// A packet of a connection reaches its end.
    Arrive(Arrival),
    /// A dial has taken too long.
    DialDeadline { serial: u64 },
    /// An end of a connection has heard nothing since before it went deaf.
    Idle { serial: u64, side: Side, since: Instant },
    /// An end of a connection hears that its peer has forgotten it.
    Forgotten { serial: u64, side: Side },
    /// A store has done its first job.
    Store { host: HostId, life: u32 },
    /// A browse is over.
    BrowseEnd { host: HostId, life: u32, id: EffectId },
    /// A packet of a connection behind a NAT is sent again.
    Resend(Arrival),
    /// An end of a connection behind a NAT says that it lives, and looks whether it has heard as much.
    Beat { serial: u64, side: Side },
    /// A punch datagram of a host reaches an address.
    Punched { by: HostId, from: SocketAddr, to: SocketAddr },
}

/// The surroundings of all machines.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) now: Instant,
    pub(crate) dice: Dice,
    pub(crate) network: Network,
    pub(crate) hosts: Vec<Host>,
    agenda: BTreeMap<(Instant, u64), Happening>,
    sequence: u64,
}

impl Wire {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Instant::ORIGIN,
            dice: Dice::new(seed),
            network: Network::default(),
            hosts: Vec::new(),
            agenda: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// Puts something on the agenda, behind everything that is there for the same moment.
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

    /// Tells a host's machine, as soon as its driver gets to it.
    pub(crate) fn deliver(&mut self, host: HostId, input: Input) {
        self.deliver_after(host, Duration::ZERO, input);
    }

    /// Tells a host's machine after a while.
    pub(crate) fn deliver_after(&mut self, host: HostId, delay: Duration, input: Input) {
        let Host { life, input_delay, .. } = self.hosts[host];
        self.schedule(self.now + input_delay + delay, Happening::Deliver { host, life, input });
    }

    /// Whether a packet that leaves the one host now is taken by the other.
    pub(crate) fn passes(&self, from: HostId, to: HostId) -> bool {
        self.hosts[to].listening && !self.network.is_cut(from, to)
    }
}
