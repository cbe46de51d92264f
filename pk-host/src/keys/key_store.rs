//! The private key, the certificates and the transport secret of a node, on disk.
//!
//! `DIR/keys/node.key` contains the private key, `DIR/keys/node.crt` the certificate chain and
//! `DIR/keys/transport.key` the [transport secret](crate::TransportSecret). All are text: a first
//! line with the format and its version, then base64. A file is written under another name and then
//! renamed, so that a crash leaves either the old file or the new one. A key file is replaced only
//! by [its successor](generations).

mod generations;
#[cfg(test)]
mod tests;
mod transport;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use data_encoding::BASE64;
use pk_proto::cert::Certificate;
use pk_proto::{Identity, NodeId, UnixMillis};
use zeroize::Zeroizing;

use crate::keys::identity::{
    DEFAULT_LIFETIME, IdentityError, create_identity, relinked, renew_certificate,
};
use crate::keys::pair::KeyPair;
use crate::system::files::{Temporary, create_folder};

const KEY_FORMAT: &str = "polykey-node-key";
const CHAIN_FORMAT: &str = "polykey-node-certificates";
const VERSION: u32 = 1;
/// Maximum length of a file. A chain of 32 certificates of 8 KiB in base64 is shorter.
const MAX_FILE_LEN: u64 = 512 * 1024;

/// Returns the certificates of a key, given the stored ones.
type Issue<'a> = &'a dyn Fn(&KeyPair, Option<&Identity>) -> Result<Identity, KeyStoreError>;

/// The key store of one node.
#[derive(Debug, Clone)]
pub struct KeyStore {
    dir: PathBuf,
}

/// Why the key store cannot be used. No existing file was changed. [`KeyStore::load_or_create`] may
/// have created the key file before the certificates failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyStoreError {
    /// A file or directory cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Users other than the owner can read the key file.
    #[error(
        "{path} contains a private key and other users can read it (mode {mode:o}); run \
        `chmod 600` on it"
    )]
    TooOpen {
        /// File.
        path: PathBuf,
        /// Permission bits of the file.
        mode: u32,
    },
    /// The file has another format.
    #[error("{path} is not a {format} file")]
    Foreign {
        /// File.
        path: PathBuf,
        /// Expected format.
        format: &'static str,
    },
    /// A newer program wrote the file.
    #[error("{path} has version {version}, which is newer than this program supports ({VERSION})")]
    Newer {
        /// File.
        path: PathBuf,
        /// Version in the file.
        version: u32,
    },
    /// The file has the right format, but its content is damaged.
    #[error("{path} is damaged: {what}")]
    Malformed {
        /// File.
        path: PathBuf,
        /// What is damaged.
        what: &'static str,
    },
    /// A key exists already.
    #[error("{path} exists already; a key is never replaced")]
    Exists {
        /// File.
        path: PathBuf,
    },
    /// The store belongs to a node whose key is not in the key store.
    #[error("the store belongs to node {owner}, whose key is not in {dir}")]
    Missing {
        /// Directory of the key store.
        dir: PathBuf,
        /// Owner of the store.
        owner: NodeId,
    },
    /// The certificates cannot be created.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl KeyStore {
    /// Returns the key store in a directory, which need not exist yet. Reads and writes nothing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Loads the key and the certificates of this node. Creates what is missing: the directory, a
    /// new key, a first certificate, the [transport secret](Self::transport_secret). Reissues the
    /// newest certificate if it is past two thirds of its validity or, after the clock was set
    /// back, not valid yet; older ones if they are not valid now and their keys are available. The
    /// chain of ids does not change.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`].
    pub fn load_or_create(&self, now: UnixMillis) -> Result<(KeyPair, Identity), KeyStoreError> {
        self.load_with(&|key, stored| self.issued(key, stored, now))
    }

    /// Loads the key, or creates one, with the certificates that `issue` returns for it and for the
    /// stored ones.
    fn load_with(&self, issue: Issue<'_>) -> Result<(KeyPair, Identity), KeyStoreError> {
        self.finish_activation()?;
        let key = match self.load_key()? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate().map_err(IdentityError::from)?;
                self.save_key(&key)?;
                key
            }
        };
        let stored = self.load_identity()?;
        let identity = issue(&key, stored.as_ref())?;
        self.transport_secret()?;
        if stored.as_ref() != Some(&identity) && !identity.chain.is_empty() {
            self.save_identity(&identity)?;
        }
        Ok((key, identity))
    }

    /// Returns the certificates of a key that issues them itself.
    fn issued(
        &self,
        key: &KeyPair,
        stored: Option<&Identity>,
        now: UnixMillis,
    ) -> Result<Identity, KeyStoreError> {
        match stored {
            Some(identity) => self.reissued(identity, key, now),
            None => Ok(create_identity(key, now)?),
        }
    }

    /// Returns the identity with the certificates reissued that need it.
    fn reissued(
        &self,
        identity: &Identity,
        key: &KeyPair,
        now: UnixMillis,
    ) -> Result<Identity, KeyStoreError> {
        let renewed = renew_certificate(identity, key, now)?;
        if renewed.is_some() {
            warn_about_clock(identity, now);
        }
        let identity = renewed.unwrap_or_else(|| identity.clone());
        Ok(relinked(&identity, &|id| self.key_of(id, key), now, DEFAULT_LIFETIME)?)
    }

    /// Returns a key of this node: the present one, or a former one that can be read.
    pub fn key_of(&self, id: NodeId, present: &KeyPair) -> Option<KeyPair> {
        if id == present.node_id() {
            return Some(present.clone());
        }
        read_key(&self.path_of(id, "key")).ok().flatten().filter(|key| key.node_id() == id)
    }

    /// Returns the key, if there is one.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`] about the key file.
    pub fn load_key(&self) -> Result<Option<KeyPair>, KeyStoreError> {
        read_key(&self.key_path())
    }

    /// Returns the certificates, if there are any. Creates and reissues none.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`] about the certificate file.
    pub fn load_identity(&self) -> Result<Option<Identity>, KeyStoreError> {
        read_chain(&self.chain_path())
    }

    /// Writes the key of a node that has none yet.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::Exists`] if there is a key; it is not changed.
    pub fn save_key(&self, key: &KeyPair) -> Result<(), KeyStoreError> {
        self.write_key(&self.key_path(), key)
    }

    /// Replaces the certificates.
    ///
    /// # Errors
    ///
    /// They cannot be written; the old ones are unchanged.
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
        self.write(path, &text)?
            .replace()
            .map_err(|source| KeyStoreError::Io { path: path.to_owned(), source })
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

    /// Writes a temporary file beside `path` that only the owner can read, and syncs it to the
    /// disk.
    fn write(&self, path: &Path, text: &str) -> Result<Temporary, KeyStoreError> {
        let folder = self.folder();
        create_folder(&folder)
            .map_err(|source| KeyStoreError::Io { path: folder.clone(), source })?;
        Temporary::with(path, text.as_bytes())
            .map_err(|source| KeyStoreError::Io { path: path.to_owned(), source })
    }
}

/// Logs a warning if the certificate to be replaced is not valid yet: the clock was wrong then, or
/// is wrong now.
fn warn_about_clock(identity: &Identity, now: UnixMillis) {
    let newest = identity.chain.first().and_then(|der| Certificate::parse(der).ok());
    if let Some(from) = newest.map(|newest| UnixMillis::from_secs(newest.not_before()))
        && now < from
    {
        tracing::warn!(
            "the certificate of this node is valid from {from} on and the clock reads {now}: the \
                clock was ahead, or is behind now; the certificate is reissued"
        );
    }
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, KeyStoreError> {
    let Some(text) = read(path, KEY_FORMAT, true)? else { return Ok(None) };
    let malformed = |what| KeyStoreError::Malformed { path: path.to_owned(), what };
    let line = text.lines().nth(1).ok_or_else(|| malformed("there is no key"))?;
    let seed = BASE64
        .decode(line.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| malformed("the key is not base64"))?;
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(
        seed.as_slice().try_into().map_err(|_| malformed("the key does not have 32 bytes"))?,
    );
    Ok(Some(KeyPair::from_seed(&seed)))
}

fn read_chain(path: &Path) -> Result<Option<Identity>, KeyStoreError> {
    let Some(text) = read(path, CHAIN_FORMAT, false)? else { return Ok(None) };
    let malformed = |what| KeyStoreError::Malformed { path: path.to_owned(), what };
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

/// Returns the text of a file after its first line, which is checked; `None` if there is no file.
fn read(
    path: &Path,
    format: &'static str,
    secret: bool,
) -> Result<Option<Zeroizing<String>>, KeyStoreError> {
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
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(metadata.len().min(MAX_FILE_LEN)).unwrap_or(0),
    ));
    file.take(MAX_FILE_LEN).read_to_end(&mut bytes).map_err(io)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| foreign())?;
    let version =
        text.lines().next().and_then(|line| line.strip_prefix(format)).ok_or_else(foreign)?;
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
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(KeyStoreError::TooOpen { path: path.to_owned(), mode })
    }
}

#[cfg(not(unix))]
fn check_private(_: &Path, _: &fs::Metadata) -> Result<(), KeyStoreError> {
    Ok(())
}
