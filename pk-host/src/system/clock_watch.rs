//! Detects that the wall clock was set while nodes sleep.
//!
//! No runtime wakes a task for it, and an idle node takes no turns. One thread for all nodes of the
//! process compares the clocks once a second and wakes their pumps, each of which then checks its
//! own clock (see [`Clock::drift`](crate::Clock::drift)). The thread ends with the
//! last node.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use pk_proto::UnixMillis;

use crate::system::clock::{DRIFT, unix};

/// Interval of the comparisons.
const INTERVAL: Duration = Duration::from_secs(1);

/// The nodes to wake.
static WATCH: Watch = Watch {
    nodes: Mutex::new(Nodes { next: 0, wakers: BTreeMap::new(), running: false }),
    left: Condvar::new(),
};

struct Watch {
    nodes: Mutex<Nodes>,
    /// Notified when a node is removed.
    left: Condvar,
}

struct Nodes {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
    /// Whether the thread is running.
    running: bool,
}

/// Wakes one node whenever the wall clock is set, until it is dropped.
#[derive(Debug)]
pub struct ClockWatch(u64);

impl ClockWatch {
    /// Wakes `waker` whenever the wall clock is set.
    ///
    /// # Errors
    ///
    /// The thread cannot be spawned.
    pub fn new(waker: Waker) -> io::Result<Self> {
        let mut nodes = WATCH.nodes();
        if !nodes.running {
            thread::Builder::new().name("pk-clock".to_owned()).spawn(|| WATCH.run())?;
            nodes.running = true;
        }
        let id = nodes.next;
        nodes.next += 1;
        nodes.wakers.insert(id, waker);
        Ok(Self(id))
    }
}

impl Drop for ClockWatch {
    fn drop(&mut self) {
        WATCH.nodes().wakers.remove(&self.0);
        WATCH.left.notify_one();
    }
}

impl Watch {
    fn run(&self) {
        let mut clock = (Instant::now(), unix());
        let mut nodes = self.nodes();
        while !nodes.wakers.is_empty() {
            nodes =
                self.left.wait_timeout(nodes, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
            let now = (Instant::now(), unix());
            if was_set(clock, now) {
                nodes.wakers.values().for_each(Waker::wake_by_ref);
            }
            clock = now;
        }
        nodes.running = false;
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        // Every change under this lock is complete, so that a poisoned one is consistent.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether the wall clock advanced differently from the monotonic clock.
fn was_set(before: (Instant, UnixMillis), now: (Instant, UnixMillis)) -> bool {
    let elapsed =
        u64::try_from(now.0.saturating_duration_since(before.0).as_millis()).unwrap_or(u64::MAX);
    let expected = before.1.0.saturating_add(elapsed);
    Duration::from_millis(now.1.0.abs_diff(expected)) >= DRIFT / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_wall_clock_differs_from_the_monotonic_clock() {
        let begin = Instant::now();
        let at =
            |secs: u64, unix: u64| (begin + Duration::from_secs(secs), UnixMillis::from_secs(unix));
        assert!(!was_set(at(0, 1000), at(60, 1060)));
        for set in [0, 999, 1000, 1059, 1061, 2_000_000_000] {
            assert!(was_set(at(0, 1000), at(60, set)), "{set}");
        }
    }

    #[test]
    fn thread_runs_as_long_as_a_node_exists() {
        let running = || WATCH.nodes().running;
        let first = ClockWatch::new(Waker::noop().clone()).unwrap();
        let second = ClockWatch::new(Waker::noop().clone()).unwrap();
        drop(first);
        assert!(running());
        drop(second);
        // Other tests of this process may have nodes; a thread without any ends at once.
        let begun = Instant::now();
        while running() && WATCH.nodes().wakers.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            thread::yield_now();
        }
    }
}
