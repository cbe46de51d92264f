//! The nodes of the demo.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use futures_util::{StreamExt, TryStreamExt, stream};
use pk_driver::{KeyPair, Node, NodeConfig, Runtime, StreamAcceptor};
use pk_proto::claims::ClaimPolicy;
use pk_proto::{NodeAddress, SeedNode};
use serde_json::json;

use super::report::{Outcome, Progress};
use crate::error::{CliError, Result};
use crate::node;
use crate::node::echo;
use crate::node::keys;
use crate::output::format::count;
use crate::process::leftovers::TemporaryDir;
use crate::process::runtime::{sleep, timeout};

/// Nodes that start concurrently.
const CONCURRENCY: usize = 16;

pub(super) const DISAGREE: &str = "nodes do not agree on their connections";

/// Much longer than the end of a connection takes to reach the peer.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// All nodes. The first is the seed node of the others; the last has a directory.
pub(super) struct Network<R> {
    pub(super) nodes: Vec<Node<R>>,
    /// Additional nodes of single steps.
    guests: Vec<Node<R>>,
    folder: TemporaryDir,
    acceptors: Vec<StreamAcceptor>,
}

impl<R: Runtime + Unpin> Network<R> {
    /// Creates a network without nodes.
    ///
    /// # Errors
    ///
    /// The temporary directory cannot be created.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            nodes: Vec::new(),
            guests: Vec::new(),
            folder: TemporaryDir::new("pk-demo")?,
            acceptors: Vec::new(),
        })
    }

    /// Step 1: starts all nodes. Each has its own key, listens, and echoes streams.
    pub(super) async fn start(
        &mut self,
        nodes: usize,
        runtime: &R,
        progress: &Progress,
    ) -> Result<Outcome> {
        let start = async |number| {
            let config = match number {
                // `open` creates what is missing.
                last if last + 1 == nodes => NodeConfig::open(self.folder.path())?,
                _ => node::ephemeral(keys::ephemeral(None)?)?,
            };
            let node = start(config, runtime).await?;
            let acceptor = echo::accept(&node).await?;
            progress.tick();
            Ok::<_, CliError>((node, acceptor))
        };
        let started: Vec<_> =
            stream::iter(0..nodes).map(start).buffered(CONCURRENCY).try_collect().await?;
        (self.nodes, self.acceptors) = started.into_iter().unzip();
        Ok(Outcome {
            summary: format!("{} listening", count(nodes as u64, "node")),
            figures: json!({}),
        })
    }

    /// Starts an additional node without contacts.
    pub(super) async fn guest(
        &mut self,
        runtime: &R,
        change: impl FnOnce(&mut NodeConfig),
    ) -> Result<Node<R>> {
        self.guest_of(runtime, keys::ephemeral(None)?, change).await
    }

    /// Like [`guest`](Self::guest), with a given key.
    pub(super) async fn guest_of(
        &mut self,
        runtime: &R,
        key: KeyPair,
        change: impl FnOnce(&mut NodeConfig),
    ) -> Result<Node<R>> {
        let mut config = node::ephemeral(key)?;
        change(&mut config);
        let node = start(config, runtime).await?;
        self.guests.push(node.clone());
        Ok(node)
    }

    /// Returns all nodes, including additional ones.
    pub(super) fn all(&self) -> impl Iterator<Item = &Node<R>> {
        self.nodes.iter().chain(&self.guests)
    }

    /// Returns the first node.
    ///
    /// # Errors
    ///
    /// There is no node.
    pub(super) fn first(&self) -> Result<&Node<R>> {
        self.nodes.first().ok_or_else(|| CliError::new("Start", "no node listens"))
    }

    /// Returns the node with a directory.
    ///
    /// # Errors
    ///
    /// There is no node.
    pub(super) fn resident(&self) -> Result<Node<R>> {
        self.nodes.last().cloned().ok_or_else(|| CliError::new("Start", "no node listens"))
    }

    /// Returns its directory.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it again after it has shut down.
    pub(super) async fn reopen(&mut self, runtime: &R) -> Result<Node<R>> {
        let node = start(NodeConfig::open(self.folder.path())?, runtime).await?;
        if let Some(last) = self.nodes.last_mut() {
            *last = node.clone();
        }
        Ok(node)
    }

    /// Returns a node other than the seed node, if there is one.
    ///
    /// # Errors
    ///
    /// There is no node.
    pub(super) fn other(&self) -> Result<Node<R>> {
        self.nodes
            .iter()
            .rev()
            .nth(1)
            .cloned()
            .ok_or_else(|| CliError::new("Start", "there is only one node"))
    }

    /// Echoes the streams of all nodes, until all have shut down.
    pub(super) fn serve_echoes(&mut self) -> impl Future<Output = ()> + use<R> {
        let echoes = join_all(std::mem::take(&mut self.acceptors).into_iter().map(echo::serve));
        async {
            echoes.await;
        }
    }

    /// Returns the seed node of the others.
    ///
    /// # Errors
    ///
    /// No node listens.
    pub(super) fn seed(&self) -> Result<SeedNode> {
        let node = self.first()?;
        Ok(SeedNode { node: node.own_id(), address: address(node)? })
    }

    /// Waits until both ends agree on every connection that exists now, and returns the number of
    /// these connections. A search that ends leaves dials behind, which the other end may regard as
    /// connections until their end arrives. Nodes continue to connect meanwhile, for example for
    /// the refreshes after a join; new connections are not waited for.
    ///
    /// # Errors
    ///
    /// The ends do not agree in time.
    pub(super) async fn settle(&self, runtime: &R) -> Result<usize> {
        let look = async || {
            let ends = try_join_all(self.nodes.iter().map(Node::connections)).await?;
            let mut counts: BTreeMap<_, usize> = BTreeMap::new();
            for end in ends.into_iter().flatten() {
                *counts.entry(end.shared_id).or_default() += 1;
            }
            let agreed = counts.values().filter(|ends| **ends == 2).count();
            let open: BTreeSet<_> =
                counts.into_iter().filter(|(_, ends)| *ends != 2).map(|(id, _)| id).collect();
            Ok((open, agreed))
        };
        all_settled(runtime, look).await
    }

    /// Waits until the other ends agree on every connection that a node has now.
    ///
    /// # Errors
    ///
    /// The ends do not agree in time.
    pub(super) async fn settle_one(&self, node: &Node<R>, runtime: &R) -> Result<()> {
        let look = async || {
            let mut mine: BTreeSet<_> = BTreeSet::new();
            let mut peers: BTreeSet<_> = BTreeSet::new();
            for end in node.connections().await? {
                mine.insert(end.shared_id);
                peers.insert(end.node);
            }
            let others = self.nodes.iter().filter(|other| peers.contains(&other.own_id()));
            for end in try_join_all(others.map(Node::connections)).await?.into_iter().flatten() {
                mine.remove(&end.shared_id);
            }
            Ok((mine, ()))
        };
        all_settled(runtime, look).await
    }

    /// Returns a random partner for every node: each is the partner of exactly one other node, and
    /// no two nodes are each other's partner unless there are only two (Sattolo's algorithm: a
    /// random cycle through all nodes).
    ///
    /// # Errors
    ///
    /// Reading system randomness fails.
    pub(super) fn pairs(&self) -> Result<Vec<(&Node<R>, &Node<R>)>> {
        let mut cycle: Vec<&Node<R>> = self.nodes.iter().collect();
        for i in (1..cycle.len()).rev() {
            let random =
                getrandom::u64().map_err(|error| CliError::new("Random", error.to_string()))?;
            cycle.swap(i, usize::try_from(random % i as u64).unwrap_or(0));
        }
        Ok(self.nodes.iter().zip(cycle).collect())
    }
}

/// Returns the address that a node listens on.
///
/// # Errors
///
/// The node does not listen.
pub(super) fn address<R: Runtime>(node: &Node<R>) -> Result<NodeAddress> {
    let addr = node.local_addrs().first().copied();
    addr.map(NodeAddress::from_socket).ok_or_else(|| CliError::new("Start", "no node listens"))
}

/// Starts a node on loopback with the claim policy allow-list.
async fn start<R: Runtime>(mut config: NodeConfig, runtime: &R) -> Result<Node<R>> {
    config.core.claim_policy = ClaimPolicy::AllowList;
    config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Node::start_on(runtime.clone(), config).await?)
}

/// Checks repeatedly, until each item that was not settled at first has been seen settled or gone.
async fn all_settled<R: Runtime, I: Ord, T>(
    runtime: &R,
    look: impl AsyncFn() -> Result<(BTreeSet<I>, T)>,
) -> Result<T> {
    let (open, seen) = look().await?;
    if open.is_empty() {
        return Ok(seen);
    }
    let left = RefCell::new(open);
    until(runtime, DISAGREE, async || {
        let (open, seen) = look().await?;
        left.borrow_mut().retain(|id| open.contains(id));
        Ok(left.borrow().is_empty().then_some(seen))
    })
    .await
}

/// Checks repeatedly until `look` returns a value, at most for `SETTLE_TIMEOUT`. `failing`
/// describes the failure.
pub(super) async fn until<R: Runtime, T>(
    runtime: &R,
    failing: &str,
    look: impl AsyncFn() -> Result<Option<T>>,
) -> Result<T> {
    let seen = async {
        loop {
            if let Some(seen) = look().await? {
                return Ok(seen);
            }
            sleep(runtime, Duration::from_millis(2)).await;
        }
    };
    let late = || CliError::new("Timeout", failing);
    timeout(runtime, SETTLE_TIMEOUT, seen).await.unwrap_or_else(|| Err(late()))
}
