//! Claims over real sockets: cross-signed, read back, verified, linked.

use pk_driver::{Node, NodeError};
use pk_proto::claims::{Claim, ClaimContent, ClaimPolicy, GestaltProof};
use pk_proto::{ClaimsQuery, Failure, GestaltQuery, Refusal, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{connect, shutdown, start, start_with};
use pk_tests::wait::soon;

pk_tests::cases!(
    nodes_claim_each_other_and_both_chains_are_verified,
    claim_requires_the_permission_of_the_peer
);

/// The whole chain of a peer, read in pieces of two.
async fn chain<R: Rt>(runtime: &R, node: &Node<R>, of: &Node<R>) -> Vec<Claim> {
    let (mut all, mut known) = (Vec::new(), None);
    loop {
        let piece = node.request_chain_data(of.own_id(), known, Some(2), RequestOptions::default());
        let (claims, end) = soon(runtime, "a chain", piece).await.unwrap();
        assert_eq!((end.fault, end.verified), (None, claims.len() as u64));
        all.extend(claims);
        if !end.more {
            return all;
        }
        known = end.head;
    }
}

async fn nodes_claim_each_other_and_both_chains_are_verified<R: Rt>(runtime: R) {
    let a = start_with(&runtime, 1, |config| config.core.claim_policy = ClaimPolicy::All).await;
    let b = start_with(&runtime, 2, |config| config.core.claim_policy = ClaimPolicy::All).await;
    connect(&runtime, &a, &b).await;
    for _ in 0..2 {
        soon(&runtime, "a claim", a.claim_node(b.own_id(), RequestOptions::default()))
            .await
            .unwrap();
        soon(&runtime, "a claim", b.claim_node(a.own_id(), RequestOptions::default()))
            .await
            .unwrap();
    }
    let content = ClaimContent {
        typ: "org.example.Note".into(),
        issuer: Some(a.own_id().to_string()),
        subject: None,
        members: "{\"note\":\"hello\"}".into(),
    };
    let note =
        soon(&runtime, "a claim", a.add_claim(content, RequestOptions::default())).await.unwrap();

    for (node, of, count) in [(&a, &b, 4), (&b, &a, 5)] {
        let verified = chain(&runtime, node, of).await;
        assert_eq!(verified.len(), count);
        let own = soon(
            &runtime,
            "own claims",
            of.claims(ClaimsQuery::default(), RequestOptions::default()),
        )
        .await
        .unwrap();
        assert_eq!((&own.claims, own.more), (&verified, false));
        let head = of.chain_head().await.unwrap().unwrap();
        assert_eq!((Some(head.id), head.seq), (verified.last().map(Claim::id), count as u64));
        let gestalt = node.gestalt(of.own_id(), GestaltQuery::default(), RequestOptions::default());
        let gestalt = soon(&runtime, "a gestalt", gestalt).await.unwrap();
        assert_eq!(gestalt.nodes, [of.own_id(), node.own_id()]);
        let newest = verified.iter().filter(|claim| claim.link().is_some()).map(Claim::id).max();
        let [link] = &gestalt.links[..] else { panic!("{gestalt:?}") };
        assert!(
            matches!(link.proof, GestaltProof::Claim { id, .. } if Some(id) >= newest),
            "{link:?}"
        );
    }
    let found =
        soon(&runtime, "own claims", a.claims(ClaimsQuery::id(note), RequestOptions::default()))
            .await
            .unwrap();
    assert_eq!(found.claims[0].member("note"), Some("\"hello\""));
    println!("{}: 9 claims signed and verified", R::NAME);
    shutdown(&runtime, &[&a, &b]).await;
}

async fn claim_requires_the_permission_of_the_peer<R: Rt>(runtime: R) {
    let a = start(&runtime, 1).await;
    let b =
        start_with(&runtime, 2, |config| config.core.claim_policy = ClaimPolicy::AllowList).await;
    connect(&runtime, &a, &b).await;
    let claim = async |from: &Node<R>, to: &Node<R>| {
        soon(&runtime, "a claim", from.claim_node(to.own_id(), RequestOptions::default())).await
    };
    let denied =
        |result| matches!(result, Err(NodeError::Failure(Failure::Refused(Refusal::Denied))));
    assert!(denied(claim(&b, &a).await), "by default nothing is signed");
    assert!(denied(claim(&a, &b).await), "not on the list");
    soon(&runtime, "allow", b.allow_claim(a.own_id(), RequestOptions::default())).await.unwrap();
    assert_eq!(b.allowed_claims().await.unwrap(), [a.own_id()]);
    claim(&a, &b).await.unwrap();
    soon(&runtime, "disallow", b.disallow_claim(a.own_id(), RequestOptions::default()))
        .await
        .unwrap();
    assert!(denied(claim(&a, &b).await), "off the list");
    assert_eq!(a.chain_head().await.unwrap().map(|head| head.seq), Some(1));
    assert_eq!(a.unconfirmed_claims().await.unwrap(), []);
    shutdown(&runtime, &[&a, &b]).await;
}
