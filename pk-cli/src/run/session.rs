//! A node that keeps running: its start, and its joins until one succeeds.

use std::time::{Duration, Instant};

use pk_driver::{Events, Node, NodeError, Record, Runtime, unix_now};
use pk_proto::{NodeId, RequestOptions, SeedNode, Synced, UnixMillis};

use crate::args::RunArgs;
use crate::error::Result;
use crate::node;
use crate::node::keys;
use crate::process::runtime::sleep;

/// Delay after the first failed join; doubles with each further failure.
const REJOIN_DELAY: Duration = Duration::from_secs(5);
const REJOIN_DELAY_MAX: Duration = Duration::from_secs(5 * 60);

/// Interval of checks of the wall clock while a join is pending.
const LOOK: Duration = Duration::from_secs(1);
/// Smallest change of the wall clock that starts another join.
const CLOCK_CHANGE: Duration = Duration::from_secs(60);

/// Starts the node of `args`; also returns all its events.
pub(crate) async fn start<R: Runtime + Unpin>(
    args: &RunArgs,
    runtime: &R,
) -> Result<(Node<R>, Events)> {
    let mut config = match &args.dir {
        Some(dir) => node::open(dir)?,
        None => node::ephemeral(keys::ephemeral(args.seed)?)?,
    };
    config.listen = args.listen();
    if let Some(timeout) = args.connect_timeout() {
        config.core.connect_timeout = timeout;
    }
    config.driver.transport.idle_timeout = args.keepalive_timeout();
    config.driver.transport.keep_alive = args.keepalive_interval();
    config.record = args.record.clone().map(Record::file);
    config.core.claim_policy = args.claim_policy();
    args.mdns.apply(&mut config);
    args.network.apply(&mut config);
    args.relay.apply(&mut config);
    args.port_mapping.apply(&mut config);
    let (node, events) = Node::start_with_events(runtime.clone(), config).await?;
    if let Err(error) = allow_all(&node, &args.allow).await {
        node.shutdown().await;
        return Err(error);
    }
    Ok((node, events))
}

/// Adds nodes to the claim allow-list.
async fn allow_all<R: Runtime>(node: &Node<R>, nodes: &[NodeId]) -> Result<()> {
    for allowed in nodes {
        node.allow_claim(*allowed, RequestOptions::default()).await?;
    }
    Ok(())
}

/// Joins through the seed nodes, or else through stored contacts, and retries until it succeeds.
/// Reports each attempt with its duration and result. A node without contacts and seed nodes waits
/// for incoming connections.
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
        let (begun, clock) = (Instant::now(), unix_now());
        let result = node.sync_node_graph(seeds.to_vec(), true, RequestOptions::default()).await;
        let done = result.is_ok();
        tell(begun.elapsed(), result).await;
        if done {
            return;
        }
        delay = if pause(runtime, delay, (begun, clock)).await {
            REJOIN_DELAY
        } else {
            (delay * 2).min(REJOIN_DELAY_MAX)
        };
    }
}

/// Waits for `delay`, or until the wall clock was set after the join started, because a wrong clock
/// may be the cause of the failure. Returns whether it was set.
async fn pause<R: Runtime + Unpin>(
    runtime: &R,
    delay: Duration,
    (joined, clock): (Instant, UnixMillis),
) -> bool {
    let begun = Instant::now();
    loop {
        let passed = u64::try_from(joined.elapsed().as_millis()).unwrap_or(u64::MAX);
        let expected = clock.0.saturating_add(passed);
        if Duration::from_millis(unix_now().0.abs_diff(expected)) >= CLOCK_CHANGE {
            // The node first reissues its certificate.
            sleep(runtime, LOOK).await;
            return true;
        }
        let Some(left) = delay.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
            return false;
        };
        sleep(runtime, left.min(LOOK)).await;
    }
}
