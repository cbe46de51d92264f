//! Who may begin a handshake: caps in total and per network, before anything about a peer is known but its address.
//!
//! A handshake costs memory and a signature, and its sender may be forged. So a peer that has not shown that it receives
//! at its address (RFC 9000 section 8.1) gets only the lower half of each cap, and beyond it a Retry, which costs us
//! nothing; the upper half is for those that came back with the token. A flood of forged packets thus never uses up the
//! room of the honest, and one network never uses up the room of the others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

/// What to do with an incoming handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Begin it. It is counted until [`Handshakes::end`].
    Accept,
    /// Have the peer show that it receives at its address.
    Retry,
    /// The total cap is reached.
    RefuseTotal,
    /// The cap of its network is reached.
    RefuseNetwork,
}

/// Incoming handshakes under way.
#[derive(Debug)]
pub(crate) struct Handshakes {
    limit: usize,
    network_limit: usize,
    total: usize,
    networks: HashMap<Network, usize>,
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
        Self { limit, network_limit, total: 0, networks: HashMap::new() }
    }

    /// Decides about a handshake from an address, validated or not.
    pub(crate) fn admit(&mut self, network: Network, validated: bool) -> Admission {
        let of_network = self.networks.get(&network).copied().unwrap_or_default();
        if self.total >= self.limit {
            return Admission::RefuseTotal;
        }
        if of_network >= self.network_limit {
            return Admission::RefuseNetwork;
        }
        let crowded = self.total >= self.limit.div_ceil(2) || of_network >= self.network_limit.div_ceil(2);
        if crowded && !validated {
            return Admission::Retry;
        }
        self.total += 1;
        *self.networks.entry(network).or_default() += 1;
        Admission::Accept
    }

    /// An admitted handshake is over, whatever came of it.
    pub(crate) fn end(&mut self, network: Network) {
        if let Entry::Occupied(mut entry) = self.networks.entry(network) {
            self.total = self.total.saturating_sub(1);
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// How many are under way.
    pub(crate) fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let forged = |handshakes: &mut Handshakes, n: u8| handshakes.admit(network(&format!("10.0.{n}.1")), false);
        let admitted = (0..100).filter(|n| forged(&mut handshakes, *n) == Admission::Accept).count();
        assert_eq!(admitted, 4);
        assert_eq!(forged(&mut handshakes, 200), Admission::Retry);
        let honest = network("198.51.100.7");
        for _ in 0..4 {
            assert_eq!(handshakes.admit(honest, true), Admission::Accept);
        }
        assert_eq!(handshakes.admit(honest, true), Admission::RefuseTotal);
        assert_eq!(handshakes.total(), 8);
    }

    #[test]
    fn one_network_never_fills_the_room_of_all() {
        let mut handshakes = Handshakes::new(100, 4);
        let (loud, other) = (network("203.0.113.1"), network("198.51.100.1"));
        let seen: Vec<_> = (0..6).map(|_| handshakes.admit(loud, true)).collect();
        assert_eq!(&seen[..4], &[Admission::Accept; 4]);
        assert_eq!(&seen[4..], &[Admission::RefuseNetwork; 2]);
        assert_eq!(handshakes.admit(other, false), Admission::Accept);
    }

    #[test]
    fn an_ended_handshake_makes_room_and_leaves_nothing() {
        let mut handshakes = Handshakes::new(2, 2);
        let a = network("203.0.113.1");
        assert_eq!(handshakes.admit(a, true), Admission::Accept);
        assert_eq!(handshakes.admit(a, true), Admission::Accept);
        assert_eq!(handshakes.admit(a, true), Admission::RefuseTotal);
        handshakes.end(a);
        assert_eq!(handshakes.admit(a, true), Admission::Accept);
        handshakes.end(a);
        handshakes.end(a);
        handshakes.end(a);
        assert_eq!((handshakes.total(), handshakes.networks.len()), (0, 0));
    }
}
