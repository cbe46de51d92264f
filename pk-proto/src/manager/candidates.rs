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

    /// Responds to the addresses of a peer with the local ones, as the acceptor of the connection.
    /// Only the dialer dials, so that there are not two connections.
    pub(super) fn serve_candidates(&self, conn: ConnectionId) -> RpcResponse {
        match self.may_be_near(conn) {
            true => RpcResponse::Candidates(self.own_candidates()),
            false => RpcResponse::Refused(Refusal::Denied),
        }
    }

    /// Dials the addresses that the peer of a relayed connection has in the local network.
    pub(super) fn candidates_answered(
        &mut self,
        conn: ConnectionId,
        result: &Result<CompletedCall, Failure>,
    ) {
        let Ok(CompletedCall { answer: RpcResponse::Candidates(addresses), .. }) = result else {
            return;
        };
        let Some(node) = self.connections.node(conn).filter(|_| self.may_be_near(conn)) else {
            return;
        };
        let accepted = addresses.iter().filter(|address| self.cx.accepts_candidate(address));
        let accepted: Vec<_> = accepted.cloned().collect();
        if !accepted.is_empty() {
            self.dial_quietly(node, accepted, AddressOrigin::LOCAL);
        }
    }
}
