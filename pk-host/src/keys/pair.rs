//! Private keys in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ed25519_dalek::{Signer, SigningKey};
use pk_proto::{NodeId, Signature};
use zeroize::Zeroizing;

/// The Ed25519 key pair of a node. Clones share one copy of the secret, which is overwritten when
/// the last one is dropped.
#[derive(Clone)]
pub struct KeyPair(Arc<SigningKey>);

impl KeyPair {
    /// Returns the key pair of a 32-byte seed, Polykey's form of a private key (docs/WIRE.md
    /// section 1).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Arc::new(SigningKey::from_bytes(seed)))
    }

    /// Generates a key pair.
    ///
    /// # Errors
    ///
    /// Reading system randomness failed.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())?;
        Ok(Self::from_seed(&seed))
    }

    /// Returns the node id: the public key.
    pub fn node_id(&self) -> NodeId {
        NodeId::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }

    /// Returns the seed, for storing it.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }
}

impl fmt::Debug for KeyPair {
    /// Prints the node id, not the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.node_id())
    }
}

/// The keys that a running node may sign with: its present one, and during a renewal the next one.
#[derive(Debug, Default)]
pub struct KeyRing(BTreeMap<NodeId, KeyPair>);

impl KeyRing {
    /// Adds a key.
    pub fn add(&mut self, key: KeyPair) {
        self.0.insert(key.node_id(), key);
    }

    /// Removes a key.
    pub fn remove(&mut self, id: &NodeId) {
        self.0.remove(id);
    }

    /// Returns the key of a node id.
    pub fn get(&self, id: &NodeId) -> Option<&KeyPair> {
        self.0.get(id)
    }

    /// Executes the effect `Sign`.
    ///
    /// # Errors
    ///
    /// The key is not on the ring.
    pub fn sign(&self, id: &NodeId, message: &[u8]) -> Result<Signature, String> {
        self.get(id).map(|key| key.sign(message)).ok_or_else(|| format!("no private key of {id}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_has_the_id_of_the_vectors_and_signs_for_it() {
        // docs/WIRE.md section 3.5.
        let key = KeyPair::from_seed(&[1; 32]);
        assert_eq!(
            key.node_id().to_string(),
            "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0"
        );
        let signature = key.sign(b"message");
        assert_eq!(pk_proto::verify(&key.node_id(), b"message", &signature.0), Ok(()));
        assert_eq!(*key.seed(), [1; 32]);
    }

    #[test]
    fn secret_is_not_printed() {
        let text = format!("{:?}", KeyPair::from_seed(&[1; 32]));
        assert_eq!(text, "KeyPair(vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0)");
    }

    #[test]
    fn only_keys_of_the_ring_sign() {
        let (known, unknown) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let mut ring = KeyRing::default();
        ring.add(known.clone());
        assert!(ring.sign(&known.node_id(), b"x").is_ok());
        let error = ring.sign(&unknown.node_id(), b"x").unwrap_err();
        assert!(error.contains(&unknown.node_id().to_string()), "{error}");
    }
}
