//! The nodes of the demo.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use futures_util::{StreamExt, TryStreamExt, stream};
use pk_driver::{Node, Runtime, StreamAcceptor};
use pk_proto::{NodeAddress, SeedNode};
use serde_json::json;

use super::report::{Outcome, Progress};
use crate::error::{CliError, Result};
use crate::runtime::{sleep, timeout};
use crate::words::count;
use crate::{echo, keys, node};

/// Nodes that start at a time.
const CONCURRENCY: usize = 16;

/// The news of a connection's end need a fraction of it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// All of them; the first is the seed node of the others.
pub(super) struct Network<R> {
    pub(super) nodes: Vec<Node<R>>,
    acceptors: Vec<StreamAcceptor>,
}

impl<R> Default for Network<R> {
    fn default() -> Self {
        Self { nodes: Vec::new(), acceptors: Vec::new() }
    }
}

impl<R: Runtime + Unpin> Network<R> {
    /// Step 1: every node has a key of its own, listens, and echoes streams.
    pub(super) async fn start(&mut self, nodes: usize, runtime: &R, progress: &Progress) -> Result<Outcome> {
        let start = async |_| {
            let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let node = Node::start_on(runtime.clone(), node::config(&keys::ephemeral(None)?, Some(listen))).await?;
            let acceptor = echo::accept(&node).await?;
            progress.tick();
            Ok::<_, CliError>((node, acceptor))
        };
        let started: Vec<_> = stream::iter(0..nodes).map(start).buffer_unordered(CONCURRENCY).try_collect().await?;
        (self.nodes, self.acceptors) = started.into_iter().unzip();
        Ok(Outcome { summary: format!("{} listen", count(nodes as u64, "node")), figures: json!({}) })
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
        let listens = self.nodes.first().and_then(|node| Some((node.own_id(), *node.local_addrs().first()?)));
        let (node, addr) = listens.ok_or_else(|| CliError::new("Start", "no node listens"))?;
        Ok(SeedNode { node, address: NodeAddress::from_socket(addr) })
    }

    /// Waits until both ends agree on every connection, and returns how many there are. A search that ends leaves dials
    /// behind, which the other end may take for connections until it hears of their end.
    ///
    /// # Errors
    ///
    /// They do not agree in time.
    pub(super) async fn settle(&self, runtime: &R) -> Result<usize> {
        until(runtime, async || {
            let ends = try_join_all(self.nodes.iter().map(Node::connections)).await?;
            let mut counts: BTreeMap<_, usize> = BTreeMap::new();
            for end in ends.into_iter().flatten() {
                *counts.entry(end.shared_id).or_default() += 1;
            }
            Ok(counts.values().all(|ends| *ends == 2).then_some(counts.len()))
        })
        .await
    }

    /// Waits until the other ends agree on every connection of one node.
    ///
    /// # Errors
    ///
    /// They do not agree in time.
    pub(super) async fn settle_one(&self, node: &Node<R>, runtime: &R) -> Result<()> {
        until(runtime, async || {
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
            Ok(mine.is_empty().then_some(()))
        })
        .await
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

/// Looks again and again until there is something, at most for `SETTLE_TIMEOUT`.
pub(super) async fn until<R: Runtime, T>(runtime: &R, look: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let seen = async {
        loop {
            if let Some(seen) = look().await? {
                return Ok(seen);
            }
            sleep(runtime, Duration::from_millis(1)).await;
        }
    };
    let late = || CliError::new("Timeout", "nodes do not agree on who is connected with whom");
    timeout(runtime, SETTLE_TIMEOUT, seen).await.unwrap_or_else(|| Err(late()))
}
