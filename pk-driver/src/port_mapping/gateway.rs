//! Where the gateway is, and the local address towards it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use pk_portmap::PORT;

use super::failure::PortMappingFailure;

/// The routes of Linux. Other systems have no such file; there only UPnP-IGD is used, which finds
/// the gateway by multicast.
const ROUTES: &str = "/proc/net/route";
/// `RTF_UP` and `RTF_GATEWAY`.
const FLAGS: u32 = 3;
/// The multicast group and port of UPnP (SSDP).
pub(super) const SSDP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);

/// The place of a node in its local network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Address of the socket of the node towards the gateway.
    pub(super) local: SocketAddrV4,
    /// The gateway, if the system says which one it is.
    pub(super) gateway: Option<Ipv4Addr>,
}

impl Place {
    /// Returns where the gateway is asked by PCP and NAT-PMP.
    pub(super) fn server(&self) -> Result<SocketAddrV4, PortMappingFailure> {
        let gateway = self.gateway.ok_or(PortMappingFailure::NoGateway)?;
        Ok(SocketAddrV4::new(gateway, PORT))
    }
}

/// Returns the present place of a node whose socket is bound to `bound`.
pub(super) fn look(bound: SocketAddr) -> Result<Place, PortMappingFailure> {
    let gateway = fs::read_to_string(ROUTES).ok().and_then(|routes| default_gateway(&routes));
    let local = match bound.ip().to_canonical() {
        ip if ip.is_loopback() => return Err(PortMappingFailure::NoAddress),
        ip if ip.is_unspecified() => {
            let towards = gateway.map_or(SSDP, |gateway| SocketAddrV4::new(gateway, PORT));
            source(towards).ok_or(PortMappingFailure::NoGateway)?
        }
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => return Err(PortMappingFailure::NoAddress),
    };
    Ok(Place { local: SocketAddrV4::new(local, bound.port()), gateway })
}

/// Returns the address from which the system sends to another one. Sends nothing.
fn source(to: SocketAddrV4) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(to).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) if !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

/// Returns the gateway of the default route with the lowest metric.
fn default_gateway(routes: &str) -> Option<Ipv4Addr> {
    routes.lines().filter_map(default_route).min().map(|(_, gateway)| gateway)
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, addresses in the byte order of the
/// machine.
fn default_route(line: &str) -> Option<(u32, Ipv4Addr)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [_, destination, gateway, flags, _, _, metric, mask, ..] = words[..] else { return None };
    let hex = |word| u32::from_str_radix(word, 16).ok();
    let is_default = hex(destination)? == 0 && hex(mask)? == 0 && hex(flags)? & FLAGS == FLAGS;
    let gateway = Ipv4Addr::from(hex(gateway)?.to_ne_bytes());
    is_default.then_some((metric.parse().ok()?, gateway))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_is_that_of_the_best_default_route() {
        let gateway = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let (best, other) = (gateway([192, 168, 1, 1]), gateway([10, 0, 0, 1]));
        let routes = format!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             wlan0\t00000000\t{other}\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
             eth0\t00000000\t{best}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0\n\
             eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
        );
        assert_eq!(default_gateway(&routes), Some(Ipv4Addr::new(192, 168, 1, 1)));
        for none in ["", "eth0\t00000000", "a b c d e f g h"] {
            assert_eq!(default_gateway(none), None);
        }
    }

    #[test]
    fn socket_without_an_ipv4_address_of_a_network_has_no_place() {
        for bound in ["127.0.0.1:1", "[::1]:1", "[fe80::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(look(bound.parse().unwrap()), Err(PortMappingFailure::NoAddress), "{bound}");
        }
        let place = look("192.0.2.9:1314".parse().unwrap()).unwrap();
        assert_eq!(place.local, "192.0.2.9:1314".parse().unwrap());
    }
}
