//! Which checkers run.

/// Checkers that run, each of which can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckerSet {
    /// Requests end exactly once.
    pub requests: bool,
    /// Sends and credits stay within the windows.
    pub windows: bool,
    /// Outputs refer to something that exists, and inputs only to what a driver may report.
    pub discipline: bool,
    /// Stored rows match the graph.
    pub stored: bool,
    /// No chain has two claims after one.
    pub forks: bool,
    /// Nodes are in their buckets, and searches in the graph equal brute force.
    pub graph: bool,
    /// Gauges stay within their limits.
    pub caps: bool,
    /// Outputs are allowed in the phase of the node.
    pub phases: bool,
    /// Timers make progress.
    pub timers: bool,
}

impl CheckerSet {
    /// All checkers.
    pub const ALL: Self = Self::all(true);

    /// No checker.
    pub const NONE: Self = Self::all(false);

    const fn all(on: bool) -> Self {
        Self {
            requests: on,
            windows: on,
            discipline: on,
            stored: on,
            forks: on,
            graph: on,
            caps: on,
            phases: on,
            timers: on,
        }
    }

    /// Returns whether none runs.
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }
}

impl Default for CheckerSet {
    fn default() -> Self {
        Self::ALL
    }
}
