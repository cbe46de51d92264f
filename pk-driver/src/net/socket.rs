//! The UDP socket, one to listen and to dial from.
//!
//! The sockets of quinn's runtimes discard every error of the system except a full buffer, and send
//! without segmentation after it has failed once. That is right for a connection, which survives a
//! short outage. A dial without a route would last until its deadline; therefore its first datagram
//! is sent through another handle to the same socket, which reports errors.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pk_quic::{Datagram, Transmit};
use quinn::udp::{self, BATCH_SIZE, EcnCodepoint, RecvMeta, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use crate::cx::{Cx, WakeSource};
use crate::system::tasks::Tasks;

/// Longest datagram that is received whole, in bytes: more than peers are allowed to send.
const DATAGRAM: usize = 1500;

/// Transmits before other sources are served.
const TRANSMITS: usize = 256;

/// The socket of a node.
pub(crate) struct Socket {
    bound: Bound,
    readable: Waker,
    writable: Waker,
    received: Box<[u8]>,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are to be sent when the socket is writable.
    pending: Option<Transmit>,
}

/// A bound socket.
pub(crate) struct Bound {
    io: Arc<dyn AsyncUdpSocket>,
    poller: Pin<Box<dyn UdpPoller>>,
    /// The same socket without the runtime, which reports errors of the system.
    direct: UdpSocket,
    state: UdpSocketState,
    addr: SocketAddr,
}

impl Bound {
    /// Binds a socket. One for every IPv6 address also receives IPv4 where the system supports
    /// that, and is one for every IPv4 address where the system has no IPv6.
    pub(crate) fn new(listen: SocketAddr, tasks: &Tasks) -> io::Result<Self> {
        let socket = match bind(listen) {
            Err(error) if listen.ip() == Ipv6Addr::UNSPECIFIED && !conflict(&error) => {
                tracing::debug!(%error, "this system has no IPv6; listening on IPv4 only");
                // Report the first error.
                bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()))).map_err(|_| error)
            }
            socket => socket,
        }?;
        let direct = socket.try_clone()?;
        let io = tasks.wrap_udp_socket(socket)?;
        let state = UdpSocketState::new((&direct).into())?;
        let addr = io.local_addr()?;
        Ok(Self { poller: Arc::clone(&io).create_io_poller(), io, direct, state, addr })
    }

    /// Returns the address of the socket.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns whether the system may fragment datagrams, so that larger ones must not be tried.
    pub(crate) fn may_fragment(&self) -> bool {
        self.io.may_fragment()
    }

    /// Sends a datagram that fails with the error of the system.
    fn send_first(&self, transmit: &udp::Transmit<'_>) -> io::Result<()> {
        match self.state.try_send((&self.direct).into(), transmit) {
            // The runtime must detect this itself, to wait for room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.io.try_send(transmit),
            // Temporary: the datagram is lost, as on the network.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Ok(()),
            result => result,
        }
    }
}

impl Socket {
    pub(crate) fn new(cx: &Cx, bound: Bound) -> Self {
        let received = buffer(&bound);
        Self {
            bound,
            readable: cx.source(WakeSource::Socket),
            writable: cx.ready.waker(WakeSource::Writable),
            received,
            outgoing: Vec::new(),
            pending: None,
        }
    }

    /// Returns the address of the socket.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.bound.addr()
    }

    /// Continues with another socket of the same family. A datagram that waits for room is lost.
    pub(crate) fn rebind(&mut self, bound: Bound) {
        self.received = buffer(&bound);
        self.bound = bound;
        self.pending = None;
        self.readable.wake_by_ref();
        self.writable.wake_by_ref();
    }

    /// Passes the datagrams of one read to the node.
    ///
    /// # Errors
    ///
    /// The socket has failed.
    pub(crate) fn receive(&mut self, cx: &mut Cx) -> io::Result<()> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut buffers = self.received.chunks_mut(self.received.len() / BATCH_SIZE);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().unwrap_or_default()));
        let mut context = Context::from_waker(&self.readable);
        let count = match self.bound.io.poll_recv(&mut context, &mut slices, &mut metas) {
            Poll::Pending => return Ok(()),
            // On some systems an error of an earlier datagram.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Ready(Ok(count)) => count,
        };
        // Until the socket is empty no waker is registered.
        self.readable.wake_by_ref();
        let now = cx.now;
        let (mut datagrams, mut received) = (0, 0);
        cx.node.with(|node| {
            for (meta, slice) in metas.iter().zip(&slices).take(count) {
                let bytes = slice.get(..meta.len).unwrap_or_default();
                for bytes in bytes.chunks(meta.stride.max(1)) {
                    let ecn = meta.ecn.map_or(0, |ecn| ecn as u8);
                    let datagram = Datagram { from: meta.addr, to: meta.dst_ip, ecn, bytes };
                    node.handle_datagram(now, datagram);
                    datagrams += 1;
                    received += bytes.len() as u64;
                }
            }
        });
        cx.metrics.datagrams_received += datagrams;
        cx.metrics.bytes_received += received;
        Ok(())
    }

    /// Sends what the node has to send. Returns whether the node was informed of an error.
    pub(crate) fn transmit(&mut self, cx: &mut Cx) -> bool {
        let mut failed = false;
        for _ in 0..TRANSMITS {
            let (now, max) = (cx.now, self.bound.io.max_transmit_segments());
            let outgoing = &mut self.outgoing;
            let next = match self.pending.take() {
                Some(transmit) => Some(transmit),
                None => cx.node.with(|node| node.poll_transmit(now, max, outgoing)),
            };
            let Some(transmit) = next else { return failed };
            match self.send(&transmit) {
                Ok(()) => {
                    let longest = transmit.segment_size.unwrap_or(transmit.size).max(1);
                    cx.metrics.datagrams_sent += transmit.size.div_ceil(longest) as u64;
                    cx.metrics.bytes_sent += transmit.size as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pending = Some(transmit);
                    let mut context = Context::from_waker(&self.writable);
                    if self.bound.poller.as_mut().poll_writable(&mut context).is_pending() {
                        return failed;
                    }
                }
                Err(error) => {
                    failed = true;
                    let why = error.to_string();
                    cx.node.with(|node| node.unreachable(now, transmit.to, &why));
                }
            }
        }
        self.writable.wake_by_ref();
        failed
    }

    fn send(&self, transmit: &Transmit) -> io::Result<()> {
        let (contents, ipv6) = (self.outgoing.get(..transmit.size), self.bound.addr.is_ipv6());
        let outgoing = udp::Transmit {
            destination: SocketAddr::new(of_family(transmit.to.ip(), ipv6), transmit.to.port()),
            ecn: EcnCodepoint::from_bits(transmit.ecn),
            contents: contents.unwrap_or_default(),
            segment_size: transmit.segment_size,
            src_ip: transmit.from.map(|ip| of_family(ip, ipv6)),
        };
        // A link-local destination keeps its interface.
        let outgoing = match transmit.to {
            SocketAddr::V6(to) => udp::Transmit { destination: to.into(), ..outgoing },
            SocketAddr::V4(_) => outgoing,
        };
        match transmit.is_first {
            true => self.bound.send_first(&outgoing),
            false => match self.bound.io.try_send(&outgoing) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
                // A datagram that is lost.
                _ => Ok(()),
            },
        }
    }
}

/// Returns an address as a socket of the family expects it.
fn of_family(ip: IpAddr, ipv6: bool) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ipv6 => ip.to_ipv6_mapped().into(),
        ip => ip,
    }
}

fn buffer(bound: &Bound) -> Box<[u8]> {
    vec![0; DATAGRAM * bound.io.max_receive_segments() * BATCH_SIZE].into()
}

/// Returns whether another address with the same port would fail as well.
fn conflict(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = RawSocket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6()
        && let Err(error) = socket.set_only_v6(false)
    {
        tracing::debug!(%error, "this system has no sockets for both IPv6 and IPv4");
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("addr", &self.bound.addr).finish_non_exhaustive()
    }
}
