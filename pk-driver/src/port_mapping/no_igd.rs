//! UPnP-IGD of a driver that was built without it.

use std::net::SocketAddrV4;

use super::failure::PortMappingFailure;
use super::gateway::Place;

/// A gateway, which is never found.
#[derive(Debug, Clone)]
pub(super) struct Device(());

pub(super) fn map(_: &Place, _: u32) -> Result<(Device, SocketAddrV4), PortMappingFailure> {
    Err(missing())
}

pub(super) fn renew(
    _: &Device,
    _: &Place,
    _: u16,
    _: u32,
) -> Result<SocketAddrV4, PortMappingFailure> {
    Err(missing())
}

pub(super) fn withdraw(_: &Device, _: u16) -> Result<(), PortMappingFailure> {
    Err(missing())
}

fn missing() -> PortMappingFailure {
    PortMappingFailure::System("this program was built without UPnP-IGD".to_owned())
}
