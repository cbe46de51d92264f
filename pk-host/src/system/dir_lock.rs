//! The lock of a node directory.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::system::files::{create_folder, private};

/// The locked file. It is never removed: a process that has it open would lock a file that no other
/// process finds.
const NAME: &str = "lock";

/// The lock of a node directory. One process holds it until this is dropped or the process ends.
///
/// The lock is on a separate file, so that it does not depend on the files of the store and the
/// keys. A file that an earlier process left behind is not locked.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Time to wait for the lock: a process started by this one holds its files until it runs its
/// program.
const PATIENCE: Duration = Duration::from_millis(200);

/// Why the lock of a directory was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirLockError {
    /// Another process holds the lock.
    #[error("{path} is locked by another process; only one node can run in a directory at a time")]
    InUse {
        /// The locked file.
        path: PathBuf,
    },
    /// The directory cannot be created, or the lock file cannot be opened or locked.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl DirLock {
    /// Locks a directory. Creates the directory and the file `lock` if necessary.
    ///
    /// # Errors
    ///
    /// Another process holds the lock, or the files cannot be created.
    pub fn take(dir: &Path) -> Result<Self, DirLockError> {
        let path = dir.join(NAME);
        let opened = create_folder(dir).and_then(|()| {
            private().read(true).write(true).create(true).truncate(false).open(&path)
        });
        let file = opened.map_err(|source| DirLockError::Io { path: path.clone(), source })?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => {
                    thread::sleep(PATIENCE / 20);
                }
                Err(TryLockError::WouldBlock) => return Err(DirLockError::InUse { path }),
                Err(TryLockError::Error(source)) => return Err(DirLockError::Io { path, source }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_has_one_holder_and_a_leftover_file_does_not_lock() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let lock = DirLock::take(&dir).unwrap();
        let error = DirLock::take(&dir).unwrap_err();
        assert!(matches!(error, DirLockError::InUse { .. }), "{error}");
        drop(lock);
        assert!(dir.join(NAME).exists());
        drop(DirLock::take(&dir).unwrap());
    }
}
