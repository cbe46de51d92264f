//! Events that the embedder receives.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{Failure, PeerFault};
use super::reply::Reply;
use super::transport::{DisconnectReason, Side};
use crate::claims::{Claim, ClaimId};
use crate::types::address::NodeAddress;
use crate::types::id::{ApprovalId, ConnectionId, LeaseId, NodeId, RequestId};

/// An event for the embedder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// The node listens and handles requests of peers.
    Ready {
        /// Addresses that it listens on.
        #[serde(with = "crate::types::sockets::many")]
        addrs: Vec<SocketAddr>,
    },
    /// A request ended. Emitted exactly once for every [`RequestId`] that was returned.
    Done {
        /// Id of the request.
        id: RequestId,
        /// Result of the request.
        result: Result<Reply, Failure>,
    },
    /// A connection was accepted by both ends.
    ConnectionOpened {
        /// Id of the connection.
        conn: ConnectionId,
        /// Peer.
        node: NodeId,
        /// Side of the local node.
        side: Side,
        /// Address of the peer.
        address: NodeAddress,
    },
    /// An accepted connection ended.
    ConnectionClosed {
        /// Id of the connection.
        conn: ConnectionId,
        /// Peer.
        node: NodeId,
        /// Reason.
        why: DisconnectReason,
    },
    /// The connection of a lease ended, and with it the lease.
    LeaseLost {
        /// Id of the lease.
        lease: LeaseId,
        /// Peer.
        node: NodeId,
    },
    /// A contact was added to the graph.
    NodeAdded {
        /// Id of the contact.
        node: NodeId,
    },
    /// A contact was removed from the graph.
    NodeRemoved {
        /// Id of the contact.
        node: NodeId,
    },
    /// The key of this node, and so its id, was renewed. The node stays reachable under its former
    /// ids.
    IdentityRenewed {
        /// Id before the renewal.
        old: NodeId,
        /// Id after the renewal.
        new: NodeId,
    },
    /// The next claims of a requested chain, in order and verified; they follow those of the
    /// previous event.
    ChainData {
        /// Id of the request.
        id: RequestId,
        /// Claims, at most 64 KiB of tokens, or one claim.
        claims: Vec<Claim>,
    },
    /// A peer violated the protocol. The affected stream or connection has been closed; each fault
    /// is also counted in `metrics()`.
    PeerMisbehaved {
        /// Connection of the peer.
        conn: ConnectionId,
        /// Peer.
        node: NodeId,
        /// Fault.
        fault: PeerFault,
    },
    /// A claim is in the local chain, durably.
    ClaimAdded {
        /// Id of the claim.
        claim: ClaimId,
        /// Other node of a link claim; `None` for other claims.
        node: Option<NodeId>,
    },
    /// A peer requests a signature of a claim, and the policy is `Ask`: `resolve_claim_approval`
    /// decides.
    ClaimApprovalRequested {
        /// Approval id for `resolve_claim_approval`.
        approval: ApprovalId,
        /// Peer.
        node: NodeId,
        /// Claim to be signed.
        claim: Claim,
        /// Time after which the claim is refused without an answer.
        within: Duration,
    },
    /// A claim about a node is committed locally, but the node has not confirmed it. The exchange
    /// resumes when the node is next connected. Emitted when an exchange ends in this state, and
    /// after every restart until [`ClaimConfirmed`](Self::ClaimConfirmed).
    ClaimUnconfirmed {
        /// Id of the claim in the local chain.
        claim: ClaimId,
        /// Other node of the claim.
        node: NodeId,
    },
    /// A node has confirmed a claim that it had not confirmed before.
    ClaimConfirmed {
        /// Id of the claim in the local chain.
        claim: ClaimId,
        /// Other node of the claim.
        node: NodeId,
    },
    /// The local chain is forked: two claims follow the same one. The cause is a write of an
    /// earlier version that failed and was applied nevertheless. Other nodes verify the chain only
    /// up to the fork. The newest 4096 claims are checked after [`Ready`](Self::Ready).
    ChainForked {
        /// Number of the second claim.
        seq: u64,
        /// Ids of both claims.
        claims: [ClaimId; 2],
    },
    /// The store accepts no more writes. Later changes are lost when this node ends, and requests
    /// that write fail. Emitted once.
    StoreClosed {
        /// Error of the store.
        why: String,
    },
    /// The machine has stopped. This is the last output.
    Stopped,
    /// The certificate chain has its maximum length, and a renewal has dropped its oldest
    /// certificates. This node is no longer found or reached under these former ids, and claims
    /// signed by them no longer verify.
    FormerIdsDropped {
        /// Former ids.
        ids: Vec<NodeId>,
    },
}
