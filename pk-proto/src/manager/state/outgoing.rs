//! State of an exchange that this node has started.

use crate::api::request::RequestOptions;
use crate::claims::exchange::Initiator;
use crate::claims::{ClaimId, ClaimStep};
use crate::types::id::{ConnectionId, NodeId, StreamId};

/// Purpose of an exchange. It persists over the search for the peer and over all attempts.
#[derive(Debug, Clone, Copy)]
pub(in crate::manager) struct OutgoingClaim {
    pub(in crate::manager) target: NodeId,
    pub(in crate::manager) options: RequestOptions,
    /// Number of failed attempts.
    pub(in crate::manager) attempts: u32,
    /// The local claim, if it is committed.
    pub(in crate::manager) committed: Option<ClaimId>,
}

/// A local exchange in progress.
#[derive(Debug)]
pub(in crate::manager) struct OutgoingExchange {
    pub(in crate::manager) claim: OutgoingClaim,
    pub(in crate::manager) conn: ConnectionId,
    /// `None` before the first token is sent, and after the stream has failed.
    pub(in crate::manager) stream: Option<StreamId>,
    /// `None` between two attempts.
    pub(in crate::manager) state: Option<Initiator>,
}

impl OutgoingClaim {
    /// Creates the purpose of an exchange for a new claim.
    pub(in crate::manager) fn new(target: NodeId, options: RequestOptions) -> Self {
        Self { target, options, attempts: 0, committed: None }
    }
}

impl OutgoingExchange {
    /// Returns whether the exchange waits for the local chain.
    pub(in crate::manager) fn waits(&self) -> bool {
        matches!(self.state, Some(Initiator::Waiting))
    }

    /// Returns the local claim if the exchange is past the point of no return.
    pub(in crate::manager) fn committed(&self) -> Option<ClaimId> {
        self.claim.committed.or_else(|| self.state.as_ref().and_then(Initiator::committed))
    }

    /// Returns whether the local claim is being written. The exchange does not end before the write
    /// completes.
    pub(in crate::manager) fn is_persisting(&self) -> bool {
        matches!(self.state, Some(Initiator::Persisting { .. }))
    }

    /// Returns the local claim that is being written, and the peer's claim that is stored with it.
    pub(in crate::manager) fn persisting(&self) -> Option<(ClaimId, ClaimId)> {
        let state = self.state.as_ref().filter(|_| self.is_persisting())?;
        state.committed().zip(state.noted())
    }

    /// Returns the current step.
    pub(in crate::manager) fn step(&self) -> ClaimStep {
        self.state.as_ref().map_or(ClaimStep::Pausing, Initiator::step)
    }

    pub(in crate::manager) fn target(&self) -> NodeId {
        self.claim.target
    }
}
