//! The command line of `pk sim`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["scenario", "all", "list"]))]
pub(crate) struct SimArgs {
    /// Scenario: a name of --list, or a TOML file (docs/SIMULATOR.md).
    #[arg(value_name = "SCENARIO|FILE")]
    pub(crate) scenario: Option<String>,
    /// Number of honest nodes at the start, 2 to 1000000. (default: that of the scenario)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(2..=1_000_000), conflicts_with_all = ["all", "list"])]
    pub(crate) nodes: Option<u64>,
    /// Seed of all random numbers. The same seed has the same run, and the same trace_hash.
    #[arg(long, value_name = "NUMBER", default_value = "1", conflicts_with_all = ["all", "list"])]
    pub(crate) seed: u64,
    /// Duration in virtual hours. Events after it do not happen. (default: that of the scenario)
    #[arg(long, value_name = "HOURS", value_parser = hours, conflicts_with_all = ["all", "list"])]
    pub(crate) hours: Option<f64>,
    /// Print only the JSON object, which otherwise is the last line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a report with plots: one HTML page.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "list"])]
    pub(crate) report: Option<PathBuf>,
    /// List the scenarios.
    #[arg(long, conflicts_with = "all")]
    pub(crate) list: bool,
    /// Run all scenarios and compare their figures with the recorded results.
    #[arg(long)]
    pub(crate) all: bool,
    /// With --all: only the small scenarios, those of `.ci/run`.
    #[arg(long, requires = "all")]
    pub(crate) small: bool,
    /// With --all: write the figures to the file of results instead of comparing them.
    #[arg(long, requires = "all")]
    pub(crate) update: bool,
    /// With --all: file of results.
    #[arg(
        long,
        value_name = "FILE",
        requires = "all",
        default_value = "pk-sim/scenarios/results.toml"
    )]
    pub(crate) results: PathBuf,
}

fn hours(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(hours) if (0.001..=10_000.0).contains(&hours) => Ok(hours),
        _ => Err("the duration must be 0.001 to 10000 hours".to_owned()),
    }
}
