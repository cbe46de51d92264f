//! Streams and the calls on them, above the dialects and below everything else.
//!
//! Each stream has one purpose ([`Purpose`]), fixed by its first message. The table is in
//! [`table`], this file ends its entries. What peers send goes through [`inbound`], what this node
//! sends through [`outbound`]; local calls are in [`calls`], exchanges in [`exchange`]. All of them
//! use a dialect only through [`codec`].

mod calls;
mod circuits;
mod early;
pub(crate) mod event;
mod exchange;
mod external;
mod fault_meter;
mod faults;
mod inbound;
mod network;
mod outbound;
mod pages;
mod paging;
mod sets;
pub(crate) mod table;

use alloc::string::String;
use alloc::vec::Vec;

pub(crate) use self::event::ExchangeStep;
use self::event::RpcEvent;
use self::fault_meter::FaultMeter;
use self::inbound::our_hello;
use self::sets::{StreamQueue, StreamSet};
use self::table::{Greeting, PerConnection, Purpose, Rpc, Stream};
use crate::api::census::Census;
use crate::api::error::{Failure, PeerFault, code};
use crate::api::output::Output;
use crate::api::transport::{DisconnectReason, Side};
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::types::queue;
use crate::types::refusal::Refusal;
use crate::wire::codec;
use crate::wire::dialect::Dialect;
use crate::wire::frame::FrameFault;
use crate::wire::message::RpcResponse;
use crate::wire::parsed_message::StreamFormat;
use crate::wire::polykey::ObjectFault;

impl Rpc {
    // -- connections

    /// A handshake completed. The dialer opens the control stream and sends the first Hello.
    pub(crate) fn connection_opened(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        node: NodeId,
        side: Side,
        dialect: Dialect,
    ) {
        let connection = PerConnection {
            node,
            dialect,
            streams: StreamSet::default(),
            control: None,
            detached: StreamSet::default(),
            received: 0,
            starved: StreamQueue::default(),
            greeting: Greeting::Hello,
            features: 0,
            externals: 0,
            external: None,
            faults: FaultMeter::default(),
        };
        self.connections.insert(conn, connection);
        if dialect == Dialect::Polykey {
            // Polykey 1.x has no Hello: the handshake is sufficient.
            self.authenticate(cx, conn, side);
        } else if side == Side::Dialer {
            let hello = codec::hello(our_hello(cx));
            let control = hello
                .and_then(|hello| self.open(cx, conn, |_| Purpose::Control, None, hello, false));
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.control = control;
            }
        }
    }

    /// A connection ended, with all its streams. Calls on it fail.
    pub(crate) fn connection_closed(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        why: &DisconnectReason,
    ) {
        let Some(connection) = self.connections.remove(&conn) else { return };
        self.received = self.received.saturating_sub(connection.received);
        for id in connection.detached.iter() {
            self.detached.remove(&id);
        }
        for id in connection.streams.iter() {
            cx.timers.cancel(Timer::Stream(id));
            self.held.remove(&id);
            self.parked.remove(&(conn, id));
            if let Some(stream) = self.streams.remove(&id) {
                self.unsent = self.unsent.saturating_sub(stream.send.pending());
                self.report_failure(cx, id, &stream, Failure::ConnectionLost(why.clone()));
            }
        }
    }

    /// Returns whether the connection is used: by calls in progress, or streams of applications.
    pub(crate) fn in_use(&self, conn: ConnectionId) -> bool {
        self.connections.get(&conn).is_some_and(|connection| {
            let control =
                connection.control.is_some_and(|control| connection.streams.contains(control));
            !connection.detached.is_empty() || connection.streams.len() > usize::from(control)
        })
    }

    /// Returns whether a connection has application streams.
    pub(crate) fn has_application(&self, conn: ConnectionId) -> bool {
        self.connections.get(&conn).is_some_and(|connection| !connection.detached.is_empty())
    }

    /// Returns the requests that wait for an answer on a connection, or for the peer to accept a
    /// stream; each with the stream that its caller knows.
    pub(crate) fn waiting_on(&self, conn: ConnectionId) -> Vec<(RequestId, StreamId)> {
        let connection = self.connections.get(&conn);
        let streams = connection.into_iter().flat_map(|connection| connection.streams.iter());
        let waiting = streams.filter_map(|id| match &self.streams.get(&id)?.purpose {
            Purpose::Call { call } if *call == id => Some((self.calls.get(call)?.request, *call)),
            Purpose::Open { request, .. } => Some((*request, id)),
            _ => None,
        });
        waiting.collect()
    }

    /// Returns the streams of a connection that were not handed over.
    pub(crate) fn streams_on(&self, conn: ConnectionId) -> impl Iterator<Item = StreamId> {
        self.connections.get(&conn).into_iter().flat_map(|connection| connection.streams.iter())
    }

    // -- application protocols

    /// Accepts a protocol from now on; `false` if there are too many.
    pub(crate) fn accept_protocol(&mut self, cx: &Cx, protocol: String) -> bool {
        if self.protocols.len() >= cx.config.protocol_limit && !self.protocols.contains(&protocol) {
            return false;
        }
        self.protocols.insert(protocol);
        true
    }

    pub(crate) fn refuse_protocol(&mut self, protocol: &str) {
        self.protocols.remove(protocol);
    }

    // -- inputs

    pub(crate) fn open_failed(&mut self, cx: &mut Cx, id: StreamId) {
        if let Some(stream) = self.forget(cx, id) {
            self.report_failure(cx, id, &stream, Failure::Aborted(code::LIMIT));
        }
    }

    /// A stream that was handed over has ended. Returns its connection.
    pub(crate) fn stream_closed(&mut self, id: StreamId) -> Option<ConnectionId> {
        let conn = self.detached.remove(&id)?;
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.detached.remove(id);
        }
        Some(conn)
    }

    /// The peer has not sent what this stream waits for.
    pub(crate) fn timed_out(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        let conn = stream.conn;
        match stream.purpose {
            Purpose::Call { call } if self.is_parked(call) => {
                self.give_up(cx, id, code::NONE, Failure::Cancelled);
            }
            Purpose::Exchange { ours: false } if stream.format != StreamFormat::Native => {
                cx.metrics.call_timeouts += 1;
                let step = ExchangeStep::Failed(Failure::DeadlineExceeded);
                self.events.push_back(RpcEvent::Exchange { stream: id, conn, step });
                self.answer_last(cx, id, RpcResponse::Refused(Refusal::Busy));
            }
            Purpose::Call { .. }
            | Purpose::Open { .. }
            | Purpose::Circuit { .. }
            | Purpose::Exchange { .. } => {
                cx.metrics.call_timeouts += 1;
                self.give_up(cx, id, code::TIMED_OUT, Failure::DeadlineExceeded);
            }
            Purpose::First | Purpose::Authentication(_) => {
                cx.metrics.stream_timeouts += 1;
                self.abort(cx, id, code::TIMED_OUT);
                self.fault(cx, conn, PeerFault::Truncated);
            }
            Purpose::CircuitRequested => {
                cx.metrics.answers_late += 1;
                self.give_up(cx, id, code::TIMED_OUT, Failure::DeadlineExceeded);
            }
            Purpose::Responding => {
                cx.metrics.answers_late += 1;
                if stream.format == StreamFormat::Native {
                    self.give_up(cx, id, code::TIMED_OUT, Failure::DeadlineExceeded);
                } else {
                    // A caller of the reference displays a reset as `[object Object]`.
                    self.answer_last(cx, id, RpcResponse::Refused(Refusal::Busy));
                    self.events.push_back(RpcEvent::Withdrawn { stream: id });
                }
            }
            // The peer's direction is its own; it never ends one that is not read.
            Purpose::Responded if stream.send.is_done() => drop(self.abort(cx, id, code::NONE)),
            Purpose::Ended => drop(self.abort(cx, id, code::NONE)),
            Purpose::Responded | Purpose::Paging { .. } => {
                cx.metrics.send_overflows += 1;
                self.abort(cx, id, code::TIMED_OUT);
                self.fault(cx, conn, PeerFault::NotReading);
            }
            Purpose::Control => {}
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<RpcEvent> {
        queue::take(&mut self.events)
    }

    /// Counts the tables of this component.
    pub(crate) fn count_tables(&self, census: &mut Census) {
        census.rpc_connections = self.connections.len();
        census.streams = self.streams.len();
        census.calls = self.calls.len();
        census.detached = self.detached.len();
        census.protocols = self.protocols.len();
        census.events += self.events.len();
    }

    /// Writes the gauges of this component.
    pub(crate) fn measure(&self, metrics: &mut crate::api::metrics::Metrics) {
        metrics.streams = self.streams.len() as u64;
        metrics.receive_bytes = self.received;
        metrics.send_bytes = self.unsent;
    }

    // -- internal

    // -- ends

    /// Removes a stream on which both ends have sent everything.
    fn end_if_over(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        if !stream.send.is_done() || !stream.recv.is_over() {
            return;
        }
        match stream.purpose {
            Purpose::Responded | Purpose::Exchange { .. } | Purpose::Ended => {
                drop(self.forget(cx, id));
            }
            // The peer has refused the answer before it was sent.
            Purpose::Responding => {
                self.forget(cx, id);
                self.events.push_back(RpcEvent::Withdrawn { stream: id });
            }
            Purpose::Call { .. }
            | Purpose::Control
            | Purpose::First
            | Purpose::Open { .. }
            | Purpose::Circuit { .. }
            | Purpose::CircuitRequested
            | Purpose::Authentication(_)
            | Purpose::Paging { .. } => {}
        }
    }

    /// Removes a stream that needs no reset; what waited for its credit gets it.
    fn forget(&mut self, cx: &mut Cx, id: StreamId) -> Option<Stream> {
        let stream = self.remove(cx, id)?;
        self.feed(cx, stream.conn);
        Some(stream)
    }

    /// Removes a stream. Its credit may be granted to others, with [`Rpc::feed`], only after the
    /// driver knows that it is not used.
    fn remove(&mut self, cx: &mut Cx, id: StreamId) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        self.held.remove(&id);
        self.unsent = self.unsent.saturating_sub(stream.send.pending());
        cx.timers.cancel(Timer::Stream(id));
        self.parked.remove(&(stream.conn, id));
        if let Some(connection) = self.connections.get_mut(&stream.conn) {
            connection.streams.remove(id);
            connection.starved.remove(id);
            connection.received = connection.received.saturating_sub(stream.cost);
            self.received = self.received.saturating_sub(stream.cost);
        }
        Some(stream)
    }

    /// Ends both directions of a stream, as far as they are open.
    fn abort(&mut self, cx: &mut Cx, id: StreamId, code: u64) -> Option<Stream> {
        let stream = self.remove(cx, id)?;
        if !stream.send.is_done() {
            cx.output(Output::ResetStream { stream: id, code });
        }
        if !stream.recv.is_over() {
            cx.output(Output::StopStream { stream: id, code });
        }
        self.feed(cx, stream.conn);
        Some(stream)
    }

    /// Ends a stream and fails what waits for it.
    fn give_up(&mut self, cx: &mut Cx, id: StreamId, code: u64, failure: Failure) {
        if let Some(stream) = self.abort(cx, id, code) {
            self.report_failure(cx, id, &stream, failure);
        }
    }

    /// The peer violated the protocol on this stream.
    fn fail(&mut self, cx: &mut Cx, id: StreamId, fault: PeerFault) {
        let Some(conn) = self.streams.get(&id).map(|stream| stream.conn) else { return };
        cx.metrics.stream_faults += 1;
        let code = match fault {
            PeerFault::Frame(FrameFault::Unknown) => code::UNSUPPORTED,
            PeerFault::Frame(FrameFault::TooLong(_)) | PeerFault::Object(ObjectFault::TooLong) => {
                code::MESSAGE_TOO_LONG
            }
            _ => code::MALFORMED,
        };
        self.give_up(cx, id, code, Failure::Peer(fault.clone()));
        self.fault(cx, conn, fault);
    }

    fn report_failure(&mut self, cx: &Cx, id: StreamId, stream: &Stream, failure: Failure) {
        match stream.purpose {
            Purpose::Call { call } => self.part_ended(cx, call, id, Some(failure)),
            Purpose::Open { request, .. } => {
                self.events.push_back(RpcEvent::Opened { request, result: Err(failure) });
            }
            Purpose::Exchange { .. } => {
                let step = ExchangeStep::Failed(failure);
                self.events.push_back(RpcEvent::Exchange { stream: id, conn: stream.conn, step });
            }
            Purpose::Circuit { request } => {
                self.events.push_back(RpcEvent::Circuit { request, result: Err(failure) });
            }
            Purpose::Responding | Purpose::CircuitRequested => {
                self.events.push_back(RpcEvent::Withdrawn { stream: id });
            }
            Purpose::Authentication(_) => self.authentication_lost(stream.conn, &failure),
            Purpose::Control
            | Purpose::First
            | Purpose::Responded
            | Purpose::Paging { .. }
            | Purpose::Ended => {}
        }
    }

    fn node_of(&self, id: StreamId) -> Option<NodeId> {
        let stream = self.streams.get(&id)?;
        self.connections.get(&stream.conn).map(|connection| connection.node)
    }
}
