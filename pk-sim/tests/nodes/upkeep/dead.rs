//! Contacts that do not respond.

use pk_proto::{ClosestNodesQuery, Failure, Reply, Request, RequestOptions};

use crate::common::{NO, address};

use super::*;

#[test]
fn dead_nodes_leave_every_graph_after_few_dials() {
    let mut cluster = settled(10, |_| {});
    let before: Vec<_> = (0..7).map(|node| dials(&cluster, node)).collect();
    (7..10).for_each(|node| cluster.kill(node));
    cluster.drive(24 * HOUR);
    let mut remembered = 0;
    for (node, before) in before.into_iter().enumerate() {
        assert!((7..10).all(|dead| !knows(&cluster, node, dead)), "{node}");
        assert!((0..7).filter(|other| *other != node).all(|other| knows(&cluster, node, other)));
        let metrics = cluster.node(node).metrics();
        assert_eq!((metrics.nodes_dead, metrics.nodes_failing), (3, 0));
        remembered += metrics.nodes_lost;
        let total = dials(&cluster, node) - before;
        assert!(total < 10 * 24 + 150, "{total} dials of node {node} in a day");
    }
    // By those that had reached them by a dial.
    assert!((3..=21).contains(&remembered), "{remembered}");
    cluster.stop_all();
}

#[test]
fn failing_contact_is_reported_only_to_peers_that_search_for_it() {
    let mut cluster = settled(12, |_| {});
    let (dead, id) = (11, cluster.id(11));
    cluster.kill(dead);
    let failing =
        cluster.drive_until(|cluster| cluster.node(0).metrics().nodes_failing > 0, 4 * HOUR);
    assert!(failing && knows(&cluster, 0, dead), "it is failing and still a contact");
    let query = ClosestNodesQuery { known: true, connected: false };
    for (target, reported) in [(cluster.id(5), false), (cluster.id(1), false), (id, true)] {
        let via = cluster.id(0);
        let request = Request::QueryClosestNodes { via, target, query, options: NO };
        match cluster.ask(1, request) {
            Ok(Reply::QueryClosestNodes(closest)) => {
                let known = closest.known.iter().any(|(node, _)| *node == id);
                assert_eq!(known, reported, "{target}: {closest:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    cluster.stop_all();
}

#[test]
fn dial_at_a_wrong_address_is_no_failure_of_a_contact() {
    let mut cluster = settled(8, |_| {});
    let target = cluster.id(5);
    cluster.call(0, |node, now| node.disconnect(target, now));
    for _ in 0..5 {
        let options = RequestOptions { connect_timeout: Some(10 * SECOND), ..NO };
        let wrong = Request::Connect { target, address: address("203.0.113.9:9"), options };
        match cluster.ask(0, wrong) {
            Err(Failure::Dial(_)) => {}
            Ok(Reply::Connect(_)) => break,
            other => panic!("{other:?}"),
        }
        cluster.drive(MINUTE);
    }
    assert_eq!(cluster.node(0).metrics().nodes_failing, 0);
    assert!(knows(&cluster, 0, 5));
    cluster.stop_all();
}

/// Every contact of a node goes silent at once: checks become frequent, but not without limit.
#[test]
fn contacts_that_fall_silent_cause_a_bounded_number_of_dials() {
    let mut cluster = settled(40, |_| {});
    let before = dials(&cluster, 0);
    (5..40).for_each(|node| cluster.kill(node));
    cluster.drive(HOUR);
    let caused = dials(&cluster, 0) - before;
    assert!(caused <= 360 + 4 * 35, "{caused}");
    assert!((5..40).all(|dead| !knows(&cluster, 0, dead)));
    assert!((1..5).all(|other| knows(&cluster, 0, other)));
    cluster.stop_all();
}

#[test]
fn contact_that_is_unreachable_now_and_then_stays() {
    let mut cluster = settled(12, |_| {});
    let others: Vec<_> = (0..11).collect();
    for _ in 0..30 {
        cluster.partition(&[&[11], &others]);
        cluster.drive(MINUTE);
        cluster.heal();
        cluster.drive(2 * MINUTE);
    }
    cluster.drive(10 * MINUTE);
    assert!(others.iter().all(|node| knows(&cluster, *node, 11)), "it is a contact of all");
    assert_eq!(contacts(&cluster, 11), 11);
    cluster.stop_all();
}
