//! What the transport reports.

use bytes::Bytes;
use pk_proto::{ConnectionId, Input, NodeId, Opener, StreamId};

/// What happened in the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransportEvent {
    /// An input of the core.
    Input(Input),
    /// A stream was handed over to the embedder.
    Opened(Opened),
    /// An application stream has bytes, or its end, after a read that found none.
    Readable(StreamId),
    /// An application stream accepts bytes, or was stopped, after a write that was cut short.
    Writable(StreamId),
}

/// A stream that was handed over to the embedder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Connection of the stream.
    pub conn: ConnectionId,
    /// Stream.
    pub stream: StreamId,
    /// Peer.
    pub node: NodeId,
    /// Application protocol.
    pub protocol: String,
    /// Side that opened the stream.
    pub opener: Opener,
}

/// The parameters of [`Output::DetachStream`](pk_proto::Output::DetachStream).
#[derive(Debug, Clone)]
pub struct PendingDetach {
    /// The stream and its peer.
    pub opened: Opened,
    /// Bytes that the core has read and not used.
    pub unread: Bytes,
}
