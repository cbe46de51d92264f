//! Claims of other types in our chain: signed by us alone, or by the node that a network belongs to as well.

use alloc::boxed::Box;
use alloc::string::String;
use core::time::Duration;

use super::{NodeManager, Waits};
use crate::claims::{Claim, ClaimContent, ClaimId, ClaimLinkNode, ExchangeFault, HalfSigned, UnsignedClaim};
use crate::cx::Dice;
use crate::error::{Failure, PeerFault, RequestError};
use crate::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::io::{DisconnectReason, Signature};
use crate::manager::open::{Open, Stage};
use crate::request::Reply;
use crate::rpc::{Answer, Answered, Question, Refusal};
use crate::timers::Timer;

/// A claim on its way into our chain.
#[derive(Debug)]
pub(in crate::manager) struct OwnClaim {
    content: ClaimContent,
    /// Who is to sign it, too, and over which connection it is asked.
    counter: Option<(ConnectionId, NodeId)>,
    attempts: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Our chain is being written, or another attempt is due in a moment.
    Waiting,
    /// It is being signed.
    Signing { claim: UnsignedClaim, owner: NodeId },
    /// The other node is to sign it.
    Asking { half: HalfSigned, stream: StreamId },
    /// It is being written.
    Persisting { claim: Claim },
}

impl OwnClaim {
    /// Whether it waits for our chain.
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// Whether it is being written: it does not end before that has.
    pub(in crate::manager) fn is_persisting(&self) -> bool {
        matches!(self.state, State::Persisting { .. })
    }

    /// The stream that it waits for.
    pub(in crate::manager) fn stream(&self) -> Option<StreamId> {
        match &self.state {
            State::Asking { stream, .. } => Some(*stream),
            _ => None,
        }
    }
}

impl NodeManager {
    /// Whether a claim of another type can be in our chain.
    pub(in crate::manager) fn check_claim(&self, content: &ClaimContent) -> Result<(), RequestError> {
        let own = |text: &Option<String>| {
            let id = text.as_deref().and_then(|text| text.parse().ok());
            id.is_some_and(|id| self.cx.is_own(&id))
        };
        let id = ClaimId::from_bytes([0; 16]);
        Claim::draft(content, id, self.cx.unix(), self.claims.chain.head()).map_err(RequestError::Claim)?;
        if content.typ == ClaimLinkNode::TYP || !(own(&content.issuer) || own(&content.subject)) {
            return Err(RequestError::ForeignClaim);
        }
        Ok(())
    }

    /// Begins with a claim of ours; `conn` is with the node that is to sign it, too.
    pub(in crate::manager) fn own_begin(
        &mut self,
        id: RequestId,
        content: ClaimContent,
        conn: Option<ConnectionId>,
    ) -> Stage {
        let counter = conn.and_then(|conn| self.connections.node(conn).map(|node| (conn, node)));
        let mut own = OwnClaim { content, counter, attempts: 0, state: State::Waiting };
        self.draft_own(id, &mut own);
        Stage::AddClaim(Box::new(own))
    }

    /// The chain is free, or another attempt is due.
    pub(in crate::manager) fn own_draft(&mut self, id: RequestId) {
        if let Some(mut own) = self.take_own(id) {
            self.draft_own(id, &mut own);
            self.put_own(id, own);
        }
    }

    fn draft_own(&mut self, id: RequestId, own: &mut OwnClaim) {
        let owner = self.cx.own();
        // What was checked when it was begun has the form of a claim.
        if let (State::Waiting, Some(Ok(claim))) = (&own.state, self.claims.chain.draft(&self.cx, &own.content)) {
            let to_sign = crate::claims::exchange::ToSign { key: owner, bytes: claim.signing_input(&owner) };
            own.state = State::Signing { claim, owner };
            self.claim_sign(to_sign, Waits::Own(id));
        }
    }

    pub(super) fn own_signed(&mut self, id: RequestId, result: Result<Signature, Failure>) {
        let Some(mut own) = self.take_own(id) else { return };
        let State::Signing { claim, owner } = core::mem::replace(&mut own.state, State::Waiting) else {
            return self.put_own(id, own);
        };
        let half = result.and_then(|signature| {
            claim.sign(owner, signature).map_err(|fault| Failure::Signing(alloc::format!("{fault}")))
        });
        let asked = half.and_then(|half| match own.counter {
            None => Ok((half, None)),
            Some((conn, _)) => {
                let question = Question::SignClaim(crate::claims::exchange::sent(half.claim()));
                let stream = self.own_ask(id, conn, question)?;
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
                self.own_append(id, half.into_claim());
            }
            Err(failure) => {
                self.put_own(id, own);
                self.end(id, Err(failure));
            }
        }
    }

    fn own_ask(&mut self, id: RequestId, conn: ConnectionId, question: Question) -> Result<StreamId, Failure> {
        if !self.rpc.speaks_exchanges(conn) {
            return Err(Failure::Unsupported);
        }
        let deadline = self.open.get(&id).map_or(self.cx.now, |open| open.deadline);
        let stream = self.rpc.call(&mut self.cx, conn, id, question, deadline);
        stream.ok_or(Failure::ConnectionLost(DisconnectReason::Local))
    }

    /// The other node has signed, or not.
    pub(in crate::manager) fn own_answered(&mut self, id: RequestId, result: Result<Answered, Failure>) {
        let Some(mut own) = self.take_own(id) else { return };
        let (State::Asking { half, .. }, Some((conn, node))) =
            (core::mem::replace(&mut own.state, State::Waiting), own.counter)
        else {
            return self.put_own(id, own);
        };
        self.put_own(id, own);
        match result.map(|answered| answered.answer) {
            Ok(Answer::SignedClaim(token)) => {
                let claim = Claim::parse(&token).map_err(ExchangeFault::from);
                match claim.and_then(|claim| Ok(half.completed_by(claim, &node)?)) {
                    Ok(full) => self.own_append(id, full.into_claim()),
                    Err(fault) => {
                        self.cx.metrics.claim_faults += 1;
                        self.rpc.count_fault(&mut self.cx, conn, PeerFault::Claims(fault));
                        self.end(id, Err(Failure::Peer(PeerFault::Claims(fault))));
                    }
                }
            }
            Ok(Answer::Refused(Refusal::Busy)) => self.own_pause(id),
            Ok(Answer::Refused(refusal)) => self.end(id, Err(Failure::Refused(refusal))),
            Ok(_) => self.end(id, Err(Failure::Peer(PeerFault::Unexpected))),
            Err(failure) => self.end(id, Err(failure)),
        }
    }

    fn own_append(&mut self, id: RequestId, claim: Claim) {
        if !self.claims.chain.fits(&claim) {
            self.cx.metrics.claims_stale += 1;
            return self.own_pause(id);
        }
        self.claim_append(&claim, alloc::vec::Vec::new(), Waits::Own(id));
        if let Some(Open { stage: Stage::AddClaim(own), .. }) = self.open.get_mut(&id) {
            own.state = State::Persisting { claim };
        }
    }

    fn own_pause(&mut self, id: RequestId) {
        let delay = self.cx.config.claim_retry_delay;
        let chance = self.cx.random_u64(Dice::Claims) % u64::try_from(delay.as_micros()).unwrap_or(u64::MAX).max(1);
        if let Some(Open { stage: Stage::AddClaim(own), .. }) = self.open.get_mut(&id) {
            own.attempts = own.attempts.saturating_add(1);
            let wait = delay * own.attempts.min(64) / 2 + Duration::from_micros(chance);
            self.cx.timers.set(Timer::ClaimRetry(id), self.cx.now + wait);
        }
    }

    pub(super) fn own_persisted(&mut self, id: RequestId, result: Result<(), Failure>) {
        let Some(own) = self.take_own(id) else { return };
        let reply = match own.state {
            State::Persisting { claim } if own.counter.is_some() => Reply::ClaimNetwork(claim),
            State::Persisting { claim } => Reply::AddClaim(claim.id()),
            _ => return,
        };
        self.end(id, result.map(|()| reply));
    }

    /// Takes the claim of a request out of the table, to be put back at once unless the request ends.
    fn take_own(&mut self, id: RequestId) -> Option<OwnClaim> {
        match &mut self.open.get_mut(&id)?.stage {
            Stage::AddClaim(own) => {
                let content = ClaimContent { typ: String::new(), issuer: None, subject: None, members: String::new() };
                let empty = OwnClaim { content, counter: None, attempts: 0, state: State::Waiting };
                Some(core::mem::replace(&mut **own, empty))
            }
            _ => None,
        }
    }

    fn put_own(&mut self, id: RequestId, taken: OwnClaim) {
        if let Some(Open { stage: Stage::AddClaim(own), .. }) = self.open.get_mut(&id) {
            **own = taken;
        }
    }
}
