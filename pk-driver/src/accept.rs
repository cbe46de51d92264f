//! Streams that peers open for an application protocol.

use tokio::sync::mpsc;

use crate::stream::Stream;

/// Accepts the streams of one protocol. Dropping it refuses them from then on, and aborts those that wait.
///
/// At most `DriverConfig::accept_limit` streams wait here; further ones are refused with code 8.
#[derive(Debug)]
pub struct StreamAcceptor {
    protocol: String,
    streams: mpsc::Receiver<Stream>,
}

impl StreamAcceptor {
    pub(crate) fn new(protocol: String, streams: mpsc::Receiver<Stream>) -> Self {
        Self { protocol, streams }
    }

    /// The protocol.
    pub fn protocol(&self) -> &str {
        &self.protocol
    }

    /// The next stream; `None` once the node has shut down. Dropping the future loses none.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}
