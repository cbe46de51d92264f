//! The candidates of a search, by their distance to the target, and the state of each. If there are
//! too many, the farthest that is not being contacted is dropped.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use super::tellers::{Teller, Tellers};
use crate::machine::dial::AddressOrigin;
use crate::machine::experience::Reach;
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, Distance, NodeId, StreamId};
use crate::types::time::Instant;

/// Maximum number of relays of one candidate.
const MAX_RELAYS: usize = 12;

/// A node that was reported to a search.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) node: NodeId,
    /// Node that reported it first; `None` if it came from the local node.
    pub(super) reported_by: Option<NodeId>,
    /// Reporter whose turn contacts it.
    pub(super) teller: Teller,
    /// Number of reporters from the local node to it.
    depth: u32,
    /// Addresses in the order of the reports, with their origin.
    pub(super) addresses: Vec<(NodeAddress, AddressOrigin)>,
    /// Connected nodes that are connected to it, and can signal.
    pub(super) relays: Vec<NodeId>,
    /// Whether it was asked on a connection that was already dead.
    pub(super) was_lost: bool,
    /// Address of the connection on which it answered first.
    pub(super) answered_at: Option<NodeAddress>,
    /// Whether its last answer was implausible.
    pub(super) lied: bool,
    /// The bit of the target that was inverted when it was asked for the other side of an edge.
    pub(super) edge: Option<u32>,
    state: State,
}

impl Candidate {
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Returns whether it answered once.
    pub(super) fn has_answered(&self) -> bool {
        self.answered_at.is_some()
    }

    /// Returns the contact in progress.
    pub(super) fn contact(&self) -> Option<&Contact> {
        if let State::Running(contact) = &self.state { Some(contact) } else { None }
    }
}

/// State of a candidate.
#[derive(Debug)]
pub(super) enum State {
    /// Not contacted, or not since it got new addresses.
    New,
    /// Being dialed or asked.
    Running(Contact),
    /// Answered.
    Answered,
    /// No connection.
    Failed,
    /// Connected, but without a valid answer.
    Mute,
}

/// A contact in progress.
#[derive(Debug, Clone)]
pub(super) struct Contact {
    /// Its place in the trace.
    pub(super) step: usize,
    pub(super) since: Instant,
    pub(super) reach: Reach,
    /// Whether it is beyond the closest, or asked again.
    pub(super) extra: bool,
    pub(super) age: Age,
    /// Time at which its age changes.
    pub(super) due: Instant,
    pub(super) stage: Stage,
}

/// How far a contact in progress is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Being dialed.
    Dialing,
    /// Being dialed, and asked on a connection that the peer has not accepted yet.
    Early(StreamId, ConnectionId),
    /// Asked; `early`: before the peer had accepted the connection.
    Asked { stream: StreamId, early: bool },
}

impl Stage {
    /// Returns the call.
    pub(super) fn stream(self) -> Option<StreamId> {
        match self {
            Self::Dialing => None,
            Self::Early(stream, _) | Self::Asked { stream, .. } => Some(stream),
        }
    }
}

/// How long a contact has been silent, compared with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// As long as usual.
    Fresh,
    /// Longer than usual: another one starts in parallel.
    Old,
    /// So long that it is probably dead. Its answer still counts.
    Gone,
}

/// Result of adding a reported node to the candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inserted {
    /// Nothing new, or no room.
    Nothing,
    /// A new address or relay of a known candidate.
    Route,
    /// A new candidate.
    Candidate,
}

/// A report of a node.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) node: NodeId,
    /// Reporting node; `None` for the local node.
    pub(super) by: Option<NodeId>,
    /// Whether the report is plausible.
    pub(super) vouched: bool,
    pub(super) addresses: Vec<(NodeAddress, AddressOrigin)>,
    pub(super) relay: Option<NodeId>,
}

/// Number of contacts in progress.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Running {
    pub(super) fresh: u32,
    pub(super) old: u32,
    pub(super) gone: u32,
    /// Those beyond the closest, or asked again, that are not gone.
    pub(super) extra: u32,
    /// Those that were dialed.
    pub(super) dialed: usize,
}

/// All candidates of a search.
#[derive(Debug)]
pub(super) struct Candidates {
    target: NodeId,
    limit: usize,
    address_limit: usize,
    /// Candidates that the local node or a plausible response reported.
    vouched: BTreeMap<Distance, Candidate>,
    /// Candidates that only implausible responses reported.
    doubted: BTreeMap<Distance, Candidate>,
    /// Vouched candidates that were not contacted.
    pub(super) tellers: Tellers,
    /// Doubted candidates that were not contacted.
    doubted_new: BTreeSet<Distance>,
    running: Running,
    due: BTreeSet<(Instant, Distance)>,
}

impl Candidates {
    pub(super) fn new(target: NodeId, limit: usize, address_limit: usize) -> Self {
        Self {
            target,
            limit,
            address_limit,
            vouched: BTreeMap::new(),
            doubted: BTreeMap::new(),
            tellers: Tellers::default(),
            doubted_new: BTreeSet::new(),
            running: Running::default(),
            due: BTreeSet::new(),
        }
    }

    /// Adds a node, or new addresses or another relay of a candidate. A failed candidate becomes
    /// eligible again by them, as long as there is room. Returns also whether the node is vouched
    /// for from now on.
    pub(super) fn add(&mut self, report: Report) -> (Inserted, bool) {
        let Report { node, by, vouched, addresses, relay } = report;
        let distance = self.target.distance(&node);
        let teller = by.map(|by| self.target.distance(&by));
        let depth = teller.and_then(|teller| self.at(&teller)).map_or(1, |by| by.depth + 1);
        let (mut inserted, mut news) = (Inserted::Nothing, false);
        if self.at(&distance).is_none() {
            let candidate = Candidate {
                node,
                reported_by: by,
                teller,
                depth,
                addresses: Vec::new(),
                relays: Vec::new(),
                was_lost: false,
                answered_at: None,
                lied: false,
                edge: None,
                state: State::New,
            };
            (inserted, news) = (Inserted::Candidate, vouched);
            self.put(distance, candidate, vouched);
        } else if vouched && let Some(mut candidate) = self.take_doubted(&distance) {
            (candidate.teller, candidate.depth) = (teller, depth);
            news = matches!(candidate.state, State::New);
            self.put(distance, candidate, true);
        }
        let limit = self.address_limit;
        let Some(candidate) = self.at_mut(&distance) else { return (Inserted::Nothing, false) };
        let mut new_way = false;
        for address in addresses {
            let known = candidate.addresses.iter().any(|(known, _)| *known == address.0);
            if candidate.addresses.len() < limit && !known {
                candidate.addresses.push(address);
                new_way = true;
            }
        }
        if let Some(relay) = relay
            && candidate.relays.len() < MAX_RELAYS
            && !candidate.relays.contains(&relay)
        {
            candidate.relays.push(relay);
            new_way = true;
        }
        if new_way && inserted == Inserted::Nothing {
            inserted = Inserted::Route;
        }
        if new_way && matches!(candidate.state, State::Failed) {
            self.set(distance, State::New);
        }
        match self.drop_farthest() {
            Some(dropped) if dropped == distance => (Inserted::Nothing, false),
            _ => (inserted, news),
        }
    }

    /// Makes room if there are too many. Candidates being contacted occupy no place: a nearer node
    /// is never refused because of one.
    fn drop_farthest(&mut self) -> Option<Distance> {
        let running = self.running.fresh + self.running.old + self.running.gone;
        if self.vouched.len() + self.doubted.len() <= self.limit + running as usize {
            return None;
        }
        let idle = |(_, candidate): &(&Distance, &Candidate)| candidate.contact().is_none();
        let farthest = self.doubted.iter().rev().find(idle);
        let farthest = *farthest.or_else(|| self.vouched.iter().rev().find(idle))?.0;
        // Removes it from what is derived from its state.
        self.set(farthest, State::Mute);
        self.vouched.remove(&farthest).or_else(|| self.doubted.remove(&farthest));
        Some(farthest)
    }

    /// Changes the state of a candidate, and everything that is derived from it. Returns the
    /// contact that has ended.
    pub(super) fn set(&mut self, distance: Distance, state: State) -> Option<Contact> {
        let vouched = self.vouched.contains_key(&distance);
        let candidate = self.at_mut(&distance)?;
        let (teller, depth) = (candidate.teller, candidate.depth);
        let added = if let State::Running(contact) = &state { Some(contact.clone()) } else { None };
        let is_new = matches!(state, State::New);
        let before = core::mem::replace(&mut candidate.state, state);
        match (matches!(before, State::New), is_new, vouched) {
            (true, false, true) => self.tellers.remove(teller, distance),
            (false, true, true) => self.tellers.add(teller, depth, distance),
            (true, false, false) => drop(self.doubted_new.remove(&distance)),
            (false, true, false) => drop(self.doubted_new.insert(distance)),
            (true, true, _) | (false, false, _) => {}
        }
        let ended = if let State::Running(contact) = before { Some(contact) } else { None };
        if let Some(contact) = &ended {
            self.due.remove(&(contact.due, distance));
            self.count(contact, |count| count.saturating_sub(1));
        }
        if let Some(contact) = &added {
            if contact.age != Age::Gone {
                self.due.insert((contact.due, distance));
            }
            self.count(contact, |count| count.saturating_add(1));
        }
        ended
    }

    fn count(&mut self, contact: &Contact, change: fn(u32) -> u32) {
        let running = &mut self.running;
        match contact.age {
            Age::Fresh => running.fresh = change(running.fresh),
            Age::Old => running.old = change(running.old),
            Age::Gone => running.gone = change(running.gone),
        }
        if contact.extra && contact.age != Age::Gone {
            running.extra = change(running.extra);
        }
        if contact.reach == Reach::Dialed {
            running.dialed = change(u32::try_from(running.dialed).unwrap_or(u32::MAX)) as usize;
        }
    }

    /// Advances the ages of contacts. `silence` returns the time after which a contact has the next
    /// age.
    pub(super) fn grow_old(&mut self, now: Instant, silence: impl Fn(Reach, Age) -> Duration) {
        while let Some((due, distance)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, distance));
            let Some(contact) = self.at(&distance).and_then(Candidate::contact) else { continue };
            let mut contact = contact.clone();
            // The usual time may have become longer since the contact started.
            let due = contact.since + silence(contact.reach, contact.age);
            if due <= now {
                contact.age = if contact.age == Age::Fresh { Age::Old } else { Age::Gone };
            }
            contact.due = contact.since + silence(contact.reach, contact.age);
            self.set(distance, State::Running(contact));
        }
    }

    /// Judges the ages of all contacts again, because the usual time has become known.
    pub(super) fn rejuvenate(&mut self, silence: impl Fn(Reach, Age) -> Duration) {
        let running: Vec<_> = self
            .iter()
            .filter_map(|(distance, candidate)| Some((*distance, candidate.contact()?.clone())))
            .collect();
        for (distance, contact) in running {
            let due = contact.since + silence(contact.reach, Age::Fresh);
            self.set(distance, State::Running(Contact { age: Age::Fresh, due, ..contact }));
        }
    }

    /// A contact in progress is at another stage.
    pub(super) fn advance(&mut self, node: &NodeId, stage: Stage) {
        let candidate = self.at_mut(&self.target.distance(node));
        if let Some(State::Running(contact)) = candidate.map(|candidate| &mut candidate.state) {
            contact.stage = stage;
        }
    }

    /// Returns the next time at which the age of a contact changes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    pub(super) fn running(&self) -> Running {
        self.running
    }

    pub(super) fn get(&self, node: &NodeId) -> Option<&Candidate> {
        self.at(&self.target.distance(node))
    }

    pub(super) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Candidate> {
        self.at_mut(&self.target.distance(node))
    }

    pub(super) fn at(&self, distance: &Distance) -> Option<&Candidate> {
        self.vouched.get(distance).or_else(|| self.doubted.get(distance))
    }

    fn at_mut(&mut self, distance: &Distance) -> Option<&mut Candidate> {
        match self.vouched.get_mut(distance) {
            Some(candidate) => Some(candidate),
            None => self.doubted.get_mut(distance),
        }
    }

    /// Returns the candidates that are vouched for, the nearest first.
    pub(super) fn vouched(&self) -> impl DoubleEndedIterator<Item = (&Distance, &Candidate)> {
        self.vouched.iter()
    }

    /// Returns the candidates that are vouched for, up to a distance.
    pub(super) fn vouched_within(
        &self,
        distance: Distance,
    ) -> impl DoubleEndedIterator<Item = (&Distance, &Candidate)> {
        self.vouched.range(..=distance)
    }

    /// Returns the nearest doubted candidate that was not contacted.
    pub(super) fn nearest_doubted(&self) -> Option<Distance> {
        self.doubted_new.first().copied()
    }

    /// Returns all candidates in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Distance, &Candidate)> {
        self.vouched.iter().chain(&self.doubted)
    }

    fn put(&mut self, distance: Distance, candidate: Candidate, vouched: bool) {
        let is_new = matches!(candidate.state, State::New);
        let (teller, depth) = (candidate.teller, candidate.depth);
        if vouched {
            self.vouched.insert(distance, candidate);
            if is_new {
                self.tellers.add(teller, depth, distance);
            }
        } else {
            self.doubted.insert(distance, candidate);
            if is_new {
                self.doubted_new.insert(distance);
            }
        }
    }

    fn take_doubted(&mut self, distance: &Distance) -> Option<Candidate> {
        self.doubted_new.remove(distance);
        self.doubted.remove(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(first: u8) -> NodeId {
        let mut bytes = [0; 32];
        bytes[0] = first;
        NodeId::from_bytes(bytes)
    }

    fn report(first: u8, text: &str) -> Report {
        Report {
            node: id(first),
            by: None,
            vouched: true,
            addresses: alloc::vec![(text.parse().unwrap(), AddressOrigin::DIRECT)],
            relay: None,
        }
    }

    fn add(candidates: &mut Candidates, first: u8, text: &str) -> Inserted {
        candidates.add(report(first, text)).0
    }

    fn start(candidates: &mut Candidates, first: u8) {
        let at = id(0).distance(&id(first));
        let contact = Contact {
            step: 0,
            since: Instant::ORIGIN,
            reach: Reach::Dialed,
            extra: false,
            age: Age::Fresh,
            due: Instant::ORIGIN + Duration::from_secs(1),
            stage: Stage::Dialing,
        };
        candidates.set(at, State::Running(contact));
    }

    fn nodes(candidates: &Candidates) -> Vec<NodeId> {
        candidates.vouched().map(|(_, candidate)| candidate.node).collect()
    }

    #[test]
    fn farthest_candidate_is_dropped_over_the_limit() {
        let mut candidates = Candidates::new(id(0), 2, 2);
        for first in [3, 1, 2] {
            assert_eq!(add(&mut candidates, first, "10.0.0.1:1"), Inserted::Candidate);
        }
        assert_eq!(nodes(&candidates), [id(1), id(2)]);
        let farther = add(&mut candidates, 9, "10.0.0.1:1");
        assert_eq!(farther, Inserted::Nothing, "a farther one does not enter");
        assert_eq!(nodes(&candidates), [id(1), id(2)]);
    }

    #[test]
    fn running_contact_is_never_dropped() {
        let mut candidates = Candidates::new(id(0), 1, 2);
        add(&mut candidates, 3, "10.0.0.1:1");
        start(&mut candidates, 3);
        add(&mut candidates, 1, "10.0.0.1:1");
        assert!(candidates.get(&id(3)).is_some());
        assert!(candidates.get(&id(1)).is_some(), "nor does it turn a nearer one away");
        assert_eq!(add(&mut candidates, 2, "10.0.0.1:1"), Inserted::Nothing);
    }

    #[test]
    fn new_address_makes_a_failed_candidate_usable_again() {
        let mut candidates = Candidates::new(id(0), 9, 2);
        add(&mut candidates, 1, "10.0.0.1:1");
        candidates.set(id(0).distance(&id(1)), State::Failed);
        assert_eq!(candidates.tellers.nearest(), None);
        let again = add(&mut candidates, 1, "10.0.0.1:1");
        assert_eq!(again, Inserted::Nothing, "the same address is no news");
        assert_eq!(candidates.tellers.nearest(), None);
        assert_eq!(add(&mut candidates, 1, "10.0.0.2:1"), Inserted::Route);
        assert_eq!(candidates.tellers.nearest(), Some(id(0).distance(&id(1))));
    }

    #[test]
    fn plausible_report_confirms_a_doubted_candidate_and_doubted_ones_are_dropped_first() {
        let mut candidates = Candidates::new(id(0), 2, 2);
        let doubted = |first| Report { vouched: false, ..report(first, "10.0.0.1:1") };
        assert_eq!(candidates.add(doubted(1)), (Inserted::Candidate, false));
        assert_eq!((nodes(&candidates).len(), candidates.nearest_doubted().is_some()), (0, true));
        assert_eq!(candidates.add(report(1, "10.0.0.1:1")), (Inserted::Nothing, true));
        assert_eq!((nodes(&candidates), candidates.nearest_doubted()), (alloc::vec![id(1)], None));
        candidates.add(doubted(2));
        add(&mut candidates, 9, "10.0.0.1:1");
        assert_eq!(nodes(&candidates), [id(1), id(9)], "the nearer one is only doubted");
    }

    #[test]
    fn contacts_age_by_the_current_thresholds() {
        let mut candidates = Candidates::new(id(0), 9, 2);
        add(&mut candidates, 1, "10.0.0.1:1");
        start(&mut candidates, 1);
        let at = |seconds| Instant::ORIGIN + Duration::from_secs(seconds);
        let silence = |_, age| Duration::from_secs(if age == Age::Fresh { 2 } else { 3 });
        let counts = |candidates: &Candidates| {
            let running = candidates.running();
            (running.fresh, running.old, running.gone, candidates.next_due())
        };
        candidates.grow_old(at(1), silence);
        assert_eq!(counts(&candidates), (1, 0, 0, Some(at(2))), "the time became longer");
        candidates.grow_old(at(2), silence);
        assert_eq!(counts(&candidates), (0, 1, 0, Some(at(3))));
        candidates.grow_old(at(9), silence);
        assert_eq!(counts(&candidates), (0, 0, 1, None));
        candidates.set(id(0).distance(&id(1)), State::Answered);
        assert_eq!(counts(&candidates), (0, 0, 0, None));
    }
}
