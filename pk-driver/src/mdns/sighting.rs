//! Nodes that are found on the local network, and the addresses that can be dialed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use pk_proto::NodeId;

use super::interfaces::is_link_local;

/// The service of DNS-SD.
pub(super) const SERVICE: &str = "_polykey._udp.local.";
/// Maximum number of addresses of one node.
pub(super) const ADDRESSES: usize = 16;

/// What is reported of a node at a place.
pub(super) enum Sighting {
    Found(NodeId, BTreeSet<SocketAddr>),
    Lost(NodeId),
}

/// Returns the addresses that a node listening on `bound` can dial, at most `ADDRESSES`. Each
/// address has the number of the interface on which it was received, 0 if that is unknown.
/// Link-local addresses come last; those of IPv6 have this number as their scope.
pub(super) fn sockets(
    heard: impl IntoIterator<Item = (IpAddr, u32)>,
    port: u16,
    bound: IpAddr,
) -> BTreeSet<SocketAddr> {
    let dialable = |(ip, scope): (IpAddr, u32)| match ip {
        _ if bound.is_ipv4() && ip.is_ipv6() => None,
        _ if ip.is_unspecified() || ip.is_multicast() || port == 0 => None,
        IpAddr::V4(ip) if ip.is_broadcast() => None,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            (scope != 0).then(|| SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
        }
        ip => Some(SocketAddr::new(ip, port)),
    };
    let mut addrs: Vec<_> = heard.into_iter().filter_map(dialable).collect();
    addrs.sort_by_key(|addr| (is_link_local(&addr.ip()), *addr));
    addrs.into_iter().take(ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_dialable_addresses_are_accepted() {
        let usable = |text: &str, bound: &str| sockets([(ip(text), 0)], 1, ip(bound)).len() == 1;
        for good in ["10.0.0.1", "127.0.0.1", "169.254.1.1", "::1", "2001:db8::1", "fd00::1"] {
            assert!(usable(good, "::"), "{good}");
            assert_eq!(usable(good, "0.0.0.0"), !good.contains(':'), "{good}");
        }
        for bad in ["0.0.0.0", "224.0.0.251", "255.255.255.255", "::", "fe80::1", "ff02::fb"] {
            assert!(!usable(bad, "::"), "{bad}");
        }
        assert!(sockets([(ip("10.0.0.1"), 0)], 0, ip("::")).is_empty(), "port 0");
        let scoped = sockets([(ip("fe80::1"), 3)], 1, ip("::"));
        assert_eq!(scoped.first().map(ToString::to_string).as_deref(), Some("[fe80::1%3]:1"));
    }

    #[test]
    fn many_link_local_addresses_do_not_displace_others() {
        let heard = (1..40).map(|n| format!("169.254.0.{n}")).chain(["192.168.0.1".to_owned()]);
        let addrs = sockets(heard.map(|text| (ip(&text), 0)), 1, ip("::"));
        assert!(
            addrs.len() == ADDRESSES && addrs.contains(&"192.168.0.1:1".parse().unwrap()),
            "{addrs:?}"
        );
    }
}
