//! Output of the demo: a progress bar and a line per step for people, or a JSON object per step for
//! programs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{CliError, Result};
use crate::output;
use crate::output::format::{human, ms};

/// Result of a step: a sentence for people, possibly with more lines, and figures for programs.
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

/// Handle with which a step reports its progress.
#[derive(Clone)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Reports one more completed part.
    pub(crate) fn tick(&self) {
        self.0.inc(1);
    }
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, begun: Instant::now() }
    }

    /// Runs a step with a number of parts and prints its result.
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

    /// Prints the last line.
    pub(crate) fn end(&self, ok: bool, nodes: usize, runtime: &'static str) {
        let took = self.begun.elapsed();
        if self.json {
            output::json(&EndLine { ok, nodes, runtime, ms: ms(took) });
        } else if ok {
            output::line(format_args!(
                "all steps succeeded: {nodes} nodes on {runtime} in {}",
                human(took)
            ));
        }
    }

    fn held(&self, step: &'static str, took: Duration, outcome: Outcome) {
        if self.json {
            output::json(&StepLine { step, ok: true, ms: ms(took), figures: outcome.figures });
        } else {
            // Further lines are aligned below the first.
            let summary = outcome.summary.replace('\n', &format!("\n{:21}", ""));
            output::line(format_args!("  {step:<9}{:>8}  {summary}", human(took)));
        }
    }

    fn failed(&self, step: &'static str, took: Duration, error: &CliError) {
        if self.json {
            output::json(&StepLine {
                step,
                ok: false,
                ms: ms(took),
                figures: json!({ "error": error.json() }),
            });
        } else {
            output::line(format_args!("  {step:<9}{:>8}  failed", human(took)));
        }
    }

    /// Draws on stderr, only if it is a terminal; removed at the end of the step.
    fn bar(&self, name: &'static str, parts: usize) -> ProgressBar {
        if self.json {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(parts as u64), ProgressDrawTarget::stderr())
            .with_prefix(name);
        if let Ok(style) =
            ProgressStyle::with_template("  {prefix:<9}{elapsed:>8}  {bar:24} {pos}/{len}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}
