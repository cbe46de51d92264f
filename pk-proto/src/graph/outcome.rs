//! Outcome of adding a node to the graph.

use serde::{Deserialize, Serialize};

use crate::types::id::NodeId;

/// Outcome of adding a node to the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SetNodeOutcome {
    /// The contact is new.
    Added,
    /// The contact existed; the address is new or newer.
    Updated,
    /// The contact is new, and replaces the one of its bucket that was connected least recently.
    Replaced(NodeId),
    /// The bucket is full; the node waits until a contact no longer answers.
    Pending,
    /// The node was not added.
    Rejected(SetNodeRejection),
}

/// Why a node was not added to the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SetNodeRejection {
    /// It is this node.
    #[error("it is this node")]
    OwnNode,
    /// Its bucket has no room.
    #[error("its bucket is full")]
    BucketFull,
    /// The limit of contacts of its network (/24 or /48) is reached.
    #[error("the limit of contacts of its network is reached")]
    Diversity,
}
