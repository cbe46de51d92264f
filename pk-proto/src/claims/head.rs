//! The head of a chain.

use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::digest::{Digest, DigestAlgorithm};
use super::id::ClaimId;

/// The head of a chain: what the next claim refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    /// Newest claim.
    pub id: ClaimId,
    /// Number of the claim, from 1.
    pub seq: u64,
    /// Digest of the claim.
    pub digest: Digest,
}

impl ChainHead {
    /// Returns the head of a chain that ends with this claim, whose signatures are complete.
    pub fn of(claim: &Claim, algorithm: DigestAlgorithm) -> Self {
        Self { id: claim.id(), seq: claim.seq(), digest: claim.token().digest(algorithm) }
    }
}
