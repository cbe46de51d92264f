//! Connections that are held.

use pk_proto::{ConnectionInfo, NodeId, Options};

use crate::desk::LeaseToken;
use crate::error::NodeError;
use crate::node::Node;
use crate::stream::Stream;

/// A connection to a node that is not closed for idleness while this is held. Dropping it releases it.
#[derive(Debug)]
pub struct ConnectionLease<R> {
    node: Node<R>,
    connection: ConnectionInfo,
    token: LeaseToken,
}

impl<R> ConnectionLease<R> {
    pub(crate) fn new(node: Node<R>, connection: ConnectionInfo, token: LeaseToken) -> Self {
        Self { node, connection, token }
    }

    /// The peer.
    pub fn node(&self) -> NodeId {
        self.connection.node
    }

    /// The connection as it was when it was acquired.
    pub fn info(&self) -> &ConnectionInfo {
        &self.connection
    }

    /// Opens a stream of an application protocol to the peer.
    ///
    /// # Errors
    ///
    /// As [`Node::open_stream`].
    pub async fn open_stream(&self, protocol: impl Into<String>) -> Result<Stream, NodeError> {
        self.node.open_stream(self.connection.node, protocol, Options::default()).await
    }

    /// Waits until the connection is lost, or the node has shut down. Dropping the future changes nothing; after it has
    /// resolved it resolves at once.
    pub async fn lost(&mut self) {
        if !self.token.is_terminated() {
            // An error is the end of the node.
            drop((&mut self.token).await);
        }
    }
}
