//! Whether the embedder uses its streams of a connection. The pump looks whether the peer is silent
//! only while it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;

/// Shared by a connection and the streams on it that the embedder holds.
#[derive(Debug)]
pub(crate) struct Usage {
    /// Writes and reads so far.
    uses: AtomicU64,
    /// A look at the connection is due.
    watched: AtomicBool,
    /// Wakes the pump for the connection.
    waker: Waker,
}

impl Usage {
    pub(crate) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Self { uses: AtomicU64::new(0), watched: AtomicBool::new(false), waker })
    }

    /// The embedder has written, or has read so that the peer may send more.
    pub(crate) fn used(&self) {
        // The pump reads the count after `unwatch`, so that it sees a use or is woken by it.
        self.uses.fetch_add(1, Ordering::SeqCst);
        if !self.watched.swap(true, Ordering::SeqCst) {
            self.waker.wake_by_ref();
        }
    }

    /// How often the embedder has used its streams.
    pub(crate) fn uses(&self) -> u64 {
        self.uses.load(Ordering::SeqCst)
    }

    /// A look is due: the next use wakes nothing.
    pub(crate) fn watch(&self) {
        self.watched.store(true, Ordering::SeqCst);
    }

    /// No look is due: the next use wakes the pump.
    pub(crate) fn unwatch(&self) {
        self.watched.store(false, Ordering::SeqCst);
    }
}
