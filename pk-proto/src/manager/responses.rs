//! Requests that wait for one dial, one call or one stream.

use super::lifecycle::{OnCallEnded, OnRaceEnded, RaceResult, Reactions};
use super::node::NodeManager;
use super::state::repeats::{Repeat, is_lost};
use super::state::stage::{
    OnDialed, OnResponse, OpenRequest, OpeningStream, PendingCall, Recipient, RequestStage, Search,
};
use crate::api::error::{Failure, PeerFault};
use crate::api::reply::{Pong, Reply};
use crate::api::transport::DisconnectReason;
use crate::machine::cx::RngStream;
use crate::machine::dial::DialTarget;
use crate::rpc::event::CompletedCall;
use crate::types::id::{ConnectionId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::message::{RpcRequest, RpcResponse};

impl Reactions for OnDialed {
    fn on_race_ended(&self) -> Option<OnRaceEnded> {
        Some(|node, id, _, result| {
            if let Some(on_dialed) = node.requests.stage::<Self>(id).copied() {
                node.dial_request_ended(id, on_dialed, result);
            }
        })
    }
}

impl Reactions for PendingCall {
    fn on_call_ended(&self) -> Option<OnCallEnded> {
        Some(|node, id, _, _, result| node.pending_call_ended(id, result))
    }

    fn repeat(&self) -> Repeat {
        Repeat::Request
    }
}

impl Reactions for OpeningStream {
    /// The application at the peer has received no byte yet, and the first stream is reset.
    fn repeat(&self) -> Repeat {
        Repeat::Request
    }
}

impl NodeManager {
    // -- dials

    pub(super) fn dial_request(
        &mut self,
        id: RequestId,
        deadline: Instant,
        dial_target: DialTarget,
        on_dialed: OnDialed,
    ) {
        self.begin(
            id,
            OpenRequest {
                recipient: Recipient::Embedder,
                deadline,
                stage: RequestStage::Dial(on_dialed),
            },
        );
        match self.connections.live(&dial_target.node) {
            Some(conn) => self.dial_request_ended(id, on_dialed, Ok(conn)),
            None => self.connections.dial_only(&mut self.cx, id, dial_target.foreground()),
        }
    }

    fn dial_request_ended(&mut self, id: RequestId, on_dialed: OnDialed, result: RaceResult) {
        let result = match on_dialed {
            OnDialed::Ping => Ok(Reply::PingNodeAddress(result.is_ok())),
            OnDialed::Connect => result.map_err(Failure::Dial).and_then(|conn| {
                let info = self.connection_info(conn);
                info.map(Reply::Connect).ok_or(Failure::ConnectionLost(DisconnectReason::Local))
            }),
        };
        self.end(id, result);
    }

    // -- calls

    /// Sends a ping on a connection that stays open, so that the peer does not close it as idle. No
    /// request waits for the response.
    pub(super) fn keep_alive(&mut self, conn: ConnectionId) {
        let (id, nonce) = (self.cx.ids.request(), self.cx.random_u64(RngStream::Calls));
        let deadline = self.cx.now + self.cx.config.call_timeout;
        self.rpc.call(&mut self.cx, conn, id, RpcRequest::Ping { nonce }, deadline);
    }

    /// A call has ended: a peer that has answered it is alive, and may want room in its bucket. A
    /// ping is no question.
    pub(super) fn question_answered(
        &mut self,
        conn: ConnectionId,
        result: &Result<CompletedCall, Failure>,
    ) {
        let Ok(CompletedCall { answer, .. }) = result else { return };
        let Some(node) = self.connections.node(conn) else { return };
        self.received_from(node);
        if !matches!(answer, RpcResponse::Pong { .. } | RpcResponse::Refused(_)) {
            self.wants_room(&node);
        }
    }

    /// Handles the response to the call of a request, or its failure.
    fn pending_call_ended(&mut self, id: RequestId, result: Result<CompletedCall, Failure>) {
        let Some(PendingCall { on_response, .. }) = self.requests.stage::<PendingCall>(id) else {
            return;
        };
        let result = match (on_response, result) {
            (_, Err(failure)) => Err(failure),
            (_, Ok(CompletedCall { answer: RpcResponse::Refused(refusal), .. })) => {
                Err(Failure::Refused(refusal))
            }
            (
                OnResponse::Pong { nonce, address, data },
                Ok(CompletedCall { answer: RpcResponse::Pong { nonce: echo }, rtt }),
            ) if echo == *nonce => {
                Ok(Reply::PingNode(Pong { address: address.clone(), data: *data, rtt }))
            }
            (
                OnResponse::Closest,
                Ok(CompletedCall { answer: RpcResponse::Closest(closest), .. }),
            ) => Ok(Reply::QueryClosestNodes(closest)),
            _ => Err(Failure::Peer(PeerFault::Unexpected)),
        };
        self.end(id, result);
    }

    /// Handles the end of opening a stream: the stream, or a failure, after which the request is
    /// repeated if the connection was lost.
    pub(super) fn stream_opened(&mut self, id: RequestId, result: Result<StreamId, Failure>) {
        if self.requests.stage::<Search>(id).is_some()
            && !self.awaited_ended(id, result.as_ref().err())
        {
            return;
        }
        if result.as_ref().is_err_and(is_lost) && self.retry_request(id, None) {
            return;
        }
        self.end(id, result.map(Reply::OpenStream));
    }
}
