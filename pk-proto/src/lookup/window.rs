//! What a walk sees of the closest candidates.

use super::candidates::{Age, Candidate, Candidates, Stage, State};
use super::way::{Cost, Way};
use crate::api::search_config::SearchConfig;
use crate::machine::experience::Reach;
use crate::types::id::{BucketIndex, Distance};
use crate::types::time::Instant;

/// Silent contacts of the window from which on there is something to do beyond it.
pub(super) const SILENT: u32 = 2;

/// What a look at the window shows.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Candidates that occupy a place.
    pub(super) places: usize,
    /// Contacts that gave up their place.
    pub(super) silent: u32,
    /// The farthest place.
    pub(super) last: Option<Distance>,
    /// The `k`-th candidate, silent or not.
    pub(super) reach: Option<Distance>,
    /// The next candidate of the window, its order and the contacts nearer than it that are waited
    /// for.
    pub(super) next: Option<((BucketIndex, Cost), Distance, u32)>,
    /// Whether a candidate waits for the end of a dial.
    pub(super) blocked: bool,
    pub(super) limited: bool,
    /// A candidate that cannot be reached.
    pub(super) unreachable: Option<Distance>,
    /// Contacts that are waited for.
    pub(super) fresh: u32,
    /// Starts of the last contacts that have not answered, by their kind.
    pub(super) since: [Option<Instant>; 2],
    /// Start of the first dial whose handshake is not complete.
    pub(super) dialing: Option<Instant>,
}

impl Window {
    /// Looks at the `k` nearest candidates, those that are silent not counted, and not the target
    /// if the search is for a connection with it.
    pub(super) fn look(
        candidates: &Candidates,
        (seeks_target, k): (bool, usize),
        way: &impl Fn(&Candidate) -> Way,
    ) -> Self {
        let mut window = Self::default();
        let mut told = 0;
        for (distance, candidate) in candidates.vouched() {
            if seeks_target && *distance == Distance::ZERO {
                window.limited |=
                    matches!(candidate.state(), State::New) && way(candidate) == Way::Limited;
                continue;
            }
            told += 1;
            if told == k {
                window.reach = Some(*distance);
            }
            match candidate.state() {
                State::New => window.look_at_new(*distance, candidate, way),
                State::Answered => {}
                _ if candidate.has_answered() => {}
                State::Running(contact) => {
                    let [connected, dialed] = &mut window.since;
                    let since = if contact.reach == Reach::Connected { connected } else { dialed };
                    *since = (*since).max(Some(contact.since));
                    if contact.reach == Reach::Dialed && contact.stage == Stage::Dialing {
                        let first =
                            window.dialing.map_or(contact.since, |since| since.min(contact.since));
                        window.dialing = Some(first);
                    }
                    window.fresh += u32::from(contact.age == Age::Fresh);
                    if contact.age == Age::Gone {
                        window.silent += 1;
                        continue;
                    }
                }
                State::Failed | State::Mute => {
                    window.silent += 1;
                    continue;
                }
            }
            window.places += 1;
            window.last = Some(*distance);
            if window.places == k || window.unreachable.is_some() {
                break;
            }
        }
        window
    }

    /// Of candidates in one bucket of the target, the one with the least cost is next.
    fn look_at_new(
        &mut self,
        distance: Distance,
        candidate: &Candidate,
        way: &impl Fn(&Candidate) -> Way,
    ) {
        let class = distance.bucket_index().unwrap_or(BucketIndex(0));
        if let Some(((best, cost), ..)) = self.next
            && (class > best || cost == Cost::Connected)
        {
            return;
        }
        match way(candidate) {
            Way::Now(cost) => {
                let nearer = self.next.map_or(self.fresh, |(_, _, nearer)| nearer);
                if self.next.is_none_or(|(best, ..)| (class, cost) < best) {
                    self.next = Some(((class, cost), distance, nearer));
                }
            }
            Way::Later => self.blocked = true,
            Way::Limited => self.limited = true,
            Way::Nowhere => self.unreachable = Some(distance),
        }
    }

    /// Returns how many contacts the silent ones cause, if there are several.
    pub(super) fn for_silent(&self, config: &SearchConfig) -> u32 {
        config.per_silent * self.silent.saturating_sub(SILENT - 1)
    }
}
