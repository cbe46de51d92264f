//! One machine without a simulator: a test gives it inputs and reads its outputs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    Config, Connected, ConnectionId, Dialect, Event, Failure, FrameDecoder, Input, Instant, NodeId,
    NodeManager, Output, PeerFault, Reply, Request, RequestId, Side, Snapshot, StreamId,
    UnixMillis,
};
use pk_sim::{Key, genesis};

/// Wall-clock time at the start of every test.
const UNIX: UnixMillis = UnixMillis(1_767_225_600_000);

/// A machine whose driver is the test.
#[derive(Debug)]
pub struct Bare {
    pub node: NodeManager,
    pub now: Instant,
    /// Its outputs since the last [`take`](Self::take).
    pub outputs: Vec<Output>,
    /// The credit of each stream.
    pub credit: BTreeMap<StreamId, u64>,
    odd: u64,
}

impl Bare {
    /// A machine that is ready.
    pub fn new(change: impl FnOnce(&mut Config)) -> Self {
        Self::starting(change).ready()
    }

    /// A machine that is ready, with this key, at this time.
    pub fn with_key(key: &Key, unix: UnixMillis, change: impl FnOnce(&mut Config)) -> Self {
        Self::made(key, unix, change).ready()
    }

    fn ready(mut self) -> Self {
        let bare = &mut self;
        bare.input(Input::Listening { addrs: vec!["192.0.2.1:1314".parse().unwrap()] });
        assert!(matches!(bare.take()[..], [Output::Event(Event::Ready { .. })]));
        self
    }

    /// A machine that does not listen yet.
    pub fn starting(change: impl FnOnce(&mut Config)) -> Self {
        Self::made(&Key::numbered(77, 0), UNIX, change)
    }

    fn made(key: &Key, unix: UnixMillis, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        // A machine without background work.
        config.refresh_delay = Duration::ZERO;
        config.retry_delay = Duration::ZERO;
        change(&mut config);
        let (identity, now) = (genesis(key, unix), Instant::from_micros(1));
        let node =
            NodeManager::new(config, &identity, Snapshot::default(), [7; 32], now, unix).unwrap();
        Self { node, now, outputs: Vec::new(), credit: BTreeMap::new(), odd: 1 }
    }

    /// The id of another node.
    pub fn peer(number: u64) -> NodeId {
        Key::numbered(77, 1 + number).id()
    }

    pub fn input(&mut self, input: Input) {
        self.node.handle_input(input, self.now);
        self.drain();
    }

    pub fn request(&mut self, request: Request) -> RequestId {
        let id = self.node.request(request, self.now).unwrap();
        self.drain();
        id
    }

    pub fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            if let Output::ReadCredit { stream, bytes } = &output {
                *self.credit.entry(*stream).or_default() += bytes;
            }
            self.outputs.push(output);
        }
    }

    /// Completes every transaction since the last [`take`](Self::take), and those that follow.
    pub fn persist_all(&mut self) {
        self.drain();
        let mut next = 0;
        while let Some(output) = self.outputs.get(next) {
            next += 1;
            if let Output::Persist { id, .. } = *output {
                self.input(Input::Persisted { id, result: Ok(()) });
            }
        }
    }

    /// Returns its outputs since the last call.
    pub fn take(&mut self) -> Vec<Output> {
        self.drain();
        std::mem::take(&mut self.outputs)
    }

    /// Time passes; every timer fires when it is due.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.node.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.node.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// The process is suspended, and fires due timers only when it resumes.
    pub fn suspend(&mut self, time: Duration) {
        self.now = self.now + time;
        self.node.handle_timeout(self.now);
        self.drain();
    }

    /// Returns an unused id of the driver.
    pub fn next_id(&mut self) -> u64 {
        self.odd += 2;
        self.odd - 2
    }

    /// A handshake completes.
    pub fn connected(
        &mut self,
        conn: ConnectionId,
        side: Side,
        peer: NodeId,
        remote: SocketAddr,
        shared_id: u8,
    ) {
        self.connected_over(Dialect::Native, conn, side, peer, remote, shared_id);
    }

    /// A handshake of a dialect completes.
    pub fn connected_over(
        &mut self,
        dialect: Dialect,
        conn: ConnectionId,
        side: Side,
        peer: NodeId,
        remote: SocketAddr,
        shared_id: u8,
    ) {
        self.input(Input::Connected(Connected {
            conn,
            side,
            dialect,
            leaf: peer,
            chain: vec![peer],
            matched_id: (side == Side::Dialer).then_some(peer),
            remote,
            local: "192.0.2.1:1314".parse().unwrap(),
            shared_id: Bytes::from(vec![shared_id; 32]),
        }));
    }

    /// A peer has dialed and sent Hello. Returns the connection, and drops the outputs meanwhile.
    pub fn accept(&mut self, peer: NodeId) -> ConnectionId {
        let conn = ConnectionId(self.next_id());
        self.connected(conn, Side::Acceptor, peer, "198.51.100.1:1314".parse().unwrap(), 9);
        let control = self.opened(conn);
        self.feed(control, &hello(), false);
        let opened =
            |output: &Output| matches!(output, Output::Event(Event::ConnectionOpened { .. }));
        assert!(self.take().iter().any(opened));
        conn
    }

    /// A peer of the reference has dialed, without a Hello. Drops the outputs meanwhile.
    pub fn accept_polykey(&mut self, peer: NodeId) -> ConnectionId {
        let (conn, remote) = (ConnectionId(self.next_id()), "198.51.100.1:1314".parse().unwrap());
        self.connected_over(Dialect::Polykey, conn, Side::Acceptor, peer, remote, 9);
        let opened =
            |output: &Output| matches!(output, Output::Event(Event::ConnectionOpened { .. }));
        assert!(self.take().iter().any(opened));
        conn
    }

    /// The peer has opened a stream.
    pub fn opened(&mut self, conn: ConnectionId) -> StreamId {
        let stream = StreamId(self.next_id());
        self.input(Input::StreamOpened { conn, stream });
        stream
    }

    pub fn data(&mut self, stream: StreamId, bytes: &[u8], fin: bool) {
        self.input(Input::StreamData { stream, bytes: Bytes::copy_from_slice(bytes), fin });
    }

    /// Passes bytes of a stream on as its credit allows, as a driver does, with the end after the
    /// last bytes. Returns the unread bytes.
    pub fn feed<'a>(&mut self, stream: StreamId, mut bytes: &'a [u8], fin: bool) -> &'a [u8] {
        loop {
            let credit = self.credit.entry(stream).or_default();
            let length = bytes.len().min(*credit as usize);
            *credit -= length as u64;
            let (now, later) = bytes.split_at(length);
            bytes = later;
            let last = fin && bytes.is_empty();
            if last || length > 0 {
                self.data(stream, now, last);
            }
            if last || length == 0 {
                return bytes;
            }
        }
    }

    /// The result of a request, if it has ended since the last [`take`](Self::take).
    pub fn done(&self, request: RequestId) -> Option<Result<Reply, Failure>> {
        self.outputs.iter().find_map(|output| match output {
            Output::Event(Event::Done { id, result }) if *id == request => Some(result.clone()),
            _ => None,
        })
    }
}

/// The Hello of a node.
pub fn hello() -> Bytes {
    let hello =
        Hello { version_min: 1, version_max: 1, features: Hello::CLAIMS, agent: "test".into() };
    native::encode(&Message::V1(V1::Hello(hello))).unwrap()
}

/// The bytes that the node has sent on a stream, and whether it has ended it.
pub fn sent(outputs: &[Output], of: StreamId) -> (Vec<u8>, bool) {
    let mut sent = (Vec::new(), false);
    for output in outputs {
        if let Output::SendStream { stream, bytes, fin } = output
            && *stream == of
        {
            sent.0.extend_from_slice(bytes);
            sent.1 |= fin;
        }
    }
    sent
}

/// The messages that the node has sent on a stream of `pk/1`.
pub fn messages(outputs: &[Output], stream: StreamId) -> Vec<V1> {
    let mut decoder = FrameDecoder::new();
    decoder.push(sent(outputs, stream).0.into());
    let mut messages = Vec::new();
    while let Some(frame) = decoder.next().unwrap() {
        let Message::V1(message) = native::decode(&frame).unwrap() else { panic!() };
        messages.push(message);
    }
    messages
}

/// The faults of peers that the node has reported.
pub fn faults(outputs: &[Output]) -> Vec<PeerFault> {
    let fault = |output: &Output| match output {
        Output::Event(Event::PeerMisbehaved { fault, .. }) => Some(fault.clone()),
        _ => None,
    };
    outputs.iter().filter_map(fault).collect()
}
