//! Admission of handshakes: limits in total and per network, before anything except the address of
//! a peer is known.
//!
//! A handshake costs memory and a signature, and its source address may be forged. A peer that has
//! not validated its address (RFC 9000 section 8.1) can therefore use only the lower half of each
//! limit, and gets a Retry beyond it, which costs nothing. The upper half is reserved for validated
//! peers. A flood of forged packets therefore never uses up the room of honest peers, and one
//! network never uses up the room of others.
//!
//! A failed handshake counts for some time longer, because QUIC keeps the state of a closed
//! connection. Otherwise two forged packets, one that starts a handshake and one that ends it,
//! would occupy memory and free their place at once, without limit. It counts less than one in
//! progress, because honest peers that race their dials cancel many.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use pk_proto::{Instant, Network};

/// Time that QUIC keeps a closed connection: three probe timeouts (RFC 9000 section 10.2) of one
/// second each while no round trip has been measured.
const LINGER: Duration = Duration::from_secs(3);

/// Weight of a handshake in progress, and of a failed one. Only while none is in progress does QUIC
/// keep four times as many as the limits.
const UNDER_WAY: usize = 4;
const FAILED: usize = 1;

/// Decision about an incoming handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Start it. It counts until [`AdmissionControl::succeeded`], or for some time after
    /// [`AdmissionControl::failed`].
    Accept,
    /// Require address validation.
    Retry,
    /// The total limit is reached.
    RefuseTotal,
    /// The limit of its network is reached.
    RefuseNetwork,
}

/// Incoming handshakes in progress, and those that failed recently.
#[derive(Debug)]
pub(crate) struct AdmissionControl {
    // All counts have the unit of [`UNDER_WAY`].
    limit: usize,
    network_limit: usize,
    total: usize,
    networks: HashMap<Network, usize>,
    /// Failed handshakes with the time until which they count, the earliest first.
    failed: VecDeque<(Instant, Network)>,
}

impl AdmissionControl {
    /// Returns the limits, of handshakes in progress in total and per network.
    pub(crate) fn new(limit: usize, network_limit: usize) -> Self {
        Self {
            limit: limit * UNDER_WAY,
            network_limit: network_limit * UNDER_WAY,
            total: 0,
            networks: HashMap::new(),
            failed: VecDeque::new(),
        }
    }

    /// Decides about a handshake from an address, validated or not.
    pub(crate) fn admit(&mut self, network: Network, validated: bool, now: Instant) -> Admission {
        while let Some((_, network)) = self.failed.pop_front_if(|(until, _)| *until <= now) {
            self.release(network, FAILED);
        }
        let total = self.total + UNDER_WAY;
        let of_network = self.networks.get(&network).copied().unwrap_or_default() + UNDER_WAY;
        if total > self.limit {
            return Admission::RefuseTotal;
        }
        if of_network > self.network_limit {
            return Admission::RefuseNetwork;
        }
        let crowded = total > self.limit.div_ceil(2) || of_network > self.network_limit.div_ceil(2);
        if crowded && !validated {
            return Admission::Retry;
        }
        self.total = total;
        self.networks.insert(network, of_network);
        Admission::Accept
    }

    /// An admitted handshake became a connection, which is counted elsewhere.
    pub(crate) fn succeeded(&mut self, network: Network) {
        self.release(network, UNDER_WAY);
    }

    /// An admitted handshake failed.
    pub(crate) fn failed(&mut self, network: Network, now: Instant) {
        self.release(network, UNDER_WAY - FAILED);
        self.failed.push_back((now + LINGER, network));
    }

    fn release(&mut self, network: Network, units: usize) {
        if let Entry::Occupied(mut entry) = self.networks.entry(network) {
            self.total = self.total.saturating_sub(units);
            *entry.get_mut() = entry.get().saturating_sub(units);
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::ORIGIN;

    fn network(text: &str) -> Network {
        Network::of(text.parse().unwrap())
    }

    #[test]
    fn unvalidated_handshakes_get_half_and_validated_ones_the_rest() {
        let mut handshakes = AdmissionControl::new(8, 8);
        let forged = |handshakes: &mut AdmissionControl, n: u8| {
            handshakes.admit(network(&format!("10.0.{n}.1")), false, NOW)
        };
        let admitted =
            (0..100).filter(|n| forged(&mut handshakes, *n) == Admission::Accept).count();
        assert_eq!(admitted, 4);
        assert_eq!(forged(&mut handshakes, 200), Admission::Retry);
        let honest = network("198.51.100.7");
        for _ in 0..4 {
            assert_eq!(handshakes.admit(honest, true, NOW), Admission::Accept);
        }
        assert_eq!(handshakes.admit(honest, true, NOW), Admission::RefuseTotal);
        assert_eq!(handshakes.total, 8 * UNDER_WAY);
    }

    #[test]
    fn one_network_never_uses_all_handshakes() {
        let mut handshakes = AdmissionControl::new(100, 4);
        let (loud, other) = (network("203.0.113.1"), network("198.51.100.1"));
        let seen: Vec<_> = (0..6).map(|_| handshakes.admit(loud, true, NOW)).collect();
        assert_eq!(&seen[..4], &[Admission::Accept; 4]);
        assert_eq!(&seen[4..], &[Admission::RefuseNetwork; 2]);
        assert_eq!(handshakes.admit(other, false, NOW), Admission::Accept);
    }

    #[test]
    fn ended_handshake_is_no_longer_counted() {
        let mut handshakes = AdmissionControl::new(2, 2);
        let a = network("203.0.113.1");
        assert_eq!(handshakes.admit(a, true, NOW), Admission::Accept);
        assert_eq!(handshakes.admit(a, true, NOW), Admission::Accept);
        assert_eq!(handshakes.admit(a, true, NOW), Admission::RefuseTotal);
        handshakes.succeeded(a);
        assert_eq!(handshakes.admit(a, true, NOW), Admission::Accept);
        handshakes.succeeded(a);
        handshakes.succeeded(a);
        handshakes.succeeded(a);
        assert_eq!((handshakes.total, handshakes.networks.len()), (0, 0));
    }

    #[test]
    fn failed_handshake_counts_partially_as_long_as_quic_keeps_it() {
        let mut handshakes = AdmissionControl::new(8, 4);
        let (a, now) = (network("203.0.113.1"), NOW + LINGER / 2);
        let fail = |handshakes: &mut AdmissionControl, now| {
            let admission = handshakes.admit(a, true, now);
            if admission == Admission::Accept {
                handshakes.failed(a, now);
            }
            admission
        };
        // The last one needs the slot of one in progress.
        let most = 4 * UNDER_WAY - (UNDER_WAY - FAILED);
        for i in 0..most {
            assert_eq!(
                fail(&mut handshakes, if i == 0 { NOW } else { now }),
                Admission::Accept,
                "{i}"
            );
        }
        assert_eq!(fail(&mut handshakes, now), Admission::RefuseNetwork);
        assert_eq!(
            handshakes.admit(network("198.51.100.1"), true, now),
            Admission::Accept,
            "others have room"
        );
        assert_eq!(fail(&mut handshakes, NOW + LINGER), Admission::Accept, "one is forgotten");
        assert_eq!(fail(&mut handshakes, NOW + LINGER), Admission::RefuseNetwork);
        for _ in 0..4 {
            assert_eq!(
                handshakes.admit(a, true, now + LINGER * 2),
                Admission::Accept,
                "all are forgotten"
            );
        }
        assert_eq!(handshakes.failed.len(), 0);
    }
}
