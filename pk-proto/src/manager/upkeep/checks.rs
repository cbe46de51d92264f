//! Contacts that respond and contacts that do not: checks, failures, and whether this node is away.

use alloc::vec::Vec;
use core::time::Duration;

use super::super::node::NodeManager;
use super::super::state::stage::{OpenRequest, Recipient, RequestStage};
use super::super::state::upkeep::Errand;
use super::is_silent;
use crate::api::transport::{DialFailure, DisconnectReason, Side};
use crate::machine::cx::RngStream;
use crate::machine::dial::DialTarget;
use crate::machine::phase::Phase;
use crate::machine::timer::Timer;
use crate::types::address::NodeAddress;
use crate::types::contact::NodeContact;
use crate::types::id::{BucketIndex, NodeId, RequestId};
use crate::types::time::Instant;
use crate::upkeep::failing::{Manner, Verdict};
use crate::upkeep::presence::Witnesses;
use crate::upkeep::reach::MOST_GRACE;

/// Contacts with a connection that one check skips at most.
const SKIPPED: usize = 16;
/// Failing contacts that are dialed at one time at most; the next follow after [`TURN`].
const AT_ONCE: usize = 4;
/// A contact that fails is probably away, unless this part of the contacts fails.
const MANY: usize = 5;
/// Interval between groups of failing contacts.
const TURN: Duration = Duration::from_secs(1);
/// Dials of one search that continue after its end.
const WATCHED_OF_SEARCH: usize = 8;
/// Dials of searches that continue, in total.
const WATCHED: usize = 32;
/// A dial of a search is silent after this time.
const SILENT_DIAL: Duration = Duration::from_millis(500);
/// Connected nodes that may know how to reach a failing contact behind a NAT.
const RELAYS: usize = 3;

impl NodeManager {
    /// Returns whether contacts are checked, and removed if they do not respond.
    pub(super) fn keeps_records(&self) -> bool {
        self.cx.phase() == Phase::Running && !self.cx.config.retry_delay.is_zero()
    }

    /// Starts the checks after the start of the node.
    pub(in crate::manager) fn start_checks(&mut self) {
        if self.keeps_records() {
            self.upkeep.failing.start(self.cx.now);
            self.arm_check();
            self.arm_lost();
        }
    }

    /// Returns a random factor from 0.75 to 1.25, in thousandths.
    pub(super) fn upkeep_jitter(&mut self) -> u32 {
        750 + u32::try_from(self.cx.random_u64(RngStream::Upkeep) % 501).unwrap_or(250)
    }

    // -- what responds

    /// Something was received from a node.
    pub(in crate::manager) fn received_from(&mut self, node: NodeId) {
        if self.upkeep.presence.received(node, self.cx.now) && self.keeps_records() {
            self.upkeep.failing.postpone_all(self.cx.now, TURN);
            self.arm_check();
            self.arm_recheck();
            self.search_for_self(Recipient::None);
        }
    }

    /// A connection with a node was accepted. `how`: which end has dialed, `None` if a relay had
    /// announced it; `new`: the node was no contact before.
    pub(in crate::manager) fn node_responds(&mut self, node: NodeId, how: Option<Side>, new: bool) {
        let failed = self.upkeep.failing.remove(&node);
        if self.nodes.graph.contains(&node) {
            let seen = self.nodes.graph.seen(&node).filter(|at| *at != Instant::ORIGIN);
            self.upkeep.reaches.connected(node, how, (new, failed), seen, self.cx.now);
        }
        self.is_seen(&node);
        self.received_from(node);
        self.lost_responds(node);
    }

    /// A connection that both ends had accepted has ended.
    pub(in crate::manager) fn connection_over(&mut self, node: NodeId, why: &DisconnectReason) {
        if self.connections.primary(&node).is_some() || self.upkeep.failing.contains(&node) {
            return;
        }
        if matches!(why, DisconnectReason::TimedOut) {
            self.contact_failed(node);
        } else {
            self.is_seen(&node);
        }
    }

    /// A node that has waited for room is a contact from now on.
    pub(in crate::manager) fn admitted(&mut self, node: NodeId) {
        self.upkeep.reaches.admitted(node, self.cx.now);
        if self.upkeep.reaches.is_hidden(&node) {
            self.is_seen(&node);
        }
    }

    /// Returns the time in which every contact is checked.
    pub(super) fn check_cycle(&self) -> Duration {
        self.upkeep.pace.cycle(&self.cx.config.upkeep, self.nodes.graph.len())
    }

    /// A contact is alive. A hidden one is not checked before it has had the time to connect by
    /// itself.
    fn is_seen(&mut self, node: &NodeId) {
        let grace = match self.upkeep.reaches.is_hidden(node) {
            true => self.check_cycle().min(MOST_GRACE),
            false => Duration::ZERO,
        };
        self.nodes.graph.set_seen(node, self.cx.now + grace);
    }

    /// Returns for how long a contact was not seen.
    pub(super) fn silence_of(&self, node: &NodeId) -> Duration {
        match self.nodes.graph.seen(node) {
            Some(Instant::ORIGIN) | None => {
                let connected = self.nodes.graph.get(node).map(NodeContact::connected_time);
                let connected = connected.unwrap_or_default().0;
                Duration::from_millis(self.cx.unix().0.saturating_sub(connected))
            }
            Some(at) => self.cx.now.since(at),
        }
    }

    // -- what does not respond

    /// A dial race to a node has failed. Only silence at the last address that a connection has
    /// proved counts: other addresses may be those of liars.
    pub(in crate::manager) fn race_failed(
        &mut self,
        node: NodeId,
        took: Duration,
        failures: &[(NodeAddress, DialFailure)],
    ) {
        let Some(contact) = self.nodes.graph.get(&node) else { return };
        let newest = contact.iter().next().map(|(address, _)| address);
        let at_newest: Vec<_> =
            failures.iter().filter(|(address, _)| Some(address) == newest).cloned().collect();
        let by_time = |why: &DialFailure| matches!(why, DialFailure::TimedOut);
        let too_short =
            took < self.cx.config.upkeep.watch && at_newest.iter().any(|(_, why)| by_time(why));
        if is_silent(&at_newest) && !too_short && self.connections.primary(&node).is_none() {
            self.contact_failed(node);
        }
    }

    /// A contact did not respond.
    fn contact_failed(&mut self, node: NodeId) {
        let hidden = self.upkeep.reaches.is_hidden(&node);
        if !self.keeps_records() || !self.nodes.graph.contains(&node) {
            return;
        }
        let is_live = || self.nodes.graph.seen(&node).is_some_and(|at| at > self.cx.now);
        if hidden && !self.upkeep.failing.contains(&node) && is_live() {
            return;
        }
        let (now, jitter) = (self.cx.now, self.upkeep_jitter());
        let silence = self.cx.config.upkeep.away;
        let upkeep = &mut self.upkeep;
        let since = upkeep.failing.since(&node).unwrap_or(now);
        let proven = match upkeep.presence.judge(&node, since, now, silence) {
            // Checks and attempts stop until something is received.
            Witnesses::None => {
                self.cx.timers.cancel(Timer::Check);
                self.cx.timers.cancel(Timer::Recheck);
                return upkeep.failing.postpone(&node, now);
            }
            Witnesses::One => false,
            Witnesses::Two => true,
        };
        let config = &self.cx.config.upkeep;
        // If many fail at once they are not away one by one.
        let manner = match upkeep.failing.len() * MANY < self.nodes.graph.len() {
            _ if upkeep.reaches.is_expected(&node) => Manner::Rare,
            true => Manner::Patient,
            false => Manner::Hasty,
        };
        match upkeep.failing.failed(config, now, jitter, node, (proven, manner)) {
            Verdict::Fails => {
                if manner != Manner::Rare {
                    upkeep.pace.found_dead(config);
                }
                self.nodes.graph.leave_unchecked(&node);
                self.arm_check_earlier();
            }
            Verdict::StillFails => {}
            Verdict::Unproven => self.call_witness(&node),
            Verdict::Leaves => self.contact_leaves(&node),
        }
        self.arm_recheck();
    }

    /// Removes a contact that does not respond.
    pub(super) fn contact_leaves(&mut self, node: &NodeId) {
        self.cx.metrics.nodes_dead += 1;
        let contact = self.nodes.graph.get(node).cloned();
        // One that was never reached by a dial connects by itself if it is back.
        let reaches = &self.upkeep.reaches;
        let proven = !self.nodes.unproven.contains(node)
            && reaches.was_reached(node)
            && !reaches.is_expected(node);
        self.upkeep.reaches.leaves(node);
        self.remove_from_graph(node);
        if let Some(contact) = contact.filter(|_| proven && self.keeps_records()) {
            self.remember_lost(*node, contact);
        }
        self.refill(node);
    }

    /// Dials the most recently seen contact of the farthest bucket, so that two nodes prove that
    /// this node is not cut off.
    fn call_witness(&mut self, suspect: &NodeId) {
        if self.upkeep.calls_witness {
            return;
        }
        let contacts = self.nodes.graph.bucket(self.farthest_bucket());
        let others = contacts.filter(|(node, _)| {
            node != suspect
                && !self.upkeep.failing.contains(node)
                && !self.upkeep.reaches.is_hidden(node)
                && self.connections.primary(node).is_none()
        });
        let witness = others.map(|(node, _)| node).max_by_key(|node| self.nodes.graph.seen(node));
        if let Some(witness) = witness {
            self.upkeep.calls_witness = self.dial_contact(witness, Errand::Witness);
        }
    }

    // -- checks

    /// Sets the timer of the next check.
    fn arm_check(&mut self) {
        let jitter = self.upkeep_jitter();
        let interval = self.upkeep.pace.interval(&self.cx.config.upkeep) * jitter / 1000;
        self.cx.timers.set(Timer::Check, self.cx.now + interval);
    }

    /// Sets the timer of the next check, if it is earlier.
    fn arm_check_earlier(&mut self) {
        let before = self.cx.timers.get(Timer::Check);
        self.arm_check();
        if let Some(before) = before.filter(|at| self.cx.timers.get(Timer::Check) > Some(*at)) {
            self.cx.timers.set(Timer::Check, before);
        }
    }

    /// Handles the timer of checks: dials the contact that was seen least recently.
    pub(in crate::manager) fn check_due(&mut self) {
        match self.silent_contact(None, self.cx.config.upkeep.silent) {
            Some(node) => drop(self.dial_contact(node, Errand::Check)),
            None => self.upkeep.pace.found_alive(&self.cx.config.upkeep),
        }
        self.arm_check();
    }

    /// Handles the timer of failing contacts: dials those whose next attempt is due.
    pub(in crate::manager) fn recheck_due(&mut self) {
        for _ in 0..AT_ONCE {
            let Some(node) = self.upkeep.failing.take_due(self.cx.now) else { break };
            if !self.dial_contact(node, Errand::Recheck) {
                self.upkeep.failing.remove(&node);
                self.is_seen(&node);
            }
        }
        self.arm_recheck();
    }

    /// Sets the timer of the next attempt to reach a failing contact.
    pub(super) fn arm_recheck(&mut self) {
        match self.upkeep.failing.next_due().filter(|_| !self.upkeep.presence.is_away()) {
            Some(at) => {
                let at = if at <= self.cx.now { self.cx.now + TURN } else { at };
                self.cx.timers.set(Timer::Recheck, at);
            }
            None => self.cx.timers.cancel(Timer::Recheck),
        }
    }

    /// Returns connected nodes that may be connected to a contact, the closest to it first.
    pub(super) fn likely_relays(&self, node: &NodeId) -> Vec<NodeId> {
        let closest = self.connections.closest(node, RELAYS).into_iter();
        closest.filter(|relay| self.connections.live(relay).is_some()).collect()
    }

    // -- searches

    /// A search ends: its silent dials to contacts continue for a while, so that dead ones are
    /// noticed.
    pub(in crate::manager) fn watch_dials(&mut self, search: RequestId) {
        if !self.keeps_records() || self.upkeep.presence.is_away() {
            return;
        }
        let silent: Vec<_> = self
            .connections
            .dialed_by(&self.cx, search)
            .into_iter()
            .filter(|(node, time)| {
                *time >= SILENT_DIAL
                    && self.nodes.graph.contains(node)
                    && !self.upkeep.failing.contains(node)
                    && !self.upkeep.reaches.is_hidden(node)
            })
            .take(WATCHED_OF_SEARCH)
            .collect();
        for (node, time) in silent {
            if self.upkeep.watched >= WATCHED {
                return;
            }
            self.upkeep.watched += 1;
            let left = self.cx.config.upkeep.watch.saturating_sub(time);
            let timeout = left.max(Duration::from_millis(1));
            let id = self.cx.ids.request();
            let deadline = self.cx.now + timeout * 2;
            let stage = RequestStage::Upkeep(Errand::Watch);
            self.begin(id, OpenRequest { recipient: Recipient::None, deadline, stage });
            let dial_target = DialTarget {
                node,
                addresses: Vec::new(),
                relays: Vec::new(),
                relayed: false,
                timeout,
                foreground: false,
            };
            self.connections.dial(&mut self.cx, id, dial_target);
        }
    }

    /// Returns the contact of a bucket, or of the graph, that was seen least recently, if it was
    /// silent for `silence`.
    pub(super) fn silent_contact(
        &mut self,
        bucket: Option<BucketIndex>,
        silence: Duration,
    ) -> Option<NodeId> {
        for _ in 0..SKIPPED {
            let oldest = self.nodes.graph.least_recently_seen(bucket)?;
            if self.connections.primary(&oldest).is_none() {
                return Some(oldest).filter(|node| self.silence_of(node) >= silence);
            }
            // A contact with a connection is seen now.
            self.is_seen(&oldest);
        }
        None
    }
}
