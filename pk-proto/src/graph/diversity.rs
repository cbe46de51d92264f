//! Limits of contacts of one network, so that one owner of many addresses cannot fill the graph
//! (docs/DESIGN.md, Network diversity).

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::RangeInclusive;

use crate::types::address::{Host, NodeAddress};
use crate::types::contact::NodeContact;
use crate::types::id::BucketIndex;
use crate::types::network::Network;

/// Returns the network of an address if it is limited: if it is globally routable.
fn limited(address: &NodeAddress) -> Option<Network> {
    match address.host {
        Host::Ip(ip) if is_global_unicast(ip) => Some(Network::of(ip)),
        _ => None,
    }
}

/// Limits per network; 0 disables a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiversityLimits {
    /// Contacts of one network in one bucket.
    pub per_bucket: usize,
    /// Contacts of one network in the whole graph.
    pub per_table: usize,
}

/// Counts the networks of the contacts of a graph, if there is a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Diversity {
    limits: DiversityLimits,
    /// Contacts of each network in each bucket, at most 255: see [`Place`]. The buckets of one
    /// network are adjacent.
    counts: BTreeMap<Place, u8>,
}

/// A network and a bucket in one number, with the bucket in the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64);

impl Place {
    fn new(network: Network, index: BucketIndex) -> Self {
        let network = match network {
            Network::V4([a, b, c]) => u64::from_be_bytes([0, 0, 0, 0, 0, a, b, c]),
            Network::V6([a, b, c, d, e, f]) => u64::from_be_bytes([0, 1, a, b, c, d, e, f]),
        };
        Self(network << 8 | u64::from(index.0))
    }

    /// Returns the places of all buckets of this network.
    fn network(self) -> RangeInclusive<Self> {
        Self(self.0 & !0xff)..=Self(self.0 | 0xff)
    }
}

impl Diversity {
    pub(super) fn new(limits: DiversityLimits) -> Self {
        Self { limits, counts: BTreeMap::new() }
    }

    /// Returns whether a contact of this bucket may get this address in addition to its others.
    pub(super) fn allows(
        &self,
        index: BucketIndex,
        contact: Option<&NodeContact>,
        address: &NodeAddress,
    ) -> bool {
        if !self.is_limited() {
            return true;
        }
        let Some(network) = limited(address) else { return true };
        if contact.is_some_and(|contact| networks(contact).any(|known| known == network)) {
            return true;
        }
        let at = Place::new(network, index);
        let (mut in_bucket, mut in_table) = (0, 0);
        for (place, count) in self.counts.range(at.network()) {
            if *place == at {
                in_bucket = usize::from(*count);
            }
            in_table += usize::from(*count);
        }
        let below = |count: usize, limit: usize| limit == 0 || count < limit;
        below(in_bucket, self.limits.per_bucket) && below(in_table, self.limits.per_table)
    }

    /// Counts an added contact of this bucket.
    pub(super) fn add(&mut self, index: BucketIndex, contact: &NodeContact) {
        if self.is_limited() {
            for network in distinct(contact) {
                let count = self.counts.entry(Place::new(network, index)).or_default();
                *count = count.saturating_add(1);
            }
        }
    }

    /// Counts a removed contact of this bucket.
    pub(super) fn remove(&mut self, index: BucketIndex, contact: &NodeContact) {
        if self.is_limited() {
            for network in distinct(contact) {
                if let Entry::Occupied(mut count) = self.counts.entry(Place::new(network, index)) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
            }
        }
    }

    fn is_limited(&self) -> bool {
        self.limits.per_bucket != 0 || self.limits.per_table != 0
    }
}

fn networks(contact: &NodeContact) -> impl Iterator<Item = Network> {
    contact.iter().filter_map(|(address, _)| limited(address))
}

/// Returns each network of a contact once.
fn distinct(contact: &NodeContact) -> impl Iterator<Item = Network> {
    networks(contact)
        .enumerate()
        .filter(|(i, network)| !networks(contact).take(*i).any(|other| other == *network))
        .map(|(_, network)| network)
}

/// Returns whether an address is unicast and globally routable (IANA's special-purpose registries,
/// RFC 6890).
pub(crate) fn is_global_unicast(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => is_global_v6(ip),
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmarking = a == 198 && (b == 18 || b == 19);
    let protocols = a == 192 && b == 0 && c == 0;
    !(a == 0
        || a >= 224
        || shared
        || benchmarking
        || protocols
        || ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation())
}

fn is_global_v6(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    let documentation = a == 0x2001 && b == 0x0db8;
    // 2000::/3 is what IANA has assigned (RFC 4291 section 2.4).
    (0x2000..0x4000).contains(&a) && !documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_routed_globally_is_limited() {
        for (ip, global) in [
            ("8.8.8.8", true),
            ("2606:4700::1", true),
            ("::ffff:8.8.8.8", true),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("192.0.0.1", false),
            ("192.0.2.1", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("224.0.0.1", false),
            ("0.0.0.0", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("2001:db8::1", false),
            ("::ffff:10.0.0.1", false),
        ] {
            assert_eq!(is_global_unicast(ip.parse().unwrap()), global, "{ip}");
        }
    }
}
