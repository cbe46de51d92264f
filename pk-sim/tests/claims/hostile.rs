//! Peers that break the rules of an exchange: each breach has its own fault, nothing is signed for it, and nobody else is held
//! up by it. The victim is one machine whose driver is the test.

use std::collections::BTreeMap;

use bytes::Bytes;
use pk_proto::claims::{
    Claim, ClaimContent, ClaimFault, ClaimLinkNode, ClaimPolicy, ClaimStep, ExchangeFault, FullySigned, SignedFault,
    TokenFault,
};
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    ConnectionId, EffectId, Event, Failure, FrameDecoder, Input, NodeId, Options, Output, PeerFault, Refusal, Reply,
    Request, RequestId, Role, SignatureFault, StoreOp, StreamId, Table,
};
use pk_sim::Key;

use crate::common::chains::{Draft, NON_CANONICAL, WEAK, mixed_key, torsion_in_r};
use crate::common::{Bare, SECOND};

/// A machine that signs for everybody, and what its driver has: a key, and a store.
struct Victim {
    bare: Bare,
    rows: BTreeMap<(Table, Bytes), Bytes>,
    /// What it has had signed.
    signed: Vec<Bytes>,
    /// Everything else that it said.
    said: Vec<Output>,
    /// What it said on each stream.
    heard: BTreeMap<StreamId, FrameDecoder>,
}

fn own() -> Key {
    Key::numbered(77, 0)
}

/// The key of a peer.
fn key(number: u64) -> Key {
    Key::numbered(77, 1 + number)
}

impl Victim {
    fn new() -> Self {
        let bare = Bare::new(|config| config.claim_policy = ClaimPolicy::All);
        Self { bare, rows: BTreeMap::new(), signed: Vec::new(), said: Vec::new(), heard: BTreeMap::new() }
    }

    /// A peer has connected that knows of claims.
    fn connect(&mut self, peer: NodeId) -> ConnectionId {
        let conn = ConnectionId(self.bare.odd());
        let shared = u8::try_from(conn.0 % 251).unwrap();
        self.bare.connected(conn, Role::Acceptor, peer, "198.51.100.1:1314".parse().unwrap(), shared);
        let control = self.bare.opened(conn);
        let hello = Hello { version_min: 1, version_max: 1, features: Hello::EXCHANGE, agent: "test".into() };
        self.bare.feed(control, &native::encode(&Message::V1(V1::Hello(hello))).unwrap(), false);
        self.settle();
        conn
    }

    /// Answers effects until there are none.
    fn settle(&mut self) {
        loop {
            let outputs = self.bare.take();
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.perform(output);
            }
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Sign { id, key, bytes } => {
                assert_eq!(key, own().id());
                let result = Ok(own().sign(&bytes));
                self.signed.push(bytes);
                self.bare.input(Input::Signed { id, result });
            }
            Output::Persist { id, ops, .. } => self.persist(id, ops),
            Output::Load { id, range, .. } => {
                let rows = self.rows.iter().filter(|((table, key), _)| {
                    *table == range.table && *key >= range.from && range.to.as_ref().is_none_or(|to| key < to)
                });
                let rows = rows.map(|((_, key), value)| (key.clone(), value.clone())).collect();
                self.bare.input(Input::Loaded { id, result: Ok((rows, false)) });
            }
            Output::SendStream { stream, bytes, .. } => {
                let length = bytes.len() as u64;
                self.heard.entry(stream).or_default().push(bytes);
                self.bare.input(Input::StreamSent { stream, bytes: length });
            }
            output => self.said.push(output),
        }
    }

    fn persist(&mut self, id: EffectId, ops: Vec<StoreOp>) {
        for op in ops {
            match op {
                StoreOp::Put { table, key, value } => drop(self.rows.insert((table, key), value)),
                StoreOp::Delete { table, key } => drop(self.rows.remove(&(table, key))),
                StoreOp::Clear { table } => self.rows.retain(|(of, _), _| *of != table),
            }
        }
        self.bare.input(Input::Persisted { id, result: Ok(()) });
    }

    fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.bare.pass(SECOND);
            self.settle();
        }
    }

    /// The peer begins an exchange.
    fn begin(&mut self, conn: ConnectionId, first: &[u8]) -> StreamId {
        let stream = self.bare.opened(conn);
        let message = V1::Exchange { deadline_ms: 60_000, token: Bytes::copy_from_slice(first) };
        self.say(stream, message, false);
        stream
    }

    fn say(&mut self, stream: StreamId, message: V1, fin: bool) {
        self.bare.feed(stream, &native::encode(&Message::V1(message)).unwrap(), fin);
        self.settle();
    }

    fn token(&mut self, stream: StreamId, token: &[u8]) {
        self.say(stream, V1::Token { token: Bytes::copy_from_slice(token) }, false);
    }

    /// What the victim has said on a stream since the last time.
    fn hear(&mut self, stream: StreamId) -> Vec<V1> {
        let decoder = self.heard.entry(stream).or_default();
        let frames = std::iter::from_fn(|| decoder.next().unwrap());
        frames
            .map(|frame| match native::decode(&frame) {
                Ok(Message::V1(message)) => message,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn hear_tokens(&mut self, stream: StreamId) -> Vec<Claim> {
        self.hear(stream)
            .iter()
            .map(|message| match message {
                V1::Token { token } | V1::Exchange { token, .. } => Claim::parse(token).unwrap(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn refusal(&mut self, stream: StreamId) -> Option<Refusal> {
        self.hear(stream).iter().find_map(|message| match message {
            V1::Answer(pk_proto::Answer::Refused(refusal)) => Some(*refusal),
            _ => None,
        })
    }

    /// The faults that were told of since the last time.
    fn faults(&mut self) -> Vec<PeerFault> {
        let said = std::mem::take(&mut self.said);
        let fault = |output: Output| match output {
            Output::Event(Event::PeerMisbehaved { fault, .. }) => Some(fault),
            _ => None,
        };
        said.into_iter().filter_map(fault).collect()
    }

    fn chain_len(&self) -> usize {
        self.rows.keys().filter(|(table, _)| *table == Table::Claims).count()
    }

    /// Begins a claim with a peer that is connected. Gives the stream on which its first token came.
    fn claim(&mut self, peer: NodeId) -> (RequestId, StreamId, Claim) {
        let id = self.bare.request(Request::ClaimNode { target: peer, options: Options::default() });
        self.settle();
        let opened = self.said.iter().rev().find_map(|output| match output {
            Output::OpenStream { stream, .. } => Some(*stream),
            _ => None,
        });
        let stream = opened.unwrap();
        let [first] = &self.hear_tokens(stream)[..] else { panic!() };
        (id, stream, first.clone())
    }

    fn done(&self, id: RequestId) -> Option<Result<Reply, Failure>> {
        self.said.iter().find_map(|output| match output {
            Output::Event(Event::Done { id: done, result }) if *done == id => Some(result.clone()),
            _ => None,
        })
    }

    // -- somebody else, who keeps to the rules

    /// A whole exchange that an honest peer begins.
    fn honest_initiator(&mut self, number: u64) {
        let before = self.chain_len();
        let (peer, conn) = (key(number), self.connect(key(number).id()));
        let stream = self.begin(conn, &json(&first(&peer)));
        let answer = self.hear_tokens(stream);
        let [theirs, mine] = &answer[..] else { panic!("{answer:?}") };
        assert!(FullySigned::verify(theirs.clone(), &peer.id(), &own().id()).is_ok());
        self.token(stream, &json(&counter_signed(mine, &peer)));
        self.bare.feed(stream, &[], true);
        assert_eq!(self.chain_len(), before + 1);
        assert_eq!(self.bare.node.exchanges().iter().filter(|exchange| exchange.node == peer.id()).count(), 0);
    }

    /// A whole exchange that is begun with an honest peer.
    fn honest_responder(&mut self, number: u64) {
        let before = self.chain_len();
        let peer = key(number);
        self.connect(peer.id());
        let (id, stream, first) = self.claim(peer.id());
        self.token(stream, &json(&counter_signed(&first, &peer)));
        self.token(stream, &json(&second(&peer)));
        let [last] = &self.hear_tokens(stream)[..] else { panic!() };
        assert!(FullySigned::verify(last.clone(), &peer.id(), &own().id()).is_ok());
        self.bare.feed(stream, &[], true);
        self.settle();
        assert!(matches!(self.done(id), Some(Ok(Reply::ClaimNode(_)))));
        assert_eq!(self.chain_len(), before + 1);
    }
}

// -- tokens

fn json(claim: &Claim) -> Vec<u8> {
    claim.token().to_json().into_bytes()
}

fn linking(issuer: NodeId, subject: NodeId) -> ClaimContent {
    ClaimContent::link(&ClaimLinkNode { issuer, subject })
}

/// The claim with which a peer begins.
fn first(peer: &Key) -> Claim {
    Draft::new(&peer.id(), linking(peer.id(), own().id()), None).signed(&[peer])
}

/// The claim with which a peer answers.
fn second(peer: &Key) -> Claim {
    Draft::new(&peer.id(), linking(own().id(), peer.id()), None).signed(&[peer])
}

fn counter_signed(claim: &Claim, signer: &Key) -> Claim {
    let mut token = claim.token().clone();
    let signature = signer.sign(&token.signing_input(&signer.id()));
    token.add_signature(signer.id(), signature).unwrap();
    token.try_into().unwrap()
}

/// A claim whose next signature is said to be by somebody who has not made it.
fn forged(claim: &Claim, signer: NodeId, signature: [u8; 64]) -> Vec<u8> {
    let header = format!("{{\"alg\":\"EdDSA\",\"kid\":\"{signer}\"}}");
    let base64 = data_encoding::BASE64URL_NOPAD;
    let (protected, signature) = (base64.encode(header.as_bytes()), base64.encode(&signature));
    let text = claim.token().to_json();
    let open = text.strip_suffix("]}").unwrap();
    format!("{open},{{\"protected\":\"{protected}\",\"signature\":\"{signature}\"}}]}}").into_bytes()
}

/// A link of which the owner's signature is this one.
fn owned(issuer: NodeId, subject: NodeId, owner: NodeId, signature: [u8; 64]) -> Vec<u8> {
    json(&Draft::new(&owner, linking(issuer, subject), None).forged(&[(owner, signature)]))
}

fn mismatch() -> TokenFault {
    TokenFault::Signature(SignatureFault::Mismatch)
}

// -- who begins

/// A peer by this id begins with this; it is refused so, with this fault, and nothing is signed.
fn first_is_refused(name: &str, peer: NodeId, token: &[u8], fault: ExchangeFault, refusal: Refusal) {
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
fn a_first_claim_that_is_none() {
    let fault = ExchangeFault::Claim(ClaimFault::Token(TokenFault::Malformed));
    first_is_refused("no token", key(0).id(), b"{}", fault, Refusal::Claim);
    first_is_refused("as long as can be", key(0).id(), &[b'{'; 60 * 1024], fault, Refusal::Claim);
    let payload = "eyJqdGkiOjF9"; // {"jti":1}
    let token = json(&first(&key(0)));
    let token = String::from_utf8(token).unwrap();
    let (_, signatures) = token.split_once("\",\"signatures\"").unwrap();
    let token = format!("{{\"payload\":\"{payload}\",\"signatures\"{signatures}");
    first_is_refused("no claim", key(0).id(), token.as_bytes(), ExchangeFault::Claim(ClaimFault::Id), Refusal::Claim);
}

#[test]
fn a_first_claim_of_another_type() {
    for typ in ["ClaimLinkIdentity", "ClaimNetworkAccess", "ClaimLinkNod"] {
        let content = ClaimContent { typ: typ.into(), ..linking(key(0).id(), own().id()) };
        let claim = Draft::new(&key(0).id(), content, None).signed(&[&key(0)]);
        first_is_refused(typ, key(0).id(), &json(&claim), ExchangeFault::Typ, Refusal::Claim);
    }
}

#[test]
fn a_first_claim_by_or_about_somebody_else() {
    let (peer, other) = (key(0), key(1));
    let of = |issuer: &Key, subject: NodeId, signer: &Key| {
        json(&Draft::new(&issuer.id(), linking(issuer.id(), subject), None).signed(&[signer]))
    };
    let refused = |name, token: Vec<u8>, fault| first_is_refused(name, peer.id(), &token, fault, Refusal::Claim);
    // What somebody else has signed, replayed by who has heard it.
    refused("replayed", json(&first(&other)), ExchangeFault::Issuer);
    refused("for another one", of(&other, own().id(), &peer), ExchangeFault::Issuer);
    refused("about another one", of(&peer, other.id(), &peer), ExchangeFault::Subject);
    refused("about itself", of(&peer, peer.id(), &peer), ExchangeFault::Subject);
    refused("by us", of(&own(), peer.id(), &peer), ExchangeFault::Issuer);
}

#[test]
fn a_first_claim_that_is_not_signed_as_it_should_be() {
    let (peer, other, us) = (key(0), key(1), own().id());
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
    refused("a weak key", WEAK, owned(WEAK, us, WEAK, [0; 64]), owner(SignatureFault::WeakKey));
    let token = owned(NON_CANONICAL, us, NON_CANONICAL, [0; 64]);
    refused("a non-canonical key", NON_CANONICAL, token, owner(SignatureFault::NonCanonicalKey));
    let input = |id: &NodeId| Draft::new(id, linking(*id, us), None).input(id);
    let (id, signature) = mixed_key(3, input);
    refused("a mixed key", id, owned(id, us, id, signature), owner(SignatureFault::Mismatch));
    let (id, signature) = torsion_in_r(4, 1, input);
    refused("torsion in R", id, owned(id, us, id, signature), owner(SignatureFault::Mismatch));
    // The same without torsion is a signature like any other, so that it is the torsion that is refused.
    let (id, signature) = torsion_in_r(4, 0, input);
    let mut victim = Victim::new();
    let conn = victim.connect(id);
    let stream = victim.begin(conn, &owned(id, us, id, signature));
    assert_eq!((victim.faults(), victim.hear_tokens(stream).len()), (vec![], 2));
}

// -- the last word of who has begun

/// A victim that has answered a peer: the stream, and the victim's claim.
fn answered() -> (Victim, ConnectionId, StreamId, Claim) {
    let mut victim = Victim::new();
    let conn = victim.connect(key(0).id());
    let stream = victim.begin(conn, &json(&first(&key(0))));
    let [_, mine] = &victim.hear_tokens(stream)[..] else { panic!() };
    let mine = mine.clone();
    (victim, conn, stream, mine)
}

#[test]
fn a_last_word_that_is_not_the_claim_that_was_sent() {
    let (peer, other) = (key(0), key(1));
    let input = |mine: &Claim| mine.token().signing_input(&peer.id());
    type Word<'a> = Box<dyn Fn(&Claim) -> Vec<u8> + 'a>;
    let cases: Vec<(&str, Word<'_>, ExchangeFault)> = vec![
        ("nothing", Box::new(|_| b"[]".to_vec()), ExchangeFault::Claim(ClaimFault::Token(TokenFault::Malformed))),
        ("unsigned", Box::new(json), ExchangeFault::Signed(SignedFault::Count(1))),
        (
            "another claim",
            Box::new(|_| json(&counter_signed(&second(&own()), &peer))),
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
        assert_eq!((metrics.claim_faults, metrics.exchanges, victim.chain_len()), (1, 0, 0), "{name}");
        victim.honest_initiator(50);
        victim.honest_responder(51);
    }
}

#[test]
fn an_end_before_the_last_word_and_a_word_before_the_answer() {
    let (mut victim, _, stream, _) = answered();
    victim.bare.feed(stream, &[], true);
    victim.settle();
    assert_eq!(victim.faults(), [PeerFault::Claims(ExchangeFault::Early)]);
    assert_eq!(victim.bare.node.metrics().exchanges, 0);

    // Two words at once, before anything could be answered.
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
fn an_id_that_named_another_claim() {
    // Agreed to and never finished, then finished: the id stays taken.
    for finished in [false, true] {
        let (mut victim, conn, stream, mine) = answered();
        if finished {
            victim.token(stream, &json(&counter_signed(&mine, &key(0))));
            assert_eq!(victim.chain_len(), 1);
        }
        let id = first(&key(0)).id();
        let content = ClaimContent { members: "{\"more\":1}".into(), ..linking(key(0).id(), own().id()) };
        let draft = Draft { id, ..Draft::new(&key(0).id(), content, None) };
        let signed = victim.signed.len();
        let stream = victim.begin(conn, &json(&draft.signed(&[&key(0)])));
        assert_eq!(victim.faults(), [PeerFault::Claims(ExchangeFault::Reused)]);
        assert_eq!(victim.refusal(stream), Some(Refusal::Replayed));
        assert_eq!(victim.signed.len(), signed);
        // The true one is still answered as before.
        let stream = victim.begin(conn, &json(&first(&key(0))));
        assert_eq!(victim.hear_tokens(stream)[1].id(), mine.id());
    }
}

/// The same claim again, by its own issuer: the same answer again, and no second claim.
#[test]
fn a_claim_that_is_repeated_is_answered_as_before() {
    let (mut victim, conn, stream, mine) = answered();
    let last = counter_signed(&mine, &key(0));
    victim.token(stream, &json(&last));
    assert_eq!(victim.chain_len(), 1);
    for _ in 0..3 {
        let signed = victim.signed.len();
        let stream = victim.begin(conn, &json(&first(&key(0))));
        let answer = victim.hear_tokens(stream);
        assert_eq!(answer[1], mine);
        assert_eq!(answer[0], counter_signed(&first(&key(0)), &own()));
        victim.token(stream, &json(&last));
        assert_eq!((victim.chain_len(), victim.signed.len(), victim.faults()), (1, signed, vec![]));
        assert_eq!(victim.bare.node.metrics().exchanges, 0);
    }
}

// -- who is asked

/// A victim that has asked a peer, which answers with these in turn: it is this fault.
fn answer_is_refused(name: &str, peer: NodeId, answers: &[Vec<u8>], fault: ExchangeFault) {
    answer_with(name, peer, |_| answers.to_vec(), fault);
}

fn answer_with(name: &str, peer: NodeId, answers: impl Fn(&Claim) -> Vec<Vec<u8>>, fault: ExchangeFault) {
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
fn our_claim_comes_back_changed_or_not_signed() {
    let (peer, other) = (key(0), key(1));
    let at = peer.id();
    let signed = ExchangeFault::Signed;
    let malformed = ExchangeFault::Claim(ClaimFault::Token(TokenFault::Malformed));
    answer_is_refused("nothing", at, &[b"{}".to_vec()], malformed);
    let changed = json(&counter_signed(&second(&own()), &peer));
    answer_is_refused("another claim", at, &[changed], signed(SignedFault::Changed));
    let with = |name, word: &dyn Fn(&Claim) -> Vec<u8>, fault| answer_with(name, at, |first| vec![word(first)], fault);
    with("unsigned", &json, signed(SignedFault::Count(1)));
    let by_another = |first: &Claim| json(&counter_signed(first, &other));
    with("by another key", &by_another, signed(SignedFault::Counter(TokenFault::NotSigned)));
    let in_its_name = |first: &Claim| forged(first, at, other.sign(&first.token().signing_input(&at)).0);
    with("by another key in its name", &in_its_name, signed(SignedFault::Counter(mismatch())));
    let by_three = |first: &Claim| json(&counter_signed(&counter_signed(first, &peer), &other));
    with("by three", &by_three, signed(SignedFault::Count(3)));
}

#[test]
fn our_claim_comes_back_with_a_signature_that_is_none() {
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
fn their_claim_is_not_one_that_is_signed() {
    let (peer, other, us) = (key(0), key(1), own().id());
    let at = peer.id();
    let after = |name, word: Vec<u8>, fault| {
        answer_with(name, at, |first| vec![json(&counter_signed(first, &peer)), word.clone()], fault);
    };
    let of = |content, signers: &[&Key]| json(&Draft::new(&at, content, None).signed(signers));
    let malformed = ExchangeFault::Claim(ClaimFault::Token(TokenFault::Malformed));
    after("nothing", b"{}".to_vec(), malformed);
    let content = ClaimContent { typ: "ClaimNetworkAuthority".into(), ..linking(us, at) };
    after("another type", of(content, &[&peer]), ExchangeFault::Typ);
    after("issued by the peer", of(linking(at, us), &[&peer]), ExchangeFault::Issuer);
    after("issued by a third", of(linking(other.id(), at), &[&peer]), ExchangeFault::Issuer);
    after("about a third", of(linking(us, other.id()), &[&peer]), ExchangeFault::Subject);
    after("about ourselves", of(linking(us, us), &[&peer]), ExchangeFault::Subject);
    let signed = |fault| ExchangeFault::Signed(fault);
    let not = signed(SignedFault::Owner(TokenFault::NotSigned));
    after("by another key", of(linking(us, at), &[&other]), not);
    after("by two", of(linking(us, at), &[&peer, &other]), signed(SignedFault::Count(2)));
    let draft = Draft::new(&at, linking(us, at), None);
    let wrong = json(&draft.forged(&[(at, other.sign(&draft.input(&at)).0)]));
    after("by another key in its name", wrong, signed(SignedFault::Owner(mismatch())));
}

#[test]
fn an_answer_that_ends_early_or_goes_on() {
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
    // Past the point of no return the claim stands, whatever the peer says; it is resumed, and comes to its end.
    let mut victim = Victim::new();
    victim.connect(key(0).id());
    let (id, stream, first) = victim.claim(key(0).id());
    let answer = [json(&counter_signed(&first, &key(0))), json(&second(&key(0)))];
    answer.iter().for_each(|token| victim.token(stream, token));
    assert_eq!(victim.chain_len(), 1);
    victim.token(stream, &answer[1]);
    assert_eq!((victim.done(id), victim.faults()), (None, vec![PeerFault::Claims(ExchangeFault::Unexpected)]));
    victim.pass(1);
    let stream = victim.said.iter().rev().find_map(|output| match output {
        Output::OpenStream { stream, .. } => Some(*stream),
        _ => None,
    });
    let stream = stream.unwrap();
    assert_eq!(victim.hear_tokens(stream), [first]);
    answer.iter().for_each(|token| victim.token(stream, token));
    victim.bare.feed(stream, &[], true);
    victim.settle();
    assert!(matches!(victim.done(id), Some(Ok(Reply::ClaimNode(_)))));
    assert_eq!(victim.chain_len(), 1);
}

// -- silence

#[test]
fn silence_of_who_is_asked_at_every_step() {
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
        // Nobody else notices.
        victim.honest_initiator(50);
        victim.honest_responder(51);
        let stands = usize::from(step == ClaimStep::Finishing);
        victim.pass(61);
        let expected = match (step, &victim.done(id)) {
            (ClaimStep::Finishing, Some(Err(Failure::ClaimInDoubt(claim)))) => *claim == first.id(),
            (_, Some(Err(failure))) => *failure == Failure::DeadlineExceeded,
            _ => false,
        };
        assert!(expected, "{step:?}: {:?}", victim.done(id));
        assert_eq!(victim.bare.node.claims_in_doubt().count(), stands);
        assert_eq!(victim.chain_len(), 2 + stands);
        let doubts = |output: &&Output| matches!(output, Output::Event(Event::ClaimInDoubt { .. }));
        assert_eq!(victim.said.iter().filter(doubts).count(), stands);
        assert_eq!(victim.bare.node.exchanges(), []);
    }
}

#[test]
fn silence_of_who_begins_at_every_step() {
    // Nothing but the beginning of a frame, and nothing after the answer.
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
fn a_peer_has_few_exchanges_at_a_time_and_few_are_remembered() {
    let mut victim = Victim::new();
    let conn = victim.connect(key(0).id());
    let limit = victim.bare.node.config().exchanges_per_peer;
    let claims: Vec<Claim> = (0..3 * limit as u64)
        .map(|number| {
            let mut draft = Draft::new(&key(0).id(), linking(key(0).id(), own().id()), None);
            draft.unix.0 += number * 1000;
            draft.id = pk_proto::claims::ClaimId::next(&key(0).id(), draft.unix, None).unwrap();
            draft.signed(&[&key(0)])
        })
        .collect();
    for (number, claim) in claims.iter().enumerate() {
        let stream = victim.begin(conn, &json(claim));
        if number < limit {
            assert_eq!(victim.hear_tokens(stream).len(), 2);
        } else {
            assert_eq!(victim.refusal(stream), Some(Refusal::Busy));
        }
    }
    assert_eq!(victim.bare.node.metrics().exchanges, limit as u64);
    // Others are served.
    victim.honest_initiator(50);
    // Time goes by, and so do the streams; then more of them come. As many as ever are remembered.
    for claim in &claims[limit..] {
        victim.pass(16);
        let stream = victim.begin(conn, &json(claim));
        assert_eq!(victim.hear_tokens(stream).len(), 2);
        let open = |rows: &BTreeMap<(Table, Bytes), Bytes>| {
            rows.keys().filter(|(table, _)| *table == Table::Exchanges).count()
        };
        assert!(open(&victim.rows) <= limit, "{}", open(&victim.rows));
    }
    assert_eq!(victim.bare.node.metrics().exchanges_open, limit as u64);
    assert_eq!(victim.bare.node.metrics().exchanges_forgotten, 2 * limit as u64);
}
