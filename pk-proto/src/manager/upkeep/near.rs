//! The connections to near contacts that a node keeps open because it may be behind a NAT.
//!
//! No node can dial one that is. Those that search for it ask the nodes nearest to it, of which one
//! has to be connected to it, to signal.

use alloc::vec::Vec;

use super::super::node::NodeManager;
use super::super::state::upkeep::Errand;
use crate::types::id::NodeId;

/// Number of these connections. If one ends, a search still finds the other.
const NEAR: usize = 2;

impl NodeManager {
    /// Keeps connections to [`NEAR`] of the nearest contacts open if this node may be behind a NAT:
    /// if contacts are.
    pub(super) fn keep_near(&mut self) {
        // A search in a small network asks all nodes.
        let small = self.nodes.graph.len() <= self.cx.config.bucket_limit;
        if small || !self.upkeep.reaches.has_hidden() {
            return self.connections.keep_near(&mut self.cx, []);
        }
        if self.connections.kept_near() >= NEAR || self.upkeep.dials_near {
            return;
        }
        let nearest = self.nodes.graph.closest(&self.cx.own(), self.cx.config.bucket_limit);
        // Others can ask only those that respond to dials.
        let reaches = &self.upkeep.reaches;
        let nearest = nearest
            .into_iter()
            .map(|(node, _)| node)
            .filter(|node| reaches.was_reached(node) && !self.upkeep.failing.contains(node));
        let mut nearest: Vec<NodeId> = nearest.collect();
        nearest.sort_by_key(|node| !reaches.is_dialed(node));
        nearest.truncate(2 * NEAR);
        let is_live = |node: &&NodeId| self.connections.live(node).is_some();
        let live: Vec<NodeId> = nearest.iter().filter(is_live).take(NEAR).copied().collect();
        let next = nearest.iter().find(|node| !is_live(node)).copied();
        self.connections.keep_near(&mut self.cx, &live);
        if live.len() < NEAR
            && let Some(next) = next
        {
            self.upkeep.dials_near = self.dial_contact(next, Errand::Near);
        }
    }

    /// Handles the end of a dial to a near contact.
    pub(super) fn near_dialed(&mut self, reached: bool) {
        self.upkeep.dials_near = false;
        if reached {
            self.keep_near();
        }
    }
}
