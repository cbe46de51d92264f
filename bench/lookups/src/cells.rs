//! The cells of the table: a kind of search in a kind of network, measured on many networks.

use std::fmt;
use std::str::FromStr;

use pk_proto::Config;

use crate::net::{Lie, Net, Words, mix, random_id};
use crate::node::{Cost, Goal, Local, key_id, quiet};

/// Nodes of a network that have keys, and can be the local node.
const KEYS: u64 = 400;
/// Searches before the measured one, if the node has a memory.
const EARLIER: u64 = 10;

/// A kind of network and a kind of search.
#[derive(Debug, Clone)]
pub struct Cell {
    pub name: String,
    pub goal: Goal,
    /// The target exists.
    pub exists: bool,
    dead: u32,
    liars: u32,
    lie: Lie,
    cost: Cost,
    /// The node has searched before.
    memory: bool,
    sigma: u32,
    /// Its expected round trip is wrong by this factor, in percent.
    expected: u32,
}

impl FromStr for Cell {
    type Err = String;

    /// `closest`, `one` or `absent`, then `,dead=30`, `,liars=20`, `,uniform`, `,sharp`, `,wire`,
    /// `,memory`, `,sigma=80`, `,expected=300`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let (goal, exists) = match words.next() {
            Some("closest") => (Goal::Closest, true),
            Some("one") => (Goal::Node, true),
            Some("absent") => (Goal::Node, false),
            other => return Err(format!("{other:?} is not closest, one or absent")),
        };
        let mut cell = Self {
            name: text.into(),
            goal,
            exists,
            dead: 0,
            liars: 0,
            lie: Lie::Closest,
            cost: Cost::FREE,
            memory: false,
            sigma: 50,
            expected: 100,
        };
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, "0"));
            let value = value.parse().map_err(|_| format!("{word}: not a number"))?;
            match name {
                "dead" => cell.dead = value,
                "liars" => cell.liars = value,
                "uniform" => cell.lie = Lie::Uniform,
                "sharp" => cell.lie = Lie::Sharp,
                "wire" => cell.cost = Cost::AS_ON_THE_WIRE,
                "memory" => cell.memory = true,
                "sigma" => cell.sigma = value,
                "expected" => cell.expected = value,
                _ => return Err(format!("{word} is unknown")),
            }
        }
        Ok(cell)
    }
}

/// What one search has cost and found.
#[derive(Debug, Clone)]
pub struct Measured {
    pub requests: f64,
    pub millis: f64,
    /// Share of the closest nodes that were found, or 1 if the node was.
    pub found: f64,
    pub implausible: f64,
    /// The outcome of each of the closest nodes that was not found.
    pub missed: Vec<String>,
}

impl Cell {
    /// Measures `each` searches in the network with this seed.
    pub fn measure(&self, nodes: usize, seed: u64, each: u64, config: &Config) -> Vec<Measured> {
        let keys = KEYS.min(nodes as u64 / 2);
        let own: Vec<_> = (0..keys).map(key_id).collect();
        let others = (keys..nodes as u64).map(|at| random_id(mix(seed) ^ at));
        let ids = own.iter().copied().chain(others).collect();
        let net = self.network(ids, seed);
        (0..each).filter_map(|search| self.search(&net, seed, search, &own, config)).collect()
    }

    /// Returns a network of this kind.
    pub fn network(&self, ids: Vec<Words>, seed: u64) -> Net {
        let mut net = Net::new(ids, seed, self.dead, self.liars, self.lie);
        net.sigma = self.sigma;
        net
    }

    fn search(
        &self,
        net: &Net,
        seed: u64,
        search: u64,
        own: &[Words],
        config: &Config,
    ) -> Option<Measured> {
        let draw = |salt: u64| mix(mix(seed ^ salt) ^ search);
        let target = net.honest_from((draw(1) % net.ids.len() as u64) as usize);
        let number = (0..own.len() as u64).map(|at| (draw(2) + at) % own.len() as u64);
        let start = number.map(|at| {
            (at, net.ids.binary_search(&own[at as usize]).expect("a node of the network"))
        });
        let mut start = start.filter(|(_, at)| *at != target && net.honest_from(*at) == *at);
        let start = start.next()?;
        let mut config = config.clone();
        config.search.round_trip = config.search.round_trip * self.expected / 100;
        let mut local = Local::new(net, start, self.cost, config);
        if self.memory {
            for earlier in 0..EARLIER {
                let other = net.honest_from((draw(3 + earlier) % net.ids.len() as u64) as usize);
                if other != start.1 {
                    local.search(Goal::Node, &net.ids[other]);
                }
            }
            // Until all connections are idle and closed.
            local.pass(10_000_000_000);
        }
        let target = match self.goal {
            Goal::Node if self.exists => net.ids[target],
            _ => random_id(draw(2)),
        };
        let before = local.metrics().told_implausible;
        let ended = local.search(self.goal, &target);
        let mut missed = Vec::new();
        let found = match self.goal {
            Goal::Node => f64::from(u8::from(ended.found)),
            Goal::Closest => {
                let mut truth = net.closest(&target, 21);
                truth.retain(|at| *at as usize != start.1);
                truth.truncate(20);
                let hits = truth.iter().filter(|at| ended.closest.contains(&(**at as usize)));
                let missing = truth.iter().filter(|at| !ended.closest.contains(&(**at as usize)));
                missed.extend(missing.map(|at| local.fate(*at as usize, &ended)));
                hits.count() as f64 / truth.len() as f64
            }
        };
        Some(Measured {
            requests: ended.trace.len() as f64,
            millis: ended.took as f64 / 1000.0,
            found,
            missed,
            implausible: (local.metrics().told_implausible - before) as f64,
        })
    }
}

/// One line of the table.
pub struct Line<'a>(pub &'a str, pub Vec<Measured>);

/// The line above the table.
pub const HEADER: &str = concat!(
    "search                              searches  requests    p95   p50 ms   p95 ms",
    "     found    all  implausible",
);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, all) = self;
        let mean = |of: fn(&Measured) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        let part = |of: fn(&Measured) -> f64, percent: usize| {
            let mut sorted: Vec<f64> = all.iter().map(of).collect();
            sorted.sort_by(f64::total_cmp);
            sorted[(sorted.len() - 1) * percent / 100]
        };
        let whole = all.iter().filter(|one| one.found == 1.0).count() as f64 / all.len() as f64;
        write!(
            f,
            "{name:<35} {:>8} {:>9.1} {:>6.0} {:>8.0} {:>8.0} {:>9.5} {whole:>6.3} {:>12.4}",
            all.len(),
            mean(|one| one.requests),
            part(|one| one.requests, 95),
            part(|one| one.millis, 50),
            part(|one| one.millis, 95),
            mean(|one| one.found),
            mean(|one| one.implausible),
        )
    }
}

/// Returns the default configuration with some settings of `Config::search` changed.
pub fn configured(settings: &[(String, u32)]) -> Result<Config, String> {
    let mut config = quiet();
    let mut search = serde_json::to_value(&config.search).map_err(|error| error.to_string())?;
    for (name, value) in settings {
        let setting = search.get_mut(name).ok_or(format!("{name} is no setting of a search"))?;
        *setting = (*value).into();
    }
    config.search = serde_json::from_value(search).map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}
