//! Where a node can be reached: hosts, ports, their canonical text, and what is known of an address.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::time::UnixMillis;

/// A DNS name in canonical form: lower case, no trailing dot, at most 253 characters (RFC 1035 section 2.3.4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hostname(String);

impl Hostname {
    /// The canonical text.
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

    /// Letters, digits, `-` and `_` in labels of 1 to 63 characters (RFC 1123 section 2.1; `_` as found in practice).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // A last label of digits only is a mistyped IPv4 address, never a name (RFC 3696 section 2).
        let numeric_end = name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if name.len() > 253 || numeric_end || !name.split('.').all(label_ok) {
            return Err(ParseAddressError::Host(excerpt(text)));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

/// The host part of an address, in canonical form.
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
    /// The canonical form of an address: IPv4-mapped IPv6 becomes IPv4 (WIRE.md section 1).
    pub fn from_ip(ip: IpAddr) -> Self {
        Self::Ip(ip.to_canonical())
    }
}

impl fmt::Display for Host {
    /// IPv4 dotted; IPv6 lower case and fully expanded, as in the keys of the reference; names as they are.
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
            let zone_ok = (1..=32).contains(&zone.len()) && zone.bytes().all(|b| b.is_ascii_graphic() && b != b'%');
            return match ip.parse::<Ipv6Addr>() {
                Ok(ip) if zone_ok => Ok(Self::Zoned(ip, zone.to_owned())),
                _ => Err(ParseAddressError::Host(excerpt(text))),
            };
        }
        text.parse().map(Self::Name)
    }
}

/// Dotted decimal, with leading zeros read as decimal like the reference does (`010.000.000.001` is `10.0.0.1`).
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
    /// The host, canonical.
    pub host: Host,
    /// The UDP port, 1 to 65535 where it is to be dialled.
    pub port: u16,
}

impl NodeAddress {
    /// The address of a socket; IPv4-mapped IPv6 becomes IPv4, flow label and zone are dropped.
    pub fn from_socket(addr: SocketAddr) -> Self {
        Self { host: Host::from_ip(addr.ip()), port: addr.port() }
    }

    /// The socket address to dial, if it is known without asking DNS. A zone must be numeric.
    pub fn socket(&self) -> Option<SocketAddr> {
        match &self.host {
            Host::Ip(ip) => Some(SocketAddr::new(*ip, self.port)),
            Host::Zoned(ip, zone) => {
                zone.parse().ok().map(|zone| SocketAddr::V6(SocketAddrV6::new(*ip, self.port, 0, zone)))
            }
            Host::Name(_) => None,
        }
    }

    /// The key of this address in a `NodeContact` of the reference: `<canonicalHost>-<port>` (WIRE.md section 1).
    pub fn contact_key(&self) -> String {
        alloc::format!("{}-{}", self.host, self.port)
    }

    /// Reads [`contact_key`](Self::contact_key); the port follows the *last* `-`.
    pub fn from_contact_key(key: &str) -> Result<Self, ParseAddressError> {
        let (host, port) = key.rsplit_once('-').ok_or_else(|| ParseAddressError::Port(excerpt(key)))?;
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
        let (host, port) = text.rsplit_once(':').ok_or_else(|| ParseAddressError::Port(excerpt(text)))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or_else(|| ParseAddressError::Host(excerpt(host)))?;
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

/// A port to dial: decimal digits only, 1 to 65535.
fn parse_port(text: &str) -> Result<u16, ParseAddressError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0).ok_or_else(|| ParseAddressError::Port(excerpt(text)))
}

/// Whether an address that a peer told of can be somebody's: unicast, with a port, without a zone (a zone means something
/// on the peer's own machine only).
pub(crate) fn usable(address: &NodeAddress) -> bool {
    let host_ok = match &address.host {
        Host::Ip(ip) => {
            let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
            !ip.is_unspecified() && !ip.is_multicast() && !broadcast
        }
        Host::Name(_) => true,
        Host::Zoned(..) => false,
    };
    host_ok && address.port != 0
}

/// From where an IP address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// This machine.
    Loopback,
    /// One link.
    Link,
    /// One private network (RFC 1918, RFC 4193, RFC 6598).
    Private,
    /// Everywhere, as far as the address tells.
    Global,
}

impl Reach {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            ip if ip.is_loopback() => Self::Loopback,
            IpAddr::V4(ip) if ip.is_link_local() => Self::Link,
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Self::Link,
            IpAddr::V4(ip) if ip.is_private() || (ip.octets()[0] == 100 && (64..128).contains(&ip.octets()[1])) => {
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
    #[error("an IPv6 address before a port stands in brackets, as in `[::1]:1314`")]
    Brackets,
    /// The port is missing or not 1 to 65535.
    #[error("`{0}` does not end in a port from 1 to 65535")]
    Port(String),
}

/// Enough of a bad text to recognise it in an error, and no more.
pub(crate) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_string() + "…",
        None => text.to_owned(),
    }
}

/// How the connection behind an address was really made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContactMode {
    /// A plain dial.
    Direct,
    /// A dial after a relay had told both sides to punch.
    Signal,
    /// Traffic passed on by a relay. Known to the wire format, made by nobody.
    Relay,
}

/// How an address was learnt (the specification's `NodeAddressScope`, as a set). Not the class of its IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Scopes {
    /// Learnt on the local network (mDNS). Told to nobody.
    pub local: bool,
    /// Learnt in any other way.
    pub global: bool,
}

impl Scopes {
    /// Learnt from the network at large.
    pub const GLOBAL: Self = Self { local: false, global: true };
    /// Learnt through mDNS.
    pub const LOCAL: Self = Self { local: true, global: false };

    /// Both sets together.
    pub const fn union(self, other: Self) -> Self {
        Self { local: self.local || other.local, global: self.global || other.global }
    }
}

/// What is known of one address of a node (specification: NodeContactAddressData).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeContactAddressData {
    /// How the last connection was made.
    pub mode: ContactMode,
    /// When the last connection was made.
    pub connected_time: UnixMillis,
    /// How the address was learnt.
    pub scopes: Scopes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_tells_must_be_an_address() {
        for (text, ok) in [
            ("10.0.0.1:1", true),
            ("example.com:1", true),
            ("0.0.0.0:1", false),
            ("224.0.0.1:1", false),
            ("255.255.255.255:1", false),
            ("[fe80::1%1]:1", false),
            ("[ff02::1]:1", false),
        ] {
            assert_eq!(usable(&text.parse().unwrap()), ok, "{text}");
        }
        assert!(!usable(&NodeAddress { port: 0, .."10.0.0.1:1".parse().unwrap() }));
    }
}
