//! Results of getters.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::claims::ClaimStep;
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::{ConnectionId, NodeId};
use crate::types::time::{Instant, UnixMillis};

/// An accepted connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Id of the connection on this node.
    pub conn: ConnectionId,
    /// The peer.
    pub node: NodeId,
    /// Address of the peer.
    pub address: NodeAddress,
    /// How the connection was made.
    pub data: NodeContactAddressData,
    /// Shared id of the connection, equal at both ends (base64url as text).
    pub shared_id: bytes::Bytes,
    /// Whether it is the primary connection with this node.
    pub primary: bool,
    /// Whether something was sent and nothing was received for several round trips.
    pub suspected: bool,
    /// Time until it closes for idleness; `None` while it is in use.
    pub idle_in: Option<Duration>,
}

/// A claim exchange in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeInfo {
    /// Peer of the exchange.
    pub node: NodeId,
    /// Current step, which also determines the initiator.
    pub step: ClaimStep,
}

/// State of a bucket besides its contacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBucketMeta {
    /// Number of contacts.
    pub count: usize,
    /// Number of pending nodes.
    pub pending: usize,
    /// Time of the last refresh; `None` if it was never refreshed.
    pub refreshed: Option<UnixMillis>,
    /// Time of the next refresh; `None` if there is none, because the bucket is nearer than the
    /// nearest neighbor or the node does not run.
    pub refresh_at: Option<Instant>,
}
