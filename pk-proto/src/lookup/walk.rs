//! The walk of a search: the next contact, and when the search is complete (docs/DESIGN.md,
//! Searches).
//!
//! The *window* is the `k` nearest candidates without those that are silent. A search is narrow
//! while answers bring nearer nodes: it contacts the nearest candidates, few at a time. Then it is
//! wide: it contacts everything in the window. After that it contacts some candidates beyond the
//! window, for two reasons: contacts of the window are silent, so that there are live nodes that no
//! near node reports; or the answers are doubtful. It ends when every contact of the window has
//! answered or has been silent for long.
//!
//! Each call looks at the window, the silent contacts within it and the contacts for one edge. What
//! is beyond is in ordered tables, so that the cost of a call does not depend on the number of
//! candidates.

use alloc::vec::Vec;

use super::candidates::{Age, Candidate, Candidates, Contact, Inserted, Report, Stage, State};
use super::evidence::{LOCAL, Times, is_implausible, shared_bits};
use super::way::{Cost, Way};
use super::window::{SILENT, Window};
use crate::api::search_config::SearchConfig;
use crate::machine::experience::{Experience, Reach};
use crate::types::address::NodeAddress;
use crate::types::id::{Distance, NodeId};
use crate::types::time::Instant;

/// Contacts before the first answer that the node has ever received, in multiples of the setting
/// for narrow searches.
const GUESS: u32 = 2;
/// Implausible responses that are counted at most.
const LIES: u32 = 10;
/// Least number of closest nodes whose density says something.
const DENSE: usize = 16;

/// What a search looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// A connection with the target.
    Node,
    /// The nodes closest to the target.
    Closest,
}

/// The next step of a search.
#[derive(Debug)]
pub(super) enum Step {
    /// Contact a candidate.
    Contact {
        node: NodeId,
        /// The bit of the target to invert in the request.
        edge: Option<u32>,
        /// Whether it is beyond the window, or asked again.
        extra: bool,
    },
    /// Another dial would be next, but too many are in progress.
    TooManyDials,
    /// Nothing, until a contact ends or this time.
    Wait(Option<Instant>),
    /// The search is complete; `limited`: as far as the limit of attempts allows.
    End { limited: bool },
}

/// How long silent contacts are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Patience {
    Over,
    Until(Instant),
    UntilItFails,
}

/// State of a walk.
#[derive(Debug)]
pub(super) struct Walk {
    target: NodeId,
    goal: Goal,
    /// Number of closest nodes that must answer.
    k: usize,
    pub(super) candidates: Candidates,
    times: Times,
    /// Whether the local node searches for its own id. It contacts all the closest at once, because
    /// it needs a connection with each, and a silent one becomes a contact if it responds later.
    pub(super) own: bool,
    /// Whether the target may be alive and silent, so that nothing waits for its answer.
    pub(super) target_is_silent: bool,
    /// Additional contacts until the first answer.
    warm: u32,
    /// Contacts among the nearest while the search is narrow.
    near: u32,
    /// Silence after which one more contact starts, in percent of the median.
    hedge: u32,
    /// Distance of the local node to the farthest of its own neighbors; `None` if unknown.
    neighborhood: Option<u64>,
    /// Answers in a row without a nearer node.
    quiet: u32,
    /// Implausible responses.
    lies: u32,
    /// Contacts beyond the window, and repeated ones, because of silent ones.
    for_silent: u32,
    /// Contacts beyond the window because of doubt.
    for_doubt: u32,
    /// Candidates asked for the other side of an edge, by the bit that was inverted.
    edges: Vec<(u32, Distance)>,
}

impl Walk {
    pub(super) fn new(
        config: &SearchConfig,
        experience: &Experience,
        (target, goal): (NodeId, Goal),
        k: usize,
        candidates: Candidates,
    ) -> Self {
        let silent = experience.silent_permille(config.stall);
        Self {
            target,
            goal,
            k,
            candidates,
            times: Times::new(experience, config.round_trip),
            own: false,
            target_is_silent: false,
            warm: config.warm * silent / 1000,
            near: config.near + (config.near_silent * silent + 500) / 1000,
            hedge: (config.hedge + config.hedge_silent * silent / 1000)
                .min(config.stall.max(config.hedge)),
            neighborhood: None,
            quiet: 0,
            lies: 0,
            for_silent: 0,
            for_doubt: 0,
            edges: Vec::new(),
        }
    }

    /// Sets the distance of the local node to the farthest of its own neighbors.
    pub(super) fn set_neighborhood(&mut self, neighborhood: Option<Distance>) {
        let dense = neighborhood.filter(|_| self.k >= DENSE);
        self.neighborhood = dense.map(|distance| leading(&distance));
    }

    /// Returns the next step. `way` returns how a candidate can be contacted, and `cap` is the
    /// maximum number of contacts that are waited for.
    pub(super) fn next(
        &mut self,
        config: &SearchConfig,
        now: Instant,
        cap: u32,
        way: impl Fn(&Candidate) -> Way,
    ) -> Step {
        let asks_many = self.may_be_hasty() && self.times.are_dials_slow(None);
        let Self { candidates, times, hedge, .. } = self;
        let stall = if self.own { *hedge } else { config.stall };
        // Where dials are slow, more contacts are in progress in any case.
        let hedge = if asks_many { stall.max(*hedge) } else { *hedge };
        candidates.grow_old(now, |reach, age| match age {
            Age::Fresh => times.median(reach, hedge),
            Age::Old | Age::Gone => times.median(reach, stall),
        });
        if let Some(step) = self.contact_target(&way) {
            return step;
        }
        let window = loop {
            let window = Window::look(&self.candidates, (self.goal == Goal::Node, self.k), &way);
            match window.unreachable {
                Some(distance) => drop(self.candidates.set(distance, State::Failed)),
                None => break window,
            }
        };
        let running = self.candidates.running();
        let complete = window.next.is_none() && !window.blocked;
        let wide = self.own
            || self.quiet >= config.wide_after
            || complete && window.since.iter().all(Option::is_none);
        let for_silent = window.for_silent(config);
        let dialing = window.dialing.map(|since| now.since(since));
        let slow_dials = self.may_be_hasty() && self.times.are_dials_slow(dialing);
        let (near, total) = if wide {
            (u32::MAX, u32::try_from(self.k).unwrap_or(u32::MAX) + for_silent)
        } else {
            let warm = if self.times.any { 0 } else { self.warm };
            let (near, narrow) =
                if slow_dials { (config.near_dialed, config.narrow_dialed) } else { (0, 0) };
            let hedges = running.old + 3 * running.gone;
            (self.near + near + hedges + warm, config.narrow + narrow + hedges)
        };
        // Before anything has ever answered, silence proves nothing: the times are a guess.
        let total = if self.times.is_guess() { total.min(GUESS * config.narrow) } else { total };
        let waiting = if self.times.is_guess() {
            running.fresh + running.old + running.gone
        } else {
            running.fresh
        };
        let has_room = waiting < total && running.fresh < cap;
        let edge = if wide { self.edge(config, &window) } else { None };

        if let Some((_, distance, nearer)) = window.next {
            return match nearer < near && has_room {
                true => self.contact(distance, edge, false),
                false => Step::Wait(self.next_due(now, &window)),
            };
        }
        if window.blocked {
            return Step::TooManyDials;
        }
        let mut limited = window.limited;
        let doubt = self.doubt(config, wide, &window);
        let paced = running.fresh < config.doubt_pace.min(cap);
        if wide && self.for_silent + self.for_doubt < config.doubt_limit {
            if has_room
                && let Some(bit) = edge
                && let Some(distance) = self.ask_again(bit, &window, &way)
            {
                self.for_silent += 1;
                return self.contact(distance, edge, true);
            }
            let silent = has_room && self.for_silent < for_silent;
            if silent || paced && self.for_doubt < doubt {
                // The nearest are those that liars report.
                let turn = !silent && self.for_doubt > 0;
                match self.beyond(turn, &way) {
                    Ok(Some(distance)) if silent => {
                        self.for_silent += 1;
                        return self.contact(distance, edge, true);
                    }
                    Ok(Some(distance)) => {
                        self.for_doubt += 1;
                        return self.contact(distance, None, true);
                    }
                    Ok(None) => {}
                    Err(Way::Limited) => limited = true,
                    Err(_) => return Step::TooManyDials,
                }
            }
        }
        let patience = self.patience(config, now, &window);
        if running.extra > 0 || patience != Patience::Over || self.target_is_running() {
            let until = if let Patience::Until(until) = patience { Some(until) } else { None };
            return Step::Wait(self.candidates.next_due().into_iter().chain(until).min());
        }
        let hidden = self.goal == Goal::Node && self.lies > 0 && self.for_doubt < doubt;
        while window.places < self.k || hidden {
            let Some(distance) = self.candidates.nearest_doubted() else { break };
            match self.candidates.at(&distance).map_or(Way::Nowhere, &way) {
                Way::Now(_) => return self.contact(distance, None, false),
                Way::Later => return Step::TooManyDials,
                Way::Limited => {
                    limited = true;
                    break;
                }
                Way::Nowhere => drop(self.candidates.set(distance, State::Failed)),
            }
        }
        Step::End { limited }
    }

    /// Returns whether more contacts are in progress where dials are slow: if something waits for
    /// the end, and not where many nodes are hidden, because their dials are slow for another
    /// reason and occupy relays.
    fn may_be_hasty(&self) -> bool {
        self.goal == Goal::Node && !self.target_is_silent
    }

    /// Returns the next time at which silence changes what is contacted.
    fn next_due(&self, now: Instant, window: &Window) -> Option<Instant> {
        let unknown = self.may_be_hasty() && self.times.are_dials_unknown();
        let slow = window.dialing.map(|since| since + LOCAL).filter(|at| unknown && *at > now);
        self.candidates.next_due().into_iter().chain(slow).min()
    }

    /// The target is contacted before all others, and nothing else starts while its answer is
    /// expected soon.
    fn contact_target(&mut self, way: &impl Fn(&Candidate) -> Way) -> Option<Step> {
        let candidate = self.candidates.at(&Distance::ZERO).filter(|_| self.goal == Goal::Node)?;
        match candidate.state() {
            State::New => match way(candidate) {
                Way::Now(_) => Some(self.contact(Distance::ZERO, None, false)),
                Way::Later => Some(Step::TooManyDials),
                Way::Limited | Way::Nowhere => None,
            },
            State::Running(Contact { age: Age::Fresh, .. }) if !self.target_is_silent => {
                Some(Step::Wait(self.candidates.next_due()))
            }
            _ => None,
        }
    }

    fn target_is_running(&self) -> bool {
        let target = self.candidates.at(&Distance::ZERO).filter(|_| self.goal == Goal::Node);
        target.is_some_and(|target| target.contact().is_some())
    }

    /// Returns the bit to invert if the other side of the edge of the window is to be asked for.
    fn edge(&self, config: &SearchConfig, window: &Window) -> Option<u32> {
        let bit = shared_bits(&window.last?);
        if window.silent < SILENT || bit > 255 {
            return None;
        }
        let asked = self.edges.iter().filter(|(edge, distance)| {
            let candidate = self.candidates.at(distance).filter(|_| *edge == bit);
            candidate.is_some_and(|candidate| {
                candidate.edge == Some(bit)
                    && match candidate.state() {
                        State::Answered => !candidate.lied,
                        State::Running(contact) => contact.age != Age::Gone,
                        _ => false,
                    }
            })
        });
        // Where no node is dead, two contacts are often late.
        let wanted = config.edge.min(window.for_silent(config));
        (asked.count() < wanted as usize).then_some(bit)
    }

    /// Returns the farthest contact of the window that answered, is still connected, and was not
    /// asked for this edge: it knows the nodes there, and is known to be alive.
    fn ask_again(
        &self,
        bit: u32,
        window: &Window,
        way: &impl Fn(&Candidate) -> Way,
    ) -> Option<Distance> {
        let mut answered = self.candidates.vouched_within(window.last?).rev();
        let again = answered.find(|(_, candidate)| {
            matches!(candidate.state(), State::Answered)
                && candidate.edge != Some(bit)
                && way(candidate) == Way::Now(Cost::Connected)
        });
        again.map(|(distance, _)| *distance)
    }

    /// Returns how many candidates beyond the window are to be contacted because of doubt.
    fn doubt(&self, config: &SearchConfig, wide: bool, window: &Window) -> u32 {
        let certain = match self.goal {
            Goal::Node => config.doubt_find,
            Goal::Closest => config.doubt_closest,
        };
        let reach = window.reach.map(|distance| leading(&distance));
        let is_sparse = |(reach, own): (u64, u64)| {
            u128::from(reach) * 100 > u128::from(own) * u128::from(config.sparse)
        };
        let sparse = wide && reach.zip(self.neighborhood).is_some_and(is_sparse);
        certain
            + config.doubt_lie * self.lies.min(LIES)
            + if sparse { config.doubt_sparse } else { 0 }
    }

    /// Returns the next candidate beyond the window, the nearest or the one whose turn it is.
    fn beyond(
        &mut self,
        turn: bool,
        way: &impl Fn(&Candidate) -> Way,
    ) -> Result<Option<Distance>, Way> {
        loop {
            let tellers = &self.candidates.tellers;
            let next = if turn { tellers.next_in_turn() } else { tellers.nearest() };
            let Some(distance) = next else { return Ok(None) };
            match self.candidates.at(&distance).map_or(Way::Nowhere, way) {
                Way::Now(_) => return Ok(Some(distance)),
                Way::Nowhere => drop(self.candidates.set(distance, State::Failed)),
                way => return Err(way),
            }
        }
    }

    /// Returns how long the silent contacts of the window are waited for.
    fn patience(&self, config: &SearchConfig, now: Instant, window: &Window) -> Patience {
        let [connected, dialed] = window.since;
        let silent = if self.own { window.silent.max(SILENT) } else { window.silent };
        // 1.25 times the slowest tenth: a contact that is later than that is reached all the same.
        let percent = if self.own { config.patience * 9 / 20 } else { config.patience };
        let of = |since: Option<Instant>, reach| match since {
            None => Patience::Over,
            Some(since) => match self.times.patience(reach, silent, percent) {
                None => Patience::UntilItFails,
                Some(patience) if now < since + patience => Patience::Until(since + patience),
                Some(_) => Patience::Over,
            },
        };
        of(connected, Reach::Connected).max(of(dialed, Reach::Dialed))
    }

    fn contact(&mut self, distance: Distance, edge: Option<u32>, extra: bool) -> Step {
        match self.candidates.at(&distance).map(|candidate| candidate.node) {
            Some(node) => Step::Contact { node, edge, extra },
            None => Step::End { limited: false },
        }
    }

    /// A contact starts; `step` is its place in the trace.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        (node, reach): (&NodeId, Reach),
        (edge, extra): (Option<u32>, bool),
        step: usize,
    ) {
        let distance = self.target.distance(node);
        let Some(candidate) = self.candidates.get_mut(node) else { return };
        let teller = candidate.teller;
        candidate.edge = edge.or(candidate.edge);
        if let Some(edge) = edge {
            self.edges.push((edge, distance));
        }
        self.candidates.tellers.contacted(teller);
        let due = now + self.times.median(reach, self.hedge);
        let contact =
            Contact { step, since: now, reach, extra, age: Age::Fresh, due, stage: Stage::Dialing };
        self.candidates.set(distance, State::Running(contact));
    }

    /// A contact is connected after a dial, and is being asked; `early`: before it has accepted the
    /// connection.
    pub(super) fn connected(&mut self, now: Instant, node: &NodeId, early: bool) {
        let Self { candidates, times, hedge, .. } = self;
        let Some(contact) = candidates.get(node).and_then(Candidate::contact) else { return };
        if contact.reach == Reach::Dialed && times.connected_after(now.since(contact.since), early)
        {
            candidates.rejuvenate(|reach, _| times.median(reach, *hedge));
        }
    }

    /// Returns how long a contact has been silent, in percent of the median.
    pub(super) fn silence(&self, now: Instant, contact: &Contact) -> u32 {
        self.times.percent(contact.reach, now.since(contact.since))
    }

    /// Returns the target of the request to a contact.
    pub(super) fn query(&self, node: &NodeId) -> NodeId {
        let edge = self.candidates.get(node).and_then(|candidate| candidate.edge);
        edge.map_or(self.target, |bit| inverted(&self.target, bit))
    }

    /// A contact answered with nodes: `known` from its graph, `connected` from its connections.
    /// Each list is judged alone, because only the first has to be even. Calls `on_added` for each
    /// node. Returns the contact, and whether the response is implausible.
    pub(super) fn answered(
        &mut self,
        config: &SearchConfig,
        now: Instant,
        node: &NodeId,
        address: NodeAddress,
        lists: [Vec<Report>; 2],
        mut on_added: impl FnMut(NodeId, Inserted),
    ) -> Option<(Contact, bool)> {
        let queried = self.query(node);
        let candidate = self.candidates.get_mut(node)?;
        candidate.answered_at.get_or_insert(address);
        let contact = self.candidates.set(self.target.distance(node), State::Answered)?;
        let Self { candidates, times, hedge, .. } = self;
        if times.add(contact.reach, now.since(contact.since)) {
            candidates.rejuvenate(|reach, _| times.median(reach, *hedge));
        }
        let mut news = Vec::new();
        let mut lied = false;
        for (list, is_known) in lists.into_iter().zip([true, false]) {
            let ids = list.iter().map(|report| &report.node);
            let bad = is_implausible(node, &queried, ids, config.plausible);
            lied |= bad && is_known;
            for report in list {
                let (id, is_target) = (report.node, report.node == self.target);
                let vouched = !bad || is_target && self.goal == Goal::Node;
                let (inserted, is_news) = self.candidates.add(Report { vouched, ..report });
                if is_news {
                    news.push(self.target.distance(&id));
                }
                on_added(id, inserted);
            }
        }
        if let Some(candidate) = self.candidates.get_mut(node) {
            candidate.lied = lied;
        }
        if lied {
            self.lies = self.lies.saturating_add(1);
        } else {
            let kth = self.candidates.vouched().nth(self.k - 1).map(|(distance, _)| *distance);
            let nearer = |distance: &Distance| kth.is_none_or(|kth| *distance <= kth);
            if news.iter().any(nearer) {
                self.quiet = 0;
            } else if queried == self.target {
                self.quiet = self.quiet.saturating_add(1);
            }
        }
        Some((contact, lied))
    }

    /// Returns the nodes that answered and where, the nearest first.
    pub(super) fn closest(&self) -> Vec<(NodeId, NodeAddress)> {
        let mut closest: Vec<_> = self
            .candidates
            .iter()
            .filter_map(|(distance, candidate)| {
                Some((*distance, candidate.node, candidate.answered_at.clone()?))
            })
            .collect();
        closest.sort_unstable_by_key(|(distance, ..)| *distance);
        closest.truncate(self.k);
        closest.into_iter().map(|(_, node, address)| (node, address)).collect()
    }
}

/// Returns the first 64 bits of a distance.
fn leading(distance: &Distance) -> u64 {
    let (first, _) = distance.as_bytes().as_chunks::<8>();
    first.first().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Returns an id with one bit inverted, counted from the first.
fn inverted(id: &NodeId, bit: u32) -> NodeId {
    let mut bytes = *id.as_bytes();
    if let Some(byte) = bytes.get_mut(bit as usize / 8) {
        *byte ^= 0x80 >> (bit % 8);
    }
    NodeId::from_bytes(bytes)
}
