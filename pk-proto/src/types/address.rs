//! Addresses of nodes: hosts, ports, their canonical text, and the data of an address.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::sockets::{canonical, undialable};
use super::time::UnixMillis;

/// A DNS name in canonical form: lower case, no trailing dot, at most 253 characters (RFC 1035
/// section 2.3.4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hostname(String);

impl Hostname {
    /// Returns the canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Hostname> for String {
    fn from(name: Hostname) -> Self {
        name.0
    }
}

impl TryFrom<String> for Hostname {
    type Error = ParseAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Hostname {
    type Err = ParseAddressError;

    /// Accepts letters, digits, `-` and `_` in labels of 1 to 63 characters (RFC 1123 section 2.1;
    /// `_` occurs in practice).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // A last label of digits only is a mistyped IPv4 address, never a name (RFC 3696 section
        // 2).
        let numeric_end =
            name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if name.len() > 253 || numeric_end || !name.split('.').all(label_ok) {
            return Err(ParseAddressError::Host(excerpt(text)));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

/// Host of an address, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Host {
    /// An IP address; never an IPv4-mapped IPv6 one.
    Ip(IpAddr),
    /// A link-local IPv6 address with its zone (RFC 4007 section 11).
    Zoned(Ipv6Addr, String),
    /// A name that the driver resolves.
    Name(Hostname),
}

impl Host {
    /// Returns the canonical form of an address: IPv4-mapped IPv6 becomes IPv4.
    pub fn from_ip(ip: IpAddr) -> Self {
        Self::Ip(ip.to_canonical())
    }

    /// Returns the canonical form of a host: IPv4-mapped IPv6 becomes IPv4, and only link-local
    /// addresses keep a zone.
    #[must_use]
    pub fn canonical(self) -> Self {
        match self {
            Self::Ip(ip) => Self::from_ip(ip),
            Self::Zoned(ip, zone) if ip.is_unicast_link_local() => match zone.parse::<u32>() {
                Ok(0) => Self::Ip(IpAddr::V6(ip)),
                Ok(scope) => Self::Zoned(ip, scope.to_string()),
                Err(_) => Self::Zoned(ip, zone),
            },
            Self::Zoned(ip, _) => Self::from_ip(IpAddr::V6(ip)),
            Self::Name(name) => Self::Name(name),
        }
    }
}

impl fmt::Display for Host {
    /// IPv4 dotted; IPv6 lower case and fully expanded, as in the keys of the reference; names
    /// unchanged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Ip(IpAddr::V6(ip)) => expanded(f, *ip),
            Self::Zoned(ip, zone) => {
                expanded(f, *ip)?;
                write!(f, "%{zone}")
            }
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

fn expanded(f: &mut fmt::Formatter<'_>, ip: Ipv6Addr) -> fmt::Result {
    for (i, segment) in ip.segments().into_iter().enumerate() {
        let colon = if i == 0 { "" } else { ":" };
        write!(f, "{colon}{segment:x}")?;
    }
    Ok(())
}

impl FromStr for Host {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(ip) = parse_ipv4(text) {
            return Ok(Self::Ip(IpAddr::V4(ip)));
        }
        if let Ok(ip) = text.parse::<Ipv6Addr>() {
            return Ok(Self::from_ip(IpAddr::V6(ip)));
        }
        if let Some((ip, zone)) = text.split_once('%') {
            let zone_ok = (1..=32).contains(&zone.len())
                && zone.bytes().all(|b| b.is_ascii_graphic() && b != b'%');
            return match ip.parse::<Ipv6Addr>() {
                Ok(ip) if zone_ok => Ok(Self::Zoned(ip, zone.to_owned()).canonical()),
                _ => Err(ParseAddressError::Host(excerpt(text))),
            };
        }
        text.parse().map(Self::Name)
    }
}

/// Parses dotted decimal. Leading zeros are decimal, as in the reference (`010.000.000.001` is
/// `10.0.0.1`).
fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if !(1..=3).contains(&part.len()) || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Canonical host.
    pub host: Host,
    /// UDP port; 1 to 65535 for an address to dial.
    pub port: u16,
}

impl NodeAddress {
    /// Returns the address of a socket: IPv4-mapped IPv6 becomes IPv4, the flow label is dropped,
    /// the scope of a link-local address becomes its zone.
    pub fn from_socket(addr: SocketAddr) -> Self {
        let host = match canonical(addr) {
            SocketAddr::V6(addr) if addr.scope_id() != 0 => {
                Host::Zoned(*addr.ip(), addr.scope_id().to_string())
            }
            addr => Host::Ip(addr.ip()),
        };
        Self { host, port: addr.port() }
    }

    /// Returns whether the address has a zone and therefore a meaning on this machine only.
    pub(crate) fn is_zoned(&self) -> bool {
        matches!(self.host, Host::Zoned(..))
    }

    /// Returns the address with its host in canonical form.
    #[must_use]
    pub fn canonical(self) -> Self {
        Self { host: self.host.canonical(), port: self.port }
    }

    /// Returns the socket address to dial, if it is known without DNS. A zone must be numeric.
    pub fn socket(&self) -> Option<SocketAddr> {
        let socket = match &self.host {
            Host::Ip(ip) => Some(SocketAddr::new(*ip, self.port)),
            Host::Zoned(ip, zone) => zone
                .parse()
                .ok()
                .map(|zone| SocketAddr::V6(SocketAddrV6::new(*ip, self.port, 0, zone))),
            Host::Name(_) => None,
        };
        socket.map(canonical)
    }

    /// Returns the key of this address in a `NodeContact` of the reference:
    /// `<canonicalHost>-<port>` (docs/WIRE.md section 1).
    pub fn contact_key(&self) -> String {
        alloc::format!("{}-{}", self.host, self.port)
    }

    /// Parses a [`contact_key`](Self::contact_key); the port follows the *last* `-`.
    pub fn from_contact_key(key: &str) -> Result<Self, ParseAddressError> {
        let (host, port) =
            key.rsplit_once('-').ok_or_else(|| ParseAddressError::Port(excerpt(key)))?;
        Ok(Self { host: host.parse()?, port: parse_port(port)? })
    }
}

impl fmt::Display for NodeAddress {
    /// `host:port`, with an IPv6 host compressed and in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Zoned(ip, zone) => write!(f, "[{ip}%{zone}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

impl FromStr for NodeAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| ParseAddressError::Port(excerpt(text)))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner =
                    rest.strip_suffix(']').ok_or_else(|| ParseAddressError::Host(excerpt(host)))?;
                match inner.parse::<Host>()? {
                    Host::Name(_) | Host::Ip(IpAddr::V4(_)) if !inner.contains(':') => {
                        return Err(ParseAddressError::Host(excerpt(host)));
                    }
                    host => host,
                }
            }
            None if host.contains(':') => return Err(ParseAddressError::Brackets),
            None => host.parse()?,
        };
        Ok(Self { host, port: parse_port(port)? })
    }
}

impl From<SocketAddr> for NodeAddress {
    fn from(addr: SocketAddr) -> Self {
        Self::from_socket(addr)
    }
}

/// Parses a port to dial: decimal digits only, 1 to 65535.
fn parse_port(text: &str) -> Result<u16, ParseAddressError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|port| digits && *port != 0)
        .ok_or_else(|| ParseAddressError::Port(excerpt(text)))
}

/// Returns whether an address reported by a peer can be dialed: unicast, with a port, without a
/// zone (which has a meaning on the peer's machine only).
pub(crate) fn is_unicast(address: &NodeAddress) -> bool {
    match (&address.host, address.socket()) {
        (Host::Ip(_), Some(socket)) => undialable(&socket).is_none(),
        (Host::Name(_), _) => address.port != 0,
        (Host::Ip(_) | Host::Zoned(..), _) => false,
    }
}

/// From where an IP address is reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// This machine.
    Loopback,
    /// One link.
    Link,
    /// One private network (RFC 1918, RFC 4193, RFC 6598).
    Private,
    /// Everywhere, according to the address.
    Global,
}

impl Reach {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            ip if ip.is_loopback() => Self::Loopback,
            IpAddr::V4(ip) if ip.is_link_local() => Self::Link,
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Self::Link,
            IpAddr::V4(ip)
                if ip.is_private()
                    || (ip.octets()[0] == 100 && (64..128).contains(&ip.octets()[1])) =>
            {
                Self::Private
            }
            IpAddr::V6(ip) if ip.is_unique_local() => Self::Private,
            _ => Self::Global,
        }
    }
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseAddressError {
    /// Neither an IP address nor a host name.
    #[error("`{0}` is neither an IP address nor a host name")]
    Host(String),
    /// An IPv6 address before a port needs brackets.
    #[error("an IPv6 address before a port must be in brackets, as in `[::1]:1314`")]
    Brackets,
    /// The port is missing or not 1 to 65535.
    #[error("`{0}` does not end in a port from 1 to 65535")]
    Port(String),
}

/// Returns the start of an invalid text, for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_string() + "…",
        None => text.to_owned(),
    }
}

/// How the connection to an address was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum ContactMode {
    /// A direct dial.
    Direct,
    /// A dial after a relay had asked both ends to punch.
    Signal,
    /// Forwarding by a relay.
    Relay,
}

/// How an address was learned: a set of [`NodeAddressScope`]. Not the class of its IP address.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Scopes {
    /// Learned on the local network (mDNS). Never sent to peers.
    pub local: bool,
    /// Learned in any other way.
    pub global: bool,
}

impl Scopes {
    /// Learned in any other way than mDNS.
    pub const GLOBAL: Self = Self { local: false, global: true };
    /// Learned by mDNS.
    pub const LOCAL: Self = Self { local: true, global: false };
    /// Learned from a relay, and not proved by a connection. Never sent to peers.
    pub const NONE: Self = Self { local: false, global: false };

    /// Returns the union of both sets.
    pub const fn union(self, other: Self) -> Self {
        Self { local: self.local || other.local, global: self.global || other.global }
    }
}

/// How an address was learned, as an element of a set ([`Scopes`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeAddressScope {
    /// By mDNS.
    Local,
    /// In any other way.
    Global,
}

impl Scopes {
    /// Returns whether the scope is in the set.
    pub const fn contains(self, scope: NodeAddressScope) -> bool {
        match scope {
            NodeAddressScope::Local => self.local,
            NodeAddressScope::Global => self.global,
        }
    }

    /// Returns the scopes in the set.
    pub fn iter(self) -> impl Iterator<Item = NodeAddressScope> {
        [NodeAddressScope::Local, NodeAddressScope::Global]
            .into_iter()
            .filter(move |scope| self.contains(*scope))
    }
}

impl FromIterator<NodeAddressScope> for Scopes {
    fn from_iter<I: IntoIterator<Item = NodeAddressScope>>(scopes: I) -> Self {
        let one = |scope| match scope {
            NodeAddressScope::Local => Self::LOCAL,
            NodeAddressScope::Global => Self::GLOBAL,
        };
        scopes.into_iter().map(one).fold(Self::default(), Self::union)
    }
}

/// Data of one address of a node (specification: NodeContactAddressData).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct NodeContactAddressData {
    /// Mode of the last connection.
    pub mode: ContactMode,
    /// Time of the last connection.
    pub connected_time: UnixMillis,
    /// How the address was learned.
    pub scopes: Scopes,
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn set_of_scopes_equals_its_members() {
        use NodeAddressScope::{Global, Local};
        for scopes in [&[][..], &[Local], &[Global], &[Local, Global]] {
            let set: Scopes = scopes.iter().copied().collect();
            assert_eq!(set.iter().collect::<Vec<_>>(), scopes);
            assert_eq!([Local, Global].map(|scope| set.contains(scope)), [set.local, set.global]);
        }
    }

    #[test]
    fn link_local_socket_keeps_its_scope() {
        let socket = |ip: &str, scope| {
            SocketAddr::V6(SocketAddrV6::new(ip.parse().unwrap(), 1314, 7, scope))
        };
        let address = NodeAddress::from_socket(socket("fe80::1", 3));
        assert_eq!((address.to_string().as_str(), address.port), ("[fe80::1%3]:1314", 1314));
        assert_eq!(
            address.socket(),
            Some(SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 1314, 0, 3)))
        );
        assert_eq!(NodeAddress::from_socket(socket("fe80::1", 0)).to_string(), "[fe80::1]:1314");
        assert_eq!(
            NodeAddress::from_socket(socket("2001:db8::1", 3)).to_string(),
            "[2001:db8::1]:1314"
        );
        assert_eq!(
            NodeAddress::from_socket(socket("::ffff:10.0.0.1", 3)).to_string(),
            "10.0.0.1:1314"
        );
    }

    #[test]
    fn reported_address_must_be_dialable() {
        for (text, ok) in [
            ("10.0.0.1:1", true),
            ("example.com:1", true),
            ("0.0.0.0:1", false),
            ("224.0.0.1:1", false),
            ("255.255.255.255:1", false),
            ("[fe80::1%1]:1", false),
            ("[fe80::1]:1", false),
            ("[ff02::1]:1", false),
        ] {
            assert_eq!(is_unicast(&text.parse().unwrap()), ok, "{text}");
        }
        assert!(!is_unicast(&NodeAddress { port: 0, .."10.0.0.1:1".parse().unwrap() }));
        for mapped in ["255.255.255.255", "224.0.0.1", "0.0.0.0"] {
            let ip = alloc::format!("::ffff:{mapped}").parse().unwrap();
            assert!(
                !is_unicast(&NodeAddress { host: Host::Ip(IpAddr::V6(ip)), port: 1 }),
                "{mapped}"
            );
        }
    }

    #[test]
    fn address_has_one_form() {
        let socket =
            |ip: &str, scope| SocketAddr::V6(SocketAddrV6::new(ip.parse().unwrap(), 9, 7, scope));
        for (addr, text) in [
            (socket("fe80::1", 3), "[fe80::1%3]:9"),
            (socket("fe80::1", 0), "[fe80::1]:9"),
            (socket("2001:db8::1", 3), "[2001:db8::1]:9"),
            (socket("::ffff:10.0.0.1", 3), "10.0.0.1:9"),
        ] {
            let address = NodeAddress::from_socket(addr);
            assert_eq!(address.to_string(), text);
            assert_eq!(text.parse(), Ok(address.clone()));
            assert_eq!(address.socket(), Some(canonical(addr)));
            assert_eq!(address.clone().canonical(), address);
        }
        for (text, canonical) in [
            ("[fe80::1%0]:9", "[fe80::1]:9"),
            ("[fe80::1%03]:9", "[fe80::1%3]:9"),
            ("[fe80::1%eth0]:9", "[fe80::1%eth0]:9"),
            ("[2001:db8::1%3]:9", "[2001:db8::1]:9"),
            ("[::ffff:10.0.0.1%3]:9", "10.0.0.1:9"),
        ] {
            assert_eq!(text.parse::<NodeAddress>().unwrap().to_string(), canonical);
        }
        let mapped = NodeAddress { host: Host::Ip("::ffff:10.0.0.1".parse().unwrap()), port: 9 };
        assert_eq!(mapped.socket(), "10.0.0.1:9".parse().ok());
        assert_eq!(mapped.canonical(), "10.0.0.1:9".parse().unwrap());
    }
}
