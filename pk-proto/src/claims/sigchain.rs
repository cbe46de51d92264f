//! The local chain (specification: Sigchain): its head, and the one transaction that moves the
//! head.
//!
//! The chain is not locked. A claim is drafted on the current head, and appended only if the head
//! has not changed; otherwise it is *stale*, and must be drafted again. While a transaction is in
//! progress nothing is drafted, because the head is about to change: that wait is for the store
//! only, never for a peer.

use alloc::vec::Vec;
use core::ops::Bound;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::digest::DigestAlgorithm;
use super::gestalt::link_rows;
use super::rows::{claim_row, claims_range};
use super::{ChainHead, Claim, ClaimContent, ClaimFault, ClaimId, ClaimLinkNode, UnsignedClaim};
use crate::store::row::{SnapshotError, decode, encode};
use crate::store::table::{StoreOp, StoreRange, Table};
use crate::types::id::NodeId;
use crate::types::signature::Signature;
use crate::types::time::UnixMillis;

/// Key of the only row of [`Table::ClaimHead`].
const HEAD_KEY: &[u8] = b"head";
/// The head of the local chain. An appended claim becomes visible when it is durable.
#[derive(Debug)]
pub(crate) struct Sigchain {
    end: End,
    /// Newest id that was ever created or stored: the next one is greater, whatever the clock does.
    last: Option<ClaimId>,
}

/// State of the head. Claims can be drafted only on a known head.
#[derive(Debug)]
enum End {
    /// The head is this claim; `None` if the chain is empty.
    Known(Option<ChainHead>),
    /// A transaction is in progress.
    Moving(Append),
    /// The transaction has failed, and its outcome is unknown.
    Unknown(Append),
}

/// A transaction that appends a claim.
#[derive(Debug, Clone, Copy)]
struct Append {
    from: Option<ChainHead>,
    to: ChainHead,
    appended: Appended,
}

impl Default for Sigchain {
    fn default() -> Self {
        Self::new(None, core::iter::empty())
    }
}

/// A claim that a transaction appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) claim: ClaimId,
    /// The linked nodes.
    pub(crate) link: Option<ClaimLinkNode>,
}

impl Sigchain {
    /// Creates the chain from the store. `made` are further local ids that were stored.
    pub(crate) fn new(head: Option<ChainHead>, made: impl Iterator<Item = ClaimId>) -> Self {
        let last = made.chain(head.map(|head| head.id)).max();
        Self { end: End::Known(head), last }
    }

    /// Returns the newest claim that is known to be durable.
    pub(crate) fn head(&self) -> Option<&ChainHead> {
        match &self.end {
            End::Known(head)
            | End::Moving(Append { from: head, .. })
            | End::Unknown(Append { from: head, .. }) => head.as_ref(),
        }
    }

    /// Returns whether the outcome of a transaction that moves the end is unknown.
    pub(crate) fn in_doubt(&self) -> bool {
        matches!(self.end, End::Unknown(_))
    }

    /// Returns whether a transaction moves the head, or may have moved it.
    pub(crate) fn is_appending(&self) -> bool {
        !matches!(self.end, End::Known(_))
    }

    /// Drafts a claim on the current head; `None` while a transaction is in progress or the head is
    /// unknown.
    pub(crate) fn draft(
        &mut self,
        own: &NodeId,
        unix: UnixMillis,
        content: &ClaimContent,
    ) -> Option<Result<UnsignedClaim, ClaimFault>> {
        let End::Known(head) = &self.end else { return None };
        let id = ClaimId::next(own, unix, self.last)?;
        self.last = Some(id);
        Some(Claim::draft(content, id, unix, head.as_ref()))
    }

    /// Returns whether a claim can be appended now.
    pub(crate) fn fits(&self, claim: &Claim) -> bool {
        let End::Known(head) = &self.end else { return false };
        let head = head.as_ref();
        claim.seq() == head.map_or(0, |head| head.seq).saturating_add(1)
            && claim.prev_claim_id() == head.map(|head| head.id)
            && claim.prev_digest() == head.map(|head| &head.digest)
    }

    /// Returns the transaction that appends a claim that [`fits`](Self::fits): the claim, the new
    /// head, and the link if it is one. It is in progress from now on.
    pub(crate) fn append(&mut self, algorithm: DigestAlgorithm, claim: &Claim) -> Vec<StoreOp> {
        let head = ChainHead::of(claim, algorithm);
        let mut ops = alloc::vec![claim_row(claim), head_row(&head)];
        if let (Some(link), Some(owner)) = (claim.link(), claim.token().signatures().first()) {
            ops.extend(link_rows(&owner.signer(), link, claim.id()));
        }
        let appended = Appended { claim: claim.id(), link: claim.link().copied() };
        self.end = End::Moving(Append { from: self.head().copied(), to: head, appended });
        ops
    }

    /// The transaction has completed. Returns what it has appended, or has not.
    pub(crate) fn persisted(&mut self, written: bool) -> Option<Appended> {
        match &self.end {
            End::Moving(append) | End::Unknown(append) => {
                let Append { from, to, appended, .. } = *append;
                self.end = End::Known(if written { Some(to) } else { from });
                Some(appended)
            }
            End::Known(_) => None,
        }
    }

    /// The outcome of the transaction is unknown.
    pub(crate) fn doubt(&mut self) {
        if let End::Moving(append) = &self.end {
            self.end = End::Unknown(*append);
        }
    }
}

/// An unfinished exchange: of a local claim, or of a peer's claim that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenExchange {
    /// Our claim is committed; the peer may not have confirmed it. Identified by the peer and our
    /// claim.
    Ours {
        /// Peer.
        peer: NodeId,
        /// Our claim.
        claim: ClaimId,
        /// Claim of the peer that was signed last.
        theirs: ClaimId,
    },
    /// The peer's claim was accepted, and answered with one of ours that is not in the local chain.
    /// Identified by the peer's claim.
    Theirs {
        /// Initiator (`iss`).
        issuer: NodeId,
        /// Peer's claim.
        claim: ClaimId,
        /// Our signature of it.
        signature: Signature,
        /// Our claim with our signature.
        mine: Claim,
    },
}

impl OpenExchange {
    /// Returns the key of its row.
    fn key(&self) -> Bytes {
        let (role, node, claim) = match self {
            Self::Ours { peer, claim, .. } => (0, peer, claim),
            Self::Theirs { issuer, claim, .. } => (1, issuer, claim),
        };
        [&[role], &node.as_bytes()[..], claim.as_bytes()].concat().into()
    }

    /// Returns its row.
    pub(crate) fn row(&self) -> StoreOp {
        StoreOp::Put { table: Table::Exchanges, key: self.key(), value: encode(self) }
    }

    /// Returns the removal of its row.
    pub(crate) fn removal(&self) -> StoreOp {
        StoreOp::Delete { table: Table::Exchanges, key: self.key() }
    }

    /// Parses a row.
    pub(crate) fn read(key: &[u8], value: &[u8]) -> Result<Self, SnapshotError> {
        let open: Self = decode(Table::Exchanges, value)?;
        if open.key() == key { Ok(open) } else { Err(SnapshotError::Corrupt(Table::Exchanges)) }
    }
}

/// Answer to a claim of a peer, once our claim is in the local chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredAnswer {
    /// Our signature of the peer's claim.
    pub(crate) signature: Signature,
    /// Our claim.
    pub(crate) mine: ClaimId,
}

impl StoredAnswer {
    /// Returns its row.
    pub(crate) fn row(&self, issuer: &NodeId, claim: &ClaimId) -> StoreOp {
        StoreOp::Put {
            table: Table::Answered,
            key: answered_key(issuer, claim),
            value: encode(self),
        }
    }

    /// Returns the range of the row.
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

/// Returns the issuer of the answered claim, from the key of the row.
pub(crate) fn answered_issuer(key: &[u8]) -> Result<NodeId, SnapshotError> {
    let issuer = key.first_chunk().ok_or(SnapshotError::Corrupt(Table::Answered))?;
    Ok(NodeId::from_bytes(*issuer))
}

/// Returns the range of the row of one claim of the local chain.
pub(crate) fn claim_range(claim: &ClaimId) -> StoreRange {
    claims_range(Bound::Included(*claim), Bound::Included(*claim), false)
}

fn one(table: Table, key: &[u8]) -> StoreRange {
    // The next key after `key` is `key` and a zero.
    let to = Some([key, &[0]].concat().into());
    StoreRange { table, from: Bytes::copy_from_slice(key), to, descending: false }
}

fn head_row(head: &ChainHead) -> StoreOp {
    StoreOp::Put { table: Table::ClaimHead, key: Bytes::from_static(HEAD_KEY), value: encode(head) }
}

/// Parses the row of the head.
pub(crate) fn read_head(key: &[u8], value: &[u8]) -> Result<ChainHead, SnapshotError> {
    if key == HEAD_KEY {
        decode(Table::ClaimHead, value)
    } else {
        Err(SnapshotError::Corrupt(Table::ClaimHead))
    }
}

/// Returns the row of a node on the allow-list, or its removal.
pub(crate) fn allow_row(node: &NodeId, allowed: bool) -> StoreOp {
    let (table, key) = (Table::AllowList, Bytes::copy_from_slice(node.as_bytes()));
    if allowed {
        StoreOp::Put { table, key, value: encode(&()) }
    } else {
        StoreOp::Delete { table, key }
    }
}

/// Parses the row of a node on the allow-list.
pub(crate) fn read_allow_row(key: &[u8], value: &[u8]) -> Result<NodeId, SnapshotError> {
    decode::<()>(Table::AllowList, value)?;
    let node = <[u8; 32]>::try_from(key).map_err(|_| SnapshotError::Corrupt(Table::AllowList))?;
    Ok(NodeId::from_bytes(node))
}
