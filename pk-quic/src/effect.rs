//! Effects that the embedder executes, and their completions.

use std::net::SocketAddr;

use bytes::Bytes;
use pk_host::Store;
use pk_proto::{
    EffectId, Hostname, Input, Instant, NodeId, Signature, StoreOp, StoreRange, StoreRow,
    WriteFailure,
};

/// What the embedder of a [`Node`](crate::Node) must do. Each but the last two is completed by one
/// [`Response`] with its id; [`Browse`](Self::Browse) by any number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Sign with a key that the node does not hold.
    Sign {
        /// Id of the effect.
        id: EffectId,
        /// Node id of the key.
        key: NodeId,
        /// Bytes to sign.
        bytes: Bytes,
    },
    /// Apply a transaction to the store.
    Persist {
        /// Id of the effect.
        id: EffectId,
        /// Operations, in order.
        ops: Vec<StoreOp>,
        /// Whether the transaction must survive a power failure once it is completed.
        durable: bool,
    },
    /// Read rows of the store.
    Load {
        /// Id of the effect.
        id: EffectId,
        /// Rows to read.
        range: StoreRange,
        /// Maximum size of keys and values, in bytes. At least one row is returned.
        max_bytes: u64,
    },
    /// Resolve a host name.
    Resolve {
        /// Id of the effect.
        id: EffectId,
        /// Host name.
        name: Hostname,
        /// UDP port of the resulting addresses.
        port: u16,
    },
    /// Search for a node on the local network.
    Browse {
        /// Id of the effect.
        id: EffectId,
        /// Node to search for.
        node: NodeId,
        /// Time at which the search ends.
        deadline: Instant,
    },
    /// End a browse; its last answer still follows.
    CancelBrowse {
        /// Id of the browse.
        id: EffectId,
    },
    /// Advertise this node on the local network.
    Advertise {
        /// Id of this node.
        node: NodeId,
        /// UDP port; `None` withdraws the advertisement.
        port: Option<u16>,
    },
}

impl Effect {
    /// Executes an effect on a store. Returns any other effect.
    ///
    /// # Errors
    ///
    /// The effect is not for a store.
    pub fn run(self, store: &mut dyn Store) -> Result<Response, Self> {
        match self {
            Self::Persist { id, ops, durable } => {
                Ok(Response::Persisted { id, result: store.apply(&ops, durable) })
            }
            Self::Load { id, range, max_bytes } => {
                let result = store.range(&range, max_bytes).map_err(|error| error.0);
                Ok(Response::Loaded { id, result })
            }
            other => Err(other),
        }
    }

    /// Returns the completion for an embedder that does not support the effect; `None` if it has
    /// none.
    pub fn refuse(self) -> Option<Response> {
        let why = || "not supported by this program".to_owned();
        Some(match self {
            Self::Sign { id, .. } => Response::Signed { id, result: Err(why()) },
            Self::Persist { id, .. } => {
                Response::Persisted { id, result: Err(WriteFailure::Closed(why())) }
            }
            Self::Load { id, .. } => Response::Loaded { id, result: Err(why()) },
            Self::Resolve { id, .. } => Response::Resolved { id, result: Err(why()) },
            Self::Browse { id, .. } => Response::Discovered { id, addrs: Vec::new(), done: true },
            Self::CancelBrowse { .. } | Self::Advertise { .. } => return None,
        })
    }
}

/// Completion of an [`Effect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// Of [`Effect::Sign`].
    Signed {
        /// Id of the effect.
        id: EffectId,
        /// Signature. `Err` if the key is unknown or its holder refused.
        result: Result<Signature, String>,
    },
    /// Of [`Effect::Persist`].
    Persisted {
        /// Id of the effect.
        id: EffectId,
        /// Outcome of the transaction.
        result: Result<(), WriteFailure>,
    },
    /// Of [`Effect::Load`].
    Loaded {
        /// Id of the effect.
        id: EffectId,
        /// Rows in order, and whether the range contains more after them.
        result: Result<(Vec<StoreRow>, bool), String>,
    },
    /// Of [`Effect::Resolve`].
    Resolved {
        /// Id of the effect.
        id: EffectId,
        /// Addresses; empty for a name without addresses.
        result: Result<Vec<SocketAddr>, String>,
    },
    /// Of [`Effect::Browse`], possibly one of several.
    Discovered {
        /// Id of the effect.
        id: EffectId,
        /// Addresses of the node on the local network.
        addrs: Vec<SocketAddr>,
        /// Whether this is the last one.
        done: bool,
    },
}

impl From<Response> for Input {
    fn from(answer: Response) -> Self {
        match answer {
            Response::Signed { id, result } => Self::Signed { id, result },
            Response::Persisted { id, result } => Self::Persisted { id, result },
            Response::Loaded { id, result } => Self::Loaded { id, result },
            Response::Resolved { id, result } => Self::Resolved { id, result },
            Response::Discovered { id, addrs, done } => Self::Discovered { id, addrs, done },
        }
    }
}
