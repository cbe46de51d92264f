//! The timers of a machine.

use core::net::SocketAddr;

use crate::claims::ClaimId;
use crate::types::id::{
    ApprovalId, BucketIndex, ConnectionId, EffectId, RaceId, RequestId, StreamId,
};

/// Identity of a timer. The order breaks ties between timers due at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// `stop` takes too long: end by force.
    Stop,
    /// The deadline of a request.
    Request(RequestId),
    /// The deadline of a dial race.
    RaceDeadline(RaceId),
    /// The next address of a dial race may start (RFC 8305 section 5).
    RaceNext(RaceId),
    /// A dial race asks a node to relay.
    RaceRelay(RaceId),
    /// A relayed path has no connection, or no longer.
    Path(StreamId),
    /// A relayed connection may become a direct one.
    Upgrade(ConnectionId),
    /// The peer has not sent its Hello.
    Hello(ConnectionId),
    /// An unused connection is closed.
    Idle(ConnectionId),
    /// A suspected connection beside a live one stays silent.
    Silent(ConnectionId),
    /// The peer has not sent an answer, or its first message, on a stream.
    Stream(StreamId),
    /// A contact of a search is silent, or was for long enough.
    Stall(RequestId),
    /// The verification of a chain continues.
    Verify(RequestId),
    /// The next garbage collection round of a bucket may start.
    Collect(BucketIndex),
    /// A bucket is refreshed.
    Refresh(BucketIndex),
    /// An exchange of the local node is retried.
    ClaimRetry(RequestId),
    /// A committed exchange of the local node is resumed.
    ClaimResume(ClaimId),
    /// The embedder has not decided about a claim.
    Approval(ApprovalId),
    /// An exchange of a peer has waited for its turn, or has had it, for too long.
    ClaimTurn,
    /// The next datagram of a punch.
    Punch(SocketAddr),
    /// Without a connection to the farther half of all ids, dial contacts there.
    Retry,
    /// The contact that was seen least recently is checked.
    Check,
    /// A contact that did not respond is dialed again.
    Recheck,
    /// A contact that has left because it did not respond is dialed.
    Lost,
    /// Changes of the graph are written.
    Store,
    /// The outcome of a transaction is checked again.
    Evidence(EffectId),
}

/// Names every kind of timer once: the list, and the match that finds the name.
macro_rules! kinds {
    ($($kind:ident)*) => {
        impl Timer {
            /// Returns the name of its kind.
            pub(crate) const fn kind(&self) -> &'static str {
                match self {
                    $(Self::$kind { .. } => stringify!($kind),)*
                }
            }
        }

        impl crate::api::census::Census {
            /// Every kind of timer.
            pub const TIMERS: &'static [&'static str] = &[$(stringify!($kind)),*];
        }
    };
}

kinds! {
    Stop Request RaceDeadline RaceNext RaceRelay Path Upgrade Hello Idle Stream Stall Verify
    Collect Refresh ClaimRetry ClaimTurn ClaimResume Approval Punch Retry Check Recheck Lost Store
    Silent Evidence
}
