//! The rows of our own claims, by id: the JSON texts of their tokens.

use alloc::string::String;
use core::ops::Bound;

use bytes::Bytes;

use super::claim::Claim;
use super::id::ClaimId;
use crate::io::{StoreOp, StoreRange, Table};
use crate::store::{SnapshotError, decode, encode};

/// How a claim of the own sigchain is stored, for whoever fills a store from elsewhere. Its place in the chain is not checked.
pub fn claim_row(claim: &Claim) -> StoreOp {
    let key = Bytes::copy_from_slice(claim.id().as_bytes());
    StoreOp::Put { table: Table::Claims, key, value: encode(&claim.token().to_json()) }
}

/// The id of a row, and the JSON text of the token in it.
pub(crate) fn read_claim_row(key: &[u8], value: &[u8]) -> Result<(ClaimId, String), SnapshotError> {
    let id = <[u8; 16]>::try_from(key).map_err(|_| SnapshotError::Corrupt(Table::Claims))?;
    Ok((ClaimId::from_bytes(id), decode(Table::Claims, value)?))
}

/// Where the rows of these claims are.
pub(crate) fn claims_range(from: Bound<ClaimId>, to: Bound<ClaimId>, descending: bool) -> StoreRange {
    let at = |id: ClaimId| Bytes::copy_from_slice(id.as_bytes());
    // The next key there can be.
    let behind = |id: ClaimId| [id.as_bytes(), &[0][..]].concat().into();
    let from = match from {
        Bound::Included(id) => at(id),
        Bound::Excluded(id) => behind(id),
        Bound::Unbounded => Bytes::new(),
    };
    let to = match to {
        Bound::Included(id) => Some(behind(id)),
        Bound::Excluded(id) => Some(at(id)),
        Bound::Unbounded => None,
    };
    StoreRange { table: Table::Claims, from, to, descending }
}
