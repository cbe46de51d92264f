//! Keeping the graph fresh: refresh timers of the buckets, the way back after isolation (specification: refreshBucket,
//! setupRefreshBucketTasks, updateRefreshBucketDelay, retryConnections).
//!
//! A bucket is useful from the one of the nearest neighbour on: nearer ones are empty in the whole network. Only useful
//! buckets have timers. Timers are spread at random, and no more than [`AT_ONCE`] refreshes run together, so that neither a
//! start nor a wake-up makes a storm.

use core::time::Duration;

use super::open::{Audience, Then};
use super::{NodeManager, Phase};
use crate::cx::Dice;
use crate::error::RequestError;
use crate::id::{BucketIndex, NodeId, RequestId};
use crate::request::FindNode;
use crate::time::Instant;
use crate::timers::Timer;
use crate::trace::Call;

/// Refreshes that run together.
const AT_ONCE: usize = 2;
/// How long a refresh waits for another one to end.
const BUSY_DELAY: Duration = Duration::from_secs(5);
/// Between the refreshes of two buckets after a join.
const JOIN_STEP: Duration = Duration::from_secs(1);

impl NodeManager {
    /// Sets when a bucket is refreshed next, `delay` from now; `lazy`: only if it is not due earlier (specification:
    /// updateRefreshBucketDelay).
    ///
    /// # Errors
    /// The node does not run, or `delay` is over 30 days.
    pub fn set_refresh_delay(
        &mut self,
        bucket: BucketIndex,
        delay: Duration,
        lazy: bool,
        now: Instant,
    ) -> Result<(), RequestError> {
        self.enter(now, || Call::SetRefreshDelay { bucket, delay, lazy });
        if self.phase != Phase::Running {
            return Err(if self.phase == Phase::Starting { RequestError::NotReady } else { RequestError::Stopping });
        }
        if delay > Duration::from_secs(30 * 86_400) {
            return Err(RequestError::Option { name: "delay", range: "0 to 30 days" });
        }
        let at = self.cx.now + delay;
        self.set_refresh(bucket, at, lazy);
        Ok(())
    }

    /// When a bucket is refreshed next; `None` if it is not.
    pub fn refresh_at(&self, bucket: BucketIndex) -> Option<Instant> {
        self.cx.timers.get(Timer::Refresh(bucket))
    }

    /// The first timers, after the start: what is remembered goes on, the rest is spread over one delay.
    pub(super) fn start_refreshing(&mut self) {
        self.arm_useful();
        if !self.cx.config.retry_delay.is_zero() {
            self.cx.timers.set(Timer::Retry, self.cx.now + self.cx.config.retry_delay);
        }
        if !self.graph.is_empty() {
            self.search_for_self(Audience::Nobody);
        }
    }

    /// A node of a bucket came or was heard of: the bucket is fresh.
    pub(super) fn bucket_touched(&mut self, bucket: BucketIndex) {
        if self.phase != Phase::Running || self.cx.config.refresh_delay.is_zero() {
            return;
        }
        let at = self.cx.now + self.jittered();
        // What a join owes to a bucket is more than the one node that has come.
        if !self.owed.contains(&bucket) {
            self.set_refresh(bucket, at, false);
        }
        self.arm_useful();
    }

    /// Every useful bucket has a timer.
    pub(super) fn arm_useful(&mut self) {
        let delay = self.cx.config.refresh_delay;
        if delay.is_zero() {
            return;
        }
        for index in self.nearest_bucket()..=255 {
            let bucket = BucketIndex(index);
            if self.cx.timers.get(Timer::Refresh(bucket)).is_some() {
                continue;
            }
            let at = match self.refreshed.get(&bucket) {
                // As long ago as the wall clock says; one that has gone back says nothing.
                Some(last) if *last <= self.cx.unix() => {
                    let ago = Duration::from_millis(self.cx.unix().0 - last.0);
                    let left = self.jittered().saturating_sub(ago);
                    // Overdue ones do not all begin at once.
                    self.cx.now + left.max(self.part_of(delay / 10))
                }
                _ => self.cx.now + self.part_of(delay),
            };
            self.set_refresh(bucket, at, false);
        }
    }

    fn set_refresh(&mut self, bucket: BucketIndex, at: Instant, lazy: bool) {
        let timer = Timer::Refresh(bucket);
        if !(lazy && self.cx.timers.get(timer).is_some_and(|armed| armed <= at)) {
            self.cx.timers.set(timer, at);
        }
    }

    /// The timer of a bucket has fired.
    pub(super) fn refresh_due(&mut self, bucket: BucketIndex) {
        if bucket.0 < self.nearest_bucket() {
            self.owed.remove(&bucket);
            return;
        }
        let running = self.open.values().filter(|open| open.audience == Audience::Refresh).count();
        if running >= AT_ONCE {
            self.cx.timers.set(Timer::Refresh(bucket), self.cx.now + BUSY_DELAY);
            return;
        }
        self.mark_refreshed(bucket);
        let id = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.request_deadline;
        self.refresh(id, Audience::Refresh, deadline, bucket, &FindNode::default());
    }

    /// Looks up a random id of a bucket.
    pub(super) fn refresh(
        &mut self,
        id: RequestId,
        audience: Audience,
        deadline: Instant,
        bucket: BucketIndex,
        find: &FindNode,
    ) {
        self.cx.metrics.refreshes += 1;
        let target = self.random_id(bucket);
        self.search(id, audience, deadline, target, find, Then::ReportRefresh);
    }

    /// A bucket is being refreshed now; the next time is one delay away.
    pub(super) fn mark_refreshed(&mut self, bucket: BucketIndex) {
        let unix = self.cx.unix();
        self.owed.remove(&bucket);
        self.refreshed.insert(bucket, unix);
        self.store.refreshed(&mut self.cx, bucket);
        if !self.cx.config.refresh_delay.is_zero() {
            let at = self.cx.now + self.jittered();
            self.set_refresh(bucket, at, false);
        }
    }

    /// After a join: the buckets beyond the nearest node are refreshed soon, the farthest first, one after the other.
    pub(super) fn refresh_after_join(&mut self) {
        if self.cx.config.refresh_delay.is_zero() {
            return;
        }
        for (step, index) in (self.nearest_bucket()..=255).rev().enumerate() {
            let delay = JOIN_STEP * u32::try_from(step + 1).unwrap_or(u32::MAX);
            self.owed.insert(BucketIndex(index));
            self.set_refresh(BucketIndex(index), self.cx.now + delay, true);
        }
    }

    /// The retry timer has fired: without a connection to the farther half of all ids, look for one, then for ourselves.
    pub(super) fn retry_due(&mut self) {
        self.cx.timers.set(Timer::Retry, self.cx.now + self.cx.config.retry_delay);
        let busy = self.open.values().any(|open| open.audience == Audience::Retry);
        if busy || self.connections.reaches(&self.cx, BucketIndex(255)) || self.graph.is_empty() {
            return;
        }
        let id = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.request_deadline;
        self.refresh(id, Audience::Retry, deadline, BucketIndex(255), &FindNode::default());
    }

    /// Looks for the own id in the background.
    pub(super) fn search_for_self(&mut self, audience: Audience) {
        let id = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.request_deadline;
        let own = self.cx.own();
        self.search(id, audience, deadline, own, &FindNode::default(), Then::Report);
    }

    /// The bucket of the nearest neighbour; 255 in an empty graph.
    fn nearest_bucket(&self) -> u8 {
        self.graph.buckets().next().map_or(255, |(bucket, _)| bucket.0)
    }

    /// One delay, plus or minus half of the jitter.
    fn jittered(&mut self) -> Duration {
        let jitter = u64::from(self.cx.config.refresh_jitter);
        let drawn = self.cx.random_u64(Dice::Refresh).checked_rem(jitter).unwrap_or_default();
        let permille = u32::try_from(1000 - jitter / 2 + drawn).unwrap_or(1000);
        self.cx.config.refresh_delay * permille / 1000
    }

    /// Somewhere between nothing and `delay`.
    fn part_of(&mut self, delay: Duration) -> Duration {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let drawn = self.cx.random_u64(Dice::Refresh).checked_rem(micros).unwrap_or_default();
        Duration::from_micros(drawn)
    }

    /// An id that lies in a bucket.
    fn random_id(&mut self, bucket: BucketIndex) -> NodeId {
        let mut distance = [0; 32];
        for chunk in distance.chunks_mut(8) {
            chunk.copy_from_slice(&self.cx.random_u64(Dice::Refresh).to_be_bytes());
        }
        let top = 31 - usize::from(bucket.0 / 8);
        for (place, byte) in distance.iter_mut().enumerate() {
            if place < top {
                *byte = 0;
            } else if place == top {
                let bit = 1u8 << (bucket.0 % 8);
                *byte = bit | (*byte & (bit - 1));
            }
        }
        let mut id = *self.cx.own().as_bytes();
        id.iter_mut().zip(distance).for_each(|(id, distance)| *id ^= distance);
        NodeId::from_bytes(id)
    }
}
