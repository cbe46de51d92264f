//! Contacts that have left because they did not respond.

use super::*;
use crate::common::find;

/// Splits a network into halves for an hour. Returns how many of its nodes find a node of the other
/// half a while after it has healed; `restart`: one half restarts meanwhile.
fn split(lost_limit: usize, restart: bool) -> usize {
    let mut cluster = settled(16, |config| config.upkeep.lost_limit = lost_limit);
    let halves: [Vec<HostId>; 2] = [(0..8).collect(), (8..16).collect()];
    cluster.partition(&[&halves[0], &halves[1]]);
    cluster.drive(4 * HOUR);
    assert!((0..8).all(|node| (8..16).all(|other| !knows(&cluster, node, other))));
    if restart {
        for node in 0..8 {
            cluster.stop(node);
            cluster.restart(node);
        }
        cluster.drive(MINUTE);
    }
    cluster.heal();
    cluster.drive(10 * MINUTE);
    let finds = |node: &HostId| {
        let target = cluster.id(15 - *node);
        find(&mut cluster, *node, target).found.is_some()
    };
    let found = (0..16).filter(finds).count();
    cluster.stop_all();
    found
}

#[test]
fn halves_of_a_split_network_find_each_other_again() {
    assert_eq!(split(32, false), 16);
}

#[test]
fn restart_keeps_the_lost_contacts() {
    assert_eq!(split(32, true), 16);
}

/// The planted defect: no node remembers the lost ones.
#[test]
fn halves_that_remember_no_lost_contact_stay_apart() {
    assert_eq!(split(0, false), 0);
}
