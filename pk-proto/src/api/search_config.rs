//! Settings of the walk of a search (docs/DESIGN.md, Searches).

use core::time::Duration;

use serde::{Deserialize, Serialize};

/// How a search chooses its contacts, in [`Config::search`](crate::Config::search). The defaults
/// are the result of measurements; the reason of each value is what changes without it.
///
/// Times are in percent of the median time to an answer, so that the same values fit networks of
/// all speeds. That median is measured separately for contacts that were connected before and for
/// contacts that were dialed, from the start of the dial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SearchConfig {
    /// Expected time to an answer before the node has measured any. Too small a value costs
    /// requests in the first search, too large a value costs time among silent contacts. Default
    /// 100 ms, range 1 ms–1 min.
    pub round_trip: Duration,
    /// Contacts among the nearest ones that a search waits for while each answer brings nearer
    /// nodes. Three cost 3 more requests per search and save 17 ms. Default 2, range 1–64.
    pub near: u32,
    /// Contacts in total that a search waits for at that time; those that were overtaken by nearer
    /// ones count here only. Default 8, range 1–64.
    pub narrow: u32,
    /// Added to `near` by `find_node` where a handshake takes 5 ms or more: a dialed contact takes
    /// two round trips there, so that waiting for a slow one costs twice as much. Without it a
    /// search takes 75 ms longer and dials a quarter of the contacts. Default 6, range 0–64.
    pub near_dialed: u32,
    /// Added to `narrow` in the same case. At 4 a search takes 10 ms longer. Default 10, range
    /// 0–64.
    pub narrow_dialed: u32,
    /// Additional contacts until the first answer if no earlier contact of the node has answered;
    /// fewer in proportion to the share that has. It saves a round trip where many contacts are
    /// dead, and costs nothing where none is. At 4 a search among 30 % of dead contacts needs 0.6
    /// requests less, and the slowest twentieth takes 5 ms longer. Default 6, range 0–64; 0
    /// disables.
    pub warm: u32,
    /// Additional contacts among the nearest if no earlier contact of the node has answered; fewer
    /// in proportion to the share that has not, rounded. Among 30 % of dead contacts one more costs
    /// a request less, with `hedge_silent`, and takes as long. Default 4, range 0–16; 0 disables.
    pub near_silent: u32,
    /// Silence after which one more contact starts; where `near_dialed` counts, none starts before
    /// `stall`. At 140 % the slowest twentieth of the searches among dead contacts takes 5 ms
    /// longer, at 130 % healthy searches cost more. Default 135, range 100–1000, percent of the
    /// median.
    pub hedge: u32,
    /// Added to `hedge` if no earlier contact of the node has answered; less in proportion to the
    /// share that has not: more contacts are in progress then, which makes up for it. The sum is at
    /// most `stall`. Default 250, range 0–1000, percent of the median.
    pub hedge_silent: u32,
    /// Silence after which two more contacts start, and the silent one gives up its place among the
    /// closest. At 200 % an eighth of the slow contacts gives up in error; 300 % costs 200 ms among
    /// dead contacts. Default 220, range 100–2000, percent of the median.
    pub stall: u32,
    /// Time for which silent contacts of the closest nodes are waited for at the end of a search if
    /// there are several; twice that if there is one. The unit is the time of the slowest tenth of
    /// the others, divided by 1.9. At 600 a search among dead contacts takes 60 ms longer and
    /// misses 2 of 10,000 nodes less. Default 520, range 100–10000, percent.
    pub patience: u32,
    /// Answers in a row without a nearer node after which all the closest are asked at once.
    /// Default 2, range 1–64.
    pub wide_after: u32,
    /// Contacts beyond the closest that are asked for each silent one among them, except the first.
    /// One finds 0.9978 of the nodes where it should be 0.9998. Default 2, range 0–16.
    pub per_silent: u32,
    /// Answers that a search wants from the other side of the edge of the closest nodes when two of
    /// them are silent: all near nodes report the same nodes, which do not include the live ones
    /// beyond the silent ones. Not more than `per_silent` for each silent one except the first.
    /// Without it a search misses one node in a hundred when 30 % are dead. Default 6, range 0–16;
    /// 0 disables.
    pub edge: u32,
    /// How much deeper than random contacts of a bucket the nodes of a response may lie, in bits
    /// and in addition to twice their number, before the response counts as implausible. Its nodes
    /// are then asked only if nothing else is left. Default 20, range 0–1000.
    pub plausible: u32,
    /// Contacts beyond the closest that `find_closest` asks in any case. Default 2, range 0–100.
    pub doubt_closest: u32,
    /// Contacts beyond the closest that `find_node` asks if the node was not found. Four suffice
    /// without liars and halve the cost of an id that no node has; 60 find 99.5 % among 50 % of
    /// liars that know the defence. Default 20, range 0–100.
    pub doubt_find: u32,
    /// Additional contacts beyond the closest per implausible response, at most tenfold. Default 4,
    /// range 0–10.
    pub doubt_lie: u32,
    /// Additional contacts beyond the closest if these are `sparse`, which is a sign of liars that
    /// agree. At 30 a healthy `find_closest` costs 0.4 requests more, and finds 2 of 1,000 more
    /// among 50 % of liars that know the defence. Default 25, range 0–100; 0 disables.
    pub doubt_sparse: u32,
    /// How far apart the closest nodes lie when they are sparse, beside the neighborhood of the
    /// local node. At 200 % a search among 50 % of liars that know the defence finds 4 of 100
    /// closest nodes less, at 150 % a healthy one costs a request more. Default 165, range
    /// 100–1000, percent.
    pub sparse: u32,
    /// Contacts beyond the closest that are waited for concurrently: each choice uses the answers
    /// of earlier ones. Default 10, range 1–64.
    pub doubt_pace: u32,
    /// Contacts beyond the closest in total. Default 100, range 0–1000.
    pub doubt_limit: u32,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            round_trip: Duration::from_millis(100),
            near: 2,
            narrow: 8,
            near_dialed: 6,
            narrow_dialed: 10,
            warm: 6,
            near_silent: 4,
            hedge: 135,
            hedge_silent: 250,
            stall: 220,
            patience: 520,
            wide_after: 2,
            per_silent: 2,
            edge: 6,
            plausible: 20,
            doubt_closest: 2,
            doubt_find: 20,
            doubt_lie: 4,
            doubt_sparse: 25,
            sparse: 165,
            doubt_pace: 10,
            doubt_limit: 100,
        }
    }
}

impl SearchConfig {
    /// Returns each count with its name and range.
    pub(crate) fn counts(&self) -> [(&'static str, u32, u32, u32); 21] {
        [
            ("search.near", self.near, 1, 64),
            ("search.narrow", self.narrow, 1, 64),
            ("search.near_dialed", self.near_dialed, 0, 64),
            ("search.narrow_dialed", self.narrow_dialed, 0, 64),
            ("search.warm", self.warm, 0, 64),
            ("search.near_silent", self.near_silent, 0, 16),
            ("search.hedge", self.hedge, 100, 1000),
            ("search.hedge_silent", self.hedge_silent, 0, 1000),
            ("search.stall", self.stall, 100, 2000),
            ("search.patience", self.patience, 100, 10_000),
            ("search.wide_after", self.wide_after, 1, 64),
            ("search.per_silent", self.per_silent, 0, 16),
            ("search.edge", self.edge, 0, 16),
            ("search.plausible", self.plausible, 0, 1000),
            ("search.doubt_closest", self.doubt_closest, 0, 100),
            ("search.doubt_find", self.doubt_find, 0, 100),
            ("search.doubt_lie", self.doubt_lie, 0, 10),
            ("search.doubt_sparse", self.doubt_sparse, 0, 100),
            ("search.sparse", self.sparse, 100, 1000),
            ("search.doubt_pace", self.doubt_pace, 1, 64),
            ("search.doubt_limit", self.doubt_limit, 0, 1000),
        ]
    }
}
