//! Exchanges without faults: two claims, two links; and the policies.

use pk_proto::claims::{Claim, ClaimPolicy, TokenSignature};
use pk_proto::{Event, Failure, Refusal, Reply, Request, RequestError, RequestOptions};

use super::kit::*;
use crate::common::{SECOND, ms};

#[test]
fn claim_adds_a_claim_and_a_link_to_both_nodes() {
    let mut cluster = started(2, 1, |_| {});
    connect(&mut cluster, 0, 1);
    let request = claim(&cluster, 1);
    let begun = cluster.now();
    let id = claimed(cluster.ask(0, request));
    assert!(
        cluster.now().since(begun) < ms(150),
        "two round trips of 50 ms, and what the stores take"
    );
    assert_linked(&mut cluster, 0, 1, 1);
    let [mine, theirs] = [0, 1].map(|node| chain(&mut cluster, node));
    assert_eq!((mine.len(), theirs.len()), (1, 1));
    assert_eq!(mine[0].id(), id);
    let (a, b) = (cluster.id(0), cluster.id(1));
    for (claims, owner, other) in [(&mine, a, b), (&theirs, b, a)] {
        let link = claims[0].link().unwrap();
        assert_eq!(
            (link.issuer, link.subject),
            (a, b),
            "the one who began is the issuer in both chains"
        );
        let signers: Vec<_> =
            claims[0].token().signatures().iter().map(TokenSignature::signer).collect();
        assert_eq!(signers, [owner, other]);
    }
    for (node, other, claim) in [(0, b, mine[0].id()), (1, a, theirs[0].id())] {
        let added = |event: &Event| match event {
            Event::ClaimAdded { claim, node } => Some((*claim, *node)),
            _ => None,
        };
        assert_eq!(events(&cluster, node, added), [(claim, Some(other))]);
        assert_eq!(cluster.node(node).metrics().claims, 1);
        assert_settled(&cluster, node);
    }
    cluster.drive(120 * SECOND);
    assert_quiet_claims(&cluster);
    cluster.stop_all();
}

/// A claim of a node that was never connected starts with a search; each request adds a claim.
#[test]
fn every_request_adds_a_separate_claim() {
    let mut cluster = started(3, 2, |_| {});
    cluster.join_all();
    for round in 1..=5 {
        let request = claim(&cluster, 2);
        claimed(cluster.ask(1, request));
        assert_linked(&mut cluster, 1, 2, round);
    }
    let request = claim(&cluster, 1);
    claimed(cluster.ask(2, request));
    assert_linked(&mut cluster, 2, 1, 1);
    assert_eq!([1, 2].map(|node| chain(&mut cluster, node).len()), [6, 6]);
    cluster.stop_all();
}

#[test]
fn chain_survives_restarts_and_ids_increase() {
    let mut cluster = started(2, 3, |_| {});
    for round in 1..=3 {
        connect(&mut cluster, 0, 1);
        let request = claim(&cluster, 1);
        claimed(cluster.ask(0, request));
        assert_linked(&mut cluster, 0, 1, round);
        for node in [0, 1] {
            // The clock goes back by an hour each time; ids do not.
            cluster.host_mut(node).clock_skew -= 3_600_000;
            cluster.restart(node);
        }
        cluster.drive(60 * SECOND);
    }
    let ids: Vec<_> = chain(&mut cluster, 0).iter().map(Claim::id).collect();
    assert!(ids.is_sorted() && ids.len() == 3);
    cluster.stop_all();
}

// -- policies

#[test]
fn policy_decides_whether_a_claim_is_signed() {
    use ClaimPolicy::{All, AllowList, Ask, Refuse};
    for (policy, allowed, signs) in [
        (Refuse, false, false),
        (Refuse, true, false),
        (AllowList, false, false),
        (AllowList, true, true),
        (Ask, true, true),
        (All, false, true),
    ] {
        let mut cluster = connected_with_policy(policy, allowed);
        let request = claim(&cluster, 1);
        let result = cluster.ask(0, request);
        match signs {
            true => drop(claimed(result)),
            false => {
                assert_eq!(result, Err(Failure::Refused(Refusal::Denied)), "{policy:?} {allowed}");
                assert_eq!(cluster.node(1).metrics().signatures_refused, 1);
            }
        }
        for node in [0, 1] {
            assert_eq!(chain(&mut cluster, node).len(), usize::from(signs), "{policy:?} {allowed}");
            assert_settled(&cluster, node);
        }
        cluster.stop_all();
    }
}

#[test]
fn allow_list_survives_a_restart_and_entries_can_be_removed() {
    let mut cluster = started(2, 5, |config| config.claim_policy = ClaimPolicy::AllowList);
    let node = cluster.id(0);
    let allow = |allowed| Request::AllowClaim { node, allowed, options: RequestOptions::default() };
    assert_eq!(cluster.ask(1, allow(true)), Ok(Reply::AllowClaim));
    cluster.restart(1);
    assert_eq!(cluster.node(1).allowed_claims().collect::<Vec<_>>(), [node]);
    connect(&mut cluster, 0, 1);
    let request = claim(&cluster, 1);
    claimed(cluster.ask(0, request.clone()));
    // A change that could not be written has no effect.
    cluster.host_mut(1).store.fail_next = 1;
    assert!(matches!(cluster.ask(1, allow(false)), Err(Failure::Store(_))));
    claimed(cluster.ask(0, request.clone()));
    assert_eq!(cluster.ask(1, allow(false)), Ok(Reply::AllowClaim));
    assert_eq!(cluster.ask(0, request), Err(Failure::Refused(Refusal::Denied)));
    cluster.restart(1);
    assert_eq!(cluster.node(1).allowed_claims().count(), 0);
    cluster.stop_all();
}

#[test]
fn embedder_approves_a_claim_and_no_answer_is_a_refusal() {
    let asked = |event: &Event| match event {
        Event::ClaimApprovalRequested { approval, node, claim, within } => {
            Some((*approval, *node, claim.clone(), *within))
        }
        _ => None,
    };
    for answer in [Some(true), Some(false), None] {
        let mut cluster = started(2, 6, |config| config.claim_policy = ClaimPolicy::Ask);
        connect(&mut cluster, 0, 1);
        let request = claim(&cluster, 1);
        let id = cluster.request(0, request);
        cluster.drive(25 * SECOND);
        let [(approval, node, claim, within)] = &events(&cluster, 1, asked)[..] else { panic!() };
        assert_eq!((*node, *within), (cluster.id(0), 30 * SECOND));
        assert_eq!(claim.link().unwrap().subject, cluster.id(1));
        assert_eq!(chain(&mut cluster, 1).len(), 0);
        if let Some(sign) = answer {
            let approval = *approval;
            cluster.call(1, |node, now| node.resolve_claim_approval(approval, sign, now));
            // The second answer is ignored.
            let late = cluster.node(1).metrics().late_inputs;
            cluster.call(1, |node, now| node.resolve_claim_approval(approval, !sign, now));
            assert_eq!(cluster.node(1).metrics().late_inputs, late + 1);
        }
        let result = cluster.await_done(0, id);
        match answer {
            Some(true) => drop(claimed(result)),
            _ => assert_eq!(result, Err(Failure::Refused(Refusal::Denied))),
        }
        for node in [0, 1] {
            assert_eq!(chain(&mut cluster, node).len(), usize::from(answer == Some(true)));
            assert_settled(&cluster, node);
        }
        cluster.stop_all();
    }
}

#[test]
fn invalid_claim_requests_are_refused_at_once() {
    let mut cluster = started(2, 7, |config| config.open_exchange_limit = 1);
    let request = claim(&cluster, 0);
    assert_eq!(cluster.try_request(0, request), Err(RequestError::OwnNode));
    let options =
        RequestOptions { deadline: Some(std::time::Duration::ZERO), ..RequestOptions::default() };
    let request = Request::ClaimNode { target: cluster.id(1), options };
    assert!(matches!(
        cluster.try_request(0, request),
        Err(RequestError::Option { name: "deadline", .. })
    ));
    cluster.stop_all();
}

fn assert_quiet_claims(cluster: &pk_sim::Cluster) {
    for node in 0..cluster.len() {
        let metrics = cluster.node(node).metrics();
        assert_eq!(
            (metrics.exchanges, metrics.exchanges_open, metrics.requests_open),
            (0, 0, 0),
            "node {node}"
        );
        assert_eq!(metrics.streams, metrics.connections, "node {node}");
    }
}
