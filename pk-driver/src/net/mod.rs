//! QUIC: the endpoint, handshakes in both directions, connections and their streams.

mod cids;
mod connections;
mod endpoint;
mod handshakes;
mod liveness;
mod punch;
mod resets;
mod streams;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use pk_proto::{ConnectionId, Identity, Input, Instant, NodeId, Opener, StreamId};

use self::connections::Connections;
use self::handshakes::{Established, Handshakes};
use self::punch::PunchSocket;
use crate::cx::Cx;
use crate::error::StartError;
use crate::system::runtime::BoxFuture;
use crate::system::tasks::Tasks;
use pk_host::KeyPair;
use pk_host::TransportSecret;

/// The network of one node. Each call is passed to the component that owns the state.
pub(crate) struct Net {
    socket: Arc<PunchSocket>,
    handshakes: Handshakes,
    connections: Connections,
}

impl Net {
    /// Binds the endpoint and starts to accept. `streams` limits the open streams of a peer on a
    /// connection.
    pub(crate) fn bind(
        cx: &mut Cx,
        listen: SocketAddr,
        identity: &Identity,
        key: &KeyPair,
        secret: &TransportSecret,
        streams: usize,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let (handshakes, socket) =
            Handshakes::bind(cx, listen, identity, key, secret, streams, tasks)?;
        Ok(Self { socket, handshakes, connections: Connections::new() })
    }

    /// Returns the address that the endpoint listens on.
    pub(crate) fn bound(&self) -> SocketAddr {
        self.handshakes.bound()
    }

    /// Presents another identity from now on; existing connections are not affected.
    pub(crate) fn replace_identity(&mut self, cx: &Cx, identity: &Identity, key: &KeyPair) {
        self.handshakes.replace_identity(cx, identity, key);
    }

    /// Sends one datagram now, or drops it.
    pub(crate) fn punch(&self, cx: &mut Cx, addr: SocketAddr, bytes: &[u8]) {
        match self.socket.punch(addr, bytes) {
            Ok(()) => cx.metrics.punches += 1,
            Err(error) => {
                cx.metrics.punches_dropped += 1;
                tracing::debug!(%addr, %error, "a punch datagram was not sent");
            }
        }
    }

    // -- handshakes

    /// Executes the effect `Dial`. `DialFailed` or `Connected` follows.
    pub(crate) fn dial(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        addr: SocketAddr,
        expect: BTreeSet<NodeId>,
        deadline: Instant,
    ) {
        self.handshakes.dial(cx, conn, addr, expect, deadline);
    }

    /// Executes the effect `CancelDial`.
    pub(crate) fn cancel_dial(&mut self, cx: &mut Cx, conn: ConnectionId) {
        self.handshakes.cancel_dial(cx, conn);
    }

    /// Handles the deadline of a dial, or a poll for its confirmation.
    pub(crate) fn dial_due(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let established = self.handshakes.dial_due(cx, conn);
        self.establish(cx, established);
    }

    pub(crate) fn poll_dial(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let established = self.handshakes.poll_dial(cx, conn);
        self.establish(cx, established);
    }

    /// Handles connection attempts. Returns whether more can follow: not if the endpoint is closed
    /// or has failed.
    pub(crate) fn poll_endpoint(&mut self, cx: &mut Cx) -> bool {
        self.handshakes.poll_endpoint(cx)
    }

    /// Handles the deadline of a handshake.
    pub(crate) fn handshake_timed_out(&mut self, cx: &mut Cx, id: u64) {
        self.handshakes.timed_out(cx, id);
    }

    pub(crate) fn poll_handshake(&mut self, cx: &mut Cx, id: u64) {
        let established = self.handshakes.poll_handshake(cx, id);
        self.establish(cx, established);
    }

    fn establish(&mut self, cx: &Cx, established: Option<Established>) {
        if let Some((conn, quinn)) = established {
            self.connections.add(cx, conn, quinn);
        }
    }

    // -- connections

    /// Executes the effect `CloseConnection`. `Disconnected` follows.
    pub(crate) fn close_connection(&mut self, conn: ConnectionId, code: u64, reason: &str) {
        self.connections.close(conn, code, reason);
    }

    pub(crate) fn poll_connection(&mut self, cx: &mut Cx, conn: ConnectionId) {
        self.connections.poll_connection(cx, conn);
    }

    /// Checks whether a connection is silent.
    pub(crate) fn look_due(&mut self, cx: &mut Cx, conn: ConnectionId) {
        self.connections.look_due(cx, conn);
    }

    // -- streams: outputs of the core. A stream that does not exist ended with its connection.

    /// Executes the effect `OpenStream`.
    pub(crate) fn open_stream(&mut self, cx: &mut Cx, conn: ConnectionId, stream: StreamId) {
        self.connections.open_stream(cx, conn, stream);
    }

    pub(crate) fn send_stream(&mut self, stream: StreamId, bytes: Bytes, fin: bool) {
        self.connections.with_stream(stream, |stream| stream.send(bytes, fin));
    }

    pub(crate) fn credit(&mut self, stream: StreamId, bytes: u64) {
        self.connections.with_stream(stream, |stream| stream.credit(bytes));
    }

    pub(crate) fn reset_stream(&mut self, stream: StreamId, code: u64) {
        self.connections.with_stream(stream, |stream| stream.reset(code));
    }

    pub(crate) fn stop_stream(&mut self, stream: StreamId, code: u64) {
        self.connections.with_stream(stream, |stream| stream.stop(code));
    }

    /// Executes the effect `DetachStream`. `DetachedStream` follows when QUIC has accepted
    /// everything that the core sent.
    pub(crate) fn detach(
        &mut self,
        cx: &mut Cx,
        stream: StreamId,
        node: NodeId,
        protocol: String,
        opener: Opener,
        unread: Bytes,
    ) {
        self.connections.detach(cx, stream, node, protocol, opener, unread);
    }

    pub(crate) fn poll_stream(&mut self, cx: &mut Cx, stream: StreamId) {
        self.connections.poll_stream(cx, stream);
    }

    // -- shutdown

    /// Closes everything and accepts nothing new. Resolves when the peers have acknowledged it, as
    /// far as they answer.
    pub(crate) fn close(&mut self) -> BoxFuture<()> {
        self.handshakes.close()
    }

    /// Updates the counters.
    pub(crate) fn count(&self, cx: &mut Cx) {
        self.handshakes.count(cx);
        self.connections.count(cx);
        (cx.metrics.resets, cx.metrics.resets_dropped) = self.socket.resets.counts();
    }

    /// Returns the first input of the core, after the endpoint was bound.
    pub(crate) fn listening(&self) -> Input {
        Input::Listening { addrs: vec![self.bound()] }
    }
}
