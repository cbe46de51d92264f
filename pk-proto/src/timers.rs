//! Timers live in the machine, keyed by what they are for: `set` replaces, `cancel` works, due ones fire in order.

use alloc::collections::{BTreeMap, BTreeSet};

use core::net::SocketAddr;

use crate::claims::ClaimId;
use crate::connect::RaceId;
use crate::id::{AskId, BucketIndex, ConnectionId, NodeId, RequestId, StreamId};
use crate::time::Instant;

/// What a timer is for. Its order breaks ties between timers due at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// `stop` has taken too long: end by force.
    Stop,
    /// The deadline of a request.
    Request(RequestId),
    /// The deadline of a dial race.
    RaceDeadline(RaceId),
    /// The next address of a dial race may start (RFC 8305 section 5).
    RaceNext(RaceId),
    /// The peer's Hello is overdue.
    Hello(ConnectionId),
    /// A connection that nobody uses is closed.
    Idle(ConnectionId),
    /// The peer owes us something on this stream: an answer, or its first message.
    Stream(StreamId),
    /// A contact of a search has been silent for so long that another may start beside it.
    Stall(RequestId, NodeId),
    /// The rest of a chain is verified.
    Verify(RequestId),
    /// The next garbage collection of a bucket may begin.
    Collect(BucketIndex),
    /// A bucket is refreshed.
    Refresh(BucketIndex),
    /// An exchange of ours begins again.
    ClaimRetry(RequestId),
    /// An exchange of ours whose claim stands may be resumed.
    ClaimResume(ClaimId),
    /// The embedder has not said whether to sign.
    Ask(AskId),
    /// The next datagram of a punching.
    Punch(SocketAddr),
    /// Without a connection to the farther half of all ids, look for one.
    Retry,
    /// What has changed in the graph is written.
    Store,
}

/// All pending timers of one machine.
#[derive(Debug, Default)]
pub(crate) struct TimerQueue {
    by_time: BTreeSet<(Instant, Timer)>,
    by_timer: BTreeMap<Timer, Instant>,
}

impl TimerQueue {
    /// Arms `timer` for `at`, in place of whatever it was armed for.
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        self.cancel(timer);
        self.by_timer.insert(timer, at);
        self.by_time.insert((at, timer));
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.by_timer.remove(&timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    /// When a timer is due, if it is armed.
    pub(crate) fn get(&self, timer: Timer) -> Option<Instant> {
        self.by_timer.get(&timer).copied()
    }

    /// When the next timer is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the first timer due at `now`, if any.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.cancel(timer);
        Some(timer)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_timer.len()
    }

    pub(crate) fn clear(&mut self) {
        self.by_time.clear();
        self.by_timer.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::from_micros(micros)
    }

    #[test]
    fn set_replaces_and_cancel_works() {
        let mut timers = TimerQueue::default();
        timers.set(Timer::Stop, at(5));
        timers.set(Timer::Stop, at(9));
        assert_eq!((timers.len(), timers.next()), (1, Some(at(9))));
        assert_eq!(timers.pop_due(at(5)), None);
        timers.cancel(Timer::Stop);
        assert_eq!((timers.len(), timers.next()), (0, None));
    }

    #[test]
    fn due_timers_fire_in_order_of_time_then_identity() {
        let mut timers = TimerQueue::default();
        timers.set(Timer::Request(RequestId(2)), at(5));
        timers.set(Timer::Request(RequestId(1)), at(5));
        timers.set(Timer::Stop, at(6));
        timers.set(Timer::Hello(ConnectionId(0)), at(4));
        let fired: alloc::vec::Vec<_> = core::iter::from_fn(|| timers.pop_due(at(5))).collect();
        assert_eq!(fired, [Timer::Hello(ConnectionId(0)), Timer::Request(RequestId(1)), Timer::Request(RequestId(2))]);
        assert_eq!(timers.next(), Some(at(6)));
    }
}
