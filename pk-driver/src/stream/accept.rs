//! Incoming streams of application protocols.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use pk_proto::Network;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::stream::Stream;

/// Number of networks that can fill their part of a queue before the queue is full.
const NETWORKS: usize = 4;

/// Accepts the incoming streams of one protocol. When it is dropped, waiting streams are aborted
/// and later ones refused.
///
/// At most `DriverConfig::accept_limit` streams of one network wait here, and four times as many in
/// total. Further streams are refused with code 8.
#[derive(Debug)]
pub struct StreamAcceptor {
    protocol: String,
    streams: mpsc::Receiver<Waiting>,
}

impl StreamAcceptor {
    /// Returns the protocol.
    pub fn protocol(&self) -> &str {
        &self.protocol
    }

    /// Returns the next stream, or `None` after the node has shut down. Cancel safe: dropping the
    /// future loses no stream.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await.map(|waiting| waiting.stream)
    }
}

/// The driver's end of an acceptor.
#[derive(Debug)]
pub(crate) struct AcceptQueue {
    streams: mpsc::Sender<Waiting>,
    counts: Counts,
    limit: usize,
}

/// Number of waiting streams by network. A network without streams has no entry.
type Counts = Arc<Mutex<BTreeMap<Network, usize>>>;

/// A stream that waits to be accepted.
#[derive(Debug)]
struct Waiting {
    stream: Stream,
    _place: Place,
}

/// Counts for its network until it is dropped.
#[derive(Debug)]
struct Place {
    counts: Counts,
    network: Network,
}

/// Why a stream cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// The limit is reached.
    Full,
    /// The acceptor was dropped.
    Gone,
}

impl AcceptQueue {
    /// Creates a queue with room for `limit` streams of one network.
    pub(crate) fn new(protocol: String, limit: usize) -> (Self, StreamAcceptor) {
        let (sender, streams) = mpsc::channel(limit.saturating_mul(NETWORKS));
        (
            Self { streams: sender, counts: Counts::default(), limit },
            StreamAcceptor { protocol, streams },
        )
    }

    /// Queues a stream of a peer in this network. Returns the stream if there is no room.
    pub(crate) fn offer(&self, stream: Stream, network: Network) -> Option<(Stream, NoPlace)> {
        let Some(place) = Place::take(&self.counts, network, self.limit) else {
            return Some((stream, NoPlace::Full));
        };
        match self.streams.try_send(Waiting { stream, _place: place }) {
            Ok(()) => None,
            Err(TrySendError::Full(waiting)) => Some((waiting.stream, NoPlace::Full)),
            Err(TrySendError::Closed(waiting)) => Some((waiting.stream, NoPlace::Gone)),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.streams.is_closed()
    }

    /// Resolves when the acceptor is dropped.
    pub(crate) fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let streams = self.streams.clone();
        async move { streams.closed().await }
    }
}

impl Place {
    fn take(counts: &Counts, network: Network, limit: usize) -> Option<Self> {
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(network).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Self { counts: Arc::clone(counts), network })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_a_network_are_limited_and_released() {
        let counts = Counts::default();
        let network = |byte| Network::V4([10, 0, byte]);
        let take = |byte| Place::take(&counts, network(byte), 2);
        let held = [take(1), take(1), take(1), take(2)];
        assert_eq!(held.each_ref().map(Option::is_some), [true, true, false, true]);
        drop(held);
        assert!(counts.lock().unwrap().is_empty());
        assert!(take(1).is_some());
    }
}
