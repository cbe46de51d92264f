//! Sockets that lose packets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pk_proto::NodeAddress;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// Any free port of 127.0.0.1.
pub fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// A port that is not in use now, for the local network of one case.
pub fn private_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("there is a free port");
    socket.local_addr().expect("a bound socket has an address").port()
}

/// A socket that receives every packet and answers none, like a machine behind a firewall.
#[derive(Debug)]
pub struct BlackHole(UdpSocket);

impl BlackHole {
    /// Opens it.
    pub fn open() -> Self {
        Self(UdpSocket::bind(loopback()).expect("there is a free port"))
    }

    /// Where it is.
    pub fn address(&self) -> NodeAddress {
        NodeAddress::from_socket(self.socket())
    }

    /// Where it is.
    pub fn socket(&self) -> SocketAddr {
        self.0.local_addr().expect("a bound socket has an address")
    }
}

/// A socket that sends and receives nothing: a dial through it never gets beyond its first packet.
#[derive(Debug)]
pub struct Deaf(pub Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Deaf {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // Removed from the system's buffer and discarded.
        match self.0.poll_recv(cx, bufs, meta) {
            Poll::Ready(Ok(_)) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}
