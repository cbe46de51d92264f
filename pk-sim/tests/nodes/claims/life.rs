//! Claims while a node stops, cancels or renews its key, and while its store or its signer fails.

use pk_proto::claims::{ClaimPolicy, ClaimStep};
use pk_proto::{
    Dialect, Event, Failure, Input, NodeManager, Refusal, Reply, Request, RequestOptions, Table,
};
use pk_sim::{Cluster, CrashPolicy, HostId};

use super::kit::*;
use crate::common::{SECOND, ms};

/// Two connected nodes whose effects have delays.
fn slow(seed: u64) -> Cluster {
    let mut cluster = started(2, seed, |_| {});
    for node in [0, 1] {
        let host = cluster.host_mut(node);
        host.sign_delay = Some(ms(2));
        host.store.delay = ms(3);
    }
    connect(&mut cluster, 0, 1);
    cluster
}

/// Runs the cluster until an exchange of a node is in this step.
fn until(cluster: &mut Cluster, node: HostId, step: ClaimStep) {
    let is = |cluster: &Cluster| {
        cluster.node(node).exchanges().iter().any(|exchange| exchange.step == step)
    };
    assert!(cluster.drive_until(is, 10 * SECOND), "{step:?}");
}

const INITIATOR: [ClaimStep; 6] = [
    ClaimStep::SigningFirst,
    ClaimStep::Asked,
    ClaimStep::HalfAnswered,
    ClaimStep::SigningLast,
    ClaimStep::Persisting,
    ClaimStep::Finishing,
];
const RESPONDER: [ClaimStep; 6] = [
    ClaimStep::LookingUp,
    ClaimStep::SigningTheirs,
    ClaimStep::SigningMine,
    ClaimStep::Agreeing,
    ClaimStep::Answered,
    ClaimStep::Appending,
];

/// Whether the claim is committed, or being committed, in a step.
fn is_committing(step: ClaimStep) -> bool {
    matches!(step, ClaimStep::Persisting | ClaimStep::Finishing)
}

// -- ends

#[test]
fn claim_can_be_cancelled_until_it_is_committed() {
    for step in INITIATOR {
        // Both answers arrive at once.
        if step == ClaimStep::HalfAnswered {
            continue;
        }
        let mut cluster = slow(1);
        let request = claim(&cluster, 1);
        let id = cluster.request(0, request);
        until(&mut cluster, 0, step);
        cluster.cancel(0, id);
        let result = cluster.await_done(0, id);
        cluster.drive(60 * SECOND);
        if is_committing(step) {
            claimed(result);
            assert_linked(&mut cluster, 0, 1, 1);
        } else {
            assert_eq!(result, Err(Failure::Cancelled), "{step:?}");
            assert_eq!([0, 1].map(|node| chain(&mut cluster, node).len()), [0, 0], "{step:?}");
        }
        [0, 1].iter().for_each(|node| assert_settled(&cluster, *node));
        cluster.stop_all();
    }
}

#[test]
fn deadline_ends_a_claim_or_leaves_it_unconfirmed_once_committed() {
    let mut cluster = slow(2);
    // The connection is closed as soon as the claim is committed.
    let options = RequestOptions { deadline: Some(5 * SECOND), ..RequestOptions::default() };
    let id = cluster.request(0, Request::ClaimNode { target: cluster.id(1), options });
    until(&mut cluster, 0, ClaimStep::Persisting);
    cluster.partition(&[&[0], &[1]]);
    let begun = cluster.now();
    let claim = match cluster.await_done(0, id) {
        Err(Failure::ClaimUnconfirmed(claim)) => claim,
        other => panic!("{other:?}"),
    };
    assert!(cluster.now().since(begun) <= 5 * SECOND);
    let node = cluster.id(1);
    let doubts = |event: &Event| match event {
        Event::ClaimUnconfirmed { claim, node } => Some((*claim, *node)),
        _ => None,
    };
    assert_eq!(events(&cluster, 0, doubts), [(claim, node)]);
    assert_eq!(cluster.node(0).unconfirmed_claims().collect::<Vec<_>>(), [(claim, node)]);
    // After a restart it is still reported, and confirmed when the nodes connect.
    cluster.restart(0);
    cluster.drive(100 * SECOND);
    assert_eq!(events(&cluster, 0, doubts), [(claim, node); 2]);
    cluster.heal();
    connect(&mut cluster, 0, 1);
    let settled = |event: &Event| match event {
        Event::ClaimConfirmed { claim, node } => Some((*claim, *node)),
        _ => None,
    };
    assert_eq!(events(&cluster, 0, settled), [(claim, node)]);
    assert_linked(&mut cluster, 0, 1, 1);
    assert_settled(&cluster, 0);
    cluster.stop_all();
}

/// A connection that ends while a claim is unconfirmed is opened again, and the exchange continues
/// within its deadline.
#[test]
fn committed_claim_continues_over_a_new_connection() {
    let mut cluster = slow(3);
    let request = claim(&cluster, 1);
    let id = cluster.request(0, request);
    until(&mut cluster, 0, ClaimStep::Finishing);
    let peer = cluster.id(1);
    cluster.call(0, |node, now| node.disconnect(peer, now));
    claimed(cluster.await_done(0, id));
    assert_linked(&mut cluster, 0, 1, 1);
    [0, 1].iter().for_each(|node| assert_settled(&cluster, *node));
    cluster.stop_all();
}

#[test]
fn stop_in_any_step_leaves_a_claim_at_both_sides_or_none() {
    for (node, step) in
        INITIATOR.iter().map(|step| (0, *step)).chain(RESPONDER.iter().map(|step| (1, *step)))
    {
        if step == ClaimStep::HalfAnswered {
            continue;
        }
        let mut cluster = slow(4);
        let request = claim(&cluster, 1);
        let id = cluster.request(0, request);
        until(&mut cluster, node, step);
        // Waits until it has stopped: within its second, not by force.
        let begun = cluster.now();
        cluster.stop(node);
        assert!(cluster.now().since(begun) < ms(900), "{step:?}");
        if node == 0 {
            match cluster.done(0, id) {
                Some(Err(Failure::ClaimUnconfirmed(_))) => assert!(is_committing(step), "{step:?}"),
                Some(Err(Failure::Stopped)) => assert!(!is_committing(step), "{step:?}"),
                other => panic!("{step:?}: {other:?}"),
            }
        }
        cluster.drive(SECOND);
        cluster.restart(node);
        cluster.drive(100 * SECOND);
        connect(&mut cluster, 0, 1);
        cluster.drive(100 * SECOND);
        let mine = chain(&mut cluster, 0).len();
        assert_eq!(chain(&mut cluster, 1).len(), mine, "{step:?}");
        assert_eq!(
            mine,
            usize::from(
                node == 1 && step == ClaimStep::Appending || node == 0 && is_committing(step)
            ),
            "{step:?}"
        );
        [0, 1].iter().for_each(|node| assert_settled(&cluster, *node));
        cluster.stop_all();
    }
}

// -- another key

/// Either side renews its key in any step: the claims are completed, by old keys or by new ones,
/// and the chains are valid.
#[test]
fn renewal_in_any_step_of_a_claim_keeps_chains_valid() {
    for (node, step) in
        INITIATOR.iter().map(|step| (0, *step)).chain(RESPONDER.iter().map(|step| (1, *step)))
    {
        if step == ClaimStep::HalfAnswered {
            continue;
        }
        let mut cluster = slow(5);
        let request = claim(&cluster, 1);
        claimed(cluster.ask(0, request.clone()));
        let id = cluster.request(0, request);
        until(&mut cluster, node, step);
        assert!(matches!(cluster.renew(node), Ok(Reply::Renew { .. })));
        let result = cluster.await_done(0, id);
        cluster.drive(100 * SECOND);
        assert!(matches!(result, Ok(Reply::ClaimNode(_))), "{step:?}: {result:?}");
        assert_linked(&mut cluster, 0, 1, 2);
        // And it continues under the new key.
        connect(&mut cluster, 0, 1);
        let request = claim(&cluster, 1);
        claimed(cluster.ask(0, request));
        let request = claim(&cluster, 0);
        claimed(cluster.ask(1, request));
        assert_linked(&mut cluster, 0, 1, 3);
        assert_eq!([0, 1].map(|node| chain(&mut cluster, node).len()), [4, 4]);
        [0, 1].iter().for_each(|node| assert_settled(&cluster, *node));
        cluster.restart(node);
        cluster.drive(SECOND);
        assert_eq!(chain(&mut cluster, node).len(), 4);
        cluster.stop_all();
    }
}

#[test]
fn allowed_node_stays_allowed_after_its_renewal() {
    let mut cluster = started(2, 6, |config| config.claim_policy = ClaimPolicy::AllowList);
    let node = cluster.id(0);
    let allow = Request::AllowClaim { node, allowed: true, options: RequestOptions::default() };
    assert_eq!(cluster.ask(1, allow), Ok(Reply::AllowClaim));
    connect(&mut cluster, 0, 1);
    assert!(matches!(cluster.renew(0), Ok(Reply::Renew { .. })));
    cluster.drive(60 * SECOND);
    let request = claim(&cluster, 1);
    claimed(cluster.ask(0, request));
    assert_linked(&mut cluster, 0, 1, 1);
    cluster.stop_all();
}

// -- local failures

#[test]
fn failed_write_fails_only_one_attempt() {
    // The only write of the initiator in an exchange before its claim is committed.
    let mut cluster = slow(7);
    let request = claim(&cluster, 1);
    let id = cluster.request(0, request.clone());
    until(&mut cluster, 0, ClaimStep::Persisting);
    cluster.host_mut(0).store.fail_next = 1;
    let result = cluster.await_done(0, id);
    assert!(matches!(result, Err(Failure::Store(_))), "{result:?}");
    assert_eq!(cluster.node(0).chain_head(), None);
    cluster.drive(60 * SECOND);
    assert_eq!([0, 1].map(|node| chain(&mut cluster, node).len()), [0, 0]);
    claimed(cluster.ask(0, request));
    assert_linked(&mut cluster, 0, 1, 1);
    // Both of the responder's: the initiator tries again, within its deadline.
    for step in [ClaimStep::Agreeing, ClaimStep::Appending] {
        let mut cluster = slow(8);
        let request = claim(&cluster, 1);
        let id = cluster.request(0, request);
        until(&mut cluster, 1, step);
        cluster.host_mut(1).store.fail_next = 1;
        claimed(cluster.await_done(0, id));
        assert_eq!(cluster.node(1).metrics().store_failures, 1, "{step:?}");
        assert_linked(&mut cluster, 0, 1, 1);
        [0, 1].iter().for_each(|node| assert_settled(&cluster, *node));
        cluster.stop_all();
    }
}

#[test]
fn initiator_without_its_key_fails_and_responder_without_its_key_is_retried() {
    let mut cluster = slow(9);
    let keys = std::mem::take(&mut cluster.host_mut(0).keys);
    let request = claim(&cluster, 1);
    let result = cluster.ask(0, request.clone());
    assert!(matches!(result, Err(Failure::Signing(_))), "{result:?}");
    assert_eq!(cluster.node(0).metrics().signing_failures, 1);
    cluster.host_mut(0).keys = keys;
    // A responder whose key is unavailable for some time is asked again.
    let keys = std::mem::take(&mut cluster.host_mut(1).keys);
    let id = cluster.request(0, request);
    cluster.drive(SECOND);
    assert!(cluster.done(0, id).is_none() && cluster.node(1).metrics().signing_failures > 0);
    cluster.host_mut(1).keys = keys;
    claimed(cluster.await_done(0, id));
    assert_linked(&mut cluster, 0, 1, 1);
    cluster.stop_all();
}

/// Inputs about unknown effects change nothing.
#[test]
fn late_answers_are_counted_and_ignored() {
    let mut cluster = slow(10);
    let request = claim(&cluster, 1);
    let id = cluster.request(0, request);
    until(&mut cluster, 0, ClaimStep::SigningFirst);
    // It ends before its signature is there.
    cluster.cancel(0, id);
    cluster.drive(SECOND);
    assert_eq!(cluster.done(0, id), Some(&Err(Failure::Cancelled)));
    let late = |node: &NodeManager| node.metrics().late_inputs;
    let before = late(cluster.node(0));
    cluster.call(0, |node, now| {
        node.handle_input(
            Input::Signed { id: pk_proto::EffectId(99_999), result: Err("late".into()) },
            now,
        );
        node.handle_input(
            Input::Loaded { id: pk_proto::EffectId(99_999), result: Ok((vec![], false)) },
            now,
        );
        node.handle_input(Input::Persisted { id: pk_proto::EffectId(99_999), result: Ok(()) }, now);
    });
    assert_eq!(late(cluster.node(0)), before + 3);
    assert_eq!(cluster.host(0).store.table(Table::Claims).count(), 0);
}

// -- stored exchanges

/// A peer that has accepted a claim completes it, also if the initiator is no longer allowed.
#[test]
fn accepted_claim_is_completed_after_its_initiator_is_disallowed() {
    let mut cluster = started(2, 11, |config| config.claim_policy = ClaimPolicy::AllowList);
    let node = cluster.id(0);
    let allow = |allowed| Request::AllowClaim { node, allowed, options: RequestOptions::default() };
    assert_eq!(cluster.ask(1, allow(true)), Ok(Reply::AllowClaim));
    connect(&mut cluster, 0, 1);
    let request = claim(&cluster, 1);
    cluster.request(0, request.clone());
    // The last message is not sent: the other node has only accepted the claim.
    until(&mut cluster, 0, ClaimStep::Persisting);
    cluster.host_mut(0).store.crash = CrashPolicy::Keep;
    cluster.kill(0);
    cluster.drive(60 * SECOND);
    assert_eq!(chain(&mut cluster, 1).len(), 0);
    assert_eq!(cluster.ask(1, allow(false)), Ok(Reply::AllowClaim));
    cluster.restart(1);
    cluster.start_node(0);
    cluster.drive(SECOND);
    connect(&mut cluster, 0, 1);
    assert_linked(&mut cluster, 0, 1, 1);
    // A new one is refused.
    assert_eq!(cluster.ask(0, request), Err(Failure::Refused(Refusal::Denied)));
    cluster.stop_all();
}

/// A peer that is killed in between and has no reset secret, like nodes of Polykey 1.x, is silent:
/// the claim continues after its next start.
#[test]
fn claim_continues_after_a_restart_of_a_peer_without_a_reset_secret() {
    for step in INITIATOR {
        // Both answers arrive at once.
        if step == ClaimStep::HalfAnswered {
            continue;
        }
        let mut cluster = slow(14);
        cluster.host_mut(1).transport.keeps_secret = false;
        let request = claim(&cluster, 1);
        let id = cluster.request(0, request);
        until(&mut cluster, 0, step);
        let begun = cluster.now();
        cluster.restart(1);
        claimed(cluster.await_done(0, id));
        let took = cluster.now().since(begun);
        assert!(took < 3 * SECOND, "{step:?}: {took:?}");
        cluster.drive(60 * SECOND);
        assert_linked(&mut cluster, 0, 1, 1);
        [0, 1].iter().for_each(|node| assert_settled(&cluster, *node));
        cluster.stop_all();
    }
}

/// An unconfirmed claim is also resumed with a peer that stays connected, not only after a
/// reconnect.
#[test]
fn unconfirmed_claim_is_resumed_while_its_peer_is_connected() {
    let mut cluster = slow(12);
    let options = RequestOptions { deadline: Some(2 * SECOND), ..RequestOptions::default() };
    let id = cluster.request(0, Request::ClaimNode { target: cluster.id(1), options });
    until(&mut cluster, 0, ClaimStep::Persisting);
    // The peer is busy with a failing disk for longer than the claim may take.
    cluster.host_mut(1).store.fail_per_mille = 1000;
    assert!(matches!(cluster.await_done(0, id), Err(Failure::ClaimUnconfirmed(_))));
    cluster.host_mut(1).store.fail_per_mille = 0;
    cluster.drive(10 * SECOND);
    assert_eq!(cluster.node(0).unconfirmed_claims().count(), 1, "not before claim_resume_delay");
    cluster.drive(20 * SECOND);
    assert_linked(&mut cluster, 0, 1, 1);
    assert_settled(&cluster, 0);
    cluster.stop_all();
}

/// A node of the reference would answer with another claim and have two: it receives a request only
/// if it has none.
#[test]
fn resumed_claim_over_quic_reads_the_chain_of_the_peer_first() {
    for has_it in [false, true] {
        let mut cluster = nodes(2, |_| {}).seed(13).build();
        for node in [0, 1] {
            cluster.host_mut(node).dialects = vec![Dialect::Polykey];
            cluster.start_node(node);
        }
        cluster.drive(SECOND);
        connect(&mut cluster, 0, 1);
        let request = claim(&cluster, 1);
        // The peer's chain has others before and after it.
        let own = own_claim(&cluster, 1);
        assert!(cluster.ask(1, own.clone()).is_ok());
        cluster.request(0, request);
        until(&mut cluster, 0, ClaimStep::Persisting);
        cluster.host_mut(0).store.crash = CrashPolicy::Keep;
        if has_it {
            let has = |cluster: &Cluster| cluster.host(1).store.table(Table::Answered).count() == 1;
            assert!(cluster.drive_until(has, SECOND));
        }
        cluster.kill(0);
        cluster.drive(60 * SECOND);
        assert!(cluster.ask(1, own).is_ok());
        let signed = cluster.node(1).metrics().claims_signed;
        cluster.start_node(0);
        cluster.drive(SECOND);
        connect(&mut cluster, 0, 1);
        let again = cluster.node(1).metrics().claims_signed - signed;
        assert_eq!(again, u64::from(!has_it), "whether it was asked to sign again");
        assert_linked(&mut cluster, 0, 1, 1);
        assert_settled(&cluster, 0);
        cluster.stop_all();
    }
}
