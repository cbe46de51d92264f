//! The NodeGraph: admission and removal, the order of listings, and exact closest nodes.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests by the lint")]

use std::collections::BTreeMap;

use pk_proto::{
    BucketIndex, ContactMode, Direction, NodeAddress, NodeContact, NodeContactAddressData,
    NodeGraph, NodeId, NodeOrder, Scopes, SetNodeOutcome, SetNodeRejection, UnixMillis,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde_json::Value;

const FULL: SetNodeOutcome = SetNodeOutcome::Rejected(SetNodeRejection::BucketFull);

fn rng(seed: u8) -> ChaCha8Rng {
    ChaCha8Rng::from_seed([seed; 32])
}

fn random_id(rng: &mut ChaCha8Rng) -> NodeId {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    NodeId::from_bytes(bytes)
}

/// A random id of the bucket `index` as seen from `own`.
fn id_in(rng: &mut ChaCha8Rng, own: &NodeId, index: u8) -> NodeId {
    let (byte, bit) = (31 - usize::from(index) / 8, 1u8 << (index % 8));
    let mut bytes = *own.as_bytes();
    let noise = *random_id(rng).as_bytes();
    bytes[byte] ^= bit | (noise[byte] & (bit - 1));
    for i in byte + 1..32 {
        bytes[i] ^= noise[i];
    }
    let id = NodeId::from_bytes(bytes);
    assert_eq!(own.bucket_index(&id), Some(BucketIndex(index)));
    id
}

fn address(port: u16) -> NodeAddress {
    NodeAddress { host: "192.0.2.1".parse().unwrap(), port }
}

fn at(time: u64) -> NodeContactAddressData {
    NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: UnixMillis(time),
        scopes: Scopes::GLOBAL,
    }
}

fn ids<'a>(nodes: impl IntoIterator<Item = (NodeId, &'a NodeContact)>) -> Vec<NodeId> {
    nodes.into_iter().map(|(node, _)| node).collect()
}

/// A graph with `limit` nodes in bucket 255, the times of which descend, and their ids in the order
/// of setting.
fn full_bucket(limit: usize) -> (NodeGraph, Vec<NodeId>, ChaCha8Rng) {
    let mut rng = rng(1);
    let own = random_id(&mut rng);
    let mut graph = NodeGraph::new(own, limit, 5);
    let nodes: Vec<_> = (0..limit).map(|_| id_in(&mut rng, &own, 255)).collect();
    for (node, time) in nodes.iter().zip((0..1000).rev()) {
        assert_eq!(graph.set(*node, address(1), at(time)), SetNodeOutcome::Added);
    }
    (graph, nodes, rng)
}

#[test]
fn local_id_is_rejected_and_never_returned() {
    let mut rng = rng(2);
    let own = random_id(&mut rng);
    let mut graph = NodeGraph::new(own, 20, 5);
    assert_eq!(
        graph.set(own, address(1), at(1)),
        SetNodeOutcome::Rejected(SetNodeRejection::OwnNode)
    );
    assert!(graph.is_empty() && !graph.contains(&own) && graph.unset(&own).is_none());
    assert_eq!(graph.own(), own);
    assert_eq!(graph.buckets().count(), 0);
}

#[test]
fn full_bucket_rejects_the_new_and_still_updates_the_known() {
    let (mut graph, nodes, mut rng) = full_bucket(20);
    let before = graph.clone();
    let newcomer = id_in(&mut rng, &graph.own(), 255);
    assert_eq!(graph.set(newcomer, address(1), at(5000)), FULL);
    assert_eq!(graph, before, "a rejection changes nothing");

    assert_eq!(graph.set(nodes[7], address(2), at(5000)), SetNodeOutcome::Updated);
    assert_eq!(graph.get(&nodes[7]).map(NodeContact::len), Some(2));
    assert_eq!(graph.get(&nodes[7]).map(NodeContact::connected_time), Some(UnixMillis(5000)));
    assert_eq!((graph.len(), graph.bucket_len(BucketIndex(255))), (20, 20));
    let other = id_in(&mut rng, &graph.own(), 254);
    assert_eq!(
        graph.set(other, address(1), at(1)),
        SetNodeOutcome::Added,
        "other buckets have room"
    );
}

#[test]
fn unset_makes_room_and_returns_the_contact() {
    let (mut graph, nodes, mut rng) = full_bucket(3);
    let newcomer = id_in(&mut rng, &graph.own(), 255);
    assert_eq!(graph.unset(&newcomer), None);
    assert_eq!(graph.set(newcomer, address(1), at(1)), FULL);
    assert_eq!(graph.unset(&nodes[1]), Some(NodeContact::new(address(1), at(998))));
    assert_eq!(graph.unset(&nodes[1]), None);
    assert_eq!(graph.set(newcomer, address(1), at(1)), SetNodeOutcome::Added);
    assert_eq!(graph.set(nodes[1], address(1), at(1)), FULL);
    for node in [nodes[0], nodes[2], newcomer] {
        assert!(graph.unset(&node).is_some());
    }
    assert_eq!(graph, NodeGraph::new(graph.own(), 3, 5), "an emptied bucket is gone");
}

#[test]
fn over_the_address_limit_the_oldest_connected_time_is_dropped() {
    let (graph, nodes, _) = full_bucket(1);
    let mut graph = NodeGraph::new(graph.own(), 20, 3);
    for (port, time) in [(1, 30), (2, 10), (3, 20), (4, 40), (5, 5)] {
        graph.set(nodes[0], address(port), at(time));
    }
    let kept: Vec<_> =
        graph.get(&nodes[0]).unwrap().iter().map(|(address, _)| address.port).collect();
    assert_eq!(kept, [4, 1, 3]);
}

#[test]
fn limits_of_zero_count_as_one() {
    let (graph, nodes, mut rng) = full_bucket(1);
    let own = graph.own();
    let mut graph = NodeGraph::new(own, 0, 0);
    assert_eq!(graph.set(nodes[0], address(1), at(1)), SetNodeOutcome::Added);
    assert_eq!(graph.set(nodes[0], address(2), at(2)), SetNodeOutcome::Updated);
    assert_eq!(graph.get(&nodes[0]), Some(&NodeContact::new(address(2), at(2))));
    assert_eq!(graph.set(id_in(&mut rng, &own, 255), address(1), at(1)), FULL);

    let mut graph = NodeGraph::new(own, usize::MAX, 5);
    let added = (0..300)
        .filter(|_| graph.set(id_in(&mut rng, &own, 255), address(1), at(1)) != FULL)
        .count();
    assert_eq!(added, NodeGraph::BUCKET_LIMIT_MAX);
}

#[test]
fn sorted_listings_follow_their_key_and_descending_is_the_reverse() {
    let (mut graph, nodes, _) = full_bucket(20);
    // Ties: every other node has the same, newest time.
    for node in nodes.iter().step_by(2) {
        graph.set(*node, address(1), at(7000));
    }
    let (own, index) = (graph.own(), BucketIndex(255));
    let time = |node: &NodeId| graph.get(node).unwrap().connected_time();
    let mut by_id = nodes.clone();
    by_id.sort();
    let mut by_distance = nodes.clone();
    by_distance.sort_by_key(|node| own.distance(node));
    let mut by_time = by_id.clone();
    by_time.sort_by_key(time); // Stable, so ties are by id.
    assert_eq!(
        time(&by_time[9]),
        UnixMillis(998),
        "the odd ones are the oldest, from the last set on"
    );
    assert_eq!(by_time[0], nodes[19], "oldest connected first");

    let orders = [
        (NodeOrder::NodeId, by_id.clone()),
        (NodeOrder::Distance, by_distance),
        (NodeOrder::ConnectedTime, by_time),
    ];
    for (order, mut expected) in orders {
        assert_eq!(
            ids(graph.bucket_sorted(index, order, Direction::Ascending)),
            expected,
            "{order:?}"
        );
        expected.reverse();
        assert_eq!(
            ids(graph.bucket_sorted(index, order, Direction::Descending)),
            expected,
            "{order:?}"
        );
        assert!(graph.bucket_sorted(BucketIndex(3), order, Direction::Descending).is_empty());
    }
    assert_eq!(ids(graph.bucket(index)), by_id);
    assert_eq!(graph.bucket(BucketIndex(254)).count(), 0);
}

#[test]
fn graph_agrees_with_a_map_through_a_random_history() {
    let mut rng = rng(3);
    let own = random_id(&mut rng);
    let mut graph = NodeGraph::new(own, 4, 5);
    let mut model: BTreeMap<(BucketIndex, NodeId), NodeContact> = BTreeMap::new();
    // All buckets, each with more candidates than room, so that every outcome occurs often.
    let pool: Vec<_> = (0..=255).flat_map(|i| [i; 6]).map(|i| id_in(&mut rng, &own, i)).collect();
    let mut outcomes = [0; 3];
    for step in 0..20_000u64 {
        let node = pool[(rng.next_u64() % pool.len() as u64) as usize];
        let index = own.bucket_index(&node).unwrap();
        let (port, time) = (1 + (rng.next_u32() % 7) as u16, rng.next_u64() % 50);
        if step % 10_000 < 6_000 || step % 3 == 0 {
            let outcome = graph.set(node, address(port), at(time));
            let room = model.keys().filter(|(i, _)| *i == index).count() < 4;
            if let Some(contact) = model.get_mut(&(index, node)) {
                contact.set(address(port), at(time), 5);
                assert_eq!(outcome, SetNodeOutcome::Updated);
                outcomes[0] += 1;
            } else if room {
                model.insert((index, node), NodeContact::new(address(port), at(time)));
                assert_eq!(outcome, SetNodeOutcome::Added);
                outcomes[1] += 1;
            } else {
                assert_eq!(outcome, FULL);
                outcomes[2] += 1;
            }
        } else {
            assert_eq!(graph.unset(&node), model.remove(&(index, node)));
        }
        assert_eq!(graph.get(&node), model.get(&(index, node)));
        assert_eq!(graph.len(), model.len());
        if step % 500 == 0 {
            let expected: Vec<_> =
                model.iter().map(|((_, node), contact)| (*node, contact)).collect();
            assert_eq!(graph.iter().collect::<Vec<_>>(), expected);
            let mut counts: BTreeMap<BucketIndex, usize> = BTreeMap::new();
            model.keys().for_each(|(index, _)| *counts.entry(*index).or_default() += 1);
            assert_eq!(graph.buckets().collect::<Vec<_>>(), counts.into_iter().collect::<Vec<_>>());
            assert_eq!(graph.is_empty(), model.is_empty());
        }
    }
    assert!(outcomes.iter().all(|n| *n > 500), "{outcomes:?}");
}

/// Compares `closest` with sorting everything, for many limits.
fn assert_exact(graph: &NodeGraph, target: &NodeId, what: &str) {
    let mut expected: Vec<_> = graph.iter().collect();
    expected.sort_by_cached_key(|(node, _)| node.distance(target));
    for limit in [0, 1, 2, 3, 7, 19, 20, 21, 40, 100, expected.len(), usize::MAX] {
        let closest = graph.closest(target, limit);
        assert_eq!(closest, expected[..limit.min(expected.len())], "{what}, limit {limit}");
        assert!(closest.iter().all(|(node, _)| *node != graph.own()));
    }
}

fn assert_exact_everywhere(graph: &NodeGraph, rng: &mut ChaCha8Rng) {
    let own = graph.own();
    assert_exact(graph, &own, "self");
    for _ in 0..40 {
        assert_exact(graph, &random_id(rng), "random");
    }
    for index in (0..=255).rev().step_by(3) {
        assert_exact(graph, &id_in(rng, &own, index), "near self");
    }
    let members = ids(graph.iter());
    for member in members.iter().step_by(members.len() / 50 + 1) {
        assert_exact(graph, member, "member");
        assert_eq!(ids(graph.closest(member, 1)), [*member]);
        let index = (rng.next_u32() % 256) as u8;
        assert_exact(graph, &id_in(rng, member, index), "near a member");
    }
}

#[test]
fn closest_nodes_are_exact_in_a_table_of_random_ids() {
    for (seed, count, limit) in
        [(10, 0, 20), (11, 1, 20), (12, 30, 20), (13, 2_000, 20), (14, 2_000, 3), (15, 800, 255)]
    {
        let mut rng = rng(seed);
        let mut graph = NodeGraph::new(random_id(&mut rng), limit, 5);
        for _ in 0..count {
            graph.set(random_id(&mut rng), address(1), at(1));
        }
        assert_exact_everywhere(&graph, &mut rng);
    }
}

#[test]
fn closest_nodes_are_exact_in_tables_with_nodes_in_any_buckets() {
    for (seed, count, limit) in [(20, 40, 20), (21, 300, 20), (22, 1_500, 5)] {
        let mut rng = rng(seed);
        let own = random_id(&mut rng);
        let mut graph = NodeGraph::new(own, limit, 5);
        for _ in 0..count {
            let index = (rng.next_u32() % 256) as u8;
            graph.set(id_in(&mut rng, &own, index), address(1), at(1));
        }
        assert_exact_everywhere(&graph, &mut rng);
    }
}

#[test]
fn closest_nodes_are_exact_among_ids_that_differ_only_at_their_end() {
    let mut rng = rng(30);
    let own = random_id(&mut rng);
    let mut graph = NodeGraph::new(own, 100, 5);
    let far: Vec<_> = [255, 254, 128].map(|index| id_in(&mut rng, &own, index)).into();
    for _ in 0..200 {
        let near = (rng.next_u32() % 12) as u8;
        let other = far[(rng.next_u32() % 3) as usize];
        graph.set(id_in(&mut rng, &other, near), address(1), at(1));
    }
    assert!(graph.len() > 100);
    assert_exact_everywhere(&graph, &mut rng);
}

#[test]
fn closest_nodes_match_the_vectors_and_the_reference_where_it_is_exact() {
    let vectors: Value = serde_json::from_str(include_str!("vectors/closest_nodes.json")).unwrap();
    let id = |value: &Value| value.as_str().unwrap().parse::<NodeId>().unwrap();
    let list = |value: &Value| value.as_array().unwrap().iter().map(id).collect::<Vec<_>>();
    let mut graph = NodeGraph::new(id(&vectors["own"]), 20, 5);
    let members = vectors["members"].as_array().unwrap();
    for member in members {
        let node = id(&member["nodeId"]);
        for (key, data) in member["contact"].as_object().unwrap() {
            let address = NodeAddress::from_contact_key(key).unwrap();
            assert_eq!(address.contact_key(), *key);
            let scope =
                |name: &str| data["scopes"].as_array().unwrap().iter().any(|scope| scope == name);
            let data = NodeContactAddressData {
                mode: serde_json::from_value(data["mode"].clone()).unwrap(),
                connected_time: serde_json::from_value(data["connectedTime"].clone()).unwrap(),
                scopes: Scopes { local: scope("local"), global: scope("global") },
            };
            assert_eq!(graph.set(node, address, data), SetNodeOutcome::Added);
        }
        let index = u8::try_from(member["bucketIndex"].as_u64().unwrap()).unwrap();
        assert!(graph.bucket(BucketIndex(index)).any(|(other, _)| other == node));
    }
    assert_eq!(graph.len(), members.len());

    let mut exact = 0;
    for query in vectors["queries"].as_array().unwrap() {
        let target = id(&query["target"]);
        let index =
            query["targetBucket"].as_u64().map(|index| BucketIndex(u8::try_from(index).unwrap()));
        assert_eq!(graph.own().bucket_index(&target), index);
        let closest =
            ids(graph.closest(&target, usize::try_from(query["limit"].as_u64().unwrap()).unwrap()));
        assert_eq!(closest, list(&query["trueXorClosest"]), "{}", query["label"]);
        if query["referenceEqualsTrueClosest"] == true {
            assert_eq!(closest, list(&query["reference"]), "{}", query["label"]);
            exact += 1;
        }
    }
    assert!(exact > 0);
}
