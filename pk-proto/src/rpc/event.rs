//! Events of streams.

use bytes::Bytes;

use crate::api::error::{ConnectionErrorReason, Failure, PeerFault};
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::wire::message::{RpcRequest, RpcResponse};

/// Progress of the peer's part in an exchange.
#[derive(Debug)]
pub(crate) enum ExchangeStep {
    /// The peer started an exchange, with its first token.
    Begun(Bytes),
    /// Its next token.
    Token(Bytes),
    /// It has sent everything. Our direction may still be open.
    Finished,
    /// The stream is gone. A refusal of the peer is [`Failure::Refused`].
    Failed(Failure),
}

/// Events of streams, for the manager.
#[derive(Debug)]
pub(crate) enum RpcEvent {
    /// The peer accepted the connection: its Hello arrived, or its dialect has none; and its
    /// network is not refused.
    Hello { conn: ConnectionId },
    /// The peer belongs to another network, or names none although it must: the connection must be
    /// closed.
    OtherNetwork { conn: ConnectionId, reason: ConnectionErrorReason },
    /// The peer has sent its external address, or that it has none any longer; `former` is the one
    /// that it has sent before.
    External { conn: ConnectionId, former: Option<NodeAddress> },
    /// A local call ended.
    CallEnded {
        request: RequestId,
        conn: ConnectionId,
        stream: StreamId,
        result: Result<CompletedCall, Failure>,
    },
    /// A peer sent a request; call [`Rpc::answer`] now or later. Answers for a finished stream are
    /// ignored.
    Request { stream: StreamId, conn: ConnectionId, request: RpcRequest },
    /// A stream that waits for an answer is gone, or its connection is.
    Withdrawn { stream: StreamId },
    /// The peer's part in an exchange advanced.
    Exchange { stream: StreamId, conn: ConnectionId, step: ExchangeStep },
    /// A stream of an application was accepted by the peer and handed over, or failed.
    Opened { request: RequestId, result: Result<StreamId, Failure> },
    /// The peer has accepted a circuit that this node has requested or offered, with its answer, or
    /// there is none. The stream is handed over.
    Circuit { request: RequestId, result: Result<(StreamId, RpcResponse), Failure> },
    /// A peer violated the protocol. The stream is already gone; `fatal` if the connection must be
    /// closed.
    Fault { conn: ConnectionId, node: NodeId, fault: PeerFault, fatal: bool },
}

/// A completed call.
#[derive(Debug)]
pub(crate) struct CompletedCall {
    pub(crate) answer: RpcResponse,
    pub(crate) rtt: core::time::Duration,
}
