//! Mappings: what is reported, and what their renewal needs.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use pk_portmap::NONCE;
use pk_proto::is_global_unicast;

use super::failure::PortMappingFailure;
use super::gateway::Place;
use super::igd::Device;

/// A protocol that maps ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortMappingProtocol {
    /// The Port Control Protocol (RFC 6887).
    Pcp,
    /// The NAT Port Mapping Protocol (RFC 6886).
    NatPmp,
    /// The Internet Gateway Device protocol of UPnP.
    Igd,
}

impl fmt::Display for PortMappingProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Igd => "UPnP-IGD",
        })
    }
}

/// A mapped port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    /// Protocol by which it was mapped.
    pub protocol: PortMappingProtocol,
    /// External address.
    pub external: SocketAddr,
    /// Time until it ends if it is not renewed, as of the last answer of the gateway. UPnP-IGD does
    /// not confirm it: the requested time.
    pub lifetime: Duration,
    /// Whether the address is globally routable. Otherwise the gateway is itself behind a NAT or
    /// has no address yet, and the address is not sent to peers.
    pub is_global: bool,
}

/// What happened to the mapping of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortMappingEvent {
    /// The port is mapped, for the first time or to another external address.
    Mapped(PortMapping),
    /// The mapping was renewed.
    Renewed {
        /// Mapping.
        mapping: PortMapping,
        /// Whether the gateway has restarted and had lost it.
        restarted: bool,
    },
    /// The mapping was not renewed; the next attempt follows before it ends.
    RenewalFailed {
        /// Mapping.
        mapping: PortMapping,
        /// Reason.
        why: PortMappingFailure,
    },
    /// The mapping has ended, or belongs to a network that the node has left. It is mapped again.
    Lost(PortMapping),
    /// No protocol has mapped the port. All are tried again later, or when the addresses of the
    /// machine change.
    Failed {
        /// Reason of each protocol.
        causes: Vec<(PortMappingProtocol, PortMappingFailure)>,
        /// Time until the next attempt.
        retry_in: Duration,
    },
    /// The node stops, and the gateway has removed the mapping.
    Withdrawn(PortMapping),
    /// The node stops, and the gateway has not confirmed that it has removed the mapping, which
    /// ends after its lifetime.
    WithdrawalFailed {
        /// Mapping.
        mapping: PortMapping,
        /// Reason.
        why: PortMappingFailure,
    },
}

/// A granted mapping, with what its renewal needs.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) key: Key,
    /// Where it was granted.
    pub(super) place: Place,
    pub(super) external: SocketAddrV4,
    pub(super) lifetime: Duration,
    /// The clock of the gateway, if the protocol has one.
    pub(super) epoch: Option<u32>,
}

/// What identifies a mapping to its gateway.
#[derive(Debug, Clone)]
pub(super) enum Key {
    Pcp([u8; NONCE]),
    NatPmp,
    Igd(Device),
}

impl Lease {
    /// Returns what is reported of it.
    pub(super) fn mapping(&self) -> PortMapping {
        let protocol = match self.key {
            Key::Pcp(_) => PortMappingProtocol::Pcp,
            Key::NatPmp => PortMappingProtocol::NatPmp,
            Key::Igd(_) => PortMappingProtocol::Igd,
        };
        PortMapping {
            protocol,
            external: self.external.into(),
            lifetime: self.lifetime,
            is_global: is_global_unicast(IpAddr::V4(*self.external.ip())),
        }
    }

    /// Returns whether the gateway has lost its mappings between two answers, `elapsed` apart. Its
    /// clock may be slower by an eighth, and two seconds late (RFC 6886 section 3.6).
    pub(super) fn has_restarted(&self, later: &Self, elapsed: Duration) -> bool {
        let (Some(before), Some(after)) = (self.epoch, later.epoch) else { return false };
        let expected = u64::from(before).saturating_add(elapsed.as_secs() * 7 / 8);
        u64::from(after).saturating_add(2) < expected
    }
}
