//! The endpoint's socket, shared so that punch datagrams leave from the port that peers know.
//!
//! The only file that knows quinn's socket traits, which change with its next major version. Only sending is added, and
//! looking at what is sent: what comes in and is not QUIC is dropped by quinn, and a fixed bit that peers may grease tells
//! nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::cids::Cids;

/// A socket of the runtime that quinn and the pump share.
#[derive(Debug)]
pub(crate) struct PunchSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    ipv6: bool,
    /// Is shown what QUIC sends, and may keep it back.
    cids: Cids,
}

impl PunchSocket {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, cids: Cids) -> io::Result<Self> {
        let ipv6 = inner.local_addr()?.is_ipv6();
        Ok(Self { inner, ipv6, cids })
    }

    /// Sends one datagram now or not at all.
    ///
    /// Errors: [`WouldBlock`](io::ErrorKind::WouldBlock) if the socket's buffer is full, `InvalidInput` for an IPv6
    /// address from an IPv4 socket, and what the socket says.
    pub(crate) fn punch(&self, addr: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let destination = match (addr.ip(), self.ipv6) {
            (IpAddr::V4(ip), true) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
            (IpAddr::V6(_), false) => return Err(io::ErrorKind::InvalidInput.into()),
            _ => addr,
        };
        let contents = bytes;
        self.inner.try_send(&Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None })
    }
}

impl AsyncUdpSocket for PunchSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // What may not be sent is lost on the way.
        if self.cids.sends(transmit) { self.inner.try_send(transmit) } else { Ok(()) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
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
