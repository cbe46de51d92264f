//! Claims of many peers at once: each is queued, and none has to be drafted again.

use std::time::Duration;

use pk_proto::{Dialect, NodeId};
use pk_sim::{Cluster, HostId};

use super::kit::*;
use crate::common::{SECOND, ms};

/// Node 0 and this many others, which are connected to it over this dialect.
fn around(others: usize, dialect: Dialect, change: impl FnOnce(&mut pk_proto::Config)) -> Cluster {
    let mut cluster: Cluster = nodes(others + 1, change).seed(21).build();
    for node in 1..=others {
        cluster.host_mut(node).dialects = vec![dialect];
    }
    (0..=others).for_each(|node| cluster.start_node(node));
    cluster.drive(SECOND);
    (1..=others).for_each(|node| connect(&mut cluster, node, 0));
    cluster
}

/// The initiators of the claims in the chain of node 0.
fn issuers(cluster: &mut Cluster) -> Vec<NodeId> {
    chain(cluster, 0).iter().map(|claim| claim.link().unwrap().issuer).collect()
}

/// Every claim succeeds at its first attempt, with a fast store and a slow one.
#[test]
fn simultaneous_claims_of_many_nodes_succeed_at_the_first_attempt() {
    for dialect in [Dialect::Native, Dialect::Polykey] {
        for delay in [Duration::ZERO, ms(40)] {
            let mut cluster = around(12, dialect, |_| {});
            cluster.host_mut(0).store.delay = delay;
            let pairs: Vec<_> = (1..=12).map(|node| (node, 0)).collect();
            for (node, id) in begin(&mut cluster, &pairs) {
                claimed(cluster.await_done(node, id));
            }
            cluster.drive(SECOND);
            assert_eq!(issuers(&mut cluster).len(), 12, "{dialect:?}");
            for node in 0..=12 {
                let metrics = cluster.node(node).metrics();
                let again =
                    (metrics.claims_stale, metrics.signatures_refused, metrics.claim_faults);
                assert_eq!(again, (0, 0, 0), "{dialect:?}, node {node}, store {delay:?}");
                assert_settled(&cluster, node);
            }
            cluster.stop_all();
        }
    }
}

/// A node that has started many exchanges is not served before one that has started one.
#[test]
fn nodes_take_turns() {
    let mut cluster = around(2, Dialect::Native, |_| {});
    let pairs: Vec<_> = [(1, 0); 7].into_iter().chain([(2, 0)]).collect();
    for (node, id) in begin(&mut cluster, &pairs) {
        claimed(cluster.await_done(node, id));
    }
    let second = cluster.id(2);
    let at = issuers(&mut cluster).iter().position(|issuer| *issuer == second).unwrap();
    assert!(at <= 2, "it is claim {at} of 8");
    cluster.stop_all();
}

/// Initiators that send nothing further lose their turns; the peers behind them are served within
/// their timeout.
#[test]
fn silent_peers_delay_others_by_a_bounded_time() {
    let wait = 4 * SECOND;
    let mut cluster = around(6, Dialect::Native, |config| config.claim_wait_timeout = wait);
    let silent: Vec<HostId> = (2..=6).collect();
    for node in &silent {
        let request = claim(&cluster, 0);
        cluster.request(*node, request);
    }
    assert!(cluster.drive_until(|cluster| cluster.node(0).metrics().exchanges == 5, SECOND));
    cluster.partition(&[&[0, 1], &silent]);
    let begun = cluster.now();
    let request = claim(&cluster, 0);
    claimed(cluster.ask(1, request));
    let took = cluster.now().since(begun);
    assert!(took <= wait + SECOND, "{took:?}");
    assert!(took >= wait / 8, "they delayed no other node: nothing was shown");
    // No state of them is left, and no timer.
    cluster.drive(60 * SECOND);
    assert_settled(&cluster, 0);
    cluster.stop_all();
}

/// While a Polykey 1.x node is about to send its last message, which it cannot repeat, local claims
/// wait.
#[test]
fn local_claims_yield_to_a_peer_that_cannot_retry() {
    let mut cluster = around(3, Dialect::Polykey, |_| {});
    let mut refused = 0;
    for round in 0..10 {
        let mut requests = begin(&mut cluster, &[(1, 0), (2, 0)]);
        cluster.drive(ms(round * 17));
        requests.extend(begin(&mut cluster, &[(0, 3)]));
        let own = own_claim(&cluster, 0);
        let own = cluster.request(0, own);
        for (node, id) in requests {
            claimed(cluster.await_done(node, id));
        }
        assert!(cluster.await_done(0, own).is_ok());
        refused = (1..=2).map(|node| cluster.node(node).metrics().claims_stale).sum();
    }
    assert_eq!(refused, 0, "claims of others that were overtaken");
    assert_eq!(chain(&mut cluster, 0).len(), 40);
    cluster.stop_all();
}
