//! What a run costs on this machine: CPU time and memory. Nothing in a run depends on them.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

/// Size of a page, in bytes.
const PAGE: u64 = 4096;

/// Returns the CPU time of this thread, in seconds.
pub(super) fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Returns the resident memory of this process, in bytes; `None` where it cannot be read.
pub(super) fn rss_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    statm.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE)
}
