//! The table of streams and calls.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;

use bytes::Bytes;

use super::event::RpcEvent;
use super::fault_meter::FaultMeter;
use super::paging::Paging;
use super::sets::{StreamQueue, StreamSet};
use crate::api::error::Failure;
use crate::claims::ClaimId;
use crate::machine::cx::Cx;
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::codec::Decoder;
use crate::wire::dialect::Dialect;
use crate::wire::message::RpcResponse;
use crate::wire::parsed_message::{ParsedMessage, StreamFormat};

/// A local call without a complete answer. A dialect may need several streams for it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) request: RequestId,
    pub(super) conn: ConnectionId,
    pub(super) begun: Instant,
    /// Streams that have not ended.
    pub(super) parts: BTreeSet<StreamId>,
    /// Answer so far.
    pub(super) answer: Option<RpcResponse>,
    /// Progress of an answer that has pages.
    pub(super) paging: Option<Paging>,
    /// Whether a part has ended well, or has sent something.
    pub(super) answered: bool,
    /// Number of messages of the answer.
    pub(super) messages: u32,
    /// Failure of the first part that failed.
    pub(super) failure: Option<Failure>,
}

/// State of one connection.
#[derive(Debug)]
pub(super) struct PerConnection {
    pub(super) node: NodeId,
    pub(super) dialect: Dialect,
    pub(super) streams: StreamSet,
    pub(super) control: Option<StreamId>,
    /// Streams of applications, no longer in `streams`.
    pub(super) detached: StreamSet,
    /// Sum of the costs of all receiving halves.
    pub(super) received: u64,
    /// Streams that wait for credit, in order.
    pub(super) starved: StreamQueue,
    pub(super) greeting: Greeting,
    /// Extensions that the peer supports.
    pub(super) features: u64,
    /// Number of external addresses that the peer has sent.
    pub(super) externals: u8,
    /// The latest one; `None` if the peer has withdrawn it.
    pub(super) external: Option<Box<NodeAddress>>,
    pub(super) faults: FaultMeter,
}

/// What a connection still needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The Hello of the peer.
    Hello,
    /// The network of the peer.
    Network,
    /// Nothing: it is accepted.
    Complete,
}

/// What the local node waits for in an authentication on `quic`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Authentication {
    /// Local call: that the peer accepts the local network.
    Accept,
    /// Local call: the network of the peer, which was sent the local one.
    Network,
    /// Local call: that the peer ends it.
    End,
    /// Call of the peer: that it accepts the local network.
    Responding,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) conn: ConnectionId,
    pub(super) purpose: Purpose,
    /// Format of the data on it.
    pub(super) format: StreamFormat,
    pub(super) send: SendHalf,
    pub(super) recv: RecvHalf,
    /// Whether reading is paused.
    pub(super) parked: bool,
    /// Its part of the sum of the connection.
    pub(super) cost: u64,
}

impl Stream {
    pub(super) fn new(
        cx: &Cx,
        conn: ConnectionId,
        dialect: Dialect,
        purpose: Purpose,
        format: StreamFormat,
    ) -> Self {
        let recv = RecvHalf::new(dialect, cx.config.receive_window);
        Self { conn, purpose, format, send: SendHalf::default(), recv, parked: false, cost: 0 }
    }
}

/// Purpose of a stream.
#[derive(Debug)]
pub(super) enum Purpose {
    /// Hellos and networks, in both directions; open as long as the connection.
    Control,
    /// Local: waits for the answer to a call, or a part of it.
    Call { call: StreamId },
    /// Local: waits for the peer to accept a protocol.
    Open { request: RequestId, protocol: String },
    /// Local: waits for the peer to accept a circuit.
    Circuit { request: RequestId },
    /// Incoming: waits for this node to accept a circuit.
    CircuitRequested,
    /// Incoming: the first message is not complete yet.
    First,
    /// Incoming: waits for our answer.
    Responding,
    /// Incoming: answered; the answer is being sent.
    Responded,
    /// Incoming: a part of the answer is being sent, which continues after this claim.
    Paging { after: ClaimId },
    /// An exchange, local if `ours`.
    Exchange { ours: bool },
    /// The authentication of the connection on `quic`, in which this is waited for.
    Authentication(Authentication),
    /// Local: everything is received except the end of the peer's direction.
    Ended,
}

impl Stream {
    /// Returns whether another message is read now.
    pub(super) fn reads(&self) -> bool {
        self.purpose.reads() && !self.parked
    }
}

impl Purpose {
    /// Returns whether another message may arrive.
    pub(super) fn reads(&self) -> bool {
        !matches!(
            self,
            Self::Responding
                | Self::Responded
                | Self::Paging { .. }
                | Self::Ended
                | Self::CircuitRequested
        )
    }
}

/// All streams of all connections.
#[derive(Debug, Default)]
pub(crate) struct Rpc {
    pub(super) connections: BTreeMap<ConnectionId, PerConnection>,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    /// Requests that arrived before the Hello of their peer; see [`super::early`].
    pub(super) held: BTreeMap<StreamId, ParsedMessage>,
    /// Local calls, by the first of their streams.
    pub(super) calls: BTreeMap<StreamId, Call>,
    /// Local calls that have returned a page, and whose next one was not requested; see
    /// [`super::pages`].
    pub(super) parked: BTreeSet<(ConnectionId, StreamId)>,
    /// The connections of streams that were handed over to applications.
    pub(super) detached: BTreeMap<StreamId, ConnectionId>,
    /// Sum of `received` of all connections.
    pub(super) received: u64,
    /// Sum of the unconfirmed and queued bytes of all streams.
    pub(super) unsent: u64,
    pub(super) protocols: BTreeSet<String>,
    /// External address of the local node.
    pub(super) external: Option<NodeAddress>,
    pub(super) events: VecDeque<RpcEvent>,
}

/// The sending direction: a queue behind a window of unconfirmed bytes.
#[derive(Debug, Default)]
pub(super) struct SendHalf {
    pub(super) queue: VecDeque<Bytes>,
    pub(super) queued: u64,
    pub(super) unconfirmed: u64,
    pub(super) fin: Fin,
}

/// State of the end of the sending direction.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fin {
    /// More may follow.
    #[default]
    Open,
    /// It follows the queue.
    Queued,
    /// Passed to the driver.
    Sent,
    /// Reset or stopped; nothing more is sent.
    Aborted,
}

/// The receiving direction: credit, and the bytes of an incomplete message.
#[derive(Debug)]
pub(super) struct RecvHalf {
    pub(super) decoder: Decoder,
    /// Granted, not received.
    pub(super) credit: u64,
    pub(super) over: bool,
}
