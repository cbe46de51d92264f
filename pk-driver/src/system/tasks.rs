//! The tasks and threads of a node, counted, and the runtime that they are on.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::Notify;

use crate::system::runtime::BoxFuture;

/// The tasks of one node, and their runtime.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    runtime: Arc<dyn quinn::Runtime>,
    watch: TaskWatch,
}

impl Tasks {
    pub(crate) fn new(runtime: Arc<dyn quinn::Runtime>) -> Self {
        Self { runtime, watch: TaskWatch::default() }
    }

    /// Returns a handle that does not keep the runtime.
    pub(crate) fn watch(&self) -> TaskWatch {
        self.watch.clone()
    }

    /// Returns a token that counts as a task until it is dropped.
    pub(crate) fn hold(&self) -> TaskHold {
        self.watch.hold()
    }

    pub(crate) fn spawn(&self, future: BoxFuture<()>) {
        self.runtime.spawn(Box::pin(Task { future, _hold: self.hold() }));
    }

    pub(crate) fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        self.runtime.new_timer(at)
    }

    pub(crate) fn wrap_udp_socket(
        &self,
        socket: std::net::UdpSocket,
    ) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        self.runtime.wrap_udp_socket(socket)
    }

    pub(crate) fn now(&self) -> Instant {
        self.runtime.now()
    }
}

/// Reports the number of live tasks.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskWatch(Arc<Live>);

#[derive(Debug, Default)]
struct Live {
    count: AtomicUsize,
    /// Notified when the last task has ended.
    idle: Notify,
}

impl TaskWatch {
    /// Like [`Tasks::hold`].
    pub(crate) fn hold(&self) -> TaskHold {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        TaskHold(Arc::clone(&self.0))
    }

    /// Returns the number of tasks that have not ended.
    pub(crate) fn live(&self) -> usize {
        self.0.count.load(Ordering::SeqCst)
    }

    /// Waits until no task is left.
    pub(crate) async fn idle(&self) {
        loop {
            // `notify_waiters` wakes futures that exist at its call, so that this one is created
            // before the check.
            let idle = self.0.idle.notified();
            if self.live() == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// Counts as a task.
#[derive(Debug)]
pub(crate) struct TaskHold(Arc<Live>);

impl Drop for TaskHold {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// One task. The future is dropped before the task counts as ended: fields are dropped in order.
struct Task {
    future: BoxFuture<()>,
    _hold: TaskHold,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.future.as_mut().poll(cx)
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}
