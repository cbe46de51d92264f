//! One connection: its state, and what is known of it once its handshake is complete.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::place::Place;
use crate::api::transport::Side;
use crate::machine::dial::AddressOrigin;
use crate::types::address::{ContactMode, NodeAddress, NodeContactAddressData};
use crate::types::id::{LeaseId, NodeId, RaceId};
use crate::types::network::Network;
use crate::types::time::{Instant, UnixMillis};
use crate::wire::dialect::Dialect;

/// Time for connections of a former identity to complete their work.
pub(crate) const RETIREMENT: Duration = Duration::from_secs(30);

/// The state of a connection id. Each state has what exists only in it; `connect/table.rs` has the
/// one function that changes it.
#[derive(Debug)]
pub(super) enum State {
    /// A dial of this node whose handshake is not complete.
    Dialing {
        /// The race that dials; `None` once the dial is cancelled.
        race: Option<RaceId>,
    },
    /// The handshake is complete. The peer has not accepted the connection yet.
    Greeting {
        connection: Connection,
        place: Place,
        /// The race that waits for it: the one that dialed, or one that it has taken over.
        race: Option<RaceId>,
    },
    /// Accepted by both ends, and used for everything.
    Live { connection: Connection, place: Place },
    /// Accepted by both ends, with an identity that this node no longer has: it finishes what it is
    /// used for, and starts nothing.
    Retired { connection: Connection, place: Place },
    /// The driver was asked to close it.
    Closing {
        connection: Connection,
        /// It was live or retired before.
        was_accepted: bool,
    },
}

impl State {
    /// What is known of the connection; `None` while it is a dial.
    pub(super) fn connection(&self) -> Option<&Connection> {
        match self {
            Self::Dialing { .. } => None,
            Self::Greeting { connection, .. }
            | Self::Live { connection, .. }
            | Self::Retired { connection, .. }
            | Self::Closing { connection, .. } => Some(connection),
        }
    }

    /// The connection, when it leaves the state.
    pub(super) fn into_connection(self) -> Option<Connection> {
        match self {
            Self::Dialing { .. } => None,
            Self::Greeting { connection, .. }
            | Self::Live { connection, .. }
            | Self::Retired { connection, .. }
            | Self::Closing { connection, .. } => Some(connection),
        }
    }

    /// What is known of the connection, to change it.
    pub(super) fn connection_mut(&mut self) -> Option<&mut Connection> {
        self.parts_mut().map(|(connection, _)| connection)
    }

    /// The connection, and its place while it has one.
    pub(super) fn parts_mut(&mut self) -> Option<(&mut Connection, Option<&mut Place>)> {
        match self {
            Self::Dialing { .. } => None,
            Self::Greeting { connection, place, .. }
            | Self::Live { connection, place }
            | Self::Retired { connection, place } => Some((connection, Some(place))),
            Self::Closing { connection, .. } => Some((connection, None)),
        }
    }

    /// The place of the connection, while it has one.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Greeting { place, .. }
            | Self::Live { place, .. }
            | Self::Retired { place, .. } => Some(place),
            Self::Dialing { .. } | Self::Closing { .. } => None,
        }
    }

    /// Race that ends or continues with it.
    pub(super) fn race(&self) -> Option<RaceId> {
        match self {
            Self::Dialing { race } | Self::Greeting { race, .. } => *race,
            Self::Live { .. } | Self::Retired { .. } | Self::Closing { .. } => None,
        }
    }

    /// Accepted by both ends, and not being closed.
    pub(super) fn is_accepted(&self) -> bool {
        matches!(self, Self::Live { .. } | Self::Retired { .. })
    }

    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Dialing { race: Some(_) } => "dialing",
            Self::Dialing { race: None } => "cancelled dial",
            Self::Greeting { .. } => "greeting",
            Self::Live { .. } => "live",
            Self::Retired { .. } => "retired",
            Self::Closing { .. } => "closing",
        }
    }
}

/// What is known of a connection whose handshake is complete, in whichever state it is.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) node: NodeId,
    pub(super) chain: Vec<NodeId>,
    pub(super) side: Side,
    pub(super) dialect: Dialect,
    pub(super) address: NodeAddress,
    pub(super) network: Network,
    pub(super) since: UnixMillis,
    pub(super) shared_id: Bytes,
    pub(super) origin: AddressOrigin,
    /// Whether something was sent and nothing was received for several round trips. The driver
    /// reports it in every state.
    pub(super) suspected: bool,
    /// Acquired by the embedder. They are lost when the connection ends, not when it starts to
    /// close.
    pub(super) leases: BTreeSet<LeaseId>,
    /// Time of its last use.
    pub(super) used_at: Instant,
    /// Duration of the last call that was answered on it, in milliseconds; the maximum if it is
    /// unknown.
    pub(super) round_trip: u16,
}

impl Connection {
    /// Returns whether a relay forwards its datagrams.
    pub(super) fn is_relayed(&self) -> bool {
        self.origin.mode == ContactMode::Relay
    }

    pub(super) fn data(&self) -> NodeContactAddressData {
        NodeContactAddressData {
            mode: self.origin.mode,
            connected_time: self.since,
            scopes: self.origin.scopes,
        }
    }
}
