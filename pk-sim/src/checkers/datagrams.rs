//! The checkers of the packet level: what whole nodes send, when, and how much they store.

use std::net::SocketAddr;

use pk_proto::{Instant, Output};
use pk_quic::TransportSettings;

use super::violation::Violation;
use super::{Checkers, memory};
use crate::host::id::HostId;

impl Checkers {
    /// An output of the core names an address that the node will send to.
    pub(crate) fn chosen(&mut self, host: HostId, output: &Output) {
        let amplification = &mut self.hosts[host].amplification;
        match output {
            Output::Dial { addr, .. } => amplification.dialed(*addr),
            Output::Punch { addr, bytes } => amplification.punched(*addr, bytes.len()),
            // One datagram, which may be full.
            Output::ProbePath { addr, .. } => {
                amplification.punched(*addr, TransportSettings::MAX_DATAGRAM);
            }
            _ => {}
        }
    }

    /// A node sends a datagram to an address, where `connections` may have their remote end.
    pub(crate) fn sends(
        &mut self,
        host: HostId,
        to: SocketAddr,
        bytes: usize,
        connections: u64,
    ) -> Result<(), Violation> {
        self.counters.datagrams += 1;
        self.hosts[host].amplification.sends(to, bytes, connections)
    }

    /// Returns the bytes that a node has sent to an address and received from it.
    pub(crate) fn exchanged(&self, host: HostId, with: SocketAddr) -> (u64, u64) {
        self.hosts[host].amplification.exchanged(with)
    }

    /// A datagram of a node has arrived.
    pub(crate) fn reached(&mut self, host: HostId, to: SocketAddr, now: Instant) {
        self.hosts[host].amplification.reached(to, now);
    }

    /// A node receives a datagram that was sent at `sent`.
    pub(crate) fn received(
        &mut self,
        host: HostId,
        from: SocketAddr,
        bytes: usize,
        (sent, now): (Instant, Instant),
    ) {
        self.hosts[host].amplification.received(from, bytes, sent);
        self.hosts[host].progress.called(now);
    }

    /// A node was called by its embedder.
    pub(crate) fn called(&mut self, host: HostId, now: Instant) {
        self.hosts[host].progress.called(now);
    }

    /// A node has reported something, or sent a datagram.
    pub(crate) fn polled(&mut self, host: HostId, now: Instant) -> Result<(), Violation> {
        self.hosts[host].progress.polled(now)
    }

    /// A node has handled a timeout.
    pub(crate) fn timed(&mut self, host: HostId, now: Instant) -> Result<(), Violation> {
        self.hosts[host].progress.timed(now)
    }

    /// The memory of a node was measured.
    pub(crate) fn measured(
        &mut self,
        held: i64,
        peers: u64,
        settings: &TransportSettings,
    ) -> Result<(), Violation> {
        self.counters.memory += 1;
        memory::check(held, peers, settings)
    }
}
