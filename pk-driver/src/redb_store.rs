//! The tables in one file, by redb.
//!
//! **Nothing is written to a file that is not known to be ours.** redb writes to a file when it opens it, at least to mark
//! it as open. Here whatever it writes is held back in memory until the first [`apply`](Store::apply): by then the caller
//! has read the rows and found them to be its own. A store that is dropped before leaves its file as it was, to the byte.

mod gate;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pk_proto::{NodeGraphSpace, StoreOp, StoreRange, StoreRow, Table};
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, Durability, ReadableDatabase, StorageError, TableDefinition, TableError};

use self::gate::{Gate, Gated};
use crate::files::{Temporary, create_folder, folder, sweep};
use crate::store::{Store, StoreError};

/// The version of the layout of tables that this program writes, and the newest it reads. What is in the rows is the core's,
/// and has a version of its own.
const FORMAT: u32 = 1;
/// Says that the file is ours, and of which format.
const FORMAT_TABLE: TableDefinition<'_, &str, u32> = TableDefinition::new("polykey-node-store");
const FORMAT_KEY: &str = "format";
/// Memory for pages of the file.
const CACHE: usize = 8 * 1024 * 1024;
/// Rows that are written but not durable are made so before they are more than this, in bytes.
const LOOSE_LIMIT: usize = 1024 * 1024;

type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Why a store cannot be opened. Nothing in its file was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreOpenError {
    /// The file or its folder cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another node, or another process, has it open.
    #[error("{path} is in use by another process; a folder is for one running node")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// Something else than the store of a node.
    #[error("{path} is not the store of a node")]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error("{path} has format {found}, this program reads up to format {FORMAT}")]
    Newer {
        /// Which.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// It is the store of a node, but broken.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is broken.
        what: String,
    },
}

/// A store in one file, for one process at a time. Blocks on the disk.
///
/// A transaction is atomic, always. One that is not asked to be durable survives the end of the process only after the next
/// durable one or [`sync`](Store::sync), or after the store was dropped. When the disk fails, it is opened anew with the
/// next transaction.
pub struct RedbStore {
    path: PathBuf,
    /// `None` after an error of the disk, after which redb refuses to go on.
    open: Option<Open>,
    /// What is written but not durable; it is written again after an error of the disk.
    loose: Vec<StoreOp>,
    loose_bytes: usize,
}

struct Open {
    db: Database,
    gate: Arc<Gate>,
}

impl RedbStore {
    /// Opens the store in a file, or makes it.
    ///
    /// # Errors
    ///
    /// The file is left as it was.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreOpenError> {
        let path = path.into();
        let io = |source| StoreOpenError::Io { path: path.clone(), source };
        let exists = path.try_exists().map_err(io)?;
        if !exists {
            create(&path)?;
        }
        let open = open(&path)?;
        // The file is locked now: whoever was making it has been killed, or will find that it is there.
        let name = path.file_name().and_then(|name| name.to_str());
        if let Err(error) = sweep(folder(&path), |of| Some(of) == name) {
            tracing::debug!(%error, "what a killed process left of a store stays");
        }
        Ok(Self { path, open: Some(open), loose: Vec::new(), loose_bytes: 0 })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn try_apply(&mut self, ops: &[StoreOp], durable: bool) -> Result<(), redb::Error> {
        let open = match &mut self.open {
            Some(open) => open,
            closed => {
                let open = open(&self.path).map_err(|error| StorageError::Io(io::Error::other(error)))?;
                // What was written since the last durable transaction may be lost.
                open.write(&self.loose, false)?;
                closed.insert(open)
            }
        };
        open.write(ops, durable)
    }

    /// After this error redb is of no more use.
    fn failed(&mut self, error: &redb::Error) -> StoreError {
        tracing::warn!(path = %self.path.display(), %error, "the store failed; it will be opened anew");
        self.open = None;
        StoreError(error.to_string())
    }
}

impl Store for RedbStore {
    fn apply(&mut self, ops: &[StoreOp], durable: bool) -> Result<(), StoreError> {
        let bytes: usize = ops.iter().map(size).sum();
        let durable = durable || self.loose_bytes.saturating_add(bytes) > LOOSE_LIMIT;
        self.try_apply(ops, durable).map_err(|error| self.failed(&error))?;
        if durable {
            self.loose.clear();
            self.loose_bytes = 0;
        } else {
            self.loose.extend_from_slice(ops);
            self.loose_bytes += bytes;
        }
        Ok(())
    }

    fn range(&self, range: &StoreRange, max_bytes: u64) -> Result<(Vec<StoreRow>, bool), StoreError> {
        let Some(open) = &self.open else {
            return Err(StoreError(format!("{} failed and was not opened again", self.path.display())));
        };
        open.range(range, max_bytes).map_err(|error| StoreError(error.to_string()))
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        if self.loose.is_empty() { Ok(()) } else { self.apply(&[], true) }
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        // Told by the failure itself.
        let _ = self.sync();
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Open {
    fn write(&self, ops: &[StoreOp], durable: bool) -> Result<(), redb::Error> {
        self.gate.open().map_err(StorageError::Io)?;
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
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
        transaction.commit()?;
        Ok(())
    }

    fn range(&self, range: &StoreRange, max_bytes: u64) -> Result<(Vec<StoreRow>, bool), redb::Error> {
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
        StoreOp::Put { table, .. } | StoreOp::Delete { table, .. } | StoreOp::Clear { table } => *table,
    }
}

/// What an operation takes in memory, more or less.
fn size(op: &StoreOp) -> usize {
    let bytes = match op {
        StoreOp::Put { key, value, .. } => key.len() + value.len(),
        StoreOp::Delete { key, .. } => key.len(),
        StoreOp::Clear { .. } => 0,
    };
    size_of::<StoreOp>() + bytes
}

/// The names are on disks: never changed, never used again.
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
    })
}

// -- opening

/// Makes an empty store; whole, or not at all.
fn create(path: &Path) -> Result<(), StoreOpenError> {
    let make = || {
        let parent = folder(path);
        if !parent.try_exists()? {
            create_folder(parent)?;
        }
        let (temporary, file) = Temporary::create(path)?;
        let made = || -> Result<(), redb::Error> {
            let db = builder().create_with_backend(FileBackend::new(file)?)?;
            let transaction = db.begin_write()?;
            transaction.open_table(FORMAT_TABLE)?.insert(FORMAT_KEY, FORMAT)?;
            transaction.commit()?;
            Ok(())
        };
        made().map_err(io::Error::other)?;
        // redb has brought what it wrote down to the disk.
        match temporary.name() {
            // Somebody was quicker, and may have swept ours away; that one is as good.
            Err(_) if path.try_exists()? => Ok(()),
            named => named,
        }
    };
    make().map_err(|source| StoreOpenError::Io { path: path.to_owned(), source })
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

/// Opens a store, and writes nothing yet.
fn open(path: &Path) -> Result<Open, StoreOpenError> {
    let io = |source| StoreOpenError::Io { path: path.to_owned(), source };
    let damaged = |what| StoreOpenError::Damaged { path: path.to_owned(), what };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(StoreOpenError::Foreign { path: path.to_owned() });
    }
    let gate = Gate::new(file).map_err(io)?.ok_or_else(|| StoreOpenError::Foreign { path: path.to_owned() })?;
    let gate = Arc::new(gate);
    let backend = Gated::new(&gate);
    // Verifies the checksum of every page, so that what is broken is found here and not by whoever reads it. In debug
    // builds redb still has assertions that a broken file violates.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let db = builder().set_check_integrity_on_open(true).create_with_backend(backend);
        db.map(|db| (format(&db), db))
    }));
    match opened {
        Err(_) => Err(damaged("it violates what its own library relies on".to_owned())),
        Ok(Err(error)) => Err(match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                StoreOpenError::InUse { path: path.to_owned() }
            }
            DatabaseError::Storage(StorageError::Io(error)) if is_of_the_system(&error) => io(error),
            error => damaged(error.to_string()),
        }),
        Ok(Ok((Ok(Some(FORMAT)), db))) => Ok(Open { db, gate }),
        Ok(Ok((Ok(Some(found)), _))) if found > FORMAT => Err(StoreOpenError::Newer { path: path.to_owned(), found }),
        Ok(Ok((Ok(_), _))) => Err(StoreOpenError::Foreign { path: path.to_owned() }),
        Ok(Ok((Err(error), _))) => Err(damaged(error.to_string())),
    }
}

/// Which format the file says it has; `None` if it says nothing of ours.
fn format(db: &Database) -> Result<Option<u32>, redb::Error> {
    match db.begin_read()?.open_table(FORMAT_TABLE) {
        Ok(table) => Ok(table.get(FORMAT_KEY)?.map(|format| format.value())),
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether an error is one of the disk, and not of what is on it.
fn is_of_the_system(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other)
}
