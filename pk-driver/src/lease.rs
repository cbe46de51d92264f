//! Connections that are held.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream as Items;
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

/// Items that come over a held connection, by [`Node::with_conn_stream`]. The connection is released when the items are over
/// or this is dropped.
pub struct ConnectionStream<R, S> {
    /// `None` once they are over.
    items: Option<Pin<Box<S>>>,
    lease: Option<Arc<ConnectionLease<R>>>,
}

impl<R, S> ConnectionStream<R, S> {
    pub(crate) fn new(lease: Arc<ConnectionLease<R>>, items: S) -> Self {
        Self { items: Some(Box::pin(items)), lease: Some(lease) }
    }

    /// The connection; `None` once the items are over.
    pub fn lease(&self) -> Option<&ConnectionLease<R>> {
        self.lease.as_deref()
    }
}

impl<R, S: Items> Items for ConnectionStream<R, S> {
    type Item = S::Item;

    /// After the end there is nothing but the end.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let Some(items) = &mut self.items else { return Poll::Ready(None) };
        let item = items.as_mut().poll_next(cx);
        if let Poll::Ready(None) = item {
            self.items = None;
            self.lease = None;
        }
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.items.as_ref().map_or((0, Some(0)), Items::size_hint)
    }
}

impl<R, S> fmt::Debug for ConnectionStream<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionStream")
            .field("node", &self.lease().map(ConnectionLease::node))
            .finish_non_exhaustive()
    }
}
