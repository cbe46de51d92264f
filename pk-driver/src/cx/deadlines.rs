//! Deadlines of the driver: name resolutions, browses, shutdown.

use std::collections::BTreeSet;

use pk_proto::Instant;

/// Keys with a time each, the earliest first. A key can occur more than once.
#[derive(Debug)]
pub(crate) struct Deadlines<K>(BTreeSet<(Instant, K)>);

impl<K: Copy + Ord> Deadlines<K> {
    pub(crate) fn new() -> Self {
        Self(BTreeSet::new())
    }

    pub(crate) fn set(&mut self, at: Instant, key: K) {
        self.0.insert((at, key));
    }

    pub(crate) fn cancel(&mut self, at: Instant, key: K) {
        self.0.remove(&(at, key));
    }

    /// Returns the earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Removes and returns the earliest key if it is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let due = self.0.first().is_some_and(|(at, _)| *at <= now);
        if due { self.0.pop_first().map(|(_, key)| key) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_deadline_is_first_and_only_when_due() {
        let at = Instant::from_micros;
        let mut deadlines = Deadlines::new();
        deadlines.set(at(20), 'b');
        deadlines.set(at(10), 'a');
        deadlines.set(at(15), 'c');
        deadlines.cancel(at(15), 'c');
        assert_eq!(deadlines.next(), Some(at(10)));
        assert_eq!(deadlines.pop_due(at(9)), None);
        assert_eq!(deadlines.pop_due(at(10)), Some('a'));
        assert_eq!(deadlines.pop_due(at(19)), None);
        assert_eq!(deadlines.pop_due(at(30)), Some('b'));
        assert_eq!(deadlines.next(), None);
    }
}
