//! Context passed to every component: current time, random streams, timers, output queue.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::effects::Effects;
use super::experience::Experience;
use super::ids::Ids;
use super::phase::Phase;
use super::timers::TimerQueue;
use crate::api::config::{AddressPolicy, Config};
use crate::api::event::Event;
use crate::api::metrics::Metrics;
use crate::api::output::Output;
use crate::types::address::{Host, NodeAddress, Reach, is_unicast};
use crate::types::id::{NodeId, StreamId};
use crate::types::queue;
use crate::types::time::{Instant, UnixMillis, WallClock};

/// The components that draw random numbers. Each has its own stream, so that a new draw in one does
/// not change another.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum RngStream {
    /// Nonces of pings.
    Calls,
    /// Times of refreshes, and their random ids.
    Refresh,
    /// Nonces of signals, and the payload of punches.
    Signals,
    /// Delays of retried exchanges.
    Claims,
    /// Times and choices of the upkeep of the graph.
    Upkeep,
}

/// Signature verifications per call into the machine, so that none takes longer than a few
/// milliseconds (docs/DESIGN.md, Signature budget).
const SIGNATURE_BUDGET: usize = 64;

/// Local addresses that are used.
const LOCAL_IPS: usize = 64;

/// Number of random streams.
const RNG_STREAMS: u8 = 5;

/// Context of one call into the machine.
#[derive(Debug)]
pub(crate) struct Cx {
    phase: Phase,
    pub(crate) now: Instant,
    pub(crate) timers: TimerQueue,
    pub(crate) ids: Ids,
    pub(crate) effects: Effects,
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    /// Results of earlier contacts of searches.
    pub(crate) experience: Experience,
    /// Signature verifications that remain in this call.
    checks: usize,
    /// Every local id, newest first; never empty.
    own: Vec<NodeId>,
    /// Address classes of the local listeners.
    listening: Vec<Reach>,
    /// Port of the local listener.
    port: u16,
    /// Addresses of this machine in private networks.
    private: Vec<IpAddr>,
    outputs: VecDeque<Output>,
    /// Number of outputs that the driver has taken.
    taken: u64,
    /// Hand-overs among the outputs, by stream, with the number of outputs before them.
    detaching: BTreeMap<StreamId, u64>,
    wall: WallClock,
    rngs: [ChaCha8Rng; RNG_STREAMS as usize],
}

impl Cx {
    pub(crate) fn new(
        config: Config,
        own: Vec<NodeId>,
        seed: [u8; 32],
        now: Instant,
        unix: UnixMillis,
    ) -> Self {
        let rng_stream = |part: usize| {
            let mut rng = ChaCha8Rng::from_seed(seed);
            rng.set_stream(part as u64 + 1);
            rng
        };
        Self {
            phase: Phase::Starting,
            now,
            timers: TimerQueue::new(Phase::Starting),
            ids: Ids::default(),
            effects: Effects::default(),
            config,
            metrics: Metrics::default(),
            experience: Experience::new(),
            checks: SIGNATURE_BUDGET,
            own,
            listening: Vec::new(),
            port: 0,
            private: Vec::new(),
            outputs: VecDeque::new(),
            taken: 0,
            detaching: BTreeMap::new(),
            wall: WallClock::new(now, unix),
            rngs: core::array::from_fn(rng_stream),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Enters a phase: drops timers that it does not allow.
    pub(crate) fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
        self.timers.set_phase(phase);
    }

    /// Advances the clock, never backwards (docs/DESIGN.md, Time).
    pub(crate) fn advance(&mut self, now: Instant) {
        // At `FAR_FUTURE` every deadline would be exceeded, including new ones.
        self.now = self.now.max(now.min(Instant::LAST));
        self.checks = SIGNATURE_BUDGET;
    }

    /// Takes signature verifications from the budget of this call. If it returns `false`, the rest
    /// must wait for [`next_tick`](Self::next_tick).
    pub(crate) fn try_spend_signature_checks(&mut self, checks: usize) -> bool {
        match self.checks.checked_sub(checks) {
            Some(left) => {
                self.checks = left;
                self.metrics.signature_checks += checks as u64;
                true
            }
            None => false,
        }
    }

    /// Returns the first time that belongs to another call.
    pub(crate) fn next_tick(&self) -> Instant {
        self.now + Duration::from_micros(1)
    }

    pub(crate) fn unix(&self) -> UnixMillis {
        self.wall.read(self.now)
    }

    pub(crate) fn set_unix(&mut self, unix: UnixMillis) {
        self.wall = WallClock::new(self.now, unix);
    }

    /// Returns the newest local id.
    pub(crate) fn own(&self) -> NodeId {
        // The caller of the constructor passes a verified chain, which has a leaf; zero is the key
        // of no node.
        self.own.first().copied().unwrap_or(NodeId::from_bytes([0; 32]))
    }

    /// Returns every local id, newest first.
    pub(crate) fn own_chain(&self) -> &[NodeId] {
        &self.own
    }

    /// Sets the local ids after a renewal.
    pub(crate) fn set_own(&mut self, chain: Vec<NodeId>) {
        self.own = chain;
    }

    /// Returns whether an id is a local one, of any generation.
    pub(crate) fn is_own(&self, id: &NodeId) -> bool {
        self.own.contains(id)
    }

    pub(crate) fn random_u64(&mut self, part: RngStream) -> u64 {
        let [calls, refresh, signals, claims, upkeep] = &mut self.rngs;
        match part {
            RngStream::Calls => calls.next_u64(),
            RngStream::Refresh => refresh.next_u64(),
            RngStream::Signals => signals.next_u64(),
            RngStream::Claims => claims.next_u64(),
            RngStream::Upkeep => upkeep.next_u64(),
        }
    }

    pub(crate) fn random_bytes<const N: usize>(&mut self, part: RngStream) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.random_u64(part).to_be_bytes();
            chunk.iter_mut().zip(drawn).for_each(|(byte, drawn)| *byte = drawn);
        }
        bytes
    }

    /// Sets the local listeners. An unspecified address does not determine the networks of the
    /// host.
    pub(crate) fn set_listening(&mut self, addrs: &[SocketAddr]) {
        self.port = addrs.first().map_or(0, SocketAddr::port);
        let bound = addrs.iter().filter(|addr| !addr.ip().is_unspecified());
        self.listening = bound.map(|addr| Reach::of(addr.ip())).collect();
    }

    /// Sets the addresses of this machine.
    pub(crate) fn set_local(&mut self, ips: &[IpAddr]) {
        let private =
            ips.iter().map(IpAddr::to_canonical).filter(|ip| Reach::of(*ip) == Reach::Private);
        self.private = private.take(LOCAL_IPS).collect();
    }

    /// Returns the addresses of the local listener in private networks.
    pub(crate) fn private_addresses(&self) -> impl Iterator<Item = NodeAddress> {
        let sockets = self.private.iter().map(|ip| SocketAddr::new(*ip, self.port));
        sockets.filter(|addr| addr.port() != 0).map(NodeAddress::from_socket)
    }

    /// Returns whether an address that a node of the same local network has named for itself may be
    /// dialed: it is in a private network, this machine is in one of the same family, and it is not
    /// that of the local listener.
    pub(crate) fn accepts_candidate(&self, address: &NodeAddress) -> bool {
        let Host::Ip(ip) = address.host else { return false };
        Reach::of(ip) == Reach::Private
            && is_unicast(address)
            && self.private.iter().any(|own| own.is_ipv4() == ip.is_ipv4())
            && !(self.private.contains(&ip) && self.port == address.port)
    }

    /// Returns whether an address reported by a peer is accepted (docs/DESIGN.md, Address policy):
    /// it is unicast, and if it is not globally routable, we listen on, or the reporting peer is
    /// connected from, an address of the same class.
    pub(crate) fn accepts_address(
        &self,
        address: &NodeAddress,
        teller: Option<&NodeAddress>,
    ) -> bool {
        let Host::Ip(ip) = address.host else { return false };
        let reach = Reach::of(ip);
        let seen = teller.and_then(|teller| match teller.host {
            Host::Ip(ip) => Some(Reach::of(ip)),
            _ => None,
        });
        is_unicast(address)
            && (self.config.address_policy == AddressPolicy::Any
                || reach == Reach::Global
                || self.listening.contains(&reach)
                || seen == Some(reach))
    }

    /// Emits an output. One that the phase does not allow is dropped and counted; no component may
    /// rely on that.
    pub(crate) fn output(&mut self, output: Output) {
        if self.phase.allows_output(&output) {
            if let Output::DetachStream { stream, .. } = &output {
                self.detaching.insert(*stream, self.taken + self.outputs.len() as u64);
            }
            self.outputs.push_back(output);
        } else {
            self.metrics.outputs_suppressed += 1;
        }
    }

    /// Appends bytes to a stream that is being handed over; `false` if the driver already has the
    /// hand-over, or there is none.
    pub(crate) fn append_unread(&mut self, id: StreamId, bytes: &[u8]) -> bool {
        let place = self.detaching.get(&id).and_then(|place| place.checked_sub(self.taken));
        let output = place.and_then(|place| self.outputs.get_mut(usize::try_from(place).ok()?));
        let Some(Output::DetachStream { unread, .. }) = output else { return false };
        *unread = [&unread[..], bytes].concat().into();
        true
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.output(Output::Event(event));
    }

    pub(crate) fn outputs_waiting(&self) -> usize {
        self.outputs.len()
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        let output = queue::take(&mut self.outputs)?;
        self.taken = self.taken.saturating_add(1);
        if let Output::DetachStream { stream, .. } = &output {
            self.detaching.remove(stream);
        }
        Some(output)
    }
}
