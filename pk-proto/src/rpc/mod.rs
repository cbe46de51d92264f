//! Streams and the calls on them, above the dialects and below everything else.
//!
//! Each stream has one purpose ([`Purpose`]), fixed by its first message. This file holds the table and its ends; what is
//! asked and answered is in [`calls`], what takes several messages each way in [`exchange`]; what comes in is read in
//! [`messages`], what may come in is decided in [`window`], what goes out waits in [`stream`]. All of them see only what
//! [`codec`] shows of the dialect of a connection.

mod call;
mod calls;
mod codec;
mod dialect;
mod exchange;
mod frame;
mod messages;
mod pages;
mod stream;
mod window;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;

use bytes::Bytes;

pub use call::{Answer, ClaimsPage, PunchRequest, Question, Refusal, SignalRequest, SignalTerms, is_protocol_name};
pub use dialect::{native, polykey};
pub use frame::{FrameDecoder, FrameFault, MAX_FRAME, encode_frame};

use self::calls::Call;
use self::codec::Form;
pub(crate) use self::exchange::ExchangeStep;
use self::messages::our_hello;
use self::polykey::ObjectFault;
use self::stream::{RecvHalf, SendHalf};
use crate::claims::ClaimId;
use crate::cx::Cx;
use crate::error::{Failure, PeerFault, code};
use crate::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::io::{Dialect, DisconnectReason, Output, Role};
use crate::timers::Timer;

/// What happened on streams, for the manager.
#[derive(Debug)]
pub(crate) enum RpcEvent {
    /// The peer accepts the connection: its Hello came, or its dialect has none.
    Hello { conn: ConnectionId },
    /// A call of ours ended.
    Answered { request: RequestId, conn: ConnectionId, stream: StreamId, result: Result<Answered, Failure> },
    /// A peer asks; [`Rpc::answer`] is due, now or later. Whoever is late, or answers one that has gone, says nothing.
    Asked { stream: StreamId, conn: ConnectionId, question: Question },
    /// The peer's part in an exchange has come further.
    Exchange { stream: StreamId, conn: ConnectionId, step: ExchangeStep },
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
    /// Questions of ours, by the first of their streams.
    calls: BTreeMap<StreamId, Call>,
    protocols: BTreeSet<String>,
    events: VecDeque<RpcEvent>,
}

/// What one connection holds.
#[derive(Debug)]
struct PerConnection {
    node: NodeId,
    dialect: Dialect,
    streams: BTreeSet<StreamId>,
    control: Option<StreamId>,
    /// Streams of applications, no longer in `streams`.
    handed_over: BTreeSet<StreamId>,
    /// The sum of the costs of all receiving halves.
    received: u64,
    /// Streams that wait for credit, in the order in which they began to.
    starved: VecDeque<StreamId>,
    hello: bool,
    /// The extensions that the peer speaks.
    features: u64,
    faults: u32,
}

#[derive(Debug)]
struct Stream {
    conn: ConnectionId,
    purpose: Purpose,
    /// How what comes on it is read.
    form: Form,
    send: SendHalf,
    recv: RecvHalf,
    /// Nothing is read of it now.
    parked: bool,
    /// What of `recv` is in the sum of the connection.
    cost: u64,
}

impl Stream {
    fn new(cx: &Cx, conn: ConnectionId, dialect: Dialect, purpose: Purpose, form: Form) -> Self {
        let recv = RecvHalf::new(dialect, cx.config.receive_window);
        Self { conn, purpose, form, send: SendHalf::default(), recv, parked: false, cost: 0 }
    }
}

/// What a stream is for.
#[derive(Debug)]
enum Purpose {
    /// Hellos, in both directions; stays open as long as the connection.
    Control,
    /// Ours: waits for the answer to a question, or a part of it.
    Call { call: StreamId },
    /// Ours: waits for the peer to accept a protocol.
    Open { request: RequestId, protocol: String },
    /// Theirs: the first message is not whole yet.
    First,
    /// Theirs: waits for our answer.
    Asked,
    /// Theirs: answered; the answer is on its way.
    Answered,
    /// Theirs: a part of the answer is on its way, which goes on behind this claim.
    Paging { after: ClaimId },
    /// An exchange of `ours` or theirs.
    Exchange { ours: bool },
    /// Ours: all is said, only the end of the peer's direction is missing.
    Ended,
}

impl Stream {
    /// Whether another message is read now.
    fn reads(&self) -> bool {
        self.purpose.reads() && !self.parked
    }
}

impl Purpose {
    /// Whether another message may come.
    fn reads(&self) -> bool {
        !matches!(self, Self::Asked | Self::Answered | Self::Paging { .. } | Self::Ended)
    }
}

impl Rpc {
    // -- connections

    /// A handshake is done. The dialler opens the control stream and says Hello first.
    pub(crate) fn connection_opened(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        node: NodeId,
        role: Role,
        dialect: Dialect,
    ) {
        let connection = PerConnection {
            node,
            dialect,
            streams: BTreeSet::new(),
            control: None,
            handed_over: BTreeSet::new(),
            received: 0,
            starved: VecDeque::new(),
            // Polykey 1.x has no Hello: the handshake is all.
            hello: dialect == Dialect::Polykey,
            features: 0,
            faults: 0,
        };
        self.connections.insert(conn, connection);
        if dialect == Dialect::Polykey {
            self.events.push_back(RpcEvent::Hello { conn });
        } else if role == Role::Dialler {
            let hello = codec::hello(our_hello());
            let control = hello.and_then(|hello| self.open(cx, conn, |_| Purpose::Control, None, hello, false));
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
                self.report_failure(cx, id, &stream, Failure::ConnectionLost(why.clone()));
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
        let dialect = connection.dialect;
        self.streams.insert(id, Stream::new(cx, conn, dialect, Purpose::First, Form::first(dialect)));
        cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
        self.grant(cx, id);
    }

    pub(crate) fn stream_data(&mut self, cx: &mut Cx, id: StreamId, bytes: Bytes, fin: bool) {
        let Some(stream) = self.streams.get_mut(&id) else {
            // Read for us before the driver knew that the stream is somebody else's.
            if !cx.append_unread(id, &bytes) {
                cx.metrics.late_inputs += 1;
            }
            return;
        };
        let len = bytes.len() as u64;
        stream.recv.credit = stream.recv.credit.saturating_sub(len);
        if fin {
            stream.recv.end();
        }
        if stream.purpose.reads() {
            stream.recv.decoder.push(bytes);
        }
        self.read(cx, id);
    }

    pub(crate) fn stream_sent(&mut self, cx: &mut Cx, id: StreamId, bytes: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.send.confirm(cx, id, bytes);
        self.next_page(cx, id);
        self.end_if_over(cx, id);
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
            Purpose::Answered | Purpose::Asked | Purpose::Paging { .. } | Purpose::Ended => self.end_if_over(cx, id),
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
            Purpose::Call { .. } | Purpose::Asked | Purpose::Ended => self.end_if_over(cx, id),
            // The reference does so with code 1 before it says why it refuses.
            Purpose::Exchange { .. } if code == code::NONE || stream.form != Form::Native => self.end_if_over(cx, id),
            Purpose::Answered => self.end_if_over(cx, id),
            Purpose::Paging { .. } => self.next_page(cx, id),
            Purpose::Control => self.fail(cx, id, PeerFault::Unexpected),
            Purpose::First | Purpose::Open { .. } | Purpose::Exchange { .. } => {
                self.give_up(cx, id, code::NONE, aborted(code));
            }
        }
    }

    pub(crate) fn open_failed(&mut self, cx: &mut Cx, id: StreamId) {
        if let Some(stream) = self.forget(cx, id) {
            self.report_failure(cx, id, &stream, Failure::Aborted(code::LIMIT));
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
            Purpose::Call { call } if self.is_parked(call) => self.give_up(cx, id, code::NONE, Failure::Cancelled),
            Purpose::Call { .. } | Purpose::Open { .. } | Purpose::Exchange { .. } => {
                cx.metrics.call_timeouts += 1;
                self.give_up(cx, id, code::TIMED_OUT, Failure::DeadlineExceeded);
            }
            Purpose::First => {
                cx.metrics.stream_timeouts += 1;
                self.abort(cx, id, code::TIMED_OUT);
                self.fault(cx, conn, PeerFault::Truncated);
            }
            Purpose::Asked => {
                cx.metrics.answers_late += 1;
                self.abort(cx, id, code::TIMED_OUT);
            }
            // Its direction is its own; it never ends what nobody reads.
            Purpose::Answered if stream.send.is_done() => drop(self.abort(cx, id, code::NONE)),
            Purpose::Ended => drop(self.abort(cx, id, code::NONE)),
            Purpose::Answered | Purpose::Paging { .. } => {
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

    /// Opens a stream of ours, whose purpose may depend on its number, with its first message. `None` if the connection is
    /// gone.
    fn open(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        purpose: impl FnOnce(StreamId) -> Purpose,
        form: Option<Form>,
        bytes: Bytes,
        fin: bool,
    ) -> Option<StreamId> {
        let connection = self.connections.get_mut(&conn)?;
        let id = cx.ids.stream();
        connection.streams.insert(id);
        let dialect = connection.dialect;
        let form = form.unwrap_or(Form::first(dialect));
        self.streams.insert(id, Stream::new(cx, conn, dialect, purpose(id), form));
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
            self.give_up(cx, id, code::LIMIT, Failure::Aborted(code::LIMIT));
            self.fault(cx, conn, PeerFault::NotReading);
        } else {
            self.end_if_over(cx, id);
        }
    }

    // -- ends

    /// Forgets a stream on which everything is said, by us and by the peer.
    fn end_if_over(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        let over = stream.send.is_done() && stream.recv.is_over();
        if over && matches!(stream.purpose, Purpose::Answered | Purpose::Exchange { .. } | Purpose::Ended) {
            self.forget(cx, id);
        }
    }

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
            self.report_failure(cx, id, &stream, failure);
        }
    }

    /// The peer broke the protocol on this stream.
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
            Purpose::Control
            | Purpose::First
            | Purpose::Asked
            | Purpose::Answered
            | Purpose::Paging { .. }
            | Purpose::Ended => {}
        }
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
