//! Streams and the calls on them, above the dialects and below everything else.
//!
//! Each stream has one purpose ([`Purpose`]), fixed by its first message. This file holds the table and its ends; what comes
//! in is read in [`messages`], what may come in is decided in [`window`], what goes out waits in [`stream`].

mod call;
mod dialect;
mod frame;
mod messages;
mod stream;
mod window;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;

use bytes::Bytes;

pub use call::{Answer, PunchRequest, Question, Refusal, SignalRequest, is_protocol_name};
pub use dialect::native;
pub use frame::{FrameDecoder, FrameFault, MAX_FRAME, encode_frame};

use self::messages::our_hello;
use self::native::{Message, V1};
use self::stream::{RecvHalf, SendHalf};
use crate::cx::Cx;
use crate::error::{Failure, PeerFault, code};
use crate::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::io::{DisconnectReason, Output, Role};
use crate::time::Instant;
use crate::timers::Timer;

/// What happened on streams, for the manager.
#[derive(Debug)]
pub(crate) enum RpcEvent {
    /// The peer's Hello came: it accepts the connection.
    Hello { conn: ConnectionId },
    /// A call of ours ended.
    Answered { request: RequestId, conn: ConnectionId, stream: StreamId, result: Result<Answered, Failure> },
    /// A peer asks; [`Rpc::answer`] is due, now.
    Asked { stream: StreamId, conn: ConnectionId, question: Question },
    /// A stream of an application was accepted by the peer and handed over, or not.
    Opened { request: RequestId, result: Result<StreamId, Failure> },
    /// A peer broke the protocol. The stream is gone already; `fatal` if the connection should go too.
    Fault { conn: ConnectionId, node: NodeId, fault: PeerFault, fatal: bool },
}

/// A call that was answered.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    pub(crate) rtt: core::time::Duration,
}

/// All streams of all connections.
#[derive(Debug, Default)]
pub(crate) struct Rpc {
    connections: BTreeMap<ConnectionId, PerConnection>,
    streams: BTreeMap<StreamId, Stream>,
    protocols: BTreeSet<String>,
    events: VecDeque<RpcEvent>,
}

/// What one connection holds.
#[derive(Debug)]
struct PerConnection {
    node: NodeId,
    streams: BTreeSet<StreamId>,
    control: Option<StreamId>,
    /// Streams of applications, no longer in `streams`.
    handed_over: BTreeSet<StreamId>,
    /// The sum of the costs of all receiving halves.
    received: u64,
    /// Streams that wait for credit, in the order in which they began to.
    starved: VecDeque<StreamId>,
    hello: bool,
    faults: u32,
}

#[derive(Debug)]
struct Stream {
    conn: ConnectionId,
    purpose: Purpose,
    send: SendHalf,
    recv: RecvHalf,
    /// What of `recv` is in the sum of the connection.
    cost: u64,
}

impl Stream {
    fn new(conn: ConnectionId, purpose: Purpose) -> Self {
        Self { conn, purpose, send: SendHalf::default(), recv: RecvHalf::default(), cost: 0 }
    }
}

/// What a stream is for.
#[derive(Debug)]
enum Purpose {
    /// Hellos, in both directions; stays open as long as the connection.
    Control,
    /// Ours: waits for the answer to a question.
    Call { request: RequestId, begun: Instant },
    /// Ours: waits for the peer to accept a protocol.
    Open { request: RequestId, protocol: String },
    /// Theirs: the first message is not whole yet.
    First,
    /// Theirs: the manager is about to answer.
    Asked,
    /// Theirs: answered; the answer is on its way.
    Answered,
}

impl Rpc {
    // -- connections

    /// A handshake is done. The dialler opens the control stream and says Hello first.
    pub(crate) fn connection_opened(&mut self, cx: &mut Cx, conn: ConnectionId, node: NodeId, role: Role) {
        let connection = PerConnection {
            node,
            streams: BTreeSet::new(),
            control: None,
            handed_over: BTreeSet::new(),
            received: 0,
            starved: VecDeque::new(),
            hello: false,
            faults: 0,
        };
        self.connections.insert(conn, connection);
        if role == Role::Dialler {
            let hello = Message::V1(V1::Hello(our_hello()));
            let control = self.open(cx, conn, Purpose::Control, &hello, false);
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.control = control;
            }
        }
    }

    /// A connection is over, and all its streams with it. Calls on it fail.
    pub(crate) fn connection_closed(&mut self, cx: &mut Cx, conn: ConnectionId, why: &DisconnectReason) {
        let Some(connection) = self.connections.remove(&conn) else { return };
        for id in connection.streams {
            cx.timers.cancel(Timer::Stream(id));
            if let Some(stream) = self.streams.remove(&id) {
                self.report_failure(id, &stream, Failure::ConnectionLost(why.clone()));
            }
        }
    }

    /// Whether anybody uses the connection: calls under way, or streams of applications.
    pub(crate) fn in_use(&self, conn: ConnectionId) -> bool {
        self.connections.get(&conn).is_some_and(|connection| {
            let control = connection.control.is_some_and(|control| connection.streams.contains(&control));
            !connection.handed_over.is_empty() || connection.streams.len() > usize::from(control)
        })
    }

    // -- calls and streams of ours

    /// Asks a question; ends with `RpcEvent::Answered` by `deadline`, unless cancelled.
    pub(crate) fn call(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        request: RequestId,
        question: Question,
        deadline: Instant,
    ) -> Option<StreamId> {
        cx.metrics.calls += 1;
        let deadline_ms = u32::try_from(deadline.since(cx.now).as_millis()).unwrap_or(u32::MAX);
        let message = Message::V1(V1::Call { deadline_ms, question });
        let stream = self.open(cx, conn, Purpose::Call { request, begun: cx.now }, &message, true)?;
        cx.timers.set(Timer::Stream(stream), deadline);
        Some(stream)
    }

    /// Opens a stream of an application protocol; ends with `RpcEvent::Opened` by `deadline`, unless cancelled.
    pub(crate) fn open_protocol(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        request: RequestId,
        protocol: String,
        deadline: Instant,
    ) -> Option<StreamId> {
        let message = Message::V1(V1::Open { protocol: protocol.clone() });
        let stream = self.open(cx, conn, Purpose::Open { request, protocol }, &message, false)?;
        cx.timers.set(Timer::Stream(stream), deadline);
        Some(stream)
    }

    /// Gives up a call or an opening; no event follows.
    pub(crate) fn cancel(&mut self, cx: &mut Cx, stream: StreamId) {
        self.abort(cx, stream, code::NONE);
    }

    /// Answers a question of a peer.
    pub(crate) fn answer(&mut self, cx: &mut Cx, stream: StreamId, answer: Answer) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if !matches!(open.purpose, Purpose::Asked) {
            return;
        }
        open.purpose = Purpose::Answered;
        cx.metrics.answers += 1;
        cx.timers.set(Timer::Stream(stream), cx.now + cx.config.call_timeout);
        let answer = match answer {
            Answer::Closest(closest) => Answer::Closest(native::fit(closest)),
            answer => answer,
        };
        match native::encode(&Message::V1(V1::Answer(answer))) {
            Ok(bytes) => self.send(cx, stream, bytes, true),
            Err(_) => drop(self.abort(cx, stream, code::MESSAGE_TOO_LONG)),
        }
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

    pub(crate) fn stream_opened(&mut self, cx: &mut Cx, conn: ConnectionId, id: StreamId) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        let open = connection.streams.iter().chain(&connection.handed_over);
        let theirs = open.filter(|stream| !stream.is_ours()).count();
        if theirs >= cx.config.streams_per_connection || self.streams.contains_key(&id) {
            cx.metrics.streams_refused += 1;
            cx.output(Output::ResetStream { stream: id, code: code::LIMIT });
            cx.output(Output::StopStream { stream: id, code: code::LIMIT });
            self.fault(cx, conn, PeerFault::TooManyStreams);
            return;
        }
        connection.streams.insert(id);
        self.streams.insert(id, Stream::new(conn, Purpose::First));
        cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
        self.grant(cx, id);
    }

    pub(crate) fn stream_data(&mut self, cx: &mut Cx, id: StreamId, bytes: Bytes, fin: bool) {
        let Some(stream) = self.streams.get_mut(&id) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        let len = bytes.len() as u64;
        stream.recv.credit = stream.recv.credit.saturating_sub(len);
        if fin {
            stream.recv.end();
        }
        stream.recv.decoder.push(bytes);
        self.read(cx, id);
    }

    pub(crate) fn stream_sent(&mut self, cx: &mut Cx, id: StreamId, bytes: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.send.confirm(cx, id, bytes);
        if matches!(stream.purpose, Purpose::Answered) && stream.send.is_done() {
            self.forget(cx, id);
        }
    }

    /// The peer aborted its direction.
    pub(crate) fn stream_reset(&mut self, cx: &mut Cx, id: StreamId, code: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        stream.recv.end();
        match stream.purpose {
            // The answer goes out all the same.
            Purpose::Answered | Purpose::Asked => {}
            Purpose::Control => self.fail(cx, id, PeerFault::Unexpected),
            _ => self.give_up(cx, id, code::NONE, aborted(code)),
        }
    }

    /// The peer stops reading. For a call of ours that says nothing about the answer (WIRE.md section 4).
    pub(crate) fn stream_stopped(&mut self, cx: &mut Cx, id: StreamId, code: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        stream.send.abort();
        match stream.purpose {
            Purpose::Call { .. } | Purpose::Asked => {}
            Purpose::Answered => drop(self.forget(cx, id)),
            Purpose::Control => self.fail(cx, id, PeerFault::Unexpected),
            Purpose::First | Purpose::Open { .. } => self.give_up(cx, id, code::NONE, aborted(code)),
        }
    }

    pub(crate) fn open_failed(&mut self, cx: &mut Cx, id: StreamId) {
        if let Some(stream) = self.forget(cx, id) {
            self.report_failure(id, &stream, Failure::Aborted(code::LIMIT));
        }
    }

    /// A stream of an application is over. Returns its connection.
    pub(crate) fn stream_closed(&mut self, cx: &mut Cx, id: StreamId) -> Option<ConnectionId> {
        let found = self.connections.iter_mut().find_map(|(conn, connection)| {
            let removed = connection.handed_over.remove(&id);
            removed.then_some(*conn)
        });
        if found.is_none() {
            cx.metrics.late_inputs += 1;
        }
        found
    }

    /// The peer owed us something on this stream.
    pub(crate) fn timed_out(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        let conn = stream.conn;
        match stream.purpose {
            Purpose::Call { .. } | Purpose::Open { .. } => {
                cx.metrics.call_timeouts += 1;
                self.give_up(cx, id, code::TIMED_OUT, Failure::DeadlineExceeded);
            }
            Purpose::First => {
                cx.metrics.stream_timeouts += 1;
                self.abort(cx, id, code::TIMED_OUT);
                self.fault(cx, conn, PeerFault::Truncated);
            }
            Purpose::Answered | Purpose::Asked => {
                cx.metrics.send_overflows += 1;
                self.abort(cx, id, code::TIMED_OUT);
                self.fault(cx, conn, PeerFault::NotReading);
            }
            Purpose::Control => {}
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<RpcEvent> {
        self.events.pop_front()
    }

    /// Writes the gauges of this part.
    pub(crate) fn measure(&self, metrics: &mut crate::metrics::Metrics) {
        metrics.streams = self.streams.len() as u64;
        metrics.receive_bytes = self.connections.values().map(|connection| connection.received).sum();
        metrics.send_bytes = self.streams.values().map(|stream| stream.send.pending()).sum();
    }

    // -- inside

    /// Opens a stream of ours with its first message. `None` if the connection is gone.
    fn open(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        purpose: Purpose,
        message: &Message,
        fin: bool,
    ) -> Option<StreamId> {
        let bytes = native::encode(message).ok()?;
        let connection = self.connections.get_mut(&conn)?;
        let id = cx.ids.stream();
        connection.streams.insert(id);
        self.streams.insert(id, Stream::new(conn, purpose));
        cx.output(Output::OpenStream { conn, stream: id });
        self.send(cx, id, bytes, fin);
        self.grant(cx, id);
        Some(id)
    }

    fn send(&mut self, cx: &mut Cx, id: StreamId, bytes: Bytes, fin: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let conn = stream.conn;
        if stream.send.send(cx, id, bytes, fin).is_err() {
            cx.metrics.send_overflows += 1;
            self.abort(cx, id, code::LIMIT);
            self.fault(cx, conn, PeerFault::NotReading);
        } else if stream.send.is_done() && matches!(stream.purpose, Purpose::Answered) {
            self.forget(cx, id);
        }
    }

    // -- ends

    /// Drops a stream that needs no reset any more.
    fn forget(&mut self, cx: &mut Cx, id: StreamId) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        cx.timers.cancel(Timer::Stream(id));
        if let Some(connection) = self.connections.get_mut(&stream.conn) {
            connection.streams.remove(&id);
            connection.starved.retain(|starved| *starved != id);
            connection.received = connection.received.saturating_sub(stream.cost);
        }
        self.feed(cx, stream.conn);
        Some(stream)
    }

    /// Ends both directions of a stream as far as they are open.
    fn abort(&mut self, cx: &mut Cx, id: StreamId, code: u64) -> Option<Stream> {
        let stream = self.forget(cx, id)?;
        if !stream.send.is_done() {
            cx.output(Output::ResetStream { stream: id, code });
        }
        if !stream.recv.is_over() {
            cx.output(Output::StopStream { stream: id, code });
        }
        Some(stream)
    }

    /// Ends a stream and fails what waits for it.
    fn give_up(&mut self, cx: &mut Cx, id: StreamId, code: u64, failure: Failure) {
        if let Some(stream) = self.abort(cx, id, code) {
            self.report_failure(id, &stream, failure);
        }
    }

    /// The peer broke the protocol on this stream.
    fn fail(&mut self, cx: &mut Cx, id: StreamId, fault: PeerFault) {
        let Some(conn) = self.streams.get(&id).map(|stream| stream.conn) else { return };
        cx.metrics.stream_faults += 1;
        let code = match fault {
            PeerFault::Frame(FrameFault::Unknown) => code::UNSUPPORTED,
            PeerFault::Frame(FrameFault::TooLong(_)) => code::MESSAGE_TOO_LONG,
            _ => code::MALFORMED,
        };
        self.give_up(cx, id, code, Failure::Peer(fault.clone()));
        self.fault(cx, conn, fault);
    }

    /// Counts a fault against its connection. Bytes that are not the protocol end the connection at once, other faults
    /// when there are too many; a message from the future never does.
    fn fault(&mut self, cx: &mut Cx, conn: ConnectionId, fault: PeerFault) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let fatal = match fault {
            PeerFault::Frame(FrameFault::Unknown) => {
                cx.metrics.unsupported += 1;
                false
            }
            PeerFault::Frame(_) | PeerFault::Version => true,
            _ => {
                connection.faults = connection.faults.saturating_add(1);
                connection.faults >= cx.config.fault_limit
            }
        };
        let node = connection.node;
        self.events.push_back(RpcEvent::Fault { conn, node, fault, fatal });
    }

    fn report_failure(&mut self, id: StreamId, stream: &Stream, failure: Failure) {
        let result = match stream.purpose {
            Purpose::Call { request, .. } => {
                RpcEvent::Answered { request, conn: stream.conn, stream: id, result: Err(failure) }
            }
            Purpose::Open { request, .. } => RpcEvent::Opened { request, result: Err(failure) },
            Purpose::Control | Purpose::First | Purpose::Asked | Purpose::Answered => return,
        };
        self.events.push_back(result);
    }

    fn node_of(&self, id: StreamId) -> Option<NodeId> {
        let stream = self.streams.get(&id)?;
        self.connections.get(&stream.conn).map(|connection| connection.node)
    }
}

/// What a reset or a stop of the peer means for what waits on the stream.
fn aborted(code: u64) -> Failure {
    if code == code::UNSUPPORTED { Failure::Unsupported } else { Failure::Aborted(code) }
}
