//! What a search learns about its calls.

use crate::types::id::{NodeId, StreamId};

/// A contact has accepted a connection.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// It has been asked, or is not waited for.
    Done,
    /// It has to be asked for the nodes closest to `target`, in place of an earlier call on another
    /// connection.
    ToAsk { target: NodeId, instead_of: Option<StreamId> },
}

/// Why a call has no answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unanswered {
    /// The connection ended, or is suspected. It may have been dead when the call was sent, which
    /// is independent of the node: the contact is retried once.
    Lost,
    /// The contact ended the stream. Nodes of version a57de15 do so if a call arrives before the
    /// Hello: an early call is retried once.
    Aborted,
    Otherwise,
}
