//! Datagrams on their way, in the order of their arrival.

use std::cmp::Ordering;
use std::net::SocketAddr;

use pk_proto::Instant;

use crate::host::id::HostId;

/// A datagram on its way.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) at: Instant,
    pub(super) sequence: u64,
    /// Host that sent it; `None` if it is forged.
    pub(super) by: Option<HostId>,
    pub(super) sent: Instant,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: u8,
    pub(super) bytes: Vec<u8>,
}

impl InFlight {
    fn order(&self) -> (Instant, u64) {
        (self.at, self.sequence)
    }
}

impl PartialEq for InFlight {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for InFlight {}

impl PartialOrd for InFlight {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for InFlight {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}
