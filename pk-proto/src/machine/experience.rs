//! What the node remembers of the contacts of its searches: how long they took to answer, and how
//! many probably never would have. A search starts from it, so that it knows early which contacts
//! are silent.

use core::time::Duration;

/// Number of answers of each kind, and of contacts in total, that are remembered.
const REMEMBERED: usize = 64;
/// With fewer contacts than this, the others count as answered.
const ENOUGH: usize = 16;
/// Share of silent contacts that can all be slow ones, in millionths: it counts as none.
const SLOW: usize = 100_000;

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
    connected: Last<Duration>,
    dialed: Last<Duration>,
    silences: Last<Silence>,
}

/// How long a contact was silent, in percent of the median of all that answered.
#[derive(Debug, Clone, Copy)]
struct Silence {
    percent: u32,
    /// Whether its answer ended the silence, and not the search.
    answered: bool,
}

/// The last entries of one kind.
#[derive(Debug)]
struct Last<T> {
    entries: [T; REMEMBERED],
    /// Number of valid entries.
    len: usize,
    next: usize,
}

impl Experience {
    pub(crate) const fn new() -> Self {
        let silences = Last::new(Silence { percent: 0, answered: false });
        Self { connected: Last::new(Duration::ZERO), dialed: Last::new(Duration::ZERO), silences }
    }

    /// Records the answer of a contact, after so much silence in percent of the median.
    pub(crate) fn answered(&mut self, reach: Reach, took: Duration, percent: u32) {
        match reach {
            Reach::Connected => self.connected.add(took),
            Reach::Dialed => self.dialed.add(took),
        }
        self.silences.add(Silence { percent, answered: true });
    }

    /// Records a contact that was silent until its search, or its time, was over, in percent of the
    /// median.
    pub(crate) fn unanswered(&mut self, percent: u32) {
        self.silences.add(Silence { percent, answered: false });
    }

    /// Returns the median time of contacts that answered; `None` before the first.
    pub(crate) fn median(&self, reach: Reach) -> Option<Duration> {
        match reach {
            Reach::Connected => self.connected.median(),
            Reach::Dialed => self.dialed.median(),
        }
    }

    /// Returns the share of contacts that are silent for longer than a time, in percent of the
    /// median, in thousandths.
    pub(crate) fn silent_permille(&self, percent: u32) -> u32 {
        self.silences.permille(percent)
    }
}

impl<T: Copy> Last<T> {
    const fn new(blank: T) -> Self {
        Self { entries: [blank; REMEMBERED], len: 0, next: 0 }
    }

    fn add(&mut self, entry: T) {
        if let Some(oldest) = self.entries.get_mut(self.next) {
            *oldest = entry;
        }
        self.next = (self.next + 1) % REMEMBERED;
        self.len = (self.len + 1).min(REMEMBERED);
    }
}

impl Last<Silence> {
    /// Most searches end before their last contacts could answer, so that counts of answers prove
    /// nothing: each answer reduces the share by that of those which were still waited for at its
    /// time (the estimator of Kaplan and Meier).
    fn permille(&self, percent: u32) -> u32 {
        let mut entries = self.entries;
        let silences = entries.get_mut(..self.len).unwrap_or_default();
        silences.sort_unstable_by_key(|silence| (silence.percent, !silence.answered));
        let mut share = 1_000_000;
        for (place, silence) in silences.iter().enumerate() {
            if silence.percent > percent {
                break;
            }
            if silence.answered {
                share -= share / (self.len - place);
            }
        }
        let share = share * self.len / self.len.max(ENOUGH);
        let share = share.saturating_sub(SLOW) / ((1_000_000 - SLOW) / 1000);
        u32::try_from(share).unwrap_or(1000)
    }
}

impl Last<Duration> {
    fn median(&self) -> Option<Duration> {
        let mut entries = self.entries;
        let times = entries.get_mut(..self.len).filter(|times| !times.is_empty())?;
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
        assert_eq!((experience.median(Reach::Dialed), experience.silent_permille(220)), (None, 0));
        for ms in [5, 1, 9] {
            experience.answered(Reach::Dialed, Duration::from_millis(ms), 100);
        }
        assert_eq!(experience.median(Reach::Dialed), Some(Duration::from_millis(5)));
        assert_eq!(experience.median(Reach::Connected), None, "each kind has its own");
        experience.unanswered(300);
        assert_eq!(experience.silent_permille(220), 0, "one of four proves little");
        for _ in 0..100 {
            experience.unanswered(300);
        }
        assert_eq!(experience.silent_permille(220), 1000);
        for ms in 0..200 {
            experience.answered(Reach::Connected, Duration::from_millis(ms), 100);
        }
        assert_eq!(experience.silent_permille(220), 0, "earlier contacts are forgotten");
        assert_eq!(experience.median(Reach::Connected), Some(Duration::from_millis(168)));
    }

    #[test]
    fn share_does_not_depend_on_when_searches_end() {
        // Twelve contacts live and answer after 80, 90, …, 190 %, eight are dead.
        let share = |ends: &[u32]| {
            let mut experience = Experience::new();
            for end in ends {
                for answer in (8..20).map(|tenth| 10 * tenth) {
                    match answer <= *end {
                        true => experience.answered(Reach::Dialed, Duration::ZERO, answer),
                        false => experience.unanswered(*end),
                    }
                }
                for _ in 0..8 {
                    experience.unanswered(*end);
                }
            }
            experience.silent_permille(220)
        };
        // 40 %, of which a tenth of all may be slow.
        let dead = 332..=334;
        assert!(dead.contains(&share(&[300])) && dead.contains(&share(&[300, 300, 300])));
        // The last one ends before most could answer.
        for ends in [[300, 105].as_slice(), &[300, 20, 105]] {
            assert!((310..=356).contains(&share(ends)), "{ends:?}: {}", share(ends));
        }
    }
}
