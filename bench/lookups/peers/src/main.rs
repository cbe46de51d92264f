//! `./prepare && cargo run --release -- seeds=20 first=40000 each=100 closest …`: the cells of
//! `pk-bench-lookups` (`src/cells.rs`), for libp2p-kad and for a `NodeManager`.
//!
//! The networks of both have the same sizes, shares and round trips; libp2p orders nodes by the
//! hash of their ids. A contact of libp2p that is silent fails after a second. A search of libp2p
//! for one node counts up to the answer that names it, without the connection with it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use libp2p_core::multihash::Multihash;
use libp2p_identity::PeerId;
use libp2p_kad::kbucket::Key;
use libp2p_kad::query::peers::PeersIterState;
use libp2p_kad::query::peers::closest::disjoint::ClosestDisjointPeersIter;
use libp2p_kad::query::peers::closest::{ClosestPeersIter, ClosestPeersIterConfig};
use pk_bench_lookups::cells::{Cell, HEADER, Line, Measured, configured};
use pk_bench_lookups::net::{Net, bytes, mix, random_id, words};
use pk_bench_lookups::node::Goal;

const TIMEOUT: Duration = Duration::from_secs(1);

fn peer(raw: &[u8; 32]) -> PeerId {
    let hash = Multihash::wrap(0, raw).expect("fits");
    PeerId::from_multihash(hash).expect("an id")
}

enum Search {
    Plain(ClosestPeersIter),
    Disjoint(ClosestDisjointPeersIter),
}

impl Search {
    fn next(&mut self, now: Instant) -> Option<Option<PeerId>> {
        let state = match self {
            Self::Plain(search) => search.next(now),
            Self::Disjoint(search) => search.next(now),
        };
        match state {
            PeersIterState::Waiting(peer) => Some(peer.map(|peer| peer.into_owned())),
            PeersIterState::WaitingAtCapacity => Some(None),
            PeersIterState::Finished => None,
        }
    }

    fn answered(&mut self, peer: &PeerId, closer: Vec<PeerId>) {
        match self {
            Self::Plain(search) => drop(search.on_success(peer, closer)),
            Self::Disjoint(search) => drop(search.on_success(peer, closer)),
        }
    }

    fn failed(&mut self, peer: &PeerId) {
        match self {
            Self::Plain(search) => drop(search.on_failure(peer)),
            Self::Disjoint(search) => drop(search.on_failure(peer)),
        }
    }

    fn result(self) -> Vec<PeerId> {
        match self {
            Self::Plain(search) => search.into_result().collect(),
            Self::Disjoint(search) => search.into_result().take(20).collect(),
        }
    }
}

struct Network {
    net: Net,
    peers: Vec<PeerId>,
    index: HashMap<PeerId, u32>,
}

impl Network {
    fn new(cell: &Cell, nodes: usize, seed: u64) -> Self {
        let raw = (0..nodes as u64).map(|at| bytes(&random_id(mix(seed) ^ at)));
        let mut ids: Vec<_> = raw
            .map(|raw| {
                let peer = peer(&raw);
                let mut hash = [0; 32];
                hash.copy_from_slice(Key::from(peer).hashed_bytes());
                (words(&hash), peer)
            })
            .collect();
        ids.sort_unstable();
        let net = cell.network(ids.iter().map(|(id, _)| *id).collect(), seed);
        let peers: Vec<_> = ids.into_iter().map(|(_, peer)| peer).collect();
        let index = peers.iter().enumerate().map(|(at, peer)| (*peer, at as u32)).collect();
        Self { net, peers, index }
    }

    fn search(&self, cell: &Cell, kind: &Kind, seed: u64, search: u64) -> Option<Measured> {
        let Self { net, peers, index } = self;
        let draw = |salt: u64| mix(mix(seed ^ salt) ^ search);
        let size = peers.len() as u64;
        let target = net.honest_from((draw(1) % size) as usize);
        let start = net.honest_from((draw(2) % size) as usize);
        if start == target {
            return None;
        }
        // A target of libp2p is an id: for other searches that of no node of the network.
        let goal = (cell.goal == Goal::Node && cell.exists).then_some(target as u32);
        let key = match goal {
            Some(_) => Key::from(peers[target]),
            None => Key::from(peer(&bytes(&random_id(draw(2))))),
        };
        let mut hash = [0; 32];
        hash.copy_from_slice(key.hashed_bytes());
        let id = words(&hash);
        let known = net.closest_known(start, &id);
        let config = ClosestPeersIterConfig {
            parallelism: NonZeroUsize::new(kind.parallelism)?,
            num_results: NonZeroUsize::new(20)?,
            peer_timeout: TIMEOUT,
        };
        let known_peers = known.iter().map(|at| Key::from(peers[*at as usize]));
        let plain = ClosestPeersIter::with_config(config, key, known_peers);
        let mut running = match kind.disjoint {
            false => Search::Plain(plain),
            true => {
                let known_peers = known.iter().map(|at| Key::from(peers[*at as usize]));
                Search::Disjoint(ClosestDisjointPeersIter::with_config(
                    ClosestPeersIterConfig {
                        parallelism: NonZeroUsize::new(kind.parallelism)?,
                        num_results: NonZeroUsize::new(20)?,
                        peer_timeout: TIMEOUT,
                    },
                    key,
                    known_peers,
                ))
            }
        };
        let begun = Instant::now();
        let (mut now, mut requests, mut coming) = (0, 0.0, BinaryHeap::new());
        let mut seen = goal.filter(|goal| known.contains(goal)).map(|_| (0.0, 0));
        'search: loop {
            loop {
                match running.next(begun + Duration::from_micros(now)) {
                    Some(Some(peer)) => {
                        requests += 1.0;
                        let at = index[&peer];
                        let dead = net.dead[at as usize];
                        let after = match dead {
                            true => TIMEOUT.as_micros() as u64,
                            false => net.round_trip(start, at as usize),
                        };
                        coming.push(Reverse((now + after, at, dead)));
                    }
                    Some(None) => break,
                    None => break 'search,
                }
            }
            let Some(Reverse((at, node, dead))) = coming.pop() else { break };
            now = at;
            let peer = peers[node as usize];
            if dead {
                running.failed(&peer);
                continue;
            }
            let mut answer = net.answer(node as usize, &id);
            answer.retain(|at| *at as usize != start);
            if let Some(goal) = goal
                && seen.is_none()
                && answer.contains(&goal)
            {
                seen = Some((requests, now));
            }
            running.answered(&peer, answer.iter().map(|at| peers[*at as usize]).collect());
        }
        let found = match cell.goal {
            Goal::Node => f64::from(u8::from(seen.is_some())),
            Goal::Closest => {
                let mut truth = net.closest(&id, 21);
                truth.retain(|at| *at as usize != start);
                truth.truncate(20);
                let result: Vec<u32> = running.result().iter().map(|peer| index[peer]).collect();
                let hits = truth.iter().filter(|at| result.contains(at));
                hits.count() as f64 / truth.len() as f64
            }
        };
        let (requests, took) = seen.unwrap_or((requests, now));
        Some(Measured {
            requests,
            millis: took as f64 / 1000.0,
            found,
            implausible: 0.0,
            missed: Vec::new(),
        })
    }
}

struct Kind {
    name: &'static str,
    parallelism: usize,
    disjoint: bool,
}

const KINDS: [Kind; 3] = [
    Kind { name: "libp2p, parallelism 3", parallelism: 3, disjoint: false },
    Kind { name: "libp2p, parallelism 10", parallelism: 10, disjoint: false },
    Kind { name: "libp2p, 3 disjoint paths", parallelism: 3, disjoint: true },
];

fn main() -> Result<(), String> {
    let (mut nodes, mut seeds, mut first, mut each) = (100_000, 20, 40_000, 100);
    let mut cells = Vec::<Cell>::new();
    for word in std::env::args().skip(1) {
        if ["closest", "one", "absent"].iter().any(|goal| word.starts_with(goal)) {
            cells.push(word.parse()?);
            continue;
        }
        let (name, value) = word.split_once('=').ok_or(format!("{word}: no value"))?;
        let value: u64 = value.parse().map_err(|_| format!("{word}: not a number"))?;
        match name {
            "nodes" => nodes = value as usize,
            "seeds" => seeds = value,
            "first" => first = value,
            "each" => each = value,
            _ => return Err(format!("{name} is unknown")),
        }
    }
    let config = configured(&[])?;
    println!("{nodes} nodes, seeds {first}–{}\n{HEADER}", first + seeds - 1);
    for cell in cells {
        println!("{}", cell.name);
        let (mut ours, mut theirs) = (Vec::new(), [const { Vec::new() }; KINDS.len()]);
        for seed in first..first + seeds {
            ours.extend(cell.measure(nodes, seed, each, &config));
            let network = Network::new(&cell, nodes, seed);
            for (kind, all) in KINDS.iter().zip(&mut theirs) {
                let search = |search| network.search(&cell, kind, seed, search);
                all.extend((0..each).filter_map(search));
            }
        }
        println!("{}", Line("  NodeManager", ours));
        for (kind, all) in KINDS.iter().zip(theirs) {
            println!("{}", Line(&format!("  {}", kind.name), all));
        }
    }
    Ok(())
}
