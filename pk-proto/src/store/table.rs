//! The store as its driver sees it: tables of ordered keys and values, transactions and ranges.

use alloc::string::String;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Why a transaction failed, with its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum WriteFailure {
    /// It was not applied, and will not be.
    #[error("{0}")]
    NotApplied(String),
    /// It was applied completely or not at all, and the store does not know which. The next read or
    /// transaction that succeeds determines the outcome, which then no longer changes.
    #[error("{0}")]
    Unknown(String),
    /// It was not applied, and no later transaction will be: the store is closed for this process.
    #[error("{0}")]
    Closed(String),
}

/// Tables of the store. Keys and values are versioned encodings of the core; the driver does not
/// interpret them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Table {
    /// Owner of the store and active node graph space. Part of the snapshot.
    Meta,
    /// The contacts of one of the two spaces (specification: NodeGraphSpace). Part of the snapshot.
    Contacts(NodeGraphSpace),
    /// Time of the last refresh of each bucket. Part of the snapshot.
    Refresh,
    /// Id and digest of the newest claim. Part of the snapshot.
    ClaimHead,
    /// Unfinished claim exchanges. Part of the snapshot.
    Exchanges,
    /// Claim allow-list. Part of the snapshot.
    AllowList,
    /// Claims of the local chain by id; loaded on demand.
    Claims,
    /// Answers to claims of peers, by the id of their claim. Part of the snapshot, and loaded on
    /// demand.
    Answered,
    /// Links between nodes; loaded on demand.
    Gestalt,
    /// Contacts that have left the graph because they did not respond. Part of the snapshot.
    Lost,
}

/// One of the two copies of the stored graph: a renewal writes one while the other stays complete.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum NodeGraphSpace {
    /// First space.
    #[default]
    A,
    /// Second space.
    B,
}

/// One change to the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreOp {
    /// Insert or replace a row.
    Put {
        /// Table.
        table: Table,
        /// Key.
        key: Bytes,
        /// Value.
        value: Bytes,
    },
    /// Remove a row; no error if there is none.
    Delete {
        /// Table.
        table: Table,
        /// Key.
        key: Bytes,
    },
    /// Remove every row of a table.
    Clear {
        /// Table.
        table: Table,
    },
}

/// Rows of one table with keys in `from..to`, ascending or descending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRange {
    /// Table.
    pub table: Table,
    /// First key, included.
    pub from: Bytes,
    /// End, excluded; `None` is the end of the table.
    pub to: Option<Bytes>,
    /// Whether to read from the last key to the first.
    pub descending: bool,
}

/// A row of a table: key and value.
pub type StoreRow = (Bytes, Bytes);
