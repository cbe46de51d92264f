//! Settings of the upkeep of the node graph (docs/DESIGN.md, Upkeep of the graph).

use core::time::Duration;

use serde::{Deserialize, Serialize};

/// How a node keeps its graph correct in the background, in
/// [`Config::upkeep`](crate::Config::upkeep). The defaults are the result of measurements with
/// `pk sim`; the reason of each value is what changes without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UpkeepConfig {
    /// Silence of a contact from which on a node without room in its bucket causes it to be probed;
    /// if the checks need longer for all contacts, that time counts instead. Below it the last
    /// connection counts as the probe; without the limit 60 strangers in ten minutes cause 186
    /// dials. Default 15 min, range 0–30 days.
    pub fresh: Duration,
    /// Contacts of the farther half of all ids that a node without a connection there dials in one
    /// `retry_delay`. Three find a live one in 97 of 100 cases among 30 % dead contacts. Default 3,
    /// range 1–64.
    pub far_dials: usize,
    /// Longest interval between searches for a connection to the farther half of all ids, if no
    /// contact of it can be reached; the first one is `retry_delay`, and it doubles. Default 1 h,
    /// range 1 s–30 days.
    pub far_search_limit: Duration,
    /// Interval of the checks of contacts at the start. Default 1 min, range 1 s–1 day.
    pub check_first: Duration,
    /// Shortest interval of checks, in a network whose nodes die. It bounds what contacts that fall
    /// silent on purpose can cause: 360 dials in an hour, to addresses that they have proved.
    /// Default 10 s, range 1 s–1 day.
    pub check_least: Duration,
    /// Longest interval of checks, in a network whose nodes live. At 30 min they are 3 dials in an
    /// hour. Without checks 39 % of the contacts are dead if nodes live for two hours. Default 30
    /// min, range 1 s–30 days.
    pub check_most: Duration,
    /// Silence of a contact from which on it is checked. Default 1 min, range 0–30 days.
    pub silent: Duration,
    /// Time from the first failure of a contact to the next attempt; it doubles with each, with 25
    /// % jitter. With 1 min 11 % of the contacts are dead where it should be 9.6 %. Default 30 s,
    /// range 1 s–1 day.
    pub first_retry: Duration,
    /// Longest time between two attempts. Default 6 h, range 1 s–30 days.
    pub retry_most: Duration,
    /// Failures after which a contact leaves the graph. Default 3, range 1–64.
    pub failures: u32,
    /// Silence of all nodes after which this node counts as cut off: then no failure counts. The
    /// ping of the far connection arrives every 30 s. Default 45 s, range 1 s–1 day.
    pub away: Duration,
    /// Time after which a failing contact leaves although fewer than two other nodes were received
    /// since its first failure. Default 6 h, range 0–30 days.
    pub alone: Duration,
    /// Duration of a dial whose silence counts as a failure. The dials of a search that has ended
    /// continue up to it: the search itself ends within a second, and dead contacts would never be
    /// noticed. Default 5 s, range 1 ms–1 h.
    pub watch: Duration,
    /// Contacts that are remembered after they have left because they did not respond. Without them
    /// the halves of a network that was split for an hour never find each other again. Default 32,
    /// range 0–1024; 0 disables.
    pub lost_limit: usize,
    /// Time for which they are remembered. Default 7 days, range 1 min–365 days.
    pub lost_for: Duration,
    /// Least interval at which one of them is dialed; later it is a twelfth of the time since the
    /// last contact was lost. With 5 min alone, three nodes that are gone for good cause 300 dials
    /// of each other node in a day. Default 5 min, range 1 s–1 day.
    pub lost_delay: Duration,
    /// Time after which the return of a lost contact is a sign that the network was split, so that
    /// the others are dialed soon. Default 4 min, range 0–1 day.
    pub recover_after: Duration,
}

impl Default for UpkeepConfig {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(15 * 60),
            far_dials: 3,
            far_search_limit: Duration::from_secs(60 * 60),
            check_first: Duration::from_secs(60),
            check_least: Duration::from_secs(10),
            check_most: Duration::from_secs(30 * 60),
            silent: Duration::from_secs(60),
            first_retry: Duration::from_secs(30),
            retry_most: Duration::from_secs(6 * 60 * 60),
            failures: 3,
            away: Duration::from_secs(45),
            alone: Duration::from_secs(6 * 60 * 60),
            watch: Duration::from_secs(5),
            lost_limit: 32,
            lost_for: Duration::from_secs(7 * 24 * 60 * 60),
            lost_delay: Duration::from_secs(5 * 60),
            recover_after: Duration::from_secs(4 * 60),
        }
    }
}

impl UpkeepConfig {
    /// Returns the durations with their names, minima and maxima.
    pub(super) fn times(&self) -> [(&'static str, Duration, Duration, Duration); 14] {
        const SECOND: Duration = Duration::from_secs(1);
        const MS: Duration = Duration::from_millis(1);
        const HOUR: Duration = Duration::from_secs(3600);
        const DAY: Duration = Duration::from_secs(86_400);
        const DAYS: Duration = Duration::from_secs(30 * 86_400);
        [
            ("upkeep.fresh", self.fresh, Duration::ZERO, DAYS),
            ("upkeep.far_search_limit", self.far_search_limit, SECOND, DAYS),
            ("upkeep.check_first", self.check_first, SECOND, DAY),
            ("upkeep.check_least", self.check_least, SECOND, DAY),
            ("upkeep.check_most", self.check_most, SECOND, DAYS),
            ("upkeep.silent", self.silent, Duration::ZERO, DAYS),
            ("upkeep.first_retry", self.first_retry, SECOND, DAY),
            ("upkeep.retry_most", self.retry_most, SECOND, DAYS),
            ("upkeep.away", self.away, SECOND, DAY),
            ("upkeep.alone", self.alone, Duration::ZERO, DAYS),
            ("upkeep.watch", self.watch, MS, HOUR),
            ("upkeep.lost_for", self.lost_for, 60 * SECOND, 365 * DAY),
            ("upkeep.lost_delay", self.lost_delay, SECOND, DAY),
            ("upkeep.recover_after", self.recover_after, Duration::ZERO, DAY),
        ]
    }

    /// Returns the counts with their names, minima and maxima.
    pub(super) fn counts(&self) -> [(&'static str, usize, usize, usize); 3] {
        [
            ("upkeep.far_dials", self.far_dials, 1, 64),
            ("upkeep.failures", self.failures as usize, 1, 64),
            ("upkeep.lost_limit", self.lost_limit, 0, 1024),
        ]
    }
}
