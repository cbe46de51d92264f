//! Searches, and what goes on from them once their node is connected.

use core::time::Duration;

use super::NodeManager;
use super::open::{After, Again, Asked, Audience, CallThen, DialThen, Open, Stage, Then};
use crate::address::{NodeAddress, NodeContactAddressData};
use crate::connect::Connections;
use crate::cx::Dice;
use crate::error::Failure;
use crate::id::{ConnectionId, NodeId, RequestId};
use crate::io::DisconnectReason;
use crate::lookup::{Lookup, Next};
use crate::request::{ClosestLists, FindEnd, FindNode, FindOutcome, Options, Reply};
use crate::rpc::Question;
use crate::time::Instant;

impl NodeManager {
    pub(super) fn search_then(
        &mut self,
        id: RequestId,
        deadline: Instant,
        target: NodeId,
        options: Options,
        then: Then,
    ) {
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
        let asks_locally = audience == Audience::Embedder && !self.cx.is_own(&target) && self.cx.config.mdns;
        if asks_locally && find.strategies.unwrap_or_default().mdns && self.connections.primary(&target).is_none() {
            let timeout = find.mdns_timeout.unwrap_or(self.cx.config.mdns_timeout);
            lookup.set_browse(Some(self.browse(id, target, self.cx.now + timeout)));
        }
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
            let Some(Open { deadline, audience, stage: Stage::Find { lookup, .. } }) = open.get_mut(&id) else {
                return;
            };
            match lookup.next(cx, |node| connections.primary(node)) {
                Next::Wait => return,
                Next::Dial(goal) if audience.is_awaited() => connections.dial(cx, id, goal.urgent()),
                Next::Dial(goal) => connections.dial(cx, id, goal),
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
    pub(super) fn search_ended(&mut self, id: RequestId, end: FindEnd) {
        let Some(mut open) = self.open.remove(&id) else { return };
        let Stage::Find { lookup, then } = open.stage else { return };
        for stream in lookup.streams() {
            self.rpc.cancel(&mut self.cx, stream);
        }
        self.connections.leave(&mut self.cx, id);
        self.end_browse_of(&lookup);
        let target = *lookup.target();
        let (failures, connect_timeout) = (lookup.target_failures(), lookup.connect_timeout());
        let mut outcome = lookup.finish(&mut self.cx, end);
        let connection = found(&self.connections, &target);
        outcome.found = connection.as_ref().map(|(_, address, data)| (address.clone(), *data));

        let next = match (then, connection) {
            (Then::Report, _) => After::End(Ok(Reply::FindNode(outcome))),
            (Then::ReportRefresh, _) => After::End(Ok(Reply::RefreshBucket(outcome))),
            (then, None) => {
                let failure = match end {
                    FindEnd::Deadline => Failure::DeadlineExceeded,
                    _ => Failure::NotFound(failures),
                };
                After::End(self.not_found(open.audience, &then, failure))
            }
            (then, Some(connection)) => {
                let again = again(target, connect_timeout, &then);
                self.with_connection(id, open.deadline, then, again, connection)
            }
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
        again: Option<Again>,
        (conn, address, data): (ConnectionId, NodeAddress, NodeContactAddressData),
    ) -> After {
        let then = match then {
            Then::ClaimNode(claiming) => return After::Wait(self.node_begin(id, conn, claiming)),
            Then::ClaimNetwork { content } => return After::Wait(self.own_begin(id, content, Some(conn))),
            then => then,
        };
        let cx = &mut self.cx;
        let call_deadline = deadline.min(cx.now + cx.config.call_timeout);
        let stage = match then {
            Then::Report | Then::ReportRefresh | Then::ClaimNode(_) | Then::ClaimNetwork { .. } => None,
            Then::Ping { .. } => {
                let nonce = cx.random_u64(Dice::Calls);
                let stream = self.rpc.call(cx, conn, id, Question::Ping { nonce }, call_deadline);
                stream.map(|stream| Stage::Call { stream, then: CallThen::Pong { nonce, address, data }, again })
            }
            Then::AskClosest { target, lists, .. } => {
                let stream = self.rpc.call(cx, conn, id, Question::Closest { target, lists }, call_deadline);
                stream.map(|stream| Stage::Call { stream, then: CallThen::Closest, again })
            }
            Then::OpenStream { protocol } => match self.rpc.open_protocol(cx, conn, id, protocol, call_deadline) {
                Ok(stream) => Some(Stage::OpenStream { stream }),
                Err(failure) => return After::End(Err(failure)),
            },
            Then::ConnectThrough { goal } => {
                self.connections.dial_only(cx, id, goal);
                Some(Stage::Dial { then: DialThen::Connect })
            }
            Then::ChainData { since, limit } => self.chain_begin(id, conn, since, limit),
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
}

/// Asks a connected contact of a search for the nodes that it knows closest to the target.
pub(super) fn ask_closest(
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

/// How a question is asked again if its connection ends before the answer comes; once.
fn again(node: NodeId, connect_timeout: Duration, then: &Then) -> Option<Again> {
    let asked = Asked::Once;
    let then = match *then {
        Then::Ping { asked: Asked::Never } => Then::Ping { asked },
        Then::AskClosest { target, lists, asked: Asked::Never } => Then::AskClosest { target, lists, asked },
        _ => return None,
    };
    Some(Again { node, connect_timeout, then })
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
