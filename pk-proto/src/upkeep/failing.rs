//! The record of each contact that does not respond: its failures, and when it is dialed again.
//!
//! Failures count only if they are spaced, so that one burst of dials is one failure. A contact
//! that responds has no record.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use crate::api::upkeep_config::UpkeepConfig;
use crate::types::id::NodeId;
use crate::types::time::Instant;

/// Maximum number of doublings of the interval between attempts.
const DOUBLINGS: u32 = 16;
/// Least time for which a contact fails before it leaves, unless many leave: a node that is away
/// for 20 minutes loses no place. Where nodes live for a day, a fiftieth of the contacts is dead
/// because of it.
const AWAY: Duration = Duration::from_secs(25 * 60);
/// Contacts that have left within [`RECENT`] where nodes die all the time. There the first spaced
/// failures are enough: otherwise a sixth of the contacts is dead if nodes live for two hours.
const LEAVING: usize = 3;
const RECENT: Duration = Duration::from_secs(60 * 60);

/// A contact that does not respond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Failure {
    /// Time of the first failure.
    since: Instant,
    /// Failures that count.
    failures: u32,
    /// Earliest time of the next attempt.
    next: Instant,
    /// Whether an attempt is in progress.
    dialing: bool,
}

/// How a contact that fails is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It leaves after the first spaced failures.
    Hasty,
    /// It stays for [`AWAY`], unless many leave.
    Patient,
    /// It stays for [`AWAY`], and is dialed rarely, because its silence is no news.
    Rare,
}

/// What follows from the failure of a contact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the first one: the contact is failing from now on.
    Fails,
    /// It is another one, or too early to count.
    StillFails,
    /// It would be the last one, but too few other nodes were received since the first.
    Unproven,
    /// It is the last one: the contact leaves.
    Leaves,
}

/// All contacts that do not respond.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    records: BTreeMap<NodeId, Failure>,
    /// Those without an attempt in progress, by the time of the next one.
    due: BTreeSet<(Instant, NodeId)>,
    /// When the last contacts have left, the latest first; the start counts as that.
    left: [Option<Instant>; LEAVING],
}

impl Failing {
    /// The node starts. It does not know yet how many contacts leave, so that it is not patient.
    pub(crate) fn start(&mut self, now: Instant) {
        self.left = [Some(now); LEAVING];
    }

    /// Returns whether a contact is failing.
    pub(crate) fn contains(&self, node: &NodeId) -> bool {
        self.records.contains_key(node)
    }

    /// Returns since when a contact is failing.
    pub(crate) fn since(&self, node: &NodeId) -> Option<Instant> {
        self.records.get(node).map(|record| record.since)
    }

    /// Returns the number of failing contacts.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// A contact did not respond to a dial. `proven`: enough other nodes were received since its
    /// first failure. `jitter` is in thousandths of the interval to the next attempt.
    pub(crate) fn failed(
        &mut self,
        config: &UpkeepConfig,
        now: Instant,
        jitter: u32,
        node: NodeId,
        (proven, manner): (bool, Manner),
    ) -> Verdict {
        let leaving = self.left.iter().all(|at| at.is_some_and(|at| now.since(at) < RECENT));
        let is_hasty = manner == Manner::Hasty || manner == Manner::Patient && leaving;
        let patience = if is_hasty { Duration::ZERO } else { AWAY };
        let known = self.records.get(&node).copied();
        if let Some(record) = known {
            self.due.remove(&(record.next, node));
            if now < record.next && !record.dialing {
                self.due.insert((record.next, node));
                return Verdict::StillFails;
            }
        }
        let mut record =
            known.unwrap_or(Failure { since: now, failures: 0, next: now, dialing: false });
        record.failures = record.failures.saturating_add(1);
        record.dialing = false;
        let verdict = match record.failures {
            1 if config.failures > 1 => Verdict::Fails,
            failures if failures < config.failures => Verdict::StillFails,
            _ if now.since(record.since) < patience => Verdict::StillFails,
            // Without a second witness for so long, this node is probably alone.
            _ if proven || now.since(record.since) >= config.alone => {
                self.records.remove(&node);
                self.left.rotate_right(1);
                if let Some(latest) = self.left.first_mut() {
                    *latest = Some(now);
                }
                return Verdict::Leaves;
            }
            _ => Verdict::Unproven,
        };
        let doublings = record.failures.saturating_sub(1).min(DOUBLINGS);
        let interval = config.first_retry.saturating_mul(1 << doublings).min(config.retry_most);
        let interval = if manner == Manner::Rare { AWAY / 2 } else { interval };
        record.next = now + interval * jitter / 1000;
        self.due.insert((record.next, node));
        self.records.insert(node, record);
        verdict
    }

    /// A contact responds, or is no contact any longer. Returns whether it was failing.
    pub(crate) fn remove(&mut self, node: &NodeId) -> bool {
        let Some(record) = self.records.remove(node) else { return false };
        self.due.remove(&(record.next, *node));
        true
    }

    /// Returns the time of the next attempt.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Returns a contact whose attempt is due, and marks that it is in progress.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<NodeId> {
        let (at, node) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.due.remove(&(at, node));
        if let Some(record) = self.records.get_mut(&node) {
            record.dialing = true;
        }
        Some(node)
    }

    /// An attempt has ended without a result: the contact is dialed again at `at`.
    pub(crate) fn postpone(&mut self, node: &NodeId, at: Instant) {
        if let Some(record) = self.records.get_mut(node).filter(|record| record.dialing) {
            record.dialing = false;
            record.next = at;
            self.due.insert((at, *node));
        }
    }

    /// Sets the next attempts of all contacts to `at` or later, `spread` apart.
    pub(crate) fn postpone_all(&mut self, at: Instant, spread: Duration) {
        let overdue = self.due.iter().take_while(|(due, _)| *due < at).copied();
        for (number, (due, node)) in (0u32..).zip(overdue.collect::<alloc::vec::Vec<_>>()) {
            let next = at + spread.saturating_mul(number);
            self.due.remove(&(due, node));
            self.due.insert((next, node));
            if let Some(record) = self.records.get_mut(&node) {
                record.next = next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 32]);
    const OTHER: NodeId = NodeId::from_bytes([2; 32]);

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn fail(failing: &mut Failing, seconds: u64, proven: bool) -> Verdict {
        failing.failed(&UpkeepConfig::default(), at(seconds), 1000, NODE, (proven, Manner::Hasty))
    }

    #[test]
    fn third_spaced_failure_removes_and_a_burst_counts_once() {
        let mut failing = Failing::default();
        assert_eq!(fail(&mut failing, 0, true), Verdict::Fails);
        for second in 1..30 {
            assert_eq!(fail(&mut failing, second, true), Verdict::StillFails);
        }
        assert_eq!(failing.next_due(), Some(at(30)));
        assert_eq!(fail(&mut failing, 30, true), Verdict::StillFails);
        assert_eq!(failing.next_due(), Some(at(90)), "the interval has doubled");
        assert_eq!(fail(&mut failing, 89, true), Verdict::StillFails);
        assert_eq!(fail(&mut failing, 90, true), Verdict::Leaves);
        assert_eq!((failing.len(), failing.next_due()), (0, None));
    }

    #[test]
    fn contact_stays_for_a_while_unless_many_leave() {
        let config = UpkeepConfig::default();
        let mut failing = Failing::default();
        failing.start(at(0));
        let mut leaves = |number: u8, from: u64| {
            let mut next = from;
            loop {
                let node = NodeId::from_bytes([number; 32]);
                if failing.failed(&config, at(next), 1000, node, (true, Manner::Patient))
                    == Verdict::Leaves
                {
                    break next - from;
                }
                next = failing.records.get(&node).unwrap().next.as_micros() / 1_000_000;
            }
        };
        assert_eq!(leaves(9, 0), 90, "the node has just started");
        for number in 0..3 {
            assert_eq!(leaves(number, 4000), 1890, "longer than 25 min");
        }
        assert_eq!(leaves(3, 6000), 90, "three have left within an hour");
        assert_eq!(leaves(4, 6000 + 3600 + 1890), 1890);
    }

    #[test]
    fn contact_whose_silence_is_no_news_is_dialed_three_times() {
        let config = UpkeepConfig::default();
        let mut failing = Failing::default();
        let mut fails =
            |seconds| failing.failed(&config, at(seconds), 1000, NODE, (true, Manner::Rare));
        assert_eq!(fails(0), Verdict::Fails);
        assert_eq!(fails(749), Verdict::StillFails, "too early");
        assert_eq!(fails(750), Verdict::StillFails);
        assert_eq!(fails(1500), Verdict::Leaves);
    }

    #[test]
    fn contact_that_responds_starts_over() {
        let mut failing = Failing::default();
        fail(&mut failing, 0, true);
        fail(&mut failing, 30, true);
        assert!(failing.remove(&NODE) && !failing.remove(&NODE));
        assert_eq!((failing.contains(&NODE), failing.next_due()), (false, None));
        assert_eq!(fail(&mut failing, 90, true), Verdict::Fails);
    }

    #[test]
    fn without_a_second_witness_a_contact_leaves_only_after_hours() {
        let mut failing = Failing::default();
        fail(&mut failing, 0, false);
        let mut attempts = 1;
        loop {
            let next = failing.next_due().unwrap().as_micros() / 1_000_000;
            attempts += 1;
            match fail(&mut failing, next, false) {
                Verdict::Leaves => break assert!(next >= 6 * 3600, "{next}"),
                Verdict::StillFails => assert_eq!(attempts, 2),
                verdict => assert_eq!((verdict, attempts > 2), (Verdict::Unproven, true)),
            }
        }
        assert!(attempts <= 12, "{attempts} attempts");
    }

    #[test]
    fn attempt_in_progress_is_not_due_again_until_it_has_ended() {
        let mut failing = Failing::default();
        fail(&mut failing, 0, true);
        failing.failed(&UpkeepConfig::default(), at(1), 1000, OTHER, (true, Manner::Hasty));
        assert_eq!(failing.take_due(at(29)), None);
        assert_eq!(failing.take_due(at(31)), Some(NODE));
        assert_eq!(failing.take_due(at(31)), Some(OTHER));
        assert_eq!((failing.take_due(at(99)), failing.next_due()), (None, None));
        failing.postpone(&NODE, at(40));
        assert_eq!(failing.next_due(), Some(at(40)));
        failing.postpone(&NODE, at(50));
        assert_eq!(failing.next_due(), Some(at(40)), "only once");
        assert_eq!(
            failing.failed(&UpkeepConfig::default(), at(46), 1000, OTHER, (true, Manner::Hasty)),
            Verdict::StillFails
        );
        assert_eq!(failing.take_due(at(40)), Some(NODE));
        assert_eq!(failing.next_due(), Some(at(106)));
    }

    #[test]
    fn attempts_missed_while_away_are_spread() {
        let mut failing = Failing::default();
        fail(&mut failing, 0, true);
        failing.failed(&UpkeepConfig::default(), at(1), 1000, OTHER, (true, Manner::Hasty));
        failing.postpone_all(at(100), Duration::from_secs(1));
        assert_eq!(failing.take_due(at(100)), Some(NODE));
        assert_eq!(failing.next_due(), Some(at(101)));
    }
}
