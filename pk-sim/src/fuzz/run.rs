//! Result of a run of a target.

use crate::checkers::violation::CheckCounters;
use crate::machine::coverage::Coverage;

/// Result of a run.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Coverage of the vocabulary.
    pub coverage: Coverage,
    /// Number of checks of each checker.
    pub checks: CheckCounters,
    /// Whether the script resulted in a run: the machine started.
    pub started: bool,
    /// Machines without work in progress once everything was completed.
    pub quiet: u64,
    /// Replayed calls.
    pub replayed: u64,
    /// Machines started from the rows of another.
    pub restarts: u64,
    /// Pairs of nodes that agreed.
    pub agreed: u64,
}
