//! Owners that send their chains correctly: pages, pieces, links, renewals, the local chain, ends,
//! stores, limits.

use std::time::Duration;

use bytes::Bytes;
use pk_proto::claims::ChainFaultKind::KeyOrder;
use pk_proto::claims::{Claim, ClaimContent, ClaimId, DigestAlgorithm, GestaltProof, claim_row};
use pk_proto::{
    ChainData, ClaimsFound, ClaimsQuery, Config, Event, Failure, GestaltQuery, Refusal, Reply,
    Request, RequestOptions, Table,
};
use pk_sim::{Cluster, Key};

use super::kit::*;
use crate::common::chains::{Draft, chain, link};
use crate::common::{SECOND, by};

#[test]
fn chain_is_read_page_by_page_and_verified_to_its_end() {
    let chain = chain(&key(OWNER), &friends(150));
    let mut cluster = with_chain(&chain);
    let id = cluster.request(ASKER, request(OWNER, None));
    let outcome = outcome(cluster.await_done(ASKER, id));
    assert_eq!((outcome.verified, outcome.fault), (150, None));
    assert_eq!(outcome.head.as_ref(), chain.last());
    assert_eq!(reported_claims(&cluster, ASKER, id), chain);
    let pages: Vec<_> = cluster
        .events(ASKER)
        .iter()
        .filter(|(_, event)| matches!(event, Event::ChainData { .. }))
        .collect();
    assert!(pages.len() > 2, "{} pages", pages.len());
    let metrics = cluster.node(ASKER).metrics();
    assert_eq!(
        (metrics.claims_verified, metrics.signature_checks, metrics.chain_faults),
        (150, 300, 0)
    );
    assert_eq!(cluster.node(OWNER).metrics().claims_served, 150);
    cluster.stop_all();
}

#[test]
fn empty_chain_is_read_without_a_fault() {
    let mut cluster = with_chain(&[]);
    let outcome = outcome(cluster.ask(ASKER, request(OWNER, None)));
    assert_eq!(outcome, ChainData { verified: 0, head: None, fault: None, more: false });
}

#[test]
fn chain_is_read_from_a_known_claim_on() {
    let chain = chain(&key(OWNER), &friends(80));
    for known in [0, 1, 40, 78, 79] {
        let mut cluster = with_chain(&chain);
        let id = cluster.request(ASKER, request(OWNER, Some(&chain[known])));
        let outcome = outcome(cluster.await_done(ASKER, id));
        assert_eq!((outcome.verified, outcome.fault), (79 - known as u64, None), "{known}");
        assert_eq!(outcome.head.as_ref(), chain.last());
        assert_eq!(reported_claims(&cluster, ASKER, id), chain[known + 1..]);
    }
}

/// An embedder that requests a chain in pieces receives all of it, one piece at a time.
#[test]
fn chain_is_read_in_pieces() {
    let chain = chain(&key(OWNER), &friends(100));
    for limit in [1, 30, 99, 100, 101] {
        let mut cluster = with_chain(&chain);
        let (mut all, mut since): (Vec<Claim>, Option<Claim>) = (Vec::new(), None);
        loop {
            let (target, options) = (key(OWNER).id(), RequestOptions::default());
            let piece = Request::RequestChainData {
                target,
                since: since.take(),
                limit: Some(limit),
                options,
            };
            let id = cluster.request(ASKER, piece);
            let outcome = outcome(cluster.await_done(ASKER, id));
            let told = reported_claims(&cluster, ASKER, id);
            assert_eq!((outcome.verified, outcome.fault), (told.len() as u64, None), "{limit}");
            assert!(outcome.verified <= limit);
            all.extend(told);
            assert_eq!(outcome.more, all.len() < 100, "{limit}");
            since = outcome.head;
            if !outcome.more {
                break;
            }
            assert_eq!(outcome.verified, limit);
        }
        assert_eq!(all, chain, "{limit}");
    }
    let none = Request::RequestChainData {
        target: key(OWNER).id(),
        since: None,
        limit: Some(0),
        options: RequestOptions::default(),
    };
    assert!(with_chain(&chain).try_request(ASKER, none).is_err());
}

/// The work of one call into the machine is bounded for any input of a peer: at most 64 signatures
/// are checked at one instant of virtual time.
#[test]
fn at_most_64_signatures_are_checked_in_one_call() {
    let chain = chain(&key(OWNER), &friends(150));
    let mut cluster = with_chain(&chain);
    let id = cluster.request(ASKER, request(OWNER, None));
    let (mut before, mut most) = (0, 0);
    while cluster.done(ASKER, id).is_none() {
        assert!(cluster.step());
        let checks = cluster.node(ASKER).metrics().signature_checks;
        most = most.max(checks - before);
        before = checks;
    }
    assert_eq!(before, 300);
    assert!((33..=64).contains(&most), "{most}");
}

#[test]
fn every_digest_algorithm_is_verified() {
    let owner = key(OWNER);
    let mut chain = vec![link(&owner, &friend(0), None)];
    for (number, algorithm) in DigestAlgorithm::ALL.into_iter().enumerate() {
        let last = chain.last().unwrap();
        let mut draft = Draft::link(owner.id(), friend(number as u64).id(), Some(last));
        draft.prev.as_mut().unwrap().digest = last.token().digest(algorithm);
        chain.push(draft.signed(&[&owner, &friend(number as u64)]));
    }
    let mut cluster = with_chain(&chain);
    let outcome = outcome(cluster.ask(ASKER, request(OWNER, None)));
    assert_eq!((outcome.verified, outcome.fault), (5, None));
}

#[test]
fn claims_of_other_types_are_carried_and_verified() {
    let owner = key(OWNER);
    let content = |members: &str| ClaimContent {
        typ: "org.example.Vote".into(),
        issuer: Some(owner.id().to_string()),
        subject: Some("somebody".into()),
        members: members.into(),
    };
    let vote = |prev: Option<&Claim>, signers: &[&Key]| {
        Draft::new(&owner.id(), content(r#"{"choice":["a",1,null],"weight":2.5}"#), prev)
            .signed(signers)
    };
    let first = vote(None, &[&owner]);
    let second = link(&owner, &friend(1), Some(&first));
    let third = vote(Some(&second), &[&owner, &friend(2), &friend(3)]);
    let mut cluster = with_chain(&[first, second, third.clone()]);
    let id = cluster.request(ASKER, request(OWNER, None));
    let outcome = outcome(cluster.await_done(ASKER, id));
    assert_eq!((outcome.verified, outcome.fault), (3, None));
    let claim = &reported_claims(&cluster, ASKER, id)[2];
    assert_eq!(claim, &third);
    assert_eq!(
        (claim.typ(), claim.subject(), claim.link()),
        ("org.example.Vote", Some("somebody"), None)
    );
    assert_eq!(claim.member("choice"), Some(r#"["a",1,null]"#));
    assert_eq!(claim.members(), r#"{"choice":["a",1,null],"weight":2.5}"#);
    assert!(Claim::draft(&content(r#"{"seq":1}"#), claim.id(), cluster.unix(0), None).is_err());
    assert!(Claim::draft(&content(r#"{"b":1,"a":1}"#), claim.id(), cluster.unix(0), None).is_err());
}

// -- links

#[test]
fn links_of_a_chain_are_in_gestalts_also_after_a_restart() {
    let chain = chain(&key(OWNER), &friends(3));
    let mut cluster = with_chain(&chain);
    cluster.ask(ASKER, request(OWNER, None)).unwrap();
    for restarted in [false, true] {
        if restarted {
            cluster.ask(ASKER, Request::Flush { options: RequestOptions::default() }).unwrap();
            cluster.stop(ASKER);
            cluster.restart(ASKER);
            cluster.drive(SECOND);
        }
        let around = gestalt(&mut cluster, ASKER, &friend(1), GestaltQuery::default());
        assert_eq!(around.nodes.len(), 4);
        assert_eq!(around.nodes[..2], [friend(1).id(), key(OWNER).id()]);
        assert!(!around.more);
        let direct =
            gestalt(&mut cluster, ASKER, &friend(1), GestaltQuery { direct: true, limit: 10 });
        assert_eq!(direct.nodes, [friend(1).id(), key(OWNER).id()]);
        let proof = GestaltProof::Claim { owner: key(OWNER).id(), id: chain[1].id() };
        assert_eq!(direct.links.iter().map(|link| link.proof).collect::<Vec<_>>(), [proof]);
        let cut =
            gestalt(&mut cluster, ASKER, &friend(1), GestaltQuery { direct: false, limit: 3 });
        assert_eq!((cut.nodes.len(), cut.more), (3, true));
    }
    let alone = gestalt(&mut cluster, ASKER, &friend(9), GestaltQuery::default());
    assert_eq!((alone.nodes, alone.links.len()), (vec![friend(9).id()], 0));
}

/// A second read of a chain that ends at an older claim does not replace newer links.
#[test]
fn older_claim_never_replaces_a_newer_one() {
    let same = [friend(0), friend(0), friend(0)];
    let chain = chain(&key(OWNER), &same);
    let mut cluster = with_chain(&chain);
    cluster.ask(ASKER, request(OWNER, None)).unwrap();
    let newest = GestaltProof::Claim { owner: key(OWNER).id(), id: chain[2].id() };
    let proof = |cluster: &mut Cluster| {
        gestalt(cluster, ASKER, &friend(0), GestaltQuery::default()).links[0].proof
    };
    assert_eq!(proof(&mut cluster), newest);
    let (table, key) = (Table::Claims, Bytes::copy_from_slice(chain[2].id().as_bytes()));
    cluster.host_mut(OWNER).store.seed([pk_proto::StoreOp::Delete { table, key }]);
    assert_eq!(outcome(cluster.ask(ASKER, request(OWNER, None))).verified, 2);
    assert_eq!(proof(&mut cluster), newest);
}

/// Links of claims that the first read skipped are added by the second.
#[test]
fn links_before_the_first_read_claim_are_found_by_a_later_read() {
    let chain = chain(&key(OWNER), &friends(3));
    let mut cluster = with_chain(&chain);
    cluster.ask(ASKER, request(OWNER, Some(&chain[1]))).unwrap();
    let nodes = |cluster: &mut Cluster| {
        gestalt(cluster, ASKER, &key(OWNER), GestaltQuery::default()).nodes.len()
    };
    assert_eq!(nodes(&mut cluster), 2);
    cluster.ask(ASKER, request(OWNER, None)).unwrap();
    assert_eq!(nodes(&mut cluster), 4);
}

#[test]
fn renewed_owner_has_one_chain_of_both_keys() {
    let old = key(OWNER);
    let first = chain(&old, &friends(2));
    let mut cluster = with_chain(&first);
    cluster.renew(OWNER).unwrap();
    let new = cluster.host(OWNER).keys[&cluster.id(OWNER)].clone();
    let third = link(&new, &friend(2), first.last());
    cluster.host_mut(OWNER).store.seed([claim_row(&third)]);
    cluster.drive(60 * SECOND);
    cluster.connect(ASKER, OWNER).unwrap();
    let outcome = outcome(cluster.ask(ASKER, request(OWNER, None)));
    assert_eq!((outcome.verified, outcome.fault), (3, None));
    let around = gestalt(&mut cluster, ASKER, &friend(2), GestaltQuery::default());
    assert_eq!(around.nodes.len(), 5, "{around:?}");
    assert!(around.links.iter().any(|link| link.proof == GestaltProof::Renewal));

    // From now on a claim that is signed by the old key is refused.
    let fourth = link(&old, &friend(3), Some(&third));
    cluster.host_mut(OWNER).store.seed([claim_row(&fourth)]);
    let id = cluster.request(ASKER, request(OWNER, Some(&third)));
    let fault = match cluster.await_done(ASKER, id) {
        Ok(Reply::RequestChainData(outcome)) => outcome.fault.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((fault.seq, fault.kind), (4, KeyOrder));

    // The owner also treats its two keys as one node.
    let own = gestalt(&mut cluster, OWNER, &old, GestaltQuery::default());
    assert_eq!(own.nodes, [old.id(), new.id()]);
}

// -- the local chain

#[test]
fn local_claims_are_found_by_id_range_order_and_limit() {
    use std::ops::Bound::{Excluded, Included, Unbounded};

    let all = chain(&key(OWNER), &friends(10));
    let mut cluster = with_chain(&all);
    let id = |index: usize| all[index].id();
    let found = |cluster: &mut Cluster, query| claims(cluster, OWNER, query);
    let some =
        |range: std::ops::Range<usize>, more| ClaimsFound { claims: all[range].to_vec(), more };
    assert_eq!(found(&mut cluster, ClaimsQuery::default()), some(0..10, false));
    assert_eq!(
        found(&mut cluster, ClaimsQuery { limit: 4, ..ClaimsQuery::default() }),
        some(0..4, true)
    );
    assert_eq!(
        found(&mut cluster, ClaimsQuery { limit: 10, ..ClaimsQuery::default() }),
        some(0..10, false)
    );
    assert_eq!(found(&mut cluster, ClaimsQuery::id(id(7))), some(7..8, false));
    assert_eq!(
        found(&mut cluster, ClaimsQuery::id(ClaimId::from_bytes([9; 16]))),
        some(0..0, false)
    );
    for (from, to, expected) in [
        (Included(id(2)), Excluded(id(5)), 2..5),
        (Excluded(id(2)), Included(id(5)), 3..6),
        (Unbounded, Excluded(id(3)), 0..3),
        (Excluded(id(8)), Unbounded, 9..10),
        (Included(id(5)), Included(id(2)), 0..0),
        (Excluded(id(5)), Excluded(id(5)), 0..0),
    ] {
        let query = ClaimsQuery { from, to, ..ClaimsQuery::default() };
        assert_eq!(found(&mut cluster, query), some(expected.clone(), false), "{query:?}");
        let mut reversed = some(expected, false);
        reversed.claims.reverse();
        assert_eq!(
            found(&mut cluster, ClaimsQuery { descending: true, ..query }),
            reversed,
            "{query:?}"
        );
    }
    let query = ClaimsQuery { limit: 0, ..ClaimsQuery::default() };
    assert!(
        cluster
            .try_request(OWNER, Request::Claims { query, options: RequestOptions::default() })
            .is_err()
    );
    assert!(cluster.try_request(OWNER, request(OWNER, None)).is_err());
}

// -- ends, stores, limits

#[test]
fn request_cancelled_at_any_step_ends_once() {
    let chain = chain(&key(OWNER), &friends(150));
    for step in (0..400).step_by(7) {
        let mut cluster = with_chain(&chain);
        let id = cluster.request(ASKER, request(OWNER, None));
        for _ in 0..step {
            cluster.step();
        }
        cluster.cancel(ASKER, id);
        let result = cluster.await_done(ASKER, id);
        assert!(
            matches!(&result, Err(Failure::Cancelled) | Ok(Reply::RequestChainData(_))),
            "{step}: {result:?}"
        );
        cluster.stop_all();
    }
}

#[test]
fn deadline_ends_a_chain_read_in_progress() {
    let mut cluster = with_chain(&chain(&key(OWNER), &friends(150)));
    cluster.host_mut(OWNER).store.delay = Duration::from_secs(3);
    let request = Request::RequestChainData {
        target: key(OWNER).id(),
        since: None,
        limit: None,
        options: by(2 * SECOND),
    };
    assert_eq!(cluster.ask(ASKER, request), Err(Failure::DeadlineExceeded));
    cluster.drive(10 * SECOND);
    assert_eq!(cluster.node(OWNER).metrics().streams, 1);
}

#[test]
fn failing_store_fails_the_request() {
    let mut cluster = with_chain(&valid_claims());
    cluster.ask(ASKER, Request::Flush { options: RequestOptions::default() }).unwrap();
    cluster.host_mut(ASKER).store.fail_next = 1;
    assert_eq!(
        cluster.ask(ASKER, request(OWNER, None)),
        Err(Failure::Store("the disk is full".into()))
    );
    assert_eq!(outcome(cluster.ask(ASKER, request(OWNER, None))).verified, 3);
}

#[test]
fn damaged_row_is_neither_sent_nor_returned() {
    let mut cluster = with_chain(&valid_claims());
    let (table, key) = (Table::Claims, Bytes::copy_from_slice(valid_claims()[1].id().as_bytes()));
    cluster.host_mut(OWNER).store.seed([pk_proto::StoreOp::Put {
        table,
        key,
        value: Bytes::from_static(&[1, 9]),
    }]);
    assert_eq!(cluster.ask(ASKER, request(OWNER, None)), Err(Failure::Refused(Refusal::Busy)));
    let query =
        Request::Claims { query: ClaimsQuery::default(), options: RequestOptions::default() };
    assert!(matches!(cluster.ask(OWNER, query), Err(Failure::Store(_))));
}

/// Few requests wait for a slow store; the others are refused at once. Six reads run at a time, of
/// which one node may have three.
fn one_network(config: &mut Config) {
    config.claims_serve_limit = 6;
    config.network_share = 100;
}

#[test]
fn few_claim_requests_are_served_at_a_time() {
    let mut cluster = Cluster::quiet().nodes(2).seed(SEED).config(one_network).start();
    cluster.host_mut(OWNER).store.seed(valid_claims().iter().map(claim_row));
    cluster.connect(ASKER, OWNER).unwrap();
    cluster.host_mut(OWNER).store.delay = SECOND;
    let ids: Vec<_> = (0..5).map(|_| cluster.request(ASKER, request(OWNER, None))).collect();
    let results: Vec<_> = ids.into_iter().map(|id| cluster.await_done(ASKER, id)).collect();
    let refused =
        results.iter().filter(|result| **result == Err(Failure::Refused(Refusal::Busy))).count();
    let done = results
        .iter()
        .filter(|result| matches!(result, Ok(Reply::RequestChainData(data)) if data.verified == 3))
        .count();
    assert_eq!((done, refused, cluster.node(OWNER).metrics().claims_refused), (3, 2, 2));
}
