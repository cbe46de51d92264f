//! `pk run` for people: what happens, line by line.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{join4, select};
use pk_driver::{Events, Node, NodeError, Notice, Runtime};
use pk_proto::{Event, Failure, Role, Synced};

use crate::args::RunArgs;
use crate::error::{CliError, Result};
use crate::output::line;
use crate::words::{count, human, why_closed};
use crate::{echo, run, signal};

/// Runs until a signal.
pub(crate) async fn run<R: Runtime + Unpin>(args: RunArgs, runtime: R) -> Result<()> {
    let signal = signal::stop_signal()?;
    let node = run::start(&args, &runtime).await?;
    let events = node.events();
    let echo = echo::accept(&node).await?;
    greet(&node, &args).await;

    let stopping = signal.inspect(|signal| line(format_args!("{signal}: shutting down"))).shared();
    let join =
        run::join(&node, &runtime, &args.seed_nodes, async |took, result| tell_joined(&node, took, result).await);
    let join = select(Box::pin(join), stopping.clone());
    let shutdown = async {
        stopping.clone().await;
        node.shutdown().await;
    };
    join4(join, shutdown, tell_events(events), echo::serve(echo)).await;
    line("stopped");
    Ok(())
}

async fn greet<R: Runtime>(node: &Node<R>, args: &RunArgs) {
    let id = node.own_id();
    line(format_args!("node {id} on {}", args.runtime.runtime.as_str()));
    for addr in node.local_addrs() {
        line(format_args!("listening on UDP {addr}"));
        if addr.ip().is_unspecified() {
            line(format_args!(
                "others join with --seed-node pk://{id}@HOST:{}, HOST being an address of this machine",
                addr.port()
            ));
        } else {
            line(format_args!("others join with --seed-node pk://{id}@{addr}"));
        }
    }
    match node.metrics().await.map_or(0, |metrics| metrics.nodes) {
        0 if args.seed_nodes.is_empty() => {
            line("no other node is known, and no --seed-node was given: waiting for others");
        }
        0 => {}
        known => line(format_args!("{} known from before", count(known, "node"))),
    }
}

async fn tell_joined<R: Runtime + Unpin>(
    node: &Node<R>,
    took: Duration,
    result: std::result::Result<Synced, NodeError>,
) {
    match result {
        Ok(Synced { seeds, failed, .. }) => {
            let (known, connections) =
                node.metrics().await.map_or((0, 0), |metrics| (metrics.nodes, metrics.connections));
            let known = count(known, "node");
            let took = human(took);
            if !seeds.is_empty() {
                let through = count(seeds.len() as u64, "seed node");
                line(format_args!("joined through {through} in {took}, {known} known"));
            } else if connections > 0 {
                line(format_args!("joined through nodes known from before in {took}, {known} known"));
            } else {
                line("none of the nodes known from before answers; trying again");
            }
            for (seed, why) in failed {
                line(format_args!("  {seed}: {why}"));
            }
        }
        Err(NodeError::Failure(Failure::Stopped) | NodeError::Closed) => {}
        Err(error) => line(format_args!("not joined: {}; trying again", CliError::from(error))),
    }
}

async fn tell_events(mut events: Events) {
    while let Some(notice) = events.next().await {
        match notice {
            Notice::Event(Event::ConnectionOpened { node, role, address, .. }) => {
                let direction = match role {
                    Role::Dialler => "to",
                    Role::Acceptor => "from",
                };
                line(format_args!("+ {node} connected, {direction} {address}"));
            }
            Notice::Event(Event::ConnectionClosed { node, why, .. }) => {
                line(format_args!("- {node} gone: {}", why_closed(&why)));
            }
            Notice::Event(Event::PeerMisbehaved { node, fault, .. }) => line(format_args!("! {node}: {fault}")),
            Notice::Event(Event::ClaimAdded { node: Some(node), claim }) => {
                line(format_args!("✓ {node} and this node belong together: claim {claim}"));
            }
            Notice::Event(Event::ClaimAdded { node: None, claim }) => line(format_args!("✓ claim {claim} made")),
            Notice::Event(Event::ClaimInDoubt { claim, node }) => {
                line(format_args!("? {node} may not have its own of claim {claim}; settled when it is next connected"));
            }
            Notice::Event(Event::ClaimSettled { claim, node }) => {
                line(format_args!("✓ {node} has its own of claim {claim}"));
            }
            Notice::Event(_) => {}
            Notice::Lagged(missed) => line(format_args!("… {missed} events not shown")),
        }
    }
}
