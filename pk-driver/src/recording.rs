//! Writing down what the core is told, to a file, on a thread of its own.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::files::{create_folder, folder, private};
use crate::tasks::Tasks;

/// How often the log is taken from the core.
pub(crate) const INTERVAL: Duration = Duration::from_millis(250);
/// Bytes of the log that wait in memory, in the core and on their way to the disk each. With more the recording ends.
pub(crate) const BUFFER: usize = 16 * 1024 * 1024;

/// Where to keep a log of everything that the core is told, to be replayed on a desk. It tells whom the node talks to; it
/// has no private keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// In memory, of at most this many bytes between two calls of
    /// [`Node::take_recording`](crate::Node::take_recording).
    Memory(usize),
    /// In a new file.
    File {
        /// Which; it must not be there yet.
        path: PathBuf,
        /// The file ends there, in bytes. What is in it can be replayed to its end.
        limit: u64,
    },
}

impl Record {
    /// In a new file, of at most 1 GiB.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File { path: path.into(), limit: 1 << 30 }
    }

    /// Bytes that the core may keep.
    pub(crate) fn buffer(&self) -> usize {
        match self {
            Self::Memory(limit) => *limit,
            Self::File { .. } => BUFFER,
        }
    }
}

/// A recording under way.
#[derive(Debug)]
pub(crate) struct Recording {
    chunks: mpsc::Sender<Vec<u8>>,
    /// Bytes on their way.
    waiting: Arc<AtomicUsize>,
}

impl Recording {
    /// Makes the file.
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
                tracing::warn!(path = %path.display(), %error, "the recording ends here");
            }
            drop(hold);
        };
        thread::Builder::new().name("pk-record".to_owned()).spawn(work)?;
        Ok(Self { chunks, waiting })
    }

    /// Takes what was written down since the last time; `None` if the core had to drop it. Returns whether there is any use
    /// in going on.
    pub(crate) fn take(&self, log: Option<Vec<u8>>) -> bool {
        let Some(log) = log else {
            tracing::warn!("the recording ends here: there was too much at a time");
            return false;
        };
        if log.is_empty() {
            return true;
        }
        let waiting = self.waiting.fetch_add(log.len(), Ordering::AcqRel);
        if waiting > BUFFER {
            tracing::warn!("the recording ends here: the disk is too slow");
            return false;
        }
        self.chunks.send(log).is_ok()
    }
}

fn write(mut file: File, limit: u64, todo: &mpsc::Receiver<Vec<u8>>, waiting: &AtomicUsize) -> io::Result<()> {
    let mut left = limit;
    while let Ok(chunk) = todo.recv() {
        waiting.fetch_sub(chunk.len(), Ordering::AcqRel);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        // A record that is cut off here is left out by whoever replays it.
        file.write_all(chunk.get(..len).unwrap_or(&chunk))?;
        left -= len as u64;
        if left == 0 {
            return Err(io::Error::other("the file has reached its limit"));
        }
    }
    Ok(())
}
