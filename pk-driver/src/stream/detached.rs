//! A stream that is being handed over to the embedder.

use pk_proto::{Network, Opener, StreamId};

use super::Stream;

/// A stream that was handed over; `None` if it ended before that.
#[derive(Debug)]
pub(crate) struct DetachedStream {
    pub(crate) id: StreamId,
    pub(crate) opener: Opener,
    /// The stream, with the network of its peer.
    pub(crate) stream: Option<(Stream, Network)>,
}
