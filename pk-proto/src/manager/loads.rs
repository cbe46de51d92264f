//! What is read from the store when it is asked for: claims for peers, our own claims, gestalts, and how much of a chain is
//! known. A read holds nothing but what it asked for, and nothing waits for it that a deadline does not end.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::ops::Bound;

use super::NodeManager;
use super::open::{Audience, Open, Stage};
use crate::claims::gestalt::GestaltWalk;
use crate::claims::rows::{claims_range, read_claim_row};
use crate::claims::{Claim, ClaimId, MAX_TOKEN_LEN};
use crate::error::Failure;
use crate::id::{EffectId, NodeId, RequestId, StreamId};
use crate::io::{Output, StoreRange, StoreRow};
use crate::request::{ClaimsFound, ClaimsQuery, GestaltQuery, Reply};
use crate::rpc::{Answer, ClaimsPage, Refusal, native};
use crate::store::SnapshotError;
use crate::time::Instant;

/// Bytes of tokens in one answer to a peer: one token of any length, or as many as take no more.
const PAGE: u64 = MAX_TOKEN_LEN as u64;
/// Bytes of our own claims in one reply.
const FOUND: u64 = 1024 * 1024;
/// Bytes of links that are read at a time.
const LINKS: u64 = 64 * 1024;
/// Links told for each node of a gestalt.
const LINKS_PER_NODE: usize = 4;

/// Who waits for a read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reader {
    /// A peer that asked for claims.
    Peer(StreamId),
    /// A request of ours.
    Request(RequestId),
}

/// What a request of ours reads.
#[derive(Debug)]
pub(super) enum Reading {
    Claims { limit: usize },
    Gestalt(GestaltWalk),
}

impl NodeManager {
    // -- for peers

    /// A peer asks for claims of our chain. The answer follows when they are read.
    pub(super) fn serve_claims(&mut self, stream: StreamId, after: Option<ClaimId>, max_bytes: u32) {
        let served = self.loads.values().filter(|reader| matches!(reader, Reader::Peer(_))).count();
        if served >= self.cx.config.claims_serve_limit {
            self.cx.metrics.claims_refused += 1;
            self.rpc.answer(&mut self.cx, stream, Answer::Refused(Refusal::Busy));
            return;
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = claims_range(from, Bound::Unbounded, false);
        self.load(Reader::Peer(stream), range, u64::from(max_bytes).min(PAGE));
    }

    fn served(&mut self, stream: StreamId, result: Result<(Vec<StoreRow>, bool), String>) {
        let page = result.and_then(|(rows, more)| page(&rows, more).map_err(|fault| fault.to_string()));
        let answer = match page {
            Ok(page) => {
                self.cx.metrics.claims_served += page.claims.len() as u64;
                Answer::Claims(page)
            }
            Err(_) => {
                self.cx.metrics.store_failures += 1;
                Answer::Refused(Refusal::Busy)
            }
        };
        self.rpc.answer(&mut self.cx, stream, answer);
    }

    // -- for the embedder

    pub(super) fn claims_request(&mut self, id: RequestId, deadline: Instant, query: ClaimsQuery) {
        let stage = Stage::Reading(Reading::Claims { limit: query.limit });
        self.begin(id, Open { audience: Audience::Embedder, deadline, stage });
        let range = claims_range(query.from, query.to, query.descending);
        match range.to.as_ref().map_or(Ordering::Less, |to| range.from.cmp(to)) {
            Ordering::Less => self.load(Reader::Request(id), range, FOUND),
            // Stores need not know of ranges that end before they begin.
            _ => self.end(id, Ok(Reply::Claims(ClaimsFound::default()))),
        }
    }

    pub(super) fn gestalt_request(&mut self, id: RequestId, deadline: Instant, node: NodeId, query: GestaltQuery) {
        let walk = GestaltWalk::new(node, query.direct, query.limit, query.limit.saturating_mul(LINKS_PER_NODE));
        let stage = Stage::Reading(Reading::Gestalt(walk));
        self.begin(id, Open { audience: Audience::Embedder, deadline, stage });
        self.read_on(id);
    }

    /// Reads the next links of a gestalt, or ends its request.
    fn read_on(&mut self, id: RequestId) {
        let Some(Open { stage: Stage::Reading(Reading::Gestalt(walk)), .. }) = self.open.get_mut(&id) else { return };
        match walk.next() {
            Some(range) => self.load(Reader::Request(id), range, LINKS),
            None => {
                let gestalt = walk.finish();
                self.end(id, Ok(Reply::Gestalt(gestalt)));
            }
        }
    }

    fn read(&mut self, id: RequestId, rows: &[StoreRow], more: bool) -> Result<(), SnapshotError> {
        match self.open.get_mut(&id).map(|open| &mut open.stage) {
            Some(Stage::Reading(Reading::Claims { limit })) => {
                let limit = *limit;
                let claims =
                    rows.iter().take(limit).map(|(key, value)| own_claim(key, value)).collect::<Result<_, _>>()?;
                let more = more || rows.len() > limit;
                self.end(id, Ok(Reply::Claims(ClaimsFound { claims, more })));
            }
            Some(Stage::Reading(Reading::Gestalt(walk))) => {
                walk.loaded(rows, more)?;
                self.read_on(id);
            }
            Some(Stage::ChainData(_)) => self.chain_seen(id, rows)?,
            // Over before its rows came.
            _ => {}
        }
        Ok(())
    }

    // -- reads

    pub(super) fn load(&mut self, reader: Reader, range: StoreRange, max_bytes: u64) {
        let id = self.cx.ids.effect();
        self.loads.insert(id, reader);
        self.cx.output(Output::Load { id, range, max_bytes });
    }

    /// Rows were read. Returns whether anybody here had asked for them.
    pub(super) fn loaded(&mut self, id: EffectId, result: Result<(Vec<StoreRow>, bool), String>) -> bool {
        let Some(reader) = self.loads.remove(&id) else { return false };
        match reader {
            Reader::Peer(stream) => self.served(stream, result),
            Reader::Request(id) => {
                let read =
                    result.and_then(|(rows, more)| self.read(id, &rows, more).map_err(|fault| fault.to_string()));
                if let Err(why) = read {
                    self.cx.metrics.store_failures += 1;
                    self.end(id, Err(Failure::Store(why)));
                }
            }
        }
        true
    }
}

fn page(rows: &[StoreRow], more: bool) -> Result<ClaimsPage, SnapshotError> {
    let told = rows.iter().take(native::MAX_CLAIMS).map(|(key, value)| {
        let (id, json) = read_claim_row(key, value)?;
        Ok((id, json.into_bytes().into()))
    });
    Ok(ClaimsPage { claims: told.collect::<Result<_, _>>()?, more: more || rows.len() > native::MAX_CLAIMS })
}

fn own_claim(key: &[u8], value: &[u8]) -> Result<Claim, SnapshotError> {
    let (id, json) = read_claim_row(key, value)?;
    let claim = Claim::parse(json.as_bytes()).ok().filter(|claim| claim.id() == id);
    claim.ok_or(SnapshotError::Corrupt(crate::io::Table::Claims))
}
