//! One host: its process, which is a whole node or none, and its applications.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use pk_host::KeyPair;
use pk_proto::{Config, Event, Input, Instant, NodeId, Opener, RequestId, StreamId};
use pk_quic::{Effect, Node, Opened, Poll, Read, Response, TransportSettings};

use crate::host::store::{Job, Store};
use crate::rng_streams::RngStream;

/// Application protocol that every node accepts.
pub const PROTOCOL: &str = "test/1";

/// Bytes of one read or write of an application.
const PIECE: usize = 64 * 1024;

/// Bytes that a socket stores for a process that does not read them: Linux's default.
const SOCKET_BUFFER: usize = 212_992;

/// Executes a call, and returns the number of bytes that it allocated and did not free.
pub type Meter = fn(&mut dyn FnMut()) -> i64;

/// What a host does with the application streams that peers open to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Nothing is read.
    Paused,
    /// Everything is read.
    Eager,
}

/// A datagram in a socket: its sender, the bits of congestion notification, its payload.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) from: SocketAddr,
    pub(super) ecn: u8,
    pub(super) bytes: Vec<u8>,
}

/// A host of a [`PacketWorld`](super::PacketWorld). Every public field may be changed at any time;
/// `config` and `transport` apply from the next start.
#[derive(Debug)]
pub struct PacketHost {
    /// Settings of the core.
    pub config: Config,
    /// Settings of the transport.
    pub transport: TransportSettings,
    /// Store, which survives the process.
    pub store: Store,
    /// What its applications read. Streams of which something waits are read at the next event, or
    /// by [`PacketWorld::read_all`](super::PacketWorld::read_all).
    pub reader: Reader,
    /// Whether its socket reports the local address of each datagram and sends from a given one, as
    /// the driver's does. If the system refuses an address, the node receives the present ones.
    /// Default true.
    pub has_local_addresses: bool,
    /// Measures the memory of the node. While it does, the checkers see no inputs and outputs.
    pub meter: Option<Meter>,
    pub(super) key: KeyPair,
    pub(super) node: Option<Node>,
    /// Address of its socket.
    pub(super) addr: SocketAddr,
    /// Number of its process.
    pub(super) life: u32,
    /// Datagrams in the socket of a frozen process; `None` while it runs.
    pub(super) frozen: Option<VecDeque<Received>>,
    pub(super) waiting: usize,
    pub(super) held: i64,
    events: Vec<(Instant, Event)>,
    opened: Vec<Opened>,
    received: BTreeMap<StreamId, u64>,
    writes: BTreeMap<StreamId, u64>,
    failed: BTreeSet<StreamId>,
}

impl PacketHost {
    pub(super) fn new(key: KeyPair, addr: SocketAddr, transport: TransportSettings) -> Self {
        Self {
            config: Config::default(),
            transport,
            store: Store::default(),
            reader: Reader::Eager,
            has_local_addresses: true,
            meter: None,
            key,
            node: None,
            addr,
            life: 0,
            frozen: None,
            waiting: 0,
            held: 0,
            events: Vec::new(),
            opened: Vec::new(),
            received: BTreeMap::new(),
            writes: BTreeMap::new(),
            failed: BTreeSet::new(),
        }
    }

    /// Returns the id of its node.
    pub fn id(&self) -> NodeId {
        self.key.node_id()
    }

    /// Returns the address of its socket, which is that of the inner side if it is behind a NAT.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns its node; `None` while the process does not run.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Returns the events of the present process with their times.
    pub fn events(&self) -> &[(Instant, Event)] {
        &self.events
    }

    /// Returns the application streams of the present process.
    pub fn opened(&self) -> &[Opened] {
        &self.opened
    }

    /// Returns the stream that a request of this host has opened.
    pub fn stream_of(&self, request: RequestId) -> Option<StreamId> {
        let opened = self.opened.iter().find(|opened| opened.opener == Opener::Us(request));
        opened.map(|opened| opened.stream)
    }

    /// Returns the number of bytes that were read from all application streams.
    pub fn total_received(&self) -> u64 {
        self.received.values().sum()
    }

    /// Returns the streams whose reading or writing has failed.
    pub fn failed(&self) -> &BTreeSet<StreamId> {
        &self.failed
    }

    /// Returns the bytes that its node has allocated since `meter` was set, and not freed.
    pub fn held(&self) -> i64 {
        self.held
    }

    /// Returns whether its process runs and is not frozen.
    pub(super) fn is_running(&self) -> bool {
        self.node.is_some() && self.frozen.is_none()
    }

    /// The process ends.
    pub(super) fn end(&mut self) {
        self.node = None;
        self.frozen = None;
        self.waiting = 0;
        self.held = 0;
        self.life += 1;
        self.events.clear();
        self.opened.clear();
        self.received.clear();
        self.writes.clear();
        self.failed.clear();
    }

    /// Stores a datagram for a frozen process, if its socket has room.
    pub(super) fn wait(&mut self, datagram: Received) {
        if let Some(frozen) = &mut self.frozen
            && self.waiting + datagram.bytes.len() <= SOCKET_BUFFER
        {
            self.waiting += datagram.bytes.len();
            frozen.push_back(datagram);
        }
    }

    /// Calls the node. `None` if there is none.
    pub(super) fn call<R>(&mut self, call: impl FnOnce(&mut Node) -> R) -> Option<R> {
        let node = self.node.as_mut()?;
        let Some(meter) = self.meter else { return Some(call(node)) };
        let (mut call, mut result) = (Some(call), None);
        self.held += meter(&mut || {
            result = call.take().map(|call| call(node));
            drop(node.take_crossings());
        });
        result
    }

    /// Processes everything that the node reports. Returns the number of reports.
    pub(super) fn poll(&mut self, now: Instant, die: &mut RngStream) -> u64 {
        let mut polls = 0;
        while let Some(poll) = self.call(Node::poll).flatten() {
            polls += 1;
            match poll {
                Poll::Effect(effect) => self.execute(now, effect, die),
                Poll::Event(event) => self.events.push((now, event)),
                Poll::Opened(opened) => {
                    let stream = opened.stream;
                    self.opened.push(opened);
                    self.read(now, stream);
                }
                Poll::Readable(stream) => self.read(now, stream),
                Poll::Writable(stream) => self.write(now, stream),
                Poll::Delivered { .. } | Poll::Lost { .. } => {}
            }
        }
        polls
    }

    fn execute(&mut self, now: Instant, effect: Effect, die: &mut RngStream) {
        let job = match effect {
            Effect::Persist { id, ops, durable } => Job::Persist { id, ops, durable },
            Effect::Load { id, range, max_bytes } => Job::Load { id, range, max_bytes },
            other => {
                if let Some(answer) = other.refuse() {
                    self.call(|node| node.answer(now, answer));
                }
                return;
            }
        };
        self.store.push(job);
        let answer = match self.store.work(die) {
            Some((Input::Persisted { id, result }, _)) => Response::Persisted { id, result },
            Some((Input::Loaded { id, result }, _)) => Response::Loaded { id, result },
            _ => return,
        };
        self.call(|node| node.answer(now, answer));
    }

    /// Reads what a stream has, unless the applications do not read.
    pub(super) fn read(&mut self, now: Instant, stream: StreamId) {
        while self.reader == Reader::Eager {
            let read = self.call(|node| {
                node.read(now, stream, PIECE).map(|read| match read {
                    Read::Bytes(bytes) => bytes.len(),
                    Read::Blocked | Read::End => 0,
                })
            });
            match read {
                Some(Ok(0)) | None => break,
                Some(Ok(bytes)) => *self.received.entry(stream).or_default() += bytes as u64,
                Some(Err(_)) => {
                    self.failed.insert(stream);
                    break;
                }
            }
        }
    }

    /// Adds bytes that the stream sends as it accepts them.
    pub(super) fn add_write(&mut self, now: Instant, stream: StreamId, bytes: u64) {
        *self.writes.entry(stream).or_default() += bytes;
        self.write(now, stream);
    }

    fn write(&mut self, now: Instant, stream: StreamId) {
        let Some(mut left) = self.writes.remove(&stream) else { return };
        while left > 0 {
            let piece = [7; PIECE];
            let len = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            match self.call(|node| node.write(now, stream, &piece[..len])) {
                Some(Ok(0)) => {
                    self.writes.insert(stream, left);
                    return;
                }
                Some(Ok(written)) => left -= (written as u64).min(left),
                Some(Err(_)) | None => {
                    self.failed.insert(stream);
                    return;
                }
            }
        }
    }
}
