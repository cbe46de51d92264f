//! The node graph beside the routing tables of libp2p-kad, discv5 and mainline (README.md).

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use discv5::kbucket as discv5_table;
use libp2p_core::multihash::Multihash;
use libp2p_identity::PeerId;
use libp2p_kad::kbucket as libp2p_table;
use pk_proto::{
    ContactMode, DiversityLimits, NodeAddress, NodeContactAddressData, NodeGraph, NodeId, Scopes,
    UnixMillis,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};

type Raw = [u8; 32];
type Libp2p = libp2p_table::KBucketsTable<libp2p_table::Key<PeerId>, ()>;
type Discv5 = discv5_table::KBucketsTable<enr::NodeId, ()>;

/// Nodes in a bucket.
const K: usize = 20;
/// Ids that tables are filled from, and those of them for new tables.
const IDS: usize = 100_000;
const NEW: usize = 10_000;
const ROUNDS: usize = 25;
/// Repetitions of inserts, which are short.
const TABLES: usize = 40;

const DATA: NodeContactAddressData = NodeContactAddressData {
    mode: ContactMode::Direct,
    connected_time: UnixMillis(1_767_225_600_000),
    scopes: Scopes::GLOBAL,
};

fn main() {
    let own = raws(1, 7)[0];
    let ids = raws(IDS, 42);
    println!(
        "operation                                        ns   beside      ns    ratio   goal"
    );
    for limited in [false, true] {
        let name = if limited { "insert, default limits" } else { "insert, without limits" };
        row(name, 1.0, || insert(&own, &ids, limited), "mainline", || mainline_insert(&own, &ids));
    }
    let update = || update(&own, &ids);
    row("update, default limits", 1.0, update, "mainline", || mainline_insert(&own, &ids));
    let keys: Vec<_> = ids.iter().map(libp2p_key).collect();
    let fill = || libp2p_fill(&own, &keys);
    row("insert, 99.7 % rejected", 1.5, || fill_all(&own, &ids), "libp2p", fill);

    let graph = filled(&own, &ids);
    let mut table = Discv5::new(discv5_key(&own), Duration::from_secs(60), K, None, None);
    for id in &ids {
        let _ = table.insert_or_update(&discv5_key(id), (), status());
    }
    let near = |mut id: Raw| {
        id[..3].copy_from_slice(&own[..3]);
        id
    };
    let random = raws(2000, 99);
    let near: Vec<_> = raws(500, 5).into_iter().map(near).collect();
    for (name, targets, goal) in
        [("closest 20, random target", random, 0.4), ("closest 20, near self", near, 0.1)]
    {
        exact(&graph, &targets);
        let (ours, theirs): (Vec<_>, Vec<_>) =
            targets.iter().map(|id| (NodeId::from_bytes(*id), discv5_key(id))).unzip();
        let ours =
            || per(ours.len(), || ours.iter().for_each(|id| drop(black_box(graph.closest(id, K)))));
        let theirs = || {
            per(theirs.len(), || {
                for key in &theirs {
                    black_box(table.closest_keys(key).take(K).collect::<Vec<_>>());
                }
            })
        };
        row(name, goal, ours, "discv5", theirs);
    }
}

/// Measures both sides in turns, and prints medians.
fn row(
    name: &str,
    goal: f64,
    mut ours: impl FnMut() -> f64,
    peer: &str,
    mut theirs: impl FnMut() -> f64,
) {
    let rounds: Vec<_> = (0..ROUNDS).map(|_| (ours(), theirs())).collect();
    let of = |value: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<_> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[ROUNDS / 2]
    };
    let (ours, theirs, ratio) = (of(|round| round.0), of(|round| round.1), of(|r| r.0 / r.1));
    println!("{name:<42} {ours:>8.1}   {peer:<8} {theirs:>6.1} {ratio:>7.3}x {goal:>5.2}x");
}

/// Nanoseconds of CPU time per operation.
fn per(operations: usize, work: impl FnOnce()) -> f64 {
    let nanos = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let start = nanos();
    work();
    (nanos() - start) / operations as f64
}

fn raws(count: usize, seed: u8) -> Vec<Raw> {
    let mut rng = ChaCha8Rng::from_seed([seed; 32]);
    let random = || {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    std::iter::repeat_with(random).take(count).collect()
}

fn ip(number: usize) -> Ipv4Addr {
    (0x2000_0000 + number as u32 * 257).into()
}

// -- the node graph

fn empty(own: &Raw, limited: bool) -> NodeGraph {
    let graph = NodeGraph::new(NodeId::from_bytes(*own), K, 5);
    let limits = DiversityLimits { per_bucket: 2, per_table: 10 };
    if limited { graph.with_diversity(limits) } else { graph }
}

fn contacts(ids: &[Raw]) -> Vec<(NodeId, NodeAddress)> {
    let contact = |(number, id): (usize, &Raw)| {
        (NodeId::from_bytes(*id), NodeAddress::from_socket((ip(number), 4001).into()))
    };
    ids.iter().enumerate().map(contact).collect()
}

fn set(graph: &mut NodeGraph, contacts: Vec<(NodeId, NodeAddress)>) {
    for (node, address) in contacts {
        black_box(graph.set(node, address, DATA));
    }
}

fn filled(own: &Raw, ids: &[Raw]) -> NodeGraph {
    let mut graph = empty(own, true);
    set(&mut graph, contacts(ids));
    graph
}

/// The contacts of new ids that a graph accepts.
fn accepted(own: &Raw, ids: &[Raw]) -> Vec<(NodeId, NodeAddress)> {
    let graph = filled(own, &ids[..NEW]);
    contacts(&ids[..NEW]).into_iter().filter(|(node, _)| graph.contains(node)).collect()
}

fn insert(own: &Raw, ids: &[Raw], limited: bool) -> f64 {
    let added = accepted(own, ids);
    let mut graphs: Vec<_> = (0..TABLES).map(|_| (empty(own, limited), added.clone())).collect();
    per(TABLES * added.len(), || {
        for (graph, added) in &mut graphs {
            set(graph, std::mem::take(added));
        }
    })
}

fn update(own: &Raw, ids: &[Raw]) -> f64 {
    let known = accepted(own, ids);
    let mut graph = empty(own, true);
    set(&mut graph, known.clone());
    let updates: Vec<_> = (0..TABLES).map(|_| known.clone()).collect();
    per(TABLES * known.len(), || updates.into_iter().for_each(|known| set(&mut graph, known)))
}

fn fill_all(own: &Raw, ids: &[Raw]) -> f64 {
    let (mut graph, contacts) = (empty(own, true), contacts(ids));
    per(contacts.len(), || set(&mut graph, contacts))
}

/// Checks the closest contacts against all contacts.
fn exact(graph: &NodeGraph, targets: &[Raw]) {
    for target in targets.iter().map(|id| NodeId::from_bytes(*id)) {
        let mut all: Vec<_> = graph.iter().map(|(node, _)| node).collect();
        all.sort_by_key(|node| node.distance(&target));
        all.truncate(K);
        let closest: Vec<_> = graph.closest(&target, K).iter().map(|(node, _)| *node).collect();
        assert_eq!(closest, all, "closest contacts of {target}");
    }
}

// -- the peers

fn libp2p_key(id: &Raw) -> libp2p_table::Key<PeerId> {
    let hash = Multihash::wrap(0, id).expect("32 bytes");
    libp2p_table::Key::from(PeerId::from_multihash(hash).expect("an identity hash"))
}

fn libp2p_fill(own: &Raw, keys: &[libp2p_table::Key<PeerId>]) -> f64 {
    let config = libp2p_table::KBucketConfig::default();
    let mut table = Libp2p::new(libp2p_key(own), config);
    per(keys.len(), || {
        for key in keys {
            if let Some(libp2p_table::Entry::Absent(entry)) = table.entry(key) {
                black_box(entry.insert((), libp2p_table::NodeStatus::Connected));
            }
        }
    })
}

fn discv5_key(id: &Raw) -> discv5_table::Key<enr::NodeId> {
    discv5_table::Key::from(enr::NodeId::new(id))
}

fn status() -> discv5_table::NodeStatus {
    discv5_table::NodeStatus {
        direction: discv5_table::ConnectionDirection::Outgoing,
        state: discv5_table::ConnectionState::Connected,
    }
}

fn mainline_insert(own: &Raw, ids: &[Raw]) -> f64 {
    let id = |id: &Raw| mainline::Id::from_bytes(&id[..20]).expect("20 bytes");
    let added: Vec<_> = accepted(own, ids)
        .into_iter()
        .enumerate()
        .map(|(number, (node, _))| {
            mainline::Node::new(id(node.as_bytes()), SocketAddrV4::new(ip(number), 6881))
        })
        .collect();
    let mut tables: Vec<_> = (0..TABLES).map(|_| mainline::RoutingTable::new(id(own))).collect();
    per(TABLES * added.len(), || {
        for table in &mut tables {
            for node in &added {
                black_box(table.add(node.clone()));
            }
        }
    })
}
