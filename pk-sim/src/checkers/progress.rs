//! Virtual time advances: a node is not busy forever at one moment.

use pk_proto::Instant;

use super::violation::Violation;

/// Polls of one node at one moment. A node with 50 peers that all have a full congestion window
/// needs a few thousand.
const POLLS: u64 = 50_000;

/// Timeouts of one node at one moment, without a datagram between them.
const TIMEOUTS: u64 = 16;

/// The present moment of one node.
#[derive(Debug, Default)]
pub(super) struct Progress {
    now: Instant,
    polls: u64,
    timeouts: u64,
}

impl Progress {
    fn at(&mut self, now: Instant) {
        if now > self.now {
            *self = Self { now, ..Self::default() };
        }
    }

    /// The node has received a datagram or a call, and may have something to do at once.
    pub(super) fn called(&mut self, now: Instant) {
        self.at(now);
        self.timeouts = 0;
    }

    /// The node reported something, or sent a datagram.
    pub(super) fn polled(&mut self, now: Instant) -> Result<(), Violation> {
        self.at(now);
        self.polls += 1;
        limit(self.polls <= POLLS, || format!("more than {POLLS} polls at {now:?}"))
    }

    /// The node handled a timeout.
    pub(super) fn timed(&mut self, now: Instant) -> Result<(), Violation> {
        self.at(now);
        self.timeouts += 1;
        limit(self.timeouts <= TIMEOUTS, || format!("more than {TIMEOUTS} timeouts at {now:?}"))
    }
}

fn limit(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::new("progress", what())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_bugs_are_caught() {
        let [now, later] = [5, 6].map(Instant::from_micros);
        let mut progress = Progress::default();
        assert!((0..TIMEOUTS).all(|_| progress.timed(now).is_ok()));
        assert!(progress.timed(now).unwrap_err().what.contains("timeouts"));
        progress.called(now);
        assert!(progress.timed(now).is_ok());
        assert!((0..TIMEOUTS).all(|_| progress.timed(later).is_ok()));
        assert!((0..POLLS).all(|_| progress.polled(later).is_ok()));
        assert!(progress.polled(later).unwrap_err().what.contains("polls"));
    }
}
