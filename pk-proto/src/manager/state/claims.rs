//! Claims, unfinished exchanges and pending approvals.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::allow_list::AllowList;
use super::incoming_table::IncomingTable;
use super::network_claim::NetworkClaim;
use crate::api::snapshot::Snapshot;
use crate::claims::sigchain::Sigchain;
use crate::claims::{Claim, ClaimId, OpenExchange};
use crate::shares::{Charged, Counted, Source};
use crate::types::id::{ApprovalId, NodeId, RequestId, StreamId};
use crate::types::network::Network;
use crate::types::signature::Signature;

/// All state of claims.
#[derive(Debug, Default)]
pub(in crate::manager) struct Claims {
    pub(in crate::manager) chain: Sigchain,
    pub(in crate::manager) allowed: AllowList,
    /// Committed local claims whose exchange is not finished.
    pub(in crate::manager) ours: BTreeMap<ClaimId, CommittedClaim>,
    /// Claims of peers that this node has agreed to sign, by issuer and id.
    pub(in crate::manager) theirs: BTreeMap<(NodeId, ClaimId), AcceptedClaim>,
    /// Commitments that are being written, by the stream of the exchange.
    pub(in crate::manager) commitments: BTreeMap<StreamId, PendingCommitment>,
    /// Nodes with a claim that this node has answered with a claim of the local chain. Exchanges
    /// with them are answered again, whatever the policy is now. No more than the claims of the
    /// local chain that the policy has allowed.
    pub(in crate::manager) answered: BTreeSet<NodeId>,
    /// Exchanges that peers have started.
    pub(in crate::manager) incoming: IncomingTable,
    /// Network claims that peers request signatures of.
    pub(in crate::manager) network: Counted<StreamId, NetworkClaim>,
    /// Requests of local exchanges, by stream.
    pub(in crate::manager) streams: BTreeMap<StreamId, RequestId>,
    /// Pending approvals.
    pub(in crate::manager) approvals: Counted<ApprovalId, PendingApproval>,
    /// Node of the last turn.
    pub(in crate::manager) last_turn: Option<NodeId>,
}

/// A committed local claim whose exchange is not finished.
#[derive(Debug)]
pub(in crate::manager) struct CommittedClaim {
    pub(in crate::manager) peer: NodeId,
    /// Claim of the peer that this node signed last.
    pub(in crate::manager) theirs: ClaimId,
    /// Request that continues the exchange; `None` if none does.
    pub(in crate::manager) busy: Option<RequestId>,
    /// Number of attempts to resume that have failed.
    pub(in crate::manager) attempts: u32,
}

/// The commitment to sign a claim of a peer.
#[derive(Debug, Clone)]
pub(in crate::manager) struct AcceptedClaim {
    /// Local signature of the peer's claim.
    pub(in crate::manager) signature: Signature,
    /// Local claim with the local signature.
    pub(in crate::manager) mine: Claim,
    /// Network of the peer; `None` if the commitment was made before the last restart.
    pub(in crate::manager) network: Option<Network>,
}

/// A commitment that is being written.
#[derive(Debug)]
pub(in crate::manager) struct PendingCommitment {
    /// Issuer and id of the peer's claim.
    pub(in crate::manager) name: (NodeId, ClaimId),
    pub(in crate::manager) agreed: AcceptedClaim,
    /// Commitments that the same transaction removes.
    pub(in crate::manager) removed: Vec<(NodeId, ClaimId)>,
}

/// A pending approval: a claim about which the embedder must decide.
#[derive(Debug)]
pub(in crate::manager) struct PendingApproval {
    /// Stream of the claim; `None` after the peer has left. The approval still counts until its
    /// timeout, so that a peer that reconnects repeatedly does not cause more approvals than its
    /// limit.
    pub(in crate::manager) stream: Option<StreamId>,
    /// What the approval is charged to.
    pub(in crate::manager) source: Source,
}

impl Charged for PendingApproval {
    fn source(&self) -> &Source {
        &self.source
    }
}

impl Claims {
    /// Restores the state from the stored rows.
    pub(in crate::manager) fn new(snapshot: &mut Snapshot) -> Self {
        let mut claims = Self {
            allowed: AllowList::new(snapshot.allowed.drain(..)),
            answered: core::mem::take(&mut snapshot.answered),
            ..Self::default()
        };
        let mut made = Vec::new();
        for open in snapshot.exchanges.drain(..) {
            match open {
                OpenExchange::Ours { peer, claim, theirs } => {
                    claims
                        .ours
                        .insert(claim, CommittedClaim { peer, theirs, busy: None, attempts: 0 });
                }
                OpenExchange::Theirs { issuer, claim, signature, mine } => {
                    made.push(mine.id());
                    claims
                        .theirs
                        .insert((issuer, claim), AcceptedClaim { signature, mine, network: None });
                }
            }
        }
        claims.chain = Sigchain::new(snapshot.chain, made.into_iter());
        claims
    }

    /// Returns whether the local chain has a claim.
    pub(in crate::manager) fn has_chain(&self) -> bool {
        self.chain.head().is_some()
    }

    /// Discards all pending approvals: the node stops, so they can neither be decided nor time out.
    pub(in crate::manager) fn stop_asking(&mut self) {
        self.approvals.clear();
    }
}
