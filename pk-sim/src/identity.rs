//! Keys, and the certificates that hosts present to each other.

use std::collections::BTreeSet;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey, Verifier, VerifyingKey};
use pk_proto::{Identity, NodeId, Signature, UnixMillis};

/// A node's private key.
#[derive(Debug, Clone)]
pub struct Key(SigningKey);

impl Key {
    /// The key with this private half.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The `index`-th key of a test.
    pub fn numbered(seed: u64, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"pk-sim key").update(&seed.to_be_bytes()).update(&index.to_be_bytes());
        Self::from_seed(*hasher.finalize().as_bytes())
    }

    /// The node whose key this is.
    pub fn id(&self) -> NodeId {
        NodeId::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

/// The first identity of a node: a certificate that its key issues to itself.
pub fn genesis(key: &Key, unix: UnixMillis) -> Identity {
    Identity { chain: vec![certificate(key, key, unix)] }
}

/// The identity after a change of key: a certificate of the new key issued by the old one, before the old chain.
pub fn renew(identity: &Identity, old: &Key, new: &Key, unix: UnixMillis) -> Identity {
    let mut chain = vec![certificate(new, old, unix)];
    chain.extend(identity.chain.iter().cloned());
    Identity { chain }
}

/// What a peer's chain proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proven {
    pub(crate) leaf: NodeId,
    pub(crate) chain: Vec<NodeId>,
    pub(crate) asked: Option<NodeId>,
}

/// Judges what the peer presents that was dialled.
pub(crate) fn judge_server(
    identity: &Identity,
    expect: &BTreeSet<NodeId>,
    unix: UnixMillis,
) -> Result<Proven, String> {
    let mut proven = judge_client(identity, unix)?;
    proven.asked = proven.chain.iter().copied().find(|id| expect.contains(id));
    if proven.asked.is_none() {
        return Err("no certificate is of a node that was asked for".to_owned());
    }
    Ok(proven)
}

/// Judges what the peer presents that dialled.
pub(crate) fn judge_client(identity: &Identity, unix: UnixMillis) -> Result<Proven, String> {
    let _ = unix;
    let mut chain = Vec::new();
    let mut issuer_of_last: Option<NodeId> = None;
    for certificate in &identity.chain {
        let (subject, issuer) = parse(certificate).ok_or("malformed certificate")?;
        if issuer_of_last.is_some_and(|issuer| issuer != subject) {
            return Err("a certificate is not issued by the next".to_owned());
        }
        issuer_of_last = Some(issuer);
        chain.push(subject);
    }
    let leaf = *chain.first().ok_or("no certificate")?;
    Ok(Proven { leaf, chain, asked: None })
}

// A stand-in until pk_proto::cert is merged: subject, issuer, the issuer's signature of both.

fn certificate(subject: &Key, issuer: &Key, unix: UnixMillis) -> Bytes {
    let _ = unix;
    let mut bytes = [*subject.id().as_bytes(), *issuer.id().as_bytes()].concat();
    let signature = issuer.sign(&bytes);
    bytes.extend_from_slice(&signature.0);
    bytes.into()
}

fn parse(certificate: &[u8]) -> Option<(NodeId, NodeId)> {
    let (ids, signature) = certificate.split_at_checked(64)?;
    let (subject, issuer) = ids.split_at(32);
    let key = VerifyingKey::from_bytes(issuer.try_into().ok()?).ok()?;
    key.verify(ids, &ed25519_dalek::Signature::from_slice(signature).ok()?).ok()?;
    Some((NodeId::from_bytes(subject.try_into().ok()?), NodeId::from_bytes(issuer.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_proves_every_key_a_node_had() {
        let unix = UnixMillis(1_767_225_600_000);
        let (old, new, other) = (Key::numbered(1, 0), Key::numbered(1, 1), Key::numbered(1, 2));
        let identity = renew(&genesis(&old, unix), &old, &new, unix);
        let proven = judge_client(&identity, unix).unwrap();
        assert_eq!((proven.leaf, proven.chain.as_slice(), proven.asked), (new.id(), &[new.id(), old.id()][..], None));
        for id in [new.id(), old.id()] {
            let proven = judge_server(&identity, &BTreeSet::from([id, other.id()]), unix).unwrap();
            assert_eq!((proven.leaf, proven.asked), (new.id(), Some(id)));
        }
        assert!(judge_server(&identity, &BTreeSet::from([other.id()]), unix).is_err());
        let forged = renew(&genesis(&old, unix), &other, &new, unix);
        assert!(judge_client(&forged, unix).is_err());
    }
}
