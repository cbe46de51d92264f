//! No two nodes wait for each other: all simultaneous claims succeed.

use pk_proto::Failure;
use pk_sim::{Cluster, HostId, Link};

use super::kit::*;
use crate::common::{SECOND, ms};

/// Which nodes claim each other.
type Cycle = &'static [(HostId, HostId)];

const PAIR: Cycle = &[(0, 1), (1, 0)];
const RING: Cycle = &[(0, 1), (1, 2), (2, 0)];
const BOTH_WAYS: Cycle = &[(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)];

/// Runs rounds of simultaneous claims; each round ends before the next starts. Returns the number
/// of claims that became stale and were drafted again.
fn rounds(cycle: Cycle, rounds: usize, link: Link, seed: u64) -> u64 {
    let count = cycle.iter().map(|(from, _)| from + 1).max().unwrap();
    let mut cluster: Cluster = nodes(count, |_| {}).seed(seed).link(link).start();
    for (from, to) in cycle {
        connect(&mut cluster, *from, *to);
    }
    for round in 1..=rounds {
        let requests = begin(&mut cluster, cycle);
        for (node, id) in requests {
            // Otherwise its deadline of 60 s would end it.
            claimed(cluster.await_done(node, id));
        }
        for (from, to) in cycle {
            assert_linked(&mut cluster, *from, *to, round);
        }
    }
    let mut stale = 0;
    for node in 0..count {
        let own = cycle.iter().filter(|(from, to)| *from == node || *to == node).count();
        assert_eq!(chain(&mut cluster, node).len(), own * rounds);
        assert_settled(&cluster, node);
        stale += cluster.node(node).metrics().claims_stale;
    }
    cluster.stop_all();
    stale
}

#[test]
fn simultaneous_claims_of_two_nodes_both_succeed() {
    let stale = rounds(PAIR, 10, Link::ms(40).jitter(ms(30)), 1);
    assert!(stale > 0, "they never met: nothing was shown");
}

#[test]
fn simultaneous_claims_in_a_ring_of_three_nodes_succeed() {
    let stale = rounds(RING, 10, Link::ms(40).jitter(ms(30)), 2);
    assert!(stale > 0, "they never met: nothing was shown");
}

#[test]
fn simultaneous_claims_of_three_nodes_succeed_under_loss() {
    for seed in 3..8 {
        let stale = rounds(BOTH_WAYS, 4, Link::ms(60).jitter(ms(40)).loss(50), seed);
        assert!(stale > 0, "they never met: nothing was shown");
    }
}

/// All at one instant, on links without delay: as many collisions as possible.
#[test]
fn simultaneous_claims_succeed_on_the_fastest_and_slowest_links() {
    rounds(PAIR, 10, Link::ms(0), 9);
    rounds(BOTH_WAYS, 3, Link::ms(0), 10);
    rounds(RING, 3, Link::ms(1000).jitter(ms(500)).loss(20), 11);
}

/// A node with many simultaneous claims is also a responder.
#[test]
fn many_claims_between_two_nodes_all_succeed() {
    let mut cluster = started(2, 12, |_| {});
    connect(&mut cluster, 0, 1);
    let pairs = [(0, 1); 6].into_iter().chain([(1, 0); 6]).collect::<Vec<_>>();
    let requests = begin(&mut cluster, &pairs);
    for (node, id) in requests {
        claimed(cluster.await_done(node, id));
    }
    assert_linked(&mut cluster, 0, 1, 6);
    assert_linked(&mut cluster, 1, 0, 6);
    cluster.stop_all();
}

/// A silent peer delays neither other peers nor the claims of the local node.
#[test]
fn disconnected_initiator_does_not_block_other_exchanges() {
    let mut cluster = started(3, 13, |_| {});
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    connect(&mut cluster, 2, 1);
    // Its first message is answered, and it never continues.
    let request = claim(&cluster, 0);
    cluster.request(2, request);
    assert!(cluster.drive_until(|cluster| cluster.node(0).metrics().exchanges == 1, SECOND));
    cluster.partition(&[&[0, 1], &[2]]);
    let begun = cluster.now();
    let requests = begin(&mut cluster, PAIR);
    for (node, id) in requests {
        claimed(cluster.await_done(node, id));
    }
    assert!(cluster.now().since(begun) < 5 * SECOND);
    cluster.drive(60 * SECOND);
    assert_settled(&cluster, 0);
    cluster.heal();
    let request = claim(&cluster, 0);
    claimed(cluster.ask(2, request));
    cluster.stop_all();
}

#[test]
fn claim_with_a_killed_peer_fails_in_bounded_time() {
    let mut cluster = started(2, 14, |_| {});
    connect(&mut cluster, 0, 1);
    cluster.kill(1);
    let request = claim(&cluster, 1);
    let begun = cluster.now();
    let failure = cluster.ask(0, request).unwrap_err();
    assert!(
        matches!(failure, Failure::ConnectionLost(_) | Failure::DeadlineExceeded),
        "{failure:?}"
    );
    assert!(cluster.now().since(begun) <= 61 * SECOND);
    assert_settled(&cluster, 0);
    assert_eq!(chain(&mut cluster, 0).len(), 0);
}
