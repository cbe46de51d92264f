//! The state of a run, and its time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pk_proto::{Config, Instant, NodeId};

use super::records::{Measured, Requests};
use crate::cluster::Cluster;
use crate::host::id::HostId;
use crate::rng_streams::RngStream;
use crate::scenario::machine_costs::cpu_s;
use crate::scenario::spec::{EventSpec, Pairs, Scenario};

/// Steps of the world between two looks at the request to stop.
const STEPS: u32 = 4096;

/// Options of a run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Number of nodes; `None` uses that of the scenario.
    pub nodes: Option<usize>,
    /// Seed. Default 0.
    pub seed: u64,
    /// Duration after the start, in hours; `None` uses that of the scenario. Events after it do not
    /// happen.
    pub hours: Option<f64>,
    /// Set to end the run early.
    pub stop: Arc<AtomicBool>,
    /// Called with the progress of the run, about a hundred times.
    pub progress: Option<fn(&Progress)>,
}

/// Progress of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Scenario.
    pub scenario: String,
    /// Part of the run: `start`, `run`, or `run without searches`.
    pub part: &'static str,
    /// Virtual time since the start of the part, in seconds.
    pub virtual_s: f64,
    /// Duration of the part, in seconds; 0 if it is not known.
    pub of_s: f64,
    /// CPU time of the run until now, in seconds.
    pub cpu_s: f64,
}

/// A run was ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the run was interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The state of a run.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) options: &'a Options,
    /// Whether searches and attacks are left out.
    pub(super) quiet: bool,
    pub(super) duration: Duration,
    pub(super) cluster: Cluster,
    pub(super) config: Config,
    pub(super) die: RngStream,
    /// Draws of searches, so that a run without them has the same events.
    pub(super) search_die: RngStream,
    /// When the start was complete.
    pub(super) origin: Instant,
    pub(super) steps: BTreeMap<(Instant, u64), Step>,
    pub(super) order: u64,
    /// Honest nodes that run.
    pub(super) running: BTreeSet<HostId>,
    /// Of these, those that have joined.
    pub(super) joined: BTreeSet<HostId>,
    /// When each node started for the last time.
    pub(super) since: BTreeMap<HostId, Instant>,
    /// Half of the partition of each node.
    pub(super) halves: BTreeMap<HostId, bool>,
    /// Nodes that were killed, and stay so.
    pub(super) gone: Vec<HostId>,
    pub(super) victim: Option<Victim>,
    /// Contacts of nodes when some of them went away, until these are compared.
    pub(super) away: Vec<(HostId, BTreeSet<NodeId>)>,
    pub(super) lost_at_return: u64,
    pub(super) requests: Requests,
    pub(super) measured: Measured,
    pub(super) cpu: f64,
    pub(super) nats: usize,
}

/// The node that is attacked.
#[derive(Debug, Clone)]
pub(super) struct Victim {
    pub(super) host: HostId,
    pub(super) contacts: BTreeSet<NodeId>,
    pub(super) dials: u64,
    /// Its dials during the attack, once that has ended.
    pub(super) ended: Option<u64>,
}

/// What a run is compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    pub(super) dials: u64,
    pub(super) victim_dials: Option<u64>,
}

/// A step of the plan.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// An event of the scenario.
    Event(EventSpec),
    /// A search.
    Search(Pairs),
    /// A new node joins.
    Join,
    /// A claim.
    Claim,
    /// A node dies, and is replaced by one that does.
    Die { host: HostId, mean_s: f64, until: Instant },
    /// Nodes come back to the network.
    Return,
    /// Processes continue.
    Thaw(Vec<HostId>),
    /// A peer of an attack appears.
    Attacker { host: HostId, every: Duration },
    /// The attack is over.
    EndAttack,
    /// The tables are compared with the true network.
    Snapshot,
    /// A measurement over time.
    Sample,
    /// The measured time begins.
    Measure,
}

impl Runner<'_> {
    /// Drives the world until a time, and handles the results of requests.
    pub(super) fn drive_to(&mut self, end: Instant) -> Result<(), Interrupted> {
        let mut steps = 0;
        while self.cluster.step_by(end) {
            steps += 1;
            if steps % STEPS == 0 && self.options.stop.load(Ordering::Relaxed) {
                return Err(Interrupted);
            }
        }
        self.collect();
        if self.options.stop.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }

    /// Adds a step to the plan.
    pub(super) fn at(&mut self, at: Instant, step: Step) {
        self.order += 1;
        self.steps.insert((at, self.order), step);
    }

    pub(super) fn elapsed_s(&self) -> f64 {
        self.cluster.now().since(self.origin).as_secs_f64()
    }

    pub(super) fn end(&self) -> Instant {
        self.origin + self.duration
    }

    pub(super) fn report(&self, part: &'static str) {
        if let Some(progress) = self.options.progress {
            let of_s = if part == "start" { 0.0 } else { self.duration.as_secs_f64() };
            progress(&Progress {
                scenario: self.scenario.name.clone(),
                part,
                virtual_s: self.elapsed_s(),
                of_s,
                cpu_s: cpu_s() - self.cpu,
            });
        }
    }

    /// Returns a running honest node at random; `None` if there is none.
    pub(super) fn any_of(die: &mut RngStream, hosts: &[HostId]) -> Option<HostId> {
        hosts.get(die.below(hosts.len() as u64) as usize).copied()
    }

    /// Returns `count` distinct hosts at random.
    pub(super) fn choose(&mut self, mut from: Vec<HostId>, count: usize) -> Vec<HostId> {
        let mut chosen = Vec::new();
        while chosen.len() < count && !from.is_empty() {
            chosen.push(from.swap_remove(self.die.below(from.len() as u64) as usize));
        }
        chosen
    }

    /// Returns a duration that is exponentially distributed.
    pub(super) fn exponential(&mut self, mean_s: f64) -> Duration {
        // 53 bits, never 0.
        let unit = (self.die.below(1 << 53) + 1) as f64 / (1u64 << 53) as f64;
        seconds(-mean_s * unit.ln())
    }
}

/// Returns a duration of so many seconds.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::from_micros((seconds.max(0.0) * 1e6) as u64)
}
