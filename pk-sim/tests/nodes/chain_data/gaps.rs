//! Numbers with gaps: a Polykey 1.x node uses up a number when an exchange of its own ends before
//! its claim is appended.

use pk_proto::claims::{
    ChainHead, ChainVerifier, Claim, ClaimContent, DigestAlgorithm, SignedToken,
};
use pk_proto::{
    Config, Event, Input, Instant, NodeManager, Output, Request, RequestOptions, Snapshot,
    UnixMillis,
};
use pk_sim::genesis;

use super::kit::*;
use crate::common::chains::{Draft, EPOCH};

/// A chain of the owner with these numbers that is otherwise valid.
fn numbered(numbers: &[u64]) -> Vec<Claim> {
    let owner = key(OWNER);
    let mut claims: Vec<Claim> = Vec::new();
    for (at, number) in numbers.iter().enumerate() {
        let other = friend(at as u64);
        let draft = Draft::link(owner.id(), other.id(), claims.last());
        let sound = draft.signed(&[]);
        let payload = sound
            .token()
            .payload()
            .replace(&format!("\"seq\":{}", sound.seq()), &format!("\"seq\":{number}"));
        let mut token = SignedToken::new(payload).unwrap();
        for key in [&owner, &other] {
            let signature = key.sign(&token.signing_input(&key.id()));
            token.add_signature(key.id(), signature).unwrap();
        }
        claims.push(Claim::try_from(token).unwrap());
    }
    assert_eq!(claims.iter().map(Claim::seq).collect::<Vec<_>>(), numbers);
    claims
}

#[test]
fn chain_with_gaps_in_its_numbers_is_read() {
    for numbers in [&[1, 3, 4, 9, 10][..], &[2, 3], &[7], &[1, 1 << 50]] {
        let chain = numbered(numbers);
        let mut cluster = with_chain(&chain);
        let id = cluster.request(ASKER, request(OWNER, None));
        let all = outcome(cluster.await_done(ASKER, id));
        assert_eq!((all.verified, all.fault), (chain.len() as u64, None), "{numbers:?}");
        assert_eq!(
            (all.head.as_ref(), reported_claims(&cluster, ASKER, id)),
            (chain.last(), chain.clone())
        );
        for known in 0..chain.len() {
            let id = cluster.request(ASKER, request(OWNER, Some(&chain[known])));
            let rest = outcome(cluster.await_done(ASKER, id));
            assert_eq!(rest.fault, None, "{numbers:?} from {known}");
            assert_eq!(reported_claims(&cluster, ASKER, id), chain[known + 1..]);
        }
        cluster.stop_all();
    }
}

/// Digests prove what numbers do not: each omitted claim is detected.
#[test]
fn omitted_claim_is_detected_in_a_chain_with_gaps() {
    let chain = numbered(&[1, 3, 4, 9, 10]);
    for missing in 0..4 {
        let mut verifier = ChainVerifier::new(vec![key(OWNER).id()]);
        let mut left = chain.clone();
        left.remove(missing);
        let fault = left.iter().find_map(|claim| verifier.verify(claim).err()).unwrap();
        assert_eq!(fault.claim, Some(chain[missing + 1].id()));
        let before = missing.checked_sub(1).map_or(0, |at| chain[at].seq());
        assert_eq!(fault.seq, before + 1);
        let kind = pk_proto::claims::ChainFaultKind::SeqGap(chain[missing + 1].seq());
        assert_eq!(fault.kind, kind, "without {missing}");
    }
}

/// The local chain continues after a head with any number.
#[test]
fn local_chain_continues_after_a_gap() {
    let (owner, chain) = (key(OWNER), numbered(&[1, 5]));
    let unix = UnixMillis(EPOCH.0 + 60_000);
    let head = ChainHead::of(&chain[1], DigestAlgorithm::Blake3);
    let snapshot = Snapshot { chain: Some(head), ..Snapshot::default() };
    let now = Instant::from_micros(1);
    let mut node =
        NodeManager::new(Config::default(), &genesis(&owner, unix), snapshot, [1; 32], now, unix)
            .unwrap();
    node.handle_input(Input::Listening { addrs: vec!["192.0.2.1:1314".parse().unwrap()] }, now);
    let content = ClaimContent {
        typ: "ClaimColour".into(),
        issuer: Some(owner.id().to_string()),
        subject: None,
        members: "{}".into(),
    };
    node.request(Request::AddClaim { content, options: RequestOptions::default() }, now).unwrap();
    let mut added = None;
    while let Some(output) = node.poll_output() {
        match output {
            Output::Sign { id, bytes, .. } => {
                node.handle_input(Input::Signed { id, result: Ok(owner.sign(&bytes)) }, now);
            }
            Output::Persist { id, .. } => {
                node.handle_input(Input::Persisted { id, result: Ok(()) }, now);
            }
            Output::Event(Event::ClaimAdded { claim, .. }) => added = Some(claim),
            _ => {}
        }
    }
    let head = node.chain_head().unwrap();
    assert_eq!((Some(head.id), head.seq), (added, 6));
}
