//! The log of all inputs and requests of a machine.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::api::output::Output;
use crate::api::recorded_call::{RecordedCall, StartParams};
use crate::types::time::Instant;

/// First bytes of every recording.
pub(crate) const MAGIC: &[u8; 4] = b"PKTR";

/// The format that this version writes, and the only one it reads.
pub(crate) const VERSION: u8 = 8;

/// Maximum size of a call: an input contains at most what credit allows.
pub(crate) const MAX_RECORD: usize = 64 * 1024 * 1024;

/// One call with its time, the number of outputs taken before it, and their hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) now: Instant,
    pub(crate) taken: u64,
    pub(crate) digest: [u8; 16],
    pub(crate) call: RecordedCall,
}

/// Outputs taken from a machine so far.
#[derive(Debug, Default)]
pub(crate) struct OutputHash {
    pub(crate) count: u64,
    hasher: blake3::Hasher,
}

impl OutputHash {
    pub(crate) fn add(&mut self, output: &Output) {
        self.count += 1;
        // An output is plain data, which postcard can always encode.
        if let Ok(bytes) = postcard::to_allocvec(output) {
            self.hasher.update(&bytes);
        }
    }

    pub(crate) fn digest(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        self.hasher.finalize_xof().fill(&mut digest);
        digest
    }
}

/// The log of a machine that is being recorded.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// Written, not taken yet.
    pending: Vec<u8>,
    taken: OutputHash,
    limit: usize,
    overflowed: bool,
}

impl Recorder {
    pub(crate) fn new(start: &StartParams, limit: usize) -> Self {
        let mut recorder = Self {
            pending: MAGIC.to_vec(),
            taken: OutputHash::default(),
            limit,
            overflowed: false,
        };
        recorder.pending.push(VERSION);
        recorder.write(start);
        recorder
    }

    pub(crate) fn call(&mut self, now: Instant, call: RecordedCall) {
        let record = Record { now, taken: self.taken.count, digest: self.taken.digest(), call };
        self.write(&record);
    }

    pub(crate) fn output(&mut self, output: &Output) {
        self.taken.add(output);
    }

    /// Returns what was written since the last call; `None` once the recording has a gap and is
    /// useless.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        (!self.overflowed).then(|| core::mem::take(&mut self.pending))
    }

    fn write<T: Serialize>(&mut self, record: &T) {
        if self.overflowed {
            return;
        }
        match postcard::to_allocvec(record) {
            Ok(bytes) if self.pending.len().saturating_add(bytes.len()) <= self.limit => {
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                self.pending.extend_from_slice(&len.to_be_bytes());
                self.pending.extend_from_slice(&bytes);
            }
            _ => {
                self.overflowed = true;
                self.pending = Vec::new();
            }
        }
    }
}
