//! The network of an address: the unit by which limits per source are counted.

use core::cmp::Ordering;
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::address::{Host, NodeAddress};

/// A /24 of IPv4 or a /48 of IPv6: the smallest block that one owner of addresses usually has.
///
/// A node id costs nothing, an address does. Limits per node are therefore combined with limits per
/// network. The rule is the same for all unicast addresses. A host, a private LAN and the hosts
/// behind one NAT are one network each, or a few; limits are therefore shares of a table
/// ([`Config::network_share`](crate::Config::network_share)) and not small numbers. Only the graph,
/// whose contacts are sent to others, also limits networks by number, and only those that are
/// globally routable ([`DiversityLimits`](crate::DiversityLimits)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Network {
    /// First three bytes of an IPv4 address.
    V4([u8; 3]),
    /// First six bytes of an IPv6 address.
    V6([u8; 6]),
}

impl Network {
    /// Returns the network of an IP address; an IPv4-mapped one is IPv4.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }

    /// Returns a number in the order of networks: IPv4 first, then by the bytes.
    fn number(&self) -> u64 {
        match *self {
            Self::V4([a, b, c]) => u64::from_be_bytes([0, 0, 0, 0, 0, a, b, c]),
            Self::V6([a, b, c, d, e, f]) => u64::from_be_bytes([0, 1, a, b, c, d, e, f]),
        }
    }

    /// Returns the network of the address of a node; `None` for a host name.
    pub fn of_address(address: &NodeAddress) -> Option<Self> {
        match address.host {
            Host::Ip(ip) => Some(Self::of(ip)),
            Host::Zoned(ip, _) => Some(Self::of(ip.into())),
            Host::Name(_) => None,
        }
    }
}

/// By one number each, because tables of networks compare a lot.
impl Ord for Network {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for Network {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_24_and_48_bits() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("192.0.2.254"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.9"));
        assert_eq!(of("2001:db8:1:ffff::1"), of("2001:db8:1::2"));
        assert_ne!(of("2001:db8:1::1"), of("2001:db8:2::1"));
        let of_address = |text: &str| Network::of_address(&text.parse().unwrap());
        assert_eq!(of_address("192.0.2.7:1"), Some(of("192.0.2.1")));
        assert_eq!(of_address("[fe80::1%2]:1"), Some(of("fe80::2")));
        assert_eq!(of_address("node.example:1"), None);
    }

    #[test]
    fn networks_are_ordered_by_version_then_by_bytes() {
        let mut networks = [
            Network::V6([0, 0, 0, 0, 0, 1]),
            Network::V4([9, 0, 0]),
            Network::V6([1, 0, 0, 0, 0, 0]),
            Network::V4([0, 255, 255]),
            Network::V6([0; 6]),
            Network::V4([255; 3]),
        ];
        networks.sort();
        assert_eq!(
            networks,
            [
                Network::V4([0, 255, 255]),
                Network::V4([9, 0, 0]),
                Network::V4([255; 3]),
                Network::V6([0; 6]),
                Network::V6([0, 0, 0, 0, 0, 1]),
                Network::V6([1, 0, 0, 0, 0, 0]),
            ]
        );
    }
}
