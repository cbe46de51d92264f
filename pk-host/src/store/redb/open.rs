//! The file of a store: creating it, opening it, and detecting that it is gone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, StorageError, TableDefinition, TableError,
};

use super::gate::{Gate, Gated};
use crate::system::dir_lock::DirLockError;
use crate::system::files::{Temporary, create_folder, folder};

/// Version of the table layout that this program writes, and the newest that it reads. The content
/// of rows has its own version, in the core.
const FORMAT: u32 = 1;
/// Marks a file as a store of this program, with its format.
pub(super) const FORMAT_TABLE: TableDefinition<'_, &str, u32> =
    TableDefinition::new("polykey-node-store");
pub(super) const FORMAT_KEY: &str = "format";
/// Memory for cached pages of the file, in bytes.
const CACHE: usize = 8 * 1024 * 1024;

/// Why a store cannot be opened. Its file was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreOpenError {
    /// The file or its directory cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another node or another process has opened it.
    #[error("{path} is in use by another process; only one node can run in a directory at a time")]
    InUse {
        /// File.
        path: PathBuf,
    },
    /// The file is not the store of a node.
    #[error("{path} is not the store of a node")]
    Foreign {
        /// File.
        path: PathBuf,
    },
    /// A newer program wrote the file.
    #[error("{path} has format {found}; this program supports formats up to {FORMAT}")]
    Newer {
        /// File.
        path: PathBuf,
        /// Format of the file.
        found: u32,
    },
    /// The file is the store of a node, but damaged.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is damaged.
        what: String,
    },
}

impl From<DirLockError> for StoreOpenError {
    fn from(error: DirLockError) -> Self {
        match error {
            DirLockError::InUse { path } => Self::InUse { path },
            DirLockError::Io { path, source } => Self::Io { path, source },
        }
    }
}

/// An open store.
pub(super) struct Open {
    pub(super) db: Database,
    pub(super) gate: Arc<Gate>,
    /// Identity of the file.
    pub(super) id: FileId,
}

/// Identity of a file among those that exist: on Unix its device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    #[cfg(unix)]
    fn of(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self(metadata.dev(), metadata.ino())
    }

    /// Files cannot be distinguished on this system.
    #[cfg(not(unix))]
    fn of(_: &fs::Metadata) -> Self {
        Self(0, 0)
    }
}

/// The file that a store was opened in. While this exists, no other file gets the same identity,
/// even if the database is closed. It holds none of redb's locks, because it is opened separately.
#[derive(Debug)]
pub(super) struct Place {
    _file: File,
    id: FileId,
}

impl Place {
    /// Opens the file with this name, which must have this identity.
    pub(super) fn new(path: &Path, id: FileId) -> io::Result<Self> {
        let file = File::open(path)?;
        if FileId::of(&file.metadata()?) != id {
            return Err(io::Error::other("the file was replaced while it was being opened"));
        }
        Ok(Self { _file: file, id })
    }

    /// Returns whether a store is open in this file.
    pub(super) fn is_of(&self, open: &Open) -> bool {
        open.id == self.id
    }

    /// Returns why writes to this file would be lost: the name belongs to another file, or does not
    /// exist. `None` also if that cannot be determined.
    pub(super) fn gone(&self, path: &Path) -> Option<String> {
        match fs::metadata(path) {
            Ok(metadata) if FileId::of(&metadata) == self.id => None,
            Ok(_) => Some(lost(path, "replaced by another file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(lost(path, "deleted")),
            Err(_) => None,
        }
    }
}

fn lost(path: &Path, what: &str) -> String {
    let path = path.display();
    format!(
        "{path} was {what} while the node was running; nothing more is written. Stop the node and \
            restore the newest copy of the file; without one, claims that other nodes have seen \
            would be created again with other content"
    )
}

/// Creates an empty store, completely or not at all.
pub(super) fn create(path: &Path) -> Result<(), StoreOpenError> {
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
        // redb has synced what it wrote.
        match temporary.name() {
            // Another process was faster, and may have removed our temporary file; its file is
            // equivalent.
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

/// Opens a store without writing to it. `suspect`: the disk has failed since it was last opened.
pub(super) fn open(path: &Path, suspect: bool) -> Result<Open, StoreOpenError> {
    let io = |source| StoreOpenError::Io { path: path.to_owned(), source };
    let damaged = |what| StoreOpenError::Damaged { path: path.to_owned(), what };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(StoreOpenError::Foreign { path: path.to_owned() });
    }
    let gate = Gate::new(file, suspect)
        .map_err(io)?
        .ok_or_else(|| StoreOpenError::Foreign { path: path.to_owned() })?;
    let gate = Arc::new(gate);
    let backend = Gated::new(&gate);
    // Verifies the checksum of every page, so that damage is found here and not by a later read. In
    // debug builds redb still has assertions that a damaged file violates.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let db = builder().set_check_integrity_on_open(true).create_with_backend(backend);
        db.map(|db| (format(&db), db))
    }));
    match opened {
        Err(_) => Err(damaged("it violates an assertion of redb".to_owned())),
        Ok(Err(error)) => Err(match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                StoreOpenError::InUse { path: path.to_owned() }
            }
            DatabaseError::Storage(StorageError::Io(error)) if is_of_the_system(&error) => {
                io(error)
            }
            error => damaged(error.to_string()),
        }),
        Ok(Ok((Ok(Some(FORMAT)), db))) => Ok(Open { db, gate, id: FileId::of(&metadata) }),
        Ok(Ok((Ok(Some(found)), _))) if found > FORMAT => {
            Err(StoreOpenError::Newer { path: path.to_owned(), found })
        }
        Ok(Ok((Ok(_), _))) => Err(StoreOpenError::Foreign { path: path.to_owned() }),
        Ok(Ok((Err(error), _))) => Err(damaged(error.to_string())),
    }
}

/// Returns the format stated in the file; `None` if it states none.
fn format(db: &Database) -> Result<Option<u32>, redb::Error> {
    match db.begin_read()?.open_table(FORMAT_TABLE) {
        Ok(table) => Ok(table.get(FORMAT_KEY)?.map(|format| format.value())),
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether an error comes from the disk, and not from the content of the file.
fn is_of_the_system(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other
    )
}
