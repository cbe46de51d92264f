//! A chain of claims with two signatures each, and the bare checks in it.

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use pk_proto::claims::{
    ChainHead, ChainVerifier, Claim, ClaimContent, ClaimId, ClaimLinkNode, DigestAlgorithm,
};
use pk_proto::{NodeId, Signature, UnixMillis};

/// One signature check: key, message, signature.
type Check = ([u8; 32], Vec<u8>, ed25519_dalek::Signature);

/// A valid chain. Each claim links another node, so that only the owner's key occurs twice.
pub struct Chain {
    owner: NodeId,
    tokens: Vec<Vec<u8>>,
    checks: Vec<Check>,
}

impl Chain {
    pub fn new(claims: u64) -> Self {
        let owner = key(u64::MAX);
        let mut chain = Self { owner: id(&owner), tokens: Vec::new(), checks: Vec::new() };
        let mut last: Option<Claim> = None;
        for number in 0..claims {
            let other = key(number);
            let link = ClaimLinkNode { issuer: id(&owner), subject: id(&other) };
            let unix = UnixMillis(1_700_000_000_000 + number);
            let claim_id = ClaimId::next(&id(&owner), unix, last.as_ref().map(Claim::id)).unwrap();
            let head = last.as_ref().map(|last| ChainHead::of(last, DigestAlgorithm::default()));
            let draft =
                Claim::draft(&ClaimContent::link(&link), claim_id, unix, head.as_ref()).unwrap();
            let signature = sign(&owner, &draft.signing_input(&id(&owner)));
            let half = draft.sign(id(&owner), signature).unwrap();
            let signature = sign(&other, &half.signing_input(&id(&other)));
            let full = half.counter_sign(id(&other), signature).unwrap();
            let token = full.claim().token();
            for (key, signature) in [&owner, &other].into_iter().zip(token.signatures()) {
                chain.checks.push((
                    key.verifying_key().to_bytes(),
                    token.signing_input(&id(key)).to_vec(),
                    ed25519_dalek::Signature::from_bytes(&signature.signature().0),
                ));
            }
            chain.tokens.push(token.to_json().into_bytes());
            last = Some(full.into_claim());
        }
        chain
    }

    /// Parses each claim and verifies it in its chain: form, order, digest of the claim before,
    /// both signatures.
    pub fn verify(&self) {
        let mut verifier = ChainVerifier::new(vec![self.owner]);
        for token in &self.tokens {
            let claim = verifier.read(None, token).unwrap();
            verifier.verify(&claim).unwrap();
        }
    }

    /// The signature checks alone, with keys from bytes.
    pub fn verify_bare(&self) {
        for (key, message, signature) in &self.checks {
            VerifyingKey::from_bytes(key).unwrap().verify_strict(message, signature).unwrap();
        }
    }
}

fn key(number: u64) -> SigningKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

fn id(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

fn sign(key: &SigningKey, bytes: &[u8]) -> Signature {
    Signature(key.sign(bytes).to_bytes())
}
