//! Transactions in progress, and the rows that show whether a transaction was applied.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::store::table::{StoreOp, StoreRange, StoreRow, Table};
use crate::types::id::EffectId;

/// What the store contains if, and only if, a transaction was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::manager) struct Evidence {
    pub(in crate::manager) range: StoreRange,
    /// The value of the first row of the range; `None` if there is no row.
    value: Option<Bytes>,
}

impl Evidence {
    /// Returns the evidence that one operation of the transaction leaves. The operation must change
    /// the store: before the transaction, the store must not contain the same.
    pub(in crate::manager) fn of(op: &StoreOp) -> Self {
        match op {
            StoreOp::Put { table, key, value } => {
                Self { range: one(*table, key), value: Some(value.clone()) }
            }
            StoreOp::Delete { table, key } => Self { range: one(*table, key), value: None },
            StoreOp::Clear { table } => {
                let range =
                    StoreRange { table: *table, from: Bytes::new(), to: None, descending: false };
                Self { range, value: None }
            }
        }
    }

    pub(in crate::manager) fn is_in(&self, rows: &[StoreRow]) -> bool {
        rows.first().map(|(_, value)| value) == self.value.as_ref()
    }
}

/// Returns the range of one row.
fn one(table: Table, key: &[u8]) -> StoreRange {
    // The next key after `key` is `key` with a zero byte appended.
    let to = Some([key, &[0]].concat().into());
    StoreRange { table, from: Bytes::copy_from_slice(key), to, descending: false }
}

/// Transactions in progress whose outcome is needed.
#[derive(Debug, Default)]
pub(in crate::manager) struct Writes {
    pub(in crate::manager) under_way: BTreeMap<EffectId, Write>,
    /// Transactions that wait until the store has an owner; the flag is `durable`.
    pub(in crate::manager) waiting: VecDeque<(EffectId, Vec<StoreOp>, bool)>,
    /// Whether the store accepts no more writes.
    pub(in crate::manager) closed: bool,
}

#[derive(Debug)]
pub(in crate::manager) struct Write {
    pub(in crate::manager) evidence: Evidence,
    pub(in crate::manager) doubt: Option<Doubt>,
}

/// A transaction whose outcome the store could not report.
#[derive(Debug)]
pub(in crate::manager) struct Doubt {
    pub(in crate::manager) why: String,
    /// Number of failed reads of the evidence.
    pub(in crate::manager) attempts: u32,
}

impl Writes {
    pub(in crate::manager) fn doubts(&self) -> impl Iterator<Item = (EffectId, &str)> {
        self.under_way
            .iter()
            .filter_map(|(id, write)| write.doubt.as_ref().map(|doubt| (*id, &*doubt.why)))
    }
}
