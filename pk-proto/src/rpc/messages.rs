//! From bytes to messages, and what each means on the stream on which it came.

use super::native::{self, Hello, Message, V1};
use super::{Answered, Purpose, Rpc, RpcEvent};
use crate::cx::Cx;
use crate::error::{PeerFault, code};
use crate::id::{ConnectionId, StreamId};
use crate::io::{Opener, Output};
use crate::timers::Timer;
use alloc::string::String;

/// The version of the native dialect that this node speaks, the only one so far.
const VERSION: u16 = 1;

impl Rpc {
    /// Takes every whole message out of a stream, then grants what the next one needs.
    pub(super) fn read(&mut self, cx: &mut Cx, id: StreamId) {
        while let Some(stream) = self.streams.get_mut(&id) {
            match stream.recv.decoder.next().and_then(|frame| frame.map(|frame| native::decode(&frame)).transpose()) {
                Ok(Some(message)) => self.message(cx, id, message),
                Ok(None) => break,
                Err(fault) => return self.fail(cx, id, PeerFault::Frame(fault)),
            }
        }
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.recv.is_over() && !matches!(stream.purpose, Purpose::Asked | Purpose::Answered) {
            return self.fail(cx, id, PeerFault::Truncated);
        }
        let conn = stream.conn;
        self.grant(cx, id);
        self.feed(cx, conn);
    }

    /// Handles one message. What is not expected on this stream is a fault.
    fn message(&mut self, cx: &mut Cx, id: StreamId, message: Message) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let conn = stream.conn;
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let Message::V1(message) = message;
        match (&stream.purpose, message) {
            (Purpose::Control, V1::Hello(hello)) if !connection.hello => {
                connection.hello = true;
                self.greet(cx, id, conn, &hello);
            }
            (Purpose::First, V1::Hello(hello)) if !connection.hello => {
                connection.hello = true;
                connection.control = Some(id);
                stream.purpose = Purpose::Control;
                cx.timers.cancel(Timer::Stream(id));
                if let Ok(bytes) = native::encode(&Message::V1(V1::Hello(our_hello()))) {
                    self.send(cx, id, bytes, false);
                }
                self.greet(cx, id, conn, &hello);
            }
            // Nobody is served before the Hello.
            (Purpose::First, V1::Call { question, .. }) if connection.hello => {
                stream.purpose = Purpose::Asked;
                if !stream.recv.is_over() {
                    stream.recv.end();
                    cx.output(Output::StopStream { stream: id, code: code::NONE });
                }
                self.events.push_back(RpcEvent::Asked { stream: id, conn, question });
            }
            (Purpose::First, V1::Open { protocol }) if connection.hello => {
                if self.protocols.contains(&protocol) {
                    if let Ok(bytes) = native::encode(&Message::V1(V1::Accepted)) {
                        self.send(cx, id, bytes, false);
                    }
                    self.hand_over(cx, id, protocol, Opener::Peer);
                } else {
                    cx.metrics.unsupported += 1;
                    self.abort(cx, id, code::UNSUPPORTED);
                }
            }
            (Purpose::Call { request, begun }, V1::Answer(answer)) => {
                let answered = Answered { answer, rtt: cx.now.since(*begun) };
                let event = RpcEvent::Answered { request: *request, conn, stream: id, result: Ok(answered) };
                self.events.push_back(event);
                self.abort(cx, id, code::NONE);
            }
            (Purpose::Open { request, protocol }, V1::Accepted) => {
                let (request, protocol) = (*request, protocol.clone());
                self.hand_over(cx, id, protocol, Opener::Us(request));
                self.events.push_back(RpcEvent::Opened { request, result: Ok(id) });
            }
            _ => self.fail(cx, id, PeerFault::Unexpected),
        }
    }

    fn greet(&mut self, cx: &mut Cx, id: StreamId, conn: ConnectionId, hello: &Hello) {
        if hello.version_min > VERSION || hello.version_max < VERSION {
            self.fail(cx, id, PeerFault::Version);
        } else {
            self.events.push_back(RpcEvent::Hello { conn });
            self.feed_early(cx, conn);
        }
    }

    fn hand_over(&mut self, cx: &mut Cx, id: StreamId, protocol: String, opener: Opener) {
        let Some(node) = self.node_of(id) else { return };
        let Some(stream) = self.forget(cx, id) else { return };
        if let Some(connection) = self.connections.get_mut(&stream.conn) {
            connection.handed_over.insert(id);
        }
        let unread = stream.recv.decoder.into_unread();
        cx.output(Output::HandOver { conn: stream.conn, stream: id, node, protocol, opener, unread });
    }
}

/// What we say first on every connection.
pub(super) fn our_hello() -> Hello {
    let agent = concat!("pk/", env!("CARGO_PKG_VERSION")).into();
    Hello { version_min: VERSION, version_max: VERSION, features: 0, agent }
}
