//! What a world records and checks of its machines.

use crate::checkers::set::CheckerSet;

/// What a [`World`](crate::World) records and checks. Set before the first host is added, because
/// checkers have to see a machine from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Checkers that run. Default all.
    pub checkers: CheckerSet,
    /// Whether the hash of all inputs and outputs is computed. Default `true`.
    pub digest: bool,
    /// Number of last inputs and outputs, of all hosts, that a failure prints. Default 256; 0 keeps
    /// none, which saves a copy of each.
    pub recent: usize,
    /// Number of events, and of dials, that are kept for each host: the last ones, and up to as
    /// many again. `None` keeps all. Default `None`.
    pub log: Option<usize>,
    /// Whether results of requests are kept for [`World::done`](crate::World::done). Otherwise
    /// [`World::take_completed`](crate::World::take_completed) returns them. Default `true`.
    pub done: bool,
    /// Whether the coverage of the vocabulary is recorded. Default `true`.
    pub coverage: bool,
}

impl Default for Observation {
    fn default() -> Self {
        Self {
            checkers: CheckerSet::ALL,
            digest: true,
            recent: 256,
            log: None,
            done: true,
            coverage: true,
        }
    }
}

impl Observation {
    /// Light mode, for large networks and long times: no checkers, no logs, results of requests in
    /// the order of their ends; only the digest.
    pub const LIGHT: Self = Self {
        checkers: CheckerSet::NONE,
        digest: true,
        recent: 0,
        log: Some(0),
        done: false,
        coverage: false,
    };
}
