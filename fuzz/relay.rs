//! Body of the fuzz target `relay`: a relay, a node that is connected to it, and a peer that a
//! script controls. The peer requests circuits, accepts and refuses those that are offered to it,
//! sends frames, other bytes and whole datagrams of QUIC on them, and ends them. Included by the
//! target and by `pk-quic/tests/fuzz.rs`, which replays the corpus.
//!
//! After every call a node must become quiet, its next timeout must lie ahead, and the relay stays
//! within its limits. At the end both nodes stop.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken invariant is a panic")]
#![allow(clippy::indexing_slicing, reason = "indices are below the length")]

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use pk_host::{HostState, KeyPair, MemoryStore, TransportSecret, create_identity};
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    ConnectionId, FrameDecoder, Identity, Input, Instant, NodeId, Output, Refusal, RelayPolicy,
    Request, RequestOptions, RpcRequest, RpcResponse, Snapshot, StreamId, UnixMillis,
};
use pk_quic::{
    Datagram, Effect, Node, NodeSetup, Poll, Transport, TransportEvent, TransportSettings,
    TransportSetup,
};

use crate::ending::{self, MOST};

const UNIX: UnixMillis = UnixMillis::from_secs(1_800_000_000);

/// Circuits of the relay.
const CIRCUITS: usize = 8;
/// Steps of a script.
const STEPS: usize = 128;
/// Dials of the peer in a script, and requests of the node. A handshake takes as long as a hundred
/// other steps; what a few do, many do as well.
const DIALS: usize = 6;
const REQUESTS: usize = 12;

const RELAY: usize = 0;
const NODE: usize = 1;
const PEER: usize = 2;

/// One step of a script: an operation and its two arguments.
type Step = [u8; 3];

struct World {
    now: Instant,
    nodes: [(Node, MemoryStore); 2],
    peer: Peer,
    /// Datagrams on their way: source, destination, bytes.
    wire: VecDeque<(usize, usize, Vec<u8>)>,
    work: usize,
    /// Dials and requests that the script has left.
    dials: usize,
    requests: usize,
}

/// The peer: a transport, and what it has open.
struct Peer {
    transport: Transport,
    conn: Option<ConnectionId>,
    streams: Vec<StreamId>,
    /// Offers of circuits that it has not answered.
    offered: BTreeSet<StreamId>,
    /// Bytes that it has received last.
    heard: Bytes,
    next: u64,
    accepts: bool,
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([20, 0, n as u8, 1], 1314))
}

fn identity(n: usize) -> (KeyPair, Identity) {
    static IDENTITIES: OnceLock<[(KeyPair, Identity); 3]> = OnceLock::new();
    let create = |seed| {
        let key = KeyPair::from_seed(&[seed; 32]);
        let identity = create_identity(&key, UNIX).unwrap();
        (key, identity)
    };
    IDENTITIES.get_or_init(|| [1, 2, 3].map(create))[n].clone()
}

fn id(n: usize) -> NodeId {
    identity(n).0.node_id()
}

fn node(n: usize) -> (Node, MemoryStore) {
    let (key, identity) = identity(n);
    let secret = TransportSecret::of_key(&key);
    let host = HostState { key, identity, secret, snapshot: Snapshot::default(), seed: [7; 32] };
    let (origin, now) = (std::time::Instant::now(), Instant::ORIGIN);
    let mut setup = NodeSetup::new(host, address(n), origin, now, UNIX);
    let relay = &mut setup.config.relay;
    relay.policy = RelayPolicy::All;
    relay.circuits = CIRCUITS;
    relay.circuits_per_node = 3;
    relay.rate_per_node = 64 * 1024;
    relay.volume_per_node = 2 * 1024 * 1024;
    relay.idle_timeout = Duration::from_secs(5);
    (Node::new(setup).unwrap(), MemoryStore::new())
}

/// Takes one of those that are left. Returns whether there was one.
fn take(left: &mut usize) -> bool {
    let taken = *left > 0;
    *left -= usize::from(taken);
    taken
}

fn frame(message: V1) -> Bytes {
    native::encode(&Message::V1(message)).unwrap()
}

impl Peer {
    fn new() -> Self {
        let (key, identity) = identity(PEER);
        let secret = TransportSecret::of_key(&key);
        let setup = TransportSetup {
            settings: TransportSettings::default(),
            identity: &identity,
            key: &key,
            secret: &secret,
            seed: [9; 32],
            bound: address(PEER),
            origin: std::time::Instant::now(),
            now: Instant::ORIGIN,
            unix: UNIX,
        };
        Self {
            transport: Transport::new(setup).unwrap(),
            conn: None,
            streams: Vec::new(),
            offered: BTreeSet::new(),
            heard: Bytes::new(),
            next: 0,
            accepts: true,
        }
    }

    fn even(&mut self) -> u64 {
        self.next += 2;
        self.next
    }

    fn dial(&mut self, now: Instant) {
        let conn = ConnectionId(self.even());
        let deadline = now + Duration::from_secs(10);
        let (addr, expect) = (address(RELAY), [id(RELAY)].into());
        self.transport.execute(now, Output::Dial { conn, addr, expect, deadline });
    }

    fn open(&mut self, now: Instant, bytes: Bytes, fin: bool) {
        let Some(conn) = self.conn else { return };
        let stream = StreamId(self.even());
        self.transport.execute(now, Output::OpenStream { conn, stream });
        self.transport.execute(now, Output::SendStream { stream, bytes, fin });
        self.transport.execute(now, Output::ReadCredit { stream, bytes: 1 << 30 });
        self.streams.push(stream);
    }

    fn send(&mut self, now: Instant, at: usize, bytes: Bytes) {
        if let Some(stream) = self.streams.get(at % self.streams.len().max(1)).copied() {
            self.transport.execute(now, Output::SendStream { stream, bytes, fin: false });
        }
    }

    fn event(&mut self, now: Instant, event: TransportEvent) {
        let TransportEvent::Input(input) = event else { return };
        match input {
            Input::Connected(connected) => {
                self.conn = Some(connected.conn);
                let features = Hello::RELAY;
                let agent = "fuzz".into();
                let hello = Hello { version_min: 1, version_max: 1, features, agent };
                self.open(now, frame(V1::Hello(hello)), false);
            }
            Input::Disconnected { conn, .. } if self.conn == Some(conn) => {
                self.conn = None;
                self.streams.clear();
                self.offered.clear();
            }
            Input::StreamOpened { stream, .. } => {
                self.transport.execute(now, Output::ReadCredit { stream, bytes: 1 << 30 });
                self.streams.push(stream);
            }
            Input::StreamData { stream, bytes, .. } => {
                let mut decoder = FrameDecoder::new();
                decoder.push(bytes.clone());
                if let Ok(Some(payload)) = decoder.next()
                    && let Ok(Message::V1(V1::Call { request, .. })) = native::decode(&payload)
                    && matches!(request, RpcRequest::Circuit { .. })
                {
                    self.offered.insert(stream);
                }
                self.heard = bytes;
            }
            _ => {}
        }
    }

    /// Answers the offers.
    fn answer(&mut self, now: Instant) {
        for stream in std::mem::take(&mut self.offered) {
            let answer = match self.accepts {
                true => RpcResponse::Circuit { address: None, same_network: true },
                false => RpcResponse::Refused(Refusal::Busy),
            };
            let bytes = frame(V1::Answer(answer));
            self.transport.execute(now, Output::SendStream { stream, bytes, fin: !self.accepts });
        }
    }
}

impl World {
    fn new() -> Self {
        let nodes = [RELAY, NODE].map(node);
        let (wire, peer) = (VecDeque::new(), Peer::new());
        let now = Instant::ORIGIN;
        let (dials, requests) = (DIALS, REQUESTS);
        let mut world = Self { now, nodes, peer, wire, work: 0, dials, requests };
        let (target, options) = (id(RELAY), RequestOptions::default());
        let connect = Request::Connect { target, address: address(RELAY).into(), options };
        [RELAY, NODE].into_iter().for_each(|n| world.drain(n));
        let _ = world.nodes[NODE].0.request(world.now, connect);
        world.drain(NODE);
        world.peer.dial(world.now);
        world.drain(PEER);
        world.deliver_all(200);
        world
    }

    fn deliver_all(&mut self, most: usize) {
        for _ in 0..most {
            let Some((from, to, bytes)) = self.wire.pop_front() else { return };
            self.deliver(from, to, &bytes);
        }
    }

    /// Does everything that a host can do now.
    fn drain(&mut self, n: usize) {
        let (now, mut buf) = (self.now, Vec::new());
        loop {
            self.work += 1;
            assert!(self.work < MOST, "a node does not become quiet");
            let transmit = if n == PEER {
                if let Some(event) = self.peer.transport.poll_event() {
                    self.peer.event(now, event);
                    self.peer.answer(now);
                    continue;
                }
                self.peer.transport.poll_transmit(now, 4, &mut buf)
            } else {
                let (node, store) = &mut self.nodes[n];
                if let Some(poll) = node.poll() {
                    if let Poll::Effect(effect) = poll {
                        let answer = effect.run(store).map_or_else(Effect::refuse, Some);
                        answer.into_iter().for_each(|answer| node.answer(now, answer));
                    }
                    continue;
                }
                node.poll_transmit(now, 4, &mut buf)
            };
            let Some(transmit) = transmit else { break };
            assert!(!pk_proto::is_relayed_address(&transmit.to), "sent to a relayed path");
            let Some(to) = (0..3).find(|to| address(*to) == transmit.to) else { continue };
            // The node and the peer reach each other by relay only.
            if n != RELAY && to != RELAY {
                continue;
            }
            let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
            self.wire.extend(buf.chunks(size).map(|datagram| (n, to, datagram.to_vec())));
        }
        let census = self.nodes[RELAY].0.manager().census();
        assert!(census.circuits <= CIRCUITS, "{} circuits", census.circuits);
    }

    fn deliver(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let datagram = Datagram { from: address(from), to: None, ecn: 0, bytes };
        match to {
            PEER => self.peer.transport.handle_datagram(self.now, datagram),
            to => self.nodes[to].0.handle_datagram(self.now, datagram),
        }
        self.drain(to);
    }

    /// Advances to the next timeout, but at most this far.
    fn pass(&mut self, most: Duration) {
        let next = self.nodes.iter().filter_map(|(node, _)| node.poll_timeout());
        let next = next.chain(self.peer.transport.poll_timeout()).min();
        let end = self.now + most;
        self.now = next.map_or(end, |next| next.min(end)).max(self.now);
        for n in [RELAY, NODE] {
            self.nodes[n].0.handle_timeout(self.now);
            self.drain(n);
        }
        self.peer.transport.handle_timeout(self.now);
        self.drain(PEER);
    }

    fn step(&mut self, [operation, a, b]: Step) {
        let (now, first, a, b) = (self.now, a, usize::from(a), usize::from(b));
        let at = a % self.wire.len().max(1);
        self.work = 0;
        match operation % 16 {
            0..=2 => self.deliver_all(1 + b % 32),
            3 => drop(self.wire.remove(at)),
            4 => {
                let target = [id(NODE), id(RELAY), id(PEER), NodeId::from_bytes([9; 32])][a % 4];
                let request = RpcRequest::Relay { target };
                let call = frame(V1::Call { deadline_ms: 5000, request });
                self.peer.open(now, call, b % 4 == 3);
            }
            5 => {
                let bytes: Vec<u8> = (0..b * 6).map(|i| (i * a) as u8 ^ operation).collect();
                self.peer.send(now, a, bytes.into());
            }
            // A frame with a datagram that begins like one of QUIC.
            6 => {
                let mut datagram = vec![0xc0 | first & 0x3f, 0, 0, 0, 1];
                datagram.resize(5 + b * 6, first);
                let len = (datagram.len() as u16).to_be_bytes();
                self.peer.send(now, b, [&len[..], &datagram].concat().into());
            }
            7 => {
                let heard = self.peer.heard.clone();
                self.peer.send(now, a, heard);
            }
            8 => {
                let stream = self.peer.streams.get(a % self.peer.streams.len().max(1)).copied();
                let output = stream.map(|stream| match b % 3 {
                    0 => Output::ResetStream { stream, code: 1 },
                    1 => Output::StopStream { stream, code: 1 },
                    _ => Output::SendStream { stream, bytes: Bytes::new(), fin: true },
                });
                output.map(|output| self.peer.transport.execute(now, output));
            }
            9 => self.pass(Duration::from_millis(1 << (b % 16))),
            10 if take(&mut self.requests) => {
                let (target, relay, options) = (id(PEER), id(RELAY), RequestOptions::default());
                let request = Request::ConnectThrough { target, relay, options };
                let _ = self.nodes[NODE].0.request(now, request);
                self.drain(NODE);
            }
            11 => self.peer.accepts = !self.peer.accepts,
            12 if take(&mut self.dials) => self.peer.dial(now),
            13 => {
                if let Some(conn) = self.peer.conn {
                    let (code, reason) = (0, String::new());
                    let close = Output::CloseConnection { conn, code, reason };
                    self.peer.transport.execute(now, close);
                }
            }
            14 => {
                let address = pk_proto::NodeAddress::from(address(a));
                let request = RpcRequest::Candidates(vec![address; b % 9]);
                let call = V1::Call { deadline_ms: 5000, request };
                if let Ok(call) = native::encode(&Message::V1(call)) {
                    self.peer.open(now, call, true);
                }
            }
            // The peer uses a circuit as a path: it dials the node.
            15 if take(&mut self.dials) => {
                let number = u16::try_from(b).unwrap_or_default();
                let ip = std::net::Ipv6Addr::new(0xfd70, 0x6b, 1, 0, 0, 0, 0, number);
                let addr = SocketAddr::from((ip, 1));
                if let Some(stream) = self.peer.streams.get(a % self.peer.streams.len().max(1)) {
                    let attach = Output::AttachCircuit { stream: *stream, addr };
                    self.peer.transport.execute(now, attach);
                    let conn = ConnectionId(self.peer.even());
                    let deadline = now + Duration::from_secs(10);
                    let dial = Output::Dial { conn, addr, expect: [id(NODE)].into(), deadline };
                    self.peer.transport.execute(now, dial);
                }
            }
            _ => {}
        }
        self.drain(PEER);
        assert!(self.wire.len() < 10_000);
    }
}

impl ending::World for World {
    fn stop(&mut self, n: usize) {
        self.work = 0;
        self.nodes[n].0.stop(self.now);
        self.drain(n);
    }

    fn deliver_first(&mut self) -> bool {
        self.work = 0;
        let Some((from, to, bytes)) = self.wire.pop_front() else { return false };
        self.deliver(from, to, &bytes);
        true
    }

    fn is_over(&self) -> bool {
        self.nodes.iter().all(|(node, _)| node.is_over())
    }

    fn pass(&mut self, most: Duration) {
        World::pass(self, most);
    }
}

/// Runs a script. Returns whether the relay has opened a circuit.
pub(crate) fn relay(data: &[u8]) -> bool {
    let mut world = World::new();
    let (steps, _) = data.as_chunks::<3>();
    steps.iter().take(STEPS).for_each(|step| world.step(*step));
    let opened = world.nodes[RELAY].0.manager().metrics().circuits_opened > 0;
    ending::end(world);
    opened
}
