//! The messages of `pk/1` and their limits.

use alloc::string::String;

use bytes::Bytes;

use super::hello::Hello;
use super::wire;
use crate::claims::MAX_TOKEN_LEN;
use crate::types::address::NodeAddress;
use crate::types::network_id::NetworkId;
use crate::wire::frame::FrameFault;
use crate::wire::message::{RpcRequest, RpcResponse};

/// Maximum number of nodes in each list of a response.
pub const MAX_NODES: usize = wire::NODES;
/// Maximum number of addresses or connections of one node in a response.
pub const MAX_PER_NODE: usize = wire::PER_NODE;
/// Maximum length of a connection's shared id, in bytes.
pub const MAX_SHARED_ID: usize = 64;
/// Maximum length of [`Hello::agent`], in bytes.
pub const MAX_AGENT: usize = 64;

/// Maximum length of a token, in bytes.
pub const MAX_TOKEN: usize = MAX_TOKEN_LEN;
/// Maximum number of claims in one response.
pub const MAX_CLAIMS: usize = wire::CLAIMS;

/// Content of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// A message of version 1 of the protocol.
    V1(V1),
}

/// A message of version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum V1 {
    /// The first message of each side on the control stream.
    Hello(Hello),
    /// The first and only message of a call.
    Call {
        /// Time that the caller waits, in milliseconds.
        deadline_ms: u32,
        /// Request.
        request: RpcRequest,
    },
    /// The first and only message of the response.
    Answer(RpcResponse),
    /// The first message of an application stream.
    Open {
        /// Its protocol (see [`is_protocol_name`](crate::wire::message::is_protocol_name)).
        protocol: String,
    },
    /// The response to `Open`: all that follows, in both directions, belongs to the application.
    Accepted,
    /// The first message of an exchange (docs/DESIGN.md, Claims), only to a node with
    /// [`Hello::EXCHANGE`].
    Exchange {
        /// Time that the initiator waits, in milliseconds.
        deadline_ms: u32,
        /// Its half-signed claim; at most [`MAX_TOKEN`] bytes.
        token: Bytes,
    },
    /// A further message of an exchange, from either side.
    Token {
        /// A claim; at most [`MAX_TOKEN`] bytes.
        token: Bytes,
    },
    /// The second message of each side on the control stream, if both belong to a network
    /// ([`Hello::NETWORK`]).
    Network {
        /// Network of the sender.
        network: NetworkId,
    },
    /// A further message on the control stream, only to a node with [`Hello::EXTERNAL`]: a router
    /// passes packets for this address on to the sender, and none for that of the message before.
    External {
        /// External address: an IP address without a zone, and a port. `None`: there is none any
        /// longer.
        address: Option<NodeAddress>,
    },
}

/// Refuses what is not allowed.
pub(super) fn allow(allowed: bool) -> Result<(), FrameFault> {
    if allowed { Ok(()) } else { Err(FrameFault::Malformed) }
}
