//! From bytes to messages, and what each means on the stream on which it came.

use alloc::string::String;
use core::time::Duration;

use bytes::Bytes;

use super::call::{Answer, Question};
use super::codec::{self, Said};
use super::native::Hello;
use super::{ExchangeStep, Purpose, Rpc, RpcEvent};
use crate::cx::Cx;
use crate::error::{Failure, PeerFault, code};
use crate::id::{ConnectionId, RequestId, StreamId};
use crate::io::{Opener, Output};
use crate::timers::Timer;

/// The version of the native dialect that this node speaks, the only one so far.
const VERSION: u16 = 1;
/// The extensions of it that this node speaks.
const FEATURES: u64 = Hello::EXCHANGE | Hello::CLAIMS | Hello::PLAIN_SIGNALS;

impl Rpc {
    /// Takes every whole message out of a stream, then grants what the next one needs.
    pub(super) fn read(&mut self, cx: &mut Cx, id: StreamId) {
        while let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.reads()) {
            let form = stream.form;
            let message = stream.recv.decoder.next();
            match message.and_then(|message| message.map(|message| codec::read(&message, form)).transpose()) {
                Ok(Some(said)) => self.message(cx, id, said),
                Ok(None) => break,
                Err(fault) => return self.fail(cx, id, fault),
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

    /// The peer's direction has ended, and there is no whole message left in it.
    fn read_to_the_end(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        match stream.purpose {
            Purpose::Asked | Purpose::Answered | Purpose::Paging { .. } | Purpose::Ended => self.end_if_over(cx, id),
            // There may be more than was read.
            _ if stream.parked => {}
            Purpose::Call { call } if stream.form.is_list() && stream.recv.decoder.buffered() == 0 => {
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

    /// Handles one message. What is not expected on this stream is a fault.
    fn message(&mut self, cx: &mut Cx, id: StreamId, said: Said) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let conn = stream.conn;
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        match (&stream.purpose, said) {
            (Purpose::Control, Said::Hello(hello)) if !connection.hello => {
                connection.hello = true;
                self.greet(cx, id, conn, &hello);
            }
            (Purpose::First, Said::Hello(hello)) if !connection.hello => {
                connection.hello = true;
                connection.control = Some(id);
                stream.purpose = Purpose::Control;
                cx.timers.cancel(Timer::Stream(id));
                if let Some(bytes) = codec::hello(our_hello()) {
                    self.send(cx, id, bytes, false);
                }
                self.greet(cx, id, conn, &hello);
            }
            // Nobody is served before the Hello.
            (Purpose::First, Said::Call { question, form, timeout }) if connection.hello => {
                stream.form = form;
                self.asked(cx, id, question, timeout);
            }
            (Purpose::First, Said::Exchange { token, form, timeout }) if connection.hello => {
                (stream.purpose, stream.form) = (Purpose::Exchange { ours: false }, form);
                set_patience(cx, id, timeout);
                self.events.push_back(RpcEvent::Exchange { stream: id, conn, step: ExchangeStep::Begun(token) });
            }
            (Purpose::First, Said::Open { protocol, header }) if connection.hello => {
                if self.protocols.contains(&protocol) {
                    let accepted = codec::accepted(connection.dialect);
                    self.send(cx, id, accepted, false);
                    self.hand_over(cx, id, protocol, Opener::Peer, header);
                } else {
                    cx.metrics.unsupported += 1;
                    self.abort(cx, id, code::UNSUPPORTED);
                }
            }
            (Purpose::First, Said::Invalid { why, form }) => {
                cx.metrics.questions_invalid += 1;
                (stream.purpose, stream.form) = (Purpose::Asked, form);
                if let Some(bytes) = codec::invalid(form, why, cx.unix()) {
                    self.answer_with(cx, id, bytes);
                }
                self.stop_reading(cx, id);
            }
            (Purpose::Call { call }, Said::Part(answer)) => {
                let call = *call;
                match self.part_answered(call, answer) {
                    Ok(()) => self.park(cx, id, call),
                    Err(fault) => self.fail(cx, id, fault),
                }
            }
            (Purpose::Call { call }, Said::Answer(answer)) => {
                let call = *call;
                match self.part_answered(call, Some(answer)) {
                    Ok(()) => self.part_over(cx, call, id, None),
                    Err(fault) => self.fail(cx, id, fault),
                }
            }
            (Purpose::Call { call }, Said::Failed(failure)) => {
                let call = *call;
                self.part_over(cx, call, id, Some(failure));
            }
            (Purpose::Exchange { .. }, Said::Token(token)) => {
                self.exchange_heard(cx, id);
                self.events.push_back(RpcEvent::Exchange { stream: id, conn, step: ExchangeStep::Token(token) });
            }
            (Purpose::Exchange { ours: true }, Said::Answer(Answer::Refused(refusal))) => {
                self.give_up(cx, id, code::NONE, Failure::Refused(refusal));
            }
            (Purpose::Exchange { ours: true }, Said::Failed(failure)) => {
                self.give_up(cx, id, code::NONE, failure);
            }
            (Purpose::Open { request, protocol }, Said::Accepted) => {
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
        self.events.push_back(RpcEvent::Hello { conn });
        self.feed_early(cx, conn);
    }

    /// A question of the peer is whole.
    fn asked(&mut self, cx: &mut Cx, id: StreamId, question: Question, timeout: Option<Duration>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let conn = stream.conn;
        stream.purpose = Purpose::Asked;
        set_patience(cx, id, timeout);
        self.stop_reading(cx, id);
        self.events.push_back(RpcEvent::Asked { stream: id, conn, question });
    }

    /// All that a stream of ours has to say of a call is said.
    fn part_over(&mut self, cx: &mut Cx, call: StreamId, id: StreamId, failure: Option<Failure>) {
        self.part_ended(cx, call, id, failure);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.form.awaits_end() && !stream.recv.is_over() {
            stream.purpose = Purpose::Ended;
            cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
        } else {
            self.abort(cx, id, code::NONE);
        }
    }

    /// A stream of ours for an application is there.
    pub(super) fn opened(&mut self, cx: &mut Cx, id: StreamId, request: RequestId, protocol: String) {
        self.hand_over(cx, id, protocol, Opener::Us(request), Bytes::new());
        self.events.push_back(RpcEvent::Opened { request, result: Ok(id) });
    }

    /// Nothing more is read of a stream of the peer.
    pub(super) fn stop_reading(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.form.awaits_end() && !stream.recv.is_over() {
            stream.recv.end();
            cx.output(Output::StopStream { stream: id, code: code::NONE });
        }
        self.end_if_over(cx, id);
    }

    fn hand_over(&mut self, cx: &mut Cx, id: StreamId, protocol: String, opener: Opener, header: Bytes) {
        let Some(node) = self.node_of(id) else { return };
        let Some(stream) = self.forget(cx, id) else { return };
        if let Some(connection) = self.connections.get_mut(&stream.conn) {
            connection.handed_over.insert(id);
        }
        let unread = stream.recv.decoder.into_unread();
        let unread = if header.is_empty() { unread } else { [header, unread].concat().into() };
        cx.output(Output::HandOver { conn: stream.conn, stream: id, node, protocol, opener, unread });
    }
}

/// A peer that asks waits for as long as it says, but no longer than any call may take.
fn set_patience(cx: &mut Cx, id: StreamId, timeout: Option<Duration>) {
    let most = cx.config.call_timeout;
    cx.timers.set(Timer::Stream(id), cx.now + timeout.map_or(most, |timeout| timeout.min(most)));
}

/// What we say first on every connection.
pub(super) fn our_hello() -> Hello {
    let agent = concat!("pk/", env!("CARGO_PKG_VERSION")).into();
    Hello { version_min: VERSION, version_max: VERSION, features: FEATURES, agent }
}
