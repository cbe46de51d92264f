//! One search: what it dials and asks, its limits, its statistics and trace. The decisions are in
//! [`walk`] (docs/DESIGN.md, Searches).
//!
//! Contacting a candidate means connecting to it, unless there is a live connection, and requesting
//! its contacts closest to the target. The time of a contact begins with its dial. A contact that
//! is silent for too long continues, but delays nothing; its late answer still counts.

mod call_result;
mod calls;
mod candidates;
mod evidence;
mod tellers;
#[cfg(test)]
mod tests;
mod walk;
mod way;
mod window;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

pub(crate) use self::call_result::{Accepted, Unanswered};
use self::candidates::{Age, Candidate, Candidates, Contact, Inserted, Report, Stage, State};
pub(crate) use self::walk::Goal;
use self::walk::{Step, Walk};
use self::way::{Cost, Way};
use crate::api::request::{FindNodeOptions, RequestOptions, Strategies};
use crate::api::search::{FindEnd, FindOutcome, FindStats, FindStep, FindStepEnd};
use crate::api::transport::DialFailure;
use crate::machine::cx::Cx;
use crate::machine::dial::{AddressOrigin, DialTarget};
use crate::machine::experience::Reach;
use crate::machine::timer::Timer;
use crate::types::address::NodeAddress;
use crate::types::contact::NodeContact;
use crate::types::id::{ConnectionId, Distance, EffectId, NodeId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::closest::ClosestNodes;

/// Next action of a search.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send a request for the nodes closest to `target` to this connected node.
    Ask { node: NodeId, conn: ConnectionId, target: NodeId },
    /// Connect to this node, or try further addresses.
    Dial(DialTarget),
    /// Stop waiting for the dial of this node, and cancel its call, if there is one.
    Leave { node: NodeId, call: Option<StreamId> },
    /// Cancel this call.
    Cancel(StreamId),
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
    goal: Goal,
    begun: Instant,
    find: FindNodeOptions,
    /// Contacts in progress that were dialed, silent ones included, and contacts that are waited
    /// for.
    concurrency: usize,
    limit: u32,
    connect_timeout: Duration,
    strategies: Strategies,
    walk: Walk,
    /// Contacts that are being dialed and have new addresses.
    moved: BTreeSet<NodeId>,
    /// Addresses of one node that one answer may add, so that a false answer leaves room for
    /// correct ones.
    reported_address_limit: usize,
    /// Calls in progress, with their nodes.
    calls: BTreeMap<StreamId, NodeId>,
    /// The mDNS query in progress.
    browse: Option<EffectId>,
    stats: FindStats,
    trace: Vec<FindStep>,
}

impl Lookup {
    /// Creates a search for `count` nodes without candidates.
    pub(crate) fn new(
        cx: &Cx,
        id: RequestId,
        (target, goal): (NodeId, Goal),
        count: usize,
        find: &FindNodeOptions,
    ) -> Self {
        let candidates = Candidates::new(
            target,
            cx.config.find_candidate_limit.max(count),
            cx.config.dial_address_limit,
        );
        let mut walk =
            Walk::new(&cx.config.search, &cx.experience, (target, goal), count, candidates);
        walk.own = cx.is_own(&target);
        Self {
            id,
            target,
            goal,
            begun: cx.now,
            find: *find,
            concurrency: find.concurrency.unwrap_or(cx.config.find_concurrency),
            limit: u32::try_from(find.limit.unwrap_or(cx.config.find_limit)).unwrap_or(u32::MAX),
            connect_timeout: find.options.connect_timeout.unwrap_or(cx.config.connect_timeout),
            strategies: find.strategies.unwrap_or_default(),
            walk,
            moved: BTreeSet::new(),
            reported_address_limit: cx.config.dial_address_limit.div_ceil(2),
            calls: BTreeMap::new(),
            browse: None,
            stats: FindStats::default(),
            trace: Vec::new(),
        }
    }

    /// Sets the distance of the local node to the farthest of its closest contacts, of which there
    /// are as many as searched nodes.
    pub(crate) fn set_neighborhood(&mut self, neighborhood: Option<Distance>) {
        self.walk.set_neighborhood(neighborhood);
    }

    /// The target may be alive although it does not respond to dials: the search does not wait for
    /// its answer before it contacts others.
    pub(crate) fn target_may_be_hidden(&mut self) {
        self.walk.target_is_silent = true;
    }

    /// Returns the target.
    pub(crate) fn target(&self) -> &NodeId {
        &self.target
    }

    /// Returns whether the search looks for a connection with this node.
    pub(crate) fn is_for(&self, node: &NodeId) -> bool {
        self.goal == Goal::Node && self.target == *node
    }

    /// Returns the limits, for a search that replaces this one.
    pub(crate) fn limits(&self) -> FindNodeOptions {
        let options =
            RequestOptions { deadline: None, connect_timeout: Some(self.connect_timeout) };
        FindNodeOptions { mdns_timeout: None, options, ..self.find }
    }

    /// Returns the time limit of each dial.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Adds a candidate of the local node, from the graph or a live connection. A connected
    /// candidate that could not be reached before is eligible again.
    pub(crate) fn offer(&mut self, node: NodeId, contact: Option<&NodeContact>) {
        let known = contact.into_iter().flat_map(NodeContact::iter);
        let addresses =
            known.map(|(address, data)| (address.clone(), AddressOrigin::known(data))).collect();
        self.learn(Report { node, by: None, vouched: true, addresses, relay: None });
        let failed = |candidate: &Candidate| matches!(candidate.state(), State::Failed);
        if contact.is_none() && self.walk.candidates.get(&node).is_some_and(failed) {
            self.walk.candidates.set(self.target.distance(&node), State::New);
        }
    }

    /// Adds the addresses of suspected connections with a node.
    pub(crate) fn offer_at(
        &mut self,
        node: NodeId,
        addresses: impl Iterator<Item = (NodeAddress, AddressOrigin)>,
    ) {
        let addresses: Vec<_> = addresses.collect();
        if !addresses.is_empty() {
            self.learn(Report { node, by: None, vouched: true, addresses, relay: None });
        }
    }

    /// Returns the next action; call it again until it returns `Wait` or `End`. `primary` returns
    /// the live connection with a node.
    pub(crate) fn next(
        &mut self,
        cx: &mut Cx,
        primary: impl Fn(&NodeId) -> Option<ConnectionId>,
    ) -> Next {
        if self.goal == Goal::Node && primary(&self.target).is_some() {
            return Next::End(FindEnd::Connected);
        }
        while let Some(node) = self.moved.pop_first() {
            if self.is_dialing(&node) {
                return self.dial(node, primary);
            }
        }
        let Self { walk, stats, strategies, limit, concurrency, .. } = self;
        let is_full = walk.candidates.running().dialed >= *concurrency;
        let cap = u32::try_from(*concurrency).unwrap_or(u32::MAX);
        let step = walk.next(&cx.config.search, cx.now, cap, |candidate| {
            // A live connection costs no attempt.
            if primary(&candidate.node).is_some() {
                return Way::Now(Cost::Connected);
            }
            let signal =
                strategies.signal && candidate.relays.iter().any(|relay| primary(relay).is_some());
            let direct = strategies.direct && !candidate.addresses.is_empty();
            match (signal, direct) {
                (false, false) => Way::Nowhere,
                _ if stats.attempts >= *limit => Way::Limited,
                _ if is_full => Way::Later,
                (true, _) => Way::Now(Cost::Signalled),
                (false, true) => Way::Now(Cost::Dialed),
            }
        });
        match step {
            Step::Contact { node, edge, extra } => {
                let conn = primary(&node);
                let reach = if conn.is_some() { Reach::Connected } else { Reach::Dialed };
                self.begin(cx, node, reach, (edge, extra));
                match conn {
                    Some(conn) => Next::Ask { node, conn, target: self.walk.query(&node) },
                    None => {
                        self.stats.attempts += 1;
                        self.dial(node, primary)
                    }
                }
            }
            Step::TooManyDials => self.give_way(cx),
            Step::Wait(until) => self.wait(cx, until),
            Step::End { .. } if self.browse.is_some() => self.wait(cx, None),
            Step::End { limited: true } => Next::End(FindEnd::Limit),
            Step::End { limited: false } => Next::End(FindEnd::Exhausted),
        }
    }

    fn wait(&self, cx: &mut Cx, until: Option<Instant>) -> Next {
        match until {
            Some(until) => cx.timers.set(Timer::Stall(self.id), until),
            None => cx.timers.cancel(Timer::Stall(self.id)),
        }
        Next::Wait
    }

    /// As many contacts are in progress as allowed, and another candidate waits: the one that has
    /// been silent for the longest time, and is probably dead, ends for it.
    fn give_way(&mut self, cx: &mut Cx) -> Next {
        let gone = |candidate: &Candidate| {
            let contact = candidate.contact()?;
            let is_gone = contact.age == Age::Gone && contact.reach == Reach::Dialed;
            (is_gone && !self.is_for(&candidate.node)).then_some((
                contact.since,
                candidate.node,
                contact.stage,
            ))
        };
        let oldest = self
            .walk
            .candidates
            .iter()
            .filter_map(|(_, candidate)| gone(candidate))
            .min_by_key(|(since, node, _)| (*since, *node));
        match oldest {
            Some((_, node, Stage::Asked { stream, .. })) => {
                self.calls.remove(&stream);
                self.not_asked(cx, &node);
                Next::Cancel(stream)
            }
            Some((_, node, stage)) => {
                let addresses = self.walk.candidates.get(&node).into_iter();
                let addresses = addresses.flat_map(|candidate| &candidate.addresses);
                let failures = addresses
                    .map(|(address, _)| (address.clone(), DialFailure::Cancelled))
                    .collect();
                self.dial_failed(cx, &node, failures);
                let call = stage.stream();
                if let Some(stream) = &call {
                    self.calls.remove(stream);
                }
                Next::Leave { node, call }
            }
            None => self.wait(cx, self.walk.candidates.next_due()),
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
            self.begin(cx, target, Reach::Dialed, (None, false));
            self.stats.attempts += 1;
        }
        DialTarget::at(target, addresses, AddressOrigin::LOCAL, self.connect_timeout)
    }

    /// Returns the target of the request to a contact.
    pub(crate) fn query(&self, node: &NodeId) -> NodeId {
        self.walk.query(node)
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
            self.end_contact(cx, node, State::Failed, FindStepEnd::Unreachable(failures));
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
        // A connection that has just ended has no address any longer.
        let dialed = || Some(self.walk.candidates.get(&node)?.addresses.first()?.0.clone());
        let Some(address) = teller.cloned().or_else(dialed) else {
            return self.not_asked(cx, &node);
        };
        let reported = closest.known.len() + closest.connected.len();
        let before = self.stats.candidates;
        // The present address of a connected node counts more than a former one.
        let mut present: BTreeMap<NodeId, Vec<NodeAddress>> = BTreeMap::new();
        for active in closest.connected {
            let addresses = active.connections.into_iter().map(|connection| connection.address);
            present.entry(active.node).or_default().extend(addresses);
        }
        let known: Vec<_> = closest
            .known
            .into_iter()
            .filter_map(|(id, contact)| {
                let connected = present.remove(&id);
                let relay = connected.as_ref().map(|_| node);
                let former = contact.iter().map(|(address, _)| address.clone());
                let addresses = connected.into_iter().flatten().chain(former);
                self.usable(cx, (id, node), addresses, relay, teller)
            })
            .collect();
        let connected: Vec<_> = present
            .into_iter()
            .filter_map(|(id, addresses)| {
                self.usable(cx, (id, node), addresses, Some(node), teller)
            })
            .collect();
        let mut added = Vec::new();
        let lists = [known, connected];
        let contact = self.walk.answered(
            &cx.config.search,
            cx.now,
            &node,
            address,
            lists,
            |node, inserted| {
                added.push((node, inserted));
            },
        );
        for (node, inserted) in added {
            self.on_added(node, inserted);
        }
        if let Some((contact, implausible)) = contact {
            cx.metrics.told_implausible += u64::from(implausible);
            let took = cx.now.since(contact.since);
            cx.experience.answered(contact.reach, took, self.walk.silence(cx.now, &contact));
            let new = self.stats.candidates - before;
            let reported = u32::try_from(reported).unwrap_or(u32::MAX);
            self.end_step(cx, &contact, FindStepEnd::Answered { reported, new });
        }
    }

    /// Returns a reported node with its usable addresses, if it can be a candidate.
    fn usable(
        &self,
        cx: &mut Cx,
        (node, by): (NodeId, NodeId),
        reported: impl IntoIterator<Item = NodeAddress>,
        relay: Option<NodeId>,
        teller: Option<&NodeAddress>,
    ) -> Option<Report> {
        let mut addresses = Vec::new();
        for address in reported {
            if !cx.accepts_address(&address, teller)
                || addresses.len() >= self.reported_address_limit
            {
                cx.metrics.told_unusable += 1;
            } else if !addresses.iter().any(|(known, _)| *known == address) {
                addresses.push((address, AddressOrigin::DIRECT));
            }
        }
        if cx.is_own(&node) || addresses.is_empty() && relay.is_none() {
            cx.metrics.told_unusable += 1;
            return None;
        }
        Some(Report { node, by: Some(by), vouched: true, addresses, relay })
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

    /// Returns the nodes that answered, the closest to the target first, with their addresses.
    pub(crate) fn closest(&self) -> Vec<(NodeId, NodeAddress)> {
        self.walk.closest()
    }

    /// Returns the streams of calls in progress.
    pub(crate) fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.calls.keys().copied()
    }

    /// Ends the search: cancels its timer and returns the result.
    pub(crate) fn finish(mut self, cx: &mut Cx, ended: FindEnd) -> FindOutcome {
        cx.timers.cancel(Timer::Stall(self.id));
        let candidates = self.walk.candidates.iter();
        let running: Vec<_> = candidates
            .filter_map(|(_, candidate)| Some((candidate.node, candidate.contact()?.clone())))
            .collect();
        for (node, contact) in running {
            if node != self.target {
                cx.experience.unanswered(self.walk.silence(cx.now, &contact));
            }
            if let Some(step) = self.trace.get_mut(contact.step) {
                step.took = cx.now.since(self.begun + step.begun);
                if self.goal == Goal::Node && node == self.target && ended == FindEnd::Connected {
                    step.end = FindStepEnd::Target;
                }
            }
        }
        self.stats.elapsed = cx.now.since(self.begun);
        FindOutcome { found: None, ended, stats: self.stats, trace: self.trace }
    }

    fn learn(&mut self, report: Report) {
        let node = report.node;
        let (inserted, _) = self.walk.candidates.add(report);
        self.on_added(node, inserted);
    }

    fn on_added(&mut self, node: NodeId, inserted: Inserted) {
        match inserted {
            Inserted::Candidate => self.stats.candidates += 1,
            // A contact that fails before its turn is `New` again by then.
            Inserted::Route if self.is_dialing(&node) => drop(self.moved.insert(node)),
            Inserted::Route | Inserted::Nothing => {}
        }
    }

    fn dial(&self, node: NodeId, primary: impl Fn(&NodeId) -> Option<ConnectionId>) -> Next {
        let mut dial_target = DialTarget::at(node, [], AddressOrigin::DIRECT, self.connect_timeout);
        if let Some(candidate) = self.walk.candidates.get(&node) {
            if self.strategies.direct {
                dial_target.addresses.clone_from(&candidate.addresses);
            }
            if self.strategies.signal {
                let relays = candidate.relays.iter();
                dial_target.relays =
                    relays.filter(|relay| primary(relay).is_some()).copied().collect();
            }
        }
        // Only the target is worth the traffic of others.
        dial_target.relayed = self.strategies.relay && node == self.target;
        Next::Dial(dial_target)
    }

    fn begin(&mut self, cx: &Cx, node: NodeId, reach: Reach, how: (Option<u32>, bool)) {
        let Some(candidate) = self.walk.candidates.get(&node) else { return };
        let reported_by = candidate.reported_by;
        self.walk.begin(cx.now, (&node, reach), how, self.trace.len());
        self.trace.push(FindStep {
            node,
            reported_by,
            begun: cx.now.since(self.begun),
            took: Duration::ZERO,
            end: FindStepEnd::Pending,
        });
    }

    /// Ends a contact without an answer. One that answered before keeps its place.
    fn end_contact(&mut self, cx: &mut Cx, node: &NodeId, state: State, end: FindStepEnd) {
        let Some(candidate) = self.walk.candidates.get(node) else { return };
        if candidate.contact().is_none() {
            return;
        }
        let state = if candidate.has_answered() { State::Answered } else { state };
        if let Some(contact) = self.walk.candidates.set(self.target.distance(node), state) {
            if contact.age == Age::Gone && *node != self.target {
                cx.experience.unanswered(self.walk.silence(cx.now, &contact));
            }
            self.end_step(cx, &contact, end);
        }
    }

    fn end_step(&mut self, cx: &Cx, contact: &Contact, end: FindStepEnd) {
        if let Some(step) = self.trace.get_mut(contact.step) {
            step.took = cx.now.since(self.begun + step.begun);
            step.end = end;
        }
    }
}
