//! A running node.

mod claims;
pub(crate) mod config;
pub(crate) mod events;
mod graph;
mod identity;
pub(crate) mod lease;
pub(crate) mod renewal;

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;

use pk_proto::{
    BucketIndex, ClosestNodes, ClosestNodesQuery, ClosestOutcome, ConnectionInfo, FindNodeOptions,
    FindOutcome, Metrics, NodeAddress, NodeContact, NodeContactAddressData, NodeId, NodeManager,
    Pong, Reply, Request, RequestOptions, SeedNode, SetNodeOptions, SetNodeOutcome, Snapshot,
    Synced,
};
use tokio::sync::oneshot;

use crate::error::{NodeError, StartError, unexpected};
use crate::metrics::DriverMetrics;
use crate::node::config::NodeConfig;
use crate::node::events::Events;
use crate::node::renewal::IdentityManager;
use crate::port_mapping::lease::PortMapping;
use crate::pump::command::CertificateCheck;
use crate::pump::handle::Handle;
use crate::pump::handle_registry::Response;
use crate::pump::spawn::{PumpConfig, spawn_pump};
use crate::stream::Stream;
use crate::stream::accept::{AcceptQueue, StreamAcceptor};
use crate::system::blocking;
use crate::system::runtime::Runtime;
use pk_host::HostState;
use pk_host::{Store, StoreError};

/// A running node. Cheap to clone; every clone is a handle to the same node.
///
/// Calls wait in a bounded queue. A call whose future is dropped is cancelled. When the last clone
/// is dropped (a [`ConnectionLease`](crate::ConnectionLease) contains one), the node shuts down in
/// the background; [`shutdown`](Self::shutdown) also waits for it.
pub struct Node<R> {
    pub(crate) handle: Handle,
    pub(crate) identity_manager: Arc<IdentityManager>,
    accept_limit: usize,
    runtime: PhantomData<fn() -> R>,
}

impl<R> Clone for Node<R> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            identity_manager: Arc::clone(&self.identity_manager),
            accept_limit: self.accept_limit,
            runtime: PhantomData,
        }
    }
}

impl<R> fmt::Debug for Node<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.own_id())
            .field("addrs", &self.local_addrs())
            .finish_non_exhaustive()
    }
}

/// Loads the snapshot of a store; on a thread, if the store blocks.
async fn snapshot(mut store: Box<dyn Store>) -> Result<(Box<dyn Store>, Snapshot), StartError> {
    let (store, rows) = if store.blocks() {
        let load = move || {
            let rows = store.load();
            (store, rows)
        };
        let loaded = blocking::spawn("pk-store-load", load).map_err(StartError::Thread)?.await;
        loaded.map_err(|_| StoreError("the store could not be read".to_owned()))?
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
        Self::start_with_events(runtime, config).await.map(|(node, _)| node)
    }

    /// Starts a node on a runtime and waits until it is ready. Also returns a listener for all its
    /// events.
    ///
    /// What a node reports of its stored state, such as a forked chain, follows its start so
    /// closely that a later listener ([`events`](Self::events)) may miss it.
    ///
    /// # Errors
    ///
    /// [`NodeError::Start`]; nothing is left running.
    pub async fn start_with_events(
        runtime: R,
        config: NodeConfig,
    ) -> Result<(Self, Events), NodeError> {
        config.check()?;
        let NodeConfig {
            key,
            identity,
            signer,
            listen,
            core,
            driver,
            store,
            keys,
            transport_secret,
            seed,
            record,
        } = config;
        let identity = identity.shortened();
        let (store, snapshot) = snapshot(store).await?;
        let lifetime = driver.certificate_lifetime;
        let identity_manager = IdentityManager::new(key.clone(), identity, signer, keys, lifetime);
        let identity = identity_manager.start().await?;
        let presented = identity.clone();
        let seed = match seed {
            Some(seed) => seed,
            None => {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).map_err(StartError::from)?;
                seed
            }
        };
        let accept_limit = driver.accept_limit;
        let checker = Arc::clone(&identity_manager);
        let certificate_check =
            |handle| Some(Box::new(move || checker.check_certificate(&handle)) as CertificateCheck);
        let host = HostState { key, identity: presented, secret: transport_secret, snapshot, seed };
        let parts = PumpConfig { host, core, listen, driver, store, record };
        let (handle, ready) = spawn_pump(runtime, parts, certificate_check)?;
        let events = Events::new(handle.events.take_first());
        ready.await.map_err(|_| StartError::Ended)?;
        Ok((Self { handle, identity_manager, accept_limit, runtime: PhantomData }, events))
    }
}

impl<R> Node<R> {
    // -- status without a call into the pump

    /// Returns the id of this node: that of its present key.
    pub fn own_id(&self) -> NodeId {
        self.handle.status.read().own_id
    }

    /// Returns the addresses that this node listens on. An unspecified address means every address
    /// of the machine.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.handle.status.read().addrs.clone()
    }

    /// Returns the mapping of the port by the router, if there is one
    /// ([`PortMappingConfig`](crate::PortMappingConfig)).
    pub fn port_mapping(&self) -> Option<PortMapping> {
        self.handle.status.read().port_mapping
    }

    /// Returns the counters of the driver, as of its last turn. Also works after the shutdown.
    pub fn driver_metrics(&self) -> DriverMetrics {
        let mut metrics = self.handle.status.read().metrics;
        metrics.tasks = self.handle.tasks.live() as u64;
        metrics
    }

    /// Returns a listener for the events from now on.
    ///
    /// It does not include results of requests, which their callers receive.
    pub fn events(&self) -> Events {
        Events::new(self.handle.events.subscribe())
    }

    // -- getters of the core

    /// Returns the contacts of one bucket.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`]. The same applies to every getter below.
    pub async fn bucket(
        &self,
        index: BucketIndex,
    ) -> Result<Vec<(NodeId, NodeContact)>, NodeError> {
        self.handle
            .ask(move |core| {
                core.bucket(index)
                    .into_iter()
                    .map(|(node, contact)| (node, contact.clone()))
                    .collect()
            })
            .await
    }

    /// Returns the contacts closest to a target, nearest first. The result is exact.
    pub async fn closest_nodes(
        &self,
        target: NodeId,
        limit: usize,
    ) -> Result<Vec<(NodeId, NodeContact)>, NodeError> {
        self.handle
            .ask(move |core| {
                core.closest_nodes(target, limit)
                    .into_iter()
                    .map(|(node, contact)| (node, contact.clone()))
                    .collect()
            })
            .await
    }

    /// Returns the contact of a node, if there is one.
    pub async fn contact(&self, node: NodeId) -> Result<Option<NodeContact>, NodeError> {
        self.handle.ask(move |core| core.contact(node).cloned()).await
    }

    /// Returns the accepted connections.
    pub async fn connections(&self) -> Result<Vec<ConnectionInfo>, NodeError> {
        self.handle.ask(NodeManager::connections).await
    }

    /// Returns the counters of the core. See also [`driver_metrics`](Self::driver_metrics).
    pub async fn metrics(&self) -> Result<Metrics, NodeError> {
        self.handle.ask(NodeManager::metrics).await
    }

    /// Returns what was recorded since the last call, to be appended to the earlier parts. `None`
    /// if `NodeConfig::record` is not set, or the log exceeded its limit and is lost.
    pub async fn take_recording(&self) -> Result<Option<Vec<u8>>, NodeError> {
        self.handle.call(|_, cx| cx.core(|core, _| core.take_recording())).await
    }

    // -- immediate changes

    /// Closes every connection with a node and returns their number.
    pub async fn disconnect(&self, node: NodeId) -> Result<usize, NodeError> {
        self.handle.call(move |_, cx| cx.core(|core, now| core.disconnect(node, now))).await
    }

    /// Removes a node from the graph; its connections are not affected. Returns whether it was in
    /// the graph.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`] while the node stops, [`NodeError::Closed`]. Nothing was changed.
    pub async fn unset_node(&self, node: NodeId) -> Result<bool, NodeError> {
        let unset =
            self.handle.call(move |_, cx| cx.core(|core, now| core.unset_node(node, now))).await?;
        Ok(unset?)
    }

    // -- requests. Dropping the future cancels the request.

    /// Searches for a node and connects to it. Searching for the local node id populates the nearby
    /// buckets and never finds a node.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`], [`NodeError::Failure`], [`NodeError::Closed`]. The same applies to
    /// every request.
    pub async fn find_node(
        &self,
        target: NodeId,
        find: FindNodeOptions,
    ) -> Result<FindOutcome, NodeError> {
        match self.request(Request::FindNode { target, find }).await?.reply {
            Reply::FindNode(outcome) => Ok(outcome),
            other => unexpected(&other),
        }
    }

    /// Searches for the `count` nodes closest to an id, which need not be that of a node. At its
    /// deadline the search returns those found so far.
    pub async fn find_closest(
        &self,
        target: NodeId,
        count: usize,
        find: FindNodeOptions,
    ) -> Result<ClosestOutcome, NodeError> {
        match self.request(Request::FindClosest { target, count, find }).await?.reply {
            Reply::FindClosest(outcome) => Ok(outcome),
            other => unexpected(&other),
        }
    }

    /// Searches for a node and sends it a ping, over a live connection or a new one.
    pub async fn ping_node(
        &self,
        target: NodeId,
        options: RequestOptions,
    ) -> Result<Pong, NodeError> {
        match self.request(Request::PingNode { target, options }).await?.reply {
            Reply::PingNode(pong) => Ok(pong),
            other => unexpected(&other),
        }
    }

    /// Returns whether there is a live connection to the node, or a connection to this address
    /// succeeds.
    pub async fn ping_node_address(
        &self,
        target: NodeId,
        address: NodeAddress,
        options: RequestOptions,
    ) -> Result<bool, NodeError> {
        match self.request(Request::PingNodeAddress { target, address, options }).await?.reply {
            Reply::PingNodeAddress(there) => Ok(there),
            other => unexpected(&other),
        }
    }

    /// Connects to a node at this address, unless there is a live connection to it.
    pub async fn connect(
        &self,
        target: NodeId,
        address: NodeAddress,
        options: RequestOptions,
    ) -> Result<ConnectionInfo, NodeError> {
        match self.request(Request::Connect { target, address, options }).await?.reply {
            Reply::Connect(connection) => Ok(connection),
            other => unexpected(&other),
        }
    }

    /// Searches for the node `relay` and connects to `target` by signalling through it, unless
    /// there is a live connection to `target`.
    pub async fn connect_through(
        &self,
        target: NodeId,
        relay: NodeId,
        options: RequestOptions,
    ) -> Result<ConnectionInfo, NodeError> {
        match self.request(Request::ConnectThrough { target, relay, options }).await?.reply {
            Reply::Connect(connection) => Ok(connection),
            other => unexpected(&other),
        }
    }

    /// Searches for a node and opens a stream of an application protocol to it.
    pub async fn open_stream(
        &self,
        target: NodeId,
        protocol: impl Into<String>,
        options: RequestOptions,
    ) -> Result<Stream, NodeError> {
        let answer = self
            .request(Request::OpenStream { target, protocol: protocol.into(), options })
            .await?;
        match (answer.reply, answer.stream) {
            (Reply::OpenStream(_), Some(stream)) => Ok(stream),
            (other, _) => unexpected(&other),
        }
    }

    /// Accepts incoming streams of an application protocol until the acceptor is dropped.
    ///
    /// # Errors
    ///
    /// [`NodeError::ProtocolTaken`], [`NodeError::Request`], [`NodeError::Closed`].
    pub async fn accept_streams(
        &self,
        protocol: impl Into<String>,
    ) -> Result<StreamAcceptor, NodeError> {
        let protocol = protocol.into();
        let (queue, acceptor) = AcceptQueue::new(protocol.clone(), self.accept_limit);
        let name = protocol;
        self.handle
            .call(move |registry, cx| {
                if registry.accepts(&name) {
                    return Err(NodeError::ProtocolTaken(name));
                }
                cx.core(|core, now| core.accept_protocol(name.clone(), now))?;
                registry.accept(cx, name, queue);
                Ok(())
            })
            .await??;
        Ok(acceptor)
    }

    /// Searches for the node `via` and requests its nodes closest to `target`.
    pub async fn query_closest_nodes(
        &self,
        via: NodeId,
        target: NodeId,
        query: ClosestNodesQuery,
        options: RequestOptions,
    ) -> Result<ClosestNodes, NodeError> {
        match self.request(Request::QueryClosestNodes { via, target, query, options }).await?.reply
        {
            Reply::QueryClosestNodes(closest) => Ok(closest),
            other => unexpected(&other),
        }
    }

    /// Joins the network: connects to the seed nodes, then searches for the local id. `blocking`
    /// waits for the search.
    pub async fn sync_node_graph(
        &self,
        seeds: Vec<SeedNode>,
        blocking: bool,
        options: RequestOptions,
    ) -> Result<Synced, NodeError> {
        match self.request(Request::SyncNodeGraph { seeds, blocking, options }).await?.reply {
            Reply::SyncNodeGraph(synced) => Ok(synced),
            other => unexpected(&other),
        }
    }

    /// Adds a node to the graph without having connected to it; `how` determines what happens if
    /// its bucket is full. It is not sent to peers until a connection has proved it.
    pub async fn set_node(
        &self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
        how: SetNodeOptions,
    ) -> Result<SetNodeOutcome, NodeError> {
        match self.request(Request::SetNode { node, address, data, how }).await?.reply {
            Reply::SetNode(outcome) => Ok(outcome),
            other => unexpected(&other),
        }
    }

    // -- shutdown

    /// Stops the node: requests end with `Stopped`, connections are closed, tasks and the socket
    /// are dropped. Waits for it, usually less than a second, and until the store is closed and the
    /// keys are in their places, which a disk may delay; then the directory is free. The shutdown
    /// continues if the future is dropped. Further calls only wait.
    pub async fn shutdown(&self) {
        // Fails if the node has ended.
        let _ = self.handle.call(|_, cx| cx.core(NodeManager::stop)).await;
        self.handle.tasks.idle().await;
    }

    // -- helpers

    pub(crate) async fn request(&self, request: Request) -> Result<Response, NodeError> {
        let (caller, answer) = oneshot::channel();
        self.handle
            .command(Box::new(move |registry, cx| {
                // If the caller is gone before the call is executed, nothing is started.
                if caller.is_closed() {
                    return;
                }
                match cx.core(|core, now| core.request(request, now)) {
                    Ok(id) => registry.wait(cx, id, caller),
                    Err(error) => {
                        let _ = caller.send(Err(error.into()));
                    }
                }
            }))
            .await?;
        answer.await.map_err(|_| NodeError::Closed)?
    }
}
