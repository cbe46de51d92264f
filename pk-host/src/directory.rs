//! The directory of a node: its lock, keys, certificates and store.

use std::path::Path;

use pk_proto::{Identity, NodeId, Snapshot, SnapshotError};

use crate::keys::identity::IdentityError;
use crate::keys::key_store::{KeyStore, KeyStoreError};
use crate::keys::pair::KeyPair;
use crate::keys::root::RootKey;
use crate::state::HostState;
use crate::store::redb::{RedbStore, StoreOpenError};
use crate::store::{Store as _, StoreError};
use crate::system::clock::unix;
use crate::system::dir_lock::DirLock;

/// The directory of a node. It is locked until the store is dropped.
#[derive(Debug)]
pub struct Directory {
    /// What the node starts from.
    pub state: HostState,
    /// The store.
    pub store: RedbStore,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Another process uses it, or the store is newer or damaged.
    #[error("store: {0}")]
    Open(#[from] StoreOpenError),
    /// The store cannot be read.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The store contains rows that this program cannot read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Reading system randomness failed.
    #[error("failed to read system randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// The key store cannot be used, or has no key for the store.
    #[error("key store: {0}")]
    Keys(#[from] KeyStoreError),
}

impl Directory {
    /// Opens a directory: keys in `DIR/keys`, the store in `DIR/store.redb`. Creates what does not
    /// exist. The owner of the store determines the key.
    ///
    /// # Errors
    ///
    /// [`DirectoryError`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, DirectoryError> {
        Self::open_with(dir.as_ref(), &|keys, owner| Ok(keys.load_for(owner, unix())?))
    }

    /// Like [`open`](Self::open), for a node whose root key a signer holds: the key in `DIR/keys`
    /// is the hot key. If its certificate is due and the signer does not sign, a certificate that
    /// is still valid is used, and a warning is logged.
    ///
    /// Waits for the signer, at most three times [`RootKey::timeout`]. The certificate is valid for
    /// 365 days. A program that runs longer than two thirds of that calls
    /// [`certified`](crate::certified) and requests
    /// [`Renew`](pk_proto::Request::Renew).
    ///
    /// # Errors
    ///
    /// [`DirectoryError`]; [`IdentityError::Signer`] in [`DirectoryError::Keys`] if there is no
    /// valid certificate and the signer does not sign. Nothing is stored then, except a new hot
    /// key.
    pub fn open_with_signer(dir: impl AsRef<Path>, root: &RootKey) -> Result<Self, DirectoryError> {
        root.validate().map_err(IdentityError::from).map_err(KeyStoreError::from)?;
        Self::open_with(dir.as_ref(), &|keys, owner| {
            Ok(keys.load_certified(owner, root, unix())?)
        })
    }

    fn open_with(dir: &Path, load: Load<'_>) -> Result<Self, DirectoryError> {
        let lock = DirLock::take(dir).map_err(StoreOpenError::from)?;
        let mut store = RedbStore::open(dir.join("store.redb"))?.holding(lock);
        let snapshot = Snapshot::from_rows(store.load()?)?;
        let keys = KeyStore::new(dir);
        let owner = snapshot.meta.as_ref().map(|meta| meta.owner);
        let (key, identity) = load(&keys, owner)?;
        let secret = keys.transport_secret()?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self { state: HostState { key, identity, secret, snapshot, seed }, store })
    }
}

/// Loads the key and the certificates of a node from its key store, for the owner of the store.
type Load<'a> =
    &'a dyn Fn(&KeyStore, Option<NodeId>) -> Result<(KeyPair, Identity), DirectoryError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_keeps_its_node_and_is_used_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = Directory::open(dir.path()).unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryError::Open(_))));
        let (id, secret) = (first.state.key.node_id(), first.state.secret.to_bytes());
        drop(first);
        let again = Directory::open(dir.path()).unwrap().state;
        assert_eq!((again.key.node_id(), again.secret.to_bytes()), (id, secret));
    }

    #[test]
    fn directory_with_a_signer_has_its_own_hot_key() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::new(KeyPair::from_seed(&[1; 32]));
        let first = Directory::open_with_signer(dir.path(), &root).unwrap();
        let (id, identity) = (first.state.key.node_id(), first.state.identity);
        assert_ne!(id, root.node_id());
        assert_eq!(identity.chain.len(), 2);
        drop(first.store);
        let again = Directory::open_with_signer(dir.path(), &root).unwrap();
        assert_eq!((again.state.key.node_id(), again.state.identity), (id, identity));
        drop(again.store);
        let mut bad = root;
        bad.lifetime = std::time::Duration::ZERO;
        let error = Directory::open_with_signer(dir.path(), &bad).unwrap_err();
        assert!(matches!(error, DirectoryError::Keys(KeyStoreError::Identity(_))), "{error}");
    }
}
