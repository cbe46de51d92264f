//! State of a request that appends a claim other than a link to the local chain.

use crate::claims::{Claim, ClaimContent, SinglySigned, UnsignedClaim};
use crate::types::id::{ConnectionId, NodeId, StreamId};

/// A claim that is being appended to the local chain.
#[derive(Debug)]
pub(in crate::manager) struct SelfIssuedClaim {
    pub(in crate::manager) content: ClaimContent,
    /// Connection and id of the other node that must sign the claim; `None` if the local node signs
    /// alone.
    pub(in crate::manager) counter: Option<(ConnectionId, NodeId)>,
    pub(in crate::manager) attempts: u32,
    pub(in crate::manager) state: State,
}

#[derive(Debug)]
pub(in crate::manager) enum State {
    /// A transaction of the local chain is in progress, or the timer of the next attempt is set.
    Waiting,
    /// Waiting for the local signature.
    Signing { claim: UnsignedClaim, owner: NodeId },
    /// Waiting for the signature of the other node.
    Asking { half: SinglySigned, stream: StreamId },
    /// The claim is being written.
    Persisting { claim: Claim },
}

impl SelfIssuedClaim {
    /// Returns whether the request waits for the local chain.
    pub(in crate::manager) fn waits(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// Returns whether the claim is being written. The request does not end before the write
    /// completes.
    pub(in crate::manager) fn is_persisting(&self) -> bool {
        matches!(self.state, State::Persisting { .. })
    }

    /// Returns the stream that the request waits for.
    pub(in crate::manager) fn stream(&self) -> Option<StreamId> {
        match &self.state {
            State::Asking { stream, .. } => Some(*stream),
            _ => None,
        }
    }
}
