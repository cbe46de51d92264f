//! Signatures of certificates that were verified before.

use alloc::collections::{BTreeSet, VecDeque};

use super::certificate::Certificate;
use super::fault::CertificateFault;

/// Memory of valid signatures: verifying the same certificates again, for example those of a peer
/// that connects again, costs no curve arithmetic.
///
/// Whether a signature is valid depends only on the bytes of the certificates, so that the memory
/// changes the cost of a verification and never its result. It contains digests (BLAKE3) of at most
/// a fixed number of certificates and of pairs of a certificate and its issuer. The oldest one gives
/// way to a new one.
#[derive(Debug, Clone, Default)]
pub struct KnownSignatures {
    limit: usize,
    digests: BTreeSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

impl KnownSignatures {
    /// Creates a memory of at most `limit` signatures, of about 100 bytes each. 0 remembers nothing.
    pub const fn new(limit: usize) -> Self {
        Self { limit, digests: BTreeSet::new(), order: VecDeque::new() }
    }

    /// Returns the number of remembered signatures.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Returns whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
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
        if self.limit == 0 {
            return verify();
        }
        let mut hasher = blake3::Hasher::new();
        for der in subject {
            hasher.update(&(der.len() as u64).to_le_bytes()).update(der);
        }
        let digest = *hasher.finalize().as_bytes();
        if self.digests.contains(&digest) {
            return Ok(());
        }
        verify()?;
        if self.order.len() >= self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.digests.remove(&oldest);
        }
        self.order.push_back(digest);
        self.digests.insert(digest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    #[test]
    fn success_is_remembered_and_failure_is_not() {
        let mut known = KnownSignatures::new(2);
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
        assert_eq!((runs.get(), known.len()), (2, 0));
        assert_eq!(known.remember(&[b"a"], valid), Ok(()));
        assert_eq!(known.remember(&[b"a"], invalid), Ok(()), "not run again");
        assert_eq!((runs.get(), known.len()), (3, 1));
        // Other boundaries are another subject.
        assert_eq!(known.remember(&[b"ab", b"c"], valid), Ok(()));
        assert_eq!(known.remember(&[b"a", b"bc"], valid), Ok(()));
        assert_eq!((runs.get(), known.len()), (5, 2));
        // The oldest was forgotten.
        assert_eq!(known.remember(&[b"a"], valid), Ok(()));
        assert_eq!((runs.get(), known.len()), (6, 2));
    }

    #[test]
    fn limit_of_zero_remembers_nothing() {
        let mut known = KnownSignatures::new(0);
        assert_eq!(known.remember(&[b"a"], || Ok(())), Ok(()));
        let invalid = || Err(CertificateFault::Malformed);
        assert_eq!(known.remember(&[b"a"], invalid), Err(CertificateFault::Malformed));
        assert!(known.is_empty());
    }
}
