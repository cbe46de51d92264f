//! Errors of the driver.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use pk_proto::{Failure, NodeId, Reply, RequestError, SnapshotError};

use crate::config::DriverConfigError;
use pk_host::IdentityError;
use pk_host::KeyStoreError;
use pk_host::StoreError;
#[cfg(feature = "redb")]
use pk_host::StoreOpenError;

/// Why a call of [`Node`](crate::Node) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The node could not be started. Nothing is left running.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The request was refused at once. Nothing was done.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The request failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The protocol already has an acceptor; drop that one first.
    #[error("protocol `{0}` already has an acceptor")]
    ProtocolTaken(String),
    /// The core returned a reply of another kind than requested: a defect of the core or the
    /// driver.
    #[error("the core returned an unexpected kind of reply")]
    Unexpected,
    /// A key or certificate cannot be written.
    #[error("key store: {0}")]
    Keys(#[from] KeyStoreError),
    /// A key or certificate cannot be created.
    #[error("identity: {0}")]
    Identity(#[from] IdentityError),
    /// A thread cannot be spawned.
    #[error("failed to spawn thread: {0}")]
    Thread(io::Error),
    /// The node has shut down.
    #[error("the node has shut down")]
    Closed,
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting of the driver is outside its range.
    #[error("driver configuration: {0}")]
    Driver(#[from] DriverConfigError),
    /// A setting of the core is outside its range, or the identity is invalid.
    #[error(transparent)]
    Core(#[from] pk_proto::StartError),
    /// The node cannot listen on the address.
    #[error("cannot listen on UDP {addr}: {source}")]
    Bind {
        /// Address to listen on.
        addr: SocketAddr,
        /// Cause; `AddrInUse` if another process uses the address.
        source: io::Error,
    },
    /// The certificates cannot be created or parsed.
    #[error("identity: {0}")]
    Identity(#[from] IdentityError),
    /// The newest certificate belongs to another key.
    #[error("the newest certificate belongs to {certificate}, the private key to {key}")]
    ForeignKey {
        /// Node id of the certificate.
        certificate: NodeId,
        /// Node id of the key.
        key: NodeId,
    },
    /// TLS cannot be configured.
    #[error("TLS: {0}")]
    Tls(String),
    /// Reading system randomness failed.
    #[error("failed to read system randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// The key store cannot be used, or has no key for the store.
    #[error("key store: {0}")]
    Keys(#[from] KeyStoreError),
    /// The store cannot be opened. Its file was not changed.
    #[cfg(feature = "redb")]
    #[error("store: {0}")]
    Open(#[from] StoreOpenError),
    /// The store cannot be read.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The store contains rows that this program cannot read. It was not changed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The recording cannot be started.
    #[error("recording to {path}: {source}")]
    Record {
        /// File of the recording.
        path: PathBuf,
        /// Cause; `AlreadyExists` if the file exists.
        source: io::Error,
    },
    /// A network interface for mDNS does not exist.
    #[error("no network interface `{name}` for mDNS; existing interfaces: {}", known.join(", "))]
    MdnsInterface {
        /// Name given in [`MdnsInterfaces::Named`](crate::MdnsInterfaces::Named).
        name: String,
        /// Names of the existing interfaces.
        known: Vec<String>,
    },
    /// A thread cannot be spawned.
    #[error("failed to spawn thread: {0}")]
    Thread(io::Error),
    /// The node ended before it was ready.
    #[error("the node ended before it was ready")]
    Ended,
}

/// The core completes each request with its own kind of reply. If it did not, the caller gets an
/// error.
pub(crate) fn unexpected<T>(reply: &Reply) -> Result<T, NodeError> {
    tracing::error!(?reply, "the core returned an unexpected kind of reply");
    Err(NodeError::Unexpected)
}
