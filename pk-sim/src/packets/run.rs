//! Time, and the way of datagrams.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pk_proto::Instant;
use pk_quic::{Crossing, Datagram, Node};

use super::host::Received;
use super::{PacketWorld, Seen};
use crate::host::id::HostId;
use crate::machine::Machine;
use crate::world::journal::Entry;

/// Datagrams of one transmit.
const SEGMENTS: usize = 10;

/// A datagram on its way.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) at: Instant,
    pub(super) sequence: u64,
    /// Host that sent it; `None` if it is forged.
    pub(super) by: Option<HostId>,
    pub(super) sent: Instant,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: u8,
    pub(super) bytes: Vec<u8>,
}

impl InFlight {
    fn order(&self) -> (Instant, u64) {
        (self.at, self.sequence)
    }
}

impl PartialEq for InFlight {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for InFlight {}

impl PartialOrd for InFlight {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for InFlight {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PacketWorld {
    // -- time

    fn next(&self) -> Option<Instant> {
        let datagram = self.in_flight.peek().map(|Reverse(datagram)| datagram.at);
        let running = self.hosts.iter().filter(|host| host.is_running());
        let timeouts = running.filter_map(|host| host.node.as_ref()?.poll_timeout());
        timeouts.chain(datagram).min()
    }

    /// Advances to the next moment until `end`, and lets everything of it happen: datagrams arrive
    /// before timeouts. Returns whether there was one.
    pub(super) fn step(&mut self, end: Instant) -> bool {
        let Some(at) = self.next().filter(|at| *at <= end) else {
            self.now = self.now.max(end);
            return false;
        };
        self.now = self.now.max(at);
        let mut woken = BTreeSet::new();
        while self.in_flight.peek().is_some_and(|Reverse(datagram)| datagram.at <= self.now) {
            let Some(Reverse(datagram)) = self.in_flight.pop() else { break };
            woken.extend(self.arrive(datagram));
        }
        for id in 0..self.hosts.len() {
            if self.wake(id) {
                woken.insert(id);
            }
        }
        for id in woken {
            self.flush(id);
        }
        true
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }

    /// Runs until `holds` returns true, for at most `time`. Returns whether it did.
    pub fn until(&mut self, time: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + time;
        loop {
            if holds(self) {
                return true;
            }
            if !self.step(end) {
                return holds(self);
            }
        }
    }

    /// Fires the timers of a host that are due. Returns whether there were any.
    pub(super) fn wake(&mut self, id: HostId) -> bool {
        let (now, host) = (self.now, &mut self.hosts[id]);
        let due = |node: &Node| node.poll_timeout().is_some_and(|at| at <= now);
        if !host.is_running() || !host.node.as_ref().is_some_and(due) {
            return false;
        }
        let core = |node: &Node| node.manager().poll_timeout();
        let before = host.node.as_ref().and_then(core).filter(|at| *at <= now);
        host.call(|node| node.handle_timeout(now));
        let after = host.node.as_ref().and_then(core);
        let timed = self.checkers.timed(id, now);
        self.check(id, timed);
        let outputs = self.observe_core(id);
        if let Some(before) = before.filter(|_| self.hosts[id].meter.is_none()) {
            let fired = self.checkers.fired(id, before, after, outputs);
            self.check(id, fired);
        }
        true
    }

    // -- hosts

    /// Processes everything that a host reports and sends, until there is nothing.
    pub(super) fn flush(&mut self, id: HostId) {
        let now = self.now;
        let mut out = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        while self.hosts[id].is_running() {
            let host = &mut self.hosts[id];
            let mut moved = host.poll(now, &mut self.rngs.stores);
            let transmit = |node: &mut Node| node.poll_transmit(now, SEGMENTS, &mut buffer);
            if let Some(transmit) = host.call(transmit).flatten() {
                moved += 1;
                let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
                for datagram in buffer[..transmit.size].chunks(size) {
                    out.push((transmit.from, transmit.to, transmit.ecn, datagram.to_vec()));
                }
            }
            self.observe_core(id);
            for (from, to, ecn, bytes) in out.drain(..) {
                self.send(id, from, to, ecn, bytes);
            }
            if moved == 0 {
                break;
            }
            let polled = self.checkers.polled(id, now);
            self.check(id, polled);
        }
        self.buffer = buffer;
        self.check_drained(id);
    }

    /// Checks what crossed between the core of a node and its transport. Returns the number of
    /// outputs.
    fn observe_core(&mut self, id: HostId) -> u64 {
        let Some(node) = &mut self.hosts[id].node else { return 0 };
        let mut outputs = 0;
        for crossing in node.take_crossings() {
            let store = &self.hosts[id].store;
            let checked = match &crossing {
                Crossing::Input(input) => self.checkers.input(id, input, store),
                Crossing::Output { output, phase } => {
                    outputs += 1;
                    self.checkers.chosen(id, output);
                    self.checkers.output(id, Some(*phase), output)
                }
            };
            let entry = match crossing {
                Crossing::Input(input) => Entry::Input(input),
                Crossing::Output { output, .. } => Entry::Output(output),
            };
            self.journal.add(id, self.now, entry);
            self.check(id, checked);
        }
        outputs
    }

    fn check_drained(&mut self, id: HostId) {
        let host = &self.hosts[id];
        let Some(node) = host.node.as_ref() else { return };
        let checked = if host.meter.is_some() {
            let peers = node.manager().gauges().map_or(0, |gauges| gauges.connections);
            self.checkers.measured(host.held, peers.max(1), &host.transport)
        } else {
            self.checkers.drained(id, node.manager(), &mut self.rngs.probes)
        };
        self.check(id, checked);
    }

    // -- datagrams

    /// A host sends a datagram.
    fn send(
        &mut self,
        id: HostId,
        source: Option<IpAddr>,
        to: SocketAddr,
        ecn: u8,
        bytes: Vec<u8>,
    ) {
        self.counters.sent += 1;
        let head = [id as u64, self.now.as_micros(), bytes.len() as u64, u64::from(ecn)];
        self.datagrams.update(&head.map(u64::to_be_bytes).concat());
        self.datagrams.update(to.to_string().as_bytes()).update(&bytes);
        let checked = self.checkers.sends(id, to, bytes.len());
        self.check(id, checked);
        let local = self.hosts[id].addr;
        if source.is_some_and(|source| source != local.ip()) {
            // The system refuses it.
            self.counters.without_source += 1;
            return;
        }
        let Some(from) = self.network.leave(self.now, id, local, to) else { return };
        if let Some(observed) = &mut self.observed {
            observed.push(Seen { from, to, ecn, bytes: bytes.clone() });
        }
        let owner = self.network.owner(to);
        let path = owner.unwrap_or(usize::MAX);
        let Some(departs) = self.paths.enter(id, path, bytes.len(), self.now) else { return };
        let link = self.network.link(id, owner.unwrap_or(id));
        let (by, sent) = (Some(id), self.now);
        for delay in link.datagram(&mut self.rngs.links) {
            let (at, bytes) = (departs + delay, bytes.clone());
            self.schedule(InFlight { at, sequence: 0, by, sent, from, to, ecn, bytes });
        }
    }

    pub(super) fn schedule(&mut self, datagram: InFlight) {
        self.sequence += 1;
        self.in_flight.push(Reverse(InFlight { sequence: self.sequence, ..datagram }));
    }

    /// A datagram arrives. Returns the host that has handled it.
    fn arrive(&mut self, datagram: InFlight) -> Option<HostId> {
        let InFlight { by, sent, from, to, ecn, bytes, .. } = datagram;
        let (id, _) = self.network.enter(self.now, from, to)?;
        if self.hosts[id].node.is_none() || by.is_some_and(|by| self.network.is_cut(by, id)) {
            return None;
        }
        self.counters.received += 1;
        if let Some(by) = by {
            self.checkers.reached(by, to, self.now);
        }
        self.checkers.received(id, from, bytes.len(), (sent, self.now));
        let datagram = Received { from, ecn, bytes };
        if self.hosts[id].frozen.is_some() {
            self.hosts[id].wait(datagram);
            return None;
        }
        self.receive(id, &datagram);
        Some(id)
    }

    /// The node of a host receives a datagram.
    pub(super) fn receive(&mut self, id: HostId, datagram: &Received) {
        let (now, host) = (self.now, &mut self.hosts[id]);
        let Received { from, ecn, bytes } = datagram;
        let to = Some(host.addr.ip());
        let datagram = Datagram { from: *from, to, ecn: *ecn, bytes };
        host.call(|node| node.handle_datagram(now, datagram));
        self.observe_core(id);
    }
}
