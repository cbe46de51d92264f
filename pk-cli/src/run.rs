//! `pk run`: a node that stays, for people or (`--stdio`) for scripts.

use std::time::{Duration, Instant};

use pk_driver::{Node, NodeError, Record, Runtime};
use pk_proto::{NodeId, Options, SeedNode, Synced};

use crate::args::RunArgs;
use crate::error::Result;
use crate::runtime::sleep;
use crate::{agent, keys, node, stdio};

/// After a join that failed, the next one waits this long at first, and twice as long each time.
const REJOIN_DELAY: Duration = Duration::from_secs(5);
const REJOIN_DELAY_MAX: Duration = Duration::from_secs(5 * 60);

/// `pk run`.
pub(crate) async fn run<R: Runtime + Unpin>(args: RunArgs, runtime: R) -> Result<()> {
    if args.stdio { stdio::run(args, runtime).await } else { agent::run(args, runtime).await }
}

/// The node of `args`, started.
pub(crate) async fn start<R: Runtime + Unpin>(args: &RunArgs, runtime: &R) -> Result<Node<R>> {
    let mut config = match &args.dir {
        Some(dir) => node::open(dir)?,
        None => node::ephemeral(keys::ephemeral(args.seed)?)?,
    };
    config.listen = args.listen();
    if let Some(timeout) = args.connect_timeout() {
        config.core.connect_timeout = timeout;
    }
    config.driver.idle_timeout = args.keepalive_timeout();
    config.driver.keep_alive = args.keepalive_interval();
    config.record = args.record.clone().map(Record::file);
    config.core.claim_policy = args.claim_policy();
    args.mdns.apply(&mut config);
    let node = Node::start_on(runtime.clone(), config).await?;
    if let Err(error) = allow_all(&node, &args.allow).await {
        node.shutdown().await;
        return Err(error);
    }
    Ok(node)
}

/// Puts nodes on the list of those that claims are signed for.
async fn allow_all<R: Runtime>(node: &Node<R>, nodes: &[NodeId]) -> Result<()> {
    for allowed in nodes {
        node.allow_claim(*allowed, Options::default()).await?;
    }
    Ok(())
}

/// Joins through the seeds, or else through whom the node knows from before, again and again until it has, and tells of
/// every try: how long it took and how it went. A node that knows nobody and has no seeds waits for others.
pub(crate) async fn join<R: Runtime + Unpin>(
    node: &Node<R>,
    runtime: &R,
    seeds: &[SeedNode],
    tell: impl AsyncFn(Duration, std::result::Result<Synced, NodeError>),
) {
    if seeds.is_empty() && node.metrics().await.is_ok_and(|metrics| metrics.nodes == 0) {
        return;
    }
    let mut delay = REJOIN_DELAY;
    loop {
        let begun = Instant::now();
        let result = node.sync_node_graph(seeds.to_vec(), true, Options::default()).await;
        let done = result.is_ok();
        tell(begun.elapsed(), result).await;
        if done {
            return;
        }
        sleep(runtime, delay).await;
        delay = (delay * 2).min(REJOIN_DELAY_MAX);
    }
}
