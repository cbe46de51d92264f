//! What requests wait for: dials and calls, and what their ends mean to whoever waits.

use alloc::vec::Vec;

use super::NodeManager;
use super::open::{Again, Audience, CallThen, DialThen, Open, Stage};
use super::search::ask_closest;
use crate::address::NodeAddress;
use crate::connect::Goal;
use crate::cx::Dice;
use crate::error::{Failure, code};
use crate::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::io::{DialFailure, DisconnectReason};
use crate::request::{FindNode, Options, Pong, Reply};
use crate::rpc::{Answer, Answered, Question};
use crate::time::Instant;

impl NodeManager {
    // -- dials

    pub(super) fn dial_request(&mut self, id: RequestId, deadline: Instant, goal: Goal, then: DialThen) {
        self.begin(id, Open { audience: Audience::Embedder, deadline, stage: Stage::Dial { then } });
        match self.connections.primary(&goal.node) {
            Some(conn) => self.dial_request_ended(id, then, Ok(conn)),
            None => self.connections.dial_only(&mut self.cx, id, goal.urgent()),
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
            Stage::Collect(_) => self.probe_ended(id, &node, result.is_ok()),
            Stage::Call { .. }
            | Stage::OpenStream { .. }
            | Stage::WaitForRoom { .. }
            | Stage::Renew(_)
            | Stage::QueryMdns { .. }
            | Stage::ClaimNode(_)
            | Stage::AddClaim(_)
            | Stage::AllowClaim
            | Stage::ChainData(_)
            | Stage::Reading(_)
            | Stage::Flush => {}
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
    pub(super) fn call_ended(
        &mut self,
        id: RequestId,
        conn: ConnectionId,
        stream: StreamId,
        result: Result<Answered, Failure>,
    ) {
        let teller = self.connections.address(conn).map(|(address, _)| address);
        let Self { cx, open, .. } = self;
        let Some(Open { stage, .. }) = open.get_mut(&id) else { return };
        match stage {
            Stage::Find { lookup, .. } => {
                match result {
                    Ok(Answered { answer: Answer::Closest(closest), .. }) => {
                        lookup.answered(cx, stream, closest, teller.as_ref());
                    }
                    Err(Failure::ConnectionLost(_)) => lookup.lost(cx, stream),
                    Ok(_) | Err(_) => lookup.not_answered(cx, stream),
                }
                self.awake.insert(id);
            }
            Stage::Call { again: again @ Some(_), .. } if was_idle(&result) => {
                let again = again.take();
                self.ask_again(id, again);
            }
            Stage::Call { then, .. } => {
                let result = match (then, result) {
                    (_, Err(failure)) => Err(failure),
                    (_, Ok(Answered { answer: Answer::Refused(refusal), .. })) => Err(Failure::Refused(refusal)),
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
            Stage::AddClaim(_) => self.own_answered(id, result),
            Stage::ClaimNode(_) => self.node_checked(id, result),
            Stage::ChainData(_) => self.chain_page(id, result),
            Stage::Dial { .. }
            | Stage::OpenStream { .. }
            | Stage::Sync(_)
            | Stage::WaitForRoom { .. }
            | Stage::Collect(_)
            | Stage::Renew(_)
            | Stage::QueryMdns { .. }
            | Stage::AllowClaim
            | Stage::Reading(_)
            | Stage::Flush => {}
        }
    }

    /// The connection of a question ended before its answer came. It was asked over one that the peer was closing, which says
    /// nothing about the peer: it gets another chance, once.
    fn ask_again(&mut self, id: RequestId, again: Option<Again>) {
        let Some((Open { audience, deadline, .. }, Again { node, connect_timeout, then })) =
            self.open.remove(&id).zip(again)
        else {
            return;
        };
        self.parts -= usize::from(audience != Audience::Embedder);
        let options = Options { deadline: None, connect_timeout: Some(connect_timeout) };
        let find = FindNode { options, ..FindNode::default() };
        self.search(id, audience, deadline, node, &find, then);
    }

    pub(super) fn stream_opened(&mut self, id: RequestId, result: Result<StreamId, Failure>) {
        self.end(id, result.map(Reply::OpenStream));
    }
}

/// Whether a call was lost with a connection that the peer had no more use for, or had forgotten.
fn was_idle(result: &Result<Answered, Failure>) -> bool {
    matches!(
        result,
        Err(Failure::ConnectionLost(DisconnectReason::Peer { code: code::NONE, .. } | DisconnectReason::Reset))
    )
}
