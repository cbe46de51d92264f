//! The encoding of a row, with its version.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::table::Table;

/// Version of every row that this program writes, and the newest that it reads.
const FORMAT: u8 = 1;

/// Why rows are not a valid snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A later version wrote the store.
    #[error("the store has format {found}; this program supports formats up to {FORMAT}")]
    Newer {
        /// Format of the row.
        found: u8,
    },
    /// A row cannot be parsed.
    #[error("the store is damaged: a row of {0:?} cannot be parsed")]
    Corrupt(Table),
    /// There are rows, but no owner row.
    #[error("the store is damaged: it has no owner row")]
    NoMeta,
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    // Plain data in memory, which postcard can always encode.
    let mut row = alloc::vec![FORMAT];
    row.extend(postcard::to_allocvec(value).unwrap_or_default());
    row.into()
}

pub(crate) fn decode<T: for<'de> Deserialize<'de>>(
    table: Table,
    value: &[u8],
) -> Result<T, SnapshotError> {
    match value.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            _ => Err(SnapshotError::Corrupt(table)),
        },
        Some((found, _)) if *found > FORMAT => Err(SnapshotError::Newer { found: *found }),
        _ => Err(SnapshotError::Corrupt(table)),
    }
}
