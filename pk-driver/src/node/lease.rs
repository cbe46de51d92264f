//! Leases of connections.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream as Items;
use pk_proto::{ConnectionInfo, NodeId, Reply, Request, RequestOptions};

use crate::error::{NodeError, unexpected};
use crate::node::Node;
use crate::pump::handle_registry::LeaseToken;
use crate::stream::Stream;

impl<R> Node<R> {
    /// Searches for a node and acquires a lease, which keeps the connection from being closed for
    /// idleness.
    pub async fn acquire_connection(
        &self,
        target: NodeId,
        options: RequestOptions,
    ) -> Result<ConnectionLease<R>, NodeError> {
        let answer = self.request(Request::AcquireConnection { target, options }).await?;
        match (answer.reply, answer.lease) {
            (Reply::AcquireConnection { connection, .. }, Some(token)) => {
                Ok(ConnectionLease::new(self.clone(), connection, token))
            }
            (other, _) => unexpected(&other),
        }
    }

    /// Runs `with` while a connection to the node is leased, then releases it.
    ///
    /// ```no_run
    /// # use pk_driver::{Node, NodeError, Runtime};
    /// # use pk_proto::{NodeId, RequestOptions};
    /// # async fn example<R: Runtime>(node: Node<R>, peer: NodeId) -> Result<(), NodeError> {
    /// let sent = node
    ///     .with_conn(peer, RequestOptions::default(), async |conn| {
    ///         let mut stream = conn.open_stream("greeting/1").await?;
    ///         stream.write_all(b"hello").await.map(|()| stream.finish()).ok();
    ///         Ok::<_, NodeError>(true)
    ///     })
    ///     .await??;
    /// # let _ = sent; Ok(()) }
    /// ```
    pub async fn with_conn<T>(
        &self,
        target: NodeId,
        options: RequestOptions,
        with: impl AsyncFnOnce(&ConnectionLease<R>) -> T,
    ) -> Result<T, NodeError> {
        let lease = self.acquire_connection(target, options).await?;
        Ok(with(&lease).await)
    }

    /// Like [`with_conn`](Self::with_conn), for a stream of items: the connection is leased until
    /// the items of `with` end or are dropped.
    ///
    /// ```no_run
    /// # use pk_driver::{Node, NodeError, Runtime};
    /// # use pk_proto::{NodeId, RequestOptions};
    /// # use futures_util::stream;
    /// # async fn example<R: Runtime>(node: Node<R>, peer: NodeId) -> Result<(), NodeError> {
    /// let chunks = node
    ///     .with_conn_stream(peer, RequestOptions::default(), async |conn| {
    ///         let stream = conn.open_stream("feed/1").await?;
    ///         Ok(stream::unfold(stream, async |mut stream| {
    ///             let chunk = stream.read_chunk(4096).await.ok()??;
    ///             Some((chunk, stream))
    ///         }))
    ///     })
    ///     .await?;
    /// # drop(chunks); Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`acquire_connection`](Self::acquire_connection) and of `with`; the lease is
    /// released.
    pub async fn with_conn_stream<S: futures_core::Stream>(
        &self,
        target: NodeId,
        options: RequestOptions,
        with: impl AsyncFnOnce(Arc<ConnectionLease<R>>) -> Result<S, NodeError>,
    ) -> Result<ConnectionStream<R, S>, NodeError> {
        let lease = Arc::new(self.acquire_connection(target, options).await?);
        let items = with(Arc::clone(&lease)).await?;
        Ok(ConnectionStream::new(lease, items))
    }
}

/// A connection to a node that is not closed for idleness while this is held. Dropping it releases
/// the lease.
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

    /// Returns the peer.
    pub fn node(&self) -> NodeId {
        self.connection.node
    }

    /// Returns the connection as it was when it was acquired.
    pub fn info(&self) -> &ConnectionInfo {
        &self.connection
    }

    /// Opens a stream of an application protocol to the peer.
    ///
    /// # Errors
    ///
    /// Those of [`Node::open_stream`].
    pub async fn open_stream(&self, protocol: impl Into<String>) -> Result<Stream, NodeError> {
        self.node.open_stream(self.connection.node, protocol, RequestOptions::default()).await
    }

    /// Waits until the connection is lost or the node has shut down. Cancel safe. Resolves at once
    /// if that has happened before.
    pub async fn lost(&mut self) {
        if !self.token.is_terminated() {
            // An error means that the node has ended.
            drop((&mut self.token).await);
        }
    }
}

/// Items received over a leased connection, from [`Node::with_conn_stream`]. The lease is released
/// when the items end or this is dropped.
pub struct ConnectionStream<R, S> {
    /// `None` after the end.
    items: Option<Pin<Box<S>>>,
    lease: Option<Arc<ConnectionLease<R>>>,
}

impl<R, S> ConnectionStream<R, S> {
    pub(crate) fn new(lease: Arc<ConnectionLease<R>>, items: S) -> Self {
        Self { items: Some(Box::pin(items)), lease: Some(lease) }
    }

    /// Returns the lease, or `None` after the end of the items.
    pub fn lease(&self) -> Option<&ConnectionLease<R>> {
        self.lease.as_deref()
    }
}

impl<R, S: Items> Items for ConnectionStream<R, S> {
    type Item = S::Item;

    /// After the end, returns the end again.
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
