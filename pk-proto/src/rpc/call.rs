//! What nodes ask each other, in whatever dialect.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::address::NodeAddress;
use crate::claims::ClaimId;
use crate::id::NodeId;
use crate::io::Signature;
use crate::request::{Closest, ClosestLists};
use crate::time::UnixMillis;

/// What one node asks of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Whether it answers.
    Ping {
        /// Comes back in the answer.
        nonce: u64,
    },
    /// Which nodes it knows that are closest to `target`.
    Closest {
        /// Closest to whom.
        target: NodeId,
        /// Which of its nodes.
        lists: ClosestLists,
    },
    /// To a relay: where `target` is, and have it punch towards the asker.
    Signal(SignalRequest),
    /// From a relay: punch towards `source`, who asked for it.
    Punch(Box<PunchRequest>),
    /// The next claims of its chain.
    Claims {
        /// Those behind this one; all if `None`.
        after: Option<ClaimId>,
        /// Bytes of tokens in the answer, at most; but one claim is told whatever its length.
        max_bytes: u32,
    },
    /// Sign a claim about a network: the JSON text of its token.
    SignClaim(Bytes),
}

/// What a node that wants to connect to another one asks of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalRequest {
    /// Whom the asker wants to reach.
    pub target: NodeId,
    /// What keeps it from working twice.
    pub terms: SignalTerms,
    /// By the asker over [`signal::request_bytes`](crate::signal::request_bytes).
    pub signature: Signature,
}

/// What keeps a request to signal from working twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTerms {
    /// It works once, and only for some time.
    Once {
        /// No longer valid after this.
        expires: UnixMillis,
        /// Used once.
        nonce: [u8; 16],
    },
    /// Nothing: the only terms that Polykey 1.x knows, as source, relay or target.
    Plain,
}

/// What a relay passes on to the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PunchRequest {
    /// Who wants to connect.
    pub source: NodeId,
    /// Where the relay sees it.
    pub address: NodeAddress,
    /// The text of that which the relay has signed (see [`signal::address_text`](crate::signal::address_text)).
    pub address_text: String,
    /// As the source asked.
    pub request: SignalRequest,
    /// By the relay over [`signal::relay_bytes`](crate::signal::relay_bytes).
    pub relay_signature: Signature,
}

/// What the other answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To `Ping`.
    Pong {
        /// That of the question.
        nonce: u64,
    },
    /// To `Closest`; a list that was not asked for is empty.
    Closest(Closest),
    /// To `Signal`: the target is told, and the relay sees it here.
    Signalled {
        /// Where the target is.
        address: NodeAddress,
    },
    /// To `Punch`: datagrams are on their way.
    Punching,
    /// To `Claims`.
    Claims(ClaimsPage),
    /// To any question: no.
    Refused(Refusal),
    /// To `SignClaim`: the token with the signature.
    SignedClaim(Bytes),
}

/// Some claims of a chain, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClaimsPage {
    /// The id of each, and the JSON text of its token, as it is stored.
    pub claims: Vec<(ClaimId, Bytes)>,
    /// Whether the chain has more behind them.
    pub more: bool,
}

/// Why a peer does not do what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The relay has no connection with the target.
    #[error("it is not connected to the target")]
    NotConnected,
    /// Too many signals of this source or to this target.
    #[error("too many signals")]
    RateLimited,
    /// A signature does not verify, or is not of who it should be.
    #[error("a signature does not verify")]
    Signature,
    /// The request has expired, or expires too far ahead.
    #[error("the request has expired")]
    Expired,
    /// The nonce was seen before.
    #[error("the request was seen before")]
    Replayed,
    /// The target of the request is another node.
    #[error("it is not the target")]
    NotTarget,
    /// The address may not be punched at.
    #[error("the address is refused")]
    Address,
    /// No more work of this kind now.
    #[error("busy")]
    Busy,
    /// Its policy does not allow it.
    #[error("it is not allowed")]
    Denied,
    /// Another claim came first; to be tried again.
    #[error("another claim came first")]
    Stale,
    /// It is not a claim that is signed here: of another type, or about another node.
    #[error("it does not sign such a claim")]
    Claim,
    /// The target speaks Polykey 1.x, which takes [`SignalTerms::Plain`] only.
    #[error("the target takes plain signals only")]
    Terms,
    /// The relay's signature does not verify.
    #[error("the relay's signature does not verify")]
    RelaySignature,
}

/// Whether this can name an application protocol: 1 to 64 printable ASCII characters.
pub fn is_protocol_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| matches!(b, b' '..=b'~'))
}
