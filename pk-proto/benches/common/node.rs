//! One `NodeManager` with live connections, fed by hand.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use pk_proto::native::{self, Message, V1};
use pk_proto::{
    ClosestNodes, Config, Connected, ConnectionId, Dialect, DisconnectReason, Event,
    FindNodeOptions, Identity, Input, Instant, NodeId, NodeManager, Output, RequestOptions,
    RpcRequest, RpcResponse, Side, Snapshot, StreamId, cert,
};

use super::messages::{closest_request, frame, hello, request};
use super::{UNIX, address, ids};

/// A node and its peers.
pub struct Fed {
    manager: NodeManager,
    now: u64,
    odd: u64,
    turn: usize,
    peers: Vec<(NodeId, ConnectionId)>,
    spare: Vec<NodeId>,
    outputs: Vec<Output>,
    ping: Bytes,
    open: Bytes,
}

impl Fed {
    /// A node with `count` live connections.
    pub fn new(count: usize) -> Self {
        let mut config = Config::default();
        config.connection_limit = 100_000;
        (config.refresh_delay, config.retry_delay) = (Duration::ZERO, Duration::ZERO);
        let key = SigningKey::from_bytes(&[0x5a; 32]);
        let at = Instant::from_micros(0);
        let mut manager =
            NodeManager::new(config, &identity(&key), Snapshot::default(), [7; 32], at, UNIX)
                .unwrap();
        manager
            .handle_input(Input::Listening { addrs: vec!["32.255.0.1:1314".parse().unwrap()] }, at);
        manager.accept_protocol("bench/1".into(), at).unwrap();
        let mut ids = ids(count + 2_000, 8);
        let spare = ids.split_off(count);
        let mut fed = Self {
            manager,
            now: 1,
            odd: 1,
            turn: 0,
            peers: Vec::new(),
            spare,
            outputs: Vec::new(),
            ping: request(RpcRequest::Ping { nonce: 7 }),
            open: frame(V1::Open { protocol: "bench/1".into() }),
        };
        for node in ids {
            fed.now += 1000;
            let conn = fed.connect(node);
            fed.peers.push((node, conn));
        }
        // The graph is written.
        fed.now += 2_000_000;
        fed.manager.handle_timeout(fed.at());
        fed.drain();
        fed.outputs.clear();
        fed
    }

    fn at(&self) -> Instant {
        Instant::from_micros(self.now)
    }

    fn odd(&mut self) -> u64 {
        self.odd += 2;
        self.odd
    }

    fn next(&mut self) -> (NodeId, ConnectionId) {
        self.now += 10;
        self.turn += 1;
        self.peers[self.turn * 7919 % self.peers.len()]
    }

    fn input(&mut self, input: Input) {
        self.manager.handle_input(input, self.at());
        self.drain();
        std::hint::black_box(self.manager.poll_timeout());
    }

    /// Takes the outputs; transactions are committed at once.
    fn drain(&mut self) {
        let mut writes = VecDeque::new();
        loop {
            while let Some(output) = self.manager.poll_output() {
                if let Output::Persist { id, .. } = &output {
                    writes.push_back(*id);
                }
                self.outputs.push(output);
            }
            let Some(id) = writes.pop_front() else { break };
            self.manager.handle_input(Input::Persisted { id, result: Ok(()) }, self.at());
        }
    }

    /// A peer connects, and its Hello arrives.
    fn connect(&mut self, node: NodeId) -> ConnectionId {
        let (conn, stream) = (ConnectionId(self.odd()), StreamId(self.odd()));
        self.input(Input::Connected(Connected {
            conn,
            side: Side::Acceptor,
            dialect: Dialect::Native,
            leaf: node,
            chain: vec![node],
            matched_id: None,
            remote: address(self.odd as usize / 2).socket().unwrap(),
            local: "32.255.0.1:1314".parse().unwrap(),
            shared_id: Bytes::copy_from_slice(node.as_bytes()),
        }));
        self.frame(conn, stream, &hello(), false);
        let accepted =
            |output: &Output| matches!(output, Output::Event(Event::ConnectionOpened { .. }));
        assert!(self.outputs.iter().any(accepted), "{:?}", self.outputs);
        self.sent();
        conn
    }

    /// A frame of a peer arrives on a new stream as a driver reads it: the header, then the rest.
    fn frame(&mut self, conn: ConnectionId, stream: StreamId, frame: &Bytes, fin: bool) {
        self.input(Input::StreamOpened { conn, stream });
        self.data(stream, frame, fin);
    }

    fn data(&mut self, stream: StreamId, frame: &Bytes, fin: bool) {
        self.input(Input::StreamData { stream, bytes: frame.slice(..4), fin: false });
        self.input(Input::StreamData { stream, bytes: frame.slice(4..), fin });
    }

    /// Everything sent is written. Returns the last frame and its stream.
    fn sent(&mut self) -> Option<(StreamId, Bytes)> {
        let mut last = None;
        for output in std::mem::take(&mut self.outputs) {
            if let Output::SendStream { stream, bytes, .. } = output {
                self.input(Input::StreamWritten { stream, bytes: bytes.len() as u64 });
                last = Some((stream, bytes));
            }
        }
        last
    }

    fn serve(&mut self, conn: ConnectionId, request: &Bytes) -> usize {
        let stream = StreamId(self.odd());
        self.frame(conn, stream, request, true);
        let answer = self.sent().map_or(0, |(_, answer)| answer.len());
        assert!(answer > 4, "no answer");
        self.outputs.clear();
        answer
    }

    // -- what is measured

    /// A peer pings: four inputs and the answer.
    pub fn serve_ping(&mut self) {
        let ((_, conn), ping) = (self.next(), self.ping.clone());
        self.serve(conn, &ping);
    }

    /// A peer requests the closest contacts, and the closest connected nodes if `connected`.
    pub fn serve_closest(&mut self, connected: bool) {
        let (node, conn) = self.next();
        self.serve(conn, &closest_request(node, connected));
    }

    /// This node pings a peer, which answers.
    pub fn ping(&mut self) {
        let (node, _) = self.next();
        self.manager.ping_node(node, RequestOptions::default(), self.at()).unwrap();
        self.drain();
        let (stream, sent) = self.sent().unwrap();
        let Message::V1(V1::Call { request: RpcRequest::Ping { nonce }, .. }) =
            native::decode(&sent[4..]).unwrap()
        else {
            panic!("not a ping")
        };
        self.data(stream, &frame(V1::Answer(RpcResponse::Pong { nonce })), true);
        self.assert_done();
    }

    /// A search for a node that is connected.
    pub fn find_connected(&mut self) {
        let (node, _) = self.next();
        self.manager.find_node(node, FindNodeOptions::default(), self.at()).unwrap();
        self.drain();
        self.assert_done();
    }

    fn assert_done(&mut self) {
        let done =
            |output: &Output| matches!(output, Output::Event(Event::Done { result: Ok(_), .. }));
        assert!(self.outputs.iter().any(done), "{:?}", self.outputs);
        self.outputs.clear();
    }

    /// A peer connects and leaves.
    pub fn accept(&mut self) {
        self.now += 10;
        self.turn += 1;
        let conn = self.connect(self.spare[self.turn % self.spare.len()]);
        self.input(Input::Disconnected { conn, why: DisconnectReason::TimedOut });
        self.outputs.clear();
    }

    /// An application stream is handed over and ends.
    pub fn hand_over(&mut self) {
        let ((_, conn), open) = (self.next(), self.open.clone());
        let stream = StreamId(self.odd());
        self.frame(conn, stream, &open, false);
        let handed = |output: &Output| matches!(output, Output::DetachStream { .. });
        assert!(self.outputs.iter().any(handed), "{:?}", self.outputs);
        self.input(Input::StreamClosed { stream });
        self.outputs.clear();
    }

    /// Searches for nodes that no contact knows, all at the same time: each asks connected
    /// contacts, which report no nodes.
    pub fn searches(&mut self, count: usize) {
        self.now += 10;
        for target in ids(count, 9) {
            self.manager.find_node(target, FindNodeOptions::default(), self.at()).unwrap();
        }
        self.drain();
        let nothing = RpcResponse::Closest(ClosestNodes { known: vec![], connected: vec![] });
        let (answer, mut ended) = (frame(V1::Answer(nothing)), 0);
        while ended < count {
            let outputs = std::mem::take(&mut self.outputs);
            assert!(!outputs.is_empty(), "{ended} of {count} searches have ended");
            for output in outputs {
                match output {
                    Output::SendStream { stream, bytes, .. } => {
                        self.input(Input::StreamWritten { stream, bytes: bytes.len() as u64 });
                        self.data(stream, &answer, true);
                    }
                    Output::Event(Event::Done { .. }) => ended += 1,
                    _ => {}
                }
            }
        }
        self.outputs.clear();
    }

    /// Nothing is due.
    pub fn idle(&mut self) {
        self.now += 1;
        self.manager.handle_timeout(self.at());
        std::hint::black_box((self.manager.poll_output(), self.manager.poll_timeout()));
    }

    /// The counters.
    pub fn metrics(&self) {
        std::hint::black_box(self.manager.metrics());
    }
}

fn identity(key: &SigningKey) -> Identity {
    let id = NodeId::from_bytes(key.verifying_key().to_bytes());
    let request = cert::CertificateRequest {
        serial: cert::CertId::new(UNIX.0, 0, 1),
        subject: id,
        issuer: id,
        not_before: UNIX.as_secs(),
        not_after: UNIX.as_secs() + cert::DEFAULT_LIFETIME_SECONDS,
        version: "1.15.1".into(),
        subject_extra: vec![],
        issuer_extra: vec![],
    };
    let sign = |bytes: &[u8]| key.sign(bytes).to_bytes();
    Identity { chain: vec![request.sign(sign, sign).unwrap().into()] }
}
