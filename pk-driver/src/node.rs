//! A running node, as the embedder holds it.

use std::marker::PhantomData;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use pk_proto::cert::Certificate;
use pk_proto::{
    BucketIndex, Closest, ClosestLists, Config, ConnectionInfo, FindNode, FindOutcome, Identity, Metrics, NodeAddress,
    NodeContact, NodeContactAddressData, NodeId, NodeManager, Options, Pong, Reply, Request, RequestError, SeedNode,
    SetNodeOutcome, Snapshot, Start, Synced,
};
use quinn::Runtime as _;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::accept::StreamAcceptor;
use crate::clock::{Clock, unix};
use crate::config::DriverConfig;
use crate::cx::Cx;
use crate::desk::{Answer, Desk};
use crate::error::{NodeError, StartError};
use crate::events::Events;
use crate::identity::{IdentityError, create_identity};
use crate::keys::{KeyPair, KeyRing};
use crate::lease::ConnectionLease;
use crate::metrics::DriverMetrics;
use crate::net::Net;
use crate::pump::{Command, Parts, Published, Pump};
use crate::resolver::Resolver;
use crate::runtime::Runtime;
use crate::store::{MemoryStore, Store, StoreError};
use crate::store_place::StorePlace;
use crate::stream::Stream;
use crate::tasks::{TaskWatch, Tasks};

/// What a node is made of.
pub struct NodeConfig {
    /// The private key of the node.
    pub key: KeyPair,
    /// The certificates that it presents; the newest is of `key`.
    pub identity: Identity,
    /// Where to listen; also where it dials from. Port 0 is any free one. Default `[::]:0`, which takes IPv4 too.
    pub listen: SocketAddr,
    /// The settings of the core.
    pub core: Config,
    /// The settings of the driver.
    pub driver: DriverConfig,
    /// Where tables are kept. Default: nowhere.
    pub store: Box<dyn Store>,
    /// What the node knew when it last ran.
    pub snapshot: Snapshot,
    /// All randomness of the core. Default: from the operating system; set it to repeat a run.
    pub seed: Option<[u8; 32]>,
    /// Keeps a log of everything that the core is told, of at most this many bytes between two calls of
    /// [`Node::take_recording`]; to be replayed on a desk. It tells whom the node talks to, and no secrets. Default: none.
    pub record: Option<usize>,
}

impl NodeConfig {
    /// The defaults for a key with its certificates, as a [`KeyStore`](crate::KeyStore) has them.
    pub fn new(key: KeyPair, identity: Identity) -> Self {
        Self {
            key,
            identity,
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            core: Config::default(),
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
}

/// A running node. Cheap to clone; every clone is the same node.
///
/// Calls wait for their turn in a bounded queue; a call that is dropped is cancelled. When the last clone is dropped the
/// node shuts down in the background; [`shutdown`](Self::shutdown) also waits for it.
#[derive(Debug)]
pub struct Node<R> {
    commands: mpsc::Sender<Command<NodeManager>>,
    events: broadcast::WeakSender<pk_proto::Event>,
    published: Arc<Published>,
    tasks: TaskWatch,
    accept_limit: usize,
    runtime: PhantomData<fn() -> R>,
}

impl<R> Clone for Node<R> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            events: self.events.clone(),
            published: Arc::clone(&self.published),
            tasks: self.tasks.clone(),
            accept_limit: self.accept_limit,
            runtime: PhantomData,
        }
    }
}

impl<R: Runtime + Default + Unpin> Node<R> {
    /// Starts a node and waits until it is ready.
    ///
    /// # Errors
    ///
    /// [`NodeError::Start`]; nothing is left running.
    pub async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        Self::start_on(R::default(), config).await
    }
}

impl<R: Runtime + Unpin> Node<R> {
    /// Starts a node on a runtime and waits until it is ready.
    ///
    /// # Errors
    ///
    /// [`NodeError::Start`]; nothing is left running.
    pub async fn start_on(runtime: R, config: NodeConfig) -> Result<Self, NodeError> {
        let (node, ready) = Self::launch(runtime, config)?;
        ready.await.map_err(|_| StartError::Ended)?;
        Ok(node)
    }

    fn launch(runtime: R, config: NodeConfig) -> Result<(Self, oneshot::Receiver<()>), StartError> {
        let NodeConfig { key, identity, listen, core, driver, store, snapshot, seed, record } = config;
        driver.validate()?;
        let newest = identity.chain.first().ok_or(IdentityError::Empty)?;
        let certificate = Certificate::parse(newest).map_err(IdentityError::from)?.node_id();
        if certificate != key.node_id() {
            return Err(StartError::ForeignKey { certificate, key: key.node_id() });
        }
        let seed = match seed {
            Some(seed) => seed,
            None => {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed)?;
                seed
            }
        };
        let clock = Clock::new();
        let now = clock.now();
        let streams = core.streams_per_connection;
        let start = Start { config: core, identity: identity.clone(), snapshot, seed, now, unix: clock.unix() };
        let core = match record {
            Some(limit) => NodeManager::start_recorded(start, limit)?,
            None => NodeManager::start(start)?,
        };

        let tasks = Tasks::new(runtime.quinn());
        let (event_limit, command_limit, accept_limit) =
            (driver.event_limit, driver.command_limit, driver.accept_limit);
        let mut cx = Cx::new(driver, now);
        let net = Net::bind(&mut cx, listen, &identity, &key, streams, &tasks)?;
        let store = StorePlace::new(&cx, store).map_err(|error| StartError::Store(StoreError(error.to_string())))?;
        let (commands, todo) = mpsc::channel(command_limit);
        let (events, _) = broadcast::channel(event_limit);
        let (starter, ready) = oneshot::channel();
        let published = Published::new(core.own_id(), net.bound());
        let mut keys = KeyRing::default();
        keys.add(key);
        let node = Self {
            commands,
            events: events.downgrade(),
            published: Arc::clone(&published),
            tasks: tasks.watch(),
            accept_limit,
            runtime: PhantomData,
        };
        let pump = Pump::new(Parts {
            core,
            cx,
            clock,
            net,
            desk: Desk::new(events, starter),
            store,
            resolver: Resolver::new(runtime),
            keys,
            commands: todo,
            tasks: tasks.clone(),
            published,
        });
        tasks.spawn(Box::pin(pump));
        Ok((node, ready))
    }
}

impl<R> Node<R> {
    // -- what is known without asking

    /// The id of this node: of its newest key.
    pub fn own_id(&self) -> NodeId {
        self.published.view().own_id
    }

    /// Where this node listens. An unspecified address means every address of the machine.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.published.view().addrs.clone()
    }

    /// What the driver has counted, as of its last turn. Also after the shutdown.
    pub fn driver_metrics(&self) -> DriverMetrics {
        let mut metrics = self.published.view().metrics;
        metrics.tasks = self.tasks.live() as u64;
        metrics
    }

    /// What happens from now on.
    ///
    /// Ends of requests are not among it: their callers get them.
    pub fn events(&self) -> Events {
        Events::new(self.events.upgrade().map(|events| events.subscribe()))
    }

    // -- questions to the core

    /// The nodes of one bucket.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`]. The same for every call below.
    pub async fn bucket(&self, index: BucketIndex) -> Result<Vec<(NodeId, NodeContact)>, NodeError> {
        self.ask(move |core| core.bucket(index).into_iter().map(|(node, contact)| (node, contact.clone())).collect())
            .await
    }

    /// The nodes of the graph closest to a target, nearest first; exact.
    pub async fn closest_nodes(&self, target: NodeId, limit: usize) -> Result<Vec<(NodeId, NodeContact)>, NodeError> {
        self.ask(move |core| {
            core.closest_nodes(target, limit).into_iter().map(|(node, contact)| (node, contact.clone())).collect()
        })
        .await
    }

    /// What is known of a node.
    pub async fn contact(&self, node: NodeId) -> Result<Option<NodeContact>, NodeError> {
        self.ask(move |core| core.contact(node).cloned()).await
    }

    /// The connections that both sides accepted.
    pub async fn connections(&self) -> Result<Vec<ConnectionInfo>, NodeError> {
        self.ask(|core| core.connections()).await
    }

    /// What the core has counted. See also [`driver_metrics`](Self::driver_metrics).
    pub async fn metrics(&self) -> Result<Metrics, NodeError> {
        self.ask(|core| core.metrics()).await
    }

    /// What has been recorded since the last call, to be appended to what was there before. `None` if
    /// `NodeConfig::record` is not set, or the log grew over it and is lost.
    pub async fn take_recording(&self) -> Result<Option<Vec<u8>>, NodeError> {
        self.call(|_, _, core| core.take_recording()).await
    }

    // -- changes that take no time

    /// Closes every connection with a node and returns how many.
    pub async fn disconnect(&self, node: NodeId) -> Result<usize, NodeError> {
        self.call(move |_, cx, core| core.disconnect(node, cx.now)).await
    }

    /// Takes a node out of the graph; its connections stay. Returns whether it was there.
    pub async fn unset_node(&self, node: NodeId) -> Result<bool, NodeError> {
        self.call(move |_, cx, core| core.unset_node(node, cx.now)).await
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
        self.call(move |desk, cx, core| {
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

    /// Puts a node into the graph on the embedder's word.
    pub async fn set_node(
        &self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
    ) -> Result<SetNodeOutcome, NodeError> {
        match self.request(Request::SetNode { node, address, data }).await?.reply {
            Reply::SetNode(outcome) => Ok(outcome),
            other => unexpected(&other),
        }
    }

    // -- the end

    /// Waits until everything that was written before this call is in the store.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn flush(&self) -> Result<(), NodeError> {
        let (done, flushed) = oneshot::channel();
        self.call(move |desk, cx, _| desk.flush(cx, done)).await?;
        flushed.await.map_err(|_| NodeError::Closed)
    }

    /// Stops the node: requests end with `Stopped`, peers see their connections closed, tasks and the socket go. Waits for
    /// it, about a second at most; the shutdown goes on if the future is dropped. Calling it again just waits.
    pub async fn shutdown(&self) {
        // Fails if the node has ended.
        drop(self.call(|_, cx, core| core.stop(cx.now)).await);
        self.tasks.idle().await;
    }

    // -- how

    async fn request(&self, request: Request) -> Result<Answer, NodeError> {
        let (caller, answer) = oneshot::channel();
        self.command(Box::new(move |desk, cx, core| {
            // A caller that has gone while the call waited for its turn wants nothing begun.
            if caller.is_closed() {
                return;
            }
            match core.request(request, cx.now) {
                Ok(id) => desk.wait(cx, id, caller),
                Err(error) => drop(caller.send(Err(error.into()))),
            }
        }))
        .await?;
        answer.await.map_err(|_| NodeError::Closed)?
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&NodeManager) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        self.call(move |_, _, core| question(core)).await
    }

    async fn call<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Desk, &mut Cx, &mut NodeManager) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        let (done, answer) = oneshot::channel();
        self.command(Box::new(move |desk, cx, core| drop(done.send(action(desk, cx, core))))).await?;
        answer.await.map_err(|_| NodeError::Closed)
    }

    async fn command(&self, command: Command<NodeManager>) -> Result<(), NodeError> {
        self.commands.send(command).await.map_err(|_| NodeError::Closed)
    }
}

/// The core answers each request with its own kind of reply; were it not so, the caller is told rather than the task ended.
fn unexpected<T>(reply: &Reply) -> Result<T, NodeError> {
    tracing::error!(?reply, "the core gave a reply of another kind than was asked for");
    Err(RequestError::Option { name: "reply", range: "of the kind that was asked for" }.into())
}
