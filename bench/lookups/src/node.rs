//! One real `NodeManager` in a network: this file is its driver, its transport and all of its
//! peers. Answers and questions pass the codec of `pk/1`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    ClosestNodes, Config, Connected, ConnectionId, ContactMode, DialFailure, Dialect,
    DisconnectReason, Event, FindNodeOptions, FindStep, FrameDecoder, Identity, Input, Instant,
    NodeAddress, NodeContact, NodeContactAddressData, NodeId, NodeManager, Output, Reply, Request,
    RequestId, RpcRequest, RpcResponse, Scopes, Side, Snapshot, StreamId, UnixMillis, cert,
};

use crate::net::{Net, Words, bytes, mix, words};

const UNIX: UnixMillis = UnixMillis(1_767_225_600_000);
const DATA: NodeContactAddressData = NodeContactAddressData {
    mode: ContactMode::Direct,
    connected_time: UNIX,
    scopes: Scopes::GLOBAL,
};
const LOCAL: &str = "32.255.0.1:1314";

/// The key of the node with this number.
pub fn key(number: u64) -> SigningKey {
    let mut seed = [0x5a; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

/// The id of that key.
pub fn key_id(number: u64) -> Words {
    words(key(number).verifying_key().as_bytes())
}

fn identity(number: u64) -> Identity {
    let key = key(number);
    let id = NodeId::from_bytes(key.verifying_key().to_bytes());
    let request = cert::CertificateRequest {
        serial: cert::CertId::new(UNIX.0, 0, number),
        subject: id,
        issuer: id,
        not_before: UNIX.as_secs(),
        not_after: UNIX.as_secs() + 31_536_000,
        version: "1.15.1".into(),
        subject_extra: vec![],
        issuer_extra: vec![],
    };
    let sign = |bytes: &[u8]| key.sign(bytes).to_bytes();
    Identity { chain: vec![request.sign(sign, sign).expect("a certificate").into()] }
}

/// One address per node, each in a /24 of its own.
fn address(node: usize) -> NodeAddress {
    let host = std::net::Ipv4Addr::from(0x2000_0000 + node as u32 * 257);
    NodeAddress::from_socket(std::net::SocketAddr::from((host, 4001)))
}

fn hello() -> Bytes {
    let features = Hello::EXCHANGE | Hello::CLAIMS | Hello::PLAIN_SIGNALS;
    let hello = Hello { version_min: 1, version_max: 1, features, agent: "pk/0.1.0".into() };
    native::encode(&Message::V1(V1::Hello(hello))).expect("fits")
}

/// What a new connection costs, in round trips.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Until the handshake is complete.
    pub handshake: u64,
    /// From then until the peer's Hello.
    pub hello: u64,
}

impl Cost {
    /// As the peers are measured.
    pub const FREE: Self = Self { handshake: 0, hello: 0 };
    pub const AS_ON_THE_WIRE: Self = Self { handshake: 1, hello: 1 };
}

/// What is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    Closest,
    Node,
}

/// The end of a search.
pub struct Ended {
    /// The closest nodes, by their index.
    pub closest: Vec<usize>,
    /// Whether the target is connected.
    pub found: bool,
    /// From its start, in microseconds.
    pub took: u64,
    pub trace: Vec<FindStep>,
}

/// A call of the machine, to be repeated in another one.
#[derive(Clone)]
pub enum Call {
    Request(Request),
    Input(Input),
    Timeout,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Coming {
    Connected(ConnectionId, usize),
    Data(StreamId, Vec<u8>, bool),
    Failed(ConnectionId),
}

struct Stream {
    conn: ConnectionId,
    sent: FrameDecoder,
    arrived: Vec<u8>,
    fin: bool,
    credit: usize,
    is_over: bool,
}

/// A machine, and its place in the network.
pub struct Local<'a> {
    net: &'a Net,
    cost: Cost,
    config: Config,
    number: u64,
    node: usize,
    machine: NodeManager,
    now: u64,
    sequence: u64,
    coming: BinaryHeap<Reverse<(u64, u64, Coming)>>,
    inputs: VecDeque<Input>,
    dials: HashMap<ConnectionId, usize>,
    conns: HashMap<ConnectionId, usize>,
    streams: BTreeMap<StreamId, Stream>,
    done: BTreeMap<RequestId, Ended>,
    begun: BTreeMap<RequestId, u64>,
    /// Who was named in answers: how often by honest nodes, and by liars.
    pub named: HashMap<u32, [u32; 2]>,
    /// All calls, if they are recorded.
    pub log: Option<Vec<(u64, Call)>>,
}

/// Returns a configuration in which a node does nothing unless asked.
pub fn quiet() -> Config {
    let mut config = Config::default();
    config.refresh_delay = std::time::Duration::ZERO;
    config.retry_delay = std::time::Duration::ZERO;
    config
}

impl<'a> Local<'a> {
    /// Starts the node with this key, which is `node` in the network, with the table of the
    /// network.
    pub fn new(net: &'a Net, (number, node): (u64, usize), cost: Cost, config: Config) -> Self {
        let machine = start(net, (number, node), &config);
        let mut local = Self {
            net,
            cost,
            config,
            number,
            node,
            machine,
            now: 0,
            sequence: 0,
            coming: BinaryHeap::new(),
            inputs: VecDeque::new(),
            dials: HashMap::new(),
            conns: HashMap::new(),
            streams: BTreeMap::new(),
            done: BTreeMap::new(),
            begun: BTreeMap::new(),
            named: HashMap::new(),
            log: None,
        };
        local.machine.handle_input(listening(), Instant::ORIGIN);
        // A node that starts with a graph searches for itself. That is not measured: its dials
        // fail at once.
        while let Some(output) = local.machine.poll_output() {
            if let Some(input) = refuse(output) {
                local.machine.handle_input(input, Instant::ORIGIN);
            }
        }
        local
    }

    pub fn metrics(&self) -> pk_proto::Metrics {
        self.machine.metrics()
    }

    /// Returns the outcome of a node that a search has not found.
    pub fn fate(&self, node: usize, ended: &Ended) -> String {
        let id = NodeId::from_bytes(bytes(&self.net.ids[node]));
        let named = self.named.get(&(node as u32)).copied().unwrap_or_default();
        let fate = match ended.trace.iter().rev().find(|step| step.node == id) {
            Some(step) => {
                let round_trip = self.round_trip(node) / 1000;
                format!("silent for {:?}, round trip {round_trip} ms", step.took)
            }
            None => format!("not asked, named by {} honest nodes and {} liars", named[0], named[1]),
        };
        let liar = if self.net.liar[node] { "a liar" } else { "honest" };
        format!("{liar}, {fate}; {} contacts in {} ms", ended.trace.len(), ended.took / 1000)
    }

    /// Lets time pass, with everything that is due.
    pub fn pass(&mut self, micros: u64) {
        let until = self.now + micros;
        self.settle();
        while self.step(until) {}
        self.now = until;
    }

    /// Runs a search to its end.
    pub fn search(&mut self, goal: Goal, target: &Words) -> Ended {
        let id = self.begin(goal, target);
        while !self.done.contains_key(&id) {
            assert!(self.step(u64::MAX), "nothing happens, and the search does not end");
        }
        self.done.remove(&id).expect("it has ended")
    }

    fn begin(&mut self, goal: Goal, target: &Words) -> RequestId {
        let (target, find) = (NodeId::from_bytes(bytes(target)), FindNodeOptions::default());
        let request = match goal {
            Goal::Closest => Request::FindClosest { target, count: 20, find },
            Goal::Node => Request::FindNode { target, find },
        };
        self.note(|| Call::Request(request.clone()));
        let id = self.machine.request(request, self.instant()).expect("a valid request");
        self.begun.insert(id, self.now);
        self.settle();
        id
    }

    fn instant(&self) -> Instant {
        Instant::from_micros(self.now)
    }

    fn note(&mut self, call: impl FnOnce() -> Call) {
        if let Some(log) = &mut self.log {
            log.push((self.now, call()));
        }
    }

    fn schedule(&mut self, after: u64, coming: Coming) {
        self.sequence += 1;
        self.coming.push(Reverse((self.now + after, self.sequence, coming)));
    }

    fn round_trip(&self, node: usize) -> u64 {
        self.net.round_trip(self.node, node)
    }

    fn index(&self, id: &NodeId) -> usize {
        self.net.ids.binary_search(&words(id.as_bytes())).expect("a node of the network")
    }

    /// Handles what happens next, if it does until then.
    fn step(&mut self, until: u64) -> bool {
        let timer = self.machine.poll_timeout().map(|at| at.as_micros());
        let next = self.coming.peek().map(|Reverse((at, ..))| *at);
        let Some(at) = next.into_iter().chain(timer).min().filter(|at| *at <= until) else {
            return false;
        };
        self.now = self.now.max(at);
        if next == Some(at) {
            if let Some(Reverse((.., coming))) = self.coming.pop() {
                self.arrive(coming);
            }
        } else {
            self.note(|| Call::Timeout);
            self.machine.handle_timeout(self.instant());
        }
        self.settle();
        true
    }

    fn arrive(&mut self, coming: Coming) {
        match coming {
            Coming::Connected(conn, node) => {
                if self.dials.remove(&conn).is_none() {
                    return;
                }
                self.conns.insert(conn, node);
                let leaf = NodeId::from_bytes(bytes(&self.net.ids[node]));
                let mut shared_id = [0; 32];
                shared_id[..8].copy_from_slice(&mix(conn.0).to_be_bytes());
                self.inputs.push_back(Input::Connected(Connected {
                    conn,
                    side: Side::Dialer,
                    dialect: Dialect::Native,
                    leaf,
                    chain: vec![leaf],
                    matched_id: Some(leaf),
                    remote: address(node).socket().expect("an address"),
                    local: LOCAL.parse().expect("an address"),
                    shared_id: Bytes::copy_from_slice(&shared_id),
                }));
            }
            Coming::Failed(conn) => {
                if self.dials.remove(&conn).is_some() {
                    self.inputs.push_back(Input::DialFailed { conn, why: DialFailure::TimedOut });
                }
            }
            Coming::Data(stream, bytes, fin) => {
                if let Some(open) = self.streams.get_mut(&stream).filter(|open| !open.is_over) {
                    open.arrived.extend(bytes);
                    open.fin |= fin;
                }
            }
        }
    }

    /// Executes outputs and passes inputs on, until there are none.
    fn settle(&mut self) {
        loop {
            while let Some(output) = self.machine.poll_output() {
                self.execute(output);
            }
            if self.inputs.is_empty() {
                self.read();
            }
            let Some(input) = self.inputs.pop_front() else { return };
            self.note(|| Call::Input(input.clone()));
            self.machine.handle_input(input, self.instant());
        }
    }

    /// Passes on what one stream has credit for.
    fn read(&mut self) {
        for (stream, open) in &mut self.streams {
            let len = open.credit.min(open.arrived.len());
            let fin = open.fin && len == open.arrived.len();
            if !open.is_over && (len > 0 || fin) {
                let bytes: Bytes = open.arrived.drain(..len).collect();
                open.credit -= len;
                open.is_over = fin;
                self.inputs.push_back(Input::StreamData { stream: *stream, bytes, fin });
                return;
            }
        }
    }

    fn execute(&mut self, output: Output) {
        match output {
            Output::Dial { conn, expect, deadline, .. } => {
                let node = self.index(expect.first().expect("dials know their node"));
                self.dials.insert(conn, node);
                if self.net.dead[node] {
                    let left = deadline.as_micros().saturating_sub(self.now);
                    self.schedule(left, Coming::Failed(conn));
                } else {
                    let after = self.cost.handshake * self.round_trip(node);
                    self.schedule(after, Coming::Connected(conn, node));
                }
            }
            Output::CancelDial { conn } => {
                if self.dials.remove(&conn).is_some() {
                    self.inputs.push_back(Input::DialFailed { conn, why: DialFailure::Cancelled });
                }
            }
            Output::CloseConnection { conn, .. } => {
                self.conns.remove(&conn);
                self.streams.retain(|_, open| open.conn != conn);
                let why = DisconnectReason::Local;
                self.inputs.push_back(Input::Disconnected { conn, why });
            }
            Output::OpenStream { conn, stream } => {
                let open = Stream {
                    conn,
                    sent: FrameDecoder::new(),
                    arrived: Vec::new(),
                    fin: false,
                    credit: 0,
                    is_over: false,
                };
                self.streams.insert(stream, open);
            }
            Output::SendStream { stream, bytes, .. } => {
                let written = bytes.len() as u64;
                self.inputs.push_back(Input::StreamWritten { stream, bytes: written });
                self.receive(stream, bytes);
            }
            Output::ReadCredit { stream, bytes } => {
                if let Some(open) = self.streams.get_mut(&stream) {
                    open.credit += bytes as usize;
                }
            }
            Output::StopStream { stream, .. } => {
                if let Some(open) = self.streams.get_mut(&stream) {
                    open.is_over = true;
                }
            }
            Output::ResetStream { stream, .. } => drop(self.streams.remove(&stream)),
            Output::Persist { id, .. } => {
                self.inputs.push_back(Input::Persisted { id, result: Ok(()) });
            }
            Output::Event(Event::Done { id, result }) => {
                let took = self.now - self.begun.remove(&id).unwrap_or(self.now);
                let ended = match result {
                    Ok(Reply::FindClosest(outcome)) => Ended {
                        closest: outcome.nodes.iter().map(|(node, _)| self.index(node)).collect(),
                        found: false,
                        took,
                        trace: outcome.trace,
                    },
                    Ok(Reply::FindNode(outcome)) => Ended {
                        closest: Vec::new(),
                        found: outcome.found.is_some(),
                        took,
                        trace: outcome.trace,
                    },
                    other => panic!("{other:?}"),
                };
                self.done.insert(id, ended);
            }
            Output::Event(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// A peer receives bytes, and answers.
    fn receive(&mut self, stream: StreamId, bytes: Bytes) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let Some(&node) = self.conns.get(&open.conn) else { return };
        open.sent.push(bytes);
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = open.sent.next() {
            frames.push(frame);
        }
        for frame in frames {
            match native::decode(&frame) {
                Ok(Message::V1(V1::Hello(_))) => {
                    let after = self.cost.hello * self.round_trip(node);
                    self.schedule(after, Coming::Data(stream, hello().to_vec(), false));
                }
                Ok(Message::V1(V1::Call {
                    request: RpcRequest::Closest { target, query },
                    ..
                })) => {
                    assert!(query.known);
                    let answer = self.net.answer(node, &words(target.as_bytes()));
                    for at in &answer {
                        let named = self.named.entry(*at).or_default();
                        named[usize::from(self.net.liar[node])] += 1;
                    }
                    let known = answer.into_iter().filter(|at| *at as usize != self.node);
                    let known = known.map(|at| contact(self.net, at as usize)).collect();
                    let closest = ClosestNodes { known, connected: Vec::new() };
                    let answer = V1::Answer(RpcResponse::Closest(closest));
                    let answer = native::encode(&Message::V1(answer)).expect("fits").to_vec();
                    self.schedule(self.round_trip(node), Coming::Data(stream, answer, true));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Repeats calls in a new machine of the same node. Returns the machine.
    pub fn repeat(&self, calls: &[(u64, Call)]) -> NodeManager {
        let mut machine = start(self.net, (self.number, self.node), &self.config);
        machine.handle_input(listening(), Instant::ORIGIN);
        while let Some(output) = machine.poll_output() {
            if let Some(input) = refuse(output) {
                machine.handle_input(input, Instant::ORIGIN);
            }
        }
        repeat(&mut machine, calls);
        machine
    }
}

/// Repeats calls.
pub fn repeat(machine: &mut NodeManager, calls: &[(u64, Call)]) {
    for (at, call) in calls {
        let now = Instant::from_micros(*at);
        match call.clone() {
            Call::Request(request) => drop(machine.request(request, now)),
            Call::Input(input) => machine.handle_input(input, now),
            Call::Timeout => machine.handle_timeout(now),
        }
        while machine.poll_output().is_some() {}
        let _ = machine.poll_timeout();
    }
}

fn contact(net: &Net, node: usize) -> (NodeId, NodeContact) {
    (NodeId::from_bytes(bytes(&net.ids[node])), NodeContact::new(address(node), DATA))
}

fn start(net: &Net, (number, node): (u64, usize), config: &Config) -> NodeManager {
    let contacts = net.table(node).into_iter().map(|at| contact(net, at as usize)).collect();
    let snapshot = Snapshot { contacts, ..Snapshot::default() };
    let identity = identity(number);
    let now = Instant::ORIGIN;
    NodeManager::new(config.clone(), &identity, snapshot, [7; 32], now, UNIX).expect("starts")
}

fn listening() -> Input {
    Input::Listening { addrs: vec![LOCAL.parse().expect("an address")] }
}

fn refuse(output: Output) -> Option<Input> {
    match output {
        Output::Dial { conn, .. } => {
            let why = DialFailure::Transport("not now".into());
            Some(Input::DialFailed { conn, why })
        }
        Output::Persist { id, .. } => Some(Input::Persisted { id, result: Ok(()) }),
        _ => None,
    }
}
