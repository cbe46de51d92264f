//! The private key and the certificates of a node, on disk.
//!
//! `DIR/keys/node.key` holds the secret and `DIR/keys/node.crt` the certificate chain. Both are text: a first line that
//! names the format and its version, then base64. A file is written whole under another name and then given its own, so
//! that a crash leaves either the old file or the new one; a key file is never replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use data_encoding::BASE64;
use pk_proto::{Identity, UnixMillis};
use zeroize::Zeroizing;

use crate::identity::{IdentityError, create_identity, renew_certificate};
use crate::keys::KeyPair;

const KEY_FORMAT: &str = "polykey-node-key";
const CHAIN_FORMAT: &str = "polykey-node-certificates";
const VERSION: u32 = 1;
/// No file of ours is longer: a chain of 32 certificates of 8 KiB in base64 is less.
const MAX_FILE_LEN: u64 = 512 * 1024;

/// The key store of one node.
#[derive(Debug, Clone)]
pub struct KeyStore {
    dir: PathBuf,
}

/// Why the key store cannot be used. No existing file was changed, but for [`KeyStore::load_or_create`] which may have
/// made the key file when the certificates failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyStoreError {
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key file can be read by others than its owner.
    #[error("{path} holds a private key and others may read it (mode {mode:o}); `chmod 600` it")]
    TooOpen {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not one of ours.
    #[error("{path} is not a {format} file")]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What it should be.
        format: &'static str,
    },
    /// A newer program wrote the file.
    #[error("{path} is of version {version}, which is newer than this program ({VERSION})")]
    Newer {
        /// Which.
        path: PathBuf,
        /// The version that it states.
        version: u32,
    },
    /// The file is ours, but what it holds is broken.
    #[error("{path} is damaged: {what}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is broken.
        what: &'static str,
    },
    /// There is a key already.
    #[error("{path} is there already; a key is never replaced")]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The certificates cannot be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl KeyStore {
    /// The key store in a folder, which need not be there yet. Touches nothing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The key of this node and its certificates. What is missing is made: the folder, a new key, a first certificate; a
    /// certificate past two thirds of its life is made anew.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`].
    pub fn load_or_create(&self, now: UnixMillis) -> Result<(KeyPair, Identity), KeyStoreError> {
        let key = match self.load_key()? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate().map_err(IdentityError::from)?;
                self.save_key(&key)?;
                key
            }
        };
        let (identity, fresh) = match self.load_chain()? {
            Some(identity) => match renew_certificate(&identity, &key, now)? {
                Some(renewed) => (renewed, true),
                None => (identity, false),
            },
            None => (create_identity(&key, now)?, true),
        };
        if fresh {
            self.save_identity(&identity)?;
        }
        Ok((key, identity))
    }

    /// The key, if there is one.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`] about the key file.
    pub fn load_key(&self) -> Result<Option<KeyPair>, KeyStoreError> {
        let path = self.key_path();
        let Some(text) = read(&path, KEY_FORMAT, true)? else { return Ok(None) };
        let malformed = |what| KeyStoreError::Malformed { path: path.clone(), what };
        let line = text.lines().nth(1).ok_or_else(|| malformed("there is no key"))?;
        let seed =
            BASE64.decode(line.as_bytes()).map(Zeroizing::new).map_err(|_| malformed("the key is not base64"))?;
        let seed: Zeroizing<[u8; 32]> =
            Zeroizing::new(seed.as_slice().try_into().map_err(|_| malformed("the key has not 32 bytes"))?);
        Ok(Some(KeyPair::from_seed(&seed)))
    }

    /// Writes the key of a node that has none yet.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::Exists`] if there is one; it is left as it is.
    pub fn save_key(&self, key: &KeyPair) -> Result<(), KeyStoreError> {
        let text = Zeroizing::new(format!("{KEY_FORMAT} {VERSION}\n{}\n", BASE64.encode(key.seed().as_ref())));
        let path = self.key_path();
        let temporary = self.write_temporary(&path, &text)?;
        // A hard link is refused where the name is taken, even by somebody who is quicker.
        let linked = fs::hard_link(&temporary, &path);
        let removed = fs::remove_file(&temporary);
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(KeyStoreError::Exists { path }),
            linked => linked.and(removed).map_err(|source| KeyStoreError::Io { path: path.clone(), source })?,
        }
        sync_folder(&path)
    }

    /// Replaces the certificates.
    ///
    /// # Errors
    ///
    /// They cannot be written; the old ones are still there.
    pub fn save_identity(&self, identity: &Identity) -> Result<(), KeyStoreError> {
        let mut text = format!("{CHAIN_FORMAT} {VERSION}\n");
        for certificate in &identity.chain {
            text.push_str(&BASE64.encode(certificate));
            text.push('\n');
        }
        let path = self.chain_path();
        let temporary = self.write_temporary(&path, &text)?;
        fs::rename(&temporary, &path).map_err(|source| KeyStoreError::Io { path: path.clone(), source })?;
        sync_folder(&path)
    }

    fn load_chain(&self) -> Result<Option<Identity>, KeyStoreError> {
        let path = self.chain_path();
        let Some(text) = read(&path, CHAIN_FORMAT, false)? else { return Ok(None) };
        let malformed = |what| KeyStoreError::Malformed { path: path.clone(), what };
        let decode = |line: &str| BASE64.decode(line.as_bytes()).map(Bytes::from);
        let chain: Vec<Bytes> = text
            .lines()
            .skip(1)
            .map(decode)
            .collect::<Result<_, _>>()
            .map_err(|_| malformed("a line is not base64"))?;
        if chain.is_empty() {
            return Err(malformed("there is no certificate"));
        }
        Ok(Some(Identity { chain }))
    }

    fn key_path(&self) -> PathBuf {
        self.dir.join("keys").join("node.key")
    }

    fn chain_path(&self) -> PathBuf {
        self.dir.join("keys").join("node.crt")
    }

    /// Writes a file for the owner alone, beside where it is to be, down to the disk.
    fn write_temporary(&self, path: &Path, text: &str) -> Result<PathBuf, KeyStoreError> {
        let folder = self.dir.join("keys");
        create_folder(&folder).map_err(|source| KeyStoreError::Io { path: folder.clone(), source })?;
        let temporary = path.with_extension(format!("tmp{}", std::process::id()));
        let write = || {
            // What a crashed process of the same number may have left is not worth keeping.
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = private().write(true).create_new(true).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|source| KeyStoreError::Io { path: temporary.clone(), source })?;
        Ok(temporary)
    }
}

/// The text of a file after its first line is understood; `None` if there is no file.
fn read(path: &Path, format: &'static str, secret: bool) -> Result<Option<Zeroizing<String>>, KeyStoreError> {
    let io = |source| KeyStoreError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io)?,
    };
    let metadata = file.metadata().map_err(io)?;
    if secret {
        check_private(path, &metadata)?;
    }
    let foreign = || KeyStoreError::Foreign { path: path.to_owned(), format };
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len().min(MAX_FILE_LEN)).unwrap_or(0)));
    file.take(MAX_FILE_LEN).read_to_end(&mut bytes).map_err(io)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| foreign())?;
    let version = text.lines().next().and_then(|line| line.strip_prefix(format)).ok_or_else(foreign)?;
    let version: u32 = version.trim().parse().map_err(|_| foreign())?;
    match version {
        VERSION => Ok(Some(Zeroizing::new(text.to_owned()))),
        0 => Err(foreign()),
        version => Err(KeyStoreError::Newer { path: path.to_owned(), version }),
    }
}

#[cfg(unix)]
fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), KeyStoreError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(KeyStoreError::TooOpen { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_private(_: &Path, _: &fs::Metadata) -> Result<(), KeyStoreError> {
    Ok(())
}

#[cfg(unix)]
fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

#[cfg(not(unix))]
fn private() -> OpenOptions {
    OpenOptions::new()
}

#[cfg(unix)]
fn create_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Brings a new name down to the disk.
#[cfg(unix)]
fn sync_folder(path: &Path) -> Result<(), KeyStoreError> {
    let folder = path.parent().unwrap_or(path);
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(|source| KeyStoreError::Io { path: folder.to_owned(), source })
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> Result<(), KeyStoreError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    #[test]
    fn what_is_made_once_is_loaded_ever_after() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path().join("new"));
        let (key, identity) = store.load_or_create(NOW).unwrap();
        let (again, same) = store.load_or_create(NOW).unwrap();
        assert_eq!((key.node_id(), &identity), (again.node_id(), &same));
        let names: Vec<_> =
            fs::read_dir(dir.path().join("new/keys")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing else is left behind: {names:?}");
    }

    #[test]
    fn an_old_certificate_is_renewed_under_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        let (key, identity) = store.load_or_create(NOW).unwrap();
        let later = UnixMillis(NOW.0 + 300 * 86_400_000);
        let (again, renewed) = store.load_or_create(later).unwrap();
        assert_eq!(key.node_id(), again.node_id());
        assert_ne!(identity, renewed);
        assert_eq!(store.load_or_create(later).unwrap().1, renewed);
    }

    #[test]
    fn a_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        store.save_key(&KeyPair::from_seed(&[1; 32])).unwrap();
        let error = store.save_key(&KeyPair::from_seed(&[2; 32])).unwrap_err();
        assert!(matches!(error, KeyStoreError::Exists { .. }), "{error}");
        assert_eq!(store.load_key().unwrap().unwrap().node_id(), KeyPair::from_seed(&[1; 32]).node_id());
    }

    #[cfg(unix)]
    #[test]
    fn a_key_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        store.save_key(&KeyPair::from_seed(&[1; 32])).unwrap();
        let path = store.key_path();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = store.load_key().unwrap_err().to_string();
        assert!(error.contains("mode 640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_ours_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        store.save_key(&KeyPair::from_seed(&[1; 32])).unwrap();
        let path = store.key_path();
        for (text, expected) in [
            ("", "is not a polykey-node-key file"),
            ("-----BEGIN PRIVATE KEY-----\n", "is not a polykey-node-key file"),
            ("polykey-node-key\n", "is not a polykey-node-key file"),
            ("polykey-node-key 0\n", "is not a polykey-node-key file"),
            ("polykey-node-key 2\nxyz\n", "version 2, which is newer"),
            ("polykey-node-key 1\n", "there is no key"),
            ("polykey-node-key 1\n###\n", "not base64"),
            ("polykey-node-key 1\nAAAA\n", "not 32 bytes"),
        ] {
            fs::write(&path, text).unwrap();
            let error = store.load_key().unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(store.load_or_create(NOW).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "nothing is overwritten");
        }
    }
}
