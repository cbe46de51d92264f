//! The root key of a node: a signer with the settings of its use.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pk_proto::{NodeId, verify};

use crate::keys::signer::{Signer, SignerError};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The root key of a node: the key at the end of its certificate chain, which a [`Signer`] holds.
/// Cheap to clone; clones use one signer.
#[derive(Clone)]
#[non_exhaustive]
pub struct RootKey {
    /// Holder of the key.
    pub signer: Arc<dyn Signer>,
    /// Time limit of one signature. Issuing a certificate takes one signature, and three if the
    /// root certificate is issued as well. Default 10 s, range 10 ms–10 min.
    pub timeout: Duration,
    /// Validity of the root certificate, in whole seconds; it is reissued together with a
    /// certificate of the hot key if two thirds of its validity are over, and when it has expired.
    /// Until then peers that dial the id of the root key refuse the chain, so it should be longer
    /// than the validity of the hot key's certificate. Default 3650 days, range 3 s–36,500 days.
    pub lifetime: Duration,
}

/// A setting of a [`RootKey`] outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} of the root key is {value:?}; it must be {min:?} to {max:?}")]
pub struct RootKeyError {
    /// Field of [`RootKey`].
    pub name: &'static str,
    /// Value of the setting.
    pub value: Duration,
    /// Smallest valid value.
    pub min: Duration,
    /// Largest valid value.
    pub max: Duration,
}

impl RootKey {
    /// Returns the root key of a signer, with default settings.
    pub fn new(signer: impl Signer + 'static) -> Self {
        Self { signer: Arc::new(signer), timeout: Duration::from_secs(10), lifetime: 3650 * DAY }
    }

    /// Returns the node id of the key.
    pub fn node_id(&self) -> NodeId {
        self.signer.node_id()
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    ///
    /// Names the first setting outside its range.
    pub fn validate(&self) -> Result<(), RootKeyError> {
        let (ms, second) = (Duration::from_millis(1), Duration::from_secs(1));
        for (name, value, min, max) in [
            ("timeout", self.timeout, 10 * ms, 600 * second),
            ("lifetime", self.lifetime, 3 * second, 36_500 * DAY),
        ] {
            if !(min..=max).contains(&value) {
                return Err(RootKeyError { name, value, min, max });
            }
        }
        Ok(())
    }

    /// Signs a message and verifies the signature. Blocks for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`SignerError`].
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignerError> {
        let signature = self.signer.sign(message).wait(self.timeout)?;
        let key = self.node_id();
        verify(&key, message, &signature.0).map_err(|fault| SignerError::Wrong { key, fault })?;
        Ok(signature.0)
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootKey")
            .field("id", &self.node_id())
            .field("timeout", &self.timeout)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::pair::KeyPair;

    #[test]
    fn settings_have_ranges() {
        let mut root = RootKey::new(KeyPair::from_seed(&[1; 32]));
        assert_eq!(root.validate(), Ok(()));
        root.timeout = Duration::from_millis(9);
        let error = root.validate().unwrap_err().to_string();
        assert_eq!(error, "timeout of the root key is 9ms; it must be 10ms to 600s");
        root.timeout = Duration::from_secs(600);
        root.lifetime = Duration::from_secs(2);
        assert_eq!(root.validate().unwrap_err().name, "lifetime");
    }
}
