//! Reads of the store on request: claims for peers, local claims, gestalts, and the last claim of a
//! chain that was read before. A read blocks no other request, and a request that waits for a read
//! ends at its deadline.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::ops::Bound;

use super::node::NodeManager;
use super::state::reading::Reading;
use super::state::stage::{OpenRequest, Recipient, RequestStage};
use crate::api::error::Failure;
use crate::api::output::Output;
use crate::api::reply::{ClaimsFound, Reply};
use crate::api::request::{ClaimsQuery, GestaltQuery};
use crate::claims::gestalt::GestaltWalk;
use crate::claims::rows::{claims_range, read_claim_row};
use crate::claims::{Claim, ClaimId, MAX_TOKEN_LEN};
use crate::machine::effects::{EffectOwner, LoadOwner};
use crate::shares::{Full, Limits};
use crate::store::row::SnapshotError;
use crate::store::table::{StoreRange, StoreRow};
use crate::types::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::types::refusal::Refusal;
use crate::types::time::Instant;
use crate::wire::message::{ClaimsPage, RpcResponse};
use crate::wire::native;

/// Maximum number of bytes of tokens in one response to a peer. A token of any permitted length
/// fits.
const PAGE: u64 = MAX_TOKEN_LEN as u64;
/// Maximum number of bytes of local claims in one reply.
const FOUND: u64 = 1024 * 1024;
/// Maximum number of bytes of links that one read returns.
const LINKS: u64 = 64 * 1024;
/// Maximum number of links in a reply, per node of the requested limit.
const LINKS_PER_NODE: usize = 4;

impl NodeManager {
    // -- for peers

    /// Starts to read claims of the local chain for a peer. The response is sent when they are
    /// read, or at once if a limit is reached.
    pub(super) fn serve_claims(
        &mut self,
        conn: ConnectionId,
        stream: StreamId,
        after: Option<ClaimId>,
        max_bytes: u32,
    ) {
        let Some(source) = self.connections.source(conn) else { return };
        let limits = Limits::new(self.cx.config.claims_serve_limit, self.cx.config.network_share);
        if let Err(full) = self.served.take(&source, &limits) {
            self.cx.metrics.claims_refused += 1;
            self.cx.metrics.shares_refused += u64::from(full != Full::Table);
            self.rpc.answer(&mut self.cx, stream, RpcResponse::Refused(Refusal::Busy));
            return;
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = claims_range(from, Bound::Unbounded, false);
        self.load(LoadOwner::Peer { stream, source }, range, u64::from(max_bytes).min(PAGE));
    }

    /// Sends a page of the local chain to a peer, or `Busy` if the store has failed.
    fn serve_page(&mut self, stream: StreamId, result: Result<(Vec<StoreRow>, bool), String>) {
        let page =
            result.and_then(|(rows, more)| page(&rows, more).map_err(|fault| fault.to_string()));
        let answer = match page {
            Ok(page) => {
                self.cx.metrics.claims_served += page.claims.len() as u64;
                RpcResponse::Claims(page)
            }
            Err(_) => {
                self.cx.metrics.store_failures += 1;
                RpcResponse::Refused(Refusal::Busy)
            }
        };
        self.rpc.answer(&mut self.cx, stream, answer);
    }

    // -- for the embedder

    /// Starts to read claims of the local chain for the embedder.
    pub(super) fn claims_request(&mut self, id: RequestId, deadline: Instant, query: ClaimsQuery) {
        let stage = RequestStage::Reading(Reading::Claims { limit: query.limit });
        self.begin(id, OpenRequest { recipient: Recipient::Embedder, deadline, stage });
        let range = claims_range(query.from, query.to, query.descending);
        match range.to.as_ref().map_or(Ordering::Less, |to| range.from.cmp(to)) {
            Ordering::Less => self.load(LoadOwner::Request(id), range, FOUND),
            // The range is empty; a store does not have to support such ranges.
            _ => self.end(id, Ok(Reply::Claims(ClaimsFound::default()))),
        }
    }

    /// Starts to read the gestalt of a node for the embedder.
    pub(super) fn gestalt_request(
        &mut self,
        id: RequestId,
        deadline: Instant,
        node: NodeId,
        query: GestaltQuery,
    ) {
        let walk = GestaltWalk::new(
            node,
            query.direct,
            query.limit,
            query.limit.saturating_mul(LINKS_PER_NODE),
        );
        let stage = RequestStage::Reading(Reading::Gestalt(walk));
        self.begin(id, OpenRequest { recipient: Recipient::Embedder, deadline, stage });
        self.read_on(id);
    }

    /// Reads the next links of a gestalt, or ends the request if none are left.
    fn read_on(&mut self, id: RequestId) {
        let Some(Reading::Gestalt(walk)) = self.requests.stage_mut(id) else { return };
        match walk.next() {
            Some(range) => self.load(LoadOwner::Request(id), range, LINKS),
            None => {
                let gestalt = walk.finish();
                self.end(id, Ok(Reply::Gestalt(gestalt)));
            }
        }
    }

    /// Passes rows to the request that reads them.
    fn read(&mut self, id: RequestId, rows: &[StoreRow], more: bool) -> Result<(), SnapshotError> {
        match self.requests.stage_mut::<Reading>(id) {
            Some(Reading::Claims { limit }) => {
                let limit = *limit;
                let claims = rows
                    .iter()
                    .take(limit)
                    .map(|(key, value)| own_claim(key, value))
                    .collect::<Result<_, _>>()?;
                let more = more || rows.len() > limit;
                self.end(id, Ok(Reply::Claims(ClaimsFound { claims, more })));
            }
            Some(Reading::Gestalt(walk)) => {
                walk.loaded(rows, more)?;
                self.read_on(id);
            }
            // The rows are for a request that reads a chain, or the request has ended.
            None => self.chain_seen(id, rows)?,
        }
        Ok(())
    }

    // -- reads

    /// Starts a read of at most `max_bytes`; `owner` receives the rows.
    pub(super) fn load(&mut self, owner: LoadOwner, range: StoreRange, max_bytes: u64) {
        let id = self.cx.effects.begin(EffectOwner::Load(owner));
        self.cx.output(Output::Load { id, range, max_bytes });
    }

    /// Passes the result of a read to its owner.
    pub(super) fn loaded(
        &mut self,
        owner: LoadOwner,
        result: Result<(Vec<StoreRow>, bool), String>,
    ) {
        match owner {
            LoadOwner::Evidence(write) => self.evidence_loaded(write, &result),
            LoadOwner::Initiator(request) => self.initiator_loaded(request, result),
            LoadOwner::Responder(stream) => self.responder_loaded(stream, result),
            LoadOwner::Peer { stream, source } => {
                self.served.give_back(&source);
                self.serve_page(stream, result);
            }
            LoadOwner::Forks => {
                let read = result
                    .map_err(|_| ())
                    .and_then(|(rows, more)| self.forks_read(&rows, more).map_err(|_| ()));
                self.cx.metrics.store_failures += u64::from(read.is_err());
            }
            LoadOwner::Request(id) => {
                let read = result.and_then(|(rows, more)| {
                    self.read(id, &rows, more).map_err(|fault| fault.to_string())
                });
                if let Err(why) = read {
                    self.cx.metrics.store_failures += 1;
                    self.end(id, Err(Failure::Store(why)));
                }
            }
        }
    }
}

/// Returns the rows of a read as a page for a peer.
fn page(rows: &[StoreRow], more: bool) -> Result<ClaimsPage, SnapshotError> {
    let told = rows.iter().take(native::MAX_CLAIMS).map(|(key, value)| {
        let (id, json) = read_claim_row(key, value)?;
        Ok((id, json.into_bytes().into()))
    });
    Ok(ClaimsPage {
        claims: told.collect::<Result<_, _>>()?,
        more: more || rows.len() > native::MAX_CLAIMS,
    })
}

/// Returns the claim in a row of the local chain.
pub(super) fn own_claim(key: &[u8], value: &[u8]) -> Result<Claim, SnapshotError> {
    let (id, json) = read_claim_row(key, value)?;
    let claim = Claim::parse(json.as_bytes()).ok().filter(|claim| claim.id() == id);
    claim.ok_or(SnapshotError::Corrupt(crate::store::table::Table::Claims))
}
