//! Acceptors that change their address.
//!
//! QUIC lets only the dialer of a connection migrate (RFC 9000 section 9), and quinn-proto's dialer
//! drops packets from any other address. Between nodes, both ends may move, or the NAT before
//! either. A packet of a dialed connection from another address is therefore given to quinn-proto
//! under the known address. If it is authentic, the peer has moved: from then on the addresses are
//! translated in both directions.
//!
//! An authentic packet can be copied and sent with a forged source. Until the peer has answered at
//! its new address, at most three times the bytes of its authentic packets are sent there, as in
//! RFC 9000 section 8. The answer is an acknowledgement that arrives so late that it must belong to
//! a packet sent to the new address. A peer that does not answer, or whose packets arrive from its
//! former address again, is assumed to be there.

use std::net::SocketAddr;
use std::time::Duration;

use pk_proto::Instant;

/// Sent bytes per received byte before an address is validated (RFC 9000 section 8).
const AMPLIFICATION: u64 = 3;

/// Shortest time of one round trip in these decisions.
const SHORTEST: Duration = Duration::from_millis(20);

/// What a peer may add to a round trip before it acknowledges (RFC 9000 section 18.2,
/// `max_ack_delay`). After both, an acknowledgement belongs to a packet sent to the new address.
const ACK_DELAY: Duration = Duration::from_millis(25);

/// Datagrams per round trip to an address that is not validated: the few that may be sent are
/// spread, so that one of them is acknowledged late enough.
const PER_ROUND_TRIP: u32 = 4;

/// Round trips in which an address must be validated.
const PATIENCE: u32 = 6;
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);

/// The address of a peer that differs from the one that quinn-proto knows.
#[derive(Debug)]
pub(crate) struct Followed {
    /// Address of the peer's packets.
    real: SocketAddr,
    /// Validated address before this one.
    former: SocketAddr,
    since: Instant,
    round_trip: Duration,
    validated: bool,
    /// Time of the next datagram while the address is not validated.
    next: Instant,
    /// When the losses of the change are known.
    settled: Option<Instant>,
    received: u64,
    sent: u64,
}

impl Followed {
    /// An authentic packet of `len` bytes arrived from `real`.
    pub(crate) fn new(
        real: SocketAddr,
        former: SocketAddr,
        round_trip: Duration,
        len: usize,
        now: Instant,
    ) -> Self {
        Self {
            real,
            former,
            since: now,
            round_trip: round_trip.max(SHORTEST),
            validated: false,
            next: now,
            settled: None,
            received: len as u64,
            sent: 0,
        }
    }

    /// The peer is at an address that was validated before.
    pub(crate) fn returned(real: SocketAddr, round_trip: Duration, now: Instant) -> Self {
        Self { validated: true, ..Self::new(real, real, round_trip, 0, now) }
    }

    pub(crate) fn real(&self) -> SocketAddr {
        self.real
    }

    /// Returns the validated address before this one.
    pub(crate) fn former(&self) -> SocketAddr {
        self.former
    }

    /// Returns the last address that is known to be the peer's.
    pub(crate) fn validated(&self) -> SocketAddr {
        if self.validated { self.real } else { self.former }
    }

    #[cfg(test)]
    fn is_validated(&self) -> bool {
        self.validated
    }

    pub(crate) fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// An authentic packet arrived from the address, with an acknowledgement or not. Returns
    /// whether it validates the address.
    pub(crate) fn heard(&mut self, len: usize, acknowledges: bool, now: Instant) -> bool {
        self.received = self.received.saturating_add(len as u64);
        let late = now.since(self.since) >= self.round_trip + ACK_DELAY;
        let validates = !self.validated && acknowledges && late;
        if validates {
            self.validated = true;
            self.settled = Some(now + self.round_trip + ACK_DELAY);
        }
        validates
    }

    /// Returns when the next datagram may be sent to the address; `None` if at any time.
    pub(crate) fn next_send(&self) -> Option<Instant> {
        (!self.validated).then_some(self.next)
    }

    /// A datagram was taken from quinn-proto.
    pub(crate) fn took(&mut self, now: Instant) {
        self.next = now + self.round_trip / PER_ROUND_TRIP;
    }

    /// Counts a datagram to the address. Returns whether it may be sent.
    pub(crate) fn admits(&mut self, len: usize) -> bool {
        let sent = self.sent.saturating_add(len as u64);
        let admitted = self.validated || sent <= self.received.saturating_mul(AMPLIFICATION);
        if admitted {
            self.sent = sent;
        }
        admitted
    }

    /// Returns whether a packet from yet another address shows that the peer has moved on. A packet
    /// that was sent before the last change may arrive late.
    pub(crate) fn moves(&self, now: Instant) -> bool {
        now.since(self.since) >= self.round_trip
    }

    /// Returns whether the losses of the change are known since the last call.
    pub(crate) fn take_settled(&mut self, now: Instant) -> bool {
        self.settled.take_if(|at| *at <= now).is_some()
    }

    /// Returns when the address counts as wrong, or, once it is validated, when the losses of the
    /// change are known.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let patience = (self.round_trip * PATIENCE).max(SHORTEST_PATIENCE);
        if self.validated { self.settled } else { Some(self.since + patience) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1000)
    }

    #[test]
    fn address_receives_three_times_its_sent_bytes_until_it_answers() {
        let mut followed = Followed::new(addr(2), addr(1), Duration::from_millis(100), 40, at(0));
        assert!(followed.admits(100) && !followed.admits(21) && followed.admits(20));
        // An acknowledgement that may belong to a packet sent before does not validate.
        assert!(!followed.heard(40, true, at(124)));
        assert!(!followed.is_validated() && followed.admits(120) && !followed.admits(1));
        assert!(!followed.heard(40, false, at(300)));
        assert!(!followed.is_validated());
        assert_eq!((followed.validated(), followed.deadline()), (addr(1), Some(at(1000))));
        assert!(followed.heard(40, true, at(300)));
        assert!(followed.is_validated() && followed.admits(1_000_000));
        assert_eq!((followed.validated(), followed.deadline()), (addr(2), Some(at(425))));
        assert!(!followed.take_settled(at(424)) && followed.take_settled(at(425)));
        assert_eq!(followed.deadline(), None);
    }

    #[test]
    fn late_packet_of_the_former_address_changes_nothing() {
        let followed = Followed::new(addr(2), addr(1), Duration::from_millis(100), 40, at(0));
        assert!(!followed.moves(at(99)) && followed.moves(at(100)));
    }
}
