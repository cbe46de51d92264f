//! What every part of the machine is handed: the moment, the dice, the timers, the way out.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::address::{Host, NodeAddress, Reach, usable};
use crate::config::{AddressPolicy, Config};
use crate::id::{Ids, NodeId, StreamId};
use crate::io::{Event, Output};
use crate::metrics::Metrics;
use crate::time::{Instant, UnixMillis, WallClock};
use crate::timers::TimerQueue;

/// The parts that draw random numbers. Each has a generator of its own, so that a new draw in one shifts no other.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Dice {
    /// Nonces of pings.
    Calls,
    /// When buckets are refreshed, and by which ids.
    Refresh,
    /// Nonces of signals, and the bytes of punches.
    Signals,
    /// When exchanges of claims begin again.
    Claims,
}

/// Signature checks of one call into the machine, so that none takes longer than a few milliseconds (DESIGN section 3, rule 8).
const CHECKS: usize = 64;

/// Outputs that there is room for as long as there are none.
const OUTPUTS_KEPT: usize = 64;

/// How many parts draw.
const DICE: u8 = 4;

/// The context of one call into the machine.
#[derive(Debug)]
pub(crate) struct Cx {
    pub(crate) now: Instant,
    pub(crate) timers: TimerQueue,
    pub(crate) ids: Ids,
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    /// Signature checks that this call into the machine may still make.
    checks: usize,
    /// Every id of our certificate chain, newest first; never empty.
    own: Vec<NodeId>,
    /// Kinds of networks in which we listen.
    listening: Vec<Reach>,
    outputs: VecDeque<Output>,
    wall: WallClock,
    dice: [ChaCha8Rng; DICE as usize],
}

impl Cx {
    pub(crate) fn new(config: Config, own: Vec<NodeId>, seed: [u8; 32], now: Instant, unix: UnixMillis) -> Self {
        let die = |part: usize| {
            let mut rng = ChaCha8Rng::from_seed(seed);
            rng.set_stream(part as u64 + 1);
            rng
        };
        Self {
            now,
            timers: TimerQueue::default(),
            ids: Ids::default(),
            config,
            metrics: Metrics::default(),
            checks: CHECKS,
            own,
            listening: Vec::new(),
            outputs: VecDeque::new(),
            wall: WallClock::new(now, unix),
            dice: core::array::from_fn(die),
        }
    }

    /// Moves the clock, never backwards (DESIGN section 3, rule 1).
    pub(crate) fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.checks = CHECKS;
    }

    /// Whether so many signature checks may be made in this call. If not, the rest waits for [`later`](Self::later).
    pub(crate) fn take_checks(&mut self, checks: usize) -> bool {
        match self.checks.checked_sub(checks) {
            Some(left) => {
                self.checks = left;
                self.metrics.signature_checks += checks as u64;
                true
            }
            None => false,
        }
    }

    /// The first moment that is another call's.
    pub(crate) fn later(&self) -> Instant {
        self.now + Duration::from_micros(1)
    }

    pub(crate) fn unix(&self) -> UnixMillis {
        self.wall.read(self.now)
    }

    pub(crate) fn set_unix(&mut self, unix: UnixMillis) {
        self.wall = WallClock::new(self.now, unix);
    }

    /// The id of our newest key.
    pub(crate) fn own(&self) -> NodeId {
        // The constructor's caller hands in a verified chain, which has a leaf; zero is nobody's key.
        self.own.first().copied().unwrap_or(NodeId::from_bytes([0; 32]))
    }

    /// Every id of ours, newest first.
    pub(crate) fn own_chain(&self) -> &[NodeId] {
        &self.own
    }

    /// We have another key from now on. `chain` has its id first.
    pub(crate) fn set_own(&mut self, chain: Vec<NodeId>) {
        self.own = chain;
    }

    /// Whether an id is one of ours, of any generation.
    pub(crate) fn is_own(&self, id: &NodeId) -> bool {
        self.own.contains(id)
    }

    pub(crate) fn random_u64(&mut self, part: Dice) -> u64 {
        let [calls, refresh, signals, claims] = &mut self.dice;
        match part {
            Dice::Calls => calls.next_u64(),
            Dice::Refresh => refresh.next_u64(),
            Dice::Signals => signals.next_u64(),
            Dice::Claims => claims.next_u64(),
        }
    }

    pub(crate) fn random_bytes<const N: usize>(&mut self, part: Dice) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.random_u64(part).to_be_bytes();
            chunk.iter_mut().zip(drawn).for_each(|(byte, drawn)| *byte = drawn);
        }
        bytes
    }

    /// Where we listen now. The unspecified address says nothing of the networks behind it.
    pub(crate) fn set_listening(&mut self, addrs: &[SocketAddr]) {
        let bound = addrs.iter().filter(|addr| !addr.ip().is_unspecified());
        self.listening = bound.map(|addr| Reach::of(addr.ip())).collect();
    }

    /// Whether an address that a peer tells of may be used (DESIGN section 4, address policy): it can be somebody's, and
    /// if it is not routed globally, then we listen in a network of its kind, or see the peer in one.
    pub(crate) fn believes(&self, address: &NodeAddress, teller: Option<&NodeAddress>) -> bool {
        let Host::Ip(ip) = address.host else { return false };
        let reach = Reach::of(ip);
        let seen = teller.and_then(|teller| match teller.host {
            Host::Ip(ip) => Some(Reach::of(ip)),
            _ => None,
        });
        usable(address)
            && (self.config.address_policy == AddressPolicy::Any
                || reach == Reach::Global
                || self.listening.contains(&reach)
                || seen == Some(reach))
    }

    pub(crate) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Adds to what a stream that is being handed over has brought; `false` if the driver knows of the hand-over already, or
    /// there is none.
    pub(crate) fn append_unread(&mut self, id: StreamId, bytes: &[u8]) -> bool {
        let unread = self.outputs.iter_mut().rev().find_map(|output| match output {
            Output::HandOver { stream, unread, .. } if *stream == id => Some(unread),
            _ => None,
        });
        let Some(unread) = unread else { return false };
        *unread = [&unread[..], bytes].concat().into();
        true
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.output(Output::Event(event));
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        // A burst of outputs is no reason to keep room for one.
        if self.outputs.is_empty() && self.outputs.capacity() > OUTPUTS_KEPT {
            self.outputs.shrink_to(OUTPUTS_KEPT);
        }
        output
    }
}
