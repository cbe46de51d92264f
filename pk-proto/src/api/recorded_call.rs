//! Every call into the machine as a value, so that a recording can store it.

use alloc::string::String;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::Config;
use super::input::Input;
use super::request::Request;
use super::snapshot::Snapshot;
use super::transport::Identity;
use crate::types::id::{ApprovalId, BucketIndex, LeaseId, NodeId, RequestId};
use crate::types::time::{Instant, UnixMillis};

/// Everything that a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartParams {
    /// Settings.
    pub config: Config,
    /// Identity that it presents in handshakes.
    pub identity: Identity,
    /// Stored rows of its last run.
    pub snapshot: Snapshot,
    /// Seed of all random numbers.
    pub seed: [u8; 32],
    /// Time of the start.
    pub now: Instant,
    /// Wall clock at the start.
    pub unix: UnixMillis,
}

/// One call into a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum RecordedCall {
    /// [`NodeManager::handle_input`](crate::NodeManager::handle_input).
    Input(Input),
    /// [`NodeManager::handle_timeout`](crate::NodeManager::handle_timeout).
    Timeout,
    /// [`NodeManager::request`](crate::NodeManager::request).
    Request(Request),
    /// [`NodeManager::cancel`](crate::NodeManager::cancel).
    Cancel(RequestId),
    /// [`NodeManager::release`](crate::NodeManager::release).
    Release(LeaseId),
    /// [`NodeManager::disconnect`](crate::NodeManager::disconnect).
    Disconnect(NodeId),
    /// [`NodeManager::unset_node`](crate::NodeManager::unset_node).
    UnsetNode(NodeId),
    /// [`NodeManager::accept_protocol`](crate::NodeManager::accept_protocol).
    AcceptProtocol(
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::protocol))]
        String,
    ),
    /// [`NodeManager::refuse_protocol`](crate::NodeManager::refuse_protocol).
    RefuseProtocol(
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::protocol))]
        String,
    ),
    /// [`NodeManager::set_refresh_delay`](crate::NodeManager::set_refresh_delay).
    SetRefreshDelay {
        /// Bucket.
        bucket: BucketIndex,
        /// Delay from this call.
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::duration))]
        delay: Duration,
        /// Only if the refresh is not due earlier.
        lazy: bool,
    },
    /// [`NodeManager::resolve_claim_approval`](crate::NodeManager::resolve_claim_approval).
    ResolveClaimApproval {
        /// Approval id of the event.
        approval: ApprovalId,
        /// Whether to sign.
        sign: bool,
    },
    /// [`NodeManager::reset_buckets`](crate::NodeManager::reset_buckets).
    ResetBuckets,
    /// [`NodeManager::stop`](crate::NodeManager::stop).
    Stop,
}
