//! Reading and verifying the chain of a node (specification: requestChainData).
//!
//! The chain is read in pages. A page is requested and verified within the signature budget of each
//! call. Then its links are written, together with the last claim that was read, and the page is
//! passed to the embedder. Only then is the next page requested. So memory use is one page
//! regardless of the length of the chain, and a slow store or embedder slows down the peer.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use super::lifecycle::{OnCallEnded, Reactions};
use super::node::NodeManager;
use super::state::chain::{Chain, Step};
use super::state::repeats::{Repeat, Repeats};
use super::state::request_table::Entry;
use super::state::stage::{RequestStage, Transition};
use crate::api::error::{Failure, PeerFault};
use crate::api::event::Event;
use crate::api::reply::{ChainData, Reply};
use crate::api::transport::DisconnectReason;
use crate::claims::gestalt::{read_seen, seen_range};
use crate::claims::{ChainFaultKind, ChainVerifier, Claim};
use crate::machine::effects::{EffectOwner, LoadOwner, PersistOwner};
use crate::machine::timer::Timer;
use crate::rpc::event::CompletedCall;
use crate::store::row::SnapshotError;
use crate::store::table::{StoreRow, WriteFailure};
use crate::types::id::{ConnectionId, RequestId};
use crate::types::time::Instant;
use crate::wire::message::{ClaimsPage, RpcResponse};

/// Maximum number of bytes of the row with the last claim that was read; the row is smaller.
const SEEN: u64 = 1024;

impl Reactions for Chain {
    fn on_call_ended(&self) -> Option<OnCallEnded> {
        Some(|node, id, _, _, result| node.chain_page(id, result))
    }

    fn repeat(&self) -> Repeat {
        Repeat::Request
    }
}

impl NodeManager {
    /// Starts to read the chain of a connected node. Returns `None` if the connection has ended.
    pub(super) fn chain_begin(
        &mut self,
        id: RequestId,
        conn: ConnectionId,
        since: Option<Claim>,
        limit: Option<u64>,
        connect_timeout: Duration,
    ) -> Option<RequestStage> {
        let owner = self.connections.chain(conn);
        let root = owner.last()?;
        self.load(LoadOwner::Request(id), seen_range(root), SEEN);
        let verifier = match &since {
            Some(known) => ChainVerifier::after(owner.clone(), known),
            None => ChainVerifier::new(owner.clone()),
        };
        Some(RequestStage::ChainData(Box::new(Chain {
            conn,
            owner,
            verifier,
            since: since.as_ref().map(Claim::id),
            head: since,
            seen: None,
            step: Step::Seen,
            stream: None,
            page: VecDeque::new(),
            more: true,
            verified: Vec::new(),
            count: 0,
            bytes: 0,
            limit: limit.unwrap_or(u64::MAX),
            connect_timeout,
            repeats: Repeats::default(),
        })))
    }

    /// Continues to read a chain over another connection with its owner. Fails if the owner has
    /// renewed its key meanwhile.
    pub(super) fn chain_on(
        &mut self,
        id: RequestId,
        conn: ConnectionId,
        deadline: Instant,
        mut chain: Box<Chain>,
    ) -> Transition {
        // The verifier judges the whole chain by the ids that its owner had at the beginning.
        let same = self.connections.chain(conn) == chain.owner;
        chain.conn = conn;
        let asked = same && chain.ask(&mut self.cx, &mut self.rpc, id, deadline);
        if asked {
            Transition::Wait(RequestStage::ChainData(chain))
        } else {
            Transition::End(Err(Failure::ConnectionLost(DisconnectReason::Local)))
        }
    }

    /// Handles the row with the last claim that was read before, and requests the first page.
    pub(super) fn chain_seen(
        &mut self,
        id: RequestId,
        rows: &[StoreRow],
    ) -> Result<(), SnapshotError> {
        if let Some(chain) = self.requests.stage_mut::<Chain>(id) {
            chain.seen = read_seen(rows)?;
            self.chain_ask(id);
        }
        Ok(())
    }

    /// Requests the next page. If the connection is suspected or has ended, the request is repeated
    /// over another connection or fails.
    fn chain_ask(&mut self, id: RequestId) {
        let Self { cx, connections, rpc, requests, .. } = self;
        let Some(Entry { deadline, payload: chain, .. }) = requests.entry::<Chain>(id) else {
            return;
        };
        let suspected = connections.is_suspected(chain.conn);
        if !suspected && chain.ask(cx, rpc, id, deadline) {
            return;
        }
        chain.step = Step::Page;
        if let Some(stream) = chain.stream.take() {
            rpc.cancel(cx, stream);
        }
        if !self.retry_request(id, None) {
            self.end(id, Err(Failure::ConnectionLost(DisconnectReason::Local)));
        }
    }

    /// Handles a page, or the failure of its request.
    fn chain_page(&mut self, id: RequestId, result: Result<CompletedCall, Failure>) {
        let Some(chain) = self.requests.stage_mut::<Chain>(id) else { return };
        let page = match result.map(|answered| answered.answer) {
            Ok(RpcResponse::Claims(page)) => page,
            Ok(RpcResponse::Refused(refusal)) => {
                return self.end(id, Err(Failure::Refused(refusal)));
            }
            Ok(_) => return self.end(id, Err(Failure::Peer(PeerFault::Unexpected))),
            Err(failure) => return self.end(id, Err(failure)),
        };
        let ClaimsPage { claims, more } = page;
        if more && claims.is_empty() {
            // The peer could send empty pages without end.
            return self.end(id, Err(Failure::Peer(PeerFault::Unexpected)));
        }
        (chain.page, chain.more, chain.step) = (claims.into(), more, Step::Checks);
        self.chain_verify(id);
    }

    /// Verifies as many claims of the page as the signature budget of this call permits. A timer
    /// continues with the rest.
    pub(super) fn chain_verify(&mut self, id: RequestId) {
        let Self { cx, requests, .. } = self;
        let Some(chain) = requests.stage_mut::<Chain>(id) else { return };
        let (claim_limit, byte_limit) =
            (cx.config.chain_claim_limit as u64, cx.config.chain_byte_limit);
        while let Some((named, token)) = chain.page.front()
            && chain.count < chain.limit
        {
            let (named, bytes) = (*named, chain.bytes.saturating_add(token.len() as u64));
            if chain.count >= claim_limit || bytes > byte_limit {
                chain.verifier.end(Some(named), ChainFaultKind::TooLong);
                break;
            }
            let Ok(claim) = chain.verifier.read(Some(named), token) else { break };
            if !cx.try_spend_signature_checks(claim.token().signatures().len()) {
                cx.timers.set(Timer::Verify(id), cx.next_tick());
                return;
            }
            if chain.verifier.verify(&claim).is_err() {
                break;
            }
            chain.count += 1;
            chain.bytes = bytes;
            cx.metrics.claims_verified += 1;
            chain.verified.push(claim);
            chain.page.pop_front();
        }
        self.chain_link(id);
    }

    /// Writes the links of the page and the last claim that was read.
    fn chain_link(&mut self, id: RequestId) {
        let Some(chain) = self.requests.stage_mut::<Chain>(id) else { return };
        let ops = chain.links();
        if ops.is_empty() {
            return self.chain_tell(id);
        }
        chain.step = Step::Links;
        let effect = self.cx.effects.begin(EffectOwner::Persist(PersistOwner::Links(id)));
        self.persist_loosely(effect, ops);
    }

    /// Handles the outcome of the write. If it failed, the request fails.
    pub(super) fn links_persisted(&mut self, id: RequestId, result: &Result<(), WriteFailure>) {
        match result {
            Ok(()) => self.chain_tell(id),
            Err(why) => {
                self.cx.metrics.store_failures += 1;
                self.end(id, Err(why.clone().into()));
            }
        }
    }

    /// Passes the page to the embedder, and requests the next one or ends.
    fn chain_tell(&mut self, id: RequestId) {
        let Some(chain) = self.requests.stage_mut::<Chain>(id) else { return };
        let claims = core::mem::take(&mut chain.verified);
        if let Some(last) = claims.last() {
            chain.head = Some(last.clone());
            self.cx.event(Event::ChainData { id, claims });
        }
        let fault = chain.verifier.fault();
        let more = fault.is_none() && (chain.more || !chain.page.is_empty());
        if more && chain.count < chain.limit {
            return self.chain_ask(id);
        }
        self.cx.metrics.chain_faults += u64::from(fault.is_some());
        let reply = ChainData { verified: chain.count, head: chain.head.take(), fault, more };
        self.end(id, Ok(Reply::RequestChainData(reply)));
    }
}
