//! X: the side that begins.

use super::{ClaimStep, ExchangeFault, Side, Sides, ToSign, sent};
use crate::claims::{Claim, ClaimId, FullySigned, HalfSigned, TokenFault, UnsignedClaim};
use crate::id::NodeId;
use crate::io::Signature;
use bytes::Bytes;

/// An exchange that we have begun.
#[derive(Debug)]
pub(crate) enum Initiator {
    /// Our chain is being written.
    Waiting,
    /// Our claim is being signed.
    SigningFirst { claim: UnsignedClaim, owner: NodeId },
    /// The peer is to sign our claim.
    Asked { mine: Sent },
    /// The peer is to send its own claim.
    HalfAnswered { mine: Returned },
    /// The peer's claim is being signed.
    SigningLast { mine: Returned, theirs: HalfSigned, signer: NodeId },
    /// Our claim is being written, or which one of the peer's we have signed.
    Persisting { mine: ClaimId, last: FullySigned },
    /// The peer is to say that it has everything.
    Finishing { mine: ClaimId },
    /// A claim of ours stands; the peer's chain is looked into.
    Checking { mine: ClaimId, theirs: ClaimId },
    /// A claim of ours that stands is being read.
    Loading { mine: ClaimId },
}

/// Our claim, as it is sent to the peer.
#[derive(Debug)]
pub(crate) enum Sent {
    /// For the first time.
    New(HalfSigned),
    /// It stands in our chain: the peer is to show its signature again.
    Again(HalfSigned),
}

/// Our claim, as the peer has returned it.
#[derive(Debug)]
pub(crate) enum Returned {
    /// Signed by both, and not in our chain.
    New(FullySigned),
    /// It stands in our chain.
    Standing(ClaimId),
}

/// What an initiator is to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Wait for the peer.
    Wait,
    /// Have this signed.
    Sign(ToSign),
    /// Begin the exchange with this.
    Begin(Bytes),
    /// Write our claim, if it still fits.
    Append(FullySigned),
    /// Write down that we have signed this claim of the peer: ours stands already.
    Note { mine: ClaimId, theirs: ClaimId },
}

impl Initiator {
    /// How far it has come.
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

    /// Our claim, if it is past the point of no return.
    pub(crate) fn standing(&self) -> Option<ClaimId> {
        match self {
            Self::Persisting { mine, .. }
            | Self::Finishing { mine }
            | Self::Checking { mine, .. }
            | Self::Loading { mine } => Some(*mine),
            Self::Asked { mine: Sent::Again(half) } => Some(half.claim().id()),
            Self::HalfAnswered { mine: Returned::Standing(mine) }
            | Self::SigningLast { mine: Returned::Standing(mine), .. } => Some(*mine),
            Self::Waiting
            | Self::SigningFirst { .. }
            | Self::Asked { .. }
            | Self::HalfAnswered { .. }
            | Self::SigningLast { .. } => None,
        }
    }

    /// Which of our keys is to sign.
    pub(crate) fn signer(&self) -> Option<NodeId> {
        match self {
            Self::SigningFirst { owner: key, .. } | Self::SigningLast { signer: key, .. } => Some(*key),
            _ => None,
        }
    }

    /// Our claim is drafted.
    pub(crate) fn drafted(claim: UnsignedClaim, owner: NodeId) -> (Self, ToSign) {
        let to_sign = ToSign { key: owner, bytes: claim.signing_input(&owner) };
        (Self::SigningFirst { claim, owner }, to_sign)
    }

    /// A claim of ours that stands was read, which costs a signature check.
    ///
    /// # Errors
    /// It is not one that we have signed first.
    pub(crate) fn loaded(claim: &Claim) -> Result<(Self, Bytes), ExchangeFault> {
        let half = first_signature(claim)?;
        let first = sent(half.claim());
        Ok((Self::Asked { mine: Sent::Again(half) }, first))
    }

    /// A signature was made.
    ///
    /// # Errors
    /// It is not ours.
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
                    Returned::Standing(mine) => {
                        let theirs = last.claim().id();
                        Ok((Self::Persisting { mine, last }, Next::Note { mine, theirs }))
                    }
                }
            }
            other => Ok((other, Next::Wait)),
        }
    }

    /// It is written. What is to be sent then.
    pub(crate) fn persisted(self) -> (Self, Option<Bytes>) {
        match self {
            Self::Persisting { mine, last } => (Self::Finishing { mine }, Some(sent(last.claim()))),
            other => (other, None),
        }
    }

    /// The peer's claim that is being written down as signed by us.
    pub(crate) fn noted(&self) -> Option<ClaimId> {
        match self {
            Self::Persisting { last, .. } => Some(last.claim().id()),
            _ => None,
        }
    }

    /// Whether the peer has the claim that we have signed: the first one of what it was asked for. Costs two signature checks.
    pub(crate) fn is_settled(&self, sides: &Sides, found: Option<&[u8]>) -> bool {
        let Self::Checking { theirs, .. } = self else { return false };
        let claim = found.and_then(|json| Claim::parse(json).ok()).filter(|claim| claim.id() == *theirs);
        claim.is_some_and(|claim| {
            let link = sides.link(&claim, Side::Own);
            link.is_ok_and(|link| FullySigned::verify(claim, &link.subject, &link.issuer).is_ok())
        })
    }

    /// The peer sends a claim. Costs one signature check.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn token(self, sides: &Sides, claim: Claim) -> Result<(Self, Next), ExchangeFault> {
        match self {
            Self::Asked { mine } => Ok((Self::HalfAnswered { mine: mine.completed(claim)? }, Next::Wait)),
            Self::HalfAnswered { mine } => {
                let link = sides.link(&claim, Side::Own)?;
                let theirs = HalfSigned::verify(claim, &link.subject)?;
                let signer = link.issuer;
                let to_sign = ToSign { key: signer, bytes: theirs.signing_input(&signer) };
                Ok((Self::SigningLast { mine, theirs, signer }, Next::Sign(to_sign)))
            }
            _ => Err(ExchangeFault::Unexpected),
        }
    }
}

impl Sent {
    /// With the signature of the peer, if it is the very claim that was sent.
    fn completed(self, returned: Claim) -> Result<Returned, ExchangeFault> {
        let (Self::New(half) | Self::Again(half)) = &self;
        let subject = half.claim().link().ok_or(ExchangeFault::Typ)?.subject;
        let full = half.completed_by(returned, &subject)?;
        Ok(match self {
            Self::New(_) => Returned::New(full),
            Self::Again(_) => Returned::Standing(full.claim().id()),
        })
    }
}

/// A claim as it was when only its owner had signed it. Costs one signature check.
pub(super) fn first_signature(claim: &Claim) -> Result<HalfSigned, ExchangeFault> {
    let mut encoded = claim.token().encoded();
    encoded.signatures.truncate(1);
    let half = Claim::try_from(crate::claims::Token::try_from(&encoded).map_err(crate::claims::ClaimFault::from)?)?;
    let owner = half.token().signatures().first().map(crate::claims::TokenSignature::signer);
    Ok(HalfSigned::verify(half, &owner.ok_or(ExchangeFault::Typ)?)?)
}
