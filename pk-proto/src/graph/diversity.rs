//! Limits of contacts of one network, so that one owner of many addresses cannot fill the graph
//! (docs/DESIGN.md, Network diversity).

use alloc::collections::BTreeMap;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::shares::decrement;
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

/// Counts the networks of all contacts of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Diversity {
    limits: DiversityLimits,
    in_bucket: BTreeMap<(BucketIndex, Network), usize>,
    in_table: BTreeMap<Network, usize>,
}

impl Diversity {
    pub(super) fn new(limits: DiversityLimits) -> Self {
        Self { limits, in_bucket: BTreeMap::new(), in_table: BTreeMap::new() }
    }

    /// Returns whether a contact of this bucket may get this address in addition to its others.
    pub(super) fn allows(
        &self,
        index: BucketIndex,
        contact: Option<&NodeContact>,
        address: &NodeAddress,
    ) -> bool {
        let Some(prefix) = limited(address) else { return true };
        let counted = contact.is_some_and(|contact| prefixes(contact).any(|known| known == prefix));
        let below = |count: Option<&usize>, limit: usize| {
            limit == 0 || count.is_none_or(|count| *count < limit)
        };
        counted
            || (below(self.in_bucket.get(&(index, prefix)), self.limits.per_bucket)
                && below(self.in_table.get(&prefix), self.limits.per_table))
    }

    /// Counts an added contact of this bucket.
    pub(super) fn add(&mut self, index: BucketIndex, contact: &NodeContact) {
        for prefix in distinct(contact) {
            *self.in_bucket.entry((index, prefix)).or_default() += 1;
            *self.in_table.entry(prefix).or_default() += 1;
        }
    }

    /// Counts a removed contact of this bucket.
    pub(super) fn remove(&mut self, index: BucketIndex, contact: &NodeContact) {
        for prefix in distinct(contact) {
            decrement(&mut self.in_bucket, &(index, prefix));
            decrement(&mut self.in_table, &prefix);
        }
    }
}

fn prefixes(contact: &NodeContact) -> impl Iterator<Item = Network> {
    contact.iter().filter_map(|(address, _)| limited(address))
}

/// Returns each network of a contact once.
fn distinct(contact: &NodeContact) -> impl Iterator<Item = Network> {
    prefixes(contact)
        .enumerate()
        .filter(|(i, prefix)| !prefixes(contact).take(*i).any(|p| p == *prefix))
        .map(|(_, p)| p)
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
