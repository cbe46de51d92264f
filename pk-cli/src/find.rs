//! `pk find` and `pk ping`.

use pk_driver::{Node, Runtime};
use pk_proto::{
    DialFailure, FindEnd, FindNode, FindOutcome, FindStep, FindStepEnd, NodeAddress, NodeContactAddressData, NodeId,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{OneShotArgs, TargetArgs};
use crate::error::{CliError, Result};
use crate::one_shot::{Limit, in_time, join, refuse_own, waiting, with_node};
use crate::words::{count, human, ms};
use crate::{output, shape};

/// `pk find`.
pub(crate) async fn find<R: Runtime + Unpin>(args: TargetArgs, runtime: R) -> Result<()> {
    with_node(&args.common, runtime, async |node, limit| {
        refuse_own(node, &args)?;
        report_found(&args, &reach(node, args.target, &args.common, limit).await?);
        Ok(())
    })
    .await
}

/// Where a node was found, and how.
pub(crate) struct Reached {
    address: NodeAddress,
    data: NodeContactAddressData,
    outcome: FindOutcome,
}

/// Joins, finds a node and connects to it.
///
/// # Errors
///
/// Those of joining; the node was not found, and why.
pub(crate) async fn reach<R: Runtime + Unpin>(
    node: &Node<R>,
    target: NodeId,
    args: &OneShotArgs,
    limit: Limit,
) -> Result<Reached> {
    join(node, args, false, limit).await?;
    let find = FindNode { options: limit.options(), ..FindNode::default() };
    let searching = waiting(args, "searching", node.find_node(target, find));
    let outcome = searching.await.map_err(|error| in_time(error, limit))?;
    match outcome.found.clone() {
        Some((address, data)) => Ok(Reached { address, data, outcome }),
        None => Err(not_found(target, args, &outcome, limit)),
    }
}

/// `pk ping`.
pub(crate) async fn ping<R: Runtime + Unpin>(args: TargetArgs, runtime: R) -> Result<()> {
    with_node(&args.common, runtime, async |node, limit| {
        refuse_own(node, &args)?;
        join(node, &args.common, false, limit).await?;
        let asking = waiting(&args.common, "searching", node.ping_node(args.target, limit.options()));
        let pong = asking.await.map_err(|error| in_time(error, limit))?;
        if args.common.json {
            output::json(&PingLine {
                ok: true,
                node_id: args.target,
                address: pong.address.to_string(),
                rtt_ms: ms(pong.rtt),
                contact: shape::contact_data(&pong.data),
            });
        } else {
            output::line(format_args!("{} at {} answers in {}", args.target, pong.address, human(pong.rtt)));
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
            contact: shape::contact_data(data),
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
    output::line(format_args!("  found in {}: {}", human(stats.elapsed), cost(outcome)));
    for step in trace {
        let told_by = step.told_by.map_or_else(|| "known here".to_owned(), |node| format!("told by {}", short(&node)));
        let end = step_text(&step.end);
        output::line(format_args!("  {} {:>8}  {end}  ({told_by})", short(&step.node), human(step.took)));
    }
}

fn not_found(target: NodeId, args: &OneShotArgs, outcome: &FindOutcome, limit: Limit) -> CliError {
    let cost = cost(outcome);
    let known = outcome.trace.iter().rev().find(|step| step.node == target).map(|step| &step.end);
    if let Some(FindStepEnd::Unreachable(dials)) = known
        && outcome.ended != FindEnd::Deadline
    {
        let end = step_text(&FindStepEnd::Unreachable(dials.clone()));
        let error = CliError::new("Unreachable", format!("{target} is known, but {end} ({cost})")).dials(dials);
        let strict = dials.iter().any(|(_, why)| matches!(why, DialFailure::TimedOutAfterSignal));
        return if strict {
            error.tip("the NATs before both nodes are too strict for a direct connection")
        } else {
            error
        };
    }
    if outcome.ended == FindEnd::Exhausted && outcome.stats.calls == 0 && args.seed_nodes.is_empty() {
        let message = format!("{target} was not found: no node that is known from before answers ({cost})");
        return CliError::new("NotFound", message).tip("name one that runs with --seed-node pk://ID@HOST:PORT");
    }
    let (name, message) = match outcome.ended {
        FindEnd::Limit => ("Limit", format!("{target} was not found: gave up after {cost}")),
        FindEnd::Deadline => {
            let message = format!("{target} was not found within {} s: {cost}", limit.secs());
            return CliError::new("DeadlineExceeded", message).tip("give it longer with --timeout SECONDS");
        }
        FindEnd::Connected | FindEnd::Exhausted => {
            ("NotFound", format!("{target} was not found: none of the nodes nearest to it knows it ({cost})"))
        }
    };
    CliError::new(name, message).tip("is the node running, and joined to the same network?")
}

fn cost(outcome: &FindOutcome) -> String {
    let stats = outcome.stats;
    let failed = if stats.failures == 0 { String::new() } else { format!(" ({} failed)", stats.failures) };
    format!(
        "{}{failed}, {}, {} heard of",
        count(stats.attempts.into(), "connection attempt"),
        count(stats.calls.into(), "question"),
        count(stats.candidates.into(), "node")
    )
}

/// Enough of an id to tell it from others on the screen.
fn short(node: &NodeId) -> String {
    let mut text = node.to_string();
    text.truncate(9);
    text + "…"
}

fn step_text(end: &FindStepEnd) -> String {
    match end {
        FindStepEnd::Pending => "not waited for".to_owned(),
        FindStepEnd::Target => "is the target".to_owned(),
        FindStepEnd::Answered { told, new } => format!("told {told}, {new} of them new"),
        FindStepEnd::Unreachable(dials) => {
            let dials: Vec<String> = dials.iter().map(|(address, why)| format!("{address} {why}")).collect();
            format!("unreachable: {}", dials.join("; "))
        }
        FindStepEnd::NoAnswer => "did not answer".to_owned(),
    }
}

fn step_json(step: &FindStep) -> Value {
    let mut json = json!({
        "nodeId": step.node.to_string(),
        "toldBy": step.told_by.map(|node| node.to_string()),
        "begunMs": ms(step.begun),
        "ms": ms(step.took),
    });
    let end = match &step.end {
        FindStepEnd::Pending => "pending",
        FindStepEnd::Target => "target",
        FindStepEnd::Answered { told, new } => {
            json["told"] = (*told).into();
            json["new"] = (*new).into();
            "answered"
        }
        FindStepEnd::Unreachable(dials) => {
            let dials = dials.iter().map(|(address, why)| json!([address.to_string(), why.to_string()]));
            json["dials"] = dials.collect();
            "unreachable"
        }
        FindStepEnd::NoAnswer => "noAnswer",
    };
    json["end"] = end.into();
    json
}
