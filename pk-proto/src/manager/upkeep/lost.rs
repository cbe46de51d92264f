//! Lost contacts: they are remembered, dialed sometimes, and all of them soon after one of them
//! is back.

use core::time::Duration;

use super::super::node::NodeManager;
use super::super::state::stage::Recipient;
use super::super::state::upkeep::Errand;
use crate::machine::cx::RngStream;
use crate::machine::timer::Timer;
use crate::types::contact::NodeContact;
use crate::types::id::NodeId;
use crate::upkeep::lost::{Found, LostContact};

/// Interval of dials to lost contacts while others are coming back.
const RECOVERY: Duration = Duration::from_secs(1);

impl NodeManager {
    /// Remembers a contact that has left the graph because it did not respond.
    pub(super) fn remember_lost(&mut self, node: NodeId, contact: NodeContact) {
        let lost = LostContact { contact, since: self.cx.unix() };
        let random = self.cx.random_u64(RngStream::Upkeep);
        let dropped = self.upkeep.lost.add(&self.cx.config.upkeep, node, lost, random);
        for changed in dropped.into_iter().chain([node]) {
            self.graph_writer.lost_changed(&mut self.cx, changed);
        }
        self.arm_lost();
    }

    /// Sets the timer of the next dial to a lost contact, if it is not set.
    pub(super) fn arm_lost(&mut self) {
        if !self.upkeep.lost.is_empty() && self.cx.timers.get(Timer::Lost).is_none() {
            let jitter = self.upkeep_jitter();
            let unix = self.cx.unix();
            let interval = self.upkeep.lost.interval(&self.cx.config.upkeep, unix) * jitter / 1000;
            self.cx.timers.set(Timer::Lost, self.cx.now + interval);
        }
    }

    /// A node responds. If it was lost for long, the network may have been split: the other lost
    /// contacts are dialed soon.
    pub(super) fn lost_responds(&mut self, node: NodeId) {
        let unix = self.cx.unix();
        let Some(found) = self.upkeep.lost.found(&self.cx.config.upkeep, &node, unix) else {
            return;
        };
        self.graph_writer.lost_changed(&mut self.cx, node);
        if found == Found::One || !self.keeps_records() {
            return;
        }
        self.cx.timers.set(Timer::Lost, self.cx.now + RECOVERY);
        if found == Found::Split {
            self.search_for_self(Recipient::None);
        }
    }

    /// Handles the timer of lost contacts: dials one of them.
    pub(in crate::manager) fn lost_due(&mut self) {
        let unix = self.cx.unix();
        while let Some(node) = self.upkeep.lost.pop_expired(&self.cx.config.upkeep, unix) {
            self.graph_writer.lost_changed(&mut self.cx, node);
        }
        // While this node is away, only its far connection is dialed for.
        if !self.upkeep.presence.is_away() {
            let random = self.cx.random_u64(RngStream::Upkeep);
            let recovers = self.upkeep.lost.recovers();
            if let Some((node, lost, soon)) = self.upkeep.lost.next(random) {
                let contact = lost.contact.clone();
                if soon {
                    self.cx.timers.set(Timer::Lost, self.cx.now + RECOVERY);
                } else if recovers {
                    // The parts of the network know each other now.
                    self.search_for_self(Recipient::None);
                }
                if self.nodes.graph.contains(&node) || self.cx.is_own(&node) {
                    self.upkeep.lost.remove(&node);
                    self.graph_writer.lost_changed(&mut self.cx, node);
                } else if self.connections.primary(&node).is_none() {
                    self.dial_known(node, &contact, Errand::Lost);
                }
            }
        }
        self.arm_lost();
    }
}
