//! Generations of keys: the next one waits beside the present one until the renewal is done; former ones stay.
//!
//! - `node.key`, `node.crt`: the present generation;
//! - `ID.key` and `ID.crt`: one that waits. Which of the two is the node's is what its store says: it changes its owner in
//!   one transaction, and that is the renewal. So a crash at any moment leaves one key;
//! - `ID.key` alone: a former one.
//!
//! The certificates of a waiting generation are written before its key, and take their place before it: a waiting key
//! always has its certificates, and a present certificate that is not of the present key tells that a change had begun.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pk_proto::cert::Certificate;
use pk_proto::{Identity, NodeId, UnixMillis};

use super::{KeyStore, KeyStoreError, read_chain, read_key};
use crate::files::{remove, sweep, sync_folder};
use crate::identity::IdentityError;
use crate::keys::KeyPair;

impl KeyStore {
    /// As [`load_or_create`](Self::load_or_create), for a store that belongs to `owner`: its key becomes the present one if
    /// it was waiting, and whatever else was waiting goes. `None` is a store that belongs to nobody yet.
    ///
    /// For who has the folder to itself: what killed processes have left half-written goes, too. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`]; [`KeyStoreError::Missing`] if the owner's key and its successors' are not here, and then nothing was
    /// changed.
    pub fn load_for(&self, owner: Option<NodeId>, now: UnixMillis) -> Result<(KeyPair, Identity), KeyStoreError> {
        let Some(owner) = owner else {
            let loaded = self.load_or_create(now)?;
            self.sweep()?;
            return Ok(loaded);
        };
        self.finish_activation()?;
        let present = self.load_key()?.map(|key| key.node_id());
        if present != Some(owner) {
            if self.is_waiting(owner)? {
                self.activate(owner)?;
            } else if present.is_none() {
                return Err(KeyStoreError::Missing { folder: self.folder(), owner });
            }
            // A key that is there and is another one is for the core to judge: it may be a successor.
        }
        let loaded = self.load_or_create(now)?;
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

    /// Writes the next generation, which waits.
    pub(crate) fn add(&self, key: &KeyPair, identity: &Identity) -> Result<(), KeyStoreError> {
        let id = key.node_id();
        self.write_chain(&self.path_of(id, "crt"), identity)?;
        self.write_key(&self.path_of(id, "key"), key)
    }

    /// Makes a waiting generation the present one. The present one becomes a former one.
    pub(crate) fn activate(&self, id: NodeId) -> Result<(), KeyStoreError> {
        if let Some(present) = self.load_key()? {
            let former = self.path_of(present.node_id(), "key");
            match fs::hard_link(self.key_path(), &former) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error(&former, error)),
                _ => self.sync()?,
            }
        }
        rename(&self.path_of(id, "crt"), &self.chain_path())?;
        self.sync()?;
        rename(&self.path_of(id, "key"), &self.key_path())?;
        self.sync()
    }

    /// Removes a generation that waits.
    pub(crate) fn forget(&self, id: NodeId) -> Result<(), KeyStoreError> {
        // The key first: without its certificates it would be taken for a former one.
        self.remove(id, "key")?;
        self.sync()?;
        self.remove(id, "crt")?;
        self.sync()
    }

    /// Ends an [`activate`](Self::activate) that a crash broke off after its certificates had taken their place.
    pub(super) fn finish_activation(&self) -> Result<(), KeyStoreError> {
        let (Some(key), Some(identity)) = (self.load_key()?, self.load_identity()?) else { return Ok(()) };
        let Some(newest) = identity.chain.first() else { return Ok(()) };
        let newest = Certificate::parse(newest).map_err(IdentityError::from)?.node_id();
        let path = self.path_of(newest, "key");
        if newest == key.node_id() || read_key(&path)?.is_none_or(|key| key.node_id() != newest) {
            return Ok(());
        }
        rename(&path, &self.key_path())?;
        self.sync()
    }

    /// Whether a generation waits, whole.
    fn is_waiting(&self, id: NodeId) -> Result<bool, KeyStoreError> {
        let key = read_key(&self.path_of(id, "key"))?;
        Ok(key.is_some_and(|key| key.node_id() == id) && read_chain(&self.path_of(id, "crt"))?.is_some())
    }

    /// Generations that wait, whole or not.
    pub(crate) fn waiting(&self) -> Result<Vec<NodeId>, KeyStoreError> {
        let folder = self.folder();
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| io_error(&folder, error))?,
        };
        let mut waiting = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| io_error(&folder, error))?.path();
            if path.extension() == Some(OsStr::new("crt"))
                && let Some(id) = path.file_stem().and_then(OsStr::to_str).and_then(|name| name.parse().ok())
            {
                waiting.push(id);
            }
        }
        Ok(waiting)
    }

    fn path_of(&self, id: NodeId, extension: &str) -> PathBuf {
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
    use crate::identity::{DEFAULT_LIFETIME, succeeded};

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    struct Old {
        dir: tempfile::TempDir,
        store: KeyStore,
        key: KeyPair,
        next: KeyPair,
        chain: Identity,
    }

    /// A key store with a generation that waits.
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
        let read = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
        entries.map(|entry| read(entry.unwrap().path())).collect()
    }

    fn names(old: &Old) -> Vec<String> {
        files(old).into_keys().collect()
    }

    #[test]
    fn the_store_says_which_key_is_the_node() {
        let old = waiting();
        let (key, _) = old.store.load_for(None, NOW).unwrap();
        assert_eq!(key.node_id(), old.key.node_id());
        assert_eq!(names(&old).len(), 4, "a store that says nothing decides nothing");
        let (key, identity) = old.store.load_for(Some(old.next.node_id()), NOW).unwrap();
        assert_eq!((key.node_id(), &identity), (old.next.node_id(), &old.chain));
        assert_eq!(names(&old), ["node.crt", "node.key", &format!("{}.key", old.key.node_id())], "the old key stays");
        let (key, _) = old.store.load_for(Some(old.next.node_id()), NOW).unwrap();
        assert_eq!(key.node_id(), old.next.node_id());
    }

    #[test]
    fn a_renewal_that_was_not_done_leaves_nothing() {
        let old = waiting();
        // Killed in the midst of a file.
        std::mem::forget(old.store.write(&old.store.path_of(old.next.node_id(), "key"), "half a k").unwrap());
        assert_eq!(names(&old).len(), 5);
        let (key, _) = old.store.load_for(Some(old.key.node_id()), NOW).unwrap();
        assert_eq!(key.node_id(), old.key.node_id());
        assert_eq!(names(&old), ["node.crt", "node.key"]);
    }

    #[test]
    fn a_store_of_somebody_else_changes_nothing() {
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
    fn a_crash_at_any_step_leaves_one_key() {
        // Everything that can lie there between the first file of a renewal and its last one, by who owns the store then.
        let present = |old: &Old| (old.store.load_key().unwrap().unwrap(), old.store.load_identity().unwrap().unwrap());
        type Step = (&'static str, bool, fn(&Old));
        let steps: [Step; 6] = [
            ("certificates without their key, at the beginning or when it is given up", false, |old| {
                fs::remove_file(old.store.path_of(old.next.node_id(), "key")).unwrap();
            }),
            ("waiting", false, |_| {}),
            ("owned", true, |_| {}),
            ("former linked", true, |old| {
                fs::hard_link(old.store.key_path(), old.store.path_of(old.key.node_id(), "key")).unwrap();
            }),
            ("certificates in place", true, |old| {
                fs::hard_link(old.store.key_path(), old.store.path_of(old.key.node_id(), "key")).unwrap();
                fs::rename(old.store.path_of(old.next.node_id(), "crt"), old.store.chain_path()).unwrap();
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
            assert_eq!(names(&old).len(), if done { 3 } else { 2 }, "{step}: {:?}", names(&old));
        }
    }

    #[test]
    fn a_change_that_had_begun_is_ended_without_a_store() {
        let old = waiting();
        fs::rename(old.store.path_of(old.next.node_id(), "crt"), old.store.chain_path()).unwrap();
        let (key, identity) = old.store.load_or_create(NOW).unwrap();
        assert_eq!((key.node_id(), identity), (old.next.node_id(), old.chain.clone()));
    }

    #[cfg(unix)]
    #[test]
    fn every_key_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let old = waiting();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(old.store.path_of(old.next.node_id(), "key")), 0o600);
        old.store.activate(old.next.node_id()).unwrap();
        assert_eq!(mode(old.store.key_path()), 0o600);
        assert_eq!(mode(old.store.path_of(old.key.node_id(), "key")), 0o600);
    }

    #[test]
    fn a_generation_that_is_given_up_is_gone() {
        let old = waiting();
        old.store.forget(old.next.node_id()).unwrap();
        assert_eq!(names(&old), ["node.crt", "node.key"]);
        assert_eq!(old.store.load_identity().unwrap().unwrap().chain, old.chain.chain[1..]);
    }
}
