//! The states of a claim on its way to two signatures. Each is made only by verifying what it promises.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::token::TokenFault;
use crate::id::NodeId;
use crate::io::Signature;
use crate::signature;

/// A claim that nobody has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsignedClaim {
    claim: Claim,
}

/// A claim with one signature: that of the owner of the chain it is to be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalfSigned {
    claim: Claim,
}

/// A claim with two signatures: that of the owner of the chain, then that of the other node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullySigned {
    claim: Claim,
}

impl UnsignedClaim {
    /// For [`Claim::draft`], which makes it without signatures.
    pub(super) fn new(claim: Claim) -> Self {
        Self { claim }
    }

    /// What it says.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// What the owner has to sign.
    pub fn signing_input(&self, owner: &NodeId) -> Bytes {
        self.claim.token().signing_input(owner)
    }

    /// With the signature of the owner.
    ///
    /// # Errors
    /// As for [`Token::add_signature`](super::Token::add_signature).
    pub fn sign(mut self, owner: NodeId, signature: Signature) -> Result<HalfSigned, TokenFault> {
        self.claim.token_mut().add_signature(owner, signature)?;
        Ok(HalfSigned { claim: self.claim })
    }
}

impl HalfSigned {
    /// Verifies a claim that `owner` alone is to have signed. Costs one signature check.
    ///
    /// # Errors
    /// Which signature is missing, too many or wrong.
    pub fn verify(claim: Claim, owner: &NodeId) -> Result<Self, SignedFault> {
        let [first] = claim.token().signatures() else {
            return Err(SignedFault::Count(claim.token().signatures().len()));
        };
        check(&claim, first, owner).map_err(SignedFault::Owner)?;
        Ok(Self { claim })
    }

    /// What it says.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Whose chain it is for.
    pub fn owner(&self) -> NodeId {
        signer(&self.claim, 0)
    }

    /// What the other node has to sign.
    pub fn signing_input(&self, counter: &NodeId) -> Bytes {
        self.claim.token().signing_input(counter)
    }

    /// With the signature of the other node, who is ourselves.
    ///
    /// # Errors
    /// As for [`Token::add_signature`](super::Token::add_signature).
    pub fn counter_sign(mut self, counter: NodeId, signature: Signature) -> Result<FullySigned, TokenFault> {
        self.claim.token_mut().add_signature(counter, signature)?;
        Ok(FullySigned { claim: self.claim })
    }

    /// What the other node made of it: the very claim with the very signature, and its own behind. Costs one signature check.
    ///
    /// # Errors
    /// [`Changed`](SignedFault::Changed) if it is not the claim that was sent; otherwise which signature is missing, too
    /// many or wrong.
    pub fn completed_by(&self, returned: Claim, counter: &NodeId) -> Result<FullySigned, SignedFault> {
        let (ours, theirs) = (self.claim.token(), returned.token());
        if ours.payload() != theirs.payload() || ours.signatures().first() != theirs.signatures().first() {
            return Err(SignedFault::Changed);
        }
        let [_, second] = theirs.signatures() else { return Err(SignedFault::Count(theirs.signatures().len())) };
        check(&returned, second, counter).map_err(SignedFault::Counter)?;
        Ok(FullySigned { claim: returned })
    }

    /// The claim, whose signature is no longer known to be valid.
    pub fn into_claim(self) -> Claim {
        self.claim
    }
}

impl FullySigned {
    /// Verifies a claim of the chain of `owner`, signed by it and then by `counter`. Costs two signature checks.
    ///
    /// # Errors
    /// Which signature is missing, too many or wrong.
    pub fn verify(claim: Claim, owner: &NodeId, counter: &NodeId) -> Result<Self, SignedFault> {
        let [first, second] = claim.token().signatures() else {
            return Err(SignedFault::Count(claim.token().signatures().len()));
        };
        check(&claim, first, owner).map_err(SignedFault::Owner)?;
        check(&claim, second, counter).map_err(SignedFault::Counter)?;
        Ok(Self { claim })
    }

    /// What it says.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Whose chain it is for.
    pub fn owner(&self) -> NodeId {
        signer(&self.claim, 0)
    }

    /// The other node.
    pub fn counter(&self) -> NodeId {
        signer(&self.claim, 1)
    }

    /// The claim, whose signatures are no longer known to be valid.
    pub fn into_claim(self) -> Claim {
        self.claim
    }
}

/// Why a claim is not signed as it should be.
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
    /// What came back is not what was sent.
    #[error("the claim that came back is not the one that was sent")]
    Changed,
}

fn check(claim: &Claim, signature: &super::TokenSignature, signer: &NodeId) -> Result<(), TokenFault> {
    if signature.signer() != *signer {
        return Err(TokenFault::NotSigned);
    }
    Ok(claim.token().check(signature, &signature::Key::new(signer)?)?)
}

/// The signer of a signature that is known to be there.
fn signer(claim: &Claim, index: usize) -> NodeId {
    claim.token().signatures().get(index).map_or(NodeId::from_bytes([0; 32]), super::TokenSignature::signer)
}
