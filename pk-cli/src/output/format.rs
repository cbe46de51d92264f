//! Numbers and reasons as text.

use std::time::Duration;

use pk_proto::{DisconnectReason, UnixMillis};

/// Returns milliseconds with three decimals, for JSON.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Formats a duration with three digits, in a suitable unit.
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

/// Median and 95th percentile of durations, by nearest rank.
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

/// Formats a count and its noun, in the plural unless the count is one.
pub(crate) fn count(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Formats a unix time in seconds as a date of RFC 3339 in UTC.
pub(crate) fn date(unix: u64) -> String {
    UnixMillis::from_secs(unix).to_string()
}

/// Formats the reason of a disconnect. The usual reason has no code and text worth printing.
pub(crate) fn why_closed(why: &DisconnectReason) -> String {
    match why {
        DisconnectReason::Peer { code: 0, reason } if reason.is_empty() => {
            "closed by the peer".to_owned()
        }
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
    fn spread_uses_nearest_rank() {
        let of = |n: u64| Spread::of((1..=n).rev().map(Duration::from_secs));
        let secs = |median, p95| Spread {
            median: Duration::from_secs(median),
            p95: Duration::from_secs(p95),
        };
        assert_eq!(Spread::of([]), Spread::default());
        assert_eq!(of(1), secs(1, 1));
        assert_eq!(of(2), secs(1, 2));
        assert_eq!(of(100), secs(50, 95));
    }
}
