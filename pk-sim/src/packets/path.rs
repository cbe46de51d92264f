//! What a path carries: the length of a datagram, and a bandwidth with a queue in front of it.

use std::collections::BTreeMap;
use std::time::Duration;

use pk_proto::Instant;

use crate::host::id::HostId;

/// Limits of the path between two hosts, for each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathLimits {
    /// Maximum length of the payload of a datagram, in bytes; longer ones are lost. Default 1472.
    pub mtu: usize,
    /// Bytes per second; `None` is without limit. Default `None`.
    pub bandwidth: Option<u64>,
    /// Bytes that wait while the path is busy; what does not fit is lost. Default 256 KiB.
    pub queue: u64,
}

impl Default for PathLimits {
    fn default() -> Self {
        Self { mtu: 1472, bandwidth: None, queue: 256 * 1024 }
    }
}

/// Datagrams that paths have lost because of their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathCounters {
    /// Longer than the MTU.
    pub too_long: u64,
    /// Without room in a queue.
    pub queue_full: u64,
}

/// The limits of all paths.
#[derive(Debug, Default)]
pub(super) struct Paths {
    pub(super) all: PathLimits,
    pairs: BTreeMap<(HostId, HostId), PathLimits>,
    /// Time at which each direction has sent everything.
    busy: BTreeMap<(HostId, HostId), Instant>,
    pub(super) counters: PathCounters,
}

impl Paths {
    pub(super) fn set(&mut self, a: HostId, b: HostId, limits: PathLimits) {
        self.pairs.insert((a.min(b), a.max(b)), limits);
    }

    /// A datagram of `len` bytes is sent. Returns the time at which it has left the queue, or
    /// `None` if it is lost.
    pub(super) fn enter(
        &mut self,
        from: HostId,
        to: HostId,
        len: usize,
        now: Instant,
    ) -> Option<Instant> {
        let limits = self.pairs.get(&(from.min(to), from.max(to))).copied().unwrap_or(self.all);
        if len > limits.mtu {
            self.counters.too_long += 1;
            return None;
        }
        let Some(bandwidth) = limits.bandwidth else { return Some(now) };
        let busy = self.busy.entry((from, to)).or_default();
        let waiting = busy.since(now).as_micros() * u128::from(bandwidth) / 1_000_000;
        if waiting + len as u128 > u128::from(limits.queue) {
            self.counters.queue_full += 1;
            return None;
        }
        let takes = (len as u64 * 1_000_000).div_ceil(bandwidth.max(1));
        *busy = (*busy).max(now) + Duration::from_micros(takes);
        Some(*busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_has_a_bandwidth_a_queue_and_a_length() {
        let all = PathLimits { mtu: 1000, bandwidth: Some(1_000_000), queue: 2500 };
        let mut paths = Paths { all, ..Paths::default() };
        let at = Instant::from_micros;
        assert_eq!(paths.enter(0, 1, 1001, at(0)), None);
        assert_eq!(paths.enter(0, 1, 1000, at(0)), Some(at(1000)));
        assert_eq!(paths.enter(0, 1, 1000, at(0)), Some(at(2000)));
        assert_eq!(paths.enter(0, 1, 1000, at(0)), None, "the queue is full");
        assert_eq!(paths.enter(1, 0, 1000, at(0)), Some(at(1000)), "each direction has its own");
        assert_eq!(paths.enter(0, 1, 1000, at(600)), Some(at(3000)));
        assert_eq!(paths.enter(0, 1, 500, at(9000)), Some(at(9500)));
        assert_eq!(paths.counters, PathCounters { too_long: 1, queue_full: 1 });
        paths.set(1, 0, PathLimits::default());
        assert_eq!(paths.enter(0, 1, 1472, at(9000)), Some(at(9000)));
    }
}
