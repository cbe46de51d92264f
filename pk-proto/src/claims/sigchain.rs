//! Our own chain (specification: Sigchain): where it ends, and the one transaction that moves its end.
//!
//! Nobody reserves the chain. A claim is drafted on the head of the moment, and appended only if that is still the head; if
//! not, it is *stale*, and whoever wanted it drafts another one. While a transaction is under way nothing is drafted, because
//! the head is about to be another one: that wait is for the store alone, never for a peer.

use alloc::vec::Vec;
use core::ops::Bound;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::gestalt::link_rows;
use super::rows::{claim_row, claims_range};
use super::{ChainHead, Claim, ClaimContent, ClaimFault, ClaimId, ClaimLinkNode, UnsignedClaim};
use crate::cx::Cx;
use crate::id::{EffectId, NodeId};
use crate::io::{Output, Signature, StoreOp, StoreRange, Table};
use crate::store::{SnapshotError, decode, encode};

/// The one row of [`Table::ClaimHead`].
const HEAD_KEY: &[u8] = b"head";
/// More than any row of one claim takes.
const ROW_LEN: u64 = 2 * super::MAX_TOKEN_LEN as u64;

/// The end of our chain. What is appended becomes visible when it is durable.
#[derive(Debug, Default)]
pub(crate) struct Sigchain {
    head: Option<ChainHead>,
    /// The newest id that was ever made or stored: the next one is above it, whatever the clock does.
    last: Option<ClaimId>,
    appending: Option<(EffectId, ChainHead, Appended)>,
}

/// A claim that a transaction appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) claim: ClaimId,
    /// Whom it links.
    pub(crate) link: Option<ClaimLinkNode>,
}

impl Sigchain {
    /// The chain as it was stored. `made` are further ids of ours that were stored.
    pub(crate) fn new(head: Option<ChainHead>, made: impl Iterator<Item = ClaimId>) -> Self {
        let last = made.chain(head.map(|head| head.id)).max();
        Self { head, last, appending: None }
    }

    /// The newest claim that is durable.
    pub(crate) fn head(&self) -> Option<&ChainHead> {
        self.head.as_ref()
    }

    /// A claim on the head of this moment; `None` while a transaction is under way.
    pub(crate) fn draft(&mut self, cx: &Cx, content: &ClaimContent) -> Option<Result<UnsignedClaim, ClaimFault>> {
        if self.appending.is_some() {
            return None;
        }
        let id = ClaimId::next(&cx.own(), cx.unix(), self.last)?;
        self.last = Some(id);
        Some(Claim::draft(content, id, cx.unix(), self.head.as_ref()))
    }

    /// Whether a claim of ours can be appended now, as it is.
    pub(crate) fn fits(&self, claim: &Claim) -> bool {
        let head = self.head.as_ref();
        self.appending.is_none()
            && claim.seq() == head.map_or(0, |head| head.seq).saturating_add(1)
            && claim.prev_claim_id() == head.map(|head| head.id)
            && claim.prev_digest() == head.map(|head| &head.digest)
    }

    /// The transaction that appends a claim that [`fits`](Self::fits): the claim, the new head, and the link if it is one.
    /// It is under way from now on, as this effect.
    pub(crate) fn append(&mut self, cx: &Cx, effect: EffectId, claim: &Claim) -> Vec<StoreOp> {
        let head = ChainHead::of(claim, cx.config.claim_digest);
        let mut ops = alloc::vec![claim_row(claim), head_row(&head)];
        if let (Some(link), Some(owner)) = (claim.link(), claim.token().signatures().first()) {
            ops.extend(link_rows(&owner.signer(), link, claim.id()));
        }
        self.appending = Some((effect, head, Appended { claim: claim.id(), link: claim.link().copied() }));
        ops
    }

    /// A transaction is over. Returns what it has appended, or has not, if it was the one of this chain.
    pub(crate) fn persisted(&mut self, effect: EffectId, written: bool) -> Option<Appended> {
        let (_, head, appended) = self.appending.take_if(|(appending, ..)| *appending == effect)?;
        if written {
            self.head = Some(head);
        }
        Some(appended)
    }
}

/// A claim of ours whose exchange is not finished, or one of a peer that we have agreed to sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenExchange {
    /// Ours is in our chain; the peer may not have its own. Named by the peer and our claim.
    Ours {
        /// With whom.
        peer: NodeId,
        /// Our claim.
        claim: ClaimId,
        /// The claim of the peer that we have signed last.
        theirs: ClaimId,
    },
    /// We have agreed to sign this claim of the peer, and answered with one of ours, which is not in our chain. Named by the
    /// peer's claim.
    Theirs {
        /// Who began (`iss`).
        issuer: NodeId,
        /// The peer's claim.
        claim: ClaimId,
        /// Our signature of it.
        signature: Signature,
        /// Our claim with our signature.
        mine: Claim,
    },
}

impl OpenExchange {
    /// The key of its row.
    fn key(&self) -> Bytes {
        let (role, node, claim) = match self {
            Self::Ours { peer, claim, .. } => (0, peer, claim),
            Self::Theirs { issuer, claim, .. } => (1, issuer, claim),
        };
        [&[role], &node.as_bytes()[..], claim.as_bytes()].concat().into()
    }

    /// The row that keeps it.
    pub(crate) fn row(&self) -> StoreOp {
        StoreOp::Put { table: Table::Exchanges, key: self.key(), value: encode(self) }
    }

    /// What removes its row.
    pub(crate) fn removal(&self) -> StoreOp {
        StoreOp::Delete { table: Table::Exchanges, key: self.key() }
    }

    /// Reads a row.
    pub(crate) fn read(key: &[u8], value: &[u8]) -> Result<Self, SnapshotError> {
        let open: Self = decode(Table::Exchanges, value)?;
        if open.key() == key { Ok(open) } else { Err(SnapshotError::Corrupt(Table::Exchanges)) }
    }
}

/// With what we have answered a claim of a peer, once ours is in our chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// Our signature of the peer's claim.
    pub(crate) signature: Signature,
    /// Our claim.
    pub(crate) mine: ClaimId,
}

impl Answered {
    /// The row that keeps it.
    pub(crate) fn row(&self, issuer: &NodeId, claim: &ClaimId) -> StoreOp {
        StoreOp::Put { table: Table::Answered, key: answered_key(issuer, claim), value: encode(self) }
    }

    /// Where the row is.
    pub(crate) fn range(issuer: &NodeId, claim: &ClaimId) -> StoreRange {
        one(Table::Answered, &answered_key(issuer, claim))
    }

    pub(crate) fn read(value: &[u8]) -> Result<Self, SnapshotError> {
        decode(Table::Answered, value)
    }
}

fn answered_key(issuer: &NodeId, claim: &ClaimId) -> Bytes {
    [&issuer.as_bytes()[..], claim.as_bytes()].concat().into()
}

/// Where the row of one claim of our chain is.
pub(crate) fn claim_range(claim: &ClaimId) -> StoreRange {
    claims_range(Bound::Included(*claim), Bound::Included(*claim), false)
}

/// Asks for one row.
pub(crate) fn load_one(cx: &mut Cx, range: StoreRange) -> EffectId {
    let id = cx.ids.effect();
    cx.output(Output::Load { id, range, max_bytes: ROW_LEN });
    id
}

fn one(table: Table, key: &[u8]) -> StoreRange {
    // The next key after `key` is `key` and a zero.
    let to = Some([key, &[0]].concat().into());
    StoreRange { table, from: Bytes::copy_from_slice(key), to, descending: false }
}

fn head_row(head: &ChainHead) -> StoreOp {
    StoreOp::Put { table: Table::ClaimHead, key: Bytes::from_static(HEAD_KEY), value: encode(head) }
}

/// Reads the row of the head.
pub(crate) fn read_head(key: &[u8], value: &[u8]) -> Result<ChainHead, SnapshotError> {
    if key == HEAD_KEY { decode(Table::ClaimHead, value) } else { Err(SnapshotError::Corrupt(Table::ClaimHead)) }
}

/// The row of a node that may ask us to sign claims, or its removal.
pub(crate) fn allow_row(node: &NodeId, allowed: bool) -> StoreOp {
    let (table, key) = (Table::AllowList, Bytes::copy_from_slice(node.as_bytes()));
    if allowed { StoreOp::Put { table, key, value: encode(&()) } } else { StoreOp::Delete { table, key } }
}

/// Reads the row of a node that may ask us to sign claims.
pub(crate) fn read_allow_row(key: &[u8], value: &[u8]) -> Result<NodeId, SnapshotError> {
    decode::<()>(Table::AllowList, value)?;
    let node = <[u8; 32]>::try_from(key).map_err(|_| SnapshotError::Corrupt(Table::AllowList))?;
    Ok(NodeId::from_bytes(node))
}
