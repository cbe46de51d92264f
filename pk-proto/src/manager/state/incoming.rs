//! State of an exchange that a peer has started.

use crate::claims::ClaimStep;
use crate::claims::exchange::Responder;
use crate::shares::{Charged, Source};
use crate::types::id::{ApprovalId, ConnectionId, NodeId};
use crate::types::time::Instant;

/// An exchange that a peer has started.
#[derive(Debug)]
pub(in crate::manager) struct IncomingExchange {
    pub(in crate::manager) conn: ConnectionId,
    pub(in crate::manager) node: NodeId,
    /// What the exchange is charged to.
    pub(in crate::manager) source: Source,
    /// Pending approval of the embedder.
    pub(in crate::manager) approval: Option<ApprovalId>,
    pub(in crate::manager) turn: Turn,
    pub(in crate::manager) state: Responder,
}

/// The wait of an exchange for its turn, and the turn itself.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::manager) struct Turn {
    /// End of the wait. It stays the same if the exchange waits more than once.
    pub(in crate::manager) wait_until: Option<Instant>,
    /// End of the turn, after which other exchanges no longer wait for it.
    pub(in crate::manager) until: Option<Instant>,
}

impl IncomingExchange {
    /// Returns whether the exchange waits for the local chain.
    pub(in crate::manager) fn waits(&self) -> bool {
        matches!(self.state, Responder::Waiting { .. })
    }

    /// Returns whether the exchange has its turn: its claim is drafted on the head of the chain,
    /// and is neither appended nor abandoned.
    pub(in crate::manager) fn has_turn(&self) -> bool {
        match self.state {
            Responder::SigningMine { .. }
            | Responder::Agreeing { .. }
            | Responder::Appending { .. } => true,
            Responder::Answered { stands, .. } => !stands,
            _ => false,
        }
    }

    /// Returns whether the exchange waits for the peer to sign the local claim.
    pub(in crate::manager) fn is_answered(&self) -> bool {
        matches!(self.state, Responder::Answered { stands: false, .. })
    }

    /// Returns the end of the wait or of the turn.
    pub(in crate::manager) fn until(&self) -> Option<Instant> {
        if self.waits() { self.turn.wait_until } else { self.turn.until }
    }

    pub(in crate::manager) fn conn(&self) -> ConnectionId {
        self.conn
    }

    /// Returns the current step.
    pub(in crate::manager) fn step(&self) -> ClaimStep {
        self.state.step()
    }

    pub(in crate::manager) fn node(&self) -> NodeId {
        self.node
    }
}

impl Charged for IncomingExchange {
    fn source(&self) -> &Source {
        &self.source
    }
}
