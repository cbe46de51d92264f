//! State of a join.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::api::error::SeedFailure;
use crate::api::search::FindOutcome;
use crate::types::id::{NodeId, RequestId};
use crate::types::seed_node::SeedNode;

/// A join in progress.
#[derive(Debug)]
pub(in crate::manager) struct Sync {
    pub(in crate::manager) blocking: bool,
    /// Timeout of every dial, of the seeds and of the search.
    pub(in crate::manager) connect_timeout: Duration,
    /// Seeds that are being dialed.
    pub(in crate::manager) waiting: BTreeMap<NodeId, Vec<SeedNode>>,
    pub(in crate::manager) reached: Vec<NodeId>,
    pub(in crate::manager) failed: Vec<(SeedNode, SeedFailure)>,
    /// Search for the local id, if it is in progress and the join waits for it.
    pub(in crate::manager) search: Option<RequestId>,
    pub(in crate::manager) outcome: Option<FindOutcome>,
}

impl Sync {
    pub(in crate::manager) fn new(blocking: bool, connect_timeout: Duration) -> Self {
        Self {
            blocking,
            connect_timeout,
            waiting: BTreeMap::new(),
            reached: Vec::new(),
            failed: Vec::new(),
            search: None,
            outcome: None,
        }
    }
}
