//! Chains of claims, valid and invalid ones.

use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::{EdwardsPoint, Scalar};
use data_encoding::BASE64URL_NOPAD;
use pk_proto::claims::{
    ChainHead, Claim, ClaimContent, ClaimId, ClaimLinkNode, DigestAlgorithm, SignedToken,
};
use pk_proto::{NodeId, UnixMillis};
use pk_sim::Key;
use sha2::{Digest, Sha512};

/// Time of the first claim of a chain, a second before the next.
pub const EPOCH: UnixMillis = UnixMillis(1_767_225_600_000);

/// A link that `owner` starts with `other`, in its own chain after `prev`.
pub fn link(owner: &Key, other: &Key, prev: Option<&Claim>) -> Claim {
    Draft::link(owner.id(), other.id(), prev).signed(&[owner, other])
}

/// A chain of links of `owner` with each of the others.
pub fn chain<'a>(owner: &Key, others: impl IntoIterator<Item = &'a Key>) -> Vec<Claim> {
    let mut claims: Vec<Claim> = Vec::new();
    for other in others {
        claims.push(link(owner, other, claims.last()));
    }
    claims
}

/// A claim before it is signed, to be changed.
pub struct Draft {
    pub content: ClaimContent,
    pub id: ClaimId,
    pub unix: UnixMillis,
    pub prev: Option<ChainHead>,
}

impl Draft {
    pub fn link(owner: NodeId, other: NodeId, prev: Option<&Claim>) -> Self {
        Self::new(
            &owner,
            ClaimContent::link(&ClaimLinkNode { issuer: owner, subject: other }),
            prev,
        )
    }

    pub fn new(owner: &NodeId, content: ClaimContent, prev: Option<&Claim>) -> Self {
        let unix = UnixMillis(EPOCH.0 + 1000 * prev.map_or(0, Claim::seq));
        let id = ClaimId::next(owner, unix, prev.map(Claim::id)).unwrap();
        Self {
            content,
            id,
            unix,
            prev: prev.map(|prev| ChainHead::of(prev, DigestAlgorithm::Blake3)),
        }
    }

    /// Signed by these in turn.
    pub fn signed(&self, signers: &[&Key]) -> Claim {
        let token = signers.iter().fold(self.token(), |mut token, key| {
            let signature = key.sign(&token.signing_input(&key.id()));
            token.add_signature(key.id(), signature).unwrap();
            token
        });
        Claim::try_from(token).unwrap()
    }

    /// With signatures that were not checked, each by the issuer that it names.
    pub fn forged(&self, signatures: &[(NodeId, [u8; 64])]) -> Claim {
        let parts = signatures.iter().map(|(signer, signature)| {
            let header = format!("{{\"alg\":\"EdDSA\",\"kid\":\"{signer}\"}}");
            let protected = BASE64URL_NOPAD.encode(header.as_bytes());
            format!(
                "{{\"protected\":\"{protected}\",\"signature\":\"{}\"}}",
                BASE64URL_NOPAD.encode(signature)
            )
        });
        let payload = BASE64URL_NOPAD.encode(self.token().payload().as_bytes());
        let parts: Vec<String> = parts.collect();
        Claim::parse(
            format!("{{\"payload\":\"{payload}\",\"signatures\":[{}]}}", parts.join(","))
                .as_bytes(),
        )
        .unwrap()
    }

    /// The signing input of a node.
    pub fn input(&self, signer: &NodeId) -> Vec<u8> {
        self.token().signing_input(signer).to_vec()
    }

    fn token(&self) -> SignedToken {
        let draft = Claim::draft(&self.content, self.id, self.unix, self.prev.as_ref()).unwrap();
        draft.claim().token().clone()
    }
}

// -- keys and signatures that must be refused

/// The point of order two: any node can sign for it.
pub const WEAK: NodeId = NodeId::from_bytes(bytes(0xec, 0xff, 0x7f));
/// A second encoding of the same point.
pub const NON_CANONICAL: NodeId = NodeId::from_bytes(bytes(0xec, 0xff, 0xff));

const fn bytes(low: u8, middle: u8, high: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = low;
    bytes[31] = high;
    bytes
}

/// A key, and a signature of it that holds only if the cofactor is multiplied in: a point of small
/// order is added to its R, the `torsion`-th of eight, of which the first is zero.
pub fn torsion_in_r(
    number: u64,
    torsion: usize,
    input: impl Fn(&NodeId) -> Vec<u8>,
) -> (NodeId, [u8; 64]) {
    let (secret, nonce) = secrets(number);
    let id = node(ED25519_BASEPOINT_POINT * secret);
    (id, sign(secret, nonce, EIGHT_TORSION[torsion], &id, &input(&id)).0)
}

/// A key with a torsion component, and a signature by it that is valid only with the cofactor.
pub fn mixed_key(number: u64, input: impl Fn(&NodeId) -> Vec<u8>) -> (NodeId, [u8; 64]) {
    let (secret, mut nonce) = secrets(number);
    let id = node(ED25519_BASEPOINT_POINT * secret + EIGHT_TORSION[1]);
    let message = input(&id);
    loop {
        let (signature, hash) = sign(secret, nonce, EIGHT_TORSION[0], &id, &message);
        if hash.as_bytes()[0] % 8 != 0 {
            return (id, signature);
        }
        nonce += Scalar::ONE;
    }
}

fn secrets(number: u64) -> (Scalar, Scalar) {
    (Scalar::from(1_000_003 * (number + 1)), Scalar::from(7_777_777 * (number + 1)))
}

fn node(point: EdwardsPoint) -> NodeId {
    NodeId::from_bytes(point.compress().to_bytes())
}

/// A signature with a point of small order added to its R, and its hash.
fn sign(
    secret: Scalar,
    nonce: Scalar,
    torsion: EdwardsPoint,
    id: &NodeId,
    message: &[u8],
) -> ([u8; 64], Scalar) {
    let r = (ED25519_BASEPOINT_POINT * nonce + torsion).compress().to_bytes();
    let hash =
        Sha512::new().chain_update(r).chain_update(id.as_bytes()).chain_update(message).finalize();
    let hash = Scalar::from_bytes_mod_order_wide(&hash.into());
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&r);
    signature[32..].copy_from_slice((nonce + hash * secret).as_bytes());
    (signature, hash)
}
