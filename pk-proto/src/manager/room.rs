//! Which connections close to make room for others when the table is full. Only unused connections
//! close, and those with nodes that are not in the graph close first.

use super::node::NodeManager;
use crate::api::transport::Connected;
use crate::connect::{Candidate, Worth};
use crate::graph::NodeGraph;
use crate::rpc::table::Rpc;
use crate::types::id::RaceId;

impl NodeManager {
    /// Makes room for a connection whose handshake has completed, if the table is full.
    pub(super) fn make_room_for(&mut self, connected: &Connected) {
        let Self { cx, connections, rpc, nodes, .. } = self;
        connections.make_room_for(cx, connected, |candidate| worth(rpc, &nodes.graph, candidate));
    }

    /// Makes room for the next dial of a race.
    pub(super) fn make_room_for_dial(&mut self, race: RaceId) {
        let Self { cx, connections, rpc, nodes, .. } = self;
        connections.make_room_for_dial(cx, race, |candidate| worth(rpc, &nodes.graph, candidate));
    }
}

/// Returns the value of a connection when another one needs its place. A connection counts as
/// unused until its peer has sent `Hello`, because no stream of it can be in use.
fn worth(rpc: &Rpc, graph: &NodeGraph, candidate: &Candidate) -> Worth {
    let Candidate { conn, node, accepted, only } = candidate;
    if *accepted && rpc.in_use(*conn) {
        Worth::InUse
    } else if *only && graph.contains(node) {
        Worth::Contact
    } else {
        Worth::Unused
    }
}
