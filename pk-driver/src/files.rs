//! Files that are for their owner alone, and written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Between the name that a file is to have and the number of its writer, as long as it does not have it.
const TEMPORARY: &str = ".tmp";

/// Options for a file that nobody else may read.
#[cfg(unix)]
pub(crate) fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

#[cfg(not(unix))]
pub(crate) fn private() -> OpenOptions {
    OpenOptions::new()
}

/// Makes a folder that nobody else may look into, and those above it.
#[cfg(unix)]
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Brings the names in a folder down to the disk.
#[cfg(unix)]
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
pub(crate) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// A new file beside where it is to be, until it is given its name. Dropped before, it is removed.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    target: PathBuf,
    named: bool,
}

impl Temporary {
    /// An empty one, open for reading and writing.
    pub(crate) fn create(target: &Path) -> io::Result<(Self, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let mut name = target.file_name().unwrap_or_default().to_owned();
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            name.push(format!("{TEMPORARY}{}-{count}", std::process::id()));
            let path = target.with_file_name(name);
            match private().read(true).write(true).create_new(true).open(&path) {
                // Left by a process of the same number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => return Ok((Self { path, target: target.to_owned(), named: false }, file?)),
            }
        }
    }

    /// One that holds these bytes, down to the disk.
    pub(crate) fn with(target: &Path, bytes: &[u8]) -> io::Result<Self> {
        let (temporary, mut file) = Self::create(target)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(temporary)
    }

    /// Gives it its name, in place of what has it now.
    pub(crate) fn replace(mut self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)?;
        self.named = true;
        sync_folder(folder(&self.target))
    }

    /// Gives it its name.
    ///
    /// Errors: [`AlreadyExists`](io::ErrorKind::AlreadyExists) if something has the name, even if it was quicker just now.
    pub(crate) fn name(self) -> io::Result<()> {
        fs::hard_link(&self.path, &self.target)?;
        // The temporary name goes with `self`.
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

/// Removes what killed processes have left of files that never got their names. `ours` judges those names.
///
/// Only for who has the folder to itself: a file that is being written now would go, too.
pub(crate) fn sweep(folder: &Path, ours: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some((name, writer)) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.rsplit_once(TEMPORARY))
        else {
            continue;
        };
        if ours(name) && writer.starts_with(|first: char| first.is_ascii_digit()) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The folder of a file.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        drop(Temporary::with(&path, b"given up").unwrap());
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
    fn what_the_killed_have_left_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, other) = (dir.path().join("file"), dir.path().join("other"));
        Temporary::with(&kept, b"kept").unwrap().name().unwrap();
        for target in [&kept, &other] {
            std::mem::forget(Temporary::with(target, b"killed").unwrap());
        }
        fs::write(dir.path().join("file.tmpl"), b"somebody else's").unwrap();
        sweep(dir.path(), |name| name == "file").unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!((&names[0], &names[1]), (&"file".into(), &"file.tmpl".into()));
        assert!(names[2].to_str().unwrap().starts_with("other.tmp"), "{names:?}");
    }

    #[test]
    fn two_writers_of_one_name_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let one = Temporary::with(&path, b"one").unwrap();
        let two = Temporary::with(&path, b"two").unwrap();
        one.name().unwrap();
        assert_eq!(two.name().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_bare_name_lies_in_the_folder_of_the_process() {
        assert_eq!(folder(Path::new("file")), Path::new("."));
        assert_eq!(folder(Path::new("a/file")), Path::new("a"));
    }
}
