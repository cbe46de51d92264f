//! The private key and the certificates of a node, on disk.
//!
//! `DIR/keys/node.key` holds the secret and `DIR/keys/node.crt` the certificate chain. Both are text: a first line that
//! names the format and its version, then base64. A file is written whole under another name and then given its own, so
//! that a crash leaves either the old file or the new one; a key file is never replaced but by [its
//! successor](generations).

mod generations;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use data_encoding::BASE64;
use pk_proto::{Identity, NodeId, UnixMillis};
use zeroize::Zeroizing;

use crate::files::{Temporary, create_folder};
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
    /// The store belongs to a node whose key is not here.
    #[error("the store is that of node {owner}, and its key is not in {folder}")]
    Missing {
        /// Where keys are.
        folder: PathBuf,
        /// Whose key.
        owner: NodeId,
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
        self.finish_activation()?;
        let key = match self.load_key()? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate().map_err(IdentityError::from)?;
                self.save_key(&key)?;
                key
            }
        };
        let (identity, fresh) = match self.load_identity()? {
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
        read_key(&self.key_path())
    }

    /// The certificates, if there are any. Makes and renews none.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`] about the file of certificates.
    pub fn load_identity(&self) -> Result<Option<Identity>, KeyStoreError> {
        read_chain(&self.chain_path())
    }

    /// Writes the key of a node that has none yet.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::Exists`] if there is one; it is left as it is.
    pub fn save_key(&self, key: &KeyPair) -> Result<(), KeyStoreError> {
        self.write_key(&self.key_path(), key)
    }

    /// Replaces the certificates.
    ///
    /// # Errors
    ///
    /// They cannot be written; the old ones are still there.
    pub fn save_identity(&self, identity: &Identity) -> Result<(), KeyStoreError> {
        self.write_chain(&self.chain_path(), identity)
    }

    fn write_key(&self, path: &Path, key: &KeyPair) -> Result<(), KeyStoreError> {
        let secret = Zeroizing::new(BASE64.encode(key.seed().as_ref()));
        let text = Zeroizing::new(format!("{KEY_FORMAT} {VERSION}\n{}\n", *secret));
        match self.write(path, &text)?.name() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(KeyStoreError::Exists { path: path.to_owned() })
            }
            named => named.map_err(|source| KeyStoreError::Io { path: path.to_owned(), source }),
        }
    }

    fn write_chain(&self, path: &Path, identity: &Identity) -> Result<(), KeyStoreError> {
        let mut text = format!("{CHAIN_FORMAT} {VERSION}\n");
        for certificate in &identity.chain {
            text.push_str(&BASE64.encode(certificate));
            text.push('\n');
        }
        self.write(path, &text)?.replace().map_err(|source| KeyStoreError::Io { path: path.to_owned(), source })
    }

    fn folder(&self) -> PathBuf {
        self.dir.join("keys")
    }

    fn key_path(&self) -> PathBuf {
        self.folder().join("node.key")
    }

    fn chain_path(&self) -> PathBuf {
        self.folder().join("node.crt")
    }

    /// Writes a file for the owner alone, beside where it is to be, down to the disk.
    fn write(&self, path: &Path, text: &str) -> Result<Temporary, KeyStoreError> {
        let folder = self.folder();
        create_folder(&folder).map_err(|source| KeyStoreError::Io { path: folder.clone(), source })?;
        Temporary::with(path, text.as_bytes()).map_err(|source| KeyStoreError::Io { path: path.to_owned(), source })
    }
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, KeyStoreError> {
    let Some(text) = read(path, KEY_FORMAT, true)? else { return Ok(None) };
    let malformed = |what| KeyStoreError::Malformed { path: path.to_owned(), what };
    let line = text.lines().nth(1).ok_or_else(|| malformed("there is no key"))?;
    let seed = BASE64.decode(line.as_bytes()).map(Zeroizing::new).map_err(|_| malformed("the key is not base64"))?;
    let seed: Zeroizing<[u8; 32]> =
        Zeroizing::new(seed.as_slice().try_into().map_err(|_| malformed("the key has not 32 bytes"))?);
    Ok(Some(KeyPair::from_seed(&seed)))
}

fn read_chain(path: &Path) -> Result<Option<Identity>, KeyStoreError> {
    let Some(text) = read(path, CHAIN_FORMAT, false)? else { return Ok(None) };
    let malformed = |what| KeyStoreError::Malformed { path: path.to_owned(), what };
    let decode = |line: &str| BASE64.decode(line.as_bytes()).map(Bytes::from);
    let chain: Vec<Bytes> =
        text.lines().skip(1).map(decode).collect::<Result<_, _>>().map_err(|_| malformed("a line is not base64"))?;
    if chain.is_empty() {
        return Err(malformed("there is no certificate"));
    }
    Ok(Some(Identity { chain }))
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
