//! A runtime that counts the resources of a node and its wakeups.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use pk_driver::{AddressChanges, BoxFuture, Runtime};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, UdpPoller};

/// A runtime with counters in front of it. Clones share them.
#[derive(Debug, Clone)]
pub struct Watched<R> {
    inner: R,
    watch: Arc<Watch>,
}

/// The counters.
#[derive(Debug, Default)]
pub struct Watch {
    tasks: AtomicU64,
    tasks_ever: AtomicU64,
    timers: AtomicU64,
    sockets: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    saw_tokio: AtomicBool,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Live tasks.
    pub tasks: u64,
    /// Tasks that were ever spawned.
    pub tasks_ever: u64,
    /// Timers that exist.
    pub timers: u64,
    /// Sockets that exist.
    pub sockets: u64,
    /// Datagrams received.
    pub received: u64,
    /// Datagrams sent.
    pub sent: u64,
    /// Whether a task was ever polled in the context of a tokio runtime.
    pub saw_tokio: bool,
}

impl<R> Watched<R> {
    /// Watches a runtime from now on.
    pub fn new(inner: R) -> Self {
        Self { inner, watch: Arc::default() }
    }

    /// Returns the counters.
    pub fn seen(&self) -> Seen {
        let Watch { tasks, tasks_ever, timers, sockets, received, sent, saw_tokio } = &*self.watch;
        let load = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Seen {
            tasks: load(tasks),
            tasks_ever: load(tasks_ever),
            timers: load(timers),
            sockets: load(sockets),
            received: load(received),
            sent: load(sent),
            saw_tokio: saw_tokio.load(Ordering::SeqCst),
        }
    }
}

impl<R: Runtime> Runtime for Watched<R> {
    fn quinn(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(WatchedQuinn { inner: self.inner.quinn(), watch: Arc::clone(&self.watch) })
    }

    fn resolve(&self, host: String, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>> {
        self.inner.resolve(host, port)
    }

    fn address_changes(&self) -> io::Result<AddressChanges> {
        self.inner.address_changes()
    }
}

#[derive(Debug)]
struct WatchedQuinn {
    inner: Arc<dyn quinn::Runtime>,
    watch: Arc<Watch>,
}

impl quinn::Runtime for WatchedQuinn {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _held = Held::new(&self.watch, |watch| &watch.timers);
        Box::pin(WatchedTimer { inner: self.inner.new_timer(at), _held })
    }

    fn spawn(&self, future: BoxFuture<()>) {
        self.watch.tasks_ever.fetch_add(1, Ordering::SeqCst);
        let held = Held::new(&self.watch, |watch| &watch.tasks);
        self.inner.spawn(Box::pin(WatchedTask { future, held }));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let held = Held::new(&self.watch, |watch| &watch.sockets);
        Ok(Arc::new(WatchedSocket { inner: self.inner.wrap_udp_socket(socket)?, held }))
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }
}

/// Is counted as long as it exists.
struct Held {
    watch: Arc<Watch>,
    gauge: fn(&Watch) -> &AtomicU64,
}

impl Held {
    fn new(watch: &Arc<Watch>, gauge: fn(&Watch) -> &AtomicU64) -> Self {
        gauge(watch).fetch_add(1, Ordering::SeqCst);
        Self { watch: Arc::clone(watch), gauge }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.gauge)(&self.watch).fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

// In each of these, the watched value is dropped before it is counted as dropped.

struct WatchedTask {
    future: BoxFuture<()>,
    held: Held,
}

impl Future for WatchedTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if tokio::runtime::Handle::try_current().is_ok() {
            self.held.watch.saw_tokio.store(true, Ordering::SeqCst);
        }
        self.future.as_mut().poll(cx)
    }
}

#[derive(Debug)]
struct WatchedTimer {
    inner: Pin<Box<dyn AsyncTimer>>,
    _held: Held,
}

impl AsyncTimer for WatchedTimer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.inner.as_mut().reset(at);
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.as_mut().poll(cx)
    }
}

#[derive(Debug)]
struct WatchedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    held: Held,
}

impl AsyncUdpSocket for WatchedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        self.inner.try_send(transmit)?;
        self.held
            .watch
            .sent
            .fetch_add(transmit.contents.len().div_ceil(segment) as u64, Ordering::SeqCst);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let poll = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &poll {
            let datagrams = meta
                .iter()
                .take(*count)
                .map(|meta| meta.len.div_ceil(meta.stride.max(1)) as u64)
                .sum();
            self.held.watch.received.fetch_add(datagrams, Ordering::SeqCst);
        }
        poll
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
