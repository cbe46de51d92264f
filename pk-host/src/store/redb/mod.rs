//! The tables in one file, with redb.
//!
//! **No file is written before its owner is known.** redb writes to a file when it opens it, at
//! least to mark it as open. Here these writes are held in memory until the first
//! [`apply`](Store::apply): by then the caller has read the rows and checked that they are its own.
//! A store that is dropped before leaves its file unchanged.
//!
//! **The outcome of a failed write is determined by reopening the file.** After a disk error redb
//! refuses to continue, and a failed commit may be in the file. Every transaction writes its
//! number, so that the number in the file shows whether it was applied. If the file cannot be
//! opened, the outcome is unknown until it can; reads and transactions try that first.
//!
//! **Data that can be read need not be on the disk.** After a failed `fsync` Linux marks the pages
//! as clean: they are read as they were written, and a later `fsync` succeeds without writing them.
//! A file that was not closed properly is therefore rewritten page by page and synced before its
//! content is used (`Gate::open`).

mod gate;
mod open;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pk_proto::{NodeGraphSpace, StoreOp, StoreRange, StoreRow, Table, WriteFailure};
use redb::{Durability, ReadableDatabase, StorageError, TableDefinition, TableError};

pub use self::open::StoreOpenError;
use self::open::{Open, Place, create, open};
use crate::store::{Store, StoreError};
use crate::system::dir_lock::DirLock;
use crate::system::files::{folder, sweep};

/// Number of the last transaction; absent in files of versions without numbers.
const NUMBER_TABLE: TableDefinition<'_, &str, u64> = TableDefinition::new("transaction");
const NUMBER_KEY: &str = "last";
/// Maximum size of rows that are written but not durable, in bytes; then they are made durable.
const LOOSE_LIMIT: usize = 1024 * 1024;
/// Delay between attempts to reopen the file, because each reads the whole file.
const REOPEN_DELAY: Duration = Duration::from_millis(100);

type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// A store in one file, for one process at a time. Blocks on the disk.
///
/// Every transaction is atomic. One that is not requested as durable survives the end of the
/// process only after the next durable one or [`sync`](Store::sync), or after the store was
/// dropped. When the disk fails, the file is reopened at once, and if that fails, by the next
/// transaction or read.
///
/// If the file is deleted or replaced, the next durable transaction and every later one fail with
/// [`WriteFailure::Closed`].
pub struct RedbStore {
    path: PathBuf,
    place: Place,
    state: State,
    /// Number of the last transaction that was tried.
    number: u64,
    /// Transactions that are written but not durable; they are applied again after a disk error.
    loose: Vec<Loose>,
    loose_bytes: usize,
    /// Lock of the directory; released when the file is closed.
    _lock: Option<DirLock>,
}

enum State {
    Open(Open),
    /// The disk has failed. The file is not open, and is not reopened before this time.
    Failed {
        why: String,
        retry: Instant,
    },
    /// The file was deleted or replaced. The old one can still be read as far as possible.
    Closed {
        why: String,
        open: Option<Open>,
    },
}

/// A transaction that is not durable.
struct Loose {
    number: u64,
    ops: Vec<StoreOp>,
}

impl RedbStore {
    /// Opens the store in a file, or creates it.
    ///
    /// # Errors
    ///
    /// The file is unchanged.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreOpenError> {
        let path = path.into();
        let io = |source| StoreOpenError::Io { path: path.clone(), source };
        let exists = path.try_exists().map_err(io)?;
        if !exists {
            create(&path)?;
        }
        let open = open(&path, false)?;
        // The file is locked now: a process that was creating it was killed, or will find that it
        // exists.
        let name = path.file_name().and_then(|name| name.to_str());
        if let Err(error) = sweep(folder(&path), |of| Some(of) == name) {
            tracing::debug!(%error, "a temporary file of a killed process could not be removed");
        }
        let place = Place::new(&path, open.id).map_err(io)?;
        let number = open.number().map_err(|error| StoreOpenError::Damaged {
            path: path.clone(),
            what: error.to_string(),
        })?;
        Ok(Self {
            path,
            place,
            state: State::Open(open),
            number,
            loose: Vec::new(),
            loose_bytes: 0,
            _lock: None,
        })
    }

    /// Keeps a lock until the store is dropped.
    #[must_use]
    pub fn holding(mut self, lock: DirLock) -> Self {
        self._lock = Some(lock);
        self
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file; reopens it after a disk error. Fails if reopening fails, or the file
    /// is gone.
    fn opened(&mut self) -> Result<&mut Open, String> {
        if let State::Failed { why, retry } = &self.state {
            if Instant::now() < *retry {
                return Err(why.clone());
            }
            self.check_place()?;
            self.reopen()?;
        }
        match &mut self.state {
            State::Open(open) => Ok(open),
            State::Failed { why, .. } | State::Closed { why, .. } => Err(why.clone()),
        }
    }

    /// Reopens the file. Returns the number of the last transaction in it; that one and all earlier
    /// ones are on the disk, and no later one is.
    fn reopen(&mut self) -> Result<u64, String> {
        let reopened = || -> Result<(Open, u64), redb::Error> {
            let open = open(&self.path, true)
                .map_err(|error| StorageError::Io(io::Error::other(error)))?;
            if !self.place.is_of(&open) {
                return Err(StorageError::Io(io::Error::other(
                    "the file was replaced by another file",
                ))
                .into());
            }
            let number = open.number()?;
            open.settle()?;
            Ok((open, number))
        };
        let (open, found) = match reopened() {
            Ok(reopened) => reopened,
            Err(error) => return Err(self.failed(&error)),
        };
        tracing::info!(path = %self.path.display(), "the store was reopened");
        // Transactions that are in the file are not applied again: their rows could be older than
        // those of later transactions.
        let missing = self.loose.iter().filter(|loose| loose.number > found);
        let (ops, last) = missing.fold((Vec::new(), found), |(mut ops, _), loose| {
            ops.extend_from_slice(&loose.ops);
            (ops, loose.number)
        });
        let restored = if ops.is_empty() { Ok(()) } else { open.write(last, &ops, false) };
        match restored {
            Ok(()) => self.state = State::Open(open),
            Err(error) => drop(self.failed(&error)),
        }
        Ok(found)
    }

    /// After this error redb can no longer be used. Returns the error as text.
    fn failed(&mut self, error: &redb::Error) -> String {
        tracing::warn!(path = %self.path.display(), %error, "the store failed; it will be reopened");
        let why = error.to_string();
        self.state = State::Failed { why: why.clone(), retry: Instant::now() + REOPEN_DELAY };
        why
    }

    /// Checks that the open file is still the one that the next start will find.
    fn check_place(&mut self) -> Result<(), String> {
        if let State::Closed { why, .. } = &self.state {
            return Err(why.clone());
        }
        let Some(why) = self.place.gone(&self.path) else { return Ok(()) };
        tracing::error!("{why}");
        let failed = State::Failed { why: why.clone(), retry: Instant::now() };
        let open = match std::mem::replace(&mut self.state, failed) {
            State::Open(open) => Some(open),
            State::Failed { .. } | State::Closed { .. } => None,
        };
        self.state = State::Closed { why: why.clone(), open };
        Err(why)
    }

    fn try_apply(&mut self, ops: &[StoreOp], durable: bool) -> Result<(), WriteFailure> {
        if durable {
            self.check_place().map_err(WriteFailure::Closed)?;
        }
        // Nothing of this transaction was tried before the file is open.
        let number = self.number + 1;
        let written = match self.opened() {
            Ok(open) => open.write(number, ops, durable),
            Err(why) => return Err(WriteFailure::NotApplied(why)),
        };
        self.number = number;
        if let Err(error) = written {
            let why = self.failed(&error);
            match self.reopen() {
                Ok(found) if found >= number => {}
                Ok(_) => return Err(WriteFailure::NotApplied(why)),
                Err(_) => return Err(WriteFailure::Unknown(why)),
            }
        }
        if durable { self.check_place().map_err(WriteFailure::Closed) } else { Ok(()) }
    }
}

impl Store for RedbStore {
    fn apply(&mut self, ops: &[StoreOp], durable: bool) -> Result<(), WriteFailure> {
        let bytes: usize = ops.iter().map(size).sum();
        let durable = durable || self.loose_bytes.saturating_add(bytes) > LOOSE_LIMIT;
        self.try_apply(ops, durable)?;
        if durable {
            self.loose.clear();
            self.loose_bytes = 0;
        } else {
            self.loose.push(Loose { number: self.number, ops: ops.to_vec() });
            self.loose_bytes += bytes;
        }
        Ok(())
    }

    fn range(
        &mut self,
        range: &StoreRange,
        max_bytes: u64,
    ) -> Result<(Vec<StoreRow>, bool), StoreError> {
        let open = match &mut self.state {
            State::Closed { open: Some(open), .. } => open,
            _ => self.opened().map_err(StoreError)?,
        };
        open.range(range, max_bytes).map_err(|error| {
            if matches!(self.state, State::Open(_)) {
                self.failed(&error);
            }
            StoreError(error.to_string())
        })
    }

    fn sync(&mut self) -> Result<(), WriteFailure> {
        if self.loose.is_empty() { Ok(()) } else { self.apply(&[], true) }
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        // The failure itself is reported.
        let _ = self.sync();
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Open {
    /// Syncs the content of the file to the disk, and starts to write to it.
    fn settle(&self) -> Result<(), redb::Error> {
        Ok(self.gate.open().map_err(StorageError::Io)?)
    }

    fn write(&self, number: u64, ops: &[StoreOp], durable: bool) -> Result<(), redb::Error> {
        self.settle()?;
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(if durable {
            Durability::Immediate
        } else {
            Durability::None
        })?;
        for run in ops.chunk_by(|one, next| table(one) == table(next)) {
            let Some(first) = run.first() else { continue };
            let mut rows = transaction.open_table(definition(table(first)))?;
            for op in run {
                match op {
                    StoreOp::Put { key, value, .. } => drop(rows.insert(&key[..], &value[..])?),
                    StoreOp::Delete { key, .. } => drop(rows.remove(&key[..])?),
                    StoreOp::Clear { .. } => rows.retain(|_, _| false)?,
                }
            }
        }
        transaction.open_table(NUMBER_TABLE)?.insert(NUMBER_KEY, number)?;
        transaction.commit()?;
        Ok(())
    }

    /// Returns the number of the last transaction.
    fn number(&self) -> Result<u64, redb::Error> {
        match self.db.begin_read()?.open_table(NUMBER_TABLE) {
            Ok(table) => Ok(table.get(NUMBER_KEY)?.map_or(0, |number| number.value())),
            Err(TableError::TableDoesNotExist(_)) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn range(
        &self,
        range: &StoreRange,
        max_bytes: u64,
    ) -> Result<(Vec<StoreRow>, bool), redb::Error> {
        if range.to.as_ref().is_some_and(|to| *to <= range.from) {
            return Ok((Vec::new(), false));
        }
        let transaction = self.db.begin_read()?;
        let table = match transaction.open_table(definition(range.table)) {
            Err(TableError::TableDoesNotExist(_)) => return Ok((Vec::new(), false)),
            table => table?,
        };
        let to = range.to.as_ref().map_or(Bound::Unbounded, |to| Bound::Excluded(&to[..]));
        let mut rows = table.range::<&[u8]>((Bound::Included(&range.from[..]), to))?;
        let (mut taken, mut bytes) = (Vec::new(), 0u64);
        while let Some(row) = if range.descending { rows.next_back() } else { rows.next() } {
            let (key, value) = row?;
            let (key, value) = (key.value(), value.value());
            bytes = bytes.saturating_add((key.len() as u64).saturating_add(value.len() as u64));
            if !taken.is_empty() && bytes > max_bytes {
                return Ok((taken, true));
            }
            taken.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        }
        Ok((taken, false))
    }
}

fn table(op: &StoreOp) -> Table {
    match op {
        StoreOp::Put { table, .. } | StoreOp::Delete { table, .. } | StoreOp::Clear { table } => {
            *table
        }
    }
}

/// Returns the approximate size of an operation in memory.
fn size(op: &StoreOp) -> usize {
    let bytes = match op {
        StoreOp::Put { key, value, .. } => key.len() + value.len(),
        StoreOp::Delete { key, .. } => key.len(),
        StoreOp::Clear { .. } => 0,
    };
    size_of::<StoreOp>() + bytes
}

/// These names are stored in files: never change or reuse one.
fn definition(table: Table) -> Rows {
    TableDefinition::new(match table {
        Table::Meta => "meta",
        Table::Contacts(NodeGraphSpace::A) => "contacts-a",
        Table::Contacts(NodeGraphSpace::B) => "contacts-b",
        Table::Refresh => "refresh",
        Table::ClaimHead => "claim-head",
        Table::Exchanges => "exchanges",
        Table::AllowList => "allow-list",
        Table::Claims => "claims",
        Table::Answered => "answered",
        Table::Gestalt => "gestalt",
        Table::Lost => "lost",
    })
}
