//! Cross-signing (WIRE.md section 7): two nodes, X who begins and Y, each get a claim into their own chain that says they belong
//! together, signed by both.
//!
//! ```text
//! X [`Initiator`]                                          Y [`Responder`]
//!   drafts and signs Cx ──────── Cx[X] ───────────────────▶  may X? signs Cx; drafts and signs Cy;
//!                                                            writes down that it has agreed
//!   ◀─────────────────────────── Cx[X,Y], then Cy[Y] ──────
//!   signs Cy; writes Cx, its link, and that Y may not have its own: the point of no return
//!      ───────────────────────── Cy[Y,X] ─────────────────▶  writes Cy, its link, and with what Cx was answered
//!   ◀─────────────────────────── the end ──────────────────
//!   all is done
//! ```
//!
//! Both sides are enums whose every step owns what is known by then, and no more; a step is left by value. Nothing here does
//! anything: what is to be signed, sent or written is what a step returns.
//!
//! **A crash at any moment loses nothing and doubles nothing.** The exchange is named by the id of Cx. What X has written it
//! resumes with the same Cx when Y is next connected. Y answers the same Cx with the same signature and the same Cy, as long as
//! that can still be appended; if its chain has moved on meanwhile, it was never appended and never will be, and another one
//! takes its place. A reference node does
//! not remember what it has answered, so on its dialect X first looks into Y's chain for the claim that it has signed.

mod initiator;
mod responder;

use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use initiator::{Initiator, Next};
pub(crate) use responder::{Responder, Theirs, content};

use super::{Claim, ClaimFault, ClaimLinkNode, SignedFault};
use crate::id::NodeId;

/// Who is on either side of an exchange: every id that the certificates of each prove, newest first.
#[derive(Debug, Clone)]
pub(crate) struct Sides {
    pub(crate) own: Vec<NodeId>,
    pub(crate) peer: Vec<NodeId>,
}

impl Sides {
    /// The link that a claim is about, if it is one that the peer issues and that is about us, or the other way round.
    fn link(&self, claim: &Claim, issuer: Side) -> Result<ClaimLinkNode, ExchangeFault> {
        let link = *claim.link().ok_or(ExchangeFault::Typ)?;
        let (issuers, subjects) = match issuer {
            Side::Own => (&self.own, &self.peer),
            Side::Peer => (&self.peer, &self.own),
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
enum Side {
    Own,
    Peer,
}

/// What is to be signed, and by which of our keys.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ToSign {
    pub(crate) key: NodeId,
    pub(crate) bytes: Bytes,
}

/// What a claim is sent as.
pub(crate) fn sent(claim: &Claim) -> Bytes {
    claim.token().to_json().into()
}

/// What the peer did wrong in an exchange of claims. Nothing that it sent was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeFault {
    /// It sent something that is no claim.
    #[error(transparent)]
    Claim(#[from] ClaimFault),
    /// The claim is of another type than the exchange is for.
    #[error("the claim is of another type")]
    Typ,
    /// The claim is not issued by the node that it should be.
    #[error("the claim is issued by another node")]
    Issuer,
    /// The claim is not about the node that it should be.
    #[error("the claim is about another node")]
    Subject,
    /// The claim is not signed as it should be, or is not the one that was sent.
    #[error(transparent)]
    Signed(#[from] SignedFault),
    /// The id of the claim is that of another one, which we have signed before.
    #[error("the claim has the id of another one")]
    Reused,
    /// It sent something after it had sent everything.
    #[error("a claim too many")]
    Unexpected,
    /// It ended before it had sent everything.
    #[error("it ended early")]
    Early,
}

/// How far an exchange has come: for people, and for tests that are to have seen every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ClaimStep {
    // -- of a claim of ours
    /// Our chain is being written; the claim is drafted when that is done.
    Waiting,
    /// Our claim is being signed.
    SigningFirst,
    /// The peer has our claim and is to sign it.
    Asked,
    /// The peer has signed our claim and is to send its own.
    HalfAnswered,
    /// The peer's claim is being signed.
    SigningLast,
    /// Our claim is being written. From here on it stands, whatever happens.
    Persisting,
    /// The peer has everything and is to say so.
    Finishing,
    /// It did not work out this time and is begun again in a moment.
    Pausing,
    /// Our claim stands; whether the peer has its own is looked for in its chain.
    Checking,
    /// Our claim stands, and is read so that the exchange is resumed with it.
    Loading,

    // -- of a claim of a peer
    /// Whether we have answered this claim before is being looked up.
    LookingUp,
    /// The answer that we gave before is being read.
    Recalling,
    /// The embedder is asked.
    Deciding,
    /// The peer's claim is being signed.
    SigningTheirs,
    /// Our chain is being written; our claim is drafted when that is done.
    WaitingToDraft,
    /// Our claim is being signed.
    SigningMine,
    /// That we have agreed, and to what, is being written.
    Agreeing,
    /// The peer has our claim and is to sign it.
    Answered,
    /// Our claim is being written.
    Appending,
}
