//! The leaky bucket of faults of one connection.

use core::time::Duration;

use crate::api::config::Config;
use crate::types::time::Instant;

/// Weight of a fault, in points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Weight {
    /// A refused request.
    Refused = 1,
    /// An unknown message, or a request with invalid parameters.
    Unknown = 2,
    /// A violation that no correct peer commits.
    Fault = 16,
}

/// The leaky bucket of one connection.
#[derive(Debug, Default)]
pub(super) struct FaultMeter {
    points: u64,
    /// Time until which leaked points are subtracted.
    leaked_at: Instant,
}

impl FaultMeter {
    /// Adds points; returns whether the limit is exceeded.
    pub(super) fn add(&mut self, now: Instant, weight: Weight, config: &Config) -> bool {
        self.leak(now, config.fault_decay);
        self.points = self.points.saturating_add(weight as u64);
        self.points >= u64::from(config.fault_limit) * Weight::Fault as u64
    }

    /// Faults leak as a whole: the limit is exact for what arrives within `decay`.
    fn leak(&mut self, now: Instant, decay: Duration) {
        if self.points == 0 || decay.is_zero() {
            self.leaked_at = now;
            return;
        }
        let micros = decay.as_micros().max(1);
        let elapsed = now.since(self.leaked_at).as_micros();
        let leaked = u64::try_from(elapsed / micros).unwrap_or(u64::MAX);
        self.points = self.points.saturating_sub(leaked.saturating_mul(Weight::Fault as u64));
        let rest = u64::try_from(elapsed % micros).unwrap_or(0);
        self.leaked_at = if self.points == 0 {
            now
        } else {
            Instant::from_micros(now.as_micros().saturating_sub(rest))
        };
    }
}
