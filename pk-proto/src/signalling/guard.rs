//! Limits that prevent the abuse of signalling.

use core::time::Duration;

use super::freshness::Freshness;
use crate::shares::{Limits, Remembered, Source};
use crate::types::id::{ConnectionId, NodeId};
use crate::types::network::Network;
use crate::types::refusal::Refusal;
use crate::types::time::{Instant, UnixMillis};
use crate::wire::message::{SignalRequest, SignalTerms};

/// Burst of a token bucket, in signals.
const BURST: u64 = 20;

/// Refill interval of a token bucket: 10 signals per second.
const REFILL: Duration = Duration::from_millis(100);

/// One network may send as many signals as this number of nodes.
const NODES_PER_NETWORK: u64 = 4;

/// Maximum number of token buckets that are not full.
const BUCKETS: usize = 4096;

/// Seen requests, and the rates of nodes. Everything here is counted for the peer that sends the
/// request, whatever ids it names, because a relay can invent any number of sources.
#[derive(Debug, Default)]
pub(crate) struct SignalGuard {
    accepted: Freshness,
    sources: Limiter,
    targets: Limiter,
}

impl SignalGuard {
    /// Accepts a request once, within its validity (see [`Freshness`]). A plain request is always
    /// accepted and limited only by its rate. The source comes with its own connection if the
    /// request arrived on it. `from` is the peer that sent the request, `share` is
    /// `Config::network_share`.
    pub(crate) fn fresh(
        &mut self,
        now: Instant,
        unix: UnixMillis,
        source: (&NodeId, Option<ConnectionId>),
        request: &SignalRequest,
        from: &Source,
        share: u32,
    ) -> Result<(), Refusal> {
        match request.terms {
            SignalTerms::Once { expires, nonce } => {
                self.accepted.accept(now, unix, source, (expires, nonce), (from.network, share))
            }
            SignalTerms::Plain => Ok(()),
        }
    }

    /// Returns the number of stored requests, and of nodes whose rate is limited.
    pub(crate) fn tables(&self) -> (usize, usize) {
        (self.accepted.len(), self.sources.full_at.len() + self.targets.full_at.len())
    }

    /// Takes one signal from the buckets of the sending peer and of its network.
    pub(crate) fn allow_source(
        &mut self,
        now: Instant,
        from: &Source,
        share: u32,
    ) -> Result<(), Refusal> {
        self.sources.take(now, Subject::Node(from.node), BURST, from, share)?;
        let network = Subject::Network(from.network);
        self.sources.take(now, network, BURST * NODES_PER_NETWORK, from, share)
    }

    /// Takes one signal from the bucket of the node that it concerns.
    pub(crate) fn allow_target(
        &mut self,
        now: Instant,
        target: &NodeId,
        from: &Source,
        share: u32,
    ) -> Result<(), Refusal> {
        self.targets.take(now, Subject::Node(*target), BURST, from, share)
    }
}

/// Subject of a token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Node(NodeId),
    Network(Network),
}

/// Token buckets: a burst at once, and as many again in [`BURST`] times [`REFILL`].
#[derive(Debug, Default)]
struct Limiter {
    /// Time at which each bucket is full again. Full ones are not stored.
    full_at: Remembered<Subject, Instant>,
}

impl Limiter {
    fn take(
        &mut self,
        now: Instant,
        of: Subject,
        burst: u64,
        from: &Source,
        share: u32,
    ) -> Result<(), Refusal> {
        let most = REFILL * u32::try_from(BURST).unwrap_or(u32::MAX);
        let refill = most / u32::try_from(burst).unwrap_or(u32::MAX).max(1);
        self.full_at.forget_before(now);
        let full_at = self.full_at.until(&of).unwrap_or(now).max(now) + refill;
        if full_at.since(now) > most {
            return Err(Refusal::RateLimited);
        }
        Ok(self.full_at.remember(of, full_at, from, &Limits::new(BUCKETS, share))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn source(byte: u8) -> Source {
        Source { node: id(byte), network: Network::V4([10, 0, byte]) }
    }

    const SHARE: u32 = 25;

    #[test]
    fn memory_is_bounded_and_shared() {
        let named = |n: u64| {
            let mut node = [7; 32];
            node[..8].copy_from_slice(&n.to_be_bytes());
            NodeId::from_bytes(node)
        };
        let mut guard = SignalGuard::default();
        for n in 0..20_000 {
            let from = Source { node: named(n), ..source(1) };
            let _ = guard.allow_source(Instant::ORIGIN, &from, SHARE);
            let _ = guard.allow_target(Instant::ORIGIN, &named(n), &source(1), SHARE);
        }
        assert!(guard.sources.full_at.len() <= Limits::new(BUCKETS, SHARE).network);
        assert_eq!(guard.targets.full_at.len(), Limits::new(BUCKETS, SHARE).node, "of one node");
        assert_eq!(
            guard.allow_source(Instant::ORIGIN, &source(2), SHARE),
            Ok(()),
            "another network"
        );
        assert_eq!(guard.allow_target(Instant::ORIGIN, &id(9), &source(2), SHARE), Ok(()));
    }

    #[test]
    fn twenty_at_once_then_ten_a_second() {
        let mut guard = SignalGuard::default();
        let burst = |guard: &mut SignalGuard, now, node: u8, network: u8| {
            let from = Source { node: id(node), ..source(network) };
            (0..100).filter(|_| guard.allow_source(now, &from, SHARE).is_ok()).count()
        };
        assert_eq!(burst(&mut guard, Instant::ORIGIN, 1, 1), 20);
        assert_eq!(burst(&mut guard, Instant::ORIGIN, 2, 1), 20, "each node has its own");
        assert_eq!(
            (3..10).map(|node| burst(&mut guard, Instant::ORIGIN, node, 1)).sum::<usize>(),
            40,
            "and a network"
        );
        assert_eq!(burst(&mut guard, Instant::ORIGIN, 11, 2), 20, "another network");
        let second = Instant::ORIGIN + Duration::from_secs(1);
        assert_eq!(burst(&mut guard, second, 1, 1), 10);
        assert_eq!((2..10).map(|node| burst(&mut guard, second, node, 1)).sum::<usize>(), 30);
    }
}
