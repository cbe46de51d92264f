//! Execution of store jobs: inline if the store does not block, otherwise on a separate thread.

use std::fmt;
use std::io;
use std::sync::mpsc as std_mpsc;
use std::sync::mpsc::{RecvError, RecvTimeoutError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use pk_quic::Response;
use tokio::sync::mpsc;

use crate::cx::{Cx, WakeSource};
use crate::job::StoreJob;
use crate::system::tasks::Tasks;
use pk_host::Store;

/// Executor of the store. Jobs are executed in order; the core limits their number.
pub(crate) enum StoreBackend {
    Inline(Box<dyn Store>),
    Threaded {
        jobs: std_mpsc::Sender<StoreJob>,
        answers: mpsc::UnboundedReceiver<Response>,
        waker: Waker,
    },
}

impl StoreBackend {
    /// Fails if the thread cannot be spawned.
    pub(crate) fn new(cx: &Cx, store: Box<dyn Store>, tasks: &Tasks) -> io::Result<Self> {
        if !store.blocks() {
            return Ok(Self::Inline(store));
        }
        let (jobs, todo) = std_mpsc::channel();
        let (done, answers) = mpsc::unbounded_channel();
        // The shutdown waits until the store is closed.
        let hold = tasks.hold();
        let delay = cx.config.sync_delay;
        let work = move || {
            work(store, &todo, &done, delay);
            drop(hold);
        };
        thread::Builder::new().name("pk-store".to_owned()).spawn(work)?;
        Ok(Self::Threaded { jobs, answers, waker: cx.source(WakeSource::Store) })
    }

    pub(crate) fn begin(&mut self, cx: &mut Cx, job: StoreJob) {
        let answer = match self {
            Self::Inline(store) => job.run(store.as_mut()),
            // The thread ends only with this sender, or when the store panics.
            Self::Threaded { jobs, .. } => {
                jobs.send(job).err().and_then(|std_mpsc::SendError(job)| job.fail())
            }
        };
        if let Some(answer) = answer {
            tell(cx, answer);
        }
    }

    /// Delivers completions of the thread.
    pub(crate) fn poll(&mut self, cx: &mut Cx) {
        let Self::Threaded { answers, waker, .. } = self else { return };
        let mut context = Context::from_waker(waker);
        while let Poll::Ready(Some(answer)) = answers.poll_recv(&mut context) {
            tell(cx, answer);
        }
    }
}

fn tell(cx: &mut Cx, answer: Response) {
    if let Response::Persisted { result, .. } = &answer {
        match result {
            Ok(()) => cx.metrics.writes += 1,
            Err(error) => {
                cx.metrics.writes_failed += 1;
                tracing::warn!(%error, "a write failed");
            }
        }
    }
    cx.answer(answer);
}

fn work(
    mut store: Box<dyn Store>,
    todo: &std_mpsc::Receiver<StoreJob>,
    done: &mpsc::UnboundedSender<Response>,
    sync_delay: Duration,
) {
    // Time at which to make non-durable transactions durable.
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
                    (Some(true), Some(Response::Persisted { result: Ok(()), .. })) => sync = None,
                    (Some(false), Some(Response::Persisted { result: Ok(()), .. })) => {
                        sync.get_or_insert_with(|| Instant::now() + sync_delay);
                    }
                    _ => {}
                }
                if let Some(answer) = answer {
                    let _ = done.send(answer);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                sync = store
                    .sync()
                    .is_err()
                    .then(|| Instant::now() + sync_delay.max(Duration::from_secs(1)));
            }
            // The pump has ended.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if sync.is_some()
        && let Err(error) = store.sync()
    {
        tracing::warn!(%error, "the last transactions may not survive a power failure");
    }
}

impl fmt::Debug for StoreBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline(_) => "StoreBackend::Inline",
            Self::Threaded { .. } => "StoreBackend::Threaded",
        })
    }
}
