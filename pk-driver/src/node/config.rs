//! Configuration of a node.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
#[cfg(feature = "redb")]
use std::path::Path;
use std::time::Duration;

use pk_proto::cert::Certificate;
use pk_proto::{Config, Identity, Snapshot};

use crate::config::DriverConfig;
use crate::error::StartError;
use crate::mdns;
use crate::pump::recording::Record;
#[cfg(feature = "redb")]
use pk_host::DirLock;
use pk_host::KeyPair;
use pk_host::KeyStore;
use pk_host::RootKey;
use pk_host::TransportSecret;
use pk_host::unix;
use pk_host::{IdentityError, create_identity};
use pk_host::{MemoryStore, Store};
#[cfg(feature = "redb")]
use pk_host::{RedbStore, StoreOpenError};

/// Parts and settings of a node.
pub struct NodeConfig {
    /// Private key of the node.
    pub key: KeyPair,
    /// Certificates that it presents; the newest belongs to `key`. With a `signer` it may be empty.
    pub identity: Identity,
    /// Root key, which certifies `key` as the hot key of the node; see [`Signer`](crate::Signer).
    /// The node waits for a signature at its start only if `identity` has no valid certificate.
    /// When a certificate is due while the node runs, a signer that does not sign is asked again
    /// after 1 s, then after twice the previous delay, up to 10 min
    /// ([`Node::certificate_failure`](crate::Node::certificate_failure)). Default: none; then the
    /// key certifies itself.
    pub signer: Option<RootKey>,
    /// Address to listen on and to dial from. Port 0 selects a free port. Default `[::]:0`, which
    /// includes IPv4, and is IPv4 only where there is no IPv6.
    pub listen: SocketAddr,
    /// Settings of the core. Default: those of the core, with a `stop_timeout` of 700 ms.
    pub core: Config,
    /// Settings of the driver.
    pub driver: DriverConfig,
    /// Store of the node's tables, with the rows of its last run. Default: memory only.
    pub store: Box<dyn Store>,
    /// Key store for new keys and certificates. Default: none; then a renewed key is lost at the
    /// end of the process.
    pub keys: Option<KeyStore>,
    /// Secret from which the QUIC endpoint derives its keys. If it is the same after a restart,
    /// peers notice the restart at once. Default: derived from `key`; a
    /// [`KeyStore`](crate::KeyStore) has one that key renewals do not change.
    pub transport_secret: TransportSecret,
    /// Seed of all random numbers of the core. Default: from the operating system. Set it to repeat
    /// a run.
    pub seed: Option<[u8; 32]>,
    /// Recording of all inputs of the core, for replay. Default: none.
    pub record: Option<Record>,
}

impl NodeConfig {
    /// Creates a configuration with defaults for a key and its certificates, for example from a
    /// [`KeyStore`](crate::KeyStore).
    pub fn new(key: KeyPair, identity: Identity) -> Self {
        let mut core = Config::default();
        // Together with the driver's own part, a shutdown takes about a second.
        core.stop_timeout = Duration::from_millis(700);
        Self {
            transport_secret: TransportSecret::of_key(&key),
            key,
            identity,
            signer: None,
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            core,
            driver: DriverConfig::default(),
            store: Box::new(MemoryStore::new()),
            keys: None,
            seed: None,
            record: None,
        }
    }

    /// Opens the node in a directory: its keys in `DIR/keys`, its store in `DIR/store.redb`.
    /// Creates what does not exist. The directory is locked until the node has shut down or this is
    /// dropped.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`StartError::Open`] if another process uses the directory, or the store is foreign, newer
    /// or damaged; then nothing was changed. The same applies to [`StartError::Snapshot`].
    /// [`StartError::Keys`].
    #[cfg(feature = "redb")]
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StartError> {
        let dir = dir.as_ref();
        let lock = DirLock::take(dir).map_err(StoreOpenError::from)?;
        let store = RedbStore::open(dir.join("store.redb"))?.holding(lock);
        Self::with_store(KeyStore::new(dir), store)
    }

    /// Like [`open`](Self::open), for a node whose root key a signer holds: the key in `DIR/keys`
    /// is its hot key. Does not wait for the signer, as [`Node::start`](crate::Node::start) does if
    /// there is no valid certificate.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    #[cfg(feature = "redb")]
    pub fn open_with_signer(dir: impl AsRef<Path>, root: RootKey) -> Result<Self, StartError> {
        let dir = dir.as_ref();
        let lock = DirLock::take(dir).map_err(StoreOpenError::from)?;
        let store = RedbStore::open(dir.join("store.redb"))?.holding(lock);
        Self::with_store_and_signer(KeyStore::new(dir), store, root)
    }

    /// Like [`with_store`](Self::with_store), for a node whose root key a signer holds.
    ///
    /// # Errors
    ///
    /// Those of [`with_store`](Self::with_store).
    pub fn with_store_and_signer(
        keys: KeyStore,
        mut store: impl Store,
        root: RootKey,
    ) -> Result<Self, StartError> {
        let owner = Snapshot::from_rows(store.load()?)?.meta.map(|meta| meta.owner);
        let (key, identity) = keys.load_uncertified(owner)?;
        let transport_secret = keys.transport_secret()?;
        Ok(Self {
            keys: Some(keys),
            store: Box::new(store),
            transport_secret,
            signer: Some(root),
            ..Self::new(key, identity)
        })
    }

    /// Creates a configuration from a key store and a store. The owner of the store determines the
    /// key.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`StartError::Store`], [`StartError::Snapshot`], [`StartError::Keys`].
    pub fn with_store(keys: KeyStore, mut store: impl Store) -> Result<Self, StartError> {
        let owner = Snapshot::from_rows(store.load()?)?.meta.map(|meta| meta.owner);
        let (key, identity) = keys.load_for(owner, unix())?;
        let transport_secret = keys.transport_secret()?;
        Ok(Self {
            keys: Some(keys),
            store: Box::new(store),
            transport_secret,
            ..Self::new(key, identity)
        })
    }

    /// Creates a configuration with defaults for a key with a new certificate that is not stored.
    ///
    /// # Errors
    ///
    /// Those of [`create_identity`].
    pub fn ephemeral(key: KeyPair) -> Result<Self, IdentityError> {
        let identity = create_identity(&key, unix())?;
        Ok(Self::new(key, identity))
    }

    /// Validates what the core does not: the settings of the driver, and that key and certificate
    /// match.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        self.driver.validate()?;
        if self.core.mdns {
            mdns::check(&self.driver.mdns)?;
        }
        if let Some(root) = &self.signer {
            root.validate().map_err(IdentityError::from)?;
            if self.identity.chain.is_empty() {
                return Ok(());
            }
        }
        let newest = self.identity.chain.first().ok_or(IdentityError::Empty)?;
        let certificate = Certificate::parse(newest).map_err(IdentityError::from)?.node_id();
        let key = self.key.node_id();
        if certificate == key { Ok(()) } else { Err(StartError::ForeignKey { certificate, key }) }
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig")
            .field("key", &self.key)
            .field("listen", &self.listen)
            .field("core", &self.core)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}
