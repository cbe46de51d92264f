//! Which requests are repeated, and how often.

use crate::api::error::{Failure, code};
use crate::api::transport::DisconnectReason;
use crate::machine::cx::Cx;

/// Number of repetitions of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::manager) struct Repeats(usize);

impl Repeats {
    /// Returns the number for another repetition; `None` if the limit is reached.
    pub(in crate::manager) fn next(self, cx: &Cx) -> Option<Self> {
        (self.0 < cx.config.connections_per_node).then_some(Self(self.0 + 1))
    }
}

/// What happens to a request when the connection that it waits on is suspected or lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::manager) enum Repeat {
    /// The request searches for its node again and repeats its call.
    Request,
    /// The search dials its contact again and repeats the query.
    Contact,
    /// The request waits for its connection, and fails if the connection is lost, unless its stage
    /// retries by itself.
    Never,
}

/// Returns whether a connection was lost for a reason that is independent of the request: the peer
/// closed the unused connection, had no state of it, or did not respond.
pub(in crate::manager) fn is_lost(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::ConnectionLost(
            DisconnectReason::Peer { code: code::NONE, .. }
                | DisconnectReason::Reset
                | DisconnectReason::TimedOut
        )
    )
}
