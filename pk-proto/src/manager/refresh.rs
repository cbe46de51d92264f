//! Refresh of the graph: refresh timers of the buckets (specification: refreshBucket,
//! setupRefreshBucketTasks, updateRefreshBucketDelay).
//!
//! Only the buckets from the nearest non-empty one outwards have timers. Nearer buckets are empty
//! in the whole network. Timers have random jitter, and at most [`AT_ONCE`] refreshes run at a
//! time, so that a start or a wake-up from sleep causes no burst of searches.
//!
//! A join and a request refresh a bucket with a search for all of its closest nodes. A timer does
//! so with a search for one node: that one shows whether the bucket has news, for a tenth of the
//! cost.

use core::time::Duration;

use super::node::NodeManager;
use super::state::stage::{OnConnected, Recipient};
use crate::api::error::RequestError;
use crate::api::request::FindNodeOptions;
use crate::machine::cx::RngStream;
use crate::machine::phase::{Entry, Phase};
use crate::machine::timer::Timer;
use crate::types::id::{BucketIndex, NodeId, RequestId};
use crate::types::time::Instant;

/// Maximum number of concurrent refreshes.
const AT_ONCE: usize = 2;
/// Delay of a refresh that is due while [`AT_ONCE`] others run.
const BUSY_DELAY: Duration = Duration::from_secs(5);
/// Connection attempts of a periodic refresh. With three, refreshes are half of the dials of an
/// idle node, and find no more.
const NARROW: usize = 1;
/// Interval between the refreshes of two buckets after a join.
const JOIN_STEP: Duration = Duration::from_secs(1);

impl NodeManager {
    /// Sets the next refresh of a bucket to `delay` from now; with `lazy` only if it is not due
    /// earlier (specification: updateRefreshBucketDelay).
    ///
    /// # Errors
    /// The node is not running, or `delay` exceeds 30 days.
    pub fn set_refresh_delay(
        &mut self,
        bucket: BucketIndex,
        delay: Duration,
        lazy: bool,
        now: Instant,
    ) -> Result<(), RequestError> {
        self.enter(now, Entry::SetRefreshDelay { bucket, delay, lazy })?;
        if delay > Duration::from_secs(30 * 86_400) {
            return Err(RequestError::Option { name: "delay", range: "0 to 30 days" });
        }
        let at = self.cx.now + delay;
        self.set_refresh(bucket, at, lazy);
        Ok(())
    }

    /// Returns the time of the next refresh of a bucket; `None` if no refresh is scheduled.
    pub fn refresh_at(&self, bucket: BucketIndex) -> Option<Instant> {
        self.cx.timers.get(Timer::Refresh(bucket))
    }

    /// Starts the refresh timers after the start of the node, and searches for the local id. The
    /// timers continue from the stored times of refreshes; without a stored time a timer is random
    /// within one delay.
    pub(super) fn start_refreshing(&mut self) {
        self.arm_useful();
        if !self.cx.config.retry_delay.is_zero() {
            self.cx.timers.set(Timer::Retry, self.cx.now + self.cx.config.retry_delay);
        }
        self.start_checks();
        if !self.nodes.graph.is_empty() {
            self.search_for_self(Recipient::None);
        }
    }

    /// Postpones the refresh of a bucket in which a node was added or updated.
    pub(super) fn bucket_touched(&mut self, bucket: BucketIndex) {
        if self.cx.phase() != Phase::Running || self.cx.config.refresh_delay.is_zero() {
            return;
        }
        let at = self.cx.now + self.jittered();
        // A refresh that a join has scheduled is not postponed by one node.
        if !self.nodes.due_after_join.contains(&bucket) {
            self.set_refresh(bucket, at, false);
        }
        self.arm_useful();
    }

    /// Sets a timer for every bucket from the nearest non-empty one outwards that has none.
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
            let at = match self.nodes.refreshed.get(&bucket) {
                // The time since the last refresh by the wall clock. A clock that was set back is
                // not used.
                Some(last) if *last <= self.cx.unix() => {
                    let ago = Duration::from_millis(self.cx.unix().0 - last.0);
                    let left = self.jittered().saturating_sub(ago);
                    // Overdue refreshes are spread over a tenth of the delay.
                    self.cx.now + left.max(self.part_of(delay / 10))
                }
                _ => self.cx.now + self.part_of(delay),
            };
            self.set_refresh(bucket, at, false);
        }
    }

    /// Sets the refresh timer of a bucket; with `lazy` only to an earlier time.
    fn set_refresh(&mut self, bucket: BucketIndex, at: Instant, lazy: bool) {
        let timer = Timer::Refresh(bucket);
        if !(lazy && self.cx.timers.get(timer).is_some_and(|armed| armed <= at)) {
            self.cx.timers.set(timer, at);
        }
    }

    /// Handles the refresh timer of a bucket.
    pub(super) fn refresh_due(&mut self, bucket: BucketIndex) {
        if bucket.0 < self.nearest_bucket() {
            self.nodes.due_after_join.remove(&bucket);
            return;
        }
        if self.requests.refreshes() >= AT_ONCE {
            self.cx.timers.set(Timer::Refresh(bucket), self.cx.now + BUSY_DELAY);
            return;
        }
        let (count, find) = if self.nodes.due_after_join.contains(&bucket) {
            (self.cx.config.bucket_limit, FindNodeOptions::default())
        } else {
            let narrow = FindNodeOptions {
                concurrency: Some(1),
                limit: Some(NARROW),
                ..FindNodeOptions::default()
            };
            (1, narrow)
        };
        self.mark_refreshed(bucket);
        let id = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.request_deadline;
        self.refresh(id, Recipient::Refresh, deadline, bucket, count, &find);
    }

    /// Starts a search for the `count` nodes closest to a random id of a bucket.
    pub(super) fn refresh(
        &mut self,
        id: RequestId,
        recipient: Recipient,
        deadline: Instant,
        bucket: BucketIndex,
        count: usize,
        find: &FindNodeOptions,
    ) {
        self.cx.metrics.refreshes += 1;
        let target = self.random_id(bucket);
        self.search(id, recipient, deadline, target, find, OnConnected::ReportRefresh { count });
    }

    /// Records that a bucket is being refreshed, and sets its next refresh one delay later.
    pub(super) fn mark_refreshed(&mut self, bucket: BucketIndex) {
        let unix = self.cx.unix();
        self.nodes.due_after_join.remove(&bucket);
        self.nodes.refreshed.insert(bucket, unix);
        self.graph_writer.refreshed(&mut self.cx, bucket);
        if !self.cx.config.refresh_delay.is_zero() {
            let at = self.cx.now + self.jittered();
            self.set_refresh(bucket, at, false);
        }
    }

    /// Schedules a refresh of every bucket after a join, from the farthest to that of the nearest
    /// node, [`JOIN_STEP`] apart.
    pub(super) fn refresh_after_join(&mut self) {
        if self.cx.config.refresh_delay.is_zero() {
            return;
        }
        for (step, index) in (self.nearest_bucket()..=255).rev().enumerate() {
            let delay = JOIN_STEP * u32::try_from(step + 1).unwrap_or(u32::MAX);
            self.nodes.due_after_join.insert(BucketIndex(index));
            self.set_refresh(BucketIndex(index), self.cx.now + delay, true);
        }
    }

    /// Starts a search for the local id in the background.
    pub(super) fn search_for_self(&mut self, recipient: Recipient) {
        let id = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.request_deadline;
        let own = self.cx.own();
        self.search(id, recipient, deadline, own, &FindNodeOptions::default(), OnConnected::Report);
    }

    /// Returns the bucket of the nearest contact; 255 if the graph is empty.
    fn nearest_bucket(&self) -> u8 {
        self.nodes.graph.buckets().next().map_or(255, |(bucket, _)| bucket.0)
    }

    /// Returns the refresh delay with random jitter, of which half is above and half below.
    fn jittered(&mut self) -> Duration {
        let jitter = u64::from(self.cx.config.refresh_jitter);
        let drawn = self.cx.random_u64(RngStream::Refresh).checked_rem(jitter).unwrap_or_default();
        let permille = u32::try_from(1000 - jitter / 2 + drawn).unwrap_or(1000);
        self.cx.config.refresh_delay * permille / 1000
    }

    /// Returns a random duration from zero to `delay`.
    fn part_of(&mut self, delay: Duration) -> Duration {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let drawn = self.cx.random_u64(RngStream::Refresh).checked_rem(micros).unwrap_or_default();
        Duration::from_micros(drawn)
    }

    /// Returns a random id that belongs to a bucket.
    fn random_id(&mut self, bucket: BucketIndex) -> NodeId {
        let mut distance = [0; 32];
        for chunk in distance.chunks_mut(8) {
            chunk.copy_from_slice(&self.cx.random_u64(RngStream::Refresh).to_be_bytes());
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
