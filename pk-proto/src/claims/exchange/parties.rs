//! Common parts of both sides of an exchange.

use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::claims::{Claim, ClaimFault, ClaimLinkNode, SignedFault};
use crate::types::id::NodeId;

/// Both parties of an exchange: every id that the certificates of each prove, newest first.
#[derive(Debug, Clone)]
pub(crate) struct Parties {
    pub(crate) own: Vec<NodeId>,
    pub(crate) peer: Vec<NodeId>,
}

impl Parties {
    /// Returns the link of a claim, if the peer issues it and it is about the local node, or the
    /// other way round.
    pub(super) fn link(
        &self,
        claim: &Claim,
        issuer: Party,
    ) -> Result<ClaimLinkNode, ExchangeFault> {
        let link = *claim.link().ok_or(ExchangeFault::Typ)?;
        let (issuers, subjects) = match issuer {
            Party::Own => (&self.own, &self.peer),
            Party::Peer => (&self.peer, &self.own),
        };
        if !issuers.contains(&link.issuer) {
            return Err(ExchangeFault::Issuer);
        }
        if !subjects.contains(&link.subject) {
            return Err(ExchangeFault::Subject);
        }
        Ok(link)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Party {
    Own,
    Peer,
}

/// What is to be signed, and by which local id.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ToSign {
    pub(crate) key: NodeId,
    pub(crate) bytes: Bytes,
}

/// Returns the bytes of a claim to send.
pub(crate) fn sent(claim: &Claim) -> Bytes {
    claim.token().to_json().into()
}

/// Why the peer's part in a claim exchange is invalid. Nothing that it sent was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeFault {
    /// It sent something that is not a claim.
    #[error(transparent)]
    Claim(#[from] ClaimFault),
    /// The claim has another type than the exchange.
    #[error("the claim has another type")]
    Typ,
    /// The claim has another issuer than expected.
    #[error("the claim has another issuer")]
    Issuer,
    /// The claim has another subject than expected.
    #[error("the claim has another subject")]
    Subject,
    /// The claim does not have the expected signatures, or is not the one that was sent.
    #[error(transparent)]
    Signed(#[from] SignedFault),
    /// The id of the claim is that of another claim that was signed before.
    #[error("the claim has the id of another one")]
    Reused,
    /// It sent a claim after the exchange was complete.
    #[error("an additional claim")]
    Unexpected,
    /// It ended the exchange before it was complete.
    #[error("the exchange ended early")]
    Early,
}

/// Step of an exchange, for logs and for tests that must reach every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ClaimStep {
    // -- of an initiator
    /// The local chain is being written; the claim is drafted afterwards.
    Waiting,
    /// Our claim is being signed.
    SigningFirst,
    /// Waiting for the peer to sign our claim.
    Asked,
    /// The peer has signed our claim; waiting for its own.
    HalfAnswered,
    /// The peer's claim is being signed.
    SigningLast,
    /// Our claim is being written. From now on it counts as committed.
    Persisting,
    /// Waiting for the peer to confirm.
    Finishing,
    /// The draft became stale; the exchange is retried after a delay.
    Pausing,
    /// Our claim is committed; the peer's chain is searched for its counterpart.
    Checking,
    /// Our committed claim is being read, to resume the exchange.
    Loading,

    // -- of a responder
    /// A previous answer to this claim is being searched.
    LookingUp,
    /// The previous answer is being read.
    Recalling,
    /// Waiting for the embedder's approval.
    Deciding,
    /// The peer's claim is being signed.
    SigningTheirs,
    /// The local chain is being written; our claim is drafted afterwards.
    WaitingToDraft,
    /// Our claim is being signed.
    SigningMine,
    /// The commitment to sign is being written.
    Agreeing,
    /// Waiting for the peer to sign our claim.
    Answered,
    /// Our claim is being written.
    Appending,
}
