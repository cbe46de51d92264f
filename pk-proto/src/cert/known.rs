//! Signatures of certificates that were verified before.

use alloc::vec;
use alloc::vec::Vec;

use super::certificate::Certificate;
use super::fault::CertificateFault;

/// Memory of valid signatures: verifying the same certificates again, for example those of a peer
/// that connects again, costs no curve arithmetic.
///
/// Whether a signature is valid depends only on the bytes of the certificates, so that the memory
/// changes the cost of a verification and never its result. It is a table of a fixed size with a
/// digest (BLAKE3) of a certificate, or of a certificate and its issuer, in each slot. A new one
/// replaces the one in its slot.
#[derive(Debug, Clone, Default)]
pub struct KnownSignatures {
    slots: Vec<[u8; 32]>,
}

/// Content of a slot that is not used.
const UNUSED: [u8; 32] = [0; 32];

impl KnownSignatures {
    /// Creates a memory of at most `slots` signatures, of 32 bytes each. 0 remembers nothing.
    pub fn new(slots: usize) -> Self {
        Self { slots: vec![UNUSED; slots] }
    }

    /// Verifies the signature of a certificate by its own key.
    pub(super) fn verify_own(&mut self, certificate: &Certificate) -> Result<(), CertificateFault> {
        self.remember(&[certificate.as_der()], || certificate.verify_node_signature())
    }

    /// Verifies that `issuer` issued `certificate`.
    pub(super) fn verify_link(
        &mut self,
        certificate: &Certificate,
        issuer: &Certificate,
    ) -> Result<(), CertificateFault> {
        self.remember(&[certificate.as_der(), issuer.as_der()], || {
            certificate.verify_issued_by(issuer)
        })
    }

    /// Runs `verify`, whose success depends only on `subject`, unless it has succeeded before.
    fn remember(
        &mut self,
        subject: &[&[u8]],
        verify: impl FnOnce() -> Result<(), CertificateFault>,
    ) -> Result<(), CertificateFault> {
        if self.slots.is_empty() {
            return verify();
        }
        let mut hasher = blake3::Hasher::new();
        for der in subject {
            hasher.update(&(der.len() as u64).to_le_bytes()).update(der);
        }
        let digest = *hasher.finalize().as_bytes();
        let number = digest.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        let at = number.checked_rem(self.slots.len() as u64).unwrap_or(0);
        let slot = usize::try_from(at).ok().and_then(|at| self.slots.get_mut(at));
        if slot.as_ref().is_some_and(|slot| **slot == digest) {
            return Ok(());
        }
        verify()?;
        if let Some(slot) = slot {
            *slot = digest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    #[test]
    fn success_is_remembered_and_failure_is_not() {
        let mut known = KnownSignatures::new(1);
        let runs = Cell::new(0);
        let valid = || {
            runs.set(runs.get() + 1);
            Ok(())
        };
        let invalid = || {
            runs.set(runs.get() + 1);
            Err(CertificateFault::Malformed)
        };
        assert_eq!(known.remember(&[b"a"], invalid), Err(CertificateFault::Malformed));
        assert_eq!(known.remember(&[b"a"], invalid), Err(CertificateFault::Malformed));
        assert_eq!(runs.get(), 2);
        assert_eq!(known.remember(&[b"a"], valid), Ok(()));
        assert_eq!(known.remember(&[b"a"], invalid), Ok(()), "not run again");
        assert_eq!(runs.get(), 3);
        // Other boundaries are another subject, which replaces the first one in the only slot.
        assert_eq!(known.remember(&[b"ab", b"c"], valid), Ok(()));
        assert_eq!(known.remember(&[b"a", b"bc"], valid), Ok(()));
        assert_eq!(runs.get(), 5);
        assert_eq!(known.remember(&[b"a"], invalid), Err(CertificateFault::Malformed));
        assert_eq!(runs.get(), 6);
    }

    #[test]
    fn memory_without_slots_remembers_nothing() {
        let mut known = KnownSignatures::new(0);
        assert_eq!(known.remember(&[b"a"], || Ok(())), Ok(()));
        let invalid = || Err(CertificateFault::Malformed);
        assert_eq!(known.remember(&[b"a"], invalid), Err(CertificateFault::Malformed));
    }
}
