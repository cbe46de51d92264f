//! The endpoint's socket, shared so that punch datagrams leave from the port that peers know.
//!
//! The only file that uses quinn's socket traits, which change with its next major version. It only
//! adds sending and the inspection of sent packets. quinn drops received datagrams that are not
//! QUIC; they contain no information, because peers may grease the fixed bit.
//!
//! The sockets of quinn's runtimes discard every error of the system except a full buffer. That is
//! right for a connection, which survives a short outage. A dial without a route would last until
//! its deadline; therefore the first datagram of a handshake is sent here, and an error of the
//! system fails the dial.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_proto::ConnectionId;

use super::cids::{Cids, Sends};
use super::resets::Resets;

/// A socket of the runtime that quinn and the pump share.
#[derive(Debug)]
pub(crate) struct PunchSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// The same socket without the runtime, which reports errors of the system.
    direct: UdpSocket,
    state: UdpSocketState,
    ipv6: bool,
    /// Inspects outgoing packets, and can drop them.
    cids: Cids,
    /// Limits outgoing stateless resets.
    pub(super) resets: Arc<Resets>,
}

impl PunchSocket {
    /// `direct` is another handle to the socket of `inner`.
    pub(super) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        direct: UdpSocket,
        cids: Cids,
        resets: Arc<Resets>,
    ) -> io::Result<Self> {
        let ipv6 = inner.local_addr()?.is_ipv6();
        let state = UdpSocketState::new((&direct).into())?;
        Ok(Self { inner, direct, state, ipv6, cids, resets })
    }

    /// Sends one datagram now, or drops it.
    ///
    /// Fails with [`WouldBlock`](io::ErrorKind::WouldBlock) if the socket's buffer is full, with
    /// `InvalidInput` for an IPv6 address on an IPv4 socket, and with errors of the socket.
    pub(crate) fn punch(&self, addr: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let destination = match (addr.ip(), self.ipv6) {
            (IpAddr::V4(ip), true) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
            (IpAddr::V6(_), false) => return Err(io::ErrorKind::InvalidInput.into()),
            _ => addr,
        };
        let contents = bytes;
        let transmit =
            Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None };
        self.state.try_send((&self.direct).into(), &transmit)
    }

    /// Sends the first datagram of a handshake, and records the result.
    fn send_first(&self, own: &ConnectionId, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.state.try_send((&self.direct).into(), transmit) {
            Ok(()) => self.cids.sent(own, Ok(())),
            // The runtime must detect this itself, to wait for room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return self.inner.try_send(transmit);
            }
            // Temporary: the datagram is lost, as on the network.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {}
            Err(error) => {
                self.cids.sent(own, Err(format!("the system cannot send there: {error}")));
            }
        }
        Ok(())
    }
}

impl AsyncUdpSocket for PunchSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.cids.sends(transmit) {
            Sends::First(own) => self.send_first(&own, transmit),
            Sends::Other if self.resets.admits(transmit.destination.ip(), transmit.contents) => {
                self.inner.try_send(transmit)
            }
            // A datagram that must not be sent is treated as lost.
            Sends::Withdrawn | Sends::Other => Ok(()),
        }
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
