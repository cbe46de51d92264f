//! Record and replay: a run from the field, on the desk (DESIGN section 1, promise 1).
//!
//! A recording is the log of everything that went into a machine, and a hash of everything that came out. Replaying it makes
//! the machine again, feeds it the same, and compares what comes out. It holds ids, addresses and what was sent on streams
//! of the core, but no private key.
//!
//! Format: `PKTR`, a version byte, then records, each a `u32` length (big-endian) and as many bytes of postcard. The first
//! is a [`Start`]; the others are calls. A recording that was cut off ends at its last whole record.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::StartError;
use crate::id::{AskId, BucketIndex, LeaseId, NodeId, RequestId};
use crate::io::{Identity, Input, Output};
use crate::manager::NodeManager;
use crate::request::Request;
use crate::store::Snapshot;
use crate::time::{Instant, UnixMillis};

/// First bytes of every recording.
const MAGIC: &[u8; 4] = b"PKTR";
/// The format that this version writes, and the only one it reads.
const VERSION: u8 = 1;
/// No call is larger: an input holds at most what credit allows.
const MAX_RECORD: usize = 64 * 1024 * 1024;

/// Everything that a machine begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The settings.
    pub config: Config,
    /// What it presents in its handshakes.
    pub identity: Identity,
    /// What it knew when it last ran.
    pub snapshot: Snapshot,
    /// Decides every random choice.
    pub seed: [u8; 32],
    /// When.
    pub now: Instant,
    /// What the wall clock read then.
    pub unix: UnixMillis,
}

/// One call into a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// [`NodeManager::handle_input`].
    Input(Input),
    /// [`NodeManager::handle_timeout`].
    Timeout,
    /// [`NodeManager::request`].
    Request(Request),
    /// [`NodeManager::cancel`].
    Cancel(RequestId),
    /// [`NodeManager::release`].
    Release(LeaseId),
    /// [`NodeManager::disconnect`].
    Disconnect(NodeId),
    /// [`NodeManager::unset_node`].
    UnsetNode(NodeId),
    /// [`NodeManager::accept_protocol`].
    AcceptProtocol(String),
    /// [`NodeManager::refuse_protocol`].
    RefuseProtocol(String),
    /// [`NodeManager::set_refresh_delay`].
    SetRefreshDelay {
        /// Which bucket.
        bucket: BucketIndex,
        /// From the call on.
        delay: Duration,
        /// Only if it is not due earlier.
        lazy: bool,
    },
    /// [`NodeManager::answer_claim`].
    AnswerClaim {
        /// Which question.
        ask: AskId,
        /// Whether to sign.
        sign: bool,
    },
    /// [`NodeManager::reset_buckets`].
    ResetBuckets,
    /// [`NodeManager::stop`].
    Stop,
}

/// One call, when it was, and how many outputs had been taken before it, with the hash of them all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    now: Instant,
    taken: u64,
    digest: [u8; 16],
    call: Call,
}

/// The outputs taken from a machine so far.
#[derive(Debug, Default)]
struct Taken {
    count: u64,
    hasher: blake3::Hasher,
}

impl Taken {
    fn add(&mut self, output: &Output) {
        self.count += 1;
        // An output is plain data; there is nothing in it that postcard cannot write.
        if let Ok(bytes) = postcard::to_allocvec(output) {
            self.hasher.update(&bytes);
        }
    }

    fn digest(&self) -> [u8; 16] {
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
    taken: Taken,
    limit: usize,
    overflowed: bool,
}

impl Recorder {
    pub(crate) fn new(start: &Start, limit: usize) -> Self {
        let mut recorder = Self { pending: MAGIC.to_vec(), taken: Taken::default(), limit, overflowed: false };
        recorder.pending.push(VERSION);
        recorder.write(start);
        recorder
    }

    pub(crate) fn call(&mut self, now: Instant, call: Call) {
        let record = Record { now, taken: self.taken.count, digest: self.taken.digest(), call };
        self.write(&record);
    }

    pub(crate) fn output(&mut self, output: &Output) {
        self.taken.add(output);
    }

    /// What has been written since the last time; `None` once the recording has a hole and is of no use any more.
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

/// Why a recording cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The bytes do not begin like a recording.
    #[error("this is not a recording of a node")]
    NotARecording,
    /// Written by another version of the format.
    #[error("the recording has format {0}, this program reads format {VERSION}")]
    Version(u8),
    /// A record is damaged; those before it were replayed.
    #[error("record {0} is damaged")]
    Damaged(usize),
    /// The machine cannot be made.
    #[error("the recorded node cannot start: {0}")]
    Start(#[from] StartError),
    /// The machine did something else than in the field: before the call of this record.
    #[error("before record {record}, at {now:?}, the outputs are not those of the recording")]
    Diverged {
        /// Counted from 1; the start is record 0.
        record: usize,
        /// When, on the clock of the recording.
        now: Instant,
    },
}

/// A recording being replayed.
#[derive(Debug)]
pub struct Replay<'a> {
    rest: &'a [u8],
    machine: NodeManager,
    /// Outputs that the field had not taken yet.
    waiting: VecDeque<Output>,
    taken: Taken,
    record: usize,
}

impl<'a> Replay<'a> {
    /// Makes the machine of a recording.
    pub fn new(recording: &'a [u8]) -> Result<Self, ReplayError> {
        let rest = recording.strip_prefix(MAGIC).ok_or(ReplayError::NotARecording)?;
        let (version, mut rest) = rest.split_first().ok_or(ReplayError::NotARecording)?;
        if *version != VERSION {
            return Err(ReplayError::Version(*version));
        }
        let start = record(&mut rest).map_err(|Oversized| ReplayError::Damaged(0))?;
        let start = start.ok_or(ReplayError::Damaged(0))?;
        let start: Start = postcard::from_bytes(start).map_err(|_| ReplayError::Damaged(0))?;
        let machine = NodeManager::start(start)?;
        Ok(Self { rest, machine, waiting: VecDeque::new(), taken: Taken::default(), record: 0 })
    }

    /// Replays one call. Gives the call and every output that it caused; `None` at the end.
    pub fn step(&mut self) -> Result<Option<Step>, ReplayError> {
        let next = record(&mut self.rest).map_err(|Oversized| ReplayError::Damaged(self.record + 1))?;
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
        Ok(Some(Step { record: self.record, now, call, outputs: caused }))
    }

    /// The machine as it is now.
    pub fn machine(&self) -> &NodeManager {
        &self.machine
    }
}

/// One replayed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Counted from 1.
    pub record: usize,
    /// When, on the clock of the recording.
    pub now: Instant,
    /// The call.
    pub call: Call,
    /// What it caused.
    pub outputs: Vec<Output>,
}

/// The length of a record that nobody wrote.
struct Oversized;

/// The next whole record.
fn record<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Oversized> {
    let Some((len, after)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let len = usize::try_from(u32::from_be_bytes(*len)).ok().filter(|len| *len <= MAX_RECORD).ok_or(Oversized)?;
    let Some((record, after)) = after.split_at_checked(len) else { return Ok(None) };
    *rest = after;
    Ok(Some(record))
}
