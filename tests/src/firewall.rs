//! A machine behind a firewall, which drops packets from addresses that the machine has not sent
//! to.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use pk_driver::{AddressChanges, BoxFuture, Runtime};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, UdpPoller};

/// A runtime whose sockets are behind a firewall. Clones are behind the same one.
#[derive(Debug, Clone)]
pub struct Firewalled<R> {
    inner: R,
    wall: Arc<Wall>,
}

#[derive(Debug, Default)]
struct Wall {
    /// The addresses that packets were sent to.
    open: Mutex<BTreeSet<SocketAddr>>,
    shut: AtomicBool,
    stopped: AtomicU64,
}

impl<R> Firewalled<R> {
    /// Puts a runtime behind a new firewall.
    pub fn new(inner: R) -> Self {
        Self { inner, wall: Arc::default() }
    }

    /// Stops admitting addresses: from now on, sending to an address does not admit packets from
    /// it.
    pub fn block_new_addresses(&self) {
        self.wall.shut.store(true, Ordering::SeqCst);
    }

    /// Returns the number of dropped packets.
    pub fn stopped(&self) -> u64 {
        self.wall.stopped.load(Ordering::SeqCst)
    }
}

impl<R: Runtime> Runtime for Firewalled<R> {
    fn quinn(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(FirewalledQuinn { inner: self.inner.quinn(), wall: Arc::clone(&self.wall) })
    }

    fn resolve(&self, host: String, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>> {
        self.inner.resolve(host, port)
    }

    fn address_changes(&self) -> io::Result<AddressChanges> {
        self.inner.address_changes()
    }
}

#[derive(Debug)]
struct FirewalledQuinn {
    inner: Arc<dyn quinn::Runtime>,
    wall: Arc<Wall>,
}

impl quinn::Runtime for FirewalledQuinn {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        self.inner.new_timer(at)
    }

    fn spawn(&self, future: BoxFuture<()>) {
        self.inner.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let wall = Arc::clone(&self.wall);
        Ok(Arc::new(FirewalledSocket { inner: self.inner.wrap_udp_socket(socket)?, wall }))
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }
}

#[derive(Debug)]
struct FirewalledSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    wall: Arc<Wall>,
}

impl AsyncUdpSocket for FirewalledSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !self.wall.shut.load(Ordering::SeqCst) {
            let mut open = self.wall.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.insert(transmit.destination);
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // One datagram at a time, so that a dropped one leaves no gap.
        let (Some(bufs), Some(meta)) = (bufs.get_mut(..1), meta.get_mut(..1)) else {
            return Poll::Ready(Ok(0));
        };
        loop {
            let Poll::Ready(received) = self.inner.poll_recv(cx, bufs, meta)? else {
                return Poll::Pending;
            };
            let open = self.wall.open.lock().unwrap_or_else(PoisonError::into_inner);
            if meta.iter().take(received).all(|meta| open.contains(&meta.addr)) {
                return Poll::Ready(Ok(received));
            }
            self.wall.stopped.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
