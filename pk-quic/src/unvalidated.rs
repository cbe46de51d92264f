//! Dialers that change their address, as the acceptor sees them.
//!
//! quinn-proto migrates to the new address and validates it. Until then it limits what it sends
//! there, except for probes of path MTU discovery, which it starts at once (RFC 9000 section 8.1
//! exempts nothing). The count here is independent, and withholds them: a lost probe is repeated.

use std::net::SocketAddr;

/// Sent bytes per received byte before an address is validated (RFC 9000 section 8).
const AMPLIFICATION: u64 = 3;

/// An address to which a dialer has migrated, until it is validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unvalidated {
    addr: SocketAddr,
    received: u64,
    sent: u64,
}

impl Unvalidated {
    /// The first datagram of `len` bytes arrived from an address.
    pub(crate) fn new(addr: SocketAddr, len: usize) -> Self {
        Self { addr, received: len as u64, sent: 0 }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Another datagram arrived from the address.
    pub(crate) fn heard(&mut self, len: usize) {
        self.received = self.received.saturating_add(len as u64);
    }

    /// Counts a datagram to the address. Returns whether it may be sent: as in quinn-proto, while
    /// less than the limit was sent.
    pub(crate) fn admits(&mut self, len: usize) -> bool {
        let admits = self.sent < self.received.saturating_mul(AMPLIFICATION);
        if admits {
            self.sent = self.sent.saturating_add(len as u64);
        }
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_times_the_received_bytes_are_admitted() {
        let mut unvalidated = Unvalidated::new(([20, 0, 0, 1], 1).into(), 100);
        assert!(unvalidated.admits(299) && unvalidated.admits(1200));
        assert!(!unvalidated.admits(1));
        unvalidated.heard(400);
        assert!(unvalidated.admits(1) && !unvalidated.admits(1));
    }
}
