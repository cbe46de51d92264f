//! Settings of the upkeep of the node graph (docs/DESIGN.md, Upkeep of the graph).

use core::time::Duration;

use serde::{Deserialize, Serialize};

/// How a node keeps its graph correct in the background, in
/// [`Config::upkeep`](crate::Config::upkeep). The defaults are the result of measurements with
/// `pk sim`; the reason of each value is what changes without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UpkeepConfig {
    /// Silence of a contact from which on a node without room in its bucket causes it to be probed.
    /// Below that its last connection counts as the probe; without the limit 60 strangers in ten
    /// minutes cause 186 dials. Default 15 min, range 0–30 days.
    pub fresh: Duration,
    /// Contacts of the farther half of all ids that a node without a connection there dials in one
    /// `retry_delay`. Three find a live one in 97 of 100 cases among 30 % dead contacts. Default 3,
    /// range 1–64.
    pub far_dials: usize,
    /// Longest interval between searches for a connection to the farther half of all ids, if no
    /// contact of it can be reached; the first one is `retry_delay`, and it doubles. Default 1 h,
    /// range 1 s–30 days.
    pub far_search_limit: Duration,
}

impl Default for UpkeepConfig {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(15 * 60),
            far_dials: 3,
            far_search_limit: Duration::from_secs(60 * 60),
        }
    }
}

impl UpkeepConfig {
    /// Returns the durations with their names, minima and maxima.
    pub(super) fn times(&self) -> [(&'static str, Duration, Duration, Duration); 2] {
        const SECOND: Duration = Duration::from_secs(1);
        const DAYS: Duration = Duration::from_secs(30 * 86_400);
        [
            ("upkeep.fresh", self.fresh, Duration::ZERO, DAYS),
            ("upkeep.far_search_limit", self.far_search_limit, SECOND, DAYS),
        ]
    }

    /// Returns the counts with their names, minima and maxima.
    pub(super) fn counts(&self) -> [(&'static str, usize, usize, usize); 1] {
        [("upkeep.far_dials", self.far_dials, 1, 64)]
    }
}
