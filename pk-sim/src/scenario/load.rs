//! Reading of scenario files, with errors that name the line, the field and what is allowed.

use std::fmt;

use super::figures::FIGURES;
use super::spec::{Action, EventSpec, ExpectSpec, Scenario, Span};

/// Why a scenario file is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioError {
    /// File.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong, with the field and the allowed values.
    pub what: String,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

impl std::error::Error for ScenarioError {}

impl Scenario {
    /// Reads a scenario. `file` is its name in errors, and without directories and extension that
    /// of the scenario.
    ///
    /// # Errors
    /// The first fault of the text.
    pub fn parse(file: &str, text: &str) -> Result<Self, ScenarioError> {
        let fault = |span: Option<Span>, what: String| ScenarioError {
            file: file.to_owned(),
            line: 1 + text[..span.map_or(0, |span| span.start.min(text.len()))]
                .matches('\n')
                .count(),
            what,
        };
        let parsed: Result<Self, _> = toml::from_str(text);
        let mut scenario =
            parsed.map_err(|error| fault(error.span(), error.message().replace('\n', " ")))?;
        let stem = file.rsplit(['/', '\\']).next().unwrap_or(file);
        scenario.name = stem.strip_suffix(".toml").unwrap_or(stem).to_owned();
        scenario.check().map_err(|(field, what)| {
            let line = text.lines().position(|line| line.trim_start().starts_with(field));
            let start: usize =
                text.lines().take(line.unwrap_or(0)).map(|line| line.len() + 1).sum();
            fault(Some(start..start), what)
        })?;
        for event in &scenario.event {
            check_event(event.get_ref(), scenario.hours * 3600.0)
                .map_err(|what| fault(Some(event.span()), what))?;
        }
        for expect in &scenario.expect {
            check_expect(expect.get_ref()).map_err(|what| fault(Some(expect.span()), what))?;
        }
        Ok(scenario)
    }

    /// Checks values that no event or expectation contains. Returns the field and what is wrong.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let ranges: [(&'static str, f64, f64, f64); 12] = [
            ("nodes", self.nodes as f64, 2.0, 1e6),
            ("hours", self.hours, 0.001, 1e4),
            ("seeds", self.join.seeds as f64, 1.0, 1000.0),
            ("window_s", self.join.window_s, 0.0, 86_400.0),
            ("at_once", self.warm.at_once as f64, 100.0, 1e6),
            ("every_s", self.warm.every_s, 0.0, 3600.0),
            ("latency_ms", self.link.latency_ms as f64, 0.0, 1e4),
            ("jitter_ms", self.link.jitter_ms as f64, 0.0, 1e4),
            ("loss_per_mille", self.link.loss_per_mille.into(), 0.0, 900.0),
            ("spread_ms", self.link.spread_ms as f64, 0.0, 1e4),
            ("last_s", self.measure.last_s.unwrap_or(1.0), 1.0, 1e8),
            ("snapshot_every_s", self.measure.snapshot_every_s.unwrap_or(1.0), 1.0, 1e8),
        ];
        for (field, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err((
                    field,
                    format!("`{field}` is {value}; allowed are {least} to {most}"),
                ));
            }
        }
        if let Some(nat) = &self.nat {
            if nat.percent > 100 {
                return Err((
                    "percent",
                    format!("`percent` is {}; allowed are 0 to 100", nat.percent),
                ));
            }
            if nat.kinds.is_empty() {
                return Err((
                    "kinds",
                    "`kinds` is empty; at least one kind of NAT is needed".into(),
                ));
            }
            if !(1..=10_000).contains(&nat.hosts) {
                return Err(("hosts", format!("`hosts` is {}; allowed are 1 to 10000", nat.hosts)));
            }
        }
        let liars: u32 = self.peers.iter().map(|peers| peers.percent).sum();
        if liars > 90 {
            return Err((
                "percent",
                format!("peers are {liars} % of all hosts; allowed are 0 to 90"),
            ));
        }
        Ok(())
    }
}

/// The fields of an event beside `at_s` and `do`: those that it needs, and those that it may have.
pub(super) fn fields(action: Action) -> (&'static [&'static str], &'static [&'static str]) {
    match action {
        Action::Search => (&["count"], &["for_s", "pairs"]),
        Action::Join => (&["count"], &["for_s"]),
        Action::Kill | Action::Restart | Action::Roam => (&[], &["count", "percent"]),
        Action::Churn => (&["lifetime_s"], &["for_s"]),
        Action::Partition | Action::Heal | Action::RebootNats | Action::Snapshot => (&[], &[]),
        Action::Away | Action::Freeze => (&["for_s"], &["count", "percent"]),
        Action::Clock => (&["offset_s"], &["count", "percent"]),
        Action::Attack => (&["count", "behavior"], &["for_s", "every_s", "networks", "near_bits"]),
        Action::Claims => (&["count"], &["for_s"]),
        Action::Loss => (&["loss_per_mille"], &[]),
    }
}

fn check_event(event: &EventSpec, duration: f64) -> Result<(), String> {
    let given = [
        ("count", event.count.is_some()),
        ("percent", event.percent.is_some()),
        ("for_s", event.for_s.is_some()),
        ("every_s", event.every_s.is_some()),
        ("lifetime_s", event.lifetime_s.is_some()),
        ("pairs", event.pairs.is_some()),
        ("behavior", event.behavior.is_some()),
        ("networks", event.networks.is_some()),
        ("near_bits", event.near_bits.is_some()),
        ("offset_s", event.offset_s.is_some()),
        ("loss_per_mille", event.loss_per_mille.is_some()),
    ];
    let name = format!("{:?}", event.action).to_lowercase();
    let (needed, allowed) = fields(event.action);
    for (field, is_given) in given {
        if is_given && !needed.contains(&field) && !allowed.contains(&field) {
            let all = [needed, allowed].concat().join("`, `");
            return Err(format!("event `{name}` has no field `{field}`; it has `{all}`"));
        }
        if !is_given && needed.contains(&field) {
            return Err(format!("event `{name}` needs the field `{field}`"));
        }
    }
    let selects = allowed.contains(&"percent");
    if selects && event.count.is_some() == event.percent.is_some() {
        return Err(format!("event `{name}` needs either `count` or `percent`"));
    }
    let ranges = [
        ("at_s", Some(event.at_s), 0.0, duration),
        ("for_s", event.for_s, 0.0, 1e8),
        ("every_s", event.every_s, 0.1, 1e8),
        ("lifetime_s", event.lifetime_s, 1.0, 1e9),
        ("percent", event.percent.map(f64::from), 0.0, 100.0),
        ("count", event.count.map(|count| count as f64), 1.0, 1e7),
        ("networks", event.networks.map(|networks| networks as f64), 1.0, 1e5),
        ("near_bits", event.near_bits.map(f64::from), 0.0, 16.0),
        ("loss_per_mille", event.loss_per_mille.map(f64::from), 0.0, 900.0),
    ];
    for (field, value, least, most) in ranges {
        if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
            return Err(format!(
                "`{field}` of event `{name}` is {value}; allowed are {least} to {most}"
            ));
        }
    }
    Ok(())
}

fn check_expect(expect: &ExpectSpec) -> Result<(), String> {
    for name in [Some(&expect.figure), expect.times.as_ref()].into_iter().flatten() {
        if !FIGURES.iter().any(|figure| figure.name == name) {
            let all: Vec<_> = FIGURES.iter().map(|figure| figure.name).collect();
            return Err(format!("unknown figure `{name}`, expected one of `{}`", all.join("`, `")));
        }
    }
    if expect.max.is_none() && expect.min.is_none() {
        return Err(format!("figure `{}` needs `max` or `min`", expect.figure));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "about = \"a\"\nnodes = 10\nhours = 1\nstart = \"join\"\n";

    fn fault(text: &str) -> (usize, String) {
        let error = Scenario::parse("dir/x.toml", text).unwrap_err();
        assert!(error.to_string().starts_with("dir/x.toml:"), "{error}");
        (error.line, error.what)
    }

    #[test]
    fn minimal_scenario_has_the_documented_defaults() {
        let scenario = Scenario::parse("dir/x.toml", GOOD).unwrap();
        assert_eq!((scenario.name.as_str(), scenario.nodes), ("x", 10));
        assert_eq!((scenario.join.seeds, scenario.link.latency_ms, scenario.ci), (4, 80, false));
    }

    #[test]
    fn every_fault_names_its_line_its_field_and_what_is_allowed() {
        let cases = [
            (format!("{GOOD}nodse = 3\n"), 5, ["nodse", "nodes"]),
            (format!("{GOOD}[link]\nlatency = 3\n"), 6, ["latency", "latency_ms"]),
            (GOOD.replace("join", "cold"), 4, ["cold", "warm"]),
            (GOOD.replace("10", "\"ten\""), 2, ["ten", "usize"]),
            (GOOD.replace("10", "1"), 2, ["`nodes` is 1", "2 to 1000000"]),
            (format!("{GOOD}[link]\n\nloss_per_mille = 901\n"), 7, ["901", "0 to 900"]),
            (format!("{GOOD}\n[[event]]\nat_s = 1\ndo = \"explode\"\n"), 8, ["explode", "kill"]),
            (
                format!("{GOOD}\n[[event]]\nat_s = 1\ndo = \"heal\"\ncount = 1\n"),
                6,
                ["heal", "count"],
            ),
            (format!("{GOOD}\n[[event]]\nat_s = 1\ndo = \"kill\"\n"), 6, ["`count`", "`percent`"]),
            (format!("{GOOD}\n[[event]]\nat_s = 1\ndo = \"search\"\n"), 6, ["needs", "count"]),
            (format!("{GOOD}\n[[event]]\nat_s = 4000\ndo = \"heal\"\n"), 6, ["at_s", "3600"]),
            (
                format!("{GOOD}\n[[expect]]\nfigure = \"speed\"\nmax = 1\n"),
                6,
                ["speed", "found_rate"],
            ),
            (format!("{GOOD}\n[[expect]]\nfigure = \"found_rate\"\n"), 6, ["found_rate", "`min`"]),
            (format!("{GOOD}[nat]\npercent = 10\nkinds = [\"open\"]\n"), 7, ["open", "full-cone"]),
            (format!("{GOOD}]"), 5, ["", ""]),
        ];
        for (text, line, words) in cases {
            let (at, what) = fault(&text);
            assert!(words.iter().all(|word| what.contains(word)), "{text}: {what}");
            assert_eq!(at, line, "{text}: {what}");
        }
    }
}
