//! Repetition of requests whose connection is suspected or was lost.
//!
//! A request that may be repeated searches for its node again, once for each connection that fails,
//! at most `Config::connections_per_node` times. While its connection is only suspected, the call
//! on it stays open. If the response arrives before there is another connection, that response
//! counts. With another connection the call is repeated there, and cancelled on the suspected one.
//! A request that must not be repeated waits for its connection. Each stage decides this in
//! [`Reactions::repeat`](super::lifecycle::Reactions::repeat).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use super::lifecycle::reactions;
use super::node::NodeManager;
use super::state::chain::Chain;
use super::state::repeats::{Repeat, is_lost};
use super::state::stage::{
    Awaited, OnConnected, OpeningStream, PendingCall, RequestStage, RetryPlan, Search,
};
use crate::api::error::Failure;
use crate::api::request::{FindNodeOptions, RequestOptions};
use crate::api::search::FindEnd;
use crate::machine::cx::Cx;
use crate::types::id::{ConnectionId, NodeId, RequestId, StreamId};

impl NodeManager {
    /// Handles a suspected connection: repeats the calls that wait on it, if their stages allow it.
    pub(super) fn repeat_waiting(&mut self, conn: ConnectionId, node: NodeId) {
        self.exchanges_silent(conn, node);
        for (id, stream) in self.rpc.waiting_on(conn) {
            match self.requests.get(id).map(|open| reactions(&open.stage).repeat()) {
                Some(Repeat::Request) => drop(self.retry_request(id, Some(conn))),
                Some(Repeat::Contact) => self.search_contact_suspected(id, node, stream),
                Some(Repeat::Never) | None => {}
            }
        }
    }

    /// Handles another connection of a node: repeats the calls on suspected connections there.
    pub(super) fn repeat_suspected(&mut self, node: NodeId) {
        let suspected: Vec<_> = self.connections.suspected(&node).collect();
        if self.connections.live(&node).is_some() {
            suspected.into_iter().for_each(|conn| self.repeat_waiting(conn, node));
        }
    }

    /// Starts another search for the node of a request. The call on `suspected` stays open
    /// meanwhile. Returns whether the search was started; if not, the request is unchanged.
    pub(super) fn retry_request(&mut self, id: RequestId, suspected: Option<ConnectionId>) -> bool {
        let Some(mut open) = self.requests.remove(id) else { return false };
        let (retry, asked) = match open.stage {
            RequestStage::Call(PendingCall { stream, on_response, retry: Some(retry) }) => {
                (retry, Some((stream, Some(on_response))))
            }
            RequestStage::OpenStream(OpeningStream { stream, retry: Some(retry) }) => {
                (retry, Some((stream, None)))
            }
            RequestStage::ChainData(chain) => match chain.retry_plan(&self.cx) {
                Ok(retry) => {
                    let asked = chain_stream(&retry.on_connected).map(|stream| (stream, None));
                    (retry, asked)
                }
                Err(chain) => {
                    open.stage = RequestStage::ChainData(chain);
                    self.requests.insert(id, open);
                    return false;
                }
            },
            stage => {
                open.stage = stage;
                self.requests.insert(id, open);
                return false;
            }
        };
        self.cx.metrics.requests_repeated += 1;
        let RetryPlan { node, connect_timeout, on_connected } = retry;
        let options = RequestOptions { deadline: None, connect_timeout: Some(connect_timeout) };
        let find = FindNodeOptions { options, ..FindNodeOptions::default() };
        self.search(id, open.recipient, open.deadline, node, &find, on_connected);
        if let Some(search) = self.requests.stage_mut::<Search>(id) {
            search.awaited = suspected
                .zip(asked)
                .map(|(conn, (stream, call))| Box::new(Awaited { conn, stream, call }));
        }
        true
    }

    /// Handles the end of the call on the suspected connection of a request. Returns whether the
    /// call has a response. Then the search ends, and the request is in its former stage.
    pub(super) fn awaited_ended(&mut self, id: RequestId, failure: Option<&Failure>) -> bool {
        if failure.is_some_and(|failure| is_lost(failure) || *failure == Failure::DeadlineExceeded)
        {
            if let Some(search) = self.requests.stage_mut::<Search>(id) {
                search.awaited = None;
            }
            return false;
        }
        let Some(mut open) = self.requests.remove(id) else { return false };
        open.stage = match open.stage {
            RequestStage::Find(Search { lookup, on_connected, awaited: Some(awaited) }) => {
                let (node, connect_timeout) = (*lookup.target(), lookup.connect_timeout());
                self.end_search(id, lookup, FindEnd::Connected);
                awaited.resume(RetryPlan { node, connect_timeout, on_connected })
            }
            stage => stage,
        };
        self.requests.insert(id, open);
        true
    }
}

/// Returns the stream on which a chain waits for a page.
fn chain_stream(on_connected: &OnConnected) -> Option<StreamId> {
    match on_connected {
        OnConnected::ChainOn(chain) => chain.stream(),
        _ => None,
    }
}

/// Returns how a request is repeated if its connection fails; `None` if it must not be.
pub(super) fn retry_plan(
    cx: &Cx,
    node: NodeId,
    connect_timeout: Duration,
    on_connected: &OnConnected,
) -> Option<RetryPlan> {
    let on_connected = match on_connected {
        OnConnected::Ping { repeats } => OnConnected::Ping { repeats: repeats.next(cx)? },
        OnConnected::QueryClosestNodes { target, query, repeats } => {
            OnConnected::QueryClosestNodes {
                target: *target,
                query: *query,
                repeats: repeats.next(cx)?,
            }
        }
        OnConnected::OpenStream { protocol, repeats } => {
            OnConnected::OpenStream { protocol: protocol.clone(), repeats: repeats.next(cx)? }
        }
        // A chain counts its repetitions itself.
        OnConnected::ChainData { .. } | OnConnected::ChainOn(_) => return None,
        OnConnected::Report
        | OnConnected::ReportRefresh { .. }
        | OnConnected::ReportClosest { .. }
        | OnConnected::Acquire
        | OnConnected::ConnectThrough { .. }
        | OnConnected::ClaimNode(_)
        | OnConnected::ClaimNetwork { .. } => return None,
    };
    Some(RetryPlan { node, connect_timeout, on_connected })
}

impl Chain {
    /// Returns how the rest of a chain is read over another connection. If that is not possible,
    /// returns the chain unchanged.
    fn retry_plan(mut self: Box<Self>, cx: &Cx) -> Result<RetryPlan, Box<Self>> {
        let next = self.repeats().next(cx).zip(self.node());
        let Some((repeats, node)) = next.filter(|_| self.is_asking()) else { return Err(self) };
        self.set_repeats(repeats);
        let connect_timeout = self.connect_timeout();
        Ok(RetryPlan { node, connect_timeout, on_connected: OnConnected::ChainOn(self) })
    }
}
