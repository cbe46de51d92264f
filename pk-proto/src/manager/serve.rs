//! Responses to requests of peers.

use super::node::NodeManager;
use crate::types::contact::NodeContact;
use crate::types::id::{ConnectionId, NodeId, StreamId};
use crate::wire::closest::{ActiveConnection, ActiveNode, ClosestNodes, ClosestNodesQuery};
use crate::wire::dialect::Dialect;
use crate::wire::message::{RpcRequest, RpcResponse};

/// Maximum number of nodes in one list of a response: Kademlia's k of the protocol, independent of
/// the local bucket capacity.
const LIST_LIMIT: usize = 20;
/// Maximum number of connections per node in a response.
const CONNECTIONS_TOLD: usize = 4;

impl NodeManager {
    /// Responds to a request of a peer, or starts what the response needs.
    pub(super) fn serve(&mut self, conn: ConnectionId, stream: StreamId, question: &RpcRequest) {
        if matches!(question, RpcRequest::Closest { .. } | RpcRequest::Claims { .. })
            && let Some(asker) = self.connections.node(conn)
        {
            self.wants_room(&asker);
        }
        let answer = match question {
            RpcRequest::Claims { after, max_bytes } => {
                return self.serve_claims(conn, stream, *after, *max_bytes);
            }
            RpcRequest::SignClaim(token) => return self.network_asked(stream, conn, token),
            RpcRequest::Relay { target } => return self.serve_relay(conn, stream, target),
            RpcRequest::Circuit { source, address, same_network } => {
                return self.serve_circuit(conn, stream, *source, address.clone(), *same_network);
            }
            RpcRequest::Candidates(addresses) => self.serve_candidates(conn, addresses),
            RpcRequest::Signal(request) => self.relay(conn, stream, request),
            RpcRequest::Punch(punch) => self.punch(conn, punch),
            RpcRequest::Ping { nonce } => RpcResponse::Pong { nonce: *nonce },
            RpcRequest::Closest { target, query } => {
                let asker = self.connections.node(conn);
                let mut closest = self.closest_for(asker.as_ref(), target, *query);
                // A node that requests only its own connections receives its address as the local
                // node sees it. On `quic` this is not done: a search sends the same request there,
                // and the reference does not expect itself in the response.
                let native = self.connections.dialect(conn) == Some(Dialect::Native);
                if native && !query.known && query.connected && asker == Some(*target) {
                    closest.connected.insert(0, self.active(*target));
                    closest.connected.retain(|node| !node.connections.is_empty());
                    closest.connected.truncate(LIST_LIMIT);
                }
                RpcResponse::Closest(closest)
            }
        };
        self.rpc.answer(&mut self.cx, stream, answer);
    }

    /// Returns the nodes closest to a target that may be sent to `asker`: proved nodes that
    /// respond, and the target even if it does not, with their global addresses, without `asker`
    /// itself.
    fn closest_for(
        &self,
        asker: Option<&NodeId>,
        target: &NodeId,
        query: ClosestNodesQuery,
    ) -> ClosestNodes {
        let told = |node: &NodeId| Some(node) != asker;
        let mut closest = ClosestNodes::default();
        if query.known {
            // Some of the closest nodes are not sent. More candidates than the limit are read, so
            // that the list is full nevertheless.
            let proven = |node: &NodeId| {
                told(node)
                    && !self.nodes.unproven.contains(node)
                    // Only a node that searches for it finds out that it responds again.
                    && (node == target || !self.upkeep.failing.contains(node))
            };
            closest.known = self
                .nodes
                .graph
                .closest(target, 2 * LIST_LIMIT)
                .into_iter()
                .filter(|(node, _)| proven(node))
                .filter_map(|(node, contact)| {
                    NodeContact::global(contact).map(|contact| (node, contact))
                })
                .take(LIST_LIMIT)
                .collect();
        }
        if query.connected {
            // Usually all but `asker` are sent, so that one more than the limit is enough.
            for read in [LIST_LIMIT + 1, 2 * LIST_LIMIT] {
                let nodes = self.connections.closest(target, read);
                let is_last = nodes.len() < read;
                let nodes = nodes
                    .into_iter()
                    .filter(|node| told(node) && self.connections.live(node).is_some())
                    .map(|node| self.active(node));
                closest.connected =
                    nodes.filter(|node| !node.connections.is_empty()).take(LIST_LIMIT).collect();
                if is_last || closest.connected.len() == LIST_LIMIT {
                    break;
                }
            }
        }
        closest
    }

    /// Returns the connections with a node that may be sent to peers: all except those over the
    /// local network.
    fn active(&self, node: NodeId) -> ActiveNode {
        let infos =
            self.connections.connections_with(&node).filter_map(|conn| self.connection_info(conn));
        let infos = infos.filter(|info| info.data.scopes.global && !info.address.is_zoned());
        let connections = infos.take(CONNECTIONS_TOLD).map(|info| ActiveConnection {
            shared_id: info.shared_id,
            address: info.address,
            primary: info.primary,
            idle_in_ms: info
                .idle_in
                .map(|idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX)),
        });
        ActiveNode { node, connections: connections.collect() }
    }
}
