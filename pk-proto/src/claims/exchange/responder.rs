//! The responder of an exchange, Y in docs/WIRE.md.

use super::initiator::first_signature;
use super::parties::{ClaimStep, ExchangeFault, Parties, Party, ToSign};
use crate::claims::{
    Claim, ClaimContent, ClaimId, ClaimLinkNode, DoublySigned, SinglySigned, TokenFault,
    UnsignedClaim,
};
use crate::types::id::NodeId;
use crate::types::signature::Signature;

/// The peer's claim, with its signature, and its link.
#[derive(Debug)]
pub(crate) struct Theirs {
    pub(crate) half: SinglySigned,
    pub(crate) link: ClaimLinkNode,
}

/// An exchange that a peer has started.
#[derive(Debug)]
pub(crate) enum Responder {
    /// A previous answer to this claim is being searched.
    LookingUp { theirs: Theirs },
    /// The previous answer is being read.
    Recalling { theirs: DoublySigned, link: ClaimLinkNode, signature: Signature },
    /// Waiting for the embedder's approval.
    Deciding { theirs: Theirs },
    /// The peer's claim is being signed.
    SigningTheirs { theirs: Theirs },
    /// The local chain is being written.
    Waiting { theirs: DoublySigned, link: ClaimLinkNode },
    /// Our claim is being signed.
    SigningMine { theirs: DoublySigned, link: ClaimLinkNode, mine: UnsignedClaim, owner: NodeId },
    /// The commitment to sign is being written.
    Agreeing { theirs: DoublySigned, link: ClaimLinkNode, mine: SinglySigned },
    /// Waiting for the peer to sign our claim, which is already in the local chain if it `stands`.
    Answered {
        theirs: ClaimId,
        issuer: NodeId,
        signature: Signature,
        mine: SinglySigned,
        stands: bool,
    },
    /// Our claim is being written.
    Appending { theirs: ClaimId, issuer: NodeId },
}

impl Theirs {
    /// Verifies the first claim of an exchange: a link that the peer issues, about the local node.
    /// Costs one signature verification.
    ///
    /// # Errors
    /// Why the claim is invalid.
    pub(crate) fn verify(parties: &Parties, claim: Claim) -> Result<Self, ExchangeFault> {
        let link = parties.link(&claim, Party::Peer)?;
        let half = SinglySigned::verify(claim, &link.issuer)?;
        Ok(Self { half, link })
    }

    /// Returns the id of the claim, which identifies the exchange together with its issuer.
    pub(crate) fn id(&self) -> ClaimId {
        self.half.claim().id()
    }

    /// Adds a local signature that was made before.
    ///
    /// # Errors
    /// It does not belong to this claim: another claim had the same id.
    pub(crate) fn with_signature(
        self,
        signature: Signature,
    ) -> Result<(DoublySigned, ClaimLinkNode), ExchangeFault> {
        let full = self
            .half
            .counter_sign(self.link.subject, signature)
            .map_err(|_| ExchangeFault::Reused)?;
        Ok((full, self.link))
    }
}

impl Responder {
    /// Returns the current step.
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

    /// Returns what identifies the exchange: issuer and id of the peer's claim.
    pub(crate) fn name(&self) -> (NodeId, ClaimId) {
        match self {
            Self::LookingUp { theirs }
            | Self::Deciding { theirs }
            | Self::SigningTheirs { theirs } => (theirs.link.issuer, theirs.id()),
            Self::Recalling { theirs, link, .. }
            | Self::Waiting { theirs, link }
            | Self::SigningMine { theirs, link, .. } => (link.issuer, theirs.claim().id()),
            Self::Agreeing { theirs, .. } => (theirs.owner(), theirs.claim().id()),
            Self::Answered { theirs, issuer, .. } | Self::Appending { theirs, issuer, .. } => {
                (*issuer, *theirs)
            }
        }
    }

    /// The claim was accepted. Returns what to sign.
    pub(crate) fn agreed(theirs: Theirs) -> (Self, ToSign) {
        let key = theirs.link.subject;
        let to_sign = ToSign { key, bytes: theirs.half.signing_input(&key) };
        (Self::SigningTheirs { theirs }, to_sign)
    }

    /// Our claim was drafted.
    pub(crate) fn drafted(
        theirs: DoublySigned,
        link: ClaimLinkNode,
        mine: UnsignedClaim,
        owner: NodeId,
    ) -> (Self, ToSign) {
        let to_sign = ToSign { key: owner, bytes: mine.signing_input(&owner) };
        (Self::SigningMine { theirs, link, mine, owner }, to_sign)
    }

    /// A signature was made: of the peer's claim, after which ours is drafted, or of ours, which is
    /// then written.
    ///
    /// # Errors
    /// It is not by the local node.
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

    /// Returns a previous answer from our claim in the local chain. Costs one signature
    /// verification.
    ///
    /// # Errors
    /// It is not one that the local node has signed first.
    pub(crate) fn recalled(claim: &Claim) -> Result<SinglySigned, ExchangeFault> {
        first_signature(claim)
    }

    /// Verifies the peer's last message: our claim with its signature. Costs one signature
    /// verification. Called in the step `Answered`.
    ///
    /// # Errors
    /// Why the claim is invalid.
    pub(crate) fn last(
        mine: &SinglySigned,
        returned: Claim,
    ) -> Result<DoublySigned, ExchangeFault> {
        let link = mine.claim().link().ok_or(ExchangeFault::Typ)?;
        Ok(mine.completed_by(returned, &link.issuer)?)
    }
}

/// Returns the content of our claim: that of the peer's, with both nodes by their newest ids, whose
/// keys are available.
pub(crate) fn content(parties: &Parties, theirs: &ClaimLinkNode) -> ClaimContent {
    ClaimContent::link(&ClaimLinkNode {
        issuer: parties.peer.first().copied().unwrap_or(theirs.issuer),
        subject: parties.own.first().copied().unwrap_or(theirs.subject),
    })
}
