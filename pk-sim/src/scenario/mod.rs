//! Scenarios: networks with events, described in TOML, and the figures that must hold in them
//! (docs/SIMULATOR.md).
//!
//! ```
//! use pk_sim::scenario::{Options, Scenario, run};
//!
//! let text = "about = \"two nodes\"\nnodes = 3\nhours = 0.1\nstart = \"join\"\n\
//!             [[event]]\nat_s = 10\ndo = \"search\"\ncount = 5\nfor_s = 10\n\
//!             [[expect]]\nfigure = \"found_rate\"\nmin = 1.0\n";
//! let scenario = Scenario::parse("small.toml", text).unwrap();
//! let run = run(&scenario, &Options::default()).unwrap();
//! assert!(run.outcome.ok());
//! assert_eq!(run.outcome.get("searches"), Some(5.0));
//! ```

mod figures;
mod load;
mod machine_costs;
mod recorded;
mod run;
mod spec;

pub use figures::{FIGURES, Figure, Outcome};
pub use load::ScenarioError;
pub use recorded::{Deviation, Recorded, RecordedError};
pub use run::{Bucket, Interrupted, Options, Path, PathStep, Progress, Run, Sampled, run};
pub use spec::{
    Action, ConfigSpec, EventSpec, ExpectSpec, JoinSpec, LinkSpec, MeasureSpec, NatKind, NatSpec,
    Pairs, PeersSpec, Scenario, Start,
};

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        /// The scenarios of `pk-sim/scenarios`: name and text, in the order of the names.
        pub const BUILT_IN: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../scenarios/", $name, ".toml")))),*];
    };
}

built_in!(
    "away",
    "churn",
    "claims",
    "dead30",
    "eclipse",
    "eclipse50",
    "epidemic",
    "flood",
    "gone",
    "idle",
    "idle-loss",
    "idle-nat",
    "join",
    "liars20",
    "liars50",
    "mass-restart",
    "migrate",
    "mixed",
    "mute",
    "nat",
    "partition",
    "partition-restart",
    "relays",
    "relays-honest",
    "warm",
);

/// The recorded results of the built-in scenarios.
pub const RECORDED: &str = include_str!("../../scenarios/results.toml");

impl Scenario {
    /// Returns a scenario of `pk-sim/scenarios`; `None` if there is none with this name.
    ///
    /// # Errors
    /// The file has a fault, which a test excludes.
    pub fn built_in(name: &str) -> Option<Result<Self, ScenarioError>> {
        let (name, text) = BUILT_IN.iter().find(|(of, _)| *of == name)?;
        Some(Self::parse(&format!("{name}.toml"), text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_scenario_is_valid_and_expects_something() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::parse(&format!("{name}.toml"), text).unwrap();
            assert!(!scenario.expect.is_empty(), "{name} expects nothing");
            assert_eq!(&scenario.name, name);
        }
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let count = names.filter(|name| name.ends_with(".toml") && name != "results.toml").count();
        assert_eq!(count, BUILT_IN.len(), "a file of pk-sim/scenarios is not in the list");
    }
}
