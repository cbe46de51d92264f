//! What the embedder sees of claims.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::claims::{ChainHead, ClaimId, ClaimStep};
use crate::id::NodeId;
use crate::manager::NodeManager;
use crate::manager::open::Stage;
use crate::metrics::Metrics;

/// An exchange of claims under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeInfo {
    /// With whom.
    pub node: NodeId,
    /// How far it has come, which also says who has begun it.
    pub step: ClaimStep,
}

/// D. Getters of claims.
impl NodeManager {
    /// Where our chain of claims ends; `None` if there is none. What is being written is not in it yet.
    pub fn chain_head(&self) -> Option<&ChainHead> {
        self.claims.chain.head()
    }

    /// The nodes that may have claims signed, as far as the policy looks at them, in the order of their ids.
    pub fn allowed_claims(&self) -> impl Iterator<Item = NodeId> {
        self.claims.allowed.iter().copied()
    }

    /// Claims of ours that stand and whose peer may not have its own, with the peer, oldest first.
    pub fn claims_in_doubt(&self) -> impl Iterator<Item = (ClaimId, NodeId)> {
        self.claims.ours.iter().map(|(claim, standing)| (*claim, standing.peer))
    }

    /// The exchanges of claims under way, ours first.
    pub fn exchanges(&self) -> Vec<ExchangeInfo> {
        let ours = self.open.values().filter_map(|open| match &open.stage {
            Stage::ClaimNode(node) => Some(ExchangeInfo { node: node.target(), step: node.step() }),
            _ => None,
        });
        let theirs = self.claims.handling.values();
        let theirs = theirs.map(|handling| ExchangeInfo { node: handling.node(), step: handling.step() });
        ours.chain(theirs).collect()
    }

    pub(in crate::manager) fn measure_claims(&self, metrics: &mut Metrics) {
        metrics.exchanges = (self.claims.handling.len() + self.claims.network.len()) as u64;
        metrics.exchanges_open = (self.claims.ours.len() + self.claims.theirs.len()) as u64;
    }
}
