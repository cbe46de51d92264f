//! Network address translators (RFC 4787): outgoing packets create mappings, incoming packets need
//! one.
//!
//! A NAT maps an inner endpoint to a port of its own address, and filters what arrives at that
//! port. Both can depend on the destinations of the inner endpoint, or not. The filter considers
//! what was sent *through the mapping* of the port, as connection tracking does. Behind a NAT with
//! a mapping per peer, a packet to one mapping is not admitted because of what was sent through
//! another.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pk_proto::Instant;

use crate::host::id::HostId;

/// Number of a NAT in its world, from 0 in the order of creation.
pub type NatId = usize;

/// First port that is assigned if ports are not preserved.
const FIRST_PORT: u16 = 40_000;

/// The part of a remote endpoint that something depends on (RFC 4787 sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// Independent of the endpoint.
    Nothing,
    /// Its address.
    Address,
    /// Its address and port.
    AddressAndPort,
}

impl Dependence {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Nothing, Self::Address, Self::AddressAndPort];

    /// Returns the part of a remote endpoint that counts.
    fn of(self, far: SocketAddr) -> (Option<IpAddr>, Option<u16>) {
        match self {
            Self::Nothing => (None, None),
            Self::Address => (Some(far.ip()), None),
            Self::AddressAndPort => (Some(far.ip()), Some(far.port())),
        }
    }
}

/// Behavior of a NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NatConfig {
    /// Whether each remote endpoint sees another port.
    /// [`AddressAndPort`](Dependence::AddressAndPort) is called symmetric.
    pub mapping: Dependence,
    /// Remote endpoints that may send to a port.
    pub filtering: Dependence,
    /// Whether the outer port equals the inner one, for all remote endpoints, unless another inner
    /// endpoint uses it.
    pub preserve_ports: bool,
    /// Time without outgoing packets after which a mapping, and an entry of its filter, expires.
    pub expiry: Duration,
    /// Whether inner endpoints reach each other by their outer addresses.
    pub hairpinning: bool,
}

impl NatConfig {
    /// Creates a NAT that preserves no ports, expires mappings after two minutes (RFC 4787 REQ-5)
    /// and does not hairpin.
    pub const fn new(mapping: Dependence, filtering: Dependence) -> Self {
        Self {
            mapping,
            filtering,
            preserve_ports: false,
            expiry: Duration::from_secs(120),
            hairpinning: false,
        }
    }

    /// Returns every combination of mapping, filtering and port preservation.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for mapping in Dependence::ALL {
            for filtering in Dependence::ALL {
                for preserve_ports in [false, true] {
                    all.push(Self { preserve_ports, ..Self::new(mapping, filtering) });
                }
            }
        }
        all
    }
}

/// Counters of a NAT, which show that a test was not vacuous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatCounters {
    /// Mappings that were created.
    pub mapped: u64,
    /// Mappings that expired.
    pub expired: u64,
    /// Incoming packets that were admitted.
    pub admitted: u64,
    /// Incoming packets to a port without a mapping.
    pub unmapped: u64,
    /// Incoming packets that the filter dropped.
    pub filtered: u64,
}

/// A NAT.
#[derive(Debug, Clone)]
pub(crate) struct Nat {
    pub(crate) config: NatConfig,
    /// Its outer address.
    pub(crate) ip: IpAddr,
    /// Inner endpoints.
    pub(crate) inside: BTreeMap<SocketAddr, HostId>,
    pub(crate) counters: NatCounters,
    mappings: Vec<Mapping>,
    next_port: u16,
    /// Nothing expires before.
    first_expiry: Instant,
}

/// Mapping of an inner endpoint, for some remote endpoints or for all.
#[derive(Debug, Clone)]
struct Mapping {
    inner: SocketAddr,
    far: (Option<IpAddr>, Option<u16>),
    port: u16,
    used: Instant,
    /// Remote endpoints that packets were sent to, with the time of the last one.
    sent: BTreeMap<SocketAddr, Instant>,
}

impl Nat {
    pub(crate) fn new(config: NatConfig, ip: IpAddr) -> Self {
        Self {
            config,
            ip,
            inside: BTreeMap::new(),
            counters: NatCounters::default(),
            mappings: Vec::new(),
            next_port: FIRST_PORT,
            first_expiry: Instant::ORIGIN,
        }
    }

    /// Sends a packet outwards. Returns the address that the remote endpoint sees.
    pub(crate) fn outbound(
        &mut self,
        now: Instant,
        inner: SocketAddr,
        to: SocketAddr,
    ) -> SocketAddr {
        self.expire(now);
        let far = self.config.mapping.of(to);
        let known =
            self.mappings.iter().position(|mapping| mapping.inner == inner && mapping.far == far);
        let at = known.unwrap_or_else(|| {
            self.counters.mapped += 1;
            let port = self.choose_port(inner);
            self.mappings.push(Mapping { inner, far, port, used: now, sent: BTreeMap::new() });
            self.mappings.len() - 1
        });
        let mapping = &mut self.mappings[at];
        mapping.used = now;
        mapping.sent.insert(to, now);
        SocketAddr::new(self.ip, mapping.port)
    }

    /// Receives a packet at a port. Returns the inner endpoint that receives it.
    pub(crate) fn inbound(
        &mut self,
        now: Instant,
        port: u16,
        from: SocketAddr,
    ) -> Option<SocketAddr> {
        self.expire(now);
        let filtering = self.config.filtering;
        let mut of_port = self.mappings.iter().filter(|mapping| mapping.port == port).peekable();
        if of_port.peek().is_none() {
            self.counters.unmapped += 1;
            return None;
        }
        let mut admits = of_port.filter(|mapping| {
            filtering == Dependence::Nothing
                || mapping.sent.keys().any(|sent| filtering.of(*sent) == filtering.of(from))
        });
        let inner = admits.next().map(|mapping| mapping.inner);
        match inner {
            Some(_) => self.counters.admitted += 1,
            None => self.counters.filtered += 1,
        }
        inner
    }

    /// Returns the host that has a port, regardless of the filter.
    pub(crate) fn owner(&self, port: u16) -> Option<HostId> {
        let mapping = self.mappings.iter().find(|mapping| mapping.port == port)?;
        self.inside.get(&mapping.inner).copied()
    }

    /// Clears all mappings, like a restart of the NAT.
    pub(crate) fn reboot(&mut self) {
        self.mappings.clear();
    }

    /// Returns whether every remote endpoint sees an inner endpoint at the same address.
    pub(crate) fn is_consistent(&self, inner: SocketAddr) -> bool {
        let alone = self.inside.keys().filter(|other| other.port() == inner.port()).count() == 1;
        self.config.mapping == Dependence::Nothing || (self.config.preserve_ports && alone)
    }

    fn choose_port(&mut self, inner: SocketAddr) -> u16 {
        let taken = |port| {
            self.mappings.iter().any(|mapping| mapping.port == port && mapping.inner != inner)
        };
        if self.config.preserve_ports && !taken(inner.port()) {
            return inner.port();
        }
        loop {
            let port = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.mappings.iter().any(|mapping| mapping.port == port) {
                return port;
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        // Not on every packet, because a NAT may have thousands of mappings.
        if now <= self.first_expiry {
            return;
        }
        let expiry = self.config.expiry;
        let before = self.mappings.len();
        self.mappings.retain(|mapping| now.since(mapping.used) <= expiry);
        self.counters.expired += (before - self.mappings.len()) as u64;
        for mapping in &mut self.mappings {
            mapping.sent.retain(|_, sent| now.since(*sent) <= expiry);
        }
        let oldest = self.mappings.iter().flat_map(|mapping| mapping.sent.values()).min();
        self.first_expiry = oldest.copied().unwrap_or(now) + expiry;
    }
}

/// One end of a path, as the oracle sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behind {
    /// Whether every remote endpoint sees the same address.
    pub(crate) consistent: bool,
    /// Remote endpoints that may send to it.
    pub(crate) filtering: Dependence,
}

impl Behind {
    /// Not behind any NAT.
    pub(crate) const NOTHING: Self = Self { consistent: true, filtering: Dependence::Nothing };

    /// Returns whether a handshake started by `from` can succeed if each side sends to the address
    /// at which a relay sees the other. Packets arrive at the port that the relay sees, and answers
    /// must come from there, so that it must be the port for every endpoint. The remote packets
    /// come from the address that was sent to, but from its port only if that is the same for every
    /// endpoint, too.
    fn admits(self, from: Self) -> bool {
        self.consistent && (self.filtering != Dependence::AddressAndPort || from.consistent)
    }
}

/// Returns whether two nodes that a relay introduces to each other can connect if both send (RFC
/// 5128 section 3, as a rule).
pub(crate) fn path_possible(a: Behind, b: Behind) -> bool {
    a.admits(b) || b.admits(a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Dependence::{Address, AddressAndPort, Nothing};

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn nat(mapping: Dependence, filtering: Dependence, preserve_ports: bool) -> Nat {
        let config = NatConfig { preserve_ports, ..NatConfig::new(mapping, filtering) };
        let mut nat = Nat::new(config, "40.0.0.1".parse().unwrap());
        nat.inside = BTreeMap::from([(addr("10.0.0.1:1314"), 0), (addr("10.0.0.2:1314"), 1)]);
        nat
    }

    #[test]
    fn mapping_depends_on_its_configured_part_of_the_endpoint() {
        let inner = addr("10.0.0.1:1314");
        for (mapping, same_host, other_host) in
            [(Nothing, true, true), (Address, true, false), (AddressAndPort, false, false)]
        {
            let mut nat = nat(mapping, Nothing, false);
            let seen = nat.outbound(at(0), inner, addr("1.1.1.1:1"));
            assert_eq!(seen.ip(), nat.ip);
            assert_ne!(seen.port(), 1314);
            assert_eq!(nat.outbound(at(0), inner, addr("1.1.1.1:1")), seen);
            assert_eq!(
                nat.outbound(at(0), inner, addr("1.1.1.1:2")) == seen,
                same_host,
                "{mapping:?}"
            );
            assert_eq!(
                nat.outbound(at(0), inner, addr("2.2.2.2:1")) == seen,
                other_host,
                "{mapping:?}"
            );
        }
    }

    #[test]
    fn filter_depends_on_its_configured_part_of_the_endpoint() {
        let inner = addr("10.0.0.1:1314");
        for (filtering, same_host, other_host) in
            [(Nothing, true, true), (Address, true, false), (AddressAndPort, false, false)]
        {
            let mut nat = nat(Nothing, filtering, false);
            let port = nat.outbound(at(0), inner, addr("1.1.1.1:1")).port();
            let admits = |nat: &mut Nat, from| nat.inbound(at(0), port, addr(from)) == Some(inner);
            assert!(admits(&mut nat, "1.1.1.1:1"));
            assert_eq!(admits(&mut nat, "1.1.1.1:2"), same_host, "{filtering:?}");
            assert_eq!(admits(&mut nat, "2.2.2.2:1"), other_host, "{filtering:?}");
            assert_eq!(nat.inbound(at(0), port + 9, addr("1.1.1.1:1")), None);
            assert_eq!(
                (nat.counters.unmapped, nat.counters.admitted + nat.counters.filtered),
                (1, 3)
            );
        }
    }

    #[test]
    fn ports_are_preserved_for_one_host_and_every_peer() {
        for mapping in Dependence::ALL {
            let mut nat = nat(mapping, AddressAndPort, true);
            for far in ["1.1.1.1:1", "1.1.1.1:2", "2.2.2.2:1"] {
                assert_eq!(
                    nat.outbound(at(0), addr("10.0.0.1:1314"), addr(far)),
                    addr("40.0.0.1:1314")
                );
            }
            let other = nat.outbound(at(0), addr("10.0.0.2:1314"), addr("1.1.1.1:1"));
            assert_ne!(other.port(), 1314);
            assert_eq!(nat.inbound(at(0), 1314, addr("2.2.2.2:1")), Some(addr("10.0.0.1:1314")));
            assert_eq!(
                nat.inbound(at(0), other.port(), addr("1.1.1.1:1")),
                Some(addr("10.0.0.2:1314"))
            );
            assert_eq!(
                (nat.owner(1314), nat.owner(other.port()), nat.owner(9)),
                (Some(0), Some(1), None)
            );
            assert!(
                mapping == Nothing || !nat.is_consistent(addr("10.0.0.1:1314")),
                "they share a port inside"
            );
        }
    }

    #[test]
    fn only_outgoing_packets_keep_a_mapping_alive() {
        let mut nat = nat(Nothing, AddressAndPort, false);
        let (inner, far) = (addr("10.0.0.1:1314"), addr("1.1.1.1:1"));
        let port = nat.outbound(at(0), inner, far).port();
        assert_eq!(nat.outbound(at(100), inner, addr("2.2.2.2:1")).port(), port);
        assert_eq!(nat.inbound(at(120), port, far), Some(inner));
        assert_eq!(
            nat.inbound(at(121), port, far),
            None,
            "the way through the filter is as old as what went there"
        );
        assert_eq!(nat.inbound(at(220), port, addr("2.2.2.2:1")), Some(inner));
        assert_eq!(nat.inbound(at(221), port, addr("2.2.2.2:1")), None);
        assert_eq!(nat.counters.expired, 1);
        assert_ne!(nat.outbound(at(222), inner, far).port(), port);
        nat.reboot();
        assert_eq!(nat.owner(port + 1), None);
    }

    /// RFC 5128 section 3.3 and the known table of NAT types: full cone, restricted cone,
    /// port-restricted cone, symmetric.
    #[test]
    fn oracle_matches_the_known_table() {
        let cone = |filtering| Behind { consistent: true, filtering };
        let symmetric = Behind { consistent: false, filtering: AddressAndPort };
        let kinds =
            [Behind::NOTHING, cone(Nothing), cone(Address), cone(AddressAndPort), symmetric];
        for (i, a) in kinds.into_iter().enumerate() {
            for (j, b) in kinds.into_iter().enumerate() {
                let impossible = i.max(j) == 4 && i.min(j) >= 3;
                assert_eq!(path_possible(a, b), !impossible, "{i} {j}");
            }
        }
    }
}
