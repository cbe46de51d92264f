//! Replay protection of signed requests that does not need synchronized clocks.
//!
//! A request contains an expiry in the clock of its source, [`VALIDITY`] after it was signed, and a
//! nonce. The first request of a source may differ from the local clock by [`CLOCK_TOLERANCE`]. It
//! determines the offset of the source's clock from local monotonic time; later requests must match
//! *that* clock within [`VALIDITY`], whatever either wall clock does. The window in which a request
//! is accepted is therefore as narrow with a peer whose clock is an hour off as with one whose
//! clock is right.
//!
//! The newest [`NONCES`] requests of each source are stored, and the expiry of the newest one that
//! is not: requests that are not newer than that one are refused. A request is therefore accepted
//! once, however many follow it, in bounded memory.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use crate::shares::Limits;
use crate::types::id::{ConnectionId, NodeId};
use crate::types::network::Network;
use crate::types::refusal::Refusal;
use crate::types::time::{Instant, UnixMillis, WallClock, millis};

/// Time from the signing of a request to its expiry, in the clock of the source.
pub(crate) const VALIDITY: Duration = Duration::from_secs(120);
/// Maximum difference between the clocks of two nodes with which signalling works.
pub(crate) const CLOCK_TOLERANCE: Duration = Duration::from_secs(60 * 60);
/// Time after the last accepted request during which the clock of its source counts as known. Later
/// the source may have restarted with its clock set.
pub(crate) const CLOCK_MEMORY: Duration = Duration::from_secs(10 * 60);
/// Time after the last accepted request during which its source is stored: afterwards no earlier
/// request is acceptable.
const MEMORY: Duration = Duration::from_secs(2 * (60 * 60) + 4 * 120);
/// Maximum number of sources, of which one network has its share. Above it, the source with the
/// oldest last request of the network with the most sources is dropped. The network is that of the
/// peer that sent the request, because a peer can invent sources.
const SOURCES: usize = 4096;
/// Requests stored per source.
const NONCES: usize = 64;

/// The accepted requests.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    sources: BTreeMap<NodeId, Source>,
    /// The sources by the time of their last accepted request.
    by_age: BTreeSet<(Instant, NodeId)>,
    /// The same for each network.
    by_network: BTreeMap<Network, BTreeSet<(Instant, NodeId)>>,
    /// The networks by the number of their sources.
    sizes: BTreeSet<(usize, Network)>,
}

/// State of one source.
#[derive(Debug)]
struct Source {
    accepted_at: Instant,
    /// Network of the peer that sent its first request.
    network: Network,
    /// Connection of the last request, if requests arrive on the source's own connections.
    conn: Option<ConnectionId>,
    clock: WallClock,
    /// Expiry and nonce of the newest accepted requests.
    seen: BTreeSet<(UnixMillis, [u8; 16])>,
    /// Expiry of the newest accepted request that is not in `seen`.
    forgotten: Option<UnixMillis>,
}

impl Freshness {
    /// Returns the number of stored requests.
    pub(crate) fn len(&self) -> usize {
        self.sources.values().map(|source| source.seen.len()).sum()
    }

    /// Accepts a request once. The source comes with its own connection if the request arrived on
    /// it: another connection may mean another clock, because only the source can use it. `network`
    /// is that of the peer that sent the request, with its share of the table in percent.
    ///
    /// # Errors
    ///
    /// [`Refusal::Expired`] if the request does not match the source's clock, or the local clock if
    /// that is unknown; [`Refusal::Replayed`] if it was accepted before, or may have been.
    pub(crate) fn accept(
        &mut self,
        now: Instant,
        unix: UnixMillis,
        (source, conn): (&NodeId, Option<ConnectionId>),
        (expires, nonce): (UnixMillis, [u8; 16]),
        network: (Network, u32),
    ) -> Result<(), Refusal> {
        self.forget(now);
        let signed_at = UnixMillis(expires.0.saturating_sub(millis(VALIDITY)));
        let known = self.sources.get(source);
        let clock = known.filter(|known| known.is_clock_known(now, conn)).map(|known| known.clock);
        let (expected, tolerance) = match clock {
            Some(clock) => (clock.read(now), VALIDITY),
            None => (unix, CLOCK_TOLERANCE + VALIDITY),
        };
        if signed_at.0.abs_diff(expected.0) > millis(tolerance) {
            return Err(Refusal::Expired);
        }
        if known.is_some_and(|known| known.has_seen(expires, nonce)) {
            return Err(Refusal::Replayed);
        }
        // The request with the shortest delay shows the clock best, and an older one must not set
        // it back.
        let clock =
            clock.filter(|_| signed_at <= expected).unwrap_or(WallClock::new(now, signed_at));
        self.make_room(source, network);
        self.remember(now, (source, conn, network.0), clock, (expires, nonce));
        Ok(())
    }

    fn remember(
        &mut self,
        now: Instant,
        (source, conn, network): (&NodeId, Option<ConnectionId>, Network),
        clock: WallClock,
        request: (UnixMillis, [u8; 16]),
    ) {
        let known = self.sources.entry(*source).or_insert_with(|| Source {
            accepted_at: now,
            network,
            conn,
            clock,
            seen: BTreeSet::new(),
            forgotten: None,
        });
        let of_network = self.by_network.entry(known.network).or_default();
        let size = of_network.len();
        for order in [&mut self.by_age, of_network] {
            order.remove(&(known.accepted_at, *source));
            order.insert((now, *source));
        }
        if of_network.len() != size {
            self.sizes.remove(&(size, known.network));
            self.sizes.insert((of_network.len(), known.network));
        }
        (known.accepted_at, known.conn, known.clock) = (now, conn, clock);
        known.seen.insert(request);
        if known.seen.len() > NONCES
            && let Some((expires, _)) = known.seen.pop_first()
        {
            known.forgotten = known.forgotten.max(Some(expires));
        }
    }

    /// Drops the sources all of whose requests have become unacceptable.
    fn forget(&mut self, now: Instant) {
        while self.by_age.first().is_some_and(|(accepted_at, _)| now.since(*accepted_at) >= MEMORY)
        {
            if let Some((_, source)) = self.by_age.first().copied() {
                self.forget_source(&source);
            }
        }
    }

    /// Drops a source if there is no room for this one: of its network if that has its share,
    /// otherwise of the network with the most.
    fn make_room(&mut self, source: &NodeId, (network, share): (Network, u32)) {
        if self.sources.contains_key(source) {
            return;
        }
        let count = self.by_network.get(&network).map_or(0, BTreeSet::len);
        let from = if count >= Limits::new(SOURCES, share).network {
            self.by_network.get(&network)
        } else if self.sources.len() >= SOURCES {
            self.sizes.last().and_then(|(_, network)| self.by_network.get(network))
        } else {
            None
        };
        if let Some((_, oldest)) = from.and_then(BTreeSet::first).copied() {
            self.forget_source(&oldest);
        }
    }

    fn forget_source(&mut self, source: &NodeId) {
        let Some(Source { accepted_at, network, .. }) = self.sources.remove(source) else { return };
        self.by_age.remove(&(accepted_at, *source));
        if let Some(sources) = self.by_network.get_mut(&network) {
            self.sizes.remove(&(sources.len(), network));
            sources.remove(&(accepted_at, *source));
            if sources.is_empty() {
                self.by_network.remove(&network);
            } else {
                self.sizes.insert((sources.len(), network));
            }
        }
    }
}

impl Source {
    fn is_clock_known(&self, now: Instant, conn: Option<ConnectionId>) -> bool {
        self.conn == conn && now.since(self.accepted_at) < CLOCK_MEMORY
    }

    fn has_seen(&self, expires: UnixMillis, nonce: [u8; 16]) -> bool {
        self.forgotten.is_some_and(|forgotten| expires <= forgotten)
            || self.seen.contains(&(expires, nonce))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    /// The local wall clock at [`Instant::ORIGIN`].
    const UNIX: u64 = 1_800_000_000_000;

    /// A guard, with local clocks that agree.
    struct Guard {
        freshness: Freshness,
        millis: u64,
        /// Offset of the local wall clock.
        set: i64,
        conn: Option<ConnectionId>,
        network: Network,
    }

    impl Default for Guard {
        fn default() -> Self {
            let network = Network::V4([10, 0, 0]);
            Self { freshness: Freshness::default(), millis: 0, set: 0, conn: None, network }
        }
    }

    type Request = (UnixMillis, [u8; 16]);

    fn id(number: u64) -> NodeId {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    impl Guard {
        /// A request signed now, by a clock with this offset.
        fn request(&self, ahead: i64, nonce: u8) -> Request {
            let expires = (UNIX + self.millis + millis(VALIDITY)).saturating_add_signed(ahead);
            (UnixMillis(expires), [nonce; 16])
        }

        fn accept(&mut self, source: u64, request: Request) -> Result<(), Refusal> {
            let now = Instant::from_micros(self.millis * 1000);
            let unix = UnixMillis((UNIX + self.millis).saturating_add_signed(self.set));
            self.freshness.accept(now, unix, (&id(source), self.conn), request, (self.network, 25))
        }
    }

    #[test]
    fn replay_is_refused_at_every_time_and_offset() {
        for ahead in [0, 3, -3, 60, -60].map(|minutes| minutes * MINUTE as i64) {
            let mut guard = Guard::default();
            let recorded = guard.request(ahead, 1);
            assert_eq!(guard.accept(1, recorded), Ok(()), "{ahead}");
            assert_eq!(guard.accept(1, recorded), Err(Refusal::Replayed));
            for minute in 0..5 * 60 {
                guard.millis = minute * MINUTE;
                // Over the same connection, and over another one.
                for conn in [None, Some(ConnectionId(9))] {
                    guard.conn = conn;
                    assert!(guard.accept(1, recorded).is_err(), "{ahead} minute {minute}");
                }
                guard.conn = None;
                if minute % 7 == 0 && minute < 180 {
                    assert_eq!(
                        guard.accept(1, guard.request(ahead, minute as u8)),
                        Ok(()),
                        "{ahead} minute {minute}"
                    );
                }
            }
        }
    }

    #[test]
    fn delayed_request_is_expired_by_the_clock_of_its_source() {
        for ahead in [0, 59, -59].map(|minutes| minutes * MINUTE as i64) {
            let mut guard = Guard::default();
            let kept = guard.request(ahead, 1);
            assert_eq!(guard.accept(1, guard.request(ahead, 2)), Ok(()));
            guard.millis = 2 * millis(VALIDITY) + 1;
            assert_eq!(guard.accept(1, kept), Err(Refusal::Expired), "{ahead}");
            assert_eq!(guard.accept(1, guard.request(ahead, 3)), Ok(()));
            // Nor do older ones that still fit set the clock of the source back, step by step.
            for step in 1..10u8 {
                guard.millis += MINUTE;
                let late = guard.request(ahead - i64::from(step) * MINUTE as i64, step);
                assert_eq!(guard.accept(1, late).is_ok(), step <= 2, "{ahead} step {step}");
            }
        }
    }

    #[test]
    fn unknown_clock_may_be_at_most_an_hour_off() {
        let slack = (HOUR + millis(VALIDITY)) as i64;
        for (ahead, accepted) in [
            (HOUR as i64, true),
            (slack, true),
            (slack + 1, false),
            (300 * 24 * HOUR as i64, false),
        ] {
            for ahead in [ahead, -ahead] {
                let mut guard = Guard::default();
                assert_eq!(guard.accept(1, guard.request(ahead, 1)).is_ok(), accepted, "{ahead}");
            }
        }
        let mut guard = Guard::default();
        assert_eq!(guard.accept(1, (UnixMillis(0), [0; 16])), Err(Refusal::Expired));
        assert_eq!(guard.accept(1, (UnixMillis(u64::MAX), [0; 16])), Err(Refusal::Expired));
    }

    #[test]
    fn local_clock_may_be_set_while_a_source_is_known() {
        let mut guard = Guard::default();
        assert_eq!(guard.accept(1, guard.request(0, 1)), Ok(()));
        for set in [-(UNIX as i64), 300 * 24 * HOUR as i64, 0] {
            guard.set = set;
            guard.millis += MINUTE;
            assert_eq!(guard.accept(1, guard.request(0, 2)), Ok(()), "{set}");
        }
    }

    #[test]
    fn changed_clock_of_a_source_is_accepted_on_a_new_connection_or_later() {
        let ahead = 50 * MINUTE as i64;
        let mut guard = Guard { conn: Some(ConnectionId(1)), ..Guard::default() };
        assert_eq!(guard.accept(1, guard.request(ahead, 1)), Ok(()));
        assert_eq!(guard.accept(1, guard.request(0, 2)), Err(Refusal::Expired));
        guard.conn = Some(ConnectionId(2));
        assert_eq!(guard.accept(1, guard.request(0, 3)), Ok(()));

        let mut guard = Guard::default();
        assert_eq!(guard.accept(1, guard.request(ahead, 1)), Ok(()));
        guard.millis = millis(CLOCK_MEMORY) - 1;
        assert_eq!(guard.accept(1, guard.request(0, 2)), Err(Refusal::Expired));
        guard.millis = millis(CLOCK_MEMORY);
        assert_eq!(guard.accept(1, guard.request(0, 3)), Ok(()));
    }

    #[test]
    fn source_with_many_requests_uses_up_only_its_own_memory() {
        let mut guard = Guard::default();
        let first = guard.request(0, 1);
        assert_eq!(guard.accept(2, first), Ok(()));
        for n in 0..10_000 {
            guard.millis = n;
            assert_eq!(guard.accept(1, guard.request(0, 1)), Ok(()));
            assert!(guard.freshness.sources[&id(1)].seen.len() <= NONCES);
        }
        guard.millis = 0;
        let forgotten = guard.request(0, 1);
        guard.millis = 10_000;
        assert_eq!(
            guard.accept(1, forgotten),
            Err(Refusal::Replayed),
            "it is older than all that are remembered"
        );
        assert_eq!(guard.accept(2, first), Err(Refusal::Replayed));
    }

    #[test]
    fn memory_is_bounded_and_returned() {
        let mut guard = Guard::default();
        for source in 0..10_000 {
            guard.millis = source;
            guard.network = Network::V4([10, 0, (source % 8) as u8]);
            assert_eq!(
                guard.accept(source, guard.request(0, 1)),
                Ok(()),
                "no request is refused for lack of memory"
            );
        }
        assert_eq!(
            (guard.freshness.sources.len(), guard.freshness.by_age.len()),
            (SOURCES, SOURCES)
        );
        assert_eq!(guard.accept(9_999, guard.request(0, 2)), Ok(()));
        assert_eq!(guard.freshness.by_age.len(), SOURCES);
        guard.millis += millis(MEMORY);
        assert_eq!(guard.accept(1, guard.request(0, 1)), Ok(()));
        assert_eq!((guard.freshness.sources.len(), guard.freshness.by_age.len()), (1, 1));
    }

    /// A peer invents sources: entries of its own network are dropped, and those of other networks
    /// stay.
    #[test]
    fn one_network_does_not_displace_sources_of_other_networks() {
        let mut guard = Guard::default();
        let first = guard.request(0, 1);
        assert_eq!(guard.accept(1, first), Ok(()));
        for (network, sources) in [(1, 10_000), (2, 1000), (3, 1000), (4, 1000), (5, 1000)] {
            guard.network = Network::V4([10, 0, network]);
            for source in 0..sources {
                let source = 100_000 * u64::from(network) + source;
                assert_eq!(guard.accept(source, guard.request(0, 1)), Ok(()));
            }
        }
        assert_eq!(guard.freshness.sources.len(), SOURCES);
        let most = guard.freshness.by_network.values().map(BTreeSet::len).max();
        assert!(most <= Some(1024), "{most:?}");
        assert_eq!(guard.accept(1, first), Err(Refusal::Replayed));
    }
}
