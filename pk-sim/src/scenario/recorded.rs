//! The recorded results of scenarios, and how a run differs from them.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::figures::{FIGURES, Outcome, rounded};

/// Why a file of results is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedError(String);

impl fmt::Display for RecordedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RecordedError {}

/// Recorded results: the figures of each scenario at a fixed seed and number of nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recorded {
    results: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Entry {
    nodes: usize,
    seed: u64,
    #[serde(flatten)]
    figures: BTreeMap<String, f64>,
}

/// A figure that has left its tolerance.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// Scenario.
    pub scenario: String,
    /// Figure.
    pub figure: &'static str,
    /// Recorded value; `None` if it was not measured then.
    pub recorded: Option<f64>,
    /// Present value; `None` if it was not measured now.
    pub measured: Option<f64>,
    /// Difference that is allowed, in the unit of the figure.
    pub allowed: f64,
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, figure, allowed, .. } = self;
        let text = |value: Option<f64>| {
            value.map_or("not measured".to_owned(), |value| rounded(value).to_string())
        };
        let (recorded, measured) = (text(self.recorded), text(self.measured));
        write!(f, "{scenario}: {figure} is {measured}, recorded is {recorded}")?;
        if let (Some(recorded), Some(measured)) = (self.recorded, self.measured) {
            let difference = measured - recorded;
            write!(f, ": a difference of {difference:+.4}, {allowed:.4} is allowed")?;
        }
        Ok(())
    }
}

impl Recorded {
    /// Reads a file of results.
    ///
    /// # Errors
    /// The text is no file of results.
    pub fn parse(text: &str) -> Result<Self, RecordedError> {
        let results = toml::from_str(text).map_err(|error| RecordedError(error.to_string()))?;
        Ok(Self { results })
    }

    /// Returns the seed and the number of nodes of a recorded scenario.
    pub fn parameters(&self, scenario: &str) -> Option<(u64, usize)> {
        self.results.get(scenario).map(|result| (result.seed, result.nodes))
    }

    /// Replaces the results of a scenario.
    pub fn set(&mut self, outcome: &Outcome) {
        let compared = FIGURES.iter().filter(|figure| !figure.machine);
        let figures = compared
            .filter_map(|figure| Some((figure.name.to_owned(), rounded(outcome.get(figure.name)?))))
            .collect();
        let result = Entry { nodes: outcome.nodes, seed: outcome.seed, figures };
        self.results.insert(outcome.scenario.clone(), result);
    }

    /// Returns the figures of a run that differ from the recorded ones by more than their
    /// tolerance. A scenario without recorded results differs in nothing.
    pub fn compare(&self, outcome: &Outcome) -> Vec<Deviation> {
        let Some(result) = self.results.get(&outcome.scenario) else { return Vec::new() };
        let compared = FIGURES.iter().filter(|figure| !figure.machine);
        compared
            .filter_map(|figure| {
                let recorded = result.figures.get(figure.name).copied();
                let measured = outcome.get(figure.name);
                let allowed = figure.absolute.max(figure.relative * recorded.unwrap_or(0.0).abs());
                let holds = match (recorded, measured) {
                    (Some(recorded), Some(measured)) => {
                        (measured - recorded).abs() <= allowed + 1e-6
                    }
                    (None, None) => true,
                    _ => false,
                };
                (!holds).then(|| Deviation {
                    scenario: outcome.scenario.clone(),
                    figure: figure.name,
                    recorded,
                    measured,
                    allowed,
                })
            })
            .collect()
    }

    /// Returns the file, with the scenarios in the order of their names.
    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "# Figures of the scenarios at fixed seeds, rewritten by `pk sim --all --update`.\n\
             # `.ci/run` compares those of small scenarios (docs/SIMULATOR.md).\n",
        );
        for (name, result) in &self.results {
            text += &format!("\n[{name}]\nnodes = {}\nseed = {}\n", result.nodes, result.seed);
            for figure in &FIGURES {
                if let Some(value) = result.figures.get(figure.name) {
                    text += &format!("{} = {value:?}\n", figure.name);
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(value: f64) -> Outcome {
        let compared = FIGURES.iter().filter(|figure| !figure.machine);
        Outcome {
            scenario: "idle".into(),
            nodes: 10,
            seed: 1,
            figures: compared.map(|figure| (figure.name, value)).collect(),
            trace_hash: String::new(),
            failed: Vec::new(),
        }
    }

    #[test]
    fn planted_regression_of_each_figure_is_detected_and_named() {
        let mut recorded = Recorded::default();
        recorded.set(&outcome(100.0));
        let recorded = Recorded::parse(&recorded.to_toml()).unwrap();
        assert_eq!(recorded.parameters("idle"), Some((1, 10)));
        assert_eq!(recorded.compare(&outcome(100.0)), []);
        for figure in FIGURES.iter().filter(|figure| !figure.machine) {
            let allowed = figure.absolute.max(figure.relative * 100.0);
            assert!(figure.absolute < 100.0 || figure.relative > 0.0, "{}", figure.name);
            for (change, deviates) in
                [(1.01_f64, true), (-1.01, true), (0.99, false), (-0.99, false)]
            {
                let mut changed = outcome(100.0);
                // A figure without tolerance changes by its smallest step.
                let step = if allowed == 0.0 { change.signum() } else { change * allowed };
                if allowed == 0.0 && !deviates {
                    continue;
                }
                changed.figures.insert(figure.name, 100.0 + step);
                let found = recorded.compare(&changed);
                assert_eq!(found.len(), usize::from(deviates), "{} {change}", figure.name);
                if let [deviation] = &found[..] {
                    let text = deviation.to_string();
                    assert!(text.contains(figure.name) && text.contains("idle"), "{text}");
                    assert!(text.contains(&format!("{step:+.4}")), "{text}");
                }
            }
            let mut missing = outcome(100.0);
            missing.figures.remove(figure.name);
            assert_eq!(recorded.compare(&missing).len(), 1, "{}", figure.name);
        }
    }

    #[test]
    fn recorded_results_of_this_repository_can_be_read() {
        let recorded = Recorded::parse(crate::scenario::RECORDED).unwrap();
        assert_eq!(Recorded::parse(&recorded.to_toml()).unwrap(), recorded);
    }
}
