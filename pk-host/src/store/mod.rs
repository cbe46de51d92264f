//! Storage of a node's tables.

#[cfg(any(test, feature = "faults"))]
pub(crate) mod faults;
#[cfg(feature = "redb")]
pub(crate) mod redb;

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use pk_proto::{Snapshot, StoreOp, StoreRange, StoreRow, Table, WriteFailure};

/// Maximum size of rows that are read at once, in bytes.
const PAGE: u64 = 1024 * 1024;

/// Why the rows of a store cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// Tables of rows, sorted by key. Keys and values belong to the core; a store does not interpret
/// them.
pub trait Store: Send + 'static {
    /// Returns whether the methods block on a disk or a network. If so, the node calls them on a
    /// separate thread.
    fn blocks(&self) -> bool {
        true
    }

    /// Returns every row that a node needs at its start: those of [`Snapshot::TABLES`]. Nothing is
    /// written to a store before the owner of these rows was checked.
    ///
    /// # Errors
    ///
    /// The rows cannot be read.
    fn load(&mut self) -> Result<Vec<(Table, Bytes, Bytes)>, StoreError> {
        let mut rows = Vec::new();
        for table in Snapshot::TABLES {
            let mut range = StoreRange { table, from: Bytes::new(), to: None, descending: false };
            loop {
                let (page, more) = self.range(&range, PAGE)?;
                if let Some((last, _)) = page.last() {
                    range.from = [last, &b"\0"[..]].concat().into();
                }
                rows.extend(page.into_iter().map(|(key, value)| (table, key, value)));
                if !more {
                    break;
                }
            }
        }
        Ok(rows)
    }

    /// Applies all operations in order, or none. If `durable`, they and all earlier ones survive a
    /// power failure once this returns; without operations it makes earlier transactions durable.
    ///
    /// # Errors
    ///
    /// A [`WriteFailure`] with the outcome of the transaction. A store must not report
    /// [`NotApplied`](WriteFailure::NotApplied) for a transaction that a later read, or the next
    /// start, may find applied: then the outcome is [`Unknown`](WriteFailure::Unknown), and is
    /// determined by the next read or transaction that succeeds.
    fn apply(&mut self, ops: &[StoreOp], durable: bool) -> Result<(), WriteFailure>;

    /// Returns the rows of a range, in its order, with at most `max_bytes` of keys and values but
    /// at least one row; and whether the range contains more. After a failure, a store that can be
    /// read again returns rows again.
    ///
    /// # Errors
    ///
    /// The rows cannot be read.
    fn range(
        &mut self,
        range: &StoreRange,
        max_bytes: u64,
    ) -> Result<(Vec<StoreRow>, bool), StoreError>;

    /// Makes transactions durable that are not. Called `DriverConfig::sync_delay` after a
    /// non-durable transaction, unless a durable one followed, and before the store is dropped;
    /// only for a store that [`blocks`](Self::blocks).
    ///
    /// # Errors
    ///
    /// They are still not durable; this is called again.
    fn sync(&mut self) -> Result<(), WriteFailure> {
        self.apply(&[], true)
    }
}

/// A store in memory, for tests, demonstrations, and nodes without a disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    tables: BTreeMap<Table, BTreeMap<Bytes, Bytes>>,
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Store for MemoryStore {
    fn blocks(&self) -> bool {
        false
    }

    fn apply(&mut self, ops: &[StoreOp], _: bool) -> Result<(), WriteFailure> {
        for op in ops {
            match op {
                StoreOp::Put { table, key, value } => {
                    self.tables.entry(*table).or_default().insert(key.clone(), value.clone());
                }
                StoreOp::Delete { table, key } => {
                    self.tables.entry(*table).or_default().remove(key);
                }
                StoreOp::Clear { table } => {
                    self.tables.remove(table);
                }
            }
        }
        Ok(())
    }

    fn range(
        &mut self,
        range: &StoreRange,
        max_bytes: u64,
    ) -> Result<(Vec<StoreRow>, bool), StoreError> {
        let Some(table) = self.tables.get(&range.table) else { return Ok((Vec::new(), false)) };
        if range.to.as_ref().is_some_and(|to| *to <= range.from) {
            return Ok((Vec::new(), false));
        }
        let to = range.to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let rows = table.range::<Bytes, _>((Bound::Included(&range.from), to));
        Ok(if range.descending { take(rows.rev(), max_bytes) } else { take(rows, max_bytes) })
    }
}

/// Returns the first row and as many further rows as fit, and whether there are more.
fn take<'a>(
    mut rows: impl Iterator<Item = (&'a Bytes, &'a Bytes)>,
    max_bytes: u64,
) -> (Vec<StoreRow>, bool) {
    let mut taken = Vec::new();
    let mut bytes = 0u64;
    for (key, value) in rows.by_ref() {
        bytes = bytes.saturating_add((key.len() as u64).saturating_add(value.len() as u64));
        if !taken.is_empty() && bytes > max_bytes {
            return (taken, true);
        }
        taken.push((key.clone(), value.clone()));
    }
    (taken, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn store() -> MemoryStore {
        let mut store = MemoryStore::new();
        let put =
            |key| StoreOp::Put { table: Table::Claims, key: bytes(key), value: bytes("12345") };
        store.apply(&["a", "b", "c", "d"].map(put), true).unwrap();
        store
    }

    fn keys(
        store: &mut MemoryStore,
        from: &str,
        to: Option<&str>,
        descending: bool,
        max: u64,
    ) -> (String, bool) {
        let range =
            StoreRange { table: Table::Claims, from: bytes(from), to: to.map(bytes), descending };
        let (rows, more) = store.range(&range, max).unwrap();
        (rows.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect(), more)
    }

    #[test]
    fn range_is_half_open_and_bounded() {
        let mut store = store();
        assert_eq!(keys(&mut store, "", None, false, 1000), ("abcd".into(), false));
        assert_eq!(keys(&mut store, "b", Some("d"), false, 1000), ("bc".into(), false));
        assert_eq!(keys(&mut store, "b", Some("d"), true, 1000), ("cb".into(), false));
        assert_eq!(keys(&mut store, "", None, false, 12), ("ab".into(), true));
        assert_eq!(keys(&mut store, "", None, true, 0), ("d".into(), true), "at least one row");
        assert_eq!(keys(&mut store, "d", Some("a"), false, 1000), (String::new(), false));
        assert_eq!(keys(&mut store, "x", None, false, 1000), (String::new(), false));
    }

    #[test]
    fn node_loads_every_row_it_starts_with() {
        let mut store = store();
        let put = |table, key: &str| StoreOp::Put {
            table,
            key: bytes(key),
            value: vec![0; 600 * 1024].into(),
        };
        let ops = [
            put(Table::Refresh, "b"),
            put(Table::Meta, "m"),
            put(Table::Refresh, "a"),
            put(Table::Refresh, "c"),
        ];
        store.apply(&ops, true).unwrap();
        let rows = store.load().unwrap();
        let rows: Vec<_> = rows.iter().map(|(table, key, _)| (*table, &key[..])).collect();
        assert_eq!(
            rows,
            [
                (Table::Meta, &b"m"[..]),
                (Table::Refresh, b"a"),
                (Table::Refresh, b"b"),
                (Table::Refresh, b"c")
            ]
        );
    }

    #[test]
    fn rows_are_deleted_and_tables_cleared() {
        let mut store = store();
        store.apply(&[StoreOp::Delete { table: Table::Claims, key: bytes("b") }], false).unwrap();
        assert_eq!(keys(&mut store, "", None, false, 1000).0, "acd");
        store.apply(&[StoreOp::Clear { table: Table::Claims }], false).unwrap();
        assert_eq!(keys(&mut store, "", None, false, 1000).0, "");
    }
}
