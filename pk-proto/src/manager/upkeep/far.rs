//! The connection to the farther half of all ids: one is kept open, and a node without one dials
//! contacts there (specification: retryConnections).
//!
//! If this node is in the farther half of another one, that one is in the farther half of this one,
//! so that one connection serves both.

use alloc::vec::Vec;

use super::super::node::NodeManager;
use super::super::state::stage::Recipient;
use super::super::state::upkeep::Errand;
use crate::api::request::FindNodeOptions;
use crate::graph::{Direction, NodeOrder};
use crate::machine::phase::Phase;
use crate::machine::timer::Timer;
use crate::types::id::{BucketIndex, NodeId};
use crate::upkeep::far::FarStep;

/// The farther half of all ids.
pub(super) const HALF: BucketIndex = BucketIndex(255);

impl NodeManager {
    /// Handles the retry timer.
    pub(in crate::manager) fn retry_due(&mut self) {
        self.cx.timers.set(Timer::Retry, self.cx.now + self.cx.config.retry_delay);
        self.upkeep.far.begin_interval();
        self.far_next();
        self.keep_near();
    }

    /// Does the next step for a connection to the farther half, if there is none.
    fn far_next(&mut self) {
        if self.connections.has_connection_in(&self.cx, HALF) {
            return self.upkeep.far.reached();
        }
        if self.nodes.graph.is_empty() || self.requests.is_retrying() {
            return;
        }
        let contacts = self.far_contacts();
        let (now, interval) = (self.cx.now, self.cx.config.retry_delay);
        loop {
            match self.upkeep.far.next(&self.cx.config.upkeep, now, interval, &contacts) {
                FarStep::Dial(node) => {
                    if !self.dial_contact(node, Errand::Far) {
                        self.upkeep.far.dialed(node, false);
                        continue;
                    }
                }
                FarStep::Search => {
                    let id = self.cx.ids.request();
                    let deadline = now + self.cx.config.request_deadline;
                    let (count, find) = (self.cx.config.bucket_limit, FindNodeOptions::default());
                    self.refresh(id, Recipient::Retry, deadline, HALF, count, &find);
                }
                FarStep::Wait => {}
            }
            return;
        }
    }

    /// Handles the end of a dial to a contact of the farther half.
    pub(super) fn far_dialed(&mut self, node: NodeId, reached: bool) {
        self.upkeep.far.dialed(node, reached);
        if !reached && self.cx.phase() == Phase::Running {
            self.far_next();
        }
    }

    /// Returns the contacts of the farther half without a connection, the most recently connected
    /// first. If there are none and nothing is connected, those of the farthest bucket.
    fn far_contacts(&self) -> Vec<NodeId> {
        let in_bucket = |bucket| {
            let contacts = self.nodes.graph.bucket_sorted(
                bucket,
                NodeOrder::ConnectedTime,
                Direction::Descending,
            );
            let nodes = contacts.into_iter().map(|(node, _)| node);
            let nodes = nodes.filter(|node| self.connections.primary(node).is_none());
            // While this node is away, failing contacts are as good as others.
            let away = self.upkeep.presence.is_away();
            let nodes = nodes.filter(|node| away || !self.upkeep.failing.contains(node));
            let (hidden, mut others): (Vec<_>, Vec<_>) =
                nodes.partition(|node| self.upkeep.reaches.is_hidden(node));
            others.extend(hidden);
            others
        };
        let farthest = self.farthest_bucket();
        let connected = self.connections.has_connection_in(&self.cx, farthest);
        if farthest != HALF && connected { Vec::new() } else { in_bucket(farthest) }
    }

    /// Returns the bucket of the farthest contact; that of the farther half if the graph is empty.
    pub(super) fn farthest_bucket(&self) -> BucketIndex {
        self.nodes.graph.buckets().last().map_or(HALF, |(bucket, _)| bucket)
    }

    /// Keeps one connection to the farthest contacts open, if there is one.
    pub(in crate::manager) fn keep_far(&mut self) {
        if self.cx.phase() == Phase::Running && !self.cx.config.retry_delay.is_zero() {
            let bucket = self.farthest_bucket();
            self.connections.keep_one_in(&mut self.cx, bucket);
        }
    }
}
