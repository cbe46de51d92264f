//! Invariants that hold at every moment, for every machine and scenario.
//!
//! Each checker sees the inputs and outputs of one machine; it never looks inside. Each has a test
//! with a planted bug that it detects, and counts its checks, so that a test can show that it was
//! not vacuous.

mod amplification;
mod caps;
pub(crate) mod convergence;
mod datagrams;
mod discipline;
mod forks;
mod graph;
mod memory;
mod phases;
mod progress;
mod requests;
pub(crate) mod set;
mod stored;
mod timers;
pub(crate) mod violation;
mod windows;

use bytes::Bytes;
use pk_proto::{Config, Event, Input, Instant, NodeId, Output, Phase, RequestId, Table};

use crate::host::id::HostId;
use crate::host::store::Store;
use crate::machine::Machine;
use crate::rng_streams::RngStream;
use amplification::Amplification;
use discipline::Discipline;
use forks::Forks;
use progress::Progress;
use requests::Requests;
use set::CheckerSet;
use stored::Stored;
use violation::{CheckCounters, Violation};
use windows::Windows;

/// The graph is checked after every drain that may have changed it, and after every 64th other one.
const GRAPH_INTERVAL: u64 = 64;

/// The content of a store.
fn rows(store: &Store) -> impl Iterator<Item = (Table, Bytes, Bytes)> {
    store.rows().map(|(table, key, value)| (table, key.clone(), value.clone()))
}

/// All checkers of all machines of a world.
#[derive(Debug, Default)]
pub(crate) struct Checkers {
    on: CheckerSet,
    hosts: Vec<OfHost>,
    pub(crate) counters: CheckCounters,
}

#[derive(Debug, Default)]
struct OfHost {
    config: Option<Config>,
    requests: Requests,
    windows: Windows,
    discipline: Discipline,
    /// Whether its driver breaks the contract: then only invariants that hold anyway are checked.
    distrusted: bool,
    graph_changed: bool,
    stored: Stored,
    forks: Forks,
    /// Of whole nodes.
    amplification: Amplification,
    progress: Progress,
    /// Whether something was written, or found at the start.
    written: bool,
    drains: u64,
}

impl Checkers {
    /// Creates the checkers of a set.
    pub(crate) fn new(on: CheckerSet) -> Self {
        Self { on, ..Self::default() }
    }

    pub(crate) fn add_host(&mut self) {
        if self.on.is_empty() {
            return;
        }
        self.hosts.push(OfHost::default());
    }

    /// A machine starts.
    pub(crate) fn started(&mut self, host: HostId, config: Option<Config>, store: &Store) {
        if self.on.is_empty() {
            return;
        }
        let stored = match self.on.stored || self.on.forks {
            true => Stored::new(rows(store)),
            false => Stored::default(),
        };
        // The chain from before the restart still counts.
        let forks = std::mem::take(&mut self.hosts[host].forks);
        self.hosts[host] = OfHost { config, stored, forks, written: true, ..OfHost::default() };
    }

    /// The driver of a machine breaks the contract from now on.
    pub(crate) fn distrust(&mut self, host: HostId) {
        if self.on.is_empty() {
            return;
        }
        self.hosts[host].distrusted = true;
    }

    /// A request was accepted.
    pub(crate) fn begun(&mut self, host: HostId, request: RequestId) -> Result<(), Violation> {
        if self.on.requests { self.hosts[host].requests.begun(request) } else { Ok(()) }
    }

    /// Called before a machine receives an input.
    pub(crate) fn input(
        &mut self,
        host: HostId,
        input: &Input,
        store: &Store,
    ) -> Result<(), Violation> {
        if self.on.is_empty() {
            return Ok(());
        }
        let of = &mut self.hosts[host];
        self.counters.inputs += 1;
        of.graph_changed |= matches!(input, Input::Connected(_));
        if of.distrusted {
            return Ok(());
        }
        if self.on.stored || self.on.forks {
            of.written |= of.stored.input(input, || rows(store));
        }
        match input {
            Input::Persisted { .. } if self.on.forks && of.stored.take_claims() => {
                self.counters.claims += of.forks.stored(&of.stored)?;
            }
            Input::Loaded { result: Ok((rows, _)), .. } if self.on.forks => {
                self.counters.claims += of.forks.read(rows)?;
            }
            _ => {}
        }
        if self.on.discipline {
            of.discipline.input(input)?;
        }
        if self.on.windows {
            of.windows.input(input);
        }
        Ok(())
    }

    /// Called before an output of a machine is executed.
    ///
    /// `phase` is that of the machine after the call that caused the output; `None` if it has none.
    pub(crate) fn output(
        &mut self,
        host: HostId,
        phase: Option<Phase>,
        output: &Output,
    ) -> Result<(), Violation> {
        if self.on.is_empty() {
            return Ok(());
        }
        let of = &mut self.hosts[host];
        self.counters.outputs += 1;
        if let Some(phase) = phase.filter(|_| self.on.phases) {
            phases::output(phase, output)?;
        }
        if let Output::Event(event) = output {
            of.graph_changed |=
                matches!(event, Event::NodeAdded { .. } | Event::NodeRemoved { .. });
            self.counters.requests += u64::from(matches!(event, Event::Done { .. }));
            if self.on.requests {
                of.requests.event(event)?;
            }
        }
        if self.on.discipline {
            if of.distrusted {
                return of.discipline.output_alone(output);
            }
            of.discipline.output(output)?;
        }
        if of.distrusted {
            return Ok(());
        }
        if self.on.stored || self.on.forks {
            of.stored.output(output);
        }
        if let Some(config) = of.config.as_ref().filter(|_| self.on.windows) {
            of.windows.output(output, config, &mut self.counters)?;
        }
        Ok(())
    }

    /// Called after all outputs of a machine were executed.
    pub(crate) fn drained<M: Machine>(
        &mut self,
        host: HostId,
        machine: &M,
        die: &mut RngStream,
    ) -> Result<(), Violation> {
        if self.on.is_empty() {
            return Ok(());
        }
        let of = &mut self.hosts[host];
        if self.on.timers && self.on.discipline {
            timers::drained(of.discipline.has_stopped(), machine.poll_timeout())?;
        }
        of.drains += 1;
        let Some(config) = &of.config else { return Ok(()) };
        if (self.on.phases || self.on.caps)
            && let Some(metrics) = machine.gauges()
        {
            if self.on.phases {
                phases::drained(&metrics)?;
            }
            if self.on.caps {
                let held = (!of.distrusted && self.on.discipline).then(|| of.discipline.held());
                self.counters.gauges += caps::check(&metrics, held.as_ref(), config)?;
            }
        }
        if self.on.stored
            && !of.distrusted
            && (std::mem::take(&mut of.written) || of.drains.is_multiple_of(GRAPH_INTERVAL))
            && let Some(view) = machine.stored_view()
        {
            self.counters.stored += of.stored.check(&view)?;
        }
        if self.on.graph
            && (std::mem::take(&mut of.graph_changed) || of.drains.is_multiple_of(GRAPH_INTERVAL))
        {
            let probe = NodeId::from_bytes(die.bytes());
            if let Some(view) = machine.graph_view(probe, config.bucket_limit) {
                self.counters.nodes += graph::check(&view, probe, config)?;
                self.counters.searches += 1;
            }
        }
        Ok(())
    }

    /// Called after a due timer of a machine has fired and its outputs were executed.
    pub(crate) fn fired(
        &mut self,
        host: HostId,
        before: Instant,
        after: Option<Instant>,
        outputs: u64,
    ) -> Result<(), Violation> {
        let _ = host;
        if !self.on.timers {
            return Ok(());
        }
        self.counters.timers += 1;
        timers::fired(before, after, outputs)
    }

    /// Called at the end of a run.
    pub(crate) fn finish(&mut self, host: HostId) -> Result<(), Violation> {
        if self.on.is_empty() {
            return Ok(());
        }
        let of = &self.hosts[host];
        if self.on.requests && of.discipline.has_stopped() { of.requests.stopped() } else { Ok(()) }
    }
}
