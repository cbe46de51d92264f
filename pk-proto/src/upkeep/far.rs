//! The connection to the farther half of all ids (specification: retryConnections).
//!
//! A node without one dials contacts of that half, a few in each interval. If none can be reached
//! it searches for others, more and more rarely: a node that is cut off finds nothing however often
//! it searches, but notices by a single dial that the network is back.

use alloc::collections::BTreeSet;
use core::time::Duration;

use crate::api::upkeep_config::UpkeepConfig;
use crate::types::id::NodeId;
use crate::types::time::Instant;

/// Maximum number of doublings of the interval between searches.
const DOUBLINGS: u32 = 16;

/// What to do for a connection to the farther half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FarStep {
    /// Dial this contact.
    Dial(NodeId),
    /// Search for a random id of the farther half.
    Search,
    /// Nothing until the dial in progress ends, or until the next interval.
    Wait,
}

/// State of a node without a connection to the farther half.
#[derive(Debug, Default)]
pub(crate) struct Far {
    /// Contacts whose dials have failed.
    tried: BTreeSet<NodeId>,
    /// Dials in this interval.
    dials: usize,
    dialing: bool,
    searches: u32,
    searched: Option<Instant>,
}

impl Far {
    /// There is a connection to the farther half.
    pub(crate) fn reached(&mut self) {
        *self = Self { dialing: self.dialing, ..Self::default() };
    }

    /// The next interval begins.
    pub(crate) fn begin_interval(&mut self) {
        self.dials = 0;
    }

    /// Returns the next step. `contacts` are those of the farther half without a connection, the
    /// most promising first; `interval` is the time between two calls of
    /// [`begin_interval`](Self::begin_interval).
    pub(crate) fn next(
        &mut self,
        config: &UpkeepConfig,
        now: Instant,
        interval: Duration,
        contacts: &[NodeId],
    ) -> FarStep {
        if self.dialing || self.dials >= config.far_dials {
            return FarStep::Wait;
        }
        let new = contacts.iter().find(|node| !self.tried.contains(*node));
        if new.is_none() {
            let doublings = self.searches.saturating_sub(1).min(DOUBLINGS);
            let delay = interval.saturating_mul(1 << doublings).min(config.far_search_limit);
            if self.searched.is_none_or(|at| now.since(at) >= delay) {
                self.searched = Some(now);
                self.searches = self.searches.saturating_add(1);
                self.tried.clear();
                return FarStep::Search;
            }
            if self.dials > 0 {
                return FarStep::Wait;
            }
            // All have failed, perhaps because this node was cut off: once more.
            self.tried.clear();
        }
        match new.or(contacts.first()) {
            Some(node) => {
                self.dials += 1;
                self.dialing = true;
                FarStep::Dial(*node)
            }
            None => FarStep::Wait,
        }
    }

    /// A dial that [`next`](Self::next) has returned has ended.
    pub(crate) fn dialed(&mut self, node: NodeId, reached: bool) {
        self.dialing = false;
        if !reached {
            self.tried.insert(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const INTERVAL: Duration = Duration::from_secs(45);

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    /// Fails every dial of an interval. Returns the steps.
    fn interval(far: &mut Far, now: u64, contacts: &[NodeId]) -> Vec<FarStep> {
        far.begin_interval();
        let mut steps = Vec::new();
        loop {
            let now = Instant::from_micros(now * 1_000_000);
            let step = far.next(&UpkeepConfig::default(), now, INTERVAL, contacts);
            steps.push(step);
            match step {
                FarStep::Dial(node) => far.dialed(node, false),
                FarStep::Search => {}
                FarStep::Wait => return steps,
            }
        }
    }

    fn dials(steps: &[FarStep]) -> usize {
        steps.iter().filter(|step| matches!(step, FarStep::Dial(_))).count()
    }

    #[test]
    fn each_contact_is_dialed_once_before_a_search() {
        let contacts: Vec<_> = (1..=5).map(node).collect();
        let mut far = Far::default();
        let first = interval(&mut far, 0, &contacts);
        assert_eq!(
            first,
            [1, 2, 3]
                .map(|n| FarStep::Dial(node(n)))
                .into_iter()
                .chain([FarStep::Wait])
                .collect::<Vec<_>>()
        );
        let second = interval(&mut far, 45, &contacts);
        assert_eq!(second[..3], [FarStep::Dial(node(4)), FarStep::Dial(node(5)), FarStep::Search]);
        assert_eq!(far.tried.len(), 1, "after a search all are tried again");
    }

    #[test]
    fn searches_become_rare_but_one_contact_is_dialed_in_every_interval() {
        let contacts = [node(1)];
        let mut far = Far::default();
        let mut searched = Vec::new();
        for tick in 0..400 {
            let steps = interval(&mut far, tick * 45, &contacts);
            assert!((1..=3).contains(&dials(&steps)), "{tick}: {steps:?}");
            if steps.contains(&FarStep::Search) {
                searched.push(tick * 45);
            }
        }
        let gaps: Vec<_> = searched.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps[..7], [45, 90, 180, 360, 720, 1440, 2880]);
        assert_eq!(gaps[7..], [3600, 3600, 3600], "never more than an hour");
    }

    #[test]
    fn node_without_contacts_of_the_farther_half_only_searches() {
        let mut far = Far::default();
        assert_eq!(interval(&mut far, 0, &[]), [FarStep::Search, FarStep::Wait]);
        assert_eq!(interval(&mut far, 45, &[]), [FarStep::Search, FarStep::Wait]);
        assert_eq!(interval(&mut far, 90, &[]), [FarStep::Wait]);
    }

    #[test]
    fn one_dial_is_in_progress_and_success_starts_over() {
        let contacts = [node(1), node(2)];
        let (config, now) = (UpkeepConfig::default(), Instant::ORIGIN);
        let mut far = Far::default();
        assert_eq!(far.next(&config, now, INTERVAL, &contacts), FarStep::Dial(node(1)));
        assert_eq!(far.next(&config, now, INTERVAL, &contacts), FarStep::Wait);
        far.dialed(node(1), false);
        assert_eq!(far.next(&config, now, INTERVAL, &contacts), FarStep::Dial(node(2)));
        far.dialed(node(2), true);
        far.reached();
        assert_eq!(far.tried.len(), 0);
        assert_eq!(far.next(&config, now, INTERVAL, &contacts), FarStep::Dial(node(1)));
    }
}
