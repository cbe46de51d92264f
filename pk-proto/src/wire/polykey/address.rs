//! Text form of an address on `quic`.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::{String, ToString};

use serde::Deserialize;

use super::ObjectFault;
use super::message::{json, quoted};
use crate::types::address::{Host, NodeAddress};

#[derive(Deserialize)]
struct RawAddress<'a> {
    #[serde(borrow)]
    host: Cow<'a, str>,
    port: u16,
}

/// Parses the text of an address, as written by [`write_address`] or another node.
pub(crate) fn parse_address(text: &str) -> Result<NodeAddress, ObjectFault> {
    let raw: RawAddress<'_> = json(text)?;
    address(&raw.host, raw.port).ok_or(ObjectFault::NotAMessage)
}

pub(super) fn address(host: &str, port: u16) -> Option<NodeAddress> {
    Some(NodeAddress { host: host.parse().ok()?, port }).filter(|_| port != 0)
}

/// Returns the text of an address, byte for byte as `JSON.stringify` writes it, because relays sign
/// it.
pub(crate) fn write_address(address: &NodeAddress) -> String {
    format!("{{\"host\":{},\"port\":{}}}", host_text(&address.host), address.port)
}

pub(super) fn host_text(host: &Host) -> String {
    match host {
        // The reference writes IPv6 hosts like the socket does: compressed.
        Host::Ip(ip) => quoted(&ip.to_string()),
        host => quoted(&host.to_string()),
    }
}
