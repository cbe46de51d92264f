//! Claims about networks that peers want signed: `ClaimNetworkAccess` and `ClaimNetworkAuthority`, that name the peer, and
//! nothing else.

use super::{NodeManager, Waits};
use crate::claims::exchange::{ToSign, sent};
use crate::claims::{Claim, ExchangeFault, HalfSigned, Verdict};
use crate::error::PeerFault;
use crate::id::{ConnectionId, NodeId, StreamId};
use crate::io::Signature;
use crate::rpc::{Answer, Refusal};

/// The types of claims that are signed so.
const TYPES: [&str; 2] = ["ClaimNetworkAccess", "ClaimNetworkAuthority"];

/// A claim about a network that a peer wants signed.
#[derive(Debug)]
pub(super) struct NetworkClaim {
    conn: ConnectionId,
    half: HalfSigned,
    /// Our key that signs, once that is decided.
    signer: Option<NodeId>,
}

impl NetworkClaim {
    pub(super) fn conn(&self) -> ConnectionId {
        self.conn
    }
}

impl NodeManager {
    /// A peer wants a claim signed.
    pub(in crate::manager) fn network_asked(&mut self, stream: StreamId, conn: ConnectionId, token: &[u8]) {
        if !self.takes_claims(conn) {
            return self.network_refuse(stream, Refusal::Busy);
        }
        let half = match self.network_claim(conn, token) {
            Ok(half) => half,
            Err(fault) => {
                self.cx.metrics.claim_faults += 1;
                let signature = matches!(fault, ExchangeFault::Signed(_));
                self.network_refuse(stream, if signature { Refusal::Signature } else { Refusal::Claim });
                return self.rpc.count_fault(&mut self.cx, conn, PeerFault::Claims(fault));
            }
        };
        let claim = half.claim().clone();
        self.claims.network.insert(stream, NetworkClaim { conn, half, signer: None });
        match self.verdict(conn) {
            Verdict::Sign => self.network_decided(stream, true),
            Verdict::Refuse => self.network_decided(stream, false),
            Verdict::Ask => {
                self.ask(stream, conn, claim);
            }
        }
    }

    /// What the peer may have signed: a claim of the right type that names it and that it has signed itself.
    fn network_claim(&self, conn: ConnectionId, token: &[u8]) -> Result<HalfSigned, ExchangeFault> {
        let (claim, peer) = (Claim::parse(token)?, self.connections.chain(conn));
        if !TYPES.contains(&claim.typ()) {
            return Err(ExchangeFault::Typ);
        }
        let names = |text: Option<&str>| {
            let id = text.and_then(|text| text.parse::<NodeId>().ok());
            id.is_some_and(|id| peer.contains(&id))
        };
        if !names(claim.issuer()) && !names(claim.subject()) {
            return Err(ExchangeFault::Subject);
        }
        let signer = claim.token().signatures().first().map(crate::claims::TokenSignature::signer);
        let signer = signer.filter(|signer| peer.contains(signer)).ok_or(ExchangeFault::Issuer)?;
        Ok(HalfSigned::verify(claim, &signer)?)
    }

    /// The policy or the embedder has decided.
    pub(super) fn network_decided(&mut self, stream: StreamId, sign: bool) {
        if !sign {
            self.claims.network.remove(&stream);
            return self.network_refuse(stream, Refusal::Denied);
        }
        let key = self.cx.own();
        let Some(network) = self.claims.network.get_mut(&stream) else { return };
        network.signer = Some(key);
        let to_sign = ToSign { key, bytes: network.half.signing_input(&key) };
        let patience = self.cx.now + self.cx.config.call_timeout;
        self.rpc.wait_until(&mut self.cx, stream, patience);
        self.claim_sign(to_sign, Waits::Network(stream));
    }

    pub(super) fn network_signed(&mut self, stream: StreamId, signature: Option<Signature>) {
        let Some(NetworkClaim { half, signer, .. }) = self.claims.network.remove(&stream) else { return };
        let full = signature.zip(signer).and_then(|(signature, signer)| half.counter_sign(signer, signature).ok());
        match full {
            Some(full) => {
                self.cx.metrics.claims_signed += 1;
                self.rpc.answer(&mut self.cx, stream, Answer::SignedClaim(sent(full.claim())));
            }
            None => self.network_refuse(stream, Refusal::Busy),
        }
    }

    fn network_refuse(&mut self, stream: StreamId, refusal: Refusal) {
        self.cx.metrics.signatures_refused += 1;
        self.rpc.answer(&mut self.cx, stream, Answer::Refused(refusal));
    }
}
