//! Stream ids and window that applications leave to the node protocol.
//!
//! All streams of a connection share one number of ids and one window. An application that keeps
//! streams open, or does not read them, must not stop the node protocol of either end. The receiver
//! can prevent that alone: each application stream of the peer gives its id back, and each one with
//! unread bytes gives back as much window as these may use. Up to
//! [`APPLICATION_BUFFER`](TransportSettings::APPLICATION_BUFFER) bytes of a stream are read into a
//! buffer, so that their number is known; a stream with more counts with its whole window. Beyond
//! `application_memory`, the newest stream that is not read is reset.

use std::collections::BTreeMap;

use pk_proto::{StreamId, code};

use crate::settings::TransportSettings;
use crate::stream::Stream;

/// Code of the reset of a stream that is not read.
pub(crate) const CODE: u64 = code::LIMIT;

/// What the application streams of one connection use.
#[derive(Debug)]
pub(crate) struct Reserve {
    streams: u64,
    application_streams: u64,
    window: u64,
    stream_window: u64,
    memory: u64,
    /// Application streams of the peer.
    theirs: u64,
    /// Unread application streams, with the memory and the window that each uses.
    unread: BTreeMap<StreamId, (u64, u64)>,
    used: u64,
    borrowed: u64,
    set_streams: u64,
    set_window: u64,
}

impl Reserve {
    pub(crate) fn new(settings: &TransportSettings) -> Self {
        let (streams, window) = (settings.streams as u64, u64::from(settings.receive_window));
        Self {
            streams,
            application_streams: settings.application_streams as u64,
            window,
            stream_window: settings.stream_window.into(),
            memory: settings.application_memory.into(),
            theirs: 0,
            unread: BTreeMap::new(),
            used: 0,
            borrowed: 0,
            set_streams: streams,
            set_window: window,
        }
    }

    /// A stream was handed over.
    pub(crate) fn add(&mut self, id: StreamId) {
        self.theirs += u64::from(!id.is_ours());
    }

    /// A stream that was handed over has ended.
    pub(crate) fn remove(&mut self, id: StreamId) {
        self.theirs = self.theirs.saturating_sub(u64::from(!id.is_ours()));
        self.forget(id);
    }

    /// Takes notice of what is unread on a stream.
    pub(crate) fn note(&mut self, id: StreamId, stream: &Stream) {
        let (buffered, is_full) = stream.unread();
        self.forget(id);
        if buffered > 0 || is_full {
            let window = if is_full { self.stream_window } else { 0 };
            let memory = buffered as u64 + window;
            self.used += memory;
            self.borrowed += window;
            self.unread.insert(id, (memory, window));
        }
    }

    /// Nothing is unread on a stream.
    pub(crate) fn forget(&mut self, id: StreamId) {
        if let Some((memory, window)) = self.unread.remove(&id) {
            self.used -= memory;
            self.borrowed -= window;
        }
    }

    /// Returns a stream to reset, if the limit is exceeded: the newest that is not read.
    pub(crate) fn excess(&self) -> Option<StreamId> {
        (self.used > self.memory).then(|| self.unread.keys().next_back().copied()).flatten()
    }

    /// Returns the number of streams that the peer may have open, if it changed.
    pub(crate) fn changed_streams(&mut self) -> Option<u64> {
        let streams = self.streams + self.theirs.min(self.application_streams);
        (streams != std::mem::replace(&mut self.set_streams, streams)).then_some(streams)
    }

    /// Returns the window of the connection, if it changed.
    pub(crate) fn changed_window(&mut self) -> Option<u64> {
        let window = self.window + self.borrowed;
        (window != std::mem::replace(&mut self.set_window, window)).then_some(window)
    }
}
