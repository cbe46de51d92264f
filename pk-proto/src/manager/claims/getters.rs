//! Getters of claims.

use alloc::vec::Vec;

use crate::api::census::Census;
use crate::api::info::ExchangeInfo;
use crate::api::metrics::Metrics;
use crate::claims::{ChainHead, ClaimId};
use crate::manager::node::NodeManager;
use crate::manager::state::claims::Claims;
use crate::manager::state::outgoing::OutgoingExchange;
use crate::types::id::NodeId;

/// D. Getters of claims.
impl NodeManager {
    /// Returns the head of the local chain; `None` if the chain is empty. A claim that is being
    /// written is not included.
    pub fn chain_head(&self) -> Option<&ChainHead> {
        self.claims.chain.head()
    }

    /// Returns the nodes on the claim allow-list, in the order of their ids.
    pub fn allowed_claims(&self) -> impl Iterator<Item = NodeId> {
        self.claims.allowed.nodes().iter().copied()
    }

    /// Returns the committed claims that their peers have not confirmed, with the peer, oldest
    /// first.
    pub fn unconfirmed_claims(&self) -> impl Iterator<Item = (ClaimId, NodeId)> {
        self.claims.ours.iter().map(|(claim, committed)| (*claim, committed.peer))
    }

    /// Returns the exchanges in progress, local ones first.
    pub fn exchanges(&self) -> Vec<ExchangeInfo> {
        let ours = self.requests.claiming_in::<OutgoingExchange>();
        let ours = ours.map(|(_, node)| ExchangeInfo { node: node.target(), step: node.step() });
        let theirs = self.claims.incoming.values();
        let theirs =
            theirs.map(|incoming| ExchangeInfo { node: incoming.node(), step: incoming.step() });
        ours.chain(theirs).collect()
    }

    /// Counts the tables of claims.
    pub(in crate::manager) fn count_claim_tables(&self, census: &mut Census) {
        let Claims { chain, allowed, ours, theirs, commitments, answered, .. } = &self.claims;
        let Claims { incoming, network, streams, approvals, .. } = &self.claims;
        census.appending = usize::from(chain.is_appending());
        census.allowed = allowed.nodes().len();
        census.open_exchanges = ours.len() + theirs.len();
        census.exchanges = incoming.len() + network.len();
        census.exchange_streams = streams.len();
        census.approvals = approvals.len();
        census.commitments = commitments.len();
        census.linked = answered.len();
    }

    /// Writes the gauges of claims.
    pub(in crate::manager) fn measure_claims(&self, metrics: &mut Metrics) {
        metrics.exchanges = (self.claims.incoming.len() + self.claims.network.len()) as u64;
        metrics.exchanges_open = (self.claims.ours.len() + self.claims.theirs.len()) as u64;
    }
}
