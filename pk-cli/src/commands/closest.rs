//! `pk closest`.

use pk_driver::Runtime;
use pk_proto::{ClosestOutcome, FindEnd, FindNodeOptions, NodeId};
use serde::Serialize;
use serde_json::Value;

use crate::args::ClosestArgs;
use crate::commands::find::{cost, step_json};
use crate::commands::one_shot::{in_time, join, waiting, with_node};
use crate::error::{CliError, Result};
use crate::output;
use crate::output::format::{count, human, ms};
use crate::output::polykey_json;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClosestLine {
    ok: bool,
    target: NodeId,
    /// Whether the search is complete. Otherwise the nodes are those that were found in time.
    complete: bool,
    nodes: Vec<Value>,
    ms: f64,
    attempts: u32,
    failures: u32,
    calls: u32,
    candidates: u32,
    trace: Vec<Value>,
}

/// `pk closest`: prints the nearest node first.
pub(crate) async fn closest<R: Runtime + Unpin>(args: ClosestArgs, runtime: R) -> Result<()> {
    let ClosestArgs { target, count: wanted, common } = args;
    with_node(&common, runtime, async |node, limit| {
        join(node, &common, false, limit).await?;
        let find = FindNodeOptions { options: limit.options(), ..FindNodeOptions::default() };
        let searching = waiting(&common, "searching", node.find_closest(target, wanted, find));
        let outcome = searching.await.map_err(|error| in_time(error, limit))?;
        let ClosestOutcome { nodes, ended, stats, trace } = &outcome;
        if nodes.is_empty() {
            let message = format!("no node answered ({})", cost(stats));
            return Err(CliError::new("NotFound", message)
                .tip("name a running node with --seed-node pk://ID@HOST:PORT"));
        }
        let complete = *ended == FindEnd::Exhausted;
        if common.json {
            output::json(&ClosestLine {
                ok: true,
                target,
                complete,
                nodes: nodes.iter().map(polykey_json::found_closest).collect(),
                ms: ms(stats.elapsed),
                attempts: stats.attempts,
                failures: stats.failures,
                calls: stats.calls,
                candidates: stats.candidates,
                trace: trace.iter().map(step_json).collect(),
            });
            return Ok(());
        }
        output::line(format_args!(
            "{} closest to {target} in {}: {}{}",
            count(nodes.len() as u64, "node"),
            human(stats.elapsed),
            cost(stats),
            if complete { "" } else { "; the search is not complete" }
        ));
        for (node, address) in nodes {
            output::line(format_args!("  {node}  {address}"));
        }
        Ok(())
    })
    .await
}
