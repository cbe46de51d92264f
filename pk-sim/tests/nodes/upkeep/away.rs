//! Nodes that are cut off from the network, and attackers on the path.

use super::*;

#[test]
fn node_that_was_cut_off_loses_no_contact() {
    for minutes in [3, 20, 300] {
        let mut cluster = settled(15, |_| {});
        let before = contacts(&cluster, 0);
        let others: Vec<_> = (1..15).collect();
        cluster.partition(&[&[0], &others]);
        cluster.drive(minutes * MINUTE);
        cluster.heal();
        cluster.drive(5 * MINUTE);
        assert_eq!(contacts(&cluster, 0), before, "{minutes} min");
        assert!(!cluster.node(0).connections().is_empty());
        assert!((1..15).all(|node| knows(&cluster, node, 0)), "{minutes} min: it is back");
        cluster.stop_all();
    }
}

/// The others cannot know that it is alive.
#[test]
fn node_that_is_away_for_20_minutes_stays_a_contact_of_the_others_in_a_calm_network() {
    let mut cluster = settled(15, |_| {});
    cluster.drive(2 * HOUR);
    let others: Vec<_> = (1..15).collect();
    cluster.partition(&[&[0], &others]);
    cluster.drive(20 * MINUTE);
    assert!((1..15).all(|node| knows(&cluster, node, 0)));
    assert!((1..15).any(|node| cluster.node(node).metrics().nodes_failing == 1));
    cluster.drive(3 * HOUR);
    assert!(!(1..15).all(|node| knows(&cluster, node, 0)), "but not for hours");
    cluster.stop_all();
}

#[test]
fn network_whose_nodes_are_all_cut_off_is_unchanged_afterwards() {
    let mut cluster = settled(15, |_| {});
    let before: Vec<_> = (0..15).map(|node| contacts(&cluster, node)).collect();
    let each: Vec<[HostId; 1]> = (0..15).map(|node| [node]).collect();
    let groups: Vec<&[HostId]> = each.iter().map(|node| &node[..]).collect();
    cluster.partition(&groups);
    cluster.drive(20 * MINUTE);
    cluster.heal();
    cluster.drive(5 * MINUTE);
    let after: Vec<_> = (0..15).map(|node| contacts(&cluster, node)).collect();
    assert_eq!(after, before);
    cluster.stop_all();
}

/// An attacker on the path of node 0 drops everything but the packets of node 1.
#[test]
fn attacker_who_lets_one_peer_through_empties_no_graph() {
    let mut cluster = settled(15, |_| {});
    let before = contacts(&cluster, 0);
    let others: Vec<_> = (2..15).collect();
    cluster.partition(&[&[0, 1], &others]);
    cluster.drive(3 * HOUR);
    assert_eq!(contacts(&cluster, 0), before, "one witness is not enough");
    cluster.drive(20 * HOUR);
    assert!(contacts(&cluster, 0) < before, "but it may be alone");
    assert!(knows(&cluster, 0, 1));
    cluster.stop_all();
}
