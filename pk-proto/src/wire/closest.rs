//! Closest-nodes requests and responses.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::types::address::NodeAddress;
use crate::types::contact::NodeContact;
use crate::types::id::NodeId;

/// Lists requested from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct ClosestNodesQuery {
    /// Closest contacts of its graph.
    pub known: bool,
    /// Closest nodes that it is connected to.
    pub connected: bool,
}

/// The nodes closest to a target that a peer reported; not proved.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClosestNodes {
    /// From its graph: each node with its global addresses.
    pub known: Vec<(NodeId, NodeContact)>,
    /// From its connections: each node with its address as seen by the peer.
    pub connected: Vec<ActiveNode>,
}

/// A node that a peer is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveNode {
    /// Node.
    pub node: NodeId,
    /// Its live connections with the peer.
    pub connections: Vec<ActiveConnection>,
}

/// One connection of an [`ActiveNode`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveConnection {
    /// Shared id of the connection.
    pub shared_id: bytes::Bytes,
    /// Address of the node, as seen by the peer.
    pub address: NodeAddress,
    /// Whether it is the primary connection.
    pub primary: bool,
    /// Time until it closes for idleness, in milliseconds from the response; `None` while it is in
    /// use.
    pub idle_in_ms: Option<u64>,
}
