//! Requests: from the call to their one `Event::Done`.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::sync::Sync;
use super::{NodeManager, Phase};
use crate::address::{NodeAddress, NodeContactAddressData};
use crate::connect::Connections;
use crate::cx::Dice;
use crate::error::{Failure, RequestError};
use crate::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::io::{DialFailure, DisconnectReason, Event};
use crate::lookup::{Lookup, Next};
use crate::request::{ClosestLists, FindEnd, FindNode, FindOutcome, Options, Pong, Reply, Request, SetNodeOutcome};
use crate::rpc::{Answer, Answered, Question, is_protocol_name};
use crate::seed_node::SeedNode;
use crate::time::Instant;
use crate::timers::Timer;
use crate::trace::Call;

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
}

/// How far a request has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Searching for the node.
    Find { lookup: Lookup, then: Then },
    /// Dialling the one address that was given.
    Dial { then: DialThen },
    /// Waiting for an answer.
    Call { stream: StreamId, then: CallThen },
    /// Waiting for the peer to accept a stream.
    OpenStream { stream: StreamId },
    /// Joining the network.
    Sync(Sync),
}

/// What to do with a node once it is connected.
#[derive(Debug)]
pub(super) enum Then {
    Report,
    Ping,
    Acquire,
    OpenStream { protocol: String },
    AskClosest { target: NodeId, lists: ClosestLists },
}

/// How a request goes on once its search is over.
enum After {
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

/// A. Ours: checked at once; then exactly one [`Event::Done`] for the id that was returned.
impl NodeManager {
    /// Begins a request. The named methods below are shorthands.
    ///
    /// # Errors
    /// Nothing was begun then: the node does not run, the target is itself, an option is out of its range, or there are
    /// too many requests.
    pub fn request(&mut self, request: Request, now: Instant) -> Result<RequestId, RequestError> {
        self.enter(now, || Call::Request(request.clone()));
        self.check(&request)?;
        let id = self.cx.ids.request();
        self.cx.metrics.requests += 1;
        let options = request.options();
        let deadline = self.cx.now + options.deadline.unwrap_or(self.cx.config.request_deadline);
        let timeout = options.connect_timeout.unwrap_or(self.cx.config.connect_timeout);
        let audience = Audience::Embedder;
        match request {
            Request::FindNode { target, find } => self.search(id, audience, deadline, target, &find, Then::Report),
            Request::PingNode { target, options } => {
                self.search_then(id, deadline, target, options, Then::Ping);
            }
            Request::AcquireConnection { target, options } => {
                self.search_then(id, deadline, target, options, Then::Acquire);
            }
            Request::OpenStream { target, protocol, options } => {
                self.search_then(id, deadline, target, options, Then::OpenStream { protocol });
            }
            Request::AskClosest { via, target, lists, options } => {
                self.search_then(id, deadline, via, options, Then::AskClosest { target, lists });
            }
            Request::PingNodeAddress { target, address, .. } => {
                self.dial_request(id, deadline, timeout, target, address, DialThen::Ping);
            }
            Request::Connect { target, address, .. } => {
                self.dial_request(id, deadline, timeout, target, address, DialThen::Connect);
            }
            Request::SyncNodeGraph { seeds, blocking, .. } => {
                self.begin(id, Open { audience, deadline, stage: Stage::Sync(Sync::new(blocking)) });
                self.sync_begin(id, seeds, timeout);
            }
            Request::SetNode { node, address, data } => {
                let outcome = self.set_in_graph(node, address, data);
                if outcome == SetNodeOutcome::Added && self.connections.primary(&node).is_none() {
                    self.unproven.insert(node);
                }
                self.cx.event(Event::Done { id, result: Ok(Reply::SetNode(outcome)) });
            }
        }
        self.settle();
        Ok(id)
    }

    /// Searches for a node and connects to it (specification: findNode). For the own id: learns the neighbourhood.
    pub fn find_node(&mut self, target: NodeId, find: FindNode, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::FindNode { target, find }, now)
    }

    /// Finds a node and has it answer (specification: pingNode).
    pub fn ping_node(&mut self, target: NodeId, options: Options, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::PingNode { target, options }, now)
    }

    /// Whether a node is connected, or else can be at this address (specification: pingNodeAddress).
    pub fn ping_node_address(
        &mut self,
        target: NodeId,
        address: NodeAddress,
        options: Options,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::PingNodeAddress { target, address, options }, now)
    }

    /// Finds a node and holds its connection (specification: acquireConnection).
    pub fn acquire_connection(
        &mut self,
        target: NodeId,
        options: Options,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::AcquireConnection { target, options }, now)
    }

    /// Joins the network (specification: syncNodeGraph).
    pub fn sync_node_graph(
        &mut self,
        seeds: Vec<SeedNode>,
        blocking: bool,
        options: Options,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::SyncNodeGraph { seeds, blocking, options }, now)
    }

    /// Puts a node into the graph on the embedder's word (specification: setNode). It is told to nobody until a connection
    /// proves it.
    pub fn set_node(
        &mut self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::SetNode { node, address, data }, now)
    }

    /// Ends a request early; its `Event::Done` says `Cancelled`. Nothing happens if it is over already.
    pub fn cancel(&mut self, id: RequestId, now: Instant) {
        self.enter(now, || Call::Cancel(id));
        if self.open.get(&id).is_some_and(|open| open.audience == Audience::Embedder) {
            self.end(id, Err(Failure::Cancelled));
            self.settle();
        }
    }

    fn check(&self, request: &Request) -> Result<(), RequestError> {
        match self.phase {
            Phase::Starting => return Err(RequestError::NotReady),
            Phase::Running => {}
            Phase::Stopping | Phase::Stopped => return Err(RequestError::Stopping),
        }
        if self.open_requests() >= self.cx.config.request_limit {
            return Err(RequestError::TooMany(self.cx.config.request_limit));
        }
        check_options(request.options())?;
        match request {
            Request::FindNode { find, .. } => {
                check_range("concurrency", find.concurrency, 1..=64, "1 to 64")?;
                check_range("limit", find.limit, 0..=1024, "0 to 1024")
            }
            Request::PingNode { target, .. }
            | Request::PingNodeAddress { target, .. }
            | Request::Connect { target, .. }
            | Request::AcquireConnection { target, .. }
            | Request::AskClosest { via: target, .. }
                if self.cx.is_own(target) =>
            {
                Err(RequestError::OwnNode)
            }
            Request::OpenStream { target, protocol, .. } => match self.cx.is_own(target) {
                true => Err(RequestError::OwnNode),
                false => check_protocol(protocol),
            },
            Request::SyncNodeGraph { seeds, .. }
                if seeds.is_empty() && self.graph.is_empty() && self.connections.is_empty() =>
            {
                Err(RequestError::NoSeeds)
            }
            _ => Ok(()),
        }
    }

    /// Requests that are open. What is part of another one is not counted.
    pub(super) fn open_requests(&self) -> usize {
        self.open.len() - self.parts
    }

    pub(super) fn begin(&mut self, id: RequestId, open: Open) {
        self.parts += usize::from(matches!(open.audience, Audience::Parent(_)));
        self.cx.timers.set(Timer::Request(id), open.deadline);
        self.open.insert(id, open);
    }

    // -- searches

    fn search_then(&mut self, id: RequestId, deadline: Instant, target: NodeId, options: Options, then: Then) {
        let find = FindNode { options, ..FindNode::default() };
        self.search(id, Audience::Embedder, deadline, target, &find, then);
    }

    pub(super) fn search(
        &mut self,
        id: RequestId,
        audience: Audience,
        deadline: Instant,
        target: NodeId,
        find: &FindNode,
        then: Then,
    ) {
        let mut lookup = Lookup::new(&self.cx, id, target, find);
        let count = self.cx.config.bucket_limit;
        for (node, contact) in self.graph.closest(&target, count) {
            lookup.offer(node, Some(contact));
        }
        for node in self.connections.closest(&target, count) {
            lookup.offer(node, None);
        }
        self.begin(id, Open { audience, deadline, stage: Stage::Find { lookup, then } });
        self.awake.insert(id);
    }

    /// Lets a search do what it can.
    pub(super) fn advance_search(&mut self, id: RequestId) {
        loop {
            let Self { cx, connections, rpc, open, .. } = self;
            let Some(Open { deadline, stage: Stage::Find { lookup, .. }, .. }) = open.get_mut(&id) else { return };
            match lookup.next(cx, |node| connections.primary(node)) {
                Next::Wait => return,
                Next::Dial { node, addresses, timeout } => connections.dial(cx, id, node, addresses, timeout),
                Next::Ask { node, conn } => ask_closest(cx, rpc, id, lookup, node, conn, *deadline),
                Next::End(end) => return self.search_ended(id, end),
            }
        }
    }

    /// A connection was accepted: every search may ask its node.
    pub(super) fn offer_to_searches(&mut self, node: NodeId) {
        for (id, open) in &mut self.open {
            if let Stage::Find { lookup, .. } = &mut open.stage {
                lookup.offer(node, None);
                self.awake.insert(*id);
            }
        }
    }

    pub(super) fn stalled(&mut self, id: RequestId, node: &NodeId) {
        if let Some(Open { stage: Stage::Find { lookup, .. }, .. }) = self.open.get_mut(&id) {
            lookup.stalled(node);
            self.awake.insert(id);
        }
    }

    /// A search is over; what it was for goes on if its target is connected.
    fn search_ended(&mut self, id: RequestId, end: FindEnd) {
        let Some(mut open) = self.open.remove(&id) else { return };
        let Stage::Find { lookup, then } = open.stage else { return };
        for stream in lookup.streams() {
            self.rpc.cancel(&mut self.cx, stream);
        }
        self.connections.leave(&mut self.cx, id);
        let target = *lookup.target();
        let failures = lookup.target_failures();
        let mut outcome = lookup.finish(&mut self.cx, end);
        let connection = found(&self.connections, &target);
        outcome.found = connection.as_ref().map(|(_, address, data)| (address.clone(), *data));

        let next = match (then, connection) {
            (Then::Report, _) => After::End(Ok(Reply::FindNode(outcome))),
            (_, None) if end == FindEnd::Deadline => After::End(Err(Failure::DeadlineExceeded)),
            (_, None) => After::End(Err(Failure::NotFound(failures))),
            (then, Some(connection)) => self.with_connection(id, open.deadline, then, connection),
        };
        match next {
            After::Wait(stage) => {
                open.stage = stage;
                self.open.insert(id, open);
            }
            After::End(result) => self.report(id, open.audience, result),
        }
    }

    /// The node is connected: does what the request was for.
    fn with_connection(
        &mut self,
        id: RequestId,
        deadline: Instant,
        then: Then,
        (conn, address, data): (ConnectionId, NodeAddress, NodeContactAddressData),
    ) -> After {
        let cx = &mut self.cx;
        let call_deadline = deadline.min(cx.now + cx.config.call_timeout);
        let stage = match then {
            Then::Report => None,
            Then::Ping => {
                let nonce = cx.random_u64(Dice::Calls);
                let stream = self.rpc.call(cx, conn, id, Question::Ping { nonce }, call_deadline);
                stream.map(|stream| Stage::Call { stream, then: CallThen::Pong { nonce, address, data } })
            }
            Then::AskClosest { target, lists } => {
                let stream = self.rpc.call(cx, conn, id, Question::Closest { target, lists }, call_deadline);
                stream.map(|stream| Stage::Call { stream, then: CallThen::Closest })
            }
            Then::OpenStream { protocol } => {
                let stream = self.rpc.open_protocol(cx, conn, id, protocol, call_deadline);
                stream.map(|stream| Stage::OpenStream { stream })
            }
            Then::Acquire => {
                let lease = self.connections.acquire(cx, conn);
                if let Some((lease, connection)) = lease.zip(self.connections.info(cx, conn)) {
                    return After::End(Ok(Reply::AcquireConnection { lease, connection }));
                }
                None
            }
        };
        // It was live a moment ago, so this is not reached; if it were, this would be the truth.
        stage.map_or(After::End(Err(Failure::ConnectionLost(DisconnectReason::Local))), After::Wait)
    }

    // -- dials

    fn dial_request(
        &mut self,
        id: RequestId,
        deadline: Instant,
        timeout: Duration,
        target: NodeId,
        address: NodeAddress,
        then: DialThen,
    ) {
        self.begin(id, Open { audience: Audience::Embedder, deadline, stage: Stage::Dial { then } });
        match self.connections.primary(&target) {
            Some(conn) => self.dial_request_ended(id, then, Ok(conn)),
            None => self.connections.dial_only(&mut self.cx, id, target, address, timeout),
        }
    }

    fn dial_request_ended(
        &mut self,
        id: RequestId,
        then: DialThen,
        result: Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>,
    ) {
        let result = match then {
            DialThen::Ping => Ok(Reply::PingNodeAddress(result.is_ok())),
            DialThen::Connect => result.map_err(Failure::Dial).and_then(|conn| {
                let info = self.connection_info(conn);
                info.map(Reply::Connect).ok_or(Failure::ConnectionLost(DisconnectReason::Local))
            }),
        };
        self.end(id, result);
    }

    /// A dial race that this request waits for is over.
    pub(super) fn race_ended(
        &mut self,
        id: RequestId,
        node: NodeId,
        result: Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>,
    ) {
        let Self { cx, rpc, open, .. } = self;
        let Some(Open { deadline, stage, .. }) = open.get_mut(&id) else { return };
        match stage {
            Stage::Find { lookup, .. } => {
                match result {
                    // Whoever is found is not asked any more.
                    Ok(_) if *lookup.target() == node => {}
                    Ok(conn) if lookup.is_dialling(&node) => {
                        ask_closest(cx, rpc, id, lookup, node, conn, *deadline);
                    }
                    Ok(_) => {}
                    Err(failures) => lookup.dial_failed(cx, &node, failures),
                }
                self.awake.insert(id);
            }
            Stage::Dial { then, .. } => {
                let then = *then;
                self.dial_request_ended(id, then, result);
            }
            Stage::Sync(_) => self.sync_seed_ended(id, node, result.err()),
            Stage::Call { .. } | Stage::OpenStream { .. } => {}
        }
    }

    // -- calls

    /// Says something on a connection that a lease holds. Its answer tells nothing new and is for no request.
    pub(super) fn keep_alive(&mut self, conn: ConnectionId) {
        let (id, nonce) = (self.cx.ids.request(), self.cx.random_u64(Dice::Calls));
        let deadline = self.cx.now + self.cx.config.call_timeout;
        self.rpc.call(&mut self.cx, conn, id, Question::Ping { nonce }, deadline);
    }

    /// A call of this request is over.
    pub(super) fn call_ended(&mut self, id: RequestId, stream: StreamId, result: Result<Answered, Failure>) {
        let Self { cx, open, .. } = self;
        let Some(Open { stage, .. }) = open.get_mut(&id) else { return };
        match stage {
            Stage::Find { lookup, .. } => {
                match result {
                    Ok(Answered { answer: Answer::Closest(closest), .. }) => lookup.answered(cx, stream, closest),
                    Err(Failure::ConnectionLost(_)) => lookup.lost(cx, stream),
                    Ok(_) | Err(_) => lookup.not_answered(cx, stream),
                }
                self.awake.insert(id);
            }
            Stage::Call { then, .. } => {
                let result = match (then, result) {
                    (_, Err(failure)) => Err(failure),
                    (
                        CallThen::Pong { nonce, address, data },
                        Ok(Answered { answer: Answer::Pong { nonce: echo }, rtt }),
                    ) if echo == *nonce => Ok(Reply::PingNode(Pong { address: address.clone(), data: *data, rtt })),
                    (CallThen::Closest, Ok(Answered { answer: Answer::Closest(closest), .. })) => {
                        Ok(Reply::AskClosest(closest))
                    }
                    _ => Err(Failure::Peer(crate::error::PeerFault::Unexpected)),
                };
                self.end(id, result);
            }
            Stage::Dial { .. } | Stage::OpenStream { .. } | Stage::Sync(_) => {}
        }
    }

    pub(super) fn stream_opened(&mut self, id: RequestId, result: Result<StreamId, Failure>) {
        self.end(id, result.map(Reply::OpenStream));
    }

    // -- ends

    pub(super) fn request_deadline(&mut self, id: RequestId) {
        match self.open.get(&id).map(|open| &open.stage) {
            Some(Stage::Find { .. }) => self.search_ended(id, FindEnd::Deadline),
            // The network is joined; what the search has found by now is not lost.
            Some(Stage::Sync(Sync { search: Some(search), .. })) => self.search_ended(*search, FindEnd::Deadline),
            Some(_) => self.end(id, Err(Failure::DeadlineExceeded)),
            None => {}
        }
    }

    pub(super) fn stop_requests(&mut self) {
        while let Some(id) = self.open.keys().next().copied() {
            self.end(id, Err(Failure::Stopped));
        }
    }

    /// Ends a request: everything that it had begun is called off, and its audience is told.
    pub(super) fn end(&mut self, id: RequestId, result: Result<Reply, Failure>) {
        let Some(open) = self.open.remove(&id) else { return };
        self.connections.leave(&mut self.cx, id);
        match open.stage {
            Stage::Find { lookup, .. } => {
                for stream in lookup.streams() {
                    self.rpc.cancel(&mut self.cx, stream);
                }
                lookup.finish(&mut self.cx, FindEnd::Deadline);
            }
            Stage::Call { stream, .. } | Stage::OpenStream { stream } => self.rpc.cancel(&mut self.cx, stream),
            Stage::Sync(sync) => {
                if let Some(search) = sync.search {
                    self.end(search, Err(Failure::Cancelled));
                }
            }
            Stage::Dial { .. } => {}
        }
        self.report(id, open.audience, result);
    }

    /// Tells the audience of a request that is no longer in the table.
    fn report(&mut self, id: RequestId, audience: Audience, result: Result<Reply, Failure>) {
        self.cx.timers.cancel(Timer::Request(id));
        match audience {
            Audience::Embedder => self.cx.event(Event::Done { id, result }),
            Audience::Parent(parent) => {
                self.parts -= 1;
                self.sync_search_ended(parent, result);
            }
            Audience::Nobody => {}
        }
    }
}

/// Asks a connected contact of a search for the nodes that it knows closest to the target.
fn ask_closest(
    cx: &mut crate::cx::Cx,
    rpc: &mut crate::rpc::Rpc,
    id: RequestId,
    lookup: &mut Lookup,
    node: NodeId,
    conn: ConnectionId,
    deadline: Instant,
) {
    let question = Question::Closest { target: *lookup.target(), lists: ClosestLists { local: true, active: true } };
    let deadline = deadline.min(cx.now + cx.config.call_timeout);
    match rpc.call(cx, conn, id, question, deadline) {
        Some(stream) => lookup.asked(node, stream),
        None => lookup.not_asked(cx, &node),
    }
}

/// The connection in use with a node.
fn found(connections: &Connections, node: &NodeId) -> Option<(ConnectionId, NodeAddress, NodeContactAddressData)> {
    let conn = connections.primary(node)?;
    let (address, data) = connections.address(conn)?;
    Some((conn, address, data))
}

/// What an outcome of a search says to a request that needed only that.
pub(super) fn outcome(result: Result<Reply, Failure>) -> Option<FindOutcome> {
    match result {
        Ok(Reply::FindNode(outcome)) => Some(outcome),
        _ => None,
    }
}

pub(super) fn check_protocol(protocol: &str) -> Result<(), RequestError> {
    if is_protocol_name(protocol) { Ok(()) } else { Err(RequestError::Protocol) }
}

fn check_options(options: Options) -> Result<(), RequestError> {
    const MS: Duration = Duration::from_millis(1);
    const HOUR: Duration = Duration::from_secs(3600);
    check_range("deadline", options.deadline, MS..=24 * HOUR, "1 ms to 24 h")?;
    check_range("connect_timeout", options.connect_timeout, MS..=HOUR, "1 ms to 1 h")
}

fn check_range<T: PartialOrd>(
    name: &'static str,
    value: Option<T>,
    allowed: core::ops::RangeInclusive<T>,
    range: &'static str,
) -> Result<(), RequestError> {
    match value {
        Some(value) if !allowed.contains(&value) => Err(RequestError::Option { name, range }),
        _ => Ok(()),
    }
}
