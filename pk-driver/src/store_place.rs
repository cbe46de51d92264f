//! A store in its place: here if it answers at once, on a thread of its own if it may wait.

use std::fmt;
use std::io;
use std::sync::mpsc as std_mpsc;
use std::sync::mpsc::{RecvError, RecvTimeoutError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pk_proto::{EffectId, Input, StoreOp, StoreRange, StoreRow, Table};
use tokio::sync::{mpsc, oneshot};

use crate::cx::{Cx, Key};
use crate::store::{Store, StoreError};
use crate::tasks::Tasks;

/// Rows of several tables.
type Rows = Vec<(Table, Bytes, Bytes)>;

/// What the core wants of the store.
#[derive(Debug)]
pub(crate) enum Job {
    Apply {
        id: EffectId,
        ops: Vec<StoreOp>,
        durable: bool,
    },
    Range {
        id: EffectId,
        range: StoreRange,
        max_bytes: u64,
    },
    /// Not the core's: what a start would find.
    Load {
        done: oneshot::Sender<Result<Rows, StoreError>>,
    },
}

/// Where the store is. Jobs are done in order; how many wait is up to the core, which counts them.
pub(crate) enum StorePlace {
    Here(Box<dyn Store>),
    Thread { jobs: std_mpsc::Sender<Job>, answers: mpsc::UnboundedReceiver<Input>, waker: Waker },
}

impl StorePlace {
    /// Errors: there is no thread to be had.
    pub(crate) fn new(cx: &Cx, store: Box<dyn Store>, tasks: &Tasks) -> io::Result<Self> {
        if !store.blocks() {
            return Ok(Self::Here(store));
        }
        let (jobs, todo) = std_mpsc::channel();
        let (done, answers) = mpsc::unbounded_channel();
        // A node has not shut down before its store is closed.
        let hold = tasks.hold();
        let delay = cx.config.sync_delay;
        let work = move || {
            work(store, &todo, &done, delay);
            drop(hold);
        };
        thread::Builder::new().name("pk-store".to_owned()).spawn(work)?;
        Ok(Self::Thread { jobs, answers, waker: cx.source(Key::Store) })
    }

    pub(crate) fn apply(&mut self, cx: &mut Cx, id: EffectId, ops: Vec<StoreOp>, durable: bool) {
        self.begin(cx, Job::Apply { id, ops, durable });
    }

    pub(crate) fn range(&mut self, cx: &mut Cx, id: EffectId, range: StoreRange, max_bytes: u64) {
        self.begin(cx, Job::Range { id, range, max_bytes });
    }

    pub(crate) fn begin(&mut self, cx: &mut Cx, job: Job) {
        let answer = match self {
            Self::Here(store) => job.run(store.as_mut()),
            // The thread ends only with this sender, or when the store panics.
            Self::Thread { jobs, .. } => jobs.send(job).err().and_then(|std_mpsc::SendError(job)| job.fail()),
        };
        if let Some(answer) = answer {
            tell(cx, answer);
        }
    }

    /// Answers of the thread.
    pub(crate) fn poll(&mut self, cx: &mut Cx) {
        let Self::Thread { answers, waker, .. } = self else { return };
        let mut context = Context::from_waker(waker);
        while let Poll::Ready(Some(answer)) = answers.poll_recv(&mut context) {
            tell(cx, answer);
        }
    }
}

fn tell(cx: &mut Cx, answer: Input) {
    if let Input::Persisted { result, .. } = &answer {
        match result {
            Ok(()) => cx.metrics.writes += 1,
            Err(error) => {
                cx.metrics.writes_failed += 1;
                tracing::warn!(error, "the store did not take a write");
            }
        }
    }
    cx.input(answer);
}

fn work(
    mut store: Box<dyn Store>,
    todo: &std_mpsc::Receiver<Job>,
    done: &mpsc::UnboundedSender<Input>,
    sync_delay: Duration,
) {
    // When to make durable what is written and is not.
    let mut sync: Option<Instant> = None;
    loop {
        let job = match sync.map(|at| at.saturating_duration_since(Instant::now())) {
            None => todo.recv().map_err(|RecvError| RecvTimeoutError::Disconnected),
            Some(Duration::ZERO) => Err(RecvTimeoutError::Timeout),
            Some(wait) => todo.recv_timeout(wait),
        };
        match job {
            Ok(job) => {
                let durable = job.durable();
                let answer = job.run(store.as_mut());
                match (durable, &answer) {
                    (Some(true), Some(Input::Persisted { result: Ok(()), .. })) => sync = None,
                    (Some(false), Some(Input::Persisted { result: Ok(()), .. })) => {
                        sync.get_or_insert_with(|| Instant::now() + sync_delay);
                    }
                    _ => {}
                }
                if let Some(answer) = answer {
                    let _ = done.send(answer);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                sync = store.sync().is_err().then(|| Instant::now() + sync_delay.max(Duration::from_secs(1)));
            }
            // The pump has gone.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if sync.is_some()
        && let Err(error) = store.sync()
    {
        tracing::warn!(%error, "what was written last may not survive a power failure");
    }
}

impl Job {
    /// Whether it writes, and if so durably.
    fn durable(&self) -> Option<bool> {
        match self {
            Self::Apply { durable, .. } => Some(*durable),
            Self::Range { .. } | Self::Load { .. } => None,
        }
    }

    /// The answer for the core, if it is one of the core's.
    fn run(self, store: &mut dyn Store) -> Option<Input> {
        match self {
            Self::Apply { id, ops, durable } => Some(persisted(id, store.apply(&ops, durable))),
            Self::Range { id, range, max_bytes } => Some(loaded(id, store.range(&range, max_bytes))),
            Self::Load { done } => {
                let _ = done.send(store.load());
                None
            }
        }
    }

    fn fail(self) -> Option<Input> {
        let error = StoreError("the store has ended".to_owned());
        match self {
            Self::Apply { id, .. } => Some(persisted(id, Err(error))),
            Self::Range { id, .. } => Some(loaded(id, Err(error))),
            // Whoever asked is told by the end of the channel.
            Self::Load { .. } => None,
        }
    }
}

fn persisted(id: EffectId, result: Result<(), StoreError>) -> Input {
    Input::Persisted { id, result: result.map_err(|error| error.0) }
}

fn loaded(id: EffectId, result: Result<(Vec<StoreRow>, bool), StoreError>) -> Input {
    Input::Loaded { id, result: result.map_err(|error| error.0) }
}

impl fmt::Debug for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here(_) => "StorePlace::Here",
            Self::Thread { .. } => "StorePlace::Thread",
        })
    }
}
