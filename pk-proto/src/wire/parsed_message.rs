//! Decoded messages, independent of the dialect, and the format of a stream.

use alloc::string::String;
use core::time::Duration;

use bytes::Bytes;

use super::dialect::Dialect;
use super::fault::RemoteFailure;
use super::message::{RpcRequest, RpcResponse};
use super::native::hello::Hello;
use super::polykey::format;
use crate::types::address::NodeAddress;
use crate::types::network_id::NetworkId;

/// Format of a stream, which also determines how a request on it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamFormat {
    Native,
    Polykey(format::PolykeyFormat),
}

impl StreamFormat {
    /// Returns the format of a stream before its first message.
    pub(crate) fn first(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Native => Self::Native,
            Dialect::Polykey => Self::Polykey(format::PolykeyFormat::First),
        }
    }

    /// Returns whether the peer sends nothing more on a stream whose message was read, and only its
    /// end is waited for. On `pk/1` it is asked to stop. The reference must not be asked: its calls
    /// fail then, even those that were answered.
    pub(crate) fn awaits_end(self) -> bool {
        matches!(self, Self::Polykey(_))
    }

    /// Returns whether a response consists of any number of messages, and ends with the peer's
    /// direction.
    pub(crate) fn is_list(self) -> bool {
        match self {
            Self::Native => false,
            Self::Polykey(format) => format.is_list(),
        }
    }
}

/// A decoded message.
#[derive(Debug)]
pub(crate) enum ParsedMessage {
    /// The first message of a connection.
    Hello(Hello),
    /// A message about the network of the peer.
    Network { message: NetworkMessage, format: StreamFormat },
    /// The external address of the peer; `None` if it has none any longer.
    External(Option<NodeAddress>),
    /// A request of the peer, with the time that it waits.
    Request { request: RpcRequest, format: StreamFormat, timeout: Option<Duration> },
    /// The first token of an exchange that the peer starts.
    Exchange { token: Bytes, format: StreamFormat, timeout: Option<Duration> },
    /// A further token of an exchange.
    Token(Bytes),
    /// The complete response to a local call.
    Response(RpcResponse),
    /// A part of it, or a message that only shows that the peer is alive.
    Part(Option<RpcResponse>),
    /// An error instead of further responses to a local call.
    Failure(RemoteFailure),
    /// A malformed request, with the reason; the peer must be sent an error.
    Invalid { why: &'static str, format: StreamFormat },
    /// The peer opens an application stream, whose first data is `header`.
    Open { protocol: String, header: Bytes },
    /// The peer accepts an application stream.
    Accepted,
}

/// A message by which nodes name their networks to each other: on `pk/1` the only one, on `quic`
/// one of the authentication (docs/WIRE.md section 14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkMessage {
    /// The network of the sender, if it belongs to one.
    Member(Option<NetworkId>),
    /// The sender accepts the network of the other.
    Accepted,
    /// Parameters that are none of these.
    Invalid,
}
