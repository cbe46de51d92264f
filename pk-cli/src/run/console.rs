//! `pk run` for people: one line per event.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{join4, select};
use pk_driver::{EventOrLag, Events, Node, NodeError, PortMapping, PortMappingEvent, Runtime};
use pk_proto::{Event, Failure, Side, Synced};

use crate::args::RunArgs;
use crate::commands::chain;
use crate::error::{CliError, Result};
use crate::node::echo;
use crate::output;
use crate::output::format::{count, human, why_closed};
use crate::process::signal;
use crate::run::session;

/// Runs until a signal.
pub(crate) async fn run<R: Runtime + Unpin>(args: RunArgs, runtime: R) -> Result<()> {
    let signal = signal::stop_signal()?;
    let (node, events) = session::start(&args, &runtime).await?;
    let echo = echo::accept(&node).await?;
    greet(&node, &args).await;

    let stopping = signal
        .inspect(|signal| output::notice(format_args!("{}: shutting down", signal.name)))
        .shared();
    let join = session::join(&node, &runtime, &args.seed_nodes, async |took, result| {
        tell_joined(&node, took, result).await;
    });
    let join = select(Box::pin(join), stopping.clone());
    let shutdown = async {
        stopping.clone().await;
        node.shutdown().await;
    };
    join4(join, shutdown, tell_events(events), echo::serve(echo)).await;
    output::notice("stopped");
    Ok(())
}

async fn greet<R: Runtime>(node: &Node<R>, args: &RunArgs) {
    let id = node.own_id();
    output::notice(format_args!("node {id} on {}", args.runtime.runtime.as_str()));
    for addr in node.local_addrs() {
        output::notice(format_args!("listening on UDP {addr}"));
        if addr.ip().is_unspecified() {
            output::notice(format_args!(
                "other nodes join with --seed-node pk://{id}@HOST:{}, where HOST is an address of this machine",
                addr.port()
            ));
        } else {
            output::notice(format_args!("other nodes join with --seed-node pk://{id}@{addr}"));
        }
    }
    match node.metrics().await.map_or(0, |metrics| metrics.nodes) {
        0 if args.seed_nodes.is_empty() => {
            output::notice(
                "no stored contacts and no --seed-node: waiting for incoming connections",
            );
        }
        0 => {}
        known => output::notice(format_args!("{} in the stored node graph", count(known, "node"))),
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
                output::notice(format_args!(
                    "joined through {through} in {took}, {known} in the node graph"
                ));
            } else if connections > 0 {
                output::notice(format_args!(
                    "joined through stored contacts in {took}, {known} in the node graph"
                ));
            } else {
                output::notice("no stored contact answered; retrying");
            }
            for (seed, why) in failed {
                output::notice(format_args!("  {seed}: {why}"));
            }
        }
        Err(NodeError::Failure(Failure::Stopped) | NodeError::Closed) => {}
        Err(error) => {
            output::notice(format_args!("join failed: {}; retrying", CliError::from(error)));
        }
    }
}

async fn tell_events(mut events: Events) {
    while let Some(notice) = events.next().await {
        match notice {
            EventOrLag::Event(Event::ConnectionOpened { node, side, address, .. }) => {
                let direction = match side {
                    Side::Dialer => "to",
                    Side::Acceptor => "from",
                };
                output::notice(format_args!("+ {node} connected, {direction} {address}"));
            }
            EventOrLag::Event(Event::ConnectionClosed { node, why, .. }) => {
                output::notice(format_args!("- {node} disconnected: {}", why_closed(&why)));
            }
            EventOrLag::Event(Event::PeerMisbehaved { node, fault, .. }) => {
                output::notice(format_args!("! {node}: {fault}"));
            }
            EventOrLag::Event(Event::ClaimAdded { node: Some(node), claim }) => {
                output::notice(format_args!("✓ linked with {node}: claim {claim}"));
            }
            EventOrLag::Event(Event::ClaimAdded { node: None, claim }) => {
                output::notice(format_args!("✓ claim {claim} committed"));
            }
            EventOrLag::Event(Event::ClaimUnconfirmed { claim, node }) => {
                output::notice(format_args!(
                    "? {node} has not confirmed claim {claim}; the exchange resumes when it is next connected"
                ));
            }
            EventOrLag::Event(Event::ClaimConfirmed { claim, node }) => {
                output::notice(format_args!("✓ {node} has confirmed claim {claim}"));
            }
            EventOrLag::Event(Event::ChainForked { seq, claims: [one, other] }) => {
                output::notice(format_args!(
                    "! the chain is forked at number {seq}: claims {one} and {other}: {}",
                    chain::FORKED
                ));
            }
            EventOrLag::Event(Event::StoreClosed { why }) => {
                output::notice(format_args!("! the store is closed: {why}"));
            }
            EventOrLag::PortMapping(event) => tell_port_mapping(&event),
            EventOrLag::Event(_) => {}
            EventOrLag::Lagged(missed) => output::notice(format_args!("… {missed} events lost")),
        }
    }
}

fn tell_port_mapping(event: &PortMappingEvent) {
    match event {
        PortMappingEvent::Mapped(PortMapping { protocol, external, lifetime, is_global }) => {
            let lifetime = human(*lifetime);
            output::notice(format_args!("⇄ reachable at {external} ({protocol}, for {lifetime})"));
            if !is_global {
                output::notice(
                    "  this address is not public: the router is itself behind a NAT; nodes outside of its network cannot use it",
                );
            }
        }
        PortMappingEvent::Renewed { mapping, restarted: true } => {
            output::notice(format_args!(
                "⇄ the router has restarted; reachable at {} again",
                mapping.external
            ));
        }
        PortMappingEvent::RenewalFailed { mapping, why } => {
            output::notice(format_args!(
                "! the port mapping {} was not renewed: {why}",
                mapping.external
            ));
        }
        PortMappingEvent::Lost(mapping) => {
            output::notice(format_args!("! no longer reachable at {}", mapping.external));
        }
        PortMappingEvent::Failed { causes, retry_in } => {
            let retry_in = human(*retry_in);
            output::notice(format_args!(
                "! the router has not mapped the port; retry in {retry_in}"
            ));
            for (protocol, why) in causes {
                output::notice(format_args!("  {protocol}: {why}"));
            }
        }
        PortMappingEvent::Withdrawn(mapping) => {
            output::notice(format_args!("⇄ the port mapping {} is withdrawn", mapping.external));
        }
        PortMappingEvent::WithdrawalFailed { mapping, why } => {
            output::notice(format_args!(
                "! the port mapping {} was not withdrawn, and ends by itself: {why}",
                mapping.external
            ));
        }
        // A renewal is regular.
        _ => {}
    }
}
