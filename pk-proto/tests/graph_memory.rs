//! The memory of a node graph, as an allocator counts it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests by the lint")]

use pk_proto::{
    ContactMode, DiversityLimits, NodeAddress, NodeContactAddressData, NodeGraph, NodeId, Scopes,
    UnixMillis,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Maximum memory of a contact with one address, in bytes: with its share of the buckets and of the
/// counts of networks.
const CONTACT: u64 = 160;

/// A graph with the limits of `Config`, filled with random ids, each with an address in a network
/// of its own.
fn filled(count: u32) -> NodeGraph {
    let mut rng = ChaCha8Rng::from_seed([9; 32]);
    let mut random = || {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        NodeId::from_bytes(bytes)
    };
    let limits = DiversityLimits { per_bucket: 2, per_table: 10 };
    let mut graph = NodeGraph::new(random(), 20, 5).with_diversity(limits);
    for i in 0..count {
        let [_, a, b, c] = i.to_be_bytes();
        let host = format!("{}.{b}.{c}.1", 32 + a).parse().unwrap();
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UnixMillis(u64::from(i)),
            scopes: Scopes::GLOBAL,
        };
        graph.set(random(), NodeAddress { host, port: 1314 }, data);
    }
    graph
}

#[test]
fn contact_with_one_address_has_at_most_160_bytes_of_memory() {
    for (count, least) in [(200, 80), (2_000, 150), (20_000, 200), (100_000, 250)] {
        let mut graph = None;
        let memory = allocation_counter::measure(|| graph = Some(filled(count)));
        let contacts = graph.as_ref().map_or(0, NodeGraph::len) as u64;
        assert!(contacts >= least, "{contacts} of {count} nodes");
        let each = u64::try_from(memory.bytes_current).unwrap() / contacts;
        assert!(each <= CONTACT, "{each} bytes per contact of {contacts}");
    }
}

#[test]
fn updates_and_rejections_allocate_nothing() {
    let mut graph = filled(20_000);
    let nodes: Vec<_> = graph
        .iter()
        .map(|(node, contact)| (node, contact.iter().next().cloned().unwrap()))
        .collect();
    let rejected: Vec<_> = (0..u8::MAX).map(|i| NodeId::from_bytes([i; 32])).collect();
    let memory = allocation_counter::measure(|| {
        for (node, (address, data)) in &nodes {
            let later = UnixMillis(data.connected_time.0 + 1_000_000);
            let data = NodeContactAddressData { connected_time: later, ..*data };
            graph.set(*node, address.clone(), data);
        }
        let (address, data) = &nodes.first().unwrap().1;
        for node in &rejected {
            graph.set(*node, address.clone(), *data);
        }
    });
    assert_eq!(graph.len(), nodes.len(), "every other node was rejected");
    assert_eq!(memory.count_total, 0);
}
