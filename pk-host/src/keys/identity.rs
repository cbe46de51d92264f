//! Creates the certificates that a node presents.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use bytes::Bytes;
use pk_proto::cert::{
    BuildFault, CertId, Certificate, CertificateFault, CertificateRequest,
    DEFAULT_LIFETIME_SECONDS, verify_client,
};
use pk_proto::{Identity, NodeId, UnixMillis};

use crate::keys::pair::KeyPair;
use crate::keys::root::{RootKey, RootKeyError};
use crate::keys::signer::SignerError;

/// Version that certificates state as that of their issuer.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A new certificate is valid from this time before its creation, in seconds, or a hundredth of its
/// validity. It is reissued if it became valid less than half of this ago, for example after the
/// clock was set back. The clocks of peers may therefore always be behind by half of it.
const BACKDATE_SECONDS: u64 = 2 * 60 * 60;

/// Why an identity cannot be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Reading system randomness failed.
    #[error("failed to read system randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// The certificate cannot be built.
    #[error("certificate: {0}")]
    Build(#[from] BuildFault),
    /// The existing certificate chain cannot be parsed.
    #[error("certificate: {0}")]
    Certificate(#[from] CertificateFault),
    /// The identity has no certificate.
    #[error("an identity needs at least one certificate")]
    Empty,
    /// The signer of the root key did not sign.
    #[error("certificate: {0}")]
    Signer(#[from] SignerError),
    /// A setting of the root key is outside its range.
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    /// The certificate chain ends at another key than that of the signer.
    #[error("the certificate chain ends at {chain}, and the key of the signer is {signer}")]
    ForeignRoot {
        /// Node id of the oldest certificate.
        chain: NodeId,
        /// Node id of the signer's key.
        signer: NodeId,
    },
    /// The certificate chain has no room for another key without losing its root certificate.
    #[error("the certificate chain is full: another key would remove the root certificate")]
    ChainFull,
}

/// Default validity of a certificate: 365 days.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_secs(DEFAULT_LIFETIME_SECONDS);

/// Creates a first identity: one certificate that the key issues to itself, valid from now on for
/// 365 days.
///
/// # Errors
///
/// Reading system randomness failed.
pub fn create_identity(key: &KeyPair, now: UnixMillis) -> Result<Identity, IdentityError> {
    create_identity_for(key, now, DEFAULT_LIFETIME)
}

/// Like [`create_identity`], with another validity in whole seconds.
///
/// # Errors
///
/// Those of [`create_identity`].
pub fn create_identity_for(
    key: &KeyPair,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Identity, IdentityError> {
    Ok(Identity { chain: vec![certificate(key, key, now, lifetime)?] })
}

/// Reissues the newest certificate under the same key if two thirds of its validity are over, or if
/// it is not valid yet or became valid less than an hour ago, which shows that the clock was set
/// back. Returns `None` if none of these applies.
///
/// # Errors
///
/// Those of [`create_identity`], or the identity is empty or cannot be parsed.
pub fn renew_certificate(
    identity: &Identity,
    key: &KeyPair,
    now: UnixMillis,
) -> Result<Option<Identity>, IdentityError> {
    if Validity::of(identity, now)?.is_due(now) {
        renewed(identity, key, now, DEFAULT_LIFETIME).map(Some)
    } else {
        Ok(None)
    }
}

/// Returns the identity with its newest certificate reissued under the same key.
///
/// # Errors
///
/// Those of [`create_identity`], and a newest certificate that cannot be parsed.
pub fn renewed(
    identity: &Identity,
    key: &KeyPair,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Identity, IdentityError> {
    let newest = Certificate::parse(identity.chain.first().ok_or(IdentityError::Empty)?)?;
    let mut chain = vec![certificate(key, key, now, lifetime)?];
    // A certificate that its own key issued proves nothing that the new one does not. One that an
    // older key issued is the link to that key.
    let issued_by_itself = newest.issuer() == Some(key.node_id());
    chain.extend(identity.chain.iter().skip(usize::from(issued_by_itself)).cloned());
    Ok(Identity { chain }.shortened())
}

/// Returns the identity of a new key, whose certificate the present key issues. If the chain is
/// full, the oldest certificate is dropped.
///
/// # Errors
///
/// Those of [`create_identity`].
pub fn succeeded(
    identity: &Identity,
    key: &KeyPair,
    next: &KeyPair,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Identity, IdentityError> {
    let mut chain = vec![certificate(next, key, now, lifetime)?];
    chain.extend(identity.chain.iter().cloned());
    Ok(Identity { chain }.shortened())
}

/// Returns the ids that `before` proves and `after` does not.
pub fn dropped(before: &Identity, after: &Identity) -> Vec<NodeId> {
    let ids = |identity: &Identity| {
        let certificates = identity.chain.iter().filter_map(|der| Certificate::parse(der).ok());
        certificates.map(|certificate| certificate.node_id()).collect::<Vec<_>>()
    };
    let after = ids(after);
    let mut dropped = ids(before);
    dropped.dedup();
    dropped.retain(|id| !after.contains(id));
    dropped
}

/// Private keys by node id, which can sign certificates.
pub type Keys<'a> = &'a dyn Fn(NodeId) -> Option<KeyPair>;

/// Reissues the older certificates of a chain that are not valid now and whose keys are available:
/// peers that dial a former id refuse an invalid certificate between it and the current id. The
/// chain of ids does not change.
///
/// # Errors
///
/// Those of [`create_identity`], and a certificate that cannot be parsed.
pub fn relinked(
    identity: &Identity,
    keys: Keys<'_>,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Identity, IdentityError> {
    relinked_by(identity, &|id| Some(Box::new(keys(id)?)), now, lifetime)
}

/// Like [`relinked`], with keys of any kind.
pub(crate) fn relinked_by(
    identity: &Identity,
    keys: &dyn Fn(NodeId) -> Option<Box<dyn CertificateKey>>,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Identity, IdentityError> {
    let mut chain = identity.chain.clone();
    for der in chain.iter_mut().skip(1) {
        let old = Certificate::parse(der)?;
        if is_valid(&old, now) {
            continue;
        }
        if let Some(subject) = keys(old.node_id())
            && let Some(issuer) = old.issuer().and_then(keys)
        {
            *der = certificate(&*subject, &*issuer, now, lifetime)?;
        }
    }
    if chain == identity.chain {
        return Ok(Identity { chain });
    }
    let ids = |chain: &[Bytes]| verify_client(chain, now.as_secs()).map(|verified| verified.chain);
    // A certificate whose name contains more than the id, as another program may have created it,
    // is not replaced: the certificates that it issued would no longer name it.
    let keeps_ids = ids(&chain)? == ids(&identity.chain)?;
    Ok(if keeps_ids { Identity { chain } } else { identity.clone() })
}

pub(crate) fn is_valid(certificate: &Certificate, now: UnixMillis) -> bool {
    (certificate.not_before()..=certificate.not_after()).contains(&now.as_secs())
}

/// Times at which the certificates of an identity are reissued, in unix seconds.
#[derive(Debug, Clone)]
pub struct Validity {
    /// Validity of the newest certificate.
    newest: RangeInclusive<u64>,
    /// Times at which the newest certificate is not reissued.
    kept: Range<u64>,
    /// Validity of the older certificates that could be reissued.
    older: Vec<RangeInclusive<u64>>,
}

impl Validity {
    /// Returns the times of an identity, judged by the wall clock.
    ///
    /// # Errors
    ///
    /// A certificate cannot be parsed, or there is none.
    pub fn of(identity: &Identity, now: UnixMillis) -> Result<Self, IdentityError> {
        let chain = identity
            .chain
            .iter()
            .map(|der| Certificate::parse(der))
            .collect::<Result<Vec<_>, _>>()?;
        let (newest, older) = chain.split_first().ok_or(IdentityError::Empty)?;
        let (begin, end) = (newest.not_before(), newest.not_after());
        let validity = end.saturating_sub(begin);
        let margin = BACKDATE_SECONDS.min(validity / 101) / 2;
        // The epoch and the last certificate date are where clocks stop: a reissued certificate
        // would be the same.
        let from = if begin == 0 { 0 } else { begin.saturating_add(margin) };
        let due = if end >= CertificateRequest::MAX_NOT_AFTER {
            u64::MAX
        } else {
            begin.saturating_add(validity / 3 * 2)
        };
        let older = older.iter().filter(|older| is_valid(older, now));
        Ok(Self {
            newest: begin..=end,
            kept: from..due,
            older: older.map(|older| older.not_before()..=older.not_after()).collect(),
        })
    }

    /// Returns whether a certificate is to be reissued.
    pub fn is_due(&self, now: UnixMillis) -> bool {
        let now = now.as_secs();
        !self.kept.contains(&now) || self.older.iter().any(|older| !older.contains(&now))
    }

    /// Returns whether peers with the same clock accept the newest certificate.
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        self.newest.contains(&now.as_secs())
    }

    /// Returns the time until a certificate is to be reissued, if the clock is not set.
    pub fn left(&self, now: UnixMillis) -> Duration {
        let ends =
            self.older.iter().map(|older| older.end().saturating_add(1)).chain([self.kept.end]);
        Duration::from_secs(ends.min().unwrap_or(u64::MAX).saturating_sub(now.as_secs()))
    }

    /// Returns the time at which the newest certificate expires.
    pub fn expires(&self) -> UnixMillis {
        UnixMillis::from_secs(*self.newest.end())
    }

    /// Returns the time until the newest certificate expires.
    pub fn until_end(&self, now: UnixMillis) -> Duration {
        Duration::from_secs(self.newest.end().saturating_sub(now.as_secs()))
    }
}

/// A key that can sign certificates.
pub(crate) trait CertificateKey {
    /// Returns the node id of the key.
    fn node_id(&self) -> NodeId;

    /// Returns the signature of a message.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], IdentityError>;
}

impl CertificateKey for KeyPair {
    fn node_id(&self) -> NodeId {
        self.node_id()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], IdentityError> {
        Ok(self.sign(message).0)
    }
}

impl CertificateKey for RootKey {
    fn node_id(&self) -> NodeId {
        self.node_id()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], IdentityError> {
        Ok(self.sign(message)?)
    }
}

pub(crate) fn certificate(
    subject: &dyn CertificateKey,
    issuer: &dyn CertificateKey,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Bytes, IdentityError> {
    let mut tail = [0; 8];
    getrandom::fill(&mut tail)?;
    let last = CertificateRequest::MAX_NOT_AFTER;
    let secs = now.as_secs().min(last);
    let request = CertificateRequest {
        serial: CertId::new(now.0, 0, u64::from_be_bytes(tail)),
        subject: subject.node_id(),
        issuer: issuer.node_id(),
        not_before: secs.saturating_sub(BACKDATE_SECONDS.min(lifetime.as_secs() / 100)),
        not_after: secs.saturating_add(lifetime.as_secs()).min(last),
        version: VERSION.to_owned(),
        subject_extra: Vec::new(),
        issuer_extra: Vec::new(),
    };
    let unsigned = request.prepare()?;
    let signature = subject.sign(unsigned.message())?;
    let half_signed = unsigned.signed_by_subject(&signature)?;
    let signature = issuer.sign(half_signed.message())?;
    Ok(Bytes::from(half_signed.signed_by_issuer(&signature)?))
}

#[cfg(test)]
mod tests {
    use pk_proto::cert::verify_server;

    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    fn at(secs: u64) -> UnixMillis {
        UnixMillis(secs * 1000)
    }

    #[test]
    fn first_identity_proves_its_key() {
        let key = KeyPair::from_seed(&[1; 32]);
        let now = 1_800_000_000;
        let identity = create_identity(&key, at(now)).unwrap();
        assert_eq!(
            verify_server(&identity.chain, &[key.node_id()], now).unwrap().leaf,
            key.node_id()
        );
        assert_eq!(verify_client(&identity.chain, now - 60).unwrap().chain, [key.node_id()]);
        assert!(verify_client(&identity.chain, now + 366 * DAY).is_err());
    }

    #[test]
    fn certificate_is_renewed_at_two_thirds_of_its_lifetime() {
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
    fn short_lifetime_is_renewed_at_two_thirds_as_well() {
        let key = KeyPair::from_seed(&[1; 32]);
        let now = 1_800_000_000;
        let identity = create_identity_for(&key, at(now), Duration::from_secs(6)).unwrap();
        let validity = Validity::of(&identity, at(now)).unwrap();
        assert_eq!((validity.kept, validity.newest), (now..now + 4, now..=now + 6));
    }

    /// Times of wrong clocks: the epoch, decades ago, slightly off, ahead, after UTCTime, the last
    /// date of X.509.
    const CLOCKS: [u64; 10] = [
        0,
        86_400,
        1_000_000_000,
        NOW - 7200,
        NOW,
        NOW + 1800,
        NOW + 300 * DAY,
        2_524_607_000,
        4_300_000_000,
        LAST,
    ];
    const NOW: u64 = 1_800_000_000;
    const LAST: u64 = CertificateRequest::MAX_NOT_AFTER;

    #[test]
    fn newest_certificate_is_valid_after_any_change_of_the_clock() {
        let key = KeyPair::from_seed(&[1; 32]);
        for made in CLOCKS {
            let first = create_identity(&key, at(made)).unwrap();
            assert!(verify_client(&first.chain, made).is_ok(), "{made}");
            assert_eq!(
                renew_certificate(&first, &key, at(made)).unwrap(),
                None,
                "{made}: one is enough"
            );
            for now in CLOCKS {
                let renewed = renew_certificate(&first, &key, at(now)).unwrap();
                let identity = renewed.as_ref().unwrap_or(&first);
                assert_eq!(
                    verify_client(&identity.chain, now).unwrap().chain,
                    [key.node_id()],
                    "{made} {now}"
                );
                // It is also valid by clocks that are an hour behind.
                assert!(
                    verify_client(&identity.chain, now.saturating_sub(3600)).is_ok(),
                    "{made} {now}"
                );
                assert_eq!(
                    renew_certificate(identity, &key, at(now)).unwrap(),
                    None,
                    "{made} {now}: once is enough"
                );
            }
        }
    }

    #[test]
    fn clock_set_back_by_up_to_an_hour_reissues_nothing() {
        let key = KeyPair::from_seed(&[1; 32]);
        let identity = create_identity(&key, at(NOW)).unwrap();
        assert_eq!(renew_certificate(&identity, &key, at(NOW - 3600)).unwrap(), None);
        assert!(renew_certificate(&identity, &key, at(NOW - 3601)).unwrap().is_some());
    }

    #[test]
    fn chain_created_under_a_wrong_clock_proves_every_former_id() {
        let keys = [1, 2, 3].map(|seed| KeyPair::from_seed(&[seed; 32]));
        let ids = [2, 1, 0].map(|n| KeyPair::node_id(&keys[n]));
        let all = |id| keys.iter().find(|key| key.node_id() == id).cloned();
        for made in CLOCKS {
            let first = create_identity(&keys[0], at(made)).unwrap();
            let second = succeeded(&first, &keys[0], &keys[1], at(made), DEFAULT_LIFETIME).unwrap();
            let third = succeeded(&second, &keys[1], &keys[2], at(made), DEFAULT_LIFETIME).unwrap();
            for now in CLOCKS {
                let newest = renew_certificate(&third, &keys[2], at(now))
                    .unwrap()
                    .unwrap_or_else(|| third.clone());
                let chain = relinked(&newest, &all, at(now), DEFAULT_LIFETIME).unwrap().chain;
                for id in ids {
                    let verified = verify_server(&chain, &[id], now).unwrap();
                    assert_eq!(
                        (verified.matched_id, &verified.chain[..]),
                        (Some(id), &ids[..]),
                        "{made} {now}"
                    );
                }
                assert_eq!(verify_client(&chain, now).unwrap().chain, ids);
                // Without the former keys the ids are still proven, to peers that ask for the
                // newest one.
                assert_eq!(
                    relinked(&newest, &|_| None, at(now), DEFAULT_LIFETIME).unwrap(),
                    newest
                );
                assert_eq!(verify_server(&newest.chain, &ids[..1], now).unwrap().chain, ids);
            }
        }
    }

    #[test]
    fn chain_is_due_when_any_certificate_of_it_becomes_invalid() {
        let keys = [1, 2].map(|seed| KeyPair::from_seed(&[seed; 32]));
        let first = create_identity(&keys[0], at(NOW)).unwrap();
        let identity =
            succeeded(&first, &keys[0], &keys[1], at(NOW + 100 * DAY), DEFAULT_LIFETIME).unwrap();
        let validity = Validity::of(&identity, at(NOW + 100 * DAY)).unwrap();
        assert!(!validity.is_due(at(NOW + 200 * DAY)));
        assert_eq!(validity.left(at(NOW + 200 * DAY)), Duration::from_secs(12_381_600));
        // The older certificate has expired.
        let later = at(NOW + 366 * DAY);
        assert!(validity.is_due(later));
        // A renewal cannot replace the expired certificate, so no further renewal is due.
        let renewed = renewed(&identity, &keys[1], later, DEFAULT_LIFETIME).unwrap();
        assert!(!Validity::of(&renewed, later).unwrap().is_due(later));
    }

    #[test]
    fn new_key_stays_certified_by_the_old_one_after_its_certificate_is_renewed() {
        let keys: Vec<_> = [1, 2, 3].map(|seed| KeyPair::from_seed(&[seed; 32])).into();
        let ids: Vec<_> = keys.iter().map(KeyPair::node_id).collect();
        let now = 1_800_000_000;
        let first = create_identity(&keys[0], at(now)).unwrap();
        let second = succeeded(&first, &keys[0], &keys[1], at(now), DEFAULT_LIFETIME).unwrap();
        assert_eq!(verify_client(&second.chain, now).unwrap().chain, [ids[1], ids[0]]);
        let second = renewed(&second, &keys[1], at(now), DEFAULT_LIFETIME).unwrap();
        assert_eq!(
            (second.chain.len(), verify_client(&second.chain, now).unwrap().chain.len()),
            (3, 2)
        );
        // Another renewal replaces the certificate that the key has issued to itself.
        let second = renewed(&second, &keys[1], at(now), DEFAULT_LIFETIME).unwrap();
        assert_eq!(second.chain.len(), 3);
        let third = succeeded(&second, &keys[1], &keys[2], at(now), DEFAULT_LIFETIME).unwrap();
        assert_eq!(verify_client(&third.chain, now).unwrap().chain, [ids[2], ids[1], ids[0]]);
        for id in ids {
            assert_eq!(verify_server(&third.chain, &[id], now).unwrap().matched_id, Some(id));
        }
    }
}
