//! What a node is started with.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use pk_proto::cert::Certificate;
use pk_proto::{Config, Identity, Snapshot};

use crate::clock::unix;
use crate::config::DriverConfig;
use crate::error::StartError;
use crate::identity::{IdentityError, create_identity};
use crate::keys::KeyPair;
use crate::store::{MemoryStore, Store};

/// What a node is made of.
pub struct NodeConfig {
    /// The private key of the node.
    pub key: KeyPair,
    /// The certificates that it presents; the newest is of `key`.
    pub identity: Identity,
    /// Where to listen; also where it dials from. Port 0 is any free one. Default `[::]:0`, which takes
    /// IPv4 too, and only IPv4 where there is no IPv6.
    pub listen: SocketAddr,
    /// The settings of the core. Default: its own, but for a `stop_timeout` of 700 ms.
    pub core: Config,
    /// The settings of the driver.
    pub driver: DriverConfig,
    /// Where tables are kept. Default: nowhere.
    pub store: Box<dyn Store>,
    /// What the node knew when it last ran.
    pub snapshot: Snapshot,
    /// All randomness of the core. Default: from the operating system; set it to repeat a run.
    pub seed: Option<[u8; 32]>,
    /// Keeps a log of everything that the core is told, to be replayed on a desk: of at most this many bytes between two
    /// calls of [`Node::take_recording`](crate::Node::take_recording). It tells whom the node talks to; it has no private
    /// keys. Default: none.
    pub record: Option<usize>,
}

impl NodeConfig {
    /// The defaults for a key with its certificates, as a [`KeyStore`](crate::KeyStore) has them.
    pub fn new(key: KeyPair, identity: Identity) -> Self {
        let mut core = Config::default();
        // Together with the driver's own end, a shutdown takes a second at most.
        core.stop_timeout = Duration::from_millis(700);
        Self {
            key,
            identity,
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            core,
            driver: DriverConfig::default(),
            store: Box::new(MemoryStore::new()),
            snapshot: Snapshot::default(),
            seed: None,
            record: None,
        }
    }

    /// The defaults for a key with a new certificate that is not kept.
    ///
    /// # Errors
    ///
    /// As [`create_identity`].
    pub fn ephemeral(key: KeyPair) -> Result<Self, IdentityError> {
        let identity = create_identity(&key, unix())?;
        Ok(Self::new(key, identity))
    }

    /// Checks what the core does not: the driver's settings, and that key and certificate belong together.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        self.driver.validate()?;
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
