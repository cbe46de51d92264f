//! The nodes of the demo.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use futures_util::{StreamExt, TryStreamExt, stream};
use pk_driver::{KeyPair, Node, NodeConfig, Runtime, StreamAcceptor};
use pk_proto::claims::ClaimPolicy;
use pk_proto::{NodeAddress, SeedNode};
use serde_json::json;

use super::report::{Outcome, Progress};
use crate::error::{CliError, Result};
use crate::runtime::{sleep, timeout};
use crate::words::count;
use crate::{echo, keys, node};

/// Nodes that start at a time.
const CONCURRENCY: usize = 16;

pub(super) const DISAGREE: &str = "nodes do not agree on who is connected with whom";

/// The news of a connection's end need a fraction of it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// All of them; the first is the seed node of the others, the last one has a folder.
pub(super) struct Network<R> {
    pub(super) nodes: Vec<Node<R>>,
    /// Newcomers of single steps.
    guests: Vec<Node<R>>,
    folder: Folder,
    acceptors: Vec<StreamAcceptor>,
}

impl<R: Runtime + Unpin> Network<R> {
    /// Without any node yet.
    ///
    /// # Errors
    ///
    /// There is no room for a folder.
    pub(super) fn new() -> Result<Self> {
        Ok(Self { nodes: Vec::new(), guests: Vec::new(), folder: Folder::new()?, acceptors: Vec::new() })
    }

    /// Step 1: every node has a key of its own, listens, and echoes streams.
    pub(super) async fn start(&mut self, nodes: usize, runtime: &R, progress: &Progress) -> Result<Outcome> {
        let start = async |number| {
            let config = match number {
                // What is not there is made.
                last if last + 1 == nodes => NodeConfig::open(&self.folder.0)?,
                _ => node::ephemeral(keys::ephemeral(None)?)?,
            };
            let node = start(config, runtime).await?;
            let acceptor = echo::accept(&node).await?;
            progress.tick();
            Ok::<_, CliError>((node, acceptor))
        };
        let started: Vec<_> = stream::iter(0..nodes).map(start).buffered(CONCURRENCY).try_collect().await?;
        (self.nodes, self.acceptors) = started.into_iter().unzip();
        Ok(Outcome { summary: format!("{} listen", count(nodes as u64, "node")), figures: json!({}) })
    }

    /// Starts a newcomer that knows nobody.
    pub(super) async fn guest(&mut self, runtime: &R, change: impl FnOnce(&mut NodeConfig)) -> Result<Node<R>> {
        self.guest_of(runtime, keys::ephemeral(None)?, change).await
    }

    /// As [`guest`](Self::guest), with a key that others have as well.
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

    /// Every node and newcomer.
    pub(super) fn all(&self) -> impl Iterator<Item = &Node<R>> {
        self.nodes.iter().chain(&self.guests)
    }

    /// The first node.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn first(&self) -> Result<&Node<R>> {
        self.nodes.first().ok_or_else(|| CliError::new("Start", "no node listens"))
    }

    /// The node that has a folder.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn resident(&self) -> Result<Node<R>> {
        self.nodes.last().cloned().ok_or_else(|| CliError::new("Start", "no node listens"))
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// Starts it again, after its end.
    pub(super) async fn reopen(&mut self, runtime: &R) -> Result<Node<R>> {
        let node = start(NodeConfig::open(&self.folder.0)?, runtime).await?;
        if let Some(last) = self.nodes.last_mut() {
            *last = node.clone();
        }
        Ok(node)
    }

    /// One of the others: not the seed, if there is any other.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn other(&self) -> Result<Node<R>> {
        self.nodes.iter().rev().nth(1).cloned().ok_or_else(|| CliError::new("Start", "there is only one node"))
    }

    /// Echoes whatever is streamed to any node, until all have shut down.
    pub(super) fn serve_echoes(&mut self) -> impl Future<Output = ()> + use<R> {
        let echoes = join_all(std::mem::take(&mut self.acceptors).into_iter().map(echo::serve));
        async {
            echoes.await;
        }
    }

    /// Where the others join.
    ///
    /// # Errors
    ///
    /// There is no node that listens.
    pub(super) fn seed(&self) -> Result<SeedNode> {
        let node = self.first()?;
        Ok(SeedNode { node: node.own_id(), address: address(node)? })
    }

    /// Waits until both ends agree on every connection that there is now, and returns how many are agreed on then. A search
    /// that ends leaves dials behind, which the other end may take for connections until it hears of their end. Nodes go on
    /// connecting meanwhile, as the refreshes after a join do: what is new is not waited for.
    ///
    /// # Errors
    ///
    /// They do not agree in time.
    pub(super) async fn settle(&self, runtime: &R) -> Result<usize> {
        let look = async || {
            let ends = try_join_all(self.nodes.iter().map(Node::connections)).await?;
            let mut counts: BTreeMap<_, usize> = BTreeMap::new();
            for end in ends.into_iter().flatten() {
                *counts.entry(end.shared_id).or_default() += 1;
            }
            let agreed = counts.values().filter(|ends| **ends == 2).count();
            let open: BTreeSet<_> = counts.into_iter().filter(|(_, ends)| *ends != 2).map(|(id, _)| id).collect();
            Ok((open, agreed))
        };
        all_settled(runtime, look).await
    }

    /// Waits until the other ends agree on every connection that one node has now.
    ///
    /// # Errors
    ///
    /// They do not agree in time.
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

    /// A random partner for every node: each is the partner of exactly one other, and two nodes are never each other's,
    /// unless there are only two (Sattolo: a random cycle through all of them).
    ///
    /// # Errors
    ///
    /// The operating system has no randomness to give.
    pub(super) fn pairs(&self) -> Result<Vec<(&Node<R>, &Node<R>)>> {
        let mut cycle: Vec<&Node<R>> = self.nodes.iter().collect();
        for i in (1..cycle.len()).rev() {
            let random = getrandom::u64().map_err(|error| CliError::new("Random", error.to_string()))?;
            cycle.swap(i, usize::try_from(random % i as u64).unwrap_or(0));
        }
        Ok(self.nodes.iter().zip(cycle).collect())
    }
}

/// Where a node listens.
///
/// # Errors
///
/// Nowhere.
pub(super) fn address<R: Runtime>(node: &Node<R>) -> Result<NodeAddress> {
    let addr = node.local_addrs().first().copied();
    addr.map(NodeAddress::from_socket).ok_or_else(|| CliError::new("Start", "no node listens"))
}

/// Starts a node on loopback, which signs claims for whom it is told to allow it.
async fn start<R: Runtime>(mut config: NodeConfig, runtime: &R) -> Result<Node<R>> {
    config.core.claim_policy = ClaimPolicy::AllowList;
    config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Node::start_on(runtime.clone(), config).await?)
}

/// A folder for as long as this lives.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let random = getrandom::u64().map_err(|error| CliError::new("Random", error.to_string()))?;
        let path = std::env::temp_dir().join(format!("pk-demo-{random:016x}"));
        // Not there yet, and then ours alone: whoever guesses the name gets nothing but an error here.
        fs::create_dir(&path).map_err(|error| CliError::new("Io", format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the folder is left");
        }
    }
}

/// Looks at what is not settled again and again, until each thing that was not at first has been seen settled or gone.
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

/// Looks again and again until there is something, at most for `SETTLE_TIMEOUT`; `failing` says what is not so by then.
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
