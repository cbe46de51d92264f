//! Cross-signed claims between nodes of both kinds, and the resulting chains.

use std::time::Duration;

use pk_driver::{Node, NodeConfig, NodeError};
use pk_interop::{Peer, Polykey};
use pk_proto::claims::{Claim, ClaimContent, ClaimPolicy, DigestAlgorithm};
use pk_proto::{Failure, GestaltQuery, NodeId, Refusal, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{key, shutdown, start, start_with};
use pk_tests::signer::Remote;
use pk_tests::wait::{until, within};
use serde_json::{Value, json};
use smol::future::zip;

use crate::kit::{
    PATIENCE, ask, ask_expecting_error, dial, list, polykey_connections, polykey_node, reached,
    target, text,
};

cases!(
    polykey_node_accepts_claims_with_blake3_digests,
    simultaneous_claims_of_both_nodes_succeed,
    disallowed_claim_changes_no_chain,
    claims_about_a_network_are_signed_by_the_peer,
    chains_continue_under_a_new_key,
    five_polykey_nodes_claim_the_local_node_at_once,
    claim_by_a_new_key_over_an_old_connection_is_refused_without_a_fault,
    claims_of_a_node_whose_root_key_a_signer_holds_are_verified,
);

long_cases!(fifty_claims_from_each_side_succeed within Duration::from_secs(600));

fn with_reference_settings(config: &mut NodeConfig) {
    config.core.claim_policy = ClaimPolicy::All;
    config.core.claim_digest = DigestAlgorithm::Blake2b256;
}

/// Claims a Polykey node. A conflict within the reference does not fail the claim.
async fn claim_polykey_node<R: Rt>(runtime: &R, ours: &Node<R>, theirs: NodeId) {
    let claimed =
        within(runtime, PATIENCE, "we claim", ours.claim_node(theirs, RequestOptions::default()))
            .await;
    claimed.unwrap_or_else(|error| panic!("we claim: {error}"));
}

/// Reads the chain of a Polykey node and verifies it.
async fn chain<R: Rt>(runtime: &R, ours: &Node<R>, of: NodeId) -> Vec<Claim> {
    let read = ours.request_chain_data(of, None, None, RequestOptions::default());
    let (claims, end) = within(runtime, PATIENCE, "we read their chain", read).await.unwrap();
    assert_eq!((end.fault, end.verified, end.more), (None, claims.len() as u64, false));
    claims
}

/// Checks that a Polykey node verifies the chain of the local node: by its own check, and by a
/// complete one.
async fn assert_polykey_verifies<R: Rt>(runtime: &R, theirs: &Peer, ours: NodeId, count: usize) {
    let taken = ask(runtime, theirs, "chain", json!({ "nodeId": ours })).await;
    assert_eq!(list(&taken).len(), count, "they drop what they cannot verify");
    let verdict = ask(runtime, theirs, "verify", json!({ "nodeId": ours })).await;
    assert_eq!(verdict, json!({ "claims": count, "faults": [] }));
}

async fn fifty_claims_from_each_side_succeed<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (
        polykey_node(&runtime, &polykey).await,
        start_with(&runtime, 1, with_reference_settings).await,
    );
    dial(&runtime, &ours, &peer).await;
    ask(&runtime, &peer, "allow", json!({ "nodeId": ours.own_id() })).await;
    let (us, them) = (ours.own_id(), peer.node_id());
    for n in 1..=50_u64 {
        claim_polykey_node(&runtime, &ours, them).await;
        assert_eq!(ours.chain_head().await.unwrap().map(|head| head.seq), Some(n));
    }
    for n in 51..=100_u64 {
        let claim = ask(&runtime, &peer, "claim", json!({ "nodeId": us })).await;
        assert_eq!(claim.pointer("/payload/seq"), Some(&json!(n)), "{claim}");
    }
    let verified = chain(&runtime, &ours, them).await;
    assert_eq!(verified.len(), 100);
    for (n, claim) in verified.iter().enumerate() {
        let link = claim.link().expect("it is a link");
        assert_eq!((link.issuer, link.subject), if n < 50 { (us, them) } else { (them, us) });
        assert_eq!(claim.prev_digest().is_some(), n > 0);
    }
    assert_polykey_verifies(&runtime, &peer, us, 100).await;
    let gestalt = ours.gestalt(us, GestaltQuery::default(), RequestOptions::default());
    assert_eq!(within(&runtime, PATIENCE, "a gestalt", gestalt).await.unwrap().nodes.len(), 2);
    let gestalt = ask(&runtime, &peer, "gestalt", json!({})).await;
    assert!(list(&gestalt).contains(&json!(us)), "{gestalt}");
    assert_eq!(ours.unconfirmed_claims().await.unwrap(), []);
    println!("{}: 50 claims each way, 2 chains of 100 verified by both", R::NAME);
    shutdown(&runtime, &[&ours]).await;
}

async fn polykey_node_accepts_claims_with_blake3_digests<R: Rt>(runtime: R, polykey: Polykey) {
    let peer = polykey_node(&runtime, &polykey).await;
    let ours = start_with(&runtime, 1, |config| config.core.claim_policy = ClaimPolicy::All).await;
    dial(&runtime, &ours, &peer).await;
    ask(&runtime, &peer, "allow", json!({ "nodeId": ours.own_id() })).await;
    for _ in 0..2 {
        claim_polykey_node(&runtime, &ours, peer.node_id()).await;
        ask(&runtime, &peer, "claim", json!({ "nodeId": ours.own_id() })).await;
    }
    assert_eq!(chain(&runtime, &ours, peer.node_id()).await.len(), 4);
    // The reference does not know BLAKE3, and does not verify the digest.
    let taken = ask(&runtime, &peer, "chain", json!({ "nodeId": ours.own_id() })).await;
    assert_eq!(list(&taken).len(), 4);
    let digests: Vec<_> =
        list(&taken).iter().filter_map(|claim| claim.get("prevDigest")?.as_str()).collect();
    assert_eq!(digests.len(), 3);
    shutdown(&runtime, &[&ours]).await;
}

/// The reference locks its chain while it waits for the local node, so that the local node must not
/// wait for the reference before it answers.
async fn simultaneous_claims_of_both_nodes_succeed<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (
        polykey_node(&runtime, &polykey).await,
        start_with(&runtime, 1, with_reference_settings).await,
    );
    dial(&runtime, &ours, &peer).await;
    ask(&runtime, &peer, "allow", json!({ "nodeId": ours.own_id() })).await;
    for _ in 0..5 {
        let us = claim_polykey_node(&runtime, &ours, peer.node_id());
        zip(us, ask(&runtime, &peer, "claim", json!({ "nodeId": ours.own_id() }))).await;
    }
    // A retry may have left a claim on one side only; all existing claims are valid.
    let theirs = chain(&runtime, &ours, peer.node_id()).await.len();
    let head = ours.chain_head().await.unwrap().expect("there are claims");
    assert!(theirs >= 10 && head.seq >= 10, "{theirs} and {}", head.seq);
    assert_polykey_verifies(&runtime, &peer, ours.own_id(), head.seq as usize).await;
    println!("{}: chains of {} and {theirs}", R::NAME, head.seq);
    shutdown(&runtime, &[&ours]).await;
}

async fn disallowed_claim_changes_no_chain<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dial(&runtime, &ours, &peer).await;
    let (us, them) = (ours.own_id(), peer.node_id());
    let error = ask_expecting_error(&runtime, &peer, "claim", json!({ "nodeId": us })).await;
    assert_eq!(error.name, "ErrorPolykeyRemote", "{error}");
    assert!(error.find("ErrorNodePermissionDenied").is_some(), "{error}");
    let refused =
        within(&runtime, PATIENCE, "we claim", ours.claim_node(them, RequestOptions::default()))
            .await;
    assert!(
        matches!(refused, Err(NodeError::Failure(Failure::Refused(Refusal::Denied)))),
        "{refused:?}"
    );
    assert_eq!(ours.chain_head().await.unwrap(), None);
    assert_eq!(ask(&runtime, &peer, "sigchain", json!({})).await, json!([]));
    // Neither prevents the other from retrying.
    ask(&runtime, &peer, "allow", json!({ "nodeId": us })).await;
    claim_polykey_node(&runtime, &ours, them).await;
    assert_eq!(chain(&runtime, &ours, them).await.len(), 1);
    shutdown(&runtime, &[&ours]).await;
}

async fn claims_about_a_network_are_signed_by_the_peer<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (
        polykey_node(&runtime, &polykey).await,
        start_with(&runtime, 1, with_reference_settings).await,
    );
    dial(&runtime, &ours, &peer).await;
    let (us, them) = (ours.own_id(), peer.node_id());
    for typ in ["ClaimNetworkAccess", "ClaimNetworkAuthority"] {
        let content = ClaimContent {
            typ: typ.into(),
            issuer: Some(us.to_string()),
            subject: Some(them.to_string()),
            members: "{\"network\":\"testnet.polykey.com\"}".into(),
        };
        let claim = ours.claim_network(them, content, RequestOptions::default());
        let claim = within(&runtime, PATIENCE, "they sign", claim).await.unwrap();
        assert_eq!((claim.typ(), claim.token().signatures().len()), (typ, 2));
        claim.token().verify(&them).unwrap();
        let signed = ask(&runtime, &peer, "networkSign", json!({ "nodeId": us, "typ": typ })).await;
        assert_eq!(signed, json!({ "samePayload": true, "signatures": 2, "verified": true }));
    }
    // No other claim is signed, and none that names a third node.
    let third = pk_tests::node::key(3).node_id();
    for with in [
        json!({ "nodeId": us, "typ": "ClaimLinkIdentity" }),
        json!({ "nodeId": us, "typ": "ClaimNetworkAccess", "claim": { "iss": third, "sub": third } }),
    ] {
        let error = ask_expecting_error(&runtime, &peer, "networkSign", with.clone()).await;
        println!("{}: {with}: {error}", R::NAME);
        assert_eq!(error.name, "ErrorPolykeyRemote", "{error}");
    }
    shutdown(&runtime, &[&ours]).await;
}

async fn chains_continue_under_a_new_key<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (
        polykey_node(&runtime, &polykey).await,
        start_with(&runtime, 1, with_reference_settings).await,
    );
    dial(&runtime, &ours, &peer).await;
    let mut us = ours.own_id();
    let mut them = peer.node_id();
    let allow = async |node: NodeId| ask(&runtime, &peer, "allow", json!({ "nodeId": node })).await;
    let both = async |us: NodeId, them: NodeId| {
        claim_polykey_node(&runtime, &ours, them).await;
        ask(&runtime, &peer, "claim", json!({ "nodeId": us })).await;
    };
    allow(us).await;
    both(us, them).await;
    // The Polykey node renews its key.
    let renewed = ask(&runtime, &peer, "renew", json!({})).await;
    ours.disconnect(them).await.unwrap();
    until(&runtime, "the end", async || polykey_connections(&runtime, &peer, us).await.is_empty())
        .await;
    them = text(&renewed, "new").parse().unwrap();
    let connected = ours.connect(them, peer.seed().address, RequestOptions::default());
    within(&runtime, PATIENCE, "connect", connected).await.unwrap();
    both(us, them).await;
    assert_eq!(chain(&runtime, &ours, them).await.len(), 4);
    // The local node renews its key.
    us = within(&runtime, PATIENCE, "renew", ours.renew()).await.unwrap().new;
    let connected = ours.connect(them, peer.seed().address, RequestOptions::default());
    within(&runtime, PATIENCE, "connect", connected).await.unwrap();
    allow(us).await;
    both(us, them).await;
    assert_eq!(chain(&runtime, &ours, them).await.len(), 6);
    let verdict = ask(&runtime, &peer, "verify", json!({ "nodeId": us })).await;
    assert_eq!(verdict.get("claims"), Some(&json!(6)));
    // The reference uses only the newest key of each node, so that it rejects signatures by older
    // keys; everything else is valid.
    let faults = verdict.get("faults").map(list).unwrap_or_default();
    assert!(
        faults.iter().filter_map(Value::as_str).all(|fault| fault.contains("no signature by")),
        "{verdict}"
    );
    shutdown(&runtime, &[&ours]).await;
}

/// Each of them makes one attempt, and reports an error to its user if it fails.
async fn five_polykey_nodes_claim_the_local_node_at_once<R: Rt>(runtime: R, polykey: Polykey) {
    let ours = start_with(&runtime, 1, with_reference_settings).await;
    let mut peers = Vec::new();
    for _ in 0..5 {
        let peer = polykey_node(&runtime, &polykey).await;
        dial(&runtime, &ours, &peer).await;
        peers.push(peer);
    }
    let us = ours.own_id();
    for round in 1..=3 {
        let [a, b, c, d, e] = &peers[..] else { panic!() };
        let claim = async |peer: &Peer| ask(&runtime, peer, "claim", json!({ "nodeId": us })).await;
        zip(zip(claim(a), claim(b)), zip(claim(c), zip(claim(d), claim(e)))).await;
        assert_eq!(ours.chain_head().await.unwrap().map(|head| head.seq), Some(5 * round));
    }
    assert_polykey_verifies(&runtime, &peers[0], us, 15).await;
    let metrics = ours.metrics().await.unwrap();
    assert_eq!((metrics.claims_stale, metrics.claim_faults), (0, 0));
    shutdown(&runtime, &[&ours]).await;
}

/// The reference keeps its connections when it renews its key, and claims by the new id over them.
/// The local node refuses that, as the reference does. It is no fault, and succeeds over a new
/// connection.
async fn claim_by_a_new_key_over_an_old_connection_is_refused_without_a_fault<R: Rt>(
    runtime: R,
    polykey: Polykey,
) {
    let (peer, ours) = (
        polykey_node(&runtime, &polykey).await,
        start_with(&runtime, 1, with_reference_settings).await,
    );
    dial(&runtime, &ours, &peer).await;
    let us = ours.own_id();
    ask(&runtime, &peer, "claim", json!({ "nodeId": us })).await;
    ask(&runtime, &peer, "renew", json!({})).await;
    for _ in 0..20 {
        let error = ask_expecting_error(&runtime, &peer, "claim", json!({ "nodeId": us })).await;
        assert!(error.find("ErrorSinglySignedClaimVerificationFailed").is_some(), "{error}");
    }
    assert_eq!(ours.connections().await.unwrap().len(), 1, "it was closed");
    let metrics = ours.metrics().await.unwrap();
    assert_eq!((metrics.claim_faults, metrics.stream_faults), (0, 0));
    ask(&runtime, &peer, "disconnect", json!({ "nodeId": us })).await;
    until(&runtime, "the end", async || ours.connections().await.unwrap().is_empty()).await;
    crate::kit::dialed(&runtime, &peer, &ours).await;
    ask(&runtime, &peer, "claim", json!({ "nodeId": us })).await;
    assert_eq!(ours.chain_head().await.unwrap().map(|head| head.seq), Some(2));
    shutdown(&runtime, &[&ours]).await;
}

/// Polykey nodes connect to it by the id of its hot key and by that of its root key, and verify
/// claims that the hot key has signed; also after the signer has reissued the certificate.
async fn claims_of_a_node_whose_root_key_a_signer_holds_are_verified<R: Rt>(
    runtime: R,
    polykey: Polykey,
) {
    let remote = Remote::new(9);
    let root = remote.root().node_id();
    let peer = polykey_node(&runtime, &polykey).await;
    let ours = start_with(&runtime, 1, |config| {
        with_reference_settings(config);
        config.identity.chain.clear();
        config.signer = Some(remote.root());
    })
    .await;
    let (us, them) = (ours.own_id(), peer.node_id());
    assert_eq!((us, ours.identity().chain.len()), (key(1).node_id(), 2));
    ask(&runtime, &peer, "allow", json!({ "nodeId": us })).await;
    let first = ours.identity();
    for round in 0..2 {
        for id in [root, us] {
            for known in [root, us] {
                ask(&runtime, &peer, "disconnect", json!({ "nodeId": known })).await;
            }
            let connected = ask(&runtime, &peer, "connect", target(id, reached(&ours))).await;
            assert_eq!(text(&connected, "nodeId"), us.to_string(), "asked for {id}");
            let pong = ask(&runtime, &peer, "ping", json!({ "nodeId": id })).await;
            assert!(!pong.is_null());
        }
        claim_polykey_node(&runtime, &ours, them).await;
        ask(&runtime, &peer, "claim", json!({ "nodeId": us })).await;
        assert_polykey_verifies(&runtime, &peer, us, 2 * (round + 1)).await;
        assert_eq!(chain(&runtime, &ours, them).await.len(), 2 * (round + 1));
        within(&runtime, PATIENCE, "the signer reissues", ours.renew_to(key(1))).await.unwrap();
        assert_ne!(ours.identity().chain[0], first.chain[0]);
        assert_eq!(ours.identity().chain[1], first.chain[1]);
    }
    // The local node also presents the chain as a dialer.
    ask(&runtime, &peer, "disconnect", json!({ "nodeId": us })).await;
    until(&runtime, "the end", async || ours.connections().await.unwrap().is_empty()).await;
    dial(&runtime, &ours, &peer).await;
    claim_polykey_node(&runtime, &ours, them).await;
    assert_polykey_verifies(&runtime, &peer, us, 5).await;
    assert_eq!(remote.requests(), 5, "the signer signs certificates only");
    shutdown(&runtime, &[&ours]).await;
}
