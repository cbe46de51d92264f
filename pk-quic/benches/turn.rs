//! One whole turn of two nodes: the request of one, datagrams, the answer of the other, in memory
//! and with real TLS. `cargo bench -p pk-quic`.

#![allow(missing_docs, reason = "not an interface")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark whose setup fails must not run")]

use std::net::SocketAddr;
use std::time::Duration;

use divan::Bencher;
use pk_host::{HostState, KeyPair, MemoryStore, TransportSecret, create_identity};
use pk_proto::{
    ClosestNodesQuery, Event, Instant, NodeId, Request, RequestOptions, Snapshot, UnixMillis,
};
use pk_quic::{Datagram, Effect, Node, NodeSetup, Poll};

const UNIX: UnixMillis = UnixMillis::from_secs(1_800_000_000);

fn main() {
    divan::main();
}

/// Two connected nodes.
struct Pair {
    now: Instant,
    nodes: [(Node, MemoryStore, NodeId); 2],
    done: usize,
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(n).unwrap() + 1], 1314))
}

fn node(n: usize) -> (Node, MemoryStore, NodeId) {
    let key = KeyPair::from_seed(&[u8::try_from(n).unwrap() + 1; 32]);
    let (id, identity) = (key.node_id(), create_identity(&key, UNIX).unwrap());
    let secret = TransportSecret::of_key(&key);
    let host = HostState { key, identity, secret, snapshot: Snapshot::default(), seed: [7; 32] };
    let start = std::time::Instant::now();
    let setup = NodeSetup::new(host, address(n), start, Instant::ORIGIN, UNIX);
    (Node::new(setup).unwrap(), MemoryStore::new(), id)
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self { now: Instant::ORIGIN, nodes: [0, 1].map(node), done: 0 };
        let (node, address) = (pair.nodes[1].2, address(1).into());
        let options = RequestOptions::default();
        pair.turn(Request::Connect { target: node, address, options });
        pair
    }

    /// Does everything that can be done now. Returns whether there was a datagram.
    fn drain(&mut self, n: usize) -> bool {
        let (mut buf, mut sent) = (Vec::new(), false);
        loop {
            let (node, store, _) = &mut self.nodes[n];
            if let Some(poll) = node.poll() {
                match poll {
                    Poll::Effect(effect) => {
                        let answer = effect.run(store).map_or_else(Effect::refuse, Some);
                        answer.into_iter().for_each(|answer| node.answer(self.now, answer));
                    }
                    Poll::Event(Event::Done { result, .. }) => {
                        result.unwrap();
                        self.done += 1;
                    }
                    _ => {}
                }
            } else if let Some(transmit) = node.poll_transmit(self.now, 1, &mut buf) {
                sent = true;
                let datagram = Datagram { from: address(n), to: None, ecn: 0, bytes: &buf };
                if transmit.to == address(1 - n) {
                    self.nodes[1 - n].0.handle_datagram(self.now, datagram);
                }
            } else {
                return sent;
            }
        }
    }

    /// Runs a request of the first node until it is done.
    fn turn(&mut self, request: Request) {
        let before = self.done;
        self.nodes[0].0.request(self.now, request).unwrap();
        for _ in 0..1000 {
            while self.drain(0) | self.drain(1) {}
            if self.done > before {
                return;
            }
            self.pass();
        }
        panic!("the request does not end");
    }

    /// The next timeout is due.
    fn pass(&mut self) {
        let next = self.nodes.iter().filter_map(|(node, ..)| node.poll_timeout()).min();
        self.now = next.unwrap_or(self.now + Duration::from_millis(1)).max(self.now);
        self.nodes.iter_mut().for_each(|(node, ..)| node.handle_timeout(self.now));
    }
}

#[divan::bench]
fn ping(bencher: Bencher) {
    let mut pair = Pair::new();
    let node = pair.nodes[1].2;
    bencher.bench_local(|| {
        pair.turn(Request::PingNode { target: node, options: RequestOptions::default() });
    });
}

#[divan::bench]
fn query_closest(bencher: Bencher) {
    let mut pair = Pair::new();
    let node = pair.nodes[1].2;
    bencher.bench_local(|| {
        pair.turn(Request::QueryClosestNodes {
            via: node,
            target: NodeId::from_bytes([9; 32]),
            query: ClosestNodesQuery { known: true, connected: true },
            options: RequestOptions::default(),
        });
    });
}

/// Handshake, Hellos and their answers.
#[divan::bench]
fn connect(bencher: Bencher) {
    bencher.bench_local(Pair::new);
}

/// Nothing is due.
#[divan::bench]
fn idle_poll(bencher: Bencher) {
    let mut pair = Pair::new();
    while pair.drain(0) | pair.drain(1) {}
    bencher.bench_local(|| {
        let (node, ..) = &mut pair.nodes[0];
        node.handle_timeout(pair.now);
        divan::black_box((node.poll(), node.poll_timeout()))
    });
}
