//! Responders that violate the protocol of an exchange, and peers that are silent or send too much.

use std::collections::BTreeMap;

use bytes::Bytes;
use pk_proto::claims::{
    Claim, ClaimContent, ClaimFault, ClaimStep, ExchangeFault, SignedFault, TokenFault,
};
use pk_proto::{Event, Failure, NodeId, Output, PeerFault, Refusal, Reply, SignatureFault, Table};
use pk_sim::Key;

use super::victim::*;
use crate::common::chains::{Draft, NON_CANONICAL, WEAK, mixed_key, torsion_in_r};

// -- the responder

/// A victim that has sent a request to a peer, which answers with these messages: the result is
/// this fault.
fn answer_is_refused(name: &str, peer: NodeId, answers: &[Vec<u8>], fault: ExchangeFault) {
    answer_with(name, peer, |_| answers.to_vec(), fault);
}

fn answer_with(
    name: &str,
    peer: NodeId,
    answers: impl Fn(&Claim) -> Vec<Vec<u8>>,
    fault: ExchangeFault,
) {
    let mut victim = Victim::new();
    victim.connect(peer);
    let (id, stream, first) = victim.claim(peer);
    for answer in answers(&first) {
        victim.token(stream, &answer);
    }
    assert_eq!(victim.done(id), Some(Err(Failure::Peer(PeerFault::Claims(fault)))), "{name}");
    assert_eq!(victim.faults(), [PeerFault::Claims(fault)], "{name}");
    assert_eq!(victim.signed.len(), 1, "{name}: more was signed than our own claim");
    assert_eq!((victim.bare.node.metrics().claim_faults, victim.chain_len()), (1, 0), "{name}");
    assert_eq!(victim.bare.node.exchanges(), [], "{name}");
    victim.honest_initiator(50);
    victim.honest_responder(51);
}

#[test]
fn answer_with_a_changed_or_unsigned_claim_is_refused() {
    let (peer, other) = (key(0), key(1));
    let at = peer.id();
    let signed = ExchangeFault::Signed;
    let malformed = ExchangeFault::Claim(ClaimFault::Token(TokenFault::Malformed));
    answer_is_refused("nothing", at, &[b"{}".to_vec()], malformed);
    let changed = json(&counter_signed(&second(&local_key()), &peer));
    answer_is_refused("another claim", at, &[changed], signed(SignedFault::Changed));
    let with = |name, word: &dyn Fn(&Claim) -> Vec<u8>, fault| {
        answer_with(name, at, |first| vec![word(first)], fault);
    };
    with("unsigned", &json, signed(SignedFault::Count(1)));
    let by_another = |first: &Claim| json(&counter_signed(first, &other));
    with("by another key", &by_another, signed(SignedFault::Counter(TokenFault::NotSigned)));
    let in_its_name =
        |first: &Claim| forged(first, at, other.sign(&first.token().signing_input(&at)).0);
    with("by another key in its name", &in_its_name, signed(SignedFault::Counter(mismatch())));
    let by_three = |first: &Claim| json(&counter_signed(&counter_signed(first, &peer), &other));
    with("by three", &by_three, signed(SignedFault::Count(3)));
}

#[test]
fn answer_with_an_invalid_signature_is_refused() {
    let counter = |fault| ExchangeFault::Signed(SignedFault::Counter(TokenFault::Signature(fault)));
    for (name, id, fault) in [
        ("a weak key", WEAK, SignatureFault::WeakKey),
        ("a non-canonical key", NON_CANONICAL, SignatureFault::NonCanonicalKey),
    ] {
        answer_with(name, id, |first| vec![forged(first, id, [0; 64])], counter(fault));
    }
    let id = mixed_key(3, |_| vec![]).0;
    let input = |first: &Claim| first.token().signing_input(&id).to_vec();
    let mixed = |first: &Claim| vec![forged(first, id, mixed_key(3, |_| input(first)).1)];
    answer_with("a mixed key", id, mixed, counter(SignatureFault::Mismatch));
    let id = torsion_in_r(4, 1, |_| vec![]).0;
    let input = |first: &Claim| first.token().signing_input(&id).to_vec();
    let torsion = |first: &Claim| vec![forged(first, id, torsion_in_r(4, 1, |_| input(first)).1)];
    answer_with("torsion in R", id, torsion, counter(SignatureFault::Mismatch));
}

#[test]
fn invalid_claim_of_the_responder_is_refused() {
    let (peer, other, us) = (key(0), key(1), local_key().id());
    let at = peer.id();
    let after = |name, word: Vec<u8>, fault| {
        answer_with(
            name,
            at,
            |first| vec![json(&counter_signed(first, &peer)), word.clone()],
            fault,
        );
    };
    let of = |content, signers: &[&Key]| json(&Draft::new(&at, content, None).signed(signers));
    let malformed = ExchangeFault::Claim(ClaimFault::Token(TokenFault::Malformed));
    after("nothing", b"{}".to_vec(), malformed);
    let content = ClaimContent { typ: "ClaimNetworkAuthority".into(), ..linking(us, at) };
    after("another type", of(content, &[&peer]), ExchangeFault::Typ);
    after("issued by the peer", of(linking(at, us), &[&peer]), ExchangeFault::Issuer);
    after("issued by a third", of(linking(other.id(), at), &[&peer]), ExchangeFault::Issuer);
    after("about a third", of(linking(us, other.id()), &[&peer]), ExchangeFault::Subject);
    after("about the local node", of(linking(us, us), &[&peer]), ExchangeFault::Subject);
    let signed = |fault| ExchangeFault::Signed(fault);
    let not = signed(SignedFault::Owner(TokenFault::NotSigned));
    after("by another key", of(linking(us, at), &[&other]), not);
    after("by two", of(linking(us, at), &[&peer, &other]), signed(SignedFault::Count(2)));
    let draft = Draft::new(&at, linking(us, at), None);
    let wrong = json(&draft.forged(&[(at, other.sign(&draft.input(&at)).0)]));
    after("by another key in its name", wrong, signed(SignedFault::Owner(mismatch())));
}

#[test]
fn answer_that_ends_early_or_continues_is_a_fault() {
    for answers in 0..2 {
        let mut victim = Victim::new();
        victim.connect(key(0).id());
        let (id, stream, first) = victim.claim(key(0).id());
        if answers == 1 {
            victim.token(stream, &json(&counter_signed(&first, &key(0))));
        }
        victim.bare.feed(stream, &[], true);
        victim.settle();
        let fault = PeerFault::Claims(ExchangeFault::Early);
        assert_eq!(victim.done(id), Some(Err(Failure::Peer(fault.clone()))), "{answers}");
        assert_eq!((victim.faults(), victim.chain_len()), (vec![fault], 0));
        victim.honest_responder(51);
    }
    // Once committed, the claim stays for any message of the peer; it is resumed and completed.
    let mut victim = Victim::new();
    victim.connect(key(0).id());
    let (id, stream, first) = victim.claim(key(0).id());
    let answer = [json(&counter_signed(&first, &key(0))), json(&second(&key(0)))];
    answer.iter().for_each(|token| victim.token(stream, token));
    assert_eq!(victim.chain_len(), 1);
    victim.token(stream, &answer[1]);
    assert_eq!(
        (victim.done(id), victim.faults()),
        (None, vec![PeerFault::Claims(ExchangeFault::Unexpected)])
    );
    victim.pass(1);
    let stream = victim.said.iter().rev().find_map(|output| match output {
        Output::OpenStream { stream, .. } => Some(*stream),
        _ => None,
    });
    let stream = stream.unwrap();
    assert_eq!(victim.received_tokens(stream), [first]);
    answer.iter().for_each(|token| victim.token(stream, token));
    victim.bare.feed(stream, &[], true);
    victim.settle();
    assert!(matches!(victim.done(id), Some(Ok(Reply::ClaimNode(_)))));
    assert_eq!(victim.chain_len(), 1);
}

// -- silence

#[test]
fn silent_responder_times_out_at_every_step() {
    let peer = key(0);
    for step in [ClaimStep::Asked, ClaimStep::HalfAnswered, ClaimStep::Finishing] {
        let mut victim = Victim::new();
        victim.connect(peer.id());
        let (id, stream, first) = victim.claim(peer.id());
        let answer = [json(&counter_signed(&first, &peer)), json(&second(&peer))];
        let said = match step {
            ClaimStep::Asked => 0,
            ClaimStep::HalfAnswered => 1,
            _ => 2,
        };
        answer.iter().take(said).for_each(|token| victim.token(stream, token));
        assert_eq!(victim.bare.node.exchanges()[0].step, step);
        // No other node is affected.
        victim.honest_initiator(50);
        victim.honest_responder(51);
        let stands = usize::from(step == ClaimStep::Finishing);
        victim.pass(61);
        let expected = match (step, &victim.done(id)) {
            (ClaimStep::Finishing, Some(Err(Failure::ClaimUnconfirmed(claim)))) => {
                *claim == first.id()
            }
            (_, Some(Err(failure))) => *failure == Failure::DeadlineExceeded,
            _ => false,
        };
        assert!(expected, "{step:?}: {:?}", victim.done(id));
        assert_eq!(victim.bare.node.unconfirmed_claims().count(), stands);
        assert_eq!(victim.chain_len(), 2 + stands);
        let doubts =
            |output: &&Output| matches!(output, Output::Event(Event::ClaimUnconfirmed { .. }));
        assert_eq!(victim.said.iter().filter(doubts).count(), stands);
        assert_eq!(victim.bare.node.exchanges(), []);
    }
}

#[test]
fn silent_initiator_times_out_at_every_step() {
    // Only the start of a frame, and nothing after the answer.
    for words in 0..2 {
        let mut victim = Victim::new();
        let conn = victim.connect(key(0).id());
        if words == 0 {
            let stream = victim.bare.opened(conn);
            victim.bare.feed(stream, &[0, 0, 1], false);
        } else {
            victim.begin(conn, &json(&first(&key(0))));
            assert_eq!(victim.bare.node.exchanges()[0].step, ClaimStep::Answered);
        }
        victim.honest_initiator(50);
        victim.honest_responder(51);
        victim.pass(16);
        assert_eq!(victim.bare.node.exchanges(), []);
        let metrics = victim.bare.node.metrics();
        assert_eq!((metrics.exchanges, victim.chain_len()), (0, 2));
        assert_eq!(metrics.call_timeouts + metrics.stream_timeouts, 1);
    }
}

// -- too much

#[test]
fn exchanges_of_one_peer_are_limited() {
    let mut victim = Victim::new();
    let conn = victim.connect(key(0).id());
    let limit = victim.bare.node.config().exchanges_per_peer;
    let claims: Vec<Claim> = (0..3 * limit as u64)
        .map(|number| {
            let mut draft = Draft::new(&key(0).id(), linking(key(0).id(), local_key().id()), None);
            draft.unix.0 += number * 1000;
            draft.id = pk_proto::claims::ClaimId::next(&key(0).id(), draft.unix, None).unwrap();
            draft.signed(&[&key(0)])
        })
        .collect();
    let mut streams = Vec::new();
    for (number, claim) in claims.iter().enumerate() {
        let stream = victim.begin(conn, &json(claim));
        if number < limit {
            // The first one is being served.
            assert_eq!(victim.received_tokens(stream).len(), if number == 0 { 2 } else { 0 });
            streams.push(stream);
        } else {
            assert_eq!(victim.refusal(stream), Some(Refusal::Busy));
        }
    }
    assert_eq!(victim.bare.node.metrics().exchanges, limit as u64);
    // Others are served before the next of them, and all of them within the longest wait.
    victim.honest_initiator(50);
    let heard = |victim: &mut Victim| {
        streams[1..].iter().map(|of| victim.received_tokens(*of).len()).sum::<usize>()
    };
    let soon = heard(&mut victim);
    assert!(soon <= 2, "{soon}");
    victim.pass(10);
    assert_eq!(soon + heard(&mut victim), 2 * (limit - 1));
    victim.pass(20);
    // The streams time out; then more are opened. The number of remembered exchanges stays the
    // same.
    for claim in &claims[limit..] {
        victim.pass(16);
        let stream = victim.begin(conn, &json(claim));
        assert_eq!(victim.received_tokens(stream).len(), 2);
        let open = |rows: &BTreeMap<(Table, Bytes), Bytes>| {
            rows.keys().filter(|(table, _)| *table == Table::Exchanges).count()
        };
        assert!(open(&victim.rows) <= limit, "{}", open(&victim.rows));
    }
    assert_eq!(victim.bare.node.metrics().exchanges_open, limit as u64);
    assert_eq!(victim.bare.node.metrics().exchanges_forgotten, 2 * limit as u64);
}
