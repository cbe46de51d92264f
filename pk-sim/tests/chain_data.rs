//! Chains of others, read over the network and verified (DESIGN section 6), in virtual time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::chains::{Draft, NON_CANONICAL, WEAK, chain, link, mixed_key, torsion_in_r};
use common::{Peer, Reaction, SECOND, by};
use pk_proto::claims::ChainFaultKind::{
    self, Claim as NotAClaim, CounterSignature, CounterSigner, Fork, KeyOrder, Order, OwnerKey, OwnerSignature,
    Parties, PrevClaimId, PrevDigest, SeqGap, Signatures, TooLong,
};
use pk_proto::claims::{
    ChainFault, Claim, ClaimContent, ClaimFault, ClaimId, ClaimLinkNode, DigestAlgorithm, Gestalt, GestaltProof,
    TokenFault, claim_row,
};
use pk_proto::{
    Answer, ChainData, ClaimsFound, ClaimsPage, ClaimsQuery, Closest, Event, Failure, GestaltQuery, Options, PeerFault,
    Question, Refusal, Reply, Request, RequestId, SignatureFault, Table,
};
use pk_sim::{Cluster, HostId, Key};

const ASKER: HostId = 0;
const OWNER: HostId = 1;
const SEED: u64 = 5;

/// The key of a node of the cluster.
fn key(node: HostId) -> Key {
    Key::numbered(SEED, node as u64)
}

/// Somebody to be linked with.
fn friend(number: u64) -> Key {
    Key::numbered(SEED + 1, number)
}

fn friends(count: u64) -> Vec<Key> {
    (0..count).map(friend).collect()
}

fn request(target: HostId, since: Option<&Claim>) -> Request {
    let since = since.cloned();
    Request::RequestChainData { target: key(target).id(), since, limit: None, options: Options::default() }
}

/// Every claim that was told for a request.
fn told(cluster: &Cluster, node: HostId, id: RequestId) -> Vec<Claim> {
    let pages = cluster.events(node).iter().filter_map(|(_, event)| match event {
        Event::ChainData { id: of, claims } if *of == id => Some(claims.clone()),
        _ => None,
    });
    pages.flatten().collect()
}

fn outcome(result: Result<Reply, Failure>) -> ChainData {
    match result {
        Ok(Reply::ChainData(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

fn gestalt(cluster: &mut Cluster, node: HostId, of: &Key, query: GestaltQuery) -> Gestalt {
    match cluster.ask(node, Request::Gestalt { node: of.id(), query, options: Options::default() }) {
        Ok(Reply::Gestalt(gestalt)) => gestalt,
        other => panic!("{other:?}"),
    }
}

fn claims(cluster: &mut Cluster, node: HostId, query: ClaimsQuery) -> ClaimsFound {
    match cluster.ask(node, Request::Claims { query, options: Options::default() }) {
        Ok(Reply::Claims(found)) => found,
        other => panic!("{other:?}"),
    }
}

// -- honest owners

/// Two connected nodes, of which the second has a chain.
fn with_chain(chain: &[Claim]) -> Cluster {
    let mut cluster = Cluster::quiet().nodes(2).seed(SEED).start();
    cluster.host_mut(OWNER).store.seed(chain.iter().map(claim_row));
    cluster.connect(ASKER, OWNER).unwrap();
    cluster
}

#[test]
fn a_chain_is_read_page_by_page_and_verified_to_its_end() {
    let chain = chain(&key(OWNER), &friends(150));
    let mut cluster = with_chain(&chain);
    let id = cluster.request(ASKER, request(OWNER, None));
    let outcome = outcome(cluster.await_done(ASKER, id));
    assert_eq!((outcome.verified, outcome.fault), (150, None));
    assert_eq!(outcome.head.as_ref(), chain.last());
    assert_eq!(told(&cluster, ASKER, id), chain);
    let pages: Vec<_> =
        cluster.events(ASKER).iter().filter(|(_, event)| matches!(event, Event::ChainData { .. })).collect();
    assert!(pages.len() > 2, "{} pages", pages.len());
    let metrics = cluster.node(ASKER).metrics();
    assert_eq!((metrics.claims_verified, metrics.signature_checks, metrics.chain_faults), (150, 300, 0));
    assert_eq!(cluster.node(OWNER).metrics().claims_served, 150);
    cluster.stop_all();
}

#[test]
fn an_empty_chain_is_a_chain() {
    let mut cluster = with_chain(&[]);
    let outcome = outcome(cluster.ask(ASKER, request(OWNER, None)));
    assert_eq!(outcome, ChainData { verified: 0, head: None, fault: None, more: false });
}

#[test]
fn a_chain_is_read_on_from_a_claim_that_is_known() {
    let chain = chain(&key(OWNER), &friends(80));
    for known in [0, 1, 40, 78, 79] {
        let mut cluster = with_chain(&chain);
        let id = cluster.request(ASKER, request(OWNER, Some(&chain[known])));
        let outcome = outcome(cluster.await_done(ASKER, id));
        assert_eq!((outcome.verified, outcome.fault), (79 - known as u64, None), "{known}");
        assert_eq!(outcome.head.as_ref(), chain.last());
        assert_eq!(told(&cluster, ASKER, id), chain[known + 1..]);
    }
}

/// An embedder that takes a chain in pieces gets it whole, and holds no more than a piece.
#[test]
fn a_chain_is_read_in_pieces() {
    let chain = chain(&key(OWNER), &friends(100));
    for limit in [1, 30, 99, 100, 101] {
        let mut cluster = with_chain(&chain);
        let (mut all, mut since): (Vec<Claim>, Option<Claim>) = (Vec::new(), None);
        loop {
            let (target, options) = (key(OWNER).id(), Options::default());
            let piece = Request::RequestChainData { target, since: since.take(), limit: Some(limit), options };
            let id = cluster.request(ASKER, piece);
            let outcome = outcome(cluster.await_done(ASKER, id));
            let told = told(&cluster, ASKER, id);
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
    let none =
        Request::RequestChainData { target: key(OWNER).id(), since: None, limit: Some(0), options: Options::default() };
    assert!(with_chain(&chain).try_request(ASKER, none).is_err());
}

/// The work of one call into the machine is bounded, whatever a peer sends: between two moments of virtual time no more than
/// 64 signatures are checked.
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
fn every_function_of_digests_is_verified() {
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
        Draft::new(&owner.id(), content(r#"{"choice":["a",1,null],"weight":2.5}"#), prev).signed(signers)
    };
    let first = vote(None, &[&owner]);
    let second = link(&owner, &friend(1), Some(&first));
    let third = vote(Some(&second), &[&owner, &friend(2), &friend(3)]);
    let mut cluster = with_chain(&[first, second, third.clone()]);
    let id = cluster.request(ASKER, request(OWNER, None));
    let outcome = outcome(cluster.await_done(ASKER, id));
    assert_eq!((outcome.verified, outcome.fault), (3, None));
    let claim = &told(&cluster, ASKER, id)[2];
    assert_eq!(claim, &third);
    assert_eq!((claim.typ(), claim.subject(), claim.link()), ("org.example.Vote", Some("somebody"), None));
    assert_eq!(claim.member("choice"), Some(r#"["a",1,null]"#));
    assert_eq!(claim.members(), r#"{"choice":["a",1,null],"weight":2.5}"#);
    assert!(Claim::draft(&content(r#"{"seq":1}"#), claim.id(), cluster.unix(0), None).is_err());
    assert!(Claim::draft(&content(r#"{"b":1,"a":1}"#), claim.id(), cluster.unix(0), None).is_err());
}

// -- links

#[test]
fn the_links_of_a_chain_are_in_the_gestalts_after_a_restart_too() {
    let chain = chain(&key(OWNER), &friends(3));
    let mut cluster = with_chain(&chain);
    cluster.ask(ASKER, request(OWNER, None)).unwrap();
    for restarted in [false, true] {
        if restarted {
            cluster.ask(ASKER, Request::Flush { options: Options::default() }).unwrap();
            cluster.stop(ASKER);
            cluster.restart(ASKER);
            cluster.drive(SECOND);
        }
        let around = gestalt(&mut cluster, ASKER, &friend(1), GestaltQuery::default());
        assert_eq!(around.nodes.len(), 4);
        assert_eq!(around.nodes[..2], [friend(1).id(), key(OWNER).id()]);
        assert!(!around.more);
        let direct = gestalt(&mut cluster, ASKER, &friend(1), GestaltQuery { direct: true, limit: 10 });
        assert_eq!(direct.nodes, [friend(1).id(), key(OWNER).id()]);
        let proof = GestaltProof::Claim { owner: key(OWNER).id(), id: chain[1].id() };
        assert_eq!(direct.links.iter().map(|link| link.proof).collect::<Vec<_>>(), [proof]);
        let cut = gestalt(&mut cluster, ASKER, &friend(1), GestaltQuery { direct: false, limit: 3 });
        assert_eq!((cut.nodes.len(), cut.more), (3, true));
    }
    let alone = gestalt(&mut cluster, ASKER, &friend(9), GestaltQuery::default());
    assert_eq!((alone.nodes, alone.links.len()), (vec![friend(9).id()], 0));
}

/// A chain that is read again from its beginning, and no further than to an older claim, takes nothing back.
#[test]
fn an_older_claim_never_replaces_a_newer_one() {
    let same = [friend(0), friend(0), friend(0)];
    let chain = chain(&key(OWNER), &same);
    let mut cluster = with_chain(&chain);
    cluster.ask(ASKER, request(OWNER, None)).unwrap();
    let newest = GestaltProof::Claim { owner: key(OWNER).id(), id: chain[2].id() };
    let proof = |cluster: &mut Cluster| gestalt(cluster, ASKER, &friend(0), GestaltQuery::default()).links[0].proof;
    assert_eq!(proof(&mut cluster), newest);
    let (table, key) = (Table::Claims, Bytes::copy_from_slice(chain[2].id().as_bytes()));
    cluster.host_mut(OWNER).store.seed([pk_proto::StoreOp::Delete { table, key }]);
    assert_eq!(outcome(cluster.ask(ASKER, request(OWNER, None))).verified, 2);
    assert_eq!(proof(&mut cluster), newest);
}

/// What was left out is no less new when it is read at last.
#[test]
fn links_before_where_a_reading_began_are_found_later() {
    let chain = chain(&key(OWNER), &friends(3));
    let mut cluster = with_chain(&chain);
    cluster.ask(ASKER, request(OWNER, Some(&chain[1]))).unwrap();
    let nodes = |cluster: &mut Cluster| gestalt(cluster, ASKER, &key(OWNER), GestaltQuery::default()).nodes.len();
    assert_eq!(nodes(&mut cluster), 2);
    cluster.ask(ASKER, request(OWNER, None)).unwrap();
    assert_eq!(nodes(&mut cluster), 4);
}

#[test]
fn a_renewed_owner_is_one_node_with_the_chain_of_both_keys() {
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

    // What is signed by the old key from now on is nobody's.
    let fourth = link(&old, &friend(3), Some(&third));
    cluster.host_mut(OWNER).store.seed([claim_row(&fourth)]);
    let id = cluster.request(ASKER, request(OWNER, Some(&third)));
    let fault = match cluster.await_done(ASKER, id) {
        Ok(Reply::ChainData(outcome)) => outcome.fault.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((fault.seq, fault.kind), (4, KeyOrder));

    // The owner itself sees its two keys as one, too.
    let own = gestalt(&mut cluster, OWNER, &old, GestaltQuery::default());
    assert_eq!(own.nodes, [old.id(), new.id()]);
}

// -- our own chain

#[test]
fn own_claims_are_found_by_id_range_order_and_limit() {
    use std::ops::Bound::{Excluded, Included, Unbounded};

    let all = chain(&key(OWNER), &friends(10));
    let mut cluster = with_chain(&all);
    let id = |index: usize| all[index].id();
    let found = |cluster: &mut Cluster, query| claims(cluster, OWNER, query);
    let some = |range: std::ops::Range<usize>, more| ClaimsFound { claims: all[range].to_vec(), more };
    assert_eq!(found(&mut cluster, ClaimsQuery::default()), some(0..10, false));
    assert_eq!(found(&mut cluster, ClaimsQuery { limit: 4, ..ClaimsQuery::default() }), some(0..4, true));
    assert_eq!(found(&mut cluster, ClaimsQuery { limit: 10, ..ClaimsQuery::default() }), some(0..10, false));
    assert_eq!(found(&mut cluster, ClaimsQuery::id(id(7))), some(7..8, false));
    assert_eq!(found(&mut cluster, ClaimsQuery::id(ClaimId::from_bytes([9; 16]))), some(0..0, false));
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
        assert_eq!(found(&mut cluster, ClaimsQuery { descending: true, ..query }), reversed, "{query:?}");
    }
    let query = ClaimsQuery { limit: 0, ..ClaimsQuery::default() };
    assert!(cluster.try_request(OWNER, Request::Claims { query, options: Options::default() }).is_err());
    assert!(cluster.try_request(OWNER, request(OWNER, None)).is_err());
}

// -- hostile owners

/// What a hostile owner answers.
type Pages = Box<dyn FnMut(Option<ClaimId>) -> Reaction>;

fn page(claims: &[(ClaimId, Vec<u8>)], more: bool) -> Reaction {
    let claims = claims.iter().map(|(id, token)| (*id, Bytes::copy_from_slice(token))).collect();
    Reaction::answer(Answer::Claims(ClaimsPage { claims, more }))
}

fn rows(claims: &[Claim]) -> Vec<(ClaimId, Vec<u8>)> {
    claims.iter().map(|claim| (claim.id(), claim.token().to_json().into_bytes())).collect()
}

/// Asks a puppet for its chain.
fn ask_puppet(
    since: Option<&Claim>,
    change: impl FnOnce(&mut pk_proto::Config),
    mut pages: Pages,
) -> (Cluster, RequestId) {
    let mut cluster = Cluster::quiet().nodes(1).puppets(1).seed(SEED).config(change).start();
    let mut peer = Peer::new(OWNER, move |question| match question {
        Question::Claims { after, .. } => pages(after),
        Question::Closest { .. } => Reaction::answer(Answer::Closest(Closest::default())),
        Question::Ping { nonce } => Reaction::answer(Answer::Pong { nonce }),
        _ => Reaction::answer(Answer::Refused(Refusal::Busy)),
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

/// Tells this chain, all at once, and gives what became of it.
fn tell(since: Option<&Claim>, claims: Vec<(ClaimId, Vec<u8>)>) -> (Vec<Claim>, ChainData) {
    let (mut cluster, id) = ask_puppet(since, |_| {}, Box::new(move |_| page(&claims, false)));
    let outcome = outcome(cluster.await_done(ASKER, id));
    (told(&cluster, ASKER, id), outcome)
}

/// Three sound claims.
fn sound() -> Vec<Claim> {
    chain(&key(OWNER), &friends(3))
}

/// A fourth claim made by `make` is refused for this reason; the three before it are the verified prefix.
#[track_caller]
fn refused(what: &str, kind: ChainFaultKind, fourth: &Claim) {
    let sound = sound();
    let mut claims = sound.clone();
    claims.push(fourth.clone());
    let (told, outcome) = tell(None, rows(&claims));
    assert_eq!(outcome.fault, Some(ChainFault { seq: 4, claim: Some(fourth.id()), kind }), "{what}");
    assert_eq!((outcome.verified, outcome.head.as_ref()), (3, sound.last()), "{what}");
    assert_eq!(told, sound, "{what}");
}

fn draft() -> Draft {
    Draft::link(key(OWNER).id(), friend(3).id(), sound().last())
}

/// A fourth claim that says something else than it should.
fn fourth(change: impl FnOnce(&mut Draft)) -> Claim {
    let mut draft = draft();
    change(&mut draft);
    draft.signed(&[&key(OWNER), &friend(3)])
}

#[test]
fn a_claim_that_is_sound_is_not_refused() {
    let mut claims = sound();
    claims.push(fourth(|_| {}));
    assert_eq!(tell(None, rows(&claims)).1.fault, None);
}

#[test]
fn a_claim_that_is_not_in_its_place_is_refused() {
    let sound = sound();
    let later = |draft: &mut Draft, seq| draft.prev.as_mut().unwrap().seq = seq;
    refused("a gap", SeqGap(5), &fourth(|draft| later(draft, 4)));
    refused("a fork", Fork(3), &fourth(|draft| later(draft, 2)));
    refused("the same claim again", Fork(3), &sound[2]);
    refused("back to the beginning", Fork(1), &link(&key(OWNER), &friend(3), None));
    refused("an id that goes back", Order, &fourth(|draft| draft.id = sound[1].id()));
    refused("an id that stands still", Order, &fourth(|draft| draft.id = sound[2].id()));
    refused("another predecessor", PrevClaimId, &fourth(|draft| draft.prev.as_mut().unwrap().id = sound[1].id()));
    let other = sound[1].token().digest(DigestAlgorithm::Blake3);
    refused("another digest", PrevDigest, &fourth(|draft| draft.prev.as_mut().unwrap().digest = other));
    for (what, first) in
        [("no beginning", sound[1].clone()), ("not the beginning", link(&key(OWNER), &friend(9), Some(&sound[1])))]
    {
        let fault = tell(None, rows(&[first])).1.fault.unwrap();
        assert!(fault.seq == 1 && matches!(fault.kind, SeqGap(_)), "{what}: {fault}");
    }
}

/// A fork is judged over time: what follows has to follow what is known.
#[test]
fn a_chain_that_was_forked_behind_what_is_known_is_refused() {
    let (owner, sound) = (key(OWNER), sound());
    let mut forked = Draft::link(owner.id(), friend(8).id(), Some(&sound[1]));
    forked.id = ClaimId::next(&owner.id(), forked.unix, Some(sound[2].id())).unwrap();
    let third = forked.signed(&[&owner, &friend(8)]);
    let fourth = link(&owner, &friend(9), Some(&third));
    for (claims, kind) in [(vec![third.clone(), fourth.clone()], Fork(3)), (vec![fourth], PrevClaimId)] {
        let (told, outcome) = tell(Some(&sound[2]), rows(&claims));
        let fault = ChainFault { seq: 4, claim: Some(claims[0].id()), kind };
        assert_eq!((told.len(), outcome.verified, outcome.fault), (0, 0, Some(fault)));
        assert_eq!(outcome.head.as_ref(), Some(&sound[2]));
    }
}

#[test]
fn a_claim_of_others_is_refused() {
    let (owner, other) = (key(OWNER), friend(3));
    let links = |issuer: &Key, subject: &Key| {
        let mut draft = draft();
        draft.content = ClaimContent::link(&ClaimLinkNode { issuer: issuer.id(), subject: subject.id() });
        draft
    };
    refused("foreign parties", Parties, &links(&friend(4), &other).signed(&[&owner, &other]));
    refused("itself", Parties, &links(&owner, &owner).signed(&[&owner, &other]));
    refused("a foreign owner", OwnerKey, &links(&other, &friend(4)).signed(&[&other, &friend(4)]));
    refused("signatures the wrong way round", OwnerKey, &links(&owner, &other).signed(&[&other, &owner]));
    refused("a third counter-signer", CounterSigner, &links(&owner, &other).signed(&[&owner, &friend(4)]));
    refused("one signature", Signatures(1), &links(&owner, &other).signed(&[&owner]));
    refused("three signatures", Signatures(3), &links(&owner, &other).signed(&[&owner, &other, &friend(4)]));
    let mut vote = draft();
    vote.content =
        ClaimContent { typ: "Vote".into(), issuer: Some(other.id().to_string()), subject: None, members: "{}".into() };
    refused("another type of others", Parties, &vote.signed(&[&owner]));
}

#[test]
fn a_signature_that_is_not_valid_is_refused() {
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
        let draft = Draft::link(owner.id(), node, sound().last());
        draft.forged(&[good(&owner, &draft), (node, signature)])
    };
    // R of order two, S zero: valid for a weak key if nobody looks.
    let mut zero = [0; 64];
    zero[..32].copy_from_slice(WEAK.as_bytes());
    refused("a weak key", CounterSignature(WeakKey), &linked(WEAK, zero));
    refused("a key in another encoding", CounterSignature(NonCanonicalKey), &linked(NON_CANONICAL, zero));
    let input = |id: &pk_proto::NodeId| Draft::link(owner.id(), *id, sound().last()).input(id);
    for number in 0..4 {
        for torsion in 1..8 {
            let (node, signature) = torsion_in_r(number, torsion, input);
            refused("torsion in R", CounterSignature(Mismatch), &linked(node, signature));
        }
        let (node, signature) = torsion_in_r(number, 0, input);
        let accepted = [sound(), vec![linked(node, signature)]].concat();
        assert_eq!(tell(None, rows(&accepted)).1.fault, None, "the same without torsion");
        let (node, signature) = mixed_key(number, input);
        refused("a mixed key", CounterSignature(Mismatch), &linked(node, signature));
    }
    // S that is not reduced.
    let (node, mut signature) = good(&other, &draft);
    let order = [0xed_u8, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14];
    let mut carry = 0;
    for (at, byte) in signature[32..].iter_mut().enumerate() {
        let add = order.get(at).copied().unwrap_or(if at == 31 { 0x10 } else { 0 });
        let sum = u16::from(*byte) + u16::from(add) + carry;
        [*byte, _] = sum.to_le_bytes();
        carry = sum >> 8;
    }
    refused("S over the order", CounterSignature(Mismatch), &draft.forged(&[good(&owner, &draft), (node, signature)]));
}

#[test]
fn what_is_not_a_claim_is_refused() {
    let sound = sound();
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
        let (told, outcome) = tell(None, claims);
        assert_eq!(told, sound);
        let fault = outcome.fault.unwrap();
        assert_eq!((fault.seq, fault.claim), (4, Some(id)));
        fault.kind
    };
    assert_eq!(told_as(id, b"{".to_vec()), NotAClaim(ClaimFault::Token(TokenFault::Malformed)));
    assert_eq!(told_as(id, token("{}")), NotAClaim(ClaimFault::Id));
    let spaced = fourth(|_| {}).token().payload().replace(':', ": ");
    assert!(matches!(told_as(id, token(&spaced)), NotAClaim(ClaimFault::Token(TokenFault::Payload(_)))));
    let other = ClaimId::next(&key(OWNER).id(), draft().unix, Some(id)).unwrap();
    assert_eq!(told_as(other, fourth(|_| {}).token().to_json().into_bytes()), ChainFaultKind::Id);
}

/// A chain without an end is cut by count and by bytes; what was verified is kept.
#[test]
fn an_endless_chain_is_cut() {
    let endless = || -> Pages {
        let mut made: Vec<Claim> = Vec::new();
        Box::new(move |after| {
            let from = after.map_or(0, |after| made.iter().position(|claim| claim.id() == after).unwrap() + 1);
            while made.len() < from + 10 {
                made.push(link(&key(OWNER), &friend(0), made.last()));
            }
            page(&rows(&made[from..from + 10]), true)
        })
    };
    let (mut cluster, id) = ask_puppet(None, |config| config.chain_claim_limit = 35, endless());
    let ended = outcome(cluster.await_done(ASKER, id));
    assert_eq!((ended.verified, ended.fault.map(|fault| (fault.seq, fault.kind))), (35, Some((36, TooLong))));
    assert_eq!(told(&cluster, ASKER, id).len(), 35);

    let (mut cluster, id) = ask_puppet(None, |config| config.chain_byte_limit = 64 * 1024, endless());
    let ended = outcome(cluster.await_done(ASKER, id));
    let bytes: usize = told(&cluster, ASKER, id).iter().map(|claim| claim.token().to_json().len()).sum();
    assert!((60 * 1024..=64 * 1024).contains(&bytes), "{bytes}");
    assert_eq!(ended.fault.map(|fault| fault.kind), Some(TooLong));
    // From there on it can be read further.
    assert_eq!(ended.head.as_ref(), told(&cluster, ASKER, id).last());
}

#[test]
fn a_peer_that_gives_no_claims_fails_the_request_and_nothing_else() {
    for (what, pages, failure) in [
        ("silence", Box::new(|_| Reaction::Silence) as Pages, Failure::DeadlineExceeded),
        ("nothing, and more of it", Box::new(|_| page(&[], true)), Failure::Peer(PeerFault::Unexpected)),
        (
            "something else",
            Box::new(|_| Reaction::answer(Answer::Pong { nonce: 1 })),
            Failure::Peer(PeerFault::Unexpected),
        ),
        ("a refusal", Box::new(|_| Reaction::answer(Answer::Refused(Refusal::Busy))), Failure::Refused(Refusal::Busy)),
    ] {
        let (mut cluster, id) = ask_puppet(None, |_| {}, pages);
        assert_eq!(cluster.await_done(ASKER, id), Err(failure), "{what}");
        assert_eq!(cluster.node(ASKER).metrics().streams, 1, "{what}");
    }
}

/// What was verified before the peer fell silent was told, and is where to go on from.
#[test]
fn silence_in_the_middle_leaves_the_verified_prefix() {
    let sound = sound();
    let first = rows(&sound[..2]);
    let pages: Pages = Box::new(move |after| if after.is_none() { page(&first, true) } else { Reaction::Silence });
    let (mut cluster, id) = ask_puppet(None, |_| {}, pages);
    assert_eq!(cluster.await_done(ASKER, id), Err(Failure::DeadlineExceeded));
    assert_eq!(told(&cluster, ASKER, id), sound[..2]);
}

#[test]
fn a_peer_without_claims_is_not_asked_for_them() {
    let mut cluster = Cluster::quiet().nodes(1).puppets(1).seed(SEED).start();
    let mut peer = Peer::honest(OWNER);
    let hello = pk_proto::native::Hello { version_min: 1, version_max: 1, features: 0, agent: "old".into() };
    peer.hello = pk_proto::native::encode(&pk_proto::native::Message::V1(pk_proto::native::V1::Hello(hello))).unwrap();
    peer.connect(&mut cluster, ASKER);
    let id = cluster.request(ASKER, request(OWNER, None));
    peer.drive(&mut cluster, SECOND);
    assert_eq!(cluster.await_done(ASKER, id), Err(Failure::Unsupported));
    assert!(peer.asked.iter().all(|question| !matches!(question, Question::Claims { .. })));
}

// -- ends, stores, caps

#[test]
fn a_request_ends_once_however_it_ends() {
    let chain = chain(&key(OWNER), &friends(150));
    for step in (0..400).step_by(7) {
        let mut cluster = with_chain(&chain);
        let id = cluster.request(ASKER, request(OWNER, None));
        for _ in 0..step {
            cluster.step();
        }
        cluster.cancel(ASKER, id);
        let result = cluster.await_done(ASKER, id);
        assert!(matches!(&result, Err(Failure::Cancelled) | Ok(Reply::ChainData(_))), "{step}: {result:?}");
        cluster.stop_all();
    }
}

#[test]
fn a_deadline_ends_a_chain_that_is_being_read() {
    let mut cluster = with_chain(&chain(&key(OWNER), &friends(150)));
    cluster.host_mut(OWNER).store.delay = Duration::from_secs(3);
    let request =
        Request::RequestChainData { target: key(OWNER).id(), since: None, limit: None, options: by(2 * SECOND) };
    assert_eq!(cluster.ask(ASKER, request), Err(Failure::DeadlineExceeded));
    cluster.drive(10 * SECOND);
    assert_eq!(cluster.node(OWNER).metrics().streams, 1);
}

#[test]
fn a_store_that_fails_fails_the_request() {
    let mut cluster = with_chain(&sound());
    cluster.ask(ASKER, Request::Flush { options: Options::default() }).unwrap();
    cluster.host_mut(ASKER).store.fail_next = 1;
    assert_eq!(cluster.ask(ASKER, request(OWNER, None)), Err(Failure::Store("the disk is full".into())));
    assert_eq!(outcome(cluster.ask(ASKER, request(OWNER, None))).verified, 3);
}

#[test]
fn a_damaged_row_is_neither_told_nor_found() {
    let mut cluster = with_chain(&sound());
    let (table, key) = (Table::Claims, Bytes::copy_from_slice(sound()[1].id().as_bytes()));
    cluster.host_mut(OWNER).store.seed([pk_proto::StoreOp::Put { table, key, value: Bytes::from_static(&[1, 9]) }]);
    assert_eq!(cluster.ask(ASKER, request(OWNER, None)), Err(Failure::Refused(Refusal::Busy)));
    let query = Request::Claims { query: ClaimsQuery::default(), options: Options::default() };
    assert!(matches!(cluster.ask(OWNER, query), Err(Failure::Store(_))));
}

/// Questions that wait for a slow store are few; the others are refused at once.
#[test]
fn claims_are_served_to_a_few_at_a_time() {
    let mut cluster = Cluster::quiet().nodes(2).seed(SEED).config(|config| config.claims_serve_limit = 3).start();
    cluster.host_mut(OWNER).store.seed(sound().iter().map(claim_row));
    cluster.connect(ASKER, OWNER).unwrap();
    cluster.host_mut(OWNER).store.delay = SECOND;
    let ids: Vec<_> = (0..5).map(|_| cluster.request(ASKER, request(OWNER, None))).collect();
    let results: Vec<_> = ids.into_iter().map(|id| cluster.await_done(ASKER, id)).collect();
    let refused = results.iter().filter(|result| **result == Err(Failure::Refused(Refusal::Busy))).count();
    let done =
        results.iter().filter(|result| matches!(result, Ok(Reply::ChainData(data)) if data.verified == 3)).count();
    assert_eq!((done, refused, cluster.node(OWNER).metrics().claims_refused), (3, 2, 2));
}
