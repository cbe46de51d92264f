//! Peers that violate the protocol of an exchange: each violation has its own fault, nothing is
//! signed for it, and it delays no other peer. The victim is one machine whose driver is the test.

use bytes::Bytes;
use pk_proto::claims::{Claim, ClaimContent, ClaimFault, ExchangeFault, SignedFault, TokenFault};
use pk_proto::native::{self, Message, V1};
use pk_proto::{ConnectionId, NodeId, PeerFault, Refusal, SignatureFault, StreamId};
use pk_sim::Key;

use super::victim::*;
use crate::common::chains::{Draft, NON_CANONICAL, WEAK, mixed_key, torsion_in_r};

// -- the initiator

/// A peer with this id sends this first message; it is refused with this refusal and fault, and
/// nothing is signed.
fn first_is_refused(
    name: &str,
    peer: NodeId,
    token: &[u8],
    fault: ExchangeFault,
    refusal: Refusal,
) {
    let mut victim = Victim::new();
    let conn = victim.connect(peer);
    let stream = victim.begin(conn, token);
    assert_eq!(victim.faults(), [PeerFault::Claims(fault)], "{name}");
    assert_eq!(victim.refusal(stream), Some(refusal), "{name}");
    assert_eq!(victim.signed.len(), 0, "{name}: something was signed");
    let metrics = victim.bare.node.metrics();
    assert_eq!((metrics.claim_faults, metrics.exchanges, victim.chain_len()), (1, 0, 0), "{name}");
    victim.honest_initiator(50);
    victim.honest_responder(51);
}

#[test]
fn malformed_first_claim_is_refused() {
    let fault = ExchangeFault::Claim(ClaimFault::Token(TokenFault::Malformed));
    first_is_refused("no token", key(0).id(), b"{}", fault, Refusal::Claim);
    first_is_refused("as long as can be", key(0).id(), &[b'{'; 60 * 1024], fault, Refusal::Claim);
    let payload = "eyJqdGkiOjF9"; // {"jti":1}
    let token = json(&first(&key(0)));
    let token = String::from_utf8(token).unwrap();
    let (_, signatures) = token.split_once("\",\"signatures\"").unwrap();
    let token = format!("{{\"payload\":\"{payload}\",\"signatures\"{signatures}");
    first_is_refused(
        "no claim",
        key(0).id(),
        token.as_bytes(),
        ExchangeFault::Claim(ClaimFault::Id),
        Refusal::Claim,
    );
}

#[test]
fn first_claim_of_another_type_is_refused() {
    for typ in ["ClaimLinkIdentity", "ClaimNetworkAccess", "ClaimLinkNod"] {
        let content = ClaimContent { typ: typ.into(), ..linking(key(0).id(), local_key().id()) };
        let claim = Draft::new(&key(0).id(), content, None).signed(&[&key(0)]);
        first_is_refused(typ, key(0).id(), &json(&claim), ExchangeFault::Typ, Refusal::Claim);
    }
}

#[test]
fn first_claim_about_another_node_is_refused() {
    let (peer, other) = (key(0), key(1));
    let of = |issuer: &Key, subject: NodeId, signer: &Key| {
        json(&Draft::new(&issuer.id(), linking(issuer.id(), subject), None).signed(&[signer]))
    };
    let refused = |name, token: Vec<u8>, fault| {
        first_is_refused(name, peer.id(), &token, fault, Refusal::Claim);
    };
    refused("about another one", of(&peer, other.id(), &peer), ExchangeFault::Subject);
    refused("about itself", of(&peer, peer.id(), &peer), ExchangeFault::Subject);
}

/// A peer that has renewed its key issues its next claim by its new id, also over a connection that
/// proves only the old one. No fault is counted, however often it does; nothing is signed or
/// checked.
#[test]
fn first_claim_by_an_unproven_id_is_refused_without_a_fault() {
    let (peer, other) = (key(0), key(1));
    let of = |issuer: &Key, subject: NodeId, signer: &Key| {
        json(&Draft::new(&issuer.id(), linking(issuer.id(), subject), None).signed(&[signer]))
    };
    for (name, token) in [
        ("renewed, or replayed by a node that has seen it", json(&first(&other))),
        ("for another one", of(&other, local_key().id(), &peer)),
        ("by us", of(&local_key(), peer.id(), &peer)),
    ] {
        let mut victim = Victim::new();
        let conn = victim.connect(peer.id());
        for _ in 0..40 {
            let stream = victim.begin(conn, &token);
            assert_eq!(victim.refusal(stream), Some(Refusal::Signature), "{name}");
        }
        assert_eq!((victim.faults(), victim.signed.len()), (vec![], 0), "{name}");
        let metrics = victim.bare.node.metrics();
        assert_eq!(
            (metrics.claim_faults, metrics.signature_checks, metrics.signatures_refused),
            (0, 0, 40),
            "{name}"
        );
        // The connection stays, and claims by the proven id are answered.
        let stream = victim.begin(conn, &json(&first(&peer)));
        assert_eq!(victim.received_tokens(stream).len(), 2, "{name}");
    }
}

#[test]
fn first_claim_with_invalid_signatures_is_refused() {
    let (peer, other, us) = (key(0), key(1), local_key().id());
    let draft = || Draft::new(&peer.id(), linking(peer.id(), us), None);
    let refused = |name, peer, token: Vec<u8>, fault| {
        first_is_refused(name, peer, &token, ExchangeFault::Signed(fault), Refusal::Signature);
    };
    let by_another = json(&draft().signed(&[&other]));
    refused("by another key", peer.id(), by_another, SignedFault::Owner(TokenFault::NotSigned));
    let wrong = other.sign(&draft().input(&peer.id())).0;
    let said = json(&draft().forged(&[(peer.id(), wrong)]));
    refused("by another key in its name", peer.id(), said, SignedFault::Owner(mismatch()));
    refused("by both", peer.id(), json(&draft().signed(&[&peer, &other])), SignedFault::Count(2));

    let owner = |fault| SignedFault::Owner(TokenFault::Signature(fault));
    refused(
        "a weak key",
        WEAK,
        signed_link(WEAK, us, WEAK, [0; 64]),
        owner(SignatureFault::WeakKey),
    );
    let token = signed_link(NON_CANONICAL, us, NON_CANONICAL, [0; 64]);
    refused("a non-canonical key", NON_CANONICAL, token, owner(SignatureFault::NonCanonicalKey));
    let input = |id: &NodeId| Draft::new(id, linking(*id, us), None).input(id);
    let (id, signature) = mixed_key(3, input);
    refused("a mixed key", id, signed_link(id, us, id, signature), owner(SignatureFault::Mismatch));
    let (id, signature) = torsion_in_r(4, 1, input);
    refused(
        "torsion in R",
        id,
        signed_link(id, us, id, signature),
        owner(SignatureFault::Mismatch),
    );
    // Without torsion the same signature is valid, so that the torsion is the reason of the
    // refusal.
    let (id, signature) = torsion_in_r(4, 0, input);
    let mut victim = Victim::new();
    let conn = victim.connect(id);
    let stream = victim.begin(conn, &signed_link(id, us, id, signature));
    assert_eq!((victim.faults(), victim.received_tokens(stream).len()), (vec![], 2));
}

// -- the last message of the initiator

/// A victim that has answered a peer: the stream, and the victim's claim.
fn answered() -> (Victim, ConnectionId, StreamId, Claim) {
    let mut victim = Victim::new();
    let conn = victim.connect(key(0).id());
    let stream = victim.begin(conn, &json(&first(&key(0))));
    let [_, mine] = &victim.received_tokens(stream)[..] else { panic!() };
    let mine = mine.clone();
    (victim, conn, stream, mine)
}

#[test]
fn last_message_that_is_not_the_sent_claim_is_a_fault() {
    let (peer, other) = (key(0), key(1));
    let input = |mine: &Claim| mine.token().signing_input(&peer.id());
    type LastMessage<'a> = Box<dyn Fn(&Claim) -> Vec<u8> + 'a>;
    let cases: Vec<(&str, LastMessage<'_>, ExchangeFault)> = vec![
        (
            "nothing",
            Box::new(|_| b"[]".to_vec()),
            ExchangeFault::Claim(ClaimFault::Token(TokenFault::Malformed)),
        ),
        ("unsigned", Box::new(json), ExchangeFault::Signed(SignedFault::Count(1))),
        (
            "another claim",
            Box::new(|_| json(&counter_signed(&second(&local_key()), &peer))),
            ExchangeFault::Signed(SignedFault::Changed),
        ),
        (
            "by another key",
            Box::new(|mine| json(&counter_signed(mine, &other))),
            ExchangeFault::Signed(SignedFault::Counter(TokenFault::NotSigned)),
        ),
        (
            "by another key in its name",
            Box::new(|mine| forged(mine, peer.id(), other.sign(&input(mine)).0)),
            ExchangeFault::Signed(SignedFault::Counter(mismatch())),
        ),
        (
            "by too many",
            Box::new(|mine| json(&counter_signed(&counter_signed(mine, &peer), &other))),
            ExchangeFault::Signed(SignedFault::Count(3)),
        ),
    ];
    for (name, word, fault) in cases {
        let (mut victim, _, stream, mine) = answered();
        victim.token(stream, &word(&mine));
        assert_eq!(victim.faults(), [PeerFault::Claims(fault)], "{name}");
        assert!(victim.refusal(stream).is_some(), "{name}");
        let metrics = victim.bare.node.metrics();
        assert_eq!(
            (metrics.claim_faults, metrics.exchanges, victim.chain_len()),
            (1, 0, 0),
            "{name}"
        );
        victim.honest_initiator(50);
        victim.honest_responder(51);
    }
}

#[test]
fn early_end_and_early_message_are_faults() {
    let (mut victim, _, stream, _) = answered();
    victim.bare.feed(stream, &[], true);
    victim.settle();
    assert_eq!(victim.faults(), [PeerFault::Claims(ExchangeFault::Early)]);
    assert_eq!(victim.bare.node.metrics().exchanges, 0);

    // Two messages at once, before the first is answered.
    let mut victim = Victim::new();
    let conn = victim.connect(key(0).id());
    let stream = victim.bare.opened(conn);
    let token = Bytes::from(json(&first(&key(0))));
    let both = [V1::Exchange { deadline_ms: 60_000, token: token.clone() }, V1::Token { token }];
    for message in both {
        victim.bare.feed(stream, &native::encode(&Message::V1(message)).unwrap(), false);
    }
    victim.settle();
    assert_eq!(victim.faults(), [PeerFault::Claims(ExchangeFault::Unexpected)]);
    assert_eq!((victim.bare.node.metrics().exchanges, victim.signed.len()), (0, 0));
    victim.honest_initiator(50);
}

#[test]
fn reused_claim_id_is_refused() {
    // Accepted and unfinished, then finished: the id stays used.
    for finished in [false, true] {
        let (mut victim, conn, stream, mine) = answered();
        if finished {
            victim.token(stream, &json(&counter_signed(&mine, &key(0))));
            assert_eq!(victim.chain_len(), 1);
        }
        let id = first(&key(0)).id();
        let content = ClaimContent {
            members: "{\"more\":1}".into(),
            ..linking(key(0).id(), local_key().id())
        };
        let draft = Draft { id, ..Draft::new(&key(0).id(), content, None) };
        let signed = victim.signed.len();
        let stream = victim.begin(conn, &json(&draft.signed(&[&key(0)])));
        assert_eq!(victim.faults(), [PeerFault::Claims(ExchangeFault::Reused)]);
        assert_eq!(victim.refusal(stream), Some(Refusal::Replayed));
        assert_eq!(victim.signed.len(), signed);
        // The original claim is still answered as before.
        let stream = victim.begin(conn, &json(&first(&key(0))));
        assert_eq!(victim.received_tokens(stream)[1].id(), mine.id());
    }
}

/// The same claim again, by its own issuer: the same answer again, and no second claim.
#[test]
fn repeated_claim_receives_the_same_answer() {
    let (mut victim, conn, stream, mine) = answered();
    let last = counter_signed(&mine, &key(0));
    victim.token(stream, &json(&last));
    assert_eq!(victim.chain_len(), 1);
    for _ in 0..3 {
        let signed = victim.signed.len();
        let stream = victim.begin(conn, &json(&first(&key(0))));
        let answer = victim.received_tokens(stream);
        assert_eq!(answer[1], mine);
        assert_eq!(answer[0], counter_signed(&first(&key(0)), &local_key()));
        victim.token(stream, &json(&last));
        assert_eq!((victim.chain_len(), victim.signed.len(), victim.faults()), (1, signed, vec![]));
        assert_eq!(victim.bare.node.metrics().exchanges, 0);
    }
}
