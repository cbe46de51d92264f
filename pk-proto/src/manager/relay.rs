//! Relaying, in its three roles: source, relay, target (docs/DESIGN.md, Relaying; docs/WIRE.md
//! section 23).

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use super::node::NodeManager;
use crate::api::error::{ConnectionErrorReason, Failure};
use crate::api::output::Output;
use crate::api::relay_config::RelayPolicy;
use crate::api::transport::{Connected, DialFailure, Side};
use crate::machine::dial::AddressOrigin;
use crate::machine::effects::SignalPurpose;
use crate::machine::timer::Timer;
use crate::relay::Asked;
use crate::relay::circuits::{Accepted, Seen};
use crate::shares::Source;
use crate::types::address::{Host, NodeAddress, Reach};
use crate::types::id::{ConnectionId, NodeId, RaceId, RequestId, StreamId};
use crate::types::refusal::Refusal;
use crate::types::sockets::is_relayed_address;
use crate::wire::message::{RpcRequest, RpcResponse};

/// Time for which a path exists after its connection has become direct: packets on their way
/// arrive.
const PATH_GRACE: Duration = Duration::from_secs(10);
/// Part of `relay.upgrade_interval` after which the first attempt is made.
const FIRST_UPGRADE: u32 = 4;

/// Where a relay sees the peer of a connection.
struct SeenAt {
    /// Its address, if it is a public one.
    public: Option<NodeAddress>,
    host: Host,
}

impl NodeManager {
    // -- source

    /// Requests a circuit for a race from a relay.
    pub(super) fn request_circuit(&mut self, race: RaceId, target: NodeId, relay: NodeId) {
        let carrier = self.connections.direct(&relay);
        let address = carrier.and_then(|conn| Some(self.connections.address(conn)?.0));
        let Some((carrier, address)) = carrier.zip(address) else {
            let why = DialFailure::Relay("no direct connection to the relay".into());
            let nowhere = NodeAddress::from_socket(SocketAddr::from(([0, 0, 0, 0], 0)));
            return self.connections.relayed(&mut self.cx, race, nowhere, Err(why));
        };
        let request = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.call_timeout;
        let question = RpcRequest::Relay { target };
        match self.rpc.open_circuit(&mut self.cx, carrier, request, question, deadline) {
            Ok(_) => {
                self.cx.metrics.circuits_requested += 1;
                let asked = Asked { race, carrier, relay: address, target };
                self.relay.asked.insert(request, asked);
            }
            Err(why) => self.circuit_failed(race, address, &why),
        }
    }

    fn circuit_failed(&mut self, race: RaceId, relay: NodeAddress, why: &Failure) {
        let why = DialFailure::Relay(alloc::format!("{why}"));
        self.connections.relayed(&mut self.cx, race, relay, Err(why));
    }

    /// Handles the answer to a request for a circuit, or to an offer of one.
    pub(super) fn circuit_answered(
        &mut self,
        request: RequestId,
        result: Result<(StreamId, RpcResponse), Failure>,
    ) {
        let Some(asked) = self.relay.asked.remove(&request) else {
            return self.offer_answered(request, &result);
        };
        let Asked { race, carrier, relay, target } = asked;
        let (stream, answer) = match result {
            Ok(opened) => opened,
            Err(why) => return self.circuit_failed(race, relay, &why),
        };
        if !self.connections.is_racing(race) {
            return self.cx.output(Output::CloseCircuit { stream });
        }
        let result = match answer {
            RpcResponse::Circuit { address, same_network } if self.has_room_for_path() => {
                let seen = self.accepted_seen(address, same_network, &relay);
                let addr = self.relay.paths.add(stream, carrier, target, seen, None);
                self.attach(stream, addr);
                Ok(addr)
            }
            answer => {
                self.cx.output(Output::CloseCircuit { stream });
                Err(DialFailure::Relay(match answer {
                    RpcResponse::Circuit { .. } => "too many relayed paths".into(),
                    _ => "the relay sent an unexpected response".into(),
                }))
            }
        };
        self.connections.relayed(&mut self.cx, race, relay, result);
    }

    fn has_room_for_path(&self) -> bool {
        self.relay.paths.len() < self.cx.config.relay.paths
    }

    /// Returns what a relay has seen, without an address that the policy does not accept.
    fn accepted_seen(
        &self,
        address: Option<NodeAddress>,
        same_network: bool,
        relay: &NodeAddress,
    ) -> Seen {
        let address = address.filter(|address| self.cx.accepts_address(address, Some(relay)));
        Seen { address, same_network }
    }

    fn attach(&mut self, stream: StreamId, addr: SocketAddr) {
        self.cx.output(Output::AttachCircuit { stream, addr });
        let timeout = self.cx.config.connect_timeout;
        self.cx.timers.set(Timer::Path(stream), self.cx.now + timeout);
    }

    // -- relay

    /// Responds to a request for a circuit, as the relay.
    pub(super) fn serve_relay(&mut self, conn: ConnectionId, stream: StreamId, target: &NodeId) {
        if let Err(refusal) = self.try_relay_circuit(conn, stream, target) {
            self.cx.metrics.circuits_refused += 1;
            self.rpc.answer(&mut self.cx, stream, RpcResponse::Refused(refusal));
        }
    }

    /// Checks a request for a circuit, and offers the circuit to its target.
    fn try_relay_circuit(
        &mut self,
        conn: ConnectionId,
        stream: StreamId,
        target: &NodeId,
    ) -> Result<(), Refusal> {
        let source = self.connections.node(conn).ok_or(Refusal::NotConnected)?;
        let owner = self.connections.source(conn).ok_or(Refusal::NotConnected)?;
        let other = self.connections.direct(target);
        let known = match self.cx.config.relay.policy {
            RelayPolicy::Off => false,
            RelayPolicy::Known => self.is_known(conn) || other.is_some_and(|it| self.is_known(it)),
            RelayPolicy::All => true,
        };
        // A relayed connection carries no circuit, so that none runs in a loop.
        if !known || self.connections.is_relayed(conn) {
            return Err(Refusal::Denied);
        }
        if self.cx.is_own(target) || self.connections.chain(conn).contains(target) {
            return Err(Refusal::NotTarget);
        }
        let other = other.ok_or(Refusal::NotConnected)?;
        let (seen, seen_target) = (self.seen_at(conn), self.seen_at(other));
        let (Some(seen), Some(seen_target)) = (seen, seen_target) else {
            return Err(Refusal::NotConnected);
        };
        let same_network = seen.host == seen_target.host;
        let (relay, share) = (&self.cx.config.relay, self.cx.config.network_share);
        let volume = self.relay.circuits.admit(relay, share, &owner, self.cx.now)?;
        let request = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.call_timeout;
        let offer = RpcRequest::Circuit { source, address: seen.public, same_network };
        match self.rpc.open_circuit(&mut self.cx, other, request, offer, deadline) {
            Ok(offered) => {
                let seen = Seen { address: seen_target.public, same_network };
                let circuit = (owner, volume);
                self.relay.circuits.offered(stream, circuit, (request, offered), seen);
                Ok(())
            }
            Err(_) => {
                self.relay.circuits.give_up(&owner, volume);
                Err(Refusal::NotConnected)
            }
        }
    }

    /// Returns whether the peer of a connection is a contact or on the allow-list.
    fn is_known(&self, conn: ConnectionId) -> bool {
        let allowed = self.claims.allowed.nodes();
        let chain = self.connections.chain(conn);
        chain.iter().any(|id| self.nodes.graph.contains(id) || allowed.contains(id))
    }

    /// Returns where the peer of a connection is.
    fn seen_at(&self, conn: ConnectionId) -> Option<SeenAt> {
        let (address, data) = self.connections.address(conn)?;
        let host = address.host.clone();
        // Addresses of the local network are not sent to any node.
        let public = Some(address).filter(|it| data.scopes.global && !it.is_zoned());
        Some(SeenAt { public, host })
    }

    /// Handles the answer of the other end of a circuit.
    fn offer_answered(
        &mut self,
        request: RequestId,
        result: &Result<(StreamId, RpcResponse), Failure>,
    ) {
        let Some(stream) = self.relay.circuits.answered(request) else {
            if let Ok((stream, _)) = result {
                self.cx.output(Output::CloseCircuit { stream: *stream });
            }
            return;
        };
        let refusal = match result {
            Ok(_) => {
                let accepted = self.relay.circuits.accepted(stream, &self.cx.config.relay);
                let Some(Accepted { other, seen, limits }) = accepted else { return };
                let Seen { address, same_network } = seen;
                let answer = RpcResponse::Circuit { address, same_network };
                if self.rpc.accept_circuit(&mut self.cx, stream, answer) {
                    self.cx.metrics.circuits_opened += 1;
                    self.cx.output(Output::JoinCircuit { stream, other, limits });
                } else {
                    self.relay.circuits.end(stream, 0);
                    self.cx.output(Output::CloseCircuit { stream: other });
                }
                return;
            }
            Err(Failure::Refused(refusal)) => *refusal,
            Err(Failure::DeadlineExceeded) => Refusal::Busy,
            Err(_) => Refusal::NotConnected,
        };
        self.relay.circuits.end(stream, 0);
        self.cx.metrics.circuits_refused += 1;
        self.rpc.answer(&mut self.cx, stream, RpcResponse::Refused(refusal));
    }

    /// The node that has requested a circuit no longer waits for it.
    pub(super) fn circuit_withdrawn(&mut self, stream: StreamId) {
        if let Some(other) = self.relay.circuits.end(stream, 0) {
            self.rpc.cancel(&mut self.cx, other);
        }
    }

    /// The transport has ended a circuit.
    pub(super) fn circuit_closed(&mut self, stream: StreamId, bytes: u64) {
        let Some(other) = self.relay.circuits.end(stream, bytes) else {
            self.cx.metrics.late_inputs += 1;
            return;
        };
        self.cx.metrics.circuit_bytes += bytes;
        for stream in [stream, other] {
            self.left_stream(stream);
        }
    }

    /// A stream that was handed over has ended. Returns whether it was known.
    pub(super) fn left_stream(&mut self, stream: StreamId) -> bool {
        let Some(conn) = self.rpc.stream_closed(stream) else { return false };
        self.connections.touch(&mut self.cx, conn);
        true
    }

    // -- target

    /// Responds to the offer of a circuit, as its other end.
    pub(super) fn serve_circuit(
        &mut self,
        conn: ConnectionId,
        stream: StreamId,
        source: NodeId,
        address: Option<NodeAddress>,
        same_network: bool,
    ) {
        match self.admit_path(conn, &source) {
            Ok((relay, relay_at)) => {
                let answer = RpcResponse::Circuit { address: None, same_network };
                if self.rpc.accept_circuit(&mut self.cx, stream, answer) {
                    let seen = self.accepted_seen(address, same_network, &relay_at);
                    let paths = &mut self.relay.paths;
                    let addr = paths.add(stream, conn, source, seen, Some(relay));
                    self.attach(stream, addr);
                }
            }
            Err(refusal) => {
                self.cx.metrics.circuits_refused += 1;
                self.rpc.answer(&mut self.cx, stream, RpcResponse::Refused(refusal));
            }
        }
    }

    fn admit_path(
        &mut self,
        conn: ConnectionId,
        source: &NodeId,
    ) -> Result<(Source, NodeAddress), Refusal> {
        let relay = self.connections.source(conn).ok_or(Refusal::NotConnected)?;
        let (relay_at, _) = self.connections.address(conn).ok_or(Refusal::NotConnected)?;
        if self.connections.is_relayed(conn) {
            return Err(Refusal::Denied);
        }
        if self.cx.is_own(source) || self.connections.chain(conn).contains(source) {
            return Err(Refusal::NotTarget);
        }
        self.relay.paths.admit(&relay, self.cx.config.relay.paths)?;
        Ok((relay, relay_at))
    }

    // -- paths

    /// Returns the origin of a connection over a relayed path, and the address of its peer that the
    /// relay has named. `None` if the path is direct.
    pub(super) fn relayed_path(
        &mut self,
        connected: &Connected,
    ) -> Option<(AddressOrigin, Option<NodeAddress>)> {
        if !is_relayed_address(&connected.remote) {
            return None;
        }
        let path = self.relay.paths.at(&connected.remote);
        let path = path.map(|(stream, path)| (stream, path.peer, path.named.clone()));
        let Some((stream, peer, named)) = path else { return Some((AddressOrigin::RELAYED, None)) };
        self.relay.paths.used(stream, connected.conn);
        // A relay may have forwarded the path to itself or to another node. The address that it has
        // named is the one of the node that was asked for, and of no other.
        let named = named.filter(|_| connected.chain.contains(&peer) || connected.leaf == peer);
        Some((AddressOrigin::RELAYED, named))
    }

    /// The stream of a path has ended, and a connection over it is lost. Returns whether there was
    /// a path.
    pub(super) fn path_ended(&mut self, stream: StreamId) -> bool {
        let Some(path) = self.relay.paths.remove(stream) else { return false };
        self.cx.timers.cancel(Timer::Path(stream));
        if let Some(conn) = path.conn.filter(|conn| self.connections.is_relayed(*conn)) {
            self.connections.close(&mut self.cx, conn, ConnectionErrorReason::RelayLost);
        }
        self.left_stream(stream);
        true
    }

    /// A path was not used in time, or is no longer needed.
    pub(super) fn path_due(&mut self, stream: StreamId) {
        let used = self.relay.paths.get(stream).and_then(|path| path.conn);
        if used.is_none_or(|conn| !self.connections.is_relayed(conn)) {
            self.close_path(stream);
        }
    }

    /// Asks the transport to end a path.
    fn close_path(&mut self, stream: StreamId) {
        self.cx.timers.cancel(Timer::Path(stream));
        if self.relay.paths.close(stream) {
            self.cx.output(Output::CloseCircuit { stream });
        }
    }

    /// A connection ends, and with it the paths that it has carried. Circuits over it end when the
    /// transport has reported what they have carried.
    pub(super) fn carrier_lost(&mut self, conn: ConnectionId) {
        for stream in self.rpc.detached_on(conn) {
            self.path_ended(stream);
        }
    }

    /// A connection has ended: the path that it has used is not needed.
    pub(super) fn leave_path(&mut self, conn: ConnectionId) {
        self.cx.timers.cancel(Timer::Upgrade(conn));
        self.relay.probes.remove(&conn);
        if let Some((stream, _)) = self.relay.paths.of(conn) {
            self.close_path(stream);
        }
    }

    /// The peer of a connection has another address.
    pub(super) fn address_changed(&mut self, conn: ConnectionId, addr: SocketAddr) {
        let was_relayed = self.connections.is_relayed(conn);
        let origin = self.connections.origin(conn).unwrap_or(AddressOrigin::DIRECT);
        let path = if is_relayed_address(&addr) {
            let named = self.relay.paths.of(conn).and_then(|(_, path)| path.named.clone());
            (named.unwrap_or(NodeAddress::from_socket(addr)), AddressOrigin::RELAYED)
        } else {
            let origin = if was_relayed { self.direct_origin(conn, addr) } else { origin };
            (NodeAddress::from_socket(addr), origin)
        };
        self.connections.remote_address_changed(&mut self.cx, conn, addr, path);
        let is_relayed = self.connections.is_relayed(conn);
        let stream = self.relay.paths.of(conn).map(|(stream, _)| stream);
        let dials = self.connections.side(conn) == Some(Side::Dialer);
        match (was_relayed, is_relayed) {
            (true, false) => {
                self.cx.metrics.connections_upgraded += 1;
                // Only the dialer knows that both ends reach each other.
                if let Some(stream) = stream.filter(|_| dials) {
                    self.cx.timers.cancel(Timer::Upgrade(conn));
                    self.cx.timers.set(Timer::Path(stream), self.cx.now + PATH_GRACE);
                }
            }
            (false, true) => {
                if let Some(stream) = stream {
                    self.cx.timers.cancel(Timer::Path(stream));
                    self.watch_path(conn);
                }
            }
            _ => {}
        }
    }

    /// Returns the origin of an address of a node to which there is a relayed connection: local if
    /// both may be in one local network.
    pub(super) fn direct_origin(&self, relayed: ConnectionId, addr: SocketAddr) -> AddressOrigin {
        match self.may_be_near(relayed) && Reach::of(addr.ip()) == Reach::Private {
            true => AddressOrigin::LOCAL,
            false => AddressOrigin::SIGNALLED,
        }
    }

    // -- from relayed to direct

    /// A node has a direct connection: those that this node has dialed to it by relay are moved to
    /// its address, with their streams.
    pub(super) fn move_relayed(&mut self, node: &NodeId, address: &NodeAddress) {
        if self.relay.paths.len() == 0 {
            return;
        }
        let Some(addr) = address.socket() else { return };
        let relayed: Vec<_> = self
            .connections
            .connections_with(node)
            .filter(|conn| {
                self.connections.is_relayed(*conn)
                    && self.connections.side(*conn) == Some(Side::Dialer)
            })
            .collect();
        for conn in relayed {
            self.cx.output(Output::ProbePath { conn, addr });
        }
    }

    /// A relayed connection was accepted, or is relayed again: its dialer tries to make it direct.
    pub(super) fn watch_path(&mut self, conn: ConnectionId) {
        if self.connections.is_relayed(conn)
            && self.connections.side(conn) == Some(Side::Dialer)
            && self.relay.paths.of(conn).is_some_and(|(_, path)| path.named.is_some())
        {
            let first = self.cx.config.relay.upgrade_interval / FIRST_UPGRADE;
            self.cx.timers.set(Timer::Upgrade(conn), self.cx.now + first);
        }
    }

    /// Asks the relay to signal, or probes the address that it has named after that.
    pub(super) fn upgrade_due(&mut self, conn: ConnectionId) {
        if !self.connections.is_relayed(conn) {
            return;
        }
        let interval = self.cx.config.relay.upgrade_interval;
        self.cx.timers.set(Timer::Upgrade(conn), self.cx.now + interval);
        if let Some(addr) = self.relay.probes.remove(&conn) {
            return self.cx.output(Output::ProbePath { conn, addr });
        }
        let Some((_, path)) = self.relay.paths.of(conn) else { return };
        let (peer, carrier) = (path.peer, path.carrier);
        if let Some(relay) = self.connections.node(carrier) {
            self.signal(SignalPurpose::Upgrade(conn), peer, relay);
        }
    }

    /// A relay has signalled for a relayed connection: its peer punches, and dials as well.
    pub(super) fn upgrade_signalled(
        &mut self,
        conn: ConnectionId,
        address: &NodeAddress,
        delay: Duration,
    ) {
        if let Some(addr) = address.socket().filter(|_| self.connections.is_relayed(conn)) {
            self.relay.probes.insert(conn, addr);
            self.cx.timers.set(Timer::Upgrade(conn), self.cx.now + delay);
        }
    }
}
