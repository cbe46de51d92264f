//! Numbers and reasons in words.

use std::time::Duration;

use pk_proto::DisconnectReason;

/// Milliseconds with three decimals, as JSON has them.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A duration with three digits, in the unit that fits.
pub(crate) fn human(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        ..9.995 => format!("{ms:.2} ms"),
        ..99.95 => format!("{ms:.1} ms"),
        ..999.5 => format!("{ms:.0} ms"),
        ..99_950.0 => format!("{:.2} s", ms / 1e3),
        _ => format!("{:.0} s", ms / 1e3),
    }
}

/// Median and 95th percentile of some durations, by nearest rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spread {
    pub(crate) median: Duration,
    pub(crate) p95: Duration,
}

impl Spread {
    pub(crate) fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort_unstable();
        let rank = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { median: rank(50), p95: rank(95) }
    }
}

/// A count and its noun, in the plural unless it is one.
pub(crate) fn count(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// The day and the minute of a unix time in seconds, in UTC.
pub(crate) fn date(unix: u64) -> String {
    // Days since 0000-03-01, in eras of 400 years; years begin in March, so that the leap day is their last.
    let days = unix / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    let (hour, minute) = (unix / 3_600 % 24, unix / 60 % 60);
    format!("{:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC", era * 400 + year)
}

/// Why a connection is over. The usual end has neither code nor reason worth telling.
pub(crate) fn why_closed(why: &DisconnectReason) -> String {
    match why {
        DisconnectReason::Peer { code: 0, reason } if reason.is_empty() => "closed by the peer".to_owned(),
        why => why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        let shown = |micros| human(Duration::from_micros(micros));
        assert_eq!(
            [0, 123, 9_994, 12_340, 99_960, 999_600, 61_000_000, 100_000_000].map(shown),
            ["0.00 ms", "0.12 ms", "9.99 ms", "12.3 ms", "100 ms", "1.00 s", "61.00 s", "100 s"]
        );
    }

    #[test]
    fn dates_are_of_the_calendar() {
        // As `date -u -d @…` has them.
        for (unix, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_210_096, "2024-02-29 12:34 UTC"),
            (1_798_761_599, "2026-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(unix), expected);
        }
    }

    #[test]
    fn a_spread_is_by_nearest_rank() {
        let of = |n: u64| Spread::of((1..=n).rev().map(Duration::from_secs));
        let secs = |median, p95| Spread { median: Duration::from_secs(median), p95: Duration::from_secs(p95) };
        assert_eq!(Spread::of([]), Spread::default());
        assert_eq!(of(1), secs(1, 1));
        assert_eq!(of(2), secs(1, 2));
        assert_eq!(of(100), secs(50, 95));
    }
}
