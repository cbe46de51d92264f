//! Result of a search.

use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::transport::DialFailure;
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::NodeId;

/// How a search ended, and its cost (docs/DESIGN.md, Searches).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindOutcome {
    /// Address of the target's connection, if it was found.
    pub found: Option<(NodeAddress, NodeContactAddressData)>,
    /// Why the search ended.
    pub ended: FindEnd,
    /// Cost of the search.
    pub stats: FindStats,
    /// Contacted nodes, in the order of the start of each contact.
    pub trace: Vec<FindStep>,
}

/// The nodes closest to a target, and the cost of the search for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosestOutcome {
    /// The closest nodes that answered, nearest first, each with the address of the connection on
    /// which it answered. Fewer than requested if the network has fewer, or the search ended early.
    pub nodes: Vec<(NodeId, NodeAddress)>,
    /// Why the search ended. The nodes are the closest ones if it is
    /// [`Exhausted`](FindEnd::Exhausted); otherwise they are those found so far.
    pub ended: FindEnd,
    /// Cost of the search.
    pub stats: FindStats,
    /// Contacted nodes, in the order of the start of each contact. A node that was asked again
    /// occurs again.
    pub trace: Vec<FindStep>,
}

/// Why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FindEnd {
    /// The target is connected.
    Connected,
    /// No node closest to the target knows a closer one.
    Exhausted,
    /// The limit of connection attempts was reached and all attempts have ended.
    Limit,
    /// The deadline passed.
    Deadline,
}

/// Cost of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FindStats {
    /// Duration.
    pub elapsed: Duration,
    /// Connection attempts.
    pub attempts: u32,
    /// Failed connection attempts.
    pub failures: u32,
    /// Calls. A contact whose call ended before it accepted the connection is called again.
    pub calls: u32,
    /// Distinct nodes that were reported.
    pub candidates: u32,
}

/// One contact of a search.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindStep {
    /// Contacted node.
    pub node: NodeId,
    /// Node that reported it first; `None` if it came from the local graph or a live connection.
    pub reported_by: Option<NodeId>,
    /// Time from the start of the search to the start of the contact.
    pub begun: Duration,
    /// Duration of the contact, until its end or the end of the search.
    pub took: Duration,
    /// How the contact ended.
    pub end: FindStepEnd,
}

/// How a contact of a search ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FindStepEnd {
    /// The search ended first.
    Pending,
    /// Connected, and it was the target.
    Target,
    /// Answered with nodes.
    Answered {
        /// Number of reported nodes.
        reported: u32,
        /// Number of these that were new to the search.
        new: u32,
    },
    /// No connection; contains the failure of each address.
    Unreachable(Vec<(NodeAddress, DialFailure)>),
    /// Connected, but no valid answer in time.
    NoAnswer,
}
