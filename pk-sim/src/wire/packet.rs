//! The messages between the two ends of a connection.

use std::net::SocketAddr;

use bytes::Bytes;
use pk_proto::{DialFailure, Dialect, DisconnectReason, Identity, Instant};

/// Index of an end of a connection.
pub(crate) type EndIndex = usize;

/// The dialer.
pub(crate) const DIALER: EndIndex = 0;
/// The acceptor.
pub(crate) const ACCEPTOR: EndIndex = 1;

/// A message between the two ends of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Packet {
    Handshake(Box<Handshake>),
    Close {
        why: DisconnectReason,
    },
    Stream {
        key: StreamKey,
        frame: Frame,
    },
    /// A stream that the receiver opened has ended at its peer, so the receiver may open another
    /// one.
    StreamOver,
    /// Keep-alive, or the answer to one. Sent only if NATs are on the path, and not retransmitted.
    Alive {
        answer: bool,
    },
    /// The sender's address has changed.
    Moved {
        addr: SocketAddr,
    },
}

/// A message about one stream.
#[derive(Debug, Clone)]
pub(crate) enum Frame {
    Piece(Piece),
    Reset(u64),
    Stop(u64),
    Window(u64),
}

/// Key of a stream: the end that opened it, and its number among the streams of that end.
pub(crate) type StreamKey = (EndIndex, u64);

/// A piece of a stream in flight.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) number: u64,
    pub(crate) bytes: Bytes,
    pub(crate) fin: bool,
}

/// A step of a handshake.
#[derive(Debug, Clone)]
pub(crate) enum Handshake {
    /// From the dialer: ClientHello.
    Initial,
    /// From the acceptor: its certificates and the chosen protocol.
    Accepted { identity: Identity, dialect: Dialect },
    /// From the acceptor: refusal.
    Refused { why: DialFailure },
    /// From the dialer: its certificates.
    Finished { identity: Identity },
    /// From the acceptor: HANDSHAKE_DONE.
    Done,
}

/// A message that reaches an end.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) serial: u64,
    pub(crate) to: EndIndex,
    pub(crate) packet: Packet,
    /// Number of times that the message was held back.
    pub(crate) tries: u32,
    /// On its way through NATs: where it comes from and goes to, as the far end sees it, and when
    /// it was sent.
    pub(crate) path: Option<Path>,
}

/// The way of a packet outside of NATs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) sent: Instant,
}
