//! What a search can conclude from answers: how long a live contact takes, and whether a response
//! can come from an honest node.

use alloc::vec::Vec;
use core::time::Duration;

use crate::machine::experience::{Experience, Reach};
use crate::types::id::{Distance, NodeId};

/// Number of times that represent the experience of the node.
const PRIOR: usize = 3;
/// With fewer times than this, the median replaces the ninth decile.
const ENOUGH: usize = 13;
/// Maximum number of times of one kind.
const TIMES: usize = 128;
/// The ninth decile of a usual network, in percent of the median.
const DECILE: u32 = 190;
/// Least time that counts as silence.
const LEAST: Duration = Duration::from_millis(20);
/// A handshake that takes longer leaves the local network.
pub(super) const LOCAL: Duration = Duration::from_millis(5);
/// Depth of one node of a response that is counted at most.
const DEPTH: u32 = 16;

/// Times to the answers of a search.
#[derive(Debug)]
pub(super) struct Times {
    connected: Kind,
    dialed: Kind,
    /// Whether a contact of this search has answered.
    pub(super) any: bool,
    /// The slowest handshake of this search.
    handshake: Option<Duration>,
}

/// Times of one kind, in order.
#[derive(Debug)]
struct Kind {
    times: Vec<Duration>,
    /// Whether a contact of this kind has ever answered. Otherwise the times are a guess.
    measured: bool,
}

impl Times {
    /// Starts from the experience of the node, or from `expected` where it has none.
    pub(super) fn new(experience: &Experience, expected: Duration) -> Self {
        let prior = |reach| {
            let mut times = Vec::with_capacity(4 * PRIOR);
            let median = experience.median(reach);
            times.resize(PRIOR, median.unwrap_or(expected));
            Kind { times, measured: median.is_some() }
        };
        Self {
            connected: prior(Reach::Connected),
            dialed: prior(Reach::Dialed),
            any: false,
            handshake: None,
        }
    }

    /// Adds the time of an answer. If the times of its kind are a guess, and too short, it replaces
    /// them: the first answer is one of the fastest. Returns whether it did.
    pub(super) fn add(&mut self, reach: Reach, took: Duration) -> bool {
        self.any = true;
        let kind = match reach {
            Reach::Connected => &mut self.connected,
            Reach::Dialed => &mut self.dialed,
        };
        let replaces = !kind.measured && kind.times.last().is_some_and(|guess| took > *guess);
        if replaces {
            kind.times.fill(took);
        }
        kind.measured = true;
        if kind.times.len() < TIMES {
            kind.times.insert(kind.times.partition_point(|time| *time < took), took);
        }
        replaces
    }

    /// Returns whether handshakes take time, so that a dialed contact takes a round trip more than
    /// a connected one. `dialing`: since when the first dial that is not complete is in progress.
    pub(super) fn are_dials_slow(&self, dialing: Option<Duration>) -> bool {
        self.handshake.or(dialing).is_some_and(|took| took >= LOCAL)
    }

    /// Returns whether a dial in progress shows that handshakes take time once it lasts for
    /// [`LOCAL`].
    pub(super) fn are_dials_unknown(&self) -> bool {
        self.handshake.is_none()
    }

    /// The handshake of a dial is complete: its contact has a round trip left, after one for the
    /// handshake and, unless it was asked `early`, one for the Hello. If the times of dialed
    /// contacts are a guess, which is one round trip, the first handshake that takes time doubles
    /// it, up to four times what it took, because it is one of the fastest; and one that shows that
    /// the guess is too short replaces it. Returns whether the times change.
    pub(super) fn connected_after(&mut self, took: Duration, early: bool) -> bool {
        let were_slow = self.are_dials_slow(None);
        self.handshake = self.handshake.max(Some(took));
        let Some(guess) = self.dialed.times.last().filter(|_| !self.dialed.measured) else {
            return false;
        };
        let doubled = match were_slow || took < LOCAL {
            true => *guess,
            false => guess.saturating_mul(2).min(took.saturating_mul(4)),
        };
        let expected = if early { took.saturating_mul(2) } else { took.saturating_mul(3) / 2 };
        let expected = expected.max(doubled);
        let changes = expected > *guess;
        if changes {
            self.dialed.times.fill(expected);
        }
        changes
    }

    /// Returns whether no time is known, so that silence proves nothing.
    pub(super) fn is_guess(&self) -> bool {
        !self.connected.measured && !self.dialed.measured
    }

    fn of(&self, reach: Reach) -> &Kind {
        match reach {
            Reach::Connected => &self.connected,
            Reach::Dialed => &self.dialed,
        }
    }

    /// Returns a time in percent of the median.
    pub(super) fn median(&self, reach: Reach, percent: u32) -> Duration {
        let times = &self.of(reach).times;
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        (median.saturating_mul(percent) / 100).max(LEAST)
    }

    /// Returns a time in percent of the median.
    pub(super) fn percent(&self, reach: Reach, time: Duration) -> u32 {
        let median = self.median(reach, 100).as_micros();
        u32::try_from(time.as_micros() * 100 / median.max(1)).unwrap_or(u32::MAX)
    }

    /// Returns how long a silent contact is waited for at the end of a search. If several are
    /// silent they are probably dead, and less time is enough. `None` if no time is known: then the
    /// contact is waited for until it fails.
    pub(super) fn patience(&self, reach: Reach, silent: u32, percent: u32) -> Option<Duration> {
        // A connected contact is faster than a dialed one. A dial, with its handshake and Hello,
        // takes a few round trips more.
        let (times, factor) = match (reach, self.connected.measured, self.dialed.measured) {
            (_, false, false) => return None,
            (Reach::Connected, true, _) => (&self.connected.times, 1),
            (Reach::Connected, false, true) | (Reach::Dialed, _, true) => (&self.dialed.times, 1),
            (Reach::Dialed, true, false) => (&self.connected.times, 4),
        };
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        // Of few times the longest represents the slow ones, and a guess is not among them.
        let slow = match times.len() {
            ENOUGH.. => times.get(times.len() * 9 / 10),
            _ => times.last(),
        };
        let slow = slow.copied().unwrap_or_default().saturating_mul(100) / DECILE;
        let usual = if times.len() >= ENOUGH { slow } else { slow.max(median) };
        let usual = usual.saturating_mul(factor);
        Some(usual.saturating_mul(percent) * if silent > 1 { 1 } else { 2 } / 100)
    }
}

/// Returns the number of leading bits that two ids share; 256 for the same id.
pub(super) fn shared_bits(distance: &Distance) -> u32 {
    distance.bucket_index().map_or(256, |bucket| 255 - u32::from(bucket.0))
}

/// Returns whether an honest node cannot have sent this response: its nodes from the bucket that
/// contains the queried id are spread evenly over that bucket, so that half of them share the next
/// bit with the queried id, a quarter two bits, and so on. Nodes that were selected for their
/// distance to the queried id lie deeper.
pub(super) fn is_implausible<'a>(
    teller: &NodeId,
    queried: &NodeId,
    reported: impl Iterator<Item = &'a NodeId>,
    excess: u32,
) -> bool {
    let shared = shared_bits(&teller.distance(queried));
    let (mut nodes, mut depth) = (0u32, 0u32);
    for node in reported {
        let bits = shared_bits(&node.distance(queried));
        if bits > shared && bits < 256 {
            nodes += 1;
            depth += (bits - shared - 1).min(DEPTH);
        }
    }
    depth > 2 * nodes + excess
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn silence_is_measured_in_medians_of_the_kind() {
        let mut times = Times::new(&Experience::new(), ms(100));
        assert_eq!(times.median(Reach::Dialed, 140), ms(140));
        for _ in 0..4 {
            times.add(Reach::Dialed, ms(300));
        }
        assert_eq!(times.median(Reach::Dialed, 200), ms(600));
        assert_eq!(times.median(Reach::Connected, 200), ms(200), "the other kind is independent");
        assert_eq!(times.median(Reach::Connected, 1), LEAST);
    }

    #[test]
    fn first_slow_handshake_doubles_a_guess_and_a_slower_one_replaces_it() {
        let mut times = Times::new(&Experience::new(), ms(100));
        assert!(!times.connected_after(ms(1), false), "a handshake in the local network");
        assert!(times.connected_after(ms(40), true));
        assert_eq!(times.median(Reach::Dialed, 100), ms(160), "the first one is fast");
        let mut times = Times::new(&Experience::new(), ms(100));
        assert!(times.connected_after(ms(90), true));
        assert_eq!(times.median(Reach::Dialed, 100), ms(200));
        assert!(!times.connected_after(ms(130), false), "it is doubled once");
        assert!(times.connected_after(ms(200), false));
        assert_eq!(times.median(Reach::Dialed, 200), ms(600));
        assert!(times.connected_after(ms(200), true), "one round trip of two is left");
        assert_eq!(times.median(Reach::Dialed, 200), ms(800));
        times.add(Reach::Dialed, ms(310));
        assert!(!times.connected_after(ms(900), true), "a measurement is not replaced");
    }

    #[test]
    fn dials_are_slow_from_5_ms_on_until_a_handshake_shows_the_opposite() {
        let mut times = Times::new(&Experience::new(), ms(100));
        assert!(times.are_dials_unknown() && !times.are_dials_slow(Some(ms(4))));
        assert!(times.are_dials_slow(Some(ms(5))));
        times.connected_after(ms(1), true);
        assert!(!times.are_dials_unknown() && !times.are_dials_slow(Some(ms(900))), "a silent one");
        times.connected_after(ms(80), true);
        assert!(times.are_dials_slow(None));
        assert_eq!(times.percent(Reach::Dialed, ms(400)), 200);
    }

    #[test]
    fn patience_depends_on_slow_contacts_and_on_the_number_of_silent_ones() {
        let mut times = Times::new(&Experience::new(), ms(100));
        let patience =
            |times: &Times, reach| [1, 9].map(|silent| times.patience(reach, silent, 600));
        assert_eq!(patience(&times, Reach::Dialed), [None, None], "silence proves nothing yet");
        times.add(Reach::Dialed, ms(90));
        assert_eq!(patience(&times, Reach::Dialed), [Some(ms(1200)), Some(ms(600))]);
        assert_eq!(patience(&times, Reach::Connected), [Some(ms(1200)), Some(ms(600))]);
        for _ in 0..10 {
            times.add(Reach::Dialed, ms(380));
        }
        let twelvefold = Some(ms(2400));
        assert_eq!(times.patience(Reach::Dialed, 1, 600), twelvefold, "of half the ninth decile");
        let mut times = Times::new(&Experience::new(), ms(100));
        times.add(Reach::Connected, ms(100));
        assert_eq!(times.patience(Reach::Dialed, 1, 600), Some(ms(4800)), "a dial takes longer");
    }

    #[test]
    fn selected_nodes_are_implausible_and_random_ones_are_not() {
        let id = |bytes: [u8; 4]| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&bytes);
            NodeId::from_bytes(id)
        };
        let (queried, teller) = (id([0, 0, 0, 0]), id([0x80, 0, 0, 0]));
        // The 20 nodes of a bucket at even distances.
        let honest: Vec<NodeId> = (1..=20u8).map(|at| id([at * 6, 1, 0, 0])).collect();
        assert!(!is_implausible(&teller, &queried, honest.iter(), 20));
        let selected: Vec<NodeId> = (1..=20u8).map(|at| id([0, at, 0, 0])).collect();
        assert!(is_implausible(&teller, &queried, selected.iter(), 20));
        // A neighbor of the queried id has contacts for all the others.
        let neighbor = id([0, 0x20, 0, 0]);
        assert!(!is_implausible(&neighbor, &queried, selected.iter(), 20));
        assert!(
            !is_implausible(&teller, &queried, [queried].iter(), 0),
            "the id itself is no sign"
        );
    }
}
