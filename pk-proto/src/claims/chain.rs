//! Sigchains: what makes a row of claims the chain of one owner.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::claim::{Claim, ClaimFault};
use super::digest::{Digest, DigestAlgorithm};
use super::id::ClaimId;
use super::token::TokenSignature;
use crate::id::NodeId;
use crate::signature::{Key, SignatureFault};

/// The end of a chain: what its next claim has to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    /// The newest claim.
    pub id: ClaimId,
    /// Its number, from 1.
    pub seq: u64,
    /// Its digest.
    pub digest: Digest,
}

impl ChainHead {
    /// The chain that ends with this claim, whose signatures are complete.
    pub fn of(claim: &Claim, algorithm: DigestAlgorithm) -> Self {
        Self { id: claim.id(), seq: claim.seq(), digest: claim.token().digest(algorithm) }
    }
}

/// Judges the claims of one owner, one after the other in the order of the chain.
///
/// It holds one claim and two keys, however long the chain is. The claims that it took are the verified prefix; the first one
/// that it refuses ends the chain, and every one after that is refused with the same fault.
///
/// The rules: the numbers count on from 1 and ids go up; each claim names the one before it by id and digest; the first
/// signature is made by an id that the owner's certificates prove, and no key that follows is older; the owner is one of
/// issuer and subject. A link of two nodes has exactly one more signature, that of the other node; all signatures of other
/// types are valid for the nodes that they name.
#[derive(Debug)]
pub struct ChainVerifier {
    /// Every id of the owner, newest first.
    owner: Vec<NodeId>,
    /// Which of them signed the last claim.
    signer: Option<usize>,
    last: Option<Last>,
    fault: Option<ChainFault>,
    /// The keys of the last owner and counter-signer: most chains have few.
    keys: [Option<(NodeId, Key)>; 2],
}

/// What has to be known of the last claim.
#[derive(Debug)]
struct Last {
    id: ClaimId,
    seq: u64,
    /// Of the digest, whose function the next claim chooses.
    preimage: Vec<u8>,
}

impl Last {
    fn of(claim: &Claim) -> Self {
        Self { id: claim.id(), seq: claim.seq(), preimage: claim.token().digest_preimage() }
    }
}

impl ChainVerifier {
    /// From the first claim on. `owner` is every id that the owner's certificates prove, newest first
    /// ([`Connected::chain`](crate::Connected::chain)).
    pub fn new(owner: Vec<NodeId>) -> Self {
        Self { owner, signer: None, last: None, fault: None, keys: [None, None] }
    }

    /// From behind a claim that is known to be the owner's.
    pub fn after(owner: Vec<NodeId>, known: &Claim) -> Self {
        let signer = known.token().signatures().first().map(TokenSignature::signer);
        let signer = signer.and_then(|signer| owner.iter().position(|id| *id == signer));
        Self { owner, signer, last: Some(Last::of(known)), fault: None, keys: [None, None] }
    }

    /// Reads the next claim, which is said to have this id.
    ///
    /// # Errors
    /// [`Claim`](ChainFaultKind::Claim) or [`Id`](ChainFaultKind::Id); or the fault that ended the chain before.
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

    /// Judges the next claim. Costs at most as many signature checks as it has signatures, at most
    /// [`MAX_SIGNATURES`](super::MAX_SIGNATURES).
    ///
    /// # Errors
    /// The first rule that it breaks; or the fault that ended the chain before.
    pub fn verify(&mut self, claim: &Claim) -> Result<(), ChainFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.judge(claim).map_err(|kind| self.end(Some(claim.id()), kind))
    }

    /// Ends the chain where it is.
    pub fn end(&mut self, claim: Option<ClaimId>, kind: ChainFaultKind) -> ChainFault {
        *self.fault.get_or_insert(ChainFault {
            seq: self.last.as_ref().map_or(0, |last| last.seq).saturating_add(1),
            claim,
            kind,
        })
    }

    /// The last claim that was taken, or after which it started: id and number.
    pub fn head(&self) -> Option<(ClaimId, u64)> {
        self.last.as_ref().map(|last| (last.id, last.seq))
    }

    /// What ended the chain.
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

    /// Whether it follows the last one.
    fn place(&self, claim: &Claim) -> Result<(), ChainFaultKind> {
        let expected = self.last.as_ref().map_or(0, |last| last.seq).saturating_add(1);
        if claim.seq() > expected {
            return Err(ChainFaultKind::SeqGap(claim.seq()));
        }
        if claim.seq() < expected {
            return Err(ChainFaultKind::Fork(claim.seq()));
        }
        if self.last.as_ref().is_some_and(|last| claim.id() <= last.id) {
            return Err(ChainFaultKind::Order);
        }
        if claim.prev_claim_id() != self.last.as_ref().map(|last| last.id) {
            return Err(ChainFaultKind::PrevClaimId);
        }
        let follows = match (claim.prev_digest(), &self.last) {
            (Some(digest), Some(last)) => digest.algorithm().digest(&last.preimage) == *digest,
            (None, None) => true,
            _ => false,
        };
        if follows { Ok(()) } else { Err(ChainFaultKind::PrevDigest) }
    }

    /// Whether those have signed who must; which of the owner's ids has.
    fn signatures(&mut self, claim: &Claim) -> Result<usize, ChainFaultKind> {
        let signatures = claim.token().signatures();
        let (first, others) = signatures.split_first().ok_or(ChainFaultKind::Signatures(0))?;
        let index = self.owner.iter().position(|id| *id == first.signer()).ok_or(ChainFaultKind::OwnerKey)?;
        if self.signer.is_some_and(|last| index > last) {
            return Err(ChainFaultKind::KeyOrder);
        }
        match claim.link() {
            Some(link) => {
                let other = match (self.owner.contains(&link.issuer), self.owner.contains(&link.subject)) {
                    (true, false) => link.subject,
                    (false, true) => link.issuer,
                    _ => return Err(ChainFaultKind::Parties),
                };
                let [second] = others else { return Err(ChainFaultKind::Signatures(signatures.len())) };
                if second.signer() != other {
                    return Err(ChainFaultKind::CounterSigner);
                }
            }
            None => {
                let names_us = |text: Option<&str>| {
                    text.and_then(|text| text.parse().ok()).is_some_and(|id: NodeId| self.owner.contains(&id))
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

/// Checks a signature, with the key that is at hand if it is the right one.
fn check(claim: &Claim, signature: &TokenSignature, key: &mut Option<(NodeId, Key)>) -> Result<(), SignatureFault> {
    let signer = signature.signer();
    let (_, key) = match key {
        Some(known) if known.0 == signer => known,
        slot => slot.insert((signer, Key::new(&signer)?)),
    };
    claim.token().check(signature, key)
}

/// Where a chain ends that does not end well, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("claim {seq} of the chain: {kind}")]
pub struct ChainFault {
    /// The number that the claim at fault should have; those before it are verified.
    pub seq: u64,
    /// Its id, as far as one is known.
    pub claim: Option<ClaimId>,
    /// What is wrong with it.
    pub kind: ChainFaultKind,
}

/// What is wrong with a claim in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ChainFaultKind {
    /// It is no claim.
    #[error("not a claim: {0}")]
    Claim(ClaimFault),
    /// It is told under another id than it has.
    #[error("it is told under an id that is not its own")]
    Id,
    /// Claims are missing before it: it has this number.
    #[error("claims are missing before it: it is number {0}")]
    SeqGap(u64),
    /// There is another claim with its number, which is this.
    #[error("the chain is forked: there is another number {0}")]
    Fork(u64),
    /// Its id is not above that of the claim before it.
    #[error("its id does not come after the one before")]
    Order,
    /// It follows another claim than the one before it.
    #[error("it follows another claim than the one before it")]
    PrevClaimId,
    /// The claim before it is not the one that it digests.
    #[error("its digest of the claim before is wrong")]
    PrevDigest,
    /// Neither issuer nor subject is the owner of the chain, or of a link both are.
    #[error("the owner of the chain is not one of issuer and subject")]
    Parties,
    /// It has this many signatures, which is not how many its type has.
    #[error("it has {0} signatures")]
    Signatures(usize),
    /// Its first signature is by a node that the owner's certificates do not prove.
    #[error("it is not signed by its owner")]
    OwnerKey,
    /// It is signed by a key that the owner had replaced before.
    #[error("it is signed by a key that had been replaced")]
    KeyOrder,
    /// The owner's signature is not valid.
    #[error("the owner's signature is not valid: {0}")]
    OwnerSignature(SignatureFault),
    /// The second signature of a link is not by the other node.
    #[error("it is not signed by the other node that it names")]
    CounterSigner,
    /// A signature of another node is not valid.
    #[error("another node's signature is not valid: {0}")]
    CounterSignature(SignatureFault),
    /// The chain is longer than what is taken of one.
    #[error("the chain goes on beyond the limit")]
    TooLong,
}
