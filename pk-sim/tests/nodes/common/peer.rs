//! A scripted peer that follows the protocol or violates it, as its test requires.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::native::{self, Message, V1};
use pk_proto::{
    ClosestNodes, ConnectionId, FrameDecoder, Input, NodeContact, NodeId, Refusal, RpcRequest,
    RpcResponse, Side, StreamId,
};
use pk_sim::{Cluster, HostId};

use super::bare::hello;
use super::{SECOND, data};

/// Enough credit for anything that a node sends.
const CREDIT: u64 = 1 << 30;

/// A frame with any bytes, and any length in its header.
pub fn frame(announced: u32, payload: &[u8]) -> Vec<u8> {
    [&announced.to_be_bytes(), payload].concat()
}

/// The reaction of a scripted peer to a call.
pub type Script = Box<dyn FnMut(RpcRequest) -> Reaction>;

/// The reaction to a call.
#[derive(Debug, Clone)]
pub enum Reaction {
    /// Sends these bytes, and the end.
    Send(Vec<u8>),
    /// Nothing.
    Silence,
}

impl Reaction {
    /// A valid answer.
    pub fn answer(answer: RpcResponse) -> Self {
        Self::Send(native::encode(&Message::V1(V1::Answer(answer))).unwrap().to_vec())
    }
}

/// The protocol of a scripted peer: it sends Hello on each connection, and reacts to calls.
pub struct Peer {
    host: HostId,
    heard: usize,
    script: Script,
    reading: BTreeMap<StreamId, (ConnectionId, FrameDecoder)>,
    /// Streams on which it has received a Hello and not answered.
    waiting: Vec<StreamId>,
    /// Requests that it has received.
    pub asked: Vec<RpcRequest>,
    /// Whether it sends Hello.
    pub greets: bool,
    /// Its Hello.
    pub hello: Bytes,
}

impl Peer {
    pub fn new(host: HostId, script: impl FnMut(RpcRequest) -> Reaction + 'static) -> Self {
        Self {
            host,
            heard: 0,
            script: Box::new(script),
            reading: BTreeMap::new(),
            waiting: Vec::new(),
            asked: Vec::new(),
            greets: true,
            hello: hello(),
        }
    }

    /// A peer that answers pings, and reports no nodes.
    pub fn honest(host: HostId) -> Self {
        Self::new(host, |question| {
            Reaction::answer(match question {
                RpcRequest::Ping { nonce } => RpcResponse::Pong { nonce },
                RpcRequest::Closest { .. } => RpcResponse::Closest(ClosestNodes::default()),
                _ => RpcResponse::Refused(Refusal::Busy),
            })
        })
    }

    /// The scripted peer's host.
    pub fn host(&self) -> HostId {
        self.host
    }

    /// Lets time pass, while the scripted peer reacts to its inputs.
    pub fn drive(&mut self, cluster: &mut Cluster, time: Duration) {
        let end = cluster.now() + time;
        self.react(cluster);
        while cluster.next().is_some_and(|at| at <= end) {
            cluster.step();
            self.react(cluster);
        }
        let rest = end.since(cluster.now());
        cluster.drive(rest);
    }

    /// Reacts to the inputs since the last call.
    pub fn react(&mut self, cluster: &mut Cluster) {
        self.greet(cluster);
        while let Some(input) =
            cluster.scripted_peer(self.host).heard.get(self.heard).map(|(_, input)| input.clone())
        {
            self.heard += 1;
            match input {
                Input::Connected(connected) if connected.side == Side::Dialer && self.greets => {
                    let hello = self.hello.clone();
                    cluster.pull(self.host, |scripted_peer| {
                        let stream = scripted_peer.open(connected.conn);
                        scripted_peer.send(stream, hello, false);
                        scripted_peer.grant(stream, CREDIT);
                    });
                }
                Input::StreamOpened { conn, stream } => {
                    self.reading.insert(stream, (conn, FrameDecoder::new()));
                    cluster.pull(self.host, |scripted_peer| scripted_peer.grant(stream, CREDIT));
                }
                Input::Disconnected { conn, .. } => {
                    self.reading.retain(|_, (of, _)| *of != conn);
                    self.waiting.retain(|stream| self.reading.contains_key(stream));
                }
                Input::StreamData { stream, bytes, .. } => self.read(cluster, stream, bytes),
                _ => {}
            }
        }
    }

    fn read(&mut self, cluster: &mut Cluster, stream: StreamId, bytes: Bytes) {
        let Some((_, decoder)) = self.reading.get_mut(&stream) else { return };
        decoder.push(bytes);
        while let Ok(Some(payload)) = decoder.next() {
            match native::decode(&payload) {
                Ok(Message::V1(V1::Hello(_))) => self.waiting.push(stream),
                Ok(Message::V1(V1::Call { request: question, .. })) => {
                    self.asked.push(question.clone());
                    if let Reaction::Send(bytes) = (self.script)(question) {
                        cluster.pull(self.host, |scripted_peer| {
                            scripted_peer.send(stream, bytes, true);
                        });
                    }
                }
                _ => {}
            }
        }
        self.greet(cluster);
    }

    fn greet(&mut self, cluster: &mut Cluster) {
        while self.greets
            && let Some(stream) = self.waiting.pop()
        {
            let hello = self.hello.clone();
            cluster.pull(self.host, |scripted_peer| scripted_peer.send(stream, hello, false));
        }
    }

    /// Dials a node, and sends Hello. Returns the id of the connection at the scripted peer.
    pub fn connect(&mut self, cluster: &mut Cluster, to: HostId) -> ConnectionId {
        let (addr, expect, deadline) =
            (cluster.host(to).addrs()[0], cluster.id(to), cluster.now() + 15 * SECOND);
        let conn =
            cluster.pull(self.host, |scripted_peer| scripted_peer.dial(addr, expect, deadline));
        self.drive(cluster, SECOND);
        assert!(
            cluster
                .scripted_peer(self.host)
                .connected()
                .is_some_and(|connected| connected.conn == conn)
        );
        conn
    }

    /// Opens a stream and sends these bytes on it.
    pub fn send(
        &mut self,
        cluster: &mut Cluster,
        conn: ConnectionId,
        bytes: impl Into<Bytes>,
        fin: bool,
    ) -> StreamId {
        cluster.pull(self.host, |scripted_peer| {
            let stream = scripted_peer.open(conn);
            scripted_peer.send(stream, bytes, fin);
            stream
        })
    }
}

/// Contacts to report, with the time of a cluster.
pub fn contacts(cluster: &Cluster, nodes: &[(NodeId, &str)]) -> Vec<(NodeId, NodeContact)> {
    let data = data(cluster, pk_proto::Scopes::GLOBAL);
    nodes.iter().map(|(node, text)| (*node, NodeContact::new(super::address(text), data))).collect()
}
