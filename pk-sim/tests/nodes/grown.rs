//! Searches in a network whose tables are the result of joins: the test of plausibility accuses no
//! honest node, and the nodes found are exactly the closest.

use std::collections::BTreeSet;

use pk_proto::{FindNodeOptions, FindStepEnd, NodeId, Reply, Request};
use pk_sim::{Cluster, HostId, Link};

use crate::common::*;

/// Searches of each living node for the nodes closest to random ids. Returns how many there were,
/// with the contacts, the answers, the answers that seemed implausible, and the nodes that should
/// have been found and were.
fn search(cluster: &mut Cluster, dead: &BTreeSet<HostId>, nodes: usize, each: u64) -> [u64; 6] {
    let alive: Vec<_> = (0..nodes).filter(|node| !dead.contains(node)).collect();
    let told = |cluster: &Cluster| -> u64 {
        alive.iter().map(|node| cluster.node(*node).metrics().told_implausible).sum()
    };
    let before = told(cluster);
    let [mut searches, mut contacts, mut answers, mut closest, mut found] = [0; 5];
    for (at, from) in alive.iter().enumerate() {
        for number in 0..each {
            let target = absent(1000 * at as u64 + number);
            let find = FindNodeOptions::default();
            let request = Request::FindClosest { target, count: 20, find };
            let Ok(Reply::FindClosest(outcome)) = cluster.ask(*from, request) else { panic!() };
            let mut truth: Vec<NodeId> =
                alive.iter().filter(|node| *node != from).map(|node| cluster.id(*node)).collect();
            truth.sort_unstable_by_key(|id| id.distance(&target));
            truth.truncate(20);
            let is_found = |id: &&NodeId| outcome.nodes.iter().any(|(node, _)| node == *id);
            closest += truth.len() as u64;
            found += truth.iter().filter(is_found).count() as u64;
            searches += 1;
            contacts += outcome.trace.len() as u64;
            let answered = |end: &FindStepEnd| matches!(end, FindStepEnd::Answered { .. });
            answers += outcome.trace.iter().filter(|step| answered(&step.end)).count() as u64;
        }
    }
    [searches, contacts, answers, told(cluster) - before, closest, found]
}

#[test]
fn honest_answers_are_plausible_and_searches_exact_in_a_grown_network() {
    const NODES: usize = 120;
    let link = Link::ms(20).jitter(ms(20));
    let mut cluster = Cluster::quiet().nodes(NODES).seed(5).link(link).start();
    cluster.join_all();
    cluster.drive(3 * 3600 * SECOND);
    let [searches, contacts, answers, implausible, closest, found] =
        search(&mut cluster, &BTreeSet::new(), NODES, 2);
    println!(
        "{searches} searches, {contacts} contacts, {answers} answers, {implausible} implausible; \
         {found} of {closest} found"
    );
    // With none of 3,000 the share is below one in a thousand, at a confidence of 95 %.
    assert!(answers >= 5_000 && implausible * 1000 < answers, "{implausible} of {answers}");
    assert!(found * 1000 >= closest * 999, "{found} of {closest}");
    assert!(contacts <= 33 * searches, "{contacts} in {searches} searches");

    let dead: BTreeSet<_> = (0..NODES).filter(|node| node % 10 < 3).collect();
    dead.iter().for_each(|node| cluster.kill(*node));
    cluster.drive(3 * 3600 * SECOND);
    let [searches, contacts, answers, implausible, closest, found] =
        search(&mut cluster, &dead, NODES, 1);
    println!(
        "30 % dead: {searches} searches, {contacts} contacts, {answers} answers, {implausible} \
         implausible; {found} of {closest} found"
    );
    assert!(implausible * 1000 < answers, "{implausible} of {answers}");
    assert!(found * 1000 >= closest * 999, "{found} of {closest}");
    assert!(contacts <= 66 * searches, "{contacts} in {searches} searches");
    cluster.stop_all();
}
