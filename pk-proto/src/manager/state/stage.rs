//! The stages of requests, with the purpose of each.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::bucket_gc::Collect;
use super::chain::Chain;
use super::outgoing::{OutgoingClaim, OutgoingExchange};
use super::reading::Reading;
use super::renewal::Renewal;
use super::repeats::Repeats;
use super::self_issued::SelfIssuedClaim;
use super::sync::Sync;
use super::upkeep::Errand;
use crate::api::error::Failure;
use crate::api::reply::Reply;
use crate::claims::{Claim, ClaimContent};
use crate::lookup::Lookup;
use crate::machine::dial::DialTarget;
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::{ConnectionId, EffectId, NodeId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::closest::ClosestNodesQuery;

/// How a request is repeated: its node, and what to do when the node is connected.
#[derive(Debug)]
pub(in crate::manager) struct RetryPlan {
    pub(in crate::manager) node: NodeId,
    pub(in crate::manager) connect_timeout: Duration,
    pub(in crate::manager) on_connected: OnConnected,
}

/// A call on a suspected connection. Its response still counts while the request searches for its
/// node.
#[derive(Debug)]
pub(in crate::manager) struct Awaited {
    pub(in crate::manager) conn: ConnectionId,
    pub(in crate::manager) stream: StreamId,
    /// Purpose of the call; `None` if `OnConnected` determines it.
    pub(in crate::manager) call: Option<OnResponse>,
}

impl Awaited {
    /// Returns the stage of a request that waits for this call only.
    pub(in crate::manager) fn resume(self, retry: RetryPlan) -> RequestStage {
        match (self.call, retry.on_connected) {
            (Some(on_response), repeat) => {
                let retry = Some(RetryPlan { on_connected: repeat, ..retry });
                RequestStage::Call(PendingCall { stream: self.stream, on_response, retry })
            }
            (None, OnConnected::ChainOn(chain)) => RequestStage::ChainData(chain),
            (None, on_connected) => RequestStage::OpenStream(OpeningStream {
                stream: self.stream,
                retry: Some(RetryPlan { on_connected, ..retry }),
            }),
        }
    }
}

/// A request in progress.
#[derive(Debug)]
pub(in crate::manager) struct OpenRequest {
    pub(in crate::manager) recipient: Recipient,
    pub(in crate::manager) deadline: Instant,
    pub(in crate::manager) stage: RequestStage,
}

/// Who receives the result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::manager) enum Recipient {
    /// The embedder, in `Event::Done`.
    Embedder,
    /// The request that this one is part of.
    Parent(RequestId),
    /// No receiver: the request is background work.
    None,
    /// No receiver: it is the search of a join whose request has already ended. Buckets are
    /// refreshed after it.
    Join,
    /// No receiver: it refreshes a bucket in the background.
    Refresh,
    /// No receiver: it searches for a connection to the farther half of all ids, because no contact
    /// there can be reached. A search for the local id follows it.
    Retry,
}

impl Recipient {
    /// Returns whether the embedder waits for the request.
    pub(in crate::manager) fn is_awaited(self) -> bool {
        matches!(self, Self::Embedder | Self::Parent(_))
    }
}

/// Stage of a request.
#[derive(Debug)]
pub(in crate::manager) enum RequestStage {
    /// Searching for the node.
    Find(Search),
    /// Dialing given addresses of a node.
    Dial(OnDialed),
    /// Waiting for the response to a call.
    Call(PendingCall),
    /// Waiting for the peer to accept a stream.
    OpenStream(OpeningStream),
    /// Joining the network.
    Sync(Sync),
    /// Waiting for the next round of a bucket.
    WaitForRoom(RoomWaiter),
    /// Collecting the garbage of a bucket.
    Collect(Collect),
    /// Renewing the identity.
    Renew(Renewal),
    /// Querying the local network.
    QueryMdns(MdnsQuery),
    /// Cross-signing a claim.
    ClaimNode(Box<OutgoingExchange>),
    /// Appending a claim other than a link.
    AddClaim(Box<SelfIssuedClaim>),
    /// Waiting for the allow-list to be written.
    AllowClaim,
    /// Reading and verifying a chain.
    ChainData(Box<Chain>),
    /// Reading from the store.
    Reading(Reading),
    /// Dialing a contact in the background.
    Upkeep(Errand),
    /// Waiting until all changes are written.
    Flush,
}

/// A search for a node.
#[derive(Debug)]
pub(in crate::manager) struct Search {
    pub(in crate::manager) lookup: Box<Lookup>,
    /// What follows when the node is connected.
    pub(in crate::manager) on_connected: OnConnected,
    /// Call of a repeated request whose response still counts.
    pub(in crate::manager) awaited: Option<Box<Awaited>>,
}

/// A call that a request waits for.
#[derive(Debug)]
pub(in crate::manager) struct PendingCall {
    pub(in crate::manager) stream: StreamId,
    pub(in crate::manager) on_response: OnResponse,
    pub(in crate::manager) retry: Option<RetryPlan>,
}

/// A stream of an application protocol that the peer has not accepted yet.
#[derive(Debug)]
pub(in crate::manager) struct OpeningStream {
    pub(in crate::manager) stream: StreamId,
    pub(in crate::manager) retry: Option<RetryPlan>,
}

/// A request that waits until a node has room in its bucket.
#[derive(Debug)]
pub(in crate::manager) struct RoomWaiter {
    pub(in crate::manager) node: NodeId,
}

/// A query of the local network.
#[derive(Debug)]
pub(in crate::manager) struct MdnsQuery {
    pub(in crate::manager) effect: EffectId,
    pub(in crate::manager) found: Vec<NodeAddress>,
}

/// What to do when a node is connected.
#[derive(Debug)]
pub(in crate::manager) enum OnConnected {
    Report,
    /// A bucket is refreshed, by a search for this many nodes.
    ReportRefresh {
        count: usize,
    },
    /// The nodes closest to the target were searched for, as many as this.
    ReportClosest {
        count: usize,
    },
    Ping {
        repeats: Repeats,
    },
    Acquire,
    /// The node is the relay; `dial_target` is the dial through it.
    ConnectThrough {
        dial_target: DialTarget,
    },
    OpenStream {
        protocol: String,
        repeats: Repeats,
    },
    QueryClosestNodes {
        target: NodeId,
        query: ClosestNodesQuery,
        repeats: Repeats,
    },
    ChainData {
        since: Option<Claim>,
        limit: Option<u64>,
    },
    /// Continues to read a chain over another connection.
    ChainOn(Box<Chain>),
    ClaimNode(OutgoingClaim),
    ClaimNetwork {
        content: ClaimContent,
    },
}

/// How a request continues after its search.
pub(in crate::manager) enum Transition {
    Wait(RequestStage),
    End(Result<Reply, Failure>),
}

/// Purpose of a dial.
#[derive(Debug, Clone, Copy)]
pub(in crate::manager) enum OnDialed {
    Connect,
    Ping,
}

/// Purpose of a call.
#[derive(Debug)]
pub(in crate::manager) enum OnResponse {
    Pong { nonce: u64, address: NodeAddress, data: NodeContactAddressData },
    Closest,
}

/// Returns whether a transaction of the request is in progress, or the request is a renewal.
pub(in crate::manager) fn is_writing(stage: &RequestStage) -> bool {
    matches!(stage, RequestStage::Renew(_)) || is_persisting(stage)
}

/// Returns whether a claim of the request, or its change of the allow-list, is being written. Such
/// a write is not undone.
pub(in crate::manager) fn is_persisting(stage: &RequestStage) -> bool {
    match stage {
        RequestStage::ClaimNode(node) => node.is_persisting(),
        RequestStage::AddClaim(own) => own.is_persisting(),
        RequestStage::AllowClaim => true,
        _ => false,
    }
}
