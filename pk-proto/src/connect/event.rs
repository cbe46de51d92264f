//! Events of connections.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

use crate::api::error::ConnectionErrorReason;
use crate::api::transport::{DialFailure, DisconnectReason, Side};
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, LeaseId, NodeId, RaceId, RequestId};
use crate::wire::dialect::Dialect;

/// Events of connections, for the manager.
#[derive(Debug)]
pub(crate) enum ConnectEvent {
    /// A handshake is complete: send the Hello.
    Greet { conn: ConnectionId, node: NodeId, side: Side, dialect: Dialect },
    /// Both ends accepted.
    Opened { conn: ConnectionId, node: NodeId, side: Side },
    /// The address of an accepted connection changed.
    Moved { conn: ConnectionId, node: NodeId },
    /// An accepted connection is suspected: requests on it may be retried elsewhere.
    Suspected { conn: ConnectionId, node: NodeId },
    /// Something was received on a suspected connection.
    Heard { conn: ConnectionId, node: NodeId },
    /// Ask the driver to close it, after its streams have ended here: the driver must not receive
    /// outputs for a stream of a closed connection. `Closed` follows.
    Closing { conn: ConnectionId, reason: ConnectionErrorReason },
    /// A connection ended; `accepted` if `Opened` was reported.
    Closed {
        conn: ConnectionId,
        node: NodeId,
        accepted: bool,
        why: DisconnectReason,
        leases: Vec<LeaseId>,
    },
    /// A race has no room for its next dial; [`Connections::make_room_for_dial`] must be called.
    Crowded { race: RaceId },
    /// A race requests this relay to signal; [`Connections::signalled`] must be called.
    Signal { race: RaceId, node: NodeId, relay: NodeId },
    /// A race requests this node to relay; [`Connections::relayed`] must be called.
    Relay { race: RaceId, node: NodeId, relay: NodeId },
    /// A race ended, with a connection or with failures.
    RaceEnded {
        node: NodeId,
        /// Time since the start of the race.
        took: Duration,
        waiters: BTreeSet<RequestId>,
        result: Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>,
    },
}
