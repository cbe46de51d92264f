//! The states of a claim on its way to two signatures. Each is created only by verifying its
//! signatures.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::token::TokenFault;
use crate::types::id::NodeId;
use crate::types::signature;
use crate::types::signature::Signature;

/// A claim without signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsignedClaim {
    claim: Claim,
}

/// A claim with one signature: that of the owner of its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinglySigned {
    claim: Claim,
}

/// A claim with two signatures: that of the owner of its chain, then that of the other node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoublySigned {
    claim: Claim,
}

impl UnsignedClaim {
    /// For [`Claim::draft`], which creates it without signatures.
    pub(super) fn new(claim: Claim) -> Self {
        Self { claim }
    }

    /// Returns the claim.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Returns what the owner must sign.
    pub fn signing_input(&self, owner: &NodeId) -> Bytes {
        self.claim.token().signing_input(owner)
    }

    /// Adds the signature of the owner.
    ///
    /// # Errors
    /// Those of [`SignedToken::add_signature`](super::SignedToken::add_signature).
    pub fn sign(mut self, owner: NodeId, signature: Signature) -> Result<SinglySigned, TokenFault> {
        self.claim.token_mut().add_signature(owner, signature)?;
        Ok(SinglySigned { claim: self.claim })
    }
}

impl SinglySigned {
    /// Verifies a claim that only `owner` has signed. Costs one signature verification.
    ///
    /// # Errors
    /// Which signature is missing, additional or invalid.
    pub fn verify(claim: Claim, owner: &NodeId) -> Result<Self, SignedFault> {
        let [first] = claim.token().signatures() else {
            return Err(SignedFault::Count(claim.token().signatures().len()));
        };
        check(&claim, first, owner).map_err(SignedFault::Owner)?;
        Ok(Self { claim })
    }

    /// Returns the claim.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Returns the owner of its chain.
    pub fn owner(&self) -> NodeId {
        signer(&self.claim, 0)
    }

    /// Returns what the other node must sign.
    pub fn signing_input(&self, counter: &NodeId) -> Bytes {
        self.claim.token().signing_input(counter)
    }

    /// Adds the signature of the other node, which is the local node.
    ///
    /// # Errors
    /// Those of [`SignedToken::add_signature`](super::SignedToken::add_signature).
    pub fn counter_sign(
        mut self,
        counter: NodeId,
        signature: Signature,
    ) -> Result<DoublySigned, TokenFault> {
        self.claim.token_mut().add_signature(counter, signature)?;
        Ok(DoublySigned { claim: self.claim })
    }

    /// Verifies what the other node returned: the same claim with the same signature, followed by
    /// its own. Costs one signature verification.
    ///
    /// # Errors
    /// [`Changed`](SignedFault::Changed) if it is not the claim that was sent; otherwise which
    /// signature is missing, additional or invalid.
    pub fn completed_by(
        &self,
        returned: Claim,
        counter: &NodeId,
    ) -> Result<DoublySigned, SignedFault> {
        let (ours, theirs) = (self.claim.token(), returned.token());
        if ours.payload() != theirs.payload()
            || ours.signatures().first() != theirs.signatures().first()
        {
            return Err(SignedFault::Changed);
        }
        let [_, second] = theirs.signatures() else {
            return Err(SignedFault::Count(theirs.signatures().len()));
        };
        check(&returned, second, counter).map_err(SignedFault::Counter)?;
        Ok(DoublySigned { claim: returned })
    }

    /// Returns the claim, whose signature is no longer known to be valid.
    pub fn into_claim(self) -> Claim {
        self.claim
    }
}

impl DoublySigned {
    /// Verifies a claim of the chain of `owner`, signed by it and then by `counter`. Costs two
    /// signature verifications.
    ///
    /// # Errors
    /// Which signature is missing, additional or invalid.
    pub fn verify(claim: Claim, owner: &NodeId, counter: &NodeId) -> Result<Self, SignedFault> {
        let [first, second] = claim.token().signatures() else {
            return Err(SignedFault::Count(claim.token().signatures().len()));
        };
        check(&claim, first, owner).map_err(SignedFault::Owner)?;
        check(&claim, second, counter).map_err(SignedFault::Counter)?;
        Ok(Self { claim })
    }

    /// Returns the claim.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Returns the owner of its chain.
    pub fn owner(&self) -> NodeId {
        signer(&self.claim, 0)
    }

    /// Returns the other node.
    pub fn counter(&self) -> NodeId {
        signer(&self.claim, 1)
    }

    /// Returns the claim, whose signatures are no longer known to be valid.
    pub fn into_claim(self) -> Claim {
        self.claim
    }
}

/// Why a claim does not have the expected signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SignedFault {
    /// Another number of signatures than expected.
    #[error("the claim has {0} signatures")]
    Count(usize),
    /// The first signature is not that of the owner.
    #[error("the owner's signature: {0}")]
    Owner(TokenFault),
    /// The second signature is not that of the other node.
    #[error("the other node's signature: {0}")]
    Counter(TokenFault),
    /// The returned claim is not the one that was sent.
    #[error("the returned claim is not the one that was sent")]
    Changed,
}

fn check(
    claim: &Claim,
    signature: &super::TokenSignature,
    signer: &NodeId,
) -> Result<(), TokenFault> {
    if signature.signer() != *signer {
        return Err(TokenFault::NotSigned);
    }
    Ok(claim.token().check(signature, &signature::Key::new(signer)?)?)
}

/// Returns the signer of an existing signature.
fn signer(claim: &Claim, index: usize) -> NodeId {
    claim
        .token()
        .signatures()
        .get(index)
        .map_or(NodeId::from_bytes([0; 32]), super::TokenSignature::signer)
}
