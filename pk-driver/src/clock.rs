//! The time of a node: the core's instants, the runtime's, and the wall clock.

use std::time::{Duration, Instant as StdInstant, SystemTime, UNIX_EPOCH};

use pk_proto::{Instant, UnixMillis};

/// How far the wall clock may be from what the core believes before it is told.
const DRIFT: Duration = Duration::from_millis(500);

/// The longest that a timer is armed for: far deadlines are asked for again after it, and no runtime is asked for a time
/// that it cannot represent.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Where a node's time begins, and how it goes on.
///
/// The core's `now` is the time since the node was started, *including* the time that the machine was suspended: on Linux
/// it is `CLOCK_BOOTTIME`, so that after a resume the core finds its idle connections and old deadlines overdue, as its
/// peers do. Elsewhere it is the standard library's monotonic clock, which may stop during a suspend; the wall clock
/// still tells (see [`Clock::drift`]). Timers of a runtime run on the monotonic clock, so a timer armed before a suspend
/// fires as much later as the suspend was long, unless a packet wakes the node first.
#[derive(Debug)]
pub(crate) struct Clock {
    origin: Duration,
    fallback_origin: StdInstant,
    /// The wall clock as it was last told to the core.
    told: (Instant, UnixMillis),
}

impl Clock {
    pub(crate) fn new() -> Self {
        let mut clock = Self {
            origin: Duration::ZERO,
            fallback_origin: StdInstant::now(),
            told: (Instant::ORIGIN, UnixMillis::default()),
        };
        clock.origin = clock.raw();
        clock.told = (clock.now(), unix());
        clock
    }

    /// The core's now.
    pub(crate) fn now(&self) -> Instant {
        Instant::ORIGIN + self.raw().saturating_sub(self.origin)
    }

    /// The wall clock as the core was last told, for its start.
    pub(crate) fn unix(&self) -> UnixMillis {
        self.told.1
    }

    /// The wall clock, if it is not where the core believes it to be. Taken as told.
    pub(crate) fn drift(&mut self, now: Instant) -> Option<UnixMillis> {
        let (told_at, told) = self.told;
        let elapsed = u64::try_from(now.since(told_at).as_millis()).unwrap_or(u64::MAX);
        let unix = unix();
        let drift = unix.0.abs_diff(told.0.saturating_add(elapsed));
        if Duration::from_millis(drift) < DRIFT {
            return None;
        }
        self.told = (now, unix);
        Some(unix)
    }

    /// The runtime's instant of a deadline: `runtime_now` and `now` are the same moment.
    pub(crate) fn deadline(deadline: Instant, now: Instant, runtime_now: StdInstant) -> StdInstant {
        // One microsecond more: the core's instants are cut down to microseconds, a timer must not fire before them.
        let wait = (deadline.since(now) + Duration::from_micros(1)).min(LONGEST_WAIT);
        runtime_now.checked_add(wait).unwrap_or(runtime_now)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn raw(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (Ok(secs), Ok(nanos)) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec)) else {
            return self.fallback_origin.elapsed();
        };
        Duration::new(secs, nanos)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn raw(&self) -> Duration {
        self.fallback_origin.elapsed()
    }
}

/// The wall clock, as certificates and contacts count; the epoch if it stands before it.
pub fn unix() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_goes_on_and_the_wall_clock_is_where_it_was_told() {
        let mut clock = Clock::new();
        let first = clock.now();
        std::thread::sleep(Duration::from_millis(5));
        let second = clock.now();
        assert!(second.since(first) >= Duration::from_millis(5));
        assert_eq!(clock.drift(second), None);
    }

    #[test]
    fn a_wall_clock_that_was_set_is_told_once() {
        let mut clock = Clock::new();
        clock.told.1 = UnixMillis(clock.told.1.0 + 3_600_000);
        let now = clock.now();
        assert!(clock.drift(now).is_some());
        assert_eq!(clock.drift(now), None);
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
