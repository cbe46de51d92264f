//! The log of all inputs and outputs, as a digest and as the last few lines.

use std::collections::VecDeque;

use pk_proto::{Input, Instant, Output};
use serde::Serialize;

use crate::host::id::HostId;

/// Lines that are kept for the message of a failure.
const RECENT: usize = 256;

/// An entry about a machine.
#[derive(Debug, Clone, Serialize)]
pub(crate) enum Entry {
    /// It was started.
    Started,
    /// It was killed.
    Killed,
    Input(Input),
    Output(Output),
    Timeout,
    /// A call of a fuzz target.
    Call(pk_proto::RecordedCall),
    /// An action of a test, encoded with postcard.
    Note(Vec<u8>),
}

#[derive(Debug, Default)]
pub(crate) struct Journal {
    hasher: blake3::Hasher,
    recent: VecDeque<(HostId, Instant, Entry)>,
    entries: u64,
}

impl Journal {
    pub(crate) fn add(&mut self, host: HostId, now: Instant, entry: Entry) {
        // Everything in the vocabulary has a postcard form; should one day something not, its
        // absence is hashed.
        let bytes = postcard::to_allocvec(&(host as u64, now, &entry)).unwrap_or_default();
        self.hasher.update(&(bytes.len() as u64).to_be_bytes()).update(&bytes);
        self.entries += 1;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((host, now, entry));
    }

    pub(crate) fn digest(&self) -> blake3::Hash {
        self.hasher.finalize()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns the last entries, one per line.
    pub(crate) fn recent(&self) -> String {
        let lines = self.recent.iter().map(|(host, now, entry)| {
            let line: String = format!("{entry:?}").chars().take(400).collect();
            format!("  {now:?} host {host}: {line}\n")
        });
        lines.collect()
    }
}
