//! The secret from which the keys of the QUIC endpoint are derived.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::keys::pair::KeyPair;

/// Contexts of the derivations. Each context gives another key, so that no key reveals another.
const FROM_KEY: &str = "pk-driver 2026 transport secret of a node key";
const RESET: &str = "pk-driver 2026 QUIC stateless reset key";
const CONNECTION_IDS: &str = "pk-driver 2026 QUIC connection id key";
const TOKENS: &str = "pk-driver 2026 QUIC address validation token key";

/// 32 secret bytes that survive restarts of a node.
///
/// A node that restarts at its address receives packets of connections that it no longer knows.
/// With the same secret it recognizes their connection ids as its own and answers with a stateless
/// reset (RFC 9000 section 10.3) that the peer accepts. The peer then notices the restart within a
/// round trip and not at its idle timeout.
///
/// The secret is never sent. Its holder can end connections whose ids are known to it. Clones share
/// one copy, which is overwritten when the last one is dropped.
#[derive(Clone)]
pub struct TransportSecret(Arc<Zeroizing<[u8; 32]>>);

impl TransportSecret {
    /// Returns the secret with these bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(Arc::new(Zeroizing::new(*bytes)))
    }

    /// Generates a secret.
    ///
    /// # Errors
    ///
    /// Reading system randomness failed.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut())?;
        Ok(Self(Arc::new(bytes)))
    }

    /// Returns the secret of a node that stores none. It is derived from the private key and
    /// therefore changes with a key renewal.
    pub fn of_key(key: &KeyPair) -> Self {
        Self(Arc::new(Zeroizing::new(blake3::derive_key(FROM_KEY, key.seed().as_ref()))))
    }

    /// Returns the bytes, for storing them.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        (*self.0).clone()
    }

    /// Returns the key of the tokens in stateless resets.
    pub fn reset_key(&self) -> Zeroizing<[u8; 32]> {
        self.derive(RESET)
    }

    /// Returns the key by which the endpoint recognizes its connection ids.
    pub fn connection_id_key(&self) -> Zeroizing<[u8; 32]> {
        self.derive(CONNECTION_IDS)
    }

    /// Returns the key of the tokens by which the endpoint recognizes validated addresses.
    pub fn token_key(&self) -> Zeroizing<[u8; 32]> {
        self.derive(TOKENS)
    }

    fn derive(&self, context: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(context, self.0.as_ref().as_ref()))
    }
}

impl fmt::Debug for TransportSecret {
    /// Does not print the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransportSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_keys_are_distinct_and_deterministic() {
        let secret = TransportSecret::from_bytes(&[7; 32]);
        let keys =
            [secret.to_bytes(), secret.reset_key(), secret.connection_id_key(), secret.token_key()];
        let different: std::collections::BTreeSet<_> = keys.iter().map(|key| **key).collect();
        assert_eq!(different.len(), keys.len());
        let again = TransportSecret::from_bytes(&[7; 32]);
        assert_eq!(
            (again.reset_key(), again.connection_id_key()),
            (keys[1].clone(), keys[2].clone())
        );
        let of_key = TransportSecret::of_key(&KeyPair::from_seed(&[7; 32]));
        assert_ne!(
            of_key.to_bytes(),
            secret.to_bytes(),
            "a private key is never the secret itself"
        );
    }

    #[test]
    fn secret_is_not_printed() {
        assert_eq!(format!("{:?}", TransportSecret::from_bytes(&[7; 32])), "TransportSecret(..)");
    }
}
