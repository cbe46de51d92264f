//! Cleanup at every end of the program: temporary directories, and the processes that it started.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use crate::error::{CliError, Result};

/// Existing temporary directories.
static DIRS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A node that is still stopping may write to its directory again; then it is removed again.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// A directory that is removed when this value is dropped, and when a signal ends the program.
#[derive(Debug)]
pub(crate) struct TemporaryDir(PathBuf);

impl TemporaryDir {
    /// Creates an empty directory with a unique name that starts with `prefix`.
    ///
    /// # Errors
    ///
    /// The directory cannot be created, or reading system randomness fails.
    pub(crate) fn new(prefix: &str) -> Result<Self> {
        let random =
            getrandom::u64().map_err(|error| CliError::new("Random", error.to_string()))?;
        let path = std::env::temp_dir().join(format!("{prefix}-{random:016x}"));
        // Under the lock, so that a signal never finds the directory without its name.
        let mut dirs = DIRS.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails if it exists, so that guessing the name achieves nothing but an error here.
        fs::create_dir(&path)
            .map_err(|error| CliError::new("Io", format!("{}: {error}", path.display())))?;
        dirs.insert(path.clone());
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        DIRS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        if let Err(error) = remove_dir(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "failed to remove a temporary directory");
        }
    }
}

/// Ends every started process and removes every temporary directory. The program exits afterwards.
pub(crate) fn remove() {
    pk_interop::end_all();
    // The lock is held until the exit, so that no directory is created.
    let dirs = DIRS.lock().unwrap_or_else(PoisonError::into_inner);
    for dir in dirs.iter() {
        if let Err(error) = remove_dir(dir) {
            tracing::warn!(path = %dir.display(), %error, "failed to remove a temporary directory");
        }
    }
    std::mem::forget(dirs);
}

fn remove_dir(path: &Path) -> io::Result<()> {
    let mut attempt = 1;
    loop {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(_) if attempt < ATTEMPTS => {
                attempt += 1;
                sleep(PAUSE);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_directory_is_removed_with_its_contents() {
        let dir = TemporaryDir::new("pk-test").unwrap();
        let path = dir.path().to_owned();
        fs::create_dir(path.join("a")).unwrap();
        fs::write(path.join("a/b"), "c").unwrap();
        assert!(DIRS.lock().unwrap().contains(&path));
        drop(dir);
        assert!(!path.exists() && !DIRS.lock().unwrap().contains(&path));
    }
}
