//! Time in the transport: the core's instants, those of quinn-proto, and the wall clock for
//! certificates and tokens. All of them come from the caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as StdInstant, SystemTime, UNIX_EPOCH};

use pk_proto::{Instant, UnixMillis};
use quinn_proto::TimeSource;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Converts between the core's instants and those of quinn-proto.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin(StdInstant);

impl Origin {
    /// `origin` is the moment of [`Instant::ORIGIN`].
    pub(crate) fn new(origin: StdInstant) -> Self {
        Self(origin)
    }

    /// Returns quinn-proto's form of a time.
    pub(crate) fn std(self, now: Instant) -> StdInstant {
        self.0.checked_add(now.since(Instant::ORIGIN)).unwrap_or(self.0)
    }

    /// Returns the core's form of a deadline, rounded up, so that the deadline is over at it.
    pub(crate) fn core(self, at: StdInstant) -> Instant {
        let nanos = at.saturating_duration_since(self.0).as_nanos();
        Instant::from_micros(u64::try_from(nanos.div_ceil(1000)).unwrap_or(u64::MAX))
    }
}

/// The wall clock at the time of the last call. Clones share one value.
#[derive(Debug, Clone, Default)]
pub(crate) struct WallClock(Arc<AtomicU64>);

impl WallClock {
    pub(crate) fn set(&self, unix: UnixMillis) {
        self.0.store(unix.0, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::Relaxed))
    }
}

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.get().as_secs())))
    }
}

impl TimeSource for WallClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.get().0)).unwrap_or(UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_expires_at_its_rounded_time() {
        let base = StdInstant::now();
        let origin = Origin::new(base);
        for nanos in [0, 1, 999, 1000, 1001, 123_456_789] {
            let at = base + Duration::from_nanos(nanos);
            assert!(origin.std(origin.core(at)) >= at);
            assert!(origin.std(origin.core(at)) - at < Duration::from_micros(1));
        }
        assert_eq!(origin.core(base), Instant::ORIGIN);
    }
}
