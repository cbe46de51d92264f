//! One search: the next contact, and the end condition (docs/DESIGN.md, Searches).
//!
//! A search visits candidates in the order of their distance to the target. Contacting a candidate
//! means connecting to it, unless there is a live connection, and requesting its contacts closest
//! to the target. No answer is needed from candidates beyond the `k` closest that have not failed:
//! if those know no closer node, the search is complete.
//!
//! A contact that is silent for `find_stall_delay` continues but no longer delays the next one, so
//! that a dead node costs a search half a second and not fifteen; its late answer still counts.

mod candidates;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use self::candidates::{Candidates, Inserted, State};
use crate::api::request::{FindNodeOptions, RequestOptions, Strategies};
use crate::api::search::{FindEnd, FindOutcome, FindStats, FindStep, FindStepEnd};
use crate::api::transport::DialFailure;
use crate::machine::cx::Cx;
use crate::machine::dial::{AddressOrigin, DialTarget};
use crate::machine::timer::Timer;
use crate::types::address::NodeAddress;
use crate::types::contact::NodeContact;
use crate::types::id::{BucketIndex, ConnectionId, EffectId, NodeId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::closest::ClosestNodes;

/// Next action of a search.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send a request to this connected node.
    Ask { node: NodeId, conn: ConnectionId },
    /// Connect to this node, or try further addresses.
    Dial(DialTarget),
    /// Wait until a contact ends or stalls.
    Wait,
    /// The search is over.
    End(FindEnd),
}

/// A search in progress.
#[derive(Debug)]
pub(crate) struct Lookup {
    id: RequestId,
    target: NodeId,
    begun: Instant,
    concurrency: usize,
    limit: u32,
    connect_timeout: Duration,
    strategies: Strategies,
    /// Kademlia's k: the number of closest candidates that must answer.
    closest: usize,
    candidates: Candidates,
    /// Contacts that are being dialed and have new addresses.
    moved: BTreeSet<NodeId>,
    /// Addresses of one node that one answer may add, so that a false answer leaves room for
    /// correct ones.
    reported_address_limit: usize,
    /// Calls in progress, with their nodes.
    calls: BTreeMap<StreamId, NodeId>,
    /// Running contacts that delay the next one.
    busy: usize,
    /// Running contacts, stalled or not.
    running: usize,
    /// The mDNS query in progress.
    browse: Option<EffectId>,
    /// Whether the limit has prevented an attempt.
    limited: bool,
    stats: FindStats,
    trace: Vec<FindStep>,
}

/// Cost of contacting a candidate, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// A call on a live connection.
    Connected,
    /// A connected node is connected to it and can signal.
    Signalled,
    /// A dial of stored or reported addresses.
    Dialed,
}

impl Lookup {
    /// Creates a search without candidates.
    pub(crate) fn new(cx: &Cx, id: RequestId, target: NodeId, find: &FindNodeOptions) -> Self {
        Self {
            id,
            target,
            begun: cx.now,
            concurrency: find.concurrency.unwrap_or(cx.config.find_concurrency),
            limit: u32::try_from(find.limit.unwrap_or(cx.config.find_limit)).unwrap_or(u32::MAX),
            connect_timeout: find.options.connect_timeout.unwrap_or(cx.config.connect_timeout),
            strategies: find.strategies.unwrap_or_default(),
            closest: cx.config.bucket_limit,
            candidates: Candidates::new(
                target,
                cx.config.find_candidate_limit,
                cx.config.dial_address_limit,
            ),
            moved: BTreeSet::new(),
            reported_address_limit: cx.config.dial_address_limit.div_ceil(2),
            calls: BTreeMap::new(),
            busy: 0,
            running: 0,
            browse: None,
            limited: false,
            stats: FindStats::default(),
            trace: Vec::new(),
        }
    }

    /// Returns the target.
    pub(crate) fn target(&self) -> &NodeId {
        &self.target
    }

    /// Returns the limits, for a search that replaces this one.
    pub(crate) fn limits(&self) -> FindNodeOptions {
        FindNodeOptions {
            concurrency: Some(self.concurrency),
            strategies: Some(self.strategies),
            mdns_timeout: None,
            limit: usize::try_from(self.limit).ok(),
            options: RequestOptions { deadline: None, connect_timeout: Some(self.connect_timeout) },
        }
    }

    /// Returns the time limit of each dial.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Adds a candidate of the local node, from the graph or a live connection.
    pub(crate) fn offer(&mut self, node: NodeId, contact: Option<&NodeContact>) {
        let known = contact.into_iter().flat_map(NodeContact::iter);
        self.learn(
            node,
            None,
            known.map(|(address, data)| (address.clone(), AddressOrigin::known(data))),
            None,
        );
    }

    /// Adds the addresses of suspected connections with a node.
    pub(crate) fn offer_at(
        &mut self,
        node: NodeId,
        addresses: impl Iterator<Item = (NodeAddress, AddressOrigin)>,
    ) {
        let mut addresses = addresses.peekable();
        if addresses.peek().is_some() {
            self.learn(node, None, addresses, None);
        }
    }

    /// Returns the next action; call it again until it returns `Wait` or `End`. `primary` returns
    /// the live connection with a node.
    pub(crate) fn next(
        &mut self,
        cx: &mut Cx,
        primary: impl Fn(&NodeId) -> Option<ConnectionId>,
    ) -> Next {
        if primary(&self.target).is_some() {
            return Next::End(FindEnd::Connected);
        }
        while let Some(node) = self.moved.pop_first() {
            if self.is_dialing(&node) {
                return self.dial(node, primary);
            }
        }
        if self.busy >= self.concurrency {
            return Next::Wait;
        }
        self.limited = false;
        // Of candidates in one bucket of the target, the one with the least cost comes first.
        let mut choice: Option<((BucketIndex, Cost), NodeId, Option<ConnectionId>)> = None;
        for (node, candidate) in self.candidates.closest(self.closest) {
            let class = self.target.bucket_index(&node).unwrap_or(BucketIndex(0));
            if choice
                .as_ref()
                .is_some_and(|((best, cost), ..)| class > *best || *cost == Cost::Connected)
            {
                break;
            }
            if candidate.state != State::Known {
                continue;
            }
            let conn = primary(&node);
            let direct = self.strategies.direct && !candidate.addresses.is_empty();
            let signal = self.strategies.signal
                && candidate.relays.iter().any(|relay| primary(relay).is_some());
            let cost = match (conn, signal, direct) {
                // A live connection costs no attempt.
                (Some(_), ..) => Cost::Connected,
                (None, true, _) => Cost::Signalled,
                (None, false, true) => Cost::Dialed,
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

    /// Returns the effect of the mDNS query.
    pub(crate) fn browse(&self) -> Option<EffectId> {
        self.browse
    }

    pub(crate) fn set_browse(&mut self, browse: Option<EffectId>) {
        self.browse = browse;
    }

    /// Handles addresses of the target found by mDNS. Returns what to dial.
    pub(crate) fn discovered(&mut self, cx: &mut Cx, addresses: Vec<NodeAddress>) -> DialTarget {
        let target = self.target;
        self.offer(target, None);
        if !self.is_dialing(&target) {
            self.begin(cx, target);
            self.stats.attempts += 1;
        }
        DialTarget::at(target, addresses, AddressOrigin::LOCAL, self.connect_timeout)
    }

    /// The call to a contact was sent.
    pub(crate) fn asked(&mut self, node: NodeId, stream: StreamId) {
        self.stats.calls += 1;
        self.calls.insert(stream, node);
    }

    /// Returns whether a contact is being dialed, and not asked yet.
    pub(crate) fn is_dialing(&self, node: &NodeId) -> bool {
        let state = self.candidates.get(node).map(|candidate| candidate.state);
        matches!(state, Some(State::Running { .. }))
            && !self.calls.values().any(|asked| asked == node)
    }

    /// A dial failed.
    pub(crate) fn dial_failed(
        &mut self,
        cx: &mut Cx,
        node: &NodeId,
        failures: Vec<(NodeAddress, DialFailure)>,
    ) {
        if self.is_dialing(node) {
            self.stats.failures += 1;
            self.end_step(cx, node, State::Failed, FindStepEnd::Unreachable(failures));
        }
    }

    /// A contact, whose own address is `teller`, reported nodes. Unusable ones are counted and
    /// skipped. A node that it is connected to can be reached through it.
    pub(crate) fn answered(
        &mut self,
        cx: &mut Cx,
        stream: StreamId,
        closest: ClosestNodes,
        teller: Option<&NodeAddress>,
    ) {
        let Some(node) = self.calls.remove(&stream) else { return };
        let reported = closest.known.len() + closest.connected.len();
        let before = self.stats.candidates;
        // Connections first: the present address of a node counts more than a former one.
        let mut candidates: BTreeMap<NodeId, (Vec<NodeAddress>, Option<NodeId>)> = BTreeMap::new();
        for active in closest.connected {
            let (addresses, relay) = candidates.entry(active.node).or_default();
            addresses.extend(active.connections.into_iter().map(|connection| connection.address));
            *relay = Some(node);
        }
        for (id, contact) in closest.known {
            let (addresses, _) = candidates.entry(id).or_default();
            addresses.extend(contact.iter().map(|(address, _)| address.clone()));
        }
        for (id, (reported, relay)) in candidates {
            let mut kept = Vec::new();
            for address in reported {
                if !cx.accepts_address(&address, teller)
                    || kept.len() >= self.reported_address_limit
                {
                    cx.metrics.told_unusable += 1;
                } else if !kept.contains(&address) {
                    kept.push(address);
                }
            }
            if cx.is_own(&id) || (kept.is_empty() && relay.is_none()) {
                cx.metrics.told_unusable += 1;
            } else {
                self.learn(
                    id,
                    Some(node),
                    kept.into_iter().map(|address| (address, AddressOrigin::DIRECT)),
                    relay,
                );
            }
        }
        let new = self.stats.candidates - before;
        let reported = u32::try_from(reported).unwrap_or(u32::MAX);
        self.end_step(cx, &node, State::Done, FindStepEnd::Answered { reported, new });
    }

    /// A contact was asked, but sent no valid answer.
    pub(crate) fn not_answered(&mut self, cx: &mut Cx, stream: StreamId) {
        if let Some(node) = self.calls.remove(&stream) {
            self.not_asked(cx, &node);
        }
    }

    /// The connection with a contact ended before its answer, or is suspected. It may have been
    /// dead when the call was sent, which is independent of the node: the contact is retried once.
    pub(crate) fn lost(&mut self, cx: &mut Cx, stream: StreamId) {
        let Some(node) = self.calls.remove(&stream) else { return };
        let again = self
            .candidates
            .get_mut(&node)
            .is_some_and(|known| !core::mem::replace(&mut known.was_lost, true));
        let state = if again { State::Known } else { State::Done };
        self.end_step(cx, &node, state, FindStepEnd::NoAnswer);
    }

    /// A contact was connected, but could not be asked.
    pub(crate) fn not_asked(&mut self, cx: &mut Cx, node: &NodeId) {
        self.end_step(cx, node, State::Done, FindStepEnd::NoAnswer);
    }

    /// A contact has been silent: the next one may start in parallel.
    pub(crate) fn stalled(&mut self, node: &NodeId) {
        if let Some(candidate) = self.candidates.get_mut(node)
            && let State::Running { stalled: stalled @ false, .. } = &mut candidate.state
        {
            *stalled = true;
            self.busy = self.busy.saturating_sub(1);
        }
    }

    /// Returns why the dials to the target failed, if it was dialed.
    pub(crate) fn target_failures(&self) -> Vec<(NodeAddress, DialFailure)> {
        let step =
            self.trace.iter().rev().find(|step| step.node == self.target).map(|step| &step.end);
        match step {
            Some(FindStepEnd::Unreachable(failures)) => failures.clone(),
            _ => Vec::new(),
        }
    }

    /// Returns the streams of calls in progress.
    pub(crate) fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.calls.keys().copied()
    }

    /// Ends the search: cancels its timers and returns the result.
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
        reported_by: Option<NodeId>,
        addresses: impl IntoIterator<Item = (NodeAddress, AddressOrigin)>,
        relay: Option<NodeId>,
    ) {
        match self.candidates.add(node, reported_by, addresses, relay) {
            Inserted::Candidate => self.stats.candidates += 1,
            // A contact that fails before its turn is `Known` again by then.
            Inserted::Route if self.is_dialing(&node) => drop(self.moved.insert(node)),
            Inserted::Route | Inserted::Nothing => {}
        }
    }

    fn dial(&self, node: NodeId, primary: impl Fn(&NodeId) -> Option<ConnectionId>) -> Next {
        let mut dial_target = DialTarget::at(node, [], AddressOrigin::DIRECT, self.connect_timeout);
        if let Some(candidate) = self.candidates.get(&node) {
            if self.strategies.direct {
                dial_target.addresses.clone_from(&candidate.addresses);
            }
            if self.strategies.signal {
                dial_target.relays = candidate
                    .relays
                    .iter()
                    .filter(|relay| primary(relay).is_some())
                    .copied()
                    .collect();
            }
        }
        Next::Dial(dial_target)
    }

    fn begin(&mut self, cx: &mut Cx, node: NodeId) {
        let Some(candidate) = self.candidates.get_mut(&node) else { return };
        candidate.state = State::Running { step: self.trace.len(), stalled: false };
        self.trace.push(FindStep {
            node,
            reported_by: candidate.reported_by,
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
