//! A library of peers that misbehave: real handshakes and a real Hello, then lies.

mod relays;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::claims::{Claim, ClaimContent, ClaimId, ClaimLinkNode};
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    ClaimsPage, ClosestNodes, ClosestNodesQuery, ConnectionId, FrameDecoder, Input, Instant,
    NodeId, Output, Refusal, RpcRequest, RpcResponse, Side, Signature, StreamId, UnixMillis,
};
use serde::Deserialize;

use crate::machine::Machine;
use crate::machine::directory::{Directory, contact};
use crate::rng_streams::RngStream;

/// Nodes in a response.
const REPORTED: usize = 20;
/// Credit for a stream.
const CREDIT: u64 = 1 << 20;
/// Time of a dial.
const DIAL: Duration = Duration::from_secs(15);
/// Requests that a flooding peer sends on each connection.
const FLOOD: usize = 50;

/// How a peer misbehaves. Scenario files use these names in kebab case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Misbehavior {
    /// Accepts connections and answers nothing.
    Silent,
    /// Answers everything with random bytes.
    Garbage,
    /// Reports only its accomplices.
    Colluding,
    /// Reports nodes that do not exist, close to the target, at addresses where no node is.
    Poisoning,
    /// Reports the true closest nodes, and asks those it dials as much as it can.
    Flooding,
    /// Reports the true closest nodes; serves forged claims, and starts exchanges with forged ones.
    ForgingClaims,
    /// Reports the true closest nodes, four seconds late.
    Slow,
    /// Asks the nodes that it dials one question, and answers truthfully: a stranger.
    Asking,
    /// Asks the nodes that it dials nothing.
    Mute,
    /// Reports the true closest nodes and that it is connected with the target. Accepts circuits,
    /// and forwards nothing. (A relay that changes datagrams is the same for QUIC.)
    DroppingRelay,
    /// The same, but answers no request to signal or to relay.
    StallingRelay,
    /// The same, but signals and forwards; it says of both ends that they are in one network, at
    /// addresses where no node is.
    MisnamingRelay,
    /// Requests circuits from the nodes that it dials, and offers them circuits of nodes that do
    /// not exist, as many as it can. Accepts no circuit.
    FloodingRelay,
}

impl Misbehavior {
    /// Returns whether it says that it relays.
    pub(super) fn is_relay(self) -> bool {
        use Misbehavior::{DroppingRelay, FloodingRelay, MisnamingRelay, StallingRelay};
        matches!(self, DroppingRelay | StallingRelay | MisnamingRelay | FloodingRelay)
    }
}

/// What peers that misbehave know, all together.
#[derive(Debug, Clone, Default)]
pub struct Conspiracy {
    /// All nodes, honest or not.
    pub all: Directory,
    /// The accomplices.
    pub accomplices: Directory,
}

/// What a peer that misbehaves has done, which shows that it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MisbehaviorCounters {
    /// Requests that it received.
    pub asked: u64,
    /// Requests that it left unanswered.
    pub ignored: u64,
    /// Responses that are lies, or no responses.
    pub lies: u64,
    /// Truthful responses.
    pub truths: u64,
    /// Dials.
    pub dials: u64,
    /// Requests and exchanges that it sent.
    pub requests: u64,
}

/// A peer that misbehaves.
#[derive(Debug)]
pub struct MisbehavingPeer {
    own: NodeId,
    behavior: Misbehavior,
    conspiracy: Arc<Conspiracy>,
    victims: Vec<(NodeId, SocketAddr)>,
    interval: Duration,
    next_victim: usize,
    next_dial: Option<Instant>,
    late: BTreeMap<(Instant, u64), (ConnectionId, StreamId, Bytes)>,
    reading: BTreeMap<StreamId, (ConnectionId, FrameDecoder)>,
    /// Control streams of own connections, whose Hello is waited for before many requests.
    floods: BTreeSet<StreamId>,
    dialed: BTreeMap<ConnectionId, NodeId>,
    /// Nodes that it is connected with.
    peers: BTreeMap<ConnectionId, NodeId>,
    /// Circuits that it has offered, with the streams of the nodes that have requested them.
    offers: BTreeMap<StreamId, StreamId>,
    counters: MisbehaviorCounters,
    outputs: VecDeque<Output>,
    die: RngStream,
    ids: u64,
}

impl MisbehavingPeer {
    /// Creates a peer with this id and behavior. All random numbers come from `seed`.
    pub fn new(own: NodeId, behavior: Misbehavior, conspiracy: Arc<Conspiracy>, seed: u64) -> Self {
        Self {
            own,
            behavior,
            conspiracy,
            victims: Vec::new(),
            interval: Duration::ZERO,
            next_victim: 0,
            next_dial: None,
            late: BTreeMap::new(),
            reading: BTreeMap::new(),
            floods: BTreeSet::new(),
            dialed: BTreeMap::new(),
            peers: BTreeMap::new(),
            offers: BTreeMap::new(),
            counters: MisbehaviorCounters::default(),
            outputs: VecDeque::new(),
            die: RngStream::new(seed, 9),
            ids: 0,
        }
    }

    /// Dials these nodes in turn, the first one at `first` and then one in each `interval`; 0 dials
    /// only the first one.
    pub fn dial_in_turn(
        &mut self,
        victims: Vec<(NodeId, SocketAddr)>,
        first: Instant,
        interval: Duration,
    ) {
        self.next_dial = (!victims.is_empty()).then_some(first);
        (self.victims, self.interval, self.next_victim) = (victims, interval, 0);
    }

    /// Replaces what it knows.
    pub fn inform(&mut self, conspiracy: Arc<Conspiracy>) {
        self.conspiracy = conspiracy;
    }

    /// Returns what it has done.
    pub fn counters(&self) -> MisbehaviorCounters {
        self.counters
    }

    fn hello(&self) -> Bytes {
        let relays = if self.behavior.is_relay() { Hello::RELAY } else { 0 };
        let features = Hello::EXCHANGE | Hello::CLAIMS | relays;
        let hello = Hello { version_min: 1, version_max: 1, features, agent: "pk".into() };
        frame(V1::Hello(hello))
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 2;
        self.ids - 2
    }

    fn dial(&mut self, now: Instant) {
        let Some((node, addr)) = self.victims.get(self.next_victim).copied() else { return };
        self.next_victim = (self.next_victim + 1) % self.victims.len();
        let conn = ConnectionId(self.next_id());
        self.dialed.insert(conn, node);
        self.counters.dials += 1;
        let deadline = now + DIAL;
        self.outputs.push_back(Output::Dial {
            conn,
            addr,
            expect: BTreeSet::from([node]),
            deadline,
        });
    }

    fn open(&mut self, conn: ConnectionId, bytes: Bytes, fin: bool) -> StreamId {
        let stream = StreamId(self.next_id());
        self.outputs.extend([
            Output::OpenStream { conn, stream },
            Output::SendStream { stream, bytes, fin },
            Output::ReadCredit { stream, bytes: CREDIT },
        ]);
        stream
    }

    /// Its dial succeeded.
    fn connected(&mut self, conn: ConnectionId, peer: NodeId, now: Instant) {
        let control = self.open(conn, self.hello(), false);
        match self.behavior {
            Misbehavior::Mute | Misbehavior::Silent => {}
            // More than a node accepts before its Hello.
            Misbehavior::Flooding | Misbehavior::FloodingRelay => {
                self.reading.insert(control, (conn, FrameDecoder::new()));
                self.floods.insert(control);
            }
            _ => self.ask(conn, 1),
        }
        if self.behavior == Misbehavior::ForgingClaims {
            self.counters.requests += 1;
            let token = self.forged((self.own, peer), now);
            self.open(conn, frame(V1::Exchange { deadline_ms: 10_000, token }), false);
        }
    }

    fn ask(&mut self, conn: ConnectionId, questions: usize) {
        let target = self.own;
        let query = ClosestNodesQuery { known: true, connected: false };
        for _ in 0..questions {
            self.counters.requests += 1;
            self.open(conn, call(RpcRequest::Closest { target, query }), true);
        }
    }

    fn read(&mut self, stream: StreamId, bytes: Bytes, now: Instant) {
        let Some((conn, decoder)) = self.reading.get_mut(&stream) else { return };
        let conn = *conn;
        decoder.push(bytes);
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = decoder.next() {
            frames.push(frame);
        }
        for frame in frames {
            match native::decode(&frame) {
                Ok(Message::V1(V1::Hello(_))) if self.floods.remove(&stream) => {
                    match self.behavior {
                        Misbehavior::FloodingRelay => self.flood_with_circuits(conn),
                        _ => self.ask(conn, FLOOD),
                    }
                }
                Ok(Message::V1(V1::Hello(_))) => {
                    self.outputs.push_back(Output::SendStream {
                        stream,
                        bytes: self.hello(),
                        fin: false,
                    });
                }
                Ok(Message::V1(V1::Call { request, .. })) => self.asked(stream, &request, now),
                Ok(Message::V1(V1::Answer(answer))) => self.offer_answered(stream, answer),
                Ok(Message::V1(V1::Exchange { .. })) => {
                    self.counters.asked += 1;
                    self.counters.lies += 1;
                    let bytes = self.garbage();
                    self.outputs.push_back(Output::SendStream { stream, bytes, fin: true });
                }
                _ => {}
            }
        }
    }

    fn asked(&mut self, stream: StreamId, request: &RpcRequest, now: Instant) {
        self.counters.asked += 1;
        if self.behavior.is_relay() && self.relay_asked(stream, request) {
            return;
        }
        let (bytes, delay) = match self.behavior {
            Misbehavior::Silent => {
                self.counters.ignored += 1;
                return;
            }
            Misbehavior::Garbage => (self.garbage(), Duration::ZERO),
            Misbehavior::Slow => (self.answer(request, now), Duration::from_secs(4)),
            _ => (self.answer(request, now), Duration::ZERO),
        };
        let lies = matches!(
            (self.behavior, request),
            (Misbehavior::Garbage, _)
                | (Misbehavior::Colluding | Misbehavior::Poisoning, RpcRequest::Closest { .. })
                | (Misbehavior::ForgingClaims, RpcRequest::Claims { .. })
        );
        self.counters.lies += u64::from(lies);
        self.counters.truths += u64::from(!lies);
        if delay.is_zero() {
            self.outputs.push_back(Output::SendStream { stream, bytes, fin: true });
        } else {
            let Some((conn, _)) = self.reading.get(&stream) else { return };
            let (conn, order) = (*conn, self.next_id());
            self.late.insert((now + delay, order), (conn, stream, bytes));
        }
    }

    fn answer(&mut self, request: &RpcRequest, now: Instant) -> Bytes {
        let unix = unix(now);
        let response = match request {
            RpcRequest::Ping { nonce } => RpcResponse::Pong { nonce: *nonce },
            RpcRequest::Closest { target, .. } => {
                let nodes = match self.behavior {
                    Misbehavior::Colluding => self.conspiracy.accomplices.closest(target, REPORTED),
                    Misbehavior::Poisoning => {
                        (0..REPORTED).map(|_| self.invented(target)).collect()
                    }
                    _ => self.conspiracy.all.closest(target, REPORTED),
                };
                let known =
                    nodes.into_iter().map(|(node, addr)| (node, contact(addr, unix))).collect();
                let connected = match self.behavior.is_relay() {
                    true => vec![self.connected_with(target)],
                    false => Vec::new(),
                };
                RpcResponse::Closest(native::fit(ClosestNodes { known, connected }))
            }
            RpcRequest::Claims { .. } if self.behavior == Misbehavior::ForgingClaims => {
                let id =
                    ClaimId::next(&self.own, unix, None).unwrap_or(ClaimId::from_bytes([0xff; 16]));
                let token = self.forged((self.own, self.own), now);
                RpcResponse::Claims(ClaimsPage { claims: vec![(id, token)], more: false })
            }
            RpcRequest::Claims { .. } => RpcResponse::Claims(ClaimsPage::default()),
            _ => RpcResponse::Refused(Refusal::Busy),
        };
        frame(V1::Answer(response))
    }

    /// Returns a node that does not exist, closer to the target than any other.
    fn invented(&mut self, target: &NodeId) -> (NodeId, SocketAddr) {
        let mut id = *target.as_bytes();
        let [a, b, c, d, e, f] = self.die.bytes::<6>();
        // It agrees with the target in 24 bits, and is the public key of no node.
        id[3..9].copy_from_slice(&[a, b, c, d, e, f]);
        let ip = Ipv4Addr::new(45, a, b, c.max(1));
        (NodeId::from_bytes(id), SocketAddr::new(IpAddr::V4(ip), 1314))
    }

    /// Returns a link of two nodes whose signature is random.
    fn forged(&mut self, (issuer, subject): (NodeId, NodeId), now: Instant) -> Bytes {
        let unix = unix(now);
        let id = ClaimId::next(&self.own, unix, None).unwrap_or(ClaimId::from_bytes([0xff; 16]));
        let content = ClaimContent::link(&ClaimLinkNode { issuer, subject });
        let Ok(draft) = Claim::draft(&content, id, unix, None) else { return self.garbage() };
        let signature = Signature(self.die.bytes());
        let mut token = draft.claim().token().clone();
        match token.add_signature(self.own, signature) {
            Ok(()) => token.to_json().into(),
            Err(_) => self.garbage(),
        }
    }

    fn garbage(&mut self) -> Bytes {
        self.die.bytes::<64>().to_vec().into()
    }
}

impl Machine for MisbehavingPeer {
    fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Connected(connected) => {
                self.peers.insert(connected.conn, connected.leaf);
                if connected.side == Side::Dialer {
                    self.connected(connected.conn, connected.leaf, now);
                }
            }
            Input::StreamOpened { conn, stream } => {
                self.reading.insert(stream, (conn, FrameDecoder::new()));
                self.outputs.push_back(Output::ReadCredit { stream, bytes: CREDIT });
            }
            Input::StreamData { stream, bytes, fin } => {
                self.read(stream, bytes, now);
                if fin {
                    self.reading.remove(&stream);
                }
            }
            Input::StreamReset { stream, .. } | Input::StreamStopped { stream, .. } => {
                self.reading.remove(&stream);
                self.late.retain(|_, (_, of, _)| *of != stream);
            }
            Input::Disconnected { conn, .. } => {
                self.dialed.remove(&conn);
                self.peers.remove(&conn);
                self.reading.retain(|_, (of, _)| *of != conn);
                self.floods.retain(|stream| self.reading.contains_key(stream));
                self.late.retain(|_, (of, ..)| *of != conn);
            }
            Input::DialFailed { conn, .. } => drop(self.dialed.remove(&conn)),
            _ => {}
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some(due) = self.next_dial.filter(|due| *due <= now) {
            self.dial(now);
            self.next_dial = (!self.interval.is_zero()).then(|| due + self.interval);
        }
        while let Some(((at, _), _)) = self.late.first_key_value()
            && *at <= now
        {
            let Some((_, (_, stream, bytes))) = self.late.pop_first() else { return };
            self.outputs.push_back(Output::SendStream { stream, bytes, fin: true });
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let late = self.late.first_key_value().map(|((at, _), _)| *at);
        [late, self.next_dial].into_iter().flatten().min()
    }
}

/// Returns the wall clock of a host without skew.
fn unix(now: Instant) -> UnixMillis {
    UnixMillis(crate::host::EPOCH + now.as_micros() / 1000)
}

fn call(request: RpcRequest) -> Bytes {
    frame(V1::Call { deadline_ms: 15_000, request })
}

fn frame(message: V1) -> Bytes {
    native::encode(&Message::V1(message)).unwrap_or_default()
}
