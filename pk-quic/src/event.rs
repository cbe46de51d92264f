//! What the transport reports.

use pk_proto::{ConnectionId, DisconnectReason, Input, Network, NodeId, Opener, StreamId};

use crate::reasons::StreamError;

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
    /// The finished direction of an application stream has ended: the peer acknowledged all data
    /// and the end, or stopped reading before that.
    Delivered {
        /// Stream.
        stream: StreamId,
        /// [`StreamError::Stopped`] if the peer stopped reading.
        result: Result<(), StreamError>,
    },
    /// The connection of an application stream was lost. What was received can still be read.
    Lost {
        /// Stream.
        stream: StreamId,
        /// Why the connection ended.
        why: DisconnectReason,
    },
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
    /// Network of the peer when the connection was established, for limits; `None` if the
    /// connection has ended.
    pub network: Option<Network>,
}
