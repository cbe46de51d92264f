//! Reachability and links between hosts. [`Network::leave`] and [`Network::enter`] are the only
//! places that map an address to a host and determine the source address that it sees; NATs are
//! applied there.

pub(crate) mod link;
pub(crate) mod nat;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use pk_proto::Instant;

use crate::host::id::HostId;
use crate::network::link::Link;
use crate::network::nat::{Behind, Nat, NatConfig, NatCounters, NatId, path_possible};

/// Addresses, links, partitions and names.
#[derive(Debug, Clone, Default)]
pub struct Network {
    link: Link,
    links: BTreeMap<(HostId, HostId), Link>,
    /// Distance of each host that has a place, added to the latency of its links.
    places: BTreeMap<HostId, Place>,
    /// Directed: nothing is delivered from the first to the second.
    cut: BTreeSet<(HostId, HostId)>,
    /// Groups of hosts, for each partition: nothing is delivered between hosts of different ones.
    partitions: Vec<BTreeMap<HostId, usize>>,
    /// Pairs that no partition separates.
    open: BTreeSet<(HostId, HostId)>,
    addresses: BTreeMap<SocketAddr, HostId>,
    names: BTreeMap<String, Result<Vec<IpAddr>, String>>,
    unreachable: BTreeSet<IpAddr>,
    nats: Vec<Nat>,
    nat_of: BTreeMap<IpAddr, NatId>,
    /// Number of hosts that did not fit into the /24 of their NAT.
    crowded: u32,
    /// Hosts that are behind a NAT.
    behind: BTreeMap<HostId, NatId>,
}

/// Where a host is, on a plane whose distances are latencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// First coordinate, in microseconds.
    pub x: u32,
    /// Second coordinate, in microseconds.
    pub y: u32,
}

impl Place {
    /// Returns the one-way latency of the way between two places.
    pub fn distance(self, other: Self) -> Duration {
        let [x, y] = [self.x.abs_diff(other.x), self.y.abs_diff(other.y)].map(u64::from);
        Duration::from_micros((x * x).saturating_add(y * y).isqrt())
    }
}

/// Destination of a packet to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: HostId,
    /// Source address that the receiver sees.
    pub(crate) source: SocketAddr,
}

impl Network {
    /// Sets the link of every pair without its own.
    pub fn set_default_link(&mut self, link: Link) {
        self.link = link;
    }

    /// Sets the link between two hosts.
    pub fn set_link(&mut self, a: HostId, b: HostId, link: Link) {
        self.links.insert((a.min(b), a.max(b)), link);
    }

    /// Returns the link between two hosts.
    pub fn link(&self, a: HostId, b: HostId) -> Link {
        let own = if self.links.is_empty() { None } else { self.links.get(&(a.min(b), a.max(b))) };
        match own {
            Some(link) => *link,
            None if self.places.is_empty() => self.link,
            None => {
                let far = [a, b].map(|host| self.places.get(&host));
                let [Some(a), Some(b)] = far else { return self.link };
                Link { latency: self.link.latency + a.distance(*b), ..self.link }
            }
        }
    }

    /// Sets where a host is. The latency of a link without its own settings is that of the default
    /// link and the distance of its hosts.
    pub fn set_place(&mut self, host: HostId, place: Place) {
        self.places.insert(host, place);
    }

    /// Sets what a name resolves to: addresses (possibly none), or an error. Other names do not
    /// exist.
    pub fn set_name(&mut self, name: &str, result: Result<Vec<IpAddr>, String>) {
        self.names.insert(name.to_owned(), result);
    }

    /// Dials to this address fail at once, as without a route. Dials to other unused addresses time
    /// out.
    pub fn set_unreachable(&mut self, ip: IpAddr) {
        self.unreachable.insert(ip);
    }

    /// Returns whether nothing is delivered from one host to the other.
    pub fn is_cut(&self, from: HostId, to: HostId) -> bool {
        if !self.cut.is_empty() && self.cut.contains(&(from, to)) {
            return true;
        }
        let separates =
            |groups: &BTreeMap<HostId, usize>| match (groups.get(&from), groups.get(&to)) {
                (Some(a), Some(b)) => a != b,
                _ => false,
            };
        self.partitions.iter().any(separates) && !self.open.contains(&(from, to))
    }

    pub(crate) fn cut(&mut self, from: HostId, to: HostId) {
        self.cut.insert((from, to));
    }

    /// Separates groups of hosts. Costs as much as the hosts, not as their pairs.
    pub(crate) fn partition(&mut self, groups: &[&[HostId]]) {
        let of_group = |(group, hosts): (usize, &&[HostId])| {
            hosts.iter().map(move |host| (*host, group)).collect::<Vec<_>>()
        };
        self.partitions.push(groups.iter().enumerate().flat_map(of_group).collect());
        self.open.clear();
    }

    /// Restores the path between two hosts.
    pub(crate) fn heal_pair(&mut self, a: HostId, b: HostId) {
        for pair in [(a, b), (b, a)] {
            self.cut.remove(&pair);
            if !self.partitions.is_empty() {
                self.open.insert(pair);
            }
        }
    }

    /// Removes every cut and partition. Returns the hosts that had one.
    pub(crate) fn heal(&mut self) -> BTreeSet<HostId> {
        let mut hosts: BTreeSet<_> = self.cut.iter().flat_map(|(a, b)| [*a, *b]).collect();
        hosts.extend(self.partitions.iter().flat_map(|groups| groups.keys().copied()));
        self.cut.clear();
        self.partitions.clear();
        self.open.clear();
        hosts
    }

    pub(crate) fn add_address(&mut self, addr: SocketAddr, host: HostId) {
        self.addresses.insert(addr, host);
    }

    pub(crate) fn remove_address(&mut self, addr: SocketAddr) {
        self.addresses.remove(&addr);
    }

    pub(crate) fn is_unreachable(&self, ip: IpAddr) -> bool {
        self.unreachable.contains(&ip)
    }

    pub(crate) fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        self.names.get(name).cloned().unwrap_or_else(|| Err("no such host".to_owned()))
    }

    // -- NATs

    /// Returns the counters of a NAT.
    pub fn nat_counters(&self, nat: NatId) -> NatCounters {
        self.nats[nat].counters
    }

    /// Returns the outer address of a NAT.
    pub fn nat_ip(&self, nat: NatId) -> IpAddr {
        self.nats[nat].ip
    }

    /// Returns whether a host is behind a NAT.
    pub fn is_behind_nat(&self, host: HostId) -> bool {
        self.behind.contains_key(&host)
    }

    /// Clears the mappings of a NAT, like a restart: outgoing packets get new ports.
    pub fn reboot_nat(&mut self, nat: NatId) {
        self.nats[nat].reboot();
    }

    /// Returns whether two hosts that know each other through a third, public one can connect: by
    /// the rules, not by trying.
    pub fn direct_path_possible(&self, a: HostId, b: HostId) -> bool {
        let shared = self.behind.get(&a).filter(|nat| self.behind.get(&b) == Some(*nat));
        let reach = shared.is_none_or(|nat| self.nats[*nat].config.hairpinning);
        reach && path_possible(self.seen_as(a), self.seen_as(b))
    }

    fn seen_as(&self, host: HostId) -> Behind {
        let Some(nat) = self.behind.get(&host).map(|nat| &self.nats[*nat]) else {
            return Behind::NOTHING;
        };
        let inner = nat.inside.iter().find(|(_, inside)| **inside == host).map(|(inner, _)| *inner);
        Behind {
            consistent: inner.is_some_and(|inner| nat.is_consistent(inner)),
            filtering: nat.config.filtering,
        }
    }

    /// Each NAT has its own /24, as hosts on the Internet have.
    pub(crate) fn add_nat(&mut self, config: NatConfig) -> NatId {
        let [.., middle, low] = self.nats.len().to_be_bytes();
        let ip = IpAddr::V4(Ipv4Addr::new(60, middle, low, 1));
        self.nats.push(Nat::new(config, ip));
        self.nat_of.insert(ip, self.nats.len() - 1);
        self.nats.len() - 1
    }

    /// Puts a host with this port behind a NAT. Gives its address there.
    pub(crate) fn put_behind(&mut self, host: HostId, port: u16, id: NatId) -> SocketAddr {
        let nat = &mut self.nats[id];
        let [.., middle, low] = id.to_be_bytes();
        let ip = match u8::try_from(nat.inside.len() + 2) {
            Ok(place) if place < u8::MAX => Ipv4Addr::new(10, middle, low, place),
            // Addresses of 172.16.0.0/12, one after the other.
            _ => {
                self.crowded += 1;
                Ipv4Addr::from(0xac10_0000 + self.crowded % (1 << 20))
            }
        };
        let inner = SocketAddr::new(ip.into(), port);
        nat.inside.insert(inner, host);
        self.behind.insert(host, id);
        self.addresses.insert(inner, host);
        inner
    }

    /// Whether packets of a host to an address pass a NAT.
    pub(crate) fn passes_nat(&self, host: HostId, to: SocketAddr) -> bool {
        if self.nats.is_empty() {
            return false;
        }
        let outer = self.nat_of.contains_key(&to.ip());
        outer || self.behind.get(&host).is_some_and(|nat| !self.nats[*nat].inside.contains_key(&to))
    }

    /// A packet of a host leaves for an address: the source address that is seen there. `None` if
    /// there is no way.
    pub(crate) fn leave(
        &mut self,
        now: Instant,
        host: HostId,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        let nat = self.behind.get(&host).map(|nat| &mut self.nats[*nat]);
        match nat {
            Some(nat) if nat.inside.contains_key(&to) => Some(from),
            Some(nat) if nat.ip == to.ip() && !nat.config.hairpinning => None,
            Some(nat) => Some(nat.outbound(now, from, to)),
            None => Some(from),
        }
    }

    /// A packet that has left reaches its address: the host there, and its own name for the
    /// address.
    pub(crate) fn enter(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<(HostId, SocketAddr)> {
        if let Some(nat) = self.nat_of.get(&to.ip()) {
            let nat = &mut self.nats[*nat];
            let inner = nat.inbound(now, to.port(), from)?;
            return Some((*nat.inside.get(&inner)?, inner));
        }
        let host = *self.addresses.get(&to)?;
        // What is behind a NAT has its inner address for its neighbours only.
        let neighbours =
            self.behind.get(&host).is_none_or(|nat| self.nats[*nat].inside.contains_key(&from));
        neighbours.then_some((host, to))
    }

    /// Returns the host that has an address, whether packets arrive there or not.
    pub(crate) fn owner(&self, addr: SocketAddr) -> Option<HostId> {
        match self.nat_of.get(&addr.ip()) {
            Some(nat) => self.nats[*nat].owner(addr.port()),
            None => self.addresses.get(&addr).copied(),
        }
    }

    /// The source address of a packet, of those that a host has.
    pub(crate) fn source(sources: &[SocketAddr], to: SocketAddr) -> Option<SocketAddr> {
        sources.iter().find(|source| source.is_ipv4() == to.is_ipv4()).copied()
    }

    /// Returns where a packet from one of `sources` to `addr` arrives if no NAT is on the path;
    /// `None` if no host has the address.
    pub(crate) fn route(&self, sources: &[SocketAddr], addr: SocketAddr) -> Option<Route> {
        let to = *self.addresses.get(&addr)?;
        let source = Self::source(sources, addr)?;
        let neighbours =
            self.behind.get(&to).is_none_or(|nat| self.nats[*nat].inside.contains_key(&source));
        neighbours.then_some(Route { to, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_is_symmetric_and_cut_is_directed() {
        let mut network = Network::default();
        network.set_link(2, 1, Link::ms(7));
        assert_eq!(
            (network.link(1, 2), network.link(2, 1), network.link(1, 3)),
            (Link::ms(7), Link::ms(7), Link::ms(10))
        );
        network.cut(1, 2);
        assert!(network.is_cut(1, 2) && !network.is_cut(2, 1));
        drop(network.heal());
        assert!(!network.is_cut(1, 2));
    }

    #[test]
    fn route_needs_a_host_and_a_source_of_the_same_family() {
        let mut network = Network::default();
        let v4: SocketAddr = "10.0.0.1:1".parse().unwrap();
        let v6: SocketAddr = "[fd00::1]:1".parse().unwrap();
        network.add_address(v6, 4);
        assert_eq!(network.route(&[v4, v6], v6), Some(Route { to: 4, source: v6 }));
        assert_eq!(network.route(&[v4], v6), None);
        assert_eq!(network.route(&[v4], v4), None);
    }
}
