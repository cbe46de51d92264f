//! Nodes behind NATs: dials do not reach them, but they are alive.

use pk_sim::{Dependence, NatConfig};

use crate::common::find;

use super::*;

const STRICT: NatConfig = NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort);
const PUBLIC: usize = 6;
const NODES: usize = 12;

/// A network whose second half is behind NATs, each node behind its own, after some hours.
fn settled_behind_nats(seed: u64) -> Cluster {
    behind_nats(seed, NODES, PUBLIC, |_| STRICT)
}

/// A network of which the nodes from `public` on are behind NATs, each behind its own, after some
/// hours.
fn behind_nats(
    seed: u64,
    nodes: usize,
    public: usize,
    kind: impl Fn(HostId) -> NatConfig,
) -> Cluster {
    let mut cluster = Cluster::builder().nodes(nodes).seed(seed).build();
    for node in public..nodes {
        let nat = cluster.add_nat(kind(node));
        cluster.put_behind(node, nat);
    }
    (0..nodes).for_each(|node| cluster.start_node(node));
    cluster.drive(Duration::ZERO);
    cluster.join_all();
    cluster.drive(4 * HOUR);
    cluster
}

#[test]
fn live_nodes_behind_nats_cause_few_dials_and_stay_contacts_of_those_they_can_dial() {
    let mut cluster = settled_behind_nats(11);
    let before: u64 = (0..NODES).map(|node| dials(&cluster, node)).sum();
    cluster.drive(4 * HOUR);
    let total = (0..NODES).map(|node| dials(&cluster, node)).sum::<u64>() - before;
    assert!(total <= 15 * 4 * NODES as u64, "{total} dials in four hours");
    for node in 0..PUBLIC {
        let known = (PUBLIC..NODES).filter(|other| knows(&cluster, node, *other)).count();
        assert!(known >= 5, "node {node} knows {known} of 6");
    }
    cluster.stop_all();
}

#[test]
fn node_behind_a_nat_that_dies_leaves_the_graphs() {
    let mut cluster = settled_behind_nats(12);
    let dead = NODES - 1;
    assert!((0..PUBLIC).any(|node| knows(&cluster, node, dead)));
    cluster.kill(dead);
    // Longer than the time in which a node checks all of its contacts.
    cluster.drive(24 * HOUR);
    assert!((0..dead).all(|node| !knows(&cluster, node, dead)));
    cluster.stop_all();
}

#[test]
fn node_behind_a_nat_is_found_in_a_calm_network() {
    let mut cluster = settled_behind_nats(13);
    let found = |cluster: &mut Cluster, from: usize, to: usize| {
        let target = cluster.id(to);
        find(cluster, from, target).found.is_some()
    };
    let count = (PUBLIC..NODES).filter(|to| found(&mut cluster, to % PUBLIC, *to)).count();
    assert_eq!(count, NODES - PUBLIC);
    cluster.stop_all();
}

/// Number of nodes of a network that is too large for a search to ask all of them.
const LARGE: usize = 60;
const LARGE_PUBLIC: usize = 20;

/// A network of [`LARGE`] nodes, most of which are behind NATs of three kinds, after some hours.
fn large_network(seed: u64) -> Cluster {
    let kinds = [Dependence::Nothing, Dependence::Address, Dependence::AddressAndPort];
    behind_nats(seed, LARGE, LARGE_PUBLIC, |node| {
        NatConfig::new(Dependence::Nothing, kinds[node % 3])
    })
}

/// The number of nodes among the 20 nearest with which a node is connected.
fn near_connections(cluster: &Cluster, node: HostId) -> usize {
    let own = cluster.id(node);
    let mut ids: Vec<_> = (0..LARGE).map(|other| cluster.id(other)).collect();
    ids.sort_by_key(|id| own.distance(id));
    let connections = cluster.node(node).connections();
    let connected = |id: &&pk_proto::NodeId| connections.iter().any(|info| info.node == **id);
    ids[1..=20].iter().filter(connected).count()
}

#[test]
fn nodes_behind_nats_stay_connected_with_near_nodes() {
    let mut cluster = large_network(14);
    let near = (LARGE_PUBLIC..LARGE).map(|node| near_connections(&cluster, node));
    let alone: Vec<_> = near.enumerate().filter(|(_, near)| *near < 2).collect();
    assert_eq!(alone, []);
    // The addresses that others know are those of the former mappings.
    (0..LARGE - LARGE_PUBLIC).for_each(|nat| cluster.network_mut().reboot_nat(nat));
    cluster.drive(5 * 60 * SECOND);
    for to in LARGE_PUBLIC..LARGE {
        let target = cluster.id(to);
        let outcome = find(&mut cluster, (to * 7 + 3) % LARGE, target);
        assert!(outcome.found.is_some(), "node {to}: {outcome:?}");
    }
    cluster.stop_all();
}

#[test]
fn near_connections_are_used_just_before_their_idle_time() {
    let mut cluster = large_network(15);
    let answers = |cluster: &Cluster| -> u64 {
        (0..LARGE).map(|node| cluster.node(node).metrics().answers).sum()
    };
    let before = answers(&cluster);
    cluster.drive(HOUR);
    let each = (answers(&cluster) - before) / LARGE as u64;
    // If they were used twice a minute, 350.
    assert!(each <= 250, "{each} answers in an hour");
    cluster.stop_all();
}
