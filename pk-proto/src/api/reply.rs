//! Results of requests.

use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::info::ConnectionInfo;
use super::search::{ClosestOutcome, FindOutcome};
use crate::claims::{ChainFault, Claim, ClaimId, Gestalt};
use crate::graph::outcome::SetNodeOutcome;
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::{LeaseId, NodeId, StreamId};
use crate::types::seed_node::SeedNode;
use crate::wire::closest::ClosestNodes;

/// Result of a successful request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reply {
    /// A search ended; `found` contains the result.
    FindNode(FindOutcome),
    /// The node answered.
    PingNode(Pong),
    /// Whether the node was reached.
    PingNodeAddress(bool),
    /// The connection to the node, which may have existed before.
    Connect(ConnectionInfo),
    /// The connection is leased until `release`.
    AcquireConnection {
        /// Id of the lease.
        lease: LeaseId,
        /// The primary connection now.
        connection: ConnectionInfo,
    },
    /// The stream was handed over: its [`DetachStream`](crate::Output::DetachStream) precedes this
    /// event.
    OpenStream(StreamId),
    /// Response of the peer.
    QueryClosestNodes(ClosestNodes),
    /// The network was joined.
    SyncNodeGraph(Synced),
    /// Outcome for the node.
    SetNode(SetNodeOutcome),
    /// The bucket was refreshed; contains the search for the random id.
    RefreshBucket(FindOutcome),
    /// The identity was replaced.
    Renew {
        /// Id before.
        old: NodeId,
        /// Id after; the same if only the certificate was replaced.
        new: NodeId,
    },
    /// Both nodes have committed the claim; the id is that of the local chain.
    ClaimNode(ClaimId),
    /// The claim is in the local chain.
    AddClaim(ClaimId),
    /// The claim is in the local chain, with the signature of the node after that of this node.
    ClaimNetwork(Claim),
    /// The allow-list is written.
    AllowClaim,
    /// Addresses of the node on the local network.
    QueryMdns(Vec<NodeAddress>),
    /// The chain was read to its end or to the first invalid claim.
    RequestChainData(ChainData),
    /// Claims of the local chain.
    Claims(ClaimsFound),
    /// Nodes that are linked with the node.
    Gestalt(Gestalt),
    /// Everything is written.
    Flush,
    /// The nodes closest to the target.
    FindClosest(ClosestOutcome),
}

/// How reading a chain ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainData {
    /// Number of verified claims; all of them were emitted.
    pub verified: u64,
    /// Last verified claim, from which to continue; that of the request if none was verified.
    pub head: Option<Claim>,
    /// Fault of the next claim; `None` if the chain ends here, or continues.
    pub fault: Option<ChainFault>,
    /// Whether the chain continues beyond the limit of the request.
    pub more: bool,
}

/// Claims of the local chain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClaimsFound {
    /// Claims in the requested order; at most 1 MiB of tokens.
    pub claims: Vec<Claim>,
    /// Whether there are more after the last one.
    pub more: bool,
}

/// Answer of a ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Address of the node's connection.
    pub address: NodeAddress,
    /// Data of that address.
    pub data: NodeContactAddressData,
    /// Round trip time of the call.
    pub rtt: Duration,
}

/// Result of joining the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// Connected seed nodes.
    pub seeds: Vec<NodeId>,
    /// Seed nodes that were not reached, each with its cause.
    pub failed: Vec<(SeedNode, crate::api::error::SeedFailure)>,
    /// The search for the local id; `None` if it was not waited for.
    pub search: Option<FindOutcome>,
}
