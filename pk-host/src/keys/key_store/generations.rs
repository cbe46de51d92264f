//! Generations of keys: during a renewal the next key is stored beside the present one; former keys
//! are kept.
//!
//! - `node.key`, `node.crt`: the present generation;
//! - `ID.key` and `ID.crt`: a pending generation. The owner in the store decides which of the two
//!   the node has; it changes in one transaction, which is the commit point of the renewal. A crash
//!   at any moment therefore leaves one key;
//! - `ID.key` alone: a former key.
//!
//! The certificates of a pending generation are written before its key, and moved into place before
//! it. A pending key therefore always has its certificates, and a present certificate that does not
//! belong to the present key shows that an activation has started.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pk_proto::cert::Certificate;
use pk_proto::{Identity, NodeId, UnixMillis};

use super::{Issue, KeyStore, KeyStoreError, read_chain, read_key};
use crate::keys::identity::{DEFAULT_LIFETIME, IdentityError, Validity};
use crate::keys::issue::{certified, certified_is_due};
use crate::keys::pair::KeyPair;
use crate::keys::root::RootKey;
use crate::system::files::{remove, sweep, sync_folder};

impl KeyStore {
    /// Like [`load_or_create`](Self::load_or_create), for a store that belongs to `owner`: its key
    /// becomes the present one if it was pending, and other pending keys are removed. `None` is a
    /// store without an owner.
    ///
    /// Requires exclusive use of the directory: incomplete files of killed processes are removed as
    /// well. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`]; [`KeyStoreError::Missing`] if neither the key of the owner nor that
    /// of a successor is available; then nothing was changed.
    pub fn load_for(
        &self,
        owner: Option<NodeId>,
        now: UnixMillis,
    ) -> Result<(KeyPair, Identity), KeyStoreError> {
        self.load_owned(owner, &|key, stored| self.issued(key, stored, now))
    }

    /// Like [`load_for`](Self::load_for), for a node whose certificates a
    /// [`Signer`](crate::Signer) issues: issues and reissues none. The identity is as stored, and
    /// empty if there is none yet.
    ///
    /// # Errors
    ///
    /// Those of [`load_for`](Self::load_for).
    pub fn load_uncertified(
        &self,
        owner: Option<NodeId>,
    ) -> Result<(KeyPair, Identity), KeyStoreError> {
        let stored = |_: &KeyPair, stored: Option<&Identity>| {
            Ok(stored.cloned().unwrap_or(Identity { chain: Vec::new() }))
        };
        self.load_owned(owner, &stored)
    }

    /// Like [`load_for`](Self::load_for), for a node whose certificates a signer issues. If they
    /// are due and the signer does not sign, certificates that are still valid are returned, and a
    /// warning is logged.
    ///
    /// Blocks on the disk, and on the signer for at most three times [`RootKey::timeout`].
    ///
    /// # Errors
    ///
    /// Those of [`load_for`](Self::load_for); [`IdentityError::Signer`] if the signer does not sign
    /// and there is no valid certificate. Nothing is stored then, except a new hot key.
    pub fn load_certified(
        &self,
        owner: Option<NodeId>,
        root: &RootKey,
        now: UnixMillis,
    ) -> Result<(KeyPair, Identity), KeyStoreError> {
        let (key, stored) = self.load_uncertified(owner)?;
        if !certified_is_due(&stored, root, now)? {
            return Ok((key, stored));
        }
        let former = |id| self.key_of(id, &key);
        match certified(&stored, &key, &former, root, now, DEFAULT_LIFETIME) {
            Ok(identity) => {
                self.save_identity(&identity)?;
                Ok((key, identity))
            }
            Err(IdentityError::Signer(error))
                if Validity::of(&stored, now).is_ok_and(|validity| validity.is_valid(now)) =>
            {
                tracing::warn!(%error, "the certificate is due and could not be reissued yet");
                Ok((key, stored))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn load_owned(
        &self,
        owner: Option<NodeId>,
        issue: Issue<'_>,
    ) -> Result<(KeyPair, Identity), KeyStoreError> {
        let Some(owner) = owner else {
            let loaded = self.load_with(issue)?;
            self.sweep()?;
            return Ok(loaded);
        };
        self.finish_activation()?;
        let present = self.load_key()?.map(|key| key.node_id());
        if present != Some(owner) {
            if self.is_waiting(owner)? {
                self.activate(owner)?;
            } else if present.is_none() {
                return Err(KeyStoreError::Missing { dir: self.folder(), owner });
            }
            // The core decides about another present key, which may be that of a successor.
        }
        let loaded = self.load_with(issue)?;
        if loaded.0.node_id() == owner {
            for waiting in self.waiting()? {
                self.forget(waiting)?;
            }
            self.sweep()?;
        }
        Ok(loaded)
    }

    fn sweep(&self) -> Result<(), KeyStoreError> {
        let folder = self.folder();
        let ours = |name: &str| [".key", ".crt"].iter().any(|extension| name.ends_with(extension));
        sweep(&folder, ours).map_err(|error| io_error(&folder, error))
    }

    /// Writes a pending generation.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`] about the files.
    pub fn add(&self, key: &KeyPair, identity: &Identity) -> Result<(), KeyStoreError> {
        let id = key.node_id();
        self.write_chain(&self.path_of(id, "crt"), identity)?;
        self.write_key(&self.path_of(id, "key"), key)
    }

    /// Makes a pending generation the present one. The present key becomes a former one.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`] about the files.
    pub fn activate(&self, id: NodeId) -> Result<(), KeyStoreError> {
        if let Some(present) = self.load_key()? {
            let former = self.path_of(present.node_id(), "key");
            match fs::hard_link(self.key_path(), &former) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error(&former, error));
                }
                _ => self.sync()?,
            }
        }
        rename(&self.path_of(id, "crt"), &self.chain_path())?;
        self.sync()?;
        rename(&self.path_of(id, "key"), &self.key_path())?;
        self.sync()
    }

    /// Removes a pending generation.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`] about the files.
    pub fn forget(&self, id: NodeId) -> Result<(), KeyStoreError> {
        // The key first: without its certificates it would count as a former key.
        self.remove(id, "key")?;
        self.sync()?;
        self.remove(id, "crt")?;
        self.sync()
    }

    /// Completes an [`activate`](Self::activate) that a crash interrupted after its certificates
    /// were moved into place.
    pub(super) fn finish_activation(&self) -> Result<(), KeyStoreError> {
        let (Some(key), Some(identity)) = (self.load_key()?, self.load_identity()?) else {
            return Ok(());
        };
        let Some(newest) = identity.chain.first() else { return Ok(()) };
        let newest = Certificate::parse(newest).map_err(IdentityError::from)?.node_id();
        let path = self.path_of(newest, "key");
        if newest == key.node_id() || read_key(&path)?.is_none_or(|key| key.node_id() != newest) {
            return Ok(());
        }
        rename(&path, &self.key_path())?;
        self.sync()
    }

    /// Returns whether a complete generation is pending.
    fn is_waiting(&self, id: NodeId) -> Result<bool, KeyStoreError> {
        let key = read_key(&self.path_of(id, "key"))?;
        Ok(key.is_some_and(|key| key.node_id() == id)
            && read_chain(&self.path_of(id, "crt"))?.is_some())
    }

    /// Returns the pending generations, complete or not.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`] about the files.
    pub fn waiting(&self) -> Result<Vec<NodeId>, KeyStoreError> {
        let folder = self.folder();
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| io_error(&folder, error))?,
        };
        let mut waiting = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| io_error(&folder, error))?.path();
            if path.extension() == Some(OsStr::new("crt"))
                && let Some(id) =
                    path.file_stem().and_then(OsStr::to_str).and_then(|name| name.parse().ok())
            {
                waiting.push(id);
            }
        }
        Ok(waiting)
    }

    pub(super) fn path_of(&self, id: NodeId, extension: &str) -> PathBuf {
        self.folder().join(format!("{id}.{extension}"))
    }

    fn remove(&self, id: NodeId, extension: &str) -> Result<(), KeyStoreError> {
        let path = self.path_of(id, extension);
        remove(&path).map_err(|error| io_error(&path, error))
    }

    fn sync(&self) -> Result<(), KeyStoreError> {
        let folder = self.folder();
        sync_folder(&folder).map_err(|error| io_error(&folder, error))
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), KeyStoreError> {
    fs::rename(from, to).map_err(|error| io_error(from, error))
}

fn io_error(path: &Path, source: io::Error) -> KeyStoreError {
    KeyStoreError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::keys::identity::succeeded;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    struct Old {
        dir: tempfile::TempDir,
        store: KeyStore,
        key: KeyPair,
        next: KeyPair,
        chain: Identity,
    }

    /// A key store with a pending generation.
    fn waiting() -> Old {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        let (key, identity) = store.load_or_create(NOW).unwrap();
        let next = KeyPair::from_seed(&[2; 32]);
        let chain = succeeded(&identity, &key, &next, NOW, DEFAULT_LIFETIME).unwrap();
        store.add(&next, &chain).unwrap();
        Old { dir, store, key, next, chain }
    }

    fn files(old: &Old) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(old.dir.path().join("keys")).unwrap();
        let read = |path: PathBuf| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        };
        entries.map(|entry| read(entry.unwrap().path())).collect()
    }

    fn names(old: &Old) -> Vec<String> {
        files(old).into_keys().collect()
    }

    #[test]
    fn owner_row_of_the_store_decides_which_key_is_used() {
        let old = waiting();
        let (key, _) = old.store.load_for(None, NOW).unwrap();
        assert_eq!(key.node_id(), old.key.node_id());
        assert_eq!(names(&old).len(), 5, "a store without an owner row decides nothing");
        let (key, identity) = old.store.load_for(Some(old.next.node_id()), NOW).unwrap();
        assert_eq!((key.node_id(), &identity), (old.next.node_id(), &old.chain));
        assert_eq!(
            names(&old),
            ["node.crt", "node.key", "transport.key", &format!("{}.key", old.key.node_id())],
            "the old key stays"
        );
        let (key, _) = old.store.load_for(Some(old.next.node_id()), NOW).unwrap();
        assert_eq!(key.node_id(), old.next.node_id());
    }

    #[test]
    fn unfinished_renewal_is_removed() {
        let old = waiting();
        // The process was killed while it wrote a file.
        std::mem::forget(
            old.store.write(&old.store.path_of(old.next.node_id(), "key"), "half a k").unwrap(),
        );
        assert_eq!(names(&old).len(), 6);
        let (key, _) = old.store.load_for(Some(old.key.node_id()), NOW).unwrap();
        assert_eq!(key.node_id(), old.key.node_id());
        assert_eq!(names(&old), ["node.crt", "node.key", "transport.key"]);
    }

    #[test]
    fn store_of_another_node_changes_no_key_file() {
        let old = waiting();
        let before = files(&old);
        let stranger = KeyPair::from_seed(&[9; 32]).node_id();
        let (key, _) = old.store.load_for(Some(stranger), NOW).unwrap();
        assert_eq!(key.node_id(), old.key.node_id(), "the core refuses it then");
        assert_eq!(files(&old), before);
        let empty = tempfile::tempdir().unwrap();
        let error = KeyStore::new(empty.path()).load_for(Some(stranger), NOW).unwrap_err();
        assert!(matches!(error, KeyStoreError::Missing { .. }), "{error}");
        assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
    }

    #[test]
    fn crash_at_any_step_leaves_one_key() {
        // All states of the directory between the first file of a renewal and its last one, by the
        // owner of the store.
        let present = |old: &Old| {
            (old.store.load_key().unwrap().unwrap(), old.store.load_identity().unwrap().unwrap())
        };
        type Step = (&'static str, bool, fn(&Old));
        let steps: [Step; 6] = [
            ("certificates without their key, at the start or during its removal", false, |old| {
                fs::remove_file(old.store.path_of(old.next.node_id(), "key")).unwrap();
            }),
            ("waiting", false, |_| {}),
            ("owned", true, |_| {}),
            ("former linked", true, |old| {
                fs::hard_link(old.store.key_path(), old.store.path_of(old.key.node_id(), "key"))
                    .unwrap();
            }),
            ("certificates in place", true, |old| {
                fs::hard_link(old.store.key_path(), old.store.path_of(old.key.node_id(), "key"))
                    .unwrap();
                fs::rename(old.store.path_of(old.next.node_id(), "crt"), old.store.chain_path())
                    .unwrap();
            }),
            ("all in place", true, |old| old.store.activate(old.next.node_id()).unwrap()),
        ];
        for (step, done, act) in steps {
            let old = waiting();
            act(&old);
            let owner = if done { old.next.node_id() } else { old.key.node_id() };
            let (key, identity) = old.store.load_for(Some(owner), NOW).unwrap();
            assert_eq!(key.node_id(), owner, "{step}");
            let newest = Certificate::parse(&identity.chain[0]).unwrap().node_id();
            assert_eq!((newest, identity.chain.len()), (owner, if done { 2 } else { 1 }), "{step}");
            assert_eq!(present(&old).0.node_id(), owner, "{step}");
            assert_eq!(present(&old).1, identity, "{step}");
            assert_eq!(names(&old).len(), if done { 4 } else { 3 }, "{step}: {:?}", names(&old));
        }
    }

    #[test]
    fn started_activation_is_completed_without_a_store() {
        let old = waiting();
        fs::rename(old.store.path_of(old.next.node_id(), "crt"), old.store.chain_path()).unwrap();
        let (key, identity) = old.store.load_or_create(NOW).unwrap();
        assert_eq!((key.node_id(), identity), (old.next.node_id(), old.chain.clone()));
    }

    #[cfg(unix)]
    #[test]
    fn every_key_file_is_private_to_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let old = waiting();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(old.store.path_of(old.next.node_id(), "key")), 0o600);
        old.store.activate(old.next.node_id()).unwrap();
        assert_eq!(mode(old.store.key_path()), 0o600);
        assert_eq!(mode(old.store.path_of(old.key.node_id(), "key")), 0o600);
    }

    #[test]
    fn forgotten_generation_is_removed() {
        let old = waiting();
        old.store.forget(old.next.node_id()).unwrap();
        assert_eq!(names(&old), ["node.crt", "node.key", "transport.key"]);
        assert_eq!(old.store.load_identity().unwrap().unwrap().chain, old.chain.chain[1..]);
    }
}
