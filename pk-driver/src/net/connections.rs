//! Connections whose handshake succeeded: opening and closing of their streams, and their end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use pk_host::unix;
use pk_proto::{ConnectionId, Input, Network, NodeId, Opener, StreamId};
use pk_quic::reasons::{disconnect_reason, varint};
use quinn::{ConnectionError, RecvStream, SendStream};

use super::liveness::Watched;
use super::streams::{CoreStream, PendingDetach};
use crate::cx::{Cx, WakeSource};
use crate::stream::Stream;
use crate::stream::detached::DetachedStream;
use crate::stream::usage::Usage;
use crate::system::runtime::BoxFuture;

/// Streams that are accepted or opened before other sources are served.
const STEPS: usize = 32;

/// A pending pair of stream halves.
type Opening = BoxFuture<Result<(SendStream, RecvStream), ConnectionError>>;

/// The connections of a node and the streams on them.
// Collections that peers can fill are trees: a hash table would keep its largest size.
pub(super) struct Connections {
    connections: BTreeMap<ConnectionId, Connection>,
    streams: BTreeMap<StreamId, CoreStream>,
    next_stream: u64,
}

/// One connection.
struct Connection {
    quinn: quinn::Connection,
    network: Network,
    waker: Waker,
    /// The next stream of the peer, or the end of the connection.
    accept: Opening,
    /// Local streams that are not open yet: the peer limits how many may be.
    waiting: VecDeque<StreamId>,
    /// The first of them.
    open: Option<Opening>,
    streams: BTreeSet<StreamId>,
    lost: Option<ConnectionError>,
    liveness: Watched,
    /// Use of the streams that were handed over.
    usage: Arc<Usage>,
}

impl Connection {
    fn new(cx: &Cx, id: ConnectionId, quinn: quinn::Connection) -> Self {
        let accept = accept(&quinn);
        let waker = cx.source(WakeSource::Connection(id));
        let network = Network::of(quinn.remote_address().ip());
        Self {
            quinn,
            network,
            waker,
            accept,
            waiting: VecDeque::new(),
            open: None,
            streams: BTreeSet::new(),
            lost: None,
            liveness: Watched::default(),
            usage: Usage::new(cx.ready.waker(WakeSource::Connection(id))),
        }
    }

    /// Returns what a stream that is handed over needs of its connection.
    fn place(&self) -> (Network, Arc<Usage>) {
        (self.network, Arc::clone(&self.usage))
    }
}

impl Connections {
    pub(super) fn new() -> Self {
        Self { connections: BTreeMap::new(), streams: BTreeMap::new(), next_stream: 1 }
    }

    /// Adds a connection whose handshake succeeded.
    pub(super) fn add(&mut self, cx: &Cx, id: ConnectionId, quinn: quinn::Connection) {
        self.connections.insert(id, Connection::new(cx, id, quinn));
    }

    /// Updates the counters.
    pub(super) fn count(&self, cx: &mut Cx) {
        cx.metrics.connections = self.connections.len() as u64;
        cx.metrics.streams = self.streams.len() as u64;
    }

    /// Executes the effect `CloseConnection`. `Disconnected` follows.
    pub(super) fn close(&mut self, conn: ConnectionId, code: u64, reason: &str) {
        if let Some(connection) = self.connections.get(&conn) {
            connection.quinn.close(varint(code), reason.as_bytes());
        }
    }

    /// Executes the effect `OpenStream`.
    pub(super) fn open_stream(&mut self, cx: &mut Cx, conn: ConnectionId, stream: StreamId) {
        // If the connection is gone, its end has been or will be reported, and its streams end with
        // it.
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.waiting.push_back(stream);
        connection.streams.insert(stream);
        connection.waker.wake_by_ref();
        self.streams
            .insert(stream, CoreStream::new(conn, cx.ready.waker(WakeSource::Stream(stream))));
    }

    /// Executes the effect `DetachStream`. `DetachedStream` follows when QUIC has accepted
    /// everything that the core sent.
    pub(super) fn detach(
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
                stream.detach = Some(PendingDetach { node, protocol, opener, unread });
                stream.touch();
            }
            None => cx.detached.push_back(DetachedStream { id, opener, stream: None }),
        }
    }

    pub(super) fn poll_connection(&mut self, cx: &mut Cx, id: ConnectionId) {
        self.wakes_up(cx, id);
        self.look_if_used(cx, id);
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
                    let mut core = CoreStream::new(id, cx.ready.waker(WakeSource::Stream(stream)));
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
                        // The core still has to decide about the latest stream: one more round.
                        connection.waker.wake_by_ref();
                    } else {
                        self.lose(cx, id);
                    }
                    return;
                }
            }
        }
        while steps > 0 && !connection.waiting.is_empty() {
            // A stream that the core ended while it waited is never opened.
            while connection
                .waiting
                .front()
                .is_some_and(|stream| !self.streams.contains_key(stream))
            {
                connection.waiting.pop_front();
            }
            let Some(stream) = connection.waiting.front().copied() else { break };
            let open = connection.open.get_or_insert_with(|| open(&connection.quinn));
            // An error is the end of the connection, which `accept` reports.
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

    /// Handles data that is about to be written to a connection.
    fn before_send(&mut self, cx: &mut Cx, id: ConnectionId) {
        if let Some(Connection { liveness, quinn, .. }) = self.connections.get_mut(&id) {
            liveness.before_send(cx.now, &quinn.stats());
        }
    }

    /// Handles data that QUIC has accepted.
    fn sent_on(&mut self, cx: &mut Cx, id: ConnectionId) {
        if let Some(Connection { liveness, quinn, usage, .. }) = self.connections.get_mut(&id) {
            liveness.sent_on(cx, id, quinn, usage);
        }
    }

    fn wakes_up(&mut self, cx: &mut Cx, id: ConnectionId) {
        if self.live(id).is_some_and(|connection| connection.liveness.is_suspected()) {
            self.look_due(cx, id);
        }
    }

    /// Starts the checks of a connection if the embedder has used its streams.
    fn look_if_used(&mut self, cx: &mut Cx, id: ConnectionId) {
        if let Some(Connection { liveness, quinn, usage, .. }) = self.live(id) {
            liveness.look_if_used(cx, id, quinn, usage);
        }
    }

    /// Checks whether a connection is silent.
    pub(super) fn look_due(&mut self, cx: &mut Cx, id: ConnectionId) {
        let Some(connection) =
            self.connections.get_mut(&id).filter(|connection| connection.lost.is_none())
        else {
            return;
        };
        let waits =
            connection.streams.iter().any(|id| self.streams.get(id).is_some_and(CoreStream::waits));
        connection.liveness.look_due(cx, id, &connection.quinn, &connection.usage, waits);
    }

    /// Returns a connection that has not ended.
    fn live(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(&id).filter(|connection| connection.lost.is_none())
    }

    /// Removes a closed connection. The core still receives data that arrived before and that it
    /// has credit for.
    fn lose(&mut self, cx: &mut Cx, id: ConnectionId) {
        let lost = self
            .connections
            .get(&id)
            .map(|connection| (connection.streams.clone(), connection.place()));
        let Some((streams, place)) = lost else { return };
        for stream in streams {
            self.poll_stream(cx, stream);
            if let Some(core) = self.streams.remove(&stream) {
                deliver(cx, stream, core, Some(place.clone()));
            }
        }
        let Some(mut connection) = self.connections.remove(&id) else { return };
        connection.liveness.unwatch(cx, id);
        if let Some(error) = &connection.lost {
            cx.input(Input::Disconnected { conn: id, why: disconnect_reason(error, unix()) });
        }
    }

    pub(super) fn poll_stream(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        let conn = stream.conn;
        if stream.sends() {
            self.before_send(cx, conn);
        }
        self.wakes_up(cx, conn);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let hands_over = stream.poll(cx, id);
        if stream.take_sent() {
            self.sent_on(cx, conn);
        }
        if hands_over {
            if let Some(stream) = self.forget(id) {
                let place = self.connections.get(&stream.conn).map(Connection::place);
                deliver(cx, id, stream, place);
            }
        } else {
            self.forget_if_over(id);
        }
    }

    /// Executes an output of the core on a stream. A stream that does not exist ended with its
    /// connection.
    pub(super) fn with_stream(&mut self, id: StreamId, action: impl FnOnce(&mut CoreStream)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            action(stream);
            self.forget_if_over(id);
        }
    }

    fn forget_if_over(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(|stream| stream.is_over() && stream.detach.is_none()) {
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

/// Delivers a stream to the embedder if it is to be handed over.
fn deliver(
    cx: &mut Cx,
    id: StreamId,
    mut stream: CoreStream,
    place: Option<(Network, Arc<Usage>)>,
) {
    if let Some(PendingDetach { node, protocol, opener, unread }) = stream.detach.take() {
        let (send, recv) = stream.into_halves();
        // A connection outlives its streams.
        let stream = place.map(|(network, usage)| {
            (Stream::new(node, protocol, send, recv, unread, usage), network)
        });
        cx.detached.push_back(DetachedStream { id, opener, stream });
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
