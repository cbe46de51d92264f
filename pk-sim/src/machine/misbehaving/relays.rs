//! Relays that misbehave: what they answer to requests of circuits, and what they request.

use std::time::Duration;

use bytes::Bytes;
use pk_proto::native::V1;
use pk_proto::{
    ActiveConnection, ActiveNode, CircuitLimits, ConnectionId, FrameDecoder, NodeAddress, NodeId,
    Output, Refusal, RpcRequest, RpcResponse, StreamId,
};

use super::{FLOOD, MisbehavingPeer, Misbehavior, call, frame};

impl MisbehavingPeer {
    /// Handles a request to signal or to relay. Returns whether nothing is left to do.
    pub(super) fn relay_asked(&mut self, stream: StreamId, request: &RpcRequest) -> bool {
        match (self.behavior, request) {
            (Misbehavior::StallingRelay, RpcRequest::Signal(_) | RpcRequest::Relay { .. }) => {
                self.counters.ignored += 1;
            }
            (Misbehavior::DroppingRelay, RpcRequest::Relay { .. }) => {
                self.counters.lies += 1;
                let answer = RpcResponse::Circuit { address: None, same_network: false };
                self.respond(stream, answer, false);
            }
            (Misbehavior::MisnamingRelay, RpcRequest::Signal(_)) => {
                self.counters.lies += 1;
                let address = self.nowhere();
                self.respond(stream, RpcResponse::Signalled { address }, true);
            }
            (Misbehavior::MisnamingRelay, RpcRequest::Relay { target }) => {
                self.offer_circuit(stream, target);
            }
            _ => return false,
        }
        true
    }

    fn respond(&mut self, stream: StreamId, answer: RpcResponse, fin: bool) {
        let bytes = frame(V1::Answer(answer));
        self.outputs.push_back(Output::SendStream { stream, bytes, fin });
    }

    /// Returns an address at which no node is.
    fn nowhere(&mut self) -> NodeAddress {
        let own = self.own;
        NodeAddress::from_socket(self.invented(&own).1)
    }

    /// Returns a connection with a node, which need not exist.
    pub(super) fn connected_with(&mut self, node: &NodeId) -> ActiveNode {
        let known = self.conspiracy.all.address(node);
        let known = known.filter(|_| self.behavior != Misbehavior::MisnamingRelay);
        let address = known.map_or_else(|| self.nowhere(), NodeAddress::from_socket);
        let shared_id = Bytes::copy_from_slice(&self.die.bytes::<32>());
        let connection = ActiveConnection { shared_id, address, primary: true, idle_in_ms: None };
        ActiveNode { node: *node, connections: vec![connection] }
    }

    /// Offers a circuit that a node has requested to its target.
    fn offer_circuit(&mut self, stream: StreamId, target: &NodeId) {
        let source = self.reading.get(&stream).and_then(|(conn, _)| self.peers.get(conn)).copied();
        let other = { self.peers.iter() }.find(|(_, node)| *node == target).map(|(conn, _)| *conn);
        let Some((source, other)) = source.zip(other) else {
            self.counters.truths += 1;
            return self.respond(stream, RpcResponse::Refused(Refusal::NotConnected), true);
        };
        self.counters.lies += 1;
        let address = Some(self.nowhere());
        let request = RpcRequest::Circuit { source, address, same_network: true };
        let offered = self.open(other, call(request), false);
        self.reading.insert(offered, (other, FrameDecoder::new()));
        self.offers.insert(offered, stream);
    }

    /// The target has answered an offer.
    pub(super) fn offer_answered(&mut self, offered: StreamId, answer: RpcResponse) {
        let Some(stream) = self.offers.remove(&offered) else { return };
        if !self.reading.contains_key(&stream) {
            return;
        }
        if !matches!(answer, RpcResponse::Circuit { .. }) {
            return self.respond(stream, answer, true);
        }
        let address = Some(self.nowhere());
        self.respond(stream, RpcResponse::Circuit { address, same_network: true }, false);
        for joined in [stream, offered] {
            self.reading.remove(&joined);
        }
        let limits = CircuitLimits {
            owner: self.own,
            owner_rate: u64::MAX,
            rate: u64::MAX,
            volume: u64::MAX,
            idle_timeout: Duration::from_secs(60),
        };
        self.outputs.push_back(Output::JoinCircuit { stream, other: offered, limits });
    }

    /// Offers and requests circuits, as many as it can.
    pub(super) fn flood_with_circuits(&mut self, conn: ConnectionId) {
        let own = self.own;
        for _ in 0..FLOOD {
            let (source, addr) = self.invented(&own);
            let address = Some(NodeAddress::from_socket(addr));
            let offer = RpcRequest::Circuit { source, address, same_network: true };
            let all = self.conspiracy.all.nodes();
            let target = all.get(self.die.below(all.len().max(1) as u64) as usize);
            let target = target.map_or(source, |(node, _)| *node);
            for request in [offer, RpcRequest::Relay { target }] {
                self.counters.requests += 1;
                self.open(conn, call(request), false);
            }
        }
    }
}
