//! Searches: start, steps and end, and the next stage of a request when its node is connected.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use super::lifecycle::{OnCallEnded, OnRaceEnded, RaceResult, Reactions};
use super::node::NodeManager;
use super::retry::retry_plan;
use super::state::repeats::Repeat;
use super::state::request_table::Entry;
use super::state::stage::{
    OnConnected, OnDialed, OnResponse, OpenRequest, OpeningStream, PendingCall, Recipient,
    RequestStage, RetryPlan, Search, Transition,
};
use crate::api::error::Failure;
use crate::api::reply::Reply;
use crate::api::request::{FindNodeOptions, RequestOptions};
use crate::api::search::{ClosestOutcome, FindEnd, FindOutcome};
use crate::api::transport::DisconnectReason;
use crate::connect::table::Connections;
use crate::lookup::{Accepted, Goal, Lookup, Next, Unanswered};
use crate::machine::cx::{Cx, RngStream};
use crate::rpc::event::CompletedCall;
use crate::rpc::table::Rpc;
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::closest::ClosestNodesQuery;
use crate::wire::message::{RpcRequest, RpcResponse};

/// Maximum number of targets for whose searches a node that has connected becomes a candidate.
const OFFERED_TO: usize = 8;

/// A search for the local id, which starts again after a key renewal.
pub(super) struct RestartedSearch {
    id: RequestId,
    recipient: Recipient,
    deadline: Instant,
    find: FindNodeOptions,
}

impl Reactions for Search {
    fn on_race_ended(&self) -> Option<OnRaceEnded> {
        Some(NodeManager::search_race_ended)
    }

    fn on_call_ended(&self) -> Option<OnCallEnded> {
        Some(NodeManager::search_call_ended)
    }

    fn repeat(&self) -> Repeat {
        match self.awaited {
            None => Repeat::Contact,
            // The request already searches for its node again.
            Some(_) => Repeat::Never,
        }
    }
}

impl NodeManager {
    /// Starts the search of an embedder's request; `on_connected` follows when the target is
    /// connected.
    pub(super) fn search_then(
        &mut self,
        id: RequestId,
        deadline: Instant,
        target: NodeId,
        options: RequestOptions,
        on_connected: OnConnected,
    ) {
        let find = FindNodeOptions { options, ..FindNodeOptions::default() };
        self.search(id, Recipient::Embedder, deadline, target, &find, on_connected);
    }

    /// Starts a search. Its first candidates are the closest contacts, the connected nodes, and the
    /// addresses of suspected connections with the target.
    pub(super) fn search(
        &mut self,
        id: RequestId,
        recipient: Recipient,
        deadline: Instant,
        target: NodeId,
        find: &FindNodeOptions,
        on_connected: OnConnected,
    ) {
        let (goal, count) = match on_connected {
            OnConnected::ReportClosest { count } | OnConnected::ReportRefresh { count } => {
                (Goal::Closest, count)
            }
            _ if self.cx.is_own(&target) => (Goal::Closest, self.cx.config.bucket_limit),
            _ => (Goal::Node, self.cx.config.bucket_limit),
        };
        let mut lookup = Lookup::new(&self.cx, id, (target, goal), count, find);
        // A search for a connected node ends with its first step.
        if goal == Goal::Closest || self.connections.live(&target).is_none() {
            let own = self.cx.own();
            let neighbors = self.nodes.graph.closest(&own, count);
            let farthest = neighbors.get(count.saturating_sub(1));
            lookup.set_neighborhood(farthest.map(|(node, _)| own.distance(node)));
            let asks_locally =
                recipient == Recipient::Embedder && goal == Goal::Node && self.cx.config.mdns;
            if asks_locally && find.strategies.unwrap_or_default().mdns {
                let timeout = find.mdns_timeout.unwrap_or(self.cx.config.mdns_timeout);
                lookup.set_browse(Some(self.browse(id, target, self.cx.now + timeout)));
            }
            // Enough to begin with if many of them are dead, however few nodes are searched for.
            let first = count.max(self.cx.config.bucket_limit);
            // Contacts that do not respond are candidates only if there are few others.
            let mut responding = 0;
            let closest = self.nodes.graph.closest(&target, 2 * first);
            let (failing, others): (Vec<_>, Vec<_>) = closest
                .into_iter()
                .partition(|(node, _)| *node != target && self.upkeep.failing.contains(node));
            for (node, contact) in others {
                lookup.offer(node, Some(contact));
                responding += 1;
            }
            for (node, contact) in failing.into_iter().filter(|_| responding < first) {
                lookup.offer(node, Some(contact));
            }
            for node in self.connections.closest(&target, first) {
                lookup.offer(node, None);
            }
            lookup.offer_at(target, self.connections.suspected_at(&target));
            if self.upkeep.reaches.may_be_hidden(&target) {
                lookup.target_may_be_hidden();
            }
        }
        let lookup = Box::new(lookup);
        let stage = RequestStage::Find(Search { lookup, on_connected, awaited: None });
        self.begin(id, OpenRequest { recipient, deadline, stage });
        self.requests.wake(id);
    }

    /// Returns whether a search for a node is in progress for which no request waits.
    pub(super) fn searches_in_background(&self, target: &NodeId) -> bool {
        let mut searches = self.requests.searches_for(target);
        searches
            .any(|id| self.requests.get(id).is_some_and(|open| open.recipient == Recipient::None))
    }

    /// Executes the steps of a search until it waits or ends.
    pub(super) fn advance_search(&mut self, id: RequestId) {
        loop {
            let Self { cx, connections, rpc, requests, .. } = self;
            let Some(Entry { deadline, recipient, payload: Search { lookup, .. } }) =
                requests.entry(id)
            else {
                return;
            };
            match lookup.next(cx, |node| connections.live(node)) {
                Next::Wait => return,
                Next::Dial(dial_target) if recipient.is_awaited() => {
                    connections.dial(cx, id, dial_target.foreground());
                }
                Next::Dial(dial_target) => connections.dial(cx, id, dial_target),
                Next::Ask { node, conn, target } => {
                    match query_closest_nodes(cx, rpc, id, target, conn, deadline) {
                        Some(stream) => lookup.asked(cx, node, stream),
                        None => lookup.not_asked(cx, &node),
                    }
                }
                Next::Leave { node, call } => {
                    if let Some(stream) = call {
                        rpc.cancel(cx, stream);
                    }
                    connections.leave_node(cx, id, &node);
                }
                Next::Cancel(stream) => rpc.cancel(cx, stream),
                Next::End(end) => return self.search_ended(id, end),
            }
        }
    }

    /// Adds the node of an accepted connection as a candidate to the searches that it is most
    /// useful for: those with the closest targets. Those for one of its ids end. `chain` contains
    /// every id that it proved.
    pub(super) fn offer_to_searches(&mut self, node: NodeId, chain: &[NodeId]) {
        let offer = |search: &mut Search| search.lookup.offer(node, None);
        self.requests.wake_searches_near(&node, OFFERED_TO, offer);
        let for_it: Vec<_> = chain.iter().flat_map(|id| self.requests.searches_for(id)).collect();
        for_it.into_iter().for_each(|id| self.requests.wake(id));
    }

    /// The local Hello was sent on a dialed connection: searches whose contact it is query it at
    /// once, without waiting for the Hello of the peer.
    pub(super) fn ask_early(&mut self, conn: ConnectionId) {
        let Some((node, waiters)) = self.connections.awaited_by(conn) else { return };
        for id in waiters {
            let Self { cx, rpc, requests, .. } = self;
            if let Some(Entry { deadline, payload: Search { lookup, .. }, .. }) = requests.entry(id)
                && rpc.may_ask_early(cx, conn)
                && !lookup.is_for(&node)
                && lookup.is_unasked(&node)
            {
                let target = lookup.query(&node);
                if let Some(stream) = query_closest_nodes(cx, rpc, id, target, conn, deadline) {
                    lookup.asked_early(cx, node, stream, conn);
                }
                requests.wake(id);
            }
        }
    }

    /// Handles the end of a dial race for a contact of a search: queries the contact, or records
    /// its failures.
    fn search_race_ended(&mut self, id: RequestId, node: NodeId, result: RaceResult) {
        let Self { cx, rpc, requests, .. } = self;
        let Some(Entry { deadline, payload: Search { lookup, .. }, .. }) = requests.entry(id)
        else {
            return;
        };
        match result {
            // The target itself is not queried.
            Ok(_) if lookup.is_for(&node) => {}
            Ok(conn) => {
                if let Accepted::ToAsk { target, instead_of } = lookup.accepted(&node, conn) {
                    if let Some(stream) = instead_of {
                        rpc.cancel(cx, stream);
                    }
                    match query_closest_nodes(cx, rpc, id, target, conn, deadline) {
                        Some(stream) => lookup.asked(cx, node, stream),
                        None => lookup.not_asked(cx, &node),
                    }
                }
            }
            Err(failures) => lookup.dial_failed(cx, &node, failures),
        }
        requests.wake(id);
    }

    /// Handles the response of a contact to the query of a search, or its failure. Also handles the
    /// end of the call of a repeated request.
    fn search_call_ended(
        &mut self,
        id: RequestId,
        conn: ConnectionId,
        stream: StreamId,
        result: Result<CompletedCall, Failure>,
    ) {
        let Some(search) = self.requests.stage::<Search>(id) else { return };
        if search.awaited.as_ref().is_some_and(|awaited| awaited.stream == stream) {
            if self.awaited_ended(id, result.as_ref().err()) {
                // The search has ended, and the request has its former stage, which handles this
                // response.
                self.call_ended(id, conn, stream, result);
            }
            return;
        }
        let teller = self.connections.address(conn).map(|(address, _)| address);
        let Self { cx, requests, upkeep, .. } = self;
        let Some(Search { lookup, .. }) = requests.stage_mut(id) else { return };
        match result {
            Ok(CompletedCall { answer: RpcResponse::Closest(mut closest), .. }) => {
                // A peer may report a contact that this node knows not to respond.
                let responds = |node: &NodeId| {
                    node == lookup.target()
                        || !upkeep.failing.contains(node) && !upkeep.lost.contains(node)
                };
                closest.known.retain(|(node, _)| responds(node));
                lookup.answered(cx, stream, closest, teller.as_ref());
            }
            Err(Failure::ConnectionLost(_)) => lookup.not_answered(cx, stream, Unanswered::Lost),
            Err(Failure::Aborted(_)) => lookup.not_answered(cx, stream, Unanswered::Aborted),
            Ok(_) | Err(_) => lookup.not_answered(cx, stream, Unanswered::Otherwise),
        }
        requests.wake(id);
    }

    /// Handles a suspected connection with a contact: the contact is dialed again and queried over
    /// the other connection.
    pub(super) fn search_contact_suspected(
        &mut self,
        id: RequestId,
        node: NodeId,
        stream: StreamId,
    ) {
        let Self { cx, connections, rpc, requests, .. } = self;
        let Some(Search { lookup, .. }) = requests.stage_mut(id) else { return };
        rpc.cancel(cx, stream);
        lookup.offer_at(node, connections.suspected_at(&node));
        lookup.not_answered(cx, stream, Unanswered::Lost);
        requests.wake(id);
    }

    /// Ends a search. If its target is connected, the request continues with its next stage.
    pub(super) fn search_ended(&mut self, id: RequestId, end: FindEnd) {
        let Some(mut open) = self.requests.remove(id) else { return };
        let RequestStage::Find(Search { lookup, on_connected, awaited }) = open.stage else {
            return;
        };
        let node = *lookup.target();
        let (failures, connect_timeout) = (lookup.target_failures(), lookup.connect_timeout());
        let closest = match on_connected {
            OnConnected::ReportClosest { .. } => lookup.closest(),
            _ => Vec::new(),
        };
        let mut outcome = self.end_search(id, lookup, end);
        let connection = found(&self.connections, &node, end);
        let live = self.connections.live(&node);
        outcome.found = connection
            .as_ref()
            .filter(|(conn, ..)| live == Some(*conn))
            .map(|(_, address, data)| (address.clone(), *data));

        let next = match (on_connected, awaited, connection) {
            (OnConnected::Report, ..) => Transition::End(Ok(Reply::FindNode(outcome))),
            (OnConnected::ReportRefresh { .. }, ..) => {
                Transition::End(Ok(Reply::RefreshBucket(outcome)))
            }
            (OnConnected::ReportClosest { .. }, ..) => {
                let FindOutcome { ended, stats, trace, .. } = outcome;
                let found = ClosestOutcome { nodes: closest, ended, stats, trace };
                Transition::End(Ok(Reply::FindClosest(found)))
            }
            // The suspected connection is the only one, or its peer responds again.
            (on_connected, Some(awaited), Some((conn, ..)))
                if live.is_none() || conn == awaited.conn =>
            {
                Transition::Wait(awaited.resume(RetryPlan { node, connect_timeout, on_connected }))
            }
            (on_connected, awaited, connection) => {
                if let Some(awaited) = awaited {
                    self.rpc.cancel(&mut self.cx, awaited.stream);
                }
                match connection {
                    Some(connection) => self.with_connection(
                        id,
                        open.deadline,
                        on_connected,
                        connect_timeout,
                        connection,
                    ),
                    None => {
                        let failure = match end {
                            FindEnd::Deadline => Failure::DeadlineExceeded,
                            _ => Failure::NotFound(failures),
                        };
                        Transition::End(self.not_found(open.recipient, &on_connected, failure))
                    }
                }
            }
        };
        match next {
            Transition::Wait(stage) => {
                open.stage = stage;
                self.requests.insert(id, open);
            }
            Transition::End(result) => self.report(id, open.recipient, result),
        }
    }

    /// Cancels the calls of a search.
    pub(super) fn cancel_calls(&mut self, lookup: &Lookup) {
        for stream in lookup.streams() {
            self.rpc.cancel(&mut self.cx, stream);
        }
    }

    /// Cancels everything that a search has started, and returns its outcome.
    pub(super) fn end_search(
        &mut self,
        id: RequestId,
        lookup: Box<Lookup>,
        end: FindEnd,
    ) -> FindOutcome {
        self.cancel_calls(&lookup);
        self.watch_dials(id);
        self.connections.leave(&mut self.cx, id);
        if let Some(browse) = lookup.browse() {
            self.end_browse(browse);
        }
        lookup.finish(&mut self.cx, end)
    }

    /// Ends the searches for the former local id at a key renewal. Returns how they start again.
    pub(super) fn end_self_searches(&mut self, old: NodeId) -> Vec<RestartedSearch> {
        let is_report = |id: &RequestId| {
            let search = self.requests.stage::<Search>(*id);
            search.is_some_and(|search| matches!(search.on_connected, OnConnected::Report))
        };
        let searches: Vec<_> = self.requests.searches_for(&old).filter(is_report).collect();
        let mut ended = Vec::new();
        for id in searches {
            let Some(OpenRequest {
                recipient,
                deadline,
                stage: RequestStage::Find(Search { lookup, .. }),
            }) = self.requests.remove(id)
            else {
                continue;
            };
            let find = lookup.limits();
            self.end_search(id, lookup, FindEnd::Exhausted);
            ended.push(RestartedSearch { id, recipient, deadline, find });
        }
        ended
    }

    /// Starts searches again, for the new local id.
    pub(super) fn restart_self_searches(&mut self, new: NodeId, ended: Vec<RestartedSearch>) {
        for RestartedSearch { id, recipient, deadline, find } in ended {
            self.search(id, recipient, deadline, new, &find, OnConnected::Report);
        }
    }

    /// Handles addresses of the target that were discovered on the local network; `done`: no more
    /// follow.
    pub(super) fn search_discovered(
        &mut self,
        id: RequestId,
        addresses: Vec<NodeAddress>,
        done: bool,
    ) {
        let Self { cx, connections, requests, .. } = self;
        let Some(Search { lookup, .. }) = requests.stage_mut(id) else { return };
        if !addresses.is_empty() {
            let dial_target = lookup.discovered(cx, addresses);
            connections.dial(cx, id, dial_target.foreground());
        }
        if done {
            lookup.set_browse(None);
        }
        requests.wake(id);
    }

    /// Starts the next stage of a request whose node is connected, or returns its result.
    fn with_connection(
        &mut self,
        id: RequestId,
        deadline: Instant,
        on_connected: OnConnected,
        connect_timeout: Duration,
        (conn, address, data): (ConnectionId, NodeAddress, NodeContactAddressData),
    ) -> Transition {
        let on_connected = match on_connected {
            OnConnected::ClaimNode(claim) => {
                return Transition::Wait(self.outgoing_begin(id, conn, claim));
            }
            OnConnected::ClaimNetwork { content } => {
                return Transition::Wait(self.self_issued_begin(id, content, Some(conn)));
            }
            on_connected => on_connected,
        };
        let retry = self
            .connections
            .node(conn)
            .and_then(|node| retry_plan(&self.cx, node, connect_timeout, &on_connected));
        let cx = &mut self.cx;
        let call_deadline = deadline.min(cx.now + cx.config.call_timeout);
        let stage = match on_connected {
            OnConnected::Report
            | OnConnected::ReportRefresh { .. }
            | OnConnected::ReportClosest { .. }
            | OnConnected::ClaimNode(_)
            | OnConnected::ClaimNetwork { .. } => None,
            OnConnected::Ping { .. } => {
                let nonce = cx.random_u64(RngStream::Calls);
                let stream = self.rpc.call(cx, conn, id, RpcRequest::Ping { nonce }, call_deadline);
                stream.map(|stream| {
                    let on_response = OnResponse::Pong { nonce, address, data };
                    RequestStage::Call(PendingCall { stream, on_response, retry })
                })
            }
            OnConnected::QueryClosestNodes { target, query, .. } => {
                let stream = self.rpc.call(
                    cx,
                    conn,
                    id,
                    RpcRequest::Closest { target, query },
                    call_deadline,
                );
                stream.map(|stream| {
                    RequestStage::Call(PendingCall {
                        stream,
                        on_response: OnResponse::Closest,
                        retry,
                    })
                })
            }
            OnConnected::OpenStream { protocol, .. } => {
                match self.rpc.open_protocol(cx, conn, id, protocol, call_deadline) {
                    Ok(stream) => Some(RequestStage::OpenStream(OpeningStream { stream, retry })),
                    Err(failure) => return Transition::End(Err(failure)),
                }
            }
            OnConnected::ConnectThrough { dial_target } => {
                self.connections.dial_only(cx, id, dial_target);
                Some(RequestStage::Dial(OnDialed::Connect))
            }
            OnConnected::ChainData { since, limit } => {
                self.chain_begin(id, conn, since, limit, connect_timeout)
            }
            OnConnected::ChainOn(chain) => return self.chain_on(id, conn, deadline, chain),
            OnConnected::Acquire => {
                let lease = self.connections.acquire(cx, conn);
                if let Some((lease, connection)) = lease.zip(self.connections.info(cx, conn)) {
                    return Transition::End(Ok(Reply::AcquireConnection { lease, connection }));
                }
                None
            }
        };
        // The connection was live at the last step, so this failure is not expected.
        stage.map_or(
            Transition::End(Err(Failure::ConnectionLost(DisconnectReason::Local))),
            Transition::Wait,
        )
    }
}

/// Queries a contact of a search for the nodes that it knows closest to the target. Returns the
/// stream; `None` if the connection is gone.
fn query_closest_nodes(
    cx: &mut Cx,
    rpc: &mut Rpc,
    id: RequestId,
    target: NodeId,
    conn: ConnectionId,
    deadline: Instant,
) -> Option<StreamId> {
    let question =
        RpcRequest::Closest { target, query: ClosestNodesQuery { known: true, connected: true } };
    let deadline = deadline.min(cx.now + cx.config.call_timeout);
    rpc.call(cx, conn, id, question, deadline)
}

/// Returns the connection with a node that a request uses. A suspected connection is used if there
/// is no other, except after the deadline.
fn found(
    connections: &Connections,
    node: &NodeId,
    end: FindEnd,
) -> Option<(ConnectionId, NodeAddress, NodeContactAddressData)> {
    let conn =
        if end == FindEnd::Deadline { connections.live(node) } else { connections.primary(node) }?;
    let (address, data) = connections.address(conn)?;
    Some((conn, address, data))
}

/// Returns the outcome of a search; `None` if the search failed.
pub(super) fn outcome(result: Result<Reply, Failure>) -> Option<FindOutcome> {
    match result {
        Ok(Reply::FindNode(outcome)) => Some(outcome),
        _ => None,
    }
}
