//! Every task of a node, counted, and stopped by force where it would outlive its node.
//!
//! quinn spawns one task per endpoint and per connection, and cannot be told to end them: a closed connection lingers for
//! three probe timeouts (RFC 9000 section 10.2). [`Tasks`] stands between quinn and the runtime, so that a node that has
//! shut down leaves nothing behind.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::Notify;

use crate::runtime::BoxFuture;

/// The tasks of one node, as quinn's runtime.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    inner: Arc<dyn quinn::Runtime>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    aborted: AtomicBool,
    live: Mutex<Live>,
    /// Notified when the last task has gone.
    idle: Notify,
}

#[derive(Debug, Default)]
struct Live {
    next: u64,
    /// The waker of every task's last poll.
    wakers: BTreeMap<u64, Option<Waker>>,
}

impl Tasks {
    pub(crate) fn new(inner: Arc<dyn quinn::Runtime>) -> Self {
        Self { inner, shared: Arc::default() }
    }

    /// What can be watched without keeping the runtime.
    pub(crate) fn watch(&self) -> TaskWatch {
        TaskWatch { shared: Arc::clone(&self.shared) }
    }

    /// Something else that counts as a task as long as it is kept; it ends by itself.
    pub(crate) fn hold(&self) -> TaskHold {
        TaskHold { id: self.shared.enter(), shared: Arc::clone(&self.shared) }
    }

    /// Ends every task where it stands, except the one that calls this: it is expected to end by itself.
    pub(crate) fn abort(&self) {
        self.shared.aborted.store(true, Ordering::Release);
        let wakers: Vec<Waker> = self.shared.live().wakers.values_mut().filter_map(Option::take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl quinn::Runtime for Tasks {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        self.inner.new_timer(at)
    }

    fn spawn(&self, future: BoxFuture<()>) {
        let hold = self.hold();
        self.inner.spawn(Box::pin(Task { future: Some(future), waker: None, hold }));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        self.inner.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        // Only maps are touched under this lock, so that a poisoned one still holds a whole state.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> u64 {
        let mut live = self.live();
        let id = live.next;
        live.next += 1;
        live.wakers.insert(id, None);
        id
    }
}

/// Tells how many tasks live.
#[derive(Debug, Clone)]
pub(crate) struct TaskWatch {
    shared: Arc<Shared>,
}

impl TaskWatch {
    /// Tasks that have not ended.
    pub(crate) fn live(&self) -> usize {
        self.shared.live().wakers.len()
    }

    /// Waits until no task lives.
    pub(crate) async fn idle(&self) {
        loop {
            // `notify_waiters` reaches a future from its making on, so it is made before the look.
            let idle = self.shared.idle.notified();
            if self.live() == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// Counts as a task.
#[derive(Debug)]
pub(crate) struct TaskHold {
    id: u64,
    shared: Arc<Shared>,
}

impl Drop for TaskHold {
    fn drop(&mut self) {
        let mut live = self.shared.live();
        let waker = live.wakers.remove(&self.id);
        let idle = live.wakers.is_empty();
        drop(live);
        drop(waker);
        if idle {
            self.shared.idle.notify_waiters();
        }
    }
}

/// One task. What the future holds goes before the task counts as gone: fields are dropped in their order.
struct Task {
    future: Option<BoxFuture<()>>,
    /// A copy of what stands in `Live`, so that an unchanged waker costs no lock.
    waker: Option<Waker>,
    hold: TaskHold,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !this.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            this.waker = Some(cx.waker().clone());
            let known = this.waker.clone();
            // Wakers are the runtime's: nothing of them is dropped under the lock.
            let before = this.hold.shared.live().wakers.insert(this.hold.id, known);
            drop(before);
        }
        // After the waker stands: an abort either sees it or is seen here.
        if this.hold.shared.aborted.load(Ordering::Acquire) {
            this.future = None;
        }
        let poll = this.future.as_mut().map_or(Poll::Ready(()), |future| future.as_mut().poll(cx));
        if poll.is_ready() {
            this.future = None;
        }
        poll
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("id", &self.hold.id).finish_non_exhaustive()
    }
}
