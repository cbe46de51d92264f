//! Keys, and the certificates that hosts present.

use std::collections::BTreeSet;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use pk_proto::cert::{self, CertId, CertificateFault, CertificateRequest, Verified};
use pk_proto::{Identity, NodeId, Signature, UnixMillis};

/// Ten years, so that certificates do not expire in a test.
const LIFETIME_SECONDS: u64 = 10 * 31_536_000;

/// A node's private key.
#[derive(Debug, Clone)]
pub struct Key(SigningKey);

impl Key {
    /// Returns the key with this seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// Returns the `index`-th key of a test.
    pub fn numbered(seed: u64, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"pk-sim key").update(&seed.to_be_bytes()).update(&index.to_be_bytes());
        Self::from_seed(*hasher.finalize().as_bytes())
    }

    /// Returns the node id of the key.
    pub fn id(&self) -> NodeId {
        NodeId::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

/// Returns the first identity of a node: a certificate that its key issues to itself, valid from
/// `unix` on.
pub fn genesis(key: &Key, unix: UnixMillis) -> Identity {
    Identity { chain: vec![certificate(key, key, unix)] }
}

/// Returns the identity after a renewal: a certificate of the new key issued by the old one, before
/// the old chain.
pub fn renew(identity: &Identity, old: &Key, new: &Key, unix: UnixMillis) -> Identity {
    let mut chain = vec![certificate(new, old, unix)];
    chain.extend(identity.chain.iter().cloned());
    Identity { chain }
}

/// Verifies the certificates of an acceptor.
pub(crate) fn judge_server(
    identity: &Identity,
    expect: &BTreeSet<NodeId>,
    unix: UnixMillis,
) -> Result<Verified, CertificateFault> {
    let expect: Vec<_> = expect.iter().copied().collect();
    cert::verify_server(&identity.chain, &expect, unix.as_secs())
}

/// Verifies the certificates of a dialer.
pub(crate) fn judge_client(
    identity: &Identity,
    unix: UnixMillis,
) -> Result<Verified, CertificateFault> {
    cert::verify_client(&identity.chain, unix.as_secs())
}

/// No certificate can be refused here: names and version are plain, and every world ends long
/// before 2049.
fn certificate(subject: &Key, issuer: &Key, unix: UnixMillis) -> Bytes {
    let mut tail = [0; 8];
    tail.copy_from_slice(&subject.id().as_bytes()[..8]);
    let request = CertificateRequest {
        serial: CertId::new(unix.0, 0, u64::from_be_bytes(tail)),
        subject: subject.id(),
        issuer: issuer.id(),
        not_before: unix.as_secs(),
        not_after: unix.as_secs() + LIFETIME_SECONDS,
        version: "1.15.1".to_owned(),
        subject_extra: Vec::new(),
        issuer_extra: Vec::new(),
    };
    request
        .sign(|message| subject.sign(message).0, |message| issuer.sign(message).0)
        .unwrap_or_default()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_proves_every_key_of_a_node() {
        let unix = UnixMillis(1_767_225_600_000);
        let (old, new, other) = (Key::numbered(1, 0), Key::numbered(1, 1), Key::numbered(1, 2));
        let identity = renew(&genesis(&old, unix), &old, &new, unix);
        let proven = judge_client(&identity, unix).unwrap();
        assert_eq!(
            (proven.leaf, proven.chain.as_slice(), proven.matched_id),
            (new.id(), &[new.id(), old.id()][..], None)
        );
        for id in [new.id(), old.id()] {
            let proven = judge_server(&identity, &BTreeSet::from([id, other.id()]), unix).unwrap();
            assert_eq!((proven.leaf, proven.matched_id), (new.id(), Some(id)));
        }
        assert!(judge_server(&identity, &BTreeSet::from([other.id()]), unix).is_err());
        let forged = renew(&genesis(&old, unix), &other, &new, unix);
        assert!(judge_client(&forged, unix).is_err());
    }
}
