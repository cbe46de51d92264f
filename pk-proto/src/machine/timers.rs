//! Timers keyed by identity: `set` replaces, `cancel` removes, due ones fire in order.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use super::phase::Phase;
use super::timer::Timer;
use crate::types::time::Instant;

/// The shortest time between two instants.
const RESOLUTION: Duration = Duration::from_micros(1);

/// All pending timers of a machine. A timer that the phase does not allow is never set.
#[derive(Debug)]
pub(crate) struct TimerQueue {
    phase: Phase,
    /// The timer that fired last, with its time.
    fired: Option<(Timer, Instant)>,
    by_time: BTreeSet<(Instant, Timer)>,
    by_timer: BTreeMap<Timer, Instant>,
}

impl TimerQueue {
    pub(crate) fn new(phase: Phase) -> Self {
        Self { phase, fired: None, by_time: BTreeSet::new(), by_timer: BTreeMap::new() }
    }

    /// Enters a phase: drops every timer that it does not allow.
    pub(crate) fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
        self.by_time.retain(|(_, timer)| phase.allows_timer(timer));
        self.by_timer.retain(|timer, _| phase.allows_timer(timer));
    }

    /// Sets `timer` to `at`, and replaces its previous time. Has no effect in a phase that does not
    /// allow it. A timer that has just fired fires again in a later call at the earliest, so that
    /// no timer keeps a call from returning.
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        if !self.phase.allows_timer(&timer) {
            return;
        }
        let at = match self.fired {
            Some((fired, now)) if fired == timer => at.max(now + RESOLUTION),
            _ => at,
        };
        match self.by_timer.insert(timer, at) {
            Some(before) if before == at => return,
            Some(before) => drop(self.by_time.remove(&(before, timer))),
            None => {}
        }
        self.by_time.insert((at, timer));
    }

    /// Sets a timer, unless it is due earlier already.
    pub(crate) fn set_earlier(&mut self, timer: Timer, at: Instant) {
        if self.get(timer).is_none_or(|due| due > at) {
            self.set(timer, at);
        }
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.by_timer.remove(&timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    /// Returns when a timer is due, if it is set.
    pub(crate) fn get(&self, timer: Timer) -> Option<Instant> {
        self.by_timer.get(&timer).copied()
    }

    /// Returns the timers by kind: their number, and the time of the first.
    pub(crate) fn kinds(&self) -> BTreeMap<&'static str, (usize, Instant)> {
        let mut kinds = BTreeMap::new();
        for (at, timer) in &self.by_time {
            kinds.entry(timer.kind()).or_insert((0, *at)).0 += 1;
        }
        kinds
    }

    /// Returns when the next timer is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Removes and returns the first timer due at `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.cancel(timer);
        self.fired = Some((timer, now));
        Some(timer)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_timer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::id::ConnectionId;
    use crate::types::id::RequestId;

    fn at(micros: u64) -> Instant {
        Instant::from_micros(micros)
    }

    #[test]
    fn set_replaces_and_cancel_works() {
        let mut timers = TimerQueue::new(Phase::Running);
        timers.set(Timer::Store, at(5));
        timers.set(Timer::Store, at(9));
        assert_eq!((timers.len(), timers.next()), (1, Some(at(9))));
        assert_eq!(timers.pop_due(at(5)), None);
        timers.cancel(Timer::Store);
        assert_eq!((timers.len(), timers.next()), (0, None));
    }

    #[test]
    fn due_timers_fire_in_order_of_time_then_identity() {
        let mut timers = TimerQueue::new(Phase::Running);
        timers.set(Timer::Request(RequestId(2)), at(5));
        timers.set(Timer::Request(RequestId(1)), at(5));
        timers.set(Timer::Store, at(6));
        timers.set(Timer::Hello(ConnectionId(0)), at(4));
        let fired: alloc::vec::Vec<_> = core::iter::from_fn(|| timers.pop_due(at(5))).collect();
        assert_eq!(
            fired,
            [
                Timer::Hello(ConnectionId(0)),
                Timer::Request(RequestId(1)),
                Timer::Request(RequestId(2))
            ]
        );
        assert_eq!(timers.next(), Some(at(6)));
    }

    #[test]
    fn timer_that_is_due_again_at_once_fires_in_a_later_call() {
        let mut timers = TimerQueue::new(Phase::Running);
        timers.set(Timer::Retry, at(5));
        assert_eq!(timers.pop_due(at(9)), Some(Timer::Retry));
        timers.set(Timer::Retry, at(5));
        assert_eq!((timers.pop_due(at(9)), timers.next()), (None, Some(at(10))));
    }

    #[test]
    fn phase_arms_and_keeps_only_its_own_timers() {
        let mut timers = TimerQueue::new(Phase::Starting);
        timers.set(Timer::Store, at(1));
        assert_eq!(timers.len(), 0, "nothing is written before Ready");
        timers.set_phase(Phase::Running);
        timers.set(Timer::Stop, at(1));
        assert_eq!(timers.len(), 0, "nothing stops");
        timers.set(Timer::Retry, at(2));
        timers.set(Timer::Store, at(3));
        timers.set_phase(Phase::Stopping);
        assert_eq!((timers.len(), timers.next()), (1, Some(at(3))));
        timers.set(Timer::Retry, at(2));
        timers.set(Timer::Stop, at(4));
        assert_eq!((timers.len(), timers.next()), (2, Some(at(3))));
        timers.set_phase(Phase::Stopped);
        timers.set(Timer::Stop, at(4));
        assert_eq!((timers.len(), timers.next()), (0, None));
    }
}
