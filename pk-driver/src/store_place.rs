//! A store in its place: here if it answers at once, on a thread of its own if it may wait.

use std::fmt;
use std::io;
use std::sync::mpsc as std_mpsc;
use std::task::{Context, Poll, Waker};
use std::thread;

use pk_proto::{EffectId, Input, StoreOp, StoreRange, StoreRow};
use tokio::sync::mpsc;

use crate::cx::{Cx, Key};
use crate::store::{Store, StoreError};
use crate::tasks::Tasks;

/// What the core wants of the store.
pub(crate) enum Job {
    Apply { id: EffectId, ops: Vec<StoreOp>, durable: bool },
    Range { id: EffectId, range: StoreRange, max_bytes: u64 },
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
        let work = move || {
            work(store, &todo, &done);
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

    fn begin(&mut self, cx: &mut Cx, job: Job) {
        match self {
            Self::Here(store) => {
                let answer = job.run(store.as_mut());
                tell(cx, answer);
            }
            Self::Thread { jobs, .. } => {
                // The thread ends only with this sender, or when the store panics.
                if let Err(std_mpsc::SendError(job)) = jobs.send(job) {
                    tell(cx, job.fail());
                }
            }
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

fn work(mut store: Box<dyn Store>, todo: &std_mpsc::Receiver<Job>, done: &mpsc::UnboundedSender<Input>) {
    // Ends when the pump has gone.
    while let Ok(job) = todo.recv() {
        let answer = job.run(store.as_mut());
        let _ = done.send(answer);
    }
}

impl Job {
    fn run(self, store: &mut dyn Store) -> Input {
        match self {
            Self::Apply { id, ops, durable } => persisted(id, store.apply(&ops, durable)),
            Self::Range { id, range, max_bytes } => loaded(id, store.range(&range, max_bytes)),
        }
    }

    fn fail(self) -> Input {
        let error = StoreError("the store has ended".to_owned());
        match self {
            Self::Apply { id, .. } => persisted(id, Err(error)),
            Self::Range { id, .. } => loaded(id, Err(error)),
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
