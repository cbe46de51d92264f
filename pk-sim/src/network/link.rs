//! Delay and loss of packets between two hosts.

use std::time::Duration;

use crate::rng_streams::RngStream;

/// Maximum number of consecutive losses; the next packet arrives.
const MAX_LOSSES: u32 = 12;

/// The link between two hosts, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// One-way latency.
    pub latency: Duration,
    /// Maximum random addition to the latency of each packet.
    pub jitter: Duration,
    /// Per mille of packets that are lost, at most 900. Reliable data is retransmitted and arrives
    /// later; a datagram is lost.
    pub loss_per_mille: u16,
    /// Per mille of datagrams that arrive twice.
    pub duplicate_per_mille: u16,
    /// Per mille of datagrams that are delayed by up to three latencies, so that others overtake
    /// them.
    pub reorder_per_mille: u16,
}

impl Default for Link {
    /// 10 ms, without faults.
    fn default() -> Self {
        Self::new(Duration::from_millis(10))
    }
}

impl Link {
    /// Returns a link with this latency and without faults.
    pub const fn new(latency: Duration) -> Self {
        Self {
            latency,
            jitter: Duration::ZERO,
            loss_per_mille: 0,
            duplicate_per_mille: 0,
            reorder_per_mille: 0,
        }
    }

    /// [`new`](Self::new) in milliseconds.
    pub const fn ms(latency: u64) -> Self {
        Self::new(Duration::from_millis(latency))
    }

    /// Sets the maximum jitter.
    #[must_use]
    pub const fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// Sets the per mille of lost packets, at most 900.
    #[must_use]
    pub const fn loss(mut self, per_mille: u16) -> Self {
        self.loss_per_mille = if per_mille > 900 { 900 } else { per_mille };
        self
    }

    /// Sets the per mille of duplicated datagrams, and of delayed ones.
    #[must_use]
    pub const fn disorder(mut self, per_mille: u16) -> Self {
        self.duplicate_per_mille = per_mille;
        self.reorder_per_mille = per_mille;
        self
    }

    /// Returns the delay of one packet that arrives.
    fn once(&self, die: &mut RngStream) -> Duration {
        let jitter = u64::try_from(self.jitter.as_micros()).unwrap_or(u64::MAX);
        if jitter == 0 {
            self.latency
        } else {
            self.latency + Duration::from_micros(die.below(jitter + 1))
        }
    }

    /// Returns the delay of reliable data: each loss costs `probe`, doubled for each further one
    /// (RFC 9002 section 6.2.1).
    pub(crate) fn reliable(&self, die: &mut RngStream, probe: Duration) -> Duration {
        let mut delay = Duration::ZERO;
        for losses in 0..MAX_LOSSES {
            if !die.happens(self.loss_per_mille) {
                break;
            }
            delay += probe * (1 << losses);
        }
        delay + self.once(die)
    }

    /// Returns the delays of the copies of a datagram: none, one or two.
    pub(crate) fn datagram(&self, die: &mut RngStream) -> Vec<Duration> {
        if die.happens(self.loss_per_mille) {
            return Vec::new();
        }
        let copies = if die.happens(self.duplicate_per_mille) { 2 } else { 1 };
        let late = 3 * u64::try_from(self.latency.as_micros()).unwrap_or(u64::MAX / 3);
        let mut copy = || {
            let late = if die.happens(self.reorder_per_mille) { die.below(late + 1) } else { 0 };
            self.once(die) + Duration::from_micros(late)
        };
        (0..copies).map(|_| copy()).collect()
    }

    /// Returns the time until a sender retransmits (RFC 9002 section 6.2.1).
    pub(crate) fn probe_timeout(&self) -> Duration {
        3 * self.latency + 2 * self.jitter + Duration::from_millis(26)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_delays_reliable_packets_and_drops_datagrams() {
        let link = Link::ms(20).loss(300).jitter(Duration::from_millis(5));
        let mut die = RngStream::new(1, 1);
        let probe = Duration::from_millis(100);
        let delays: Vec<_> = (0..1000).map(|_| link.reliable(&mut die, probe)).collect();
        let unlucky = delays.iter().filter(|delay| **delay >= link.latency + probe).count();
        assert!((250..350).contains(&unlucky), "{unlucky}");
        assert!(delays.iter().all(|delay| *delay >= link.latency));
        let arrived = (0..1000).filter(|_| !link.datagram(&mut die).is_empty()).count();
        assert!((650..750).contains(&arrived), "{arrived}");
    }

    #[test]
    fn datagrams_are_duplicated_and_reordered() {
        let link = Link::ms(20).disorder(500);
        let mut die = RngStream::new(2, 1);
        let arrivals: Vec<_> = (0..1000).flat_map(|_| link.datagram(&mut die)).collect();
        assert!((1400..1600).contains(&arrivals.len()), "{}", arrivals.len());
        let late = arrivals.iter().filter(|delay| **delay > link.latency).count();
        assert!(late > 600, "{late}");
    }
}
