//! One search: which contact is next, and when it is over (DESIGN section 5, find-node).
//!
//! A search walks candidates in the order of their distance to the target. Contacting one means connecting to it, where
//! there is no live connection, and asking it for the nodes it knows closest to the target. It needs no answer from a
//! candidate beyond the `k` closest that have not failed: if those know nobody closer, nobody does.
//!
//! A contact that is silent for `find_stall_delay` keeps its place but no longer holds back the next one, so that dead
//! nodes cost a search half a second, not fifteen; its late answer still counts.

mod candidates;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use self::candidates::{Candidates, News};
use crate::address::NodeAddress;
use crate::connect::{Goal, Learnt};
use crate::cx::Cx;
use crate::graph::NodeContact;
use crate::id::{BucketIndex, ConnectionId, EffectId, NodeId, RequestId, StreamId};
use crate::io::DialFailure;
use crate::request::{Closest, FindEnd, FindNode, FindOutcome, FindStats, FindStep, FindStepEnd, Options, Strategies};
use crate::time::Instant;
use crate::timers::Timer;

/// What a search does next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Ask this connected node.
    Ask { node: NodeId, conn: ConnectionId },
    /// Connect to this node, or try these ways too.
    Dial(Goal),
    /// Nothing until a contact ends or stalls.
    Wait,
    /// The search is over.
    End(FindEnd),
}

/// One search under way.
#[derive(Debug)]
pub(crate) struct Lookup {
    id: RequestId,
    target: NodeId,
    begun: Instant,
    concurrency: usize,
    limit: u32,
    connect_timeout: Duration,
    strategies: Strategies,
    /// Kademlia's k: how many of the closest candidates have to answer.
    closest: usize,
    candidates: Candidates,
    /// Contacts that are being dialled and have new addresses.
    moved: BTreeSet<NodeId>,
    /// Addresses of one node that one answer may add, so that a liar leaves room for the truth.
    told_limit: usize,
    /// Questions under way, and to whom.
    calls: BTreeMap<StreamId, NodeId>,
    /// Contacts under way that hold back the next one.
    busy: usize,
    /// Contacts under way, stalled or not.
    running: usize,
    /// The local network is being asked.
    browse: Option<EffectId>,
    /// Attempts that the limit did not allow.
    limited: bool,
    stats: FindStats,
    trace: Vec<FindStep>,
}

/// What it takes to ask a candidate, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// A question on a live connection.
    Connected,
    /// A node that we are connected with is connected with it now, and can signal.
    Signalled,
    /// A dial of addresses where it was once.
    Dialled,
}

/// Where a candidate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not contacted, or not since it got new addresses.
    Known,
    /// Being dialled or asked.
    Running { step: usize, stalled: bool },
    /// Answered, or connected without a proper answer.
    Done,
    /// No connection.
    Failed,
}

impl Lookup {
    /// A search that begins now, with nothing to go by yet.
    pub(crate) fn new(cx: &Cx, id: RequestId, target: NodeId, find: &FindNode) -> Self {
        Self {
            id,
            target,
            begun: cx.now,
            concurrency: find.concurrency.unwrap_or(cx.config.find_concurrency),
            limit: u32::try_from(find.limit.unwrap_or(cx.config.find_limit)).unwrap_or(u32::MAX),
            connect_timeout: find.options.connect_timeout.unwrap_or(cx.config.connect_timeout),
            strategies: find.strategies.unwrap_or_default(),
            closest: cx.config.bucket_limit,
            candidates: Candidates::new(target, cx.config.find_candidate_limit, cx.config.dial_address_limit),
            moved: BTreeSet::new(),
            told_limit: cx.config.dial_address_limit.div_ceil(2),
            calls: BTreeMap::new(),
            busy: 0,
            running: 0,
            browse: None,
            limited: false,
            stats: FindStats::default(),
            trace: Vec::new(),
        }
    }

    /// Whom it looks for.
    pub(crate) fn target(&self) -> &NodeId {
        &self.target
    }

    /// Its limits, for a search that takes its place.
    pub(crate) fn limits(&self) -> FindNode {
        FindNode {
            concurrency: Some(self.concurrency),
            strategies: Some(self.strategies),
            mdns_timeout: None,
            limit: usize::try_from(self.limit).ok(),
            options: Options { deadline: None, connect_timeout: Some(self.connect_timeout) },
        }
    }

    /// How long each dial may take.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// A candidate that we know of ourselves, from the graph or by a live connection.
    pub(crate) fn offer(&mut self, node: NodeId, contact: Option<&NodeContact>) {
        let known = contact.into_iter().flat_map(NodeContact::iter);
        self.learn(node, None, known.map(|(address, data)| (address.clone(), Learnt::known(data))), None);
    }

    /// What to do next; call again until it says `Wait` or `End`.
    pub(crate) fn next(&mut self, cx: &mut Cx, primary: impl Fn(&NodeId) -> Option<ConnectionId>) -> Next {
        if primary(&self.target).is_some() {
            return Next::End(FindEnd::Connected);
        }
        while let Some(node) = self.moved.pop_first() {
            if self.is_dialling(&node) {
                return self.dial(node, primary);
            }
        }
        if self.busy >= self.concurrency {
            return Next::Wait;
        }
        self.limited = false;
        // Of candidates that are about as close (in one bucket of the target), the one that costs least is first.
        let mut choice: Option<((BucketIndex, Cost), NodeId, Option<ConnectionId>)> = None;
        for (node, candidate) in self.candidates.closest(self.closest) {
            let class = self.target.bucket_index(&node).unwrap_or(BucketIndex(0));
            if choice.as_ref().is_some_and(|((best, cost), ..)| class > *best || *cost == Cost::Connected) {
                break;
            }
            if candidate.state != State::Known {
                continue;
            }
            let conn = primary(&node);
            let direct = self.strategies.direct && !candidate.addresses.is_empty();
            let signal = self.strategies.signal && candidate.relays.iter().any(|relay| primary(relay).is_some());
            let cost = match (conn, signal, direct) {
                // A live connection is free.
                (Some(_), ..) => Cost::Connected,
                (None, true, _) => Cost::Signalled,
                (None, false, true) => Cost::Dialled,
                (None, false, false) => continue,
            };
            if cost != Cost::Connected && self.stats.attempts >= self.limit {
                self.limited = true;
            } else if choice.as_ref().is_none_or(|(best, ..)| (class, cost) < *best) {
                choice = Some(((class, cost), node, conn));
            }
        }
        match choice.map(|(_, node, conn)| (node, conn)) {
            Some((node, Some(conn))) => {
                self.begin(cx, node);
                Next::Ask { node, conn }
            }
            Some((node, None)) => {
                self.begin(cx, node);
                self.stats.attempts += 1;
                self.dial(node, primary)
            }
            None if self.running > 0 || self.browse.is_some() => Next::Wait,
            None if self.limited => Next::End(FindEnd::Limit),
            None => Next::End(FindEnd::Exhausted),
        }
    }

    /// The effect that asks the local network.
    pub(crate) fn browse(&self) -> Option<EffectId> {
        self.browse
    }

    pub(crate) fn set_browse(&mut self, browse: Option<EffectId>) {
        self.browse = browse;
    }

    /// The local network says where the target is: what to dial.
    pub(crate) fn discovered(&mut self, cx: &mut Cx, addresses: Vec<NodeAddress>) -> Goal {
        let target = self.target;
        self.offer(target, None);
        if !self.is_dialling(&target) {
            self.begin(cx, target);
            self.stats.attempts += 1;
        }
        Goal::at(target, addresses, Learnt::LOCAL, self.connect_timeout)
    }

    /// The question to a contact is on its way.
    pub(crate) fn asked(&mut self, node: NodeId, stream: StreamId) {
        self.stats.calls += 1;
        self.calls.insert(stream, node);
    }

    /// Whether a contact is being dialled, and not asked yet.
    pub(crate) fn is_dialling(&self, node: &NodeId) -> bool {
        let state = self.candidates.get(node).map(|candidate| candidate.state);
        matches!(state, Some(State::Running { .. })) && !self.calls.values().any(|asked| asked == node)
    }

    /// A dial ended without a connection.
    pub(crate) fn dial_failed(&mut self, cx: &mut Cx, node: &NodeId, failures: Vec<(NodeAddress, DialFailure)>) {
        if self.is_dialling(node) {
            self.stats.failures += 1;
            self.end_step(cx, node, State::Failed, FindStepEnd::Unreachable(failures));
        }
    }

    /// A contact, seen at `teller`, told of nodes. Those that cannot be used are counted and left out. A node that it is
    /// connected to can be reached through it.
    pub(crate) fn answered(&mut self, cx: &mut Cx, stream: StreamId, closest: Closest, teller: Option<&NodeAddress>) {
        let Some(node) = self.calls.remove(&stream) else { return };
        let told = closest.local.len() + closest.active.len();
        let before = self.stats.candidates;
        // Connections first: where somebody is counts for more than where it was.
        let mut candidates: BTreeMap<NodeId, (Vec<NodeAddress>, Option<NodeId>)> = BTreeMap::new();
        for active in closest.active {
            let (addresses, relay) = candidates.entry(active.node).or_default();
            addresses.extend(active.connections.into_iter().map(|connection| connection.address));
            *relay = Some(node);
        }
        for (id, contact) in closest.local {
            let (addresses, _) = candidates.entry(id).or_default();
            addresses.extend(contact.iter().map(|(address, _)| address.clone()));
        }
        for (id, (told, relay)) in candidates {
            let mut kept = Vec::new();
            for address in told {
                if !cx.believes(&address, teller) || kept.len() >= self.told_limit {
                    cx.metrics.told_unusable += 1;
                } else if !kept.contains(&address) {
                    kept.push(address);
                }
            }
            if cx.is_own(&id) || (kept.is_empty() && relay.is_none()) {
                cx.metrics.told_unusable += 1;
            } else {
                self.learn(id, Some(node), kept.into_iter().map(|address| (address, Learnt::DIRECT)), relay);
            }
        }
        let new = self.stats.candidates - before;
        let told = u32::try_from(told).unwrap_or(u32::MAX);
        self.end_step(cx, &node, State::Done, FindStepEnd::Answered { told, new });
    }

    /// A contact was asked, but no proper answer came.
    pub(crate) fn not_answered(&mut self, cx: &mut Cx, stream: StreamId) {
        if let Some(node) = self.calls.remove(&stream) {
            self.not_asked(cx, &node);
        }
    }

    /// The connection with a contact ended before its answer came. It may have been dead when the question was asked, which
    /// says nothing about the node: it gets another chance, once.
    pub(crate) fn lost(&mut self, cx: &mut Cx, stream: StreamId) {
        let Some(node) = self.calls.remove(&stream) else { return };
        let again = self.candidates.get_mut(&node).is_some_and(|known| !core::mem::replace(&mut known.was_lost, true));
        let state = if again { State::Known } else { State::Done };
        self.end_step(cx, &node, state, FindStepEnd::NoAnswer);
    }

    /// A contact was connected, but could not be asked any more.
    pub(crate) fn not_asked(&mut self, cx: &mut Cx, node: &NodeId) {
        self.end_step(cx, node, State::Done, FindStepEnd::NoAnswer);
    }

    /// A contact has been silent: the next one may start beside it.
    pub(crate) fn stalled(&mut self, node: &NodeId) {
        if let Some(candidate) = self.candidates.get_mut(node)
            && let State::Running { stalled: stalled @ false, .. } = &mut candidate.state
        {
            *stalled = true;
            self.busy = self.busy.saturating_sub(1);
        }
    }

    /// Why the dials to the target failed, if it was dialled.
    pub(crate) fn target_failures(&self) -> Vec<(NodeAddress, DialFailure)> {
        let step = self.trace.iter().rev().find(|step| step.node == self.target).map(|step| &step.end);
        match step {
            Some(FindStepEnd::Unreachable(failures)) => failures.clone(),
            _ => Vec::new(),
        }
    }

    /// Streams of questions that are under way.
    pub(crate) fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.calls.keys().copied()
    }

    /// The end: disarms the timers and says what came of it.
    pub(crate) fn finish(mut self, cx: &mut Cx, ended: FindEnd) -> FindOutcome {
        let running: Vec<_> = self
            .candidates
            .iter()
            .filter_map(|(node, candidate)| match candidate.state {
                State::Running { step, .. } => Some((node, step)),
                _ => None,
            })
            .collect();
        for (node, step) in running {
            cx.timers.cancel(Timer::Stall(self.id, node));
            if let Some(step) = self.trace.get_mut(step) {
                step.took = cx.now.since(self.begun + step.begun);
                if node == self.target && ended == FindEnd::Connected {
                    step.end = FindStepEnd::Target;
                }
            }
        }
        self.stats.elapsed = cx.now.since(self.begun);
        FindOutcome { found: None, ended, stats: self.stats, trace: self.trace }
    }

    fn learn(
        &mut self,
        node: NodeId,
        told_by: Option<NodeId>,
        addresses: impl IntoIterator<Item = (NodeAddress, Learnt)>,
        relay: Option<NodeId>,
    ) {
        match self.candidates.add(node, told_by, addresses, relay) {
            News::Node => self.stats.candidates += 1,
            // One that fails before its turn comes is known again by then.
            News::Way if self.is_dialling(&node) => drop(self.moved.insert(node)),
            News::Way | News::None => {}
        }
    }

    fn dial(&self, node: NodeId, primary: impl Fn(&NodeId) -> Option<ConnectionId>) -> Next {
        let mut goal = Goal::at(node, [], Learnt::DIRECT, self.connect_timeout);
        if let Some(candidate) = self.candidates.get(&node) {
            if self.strategies.direct {
                goal.addresses.clone_from(&candidate.addresses);
            }
            if self.strategies.signal {
                goal.relays = candidate.relays.iter().filter(|relay| primary(relay).is_some()).copied().collect();
            }
        }
        Next::Dial(goal)
    }

    fn begin(&mut self, cx: &mut Cx, node: NodeId) {
        let Some(candidate) = self.candidates.get_mut(&node) else { return };
        candidate.state = State::Running { step: self.trace.len(), stalled: false };
        self.trace.push(FindStep {
            node,
            told_by: candidate.told_by,
            begun: cx.now.since(self.begun),
            took: Duration::ZERO,
            end: FindStepEnd::Pending,
        });
        self.busy += 1;
        self.running += 1;
        cx.timers.set(Timer::Stall(self.id, node), cx.now + cx.config.find_stall_delay);
    }

    fn end_step(&mut self, cx: &mut Cx, node: &NodeId, state: State, end: FindStepEnd) {
        let Some(candidate) = self.candidates.get_mut(node) else { return };
        let State::Running { step, stalled, .. } = candidate.state else { return };
        candidate.state = state;
        cx.timers.cancel(Timer::Stall(self.id, *node));
        self.running = self.running.saturating_sub(1);
        if !stalled {
            self.busy = self.busy.saturating_sub(1);
        }
        if let Some(step) = self.trace.get_mut(step) {
            step.took = cx.now.since(self.begun + step.begun);
            step.end = end;
        }
    }
}
