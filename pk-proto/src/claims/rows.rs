//! Rows of the local chain, by id: the JSON texts of the tokens.

use alloc::string::String;
use core::ops::Bound;

use bytes::Bytes;

use super::claim::Claim;
use super::id::ClaimId;
use crate::store::row::{SnapshotError, decode, encode};
use crate::store::table::{StoreOp, StoreRange, Table};

/// Returns the row of a claim of the local chain, for code that fills a store. Its place in the
/// chain is not checked.
pub fn claim_row(claim: &Claim) -> StoreOp {
    let key = Bytes::copy_from_slice(claim.id().as_bytes());
    StoreOp::Put { table: Table::Claims, key, value: encode(&claim.token().to_json()) }
}

/// Returns the id of a row, and the JSON text of its token.
pub(crate) fn read_claim_row(key: &[u8], value: &[u8]) -> Result<(ClaimId, String), SnapshotError> {
    let id = <[u8; 16]>::try_from(key).map_err(|_| SnapshotError::Corrupt(Table::Claims))?;
    Ok((ClaimId::from_bytes(id), decode(Table::Claims, value)?))
}

/// Returns the range of the rows of these claims.
pub(crate) fn claims_range(
    from: Bound<ClaimId>,
    to: Bound<ClaimId>,
    descending: bool,
) -> StoreRange {
    let at = |id: ClaimId| Bytes::copy_from_slice(id.as_bytes());
    // The next possible key.
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
