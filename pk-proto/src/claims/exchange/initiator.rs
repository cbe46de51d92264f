//! The initiator of an exchange, X in docs/WIRE.md.

use bytes::Bytes;

use super::parties::{ClaimStep, ExchangeFault, Parties, Party, ToSign, sent};
use crate::claims::{Claim, ClaimId, DoublySigned, SinglySigned, TokenFault, UnsignedClaim};
use crate::types::id::NodeId;
use crate::types::signature::Signature;

/// An exchange that the local node has started.
#[derive(Debug)]
pub(crate) enum Initiator {
    /// The local chain is being written.
    Waiting,
    /// Our claim is being signed.
    SigningFirst { claim: UnsignedClaim, owner: NodeId },
    /// Waiting for the peer to sign our claim.
    Asked { mine: Sent },
    /// Waiting for the peer's claim.
    HalfAnswered { mine: Returned },
    /// The peer's claim is being signed.
    SigningLast { mine: Returned, theirs: SinglySigned, signer: NodeId },
    /// Waiting for the store: our claim, or the record of the signed peer claim, is being written.
    Persisting { mine: ClaimId, last: DoublySigned },
    /// Waiting for the peer to confirm.
    Finishing { mine: ClaimId },
    /// Our claim is committed; the peer's chain is searched.
    Checking { mine: ClaimId, theirs: ClaimId },
    /// Our committed claim is being read.
    Loading { mine: ClaimId },
}

/// Our claim, as it is sent to the peer.
#[derive(Debug)]
pub(crate) enum Sent {
    /// Not committed yet.
    New(SinglySigned),
    /// Already in the local chain; the peer must return its signature again.
    Again(SinglySigned),
}

/// Our claim, as the peer has returned it.
#[derive(Debug)]
pub(crate) enum Returned {
    /// Signed by both, and not in the local chain yet.
    New(DoublySigned),
    /// Already in the local chain.
    Committed(ClaimId),
}

/// Next action of an initiator.
#[derive(Debug)]
pub(crate) enum Next {
    /// Wait for the peer.
    Wait,
    /// Sign this.
    Sign(ToSign),
    /// Start the exchange with this token.
    Begin(Bytes),
    /// Append our claim, if it still fits.
    Append(DoublySigned),
    /// Store that this claim of the peer was signed; ours is already committed.
    Note { mine: ClaimId, theirs: ClaimId },
}

impl Initiator {
    /// Returns the current step.
    pub(crate) fn step(&self) -> ClaimStep {
        match self {
            Self::Waiting => ClaimStep::Waiting,
            Self::SigningFirst { .. } => ClaimStep::SigningFirst,
            Self::Asked { .. } => ClaimStep::Asked,
            Self::HalfAnswered { .. } => ClaimStep::HalfAnswered,
            Self::SigningLast { .. } => ClaimStep::SigningLast,
            Self::Persisting { .. } => ClaimStep::Persisting,
            Self::Finishing { .. } => ClaimStep::Finishing,
            Self::Checking { .. } => ClaimStep::Checking,
            Self::Loading { .. } => ClaimStep::Loading,
        }
    }

    /// Returns our claim, if it is committed or being written.
    pub(crate) fn committed(&self) -> Option<ClaimId> {
        match self {
            Self::Persisting { mine, .. }
            | Self::Finishing { mine }
            | Self::Checking { mine, .. }
            | Self::Loading { mine } => Some(*mine),
            Self::Asked { mine: Sent::Again(half) } => Some(half.claim().id()),
            Self::HalfAnswered { mine: Returned::Committed(mine) }
            | Self::SigningLast { mine: Returned::Committed(mine), .. } => Some(*mine),
            Self::Waiting
            | Self::SigningFirst { .. }
            | Self::Asked { .. }
            | Self::HalfAnswered { .. }
            | Self::SigningLast { .. } => None,
        }
    }

    /// Returns the local id that must sign.
    pub(crate) fn signer(&self) -> Option<NodeId> {
        match self {
            Self::SigningFirst { owner: key, .. } | Self::SigningLast { signer: key, .. } => {
                Some(*key)
            }
            _ => None,
        }
    }

    /// Our claim was drafted.
    pub(crate) fn drafted(claim: UnsignedClaim, owner: NodeId) -> (Self, ToSign) {
        let to_sign = ToSign { key: owner, bytes: claim.signing_input(&owner) };
        (Self::SigningFirst { claim, owner }, to_sign)
    }

    /// A committed claim was read. Costs one signature verification.
    ///
    /// # Errors
    /// It is not one that the local node has signed first.
    pub(crate) fn loaded(claim: &Claim) -> Result<(Self, Bytes), ExchangeFault> {
        let half = first_signature(claim)?;
        let first = sent(half.claim());
        Ok((Self::Asked { mine: Sent::Again(half) }, first))
    }

    /// A signature was made.
    ///
    /// # Errors
    /// It is not by the local node.
    pub(crate) fn signed(self, signature: Signature) -> Result<(Self, Next), TokenFault> {
        match self {
            Self::SigningFirst { claim, owner } => {
                let half = claim.sign(owner, signature)?;
                let first = sent(half.claim());
                Ok((Self::Asked { mine: Sent::New(half) }, Next::Begin(first)))
            }
            Self::SigningLast { mine, theirs, signer } => {
                let last = theirs.counter_sign(signer, signature)?;
                match mine {
                    Returned::New(mine) => {
                        let id = mine.claim().id();
                        Ok((Self::Persisting { mine: id, last }, Next::Append(mine)))
                    }
                    Returned::Committed(mine) => {
                        let theirs = last.claim().id();
                        Ok((Self::Persisting { mine, last }, Next::Note { mine, theirs }))
                    }
                }
            }
            other => Ok((other, Next::Wait)),
        }
    }

    /// The write completed. Returns what to send.
    pub(crate) fn persisted(self) -> (Self, Option<Bytes>) {
        match self {
            Self::Persisting { mine, last } => (Self::Finishing { mine }, Some(sent(last.claim()))),
            other => (other, None),
        }
    }

    /// Returns the peer's claim whose record is being written.
    pub(crate) fn noted(&self) -> Option<ClaimId> {
        match self {
            Self::Persisting { last, .. } => Some(last.claim().id()),
            _ => None,
        }
    }

    /// Returns whether the peer has the claim that was signed: the first one of the requested ones.
    /// Costs two signature verifications.
    pub(crate) fn is_settled(&self, parties: &Parties, found: Option<&[u8]>) -> bool {
        let Self::Checking { theirs, .. } = self else { return false };
        let claim =
            found.and_then(|json| Claim::parse(json).ok()).filter(|claim| claim.id() == *theirs);
        claim.is_some_and(|claim| {
            let link = parties.link(&claim, Party::Own);
            link.is_ok_and(|link| DoublySigned::verify(claim, &link.subject, &link.issuer).is_ok())
        })
    }

    /// The peer sent a claim. Costs one signature verification.
    ///
    /// # Errors
    /// Why the claim is invalid.
    pub(crate) fn token(
        self,
        parties: &Parties,
        claim: Claim,
    ) -> Result<(Self, Next), ExchangeFault> {
        match self {
            Self::Asked { mine } => {
                Ok((Self::HalfAnswered { mine: mine.completed(claim)? }, Next::Wait))
            }
            Self::HalfAnswered { mine } => {
                let link = parties.link(&claim, Party::Own)?;
                let theirs = SinglySigned::verify(claim, &link.subject)?;
                let signer = link.issuer;
                let to_sign = ToSign { key: signer, bytes: theirs.signing_input(&signer) };
                Ok((Self::SigningLast { mine, theirs, signer }, Next::Sign(to_sign)))
            }
            _ => Err(ExchangeFault::Unexpected),
        }
    }
}

impl Sent {
    /// Adds the signature of the peer, if it is the same claim that was sent.
    fn completed(self, returned: Claim) -> Result<Returned, ExchangeFault> {
        let (Self::New(half) | Self::Again(half)) = &self;
        let subject = half.claim().link().ok_or(ExchangeFault::Typ)?.subject;
        let full = half.completed_by(returned, &subject)?;
        Ok(match self {
            Self::New(_) => Returned::New(full),
            Self::Again(_) => Returned::Committed(full.claim().id()),
        })
    }
}

/// Returns a claim as it was when only its owner had signed it. Costs one signature verification.
pub(super) fn first_signature(claim: &Claim) -> Result<SinglySigned, ExchangeFault> {
    let mut encoded = claim.token().encoded();
    encoded.signatures.truncate(1);
    let half = Claim::try_from(
        crate::claims::token::SignedToken::try_from(&encoded)
            .map_err(crate::claims::claim::ClaimFault::from)?,
    )?;
    let owner = half.token().signatures().first().map(crate::claims::token::TokenSignature::signer);
    Ok(SinglySigned::verify(half, &owner.ok_or(ExchangeFault::Typ)?)?)
}
