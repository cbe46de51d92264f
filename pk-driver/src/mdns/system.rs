//! The network interfaces of the operating system.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::link::{Family, Link, Tried};

/// The groups of RFC 6762.
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

/// The files of Linux about interfaces and routes. Other systems do not have them; there every
/// interface with an address is usable.
const CLASS: &str = "/sys/class/net";
const ROUTES_V4: &str = "/proc/net/route";
const ROUTES_V6: &str = "/proc/net/ipv6_route";

/// `IFF_MULTICAST` of Linux.
const MULTICAST: u32 = 0x1000;

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) addrs: Vec<IpAddr>,
    /// The same addresses, each with the length of its prefix.
    pub(super) prefixes: Vec<(IpAddr, u8)>,
    pub(super) up: bool,
    pub(super) loopback: bool,
    pub(super) point_to_point: bool,
    pub(super) multicast: bool,
    /// Whether a default route of a family leads to it.
    pub(super) default_route: bool,
    /// Whether it is a device, or a bridge with a device among its ports.
    pub(super) hardware: bool,
    pub(super) bridge: bool,
    /// Whether it is a port of a bridge, which receives its packets.
    pub(super) bridge_port: bool,
}

/// Returns every interface with an address, by its number.
pub(super) fn interfaces() -> Vec<Facts> {
    let routed = default_routes();
    let mut all: BTreeMap<u32, Facts> = BTreeMap::new();
    // If the system does not answer, there is no interface.
    for interface in if_addrs::get_if_addrs().unwrap_or_default() {
        let Some(index) = interface.index else { continue };
        let facts = all.entry(index).or_insert_with(|| Facts {
            index,
            name: interface.name.clone(),
            up: interface.is_oper_up(),
            loopback: interface.is_loopback(),
            point_to_point: interface.is_p2p(),
            default_route: routed.contains(&interface.name),
            ..class(&Path::new(CLASS).join(&interface.name))
        });
        facts.addrs.push(interface.ip());
        facts.prefixes.push((interface.ip(), prefix(&interface.addr)));
    }
    for facts in all.values_mut() {
        facts.addrs.sort_unstable();
    }
    all.into_values().collect()
}

fn prefix(addr: &if_addrs::IfAddr) -> u8 {
    match addr {
        if_addrs::IfAddr::V4(addr) => addr.prefixlen,
        if_addrs::IfAddr::V6(addr) => addr.prefixlen,
    }
}

/// Returns the names of all interfaces, including those without an address.
pub(super) fn names() -> BTreeSet<String> {
    let with_address =
        if_addrs::get_if_addrs().unwrap_or_default().into_iter().map(|interface| interface.name);
    let listed = fs::read_dir(CLASS).into_iter().flatten().flatten();
    with_address.chain(listed.filter_map(|entry| entry.file_name().into_string().ok())).collect()
}

/// Tries to join the multicast groups on these links with one socket per family, as mdns-sd does.
/// The memberships end with this call.
pub(super) fn join(links: impl Iterator<Item = Link>) -> Vec<Tried> {
    let socket = |domain| {
        Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
            .map_err(|error: io::Error| error.to_string())
    };
    let (v4, v6) = (socket(Domain::IPV4), socket(Domain::IPV6));
    let names: BTreeMap<u32, String> =
        interfaces().into_iter().map(|facts| (facts.index, facts.name)).collect();
    let join = |link: Link| match link.family {
        Family::V4 => {
            let interface = InterfaceIndexOrAddress::Index(link.index);
            v4.as_ref()
                .map_err(Clone::clone)?
                .join_multicast_v4_n(&GROUP_V4, &interface)
                .map_err(|e| e.to_string())
        }
        Family::V6 => v6
            .as_ref()
            .map_err(Clone::clone)?
            .join_multicast_v6(&GROUP_V6, link.index)
            .map_err(|e| e.to_string()),
    };
    let name = |link: Link| names.get(&link.index).cloned().unwrap_or_default();
    links.map(|link| Tried { link, name: name(link), result: join(link) }).collect()
}

/// Reads the directory of an interface.
fn class(dir: &Path) -> Facts {
    let flags = fs::read_to_string(dir.join("flags")).ok();
    let flags =
        flags.and_then(|flags| u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).ok());
    let ports = fs::read_dir(dir.join("brif")).into_iter().flatten().flatten();
    let hardware_port = ports
        .map(|port| dir.with_file_name(port.file_name()))
        .any(|port| port.join("device").exists());
    Facts {
        multicast: flags.is_none_or(|flags| flags & MULTICAST != 0),
        hardware: dir.join("device").exists() || hardware_port,
        bridge: dir.join("bridge").exists(),
        bridge_port: dir.join("brport").exists(),
        ..Facts::default()
    }
}

/// Returns the interfaces with a default route.
fn default_routes() -> BTreeSet<String> {
    let v4 = fs::read_to_string(ROUTES_V4).unwrap_or_default();
    let v6 = fs::read_to_string(ROUTES_V6).unwrap_or_default();
    v4.lines()
        .filter_map(default_route_v4)
        .chain(v6.lines().filter_map(default_route_v6))
        .map(str::to_owned)
        .collect()
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`
fn default_route_v4(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let (name, destination, mask) = (words.next()?, words.next()?, words.nth(5)?);
    (destination == "00000000" && mask == "00000000").then_some(name)
}

/// `destination prefix-length source prefix-length next-hop metric references use flags name`;
/// unreachable routes are on `lo`.
fn default_route_v6(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let (destination, prefix, name) = (words.next()?, words.next()?, words.last()?);
    (destination.bytes().all(|digit| digit == b'0') && prefix == "00" && name != "lo")
        .then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_read_as_linux_writes_them() {
        let line = "eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0";
        assert_eq!(default_route_v4(line), Some("eth0"));
        let line = "eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0";
        assert_eq!(default_route_v4(line), None);
        assert_eq!(
            default_route_v4(
                "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU"
            ),
            None
        );
        let zeros = "0".repeat(32);
        let line = format!(
            "{zeros} 00 {zeros} 00 fe80{} 00000400 00000001 00000000 00450003     wlan0",
            "0".repeat(28)
        );
        assert_eq!(default_route_v6(&line), Some("wlan0"));
        let line =
            format!("{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo");
        assert_eq!(default_route_v6(&line), None);
    }

    #[test]
    fn loopback_is_listed_and_can_be_joined() {
        let all = interfaces();
        let lo = all.iter().find(|facts| facts.loopback).unwrap();
        assert!(
            names().contains(&lo.name) && lo.addrs.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)),
            "{lo:?}"
        );
        let tried = join([Link { index: lo.index, family: Family::V4 }].into_iter());
        assert!(
            matches!(tried.as_slice(), [Tried { name, result: Ok(()), .. }] if *name == lo.name),
            "{tried:?}"
        );
        let none = join([Link { index: u32::MAX, family: Family::V4 }].into_iter());
        assert!(none[0].result.is_err(), "{none:?}");
    }
}
