//! An address that has not shown that it receives gets at most three times the bytes that it sent
//! (RFC 9000 section 8.1).
//!
//! quinn-proto sends whole datagrams: while less than that was sent, one more may leave, of each
//! connection. The rule here is the same. Where pk-quic counts by itself (its `follow.rs`), the
//! limit is exact, which a test shows with [`Amplification::exchanged`].

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pk_proto::Instant;

use super::violation::Violation;

/// Maximum length of a datagram.
const DATAGRAM: u64 = 1472;

/// The remote addresses of one host.
#[derive(Debug, Default)]
pub(super) struct Amplification {
    addresses: BTreeMap<SocketAddr, Remote>,
}

#[derive(Debug, Default)]
struct Remote {
    sent: u64,
    received: u64,
    /// Bytes that are sent unasked: punch datagrams.
    allowed: u64,
    /// When a datagram first arrived there.
    reached: Option<Instant>,
    /// It received a datagram before it sent one, or the local node has dialed it.
    is_free: bool,
}

impl Amplification {
    /// The node dials an address by its own decision.
    pub(super) fn dialed(&mut self, to: SocketAddr) {
        self.addresses.entry(to).or_default().is_free = true;
    }

    /// The node sends this many bytes unasked.
    pub(super) fn punched(&mut self, to: SocketAddr, bytes: usize) {
        self.addresses.entry(to).or_default().allowed += bytes as u64;
    }

    /// A datagram of the node has arrived at its destination.
    pub(super) fn reached(&mut self, to: SocketAddr, now: Instant) {
        self.addresses.entry(to).or_default().reached.get_or_insert(now);
    }

    /// The node receives a datagram that was sent at `sent`.
    pub(super) fn received(&mut self, from: SocketAddr, bytes: usize, sent: Instant) {
        let remote = self.addresses.entry(from).or_default();
        remote.received += bytes as u64;
        remote.is_free |= remote.reached.is_some_and(|reached| sent >= reached);
    }

    /// Returns the bytes sent to an address and received from it.
    pub(super) fn exchanged(&self, with: SocketAddr) -> (u64, u64) {
        self.addresses.get(&with).map_or((0, 0), |remote| (remote.sent, remote.received))
    }

    /// The node sends a datagram to an address, where `connections` may have their remote end.
    pub(super) fn sends(
        &mut self,
        to: SocketAddr,
        bytes: usize,
        connections: u64,
    ) -> Result<(), Violation> {
        let remote = self.addresses.entry(to).or_default();
        remote.sent += bytes as u64;
        let limit = 3 * remote.received + remote.allowed;
        // The last datagram of each connection may be longer than its budget.
        let last = if remote.received > 0 { connections * DATAGRAM } else { 0 };
        if remote.is_free || remote.sent <= limit + last {
            return Ok(());
        }
        let (sent, received) = (remote.sent, remote.received);
        let what = format!("{sent} bytes sent to {to}, which has sent only {received}");
        Err(Violation::new("amplification", what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_bugs_are_caught() {
        let [dialed, asks, forged, punched] =
            [1, 2, 3, 4].map(|n| SocketAddr::from(([20, 0, n, 1], 1)));
        let at = Instant::from_micros;
        let mut checker = Amplification::default();
        checker.dialed(dialed);
        assert_eq!(checker.sends(dialed, 1200, 1), Ok(()));

        checker.received(asks, 1200, at(0));
        assert_eq!(checker.sends(asks, 3600, 1), Ok(()));
        assert_eq!(checker.sends(asks, 1472, 1), Ok(()), "the last datagram of one connection");
        // Earlier bytes validate nothing.
        checker.reached(asks, at(10));
        checker.received(asks, 0, at(9));
        assert!(checker.sends(asks, 1, 1).unwrap_err().what.contains("5073 bytes sent"));
        assert_eq!(checker.exchanged(asks), (5073, 1200));
        checker.received(asks, 0, at(10));
        assert_eq!(checker.sends(asks, 1_000_000, 1), Ok(()));

        checker.received(forged, 100, at(0));
        assert_eq!(checker.sends(forged, 300, 0), Ok(()));
        assert!(checker.sends(forged, 1, 0).is_err());

        checker.punched(punched, 40);
        assert_eq!(checker.sends(punched, 40, 1), Ok(()));
        assert!(checker.sends(punched, 1, 1).is_err());
    }
}
