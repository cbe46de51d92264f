//! A running node, as the embedder holds it.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;

use pk_proto::{
    BucketIndex, Closest, ClosestLists, ConnectionInfo, FindNode, FindOutcome, Metrics, NodeAddress, NodeContact,
    NodeContactAddressData, NodeId, NodeManager, Options, Pong, Reply, Request, SeedNode, SetNode, SetNodeOutcome,
    Snapshot, Start, Synced,
};
use tokio::sync::{mpsc, oneshot};

use crate::accept::StreamAcceptor;
use crate::blocking;
use crate::desk::Answer;
use crate::error::{NodeError, StartError};
use crate::events::Events;
use crate::launch::{Handle, Launch, launch};
use crate::lease::{ConnectionLease, ConnectionStream};
use crate::metrics::DriverMetrics;
use crate::node_config::NodeConfig;
use crate::recording::Record;
use crate::renewal::{Custody, Upkeep};
use crate::runtime::Runtime;
use crate::store::{Store, StoreError};
use crate::stream::Stream;

/// A running node. Cheap to clone; every clone is the same node.
///
/// Calls wait for their turn in a bounded queue; a call that is dropped is cancelled. When the last clone is dropped (a
/// [`ConnectionLease`] has one) the node shuts down in the background; [`shutdown`](Self::shutdown) also waits for it.
pub struct Node<R> {
    pub(crate) handle: Handle<NodeManager>,
    pub(crate) custody: Arc<Custody>,
    accept_limit: usize,
    runtime: PhantomData<fn() -> R>,
}

impl<R> Clone for Node<R> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            custody: Arc::clone(&self.custody),
            accept_limit: self.accept_limit,
            runtime: PhantomData,
        }
    }
}

impl<R> fmt::Debug for Node<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.own_id()).field("addrs", &self.local_addrs()).finish_non_exhaustive()
    }
}

/// What a store knows; read where it may wait for its disk.
async fn snapshot(store: Box<dyn Store>) -> Result<(Box<dyn Store>, Snapshot), StartError> {
    let (store, rows) = if store.blocks() {
        let load = move || {
            let rows = store.load();
            (store, rows)
        };
        let loaded = blocking::spawn("pk-store-load", load).map_err(StartError::Thread)?.await;
        loaded.map_err(|_| StoreError("it could not be read".to_owned()))?
    } else {
        let rows = store.load();
        (store, rows)
    };
    Ok((store, Snapshot::from_rows(rows?)?))
}

impl<R: Runtime + Default> Node<R> {
    /// Starts a node and waits until it is ready.
    ///
    /// # Errors
    ///
    /// [`NodeError::Start`]; nothing is left running.
    pub async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        Self::start_on(R::default(), config).await
    }
}

impl<R: Runtime> Node<R> {
    /// Starts a node on a runtime and waits until it is ready.
    ///
    /// # Errors
    ///
    /// [`NodeError::Start`]; nothing is left running.
    pub async fn start_on(runtime: R, config: NodeConfig) -> Result<Self, NodeError> {
        config.check()?;
        let NodeConfig { key, identity, listen, core: config, driver, store, keys, seed, record } = config;
        let (store, snapshot) = snapshot(store).await?;
        let custody = Custody::new(key.clone(), identity.clone(), keys, driver.certificate_lifetime);
        let seed = match seed {
            Some(seed) => seed,
            None => {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).map_err(StartError::from)?;
                seed
            }
        };
        let accept_limit = driver.accept_limit;
        let streams = config.streams_per_connection;
        let presented = identity.clone();
        let buffer = record.as_ref().map(Record::buffer);
        let core = move |now, unix| {
            let start = Start { config, identity, snapshot, seed, now, unix };
            match buffer {
                Some(limit) => NodeManager::start_recorded(start, limit),
                None => NodeManager::start(start),
            }
        };
        let looks = Arc::clone(&custody);
        let upkeep = |handle| Some(Box::new(move || looks.look(&handle)) as Upkeep);
        let parts = Launch { key, identity: presented, listen, streams, driver, store, record };
        let (handle, ready) = launch(runtime, parts, core, upkeep)?;
        ready.await.map_err(|_| StartError::Ended)?;
        Ok(Self { handle, custody, accept_limit, runtime: PhantomData })
    }
}

impl<R> Node<R> {
    // -- what is known without asking

    /// The id of this node: of its newest key.
    pub fn own_id(&self) -> NodeId {
        self.handle.published.view().own_id
    }

    /// Where this node listens. An unspecified address means every address of the machine.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.handle.published.view().addrs.clone()
    }

    /// What the driver has counted, as of its last turn. Also after the shutdown.
    pub fn driver_metrics(&self) -> DriverMetrics {
        let mut metrics = self.handle.published.view().metrics;
        metrics.tasks = self.handle.tasks.live() as u64;
        metrics
    }

    /// What happens from now on.
    ///
    /// Ends of requests are not among it: their callers get them.
    pub fn events(&self) -> Events {
        Events::new(self.handle.events.upgrade().map(|events| events.subscribe()))
    }

    // -- questions to the core

    /// The nodes of one bucket.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`]. The same for every call below.
    pub async fn bucket(&self, index: BucketIndex) -> Result<Vec<(NodeId, NodeContact)>, NodeError> {
        self.handle
            .ask(move |core| core.bucket(index).into_iter().map(|(node, contact)| (node, contact.clone())).collect())
            .await
    }

    /// The nodes of the graph closest to a target, nearest first; exact.
    pub async fn closest_nodes(&self, target: NodeId, limit: usize) -> Result<Vec<(NodeId, NodeContact)>, NodeError> {
        self.handle
            .ask(move |core| {
                core.closest_nodes(target, limit).into_iter().map(|(node, contact)| (node, contact.clone())).collect()
            })
            .await
    }

    /// What is known of a node.
    pub async fn contact(&self, node: NodeId) -> Result<Option<NodeContact>, NodeError> {
        self.handle.ask(move |core| core.contact(node).cloned()).await
    }

    /// The connections that both sides accepted.
    pub async fn connections(&self) -> Result<Vec<ConnectionInfo>, NodeError> {
        self.handle.ask(NodeManager::connections).await
    }

    /// What the core has counted. See also [`driver_metrics`](Self::driver_metrics).
    pub async fn metrics(&self) -> Result<Metrics, NodeError> {
        self.handle.ask(NodeManager::metrics).await
    }

    /// What has been recorded since the last call, to be appended to what was there before. `None` if
    /// `NodeConfig::record` is not set, or the log grew over it and is lost.
    pub async fn take_recording(&self) -> Result<Option<Vec<u8>>, NodeError> {
        self.handle.call(|_, _, core| core.take_recording()).await
    }

    // -- changes that take no time

    /// Closes every connection with a node and returns how many.
    pub async fn disconnect(&self, node: NodeId) -> Result<usize, NodeError> {
        self.handle.call(move |_, cx, core| core.disconnect(node, cx.now)).await
    }

    /// Takes a node out of the graph; its connections stay. Returns whether it was there.
    pub async fn unset_node(&self, node: NodeId) -> Result<bool, NodeError> {
        self.handle.call(move |_, cx, core| core.unset_node(node, cx.now)).await
    }

    // -- requests. Dropping the future cancels the request.

    /// Searches for a node and connects to it. For the own id: learns the neighbourhood; never found.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`], [`NodeError::Failure`], [`NodeError::Closed`]. The same for every request.
    pub async fn find_node(&self, target: NodeId, find: FindNode) -> Result<FindOutcome, NodeError> {
        match self.request(Request::FindNode { target, find }).await?.reply {
            Reply::FindNode(outcome) => Ok(outcome),
            other => unexpected(&other),
        }
    }

    /// Finds a node and has it answer, over a live connection or a new one.
    pub async fn ping_node(&self, target: NodeId, options: Options) -> Result<Pong, NodeError> {
        match self.request(Request::PingNode { target, options }).await?.reply {
            Reply::PingNode(pong) => Ok(pong),
            other => unexpected(&other),
        }
    }

    /// Whether there is a live connection to the node, or else can be one to this address.
    pub async fn ping_node_address(
        &self,
        target: NodeId,
        address: NodeAddress,
        options: Options,
    ) -> Result<bool, NodeError> {
        match self.request(Request::PingNodeAddress { target, address, options }).await?.reply {
            Reply::PingNodeAddress(there) => Ok(there),
            other => unexpected(&other),
        }
    }

    /// Connects to a node at this address, if there is no live connection to it.
    pub async fn connect(
        &self,
        target: NodeId,
        address: NodeAddress,
        options: Options,
    ) -> Result<ConnectionInfo, NodeError> {
        match self.request(Request::Connect { target, address, options }).await?.reply {
            Reply::Connect(connection) => Ok(connection),
            other => unexpected(&other),
        }
    }

    /// Finds the node `relay` and connects to `target` through it, which signals, if there is no live connection to the
    /// node.
    pub async fn connect_through(
        &self,
        target: NodeId,
        relay: NodeId,
        options: Options,
    ) -> Result<ConnectionInfo, NodeError> {
        match self.request(Request::ConnectThrough { target, relay, options }).await?.reply {
            Reply::Connect(connection) => Ok(connection),
            other => unexpected(&other),
        }
    }

    /// Finds a node and keeps its connection from being closed for idleness as long as the lease is held.
    pub async fn acquire_connection(&self, target: NodeId, options: Options) -> Result<ConnectionLease<R>, NodeError> {
        let answer = self.request(Request::AcquireConnection { target, options }).await?;
        match (answer.reply, answer.lease) {
            (Reply::AcquireConnection { connection, .. }, Some(token)) => {
                Ok(ConnectionLease::new(self.clone(), connection, token))
            }
            (other, _) => unexpected(&other),
        }
    }

    /// Runs `with` while a connection to the node is held, and releases it then.
    ///
    /// ```no_run
    /// # use pk_driver::{Node, NodeError, Runtime};
    /// # use pk_proto::{NodeId, Options};
    /// # async fn example<R: Runtime>(node: Node<R>, peer: NodeId) -> Result<(), NodeError> {
    /// let sent = node
    ///     .with_conn(peer, Options::default(), async |conn| {
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
        options: Options,
        with: impl AsyncFnOnce(&ConnectionLease<R>) -> T,
    ) -> Result<T, NodeError> {
        let lease = self.acquire_connection(target, options).await?;
        Ok(with(&lease).await)
    }

    /// As [`with_conn`](Self::with_conn), for what comes one by one: the connection is held until the items that `with` gives
    /// are over, or are dropped.
    ///
    /// ```no_run
    /// # use pk_driver::{Node, NodeError, Runtime};
    /// # use pk_proto::{NodeId, Options};
    /// # use futures_util::stream;
    /// # async fn example<R: Runtime>(node: Node<R>, peer: NodeId) -> Result<(), NodeError> {
    /// let chunks = node
    ///     .with_conn_stream(peer, Options::default(), async |conn| {
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
    /// As [`acquire_connection`](Self::acquire_connection), and those of `with`; the connection is released.
    pub async fn with_conn_stream<S: futures_core::Stream>(
        &self,
        target: NodeId,
        options: Options,
        with: impl AsyncFnOnce(Arc<ConnectionLease<R>>) -> Result<S, NodeError>,
    ) -> Result<ConnectionStream<R, S>, NodeError> {
        let lease = Arc::new(self.acquire_connection(target, options).await?);
        let items = with(Arc::clone(&lease)).await?;
        Ok(ConnectionStream::new(lease, items))
    }

    /// Finds a node and opens a stream of an application protocol to it.
    pub async fn open_stream(
        &self,
        target: NodeId,
        protocol: impl Into<String>,
        options: Options,
    ) -> Result<Stream, NodeError> {
        let answer = self.request(Request::OpenStream { target, protocol: protocol.into(), options }).await?;
        match (answer.reply, answer.stream) {
            (Reply::OpenStream(_), Some(stream)) => Ok(stream),
            (other, _) => unexpected(&other),
        }
    }

    /// Accepts streams of an application protocol as long as the acceptor is held.
    ///
    /// # Errors
    ///
    /// [`NodeError::ProtocolTaken`], [`NodeError::Request`], [`NodeError::Closed`].
    pub async fn accept_streams(&self, protocol: impl Into<String>) -> Result<StreamAcceptor, NodeError> {
        let protocol = protocol.into();
        let (streams, accepted) = mpsc::channel(self.accept_limit);
        let name = protocol.clone();
        self.handle
            .call(move |desk, cx, core| {
                if desk.accepts(&name) {
                    return Err(NodeError::ProtocolTaken(name));
                }
                core.accept_protocol(name.clone(), cx.now)?;
                desk.accept(cx, name, streams);
                Ok(())
            })
            .await??;
        Ok(StreamAcceptor::new(protocol, accepted))
    }

    /// Finds the node `via` and asks it for the nodes closest to `target`.
    pub async fn ask_closest(
        &self,
        via: NodeId,
        target: NodeId,
        lists: ClosestLists,
        options: Options,
    ) -> Result<Closest, NodeError> {
        match self.request(Request::AskClosest { via, target, lists, options }).await?.reply {
            Reply::AskClosest(closest) => Ok(closest),
            other => unexpected(&other),
        }
    }

    /// Joins the network: connects to the seeds, then finds the own id. `blocking` waits for the latter.
    pub async fn sync_node_graph(
        &self,
        seeds: Vec<SeedNode>,
        blocking: bool,
        options: Options,
    ) -> Result<Synced, NodeError> {
        match self.request(Request::SyncNodeGraph { seeds, blocking, options }).await?.reply {
            Reply::SyncNodeGraph(synced) => Ok(synced),
            other => unexpected(&other),
        }
    }

    /// Puts a node into the graph on the embedder's word; `how` says what to do about a full bucket. It is told to nobody
    /// until a connection proves it.
    pub async fn set_node(
        &self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
        how: SetNode,
    ) -> Result<SetNodeOutcome, NodeError> {
        match self.request(Request::SetNode { node, address, data, how }).await?.reply {
            Reply::SetNode(outcome) => Ok(outcome),
            other => unexpected(&other),
        }
    }

    // -- the end

    /// Stops the node: requests end with `Stopped`, peers see their connections closed, tasks and the socket go. Waits for
    /// it, about a second at most, and for its store to be closed and its keys to be in their places, which a disk may delay;
    /// then its folder is free. The shutdown goes on if the future is dropped. Calling it again just waits.
    pub async fn shutdown(&self) {
        // Fails if the node has ended.
        let _ = self.handle.call(|_, cx, core| core.stop(cx.now)).await;
        self.handle.tasks.idle().await;
    }

    // -- how

    pub(crate) async fn request(&self, request: Request) -> Result<Answer, NodeError> {
        let (caller, answer) = oneshot::channel();
        self.handle
            .command(Box::new(move |desk, cx, core| {
                // A caller that has gone while the call waited for its turn wants nothing begun.
                if caller.is_closed() {
                    return;
                }
                match core.request(request, cx.now) {
                    Ok(id) => desk.wait(cx, id, caller),
                    Err(error) => {
                        let _ = caller.send(Err(error.into()));
                    }
                }
            }))
            .await?;
        answer.await.map_err(|_| NodeError::Closed)?
    }
}

/// The core answers each request with its own kind of reply. Were it not so, the caller is told.
pub(crate) fn unexpected<T>(reply: &Reply) -> Result<T, NodeError> {
    tracing::error!(?reply, "the core gave a reply of another kind than was asked for");
    Err(NodeError::Unexpected)
}
