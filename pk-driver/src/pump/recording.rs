//! Writes the recording of the core to a file, on a separate thread.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::system::tasks::Tasks;
use pk_host::files::{create_folder, folder, private};

/// Interval at which the log is taken from the core.
pub(crate) const INTERVAL: Duration = Duration::from_millis(250);
/// Maximum size of the log in the core, and of the log on its way to the disk, in bytes each. The
/// recording ends above it.
pub(crate) const BUFFER: usize = 16 * 1024 * 1024;

/// Destination of a recording of all inputs of the core, for replay. It shows which nodes the node
/// communicates with; it contains no private keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// In memory, with at most this many bytes between two calls of
    /// [`Node::take_recording`](crate::Node::take_recording).
    Memory(usize),
    /// In a new file.
    File {
        /// Path, which must not exist yet.
        path: PathBuf,
        /// Maximum length of the file, in bytes. A file that has reached it can be replayed
        /// completely.
        limit: u64,
    },
}

impl Record {
    /// Returns a recording in a new file of at most 1 GiB.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File { path: path.into(), limit: 1 << 30 }
    }

    /// Returns the number of bytes that the core may hold.
    pub(crate) fn buffer(&self) -> usize {
        match self {
            Self::Memory(limit) => *limit,
            Self::File { .. } => BUFFER,
        }
    }
}

/// A recording in progress.
#[derive(Debug)]
pub(crate) struct Recording {
    chunks: mpsc::Sender<Vec<u8>>,
    /// Bytes that are not written yet.
    waiting: Arc<AtomicUsize>,
}

impl Recording {
    /// Creates the file.
    pub(crate) fn begin(path: &Path, limit: u64, tasks: &Tasks) -> io::Result<Self> {
        let parent = folder(path);
        if !parent.try_exists()? {
            create_folder(parent)?;
        }
        let file = private().write(true).create_new(true).open(path)?;
        let (chunks, todo) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let (still, hold, path) = (Arc::clone(&waiting), tasks.hold(), path.to_owned());
        let work = move || {
            if let Err(error) = write(file, limit, &todo, &still) {
                tracing::warn!(path = %path.display(), %error, "the recording ends: writing failed");
            }
            drop(hold);
        };
        thread::Builder::new().name("pk-record".to_owned()).spawn(work)?;
        Ok(Self { chunks, waiting })
    }

    /// Queues what was recorded since the last call; `None` if the core had to drop it. Returns
    /// whether the recording continues.
    pub(crate) fn take(&self, log: Option<Vec<u8>>) -> bool {
        let Some(log) = log else {
            tracing::warn!("the recording ends: the core recorded too much at once");
            return false;
        };
        if log.is_empty() {
            return true;
        }
        let waiting = self.waiting.fetch_add(log.len(), Ordering::AcqRel);
        if waiting > BUFFER {
            tracing::warn!("the recording ends: the disk is too slow");
            return false;
        }
        self.chunks.send(log).is_ok()
    }
}

fn write(
    mut file: File,
    limit: u64,
    todo: &mpsc::Receiver<Vec<u8>>,
    waiting: &AtomicUsize,
) -> io::Result<()> {
    let mut left = limit;
    while let Ok(chunk) = todo.recv() {
        waiting.fetch_sub(chunk.len(), Ordering::AcqRel);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        // A replay ignores a truncated record.
        file.write_all(chunk.get(..len).unwrap_or(&chunk))?;
        left -= len as u64;
        if left == 0 {
            return Err(io::Error::other("the file has reached its limit"));
        }
    }
    Ok(())
}
