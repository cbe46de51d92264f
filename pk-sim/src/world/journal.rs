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

/// An entry that is not kept. The variants and their order are those of [`Entry`], so that both
/// have the same bytes.
#[derive(Debug, Serialize)]
pub(crate) enum EntryRef<'a> {
    #[expect(dead_code, reason = "only its number counts")]
    Started,
    #[expect(dead_code, reason = "only its number counts")]
    Killed,
    Input(&'a Input),
    Output(&'a Output),
}

#[derive(Debug)]
pub(crate) struct Journal {
    hasher: blake3::Hasher,
    hashes: bool,
    recent: VecDeque<(HostId, Instant, Entry)>,
    limit: usize,
    entries: u64,
    buffer: Vec<u8>,
}

impl Default for Journal {
    fn default() -> Self {
        Self::new(true, RECENT)
    }
}

impl Journal {
    /// Creates a journal that computes a digest if `hashes`, and keeps the last `limit` entries.
    pub(crate) fn new(hashes: bool, limit: usize) -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            hashes,
            recent: VecDeque::new(),
            limit,
            entries: 0,
            buffer: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, host: HostId, now: Instant, entry: Entry) {
        self.hash(host, now, &entry);
        if self.limit > 0 {
            self.keep(host, now, entry);
        }
    }

    /// Adds an input, which is copied only if entries are kept.
    pub(crate) fn input(&mut self, host: HostId, now: Instant, input: &Input) {
        self.hash(host, now, &EntryRef::Input(input));
        if self.limit > 0 {
            self.keep(host, now, Entry::Input(input.clone()));
        }
    }

    /// Adds an output, which is copied only if entries are kept.
    pub(crate) fn output(&mut self, host: HostId, now: Instant, output: &Output) {
        self.hash(host, now, &EntryRef::Output(output));
        if self.limit > 0 {
            self.keep(host, now, Entry::Output(output.clone()));
        }
    }

    fn hash(&mut self, host: HostId, now: Instant, entry: &impl Serialize) {
        self.entries += 1;
        if !self.hashes {
            return;
        }
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        // Everything in the vocabulary has a postcard form; should one day something not, its
        // absence is hashed.
        let bytes = postcard::to_extend(&(host as u64, now, entry), bytes).unwrap_or_default();
        self.hasher.update(&(bytes.len() as u64).to_be_bytes()).update(&bytes);
        self.buffer = bytes;
    }

    fn keep(&mut self, host: HostId, now: Instant, entry: Entry) {
        if self.recent.len() == self.limit {
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

#[cfg(test)]
mod tests {
    use super::*;
    use pk_proto::{EffectId, UnixMillis};

    #[test]
    fn entry_that_is_not_kept_has_the_same_digest() {
        let (input, output) =
            (Input::WallClock(UnixMillis(7)), Output::CancelBrowse { id: EffectId(3) });
        let [mut kept, mut light] = [Journal::default(), Journal::new(true, 0)];
        kept.add(1, Instant::ORIGIN, Entry::Input(input.clone()));
        kept.add(1, Instant::ORIGIN, Entry::Output(output.clone()));
        light.input(1, Instant::ORIGIN, &input);
        light.output(1, Instant::ORIGIN, &output);
        assert_eq!(kept.digest(), light.digest());
        assert_eq!((kept.recent().lines().count(), light.recent().lines().count()), (2, 0));
        let mut none = Journal::new(false, 0);
        none.input(1, Instant::ORIGIN, &input);
        assert_eq!((none.entries(), none.digest()), (1, Journal::default().digest()));
    }

    #[test]
    fn journal_is_bounded() {
        let mut journal = Journal::new(true, 3);
        (0..10).for_each(|id| {
            journal.output(0, Instant::ORIGIN, &Output::CancelBrowse { id: EffectId(id) });
        });
        assert_eq!((journal.recent().lines().count(), journal.entries()), (3, 10));
    }
}
