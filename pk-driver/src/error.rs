//! What can go wrong for an embedder.

use std::io;
use std::net::SocketAddr;

use pk_proto::{DisconnectReason, Failure, NodeId, RequestError};

use crate::config::DriverConfigError;
use crate::identity::IdentityError;
use crate::store::StoreError;

/// How a call of [`Node`](crate::Node) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The node could not be started. Nothing is left running.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The request was refused on the spot. Nothing was done.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The request failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The protocol has an acceptor already; drop that one first.
    #[error("streams of the protocol `{0}` are being accepted already")]
    ProtocolTaken(String),
    /// The core gave a reply of another kind than was asked for. Never, unless core or driver is defective.
    #[error("the core gave a reply of another kind than was asked for")]
    Unexpected,
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
    /// A setting of the core is outside its range, or the identity proves nothing.
    #[error(transparent)]
    Core(#[from] pk_proto::StartError),
    /// The address cannot be listened on.
    #[error("cannot listen on UDP {addr}: {source}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why; for an address in use, `AddrInUse`.
        source: io::Error,
    },
    /// The certificates cannot be made or read.
    #[error("identity: {0}")]
    Identity(#[from] IdentityError),
    /// The newest certificate is of another key.
    #[error("the newest certificate is of {certificate}, the private key of {key}")]
    ForeignKey {
        /// Whose certificate it is.
        certificate: NodeId,
        /// Whose key it is.
        key: NodeId,
    },
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(String),
    /// The operating system has no randomness to give.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// The store cannot be opened or read.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The node ended before it was ready.
    #[error("the node ended before it was ready")]
    Ended,
}

/// How an operation on a [`Stream`](crate::Stream) failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The peer aborted what it was sending, with this code. Nothing more can be read.
    #[error("the peer aborted the stream with code {0}")]
    Reset(u64),
    /// The peer does not want what we send, with this code. Nothing more can be written.
    #[error("the peer stopped the stream with code {0}")]
    Stopped(u64),
    /// We have ended this direction ourselves.
    #[error("this direction of the stream has been ended here")]
    Ended,
    /// The connection is over.
    #[error("the connection was lost: {0}")]
    ConnectionLost(DisconnectReason),
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Reset(_) | StreamError::Stopped(_) => io::ErrorKind::ConnectionReset,
            StreamError::Ended => io::ErrorKind::BrokenPipe,
            StreamError::ConnectionLost(_) => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}
