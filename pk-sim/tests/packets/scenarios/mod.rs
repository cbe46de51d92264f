//! Scenarios with figures: what is measured, the result, and the goal.

mod hostile;
pub mod memory;
pub mod migration;
pub mod mtu;
pub mod network;
pub mod relay;
pub mod restart;
pub mod streams;
pub mod throughput;

use std::time::Duration;

/// A round trip of all scenarios that do not name another one.
pub const ROUND_TRIP: Duration = Duration::from_millis(100);

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    pub case: String,
    pub figure: String,
    pub goal: String,
    pub holds: bool,
}

impl Row {
    pub fn new(
        case: impl Into<String>,
        figure: impl Into<String>,
        goal: impl Into<String>,
        holds: bool,
    ) -> Self {
        Self { case: case.into(), figure: figure.into(), goal: goal.into(), holds }
    }
}

pub fn print(rows: &[Row]) {
    for Row { case, figure, goal, holds } in rows {
        println!("| {case} | {figure} | {goal}{} |", if *holds { "" } else { ": MISSED" });
    }
}

/// A duration in round trips, in tenths.
pub fn round_trips(time: Duration) -> String {
    let tenths = (time.as_micros() * 10 + 50_000) / ROUND_TRIP.as_micros();
    format!("{}.{} RTT", tenths / 10, tenths % 10)
}

/// A duration in milliseconds.
pub fn ms(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

/// The median, the 95th percentile and the maximum.
pub fn percentiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len() - 1));
    let [p50, p95, max] = [50, 95, 100].map(|percent| at(percent).copied().unwrap_or_default());
    format!("p50 {}, p95 {}, max {}", ms(p50), ms(p95), ms(max))
}
