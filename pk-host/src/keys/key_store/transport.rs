//! The transport secret on disk: `DIR/keys/transport.key`.

use std::io;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::{KeyStore, KeyStoreError, read};
use crate::keys::identity::IdentityError;
use crate::keys::transport_secret::TransportSecret;

const FORMAT: &str = "polykey-transport-secret";
const VERSION: u32 = 1;

impl KeyStore {
    /// Returns the transport secret of this node. [`load_or_create`](Self::load_or_create) creates
    /// it together with the keys; for a key store of an earlier version it is created here. A key
    /// renewal does not change it.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Any [`KeyStoreError`]; an existing file is never replaced.
    pub fn transport_secret(&self) -> Result<TransportSecret, KeyStoreError> {
        let path = self.transport_path();
        if let Some(secret) = read_secret(&path)? {
            return Ok(secret);
        }
        let secret = TransportSecret::generate().map_err(IdentityError::from)?;
        let encoded = Zeroizing::new(BASE64.encode(secret.to_bytes().as_ref()));
        let text = Zeroizing::new(format!("{FORMAT} {VERSION}\n{}\n", *encoded));
        match self.write(&path, &text)?.name() {
            Ok(()) => Ok(secret),
            // Another process was faster; its secret is used.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                read_secret(&path)?.ok_or(KeyStoreError::Io { path, source: error })
            }
            Err(source) => Err(KeyStoreError::Io { path, source }),
        }
    }

    pub(super) fn transport_path(&self) -> PathBuf {
        self.folder().join("transport.key")
    }
}

fn read_secret(path: &Path) -> Result<Option<TransportSecret>, KeyStoreError> {
    let Some(text) = read(path, FORMAT, true)? else { return Ok(None) };
    let malformed = |what| KeyStoreError::Malformed { path: path.to_owned(), what };
    let line = text.lines().nth(1).ok_or_else(|| malformed("there is no secret"))?;
    let bytes = BASE64
        .decode(line.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| malformed("the secret is not base64"))?;
    let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(
        bytes.as_slice().try_into().map_err(|_| malformed("the secret does not have 32 bytes"))?,
    );
    Ok(Some(TransportSecret::from_bytes(&bytes)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pk_proto::UnixMillis;

    use super::*;
    use crate::keys::identity::{DEFAULT_LIFETIME, succeeded};
    use crate::keys::pair::KeyPair;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn bytes(store: &KeyStore) -> Zeroizing<[u8; 32]> {
        store.transport_secret().unwrap().to_bytes()
    }

    #[test]
    fn transport_secret_is_created_with_the_keys_and_kept_by_renewals() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        let (key, identity) = store.load_or_create(NOW).unwrap();
        let file = fs::read(store.transport_path()).unwrap();
        let secret = bytes(&store);
        let next = KeyPair::from_seed(&[2; 32]);
        let chain = succeeded(&identity, &key, &next, NOW, DEFAULT_LIFETIME).unwrap();
        store.add(&next, &chain).unwrap();
        store.activate(next.node_id()).unwrap();
        store.load_for(Some(next.node_id()), NOW).unwrap();
        assert_eq!((fs::read(store.transport_path()).unwrap(), bytes(&store)), (file, secret));
    }

    /// A directory of an earlier version.
    #[test]
    fn missing_transport_secret_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        store.load_or_create(NOW).unwrap();
        let first = bytes(&store);
        fs::remove_file(store.transport_path()).unwrap();
        store.load_for(None, NOW).unwrap();
        assert!(store.transport_path().exists());
        let second = bytes(&store);
        assert_ne!(first, second);
        assert_eq!(second, bytes(&store));
    }

    #[cfg(unix)]
    #[test]
    fn transport_secret_is_private_to_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        store.transport_secret().unwrap();
        assert_eq!(
            fs::metadata(store.transport_path()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::set_permissions(store.transport_path(), fs::Permissions::from_mode(0o644)).unwrap();
        let error = store.transport_secret().unwrap_err();
        assert!(matches!(error, KeyStoreError::TooOpen { mode: 0o644, .. }), "{error}");
    }

    #[test]
    fn damaged_file_is_reported_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        store.transport_secret().unwrap();
        for (text, expected) in [
            ("", "is not a polykey-transport-secret file"),
            ("polykey-node-key 1\nAAAA\n", "is not a polykey-transport-secret file"),
            ("polykey-transport-secret 2\nx\n", "version 2, which is newer"),
            ("polykey-transport-secret 1\n", "there is no secret"),
            ("polykey-transport-secret 1\n###\n", "not base64"),
            ("polykey-transport-secret 1\nAAAA\n", "does not have 32 bytes"),
        ] {
            fs::write(store.transport_path(), text).unwrap();
            let error = store.transport_secret().unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(store.load_or_create(NOW).is_err());
            assert_eq!(fs::read_to_string(store.transport_path()).unwrap(), text);
        }
    }
}
