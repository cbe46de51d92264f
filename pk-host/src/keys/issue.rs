//! Certificates of a hot key that a signer issues with the root key.
//!
//! The chain is that of a renewal from the root key to the hot key: the certificate of the hot key,
//! issued by the root key, then the root certificate, issued by itself. After renewals of the hot
//! key, further links are between them, each issued by the next older key.

use std::time::Duration;

use pk_proto::cert::{Certificate, MAX_CHAIN_LEN};
use pk_proto::{Identity, NodeId, UnixMillis};

use crate::keys::identity::{
    CertificateKey, IdentityError, Keys, Validity, certificate, is_valid, relinked_by, renewed,
};
use crate::keys::pair::KeyPair;
use crate::keys::root::RootKey;

/// Returns the identity of a hot key with its newest certificate issued again; `identity` is its
/// present one, empty if it has none. The root certificate is issued if there is none or two thirds
/// of its validity are over; links of former hot keys, whose keys `former` returns, if they are not
/// valid. The chain of ids does not change. Stores nothing.
///
/// Blocks until the signer has signed, for each signature at most [`RootKey::timeout`].
///
/// # Errors
///
/// [`IdentityError::Signer`], [`IdentityError::ForeignRoot`] if the chain ends at another key,
/// those of [`create_identity`](crate::create_identity), and a certificate that cannot be parsed.
pub fn certified(
    identity: &Identity,
    key: &KeyPair,
    former: Keys<'_>,
    root: &RootKey,
    now: UnixMillis,
    lifetime: Duration,
) -> Result<Identity, IdentityError> {
    let ids = ids(identity)?;
    check_root(&ids, root)?;
    let root_certificate = match identity.chain.last() {
        Some(der) if !is_due(der, now)? => der.clone(),
        _ => certificate(root, root, now, root.lifetime)?,
    };
    let is_between = |id: &NodeId| *id != key.node_id() && *id != root.node_id();
    if !ids.iter().any(is_between) {
        let newest = certificate(key, root, now, lifetime)?;
        return Ok(Identity { chain: vec![newest, root_certificate] });
    }
    // The newest certificate was issued by a former hot key: the hot key reissues it, as every
    // renewed key does, and the root key the link to the oldest hot key.
    let mut identity = identity.clone();
    if let Some(last) = identity.chain.last_mut() {
        *last = root_certificate;
    }
    let identity = renewed(&identity, key, now, lifetime)?;
    let keys = |id: NodeId| -> Option<Box<dyn CertificateKey>> {
        if id == root.node_id() {
            Some(Box::new(root.clone()))
        } else {
            Some(Box::new(former(id)?))
        }
    };
    relinked_by(&identity, &keys, now, lifetime)
}

/// Returns whether [`certified`] is due: there is no certificate, the newest one is to be reissued
/// (see [`Validity::is_due`]), or an older one is not valid.
///
/// # Errors
///
/// [`IdentityError::ForeignRoot`], and a certificate that cannot be parsed.
pub fn certified_is_due(
    identity: &Identity,
    root: &RootKey,
    now: UnixMillis,
) -> Result<bool, IdentityError> {
    check_root(&ids(identity)?, root)?;
    if identity.chain.is_empty() || Validity::of(identity, now)?.is_due(now) {
        return Ok(true);
    }
    for der in &identity.chain {
        if !is_valid(&Certificate::parse(der)?, now) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Checks that the chain has room for another hot key: its certificate, and later one that it
/// issues to itself.
///
/// # Errors
///
/// [`IdentityError::ChainFull`].
pub fn check_room(identity: &Identity) -> Result<(), IdentityError> {
    if identity.chain.len() + 2 <= MAX_CHAIN_LEN { Ok(()) } else { Err(IdentityError::ChainFull) }
}

/// Returns the ids of the certificates, newest first.
fn ids(identity: &Identity) -> Result<Vec<NodeId>, IdentityError> {
    let id = |der| Ok(Certificate::parse(der)?.node_id());
    identity.chain.iter().map(|der| id(der)).collect()
}

fn check_root(ids: &[NodeId], root: &RootKey) -> Result<(), IdentityError> {
    let signer = root.node_id();
    match ids.last() {
        Some(&chain) if chain != signer => Err(IdentityError::ForeignRoot { chain, signer }),
        _ => Ok(()),
    }
}

/// Returns whether a root certificate is to be reissued.
fn is_due(der: &bytes::Bytes, now: UnixMillis) -> Result<bool, IdentityError> {
    Ok(Validity::of(&Identity { chain: vec![der.clone()] }, now)?.is_due(now))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use pk_proto::cert::{verify_client, verify_server};
    use pk_proto::{Signature, SignatureFault};

    use super::*;
    use crate::keys::identity::{DEFAULT_LIFETIME, dropped, succeeded};
    use crate::keys::key_store::{KeyStore, KeyStoreError};
    use crate::keys::signer::{PendingSignature, Signer, SignerError};

    const DAY: u64 = 24 * 60 * 60;
    const NOW: u64 = 1_800_000_000;

    fn at(secs: u64) -> UnixMillis {
        UnixMillis(secs * 1000)
    }

    type Behavior = fn(&KeyPair, &[u8]) -> PendingSignature;

    /// A signer whose behavior can be changed.
    #[derive(Clone)]
    struct Remote {
        key: KeyPair,
        signed: Arc<AtomicUsize>,
        behavior: Arc<Mutex<Behavior>>,
    }

    impl Signer for Remote {
        fn node_id(&self) -> NodeId {
            self.key.node_id()
        }

        fn sign(&self, message: &[u8]) -> PendingSignature {
            self.signed.fetch_add(1, Ordering::SeqCst);
            (self.behavior.lock().unwrap())(&self.key, message)
        }
    }

    fn signs(key: &KeyPair, message: &[u8]) -> PendingSignature {
        PendingSignature::ready(Ok(key.sign(message)))
    }

    fn fails(_: &KeyPair, _: &[u8]) -> PendingSignature {
        PendingSignature::ready(Err(SignerError::Failed("locked".into())))
    }

    fn forges(key: &KeyPair, message: &[u8]) -> PendingSignature {
        let Signature(mut bytes) = key.sign(message);
        bytes[40] ^= 1;
        PendingSignature::ready(Ok(Signature(bytes)))
    }

    impl Remote {
        fn new(seed: u8) -> (Self, RootKey) {
            let behavior = Arc::new(Mutex::new(signs as Behavior));
            let key = KeyPair::from_seed(&[seed; 32]);
            let remote = Self { key, signed: Arc::default(), behavior };
            let root = RootKey::new(remote.clone());
            (remote, root)
        }

        fn becomes(&self, behavior: Behavior) {
            *self.behavior.lock().unwrap() = behavior;
        }

        fn signed(&self) -> usize {
            self.signed.swap(0, Ordering::SeqCst)
        }
    }

    fn hot() -> KeyPair {
        KeyPair::from_seed(&[7; 32])
    }

    const EMPTY: Identity = Identity { chain: Vec::new() };

    fn issue(identity: &Identity, root: &RootKey, now: u64) -> Result<Identity, IdentityError> {
        certified(identity, &hot(), &|_| None, root, at(now), DEFAULT_LIFETIME)
    }

    #[test]
    fn signer_certifies_the_hot_key_and_itself_once() {
        let (remote, root) = Remote::new(1);
        let ids = [hot().node_id(), root.node_id()];
        assert!(certified_is_due(&EMPTY, &root, at(NOW)).unwrap());
        let first = issue(&EMPTY, &root, NOW).unwrap();
        assert_eq!((first.chain.len(), remote.signed()), (2, 3));
        for id in ids {
            let verified = verify_server(&first.chain, &[id], NOW).unwrap();
            assert_eq!((verified.leaf, verified.matched_id), (ids[0], Some(id)));
        }
        assert_eq!(verify_client(&first.chain, NOW).unwrap().chain, ids);
        assert!(!certified_is_due(&first, &root, at(NOW + 240 * DAY)).unwrap());
        // The hot certificate is due at two thirds of its validity, and after its end.
        for later in [NOW + 250 * DAY, NOW + 400 * DAY] {
            assert!(certified_is_due(&first, &root, at(later)).unwrap());
            let second = issue(&first, &root, later).unwrap();
            assert_eq!(remote.signed(), 1, "the root certificate is not issued again");
            assert_eq!(second.chain[1], first.chain[1]);
            assert_eq!(verify_client(&second.chain, later).unwrap().chain, ids);
            assert_eq!(dropped(&first, &second), []);
        }
        // A clock that was set back.
        assert!(certified_is_due(&first, &root, at(NOW - DAY)).unwrap());
        let earlier = issue(&first, &root, NOW - DAY).unwrap();
        assert_eq!(verify_server(&earlier.chain, &ids[1..], NOW - DAY).unwrap().chain, ids);
    }

    #[test]
    fn expired_root_certificate_is_issued_again() {
        let (remote, mut root) = Remote::new(1);
        root.lifetime = Duration::from_secs(100 * DAY);
        let first = issue(&EMPTY, &root, NOW).unwrap();
        let later = NOW + 101 * DAY;
        assert!(verify_server(&first.chain, &[root.node_id()], later).is_err());
        assert!(Validity::of(&first, at(NOW)).unwrap().is_due(at(later)));
        assert!(certified_is_due(&first, &root, at(later)).unwrap());
        remote.signed();
        let second = issue(&first, &root, later).unwrap();
        assert_eq!(remote.signed(), 3);
        assert!(verify_server(&second.chain, &[root.node_id()], later).is_ok());
        assert!(!certified_is_due(&second, &root, at(later)).unwrap());
    }

    #[test]
    fn missing_and_wrong_signatures_of_the_signer_are_refused() {
        let (remote, mut root) = Remote::new(1);
        root.timeout = Duration::from_millis(20);
        remote.becomes(fails);
        let error = issue(&EMPTY, &root, NOW).unwrap_err();
        assert!(matches!(error, IdentityError::Signer(SignerError::Failed(_))), "{error}");
        remote.becomes(forges);
        let error = issue(&EMPTY, &root, NOW).unwrap_err();
        let wrong = SignerError::Wrong { key: root.node_id(), fault: SignatureFault::Mismatch };
        assert!(matches!(&error, IdentityError::Signer(error) if *error == wrong), "{error}");
        remote.becomes(|_, _| {
            let (sender, pending) = PendingSignature::channel();
            std::mem::forget(sender);
            pending
        });
        let error = issue(&EMPTY, &root, NOW).unwrap_err();
        assert!(matches!(error, IdentityError::Signer(SignerError::TimedOut(_))), "{error}");
    }

    #[test]
    fn chain_of_another_root_is_refused() {
        let (_, root) = Remote::new(1);
        let (_, other) = Remote::new(2);
        let identity = issue(&EMPTY, &root, NOW).unwrap();
        for error in [
            issue(&identity, &other, NOW).unwrap_err(),
            certified_is_due(&identity, &other, at(NOW)).unwrap_err(),
        ] {
            let IdentityError::ForeignRoot { chain, signer } = error else { panic!("{error}") };
            assert_eq!((chain, signer), (root.node_id(), other.node_id()));
        }
    }

    #[test]
    fn renewed_hot_keys_stay_between_the_newest_and_the_root() {
        let (remote, root) = Remote::new(1);
        let (old, new) = (hot(), KeyPair::from_seed(&[8; 32]));
        let ids = [new.node_id(), old.node_id(), root.node_id()];
        let first = issue(&EMPTY, &root, NOW).unwrap();
        let second = succeeded(&first, &old, &new, at(NOW), DEFAULT_LIFETIME).unwrap();
        assert_eq!(verify_client(&second.chain, NOW).unwrap().chain, ids);
        // The newest certificate and the link that the root key issued have both expired.
        let later = NOW + 400 * DAY;
        assert!(certified_is_due(&second, &root, at(later)).unwrap());
        remote.signed();
        let former = |id| Some(old.clone()).filter(|key| key.node_id() == id);
        let keys = |id| if id == new.node_id() { Some(new.clone()) } else { former(id) };
        let third = certified(&second, &new, &keys, &root, at(later), DEFAULT_LIFETIME).unwrap();
        assert_eq!(remote.signed(), 1);
        for id in ids {
            assert_eq!(verify_server(&third.chain, &[id], later).unwrap().chain, ids);
        }
        assert!(!certified_is_due(&third, &root, at(later)).unwrap());
        assert_eq!(third.chain.len(), 4);
    }

    #[test]
    fn full_chain_keeps_its_root() {
        let (_, root) = Remote::new(1);
        let (mut key, mut identity) = (hot(), issue(&EMPTY, &root, NOW).unwrap());
        for seed in 100..200 {
            if check_room(&identity).is_err() {
                break;
            }
            let next = KeyPair::from_seed(&[seed; 32]);
            identity = succeeded(&identity, &key, &next, at(NOW), DEFAULT_LIFETIME).unwrap();
            key = next;
        }
        let issued = certified(&identity, &key, &|_| None, &root, at(NOW), DEFAULT_LIFETIME);
        assert_eq!(issued.unwrap().chain.len(), MAX_CHAIN_LEN);
        assert!(matches!(check_room(&identity), Err(IdentityError::ChainFull)));
        assert!(certified_is_due(&identity, &root, at(NOW)).is_ok(), "the root is still there");
    }

    #[test]
    fn key_store_has_the_hot_key_and_never_the_root_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyStore::new(dir.path());
        let (remote, root) = Remote::new(1);
        let load = |now: u64| keys.load_certified(None, &root, at(now));
        // A wrong signature stores nothing; the next start continues with the same key.
        remote.becomes(forges);
        let error = load(NOW).unwrap_err();
        assert!(matches!(error, KeyStoreError::Identity(IdentityError::Signer(_))), "{error}");
        assert_eq!(keys.load_identity().unwrap(), None);
        let id = keys.load_key().unwrap().unwrap().node_id();
        remote.becomes(signs);
        let (key, first) = load(NOW).unwrap();
        assert_eq!((key.node_id(), keys.load_identity().unwrap()), (id, Some(first.clone())));
        // The signer is unavailable.
        remote.becomes(fails);
        for valid in [NOW, NOW + 300 * DAY] {
            assert_eq!(load(valid).unwrap().1, first);
        }
        let error = load(NOW + 366 * DAY).unwrap_err();
        assert!(matches!(error, KeyStoreError::Identity(IdentityError::Signer(_))), "{error}");
        remote.becomes(signs);
        let (key, second) = load(NOW + 366 * DAY).unwrap();
        assert_eq!(key.node_id(), id);
        assert_eq!(verify_client(&second.chain, NOW + 366 * DAY).unwrap().chain.len(), 2);
        let secret = data_encoding::BASE64.encode(remote.key.seed().as_ref());
        for entry in std::fs::read_dir(dir.path().join("keys")).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(!text.contains(&secret));
        }
        // Without the signer it is an ordinary node, which certifies itself.
        let (_, third) = keys.load_for(None, at(NOW + 900 * DAY)).unwrap();
        let ids = verify_client(&third.chain, NOW + 900 * DAY).unwrap().chain;
        assert_eq!(ids, [id, root.node_id()]);
    }
}
