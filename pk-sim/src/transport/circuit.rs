//! Relayed paths and circuits: which streams carry the packets of other connections.
//!
//! The packets of a relayed connection take the time of both links and pass only if both do. That
//! they are bytes of two streams is not simulated; the packet level does that.

use std::net::SocketAddr;

use pk_proto::{ConnectionId, Input, StreamId};

use super::Transport;
use super::connection::{Carries, EndState, Relayed};
use super::flow::StreamAction;
use crate::host::id::HostId;
use crate::network::Network;
use crate::wire::packet::{ACCEPTOR, DIALER, EndIndex};
use crate::wire::{Happening, Wire};

impl Transport {
    /// `AttachCircuit`.
    pub(crate) fn attach_circuit(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        stream: StreamId,
        addr: SocketAddr,
    ) {
        if self.by_stream.contains_key(&(host, stream)) {
            self.carriers.insert((host, stream), Carries::Path(addr));
            self.paths.insert((host, addr), stream);
        } else {
            self.counters.late_outputs += 1;
            let _ = wire;
        }
    }

    /// `JoinCircuit`.
    pub(crate) fn join_circuit(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        stream: StreamId,
        other: StreamId,
    ) {
        if [stream, other].iter().all(|stream| self.by_stream.contains_key(&(host, *stream))) {
            self.counters.circuits += 1;
            self.carriers.insert((host, stream), Carries::Circuit(other));
            self.carriers.insert((host, other), Carries::Circuit(stream));
            self.owners.insert((host, stream));
        } else {
            for stream in [stream, other] {
                self.end_stream(wire, host, stream);
            }
            wire.deliver(host, Input::CircuitClosed { stream, bytes: 0 });
        }
    }

    /// `CloseCircuit`.
    pub(crate) fn close_circuit(&mut self, wire: &mut Wire, host: HostId, stream: StreamId) {
        if self.by_stream.contains_key(&(host, stream)) {
            self.carrier_over(wire, host, stream, false);
            self.end_stream(wire, host, stream);
            wire.deliver(host, Input::StreamClosed { stream });
        } else {
            self.counters.late_outputs += 1;
        }
    }

    /// Ends both directions of a stream.
    fn end_stream(&mut self, wire: &mut Wire, host: HostId, stream: StreamId) {
        self.act(wire, host, stream, StreamAction::Reset(0));
        self.act(wire, host, stream, StreamAction::Stop(0));
    }

    /// The process of a host has disappeared: nothing is reported to it.
    pub(super) fn forget_carriers(&mut self, wire: &mut Wire, host: HostId) {
        let of_host = (host, StreamId(0))..=(host, StreamId(u64::MAX));
        let streams: Vec<_> = self.carriers.range(of_host).map(|((_, id), _)| *id).collect();
        for stream in streams {
            self.close_relayed(wire, host, stream);
            if let Some(Carries::Path(addr)) = self.carriers.remove(&(host, stream)) {
                self.paths.remove(&(host, addr));
            }
            self.owners.remove(&(host, stream));
        }
    }

    /// A stream that may carry something has ended at a host; `reports`: the machine is informed of
    /// the end of a path. Returns whether it has carried something.
    pub(super) fn carrier_over(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        stream: StreamId,
        reports: bool,
    ) -> bool {
        let Some(carries) = self.carriers.remove(&(host, stream)) else { return false };
        self.close_relayed(wire, host, stream);
        match carries {
            Carries::Path(addr) => {
                self.paths.remove(&(host, addr));
                if reports {
                    self.end_stream(wire, host, stream);
                    wire.deliver(host, Input::StreamClosed { stream });
                }
            }
            Carries::Circuit(other) => {
                self.carriers.remove(&(host, other));
                self.close_relayed(wire, host, other);
                let owner = if self.owners.remove(&(host, stream)) { stream } else { other };
                self.owners.remove(&(host, owner));
                for stream in [stream, other] {
                    self.end_stream(wire, host, stream);
                }
                wire.deliver(host, Input::CircuitClosed { stream: owner, bytes: 0 });
            }
        }
        true
    }

    /// The connections over a stream receive nothing any longer.
    fn close_relayed(&mut self, wire: &mut Wire, host: HostId, stream: StreamId) {
        let over: Vec<_> = self
            .relayed
            .iter()
            .copied()
            .filter(|serial| {
                self.connections.get(serial).is_some_and(|connection| {
                    connection.relayed.is_some_and(|way| {
                        let [dialer, acceptor] = &connection.ends;
                        (dialer.host, way.streams[DIALER]) == (host, stream)
                            || (acceptor.host, way.streams[ACCEPTOR]) == (host, stream)
                            || way.by == host && self.leads_to(host, stream, &way)
                    })
                })
            })
            .collect();
        for serial in over {
            let Some(connection) = self.connections.get_mut(&serial) else { continue };
            if let Some(way) = &mut connection.relayed {
                way.is_open = false;
            }
            connection.listen(wire, DIALER);
            connection.listen(wire, ACCEPTOR);
        }
    }

    /// Returns whether a stream of a relay is that of one end of a way.
    fn leads_to(&self, host: HostId, stream: StreamId, way: &Relayed) -> bool {
        self.other_end(host, stream).is_some_and(|(_, id)| way.streams.contains(&id))
    }

    /// Returns the host at the other end of a stream, and its number there.
    fn other_end(&self, host: HostId, stream: StreamId) -> Option<(HostId, StreamId)> {
        let (serial, side, key) = *self.by_stream.get(&(host, stream))?;
        let connection = self.connections.get(&serial)?;
        let id = connection.streams.get(&key)?.ids[1 - side]?;
        Some((connection.ends[1 - side].host, id))
    }

    /// Returns the way from a host to the node at the other end of a path: its host, the address
    /// that it sees, and the way.
    pub(super) fn way(
        &self,
        host: HostId,
        addr: SocketAddr,
    ) -> Option<(HostId, SocketAddr, Relayed)> {
        let ours = *self.paths.get(&(host, addr))?;
        let (by, there) = self.other_end(host, ours)?;
        let Some(Carries::Circuit(onward)) = self.carriers.get(&(by, there)).copied() else {
            // A relay that has accepted and forwards nothing.
            return Some((by, addr, Relayed { by, streams: [ours, there], is_open: false }));
        };
        let (peer, theirs) = self.other_end(by, onward)?;
        let Carries::Path(seen) = *self.carriers.get(&(peer, theirs))? else { return None };
        Some((peer, seen, Relayed { by, streams: [ours, theirs], is_open: true }))
    }

    /// `ProbePath`: a relayed connection becomes direct if both ends reach each other.
    pub(crate) fn probe_path(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        conn: ConnectionId,
        addr: SocketAddr,
    ) {
        self.counters.paths_probed += 1;
        let Some(&(serial, DIALER)) = self.by_number.get(&(host, conn)) else { return };
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let open = connection.ends.iter().all(|end| end.state == EndState::Open);
        if connection.relayed.is_none() || !open {
            return;
        }
        let [dialer, acceptor] = &connection.ends;
        let (peer, now) = (acceptor.host, wire.now);
        let there = |wire: &mut Wire, by: HostId, local, to, expected: HostId| {
            let from = wire.network.leave(now, by, local, to)?;
            let (found, at) = wire.network.enter(now, from, to)?;
            (found == expected && wire.passes(by, found)).then_some((from, at))
        };
        let Some(local) = Network::source(&wire.hosts[dialer.host].addrs, addr) else { return };
        let Some((from, at)) = there(wire, host, local, addr, peer) else { return };
        let Some((answers_from, _)) = there(wire, peer, at, from, host) else { return };
        if answers_from != addr {
            return;
        }
        connection.relayed = None;
        connection.translated =
            wire.network.passes_nat(host, addr) || wire.network.passes_nat(peer, from);
        (connection.ends[DIALER].local, connection.ends[DIALER].remote) = (local, addr);
        (connection.ends[ACCEPTOR].local, connection.ends[ACCEPTOR].remote) = (at, from);
        self.relayed.remove(&serial);
        self.counters.upgrades += 1;
        let latency = wire.network.link(host, peer).latency;
        let number = connection.ends[ACCEPTOR].number;
        wire.deliver_after(host, latency * 2, Input::RemoteAddressChanged { conn, addr });
        if let Some(conn) = number {
            let moved = Input::RemoteAddressChanged { conn, addr: from };
            wire.deliver_after(peer, latency, moved);
        }
        if connection.translated {
            for side in [DIALER, ACCEPTOR] as [EndIndex; 2] {
                wire.schedule(wire.now, Happening::Beat { serial, side });
            }
        }
        connection.listen(wire, DIALER);
        connection.listen(wire, ACCEPTOR);
    }
}
