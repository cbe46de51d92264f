//! Nodes behind NATs: dials do not reach them, but they are alive.

use pk_sim::{Dependence, NatConfig};

use super::*;
use crate::common::find;

const STRICT: NatConfig = NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort);
const PUBLIC: usize = 6;
const NODES: usize = 12;

/// A network whose second half is behind NATs, each node behind its own, after some hours.
fn settled_behind_nats(seed: u64) -> Cluster {
    let mut cluster = Cluster::builder().nodes(NODES).seed(seed).build();
    for node in PUBLIC..NODES {
        let nat = cluster.add_nat(STRICT);
        cluster.put_behind(node, nat);
    }
    (0..NODES).for_each(|node| cluster.start_node(node));
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
