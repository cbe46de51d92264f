//! Making the certificates that a node presents.

use std::time::Duration;

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

/// How long a certificate is valid unless told otherwise: 365 days.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_secs(DEFAULT_LIFETIME_SECONDS);

/// A first identity: one certificate that the key issues to itself, valid from now on for 365 days.
///
/// # Errors
///
/// No randomness for the serial number, or a clock that is off by decades.
pub fn create_identity(key: &KeyPair, now: UnixMillis) -> Result<Identity, IdentityError> {
    create_identity_for(key, now, DEFAULT_LIFETIME)
}

/// As [`create_identity`], valid for a time of its own; whole seconds.
///
/// # Errors
///
/// As [`create_identity`].
pub fn create_identity_for(key: &KeyPair, now: UnixMillis, lifetime: Duration) -> Result<Identity, IdentityError> {
    Ok(Identity { chain: vec![certificate(key, key, now, lifetime)?] })
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
    let due = now.as_secs() >= Life::of(identity)?.due;
    if due { renewed(identity, key, now, DEFAULT_LIFETIME).map(Some) } else { Ok(None) }
}

/// The identity with its newest certificate made anew under the same key.
pub(crate) fn renewed(
    identity: &Identity,
    key: &KeyPair,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Identity, IdentityError> {
    let newest = Certificate::parse(identity.chain.first().ok_or(IdentityError::Empty)?)?;
    let mut chain = vec![certificate(key, key, now, lifetime)?];
    // A certificate that its own key issued proves nothing that the new one does not. One that an older key issued is the
    // link to that key.
    let issued_by_itself = newest.issuer() == Some(key.node_id());
    chain.extend(identity.chain.iter().skip(usize::from(issued_by_itself)).cloned());
    Ok(Identity { chain })
}

/// The identity of a new key that the present one vouches for: its certificate, before the present ones.
pub(crate) fn succeeded(
    identity: &Identity,
    key: &KeyPair,
    next: &KeyPair,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Identity, IdentityError> {
    let mut chain = vec![certificate(next, key, now, lifetime)?];
    chain.extend(identity.chain.iter().cloned());
    Ok(Identity { chain })
}

/// When the newest certificate of an identity is made anew, and when it ends; in unix seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) due: u64,
    pub(crate) end: u64,
}

impl Life {
    pub(crate) fn of(identity: &Identity) -> Result<Self, IdentityError> {
        let newest = Certificate::parse(identity.chain.first().ok_or(IdentityError::Empty)?)?;
        let (begin, end) = (newest.not_before(), newest.not_after());
        Ok(Self { due: begin.saturating_add(end.saturating_sub(begin) / 3 * 2), end })
    }
}

fn certificate(
    subject: &KeyPair,
    issuer: &KeyPair,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Bytes, IdentityError> {
    let mut tail = [0; 8];
    getrandom::fill(&mut tail)?;
    let request = CertificateRequest {
        serial: CertId::new(now.0, 0, u64::from_be_bytes(tail)),
        subject: subject.node_id(),
        issuer: issuer.node_id(),
        not_before: now.as_secs().saturating_sub(BACKDATE_SECONDS.min(lifetime.as_secs() / 100)),
        not_after: now.as_secs().saturating_add(lifetime.as_secs()),
        version: VERSION.to_owned(),
        subject_extra: Vec::new(),
        issuer_extra: Vec::new(),
    };
    Ok(Bytes::from(request.sign(|message| subject.sign(message).0, |message| issuer.sign(message).0)?))
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

    #[test]
    fn a_short_life_has_its_two_thirds_too() {
        let key = KeyPair::from_seed(&[1; 32]);
        let now = 1_800_000_000;
        let identity = create_identity_for(&key, at(now), Duration::from_secs(6)).unwrap();
        let life = Life::of(&identity).unwrap();
        assert_eq!((life.due, life.end), (now + 4, now + 6));
    }

    #[test]
    fn a_new_key_is_vouched_for_by_the_old_one_also_after_its_certificate_was_renewed() {
        let keys: Vec<_> = [1, 2, 3].map(|seed| KeyPair::from_seed(&[seed; 32])).into();
        let ids: Vec<_> = keys.iter().map(KeyPair::node_id).collect();
        let now = 1_800_000_000;
        let first = create_identity(&keys[0], at(now)).unwrap();
        let second = succeeded(&first, &keys[0], &keys[1], at(now), DEFAULT_LIFETIME).unwrap();
        assert_eq!(verify_client(&second.chain, now).unwrap().chain, [ids[1], ids[0]]);
        let second = renewed(&second, &keys[1], at(now), DEFAULT_LIFETIME).unwrap();
        assert_eq!((second.chain.len(), verify_client(&second.chain, now).unwrap().chain.len()), (3, 2));
        // Once more: what the key issued to itself before is of no use any more.
        let second = renewed(&second, &keys[1], at(now), DEFAULT_LIFETIME).unwrap();
        assert_eq!(second.chain.len(), 3);
        let third = succeeded(&second, &keys[1], &keys[2], at(now), DEFAULT_LIFETIME).unwrap();
        assert_eq!(verify_client(&third.chain, now).unwrap().chain, [ids[2], ids[1], ids[0]]);
        for id in ids {
            assert_eq!(verify_server(&third.chain, &[id], now).unwrap().asked, Some(id));
        }
    }
}
