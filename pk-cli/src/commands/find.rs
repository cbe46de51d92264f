//! `pk find` and `pk ping`.

use std::collections::BTreeSet;
use std::time::Duration;

use pk_driver::{Node, NodeError, Runtime};
use pk_proto::{
    ClosestNodesQuery, DialFailure, Failure, FindEnd, FindNodeOptions, FindOutcome, FindStats,
    FindStep, FindStepEnd, Host, NodeAddress, NodeContactAddressData, NodeId, RequestOptions,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{OneShotArgs, TargetArgs};
use crate::commands::one_shot::{Limit, in_time, join, refuse_own, waiting, with_node};
use crate::error::{CliError, Result};
use crate::output;
use crate::output::format::{count, human, ms};
use crate::output::polykey_json;

/// Number of nodes that are asked for this node's public address, and the time limit of each
/// answer.
const ASKED: usize = 3;
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// `pk find`.
pub(crate) async fn find<R: Runtime + Unpin>(args: TargetArgs, runtime: R) -> Result<()> {
    with_node(&args.common, runtime, async |node, limit| {
        refuse_own(node, &args)?;
        report_found(&args, &reach(node, args.target, &args.common, limit).await?);
        Ok(())
    })
    .await
}

/// Address of the node that was found, and how it was found.
pub(crate) struct Reached {
    address: NodeAddress,
    data: NodeContactAddressData,
    outcome: FindOutcome,
}

/// Joins, searches for a node and connects to it.
///
/// # Errors
///
/// Joining failed, or the node was not found; the error contains the reason.
pub(crate) async fn reach<R: Runtime + Unpin>(
    node: &Node<R>,
    target: NodeId,
    args: &OneShotArgs,
    limit: Limit,
) -> Result<Reached> {
    join(node, args, false, limit).await?;
    let find = FindNodeOptions { options: limit.options(), ..FindNodeOptions::default() };
    let searching = waiting(args, "searching", node.find_node(target, find));
    let outcome = searching.await.map_err(|error| in_time(error, limit))?;
    match outcome.found.clone() {
        Some((address, data)) => Ok(Reached { address, data, outcome }),
        None => {
            let dials =
                outcome.trace.iter().filter(|step| step.node == target).filter_map(|step| {
                    match &step.end {
                        FindStepEnd::Unreachable(dials) => Some(dials),
                        _ => None,
                    }
                });
            Err(advise(node, dials.flatten(), not_found(target, args, &outcome, limit)).await)
        }
    }
}

/// Adds a tip if one of these dials was signalled and timed out.
async fn advise<'a, R: Runtime>(
    node: &Node<R>,
    dials: impl IntoIterator<Item = &'a (NodeAddress, DialFailure)>,
    error: CliError,
) -> CliError {
    let signalled: BTreeSet<&Host> = dials
        .into_iter()
        .filter(|(_, why)| matches!(why, DialFailure::TimedOutAfterSignal))
        .map(|(address, _)| &address.host)
        .collect();
    if signalled.is_empty() {
        return error;
    }
    error.tip(match shares_address(node, &signalled).await {
        Some(true) => {
            "both nodes have the same public address, so they are behind the same NAT: if they share a local network, run both \
             with --mdns"
        }
        Some(false) => "the NATs of both nodes are too strict for a direct connection",
        None => {
            "the NATs of both nodes are too strict for a direct connection; if they share a \
                local network, run both with --mdns"
        }
    })
}

/// Returns whether one of `hosts` is the address under which connected nodes see this node; `None`
/// if they do not report it.
async fn shares_address<R: Runtime>(node: &Node<R>, hosts: &BTreeSet<&Host>) -> Option<bool> {
    let own = node.own_id();
    let connections = node.connections().await.unwrap_or_default();
    let peers: BTreeSet<NodeId> =
        connections.into_iter().map(|connection| connection.node).collect();
    let query = ClosestNodesQuery { known: false, connected: true };
    let options = RequestOptions { deadline: Some(ASK_TIMEOUT), ..RequestOptions::default() };
    let mut shares = None;
    for peer in peers.into_iter().take(ASKED) {
        // A node that fails to answer is skipped.
        let Ok(closest) = node.query_closest_nodes(peer, own, query, options).await else {
            continue;
        };
        let seen = closest
            .connected
            .iter()
            .filter(|active| active.node == own)
            .flat_map(|active| &active.connections);
        for connection in seen {
            shares = Some(shares == Some(true) || hosts.contains(&connection.address.host));
        }
    }
    shares
}

/// `pk ping`.
pub(crate) async fn ping<R: Runtime + Unpin>(args: TargetArgs, runtime: R) -> Result<()> {
    with_node(&args.common, runtime, async |node, limit| {
        refuse_own(node, &args)?;
        join(node, &args.common, false, limit).await?;
        let asking =
            waiting(&args.common, "searching", node.ping_node(args.target, limit.options()));
        let pong = match asking.await {
            Ok(pong) => pong,
            Err(error) => {
                let dials = match &error {
                    NodeError::Failure(Failure::NotFound(dials) | Failure::Dial(dials)) => {
                        dials.clone()
                    }
                    _ => Vec::new(),
                };
                return Err(advise(node, &dials, in_time(error, limit)).await);
            }
        };
        if args.common.json {
            output::json(&PingLine {
                ok: true,
                node_id: args.target,
                address: pong.address.to_string(),
                rtt_ms: ms(pong.rtt),
                contact: polykey_json::contact_data(&pong.data),
            });
        } else {
            output::line(format_args!(
                "{} at {} answers in {}",
                args.target,
                pong.address,
                human(pong.rtt)
            ));
        }
        Ok(())
    })
    .await
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PingLine {
    ok: bool,
    node_id: NodeId,
    address: String,
    rtt_ms: f64,
    contact: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FindLine {
    ok: bool,
    node_id: NodeId,
    address: String,
    contact: Value,
    ms: f64,
    attempts: u32,
    failures: u32,
    calls: u32,
    candidates: u32,
    trace: Vec<Value>,
}

fn report_found(args: &TargetArgs, reached: &Reached) {
    let Reached { address, data, outcome } = reached;
    let FindOutcome { stats, trace, .. } = outcome;
    if args.common.json {
        output::json(&FindLine {
            ok: true,
            node_id: args.target,
            address: address.to_string(),
            contact: polykey_json::contact_data(data),
            ms: ms(stats.elapsed),
            attempts: stats.attempts,
            failures: stats.failures,
            calls: stats.calls,
            candidates: stats.candidates,
            trace: trace.iter().map(step_json).collect(),
        });
        return;
    }
    output::line(format_args!("{} is at {address}", args.target));
    output::line(format_args!("  found in {}: {}", human(stats.elapsed), cost(&outcome.stats)));
    for step in trace {
        let reported_by = step.reported_by.map_or_else(
            || "stored contact".to_owned(),
            |node| format!("reported by {}", short(&node)),
        );
        let end = step_text(&step.end);
        output::line(format_args!(
            "  {} {:>8}  {end}  ({reported_by})",
            short(&step.node),
            human(step.took)
        ));
    }
}

fn not_found(target: NodeId, args: &OneShotArgs, outcome: &FindOutcome, limit: Limit) -> CliError {
    let cost = cost(&outcome.stats);
    let known = outcome.trace.iter().rev().find(|step| step.node == target).map(|step| &step.end);
    if let Some(FindStepEnd::Unreachable(dials)) = known
        && outcome.ended != FindEnd::Deadline
    {
        let end = step_text(&FindStepEnd::Unreachable(dials.clone()));
        return CliError::new(
            "Unreachable",
            format!("{target} has a known address, but {end} ({cost})"),
        )
        .dials(dials);
    }
    if outcome.ended == FindEnd::Exhausted && outcome.stats.calls == 0 && args.seed_nodes.is_empty()
    {
        let message = format!("{target} was not found: no stored contact answered ({cost})");
        return CliError::new("NotFound", message)
            .tip("name a running node with --seed-node pk://ID@HOST:PORT");
    }
    let (name, message) = match outcome.ended {
        FindEnd::Limit => {
            ("Limit", format!("{target} was not found: limit of attempts reached after {cost}"))
        }
        FindEnd::Deadline => {
            let message = format!("{target} was not found within {} s: {cost}", limit.secs());
            return CliError::new("DeadlineExceeded", message)
                .tip("increase the limit with --timeout SECONDS");
        }
        FindEnd::Connected | FindEnd::Exhausted => (
            "NotFound",
            format!(
                "{target} was not found: none of the nodes nearest to it has a contact for it ({cost})"
            ),
        ),
    };
    CliError::new(name, message)
        .tip("check that the node is running and has joined the same network")
}

pub(crate) fn cost(stats: &FindStats) -> String {
    let failed =
        if stats.failures == 0 { String::new() } else { format!(" ({} failed)", stats.failures) };
    format!(
        "{}{failed}, {}, {} reported",
        count(stats.attempts.into(), "connection attempt"),
        count(stats.calls.into(), "question"),
        count(stats.candidates.into(), "node")
    )
}

/// Returns enough of an id to distinguish it on the screen.
fn short(node: &NodeId) -> String {
    let mut text = node.to_string();
    text.truncate(9);
    text + "…"
}

fn step_text(end: &FindStepEnd) -> String {
    match end {
        FindStepEnd::Pending => "still pending".to_owned(),
        FindStepEnd::Target => "is the target".to_owned(),
        FindStepEnd::Answered { reported, new } => {
            format!("reported {reported}, {new} of them new")
        }
        FindStepEnd::Unreachable(dials) => {
            let dials: Vec<String> =
                dials.iter().map(|(address, why)| format!("{address} {why}")).collect();
            format!("unreachable: {}", dials.join("; "))
        }
        FindStepEnd::NoAnswer => "did not answer".to_owned(),
    }
}

pub(crate) fn step_json(step: &FindStep) -> Value {
    let mut json = json!({
        "nodeId": step.node.to_string(),
        "toldBy": step.reported_by.map(|node| node.to_string()),
        "begunMs": ms(step.begun),
        "ms": ms(step.took),
    });
    let end = match &step.end {
        FindStepEnd::Pending => "pending",
        FindStepEnd::Target => "target",
        FindStepEnd::Answered { reported, new } => {
            json["told"] = (*reported).into();
            json["new"] = (*new).into();
            "answered"
        }
        FindStepEnd::Unreachable(dials) => {
            let dials =
                dials.iter().map(|(address, why)| json!([address.to_string(), why.to_string()]));
            json["dials"] = dials.collect();
            "unreachable"
        }
        FindStepEnd::NoAnswer => "noAnswer",
    };
    json["end"] = end.into();
    json
}
