//! Time in the core: a monotonic instant from the driver, and the wall clock derived from it.

use core::fmt;
use core::ops::{Add, Sub};
use core::time::Duration;

use serde::{Deserialize, Serialize};

/// A time in microseconds since an origin chosen by the driver. Arithmetic saturates at both ends.
/// A positive duration below one microsecond counts as one microsecond, so that a time after a
/// positive duration is always a later one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Instant(u64);

impl Instant {
    /// Origin of the driver.
    pub const ORIGIN: Self = Self(0);
    /// Later than every time that a machine reaches: a deadline that is never exceeded.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// Returns the time this many microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Returns the microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The last time that a clock reads.
    pub(crate) const LAST: Self = Self(u64::MAX - 1);

    /// Returns the time elapsed since `earlier`, or zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }
}

/// Returns whole microseconds; at least one, unless the duration is zero.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(u64::from(!duration.is_zero()))
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Wall time in milliseconds since the Unix epoch.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Returns the start of a second since the epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Returns whole seconds since the epoch, the unit of certificates and tokens.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }
}

impl fmt::Display for UnixMillis {
    /// RFC 3339 in UTC, whole seconds: `2026-11-29T09:15:00Z`. Years after 9999 have more digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.as_secs();
        // Days since 0000-03-01, in eras of 400 years; years begin in March, so that the leap day
        // is their last.
        let days = secs / 86_400 + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
        let (year, hour, minute, second) =
            (era * 400 + year, secs / 3_600 % 24, secs / 60 % 60, secs % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Returns a duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock as a function of the instant: known at one instant, and extrapolated from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WallClock {
    at: Instant,
    unix: UnixMillis,
}

impl WallClock {
    pub(crate) fn new(at: Instant, unix: UnixMillis) -> Self {
        Self { at, unix }
    }

    pub(crate) fn read(&self, now: Instant) -> UnixMillis {
        UnixMillis(self.unix.0.saturating_add(millis(now.since(self.at))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_saturate() {
        assert_eq!(Instant::ORIGIN - Duration::from_secs(1), Instant::ORIGIN);
        assert_eq!(Instant::FAR_FUTURE + Duration::MAX, Instant::FAR_FUTURE);
        assert_eq!(Instant::ORIGIN.since(Instant::from_micros(5)), Duration::ZERO);
        assert_eq!(Instant::from_micros(5).since(Instant::ORIGIN), Duration::from_micros(5));
    }

    #[test]
    fn wall_time_is_written_as_a_date() {
        // As printed by `date -u -d @…`.
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
            (253_402_300_800, "10000-01-01T00:00:00Z"),
        ] {
            assert_eq!(std::format!("{}", UnixMillis::from_secs(secs)), expected);
        }
        assert!(std::format!("{}", UnixMillis(u64::MAX)).ends_with('Z'));
    }

    #[test]
    fn positive_duration_is_never_rounded_to_zero() {
        let at = Instant::from_micros(7);
        for (nanos, micros) in [(0, 7), (1, 8), (999, 8), (1000, 8), (1999, 8), (2000, 9)] {
            let time = Duration::from_nanos(nanos);
            assert_eq!(at + time, Instant::from_micros(micros), "{nanos} ns");
            assert_eq!((at + time) - time, at, "{nanos} ns");
        }
        assert!(Instant::LAST + Duration::from_nanos(1) == Instant::FAR_FUTURE);
    }

    #[test]
    fn wall_time_follows_the_instant() {
        let clock = WallClock::new(Instant::from_micros(2_000_000), UnixMillis(1_000));
        assert_eq!(clock.read(Instant::from_micros(3_500_999)), UnixMillis(2_500));
        assert_eq!(clock.read(Instant::ORIGIN), UnixMillis(1_000));
    }
}
