//! Y: the side that is asked.

use super::initiator::first_signature;
use super::{ClaimStep, ExchangeFault, Side, Sides, ToSign};
use crate::claims::{Claim, ClaimContent, ClaimId, ClaimLinkNode, FullySigned, HalfSigned, TokenFault, UnsignedClaim};
use crate::id::NodeId;
use crate::io::Signature;

/// The peer's claim, with its signature, and whom it links.
#[derive(Debug)]
pub(crate) struct Theirs {
    pub(crate) half: HalfSigned,
    pub(crate) link: ClaimLinkNode,
}

/// An exchange that a peer has begun.
#[derive(Debug)]
pub(crate) enum Responder {
    /// What we have answered to this claim before is being looked up.
    LookingUp { theirs: Theirs },
    /// What we have answered is being read.
    Recalling { theirs: FullySigned, link: ClaimLinkNode, signature: Signature },
    /// The embedder is asked.
    Deciding { theirs: Theirs },
    /// Their claim is being signed.
    SigningTheirs { theirs: Theirs },
    /// Our chain is being written.
    Waiting { theirs: FullySigned, link: ClaimLinkNode },
    /// Our claim is being signed.
    SigningMine { theirs: FullySigned, link: ClaimLinkNode, mine: UnsignedClaim, owner: NodeId },
    /// That we have agreed is being written.
    Agreeing { theirs: FullySigned, link: ClaimLinkNode, mine: HalfSigned },
    /// The peer is to sign our claim, which is in our chain already if it `stands`.
    Answered { theirs: ClaimId, issuer: NodeId, signature: Signature, mine: HalfSigned, stands: bool },
    /// Our claim is being written.
    Appending { theirs: ClaimId, issuer: NodeId },
}

impl Theirs {
    /// The first claim of an exchange, which costs a signature check: a link that the peer issues, about us.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn verify(sides: &Sides, claim: Claim) -> Result<Self, ExchangeFault> {
        let link = sides.link(&claim, Side::Peer)?;
        let half = HalfSigned::verify(claim, &link.issuer)?;
        Ok(Self { half, link })
    }

    /// The claim's id, which names the exchange, with its issuer.
    pub(crate) fn id(&self) -> ClaimId {
        self.half.claim().id()
    }

    /// With a signature of ours that was made before.
    ///
    /// # Errors
    /// It is not one of this claim: another one had the same id.
    pub(crate) fn with_signature(self, signature: Signature) -> Result<(FullySigned, ClaimLinkNode), ExchangeFault> {
        let full = self.half.counter_sign(self.link.subject, signature).map_err(|_| ExchangeFault::Reused)?;
        Ok((full, self.link))
    }
}

impl Responder {
    /// How far it has come.
    pub(crate) fn step(&self) -> ClaimStep {
        match self {
            Self::LookingUp { .. } => ClaimStep::LookingUp,
            Self::Recalling { .. } => ClaimStep::Recalling,
            Self::Deciding { .. } => ClaimStep::Deciding,
            Self::SigningTheirs { .. } => ClaimStep::SigningTheirs,
            Self::Waiting { .. } => ClaimStep::WaitingToDraft,
            Self::SigningMine { .. } => ClaimStep::SigningMine,
            Self::Agreeing { .. } => ClaimStep::Agreeing,
            Self::Answered { .. } => ClaimStep::Answered,
            Self::Appending { .. } => ClaimStep::Appending,
        }
    }

    /// What names the exchange: issuer and id of the peer's claim.
    pub(crate) fn name(&self) -> (NodeId, ClaimId) {
        match self {
            Self::LookingUp { theirs } | Self::Deciding { theirs } | Self::SigningTheirs { theirs } => {
                (theirs.link.issuer, theirs.id())
            }
            Self::Recalling { theirs, link, .. }
            | Self::Waiting { theirs, link }
            | Self::SigningMine { theirs, link, .. } => (link.issuer, theirs.claim().id()),
            Self::Agreeing { theirs, .. } => (theirs.owner(), theirs.claim().id()),
            Self::Answered { theirs, issuer, .. } | Self::Appending { theirs, issuer, .. } => (*issuer, *theirs),
        }
    }

    /// We agree: their claim is to be signed.
    pub(crate) fn agreed(theirs: Theirs) -> (Self, ToSign) {
        let key = theirs.link.subject;
        let to_sign = ToSign { key, bytes: theirs.half.signing_input(&key) };
        (Self::SigningTheirs { theirs }, to_sign)
    }

    /// Our claim is drafted.
    pub(crate) fn drafted(
        theirs: FullySigned,
        link: ClaimLinkNode,
        mine: UnsignedClaim,
        owner: NodeId,
    ) -> (Self, ToSign) {
        let to_sign = ToSign { key: owner, bytes: mine.signing_input(&owner) };
        (Self::SigningMine { theirs, link, mine, owner }, to_sign)
    }

    /// A signature was made: of their claim, which leaves ours to be drafted, or of ours, which leaves that to be written.
    ///
    /// # Errors
    /// It is not ours.
    pub(crate) fn signed(self, signature: Signature) -> Result<Self, TokenFault> {
        match self {
            Self::SigningTheirs { theirs: Theirs { half, link } } => {
                Ok(Self::Waiting { theirs: half.counter_sign(link.subject, signature)?, link })
            }
            Self::SigningMine { theirs, link, mine, owner } => {
                Ok(Self::Agreeing { theirs, link, mine: mine.sign(owner, signature)? })
            }
            other => Ok(other),
        }
    }

    /// An answer that we gave before: our claim in our chain, which costs a signature check.
    ///
    /// # Errors
    /// It is not one that we have signed first.
    pub(crate) fn recalled(claim: &Claim) -> Result<HalfSigned, ExchangeFault> {
        first_signature(claim)
    }

    /// The peer's last word: our claim with its signature, which costs a signature check. To be called when `Answered`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn last(mine: &HalfSigned, returned: Claim) -> Result<FullySigned, ExchangeFault> {
        let link = mine.claim().link().ok_or(ExchangeFault::Typ)?;
        Ok(mine.completed_by(returned, &link.issuer)?)
    }
}

/// What our claim says: as the peer's, with both nodes by their newest ids, whose keys are there to sign it.
pub(crate) fn content(sides: &Sides, theirs: &ClaimLinkNode) -> ClaimContent {
    ClaimContent::link(&ClaimLinkNode {
        issuer: sides.peer.first().copied().unwrap_or(theirs.issuer),
        subject: sides.own.first().copied().unwrap_or(theirs.subject),
    })
}
