//! Reading the chain of a node and verifying it as it comes (specification: requestChainData).
//!
//! Page by page: asked for, verified within the budget of signature checks of one call, its links written together with how
//! far the chain was seen, told to the embedder; only then the next one is asked for. So what is held is one page, however
//! long the chain is, and a slow store or embedder slows down the peer.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use super::NodeManager;
use super::loads::Reader;
use super::open::{Open, Stage};
use crate::claims::gestalt::{link_rows, read_seen, renewal_rows, seen_range, seen_row};
use crate::claims::{ChainFaultKind, ChainVerifier, Claim, ClaimId};
use crate::error::{Failure, PeerFault};
use crate::id::{ConnectionId, EffectId, NodeId, RequestId, StreamId};
use crate::io::{DisconnectReason, Event, StoreOp, StoreRow};
use crate::request::{ChainData, Reply};
use crate::rpc::{Answer, Answered, ClaimsPage, Question};
use crate::store::SnapshotError;
use crate::timers::Timer;

/// Bytes of tokens that are asked for at a time.
const PAGE: u32 = 48 * 1024;
/// More than the row that says how far a chain was seen.
const SEEN: u64 = 1024;

/// A chain that is being read.
#[derive(Debug)]
pub(super) struct Chain {
    conn: ConnectionId,
    /// Every id of the owner, newest first.
    owner: Vec<NodeId>,
    verifier: ChainVerifier,
    /// Behind which claim it is read.
    since: Option<ClaimId>,
    /// The last claim that was verified, or is known to be.
    head: Option<Claim>,
    /// Up to which claim the links of the chain were known before, if that was read.
    seen: Option<ClaimId>,
    step: Step,
    /// The stream of the last question.
    stream: Option<StreamId>,
    /// What was told and is not verified yet, and whether there is more behind it.
    page: VecDeque<(ClaimId, Bytes)>,
    more: bool,
    /// Verified, of this page.
    verified: Vec<Claim>,
    /// Claims and bytes that were verified in all.
    count: u64,
    bytes: u64,
    /// How many claims are wanted.
    limit: u64,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// How far the chain was seen.
    Seen,
    /// The next page.
    Page,
    /// The next call into the machine.
    Checks,
    /// The links of the page.
    Links,
}

impl Chain {
    /// The stream on which a page is waited for, or more may be.
    pub(super) fn stream(&self) -> Option<StreamId> {
        self.stream
    }
}

impl NodeManager {
    /// The node is connected: its chain is read. `None` if the connection is gone.
    pub(super) fn chain_begin(
        &mut self,
        id: RequestId,
        conn: ConnectionId,
        since: Option<Claim>,
        limit: Option<u64>,
    ) -> Option<Stage> {
        let owner = self.connections.chain(conn);
        let root = owner.last()?;
        self.load(Reader::Request(id), seen_range(root), SEEN);
        let verifier = match &since {
            Some(known) => ChainVerifier::after(owner.clone(), known),
            None => ChainVerifier::new(owner.clone()),
        };
        Some(Stage::ChainData(Box::new(Chain {
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
        })))
    }

    /// It was read how far the chain was seen.
    pub(super) fn chain_seen(&mut self, id: RequestId, rows: &[StoreRow]) -> Result<(), SnapshotError> {
        if let Some(Open { stage: Stage::ChainData(chain), .. }) = self.open.get_mut(&id) {
            chain.seen = read_seen(rows)?;
            self.chain_ask(id);
        }
        Ok(())
    }

    /// Asks for the next page.
    fn chain_ask(&mut self, id: RequestId) {
        let Self { cx, rpc, open, .. } = self;
        let Some(Open { deadline, stage: Stage::ChainData(chain), .. }) = open.get_mut(&id) else { return };
        let after = chain.verifier.head().map(|(head, _)| head);
        let deadline = (*deadline).min(cx.now + cx.config.call_timeout);
        let question = Question::Claims { after, max_bytes: PAGE };
        match rpc.call(cx, chain.conn, id, question, deadline) {
            Some(stream) => (chain.stream, chain.step) = (Some(stream), Step::Page),
            None => self.end(id, Err(Failure::ConnectionLost(DisconnectReason::Local))),
        }
    }

    /// The peer has answered.
    pub(super) fn chain_page(&mut self, id: RequestId, result: Result<Answered, Failure>) {
        let Some(Open { stage: Stage::ChainData(chain), .. }) = self.open.get_mut(&id) else { return };
        let page = match result.map(|answered| answered.answer) {
            Ok(Answer::Claims(page)) => page,
            Ok(Answer::Refused(refusal)) => return self.end(id, Err(Failure::Refused(refusal))),
            Ok(_) => return self.end(id, Err(Failure::Peer(PeerFault::Unexpected))),
            Err(failure) => return self.end(id, Err(failure)),
        };
        let ClaimsPage { claims, more } = page;
        if more && claims.is_empty() {
            // It would go on like that.
            return self.end(id, Err(Failure::Peer(PeerFault::Unexpected)));
        }
        (chain.page, chain.more, chain.step) = (claims.into(), more, Step::Checks);
        self.chain_verify(id);
    }

    /// Verifies as much of the page as this call may.
    pub(super) fn chain_verify(&mut self, id: RequestId) {
        let Self { cx, open, .. } = self;
        let Some(Open { stage: Stage::ChainData(chain), .. }) = open.get_mut(&id) else { return };
        let (claim_limit, byte_limit) = (cx.config.chain_claim_limit as u64, cx.config.chain_byte_limit);
        while let Some((named, token)) = chain.page.front()
            && chain.count < chain.limit
        {
            let (named, bytes) = (*named, chain.bytes.saturating_add(token.len() as u64));
            if chain.count >= claim_limit || bytes > byte_limit {
                chain.verifier.end(Some(named), ChainFaultKind::TooLong);
                break;
            }
            let Ok(claim) = chain.verifier.read(Some(named), token) else { break };
            if !cx.take_checks(claim.token().signatures().len()) {
                cx.timers.set(Timer::Verify(id), cx.later());
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

    /// Writes what the page says of gestalts.
    fn chain_link(&mut self, id: RequestId) {
        let Some(Open { stage: Stage::ChainData(chain), .. }) = self.open.get_mut(&id) else { return };
        let ops = chain.links();
        if ops.is_empty() {
            return self.chain_tell(id);
        }
        chain.step = Step::Links;
        let effect = self.cx.ids.effect();
        self.linking.insert(effect, id);
        self.persist(effect, ops, false);
    }

    /// Links were written, or not. Returns whether they were of a chain.
    pub(super) fn links_persisted(&mut self, effect: EffectId, result: &Result<(), String>) -> bool {
        let Some(id) = self.linking.remove(&effect) else { return false };
        match result {
            Ok(()) => self.chain_tell(id),
            Err(why) => {
                self.cx.metrics.store_failures += 1;
                self.end(id, Err(Failure::Store(why.clone())));
            }
        }
        true
    }

    /// Tells the embedder of the page, and goes on or ends.
    fn chain_tell(&mut self, id: RequestId) {
        let Some(Open { stage: Stage::ChainData(chain), .. }) = self.open.get_mut(&id) else { return };
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
        self.end(id, Ok(Reply::ChainData(reply)));
    }
}

impl Chain {
    /// The rows of the links in what was verified of this page and is new; with the first ones, which ids of the owner are one.
    fn links(&self) -> Vec<StoreOp> {
        let Some((last, root)) = self.verified.last().zip(self.owner.last()) else { return Vec::new() };
        let new = |claim: &&Claim| self.seen.is_none_or(|seen| claim.id() > seen);
        let linked = self.verified.iter().filter(new).filter_map(|claim| {
            let owner = claim.token().signatures().first()?.signer();
            Some(link_rows(&owner, claim.link()?, claim.id()))
        });
        let mut ops: Vec<StoreOp> = linked.flatten().collect();
        // What is before the beginning of this reading, and was never read, must still count as new when it is.
        let whole = self.since.is_none_or(|since| self.seen.is_some_and(|seen| since <= seen));
        if whole && self.seen.is_none_or(|seen| last.id() > seen) {
            ops.push(seen_row(root, last.id()));
        }
        if self.count == self.verified.len() as u64 {
            ops.extend(self.owner.windows(2).flat_map(|pair| match pair {
                [new, old] => renewal_rows(new, old).into(),
                _ => Vec::new(),
            }));
        }
        ops
    }
}
