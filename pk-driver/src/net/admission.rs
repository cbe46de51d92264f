//! Who may begin a handshake: caps in total and per network, before anything about a peer is known but its address.
//!
//! A handshake costs memory and a signature, and its sender may be forged. So a peer that has not shown that it receives
//! at its address (RFC 9000 section 8.1) gets only the lower half of each cap, and beyond it a Retry, which costs us
//! nothing; the upper half is for those that came back with the token. A flood of forged packets thus never uses up the
//! room of the honest, and one network never uses up the room of the others.
//!
//! A handshake that failed counts for a while longer: QUIC keeps what it has closed. Else a first packet and one that takes
//! it back, both forged, would cost us its memory and free its place at once, as often as anybody likes. It counts less than
//! one under way, since honest peers that race their dials take many of them back.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use pk_proto::Instant;

/// How long QUIC keeps a connection that it has closed: three probe timeouts (RFC 9000 section 10.2), of a second each
/// as long as no round trip has been measured.
const LINGER: Duration = Duration::from_secs(3);

/// What a handshake under way counts, and what one that failed. Only while nothing is under way does QUIC thus keep four
/// times as many as the caps say.
const UNDER_WAY: usize = 4;
const FAILED: usize = 1;

/// What to do with an incoming handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Begin it. It is counted until [`Handshakes::succeeded`], or for a while after [`Handshakes::failed`].
    Accept,
    /// Have the peer show that it receives at its address.
    Retry,
    /// The total cap is reached.
    RefuseTotal,
    /// The cap of its network is reached.
    RefuseNetwork,
}

/// Incoming handshakes under way, and those that failed a short while ago.
#[derive(Debug)]
pub(crate) struct Handshakes {
    // All of these in units: see [`UNDER_WAY`].
    limit: usize,
    network_limit: usize,
    total: usize,
    networks: HashMap<Network, usize>,
    /// Those that failed, and until when they count; the first ones first.
    failed: VecDeque<(Instant, Network)>,
}

/// A /24 of IPv4 or a /48 of IPv6: what one holder of addresses usually has at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Network(IpAddr);

impl Network {
    pub(crate) fn of(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                IpAddr::from([a, b, c, 0])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, ..] = ip.segments();
                IpAddr::from([a, b, c, 0, 0, 0, 0, 0])
            }
        })
    }
}

impl Handshakes {
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
            self.uncount(network, FAILED);
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

    /// An admitted handshake became a connection, which others count.
    pub(crate) fn succeeded(&mut self, network: Network) {
        self.uncount(network, UNDER_WAY);
    }

    /// An admitted handshake became nothing.
    pub(crate) fn failed(&mut self, network: Network, now: Instant) {
        self.uncount(network, UNDER_WAY - FAILED);
        self.failed.push_back((now + LINGER, network));
    }

    fn uncount(&mut self, network: Network, units: usize) {
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
    fn networks_are_24_and_48_bits() {
        assert_eq!(network("192.0.2.1"), network("192.0.2.254"));
        assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.9"));
        assert_eq!(network("2001:db8:1:ffff::1"), network("2001:db8:1::2"));
        assert_ne!(network("2001:db8:1::1"), network("2001:db8:2::1"));
    }

    #[test]
    fn the_forged_get_half_and_the_validated_the_rest() {
        let mut handshakes = Handshakes::new(8, 8);
        let forged = |handshakes: &mut Handshakes, n: u8| handshakes.admit(network(&format!("10.0.{n}.1")), false, NOW);
        let admitted = (0..100).filter(|n| forged(&mut handshakes, *n) == Admission::Accept).count();
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
    fn one_network_never_fills_the_room_of_all() {
        let mut handshakes = Handshakes::new(100, 4);
        let (loud, other) = (network("203.0.113.1"), network("198.51.100.1"));
        let seen: Vec<_> = (0..6).map(|_| handshakes.admit(loud, true, NOW)).collect();
        assert_eq!(&seen[..4], &[Admission::Accept; 4]);
        assert_eq!(&seen[4..], &[Admission::RefuseNetwork; 2]);
        assert_eq!(handshakes.admit(other, false, NOW), Admission::Accept);
    }

    #[test]
    fn an_ended_handshake_makes_room_and_leaves_nothing() {
        let mut handshakes = Handshakes::new(2, 2);
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
    fn a_failed_handshake_counts_a_little_as_long_as_quic_keeps_it() {
        let mut handshakes = Handshakes::new(8, 4);
        let (a, now) = (network("203.0.113.1"), NOW + LINGER / 2);
        let fail = |handshakes: &mut Handshakes, now| {
            let admission = handshakes.admit(a, true, now);
            if admission == Admission::Accept {
                handshakes.failed(a, now);
            }
            admission
        };
        // The last one has to find room to be under way.
        let most = 4 * UNDER_WAY - (UNDER_WAY - FAILED);
        for i in 0..most {
            assert_eq!(fail(&mut handshakes, if i == 0 { NOW } else { now }), Admission::Accept, "{i}");
        }
        assert_eq!(fail(&mut handshakes, now), Admission::RefuseNetwork);
        assert_eq!(handshakes.admit(network("198.51.100.1"), true, now), Admission::Accept, "others have room");
        assert_eq!(fail(&mut handshakes, NOW + LINGER), Admission::Accept, "one is forgotten");
        assert_eq!(fail(&mut handshakes, NOW + LINGER), Admission::RefuseNetwork);
        for _ in 0..4 {
            assert_eq!(handshakes.admit(a, true, now + LINGER * 2), Admission::Accept, "all are forgotten");
        }
        assert_eq!(handshakes.failed.len(), 0);
    }
}
