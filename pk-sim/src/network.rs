//! Who can reach whom, where, and over which link. NATs will stand in [`Network::route`], the one place that turns an address
//! into a host and says what source address that host sees.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::HostId;
use crate::link::Link;

/// Addresses, links, partitions and names.
#[derive(Debug, Clone, Default)]
pub struct Network {
    link: Link,
    links: BTreeMap<(HostId, HostId), Link>,
    /// Directed: nothing gets from the first to the second.
    cut: BTreeSet<(HostId, HostId)>,
    addresses: BTreeMap<SocketAddr, HostId>,
    names: BTreeMap<String, Result<Vec<IpAddr>, String>>,
    unreachable: BTreeSet<IpAddr>,
}

/// Where a packet to an address ends up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: HostId,
    /// The source address that the receiver sees.
    pub(crate) source: SocketAddr,
}

impl Network {
    /// The link of every pair that has none of its own.
    pub fn set_default_link(&mut self, link: Link) {
        self.link = link;
    }

    /// The link between two hosts.
    pub fn set_link(&mut self, a: HostId, b: HostId, link: Link) {
        self.links.insert((a.min(b), a.max(b)), link);
    }

    /// The link between two hosts.
    pub fn link(&self, a: HostId, b: HostId) -> Link {
        self.links.get(&(a.min(b), a.max(b))).copied().unwrap_or(self.link)
    }

    /// What a name resolves to from now on: addresses (none is legal), or an error. Other names do not exist.
    pub fn set_name(&mut self, name: &str, result: Result<Vec<IpAddr>, String>) {
        self.names.insert(name.to_owned(), result);
    }

    /// Dials to this address fail at once, as without a route to it. Others that nobody has are silent until the deadline.
    pub fn set_unreachable(&mut self, ip: IpAddr) {
        self.unreachable.insert(ip);
    }

    /// Whether nothing gets from the one host to the other.
    pub fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.cut.contains(&(from, to))
    }

    pub(crate) fn cut(&mut self, from: HostId, to: HostId) {
        self.cut.insert((from, to));
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
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

    /// Where a packet from one of `sources` to `addr` ends up; `None` if nobody is there.
    pub(crate) fn route(&self, sources: &[SocketAddr], addr: SocketAddr) -> Option<Route> {
        let to = *self.addresses.get(&addr)?;
        let source = *sources.iter().find(|source| source.is_ipv4() == addr.is_ipv4())?;
        Some(Route { to, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_no_direction_and_a_cut_has_one() {
        let mut network = Network::default();
        network.set_link(2, 1, Link::ms(7));
        assert_eq!(
            (network.link(1, 2), network.link(2, 1), network.link(1, 3)),
            (Link::ms(7), Link::ms(7), Link::ms(10))
        );
        network.cut(1, 2);
        assert!(network.is_cut(1, 2) && !network.is_cut(2, 1));
        network.heal();
        assert!(!network.is_cut(1, 2));
    }

    #[test]
    fn a_route_needs_a_host_and_a_source_of_the_same_family() {
        let mut network = Network::default();
        let v4: SocketAddr = "10.0.0.1:1".parse().unwrap();
        let v6: SocketAddr = "[fd00::1]:1".parse().unwrap();
        network.add_address(v6, 4);
        assert_eq!(network.route(&[v4, v6], v6), Some(Route { to: 4, source: v6 }));
        assert_eq!(network.route(&[v4], v6), None);
        assert_eq!(network.route(&[v4], v4), None);
    }
}
