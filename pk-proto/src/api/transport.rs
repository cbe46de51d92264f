//! Connections, as the driver reports them.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cert::fault::MAX_CHAIN_LEN;
use crate::types::id::{ConnectionId, NodeId, RequestId};
use crate::wire::dialect::Dialect;

/// A connection whose handshake succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Connected {
    /// Id of the dial, or an odd id for an incoming connection.
    pub conn: ConnectionId,
    /// Side of the local node in the handshake.
    pub side: Side,
    /// Negotiated ALPN.
    pub dialect: Dialect,
    /// Id whose key the peer has proved to hold: that of its newest certificate.
    pub leaf: NodeId,
    /// Every id that the peer's certificate chain proves, newest first; `leaf` is the first.
    pub chain: Vec<NodeId>,
    /// Expected id of the dial that was found in the chain. `None` for an incoming connection.
    pub matched_id: Option<NodeId>,
    /// Address of the peer's packets.
    #[serde(with = "crate::types::sockets::one")]
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::socket))]
    pub remote: SocketAddr,
    /// Address of the local node's packets.
    #[serde(with = "crate::types::sockets::one")]
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::socket))]
    pub local: SocketAddr,
    /// Unique id, equal at both ends: the TLS exporter with label `EXPORTER-pk-conn` on `pk/1`, the
    /// reference's connectionId on `quic` (docs/WIRE.md section 2). Determines the primary
    /// connection.
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::bytes))]
    pub shared_id: Bytes,
}

/// Side of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Side {
    /// The local node opened the connection.
    Dialer,
    /// The peer opened the connection.
    Acceptor,
}

/// Side that opened a stream that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Opener {
    /// The local node, for this request.
    Us(RequestId),
    /// The peer.
    Peer,
}

/// Why a dial failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[non_exhaustive]
pub enum DialFailure {
    /// There was no accepted connection before the deadline.
    #[error("timed out")]
    TimedOut,
    /// The dial was cancelled locally.
    #[error("cancelled")]
    Cancelled,
    /// The peer closed the connection before it accepted it. The driver reports this if it happens
    /// during the handshake or on dialect `quic`; on `pk/1` the core derives it from a
    /// `Disconnected` before the Hello.
    #[error("rejected by the peer with code {code}: {reason}")]
    Rejected {
        /// Application error code of the peer.
        code: u64,
        /// Reason of the peer, UTF-8.
        reason: String,
    },
    /// The peer's certificate chain is invalid or proves no expected id.
    #[error("certificate: {0}")]
    Certificate(String),
    /// No answer, although a relay has asked the node to punch: both NATs are too strict for a
    /// direct connection.
    #[error("signalling was accepted, but the dial timed out")]
    TimedOutAfterSignal,
    /// A relay did not signal.
    #[error("the relay did not signal: {0}")]
    Signal(String),
    /// There is no connection through a relay, whose address this is.
    #[error("by relay: {0}")]
    Relay(String),
    /// The host name could not be resolved, or has no address.
    #[error("failed to resolve the host name: {0}")]
    Resolve(String),
    /// Any other failure of the transport: unreachable, TLS, version, no free port.
    #[error("transport: {0}")]
    Transport(String),
    /// The host name resolved to these addresses; the failure of each is listed separately.
    #[error("resolved to {}", Listed(.0))]
    LeadsTo(
        #[serde(with = "crate::types::sockets::many")]
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::sockets))]
        Vec<SocketAddr>,
    ),
    /// The node belongs to another network, or one of the two requires its network and the other
    /// names none; found by either end.
    #[error("network: {0}")]
    OtherNetwork(String),
    /// The address was not tried: a race tries at most `Config::dial_address_limit` addresses.
    #[error("not tried: more addresses than dial_address_limit")]
    NotTried,
}

/// Formats addresses.
struct Listed<'a>(&'a [SocketAddr]);

impl core::fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (n, addr) in self.0.iter().enumerate() {
            write!(f, "{}{addr}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The local node closed it.
    #[error("closed locally")]
    Local,
    /// The peer closed it with an application code.
    #[error("closed by the peer with code {code}: {reason}")]
    Peer {
        /// Application error code.
        code: u64,
        /// Reason, UTF-8.
        reason: String,
    },
    /// No packet was received for the idle timeout of the transport.
    #[error("timed out")]
    TimedOut,
    /// The peer has lost its state (QUIC stateless reset).
    #[error("reset by the peer")]
    Reset,
    /// A protocol violation or an alert of the transport.
    #[error("transport: {0}")]
    Transport(String),
}

/// The certificates that a node presents in handshakes. The driver has the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Identity {
    /// DER certificates, newest first, back to the first key of the node. At most [`MAX_CHAIN_LEN`]
    /// are used: older ones are left out, and ids that only they prove are dropped.
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::byte_strings))]
    pub chain: Vec<Bytes>,
}

impl Identity {
    /// Returns the certificates that are presented: the newest [`MAX_CHAIN_LEN`], because peers
    /// refuse longer chains.
    pub fn presented(&self) -> &[Bytes] {
        self.chain.get(..MAX_CHAIN_LEN).unwrap_or(&self.chain)
    }

    /// Returns the identity without the certificates that are not presented.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        self.chain.truncate(MAX_CHAIN_LEN);
        self
    }
}
