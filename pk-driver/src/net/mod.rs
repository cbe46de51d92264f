//! The network: the endpoint, handshakes in both directions, connections and their streams.

mod admission;
mod cids;
mod connections;
mod endpoint;
mod handshakes;
mod punch;
mod reasons;
mod streams;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use pk_proto::{ConnectionId, Identity, Input, StreamId};
use quinn::{Incoming, VarInt};

use self::admission::Handshakes;
use self::cids::Cids;
use self::connections::Connection;
use self::handshakes::{Dial, Handshake};
use self::punch::PunchSocket;
pub(crate) use self::reasons::{disconnect_reason, varint};
use self::streams::CoreStream;
use self::tls::Tls;
use crate::cx::{Cx, Key};
use crate::error::StartError;
use crate::keys::KeyPair;
use crate::runtime::BoxFuture;
use crate::tasks::Tasks;

/// The network of one node.
pub(crate) struct Net {
    endpoint: quinn::Endpoint,
    socket: Arc<PunchSocket>,
    cids: Cids,
    bound: SocketAddr,
    tls: Tls,
    /// Everything about incoming connections but TLS.
    server: quinn::ServerConfig,
    transport: Arc<quinn::TransportConfig>,

    accept: BoxFuture<Option<Incoming>>,
    accept_waker: Waker,
    admission: Handshakes,
    // What peers make grow is in trees: a hash table would keep the room of its greatest day for good.
    handshakes: BTreeMap<u64, Handshake>,
    dials: BTreeMap<ConnectionId, Dial>,
    connections: BTreeMap<ConnectionId, Connection>,
    streams: BTreeMap<StreamId, CoreStream>,
    next_handshake: u64,
    next_connection: u64,
    next_stream: u64,
}

impl Net {
    /// Binds the endpoint and begins to accept. `streams` is how many streams a peer may have open on a connection.
    pub(crate) fn bind(
        cx: &mut Cx,
        listen: SocketAddr,
        identity: &Identity,
        key: &KeyPair,
        streams: usize,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let tls = Tls::new(identity, key, &cx.config.dialects);
        let cids = Cids::default();
        let transport = endpoint::transport(&cx.config, streams);
        // The endpoint asks for a TLS configuration, though every handshake is accepted with one of its own.
        let (server_tls, _) = tls.server().map_err(StartError::Tls)?;
        let server = endpoint::server(&cx.config, &transport, server_tls);
        let (endpoint, socket, bound) = endpoint::bind(listen, server.clone(), &cids, tasks)?;
        Ok(Self {
            accept: accept(&endpoint),
            endpoint,
            socket,
            cids,
            bound: endpoint::canonical(bound),
            tls,
            server,
            transport,
            accept_waker: cx.source(Key::Endpoint),
            admission: Handshakes::new(cx.config.handshake_limit, cx.config.handshake_network_limit),
            handshakes: BTreeMap::new(),
            dials: BTreeMap::new(),
            connections: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_handshake: 0,
            next_connection: 1,
            next_stream: 1,
        })
    }

    /// Where the endpoint listens.
    pub(crate) fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Presents another identity from now on; connections stay.
    pub(crate) fn replace_identity(&mut self, cx: &Cx, identity: &Identity, key: &KeyPair) {
        self.tls = Tls::new(identity, key, &cx.config.dialects);
    }

    /// Sends one datagram, now or not at all.
    pub(crate) fn punch(&self, cx: &mut Cx, addr: SocketAddr, bytes: &[u8]) {
        match self.socket.punch(addr, bytes) {
            Ok(()) => cx.metrics.punches += 1,
            Err(error) => {
                cx.metrics.punches_dropped += 1;
                tracing::debug!(%addr, %error, "a punch datagram was not sent");
            }
        }
    }

    // -- streams: what the core wants. A stream that is not there ended with its connection.

    pub(crate) fn send_stream(&mut self, cx: &mut Cx, stream: StreamId, bytes: Bytes, fin: bool) {
        self.with_stream(cx, stream, |stream| stream.send(bytes, fin));
    }

    pub(crate) fn credit(&mut self, cx: &mut Cx, stream: StreamId, bytes: u64) {
        self.with_stream(cx, stream, |stream| stream.credit(bytes));
    }

    pub(crate) fn reset_stream(&mut self, cx: &mut Cx, stream: StreamId, code: u64) {
        self.with_stream(cx, stream, |stream| stream.reset(code));
    }

    pub(crate) fn stop_stream(&mut self, cx: &mut Cx, stream: StreamId, code: u64) {
        self.with_stream(cx, stream, |stream| stream.stop(code));
    }

    fn with_stream(&mut self, cx: &mut Cx, id: StreamId, action: impl FnOnce(&mut CoreStream)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            action(stream);
            self.forget_if_over(cx, id);
        }
    }

    // -- the end

    /// Closes whatever is open and takes nothing new. Resolves when the peers have been told, as far as they answer.
    pub(crate) fn close(&mut self) -> BoxFuture<()> {
        self.handshakes.clear();
        self.dials.clear();
        self.endpoint.close(VarInt::from_u32(0), b"");
        let endpoint = self.endpoint.clone();
        Box::pin(async move { endpoint.wait_idle().await })
    }

    /// Counts what there is.
    pub(crate) fn count(&self, cx: &mut Cx) {
        cx.metrics.handshakes_pending = self.handshakes.len() as u64;
        cx.metrics.dials_pending = self.dials.len() as u64;
        cx.metrics.connections = self.connections.len() as u64;
        cx.metrics.streams = self.streams.len() as u64;
    }

    /// The endpoint is bound: what the core is told first.
    pub(crate) fn listening(&self) -> Input {
        Input::Listening { addrs: vec![self.bound] }
    }
}

fn accept(endpoint: &quinn::Endpoint) -> BoxFuture<Option<Incoming>> {
    let endpoint = endpoint.clone();
    Box::pin(async move { endpoint.accept().await })
}
