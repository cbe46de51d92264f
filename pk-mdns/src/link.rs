//! Links: what a machine is attached to.

use std::net::IpAddr;

/// Number of a link, chosen by the caller: for example of an interface and an address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// A link with a multicast group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Number.
    pub id: LinkId,
    /// Local addresses to advertise on it; the first 16 are used.
    pub addrs: Vec<IpAddr>,
}
