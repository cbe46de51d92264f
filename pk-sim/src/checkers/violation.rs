//! A broken rule, and the numbers of checks.

use std::fmt;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Checker that found it.
    pub(crate) checker: &'static str,
    /// Description.
    pub(crate) what: String,
}

impl Violation {
    /// Creates a violation of a rule.
    pub(crate) fn new(checker: &'static str, what: impl Into<String>) -> Self {
        Self { checker, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checker `{}`: {}", self.checker, self.what)
    }
}

/// Number of checks of each checker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckCounters {
    /// Requests that ended, each once.
    pub requests: u64,
    /// Gauges compared with a limit.
    pub gauges: u64,
    /// Sends compared with `send_window`.
    pub sends: u64,
    /// Credits compared with `receive_window`.
    pub grants: u64,
    /// Nodes of graphs whose bucket was checked.
    pub nodes: u64,
    /// Nodes of graphs compared with the store.
    pub stored: u64,
    /// Claims of chains checked for forks.
    pub claims: u64,
    /// Searches in graphs compared with brute force.
    pub searches: u64,
    /// Timers that made progress.
    pub timers: u64,
    /// Outputs that referred to something that exists.
    pub outputs: u64,
    /// Inputs that the simulator was allowed to deliver.
    pub inputs: u64,
    /// Datagrams of whole nodes, compared with what their destinations have sent.
    pub datagrams: u64,
    /// Measurements of the memory of a whole node.
    pub memory: u64,
}
