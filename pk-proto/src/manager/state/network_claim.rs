//! State of a network claim whose signature a peer requests.

use crate::claims::SinglySigned;
use crate::shares::{Charged, Source};
use crate::types::id::{ApprovalId, NodeId};

/// A network claim whose signature a peer requests.
#[derive(Debug)]
pub(in crate::manager) struct NetworkClaim {
    /// What the claim is charged to.
    pub(in crate::manager) source: Source,
    /// Pending approval of the embedder.
    pub(in crate::manager) approval: Option<ApprovalId>,
    pub(in crate::manager) half: SinglySigned,
    /// Local key that signs, after the decision to sign.
    pub(in crate::manager) signer: Option<NodeId>,
}

impl Charged for NetworkClaim {
    fn source(&self) -> &Source {
        &self.source
    }
}
