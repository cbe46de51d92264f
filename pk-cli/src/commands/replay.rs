//! `pk replay`.

use std::fs;
use std::time::Duration;

use pk_proto::{Instant, Output, Replay, ReplayError, ReplayStep};
use serde_json::json;

use crate::args::ReplayArgs;
use crate::error::{CliError, Result};
use crate::output;
use crate::output::format::{count, human, ms};

/// `pk replay`: creates the recorded node again, repeats its inputs, and compares its outputs.
///
/// # Errors
///
/// The file cannot be read or is not a recording, or an output differs.
pub(crate) fn replay(args: &ReplayArgs) -> Result<()> {
    let file = args.file.display();
    let bytes =
        fs::read(&args.file).map_err(|error| CliError::new("Io", format!("{file}: {error}")))?;
    let mut replay = Replay::new(&bytes).map_err(|error| refused(args, &error))?;
    let first_id = replay.machine().own_id();
    let (mut first, mut last) = (None, Instant::ORIGIN);
    let (mut calls, mut outputs, mut events) = (0_u64, 0, 0);
    while let Some(step) = replay.step().map_err(|error| refused(args, &error))? {
        first.get_or_insert(step.now);
        last = step.now;
        calls += 1;
        outputs += step.outputs.len() as u64;
        events +=
            step.outputs.iter().filter(|output| matches!(output, Output::Event(_))).count() as u64;
        if args.calls {
            show(args, &step);
        }
        if output::is_broken() {
            // The exit code reports it.
            return Ok(());
        }
    }
    let took = last.since(first.unwrap_or(last));
    let node = replay.machine();
    let own = node.own_id();
    let metrics = node.metrics();
    if args.json {
        output::json(&json!({
            "ok": true, "nodeId": first_id.to_string(), "lastNodeId": own.to_string(), "ms": ms(took),
            "calls": calls, "outputs": outputs, "events": events,
            "nodes": metrics.nodes, "connections": metrics.connections, "stopped": node.is_stopped(),
        }));
        return Ok(());
    }
    let life = human(took);
    output::line(format_args!(
        "{first_id}: {} in {life}, {} identical",
        count(calls, "call"),
        count(outputs, "output")
    ));
    if own != first_id {
        output::line(format_args!("  became {own}"));
    }
    let end = if node.is_stopped() { "stopped" } else { "running" };
    let (known, connected) =
        (count(metrics.nodes, "node"), count(metrics.connections, "connection"));
    output::line(format_args!(
        "  at the end {end}: {known} contacts, {connected}, {} reported",
        count(events, "event")
    ));
    Ok(())
}

fn show(args: &ReplayArgs, step: &ReplayStep) {
    let at = step.now.since(Instant::ORIGIN);
    if args.json {
        let outputs: Vec<_> = step.outputs.iter().map(|output| format!("{output:?}")).collect();
        let call = format!("{:?}", step.call);
        output::json(
            &json!({ "record": step.record, "atMs": ms(at), "call": call, "outputs": outputs }),
        );
        return;
    }
    output::line(format_args!("{:>6} {} {:?}", step.record, clock(at), step.call));
    for caused in &step.outputs {
        output::line(format_args!("       → {caused:?}"));
    }
}

/// Formats seconds and microseconds.
fn clock(at: Duration) -> String {
    format!("{}.{:06}", at.as_secs(), at.subsec_micros())
}

fn refused(args: &ReplayArgs, error: &ReplayError) -> CliError {
    let name = match error {
        ReplayError::NotARecording => "NotARecording",
        ReplayError::Version(_) => "Version",
        ReplayError::Damaged(_) => "Damaged",
        ReplayError::Diverged { .. } => "Diverged",
        _ => "ReplayError",
    };
    CliError::new(name, format!("{}: {error}", args.file.display()))
}
