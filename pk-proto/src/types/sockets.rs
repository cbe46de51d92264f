//! Socket addresses in recordings, and their canonical form.
//!
//! serde's form of an IPv6 socket address has no scope id in binary formats, so that a link-local
//! address would be replayed as another one.

use core::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

/// Returns the canonical form of an address from the driver: IPv4-mapped IPv6 becomes IPv4, the
/// flow label is dropped, and only link-local addresses keep a scope.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match (addr, addr.ip().to_canonical()) {
        (SocketAddr::V6(addr), IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
            SocketAddrV6::new(ip, addr.port(), 0, addr.scope_id()).into()
        }
        (addr, ip) => SocketAddr::new(ip, addr.port()),
    }
}

/// First two groups of the addresses of relayed paths, in the range of unique local addresses (RFC
/// 4193): no interface has one, and no peer can name one.
const RELAYED: [u16; 2] = [0xfd70, 0x006b];

/// Returns the address of a relayed path. Paths over one connection have one `carrier`, and thus
/// one network (a /48).
pub(crate) fn relayed_address(carrier: u64, number: u64) -> SocketAddr {
    let [a, b] = RELAYED;
    let part = |shift: u32| (number >> shift) as u16;
    let carrier = carrier as u16;
    let ip = Ipv6Addr::new(a, b, carrier, 0, part(48), part(32), part(16), part(0));
    SocketAddr::new(IpAddr::V6(ip), 1)
}

/// Returns whether an address is that of a relayed path: it exists only between the core and the
/// transport of one node.
pub fn is_relayed_address(addr: &SocketAddr) -> bool {
    matches!(addr.ip(), IpAddr::V6(ip) if ip.segments().starts_with(&RELAYED))
}

/// Returns why an address cannot be dialed; `None` if it can.
pub(crate) fn undialable(addr: &SocketAddr) -> Option<&'static str> {
    let canonical = canonical(*addr);
    let ip = canonical.ip();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    match canonical {
        _ if canonical.port() == 0 => Some("the port is 0"),
        _ if is_relayed_address(&canonical) => {
            Some("the address is that of a relayed path of another node")
        }
        _ if ip.is_unspecified() || ip.is_multicast() || broadcast => {
            Some("no host can have this address")
        }
        SocketAddr::V6(v6) if ip_is_link_local(&ip) && v6.scope_id() == 0 => {
            Some("a link-local address needs the index of its interface, as in [fe80::1%2]:1314")
        }
        _ => None,
    }
}

fn ip_is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// An address with all its parts.
#[derive(Serialize, Deserialize)]
enum Whole {
    V4([u8; 4], u16),
    V6 { ip: [u8; 16], port: u16, flow: u32, scope: u32 },
}

impl From<SocketAddr> for Whole {
    fn from(addr: SocketAddr) -> Self {
        match addr {
            SocketAddr::V4(addr) => Self::V4(addr.ip().octets(), addr.port()),
            SocketAddr::V6(addr) => Self::V6 {
                ip: addr.ip().octets(),
                port: addr.port(),
                flow: addr.flowinfo(),
                scope: addr.scope_id(),
            },
        }
    }
}

impl From<Whole> for SocketAddr {
    fn from(whole: Whole) -> Self {
        match whole {
            Whole::V4(ip, port) => Self::new(IpAddr::from(ip), port),
            Whole::V6 { ip, port, flow, scope } => {
                SocketAddrV6::new(ip.into(), port, flow, scope).into()
            }
        }
    }
}

/// For `#[serde(with)]` on one address.
pub(crate) mod one {
    use core::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::types::sockets::Whole;

    pub(crate) fn serialize<S: Serializer>(
        addr: &SocketAddr,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Whole::from(*addr).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SocketAddr, D::Error> {
        Whole::deserialize(deserializer).map(SocketAddr::from)
    }
}

/// For `#[serde(with)]` on an address that may be missing.
pub(crate) mod maybe {
    use core::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::types::sockets::Whole;

    pub(crate) fn serialize<S: Serializer>(
        addr: &Option<SocketAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        addr.map(Whole::from).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SocketAddr>, D::Error> {
        Ok(Option::<Whole>::deserialize(deserializer)?.map(SocketAddr::from))
    }
}

/// For `#[serde(with)]` on a list of addresses.
pub(crate) mod many {
    use alloc::vec::Vec;
    use core::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::types::sockets::Whole;

    pub(crate) fn serialize<S: Serializer>(
        addrs: &[SocketAddr],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(addrs.iter().map(|addr| Whole::from(*addr)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<SocketAddr>, D::Error> {
        Ok(Vec::<Whole>::deserialize(deserializer)?.into_iter().map(SocketAddr::from).collect())
    }
}

/// For `#[serde(with)]` on the result of a name resolution.
pub(crate) mod answer {
    use alloc::string::String;
    use alloc::vec::Vec;
    use core::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::types::sockets::Whole;

    type Answer = Result<Vec<SocketAddr>, String>;

    pub(crate) fn serialize<S: Serializer>(
        answer: &Answer,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let whole =
            answer.as_ref().map(|addrs| addrs.iter().copied().map(Whole::from).collect::<Vec<_>>());
        whole.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Answer, D::Error> {
        let whole = Result::<Vec<Whole>, String>::deserialize(deserializer)?;
        Ok(whole.map(|addrs| addrs.into_iter().map(SocketAddr::from).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::input::Input;
    use crate::api::transport::DialFailure;
    use crate::types::id::EffectId;
    use alloc::vec::Vec;

    fn scoped(ip: &str, flow: u32, scope: u32) -> SocketAddr {
        SocketAddrV6::new(ip.parse().unwrap(), 9, flow, scope).into()
    }

    #[test]
    fn normal_form_is_one() {
        let plain = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (addr, normal) in [
            (scoped("::ffff:10.0.0.1", 0, 3), plain("10.0.0.1:9")),
            (scoped("fe80::1", 7, 3), scoped("fe80::1", 0, 3)),
            (scoped("2001:db8::1", 7, 3), plain("[2001:db8::1]:9")),
            (plain("10.0.0.1:9"), plain("10.0.0.1:9")),
        ] {
            assert_eq!(canonical(addr), normal, "{addr}");
            assert_eq!(canonical(normal), normal, "{addr}");
        }
    }

    #[test]
    fn undialable_addresses_are_refused_in_every_form() {
        for text in [
            "0.0.0.0:1",
            "[::]:1",
            "224.0.0.1:1",
            "[ff02::1]:1",
            "255.255.255.255:1",
            "[::ffff:0.0.0.0]:1",
            "[::ffff:224.0.0.1]:1",
            "[::ffff:255.255.255.255]:1",
            "10.0.0.1:0",
            "[fe80::1]:1",
            "[fd70:6b:1::1]:1",
        ] {
            assert!(undialable(&text.parse().unwrap()).is_some(), "{text}");
        }
        for text in [
            "10.0.0.1:1",
            "169.254.1.1:1",
            "[2001:db8::1]:1",
            "[fe80::1%2]:1",
            "[::ffff:10.0.0.1]:1",
        ] {
            assert_eq!(undialable(&text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn recording_keeps_scopes() {
        let addrs = Vec::from([
            scoped("fe80::1", 5, 2),
            scoped("fe80::1", 0, 3),
            "10.0.0.1:9".parse().unwrap(),
        ]);
        let resolved = Input::Resolved { id: EffectId(1), result: Ok(addrs.clone()) };
        let bytes = postcard::to_allocvec(&resolved).unwrap();
        assert_eq!(postcard::from_bytes::<Input>(&bytes), Ok(resolved));
        let failed = Input::Resolved { id: EffectId(1), result: Err("no".into()) };
        let bytes = postcard::to_allocvec(&failed).unwrap();
        assert_eq!(postcard::from_bytes::<Input>(&bytes), Ok(failed));
        let leads = DialFailure::LeadsTo(addrs);
        let bytes = postcard::to_allocvec(&leads).unwrap();
        assert_eq!(postcard::from_bytes::<DialFailure>(&bytes), Ok(leads));
    }
}
