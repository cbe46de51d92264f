//! Signatures of network claims for peers. Only `ClaimNetworkAccess` and `ClaimNetworkAuthority`
//! claims that name the peer are signed.

use crate::api::error::PeerFault;
use crate::claims::exchange::parties::{ToSign, sent};
use crate::claims::{Claim, ExchangeFault, SinglySigned, Verdict};
use crate::machine::effects::ClaimSigner;
use crate::manager::node::NodeManager;
use crate::manager::state::network_claim::NetworkClaim;
use crate::types::id::{ConnectionId, NodeId, StreamId};
use crate::types::refusal::Refusal;
use crate::types::signature::Signature;
use crate::wire::message::RpcResponse;

/// Types of claims that this node signs for peers.
const TYPES: [&str; 2] = ["ClaimNetworkAccess", "ClaimNetworkAuthority"];

impl NodeManager {
    /// Handles a request of a peer to sign a claim.
    pub(in crate::manager) fn network_asked(
        &mut self,
        stream: StreamId,
        conn: ConnectionId,
        token: &[u8],
    ) {
        // The policy is checked before the claim is parsed.
        let verdict = self.verdict(conn);
        if verdict == Verdict::Refuse {
            return self.network_refuse(stream, Refusal::Denied);
        }
        let Some(source) = self.takes_claims(conn) else {
            return self.network_refuse(stream, Refusal::Busy);
        };
        let half = match self.network_claim(conn, token) {
            Ok(half) => half,
            // The peer has renewed its key, and this connection proves only its former id.
            Err(ExchangeFault::Issuer) => return self.network_refuse(stream, Refusal::Signature),
            Err(fault) => {
                self.cx.metrics.claim_faults += 1;
                let signature = matches!(fault, ExchangeFault::Signed(_));
                self.network_refuse(
                    stream,
                    if signature { Refusal::Signature } else { Refusal::Claim },
                );
                return self.rpc.count_fault(&mut self.cx, conn, PeerFault::Claims(fault));
            }
        };
        let claim = half.claim().clone();
        self.claims
            .network
            .insert(stream, NetworkClaim { source, approval: None, half, signer: None });
        if verdict == Verdict::Sign {
            return self.network_decided(stream, true);
        }
        let approval = self.request_approval(stream, conn, source, claim);
        if let Some(network) = self.claims.network.get_mut(&stream) {
            network.approval = Some(approval);
        }
    }

    /// Discards the claim of a peer whose stream or connection has ended.
    pub(in crate::manager) fn network_withdrawn(&mut self, stream: StreamId) {
        if let Some(NetworkClaim { approval: Some(approval), .. }) =
            self.claims.network.remove(&stream)
        {
            self.withdraw_approval(approval);
        }
    }

    /// Checks a claim that a peer requests a signature of: its type, that it names the peer, and
    /// that the peer has signed it. Costs one signature verification.
    fn network_claim(
        &self,
        conn: ConnectionId,
        token: &[u8],
    ) -> Result<SinglySigned, ExchangeFault> {
        let (claim, peer) = (Claim::parse(token)?, self.connections.chain(conn));
        if !TYPES.contains(&claim.typ()) {
            return Err(ExchangeFault::Typ);
        }
        let names = |text: Option<&str>| {
            let id = text.and_then(|text| text.parse::<NodeId>().ok());
            id.is_some_and(|id| peer.contains(&id))
        };
        let signer =
            claim.token().signatures().first().map(crate::claims::token::TokenSignature::signer);
        let signer = signer.filter(|signer| peer.contains(signer)).ok_or(ExchangeFault::Issuer)?;
        if !names(claim.issuer()) && !names(claim.subject()) {
            return Err(ExchangeFault::Subject);
        }
        Ok(SinglySigned::verify(claim, &signer)?)
    }

    /// Handles the decision of the policy or the embedder: starts to sign, or refuses.
    pub(super) fn network_decided(&mut self, stream: StreamId, sign: bool) {
        if !sign {
            self.claims.network.remove(&stream);
            return self.network_refuse(stream, Refusal::Denied);
        }
        let key = self.cx.own();
        let Some(network) = self.claims.network.get_mut(&stream) else { return };
        (network.signer, network.approval) = (Some(key), None);
        let to_sign = ToSign { key, bytes: network.half.signing_input(&key) };
        let patience = self.cx.now + self.cx.config.call_timeout;
        self.rpc.wait_until(&mut self.cx, stream, patience);
        self.claim_sign(to_sign, ClaimSigner::Network(stream));
    }

    /// Sends the signed claim to the peer, or `Busy` if signing has failed.
    pub(super) fn network_signed(&mut self, stream: StreamId, signature: Option<Signature>) {
        let Some(NetworkClaim { half, signer, .. }) = self.claims.network.remove(&stream) else {
            return;
        };
        let full = signature
            .zip(signer)
            .and_then(|(signature, signer)| half.counter_sign(signer, signature).ok());
        match full {
            Some(full) => {
                self.cx.metrics.claims_signed += 1;
                self.rpc.answer(&mut self.cx, stream, RpcResponse::SignedClaim(sent(full.claim())));
            }
            None => self.network_refuse(stream, Refusal::Busy),
        }
    }

    /// Refuses a request of a peer and counts it.
    fn network_refuse(&mut self, stream: StreamId, refusal: Refusal) {
        self.cx.metrics.signatures_refused += 1;
        self.rpc.answer(&mut self.cx, stream, RpcResponse::Refused(refusal));
    }
}
