//! Relayed paths and circuits: which stream has which address, which streams are joined, and
//! what each circuit may still carry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use pk_proto::{CircuitLimits, Instant, NodeId, StreamId};

/// Time whose bytes may be sent at once: a window of packets arrives together.
const BURST: Duration = Duration::from_millis(250);

/// Smallest burst, in bytes.
const LEAST_BURST: u64 = 64 * 1024;

/// All paths and circuits of an endpoint.
#[derive(Debug, Default)]
pub(crate) struct Circuits {
    paths: BTreeMap<StreamId, SocketAddr>,
    by_addr: BTreeMap<SocketAddr, StreamId>,
    circuits: BTreeMap<StreamId, Circuit>,
    /// Streams of the nodes that have requested circuits, by the streams to the other ends.
    by_other: BTreeMap<StreamId, StreamId>,
    /// Meters of the nodes that have circuits.
    owners: BTreeMap<NodeId, Owner>,
    all: Meter,
    due: BTreeSet<(Instant, StreamId)>,
}

/// A circuit that is forwarded.
#[derive(Debug)]
struct Circuit {
    other: StreamId,
    limits: CircuitLimits,
    carried: u64,
    heard: Instant,
    due: Instant,
}

#[derive(Debug, Default)]
struct Owner {
    circuits: usize,
    meter: Meter,
}

/// A rate, by the time at which all that was sent is paid for.
#[derive(Debug, Default, Clone, Copy)]
struct Meter {
    paid: Instant,
}

impl Meter {
    /// Returns whether bytes may pass now at a rate per second, and counts them if so.
    fn admits(&mut self, bytes: usize, rate: u64, now: Instant) -> bool {
        let cost = |bytes: u64| {
            let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.max(1));
            Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
        };
        let burst = BURST.max(cost(LEAST_BURST));
        let paid = self.paid.max(now) + cost(bytes as u64);
        let admitted = paid.since(now) <= burst;
        if admitted {
            self.paid = paid;
        }
        admitted
    }
}

/// Where a datagram of a stream goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Forward {
    /// To this node, from this address.
    Here(SocketAddr),
    /// To the other stream of its circuit.
    To(StreamId),
    /// Nowhere: the rate is exceeded.
    Dropped,
    /// Nowhere: the circuit has carried all that it may, and must be ended.
    Exhausted,
    /// Nowhere: the stream belongs to nothing.
    Nowhere,
}

/// What has ended with a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A path.
    Path,
    /// A circuit: both streams, that of its owner first, and the bytes that it has carried.
    Circuit { stream: StreamId, other: StreamId, bytes: u64 },
    /// Nothing.
    Nothing,
}

impl Circuits {
    /// A stream is a path with this address.
    pub(crate) fn attach(&mut self, stream: StreamId, addr: SocketAddr) {
        self.paths.insert(stream, addr);
        self.by_addr.insert(addr, stream);
    }

    /// The datagrams of two streams are forwarded to each other.
    pub(crate) fn join(
        &mut self,
        stream: StreamId,
        other: StreamId,
        limits: CircuitLimits,
        now: Instant,
    ) {
        self.owners.entry(limits.owner).or_default().circuits += 1;
        let due = now + limits.idle_timeout;
        self.due.insert((due, stream));
        self.by_other.insert(other, stream);
        self.circuits.insert(stream, Circuit { other, limits, carried: 0, heard: now, due });
    }

    /// Returns the stream of a path.
    pub(crate) fn path(&self, addr: &SocketAddr) -> Option<StreamId> {
        self.by_addr.get(addr).copied()
    }

    /// Returns the number of paths, and that of circuits.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.paths.len(), self.circuits.len())
    }

    /// Decides about a datagram that arrived on a stream.
    pub(crate) fn forward(&mut self, from: StreamId, len: usize, now: Instant) -> Forward {
        if let Some(addr) = self.paths.get(&from) {
            return Forward::Here(*addr);
        }
        let stream = self.by_other.get(&from).copied().unwrap_or(from);
        let Some(circuit) = self.circuits.get_mut(&stream) else { return Forward::Nowhere };
        circuit.heard = now;
        let carried = circuit.carried.saturating_add(len as u64);
        if carried > circuit.limits.volume {
            return Forward::Exhausted;
        }
        let CircuitLimits { owner, owner_rate, rate, .. } = circuit.limits;
        let Some(owner) = self.owners.get_mut(&owner) else { return Forward::Nowhere };
        let before = owner.meter;
        if !owner.meter.admits(len, owner_rate, now) {
            return Forward::Dropped;
        }
        if !self.all.admits(len, rate, now) {
            owner.meter = before;
            return Forward::Dropped;
        }
        circuit.carried = carried;
        Forward::To(if from == stream { circuit.other } else { stream })
    }

    /// A stream has ended.
    pub(crate) fn end(&mut self, ended: StreamId) -> Ended {
        if let Some(addr) = self.paths.remove(&ended) {
            self.by_addr.remove(&addr);
            return Ended::Path;
        }
        let stream = self.by_other.get(&ended).copied().unwrap_or(ended);
        let Some(Circuit { other, limits, carried, due, .. }) = self.circuits.remove(&stream)
        else {
            return Ended::Nothing;
        };
        self.by_other.remove(&other);
        self.due.remove(&(due, stream));
        if let Some(owner) = self.owners.get_mut(&limits.owner) {
            owner.circuits -= 1;
            if owner.circuits == 0 {
                self.owners.remove(&limits.owner);
            }
        }
        Ended::Circuit { stream, other, bytes: carried }
    }

    /// Returns when a circuit may have been idle for too long.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Returns a circuit that was idle for too long.
    pub(crate) fn take_idle(&mut self, now: Instant) -> Option<StreamId> {
        while let Some((at, stream)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, stream));
            let Some(circuit) = self.circuits.get_mut(&stream) else { continue };
            let due = circuit.heard + circuit.limits.idle_timeout;
            if due <= now {
                return Some(stream);
            }
            circuit.due = due;
            self.due.insert((due, stream));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(owner: u8, owner_rate: u64, rate: u64) -> CircuitLimits {
        let owner = NodeId::from_bytes([owner; 32]);
        let idle_timeout = Duration::from_secs(60);
        CircuitLimits { owner, owner_rate, rate, volume: 1 << 30, idle_timeout }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1000)
    }

    /// Bytes of `stream` that pass in ten seconds from a time, in which ten times the rate is sent.
    fn passed(circuits: &mut Circuits, stream: u64, rate: u64, from: u64) -> u64 {
        let sent = (from..from + 10_000).flat_map(|ms| (0..rate / 100_000).map(move |_| ms));
        let forwarded = sent
            .map(|ms| circuits.forward(StreamId(stream), 1000, at(ms)))
            .filter(|forward| matches!(forward, Forward::To(_)));
        forwarded.count() as u64 * 1000
    }

    #[test]
    fn rate_of_an_owner_holds_for_all_its_circuits_and_not_for_others() {
        let rate = 1_000_000;
        let mut circuits = Circuits::default();
        circuits.join(StreamId(1), StreamId(2), limits(1, rate, 8 * rate), at(0));
        circuits.join(StreamId(3), StreamId(4), limits(1, rate, 8 * rate), at(0));
        circuits.join(StreamId(5), StreamId(6), limits(2, rate, 8 * rate), at(0));
        let first = passed(&mut circuits, 1, rate, 0);
        assert!((10 * rate..=10 * rate + rate / 2).contains(&first), "{first}");
        // At the same moments, and in the other direction, nothing is left.
        assert_eq!(circuits.forward(StreamId(4), 1000, at(9_999)), Forward::Dropped);
        let other = passed(&mut circuits, 5, rate, 10_000);
        assert!(other >= 10 * rate, "{other}");
    }

    #[test]
    fn rate_of_all_circuits_holds_for_several_owners() {
        let rate = 1_000_000;
        let mut circuits = Circuits::default();
        for owner in 0..4 {
            let stream = u64::from(owner) * 2 + 1;
            let limits = limits(owner, rate, 2 * rate);
            circuits.join(StreamId(stream), StreamId(stream + 1), limits, at(0));
        }
        let mut passed = 0;
        for ms in 0..10_000 {
            for stream in [1, 3, 5, 7] {
                for _ in 0..4 {
                    let forward = circuits.forward(StreamId(stream), 1000, at(ms));
                    passed += u64::from(matches!(forward, Forward::To(_))) * 1000;
                }
            }
        }
        assert!((20 * rate..=21 * rate).contains(&passed), "{passed}");
    }

    #[test]
    fn circuit_ends_after_its_volume_or_when_it_is_idle() {
        let mut circuits = Circuits::default();
        let limits = CircuitLimits { volume: 2500, ..limits(1, 1 << 30, 1 << 30) };
        circuits.join(StreamId(1), StreamId(2), limits, at(0));
        assert_eq!(circuits.forward(StreamId(1), 1000, at(0)), Forward::To(StreamId(2)));
        assert_eq!(circuits.forward(StreamId(2), 1000, at(50_000)), Forward::To(StreamId(1)));
        assert_eq!(circuits.forward(StreamId(1), 1000, at(50_000)), Forward::Exhausted);
        assert_eq!((circuits.due(), circuits.take_idle(at(60_000))), (Some(at(60_000)), None));
        assert_eq!(circuits.take_idle(at(109_999)), None);
        assert_eq!(circuits.take_idle(at(110_000)), Some(StreamId(1)));
        let ended = Ended::Circuit { stream: StreamId(1), other: StreamId(2), bytes: 2000 };
        assert_eq!(circuits.end(StreamId(2)), ended);
        assert_eq!(circuits.forward(StreamId(1), 1000, at(0)), Forward::Nowhere);
        assert!(circuits.owners.is_empty() && circuits.due.is_empty());
    }
}
