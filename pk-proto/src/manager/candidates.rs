//! Nodes behind one NAT: their addresses in the local network, exchanged over a relayed connection
//! (docs/DESIGN.md, Relaying).

use alloc::vec::Vec;

use super::node::NodeManager;
use crate::api::error::Failure;
use crate::api::transport::Side;
use crate::machine::dial::AddressOrigin;
use crate::rpc::event::CompletedCall;
use crate::types::address::NodeAddress;
use crate::types::id::ConnectionId;
use crate::types::refusal::Refusal;
use crate::wire::message::{RpcRequest, RpcResponse};
use crate::wire::native::MAX_PER_NODE;

impl NodeManager {
    /// Sends the local addresses over a relayed connection, if its peer may be in the same network.
    pub(super) fn offer_candidates(&mut self, conn: ConnectionId) {
        let own = self.own_candidates();
        if own.is_empty() || !self.may_be_near(conn) {
            return;
        }
        if self.connections.side(conn) == Some(Side::Dialer) {
            let id = self.cx.ids.request();
            let deadline = self.cx.now + self.cx.config.call_timeout;
            let question = RpcRequest::Candidates(own);
            if self.rpc.call(&mut self.cx, conn, id, question, deadline).is_some() {
                self.relay.near.insert(id);
            }
        }
    }

    fn own_candidates(&self) -> Vec<NodeAddress> {
        self.cx.private_addresses().take(MAX_PER_NODE).collect()
    }

    /// Returns whether a relay sees both ends of a relayed connection at one IP address.
    pub(super) fn may_be_near(&self, conn: ConnectionId) -> bool {
        self.connections.is_relayed(conn)
            && self.relay.paths.of(conn).is_some_and(|(_, path)| path.same_network)
    }

    /// Responds to the addresses of a peer with the local ones, and dials those of the peer, as the
    /// acceptor of the connection.
    pub(super) fn serve_candidates(
        &mut self,
        conn: ConnectionId,
        addresses: &[NodeAddress],
    ) -> RpcResponse {
        let accepts = self.connections.side(conn) == Some(Side::Acceptor);
        if !accepts || !self.may_be_near(conn) {
            return RpcResponse::Refused(Refusal::Denied);
        }
        self.dial_candidates(conn, addresses);
        RpcResponse::Candidates(self.own_candidates())
    }

    /// Handles the addresses that the peer of a relayed connection has in the local network.
    pub(super) fn candidates_answered(
        &mut self,
        conn: ConnectionId,
        result: &Result<CompletedCall, Failure>,
    ) {
        if let Ok(CompletedCall { answer: RpcResponse::Candidates(addresses), .. }) = result
            && self.may_be_near(conn)
        {
            self.dial_candidates(conn, addresses);
        }
    }

    /// Dials addresses of the peer of a relayed connection in the local network, once for each
    /// path.
    ///
    /// Only the relay says that both are in one network: each address counts as a signal of the
    /// relay, which can make this node dial as many as by signalling.
    fn dial_candidates(&mut self, conn: ConnectionId, addresses: &[NodeAddress]) {
        let Some(node) = self.connections.node(conn) else { return };
        let Some(carrier) = self.relay.paths.take_candidates(conn) else { return };
        let Some(relay) = self.connections.source(carrier) else { return };
        if self.connections.direct(&node).is_some() {
            return;
        }
        let (now, share) = (self.cx.now, self.cx.config.network_share);
        let accepted = addresses.iter().filter(|address| self.cx.accepts_candidate(address));
        let signals = &mut self.signalling.targeted;
        let allowed = accepted.take_while(|_| signals.allow_source(now, &relay, share).is_ok());
        let allowed: Vec<_> = allowed.cloned().collect();
        if !allowed.is_empty() {
            self.dial_quietly(node, allowed, AddressOrigin::LOCAL);
        }
    }
}
