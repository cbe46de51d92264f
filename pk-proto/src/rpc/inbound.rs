//! What peers send on streams, from credit and bytes to messages, and their dispatch by the purpose
//! of the stream.
//!
//! The credit of a connection is shared among its streams. On `pk/1` a stream gets credit for the
//! header of a message, then for the rest of it in one grant: never for more than that one message.
//! What follows an opening is therefore never read here, but by the application that takes over the
//! stream, and two long messages never wait for each other. On `quic` messages have no length
//! prefix: credit grows in steps up to the limit of one message, and what was read after an opening
//! is handed over with the stream. The bytes and credit of all streams of a connection stay below
//! `Config::receive_window`; streams that do not fit wait, in order.

use alloc::string::String;
use core::time::Duration;

use bytes::Bytes;

use super::event::{ExchangeStep, RpcEvent};
use super::table::{Authentication, Greeting, PerConnection, Purpose, RecvHalf, Rpc, Stream};
use crate::api::error::{Failure, PeerFault, code};
use crate::api::output::Output;
use crate::api::transport::Opener;
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{ConnectionId, RequestId, StreamId};
use crate::wire::codec::{self, Decoder};
use crate::wire::dialect::Dialect;
use crate::wire::message::{RpcRequest, RpcResponse};
use crate::wire::native::hello::Hello;
use crate::wire::parsed_message::{NetworkMessage, ParsedMessage, StreamFormat};

/// Version of the native dialect that this node supports, the only one so far.
const VERSION: u16 = 1;
/// Extensions that this node supports.
const FEATURES: u64 =
    Hello::EXCHANGE | Hello::CLAIMS | Hello::PLAIN_SIGNALS | Hello::RELAY | Hello::EXTERNAL;

impl Rpc {
    // -- inputs

    /// A peer opened a stream.
    pub(crate) fn stream_opened(&mut self, cx: &mut Cx, conn: ConnectionId, id: StreamId) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        let theirs = connection.streams.theirs();
        if connection.takes_no_more(theirs) {
            cx.metrics.early_refused += 1;
            cx.output(Output::ResetStream { stream: id, code: code::LIMIT });
            cx.output(Output::StopStream { stream: id, code: code::LIMIT });
            self.fault(cx, conn, PeerFault::TooEarly);
            return;
        }
        if theirs >= cx.config.streams_per_connection || self.streams.contains_key(&id) {
            cx.metrics.streams_refused += 1;
            cx.output(Output::ResetStream { stream: id, code: code::LIMIT });
            cx.output(Output::StopStream { stream: id, code: code::LIMIT });
            self.fault(cx, conn, PeerFault::TooManyStreams);
            return;
        }
        connection.streams.insert(id);
        let dialect = connection.dialect;
        // Until the Hello, its timeout applies: this may be the stream that carries it, or one that
        // waits for it.
        let wait = match connection.greeting {
            Greeting::Complete => Duration::ZERO,
            Greeting::Hello | Greeting::Network => cx.config.hello_timeout,
        };
        self.streams.insert(
            id,
            Stream::new(cx, conn, dialect, Purpose::First, StreamFormat::first(dialect)),
        );
        cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout.max(wait));
        self.grant(cx, id);
    }

    /// Bytes of a peer arrived, with the end of its direction if `fin`.
    pub(crate) fn stream_data(&mut self, cx: &mut Cx, id: StreamId, bytes: Bytes, fin: bool) {
        let Some(stream) = self.streams.get_mut(&id) else {
            // Read with our credit before the driver knew that the stream was handed over.
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

    /// The peer reset its direction.
    pub(crate) fn stream_reset(&mut self, cx: &mut Cx, id: StreamId, code: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        stream.recv.end();
        self.refund(cx, id);
        let Some(stream) = self.streams.get(&id) else { return };
        match stream.purpose {
            // The answer is sent nevertheless.
            Purpose::Responded | Purpose::Responding | Purpose::Paging { .. } | Purpose::Ended => {
                self.end_if_over(cx, id);
            }
            Purpose::Control => self.fail(cx, id, PeerFault::Unexpected),
            Purpose::Authentication(Authentication::Accept) if code == code::UNSUPPORTED => {
                self.authentication_refused(cx, id, true);
            }
            _ => self.give_up(cx, id, code::NONE, Failure::aborted(code)),
        }
    }

    // -- messages

    /// Decodes every complete message of a stream, then grants credit for the next one.
    pub(super) fn read(&mut self, cx: &mut Cx, id: StreamId) {
        while let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.reads()) {
            let format = stream.format;
            let message = stream.recv.decoder.next();
            match message.and_then(|message| {
                message.map(|message| codec::read(&message, format)).transpose()
            }) {
                Ok(Some(parsed)) => self.message(cx, id, parsed),
                Ok(None) => break,
                Err(fault) => return self.fail(cx, id, fault.into()),
            }
        }
        let Some(stream) = self.streams.get(&id) else { return };
        let conn = stream.conn;
        if stream.recv.is_over() {
            self.read_to_the_end(cx, id);
        }
        self.grant(cx, id);
        self.feed(cx, conn);
    }

    /// The peer's direction has ended without another complete message.
    fn read_to_the_end(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        match stream.purpose {
            Purpose::Responding | Purpose::Responded | Purpose::Paging { .. } | Purpose::Ended => {
                self.end_if_over(cx, id);
            }
            // There may be more than was read.
            _ if stream.parked => {}
            Purpose::Call { call }
                if stream.format.is_list() && stream.recv.decoder.buffered() == 0 =>
            {
                self.part_ended(cx, call, id, None);
                self.abort(cx, id, code::NONE);
            }
            Purpose::Exchange { .. } if stream.recv.decoder.buffered() == 0 => {
                let (conn, step) = (stream.conn, ExchangeStep::Finished);
                self.events.push_back(RpcEvent::Exchange { stream: id, conn, step });
                self.end_if_over(cx, id);
            }
            _ => self.fail(cx, id, PeerFault::Truncated),
        }
    }

    /// Handles one message. A message that is not expected on this stream is a fault.
    pub(super) fn message(&mut self, cx: &mut Cx, id: StreamId, parsed: ParsedMessage) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let conn = stream.conn;
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        match (&stream.purpose, parsed) {
            (Purpose::Control, ParsedMessage::Hello(hello))
                if connection.greeting == Greeting::Hello =>
            {
                self.greet(cx, id, conn, &hello);
            }
            (
                Purpose::Control,
                ParsedMessage::Network { message: NetworkMessage::Member(Some(network)), .. },
            ) if connection.greeting == Greeting::Network => {
                self.network_named(cx, conn, &network);
            }
            (Purpose::Control, ParsedMessage::External(address))
                if connection.greeting == Greeting::Complete =>
            {
                self.external_named(cx, conn, address);
            }
            (Purpose::First, ParsedMessage::Hello(hello))
                if connection.greeting == Greeting::Hello =>
            {
                connection.control = Some(id);
                stream.purpose = Purpose::Control;
                cx.timers.cancel(Timer::Stream(id));
                if let Some(bytes) = codec::hello(our_hello(cx)) {
                    self.send(cx, id, bytes, false);
                }
                self.greet(cx, id, conn, &hello);
            }
            (Purpose::First, ParsedMessage::Network { message, format })
                if connection.dialect == Dialect::Polykey =>
            {
                self.authentication_begun(cx, id, &message, format);
            }
            (Purpose::Authentication(step), ParsedMessage::Network { message, .. }) => {
                let step = *step;
                self.authentication_continued(cx, id, step, &message);
            }
            (Purpose::Authentication(_), ParsedMessage::Failure(_)) => {
                self.authentication_refused(cx, id, false);
            }
            (Purpose::First, _)
                if connection.dialect == Dialect::Polykey
                    && connection.greeting != Greeting::Complete =>
            {
                self.deny(cx, id);
            }
            (Purpose::First, request @ ParsedMessage::Request { .. })
                if connection.greeting != Greeting::Complete =>
            {
                cx.metrics.early_requests += 1;
                stream.parked = true;
                self.held.insert(id, request);
            }
            (Purpose::First, _) if connection.greeting != Greeting::Complete => {
                cx.metrics.early_refused += 1;
                self.fail(cx, id, PeerFault::TooEarly);
            }
            (Purpose::First, ParsedMessage::Request { request: question, format, timeout }) => {
                stream.format = format;
                self.asked(cx, id, question, timeout);
            }
            (Purpose::First, ParsedMessage::Exchange { token, format, timeout }) => {
                (stream.purpose, stream.format) = (Purpose::Exchange { ours: false }, format);
                set_patience(cx, id, timeout);
                self.events.push_back(RpcEvent::Exchange {
                    stream: id,
                    conn,
                    step: ExchangeStep::Begun(token),
                });
            }
            (Purpose::First, ParsedMessage::Open { protocol, header }) => {
                let handed = connection.detached.theirs();
                let known = self.protocols.contains(&protocol);
                if known && handed >= cx.config.application_streams {
                    // The peer cannot know how many of its streams are still in use here.
                    cx.metrics.streams_refused += 1;
                    self.abort(cx, id, code::LIMIT);
                } else if known {
                    let accepted = codec::accepted(connection.dialect);
                    self.send(cx, id, accepted, false);
                    self.detach(cx, id, protocol, Opener::Peer, header);
                } else {
                    let (dialect, node) = (connection.dialect, connection.node);
                    match codec::unserved(dialect, &protocol, &header, &node, cx.unix()) {
                        Some(error) => {
                            stream.purpose = Purpose::Responding;
                            self.respond(cx, id, error);
                            self.stop_reading(cx, id);
                        }
                        None => drop(self.abort(cx, id, code::UNSUPPORTED)),
                    }
                    self.unsupported(cx, conn);
                }
            }
            (Purpose::First, ParsedMessage::Invalid { why, format }) => {
                (stream.purpose, stream.format) = (Purpose::Responding, format);
                if let Some(bytes) = codec::invalid(format, why, cx.unix()) {
                    self.respond(cx, id, bytes);
                }
                self.stop_reading(cx, id);
                self.invalid(cx, conn);
            }
            (Purpose::Call { call }, ParsedMessage::Part(answer)) => {
                let call = *call;
                match self.part_answered(call, answer) {
                    Ok(()) => self.park(cx, id, call),
                    Err(fault) => self.fail(cx, id, fault),
                }
            }
            (Purpose::Call { call }, ParsedMessage::Response(answer)) => {
                let call = *call;
                match self.part_answered(call, Some(answer)) {
                    Ok(()) => self.part_over(cx, call, id, None),
                    Err(fault) => self.fail(cx, id, fault),
                }
            }
            (Purpose::Call { call }, ParsedMessage::Failure(failure)) => {
                let call = *call;
                self.part_over(cx, call, id, Some(failure.into()));
            }
            (Purpose::Exchange { .. }, ParsedMessage::Token(token)) => {
                self.exchange_heard(cx, id);
                self.events.push_back(RpcEvent::Exchange {
                    stream: id,
                    conn,
                    step: ExchangeStep::Token(token),
                });
            }
            (
                Purpose::Exchange { ours: true },
                ParsedMessage::Response(RpcResponse::Refused(refusal)),
            ) => {
                self.give_up(cx, id, code::NONE, Failure::Refused(refusal));
            }
            (Purpose::Exchange { ours: true }, ParsedMessage::Failure(failure)) => {
                self.give_up(cx, id, code::NONE, failure.into());
            }
            (
                Purpose::Circuit { request },
                ParsedMessage::Response(answer @ RpcResponse::Circuit { .. }),
            ) => {
                let request = *request;
                self.circuit_answered(cx, id, request, answer);
            }
            (Purpose::Circuit { .. }, ParsedMessage::Response(RpcResponse::Refused(refusal))) => {
                self.give_up(cx, id, code::NONE, Failure::Refused(refusal));
            }
            (Purpose::Open { request, protocol }, ParsedMessage::Accepted) => {
                let (request, protocol) = (*request, protocol.clone());
                self.opened(cx, id, request, protocol);
            }
            _ => self.fail(cx, id, PeerFault::Unexpected),
        }
    }

    fn greet(&mut self, cx: &mut Cx, id: StreamId, conn: ConnectionId, hello: &Hello) {
        if hello.version_min > VERSION || hello.version_max < VERSION {
            return self.fail(cx, id, PeerFault::Version);
        }
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.features = hello.features;
        }
        self.name_network(cx, conn, id);
    }

    /// A request of the peer is complete.
    fn asked(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        question: RpcRequest,
        timeout: Option<Duration>,
    ) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let conn = stream.conn;
        set_patience(cx, id, timeout);
        if question.opens_circuit() {
            // What follows belongs to the circuit.
            stream.purpose = Purpose::CircuitRequested;
        } else {
            stream.purpose = Purpose::Responding;
            self.stop_reading(cx, id);
        }
        self.events.push_back(RpcEvent::Request { stream: id, conn, request: question });
    }

    /// A stream of a local call has received its last message.
    fn part_over(&mut self, cx: &mut Cx, call: StreamId, id: StreamId, failure: Option<Failure>) {
        self.part_ended(cx, call, id, failure);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.format.awaits_end() && !stream.recv.is_over() {
            stream.purpose = Purpose::Ended;
            cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
        } else {
            self.abort(cx, id, code::NONE);
        }
    }

    /// A stream of the local node for an application was accepted.
    pub(super) fn opened(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        request: RequestId,
        protocol: String,
    ) {
        self.detach(cx, id, protocol, Opener::Us(request), Bytes::new());
        self.events.push_back(RpcEvent::Opened { request, result: Ok(id) });
    }

    /// Nothing more is read from a stream of the peer.
    pub(super) fn stop_reading(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.format.awaits_end() && !stream.recv.is_over() {
            stream.recv.end();
            cx.output(Output::StopStream { stream: id, code: code::NONE });
            self.refund(cx, id);
        }
        self.end_if_over(cx, id);
    }

    fn detach(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        protocol: String,
        opener: Opener,
        header: Bytes,
    ) {
        let Some(node) = self.node_of(id) else { return };
        let Some(stream) = self.remove(cx, id) else { return };
        if let Some(connection) = self.connections.get_mut(&stream.conn) {
            connection.detached.insert(id);
            self.detached.insert(id, stream.conn);
        }
        let unread = stream.recv.decoder.into_unread();
        let unread = if header.is_empty() { unread } else { [header, unread].concat().into() };
        cx.output(Output::DetachStream {
            conn: stream.conn,
            stream: id,
            node,
            protocol,
            opener,
            unread,
        });
        self.feed(cx, stream.conn);
    }

    // -- credit

    /// Grants what a stream needs next, or lets it wait for the connection's window. Returns
    /// `false` if it waits.
    pub(super) fn grant(&mut self, cx: &mut Cx, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        let Some(connection) = self.connections.get_mut(&stream.conn) else { return true };
        stream.account(connection, &mut self.received);
        if stream.recv.is_over() || !stream.reads() || connection.is_early(id) {
            return true;
        }
        let need = stream.recv.missing();
        if need == 0 {
            return true;
        }
        let first = connection.starved.first().is_none_or(|first| first == id);
        if !first || connection.received.saturating_add(need) > cx.config.receive_window {
            connection.starved.push(id);
            return false;
        }
        stream.recv.credit = stream.recv.credit.saturating_add(need);
        stream.account(connection, &mut self.received);
        cx.output(Output::ReadCredit { stream: id, bytes: need });
        true
    }

    /// A stream is no longer read: others get its credit.
    pub(super) fn refund(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let conn = stream.conn;
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        stream.account(connection, &mut self.received);
        self.feed(cx, conn);
    }

    /// Serves the streams that wait for credit, in order, as far as the window allows.
    pub(super) fn feed(&mut self, cx: &mut Cx, conn: ConnectionId) {
        while let Some(id) =
            self.connections.get(&conn).and_then(|connection| connection.starved.first())
        {
            if !self.grant(cx, id) {
                return;
            }
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.starved.remove(id);
            }
        }
    }
}

impl Stream {
    /// Updates the sums of the connection and of all connections with the present cost.
    fn account(&mut self, connection: &mut PerConnection, all: &mut u64) {
        let cost = self.recv.cost();
        for sum in [&mut connection.received, all] {
            *sum = sum.saturating_sub(self.cost).saturating_add(cost);
        }
        self.cost = cost;
    }
}

impl RecvHalf {
    pub(super) fn new(dialect: Dialect, window: u64) -> Self {
        Self { decoder: Decoder::new(dialect, window), credit: 0, over: false }
    }

    /// Nothing more arrives: the peer has ended or reset its direction, or was asked to stop.
    pub(super) fn end(&mut self) {
        self.over = true;
        self.credit = 0;
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Returns the memory cost of this half: its bytes and its credit.
    pub(super) fn cost(&self) -> u64 {
        self.credit.saturating_add(self.decoder.buffered() as u64)
    }

    /// Returns the bytes to grant so that the present message can be completed.
    pub(super) fn missing(&self) -> u64 {
        (self.decoder.wanted() as u64).saturating_sub(self.credit)
    }
}

/// A calling peer waits as long as it states, but at most `call_timeout`.
fn set_patience(cx: &mut Cx, id: StreamId, timeout: Option<Duration>) {
    let most = cx.config.call_timeout;
    cx.timers.set(Timer::Stream(id), cx.now + timeout.map_or(most, |timeout| timeout.min(most)));
}

/// Returns the first local message on every connection.
pub(super) fn our_hello(cx: &Cx) -> Hello {
    let agent = concat!("pk/", env!("CARGO_PKG_VERSION")).into();
    let network = if cx.config.network.is_some() { Hello::NETWORK } else { 0 };
    let features = FEATURES | network;
    Hello { version_min: VERSION, version_max: VERSION, features, agent }
}
