//! The table of open requests: what each waits for, who is told of its end, and the end itself.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::NodeManager;
use super::Phase;
use super::chain_data::Chain;
use super::claims::{ClaimNode, Claiming, OwnClaim};
use super::collect::Collect;
use super::loads::Reading;
use super::renewal::Renewal;
use super::sync::Sync;
use crate::address::{NodeAddress, NodeContactAddressData};
use crate::claims::{Claim, ClaimContent};
use crate::connect::Goal;
use crate::error::Failure;
use crate::id::{EffectId, NodeId, RequestId, StreamId};
use crate::io::Event;
use crate::lookup::Lookup;
use crate::request::{ClosestLists, FindEnd, Reply};
use crate::time::Instant;
use crate::timers::Timer;

/// A request under way.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) audience: Audience,
    pub(super) deadline: Instant,
    pub(super) stage: Stage,
}

/// Who is told of the end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// The embedder asked: `Event::Done`.
    Embedder,
    /// It is part of another request.
    Parent(RequestId),
    /// It goes on in the background.
    Nobody,
    /// It is the search of a join that is over for its request; buckets are refreshed after it.
    Join,
    /// It refreshes a bucket in the background.
    Refresh,
    /// It looks for a connection to the farther half of all ids; then the own id is looked for.
    Retry,
}

impl Audience {
    /// Whether the embedder waits for it.
    pub(super) fn is_awaited(self) -> bool {
        matches!(self, Self::Embedder | Self::Parent(_))
    }
}

/// How far a request has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Searching for the node.
    Find { lookup: Lookup, then: Then },
    /// Dialling the one address that was given.
    Dial { then: DialThen },
    /// Waiting for an answer.
    Call { stream: StreamId, then: CallThen, again: Option<Again> },
    /// Waiting for the peer to accept a stream.
    OpenStream { stream: StreamId },
    /// Joining the network.
    Sync(Sync),
    /// Waiting for the next round of a bucket.
    WaitForRoom { node: NodeId },
    /// Collecting the garbage of a bucket.
    Collect(Collect),
    /// Becoming another key.
    Renew(Renewal),
    /// Asking the local network.
    QueryMdns { effect: EffectId, found: Vec<NodeAddress> },
    /// Cross-signing a claim.
    ClaimNode(Box<ClaimNode>),
    /// Appending a claim of another type.
    AddClaim(Box<OwnClaim>),
    /// Waiting for the allow-list to be written.
    AllowClaim,
    /// Reading and verifying a chain.
    ChainData(Box<Chain>),
    /// Reading from the store.
    Reading(Reading),
    /// Waiting for the store.
    Flush,
}

/// What to do with a node once it is connected.
#[derive(Debug)]
pub(super) enum Then {
    Report,
    ReportRefresh,
    Ping {
        asked: Asked,
    },
    Acquire,
    /// Of the relay that it names.
    ConnectThrough {
        goal: Goal,
    },
    OpenStream {
        protocol: String,
    },
    AskClosest {
        target: NodeId,
        lists: ClosestLists,
        asked: Asked,
    },
    ChainData {
        since: Option<Claim>,
        limit: Option<u64>,
    },
    ClaimNode(Claiming),
    ClaimNetwork {
        content: ClaimContent,
    },
}

/// Whether a question was asked before, on a connection that ended before its answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Never,
    Once,
}

/// A question that can be asked again: whom, how, and what.
#[derive(Debug)]
pub(super) struct Again {
    pub(super) node: NodeId,
    pub(super) connect_timeout: Duration,
    pub(super) then: Then,
}

/// How a request goes on once its search is over.
#[expect(clippy::large_enum_variant, reason = "it is on its way into the table, and never kept")]
pub(super) enum After {
    Wait(Stage),
    End(Result<Reply, Failure>),
}

/// What a dial was for.
#[derive(Debug, Clone, Copy)]
pub(super) enum DialThen {
    Connect,
    Ping,
}

/// What a call was for.
#[derive(Debug)]
pub(super) enum CallThen {
    Pong { nonce: u64, address: NodeAddress, data: NodeContactAddressData },
    Closest,
}

impl NodeManager {
    /// Requests of the embedder that are open.
    pub(super) fn open_requests(&self) -> usize {
        self.open.len() - self.parts
    }

    pub(super) fn begin(&mut self, id: RequestId, open: Open) {
        self.parts += usize::from(open.audience != Audience::Embedder);
        self.cx.timers.set(Timer::Request(id), open.deadline);
        self.open.insert(id, open);
    }

    pub(super) fn request_deadline(&mut self, id: RequestId) {
        match self.open.get(&id).map(|open| &open.stage) {
            Some(Stage::Find { .. }) => self.search_ended(id, FindEnd::Deadline),
            // The network is joined; what the search has found by now is not lost.
            Some(Stage::Sync(Sync { search: Some(search), .. })) => self.search_ended(*search, FindEnd::Deadline),
            // What is being written is waited for.
            Some(stage) if is_persisting(stage) => {}
            Some(_) => self.end(id, Err(Failure::DeadlineExceeded)),
            None => {}
        }
    }

    pub(super) fn stop_requests(&mut self) {
        // A renewal that has begun is not given up, nor is a claim that is being written.
        let over = |open: &Open| !matches!(open.stage, Stage::Renew(_)) && !is_persisting(&open.stage);
        while let Some(id) = self.open.iter().find(|(_, open)| over(open)).map(|(id, _)| *id) {
            self.end(id, Err(Failure::Stopped));
        }
    }

    /// Ends a request: everything that it had begun is called off, and its audience is told.
    pub(super) fn end(&mut self, id: RequestId, result: Result<Reply, Failure>) {
        let Some(open) = self.open.remove(&id) else { return };
        self.connections.leave(&mut self.cx, id);
        let result = self.claim_outcome(open.audience, &open.stage, result);
        match open.stage {
            Stage::Find { lookup, .. } => {
                for stream in lookup.streams() {
                    self.rpc.cancel(&mut self.cx, stream);
                }
                self.end_browse_of(&lookup);
                lookup.finish(&mut self.cx, FindEnd::Deadline);
            }
            Stage::Call { stream, .. } | Stage::OpenStream { stream } => self.rpc.cancel(&mut self.cx, stream),
            Stage::Sync(sync) => {
                if let Some(search) = sync.search {
                    self.end(search, Err(Failure::Cancelled));
                }
            }
            Stage::Collect(collect) => self.round_ended(collect),
            Stage::QueryMdns { effect, .. } => self.end_browse(effect),
            Stage::ClaimNode(node) => self.node_ended(id, *node),
            Stage::AddClaim(own) => {
                self.cx.timers.cancel(Timer::ClaimRetry(id));
                if let Some(stream) = own.stream() {
                    self.rpc.cancel(&mut self.cx, stream);
                }
            }
            Stage::ChainData(chain) => {
                self.cx.timers.cancel(Timer::Verify(id));
                if let Some(stream) = chain.stream() {
                    self.rpc.cancel(&mut self.cx, stream);
                }
            }
            Stage::Reading(_)
            | Stage::Dial { .. }
            | Stage::WaitForRoom { .. }
            | Stage::Renew(_)
            | Stage::AllowClaim
            | Stage::Flush => {}
        }
        self.report(id, open.audience, result);
    }

    /// Tells the audience of a request that is no longer in the table.
    pub(super) fn report(&mut self, id: RequestId, audience: Audience, result: Result<Reply, Failure>) {
        self.cx.timers.cancel(Timer::Request(id));
        self.parts -= usize::from(audience != Audience::Embedder);
        match audience {
            Audience::Embedder => self.cx.event(Event::Done { id, result }),
            Audience::Parent(parent) => self.sync_search_ended(parent, result),
            Audience::Retry if self.phase == Phase::Running => self.search_for_self(Audience::Nobody),
            Audience::Join if self.phase == Phase::Running => self.refresh_after_join(),
            Audience::Retry | Audience::Join | Audience::Nobody | Audience::Refresh => {}
        }
    }
}

/// Whether a claim of the request is being written, which nothing takes back.
pub(super) fn is_persisting(stage: &Stage) -> bool {
    match stage {
        Stage::ClaimNode(node) => node.is_persisting(),
        Stage::AddClaim(own) => own.is_persisting(),
        _ => false,
    }
}
