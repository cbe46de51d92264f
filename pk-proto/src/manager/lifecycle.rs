//! Open requests: their start, their end, and their reactions when a dial race or a call ends.

use alloc::vec::Vec;

use super::node::NodeManager;
use super::state::reading::Reading;
use super::state::renewal::Renewal;
use super::state::repeats::{Repeat, is_lost};
use super::state::stage::{
    MdnsQuery, OpenRequest, OpeningStream, PendingCall, Recipient, RequestStage, RoomWaiter,
    Search, is_writing,
};
use super::state::sync::Sync;
use crate::api::error::Failure;
use crate::api::event::Event;
use crate::api::reply::Reply;
use crate::api::search::FindEnd;
use crate::api::transport::DialFailure;
use crate::machine::phase::Phase;
use crate::machine::timer::Timer;
use crate::rpc::event::CompletedCall;
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, NodeId, RequestId, StreamId};

/// Result of a dial race: the connection that won, or the failure of each address.
pub(super) type RaceResult = Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>;
pub(super) type OnRaceEnded = fn(&mut NodeManager, RequestId, NodeId, RaceResult);
pub(super) type OnCallEnded =
    fn(&mut NodeManager, RequestId, ConnectionId, StreamId, Result<CompletedCall, Failure>);

/// Reactions of a request, in one of its stages, to the end of what it waits for. By default there
/// is none, because the stage does not wait for it.
pub(super) trait Reactions {
    /// Returns the reaction to the end of a dial race.
    fn on_race_ended(&self) -> Option<OnRaceEnded> {
        None
    }

    /// Returns the reaction to the end of a call.
    fn on_call_ended(&self) -> Option<OnCallEnded> {
        None
    }

    /// Returns whether the request is repeated if its connection fails. Only requests that change
    /// nothing at the peer are repeated.
    fn repeat(&self) -> Repeat {
        Repeat::Never
    }
}

impl Reactions for RoomWaiter {}
impl Reactions for Renewal {}
impl Reactions for MdnsQuery {}
impl Reactions for Reading {}

/// Stages that wait only for the store.
impl Reactions for () {}

/// Returns the reactions of a request in a stage.
pub(super) fn reactions(stage: &RequestStage) -> &dyn Reactions {
    match stage {
        RequestStage::Find(search) => search,
        RequestStage::Dial(dial) => dial,
        RequestStage::Call(call) => call,
        RequestStage::OpenStream(stream) => stream,
        RequestStage::Sync(sync) => sync,
        RequestStage::WaitForRoom(waiter) => waiter,
        RequestStage::Collect(collect) => collect,
        RequestStage::Renew(renewal) => renewal,
        RequestStage::QueryMdns(query) => query,
        RequestStage::ClaimNode(node) => &**node,
        RequestStage::AddClaim(own) => &**own,
        RequestStage::ChainData(chain) => &**chain,
        RequestStage::Reading(reading) => reading,
        RequestStage::Upkeep(errand) => errand,
        RequestStage::AllowClaim | RequestStage::Flush => &(),
    }
}

impl NodeManager {
    /// Handles the end of a dial race that a request waits for.
    pub(super) fn race_ended(&mut self, id: RequestId, node: NodeId, result: RaceResult) {
        let react = self.requests.get(id).and_then(|open| reactions(&open.stage).on_race_ended());
        if let Some(react) = react {
            react(self, id, node, result);
        }
    }

    /// Handles the end of a call of a request. A call whose connection was lost is repeated if its
    /// stage allows it.
    pub(super) fn call_ended(
        &mut self,
        id: RequestId,
        conn: ConnectionId,
        stream: StreamId,
        result: Result<CompletedCall, Failure>,
    ) {
        let Some(reactions) = self.requests.get(id).map(|open| reactions(&open.stage)) else {
            return;
        };
        let (react, repeat) = (reactions.on_call_ended(), reactions.repeat());
        if repeat == Repeat::Request
            && result.as_ref().is_err_and(is_lost)
            && self.retry_request(id, None)
        {
            return;
        }
        if let Some(react) = react {
            react(self, id, conn, stream, result);
        }
    }

    /// Inserts a request into the table and sets the timer of its deadline.
    pub(super) fn begin(&mut self, id: RequestId, open: OpenRequest) {
        self.cx.timers.set(Timer::Request(id), open.deadline);
        self.requests.insert(id, open);
    }

    /// Handles the deadline of a request.
    pub(super) fn request_deadline(&mut self, id: RequestId) {
        match self.requests.get(id).map(|open| &open.stage) {
            Some(RequestStage::Find(_)) => self.search_ended(id, FindEnd::Deadline),
            // The node has joined the network, so the join succeeds with what the search has found.
            Some(RequestStage::Sync(Sync { search: Some(search), .. })) => {
                self.search_ended(*search, FindEnd::Deadline);
            }
            Some(RequestStage::QueryMdns(MdnsQuery { found, .. })) => {
                let found = found.clone();
                self.end(id, Ok(Reply::QueryMdns(found)));
            }
            // A request whose transaction is in progress waits for the outcome, unless the store
            // has failed and the outcome is unknown.
            Some(stage) if is_writing(stage) => self.end_if_in_doubt(id),
            Some(RequestStage::Flush) => {
                let late = |why: &str| Failure::OutcomeUnknown(why.into());
                let failure = self.graph_writer.doubt().map_or(Failure::DeadlineExceeded, late);
                self.end(id, Err(failure));
            }
            Some(stage) if self.waits_for_head(stage) => {
                let failure = self.head_unknown().unwrap_or(Failure::DeadlineExceeded);
                self.end(id, Err(failure));
            }
            Some(_) => self.end(id, Err(Failure::DeadlineExceeded)),
            None => {}
        }
    }

    /// Ends all requests whose transaction is not in progress, because the node stops.
    pub(super) fn stop_requests(&mut self) {
        // A request whose transaction is in progress ends with its outcome.
        let over = |open: &OpenRequest| !is_writing(&open.stage);
        while let Some(id) = self.requests.find(over) {
            self.end(id, Err(Failure::Stopped));
        }
    }

    /// Ends a request: cancels everything that it has started, and reports the result. Has no
    /// effect if the request has ended.
    pub(super) fn end(&mut self, id: RequestId, result: Result<Reply, Failure>) {
        let Some(open) = self.requests.remove(id) else { return };
        if let RequestStage::Find(Search { lookup, .. }) = &open.stage {
            // Before its connections: nothing is sent on one that closes.
            self.cancel_calls(lookup);
            self.watch_dials(id);
        }
        self.connections.leave(&mut self.cx, id);
        let result = self.claim_outcome(open.recipient, &open.stage, result);
        match open.stage {
            RequestStage::Find(Search { lookup, awaited, .. }) => {
                self.end_search(id, lookup, FindEnd::Deadline);
                if let Some(awaited) = awaited {
                    self.rpc.cancel(&mut self.cx, awaited.stream);
                }
            }
            RequestStage::Call(PendingCall { stream, .. })
            | RequestStage::OpenStream(OpeningStream { stream, .. }) => {
                self.rpc.cancel(&mut self.cx, stream);
            }
            RequestStage::Sync(sync) => {
                if let Some(search) = sync.search {
                    self.end(search, Err(Failure::Cancelled));
                }
            }
            RequestStage::Collect(collect) => self.round_ended(collect),
            RequestStage::QueryMdns(query) => self.end_browse(query.effect),
            RequestStage::ClaimNode(node) => self.outgoing_ended(id, *node),
            RequestStage::AddClaim(own) => {
                self.cx.timers.cancel(Timer::ClaimRetry(id));
                if let Some(stream) = own.stream() {
                    self.rpc.cancel(&mut self.cx, stream);
                }
            }
            RequestStage::ChainData(chain) => {
                self.cx.timers.cancel(Timer::Verify(id));
                if let Some(stream) = chain.stream() {
                    self.rpc.cancel(&mut self.cx, stream);
                }
            }
            RequestStage::WaitForRoom(waiter) => self.leave_rounds(id, &waiter.node),
            RequestStage::Flush => self.graph_writer.leave(id),
            RequestStage::Reading(_)
            | RequestStage::Dial(_)
            | RequestStage::Renew(_)
            | RequestStage::Upkeep(_)
            | RequestStage::AllowClaim => {}
        }
        self.report(id, open.recipient, result);
    }

    /// Reports the result of a request that is no longer in the table to its audience.
    pub(super) fn report(
        &mut self,
        id: RequestId,
        recipient: Recipient,
        result: Result<Reply, Failure>,
    ) {
        self.cx.timers.cancel(Timer::Request(id));
        match recipient {
            Recipient::Embedder => self.cx.event(Event::Done { id, result }),
            Recipient::Parent(parent) => self.sync_search_ended(parent, result),
            Recipient::Retry if self.cx.phase() == Phase::Running => {
                self.search_for_self(Recipient::None);
            }
            Recipient::Join if self.cx.phase() == Phase::Running => self.refresh_after_join(),
            Recipient::Retry | Recipient::Join | Recipient::None | Recipient::Refresh => {}
        }
    }
}
