//! UPnP-IGD, with igd-next. It blocks, trusts only URLs of the host that has answered, and reads at
//! most 1 MiB of each answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use igd_next::{
    AddAnyPortError, AddPortError, Gateway, GatewayIpVersion, GetExternalIpError,
    PortMappingProtocol::UDP, RemovePortError, RequestError, SearchError, SearchOptions,
    search_gateway,
};

use super::failure::PortMappingFailure;
use super::gateway::{Place, SSDP};

/// Time for the search of a gateway, including its description.
const SEARCH: Duration = Duration::from_secs(3);
/// Time for the answer to the search.
const ANSWER: Duration = Duration::from_secs(1);
/// A search for gateways, as igd-next sends it.
const M_SEARCH: &str = "M-SEARCH * HTTP/1.1\r\nHost:239.255.255.250:1900\r\n\
    ST:urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nMan:\"ssdp:discover\"\r\nMX:1\r\n\r\n";
/// Longest part of an answer to it that is read.
const HEADER: usize = 1500;
/// Name of the mapping in the pages of the gateway.
const DESCRIPTION: &str = "pk";
/// Longest text of the gateway that is reported.
const TEXT: usize = 80;

/// A gateway that was found.
#[derive(Debug, Clone)]
pub(super) struct Device(Box<Gateway>);

/// Maps the port: the same external port, if it is free. Returns the external address.
pub(super) fn map(
    place: &Place,
    seconds: u32,
) -> Result<(Device, SocketAddrV4), PortMappingFailure> {
    let mut options = SearchOptions::default();
    options.bind_addr = SocketAddr::new(IpAddr::V4(*place.local.ip()), 0);
    options.broadcast_address = SSDP.into();
    options.timeout = Some(SEARCH);
    options.single_search_timeout = Some(ANSWER);
    options.gateway_ip_version = GatewayIpVersion::V4;
    let gateway = search_gateway(options).map_err(|error| match searched(error) {
        // igd-next does not report an answer whose description it cannot use.
        PortMappingFailure::Silent if answers(place) => DESCRIPTION_INVALID,
        failure => failure,
    })?;
    if place.gateway.is_some_and(|known| gateway.addr.ip() != IpAddr::V4(known)) {
        return Err(PortMappingFailure::Malformed("another host than the gateway has answered"));
    }
    let port = match add(&gateway, place.local, place.local.port(), seconds) {
        Ok(()) => place.local.port(),
        Err(AddPortError::PortInUse) => gateway
            .add_any_port(UDP, place.local.into(), seconds, DESCRIPTION)
            .map_err(added_any)?,
        Err(error) => return Err(added(error)),
    };
    let external = SocketAddrV4::new(external_ip(&gateway)?, port);
    Ok((Device(Box::new(gateway)), external))
}

/// Returns whether the gateway answers a search.
fn answers(place: &Place) -> bool {
    let begun = Instant::now();
    let Ok(socket) = UdpSocket::bind(SocketAddrV4::new(*place.local.ip(), 0)) else { return false };
    if socket.send_to(M_SEARCH.as_bytes(), SSDP).is_err() {
        return false;
    }
    let mut buffer = [0; HEADER];
    loop {
        let left = ANSWER.saturating_sub(begun.elapsed());
        if left.is_zero() || socket.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let is_gateway = place.gateway.is_none_or(|known| from.ip() == IpAddr::V4(known));
        let answer = buffer.get(..length).unwrap_or_default();
        if is_gateway && answer.starts_with(b"HTTP/1.1 200 ") {
            return true;
        }
    }
}

/// Extends a mapping. Returns the present external address.
pub(super) fn renew(
    Device(gateway): &Device,
    place: &Place,
    port: u16,
    seconds: u32,
) -> Result<SocketAddrV4, PortMappingFailure> {
    add(gateway, place.local, port, seconds).map_err(added)?;
    Ok(SocketAddrV4::new(external_ip(gateway)?, port))
}

/// Removes a mapping.
pub(super) fn withdraw(Device(gateway): &Device, port: u16) -> Result<(), PortMappingFailure> {
    match gateway.remove_port(UDP, port) {
        // It has expired.
        Ok(()) | Err(RemovePortError::NoSuchPortMapping) => Ok(()),
        Err(RemovePortError::ActionNotAuthorized) => Err(not_authorized()),
        Err(RemovePortError::RequestError(error)) => Err(requested(error)),
    }
}

fn add(
    gateway: &Gateway,
    local: SocketAddrV4,
    port: u16,
    seconds: u32,
) -> Result<(), AddPortError> {
    match gateway.add_port(UDP, port, local.into(), seconds, DESCRIPTION) {
        Err(AddPortError::OnlyPermanentLeasesSupported) => {
            gateway.add_port(UDP, port, local.into(), 0, DESCRIPTION)
        }
        result => result,
    }
}

fn external_ip(gateway: &Gateway) -> Result<Ipv4Addr, PortMappingFailure> {
    match gateway.get_external_ip() {
        Ok(IpAddr::V4(ip)) => Ok(ip),
        Ok(IpAddr::V6(_)) => Err(PortMappingFailure::Malformed("the external address is not IPv4")),
        Err(GetExternalIpError::ActionNotAuthorized) => Err(not_authorized()),
        Err(GetExternalIpError::RequestError(error)) => Err(requested(error)),
    }
}

/// A gateway answers the search, but has no description that can be used, or none in time.
const DESCRIPTION_INVALID: PortMappingFailure =
    PortMappingFailure::Malformed("not the description of a gateway");

fn searched(error: SearchError) -> PortMappingFailure {
    match error {
        SearchError::NoResponseWithinTimeout => PortMappingFailure::Silent,
        SearchError::IoError(error) => PortMappingFailure::System(error.to_string()),
        _ => DESCRIPTION_INVALID,
    }
}

fn added(error: AddPortError) -> PortMappingFailure {
    match error {
        AddPortError::ActionNotAuthorized => not_authorized(),
        AddPortError::RequestError(error) => requested(error),
        AddPortError::PortInUse => refused(718, "the port is in use"),
        error => refused(0, &error.to_string()),
    }
}

fn added_any(error: AddAnyPortError) -> PortMappingFailure {
    match error {
        AddAnyPortError::ActionNotAuthorized => not_authorized(),
        AddAnyPortError::RequestError(error) => requested(error),
        AddAnyPortError::NoPortsAvailable => refused(728, "no port is free"),
        error => refused(0, &error.to_string()),
    }
}

fn requested(error: RequestError) -> PortMappingFailure {
    match error {
        RequestError::ErrorCode(code, text) => refused(code, &text),
        RequestError::UnsupportedAction(_) => refused(401, "unsupported action"),
        RequestError::AttoHttpError(error) => http(&error),
        RequestError::IoError(error) => failed(&error),
        _ => PortMappingFailure::Malformed("not an answer to the request"),
    }
}

/// An error of HTTP: of the system, or an answer that is none.
fn http(error: &attohttpc::Error) -> PortMappingFailure {
    match error.kind() {
        attohttpc::ErrorKind::Io(error) => failed(error),
        _ => PortMappingFailure::Malformed("not an answer in HTTP"),
    }
}

fn failed(error: &io::Error) -> PortMappingFailure {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => PortMappingFailure::Silent,
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            PortMappingFailure::Malformed("an answer that is too long or incomplete")
        }
        _ => PortMappingFailure::System(error.to_string()),
    }
}

fn not_authorized() -> PortMappingFailure {
    refused(606, "not authorized")
}

/// The text may come from the gateway.
fn refused(code: u16, text: &str) -> PortMappingFailure {
    let printable = text.chars().filter(|c| !c.is_control());
    PortMappingFailure::Refused { code, reason: printable.take(TEXT).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_the_gateway_is_shortened_and_without_control_characters() {
        let text = format!("\u{1b}[2J{}", "x".repeat(5000));
        let failure = requested(RequestError::ErrorCode(501, text));
        let reason = format!("[2J{}", "x".repeat(TEXT - 3));
        assert_eq!(failure, PortMappingFailure::Refused { code: 501, reason });
    }

    #[test]
    fn errors_keep_their_meaning() {
        let io = |kind: io::ErrorKind| requested(RequestError::IoError(kind.into()));
        assert_eq!(io(io::ErrorKind::TimedOut), PortMappingFailure::Silent);
        assert!(matches!(io(io::ErrorKind::InvalidData), PortMappingFailure::Malformed(_)));
        assert!(matches!(io(io::ErrorKind::ConnectionRefused), PortMappingFailure::System(_)));
        assert_eq!(searched(SearchError::NoResponseWithinTimeout), PortMappingFailure::Silent);
        assert!(matches!(searched(SearchError::InvalidResponse), PortMappingFailure::Malformed(_)));
        assert_eq!(added(AddPortError::ActionNotAuthorized), not_authorized());
    }
}
