//! The store: tables of rows, and the encoding of a row.

pub(crate) mod row;
pub(crate) mod table;

pub use self::row::SnapshotError;
pub use self::table::{NodeGraphSpace, StoreOp, StoreRange, StoreRow, Table, WriteFailure};
