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
}

impl Failing {
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
        proven: bool,
    ) -> Verdict {
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
            // Without a second witness for so long, this node is probably alone.
            _ if proven || now.since(record.since) >= config.alone => {
                self.records.remove(&node);
                return Verdict::Leaves;
            }
            _ => Verdict::Unproven,
        };
        let doublings = record.failures.saturating_sub(1).min(DOUBLINGS);
        let interval = config.first_retry.saturating_mul(1 << doublings).min(config.retry_most);
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
        failing.failed(&UpkeepConfig::default(), at(seconds), 1000, NODE, proven)
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
        failing.failed(&UpkeepConfig::default(), at(1), 1000, OTHER, true);
        assert_eq!(failing.take_due(at(29)), None);
        assert_eq!(failing.take_due(at(31)), Some(NODE));
        assert_eq!(failing.take_due(at(31)), Some(OTHER));
        assert_eq!((failing.take_due(at(99)), failing.next_due()), (None, None));
        failing.postpone(&NODE, at(40));
        assert_eq!(failing.next_due(), Some(at(40)));
        failing.postpone(&NODE, at(50));
        assert_eq!(failing.next_due(), Some(at(40)), "only once");
        assert_eq!(
            failing.failed(&UpkeepConfig::default(), at(46), 1000, OTHER, true),
            Verdict::StillFails
        );
        assert_eq!(failing.take_due(at(40)), Some(NODE));
        assert_eq!(failing.next_due(), Some(at(106)));
    }

    #[test]
    fn attempts_missed_while_away_are_spread() {
        let mut failing = Failing::default();
        fail(&mut failing, 0, true);
        failing.failed(&UpkeepConfig::default(), at(1), 1000, OTHER, true);
        failing.postpone_all(at(100), Duration::from_secs(1));
        assert_eq!(failing.take_due(at(100)), Some(NODE));
        assert_eq!(failing.next_due(), Some(at(101)));
    }
}
