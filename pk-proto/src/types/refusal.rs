//! Reasons of a peer to refuse a request.

use serde::{Deserialize, Serialize};

/// Why a peer refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The relay has no connection with the target.
    #[error("the relay is not connected to the target")]
    NotConnected,
    /// Too many signals of this source or to this target.
    #[error("too many signals")]
    RateLimited,
    /// A signature is invalid, or by another node than required.
    #[error("invalid signature")]
    Signature,
    /// The request was signed too long ago or in the future, by the clock of its source if that is
    /// known, otherwise by the clock of the peer.
    #[error("the request has expired or was signed in the future, by the clocks of both nodes")]
    Expired,
    /// The nonce was already used.
    #[error("the request was already used")]
    Replayed,
    /// The target of the request is another node.
    #[error("the peer is not the target")]
    NotTarget,
    /// Punching the address is not allowed.
    #[error("the address is not allowed")]
    Address,
    /// The limit of concurrent work of this kind is reached.
    #[error("busy")]
    Busy,
    /// The policy of the peer does not allow it.
    #[error("the policy of the peer does not allow it")]
    Denied,
    /// Another claim was appended first; the request can be retried.
    #[error("another claim was appended first")]
    Stale,
    /// The claim has another type, or concerns another node.
    #[error("the peer does not sign such a claim")]
    Claim,
    /// The target uses Polykey 1.x, which accepts `SignalTerms::Plain` only.
    #[error("the target accepts plain signals only")]
    Terms,
    /// The relay's signature is invalid.
    #[error("invalid signature of the relay")]
    RelaySignature,
    /// The relay has forwarded as much for this node, or for all nodes, as it does in a day.
    #[error("the relay has forwarded as much as it does in a day")]
    Volume,
}
