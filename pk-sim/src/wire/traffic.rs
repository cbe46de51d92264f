//! What a host sends, counted in messages, bytes, datagrams and handshakes.
//!
//! The transport simulates messages, not datagrams; the datagrams are those that QUIC would send:
//! a message takes as many as its bytes need, a receiver acknowledges every second one, the first
//! packet of a handshake is padded (RFC 9000 section 14.1), and an idle connection costs each end
//! one datagram in the keep-alive interval.

use std::ops::{AddAssign, Sub};
use std::time::Duration;

use crate::wire::packet::{Frame, Handshake, Packet};

/// Payload of a datagram, in bytes.
const PAYLOAD: u64 = 1200;
/// Headers and the tag of a datagram, with UDP and IP, in bytes.
const OVERHEAD: u64 = 60;
/// A frame without data, in bytes.
const CONTROL: u64 = 16;
/// Messages of TLS without certificates, in bytes.
const TLS: u64 = 400;

/// What a host, or all hosts, sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Dials that were started.
    pub dials: u64,
    /// Handshakes that were completed, as dialer or acceptor.
    pub handshakes: u64,
    /// Messages of the transport: steps of handshakes, pieces of streams, closes and the like.
    pub messages: u64,
    /// Bytes of streams, without those that were sent again.
    pub stream_bytes: u64,
    /// Datagrams, with acknowledgements and keep-alives.
    pub datagrams: u64,
    /// Bytes of datagrams, with the headers of UDP and IP.
    pub wire_bytes: u64,
    /// Messages that are to be acknowledged.
    owed: u64,
}

impl Traffic {
    /// A message is sent, `again` after it did not arrive.
    pub(crate) fn sent(&mut self, packet: &Packet, again: bool) {
        let bytes = match packet {
            Packet::Handshake(step) => match &**step {
                Handshake::Initial => PAYLOAD,
                Handshake::Accepted { identity, .. } | Handshake::Finished { identity } => {
                    TLS + identity.chain.iter().map(|cert| cert.len() as u64).sum::<u64>()
                }
                Handshake::Refused { .. } | Handshake::Done => CONTROL,
            },
            Packet::Stream { frame: Frame::Piece(piece), .. } => {
                let bytes = piece.bytes.len() as u64;
                self.stream_bytes += if again { 0 } else { bytes };
                CONTROL + bytes
            }
            Packet::Stream { .. }
            | Packet::Close { .. }
            | Packet::StreamOver
            | Packet::Alive { .. }
            | Packet::Moved { .. } => CONTROL,
        };
        self.messages += u64::from(!again);
        self.add_datagrams(bytes.div_ceil(PAYLOAD).max(1), bytes);
    }

    /// A message arrived here that QUIC acknowledges.
    pub(crate) fn acknowledges(&mut self) {
        self.owed += 1;
        if self.owed.is_multiple_of(2) {
            self.add_datagrams(1, CONTROL);
        }
    }

    /// A connection was idle for this long.
    pub(crate) fn keeps_alive(&mut self, idle: Duration, interval: Duration) {
        let beats = idle.as_micros() / interval.as_micros().max(1);
        let beats = u64::try_from(beats).unwrap_or(u64::MAX);
        self.add_datagrams(beats, beats * CONTROL);
    }

    fn add_datagrams(&mut self, datagrams: u64, bytes: u64) {
        self.datagrams += datagrams;
        self.wire_bytes += bytes + datagrams * OVERHEAD;
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.dials += other.dials;
        self.handshakes += other.handshakes;
        self.messages += other.messages;
        self.stream_bytes += other.stream_bytes;
        self.datagrams += other.datagrams;
        self.wire_bytes += other.wire_bytes;
        self.owed += other.owed;
    }
}

impl Sub for Traffic {
    type Output = Self;

    /// Returns what was sent since `before`.
    fn sub(self, before: Self) -> Self {
        Self {
            dials: self.dials.saturating_sub(before.dials),
            handshakes: self.handshakes.saturating_sub(before.handshakes),
            messages: self.messages.saturating_sub(before.messages),
            stream_bytes: self.stream_bytes.saturating_sub(before.stream_bytes),
            datagrams: self.datagrams.saturating_sub(before.datagrams),
            wire_bytes: self.wire_bytes.saturating_sub(before.wire_bytes),
            owed: self.owed.saturating_sub(before.owed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::Piece;

    fn piece(bytes: usize) -> Packet {
        let piece = Piece { number: 0, bytes: vec![0; bytes].into(), fin: false };
        Packet::Stream { key: (0, 0), frame: Frame::Piece(piece) }
    }

    #[test]
    fn message_takes_as_many_datagrams_as_its_bytes_need() {
        let mut traffic = Traffic::default();
        traffic.sent(&piece(1184), false);
        assert_eq!((traffic.datagrams, traffic.stream_bytes, traffic.wire_bytes), (1, 1184, 1260));
        traffic.sent(&piece(1185), false);
        assert_eq!((traffic.datagrams, traffic.stream_bytes), (3, 2369));
        traffic.sent(&piece(1185), true);
        assert_eq!((traffic.datagrams, traffic.stream_bytes, traffic.messages), (5, 2369, 2));
        (0..5).for_each(|_| traffic.acknowledges());
        assert_eq!(traffic.datagrams, 7, "every second message is acknowledged");
        traffic.keeps_alive(Duration::from_secs(59), Duration::from_secs(10));
        assert_eq!(traffic.datagrams, 12);
    }

    #[test]
    fn difference_is_what_was_sent_in_between() {
        let mut before = Traffic::default();
        before.sent(&piece(10), false);
        let mut after = before;
        after.sent(&piece(20), false);
        assert_eq!((after - before).stream_bytes, 20);
        before += after;
        assert_eq!((before.stream_bytes, before.messages), (40, 3));
    }
}
