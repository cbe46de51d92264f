//! The clocks of a node: the core's instants, those of the runtime, and the wall clock.

use std::time::{Duration, Instant as StdInstant, SystemTime, UNIX_EPOCH};

use pk_proto::cert::CertificateRequest;
use pk_proto::{Instant, UnixMillis};

/// Deviation of the wall clock from the core's estimate above which the core is corrected.
pub(crate) const DRIFT: Duration = Duration::from_millis(500);

/// Change of the wall clock that is logged as a warning: more than time synchronization corrects in
/// one step.
const LEAP: Duration = Duration::from_secs(60);

/// 2026-01-01T00:00:00Z. A clock that reads an earlier time is wrong, because this program is
/// newer.
const EARLIEST: UnixMillis = UnixMillis::from_secs(1_767_225_600);

/// The last millisecond of the last second at which a certificate can be valid.
const LAST: UnixMillis = UnixMillis(CertificateRequest::MAX_NOT_AFTER * 1000 + 999);

/// Longest duration of a runtime timer. Later deadlines are checked again after it, so that no
/// runtime gets a time that it cannot represent.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The origin of a node's time, and the clocks that it reads.
///
/// The core's `now` is the time since the node was started, *including* the time that the machine
/// was suspended. On Linux it is `CLOCK_BOOTTIME`, so that after a resume the core finds idle
/// connections and old deadlines overdue, as its peers do. Elsewhere it is the standard library's
/// monotonic clock, which may stop during a suspend; the wall clock still shows the difference (see
/// [`Clock::drift`]). Timers of a runtime use the monotonic clock: a timer that was set before a
/// suspend fires late by its length, unless a packet wakes the node first.
#[derive(Debug, Clone)]
pub struct Clock {
    origin: Duration,
    fallback_origin: StdInstant,
    /// The wall clock as last reported to the core.
    told: (Instant, UnixMillis),
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// Returns a clock whose origin is now.
    pub fn new() -> Self {
        let mut clock = Self {
            origin: Duration::ZERO,
            fallback_origin: StdInstant::now(),
            told: (Instant::ORIGIN, UnixMillis::default()),
        };
        clock.origin = clock.raw();
        clock.told = (clock.now(), unix());
        clock
    }

    /// Returns the core's `now`.
    pub fn now(&self) -> Instant {
        Instant::ORIGIN + self.raw().saturating_sub(self.origin)
    }

    /// Returns the wall clock as last reported to the core, for its start.
    pub fn unix(&self) -> UnixMillis {
        self.told.1
    }

    /// Returns the wall clock if it differs from the core's estimate, and counts it as reported.
    pub fn drift(&mut self, now: Instant) -> Option<UnixMillis> {
        let (told_at, told) = self.told;
        let elapsed = u64::try_from(now.since(told_at).as_millis()).unwrap_or(u64::MAX);
        let unix = unix();
        let drift = unix.0.abs_diff(told.0.saturating_add(elapsed));
        if Duration::from_millis(drift) < DRIFT {
            return None;
        }
        if Duration::from_millis(drift) >= LEAP {
            let before = UnixMillis(told.0.saturating_add(elapsed));
            tracing::warn!("the clock of this system was set from {before} to {unix}");
        }
        self.told = (now, unix);
        Some(unix)
    }

    /// Converts a deadline to the runtime's instant. `runtime_now` and `now` are the same moment.
    pub fn deadline(deadline: Instant, now: Instant, runtime_now: StdInstant) -> StdInstant {
        // One microsecond more, because the core's instants are truncated to microseconds and a
        // timer must not fire early.
        let wait = (deadline.since(now) + Duration::from_micros(1)).min(LONGEST_WAIT);
        runtime_now.checked_add(wait).unwrap_or(runtime_now)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn raw(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (Ok(secs), Ok(nanos)) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec))
        else {
            return self.fallback_origin.elapsed();
        };
        Duration::new(secs, nanos)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn raw(&self) -> Duration {
        self.fallback_origin.elapsed()
    }
}

/// Returns the wall clock, clamped to the range of certificate dates: 1970 to the end of 9999.
pub fn unix() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX).min(LAST.0))
}

/// Returns a warning if the wall clock cannot be right: it reads a time before the first version of
/// this program, or one that certificates cannot express.
pub fn clock_warning(unix: UnixMillis) -> Option<String> {
    let wrong = !(EARLIEST..LAST).contains(&unix);
    wrong.then(|| {
        format!(
            "the clock of this system reads {unix}, which is wrong: peers whose clock is right \
                refuse the certificate of this node until the clock is set; then the node \
                reissues it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_advances_and_drift_is_measured_from_the_reported_time() {
        let mut clock = Clock::new();
        let first = clock.now();
        std::thread::sleep(Duration::from_millis(5));
        let second = clock.now();
        assert!(second.since(first) >= Duration::from_millis(5));
        assert_eq!(clock.drift(second), None);
    }

    #[test]
    fn wall_clock_change_is_reported_once() {
        let mut clock = Clock::new();
        clock.told.1 = UnixMillis(clock.told.1.0 + 3_600_000);
        let now = clock.now();
        assert!(clock.drift(now).is_some());
        assert_eq!(clock.drift(now), None);
    }

    #[test]
    fn only_impossible_times_cause_a_warning() {
        for wrong in [UnixMillis(0), UnixMillis(EARLIEST.0 - 1), LAST, UnixMillis(u64::MAX)] {
            assert!(clock_warning(wrong).unwrap().contains(&wrong.to_string()));
        }
        for possible in [EARLIEST, unix(), UnixMillis(LAST.0 - 1)] {
            assert_eq!(clock_warning(possible), None);
        }
    }

    #[test]
    fn deadlines_saturate() {
        let (now, runtime_now) = (Instant::from_micros(5_000_000), StdInstant::now());
        let deadline = |deadline| Clock::deadline(deadline, now, runtime_now) - runtime_now;
        assert_eq!(deadline(Instant::ORIGIN), Duration::from_micros(1));
        assert_eq!(deadline(now + Duration::from_millis(3)), Duration::from_micros(3001));
        assert_eq!(deadline(Instant::FAR_FUTURE), LONGEST_WAIT);
    }
}
