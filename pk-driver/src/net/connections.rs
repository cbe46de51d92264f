//! Connections whose handshake succeeded: their streams open and close, and they end.

use std::collections::{BTreeSet, VecDeque};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use pk_proto::{ConnectionId, Input, NodeId, Opener, StreamId};
use quinn::{ConnectionError, RecvStream, SendStream};

use super::Net;
use super::reasons::{disconnect_reason, varint};
use super::streams::{CoreStream, HandOver};
use crate::cx::{Cx, Key};
use crate::desk::HandedOver;
use crate::runtime::BoxFuture;
use crate::stream::Stream;

/// Streams that are accepted or opened before other sources get their turn.
const STEPS: usize = 32;

/// A pair of halves that comes into being.
type Opening = BoxFuture<Result<(SendStream, RecvStream), ConnectionError>>;

/// One connection.
pub(super) struct Connection {
    quinn: quinn::Connection,
    waker: Waker,
    /// The next stream of the peer, or the end of the connection.
    accept: Opening,
    /// Streams of ours that are not open yet: the peer allows only so many at a time.
    waiting: VecDeque<StreamId>,
    /// The first of them.
    open: Option<Opening>,
    streams: BTreeSet<StreamId>,
    lost: Option<ConnectionError>,
}

impl Connection {
    pub(super) fn new(cx: &Cx, id: ConnectionId, quinn: quinn::Connection) -> Self {
        let accept = accept(&quinn);
        let waker = cx.source(Key::Connection(id));
        Self { quinn, waker, accept, waiting: VecDeque::new(), open: None, streams: BTreeSet::new(), lost: None }
    }
}

impl Net {
    /// The effect `CloseConnection`. `Disconnected` follows.
    pub(crate) fn close_connection(&mut self, conn: ConnectionId, code: u64, reason: &str) {
        if let Some(connection) = self.connections.get(&conn) {
            connection.quinn.close(varint(code), reason.as_bytes());
        }
    }

    /// The effect `OpenStream`.
    pub(crate) fn open_stream(&mut self, cx: &mut Cx, conn: ConnectionId, stream: StreamId) {
        // If the connection is gone, its end has been or is about to be told, and streams end with it.
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.waiting.push_back(stream);
        connection.streams.insert(stream);
        connection.waker.wake_by_ref();
        self.streams.insert(stream, CoreStream::new(conn, cx.ready.waker(Key::Stream(stream))));
    }

    /// The effect `HandOver`. `HandedOver` follows when all that the core sent is with QUIC.
    pub(crate) fn hand_over(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        node: NodeId,
        protocol: String,
        opener: Opener,
        unread: Bytes,
    ) {
        match self.streams.get_mut(&id) {
            Some(stream) => {
                stream.hand_over = Some(HandOver { node, protocol, opener, unread });
                stream.touch();
            }
            None => cx.handed.push_back(HandedOver { id, opener, stream: None }),
        }
    }

    pub(crate) fn poll_connection(&mut self, cx: &mut Cx, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.lost.is_some() {
            self.lose(cx, id);
            return;
        }
        let mut context = Context::from_waker(&connection.waker);
        let mut opened = false;
        let mut steps = STEPS;
        while steps > 0 {
            match connection.accept.as_mut().poll(&mut context) {
                Poll::Pending => break,
                Poll::Ready(Ok((send, recv))) => {
                    connection.accept = accept(&connection.quinn);
                    let stream = StreamId(self.next_stream);
                    self.next_stream += 2;
                    let mut core = CoreStream::new(id, cx.ready.waker(Key::Stream(stream)));
                    core.attach(send, recv);
                    connection.streams.insert(stream);
                    self.streams.insert(stream, core);
                    cx.input(Input::StreamOpened { conn: id, stream });
                    opened = true;
                    steps -= 1;
                }
                Poll::Ready(Err(error)) => {
                    connection.accept = Box::pin(std::future::pending());
                    connection.lost = Some(error);
                    if opened {
                        // The core has yet to say what it wants of what came last: one more round.
                        connection.waker.wake_by_ref();
                    } else {
                        self.lose(cx, id);
                    }
                    return;
                }
            }
        }
        while steps > 0 && !connection.waiting.is_empty() {
            // What the core gave up while it waited is never opened.
            while connection.waiting.front().is_some_and(|stream| !self.streams.contains_key(stream)) {
                connection.waiting.pop_front();
            }
            let Some(stream) = connection.waiting.front().copied() else { break };
            let open = connection.open.get_or_insert_with(|| open(&connection.quinn));
            // An error is the end of the connection, which `accept` has seen or will.
            let Poll::Ready(result) = open.as_mut().poll(&mut context) else { break };
            connection.open = None;
            let Ok((send, recv)) = result else { break };
            connection.waiting.pop_front();
            if let Some(core) = self.streams.get_mut(&stream) {
                core.attach(send, recv);
            }
            steps -= 1;
        }
        if steps == 0 {
            connection.waker.wake_by_ref();
        }
    }

    /// The connection is over. What had arrived before, and the core wants, it still gets.
    fn lose(&mut self, cx: &mut Cx, id: ConnectionId) {
        let streams = self.connections.get(&id).map(|connection| connection.streams.clone()).unwrap_or_default();
        for stream in streams {
            self.poll_stream(cx, stream);
            if let Some(core) = self.streams.remove(&stream) {
                deliver(cx, stream, core);
            }
        }
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(error) = &connection.lost {
            cx.input(Input::Disconnected { conn: id, why: disconnect_reason(error) });
        }
    }

    pub(crate) fn poll_stream(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.poll(cx, id) {
            if let Some(stream) = self.forget(id) {
                deliver(cx, id, stream);
            }
        } else {
            self.forget_if_over(cx, id);
        }
    }

    pub(super) fn forget_if_over(&mut self, _: &mut Cx, id: StreamId) {
        if self.streams.get(&id).is_some_and(|stream| stream.is_over() && stream.hand_over.is_none()) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: StreamId) -> Option<CoreStream> {
        let stream = self.streams.remove(&id)?;
        if let Some(connection) = self.connections.get_mut(&stream.conn) {
            connection.streams.remove(&id);
        }
        Some(stream)
    }
}

/// Gives a stream to the embedder, if that is where it is to go.
fn deliver(cx: &mut Cx, id: StreamId, mut stream: CoreStream) {
    if let Some(HandOver { node, protocol, opener, unread }) = stream.hand_over.take() {
        let (send, recv) = stream.into_halves();
        let stream = Stream::new(node, protocol, send, recv, unread);
        cx.handed.push_back(HandedOver { id, opener, stream: Some(stream) });
    }
}

fn accept(connection: &quinn::Connection) -> Opening {
    let connection = connection.clone();
    Box::pin(async move { connection.accept_bi().await })
}

fn open(connection: &quinn::Connection) -> Opening {
    let connection = connection.clone();
    Box::pin(async move { connection.open_bi().await })
}
