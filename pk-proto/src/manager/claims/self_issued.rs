//! Local claims other than links: signed by the local node alone, or by the owner of a network as
//! well.

use alloc::boxed::Box;
use alloc::string::String;
use core::time::Duration;

use crate::api::error::{Failure, PeerFault, RequestError};
use crate::api::reply::Reply;
use crate::api::transport::DisconnectReason;
use crate::claims::{Claim, ClaimContent, ClaimId, ClaimLinkNode, ExchangeFault};
use crate::machine::cx::RngStream;
use crate::machine::effects::{ClaimSigner, ClaimWriter};
use crate::machine::timer::Timer;
use crate::manager::lifecycle::{OnCallEnded, Reactions};
use crate::manager::node::NodeManager;
use crate::manager::state::self_issued::{SelfIssuedClaim, State};
use crate::manager::state::stage::RequestStage;
use crate::rpc::event::CompletedCall;
use crate::types::id::{ConnectionId, RequestId, StreamId};
use crate::types::refusal::Refusal;
use crate::types::signature::Signature;
use crate::wire::message::{RpcRequest, RpcResponse};

/// Asking for the signature of a network claim is not repeated.
impl Reactions for SelfIssuedClaim {
    fn on_call_ended(&self) -> Option<OnCallEnded> {
        Some(|node, id, _, _, result| node.self_issued_call_ended(id, result))
    }
}

impl NodeManager {
    /// Checks whether the local chain can contain a claim other than a link.
    pub(in crate::manager) fn check_claim(
        &self,
        content: &ClaimContent,
    ) -> Result<(), RequestError> {
        let own = |text: &Option<String>| {
            let id = text.as_deref().and_then(|text| text.parse().ok());
            id.is_some_and(|id| self.cx.is_own(&id))
        };
        let id = ClaimId::from_bytes([0; 16]);
        Claim::draft(content, id, self.cx.unix(), self.claims.chain.head())
            .map_err(RequestError::Claim)?;
        if content.typ == ClaimLinkNode::TYP || !(own(&content.issuer) || own(&content.subject)) {
            return Err(RequestError::ForeignClaim);
        }
        Ok(())
    }

    /// Starts to append a claim; `conn` is the connection with the other node that must sign it.
    pub(in crate::manager) fn self_issued_begin(
        &mut self,
        id: RequestId,
        content: ClaimContent,
        conn: Option<ConnectionId>,
    ) -> RequestStage {
        let counter = conn.and_then(|conn| self.connections.node(conn).map(|node| (conn, node)));
        let mut own = SelfIssuedClaim { content, counter, attempts: 0, state: State::Waiting };
        self.draft_own(id, &mut own);
        RequestStage::AddClaim(Box::new(own))
    }

    /// Drafts a claim that waits, after a transaction has ended or a delay has passed.
    pub(in crate::manager) fn self_issued_draft(&mut self, id: RequestId) {
        if let Some(mut own) = self.take_own(id) {
            self.draft_own(id, &mut own);
            self.put_own(id, own);
        }
    }

    fn draft_own(&mut self, id: RequestId, own: &mut SelfIssuedClaim) {
        let owner = self.cx.own();
        // The content was checked when the request started, so the claim is valid.
        if let (State::Waiting, Some(Ok(claim))) =
            (&own.state, self.claims.chain.draft(&self.cx.own(), self.cx.unix(), &own.content))
        {
            let to_sign = crate::claims::exchange::parties::ToSign {
                key: owner,
                bytes: claim.signing_input(&owner),
            };
            own.state = State::Signing { claim, owner };
            self.claim_sign(to_sign, ClaimSigner::Own(id));
        }
    }

    /// Handles the local signature: appends the claim, or sends it to the other node that must
    /// sign.
    pub(super) fn self_issued_signed(&mut self, id: RequestId, result: Result<Signature, Failure>) {
        let Some(mut own) = self.take_own(id) else { return };
        let State::Signing { claim, owner } = core::mem::replace(&mut own.state, State::Waiting)
        else {
            return self.put_own(id, own);
        };
        let half = result.and_then(|signature| {
            claim
                .sign(owner, signature)
                .map_err(|fault| Failure::Signing(alloc::format!("{fault}")))
        });
        let asked = half.and_then(|half| match own.counter {
            None => Ok((half, None)),
            Some((conn, _)) => {
                let question =
                    RpcRequest::SignClaim(crate::claims::exchange::parties::sent(half.claim()));
                let stream = self.self_issued_call(id, conn, question)?;
                Ok((half, Some(stream)))
            }
        });
        match asked {
            Ok((half, Some(stream))) => {
                own.state = State::Asking { half, stream };
                self.put_own(id, own);
            }
            Ok((half, None)) => {
                self.put_own(id, own);
                self.self_issued_append(id, half.into_claim());
            }
            Err(failure) => {
                self.put_own(id, own);
                self.end(id, Err(failure));
            }
        }
    }

    /// Sends the claim to the other node. Fails if the node does not support this or the connection
    /// has ended.
    fn self_issued_call(
        &mut self,
        id: RequestId,
        conn: ConnectionId,
        question: RpcRequest,
    ) -> Result<StreamId, Failure> {
        if !self.rpc.speaks_exchanges(conn) {
            return Err(Failure::Unsupported);
        }
        let deadline = self.requests.deadline(id).unwrap_or(self.cx.now);
        let stream = self.rpc.call(&mut self.cx, conn, id, question, deadline);
        stream.ok_or(Failure::ConnectionLost(DisconnectReason::Local))
    }

    /// Handles the response of the other node.
    fn self_issued_call_ended(&mut self, id: RequestId, result: Result<CompletedCall, Failure>) {
        let Some(mut own) = self.take_own(id) else { return };
        let (State::Asking { half, .. }, Some((conn, node))) =
            (core::mem::replace(&mut own.state, State::Waiting), own.counter)
        else {
            return self.put_own(id, own);
        };
        self.put_own(id, own);
        match result.map(|answered| answered.answer) {
            Ok(RpcResponse::SignedClaim(token)) => {
                let claim = Claim::parse(&token).map_err(ExchangeFault::from);
                match claim.and_then(|claim| Ok(half.completed_by(claim, &node)?)) {
                    Ok(full) => self.self_issued_append(id, full.into_claim()),
                    Err(fault) => {
                        self.cx.metrics.claim_faults += 1;
                        self.rpc.count_fault(&mut self.cx, conn, PeerFault::Claims(fault));
                        self.end(id, Err(Failure::Peer(PeerFault::Claims(fault))));
                    }
                }
            }
            Ok(RpcResponse::Refused(Refusal::Busy)) => self.self_issued_pause(id),
            Ok(RpcResponse::Refused(refusal)) => self.end(id, Err(Failure::Refused(refusal))),
            Ok(_) => self.end(id, Err(Failure::Peer(PeerFault::Unexpected))),
            Err(failure) => self.end(id, Err(failure)),
        }
    }

    /// Appends the signed claim, or retries later if another claim was appended first or has
    /// priority.
    fn self_issued_append(&mut self, id: RequestId, claim: Claim) {
        let Some(attempts) = self.requests.stage::<SelfIssuedClaim>(id).map(|own| own.attempts)
        else {
            return;
        };
        let fits = self.claims.chain.fits(&claim);
        if !fits || self.gives_way(attempts) {
            self.cx.metrics.claims_stale += u64::from(!fits);
            return self.self_issued_pause(id);
        }
        self.claim_append(&claim, alloc::vec::Vec::new(), ClaimWriter::Own(id));
        if let Some(own) = self.requests.stage_mut::<SelfIssuedClaim>(id) {
            own.state = State::Persisting { claim };
        }
    }

    /// Sets the timer of the next attempt, with a random delay.
    fn self_issued_pause(&mut self, id: RequestId) {
        let delay = self.cx.config.claim_retry_delay;
        let chance = self.cx.random_u64(RngStream::Claims)
            % u64::try_from(delay.as_micros()).unwrap_or(u64::MAX).max(1);
        if let Some(own) = self.requests.stage_mut::<SelfIssuedClaim>(id) {
            own.attempts = own.attempts.saturating_add(1);
            let wait = delay * own.attempts.min(64) / 2 + Duration::from_micros(chance);
            self.cx.timers.set(Timer::ClaimRetry(id), self.cx.now + wait);
        }
    }

    /// Ends the request with the outcome of its write.
    pub(super) fn self_issued_persisted(&mut self, id: RequestId, result: Result<(), Failure>) {
        let Some(own) = self.take_own(id) else { return };
        let reply = match own.state {
            State::Persisting { claim } if own.counter.is_some() => Reply::ClaimNetwork(claim),
            State::Persisting { claim } => Reply::AddClaim(claim.id()),
            _ => return,
        };
        self.end(id, result.map(|()| reply));
    }

    /// Takes the claim of a request out of the table. The caller puts it back at once, unless the
    /// request ends.
    fn take_own(&mut self, id: RequestId) -> Option<SelfIssuedClaim> {
        let own = self.requests.stage_mut::<SelfIssuedClaim>(id)?;
        let content = ClaimContent {
            typ: String::new(),
            issuer: None,
            subject: None,
            members: String::new(),
        };
        let empty = SelfIssuedClaim { content, counter: None, attempts: 0, state: State::Waiting };
        Some(core::mem::replace(own, empty))
    }

    fn put_own(&mut self, id: RequestId, taken: SelfIssuedClaim) {
        if let Some(own) = self.requests.stage_mut::<SelfIssuedClaim>(id) {
            *own = taken;
        }
    }
}
