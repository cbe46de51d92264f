//! Making the certificates that a node presents.

use bytes::Bytes;
use pk_proto::cert::{BuildFault, CertId, Certificate, CertificateFault, CertificateRequest, DEFAULT_LIFETIME_SECONDS};
use pk_proto::{Identity, UnixMillis};

use crate::keys::KeyPair;

/// The version that certificates state as that of their maker.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Clocks of peers may be behind by this much, in seconds, without a new certificate being refused as not valid yet.
const BACKDATE_SECONDS: u64 = 60 * 60;

/// Why an identity cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The operating system has no randomness to give.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// The certificate cannot be built; the clock is off by decades.
    #[error("certificate: {0}")]
    Build(#[from] BuildFault),
    /// The certificate chain so far is unreadable.
    #[error("certificate: {0}")]
    Certificate(#[from] CertificateFault),
    /// There is no certificate.
    #[error("an identity needs at least one certificate")]
    Empty,
}

/// A first identity: one certificate that the key issues to itself, valid from now on for 365 days.
///
/// # Errors
///
/// No randomness for the serial number, or a clock that is off by decades.
pub fn create_identity(key: &KeyPair, now: UnixMillis) -> Result<Identity, IdentityError> {
    Ok(Identity { chain: vec![certificate(key, now)?] })
}

/// The identity with its newest certificate made anew under the same key, once two thirds of its life are over; `None`
/// before.
///
/// # Errors
///
/// As [`create_identity`], or the identity is empty or unreadable.
pub fn renew_certificate(
    identity: &Identity,
    key: &KeyPair,
    now: UnixMillis,
) -> Result<Option<Identity>, IdentityError> {
    let newest = identity.chain.first().ok_or(IdentityError::Empty)?;
    let newest = Certificate::parse(newest)?;
    let life = newest.not_after().saturating_sub(newest.not_before());
    if now.as_secs() < newest.not_before().saturating_add(life / 3 * 2) {
        return Ok(None);
    }
    let mut chain = vec![certificate(key, now)?];
    // A certificate that its own key issued proves nothing that the new one does not. One that an older key issued is the
    // link to that key.
    let issued_by_itself = newest.issuer() == Some(key.node_id());
    chain.extend(identity.chain.iter().skip(usize::from(issued_by_itself)).cloned());
    Ok(Some(Identity { chain }))
}

fn certificate(key: &KeyPair, now: UnixMillis) -> Result<Bytes, IdentityError> {
    let mut tail = [0; 8];
    getrandom::fill(&mut tail)?;
    let request = CertificateRequest {
        serial: CertId::new(now.0, 0, u64::from_be_bytes(tail)),
        subject: key.node_id(),
        issuer: key.node_id(),
        not_before: now.as_secs().saturating_sub(BACKDATE_SECONDS),
        not_after: now.as_secs().saturating_add(DEFAULT_LIFETIME_SECONDS),
        version: VERSION.to_owned(),
        subject_extra: Vec::new(),
        issuer_extra: Vec::new(),
    };
    let sign = |message: &[u8]| key.sign(message).0;
    Ok(Bytes::from(request.sign(sign, sign)?))
}

#[cfg(test)]
mod tests {
    use pk_proto::cert::{verify_client, verify_server};

    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    fn at(secs: u64) -> UnixMillis {
        UnixMillis(secs * 1000)
    }

    #[test]
    fn a_first_identity_proves_its_key() {
        let key = KeyPair::from_seed(&[1; 32]);
        let now = 1_800_000_000;
        let identity = create_identity(&key, at(now)).unwrap();
        assert_eq!(verify_server(&identity.chain, &[key.node_id()], now).unwrap().leaf, key.node_id());
        assert_eq!(verify_client(&identity.chain, now - 60).unwrap().chain, [key.node_id()]);
        assert!(verify_client(&identity.chain, now + 366 * DAY).is_err());
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
        let key = KeyPair::from_seed(&[1; 32]);
        let now = 1_800_000_000;
        let identity = create_identity(&key, at(now)).unwrap();
        assert_eq!(renew_certificate(&identity, &key, at(now + 240 * DAY)).unwrap(), None);
        let later = now + 250 * DAY;
        let renewed = renew_certificate(&identity, &key, at(later)).unwrap().unwrap();
        assert_eq!(renewed.chain.len(), 1);
        assert!(verify_client(&renewed.chain, later + 300 * DAY).is_ok());
    }
}
