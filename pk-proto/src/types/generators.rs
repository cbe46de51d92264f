//! Arbitrary values of types without their own implementation, for the derives of
//! [`Arbitrary`](arbitrary::Arbitrary).

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use core::time::Duration;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;

/// A small id, like those of a machine that has run for a short time.
pub(crate) fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    match u.arbitrary::<u8>()? {
        255 => u.arbitrary(),
        number => Ok(u64::from(number % 64)),
    }
}

/// Up to several hundred bytes.
pub(crate) fn bytes(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let length = match u.arbitrary::<u8>()? {
        length @ 0..=127 => length.into(),
        length => usize::from(length - 127) * 8,
    };
    Ok(Bytes::copy_from_slice(u.bytes(length.min(u.len()))?))
}

/// Up to seven values.
pub(crate) fn list<T>(
    u: &mut Unstructured<'_>,
    one: fn(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..u.arbitrary::<u8>()? % 8).map(|_| one(u)).collect()
}

pub(crate) fn byte_strings(u: &mut Unstructured<'_>) -> Result<Vec<Bytes>> {
    list(u, bytes)
}

/// A key and a value of the store.
type Row = (Bytes, Bytes);

pub(crate) fn rows(
    u: &mut Unstructured<'_>,
) -> Result<core::result::Result<(Vec<Row>, bool), String>> {
    Ok(match u.arbitrary()? {
        true => Ok((list(u, |u| Ok((bytes(u)?, bytes(u)?)))?, u.arbitrary()?)),
        false => Err(u.arbitrary()?),
    })
}

/// Addresses of a machine.
pub(crate) fn ips(u: &mut Unstructured<'_>) -> Result<Vec<IpAddr>> {
    list(u, |u| Ok(socket(u)?.ip()))
}

/// A duration at an end of some range, including zero and the maximum.
pub(crate) fn duration(u: &mut Unstructured<'_>) -> Result<Duration> {
    const DAY: Duration = Duration::from_secs(86_400);
    let edges = [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_nanos(999),
        Duration::from_micros(1),
        Duration::from_micros(999),
        Duration::from_millis(1),
        Duration::from_millis(50),
        Duration::from_secs(1),
        Duration::from_secs(15),
        Duration::from_secs(60),
        Duration::from_secs(3600),
        DAY,
        DAY.saturating_add(Duration::from_nanos(1)),
        DAY.saturating_mul(30),
        Duration::MAX,
    ];
    match u.arbitrary::<u8>()? {
        0..=127 => u.choose(&edges).copied(),
        128..=191 => Ok(Duration::from_millis(u.arbitrary::<u16>()?.into())),
        192..=254 => Ok(Duration::from_secs(u.arbitrary::<u8>()?.into())),
        255 => u.arbitrary(),
    }
}

pub(crate) fn some_duration(u: &mut Unstructured<'_>) -> Result<Option<Duration>> {
    if u.arbitrary()? { duration(u).map(Some) } else { Ok(None) }
}

/// A small count.
pub(crate) fn count(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.arbitrary::<u8>()? {
        255 => u.arbitrary()?,
        254 => 1001,
        count => (count % 64).into(),
    })
}

/// A small count, or none.
pub(crate) fn some_count(u: &mut Unstructured<'_>) -> Result<Option<usize>> {
    Ok(match u.arbitrary::<u8>()? {
        0..=127 => None,
        255 => Some(u.arbitrary()?),
        count => Some(usize::from(count - 128)),
    })
}

/// The name of an application protocol; some are invalid.
pub(crate) fn protocol(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(1, 16)? {
        return u.arbitrary();
    }
    u.choose(&["chat/1", "files/2", "polykey:vaultsScan", ""]).map(|name| (*name).into())
}

/// An address of each kind that the core distinguishes.
pub(crate) fn socket(u: &mut Unstructured<'_>) -> Result<SocketAddr> {
    let (ip, port) = (ip(u)?, port(u)?);
    Ok(match ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            SocketAddrV6::new(ip, port, 0, u.int_in_range(0..=2)?).into()
        }
        ip => SocketAddr::new(ip, port),
    })
}

pub(crate) fn maybe_socket(u: &mut Unstructured<'_>) -> Result<Option<SocketAddr>> {
    Ok(if u.ratio(3, 4)? { Some(socket(u)?) } else { None })
}

pub(crate) fn sockets(u: &mut Unstructured<'_>) -> Result<Vec<SocketAddr>> {
    list(u, socket)
}

pub(crate) fn resolved(
    u: &mut Unstructured<'_>,
) -> Result<core::result::Result<Vec<SocketAddr>, String>> {
    Ok(if u.ratio(7, 8)? { Ok(sockets(u)?) } else { Err(u.arbitrary()?) })
}

pub(crate) fn port(u: &mut Unstructured<'_>) -> Result<u16> {
    Ok(match u.arbitrary::<u8>()? {
        0..=7 => 0,
        8..=15 => u.arbitrary()?,
        16..=31 => 65_535,
        port => 1314 + u16::from(port % 4),
    })
}

pub(crate) fn ip(u: &mut Unstructured<'_>) -> Result<IpAddr> {
    let low = u.arbitrary::<u8>()? % 16;
    let v6 = |segments: [u16; 8]| IpAddr::V6(Ipv6Addr::from(segments));
    Ok(match u.arbitrary::<u8>()? % 24 {
        0 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        1 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        2 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        3 => IpAddr::V4(Ipv4Addr::BROADCAST),
        4 => IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)),
        5 => IpAddr::V4(Ipv4Addr::new(10, 0, 0, low)),
        6 => IpAddr::V4(Ipv4Addr::new(192, 168, 1, low)),
        7 => IpAddr::V4(Ipv4Addr::new(169, 254, 1, low)),
        8 => IpAddr::V6(link_local(u)?),
        9 => IpAddr::V6(Ipv4Addr::new(20, 0, low, 1).to_ipv6_mapped()),
        10 => IpAddr::V6(Ipv4Addr::BROADCAST.to_ipv6_mapped()),
        11 => v6([0xff02, 0, 0, 0, 0, 0, 0, 0xfb]),
        12 => v6([0xfd00, 0, 0, 0, 0, 0, 0, low.into()]),
        13 | 14 => v6([0x2001, 0x470, low.into(), 0, 0, 0, 0, 1]),
        15 => u.arbitrary()?,
        // Many of one network, for the limits per network.
        16 => IpAddr::V4(Ipv4Addr::new(20, 0, 0, low)),
        _ => IpAddr::V4(Ipv4Addr::new(20, 0, low, 1)),
    })
}

pub(crate) fn link_local(u: &mut Unstructured<'_>) -> Result<Ipv6Addr> {
    Ok(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, u16::from(u.arbitrary::<u8>()? % 4)))
}
