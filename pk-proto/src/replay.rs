//! Record and replay (docs/DESIGN.md, Recording).
//!
//! A recording is the log of all inputs and requests of a machine, with a hash of all its outputs.
//! A replay creates the machine again, repeats its inputs, and compares its outputs. A recording
//! contains ids, addresses and data of the core's streams, but no private key.
//!
//! Format: `PKTR`, a version byte, then records, each a `u32` length (big-endian) and that many
//! bytes of postcard. The first is a [`StartParams`]; the others are calls. A truncated recording
//! ends at its last complete record.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::api::error::StartError;
use crate::api::output::Output;
use crate::api::recorded_call::{RecordedCall, StartParams};
use crate::machine::record::{MAGIC, MAX_RECORD, OutputHash, Record, VERSION};
use crate::manager::node::NodeManager;
use crate::types::time::Instant;

/// Why a recording cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The bytes do not start like a recording.
    #[error("this is not a recording of a node")]
    NotARecording,
    /// The recording has another version of the format.
    #[error("the recording has format {0}; this program supports format {VERSION}")]
    Version(u8),
    /// A record is damaged; those before it were replayed.
    #[error("record {0} is damaged")]
    Damaged(usize),
    /// The machine cannot be created.
    #[error("the recorded node cannot start: {0}")]
    Start(#[from] StartError),
    /// The outputs differ from those of the recording, before the call of this record.
    #[error("before record {record}, at {now:?}, the outputs differ from those of the recording")]
    Diverged {
        /// Number of the record, from 1; the start is record 0.
        record: usize,
        /// Time on the clock of the recording.
        now: Instant,
    },
}

/// A recording being replayed.
#[derive(Debug)]
pub struct Replay<'a> {
    rest: &'a [u8],
    machine: NodeManager,
    /// Outputs that the recorded driver had not taken yet.
    waiting: VecDeque<Output>,
    taken: OutputHash,
    record: usize,
}

impl<'a> Replay<'a> {
    /// Creates the machine of a recording.
    pub fn new(recording: &'a [u8]) -> Result<Self, ReplayError> {
        let rest = recording.strip_prefix(MAGIC).ok_or(ReplayError::NotARecording)?;
        let (version, mut rest) = rest.split_first().ok_or(ReplayError::NotARecording)?;
        if *version != VERSION {
            return Err(ReplayError::Version(*version));
        }
        let start = record(&mut rest).map_err(|Oversized| ReplayError::Damaged(0))?;
        let start = start.ok_or(ReplayError::Damaged(0))?;
        let start: StartParams =
            postcard::from_bytes(start).map_err(|_| ReplayError::Damaged(0))?;
        let machine = NodeManager::start(start)?;
        Ok(Self {
            rest,
            machine,
            waiting: VecDeque::new(),
            taken: OutputHash::default(),
            record: 0,
        })
    }

    /// Replays one call. Returns the call and every output that it caused; `None` at the end.
    pub fn step(&mut self) -> Result<Option<ReplayStep>, ReplayError> {
        let next =
            record(&mut self.rest).map_err(|Oversized| ReplayError::Damaged(self.record + 1))?;
        let Some(bytes) = next else { return Ok(None) };
        self.record += 1;
        let Record { now, taken, digest, call }: Record =
            postcard::from_bytes(bytes).map_err(|_| ReplayError::Damaged(self.record))?;
        while self.taken.count < taken
            && let Some(output) = self.waiting.pop_front()
        {
            self.taken.add(&output);
        }
        if (self.taken.count, self.taken.digest()) != (taken, digest) {
            return Err(ReplayError::Diverged { record: self.record, now });
        }
        self.machine.call(call.clone(), now);
        let caused: Vec<_> = core::iter::from_fn(|| self.machine.poll_output()).collect();
        self.waiting.extend(caused.iter().cloned());
        Ok(Some(ReplayStep { record: self.record, now, call, outputs: caused }))
    }

    /// Returns the machine in its present state.
    pub fn machine(&self) -> &NodeManager {
        &self.machine
    }
}

/// One replayed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayStep {
    /// Number of the record, from 1.
    pub record: usize,
    /// Time on the clock of the recording.
    pub now: Instant,
    /// Call.
    pub call: RecordedCall,
    /// Outputs of the call.
    pub outputs: Vec<Output>,
}

/// A record with an impossible length.
struct Oversized;

/// Returns the next complete record.
fn record<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Oversized> {
    let Some((len, after)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let len = usize::try_from(u32::from_be_bytes(*len))
        .ok()
        .filter(|len| *len <= MAX_RECORD)
        .ok_or(Oversized)?;
    let Some((record, after)) = after.split_at_checked(len) else { return Ok(None) };
    *rest = after;
    Ok(Some(record))
}
