//! Link claims that local requests start (specification: claimNode): attempts of the initiator, and
//! the end of a request.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use crate::api::error::{Failure, PeerFault};
use crate::api::event::Event;
use crate::api::reply::Reply;
use crate::api::request::FindNodeOptions;
use crate::api::transport::DisconnectReason;
use crate::claims::exchange::{Initiator, Next};
use crate::claims::sigchain::claim_range;
use crate::claims::{Claim, ClaimContent, ClaimId, ClaimLinkNode, ExchangeFault, OpenExchange};
use crate::machine::cx::RngStream;
use crate::machine::effects::{ClaimSigner, ClaimWriter, LoadOwner};
use crate::machine::phase::Phase;
use crate::machine::timer::Timer;
use crate::manager::lifecycle::{OnCallEnded, Reactions};
use crate::manager::node::NodeManager;
use crate::manager::state::claims::CommittedClaim;
use crate::manager::state::outgoing::{OutgoingClaim, OutgoingExchange};
use crate::manager::state::request_table::Entry;
use crate::manager::state::stage::{OnConnected, Recipient, RequestStage, Search};
use crate::manager::state::writes::Evidence;
use crate::rpc::event::CompletedCall;
use crate::store::table::StoreRow;
use crate::types::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::types::refusal::Refusal;
use crate::types::signature::Signature;
use crate::wire::dialect::Dialect;
use crate::wire::message::{RpcRequest, RpcResponse};

/// Maximum delay before another attempt.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Returns the committed claim of a request, in whichever stage the request is.
pub(in crate::manager) fn committed(stage: &RequestStage) -> Option<ClaimId> {
    match stage {
        RequestStage::ClaimNode(node) => node.committed(),
        RequestStage::Find(Search { on_connected: OnConnected::ClaimNode(claim), .. }) => {
            claim.committed
        }
        _ => None,
    }
}

/// Exchanges are not repeated like other calls. They have their own rules of resumption.
impl Reactions for OutgoingExchange {
    fn on_call_ended(&self) -> Option<OnCallEnded> {
        Some(|node, id, _, _, result| node.outgoing_checked(id, result))
    }
}

impl NodeManager {
    // -- start

    /// Starts an attempt on a connection. Returns the stage of the request.
    pub(in crate::manager) fn outgoing_begin(
        &mut self,
        id: RequestId,
        conn: ConnectionId,
        claim: OutgoingClaim,
    ) -> RequestStage {
        let mut node =
            OutgoingExchange { claim, conn, stream: None, state: Some(Initiator::Waiting) };
        match claim.committed {
            Some(mine) => {
                if let Some(committed) = self.claims.ours.get_mut(&mine) {
                    committed.busy = Some(id);
                }
                self.cx.timers.cancel(Timer::ClaimResume(mine));
                self.outgoing_resume(id, &mut node, mine);
            }
            None => self.draft(id, &mut node),
        }
        RequestStage::ClaimNode(Box::new(node))
    }

    /// Resumes the exchange of a committed claim. A Polykey 1.x node may not recognize an exchange
    /// that it has completed, so its chain is searched first for the claim that this node has
    /// signed.
    fn outgoing_resume(&mut self, id: RequestId, node: &mut OutgoingExchange, mine: ClaimId) {
        let theirs = self.claims.ours.get(&mine).map(|committed| committed.theirs);
        if let (Some(theirs), Some(Dialect::Polykey)) = (theirs, self.rpc.dialect(node.conn)) {
            let before = u128::from_be_bytes(*theirs.as_bytes()).saturating_sub(1);
            let after = Some(ClaimId::from_bytes(before.to_be_bytes()));
            // A limit of zero bytes returns one claim of any length.
            let question = RpcRequest::Claims { after, max_bytes: 0 };
            let deadline = self.cx.now + self.cx.config.call_timeout;
            node.stream = self.rpc.call(&mut self.cx, node.conn, id, question, deadline);
            node.state = Some(Initiator::Checking { mine, theirs });
        } else {
            node.state = Some(Initiator::Loading { mine });
            self.claim_load(claim_range(&mine), LoadOwner::Initiator(id));
        }
    }

    /// Handles the response with a claim of the peer's chain. If the peer has committed its claim,
    /// the exchange is complete; otherwise the local claim is read and sent again.
    fn outgoing_checked(&mut self, id: RequestId, result: Result<CompletedCall, Failure>) {
        let Some(mut node) = self.take_node(id) else { return };
        // The stream may have more claims, which are not needed.
        self.drop_stream(&mut node);
        let Some(state @ Initiator::Checking { mine, .. }) = node.state.take() else {
            return self.put_node(id, node);
        };
        let parties = self.parties(node.conn);
        let failure = match result.map(|answered| answered.answer) {
            Ok(RpcResponse::Claims(page)) => {
                let found = page.claims.first().map(|(_, token)| &token[..]);
                if state.is_settled(&parties, found) {
                    self.put_node(id, node);
                    return self.end(id, Ok(Reply::ClaimNode(mine)));
                }
                node.state = Some(Initiator::Loading { mine });
                self.claim_load(claim_range(&mine), LoadOwner::Initiator(id));
                None
            }
            Ok(RpcResponse::Refused(refusal)) => Some(Failure::Refused(refusal)),
            Ok(_) => Some(Failure::Peer(PeerFault::Unexpected)),
            Err(failure) => Some(failure),
        };
        self.put_node(id, node);
        if let Some(failure) = failure {
            self.outgoing_failed(id, failure);
        }
    }

    /// Drafts the claim of an exchange that waits for the local chain.
    pub(super) fn outgoing_draft(&mut self, id: RequestId) {
        if let Some(mut node) = self.take_node(id) {
            if self.connections.node(node.conn).is_none() || self.connections.is_retired(node.conn)
            {
                // The connection was closed, or a renewal has retired it. A retired connection
                // proves only the former id, but the claim is issued by the new id.
                self.put_node(id, node);
                return self.outgoing_pause(id, None);
            }
            self.draft(id, &mut node);
            self.put_node(id, node);
        }
    }

    fn draft(&mut self, id: RequestId, node: &mut OutgoingExchange) {
        let (issuer, subject) =
            (self.cx.own(), self.connections.node(node.conn).unwrap_or(node.claim.target));
        let content = ClaimContent::link(&ClaimLinkNode { issuer, subject });
        // A link that this node creates is always a valid claim.
        if let Some(Ok(claim)) = self.claims.chain.draft(&self.cx.own(), self.cx.unix(), &content) {
            let (state, to_sign) = Initiator::drafted(claim, issuer);
            node.state = Some(state);
            self.claim_sign(to_sign, ClaimSigner::Initiator(id));
        }
    }

    // -- completions and tokens

    /// Handles the signature of a claim, or the failure to sign.
    pub(super) fn outgoing_signed(&mut self, id: RequestId, result: Result<Signature, Failure>) {
        let Some(mut node) = self.take_node(id) else { return };
        let next = match (node.state.take(), result) {
            (Some(state), Ok(signature)) => match state.signed(signature) {
                Ok((state, next)) => {
                    node.state = Some(state);
                    Ok(next)
                }
                Err(fault) => Err(Failure::Signing(alloc::format!("{fault}"))),
            },
            (Some(state), Err(failure)) => {
                let (committed, key) = (state.committed(), state.signer());
                if committed.is_some() || key.is_some_and(|key| key != self.cx.own()) {
                    // The signer may be available again later. A key that was renewed is not used
                    // again.
                    self.put_node(id, node);
                    return self.outgoing_pause(id, committed);
                }
                Err(failure)
            }
            (None, _) => Ok(Next::Wait),
        };
        self.put_node(id, node);
        match next {
            Ok(next) => self.outgoing_next(id, next),
            Err(failure) => self.end(id, Err(failure)),
        }
    }

    /// Handles the row of the committed claim that the exchange resumes.
    pub(super) fn outgoing_loaded(
        &mut self,
        id: RequestId,
        row: Result<Option<StoreRow>, Failure>,
    ) {
        let claim = row.and_then(Self::claim_of);
        let loaded = claim.and_then(|claim| {
            let damaged =
                |_| Failure::Store("a claim of the local chain is not signed by this node".into());
            Initiator::loaded(&claim).map_err(damaged)
        });
        match loaded {
            Ok((state, first)) => {
                let Some(mut node) = self.take_node(id) else { return };
                node.state = Some(state);
                self.put_node(id, node);
                self.outgoing_next(id, Next::Begin(first));
            }
            Err(failure) => self.end(id, Err(failure)),
        }
    }

    /// Handles a token of the peer.
    pub(super) fn outgoing_token(&mut self, id: RequestId, stream: StreamId, token: &[u8]) {
        let Some(mut node) = self.take_node(id) else { return };
        let Some(state) = node.state.take() else { return self.put_node(id, node) };
        let (parties, mine) = (self.parties(node.conn), state.committed());
        let claim = Claim::parse(token).map_err(ExchangeFault::from);
        match claim.and_then(|claim| state.token(&parties, claim)) {
            Ok((state, next)) => {
                node.state = Some(state);
                self.put_node(id, node);
                let step = self.cx.now + self.cx.config.call_timeout;
                self.outgoing_patience(id, stream, step);
                self.outgoing_next(id, next);
            }
            Err(fault) => {
                node.claim.committed = mine;
                self.put_node(id, node);
                self.cx.metrics.claim_faults += 1;
                // The RPC layer reports the failure of the stream, which ends the attempt.
                self.rpc.exchange_fault(&mut self.cx, stream, PeerFault::Claims(fault));
            }
        }
    }

    /// Executes the next action of the initiator.
    fn outgoing_next(&mut self, id: RequestId, next: Next) {
        match next {
            Next::Wait => {}
            Next::Sign(to_sign) => self.claim_sign(to_sign, ClaimSigner::Initiator(id)),
            Next::Begin(first) => self.outgoing_send_first(id, first),
            Next::Note { mine, theirs } => match self.claims.ours.get(&mine) {
                Some(committed) if committed.theirs != theirs => {
                    let row =
                        OpenExchange::Ours { peer: committed.peer, claim: mine, theirs }.row();
                    let evidence = Evidence::of(&row);
                    self.claim_persist(alloc::vec![row], evidence, ClaimWriter::Initiator(id));
                }
                _ => self.outgoing_persisted(id, Ok(())),
            },
            Next::Append(mine) if self.claims.chain.fits(mine.claim()) => {
                let Some(node) = self.requests.stage::<OutgoingExchange>(id) else { return };
                if self.gives_way(node.claim.attempts) {
                    return self.outgoing_pause(id, None);
                }
                let Some(theirs) = node.state.as_ref().and_then(Initiator::noted) else { return };
                let open = OpenExchange::Ours {
                    peer: node.claim.target,
                    claim: mine.claim().id(),
                    theirs,
                };
                self.claim_append(
                    mine.claim(),
                    alloc::vec![open.row()],
                    ClaimWriter::Initiator(id),
                );
            }
            Next::Append(_) => {
                self.cx.metrics.claims_stale += 1;
                self.outgoing_pause(id, None);
            }
        }
    }

    /// Opens the stream of an exchange and sends the first token.
    fn outgoing_send_first(&mut self, id: RequestId, first: Bytes) {
        let Some(Entry { deadline, payload: node, .. }) =
            self.requests.entry::<OutgoingExchange>(id)
        else {
            return;
        };
        match self.rpc.begin_exchange(&mut self.cx, node.conn, first, deadline) {
            Ok(stream) => {
                node.stream = Some(stream);
                self.claims.streams.insert(stream, id);
            }
            // Nothing was sent. The connection may have been closed by a renewal, so the peer is
            // not at fault.
            Err(Failure::ConnectionLost(_)) => {
                let committed = node.committed();
                self.outgoing_pause(id, committed);
            }
            Err(failure) => self.outgoing_failed(id, failure),
        }
    }

    /// Sends the last token of an exchange.
    fn outgoing_send_last(&mut self, id: RequestId, last: Bytes) {
        let Some(node) = self.requests.stage::<OutgoingExchange>(id) else { return };
        match node.stream {
            Some(stream) => {
                let until = self.cx.now + self.cx.config.call_timeout;
                self.rpc.exchange_token(&mut self.cx, stream, last);
                self.outgoing_patience(id, stream, until);
            }
            None => self.outgoing_failed(id, Failure::ConnectionLost(DisconnectReason::Local)),
        }
    }

    /// Sets the timeout of the peer's next step, which is that of any call, but not later than the
    /// deadline of the request.
    fn outgoing_patience(
        &mut self,
        id: RequestId,
        stream: StreamId,
        until: crate::types::time::Instant,
    ) {
        if let Some(deadline) = self.requests.deadline(id) {
            self.rpc.wait_until(&mut self.cx, stream, until.min(deadline));
        }
    }

    /// Handles the outcome of the write of the local claim, or of the record of the peer's claim.
    pub(super) fn outgoing_persisted(&mut self, id: RequestId, result: Result<(), Failure>) {
        let Some(mut node) = self.take_node(id) else { return };
        let Some(state) = node.state.take() else { return self.put_node(id, node) };
        if let Err(failure) = result {
            // Nothing was written, so the claim is not committed unless it was before.
            self.put_node(id, node);
            return self.end(id, Err(failure));
        }
        let (mine, theirs) = (state.committed(), state.noted());
        let (state, last) = state.persisted();
        node.state = Some(state);
        node.claim.committed = mine;
        if let (Some(mine), Some(theirs)) = (mine, theirs) {
            let new =
                CommittedClaim { peer: node.claim.target, theirs, busy: Some(id), attempts: 0 };
            self.claims.ours.entry(mine).or_insert(new).theirs = theirs;
        }
        self.put_node(id, node);
        if let Some(last) = last {
            self.outgoing_send_last(id, last);
        }
        let overdue = self.requests.deadline(id).is_some_and(|deadline| deadline <= self.cx.now);
        if overdue || self.cx.phase() != Phase::Running {
            self.end(id, Err(if overdue { Failure::DeadlineExceeded } else { Failure::Stopped }));
        }
    }

    /// Handles a committed claim whose request has ended. Its exchange resumes without the request.
    pub(super) fn outgoing_found(&mut self, peer: NodeId, claim: ClaimId, theirs: ClaimId) {
        let found = CommittedClaim { peer, theirs, busy: None, attempts: 0 };
        let committed = self.claims.ours.entry(claim).or_insert(found);
        committed.theirs = theirs;
        if committed.busy.is_none() {
            self.report_unconfirmed(claim, false);
        }
    }

    /// Handles the end of the peer's direction of a stream, which confirms the claim after the last
    /// token and is a fault before it.
    pub(super) fn outgoing_finished(&mut self, id: RequestId, stream: StreamId) {
        let Some(node) = self.requests.stage::<OutgoingExchange>(id) else { return };
        match node.state {
            Some(Initiator::Finishing { mine }) => {
                self.rpc.exchange_finish(&mut self.cx, stream);
                self.claims.streams.remove(&stream);
                if let Some(node) = self.requests.stage_mut::<OutgoingExchange>(id) {
                    node.stream = None;
                }
                self.end(id, Ok(Reply::ClaimNode(mine)));
            }
            _ => {
                self.cx.metrics.claim_faults += 1;
                self.rpc.exchange_fault(
                    &mut self.cx,
                    stream,
                    PeerFault::Claims(ExchangeFault::Early),
                );
            }
        }
    }

    /// Handles the failure of the stream of an exchange.
    pub(super) fn outgoing_stream_failed(&mut self, id: RequestId, failure: Failure) {
        let Some(node) = self.requests.stage_mut::<OutgoingExchange>(id) else { return };
        node.stream = None;
        // A write in progress continues. If the claim is committed, the missing stream then fails
        // the attempt, and the exchange resumes.
        if !node.is_persisting() {
            self.outgoing_failed(id, failure);
        }
    }

    /// Handles a suspected connection: its exchanges start again over another connection, as after
    /// a reset. If there is none, a search for the node starts.
    pub(in crate::manager) fn exchanges_silent(&mut self, conn: ConnectionId, node: NodeId) {
        let requests = self.rpc.streams_on(conn);
        let requests = requests.filter_map(|stream| self.claims.streams.get(&stream).copied());
        let waits = |id: &RequestId| {
            let node = self.requests.stage::<OutgoingExchange>(*id);
            node.is_some_and(|node| node.conn == conn && node.stream.is_some())
        };
        let ids: BTreeSet<_> = requests.filter(waits).collect();
        if ids.is_empty() {
            return;
        }
        if self.connections.live(&node).is_none() {
            if self.searches_in_background(&node) {
                return;
            }
            let (id, deadline) =
                (self.cx.ids.request(), self.cx.now + self.cx.config.request_deadline);
            return self.search(
                id,
                Recipient::None,
                deadline,
                node,
                &FindNodeOptions::default(),
                OnConnected::Report,
            );
        }
        for id in ids {
            if let Some(mut node) = self.take_node(id) {
                self.drop_stream(&mut node);
                self.put_node(id, node);
                self.outgoing_stream_failed(id, Failure::ConnectionLost(DisconnectReason::Reset));
            }
        }
    }

    // -- attempts

    /// Handles the failure of an attempt. It is retried if another claim was appended first or the
    /// peer is busy, if the local claim is committed, or if the peer was restarted and has lost the
    /// state of the exchange. Otherwise the request fails.
    fn outgoing_failed(&mut self, id: RequestId, failure: Failure) {
        let Some(open) = self.requests.get(id) else { return };
        let committed = committed(&open.stage);
        let retriable = matches!(
            failure,
            Failure::Refused(Refusal::Stale | Refusal::Busy)
                | Failure::ConnectionLost(DisconnectReason::Reset)
        );
        if committed.is_some() || retriable {
            self.cx.metrics.claims_stale += u64::from(failure == Failure::Refused(Refusal::Stale));
            self.outgoing_pause(id, committed);
        } else {
            self.end(id, Err(failure));
        }
    }

    /// Ends an attempt and sets the timer of the next one. The delay is random, so that two nodes
    /// whose exchanges collide do not collide again.
    fn outgoing_pause(&mut self, id: RequestId, committed: Option<ClaimId>) {
        let Some(mut node) = self.take_node(id) else { return };
        self.drop_stream(&mut node);
        node.state = None;
        node.claim.committed = committed;
        let delay = self.cx.config.claim_retry_delay * (1 << node.claim.attempts.min(8));
        let delay = delay.min(MAX_PAUSE);
        node.claim.attempts = node.claim.attempts.saturating_add(1);
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let chance = self.cx.random_u64(RngStream::Claims) % micros.max(1);
        self.cx
            .timers
            .set(Timer::ClaimRetry(id), self.cx.now + delay / 2 + Duration::from_micros(chance));
        self.put_node(id, node);
    }

    /// Handles the retry timer: starts the next attempt, or a search if the peer is not connected.
    pub(in crate::manager) fn outgoing_retry(&mut self, id: RequestId) {
        let Some(mut open) = self.requests.remove(id) else { return };
        let claim = match open.stage {
            RequestStage::ClaimNode(node) if node.state.is_none() => node.claim,
            stage => {
                open.stage = stage;
                self.requests.insert(id, open);
                return;
            }
        };
        if let Some(conn) = self.connections.live(&claim.target) {
            open.stage = self.outgoing_begin(id, conn, claim);
            self.requests.insert(id, open);
        } else if open.recipient == Recipient::Embedder {
            let find = FindNodeOptions { options: claim.options, ..FindNodeOptions::default() };
            self.search(
                id,
                open.recipient,
                open.deadline,
                claim.target,
                &find,
                OnConnected::ClaimNode(claim),
            );
        } else {
            // Without a request the exchange ends here. It resumes when the peer connects.
            let node = OutgoingExchange { claim, conn: ConnectionId(0), stream: None, state: None };
            open.stage = RequestStage::ClaimNode(Box::new(node));
            self.requests.insert(id, open);
            self.end(id, Err(Failure::NotFound(Vec::new())));
        }
    }

    // -- ends

    /// Returns the outcome of a request, given whether its claim is committed. A committed claim
    /// that the peer has not confirmed has the outcome `ClaimUnconfirmed`.
    pub(in crate::manager) fn claim_outcome(
        &mut self,
        recipient: Recipient,
        stage: &RequestStage,
        result: Result<Reply, Failure>,
    ) -> Result<Reply, Failure> {
        let Some(mine) = committed(stage) else { return result };
        match result {
            Ok(Reply::ClaimNode(claim)) => {
                if recipient == Recipient::None
                    && let Some(CommittedClaim { peer: node, .. }) = self.claims.ours.get(&claim)
                {
                    self.cx.event(Event::ClaimConfirmed { claim, node: *node });
                }
                self.report_confirmed(claim);
                Ok(Reply::ClaimNode(claim))
            }
            // It is not known whether the claim is committed.
            Err(failure @ Failure::OutcomeUnknown(_)) if !self.claims.ours.contains_key(&mine) => {
                Err(failure)
            }
            _ => {
                self.report_unconfirmed(mine, recipient == Recipient::None);
                Err(Failure::ClaimUnconfirmed(mine))
            }
        }
    }

    /// Releases the timer and the stream of an exchange that has been removed from the table.
    pub(in crate::manager) fn outgoing_ended(&mut self, id: RequestId, mut node: OutgoingExchange) {
        self.cx.timers.cancel(Timer::ClaimRetry(id));
        self.drop_stream(&mut node);
    }

    /// Cancels the stream of an exchange, if it has one.
    fn drop_stream(&mut self, node: &mut OutgoingExchange) {
        if let Some(stream) = node.stream.take() {
            self.claims.streams.remove(&stream);
            self.rpc.cancel(&mut self.cx, stream);
        }
    }

    /// Takes the exchange of a request out of the table. The caller puts it back at once.
    fn take_node(&mut self, id: RequestId) -> Option<OutgoingExchange> {
        let node = self.requests.stage_mut::<OutgoingExchange>(id)?;
        let empty = OutgoingExchange {
            claim: node.claim,
            conn: node.conn,
            stream: node.stream,
            state: None,
        };
        Some(core::mem::replace(node, empty))
    }

    /// Puts an exchange back into the table, if its request still exists.
    fn put_node(&mut self, id: RequestId, taken: OutgoingExchange) {
        if let Some(node) = self.requests.stage_mut::<OutgoingExchange>(id) {
            *node = taken;
        }
    }
}
