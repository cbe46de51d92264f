//! Files that only their owner can read, and that are written completely or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Separates the final name of a file from the number of its writer while the file is temporary.
const TEMPORARY: &str = ".tmp";

/// Returns options for a file that only its owner can read.
#[cfg(unix)]
pub fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Returns options for a file that only its owner can read.
#[cfg(not(unix))]
pub fn private() -> OpenOptions {
    OpenOptions::new()
}

/// Creates a directory that only its owner can read, and its parents.
///
/// # Errors
///
/// Those of the file system.
#[cfg(unix)]
pub fn create_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Creates a directory and its parents.
///
/// # Errors
///
/// Those of the file system.
#[cfg(not(unix))]
pub fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Syncs the names in a directory to the disk.
#[cfg(unix)]
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
pub(crate) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// A new file beside its target until it gets its name. It is removed if it is dropped before.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    target: PathBuf,
    named: bool,
}

impl Temporary {
    /// Creates an empty file, open for reading and writing.
    pub(crate) fn create(target: &Path) -> io::Result<(Self, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let mut name = target.file_name().unwrap_or_default().to_owned();
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            name.push(format!("{TEMPORARY}{}-{count}", std::process::id()));
            let path = target.with_file_name(name);
            match private().read(true).write(true).create_new(true).open(&path) {
                // Left behind by a killed process with the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => return Ok((Self { path, target: target.to_owned(), named: false }, file?)),
            }
        }
    }

    /// Creates a file with these bytes and syncs it to the disk.
    pub(crate) fn with(target: &Path, bytes: &[u8]) -> io::Result<Self> {
        let (temporary, mut file) = Self::create(target)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(temporary)
    }

    /// Gives the file its name, and replaces an existing file.
    pub(crate) fn replace(mut self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)?;
        self.named = true;
        sync_folder(folder(&self.target))
    }

    /// Gives the file its name.
    ///
    /// Fails with [`AlreadyExists`](io::ErrorKind::AlreadyExists) if the name exists, even if it
    /// was created just now.
    pub(crate) fn name(self) -> io::Result<()> {
        fs::hard_link(&self.path, &self.target)?;
        // The temporary name is removed with `self`.
        let target = self.target.clone();
        drop(self);
        sync_folder(folder(&target))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.named {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes temporary files that killed processes left behind. `ours` selects them by their final
/// names.
///
/// Requires exclusive use of the directory: a file that is being written now would be removed as
/// well.
pub(crate) fn sweep(folder: &Path, ours: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some((name, writer)) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.rsplit_once(TEMPORARY))
        else {
            continue;
        };
        if ours(name) && writer.starts_with(|first: char| first.is_ascii_digit()) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a file if it exists.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the directory of a file.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_complete_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        drop(Temporary::with(&path, b"dropped").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        Temporary::with(&path, b"first").unwrap().name().unwrap();
        let taken = Temporary::with(&path, b"second").unwrap().name().unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        Temporary::with(&path, b"third").unwrap().replace().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn only_temporary_files_of_killed_processes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, other) = (dir.path().join("file"), dir.path().join("other"));
        Temporary::with(&kept, b"kept").unwrap().name().unwrap();
        for target in [&kept, &other] {
            std::mem::forget(Temporary::with(target, b"killed").unwrap());
        }
        fs::write(dir.path().join("file.tmpl"), b"of another program").unwrap();
        sweep(dir.path(), |name| name == "file").unwrap();
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!((&names[0], &names[1]), (&"file".into(), &"file.tmpl".into()));
        assert!(names[2].to_str().unwrap().starts_with("other.tmp"), "{names:?}");
    }

    #[test]
    fn two_writers_of_one_name_do_not_interfere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let one = Temporary::with(&path, b"one").unwrap();
        let two = Temporary::with(&path, b"two").unwrap();
        one.name().unwrap();
        assert_eq!(two.name().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn bare_name_is_in_the_working_directory() {
        assert_eq!(folder(Path::new("file")), Path::new("."));
        assert_eq!(folder(Path::new("a/file")), Path::new("a"));
    }
}
