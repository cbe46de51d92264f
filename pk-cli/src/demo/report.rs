//! What the demo says while it runs: a progress bar and a line per step for people, a JSON object per step for programs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{CliError, Result};
use crate::output;
use crate::words::{human, ms};

/// How a step went: a sentence for people, with further lines if need be, and figures for programs.
pub(crate) struct Outcome {
    pub(crate) summary: String,
    pub(crate) figures: Value,
}

/// Prints the steps.
pub(crate) struct Report {
    json: bool,
    begun: Instant,
}

#[derive(Serialize)]
struct StepLine {
    step: &'static str,
    ok: bool,
    ms: f64,
    #[serde(flatten)]
    figures: Value,
}

#[derive(Serialize)]
struct EndLine {
    ok: bool,
    nodes: usize,
    runtime: &'static str,
    ms: f64,
}

/// Told by a step how far it is.
#[derive(Clone)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// One more is done.
    pub(crate) fn tick(&self) {
        self.0.inc(1);
    }
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, begun: Instant::now() }
    }

    /// Runs a step of so many parts and prints how it went.
    pub(crate) async fn step(
        &self,
        name: &'static str,
        parts: usize,
        step: impl AsyncFnOnce(Progress) -> Result<Outcome>,
    ) -> Result<()> {
        let bar = self.bar(name, parts);
        let begun = Instant::now();
        let result = step(Progress(bar.clone())).await;
        let took = begun.elapsed();
        bar.finish_and_clear();
        match result {
            Ok(outcome) => {
                self.held(name, took, outcome);
                Ok(())
            }
            Err(error) => {
                self.failed(name, took, &error);
                Err(error)
            }
        }
    }

    /// The last line.
    pub(crate) fn end(&self, ok: bool, nodes: usize, runtime: &'static str) {
        let took = self.begun.elapsed();
        if self.json {
            output::json(&EndLine { ok, nodes, runtime, ms: ms(took) });
        } else if ok {
            output::line(format_args!("everything held: {nodes} nodes on {runtime} in {}", human(took)));
        }
    }

    fn held(&self, step: &'static str, took: Duration, outcome: Outcome) {
        if self.json {
            output::json(&StepLine { step, ok: true, ms: ms(took), figures: outcome.figures });
        } else {
            // Further lines stand below the first.
            let summary = outcome.summary.replace('\n', &format!("\n{:21}", ""));
            output::line(format_args!("  {step:<9}{:>8}  {summary}", human(took)));
        }
    }

    fn failed(&self, step: &'static str, took: Duration, error: &CliError) {
        if self.json {
            output::json(&StepLine { step, ok: false, ms: ms(took), figures: json!({ "error": error.json() }) });
        } else {
            output::line(format_args!("  {step:<9}{:>8}  failed", human(took)));
        }
    }

    /// Draws on stderr, and only if that is a terminal; gone when the step is over.
    fn bar(&self, name: &'static str, parts: usize) -> ProgressBar {
        if self.json {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(parts as u64), ProgressDrawTarget::stderr()).with_prefix(name);
        if let Ok(style) = ProgressStyle::with_template("  {prefix:<9}{elapsed:>8}  {bar:24} {pos}/{len}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}
