//! State of garbage collection in buckets.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use crate::types::id::{BucketIndex, NodeId, RequestId};
use crate::types::time::Instant;

/// The rounds of one bucket.
#[derive(Debug, Default)]
pub(in crate::manager) struct Rounds {
    pub(in crate::manager) active: bool,
    /// Another round follows the active one.
    pub(in crate::manager) wanted: bool,
    /// Requests that end with the next round.
    pub(in crate::manager) waiting: Vec<RequestId>,
    pub(in crate::manager) begun: Option<Instant>,
    /// When a contact was last probed because a pending node wants its place.
    pub(in crate::manager) probed: Option<Instant>,
    /// Contacts that have left for a nearer node, and when the last one that counts has.
    pub(in crate::manager) displaced: u32,
    pub(in crate::manager) displaced_at: Instant,
}

impl Rounds {
    /// Returns whether a round is active.
    pub(in crate::manager) fn is_active(&self) -> bool {
        self.active
    }

    /// Returns the number of requests that wait for the next round.
    pub(in crate::manager) fn waiters(&self) -> usize {
        self.waiting.len()
    }
}

/// A round in progress.
#[derive(Debug)]
pub(in crate::manager) struct Collect {
    pub(in crate::manager) bucket: BucketIndex,
    pub(in crate::manager) timeout: Duration,
    /// Nodes to be probed, the least recently connected first.
    pub(in crate::manager) queue: VecDeque<NodeId>,
    pub(in crate::manager) probing: BTreeSet<NodeId>,
    /// Requests that end with this round.
    pub(in crate::manager) waiters: Vec<RequestId>,
    /// The buckets have changed, so the end of the round has no effect.
    pub(in crate::manager) abandoned: bool,
}

/// The rounds of all buckets that have had one.
pub(in crate::manager) type Collections = BTreeMap<BucketIndex, Rounds>;
