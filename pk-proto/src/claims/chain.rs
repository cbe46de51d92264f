//! Sigchains: verification that a sequence of claims is the chain of one owner.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::claim::{Claim, ClaimFault};
use super::id::ClaimId;
use super::token::TokenSignature;
use crate::types::id::NodeId;
use crate::types::signature::{Key, SignatureFault};

/// Verifies the claims of one owner, one after the other in the order of the chain.
///
/// It stores one claim and two keys, regardless of the length of the chain. The accepted claims are
/// the verified prefix. The first refused claim ends the chain, and every later one is refused with
/// the same fault.
///
/// The rules: numbers and ids increase; the first claim names no predecessor, every other one names
/// the claim before it by id and digest, which proves that none is missing. Numbers may have gaps,
/// because a Polykey 1.x node uses up a number when an exchange ends before its claim is appended.
/// The first signature is made by an id that the owner's certificates prove, and no later key is
/// older; the owner is the issuer or the subject. A link of two nodes has exactly one more
/// signature, that of the other node; all signatures of other types are valid for the nodes that
/// they name.
#[derive(Debug)]
pub struct ChainVerifier {
    /// Every id of the owner, newest first.
    owner: Vec<NodeId>,
    /// Index of the id that signed the last claim.
    signer: Option<usize>,
    last: Option<Last>,
    fault: Option<ChainFault>,
    /// Keys of the last owner and counter-signer, because most chains have few.
    keys: [Option<(NodeId, Key)>; 2],
}

/// State of the last claim.
#[derive(Debug)]
struct Last {
    id: ClaimId,
    seq: u64,
    /// Preimage of the digest, whose algorithm the next claim chooses.
    preimage: Vec<u8>,
}

impl Last {
    fn of(claim: &Claim) -> Self {
        Self { id: claim.id(), seq: claim.seq(), preimage: claim.token().digest_preimage() }
    }
}

impl ChainVerifier {
    /// Creates a verifier that starts from the first claim. `owner` is every id that the owner's
    /// certificates prove, newest first ([`Connected::chain`](crate::Connected::chain)).
    pub fn new(owner: Vec<NodeId>) -> Self {
        Self { owner, signer: None, last: None, fault: None, keys: [None, None] }
    }

    /// Creates a verifier that starts after a claim that is known to be the owner's.
    pub fn after(owner: Vec<NodeId>, known: &Claim) -> Self {
        let signer = known.token().signatures().first().map(TokenSignature::signer);
        let signer = signer.and_then(|signer| owner.iter().position(|id| *id == signer));
        Self { owner, signer, last: Some(Last::of(known)), fault: None, keys: [None, None] }
    }

    /// Parses the next claim, which was sent with this id.
    ///
    /// # Errors
    /// [`Claim`](ChainFaultKind::Claim) or [`Id`](ChainFaultKind::Id); or the fault that ended the
    /// chain before.
    pub fn read(&mut self, id: Option<ClaimId>, json: &[u8]) -> Result<Claim, ChainFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        match Claim::parse(json) {
            Ok(claim) if id.is_none_or(|id| id == claim.id()) => Ok(claim),
            Ok(_) => Err(self.end(id, ChainFaultKind::Id)),
            Err(fault) => Err(self.end(id, ChainFaultKind::Claim(fault))),
        }
    }

    /// Verifies the next claim. Costs at most one signature verification per signature, at most
    /// [`MAX_SIGNATURES`](super::MAX_SIGNATURES).
    ///
    /// # Errors
    /// The first rule that it violates; or the fault that ended the chain before.
    pub fn verify(&mut self, claim: &Claim) -> Result<(), ChainFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.judge(claim).map_err(|kind| self.end(Some(claim.id()), kind))
    }

    /// Ends the chain here with a fault.
    pub fn end(&mut self, claim: Option<ClaimId>, kind: ChainFaultKind) -> ChainFault {
        *self.fault.get_or_insert(ChainFault { seq: self.least_seq(), claim, kind })
    }

    /// Returns id and number of the last accepted claim, or of the one after which it started.
    pub fn head(&self) -> Option<(ClaimId, u64)> {
        self.last.as_ref().map(|last| (last.id, last.seq))
    }

    /// Returns the smallest number that the next claim can have.
    fn least_seq(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.seq).saturating_add(1)
    }

    /// Returns the fault that ended the chain.
    pub fn fault(&self) -> Option<ChainFault> {
        self.fault
    }

    fn judge(&mut self, claim: &Claim) -> Result<(), ChainFaultKind> {
        self.place(claim)?;
        let signer = self.signatures(claim)?;
        self.signer = Some(signer);
        self.last = Some(Last::of(claim));
        Ok(())
    }

    /// Checks whether the claim follows the last one.
    fn place(&self, claim: &Claim) -> Result<(), ChainFaultKind> {
        let least = self.least_seq();
        if claim.seq() < least {
            return Err(ChainFaultKind::Fork(claim.seq()));
        }
        if self.last.as_ref().is_some_and(|last| claim.id() <= last.id) {
            return Err(ChainFaultKind::Order);
        }
        if claim.prev_claim_id() != self.last.as_ref().map(|last| last.id) {
            // The number shows whether the claim that it follows can be a missing one.
            let missing = claim.seq() > least && claim.prev_claim_id().is_some();
            return Err(if missing {
                ChainFaultKind::SeqGap(claim.seq())
            } else {
                ChainFaultKind::PrevClaimId
            });
        }
        let follows = match (claim.prev_digest(), &self.last) {
            (Some(digest), Some(last)) => digest.algorithm().digest(&last.preimage) == *digest,
            (None, None) => true,
            _ => false,
        };
        if follows { Ok(()) } else { Err(ChainFaultKind::PrevDigest) }
    }

    /// Checks whether the required nodes have signed. Returns the index of the owner's id that has.
    fn signatures(&mut self, claim: &Claim) -> Result<usize, ChainFaultKind> {
        let signatures = claim.token().signatures();
        let (first, others) = signatures.split_first().ok_or(ChainFaultKind::Signatures(0))?;
        let index = self
            .owner
            .iter()
            .position(|id| *id == first.signer())
            .ok_or(ChainFaultKind::OwnerKey)?;
        if self.signer.is_some_and(|last| index > last) {
            return Err(ChainFaultKind::KeyOrder);
        }
        match claim.link() {
            Some(link) => {
                let other =
                    match (self.owner.contains(&link.issuer), self.owner.contains(&link.subject)) {
                        (true, false) => link.subject,
                        (false, true) => link.issuer,
                        _ => return Err(ChainFaultKind::Parties),
                    };
                let [second] = others else {
                    return Err(ChainFaultKind::Signatures(signatures.len()));
                };
                if second.signer() != other {
                    return Err(ChainFaultKind::CounterSigner);
                }
            }
            None => {
                let names_us = |text: Option<&str>| {
                    text.and_then(|text| text.parse().ok())
                        .is_some_and(|id: NodeId| self.owner.contains(&id))
                };
                if !names_us(claim.issuer()) && !names_us(claim.subject()) {
                    return Err(ChainFaultKind::Parties);
                }
            }
        }
        let [owner, counter] = &mut self.keys;
        check(claim, first, owner).map_err(ChainFaultKind::OwnerSignature)?;
        for signature in others {
            check(claim, signature, counter).map_err(ChainFaultKind::CounterSignature)?;
        }
        Ok(index)
    }
}

/// Verifies a signature, with the cached key if it is the right one.
fn check(
    claim: &Claim,
    signature: &TokenSignature,
    key: &mut Option<(NodeId, Key)>,
) -> Result<(), SignatureFault> {
    let signer = signature.signer();
    let (_, key) = match key {
        Some(known) if known.0 == signer => known,
        slot => slot.insert((signer, Key::new(&signer)?)),
    };
    claim.token().check(signature, key)
}

/// Where a chain is invalid, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("claim {seq} of the chain: {kind}")]
pub struct ChainFault {
    /// Smallest number that the invalid claim can have: one more than that of the last verified
    /// claim, from 1.
    pub seq: u64,
    /// Id of the invalid claim, if it is known.
    pub claim: Option<ClaimId>,
    /// Kind of the fault.
    pub kind: ChainFaultKind,
}

/// Why a claim is invalid in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ChainFaultKind {
    /// It is not a claim.
    #[error("not a claim: {0}")]
    Claim(ClaimFault),
    /// It was sent with another id than its own.
    #[error("the claim was sent with an id that is not its own")]
    Id,
    /// Claims before it are missing: it has this number, and names a predecessor that was not read.
    #[error("claims before it are missing: it has number {0}")]
    SeqGap(u64),
    /// It has this number, which is not greater than that of the claim before it.
    #[error("the chain is forked: there is another claim with number {0}")]
    Fork(u64),
    /// Its id is not greater than that of the claim before it.
    #[error("its id is not greater than that of the claim before it")]
    Order,
    /// It names another predecessor than the claim before it.
    #[error("its predecessor is not the claim before it")]
    PrevClaimId,
    /// Its digest of the claim before it is wrong.
    #[error("its digest of the claim before it is wrong")]
    PrevDigest,
    /// Neither its issuer nor its subject is the owner of the chain; for a link, one of both must
    /// be.
    #[error("the owner of the chain is neither issuer nor subject")]
    Parties,
    /// It has this number of signatures, which its type does not allow.
    #[error("it has {0} signatures")]
    Signatures(usize),
    /// Its first signature is by a node that the owner's certificates do not prove.
    #[error("it is not signed by its owner")]
    OwnerKey,
    /// It is signed by a key that the owner had already replaced.
    #[error("it is signed by a replaced key")]
    KeyOrder,
    /// The owner's signature is invalid.
    #[error("the owner's signature is not valid: {0}")]
    OwnerSignature(SignatureFault),
    /// The second signature of a link is not by the other node.
    #[error("it is not signed by the other node of the link")]
    CounterSigner,
    /// A signature of another node is invalid.
    #[error("another node's signature is not valid: {0}")]
    CounterSignature(SignatureFault),
    /// The chain exceeds the limit.
    #[error("the chain continues beyond the limit")]
    TooLong,
}
