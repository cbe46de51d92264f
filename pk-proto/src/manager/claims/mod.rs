//! Claims of the local node (docs/DESIGN.md, Claims): the local chain, the policy for incoming
//! claims, and unfinished exchanges.
//!
//! Local requests are in [`outgoing`] (link claims) and [`self_issued`] (other types), requests of
//! peers in [`incoming`] and [`network`]. This file has what they share: the allow-list, the
//! completions of effects, approvals, and the resumption of exchanges.

mod getters;
mod incoming;
mod network;
mod outgoing;
mod self_issued;
mod turns;

use alloc::string::String;
use alloc::vec::Vec;

pub(super) use self::outgoing::committed;
use super::node::NodeManager;
use super::state::claims::{CommittedClaim, PendingApproval};
use super::state::outgoing::{OutgoingClaim, OutgoingExchange};
use super::state::renewal::Renewal;
use super::state::self_issued::SelfIssuedClaim;
use super::state::stage::{OnConnected, OpenRequest, Recipient, RequestStage};
use super::state::writes::Evidence;
use crate::api::error::{Failure, RequestError};
use crate::api::event::Event;
use crate::api::output::Output;
use crate::api::reply::Reply;
use crate::api::request::RequestOptions;
use crate::claims::exchange::parties::{Parties, ToSign};
use crate::claims::rows::{claim_row, read_claim_row};
use crate::claims::sigchain::{Appended, allow_row};
use crate::claims::token::MAX_TOKEN_LEN;
use crate::claims::{Claim, ClaimId, OpenExchange, Verdict};
use crate::machine::effects::{
    ClaimSigner, ClaimWriter, EffectOwner, LoadOwner, PersistOwner, SignOwner,
};
use crate::machine::phase::{Entry, Phase};
use crate::machine::timer::Timer;
use crate::rpc::ExchangeStep;
use crate::shares::Source;
use crate::store::table::{StoreOp, StoreRange, StoreRow, WriteFailure};
use crate::types::id::{ApprovalId, ConnectionId, NodeId, RequestId, StreamId};
use crate::types::signature::Signature;
use crate::types::time::Instant;

/// Maximum number of bytes of a row with one claim; every such row is smaller.
const ROW_LEN: u64 = 2 * MAX_TOKEN_LEN as u64;
/// Maximum number of doublings of `claim_resume_delay`.
const MAX_BACKOFF: u32 = 6;

/// A. Approvals.
impl NodeManager {
    /// Responds to [`Event::ClaimApprovalRequested`]: signs the claim, or refuses it. Has no effect
    /// if the approval is already decided, or the peer has left.
    pub fn resolve_claim_approval(&mut self, approval: ApprovalId, sign: bool, now: Instant) {
        if self.enter(now, Entry::ResolveClaimApproval { approval, sign }).is_ok() {
            self.decided(approval, sign);
            self.settle();
        }
    }
}

impl NodeManager {
    /// Checks whether another local claim can be tracked, in addition to those of open requests.
    pub(super) fn check_claims(&self) -> Result<(), RequestError> {
        let limit = self.cx.config.open_exchange_limit;
        let coming = self.requests.claiming().filter(|(_, open)| {
            !matches!(open.stage, RequestStage::AddClaim(_)) && committed(&open.stage).is_none()
        });
        let coming = coming.count();
        if self.claims.ours.len() + coming >= limit {
            Err(RequestError::TooManyExchanges(limit))
        } else {
            Ok(())
        }
    }

    // -- the allow-list

    /// Checks whether the allow-list has room for a node, in addition to those whose write is in
    /// progress.
    pub(super) fn check_allow(&self, node: &NodeId) -> Result<(), RequestError> {
        let limit = self.cx.config.allow_list_limit;
        match self.claims.allowed.has_room_for(node, limit) {
            true => Ok(()),
            false => Err(RequestError::AllowListFull(limit)),
        }
    }

    /// Writes a change of the allow-list. The change takes effect when it is committed.
    pub(super) fn allow_begin(
        &mut self,
        request: RequestId,
        deadline: Instant,
        node: NodeId,
        allowed: bool,
    ) {
        self.begin(
            request,
            OpenRequest {
                recipient: Recipient::Embedder,
                deadline,
                stage: RequestStage::AllowClaim,
            },
        );
        self.claims.allowed.begin(node, allowed);
        let row = allow_row(&node, allowed);
        let evidence = Evidence::of(&row);
        self.claim_persist(
            alloc::vec![row],
            evidence,
            ClaimWriter::AllowList { request, node, allowed },
        );
    }

    /// Returns the failure of a request whose node could not be connected. If a claim of the
    /// request is committed, its outcome is `ClaimUnconfirmed`.
    pub(super) fn not_found(
        &mut self,
        recipient: Recipient,
        on_connected: &OnConnected,
        failure: Failure,
    ) -> Result<Reply, Failure> {
        match on_connected {
            OnConnected::ClaimNode(OutgoingClaim { committed: Some(mine), .. }) => {
                self.report_unconfirmed(*mine, recipient == Recipient::None);
                Err(Failure::ClaimUnconfirmed(*mine))
            }
            _ => Err(failure),
        }
    }

    // -- effects

    fn claim_sign(&mut self, to_sign: ToSign, signer: ClaimSigner) {
        let id = self.cx.effects.begin(EffectOwner::Sign(SignOwner::Claim(signer)));
        self.cx.output(Output::Sign { id, key: to_sign.key, bytes: to_sign.bytes });
    }

    fn claim_load(&mut self, range: StoreRange, owner: LoadOwner) {
        self.load(owner, range, ROW_LEN);
    }

    fn claim_persist(&mut self, ops: Vec<StoreOp>, evidence: Evidence, writer: ClaimWriter) {
        let id = self
            .cx
            .effects
            .begin(EffectOwner::Persist(PersistOwner::Claim { writer, appends: false }));
        self.persist(id, ops, evidence);
    }

    /// Appends a claim that fits the head of the local chain. `with` is written in the same
    /// transaction.
    fn claim_append(&mut self, claim: &Claim, with: Vec<StoreOp>, writer: ClaimWriter) {
        let id = self
            .cx
            .effects
            .begin(EffectOwner::Persist(PersistOwner::Claim { writer, appends: true }));
        let mut ops = self.claims.chain.append(self.cx.config.claim_digest, claim);
        ops.extend(with);
        // The row of this claim is evidence because no other transaction writes it.
        self.persist(id, ops, Evidence::of(&claim_row(claim)));
    }

    /// Passes a signature, or the failure to sign, to its claim.
    pub(super) fn claim_signed(&mut self, signer: ClaimSigner, result: Result<Signature, String>) {
        if result.is_err() {
            self.cx.metrics.signing_failures += 1;
        }
        let result = result.map_err(Failure::Signing);
        match signer {
            ClaimSigner::Initiator(request) => self.outgoing_signed(request, result),
            ClaimSigner::Responder(stream) => self.incoming_signed(stream, result.ok()),
            ClaimSigner::Own(request) => self.self_issued_signed(request, result),
            ClaimSigner::Network(stream) => self.network_signed(stream, result.ok()),
        }
        self.next_turn();
    }

    /// Handles the row of a claim for a local exchange, or the failure to read it.
    pub(super) fn initiator_loaded(
        &mut self,
        request: RequestId,
        result: Result<(Vec<StoreRow>, bool), String>,
    ) {
        self.outgoing_loaded(request, first_row(result));
        self.next_turn();
    }

    /// Handles a row for an exchange of a peer, or the failure to read it.
    pub(super) fn responder_loaded(
        &mut self,
        stream: StreamId,
        result: Result<(Vec<StoreRow>, bool), String>,
    ) {
        self.incoming_loaded(stream, first_row(result));
        self.next_turn();
    }

    /// Handles the outcome of a transaction of claims; `appends`: the transaction moves the head of
    /// the local chain.
    pub(super) fn claim_persisted(
        &mut self,
        writer: ClaimWriter,
        appends: bool,
        result: &Result<(), WriteFailure>,
    ) {
        if result.is_err() {
            self.cx.metrics.store_failures += 1;
        }
        let appended = if appends { self.claims.chain.persisted(result.is_ok()) } else { None };
        if let Some(Appended { claim, link }) = appended.filter(|_| result.is_ok()) {
            self.cx.metrics.claims += 1;
            let node =
                link.and_then(|link| self.cx.own_chain().iter().find_map(|own| link.other(own)));
            self.cx.event(Event::ClaimAdded { claim, node });
        }
        let result = result.clone().map_err(Failure::from);
        match writer {
            ClaimWriter::Initiator(request) => self.outgoing_persisted(request, result),
            ClaimWriter::Responder(stream) => self.incoming_persisted(stream, result.is_ok()),
            ClaimWriter::Own(request) => self.self_issued_persisted(request, result),
            ClaimWriter::AllowList { request, node, allowed } => {
                self.claims.allowed.end(node, allowed, result.is_ok());
                self.end(request, result.map(|()| Reply::AllowClaim));
            }
            ClaimWriter::Detached { peer, claim, theirs } if result.is_ok() => {
                self.outgoing_found(peer, claim, theirs);
            }
            ClaimWriter::Detached { .. } | ClaimWriter::Settled => {}
        }
        if appended.is_some() {
            self.chain_is_free();
        }
        self.next_turn();
    }

    /// Drafts all local claims that wait for the local chain, after a transaction of it has ended.
    /// Those that wait for the time of their next attempt are not drafted before. Claims of peers
    /// take turns instead.
    fn chain_is_free(&mut self) {
        let pauses = |id: &RequestId| self.cx.timers.get(Timer::ClaimRetry(*id)).is_some();
        let ours = self.requests.claiming_in::<OutgoingExchange>().filter(|(_, node)| node.waits());
        let ours: Vec<_> = ours.map(|(id, _)| id).filter(|id| !pauses(id)).collect();
        let own = self.requests.claiming_in::<SelfIssuedClaim>().filter(|(_, own)| own.waits());
        let own: Vec<_> = own.map(|(id, _)| id).filter(|id| !pauses(id)).collect();
        ours.into_iter().for_each(|id| self.outgoing_draft(id));
        own.into_iter().for_each(|id| self.self_issued_draft(id));
    }

    // -- writes whose outcome the store does not know

    /// Ends a request at its deadline, if the outcome of its transaction is unknown. Its exchange
    /// or renewal continues without it when the outcome is known.
    pub(super) fn end_if_in_doubt(&mut self, id: RequestId) {
        let Some(why) = self.doubt_of(id).map(String::from) else { return };
        if let Some(node) = self.requests.stage::<OutgoingExchange>(id)
            && let Some((claim, theirs)) = node.persisting()
        {
            self.cx
                .effects
                .detach(id, ClaimWriter::Detached { peer: node.target(), claim, theirs });
        }
        let failure = Failure::OutcomeUnknown(why);
        if self.requests.stage::<Renewal>(id).is_none() {
            self.end(id, Err(failure));
        } else if self.requests.move_to_background(id) {
            // The renewal continues without its request. No other renewal can start before it ends.
            self.cx.event(Event::Done { id, result: Err(failure) });
        }
    }

    /// Returns whether a request must wait until the head of the local chain is known.
    pub(super) fn waits_for_head(&self, stage: &RequestStage) -> bool {
        let drafts = match stage {
            RequestStage::ClaimNode(node) => node.committed().is_none(),
            RequestStage::AddClaim(_) => true,
            _ => false,
        };
        drafts && self.claims.chain.in_doubt()
    }

    /// Returns the failure of requests that wait for the head of the local chain; `None` if the
    /// head is known.
    pub(super) fn head_unknown(&self) -> Option<Failure> {
        self.doubt_where(PersistOwner::appends).map(|why| Failure::HeadUnknown(why.into()))
    }

    // -- streams

    /// Passes a step of an exchange to the local exchange or the peer's exchange of its stream.
    pub(super) fn exchange(&mut self, stream: StreamId, conn: ConnectionId, step: ExchangeStep) {
        match (self.claims.streams.get(&stream).copied(), step) {
            (_, ExchangeStep::Begun(token)) => self.incoming_begun(stream, conn, &token),
            (Some(request), ExchangeStep::Token(token)) => {
                self.outgoing_token(request, stream, &token);
            }
            (Some(request), ExchangeStep::Finished) => self.outgoing_finished(request, stream),
            (Some(request), ExchangeStep::Failed(failure)) => {
                self.claims.streams.remove(&stream);
                self.outgoing_stream_failed(request, failure);
            }
            (None, ExchangeStep::Token(token)) => self.incoming_token(stream, &token),
            (None, ExchangeStep::Finished) => self.incoming_finished(stream),
            (None, ExchangeStep::Failed(_)) => self.incoming_failed(stream),
        }
        self.next_turn();
    }

    /// Returns the ids of both nodes of a connection.
    fn parties(&self, conn: ConnectionId) -> Parties {
        Parties { own: self.cx.own_chain().to_vec(), peer: self.connections.chain(conn) }
    }

    // -- the policy

    /// Returns the decision of the claim policy for the peer of a connection.
    fn verdict(&self, conn: ConnectionId) -> Verdict {
        self.cx
            .config
            .claim_policy
            .judge(self.claims.allowed.nodes(), &self.connections.chain(conn))
    }

    /// Requests the embedder's approval of a claim that a stream has brought, and sets its timeout.
    fn request_approval(
        &mut self,
        stream: StreamId,
        conn: ConnectionId,
        source: Source,
        claim: Claim,
    ) -> ApprovalId {
        let (approval, within) = (self.cx.ids.approval(), self.cx.config.claim_approval_timeout);
        self.claims.approvals.insert(approval, PendingApproval { stream: Some(stream), source });
        self.cx.timers.set(Timer::Approval(approval), self.cx.now + within);
        // The response to the peer follows the decision, so the stream waits somewhat longer than
        // the approval.
        let until = self.cx.now + within + self.cx.config.call_timeout;
        self.rpc.wait_until(&mut self.cx, stream, until);
        let node = self.connections.node(conn).unwrap_or(self.cx.own());
        self.cx.event(Event::ClaimApprovalRequested { approval, node, claim, within });
        approval
    }

    /// Handles the embedder's decision. A decision on a claim whose peer has left is counted as
    /// late.
    fn decided(&mut self, approval: ApprovalId, sign: bool) {
        self.cx.timers.cancel(Timer::Approval(approval));
        match self.claims.approvals.remove(&approval).and_then(|approval| approval.stream) {
            Some(stream) => self.decide(stream, sign),
            None => self.cx.metrics.late_inputs += 1,
        }
    }

    /// Refuses a claim that the embedder has not decided in time.
    pub(super) fn approval_overdue(&mut self, approval: ApprovalId) {
        if let Some(stream) =
            self.claims.approvals.remove(&approval).and_then(|approval| approval.stream)
        {
            self.decide(stream, false);
        }
    }

    fn decide(&mut self, stream: StreamId, sign: bool) {
        if self.claims.network.get(&stream).is_some() {
            self.network_decided(stream, sign);
        } else {
            self.incoming_decided(stream, sign);
        }
        self.next_turn();
    }

    /// Detaches an approval from its stream, because the peer has left before the decision.
    fn withdraw_approval(&mut self, approval: ApprovalId) {
        if let Some(approval) = self.claims.approvals.get_mut(&approval) {
            approval.stream = None;
        }
    }

    /// Handles the retry timer: starts another attempt of a request.
    pub(super) fn claim_retry(&mut self, id: RequestId) {
        if self.requests.stage::<SelfIssuedClaim>(id).is_some() {
            self.self_issued_draft(id);
        } else {
            self.outgoing_retry(id);
        }
    }

    // -- unfinished exchanges

    /// Reports the unconfirmed claims of the stored state when the node listens.
    pub(super) fn tell_of_doubts(&mut self) {
        for (claim, committed) in &self.claims.ours {
            self.cx.event(Event::ClaimUnconfirmed { claim: *claim, node: committed.peer });
        }
    }

    /// Resumes unfinished exchanges with a node that has connected.
    pub(super) fn resume_with(&mut self, chain: &[NodeId]) {
        let with = |committed: &CommittedClaim| {
            committed.busy.is_none() && chain.contains(&committed.peer)
        };
        let claims: Vec<_> =
            self.claims.ours.iter().filter(|(_, of)| with(of)).map(|(claim, _)| *claim).collect();
        claims.into_iter().for_each(|claim| self.resume(claim));
    }

    /// Resumes the exchange of a committed claim, if no request does and its peer is connected.
    pub(super) fn resume(&mut self, claim: ClaimId) {
        if self.cx.phase() != Phase::Running {
            return;
        }
        let Some(committed) =
            self.claims.ours.get(&claim).filter(|committed| committed.busy.is_none())
        else {
            return;
        };
        let target = committed.peer;
        let Some(conn) = self.connections.live(&target) else { return };
        let (id, deadline) = (self.cx.ids.request(), self.cx.now + self.cx.config.request_deadline);
        let claim = OutgoingClaim {
            committed: Some(claim),
            ..OutgoingClaim::new(target, RequestOptions::default())
        };
        let stage = self.outgoing_begin(id, conn, claim);
        self.begin(id, OpenRequest { recipient: Recipient::None, deadline, stage });
    }

    /// Ends an exchange of a committed claim that the peer has not confirmed, and sets the timer
    /// that resumes it; `known`: the embedder was informed before.
    fn report_unconfirmed(&mut self, claim: ClaimId, known: bool) {
        let Some(committed) = self.claims.ours.get_mut(&claim) else { return };
        committed.busy = None;
        let delay = self.cx.config.claim_resume_delay * (1 << committed.attempts.min(MAX_BACKOFF));
        committed.attempts = committed.attempts.saturating_add(1);
        self.cx.timers.set(Timer::ClaimResume(claim), self.cx.now + delay);
        if !known {
            self.cx.event(Event::ClaimUnconfirmed { claim, node: committed.peer });
        }
    }

    /// Removes a local claim from the unfinished exchanges, because the peer has confirmed it.
    fn report_confirmed(&mut self, claim: ClaimId) {
        self.cx.timers.cancel(Timer::ClaimResume(claim));
        if let Some(CommittedClaim { peer, theirs, .. }) = self.claims.ours.remove(&claim) {
            let removal = OpenExchange::Ours { peer, claim, theirs }.removal();
            // If the write fails or a crash undoes it, the exchange resumes after the next start,
            // and the peer confirms the claim again.
            let owner = PersistOwner::Claim { writer: ClaimWriter::Settled, appends: false };
            let id = self.cx.effects.begin(EffectOwner::Persist(owner));
            self.persist_loosely(id, alloc::vec![removal]);
        }
    }

    /// Returns the claim in a row of the local chain.
    fn claim_of(row: Option<StoreRow>) -> Result<Claim, Failure> {
        let damaged = || Failure::Store("a claim of the local chain cannot be parsed".into());
        let (key, value) = row.ok_or_else(damaged)?;
        let (_, json) = read_claim_row(&key, &value).map_err(|_| damaged())?;
        Claim::parse(json.as_bytes()).map_err(|_| damaged())
    }
}

/// Returns the row from a read of one row.
fn first_row(result: Result<(Vec<StoreRow>, bool), String>) -> Result<Option<StoreRow>, Failure> {
    result.map(|(rows, _)| rows.into_iter().next()).map_err(Failure::Store)
}
