//! Suspected connections: something was sent, and nothing was received for several round trips.
//!
//! A suspected connection is not chosen while the node has a live one, and a request for the node
//! dials it. The driver decides which are suspected, because only the driver sees packets.

use core::time::Duration;

use super::connection::State;
use super::event::ConnectEvent;
use super::table::Connections;
use crate::api::error::ConnectionErrorReason;
use crate::machine::cx::Cx;
use crate::machine::dial::AddressOrigin;
use crate::machine::timer::Timer;
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, NodeId};

/// Time after which a suspected connection beside a live one is closed. Longer than the pauses of a
/// busy process or a moving host, and much shorter than the idle timeout of the transport.
const SILENCE: Duration = Duration::from_secs(5);

/// Dials in progress up to which a suspected node is dialed while the local node seems to be cut
/// off: enough to notice that the network is back.
pub(super) const CUT_OFF_DIALS: usize = 3;

/// More suspicions than `CUT_OFF_DIALS` within this time are treated as a failure of the local
/// network, until something is received.
const BURST: Duration = Duration::from_secs(1);

impl Connections {
    /// Handles the input `Suspected`.
    pub(crate) fn suspect(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let Some(node) = self.set_suspected(cx, conn, true) else { return };
        cx.metrics.connections_suspected += 1;
        self.suspicions.push_back(cx.now);
        if self.suspicions.len() > CUT_OFF_DIALS + 1 {
            self.suspicions.pop_front();
        }
        self.watch_silence(cx, &node);
        self.events.push_back(ConnectEvent::Suspected { conn, node });
        if let Some(race) = self.state(conn).and_then(State::race) {
            // It has not sent its Hello: a new process may be at its address by now.
            self.dial_again(cx, race, conn);
        }
    }

    /// Handles the input `Heard`. Waiters for the node have a connection again.
    pub(crate) fn heard(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let Some(node) = self.set_suspected(cx, conn, false) else { return };
        cx.metrics.connections_heard += 1;
        cx.timers.cancel(Timer::Silent(conn));
        if matches!(self.state(conn), Some(State::Live { .. })) {
            self.events.push_back(ConnectEvent::Heard { conn, node });
            self.end_races_with(cx, conn, false);
            // It may be the live one beside another.
            self.watch_silence(cx, &node);
        }
    }

    fn set_suspected(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        suspected: bool,
    ) -> Option<NodeId> {
        let Some(connection) =
            self.connection(conn).filter(|connection| connection.suspected != suspected)
        else {
            cx.metrics.late_inputs += 1;
            return None;
        };
        let node = connection.node;
        let before = self.by_node().best(&node);
        self.mark_suspected(conn, suspected);
        let after = self.by_node().best(&node);
        if before != after {
            // The primary lives longer than the others.
            for changed in before.into_iter().chain(after) {
                self.arm(cx, changed);
            }
        }
        Some(node)
    }

    /// Sets the timers of the suspected connections with a node, if there is a live one.
    pub(super) fn watch_silence(&self, cx: &mut Cx, node: &NodeId) {
        if self.live(node).is_some() {
            for conn in self.by_node().suspected(node) {
                if cx.timers.get(Timer::Silent(conn)).is_none() {
                    cx.timers.set(Timer::Silent(conn), cx.now + SILENCE);
                }
            }
        }
    }

    /// The time of a suspected connection is over. A lease or an application stream (`held`) keeps
    /// it until the idle timeout of the transport.
    pub(crate) fn silent(&mut self, cx: &mut Cx, conn: ConnectionId, held: bool) {
        let Some(connection) = self.connection(conn) else { return };
        let superseded = connection.suspected && self.live(&connection.node).is_some();
        if superseded && !held && connection.leases.is_empty() {
            cx.metrics.connections_silent += 1;
            self.close(cx, conn, ConnectionErrorReason::NotNeeded);
        }
    }

    /// Returns whether the local node seems to be cut off: all connections of several nodes are
    /// suspected, or several were suspected at once.
    pub(super) fn is_cut_off(&self, cx: &Cx) -> bool {
        let burst = self.suspicions.len() > CUT_OFF_DIALS
            && self.suspicions.front().is_some_and(|first| cx.now.since(*first) < BURST);
        burst || self.by_node().is_silent()
    }

    /// Returns whether a connection is suspected.
    pub(crate) fn is_suspected(&self, conn: ConnectionId) -> bool {
        self.connection(conn).is_some_and(|connection| connection.suspected)
    }

    /// Returns the suspected connections with a node.
    pub(crate) fn suspected(&self, node: &NodeId) -> impl Iterator<Item = ConnectionId> {
        self.by_node().suspected(node)
    }

    /// Returns the addresses of the suspected connections with a node, where it may be reachable
    /// again.
    pub(crate) fn suspected_at(
        &self,
        node: &NodeId,
    ) -> impl Iterator<Item = (NodeAddress, AddressOrigin)> {
        let connections = self.by_node().suspected(node).filter_map(|conn| self.connection(conn));
        connections.map(|connection| {
            (connection.address.clone(), AddressOrigin::known(&connection.data()))
        })
    }

    /// Closes a suspected connection with a node in favour of a new one. Returns whether there was
    /// one.
    pub(super) fn replace_suspected(&mut self, cx: &mut Cx, node: &NodeId) -> bool {
        let suspected = self.by_node().suspected(node).find(|conn| !self.is_leased(*conn));
        if let Some(conn) = suspected {
            cx.metrics.connections_silent += 1;
            self.close(cx, conn, ConnectionErrorReason::TooMany);
        }
        suspected.is_some()
    }
}
