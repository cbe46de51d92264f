//! Body of the fuzz target `datagrams`: two nodes exchange datagrams over a network that a script
//! controls. It loses, repeats, reorders, truncates and changes them, forges their source and sends
//! arbitrary ones. Included by the target and by `pk-quic/tests/fuzz.rs`, which replays the corpus.
//!
//! After every call a node must become quiet, and its next timeout must lie ahead. At the end the
//! network is good again, and both nodes stop.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken invariant is a panic")]
#![allow(clippy::indexing_slicing, reason = "indices are below the length")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use pk_host::{HostState, KeyPair, MemoryStore, TransportSecret, create_identity};
use pk_proto::{Identity, Instant, Request, RequestOptions, Snapshot, UnixMillis};
use pk_quic::{Datagram, Effect, Node, NodeSetup, Poll, Read};

use crate::ending::{self, MOST};

const UNIX: UnixMillis = UnixMillis::from_secs(1_800_000_000);
const PROTOCOL: &str = "fuzz/1";

/// One step of a script: an operation and its two arguments.
type Step = [u8; 3];

struct World {
    now: Instant,
    nodes: [(Node, MemoryStore); 2],
    /// Datagrams on their way, with their destination.
    wire: VecDeque<(SocketAddr, usize, Vec<u8>)>,
    /// Datagrams that have arrived.
    seen: Vec<(usize, Vec<u8>)>,
    work: usize,
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n as u8], 1314))
}

fn identity(n: usize) -> (KeyPair, Identity) {
    static IDENTITIES: OnceLock<[(KeyPair, Identity); 2]> = OnceLock::new();
    let create = |seed| {
        let key = KeyPair::from_seed(&[seed; 32]);
        let identity = create_identity(&key, UNIX).unwrap();
        (key, identity)
    };
    IDENTITIES.get_or_init(|| [1, 2].map(create))[n].clone()
}

fn node(n: usize, seed: u8, now: Instant) -> (Node, MemoryStore) {
    let (key, identity) = identity(n);
    let secret = TransportSecret::of_key(&key);
    let snapshot = Snapshot::default();
    let host = HostState { key, identity, secret, snapshot, seed: [seed; 32] };
    let setup = NodeSetup::new(host, address(n), std::time::Instant::now(), now, UNIX);
    let mut node = Node::new(setup).unwrap();
    node.update(now, |node, now| node.accept_protocol(PROTOCOL.into(), now)).unwrap();
    (node, MemoryStore::new())
}

impl World {
    fn new() -> Self {
        let nodes = [0, 1].map(|n| node(n, n as u8, Instant::ORIGIN));
        let mut world =
            Self { now: Instant::ORIGIN, nodes, wire: VecDeque::new(), seen: Vec::new(), work: 0 };
        (0..2).for_each(|n| world.drain(n));
        world
    }

    /// Does everything that a node can do now.
    fn drain(&mut self, n: usize) {
        let (now, mut buf) = (self.now, Vec::new());
        let (node, store) = &mut self.nodes[n];
        loop {
            self.work += 1;
            assert!(self.work < MOST, "a node does not become quiet");
            if let Some(poll) = node.poll() {
                match poll {
                    Poll::Effect(effect) => {
                        let answer = effect.run(store).map_or_else(Effect::refuse, Some);
                        answer.into_iter().for_each(|answer| node.answer(now, answer));
                    }
                    Poll::Opened(opened) => {
                        let _ = node.write(now, opened.stream, &[7; 5000]);
                        node.finish(now, opened.stream);
                    }
                    Poll::Readable(stream) => {
                        while let Ok(Read::Bytes(bytes)) = node.read(now, stream, 1000) {
                            assert!(!bytes.is_empty() && bytes.len() <= 1000);
                        }
                    }
                    Poll::Writable(_)
                    | Poll::Delivered { .. }
                    | Poll::Lost { .. }
                    | Poll::Event(_) => {}
                }
            } else if let Some(transmit) = node.poll_transmit(now, 4, &mut buf) {
                assert_eq!(buf.len(), transmit.size);
                // Datagrams to forged sources are lost.
                let Some(to) = (0..2).find(|to| address(*to) == transmit.to) else { continue };
                let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
                for datagram in buf.chunks(size) {
                    self.wire.push_back((address(n), to, datagram.to_vec()));
                }
            } else {
                break;
            }
        }
    }

    fn deliver(&mut self, from: SocketAddr, to: usize, bytes: &[u8]) {
        self.nodes[to].0.handle_datagram(self.now, Datagram { from, to: None, ecn: 0, bytes });
        self.drain(to);
    }

    /// Advances to the next timeout, but at most this far.
    fn pass(&mut self, most: Duration) {
        let next = self.nodes.iter().filter_map(|(node, _)| node.poll_timeout()).min();
        let end = self.now + most;
        self.now = next.map_or(end, |next| next.min(end)).max(self.now);
        for n in 0..2 {
            self.nodes[n].0.handle_timeout(self.now);
            self.drain(n);
        }
    }

    fn step(&mut self, [operation, a, b]: Step) {
        let (n, a, b) = (usize::from(a & 1), usize::from(a), usize::from(b));
        let at = a % self.wire.len().max(1);
        self.work = 0;
        match operation % 16 {
            // The first datagrams arrive in order: most steps of a script.
            0..=5 => {
                for _ in 0..=b % 8 {
                    let Some((from, to, bytes)) = self.wire.pop_front() else { break };
                    self.seen.push((to, bytes.clone()));
                    self.deliver(from, to, &bytes);
                }
            }
            6 => drop(self.wire.remove(at)),
            7 => {
                if let Some((from, to, bytes)) = self.wire.remove(at) {
                    self.deliver(from, to, &bytes);
                }
            }
            8 => {
                if let Some((from, to, bytes)) = self.wire.get(at).cloned() {
                    self.deliver(from, to, &bytes[..b * bytes.len() / 256]);
                }
            }
            9 => {
                if let Some((from, to, mut bytes)) = self.wire.get(at).cloned() {
                    let place = b * bytes.len() / 256;
                    bytes[place] ^= a as u8 | 1;
                    self.deliver(from, to, &bytes);
                }
            }
            // An old or a present datagram, from another source.
            10 => {
                if let Some((to, bytes)) = self.seen.get(b % self.seen.len().max(1)).cloned() {
                    self.deliver(address(2 + a), to, &bytes);
                }
            }
            11 => {
                if let Some((_, to, bytes)) = self.wire.get(at).cloned() {
                    self.deliver(address(2 + b), to, &bytes);
                }
            }
            12 => {
                let bytes: Vec<u8> = (0..b * 6).map(|i| (i * a) as u8 ^ operation).collect();
                self.deliver(address(a), n, &bytes);
            }
            13 => self.pass(Duration::from_millis(1 << (b % 16))),
            14 => {
                let (to, options) = (1 - n, RequestOptions::default());
                let target = identity(to).0.node_id();
                let request = match b % 3 {
                    0 => Request::Connect { target, address: address(to).into(), options },
                    1 => Request::PingNode { target, options },
                    _ => Request::OpenStream { target, protocol: PROTOCOL.into(), options },
                };
                let _ = self.nodes[n].0.request(self.now, request);
                self.drain(n);
            }
            _ if b < 32 => {
                self.nodes[n] = node(n, operation ^ b as u8, self.now);
                self.drain(n);
            }
            _ => {
                self.nodes[n].0.local_changed(self.now, &[]);
                self.nodes[n].0.unreachable(self.now, address(1 - n), "no route");
                self.drain(n);
            }
        }
        assert!(self.wire.len() < 10_000);
        self.seen.truncate(256);
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

/// Runs a script. Returns whether the nodes exchanged datagrams.
pub(crate) fn datagrams(data: &[u8]) -> bool {
    let mut world = World::new();
    let (steps, _) = data.as_chunks::<3>();
    steps.iter().take(400).for_each(|step| world.step(*step));
    let exchanged = !world.seen.is_empty();
    ending::end(world);
    exchanged
}
