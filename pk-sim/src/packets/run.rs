//! Time, and the way of datagrams.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pk_proto::Instant;
use pk_quic::{Crossing, Datagram, Node};

use super::flight::InFlight;
use super::host::Received;
use super::{PacketWorld, Seen};
use crate::host::id::HostId;
use crate::machine::Machine;
use crate::world::journal::Entry;

/// Datagrams of one transmit.
const SEGMENTS: usize = 10;

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
        let mut buffer = std::mem::take(&mut self.buffer);
        while self.hosts[id].is_running() {
            let host = &mut self.hosts[id];
            let mut moved = host.poll(now, &mut self.rngs.stores);
            let transmit = |node: &mut Node| node.poll_transmit(now, SEGMENTS, &mut buffer);
            let transmit = host.call(transmit).flatten();
            // The checkers know what the node has dialed before it sends.
            self.observe_core(id);
            if let Some(transmit) = transmit {
                moved += 1;
                let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
                for bytes in buffer[..transmit.size].chunks(size) {
                    self.send(id, transmit.from, transmit.to, transmit.ecn, bytes);
                }
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
    fn send(&mut self, id: HostId, source: Option<IpAddr>, to: SocketAddr, ecn: u8, bytes: &[u8]) {
        self.counters.sent += 1;
        let head = [id as u64, self.now.as_micros(), bytes.len() as u64, u64::from(ecn)];
        self.datagrams.update(&head.map(u64::to_be_bytes).concat());
        self.datagrams.update(to.to_string().as_bytes()).update(bytes);
        let owner = self.network.owner(to);
        let connections = self.connections(id, owner);
        let checked = self.checkers.sends(id, to, bytes.len(), connections);
        self.check(id, checked);
        let (now, host) = (self.now, &mut self.hosts[id]);
        let local = host.addr;
        if host.has_local_addresses && source.is_some_and(|source| source != local.ip()) {
            // The system refuses it.
            self.counters.without_source += 1;
            host.call(|node| node.local_changed(now, &[local.ip()]));
            return;
        }
        let Some(from) = self.network.leave(self.now, id, local, to) else { return };
        if let Some(observed) = &mut self.observed {
            observed.push(Seen { from, to, ecn, bytes: bytes.to_vec() });
        }
        let path = owner.unwrap_or(usize::MAX);
        let Some(departs) = self.paths.enter(id, path, bytes.len(), self.now) else { return };
        let link = self.network.link(id, owner.unwrap_or(id));
        let (by, sent) = (Some(id), self.now);
        for delay in link.datagram(&mut self.rngs.links) {
            let (at, bytes) = (departs + delay, bytes.to_vec());
            self.schedule(InFlight { at, sequence: 0, by, sent, from, to, ecn, bytes });
        }
    }

    /// Returns how many connections of a host may lead to another one, or to an address that no
    /// host has: those that its core knows, and a handshake.
    fn connections(&self, id: HostId, to: Option<HostId>) -> u64 {
        let Some(node) = &self.hosts[id].node else { return 1 };
        let peer = to.map(|to| self.hosts[to].id());
        let known = node.manager().connections();
        1 + known.iter().filter(|it| peer.is_none_or(|peer| it.node == peer)).count() as u64
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
        let head = [u64::MAX, id as u64, self.now.as_micros(), bytes.len() as u64];
        self.datagrams.update(&head.map(u64::to_be_bytes).concat());
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
        let to = host.has_local_addresses.then_some(host.addr.ip());
        let datagram = Datagram { from: *from, to, ecn: *ecn, bytes };
        host.call(|node| node.handle_datagram(now, datagram));
        self.observe_core(id);
    }
}
