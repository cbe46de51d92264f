//! Runs of scenarios.

mod events;
mod measure;
mod outcome;
mod records;
mod requests;
mod setup;
mod state;

pub use self::records::{Bucket, Path, PathStep, Sampled};
use self::state::Runner;
pub use self::state::{Interrupted, Options, Progress};
use super::figures::Outcome;
use super::machine_costs::rss_bytes;
use super::spec::Scenario;

/// Result of a run, and what a report shows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Figures.
    pub outcome: Outcome,
    /// Measurements over time, about 240.
    pub series: Vec<Sampled>,
    /// Time of the end of each search, in seconds after the start, and its duration in
    /// milliseconds.
    pub searches: Vec<(f64, f64)>,
    /// The same of joins.
    pub joins: Vec<(f64, f64)>,
    /// Occupancy of the buckets at the end, the farthest first.
    pub buckets: Vec<Bucket>,
    /// Connections that each node accepted or dialed in the measured time, per hour, ascending.
    pub load: Vec<f64>,
    /// A search with the most contacts.
    pub path: Option<Path>,
}

/// Runs a scenario.
///
/// # Errors
/// It was interrupted.
pub fn run(scenario: &Scenario, options: &Options) -> Result<Run, Interrupted> {
    let rss = rss_bytes().unwrap_or(0);
    // The run without the searches comes first, so that the memory at the end is that of the run.
    let twin = match scenario.twin {
        true => Some(Runner::run(scenario, options, true)?.totals()),
        false => None,
    };
    let runner = Runner::run(scenario, options, false)?;
    Ok(runner.into_run(twin, rss))
}

impl<'a> Runner<'a> {
    fn run(scenario: &'a Scenario, options: &'a Options, quiet: bool) -> Result<Self, Interrupted> {
        let mut runner = Self::set_up(scenario, options, quiet);
        runner.start()?;
        runner.origin = runner.cluster.now();
        runner.plan();
        let end = runner.origin + runner.duration;
        let mut reported = 0.0;
        while let Some(((at, _), step)) = runner.steps.pop_first() {
            if at > end {
                break;
            }
            runner.drive_to(at)?;
            runner.perform(step);
            let share = runner.elapsed_s() / runner.duration.as_secs_f64();
            if share >= reported + 0.01 {
                reported = share;
                runner.report(if quiet { "run without searches" } else { "run" });
            }
        }
        runner.drive_to(end)?;
        runner.collect();
        runner.finish_away();
        runner.end_attack();
        runner.snapshot();
        Ok(runner)
    }
}
