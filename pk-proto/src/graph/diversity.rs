//! Limits of contacts of one network, so that one owner of many addresses cannot fill the graph
//! (docs/DESIGN.md, Network diversity).

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
    /// Each network of each contact, in ascending order. A graph has few hundred contacts, so that
    /// the entries behind a new one are moved faster than a tree is changed.
    places: Vec<Place>,
}

/// A network and a bucket in one number, with the bucket in the last byte: the buckets of a network
/// are adjacent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

impl Place {
    fn new(network: Network, index: BucketIndex) -> Self {
        let network = match network {
            Network::V4([a, b, c]) => u64::from_be_bytes([0, 0, 0, 0, 0, a, b, c]),
            Network::V6([a, b, c, d, e, f]) => u64::from_be_bytes([0, 1, a, b, c, d, e, f]),
        };
        Self(network << 8 | u64::from(index.0))
    }

    /// Returns the first and the last place of this network.
    fn network(self) -> (Self, Self) {
        (Self(self.0 & !0xff), Self(self.0 | 0xff))
    }
}

impl Diversity {
    pub(super) fn new(limits: DiversityLimits) -> Self {
        Self { limits, places: Vec::new() }
    }

    /// Returns what an address of a contact of this bucket counts for; `None` if it is not limited.
    pub(super) fn place(&self, index: BucketIndex, address: &NodeAddress) -> Option<Place> {
        let is_limited = self.limits.per_bucket != 0 || self.limits.per_table != 0;
        limited(address).filter(|_| is_limited).map(|network| Place::new(network, index))
    }

    /// Returns whether there is room for one more contact of a network.
    pub(super) fn has_room(&self, place: Place) -> bool {
        let is_below = |(first, last): (Place, Place), limit: usize| {
            let before = self.places.partition_point(|other| *other < first);
            let counted = self.places.iter().skip(before).take_while(|other| **other <= last);
            limit == 0 || counted.take(limit).count() < limit
        };
        is_below((place, place), self.limits.per_bucket)
            && is_below(place.network(), self.limits.per_table)
    }

    /// Counts one more contact of a network.
    pub(super) fn insert(&mut self, place: Place) {
        let at = self.places.partition_point(|other| *other < place);
        if self.places.len() == self.places.capacity() {
            self.places.reserve_exact(self.places.len() / 4 + 4);
        }
        self.places.insert(at, place);
    }

    /// Counts an added contact of this bucket.
    pub(super) fn add(&mut self, index: BucketIndex, contact: &NodeContact) {
        self.distinct(index, contact).into_iter().for_each(|place| self.insert(place));
    }

    /// Counts a removed contact of this bucket.
    pub(super) fn remove(&mut self, index: BucketIndex, contact: &NodeContact) {
        for place in self.distinct(index, contact) {
            if let Ok(at) = self.places.binary_search(&place) {
                self.places.remove(at);
            }
        }
    }

    /// Returns each network of a contact once.
    fn distinct(&self, index: BucketIndex, contact: &NodeContact) -> BTreeSet<Place> {
        contact.iter().filter_map(|(address, _)| self.place(index, address)).collect()
    }

    /// Returns whether a contact counts for a network already.
    pub(super) fn counts(&self, index: BucketIndex, contact: &NodeContact, place: Place) -> bool {
        contact.iter().any(|(address, _)| self.place(index, address) == Some(place))
    }
}

/// Returns whether an address is unicast and globally routable (IANA's special-purpose registries,
/// RFC 6890).
pub fn is_global_unicast(ip: IpAddr) -> bool {
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
    fn contacts_of_a_network_are_counted_in_each_bucket_and_in_all() {
        let mut diversity = Diversity::new(DiversityLimits { per_bucket: 2, per_table: 3 });
        let place = |diversity: &Diversity, bucket, text: &str| {
            diversity.place(BucketIndex(bucket), &text.parse().unwrap()).unwrap()
        };
        let here = place(&diversity, 255, "8.8.8.8:1");
        let other = place(&diversity, 254, "8.8.8.9:1");
        for (bucket, text) in [(255, "8.8.8.1:1"), (255, "8.8.7.1:1"), (255, "8.8.8.2:1")] {
            assert!(diversity.has_room(here));
            diversity.insert(place(&diversity, bucket, text));
        }
        assert_eq!([here, other].map(|at| diversity.has_room(at)), [false, true]);
        diversity.insert(other);
        assert!(!diversity.has_room(place(&diversity, 1, "8.8.8.7:1")), "in all buckets");
        assert!(diversity.has_room(place(&diversity, 255, "[2001:4860::1]:1")));
        assert_eq!(diversity.place(BucketIndex(255), &"10.0.0.1:1".parse().unwrap()), None);
        let none = Diversity::new(DiversityLimits { per_bucket: 0, per_table: 0 });
        assert_eq!(none.place(BucketIndex(255), &"8.8.8.8:1".parse().unwrap()), None);
    }

    #[test]
    fn only_globally_routable_addresses_are_limited() {
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
