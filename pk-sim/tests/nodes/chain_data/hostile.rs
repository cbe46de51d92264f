//! Owners that send invalid chains: each defect has its own fault, and the claims before it are the
//! verified prefix.

use bytes::Bytes;
use pk_proto::claims::ChainFaultKind::{
    self, Claim as NotAClaim, CounterSignature, CounterSigner, Fork, Order, OwnerKey,
    OwnerSignature, Parties, PrevClaimId, PrevDigest, SeqGap, Signatures, TooLong,
};
use pk_proto::claims::{
    ChainFault, Claim, ClaimContent, ClaimFault, ClaimId, ClaimLinkNode, DigestAlgorithm,
    TokenFault,
};
use pk_proto::{
    ChainData, ClaimsPage, ClosestNodes, Failure, PeerFault, Refusal, RequestId, RpcRequest,
    RpcResponse, SignatureFault,
};
use pk_sim::{Cluster, Key};

use super::kit::*;
use crate::common::chains::{Draft, NON_CANONICAL, WEAK, link, mixed_key, torsion_in_r};
use crate::common::{Peer, Reaction, SECOND};

/// The answers of a hostile owner.
type Pages = Box<dyn FnMut(Option<ClaimId>) -> Reaction>;

fn page(claims: &[(ClaimId, Vec<u8>)], more: bool) -> Reaction {
    let claims = claims.iter().map(|(id, token)| (*id, Bytes::copy_from_slice(token))).collect();
    Reaction::answer(RpcResponse::Claims(ClaimsPage { claims, more }))
}

fn rows(claims: &[Claim]) -> Vec<(ClaimId, Vec<u8>)> {
    claims.iter().map(|claim| (claim.id(), claim.token().to_json().into_bytes())).collect()
}

/// Requests the chain of a scripted peer.
fn request_from_scripted_peer(
    since: Option<&Claim>,
    change: impl FnOnce(&mut pk_proto::Config),
    mut pages: Pages,
) -> (Cluster, RequestId) {
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(SEED).config(change).start();
    let mut peer = Peer::new(OWNER, move |question| match question {
        RpcRequest::Claims { after, .. } => pages(after),
        RpcRequest::Closest { .. } => {
            Reaction::answer(RpcResponse::Closest(ClosestNodes::default()))
        }
        RpcRequest::Ping { nonce } => Reaction::answer(RpcResponse::Pong { nonce }),
        _ => Reaction::answer(RpcResponse::Refused(Refusal::Busy)),
    });
    peer.connect(&mut cluster, ASKER);
    let id = cluster.request(ASKER, request(OWNER, since));
    for _ in 0..200 {
        if cluster.done(ASKER, id).is_some() {
            break;
        }
        peer.drive(&mut cluster, SECOND / 4);
    }
    (cluster, id)
}

/// Sends this chain in one page, and returns the result of the request.
fn read_page(since: Option<&Claim>, claims: Vec<(ClaimId, Vec<u8>)>) -> (Vec<Claim>, ChainData) {
    let (mut cluster, id) =
        request_from_scripted_peer(since, |_| {}, Box::new(move |_| page(&claims, false)));
    let outcome = outcome(cluster.await_done(ASKER, id));
    (reported_claims(&cluster, ASKER, id), outcome)
}

/// A fourth claim made by `make` is refused with this fault; the three before it are the verified
/// prefix.
#[track_caller]
fn refused(what: &str, kind: ChainFaultKind, fourth: &Claim) {
    let sound = valid_claims();
    let mut claims = sound.clone();
    claims.push(fourth.clone());
    let (told, outcome) = read_page(None, rows(&claims));
    assert_eq!(
        outcome.fault,
        Some(ChainFault { seq: 4, claim: Some(fourth.id()), kind }),
        "{what}"
    );
    assert_eq!((outcome.verified, outcome.head.as_ref()), (3, sound.last()), "{what}");
    assert_eq!(told, sound, "{what}");
}

fn draft() -> Draft {
    Draft::link(key(OWNER).id(), friend(3).id(), valid_claims().last())
}

/// A fourth claim with a change.
fn fourth(change: impl FnOnce(&mut Draft)) -> Claim {
    let mut draft = draft();
    change(&mut draft);
    draft.signed(&[&key(OWNER), &friend(3)])
}

#[test]
fn valid_claim_is_not_refused() {
    let mut claims = valid_claims();
    claims.push(fourth(|_| {}));
    assert_eq!(read_page(None, rows(&claims)).1.fault, None);
}

#[test]
fn claim_out_of_sequence_is_refused() {
    let sound = valid_claims();
    let later = |draft: &mut Draft, seq| draft.prev.as_mut().unwrap().seq = seq;
    refused(
        "a missing claim",
        SeqGap(5),
        &fourth(|draft| {
            later(draft, 4);
            draft.prev.as_mut().unwrap().id = sound[1].id();
        }),
    );
    refused("a fork", Fork(3), &fourth(|draft| later(draft, 2)));
    refused("the same claim again", Fork(3), &sound[2]);
    refused("back to the beginning", Fork(1), &link(&key(OWNER), &friend(3), None));
    refused("an id that goes back", Order, &fourth(|draft| draft.id = sound[1].id()));
    refused("an id that does not increase", Order, &fourth(|draft| draft.id = sound[2].id()));
    refused(
        "another predecessor",
        PrevClaimId,
        &fourth(|draft| draft.prev.as_mut().unwrap().id = sound[1].id()),
    );
    let other = sound[1].token().digest(DigestAlgorithm::Blake3);
    refused(
        "another digest",
        PrevDigest,
        &fourth(|draft| draft.prev.as_mut().unwrap().digest = other),
    );
    for (what, first) in [
        ("no beginning", sound[1].clone()),
        ("not the beginning", link(&key(OWNER), &friend(9), Some(&sound[1]))),
    ] {
        let fault = read_page(None, rows(&[first])).1.fault.unwrap();
        assert!(fault.seq == 1 && matches!(fault.kind, SeqGap(_)), "{what}: {fault}");
    }
}

/// Forks are detected over several reads: the next claims must continue the known one.
#[test]
fn chain_that_does_not_continue_the_known_claim_is_refused() {
    let (owner, sound) = (key(OWNER), valid_claims());
    let mut forked = Draft::link(owner.id(), friend(8).id(), Some(&sound[1]));
    forked.id = ClaimId::next(&owner.id(), forked.unix, Some(sound[2].id())).unwrap();
    let third = forked.signed(&[&owner, &friend(8)]);
    let fourth = link(&owner, &friend(9), Some(&third));
    for (claims, kind) in
        [(vec![third.clone(), fourth.clone()], Fork(3)), (vec![fourth], PrevClaimId)]
    {
        let (told, outcome) = read_page(Some(&sound[2]), rows(&claims));
        let fault = ChainFault { seq: 4, claim: Some(claims[0].id()), kind };
        assert_eq!((told.len(), outcome.verified, outcome.fault), (0, 0, Some(fault)));
        assert_eq!(outcome.head.as_ref(), Some(&sound[2]));
    }
}

#[test]
fn claim_of_other_nodes_is_refused() {
    let (owner, other) = (key(OWNER), friend(3));
    let links = |issuer: &Key, subject: &Key| {
        let mut draft = draft();
        draft.content =
            ClaimContent::link(&ClaimLinkNode { issuer: issuer.id(), subject: subject.id() });
        draft
    };
    refused("foreign parties", Parties, &links(&friend(4), &other).signed(&[&owner, &other]));
    refused("itself", Parties, &links(&owner, &owner).signed(&[&owner, &other]));
    refused("a foreign owner", OwnerKey, &links(&other, &friend(4)).signed(&[&other, &friend(4)]));
    refused(
        "signatures the wrong way round",
        OwnerKey,
        &links(&owner, &other).signed(&[&other, &owner]),
    );
    refused(
        "a third counter-signer",
        CounterSigner,
        &links(&owner, &other).signed(&[&owner, &friend(4)]),
    );
    refused("one signature", Signatures(1), &links(&owner, &other).signed(&[&owner]));
    refused(
        "three signatures",
        Signatures(3),
        &links(&owner, &other).signed(&[&owner, &other, &friend(4)]),
    );
    let mut vote = draft();
    vote.content = ClaimContent {
        typ: "Vote".into(),
        issuer: Some(other.id().to_string()),
        subject: None,
        members: "{}".into(),
    };
    refused("another type of others", Parties, &vote.signed(&[&owner]));
}

#[test]
fn invalid_signature_is_refused() {
    use SignatureFault::{Mismatch, NonCanonicalKey, WeakKey};

    let (owner, other) = (key(OWNER), friend(3));
    let good = |key: &Key, draft: &Draft| (key.id(), key.sign(&draft.input(&key.id())).0);
    let foreign = |key: &Key, draft: &Draft| (key.id(), friend(66).sign(&draft.input(&key.id())).0);
    let draft = draft();
    refused(
        "by another key",
        OwnerSignature(Mismatch),
        &draft.forged(&[foreign(&owner, &draft), good(&other, &draft)]),
    );
    refused(
        "counter-signed by another key",
        CounterSignature(Mismatch),
        &draft.forged(&[good(&owner, &draft), foreign(&other, &draft)]),
    );
    refused(
        "no signature at all",
        OwnerSignature(Mismatch),
        &draft.forged(&[(owner.id(), [0; 64]), good(&other, &draft)]),
    );

    let linked = |node, signature| {
        let draft = Draft::link(owner.id(), node, valid_claims().last());
        draft.forged(&[good(&owner, &draft), (node, signature)])
    };
    // R of order two, S zero: valid for a weak key if that is not checked.
    let mut zero = [0; 64];
    zero[..32].copy_from_slice(WEAK.as_bytes());
    refused("a weak key", CounterSignature(WeakKey), &linked(WEAK, zero));
    refused(
        "a key in another encoding",
        CounterSignature(NonCanonicalKey),
        &linked(NON_CANONICAL, zero),
    );
    let input =
        |id: &pk_proto::NodeId| Draft::link(owner.id(), *id, valid_claims().last()).input(id);
    for number in 0..4 {
        for torsion in 1..8 {
            let (node, signature) = torsion_in_r(number, torsion, input);
            refused("torsion in R", CounterSignature(Mismatch), &linked(node, signature));
        }
        let (node, signature) = torsion_in_r(number, 0, input);
        let accepted = [valid_claims(), vec![linked(node, signature)]].concat();
        assert_eq!(read_page(None, rows(&accepted)).1.fault, None, "the same without torsion");
        let (node, signature) = mixed_key(number, input);
        refused("a mixed key", CounterSignature(Mismatch), &linked(node, signature));
    }
    // S that is not reduced.
    let (node, mut signature) = good(&other, &draft);
    let order = [
        0xed_u8, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
        0xde, 0x14,
    ];
    let mut carry = 0;
    for (at, byte) in signature[32..].iter_mut().enumerate() {
        let add = order.get(at).copied().unwrap_or(if at == 31 { 0x10 } else { 0 });
        let sum = u16::from(*byte) + u16::from(add) + carry;
        [*byte, _] = sum.to_le_bytes();
        carry = sum >> 8;
    }
    refused(
        "S over the order",
        CounterSignature(Mismatch),
        &draft.forged(&[good(&owner, &draft), (node, signature)]),
    );
}

#[test]
fn malformed_claim_is_refused() {
    let sound = valid_claims();
    let id = fourth(|_| {}).id();
    let payload = |text: &str| data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
    let token = |text: &str| {
        let signed = fourth(|_| {}).token().to_json();
        let (_, signatures) = signed.split_once(",\"signatures\"").unwrap();
        format!("{{\"payload\":\"{}\",\"signatures\"{signatures}", payload(text)).into_bytes()
    };
    let told_as = |id, json: Vec<u8>| {
        let mut claims = rows(&sound);
        claims.push((id, json));
        let (told, outcome) = read_page(None, claims);
        assert_eq!(told, sound);
        let fault = outcome.fault.unwrap();
        assert_eq!((fault.seq, fault.claim), (4, Some(id)));
        fault.kind
    };
    assert_eq!(told_as(id, b"{".to_vec()), NotAClaim(ClaimFault::Token(TokenFault::Malformed)));
    assert_eq!(told_as(id, token("{}")), NotAClaim(ClaimFault::Id));
    let spaced = fourth(|_| {}).token().payload().replace(':', ": ");
    assert!(matches!(
        told_as(id, token(&spaced)),
        NotAClaim(ClaimFault::Token(TokenFault::Payload(_)))
    ));
    let other = ClaimId::next(&key(OWNER).id(), draft().unix, Some(id)).unwrap();
    assert_eq!(told_as(other, fourth(|_| {}).token().to_json().into_bytes()), ChainFaultKind::Id);
}

/// An endless chain is truncated by count and by bytes; the verified prefix is kept.
#[test]
fn endless_chain_is_truncated_at_the_limits() {
    let endless = || -> Pages {
        let mut made: Vec<Claim> = Vec::new();
        Box::new(move |after| {
            let from = after
                .map_or(0, |after| made.iter().position(|claim| claim.id() == after).unwrap() + 1);
            while made.len() < from + 10 {
                made.push(link(&key(OWNER), &friend(0), made.last()));
            }
            page(&rows(&made[from..from + 10]), true)
        })
    };
    let (mut cluster, id) =
        request_from_scripted_peer(None, |config| config.chain_claim_limit = 35, endless());
    let ended = outcome(cluster.await_done(ASKER, id));
    assert_eq!(
        (ended.verified, ended.fault.map(|fault| (fault.seq, fault.kind))),
        (35, Some((36, TooLong)))
    );
    assert_eq!(reported_claims(&cluster, ASKER, id).len(), 35);

    let (mut cluster, id) =
        request_from_scripted_peer(None, |config| config.chain_byte_limit = 64 * 1024, endless());
    let ended = outcome(cluster.await_done(ASKER, id));
    let bytes: usize = reported_claims(&cluster, ASKER, id)
        .iter()
        .map(|claim| claim.token().to_json().len())
        .sum();
    assert!((60 * 1024..=64 * 1024).contains(&bytes), "{bytes}");
    assert_eq!(ended.fault.map(|fault| fault.kind), Some(TooLong));
    // A later read can continue from there.
    assert_eq!(ended.head.as_ref(), reported_claims(&cluster, ASKER, id).last());
}

#[test]
fn request_fails_if_the_peer_returns_no_claims() {
    for (what, pages, failure) in [
        ("silence", Box::new(|_| Reaction::Silence) as Pages, Failure::DeadlineExceeded),
        (
            "nothing, and more of it",
            Box::new(|_| page(&[], true)),
            Failure::Peer(PeerFault::Unexpected),
        ),
        (
            "something else",
            Box::new(|_| Reaction::answer(RpcResponse::Pong { nonce: 1 })),
            Failure::Peer(PeerFault::Unexpected),
        ),
        (
            "a refusal",
            Box::new(|_| Reaction::answer(RpcResponse::Refused(Refusal::Busy))),
            Failure::Refused(Refusal::Busy),
        ),
    ] {
        let (mut cluster, id) = request_from_scripted_peer(None, |_| {}, pages);
        assert_eq!(cluster.await_done(ASKER, id), Err(failure), "{what}");
        assert_eq!(cluster.node(ASKER).metrics().streams, 1, "{what}");
    }
}

/// The claims that were verified before the peer stopped answering were reported.
#[test]
fn silence_between_pages_keeps_the_verified_prefix() {
    let sound = valid_claims();
    let first = rows(&sound[..2]);
    let pages: Pages =
        Box::new(move |after| if after.is_none() { page(&first, true) } else { Reaction::Silence });
    let (mut cluster, id) = request_from_scripted_peer(None, |_| {}, pages);
    assert_eq!(cluster.await_done(ASKER, id), Err(Failure::DeadlineExceeded));
    assert_eq!(reported_claims(&cluster, ASKER, id), sound[..2]);
}

#[test]
fn peer_without_the_claims_feature_receives_no_claims_request() {
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(SEED).start();
    let mut peer = Peer::honest(OWNER);
    let hello = pk_proto::native::Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        agent: "old".into(),
    };
    peer.hello = pk_proto::native::encode(&pk_proto::native::Message::V1(
        pk_proto::native::V1::Hello(hello),
    ))
    .unwrap();
    peer.connect(&mut cluster, ASKER);
    let id = cluster.request(ASKER, request(OWNER, None));
    peer.drive(&mut cluster, SECOND);
    assert_eq!(cluster.await_done(ASKER, id), Err(Failure::Unsupported));
    assert!(peer.asked.iter().all(|question| !matches!(question, RpcRequest::Claims { .. })));
}
