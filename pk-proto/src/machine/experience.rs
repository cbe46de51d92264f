//! What the node remembers of the contacts of its searches: how long they took to answer, and how
//! many did not. A search starts from it, so that it knows early which contacts are silent.

use core::time::Duration;

/// Number of answers of each kind, and of contacts in total, that are remembered.
const REMEMBERED: usize = 64;
/// With fewer contacts than this, the others count as answered.
const ENOUGH: u32 = 16;

/// How a contact was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It was connected before: its time is that of a call.
    Connected,
    /// It was dialed: its time begins with the dial.
    Dialed,
}

/// Results of the last contacts of all searches.
#[derive(Debug)]
pub(crate) struct Experience {
    connected: Times,
    dialed: Times,
    /// One bit per contact, the newest lowest: 1 if it did not answer.
    silent: u64,
    /// Number of valid bits.
    contacts: u32,
}

/// The last times of one kind.
#[derive(Debug)]
struct Times {
    last: [Duration; REMEMBERED],
    /// Number of valid entries.
    len: usize,
    next: usize,
}

impl Experience {
    pub(crate) const fn new() -> Self {
        const NONE: Times = Times { last: [Duration::ZERO; REMEMBERED], len: 0, next: 0 };
        Self { connected: NONE, dialed: NONE, silent: 0, contacts: 0 }
    }

    /// Records the answer of a contact.
    pub(crate) fn answered(&mut self, reach: Reach, took: Duration) {
        match reach {
            Reach::Connected => self.connected.add(took),
            Reach::Dialed => self.dialed.add(took),
        }
        self.contact(0);
    }

    /// Records a contact that was silent until its search ended, or its time was over.
    pub(crate) fn unanswered(&mut self) {
        self.contact(1);
    }

    fn contact(&mut self, silent: u64) {
        self.silent = self.silent << 1 | silent;
        self.contacts = (self.contacts + 1).min(u64::BITS);
    }

    /// Returns the median time of contacts that answered; `None` before the first.
    pub(crate) fn median(&self, reach: Reach) -> Option<Duration> {
        match reach {
            Reach::Connected => self.connected.median(),
            Reach::Dialed => self.dialed.median(),
        }
    }

    /// Returns the share of contacts that did not answer, in thousandths.
    pub(crate) fn silent_permille(&self) -> u32 {
        self.silent.count_ones() * 1000 / self.contacts.max(ENOUGH)
    }
}

impl Times {
    fn add(&mut self, took: Duration) {
        if let Some(entry) = self.last.get_mut(self.next) {
            *entry = took;
        }
        self.next = (self.next + 1) % REMEMBERED;
        self.len = (self.len + 1).min(REMEMBERED);
    }

    fn median(&self) -> Option<Duration> {
        let mut times = self.last;
        let times = times.get_mut(..self.len).filter(|times| !times.is_empty())?;
        let middle = times.len() / 2;
        Some(*times.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_share_are_those_of_the_last_contacts() {
        let mut experience = Experience::new();
        assert_eq!((experience.median(Reach::Dialed), experience.silent_permille()), (None, 0));
        for ms in [5, 1, 9] {
            experience.answered(Reach::Dialed, Duration::from_millis(ms));
        }
        assert_eq!(experience.median(Reach::Dialed), Some(Duration::from_millis(5)));
        assert_eq!(experience.median(Reach::Connected), None, "each kind has its own");
        experience.unanswered();
        assert_eq!(experience.silent_permille(), 1000 / 16, "one of four proves little");
        for _ in 0..100 {
            experience.unanswered();
        }
        assert_eq!(experience.silent_permille(), 1000);
        for ms in 0..200 {
            experience.answered(Reach::Connected, Duration::from_millis(ms));
        }
        assert_eq!(experience.silent_permille(), 0, "earlier contacts are forgotten");
        assert_eq!(experience.median(Reach::Connected), Some(Duration::from_millis(168)));
    }
}
