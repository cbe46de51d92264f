//! What we answer to peers.

use super::NodeManager;
use crate::graph::NodeContact;
use crate::id::{ConnectionId, NodeId, StreamId};
use crate::request::{ActiveConnection, ActiveNode, Closest, ClosestLists};
use crate::rpc::{Answer, Question};

/// Nodes in one list of an answer: Kademlia's k of the protocol, whatever our own buckets hold.
const LIST_LIMIT: usize = 20;
/// Connections told of one node.
const CONNECTIONS_TOLD: usize = 4;

impl NodeManager {
    /// Answers a question that came on a connection, or sees to it that it is answered later.
    pub(super) fn serve(&mut self, conn: ConnectionId, stream: StreamId, question: &Question) {
        let answer = match question {
            Question::Claims { after, max_bytes } => return self.serve_claims(stream, *after, *max_bytes),
            Question::SignClaim(token) => return self.network_asked(stream, conn, token),
            Question::Signal(request) => self.relay(conn, request),
            Question::Punch(punch) => self.punch(conn, punch),
            Question::Ping { nonce } => Answer::Pong { nonce: *nonce },
            Question::Closest { target, lists } => {
                let asker = self.connections.node(conn);
                Answer::Closest(self.closest_for(asker.as_ref(), target, *lists))
            }
        };
        self.rpc.answer(&mut self.cx, stream, answer);
    }

    /// The nodes closest to a target that may be told to `asker`: proven ones, by their global addresses, without itself.
    fn closest_for(&self, asker: Option<&NodeId>, target: &NodeId, lists: ClosestLists) -> Closest {
        let told = |node: &NodeId| Some(node) != asker;
        let mut closest = Closest::default();
        if lists.local {
            // Some of the closest are not told: look a little further, so that the list is full nevertheless.
            let proven = |node: &NodeId| told(node) && !self.unproven.contains(node);
            closest.local = self
                .graph
                .closest(target, 2 * LIST_LIMIT)
                .into_iter()
                .filter(|(node, _)| proven(node))
                .filter_map(|(node, contact)| NodeContact::global(contact).map(|contact| (node, contact)))
                .take(LIST_LIMIT)
                .collect();
        }
        if lists.active {
            let nodes = self.connections.closest(target, 2 * LIST_LIMIT);
            let nodes = nodes.into_iter().filter(|node| told(node)).map(|node| self.active(node));
            closest.active = nodes.filter(|node| !node.connections.is_empty()).take(LIST_LIMIT).collect();
        }
        closest
    }

    /// The connections with a node that may be told: not those over the local network.
    fn active(&self, node: NodeId) -> ActiveNode {
        let infos = self.connections.with(&node).filter_map(|conn| self.connection_info(conn));
        let infos = infos.filter(|info| info.data.scopes.global);
        let connections = infos.take(CONNECTIONS_TOLD).map(|info| ActiveConnection {
            shared_id: info.shared_id,
            address: info.address,
            primary: info.primary,
            idle_in_ms: info.idle_in.map(|idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX)),
        });
        ActiveNode { node, connections: connections.collect() }
    }
}
