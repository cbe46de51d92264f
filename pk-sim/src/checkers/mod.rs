//! What has to hold at every moment, whatever the machine and the scenario.
//!
//! Each checker sees what goes in and out of one machine; it never looks inside. Each has a test with a planted bug that it
//! catches, and counts how often it has really looked, so that a test can show that it was not vacuous.

mod caps;
pub(crate) mod convergence;
mod discipline;
mod graph;
mod requests;
mod stored;
mod timers;
mod windows;

use std::fmt;

use pk_proto::{Config, Event, Input, Instant, NodeId, Output, RequestId};

use crate::HostId;
use crate::dice::Die;
use crate::machine::Machine;
use crate::store::Store;
use discipline::Discipline;
use requests::Requests;
use stored::Stored;
use windows::Windows;

/// The graph is looked at after every drain that may have changed it, and after every so many others.
const GRAPH_INTERVAL: u64 = 64;

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Which checker found it.
    pub(crate) checker: &'static str,
    /// What is wrong.
    pub(crate) what: String,
}

impl Violation {
    /// A violation of this rule.
    pub(crate) fn new(checker: &'static str, what: impl Into<String>) -> Self {
        Self { checker, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checker `{}`: {}", self.checker, self.what)
    }
}

/// How often each checker has looked at something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckCounters {
    /// Requests that ended, each once.
    pub requests: u64,
    /// Gauges that were held against a cap.
    pub gauges: u64,
    /// Sends that were held against `send_window`.
    pub sends: u64,
    /// Grants that were held against `receive_window`.
    pub grants: u64,
    /// Nodes of graphs whose place was checked.
    pub nodes: u64,
    /// Nodes of graphs that were held against what was written.
    pub stored: u64,
    /// Searches in graphs that were held against a brute-force one.
    pub searches: u64,
    /// Timers that were seen to make progress.
    pub timers: u64,
    /// Outputs that named something that exists.
    pub outputs: u64,
    /// Inputs that the simulator was allowed to give.
    pub inputs: u64,
}

/// All checkers of all machines of a world.
#[derive(Debug, Default)]
pub(crate) struct Checkers {
    hosts: Vec<OfHost>,
    pub(crate) counters: CheckCounters,
}

#[derive(Debug, Default)]
struct OfHost {
    config: Option<Config>,
    requests: Requests,
    windows: Windows,
    discipline: Discipline,
    graph_changed: bool,
    stored: Stored,
    /// Something was written, or found at the start.
    written: bool,
    drains: u64,
}

impl Checkers {
    pub(crate) fn add_host(&mut self) {
        self.hosts.push(OfHost::default());
    }

    /// A machine begins its life.
    pub(crate) fn started(&mut self, host: HostId, config: Option<Config>, store: &Store) {
        let stored = Stored::new(store.rows().map(|(table, key, value)| (table, key.clone(), value.clone())));
        self.hosts[host] = OfHost { config, stored, written: true, ..OfHost::default() };
    }

    /// A request was accepted.
    pub(crate) fn begun(&mut self, host: HostId, request: RequestId) -> Result<(), Violation> {
        self.hosts[host].requests.begun(request)
    }

    /// Before a machine is given an input.
    pub(crate) fn input(&mut self, host: HostId, input: &Input) -> Result<(), Violation> {
        let of = &mut self.hosts[host];
        self.counters.inputs += 1;
        of.graph_changed |= matches!(input, Input::Connected(_));
        of.written |= of.stored.input(input);
        of.discipline.input(input)?;
        of.windows.input(input);
        Ok(())
    }

    /// Before an output of a machine is done.
    pub(crate) fn output(&mut self, host: HostId, output: &Output) -> Result<(), Violation> {
        let of = &mut self.hosts[host];
        self.counters.outputs += 1;
        if let Output::Event(event) = output {
            of.graph_changed |= matches!(event, Event::NodeAdded { .. } | Event::NodeRemoved { .. });
            self.counters.requests += u64::from(matches!(event, Event::Done { .. }));
            of.requests.event(event)?;
        }
        of.discipline.output(output)?;
        of.stored.output(output);
        if let Some(config) = &of.config {
            of.windows.output(output, config, &mut self.counters)?;
        }
        Ok(())
    }

    /// After all outputs of a machine were done.
    pub(crate) fn drained<M: Machine>(&mut self, host: HostId, machine: &M, die: &mut Die) -> Result<(), Violation> {
        let of = &mut self.hosts[host];
        timers::drained(of.discipline.has_stopped(), machine.poll_timeout())?;
        of.drains += 1;
        let Some(config) = &of.config else { return Ok(()) };
        if let Some(metrics) = machine.gauges() {
            self.counters.gauges += caps::check(&metrics, &of.discipline.held(), config)?;
        }
        if (std::mem::take(&mut of.written) || of.drains.is_multiple_of(GRAPH_INTERVAL))
            && let Some(view) = machine.stored_view()
        {
            self.counters.stored += of.stored.check(&view)?;
        }
        if std::mem::take(&mut of.graph_changed) || of.drains.is_multiple_of(GRAPH_INTERVAL) {
            let probe = NodeId::from_bytes(die.bytes());
            if let Some(view) = machine.graph_view(probe, config.bucket_limit) {
                self.counters.nodes += graph::check(&view, probe, config)?;
                self.counters.searches += 1;
            }
        }
        Ok(())
    }

    /// After a timer of a machine that was due has fired, and its outputs were done.
    pub(crate) fn fired(
        &mut self,
        host: HostId,
        before: Instant,
        after: Option<Instant>,
        outputs: u64,
    ) -> Result<(), Violation> {
        let _ = host;
        self.counters.timers += 1;
        timers::fired(before, after, outputs)
    }

    /// At the end of a run.
    pub(crate) fn finish(&mut self, host: HostId) -> Result<(), Violation> {
        let of = &self.hosts[host];
        if of.discipline.has_stopped() { of.requests.stopped() } else { Ok(()) }
    }
}
