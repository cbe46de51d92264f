//! A store that fails without a known outcome of a write: nothing is decided before the outcome is
//! known.

use pk_proto::{Event, Failure, NodeId, Reply, Request, RequestId, RequestOptions};
use pk_sim::{Cluster, HostId, WriteFault};

use super::kit::*;
use crate::common::{SECOND, by};

/// The outcome of the next write of a node is unknown, and then nothing can be read until
/// [`make_readable`].
fn fail_next(cluster: &mut Cluster, node: HostId, fault: WriteFault) {
    let store = &mut cluster.host_mut(node).store;
    store.unreadable = u32::MAX;
    store.faults.insert(store.writes() + 1, fault);
}

fn make_readable(cluster: &mut Cluster, node: HostId) {
    let store = &mut cluster.host_mut(node).store;
    (store.unreadable, store.fail_reads) = (0, 0);
}

fn own_claim_by(cluster: &Cluster, node: HostId, seconds: u32) -> Request {
    match own_claim(cluster, node) {
        Request::AddClaim { content, .. } => {
            Request::AddClaim { content, options: by(seconds * SECOND) }
        }
        other => panic!("{other:?}"),
    }
}

fn added(cluster: &Cluster, node: HostId) -> usize {
    events(cluster, node, |event| matches!(event, Event::ClaimAdded { .. }).then_some(())).len()
}

fn outcome(cluster: &Cluster, node: HostId, id: RequestId) -> Option<Result<Reply, Failure>> {
    cluster.done(node, id).cloned()
}

fn is_unknown(result: &Option<Result<Reply, Failure>>) -> bool {
    matches!(result, Some(Err(Failure::OutcomeUnknown(_))))
}

#[test]
fn nothing_is_appended_while_the_chain_head_is_unknown() {
    for (fault, length) in [(WriteFault::Written, 1), (WriteFault::Lost, 0)] {
        let mut cluster = started(2, 21, |_| {});
        fail_next(&mut cluster, 0, fault);
        let request = own_claim_by(&cluster, 0, 5);
        let first = cluster.request(0, request);
        cluster.drive(SECOND);
        let request = own_claim_by(&cluster, 0, 2);
        let second = cluster.request(0, request);
        let patient = own_claim_by(&cluster, 0, 3600);
        let patient = cluster.request(0, patient);
        cluster.drive(SECOND);
        assert_eq!(
            (outcome(&cluster, 0, first), outcome(&cluster, 0, second)),
            (None, None),
            "{fault:?}"
        );
        // A claim that is being written is not cancelled.
        cluster.cancel(0, first);
        cluster.drive(10 * SECOND);
        assert!(is_unknown(&outcome(&cluster, 0, first)), "{fault:?}");
        let head = outcome(&cluster, 0, second);
        assert!(matches!(head, Some(Err(Failure::HeadUnknown(_)))), "{fault:?}: {head:?}");
        assert_eq!((outcome(&cluster, 0, patient), added(&cluster, 0)), (None, 0));
        assert!(cluster.node(0).metrics().writes_unknown == 1);

        make_readable(&mut cluster, 0);
        cluster.drive(60 * SECOND);
        assert!(matches!(outcome(&cluster, 0, patient), Some(Ok(Reply::AddClaim(_)))), "{fault:?}");
        assert_eq!(added(&cluster, 0), length + 1, "{fault:?}");
        assert_eq!(chain(&mut cluster, 0).len(), length + 1, "{fault:?}");
        cluster.stop_all();
    }
}

#[test]
fn link_continues_without_its_request_once_its_outcome_is_known() {
    for (fault, links) in [(WriteFault::Written, 1), (WriteFault::Lost, 0)] {
        let mut cluster = started(2, 22, |_| {});
        connect(&mut cluster, 0, 1);
        fail_next(&mut cluster, 0, fault);
        let request = Request::ClaimNode { target: cluster.id(1), options: by(3 * SECOND) };
        let id = cluster.request(0, request);
        cluster.drive(20 * SECOND);
        assert!(is_unknown(&outcome(&cluster, 0, id)), "{fault:?}: {:?}", outcome(&cluster, 0, id));
        make_readable(&mut cluster, 0);
        cluster.drive(200 * SECOND);
        for node in [0, 1] {
            assert_eq!(chain(&mut cluster, node).len(), links, "{fault:?}, node {node}");
            assert_settled(&cluster, node);
        }
        assert_eq!(added(&cluster, 0), links);
        // Another claim continues the chain.
        let again = claim(&cluster, 1);
        claimed(cluster.ask(0, again));
        assert_eq!(chain(&mut cluster, 0).len(), links + 1);
        cluster.stop_all();
    }
}

#[test]
fn immediately_resolved_outcome_is_a_success_or_a_failure() {
    for (fault, written) in [(WriteFault::Written, true), (WriteFault::Lost, false)] {
        let mut cluster = started(2, 23, |_| {});
        let node = cluster.id(1);
        fail_next(&mut cluster, 0, fault);
        make_readable(&mut cluster, 0);
        let allowed = cluster.ask(
            0,
            Request::AllowClaim { node, allowed: true, options: RequestOptions::default() },
        );
        assert_eq!(allowed.is_ok(), written, "{fault:?}: {allowed:?}");
        assert!(written || matches!(allowed, Err(Failure::Store(_))), "{allowed:?}");
        assert_eq!(
            cluster.node(0).allowed_claims().collect::<Vec<_>>(),
            if written { vec![node] } else { vec![] }
        );

        let before = cluster.id(0);
        fail_next(&mut cluster, 0, fault);
        make_readable(&mut cluster, 0);
        let renewed = cluster.renew(0);
        assert_eq!(renewed.is_ok(), written, "{fault:?}: {renewed:?}");
        assert_eq!(cluster.id(0) != before, written);
        cluster.restart(0);
        assert_eq!(cluster.node(0).allowed_claims().count(), usize::from(written));
        cluster.stop_all();
    }
}

/// The allow-list of a node, in memory and in its store.
fn allowed(cluster: &Cluster, node: HostId) -> (Vec<NodeId>, usize) {
    let stored = cluster.host(node).store.table(pk_proto::Table::AllowList).count();
    (cluster.node(node).allowed_claims().collect(), stored)
}

#[test]
fn allow_list_matches_the_store_after_unknown_and_failed_writes() {
    for fault in [WriteFault::Written, WriteFault::Lost] {
        let mut cluster = started(2, 24, |_| {});
        let node = cluster.id(1);
        let allow = |allowed| Request::AllowClaim { node, allowed, options: by(3 * SECOND) };
        fail_next(&mut cluster, 0, fault);
        let id = cluster.request(0, allow(true));
        cluster.cancel(0, id);
        cluster.drive(SECOND);
        assert_eq!((outcome(&cluster, 0, id), allowed(&cluster, 0).0), (None, vec![]));
        cluster.drive(10 * SECOND);
        assert!(is_unknown(&outcome(&cluster, 0, id)), "{fault:?}");
        make_readable(&mut cluster, 0);
        cluster.drive(60 * SECOND);
        let (list, stored) = allowed(&cluster, 0);
        assert_eq!(
            (list.len(), stored),
            if fault == WriteFault::Written { (1, 1) } else { (0, 0) }
        );
        // A refused change has no effect, and a write that takes longer than its deadline is
        // awaited.
        cluster.host_mut(0).store.fail_next = 1;
        let refused = cluster.ask(0, allow(list.is_empty()));
        assert!(matches!(refused, Err(Failure::Store(_))), "{refused:?}");
        assert_eq!(allowed(&cluster, 0), (list, stored));
        cluster.host_mut(0).store.delay = 5 * SECOND;
        assert_eq!(cluster.ask(0, allow(true)), Ok(Reply::AllowClaim));
        assert_eq!(allowed(&cluster, 0), (vec![node], 1));
        cluster.host_mut(0).store.delay = std::time::Duration::ZERO;
        cluster.stop_all();
    }
}

#[test]
fn renewal_with_an_unknown_outcome_is_decided_later() {
    for (fault, written) in [(WriteFault::Written, true), (WriteFault::Lost, false)] {
        let mut cluster = started(2, 25, |config| config.request_deadline = 5 * SECOND);
        let before = cluster.id(0);
        fail_next(&mut cluster, 0, fault);
        let id = cluster.begin_renewal(0).unwrap();
        cluster.drive(10 * SECOND);
        assert!(is_unknown(&outcome(&cluster, 0, id)), "{fault:?}");
        assert_eq!(cluster.node(0).own_id(), before);
        assert_eq!(cluster.node(0).metrics().requests_open, 0);
        assert!(cluster.begin_renewal(0).is_err(), "the first one is not over");
        make_readable(&mut cluster, 0);
        cluster.drive(60 * SECOND);
        assert_eq!(cluster.node(0).own_id() != before, written, "{fault:?}");
        let renewals = |event: &Event| matches!(event, Event::IdentityRenewed { .. }).then_some(());
        assert_eq!(events(&cluster, 0, renewals).len(), usize::from(written));
        cluster.restart(0);
        assert_eq!(cluster.node(0).own_id() != before, written, "{fault:?}");
        cluster.stop_all();
    }
}

#[test]
fn flush_is_repeated_until_its_outcome_is_known() {
    let mut cluster = started(2, 26, |config| config.store_delay = 3600 * SECOND);
    connect(&mut cluster, 0, 1);
    fail_next(&mut cluster, 0, WriteFault::Lost);
    make_readable(&mut cluster, 0);
    assert_eq!(cluster.ask(0, Request::Flush { options: by(30 * SECOND) }), Ok(Reply::Flush));
    // As long as the store does not know the outcome, success is not reported.
    connect(&mut cluster, 1, 0);
    cluster.call(0, |node, now| node.reset_buckets(now).unwrap());
    let peer = cluster.id(1);
    cluster.call(0, |node, now| node.unset_node(peer, now)).unwrap();
    cluster.host_mut(0).store.unknown_per_mille = 1000;
    let flush = cluster.ask(0, Request::Flush { options: by(20 * SECOND) });
    assert!(matches!(flush, Err(Failure::OutcomeUnknown(_))), "{flush:?}");
    cluster.host_mut(0).store.unknown_per_mille = 0;
    cluster.drive(100 * SECOND);
    assert_eq!(cluster.ask(0, Request::Flush { options: by(20 * SECOND) }), Ok(Reply::Flush));
    cluster.stop_all();
}

#[test]
fn stop_does_not_wait_for_an_unresponsive_store() {
    let mut cluster = started(2, 27, |_| {});
    fail_next(&mut cluster, 0, WriteFault::Written);
    let request = own_claim_by(&cluster, 0, 3600);
    let id = cluster.request(0, request);
    cluster.drive(SECOND);
    cluster.call(0, pk_proto::NodeManager::stop);
    cluster.drive(2 * SECOND);
    assert!(cluster.node(0).is_stopped());
    assert!(is_unknown(&outcome(&cluster, 0, id)));
    // The outcome is known after the next start.
    make_readable(&mut cluster, 0);
    cluster.stop_all();
}
