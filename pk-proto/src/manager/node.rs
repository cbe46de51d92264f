//! The state of a node.

use super::state::claims::Claims;
use super::state::forks::ForkWatch;
use super::state::known_nodes::KnownNodes;
use super::state::request_table::RequestTable;
use super::state::signalling::Signalling;
use super::state::upkeep::Upkeep;
use super::state::writes::Writes;
use crate::connect::table::Connections;
use crate::graph_writer::GraphWriter;
use crate::machine::cx::Cx;
use crate::machine::record::Recorder;
use crate::relay::Relay;
use crate::rpc::table::Rpc;
use crate::shares::Shares;

/// The node layer of one Polykey node, as a state machine without IO. The [crate
/// documentation](crate) describes how to drive it.
#[derive(Debug)]
pub struct NodeManager {
    pub(super) cx: Cx,
    pub(super) nodes: KnownNodes,
    pub(super) upkeep: Upkeep,
    pub(super) graph_writer: GraphWriter,
    pub(super) writes: Writes,
    pub(super) forks: ForkWatch,
    pub(super) claims: Claims,
    pub(super) signalling: Signalling,
    pub(super) relay: Relay,
    /// Reads of the store for peers, and what each read is charged to.
    pub(super) served: Shares,
    /// Port that is advertised on the local network; `None` if the node does not advertise.
    pub(super) advertised: Option<u16>,
    pub(super) connections: Connections,
    pub(super) rpc: Rpc,
    pub(super) requests: RequestTable,
    pub(super) recorder: Option<Recorder>,
}
