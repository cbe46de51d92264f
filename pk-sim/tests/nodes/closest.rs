//! Searches for the nodes closest to an id, in virtual time (docs/DESIGN.md, Searches).

use std::collections::BTreeSet;

use pk_proto::{
    ClosestOutcome, Failure, FindEnd, FindNodeOptions, FindOutcome, FindStepEnd, NodeId, Reply,
    Request,
};
use pk_sim::{Cluster, HostId, Link};

use crate::common::*;

fn closest(
    cluster: &mut Cluster,
    from: HostId,
    target: NodeId,
    count: usize,
    find: FindNodeOptions,
) -> ClosestOutcome {
    match cluster.ask(from, Request::FindClosest { target, count, find }) {
        Ok(Reply::FindClosest(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

/// The live nodes closest to a target, from the list of all nodes.
fn truth(
    cluster: &Cluster,
    from: HostId,
    target: NodeId,
    live: &[HostId],
    count: usize,
) -> Vec<NodeId> {
    let mut nodes: Vec<_> =
        live.iter().filter(|node| **node != from).map(|node| cluster.id(*node)).collect();
    nodes.sort_unstable_by_key(|node| node.distance(&target));
    nodes.truncate(count);
    nodes
}

fn ids(outcome: &ClosestOutcome) -> Vec<NodeId> {
    outcome.nodes.iter().map(|(node, _)| *node).collect()
}

/// The statistics agree with the trace, as for `find_node`.
fn assert_consistent_closest(outcome: &ClosestOutcome) {
    let ClosestOutcome { nodes, ended, stats, trace } = outcome.clone();
    assert_consistent(&FindOutcome { found: None, ended, stats, trace });
    let answered = |node: &NodeId| {
        let of = |step: &&pk_proto::FindStep| step.node == *node;
        outcome.trace.iter().filter(of).any(|step| matches!(step.end, FindStepEnd::Answered { .. }))
    };
    assert!(nodes.iter().all(|(node, _)| answered(node)), "{outcome:?}");
}

#[test]
fn closest_nodes_are_exactly_those_of_a_list_of_all() {
    let all: Vec<HostId> = (0..60).collect();
    let mut cluster = Cluster::quiet().nodes(60).seed(5).start();
    cluster.join_all();
    let mut judged = 0;
    for i in 0..40 {
        let (from, count) = (i * 7 % 60, [1, 5, 20, 13][i % 4]);
        let target = if i % 3 == 0 { cluster.id(i * 11 % 60) } else { absent(i as u64) };
        let outcome = closest(&mut cluster, from, target, count, FindNodeOptions::default());
        assert_consistent_closest(&outcome);
        assert_eq!(outcome.ended, FindEnd::Exhausted);
        assert_eq!(ids(&outcome), truth(&cluster, from, target, &all, count), "{i}: {outcome:?}");
        for (node, address) in &outcome.nodes {
            assert_eq!(*address, cluster.address(cluster.number(*node).unwrap()));
        }
        judged += outcome.stats.calls;
    }
    let implausible: u64 =
        all.iter().map(|node| cluster.node(*node).metrics().told_implausible).sum();
    assert!(judged > 400 && implausible * 1000 < u64::from(judged), "{implausible} of {judged}");
    cluster.stop_all();
}

#[test]
fn local_node_is_never_among_the_closest() {
    let mut cluster = Cluster::quiet().nodes(8).seed(5).start();
    cluster.join_all();
    let target = cluster.id(3);
    let outcome = closest(&mut cluster, 3, target, 20, FindNodeOptions::default());
    let all: Vec<HostId> = (0..8).collect();
    assert_eq!(ids(&outcome), truth(&cluster, 3, target, &all, 20));
    cluster.stop_all();
}

#[test]
fn live_nodes_are_found_if_a_third_of_the_nodes_is_dead() {
    const NODES: usize = 120;
    let mut cluster =
        Cluster::quiet().nodes(NODES).seed(7).link(Link::ms(20).jitter(ms(10))).start();
    cluster.join_all();
    cluster.drive(20 * 60 * SECOND);
    let dead: BTreeSet<HostId> = (0..NODES).filter(|node| node % 10 < 3).collect();
    dead.iter().for_each(|node| cluster.kill(*node));
    cluster.drive(60 * SECOND);
    let live: Vec<HostId> = (0..NODES).filter(|node| !dead.contains(node)).collect();
    let (mut right, mut wanted, mut slowest) = (0, 0, ms(0));
    for (i, from) in live.iter().enumerate() {
        let target = absent(i as u64);
        // One node as well as many: the start does not depend on the number.
        let count = if i % 4 == 0 { 1 } else { 20 };
        let outcome = closest(&mut cluster, *from, target, count, FindNodeOptions::default());
        assert_consistent_closest(&outcome);
        let truth = truth(&cluster, *from, target, &live, count);
        let found = ids(&outcome);
        right += truth.iter().filter(|node| found.contains(node)).count();
        wanted += truth.len();
        slowest = slowest.max(outcome.stats.elapsed);
    }
    assert!(right * 1000 >= wanted * 999, "{right} of {wanted}");
    assert!(slowest < 5 * SECOND, "{slowest:?}");
    cluster.stop_all();
}

#[test]
fn deadline_returns_the_nodes_found_so_far() {
    let mut cluster = Cluster::quiet().nodes(30).seed(5).link(Link::ms(50)).start();
    cluster.join_all();
    cluster.drive(20 * 60 * SECOND);
    let find = FindNodeOptions { options: by(ms(350)), ..FindNodeOptions::default() };
    let outcome = closest(&mut cluster, 4, absent(1), 20, find);
    assert_consistent_closest(&outcome);
    assert_eq!((outcome.ended, outcome.stats.elapsed), (FindEnd::Deadline, ms(350)));
    assert!((1..20).contains(&outcome.nodes.len()), "{outcome:?}");
    let request = Request::FindClosest { target: absent(1), count: 20, find };
    let request = cluster.request(4, request);
    cluster.cancel(4, request);
    assert_eq!(cluster.done(4, request), Some(&Err(Failure::Cancelled)));
    cluster.drive(SECOND);
    assert_quiet(&mut cluster, 4, "cancelled");
    cluster.stop_all();
}

/// `concurrency` and `limit` hold for every dial, silent ones included, and a silent dial ends so
/// that another one starts.
#[test]
fn limits_of_the_caller_apply_to_silent_dials() {
    for (concurrency, limit) in [(1, 9), (3, 20), (7, 5)] {
        let edges: Vec<_> = (1..14).map(|node| (0, node)).collect();
        let mut cluster = Cluster::quiet().nodes(14).seed(3).start();
        wire(&mut cluster, &edges);
        (4..14).for_each(|dead| cluster.kill(dead));
        let find = FindNodeOptions {
            concurrency: Some(concurrency),
            limit: Some(limit),
            ..FindNodeOptions::default()
        };
        let outcome = closest(&mut cluster, 0, absent(2), 20, find);
        assert_consistent_closest(&outcome);
        let (dialing, _) = overlap(&dials(&outcome.trace), SECOND);
        assert!(dialing <= concurrency, "{dialing} of {concurrency}: {outcome:?}");
        assert!(outcome.stats.attempts as usize <= limit, "{outcome:?}");
        if limit >= 13 {
            assert_eq!((outcome.stats.attempts, outcome.nodes.len()), (13, 3), "{outcome:?}");
            assert_eq!(outcome.ended, FindEnd::Exhausted);
        } else {
            assert_eq!((outcome.stats.attempts as usize, outcome.ended), (limit, FindEnd::Limit));
        }
        assert!(outcome.stats.elapsed < 10 * SECOND, "{outcome:?}");
        cluster.drive(ms(100));
        assert_quiet(&mut cluster, 0, "limits");
        cluster.stop_all();
    }
}
