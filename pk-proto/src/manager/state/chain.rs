//! State of a request that reads and verifies the chain of a peer.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::repeats::Repeats;
use crate::claims::gestalt::{link_rows, renewal_rows, seen_row};
use crate::claims::{ChainVerifier, Claim, ClaimId};
use crate::machine::cx::Cx;
use crate::rpc::table::Rpc;
use crate::store::table::StoreOp;
use crate::types::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::message::RpcRequest;

/// Maximum number of bytes of tokens that one request asks for.
const PAGE: u32 = 48 * 1024;

/// A chain that is being read.
#[derive(Debug)]
pub(in crate::manager) struct Chain {
    pub(in crate::manager) conn: ConnectionId,
    /// Every id of the owner, newest first.
    pub(in crate::manager) owner: Vec<NodeId>,
    pub(in crate::manager) verifier: ChainVerifier,
    /// Claim after which the request starts to read; `None` for the whole chain.
    pub(in crate::manager) since: Option<ClaimId>,
    /// Last verified claim, or the claim `since`.
    pub(in crate::manager) head: Option<Claim>,
    /// Last claim whose links were stored before, if that row was read and exists.
    pub(in crate::manager) seen: Option<ClaimId>,
    pub(in crate::manager) step: Step,
    /// Stream of the last request.
    pub(in crate::manager) stream: Option<StreamId>,
    /// Claims that were received and are not verified yet; `more`: the chain continues after them.
    pub(in crate::manager) page: VecDeque<(ClaimId, Bytes)>,
    pub(in crate::manager) more: bool,
    /// Verified claims of this page.
    pub(in crate::manager) verified: Vec<Claim>,
    /// Total numbers of verified claims and of their bytes.
    pub(in crate::manager) count: u64,
    pub(in crate::manager) bytes: u64,
    /// Maximum number of claims that the embedder requested.
    pub(in crate::manager) limit: u64,
    /// Timeout of a dial if the connection is lost; `repeats` counts the repetitions.
    pub(in crate::manager) connect_timeout: Duration,
    pub(in crate::manager) repeats: Repeats,
}

/// What the request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::manager) enum Step {
    /// Row with the last claim that was read before.
    Seen,
    /// Next page.
    Page,
    /// Signature budget of the next call.
    Checks,
    /// Write of the page's links.
    Links,
}

impl Chain {
    /// Returns the stream of the last request, which may be open.
    pub(in crate::manager) fn stream(&self) -> Option<StreamId> {
        self.stream
    }

    /// Returns whether the request waits for the next page, so that no claim of the previous one is
    /// left to verify or write.
    pub(in crate::manager) fn is_asking(&self) -> bool {
        self.step == Step::Page
    }

    /// Returns the newest id of the owner.
    pub(in crate::manager) fn node(&self) -> Option<NodeId> {
        self.owner.first().copied()
    }

    /// Returns how often the request for the rest was repeated over another connection.
    pub(in crate::manager) fn repeats(&self) -> Repeats {
        self.repeats
    }

    pub(in crate::manager) fn set_repeats(&mut self, repeats: Repeats) {
        self.repeats = repeats;
    }

    /// Returns the timeout of a dial to the owner.
    pub(in crate::manager) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }
}

impl Chain {
    /// Requests the next page. Returns whether the connection still exists.
    pub(in crate::manager) fn ask(
        &mut self,
        cx: &mut Cx,
        rpc: &mut Rpc,
        id: RequestId,
        deadline: Instant,
    ) -> bool {
        let after = self.verifier.head().map(|(head, _)| head);
        let deadline = deadline.min(cx.now + cx.config.call_timeout);
        self.stream =
            rpc.call(cx, self.conn, id, RpcRequest::Claims { after, max_bytes: PAGE }, deadline);
        self.step = Step::Page;
        self.stream.is_some()
    }

    /// Returns the rows of the new links in the verified claims of this page. The first page also
    /// has rows that link the ids of the owner.
    pub(in crate::manager) fn links(&self) -> Vec<StoreOp> {
        let Some((last, root)) = self.verified.last().zip(self.owner.last()) else {
            return Vec::new();
        };
        let new = |claim: &&Claim| self.seen.is_none_or(|seen| claim.id() > seen);
        let linked = self.verified.iter().filter(new).filter_map(|claim| {
            let owner = claim.token().signatures().first()?.signer();
            Some(link_rows(&owner, claim.link()?, claim.id()))
        });
        let mut ops: Vec<StoreOp> = linked.flatten().collect();
        // The row must not skip claims that were never read: their links must still count as new
        // when a later request reads them.
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
