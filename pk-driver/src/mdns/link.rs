//! Links (interfaces and address families), and attempts to join the multicast group on them.

use std::net::IpAddr;

/// An interface, by its number, and a family of addresses on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) family: Family,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// An attempt to join the multicast group of a link.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) link: Link,
    /// Name of the interface.
    pub(super) name: String,
    pub(super) result: Result<(), String>,
}
