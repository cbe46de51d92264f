//! All tasks of a node: counted, and aborted if they would outlive their node.
//!
//! quinn spawns one task per endpoint and per connection and offers no way to end them: a closed
//! connection lingers for three probe timeouts (RFC 9000 section 10.2). [`Tasks`] wraps the runtime
//! that quinn uses, so that a node that has shut down leaves no task behind.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::Notify;

use crate::system::runtime::BoxFuture;

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
    /// Notified when the last task has ended.
    idle: Notify,
}

#[derive(Debug, Default)]
struct Live {
    next: u64,
    /// The waker of the last poll of every task.
    wakers: BTreeMap<u64, Option<Waker>>,
}

impl Tasks {
    pub(crate) fn new(inner: Arc<dyn quinn::Runtime>) -> Self {
        Self { inner, shared: Arc::default() }
    }

    /// Returns a handle that does not keep the runtime.
    pub(crate) fn watch(&self) -> TaskWatch {
        TaskWatch { shared: Arc::clone(&self.shared) }
    }

    /// Returns a token that counts as a task until it is dropped.
    pub(crate) fn hold(&self) -> TaskHold {
        TaskHold { id: self.shared.enter(), shared: Arc::clone(&self.shared) }
    }

    /// Aborts every task except the one that calls this, which must end by itself.
    pub(crate) fn abort(&self) {
        self.shared.aborted.store(true, Ordering::Release);
        let wakers: Vec<Waker> =
            self.shared.live().wakers.values_mut().filter_map(Option::take).collect();
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

    fn wrap_udp_socket(
        &self,
        socket: std::net::UdpSocket,
    ) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        self.inner.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        // Only maps are changed under this lock, so that a poisoned one is consistent.
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

/// Reports the number of live tasks.
#[derive(Debug, Clone)]
pub(crate) struct TaskWatch {
    shared: Arc<Shared>,
}

impl TaskWatch {
    /// Like [`Tasks::hold`].
    pub(crate) fn hold(&self) -> TaskHold {
        TaskHold { id: self.shared.enter(), shared: Arc::clone(&self.shared) }
    }

    /// Returns the number of tasks that have not ended.
    pub(crate) fn live(&self) -> usize {
        self.shared.live().wakers.len()
    }

    /// Waits until no task is left.
    pub(crate) async fn idle(&self) {
        loop {
            // `notify_waiters` wakes futures that exist at its call, so that this one is created
            // before the check.
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

/// One task. The future is dropped before the task counts as ended: fields are dropped in order.
struct Task {
    future: Option<BoxFuture<()>>,
    /// A copy of the waker in `Live`, so that an unchanged waker costs no lock.
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
            // Wakers belong to the runtime: none is dropped under the lock.
            let before = this.hold.shared.live().wakers.insert(this.hold.id, known);
            drop(before);
        }
        // After the waker is stored: an abort either finds it or is detected here.
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
