//! Changes of a connection's state, each with its reason.

use core::fmt;
use core::net::SocketAddr;

use super::connection::Connection;
use crate::api::error::ConnectionErrorReason;
use crate::api::transport::{DialFailure, DisconnectReason};
use crate::types::id::{NodeId, RaceId};
use crate::types::time::Instant;

/// A change of state. [`fmt::Display`] gives its reason.
#[derive(Debug)]
pub(super) enum Change<'a> {
    /// A race dials an address.
    Dial { race: RaceId, expect: NodeId, addr: SocketAddr, deadline: Instant },
    /// No race needs the dial any longer.
    CancelDial,
    /// The dial has failed.
    DialFailed(&'a DialFailure),
    /// The handshake of a dial is complete: the dial has ended, and `Greet` or `Refuse` follows.
    HandshakeDone,
    /// A connection whose handshake is complete has a place.
    Greet { connection: Connection, race: Option<RaceId> },
    /// A connection whose handshake is complete is closed at once.
    Refuse { connection: Connection, reason: ConnectionErrorReason },
    /// The peer has accepted the connection.
    Accept,
    /// This node has another identity.
    Retire,
    /// This node closes the connection.
    Close(ConnectionErrorReason),
    /// The driver reports that the connection has ended.
    Disconnect(&'a DisconnectReason),
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial { race, expect, addr, .. } => {
                write!(f, "race {} dials {expect} at {addr}", race.0)
            }
            Self::CancelDial => f.write_str("no race needs the dial"),
            Self::DialFailed(why) => write!(f, "the dial failed: {why}"),
            Self::HandshakeDone => f.write_str("the handshake of the dial is complete"),
            Self::Greet { connection, .. } => {
                write!(f, "handshake complete with {}", connection.node)
            }
            Self::Refuse { connection, reason } => {
                write!(f, "refused {}: {reason:?}", connection.node)
            }
            Self::Accept => f.write_str("the peer has accepted it"),
            Self::Retire => f.write_str("this node has another identity"),
            Self::Close(reason) => write!(f, "closed by this node: {reason:?}"),
            Self::Disconnect(why) => write!(f, "ended: {why}"),
        }
    }
}
