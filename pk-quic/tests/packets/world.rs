//! Hosts with a node each, on a network of virtual datagrams in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pk_host::{KeyPair, MemoryStore, Store, TransportSecret, create_identity};
use pk_proto::{
    ClosestNodesQuery, Config, Event, Failure, Instant, NodeId, Opener, Reply, Request, RequestId,
    RequestOptions, Snapshot, StreamId, UnixMillis,
};
use pk_quic::{Datagram, Effect, Node, NodeSetup, Opened, Poll, Read, Response, TransportSettings};

/// Wall time at the start.
const UNIX: UnixMillis = UnixMillis::from_secs(1_800_000_000);

/// Application protocol of the tests.
pub const PROTOCOL: &str = "test/1";

pub const MS: Duration = Duration::from_millis(1);

/// What a host does with application streams of its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Nothing is read.
    Paused,
    /// Everything is read.
    Eager,
}

/// One host.
pub struct Host {
    pub node: Node,
    pub key: KeyPair,
    store: MemoryStore,
    /// Public address: that of its NAT, or its own.
    pub addr: SocketAddr,
    pub up: bool,
    pub reader: Reader,
    pub events: Vec<(Instant, Event)>,
    pub opened: Vec<Opened>,
    pub received: BTreeMap<StreamId, usize>,
    /// Bytes that the host still writes to its streams.
    pub writes: BTreeMap<StreamId, usize>,
    /// Streams that ended with an error.
    pub failed: BTreeSet<StreamId>,
    /// Bytes sent to and received from each address.
    pub sent_to: BTreeMap<SocketAddr, u64>,
    pub heard_from: BTreeMap<SocketAddr, u64>,
}

type Packet = (SocketAddr, SocketAddr, u8, Vec<u8>);

/// The network and its hosts.
pub struct World {
    origin: std::time::Instant,
    pub now: Instant,
    pub hosts: Vec<Host>,
    queue: BinaryHeap<Reverse<(Instant, u64, Packet)>>,
    sequence: u64,
    random: u64,
    /// One way.
    pub delay: Duration,
    /// Additional delay at random, which reorders.
    pub jitter: Duration,
    /// In thousandths.
    pub loss: u64,
    pub duplication: u64,
    pub mtu: usize,
    pub datagrams: u64,
    /// Steps at the present time.
    still: u32,
    /// What an observer of the network has seen: the last datagrams to each host.
    pub observed: Option<Vec<Packet>>,
}

pub fn options(deadline: Duration) -> RequestOptions {
    RequestOptions { deadline: Some(deadline), ..RequestOptions::default() }
}

pub fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, n as u8, 1], 1314))
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            origin: std::time::Instant::now(),
            now: Instant::ORIGIN,
            hosts: Vec::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            delay: 50 * MS,
            jitter: Duration::ZERO,
            loss: 0,
            duplication: 0,
            mtu: 1472,
            datagrams: 0,
            still: 0,
            observed: None,
        }
    }

    /// A world with this many hosts that know no other.
    pub fn with_hosts(seed: u64, hosts: usize) -> Self {
        let mut world = Self::new(seed);
        for _ in 0..hosts {
            world.add(TransportSettings::default());
        }
        world
    }

    pub fn unix(&self) -> UnixMillis {
        UnixMillis(UNIX.0 + self.now.as_micros() / 1000)
    }

    fn start(&self, n: usize, addr: SocketAddr, seed: u8, transport: TransportSettings) -> Node {
        let key = KeyPair::from_seed(&[n as u8 + 1; 32]);
        let mut config = Config::default();
        config.refresh_delay = Duration::ZERO;
        config.retry_delay = Duration::ZERO;
        let unix = self.unix();
        let mut node = Node::new(NodeSetup {
            config,
            transport,
            identity: create_identity(&key, unix).unwrap(),
            secret: TransportSecret::of_key(&key),
            key,
            snapshot: Snapshot::default(),
            seed: [seed; 32],
            bound: addr,
            origin: self.origin,
            now: self.now,
            unix,
        })
        .unwrap();
        node.update(self.now, |node, now| node.accept_protocol(PROTOCOL.into(), now).unwrap());
        node
    }

    pub fn add(&mut self, transport: TransportSettings) -> usize {
        let n = self.hosts.len();
        let addr = address(n);
        let node = self.start(n, addr, n as u8 + 1, transport);
        self.hosts.push(Host {
            node,
            key: KeyPair::from_seed(&[n as u8 + 1; 32]),
            store: MemoryStore::new(),
            addr,
            up: true,
            reader: Reader::Eager,
            events: Vec::new(),
            opened: Vec::new(),
            received: BTreeMap::new(),
            writes: BTreeMap::new(),
            failed: BTreeSet::new(),
            sent_to: BTreeMap::new(),
            heard_from: BTreeMap::new(),
        });
        self.flush(n);
        n
    }

    /// Replaces a node without a farewell by one with an empty store at the same address.
    pub fn restart(&mut self, n: usize) {
        let addr = self.hosts[n].addr;
        self.hosts[n].node = self.start(n, addr, 100 + n as u8, TransportSettings::default());
        self.hosts[n].store = MemoryStore::new();
        self.flush(n);
    }

    pub fn id(&self, n: usize) -> NodeId {
        self.hosts[n].key.node_id()
    }

    fn dice(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % below.max(1)
    }

    // -- one host

    /// Does everything that a host can do now.
    pub fn flush(&mut self, n: usize) {
        let (now, mut buf, mut out) = (self.now, Vec::new(), Vec::new());
        let host = &mut self.hosts[n];
        loop {
            let mut moved = false;
            while let Some(poll) = host.node.poll() {
                moved = true;
                host.handle(now, poll);
            }
            while let Some(transmit) = host.node.poll_transmit(now, 10, &mut buf) {
                moved = true;
                let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
                for datagram in buf[..transmit.size].chunks(size) {
                    out.push((transmit.to, transmit.ecn, datagram.to_vec()));
                }
            }
            if !moved {
                break;
            }
        }
        let from = self.hosts[n].addr;
        for (to, ecn, bytes) in out {
            *self.hosts[n].sent_to.entry(to).or_default() += bytes.len() as u64;
            self.send(from, to, ecn, &bytes);
        }
    }

    /// Puts a datagram on the network.
    pub fn send(&mut self, from: SocketAddr, to: SocketAddr, ecn: u8, bytes: &[u8]) {
        self.datagrams += 1;
        if let Some(observed) = &mut self.observed {
            observed.push((from, to, ecn, bytes.to_vec()));
        }
        if bytes.len() > self.mtu || self.dice(1000) < self.loss {
            return;
        }
        let copies = 1 + u64::from(self.dice(1000) < self.duplication);
        for _ in 0..copies {
            let jitter = self.dice(self.jitter.as_micros() as u64 + 1);
            let at = self.now + self.delay + Duration::from_micros(jitter);
            self.sequence += 1;
            self.queue.push(Reverse((at, self.sequence, (from, to, ecn, bytes.to_vec()))));
        }
    }

    // -- time

    fn next(&self) -> Option<Instant> {
        let packet = self.queue.peek().map(|Reverse((at, ..))| *at);
        let hosts = self.hosts.iter().filter(|host| host.up);
        hosts.filter_map(|host| host.node.poll_timeout()).chain(packet).min()
    }

    /// Advances to the next moment before `end`. Returns whether there was one.
    fn step(&mut self, end: Instant) -> bool {
        let Some(at) = self.next().filter(|at| *at <= end) else {
            self.now = end;
            return false;
        };
        self.still = if at > self.now { 0 } else { self.still + 1 };
        if self.still > 10_000 {
            let timeouts = self.hosts.iter().map(|host| {
                (host.node.manager().poll_timeout(), host.node.transport().poll_timeout())
            });
            panic!("time does not advance at {:?}: {:?}", self.now, timeouts.collect::<Vec<_>>());
        }
        self.now = self.now.max(at);
        let mut woken = BTreeSet::new();
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
            let Some(Reverse((_, _, (from, to, ecn, bytes)))) = self.queue.pop() else { break };
            let Some(n) = self.hosts.iter().position(|host| host.addr == to && host.up) else {
                continue;
            };
            let host = &mut self.hosts[n];
            *host.heard_from.entry(from).or_default() += bytes.len() as u64;
            let to = Some(host.node.transport().bound().ip());
            host.node.handle_datagram(self.now, Datagram { from, to, ecn, bytes: &bytes });
            woken.insert(n);
        }
        for n in 0..self.hosts.len() {
            let host = &mut self.hosts[n];
            if host.up && host.node.poll_timeout().is_some_and(|at| at <= self.now) {
                host.node.handle_timeout(self.now);
                woken.insert(n);
            }
        }
        for n in woken {
            self.flush(n);
        }
        true
    }

    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }

    /// Advances until a condition holds. Returns whether it does within `time`.
    pub fn until(&mut self, time: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + time;
        loop {
            if holds(self) {
                return true;
            }
            if !self.step(end) {
                return holds(self);
            }
        }
    }

    // -- requests

    pub fn request(&mut self, n: usize, request: Request) -> RequestId {
        let id = self.hosts[n].node.request(self.now, request).unwrap();
        self.flush(n);
        id
    }

    pub fn result(&self, n: usize, id: RequestId) -> Option<&Result<Reply, Failure>> {
        self.hosts[n].events.iter().find_map(|(_, event)| match event {
            Event::Done { id: done, result } if *done == id => Some(result),
            _ => None,
        })
    }

    /// Executes a request. Returns its duration.
    pub fn perform(
        &mut self,
        n: usize,
        request: Request,
        patience: Duration,
    ) -> (Duration, Result<Reply, Failure>) {
        let begun = self.now;
        let id = self.request(n, request);
        self.until(patience, |world| world.result(n, id).is_some());
        let result = self.result(n, id).cloned();
        (self.now.since(begun), result.unwrap_or(Err(Failure::DeadlineExceeded)))
    }

    pub fn connect(&mut self, n: usize, to: usize) -> Duration {
        let request = Request::Connect {
            target: self.id(to),
            address: self.hosts[to].addr.into(),
            options: options(20 * Duration::from_secs(1)),
        };
        let (took, result) = self.perform(n, request, Duration::from_secs(30));
        result.unwrap();
        took
    }

    /// One question to a connected node. Returns its duration if it was answered.
    pub fn ask(&mut self, n: usize, via: usize) -> Result<Duration, Failure> {
        let request = Request::QueryClosestNodes {
            via: self.id(via),
            target: self.id(via),
            query: ClosestNodesQuery { known: true, connected: true },
            options: options(Duration::from_secs(15)),
        };
        let (took, result) = self.perform(n, request, Duration::from_secs(30));
        result.map(|_| took)
    }

    /// Opens an application stream. Returns its id.
    pub fn open(&mut self, n: usize, to: usize) -> StreamId {
        let request = Request::OpenStream {
            target: self.id(to),
            protocol: PROTOCOL.into(),
            options: options(Duration::from_secs(20)),
        };
        let id = self.request(n, request);
        assert!(self.until(Duration::from_secs(20), |world| world.result(n, id).is_some()));
        let opened = self.hosts[n].opened.iter().rev();
        let stream = opened.clone().find(|opened| opened.opener == Opener::Us(id));
        stream.unwrap_or_else(|| panic!("{:?}", self.result(n, id))).stream
    }

    /// Writes this many bytes to a stream, as it accepts them.
    pub fn write(&mut self, n: usize, stream: StreamId, bytes: usize) {
        let now = self.now;
        *self.hosts[n].writes.entry(stream).or_default() += bytes;
        self.hosts[n].write(now, stream);
        self.flush(n);
    }
}

impl Host {
    fn handle(&mut self, now: Instant, poll: Poll) {
        match poll {
            Poll::Effect(effect) => {
                let answer = match effect.run(&mut self.store as &mut dyn Store) {
                    Ok(answer) => answer,
                    Err(Effect::Resolve { id, .. }) => {
                        Response::Resolved { id, result: Ok(vec![]) }
                    }
                    Err(_) => return,
                };
                self.node.answer(now, answer);
            }
            Poll::Event(event) => self.events.push((now, event)),
            Poll::Opened(opened) => {
                self.opened.push(opened.clone());
                self.read(now, opened.stream);
            }
            Poll::Readable(stream) => self.read(now, stream),
            Poll::Writable(stream) => self.write(now, stream),
        }
    }

    pub fn read(&mut self, now: Instant, stream: StreamId) {
        if self.reader == Reader::Paused {
            return;
        }
        loop {
            match self.node.read(now, stream, 64 * 1024) {
                Ok(Read::Bytes(bytes)) => {
                    *self.received.entry(stream).or_default() += bytes.len();
                }
                Ok(Read::Blocked | Read::End) => break,
                Err(_) => {
                    self.failed.insert(stream);
                    break;
                }
            }
        }
    }

    fn write(&mut self, now: Instant, stream: StreamId) {
        let Some(left) = self.writes.get_mut(&stream) else { return };
        while *left > 0 {
            match self.node.write(now, stream, &vec![7; (*left).min(64 * 1024)]) {
                Ok(0) => break,
                Ok(written) => *left -= written,
                Err(_) => {
                    self.failed.insert(stream);
                    break;
                }
            }
        }
        if *left == 0 {
            self.writes.remove(&stream);
        }
    }

    pub fn total_received(&self) -> usize {
        self.received.values().sum()
    }
}

pub fn ip(addr: SocketAddr) -> IpAddr {
    addr.ip()
}
