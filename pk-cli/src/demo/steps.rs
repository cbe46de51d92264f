//! Steps of the demo after the start.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use pk_driver::{Node, Runtime};
use pk_proto::{FindNodeOptions, FindOutcome, NodeId, RequestOptions};
use serde_json::json;

use super::network::{DISAGREE, Network, until};
use super::report::{Outcome, Progress};
use crate::error::{CliError, Result};
use crate::node::echo;
use crate::output::format::{Spread, count, human, ms};

/// Concurrency: high enough to keep the machine busy, low enough that the measured times contain no
/// queueing.
const JOINS: usize = 8;
const STREAMS: usize = 4;

/// Bytes sent on each stream.
const PAYLOAD: usize = 1024 * 1024;

/// All nodes join through the first node.
pub(super) async fn join<R: Runtime + Unpin>(
    network: &Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let seed = network.seed()?;
    let join = async |node: &Node<R>| {
        let begun = Instant::now();
        node.sync_node_graph(vec![seed.clone()], true, RequestOptions::default()).await?;
        progress.tick();
        Ok::<_, CliError>(begun.elapsed())
    };
    let joining = stream::iter(network.nodes.iter().skip(1)).map(join).buffer_unordered(JOINS);
    let times: Vec<Duration> = joining.try_collect().await?;
    let connections = network.settle(runtime).await? as u64;
    let mut known = 0;
    for node in &network.nodes {
        known += node.metrics().await?.nodes;
    }
    let known = known / network.nodes.len() as u64;
    let spread = Spread::of(times.iter().copied());
    Ok(Outcome {
        summary: format!(
            "{} joined through the first: median {}, p95 {}; {} in total, each knows {}",
            count(times.len() as u64, "node"),
            human(spread.median),
            human(spread.p95),
            count(connections, "connection"),
            count(known, "other"),
        ),
        figures: json!({
            "joined": times.len(), "medianMs": ms(spread.median), "p95Ms": ms(spread.p95),
            "connections": connections, "known": known,
        }),
    })
}

/// Every node with its partner.
pub(super) type Pairs<'a, R> = [(&'a Node<R>, &'a Node<R>)];

/// Each node finds its partner. It is not connected with the partner and, if other nodes can report
/// it, has no contact for it.
pub(super) async fn find<R: Runtime + Unpin>(
    network: &Network<R>,
    pairs: &Pairs<'_, R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let others_know = network.nodes.len() > 2;
    let mut outcomes = Vec::with_capacity(pairs.len());
    // Sequentially: the times are those of a search, and no search loses a connection because
    // another one ends.
    for (node, partner) in pairs {
        let target = partner.own_id();
        forget(node, partner, others_know, runtime).await?;
        network.settle_one(node, runtime).await?;
        let outcome = node.find_node(target, FindNodeOptions::default()).await?;
        if outcome.found.is_none() {
            let message = format!("{} did not find {target}: {outcome:?}", node.own_id());
            return Err(CliError::new("NotFound", message));
        }
        outcomes.push(outcome);
        progress.tick();
    }
    network.settle(runtime).await?;
    let spread = Spread::of(outcomes.iter().map(|outcome| outcome.stats.elapsed));
    let total = |of: fn(&FindOutcome) -> u32| {
        outcomes.iter().map(|outcome| u64::from(of(outcome))).sum::<u64>()
    };
    let calls = total(|outcome| outcome.stats.calls);
    let attempts = total(|outcome| outcome.stats.attempts);
    let failures = total(|outcome| outcome.stats.failures);
    let each = |n: u64| format!("{:.1}", n as f64 / outcomes.len() as f64);
    Ok(Outcome {
        summary: format!(
            "{} found a partner that they were not connected with: median {}, p95 {}; {} calls \
                and {} connection attempts each",
            count(outcomes.len() as u64, "node"),
            human(spread.median),
            human(spread.p95),
            each(calls),
            each(attempts)
        ),
        figures: json!({
            "found": outcomes.len(), "medianMs": ms(spread.median), "p95Ms": ms(spread.p95),
            "calls": calls, "attempts": attempts, "failures": failures,
        }),
    })
}

/// Closes the connections between two nodes, at both ends. With `graph` also removes the other node
/// from the first one's graph.
async fn forget<R: Runtime + Unpin>(
    node: &Node<R>,
    other: &Node<R>,
    graph: bool,
    runtime: &R,
) -> Result<()> {
    node.disconnect(other.own_id()).await?;
    if graph {
        node.unset_node(other.own_id()).await?;
    }
    until(runtime, DISAGREE, async || {
        let connected = other.connections().await?.iter().any(|end| end.node == node.own_id());
        Ok((!connected).then_some(()))
    })
    .await
}

/// Each node pings its partner, sequentially, so that the time is that of the network.
pub(super) async fn ping<R: Runtime + Unpin>(
    network: &Network<R>,
    pairs: &Pairs<'_, R>,
    progress: &Progress,
) -> Result<Outcome> {
    let mut times = Vec::with_capacity(network.nodes.len());
    for (node, partner) in pairs {
        times.push(node.ping_node(partner.own_id(), RequestOptions::default()).await?.rtt);
        progress.tick();
    }
    let spread = Spread::of(times.iter().copied());
    Ok(Outcome {
        summary: format!(
            "{} answered: round trip median {}, p95 {}",
            count(times.len() as u64, "node"),
            human(spread.median),
            human(spread.p95)
        ),
        figures: json!({ "answered": times.len(), "medianMs": ms(spread.median), "p95Ms": ms(spread.p95) }),
    })
}

/// Each node streams to its partner and checks every byte of the echo.
pub(super) async fn stream<R: Runtime + Unpin>(
    network: &Network<R>,
    pairs: &Pairs<'_, R>,
    progress: &Progress,
) -> Result<Outcome> {
    let begun = Instant::now();
    let exchange = async |(node, partner): &(&Node<R>, &Node<R>)| {
        let sent = payload(node.own_id());
        let stream =
            node.open_stream(partner.own_id(), echo::PROTOCOL, RequestOptions::default()).await?;
        let received = echo::call(stream, &sent).await?;
        if received != sent {
            let at = received.iter().zip(&sent).take_while(|(a, b)| a == b).count();
            return Err(CliError::new(
                "Echo",
                format!("the echo of {PAYLOAD} bytes differs from byte {at}"),
            ));
        }
        progress.tick();
        Ok(())
    };
    stream::iter(pairs).map(exchange).buffer_unordered(STREAMS).try_collect::<()>().await?;
    let streams = network.nodes.len();
    let bytes = PAYLOAD * streams;
    let rate = bytes as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64();
    Ok(Outcome {
        summary: format!(
            "{} of {} MiB echoed, every byte verified: {rate:.0} MiB/s each way",
            count(streams as u64, "stream"),
            PAYLOAD >> 20
        ),
        figures: json!({ "streams": streams, "bytes": bytes, "mibPerSecond": rate.round() }),
    })
}

/// Returns bytes that depend on the node and the position (xorshift64).
fn payload(node: NodeId) -> Vec<u8> {
    let mut state = node
        .as_bytes()
        .iter()
        .fold(1_u64, |state, byte| state.wrapping_mul(31).wrapping_add((*byte).into()));
    let mut bytes = Vec::with_capacity(PAYLOAD);
    while bytes.len() < PAYLOAD {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// All nodes shut down concurrently; then every address is free again.
pub(super) async fn shutdown<R: Runtime + Unpin>(
    network: &Network<R>,
    progress: &Progress,
) -> Result<Outcome> {
    let addrs: BTreeSet<_> = network.all().flat_map(Node::local_addrs).collect();
    let shutdown = async |node: &Node<R>| {
        node.shutdown().await;
        progress.tick();
    };
    stream::iter(network.all()).for_each_concurrent(None, shutdown).await;
    for addr in addrs {
        UdpSocket::bind(addr).map_err(|error| {
            CliError::new("Shutdown", format!("{addr} is still in use: {error}"))
        })?;
    }
    let tasks: u64 = network.all().map(|node| node.driver_metrics().tasks).sum();
    if tasks > 0 {
        return Err(CliError::new("Shutdown", format!("{tasks} tasks are still running")));
    }
    Ok(Outcome {
        summary: format!(
            "{} closed; no task and no socket left",
            count(network.all().count() as u64, "node")
        ),
        figures: json!({ "tasksLeft": tasks }),
    })
}
