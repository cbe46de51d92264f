//! Files that are for their owner alone, and written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".tmp{}", std::process::id()));
        let path = target.with_file_name(name);
        // What a crashed process of the same number may have left is not worth keeping.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = private().read(true).write(true).create_new(true).open(&path)?;
        Ok((Self { path, target: target.to_owned(), named: false }, file))
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
    fn a_bare_name_lies_in_the_folder_of_the_process() {
        assert_eq!(folder(Path::new("file")), Path::new("."));
        assert_eq!(folder(Path::new("a/file")), Path::new("a"));
    }
}
