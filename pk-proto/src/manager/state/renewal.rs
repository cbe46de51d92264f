//! State of a renewal.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use crate::api::transport::Identity;
use crate::types::id::NodeId;

/// A renewal in progress.
#[derive(Debug)]
pub(in crate::manager) struct Renewal {
    pub(in crate::manager) identity: Identity,
    /// The ids of the new chain, newest first.
    pub(in crate::manager) chain: Vec<NodeId>,
    /// Nodes in the transaction.
    pub(in crate::manager) written: BTreeSet<NodeId>,
    pub(in crate::manager) step: Step,
}

/// What the renewal waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::manager) enum Step {
    /// Transaction that switches the owner and the space.
    Writing,
    /// Replacement of the identity by the driver.
    Replacing,
    /// Transaction that restores the old owner, because the driver has failed with this error.
    Reverting(String),
}
