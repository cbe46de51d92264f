//! `pk sim`.

use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use pk_sim::report;
use pk_sim::scenario::{
    BUILT_IN, Deviation, FIGURES, Options, Outcome, Progress, Recorded, Run, Scenario, run,
};
use serde_json::json;
use tokio::sync::oneshot;

use crate::error::{CliError, Result};
use crate::output;
use crate::process::signal::{stop_signal, unless};
use crate::sim_args::SimArgs;

/// Seed of scenarios without recorded results.
const SEED: u64 = 1;

/// `pk sim`: runs a scenario in virtual time, and checks its figures.
///
/// # Errors
///
/// The scenario is invalid (exit code 2), a figure does not hold (1), or a signal interrupts it.
pub(crate) async fn sim(args: &SimArgs) -> Result<()> {
    if args.list {
        return list(args.json);
    }
    if args.all {
        return all(args).await;
    }
    let scenario = read(args.scenario.as_deref().unwrap_or_default())?;
    let options = Options {
        nodes: args.nodes.and_then(|nodes| usize::try_from(nodes).ok()),
        seed: args.seed,
        hours: args.hours,
        ..Options::default()
    };
    let (scenario, run) = in_thread(scenario, options).await?;
    if let Some(file) = &args.report {
        write(file, &report::html(&scenario, &run))?;
    }
    if !args.json {
        summary(&scenario, &run);
        if let Some(file) = &args.report {
            output::line(format_args!("report: {}", file.display()));
        }
    }
    output::json(&run.outcome);
    match run.outcome.failed.len() {
        0 => Ok(()),
        1 => Err(CliError::new("Figure", "a figure does not hold")),
        count => Err(CliError::new("Figure", format!("{count} figures do not hold"))),
    }
}

fn list(json: bool) -> Result<()> {
    for (name, _) in BUILT_IN {
        let scenario = read(name)?;
        let Scenario { about, nodes, hours, ci, .. } = &scenario;
        if json {
            output::json(
                &json!({ "scenario": name, "about": about, "nodes": nodes, "hours": hours, "small": ci }),
            );
        } else {
            output::line(format_args!("{name:<14} {nodes:>6} nodes, {hours:>6} h  {about}"));
        }
    }
    Ok(())
}

/// Runs every scenario, and compares or writes the results. A figure that a scenario expects must
/// hold even if it is as recorded.
async fn all(args: &SimArgs) -> Result<()> {
    let file = args.results.display();
    let recorded = match fs::read_to_string(&args.results) {
        Ok(text) => text,
        Err(_) if args.update => String::new(),
        Err(error) => return Err(CliError::usage(format!("{file}: {error}"))),
    };
    let mut recorded =
        Recorded::parse(&recorded).map_err(|error| CliError::usage(format!("{file}: {error}")))?;
    let (mut count, mut wrong) = (0, Vec::new());
    for (name, _) in BUILT_IN {
        let scenario = read(name)?;
        if args.small && !scenario.ci {
            continue;
        }
        let (seed, nodes) =
            recorded.parameters(name).map_or((SEED, None), |(seed, nodes)| (seed, Some(nodes)));
        let (_, run) = in_thread(scenario, Options { seed, nodes, ..Options::default() }).await?;
        let outcome = &run.outcome;
        count += 1;
        let deviations = if args.update { Vec::new() } else { recorded.compare(outcome) };
        if !args.json {
            let state = if outcome.ok() { "holds" } else { "does not hold" };
            let cpu = outcome.get("cpu_s").unwrap_or_default();
            output::line(format_args!("{name}: {state}, {cpu:.1} s"));
            for text in &outcome.failed {
                output::line(format_args!("  {text}"));
            }
            for deviation in &deviations {
                output::line(format_args!("  differs: {deviation}"));
            }
        }
        wrong.extend(complaints(outcome, &deviations));
        output::json(outcome);
        recorded.set(outcome);
        // After each scenario, because all of them take long.
        if args.update {
            write(&args.results, &recorded.to_toml())?;
        }
    }
    output::json(&json!({ "ok": wrong.is_empty(), "scenarios": count, "differs": wrong }));
    match wrong.len() {
        0 => Ok(()),
        count => Err(CliError::new(
            "Figure",
            format!("{count} figures do not hold or differ from {file}:\n  {}", wrong.join("\n  ")),
        )
        .tip("if a difference is intended, run `pk sim --all --update`")),
    }
}

/// Returns what is wrong with a run: figures that do not hold, recorded or not, and differences.
fn complaints(outcome: &Outcome, deviations: &[Deviation]) -> Vec<String> {
    let missed = outcome.failed.iter().map(|text| format!("{}: {text}", outcome.scenario));
    missed.chain(deviations.iter().map(ToString::to_string)).collect()
}

/// Reads a built-in scenario, or that of a file.
fn read(name: &str) -> Result<Scenario> {
    if let Some(built_in) = Scenario::built_in(name) {
        return built_in.map_err(|error| CliError::usage(error.to_string()));
    }
    let is_file = Path::new(name).extension().is_some() || name.contains(['/', '\\']);
    if !is_file {
        let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
        return Err(CliError::usage(format!(
            "unknown scenario {name:?}, expected one of {}, or a file such as {name}.toml",
            names.join(", ")
        )));
    }
    let text =
        fs::read_to_string(name).map_err(|error| CliError::usage(format!("{name}: {error}")))?;
    Scenario::parse(name, &text).map_err(|error| CliError::usage(error.to_string()))
}

/// Runs a scenario in a thread, which ends soon after a signal.
async fn in_thread(scenario: Scenario, mut options: Options) -> Result<(Scenario, Run)> {
    struct Stop(Arc<AtomicBool>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    options.progress = Some(progress);
    let stop = Stop(options.stop.clone());
    let (result, done) = oneshot::channel();
    thread::Builder::new().name("simulation".to_owned()).spawn(move || {
        let ran = run(&scenario, &options);
        // After a signal no caller waits for it.
        drop(result.send(ran.map(|run| (scenario, run))));
    })?;
    let done = async move {
        match done.await {
            Ok(Ok(run)) => Ok(run),
            Ok(Err(error)) => Err(CliError::new("Interrupted", error.to_string())),
            Err(_) => Err(CliError::new("Simulation", "the simulation has failed, see above")),
        }
    };
    let ran = unless(stop_signal()?, done).await;
    drop(stop);
    ran
}

/// Prints the progress: on a terminal one line that changes, otherwise a line for each tenth.
fn progress(progress: &Progress) {
    static TENTH: AtomicU32 = AtomicU32::new(0);
    let Progress { scenario, part, virtual_s, of_s, cpu_s } = progress;
    let share = if *of_s > 0.0 { virtual_s / of_s } else { 0.0 };
    let text = if *of_s > 0.0 {
        let (hours, of) = (virtual_s / 3600.0, of_s / 3600.0);
        format!(
            "{scenario}: {part}, {:.0} % ({hours:.2} of {of:.2} h), {cpu_s:.1} s CPU",
            share * 100.0
        )
    } else {
        format!("{scenario}: {part}, {virtual_s:.0} s, {cpu_s:.1} s CPU")
    };
    if stderr().is_terminal() {
        output::status(format_args!("\r\x1b[K{text}"));
        if share >= 0.995 {
            output::status(format_args!("\r\x1b[K"));
        }
        return;
    }
    let tenth = (share * 10.0) as u32;
    if TENTH.swap(tenth, Ordering::Relaxed) != tenth {
        output::status(format_args!("{text}\n"));
    }
}

fn summary(scenario: &Scenario, run: &Run) {
    let outcome: &Outcome = &run.outcome;
    output::line(format_args!("{}: {}", outcome.scenario, scenario.about));
    output::line(format_args!("{} nodes, seed {}", outcome.nodes, outcome.seed));
    for figure in &FIGURES {
        if let Some(value) = outcome.get(figure.name) {
            let text = if figure.whole { format!("{value:.0}") } else { decimals(value) };
            output::line(format_args!("  {:<28} {text:>14} {}", figure.name, figure.unit));
        }
    }
    for text in &outcome.failed {
        output::line(format_args!("✗ {text}"));
    }
    if outcome.ok() {
        output::line("✓ all expected figures hold");
    }
}

fn decimals(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.1}") } else { format!("{value:.4}") }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)
        .map_err(|error| CliError::new("Io", format!("{}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_figure_that_does_not_hold_is_reported() {
        let scenario = "nodes = 4\nhours = 0.001\nstart = \"warm\"\nabout = \"a test\"\n\
            [[expect]]\nfigure = \"contacts_mean\"\nmin = 99.0\n";
        let scenario = Scenario::parse("test.toml", scenario).unwrap();
        let outcome = run(&scenario, &Options::default()).unwrap().outcome;
        let mut recorded = Recorded::default();
        recorded.set(&outcome);
        let deviations = recorded.compare(&outcome);
        assert_eq!(deviations, []);
        let found = complaints(&outcome, &deviations);
        assert_eq!(found, ["test: contacts_mean is 3, less than 99"]);
    }
}
