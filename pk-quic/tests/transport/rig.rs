//! Transports in the place of nodes. Each test has a thread, and a world of its own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use pk_host::{KeyPair, TransportSecret, create_identity};
use pk_proto::{
    Connected, ConnectionId, DialFailure, Identity, Input, Instant, NodeId, Output, StreamId,
};
use pk_quic::{
    Datagram, Read, StreamError, Transport, TransportEvent, TransportMetrics, TransportSettings,
    TransportSetup,
};

/// Time limit, longer than any step of these tests takes, in virtual time.
const PATIENCE: Duration = Duration::from_secs(20);
/// One way.
const DELAY: Duration = Duration::from_millis(1);

type Packet = (Instant, SocketAddr, SocketAddr, Vec<u8>);

struct World {
    origin: std::time::Instant,
    now: Instant,
    hosts: Vec<Host>,
    wire: VecDeque<Packet>,
    /// Datagrams to addresses that no transport has.
    strays: VecDeque<Packet>,
}

struct Host {
    transport: Transport,
    addr: SocketAddr,
    inputs: VecDeque<Input>,
    events: VecDeque<TransportEvent>,
    /// Receives nothing, like a peer with a forged address.
    deaf: bool,
    /// Credit that every stream of a peer gets at once.
    credit: u64,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World {
        origin: std::time::Instant::now(),
        now: Instant::ORIGIN,
        hosts: Vec::new(),
        wire: VecDeque::new(),
        strays: VecDeque::new(),
    });
}

fn with<T>(call: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with(|world| call(&mut world.borrow_mut()))
}

/// Returns the present time.
pub fn now() -> Instant {
    with(|world| world.now)
}

/// Passes virtual time.
pub fn pass(time: Duration) {
    with(|world| world.pass(time));
}

/// Returns the present time of quinn-proto.
pub fn std_now() -> std::time::Instant {
    with(|world| world.origin + world.now.since(Instant::ORIGIN))
}

/// Puts a datagram on the network.
pub fn send(from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
    with(|world| world.wire.push_back((world.now + DELAY, from, to, bytes)));
}

/// Takes the next datagram to an address that no transport has.
pub fn stray(to: SocketAddr) -> Option<(SocketAddr, Vec<u8>)> {
    with(|world| {
        let at = world.strays.iter().position(|(_, _, of, _)| *of == to)?;
        world.strays.remove(at).map(|(_, from, _, bytes)| (from, bytes))
    })
}

impl World {
    fn flush(&mut self, n: usize) {
        let (now, host, mut buf) = (self.now, &mut self.hosts[n], Vec::new());
        loop {
            let mut moved = false;
            while let Some(event) = host.transport.poll_event() {
                moved = true;
                match event {
                    TransportEvent::Input(input) => {
                        if let Input::StreamOpened { stream, .. } = input
                            && host.credit > 0
                        {
                            let credit = Output::ReadCredit { stream, bytes: host.credit };
                            assert_eq!(host.transport.execute(now, credit), None);
                        }
                        host.inputs.push_back(input);
                    }
                    event => host.events.push_back(event),
                }
            }
            while let Some(transmit) = host.transport.poll_transmit(now, 10, &mut buf) {
                moved = true;
                let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
                for datagram in buf[..transmit.size].chunks(size) {
                    let packet = (now + DELAY, host.addr, transmit.to, datagram.to_vec());
                    self.wire.push_back(packet);
                }
            }
            if !moved {
                break;
            }
        }
    }

    /// Advances to the next event before `end`. Returns whether there was one.
    fn step(&mut self, end: Instant) -> bool {
        let timeouts = self.hosts.iter().filter_map(|host| host.transport.poll_timeout());
        let next = timeouts.chain(self.wire.front().map(|(at, ..)| *at)).min();
        let Some(at) = next.filter(|at| *at <= end) else {
            self.now = self.now.max(end);
            return false;
        };
        self.now = self.now.max(at);
        while self.wire.front().is_some_and(|(at, ..)| *at <= self.now) {
            let Some(packet) = self.wire.pop_front() else { break };
            let (_, from, to, bytes) = &packet;
            match self.hosts.iter().position(|host| host.addr == *to) {
                None => self.strays.push_back(packet),
                Some(n) if self.hosts[n].deaf => {}
                Some(n) => {
                    let datagram = Datagram { from: *from, to: Some(to.ip()), ecn: 0, bytes };
                    self.hosts[n].transport.handle_datagram(self.now, datagram);
                    self.flush(n);
                }
            }
        }
        for n in 0..self.hosts.len() {
            if self.hosts[n].transport.poll_timeout().is_some_and(|at| at <= self.now) {
                self.hosts[n].transport.handle_timeout(self.now);
                self.flush(n);
            }
        }
        true
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }
}

/// A transport.
pub struct Rig {
    n: usize,
    pub id: NodeId,
    pub addr: SocketAddr,
    next_conn: u64,
}

/// Settings of a rig.
pub struct Setup {
    pub key: KeyPair,
    pub identity: Identity,
    pub settings: TransportSettings,
}

impl Setup {
    pub fn new(seed: u8) -> Self {
        let key = KeyPair::from_seed(&[seed; 32]);
        let identity = create_identity(&key, pk_host::unix()).unwrap();
        Self { key, identity, settings: TransportSettings::default() }
    }

    pub fn start(self) -> Rig {
        with(|world| {
            let n = world.hosts.len();
            let addr = SocketAddr::from(([10, 0, 0, n as u8 + 1], 1314));
            let transport = Transport::new(TransportSetup {
                settings: self.settings,
                identity: &self.identity,
                key: &self.key,
                secret: &TransportSecret::of_key(&self.key),
                seed: [n as u8 + 1; 32],
                bound: addr,
                origin: world.origin,
                now: world.now,
                unix: pk_host::unix(),
            })
            .unwrap();
            let (inputs, events) = (VecDeque::new(), VecDeque::new());
            world.hosts.push(Host { transport, addr, inputs, events, deaf: false, credit: 0 });
            Rig { n, id: self.key.node_id(), addr, next_conn: 0 }
        })
    }
}

impl Rig {
    pub fn start(seed: u8) -> Self {
        Setup::new(seed).start()
    }

    /// Calls the transport, and sends what it has to send.
    pub fn call<T>(&self, call: impl FnOnce(&mut Transport, Instant) -> T) -> T {
        with(|world| {
            let result = call(&mut world.hosts[self.n].transport, world.now);
            world.flush(self.n);
            result
        })
    }

    /// The core produces this output.
    pub fn output(&self, output: Output) {
        self.call(|transport, now| assert_eq!(transport.execute(now, output), None));
    }

    /// Drops received datagrams from now on, or stops dropping them.
    pub fn drop_received(&self, deaf: bool) {
        with(|world| world.hosts[self.n].deaf = deaf);
    }

    pub fn grant(&self, credit: u64) {
        with(|world| world.hosts[self.n].credit = credit);
    }

    fn wait<T>(&self, mut look: impl FnMut(&mut Host) -> Option<T>) -> Option<T> {
        with(|world| {
            let end = world.now + PATIENCE;
            loop {
                let found = look(&mut world.hosts[self.n]);
                if found.is_some() || !world.step(end) {
                    return found;
                }
            }
        })
    }

    /// The next input of the core.
    pub fn input(&self) -> Input {
        self.wait(|host| host.inputs.pop_front()).expect("an input in time")
    }

    /// The next event of an application stream.
    pub fn event(&self) -> TransportEvent {
        self.wait(|host| host.events.pop_front()).expect("an event in time")
    }

    /// Checks that the core receives nothing for some time.
    pub fn silence(&self) {
        pass(Duration::from_millis(100));
        with(|world| assert_eq!(world.hosts[self.n].inputs, [], "received"));
    }

    /// Starts a dial and returns its id.
    pub fn dial(&mut self, addr: SocketAddr, expect: &[NodeId]) -> ConnectionId {
        self.dial_until(addr, expect, Duration::from_secs(10))
    }

    pub fn dial_until(
        &mut self,
        addr: SocketAddr,
        expect: &[NodeId],
        limit: Duration,
    ) -> ConnectionId {
        let conn = ConnectionId(self.next_conn);
        self.next_conn += 2;
        let deadline = now() + limit;
        self.output(Output::Dial {
            conn,
            addr,
            expect: expect.iter().copied().collect(),
            deadline,
        });
        conn
    }

    pub fn connected(&self) -> Connected {
        match self.input() {
            Input::Connected(connected) => connected,
            other => panic!("{other:?} is not a connection"),
        }
    }

    pub fn dial_failed(&self) -> DialFailure {
        match self.input() {
            Input::DialFailed { why, .. } => why,
            other => panic!("{other:?} is not a failure"),
        }
    }

    /// Connects two rigs.
    pub fn connect(&mut self, other: &Self) -> (ConnectionId, ConnectionId) {
        self.dial(other.addr, &[other.id]);
        (self.connected().conn, other.connected().conn)
    }

    /// Waits until the metrics satisfy a condition.
    pub fn metrics(&self, enough: impl Fn(&TransportMetrics) -> bool) -> TransportMetrics {
        let seen = self.wait(|host| Some(host.transport.metrics()).filter(|seen| enough(seen)));
        seen.unwrap_or_else(|| {
            panic!("{:?}", with(|world| world.hosts[self.n].transport.metrics()))
        })
    }

    // -- application streams, as a blocking reader and writer

    pub fn read(&self, stream: StreamId) -> Result<Read, StreamError> {
        let at = now();
        let read = self.wait(|host| match host.transport.read(at, stream, 64 * 1024) {
            Ok(Read::Blocked) => None,
            read => Some(read),
        });
        self.call(|_, _| ());
        read.expect("something to read in time")
    }

    /// Reads to the end.
    pub fn read_to_end(&self, stream: StreamId) -> Result<Vec<u8>, StreamError> {
        let mut all = Vec::new();
        loop {
            match self.read(stream)? {
                Read::Bytes(bytes) => all.extend_from_slice(&bytes),
                Read::End => return Ok(all),
                Read::Blocked => panic!("it was waited for"),
            }
        }
    }

    /// Writes as much as is accepted at once.
    pub fn write(&self, stream: StreamId, bytes: &[u8]) -> Result<usize, StreamError> {
        self.call(|transport, now| transport.write(now, stream, bytes))
    }

    pub fn finish(&self, stream: StreamId) {
        self.call(|transport, now| transport.finish(now, stream));
    }

    /// Aborts both directions, as by a drop.
    pub fn abort(&self, stream: StreamId, code: u64) {
        self.call(|transport, now| transport.reset(now, stream, code));
        self.call(|transport, now| transport.stop(now, stream, code));
    }
}
