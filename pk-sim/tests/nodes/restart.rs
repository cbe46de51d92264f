//! Restarts, in virtual time: what a node finds in its store, and what it does first.

use std::collections::BTreeSet;
use std::time::Duration;

use pk_proto::{
    FindEnd, NodeContact, NodeId, Reply, Request, RequestError, RequestOptions, Scopes,
    SetNodeOptions, SetNodeOutcome,
};
use pk_sim::{Cluster, CrashPolicy, HostId, Store};

use crate::common::*;

fn network(nodes: usize) -> Cluster {
    let mut cluster = Cluster::quiet().nodes(nodes).seed(6).start();
    cluster.join_all();
    cluster.drive(SECOND);
    cluster
}

fn graph(cluster: &Cluster, node: HostId) -> Vec<(NodeId, NodeContact)> {
    cluster.node(node).graph().iter().map(|(node, contact)| (node, contact.clone())).collect()
}

// -- what a restarted node does

#[test]
fn restarted_node_dials_its_nearest_neighbours_first_and_needs_no_seed() {
    let mut cluster = network(40);
    let late = 17;
    let known: BTreeSet<_> = graph(&cluster, late).into_iter().map(|(id, _)| id).collect();
    cluster.stop(late);
    cluster.drive(SECOND);
    let dialed = cluster.dials(late).len();
    // The node that it had joined through has ended.
    cluster.kill(0);
    cluster.restart(late);
    cluster.drive(30 * SECOND);
    let own = cluster.id(late);
    let first: Vec<_> =
        cluster.dials(late)[dialed..].iter().take(3).map(|(_, addr)| *addr).collect();
    let mut nearest: Vec<HostId> =
        (0..40).filter(|node| known.contains(&cluster.id(*node))).collect();
    nearest.sort_by_key(|node| cluster.id(*node).distance(&own));
    let expected: Vec<_> = nearest[..3].iter().map(|node| cluster.host(*node).addrs()[0]).collect();
    assert_eq!(
        BTreeSet::from_iter(first),
        BTreeSet::from_iter(expected),
        "the nearest three, side by side"
    );
    // It is connected with the live ones of the nearest nodes, and can find and be found.
    let partners: BTreeSet<_> =
        cluster.node(late).connections().into_iter().map(|info| info.node).collect();
    for node in nearest.iter().take(10).filter(|node| **node != 0) {
        assert!(partners.contains(&cluster.id(*node)), "{node}");
    }
    for other in [3, 21, 39] {
        let target = cluster.id(other);
        assert_eq!(find(&mut cluster, late, target).ended, FindEnd::Connected);
        assert_eq!(find(&mut cluster, other, own).ended, FindEnd::Connected);
    }
    cluster.stop_all();
}

#[test]
fn dead_neighbours_do_not_delay_a_restarted_node() {
    let mut cluster = network(20);
    cluster.stop(5);
    let own = cluster.id(5);
    let mut nearest: Vec<HostId> = (0..20).filter(|node| *node != 5).collect();
    nearest.sort_by_key(|node| cluster.id(*node).distance(&own));
    nearest[..4].iter().for_each(|node| cluster.kill(*node));
    cluster.restart(5);
    let begun = cluster.now();
    let joined =
        cluster.drive_until(|cluster| cluster.node(5).connections().len() >= 5, 60 * SECOND);
    assert!(joined && cluster.now().since(begun) < 3 * SECOND, "{:?}", cluster.now().since(begun));
    cluster.stop_all();
}

#[test]
fn join_without_seeds_requires_a_contact() {
    let mut cluster = network(6);
    let sync = |blocking| Request::SyncNodeGraph {
        seeds: Vec::new(),
        blocking,
        options: RequestOptions::default(),
    };
    cluster.stop(2);
    cluster.restart(2);
    cluster.drive(SECOND);
    assert!(matches!(cluster.ask(2, sync(true)), Ok(Reply::SyncNodeGraph(_))));
    cluster.stop(2);
    cluster.kill(2);
    cluster.host_mut(2).store = Store::default();
    cluster.start_node(2);
    cluster.drive(Duration::ZERO);
    assert_eq!(cluster.try_request(2, sync(true)), Err(RequestError::NoSeeds));
    cluster.stop_all();
}

// -- the stored graph

#[test]
fn graph_is_the_same_after_a_stop_and_after_a_flush_and_a_crash() {
    let mut cluster = network(12);
    let before = graph(&cluster, 4);
    assert!(before.len() > 8);
    cluster.stop(4);
    let others: Vec<_> = (0..12).filter(|node| *node != 4).collect();
    cluster.partition(&[&[4], &others]);
    cluster.restart(4);
    cluster.drive(Duration::ZERO);
    assert_eq!(graph(&cluster, 4), before, "an orderly stop");

    for policy in [CrashPolicy::Lose, CrashPolicy::Keep, CrashPolicy::Random] {
        cluster.host_mut(4).store.crash = policy;
        let request = Request::SetNode {
            node: absent(1),
            address: address("203.0.113.1:1"),
            data: data(&cluster, Scopes::GLOBAL),
            how: SetNodeOptions::default(),
        };
        assert_eq!(cluster.ask(4, request), Ok(Reply::SetNode(SetNodeOutcome::Added)));
        let gone = before[0].0;
        cluster.call(4, |node, now| node.unset_node(gone, now).unwrap());
        let options = RequestOptions::default();
        assert_eq!(cluster.ask(4, Request::Flush { options }), Ok(Reply::Flush));
        let mut expected = graph(&cluster, 4);
        // A node that no connection has proven is not kept.
        expected.retain(|(node, _)| *node != absent(1));
        cluster.kill(4);
        cluster.start_node(4);
        cluster.drive(Duration::ZERO);
        assert_eq!(graph(&cluster, 4), expected, "{policy:?}");
    }
    cluster.stop_all();
}

/// After a kill at any time, the graph is a complete former one, no older than the last flush.
#[test]
fn graph_is_consistent_after_a_crash_at_any_time() {
    let mut sizes = BTreeSet::new();
    for pause in 0..20 {
        let mut cluster = Cluster::quiet()
            .nodes(8)
            .seed(pause)
            .config(|config| config.store_delay = ms(100))
            .start();
        cluster.host_mut(3).store.delay = ms(40);
        connect(&mut cluster, 3, 0);
        let options = RequestOptions::default();
        assert_eq!(cluster.ask(3, Request::Flush { options }), Ok(Reply::Flush));
        let flushed = cluster.id(0);
        for other in [1, 2, 4, 5] {
            let request = connect_request(&cluster, other);
            cluster.request(3, request);
        }
        cluster.drive(ms(17 * pause));
        cluster.kill(3);
        cluster.start_node(3);
        cluster.drive(Duration::ZERO);
        assert!(cluster.node(3).contact(flushed).is_some(), "after {pause}");
        sizes.insert(cluster.node(3).graph().len());
        cluster.drive(60 * SECOND);
        assert!(cluster.check_counters().stored > 0);
        cluster.stop_all();
    }
    assert!(sizes.len() > 1, "{sizes:?}");
}

// -- a store that fails

#[test]
fn failed_writes_are_retried_until_nothing_is_missing() {
    let mut cluster = Cluster::quiet().nodes(6).seed(6).start();
    for node in 0..6 {
        cluster.host_mut(node).store.fail_per_mille = 700;
    }
    cluster.join_all();
    cluster.drive(SECOND);
    let failures: u64 = (0..6).map(|node| cluster.node(node).metrics().store_failures).sum();
    assert!(failures > 5, "{failures}");
    let request = Request::Flush { options: RequestOptions::default() };
    let flushed: Vec<_> = (0..6).map(|node| cluster.ask(node, request.clone())).collect();
    assert!(
        flushed.iter().any(|reply| matches!(reply, Err(pk_proto::Failure::Store(_)))),
        "{flushed:?}"
    );
    (0..6).for_each(|node| cluster.host_mut(node).store.fail_per_mille = 0);
    cluster.drive(120 * SECOND);
    for node in 0..6 {
        assert_eq!(cluster.node(node).metrics().unwritten, 0);
    }
    // The checkers have compared the stores with the graphs.
    assert!(cluster.check_counters().stored > 20);
    cluster.stop_all();
}

/// Changes are written within the delay, also if more changes follow, and in one transaction at a
/// time.
#[test]
fn changes_are_written_within_a_bounded_delay() {
    let mut bare = Bare::new(|config| config.store_delay = 2 * SECOND);
    bare.accept(Bare::peer(1));
    bare.pass(ms(1999));
    let persists = |outputs: &[pk_proto::Output]| -> Vec<pk_proto::EffectId> {
        let persist = |output: &pk_proto::Output| match output {
            pk_proto::Output::Persist { id, durable: false, .. } => Some(*id),
            _ => None,
        };
        outputs.iter().filter_map(persist).collect()
    };
    assert_eq!(persists(&bare.take()), []);
    bare.accept(Bare::peer(2));
    bare.pass(ms(1));
    let first = persists(&bare.take());
    assert_eq!(first.len(), 1, "the second one has not put it off");
    bare.accept(Bare::peer(3));
    bare.pass(60 * SECOND);
    assert_eq!(persists(&bare.take()), [], "one at a time");
    bare.input(pk_proto::Input::Persisted { id: first[0], result: Ok(()) });
    bare.pass(2 * SECOND);
    let second = persists(&bare.take());
    assert_eq!(second.len(), 1);
    bare.input(pk_proto::Input::Persisted { id: second[0], result: Ok(()) });
    bare.pass(60 * SECOND);
    assert_eq!((persists(&bare.take()), bare.node.metrics().unwritten), (vec![], 0));
}
