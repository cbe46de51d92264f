//! Requests and responses between nodes, independent of the dialect.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use super::closest::{ClosestNodes, ClosestNodesQuery};
use crate::claims::ClaimId;
use crate::types::address::NodeAddress;
use crate::types::id::NodeId;
use crate::types::refusal::Refusal;
use crate::types::signature::Signature;
use crate::types::time::UnixMillis;

/// A request of one node to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RpcRequest {
    /// Checks that the node answers.
    Ping {
        /// Number that is repeated in the response.
        nonce: u64,
    },
    /// Requests the known nodes closest to `target`.
    Closest {
        /// Target of the distance.
        target: NodeId,
        /// Requested lists.
        query: ClosestNodesQuery,
    },
    /// To a relay: requests the address of `target`, and that it punches towards the requester.
    Signal(SignalRequest),
    /// From a relay: requests to punch towards `source`.
    Punch(Box<PunchRequest>),
    /// Requests the next claims of its chain.
    Claims {
        /// Claim after which to start; `None` starts with the first one.
        after: Option<ClaimId>,
        /// Maximum size of the tokens in the response, in bytes; at least one claim is returned.
        max_bytes: u32,
    },
    /// Requests a signature of a claim about a network: the JSON text of its token.
    SignClaim(Bytes),
    /// To a relay: requests a circuit to `target`, another node that is connected to it. After the
    /// answer `Circuit` the stream carries datagrams (docs/WIRE.md section 23).
    Relay {
        /// Other end of the circuit.
        target: NodeId,
    },
    /// From a relay: offers a circuit to the node that has requested it. After the answer `Circuit`
    /// the stream carries datagrams.
    Circuit {
        /// Other end of the circuit.
        source: NodeId,
        /// Its address, as seen by the relay; `None` if it is not a public one.
        address: Option<NodeAddress>,
        /// Whether the relay sees both ends at one IP address: they may be in one local network.
        same_network: bool,
    },
    /// On a relayed connection between nodes that may be in one local network: the addresses of the
    /// sender there, at most [`MAX_PER_NODE`](crate::wire::native::MAX_PER_NODE). Requests those of
    /// the peer.
    Candidates(Vec<NodeAddress>),
}

impl RpcRequest {
    /// Returns whether the stream of the request becomes a circuit when it is accepted.
    pub(crate) const fn opens_circuit(&self) -> bool {
        matches!(self, Self::Relay { .. } | Self::Circuit { .. })
    }
}

/// Request to a relay to signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalRequest {
    /// Node that the source wants to reach.
    pub target: NodeId,
    /// Replay protection.
    pub terms: SignalTerms,
    /// Signature of the source over [`signal::request_bytes`](crate::wire::signal::request_bytes).
    pub signature: Signature,
}

/// Replay protection of a signalling request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTerms {
    /// The request works once, and until its expiry.
    Once {
        /// Expiry, by the clock of the source.
        expires: UnixMillis,
        /// Number that is used once.
        nonce: [u8; 16],
    },
    /// None: the only terms that Polykey 1.x supports, as source, relay or target.
    Plain,
}

/// Request of a relay to the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PunchRequest {
    /// Node that wants to connect.
    pub source: NodeId,
    /// Its address, as seen by the relay.
    pub address: NodeAddress,
    /// Text of the address that the relay has signed (see
    /// [`signal::address_text`](crate::wire::signal::address_text)).
    pub address_text: String,
    /// Request of the source.
    pub request: SignalRequest,
    /// Signature of the relay over [`signal::relay_bytes`](crate::wire::signal::relay_bytes).
    pub relay_signature: Signature,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RpcResponse {
    /// To `Ping`.
    Pong {
        /// Number of the request.
        nonce: u64,
    },
    /// To `ClosestNodes`; a list that was not requested is empty.
    Closest(ClosestNodes),
    /// To `Signal`: the target was informed.
    Signalled {
        /// Address of the target, as seen by the relay.
        address: NodeAddress,
    },
    /// To `Punch`: datagrams are being sent.
    Punching,
    /// To `Claims`.
    Claims(ClaimsPage),
    /// To any request: a refusal.
    Refused(Refusal),
    /// To `SignClaim`: the token with the signature.
    SignedClaim(Bytes),
    /// To `Relay` and `Circuit`: datagrams follow.
    Circuit {
        /// To `Relay`: address of the target, as seen by the relay; `None` if it is not a public
        /// one.
        address: Option<NodeAddress>,
        /// To `Relay`: whether the relay sees both ends at one IP address.
        same_network: bool,
    },
    /// To `Candidates`: the addresses of the sender in its local network.
    Candidates(Vec<NodeAddress>),
}

/// Claims of a chain, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClaimsPage {
    /// Id of each claim, and the JSON text of its token, as stored.
    pub claims: Vec<(ClaimId, Bytes)>,
    /// Whether the chain continues after them.
    pub more: bool,
}

/// Returns whether a text is a valid protocol name: 1 to 64 printable ASCII characters.
pub fn is_protocol_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| matches!(b, b' '..=b'~'))
}

/// Maximum size of the tokens in one page for a peer, in bytes.
pub(crate) const SERVED_BYTES: u32 = 48 * 1024;
