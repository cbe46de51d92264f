//! A recorded peer: what nodes of version a57de15 sent on `pk/1`, byte by byte, against the current
//! version.
//!
//! The recording has both directions. The current version has the same key, receives the same bytes
//! at the same times, and must send the same bytes; in its own requests only random values and
//! remaining times may differ. See tests/fixtures/a57de15/README.md.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::claims::{Claim, ClaimContent, ClaimId, ClaimPolicy};
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    AddressPolicy, ClosestNodesQuery, ConnectionId, Dialect, Event, FrameDecoder, Input, NodeId,
    Output, Request, RequestId, RpcRequest, RpcResponse, Side, SignalRequest, SignalTerms,
    Signature, StoreOp, StreamId, Table, UnixMillis,
};
use pk_sim::Key;

use crate::common::{Bare, NO, sent};

const RECORDED: &str = include_str!("../../../tests/fixtures/a57de15/peer.txt");

/// A direction of a stream until the other one has its turn: the bytes, and whether they are the
/// last.
#[derive(Debug)]
struct Run {
    out: bool,
    bytes: Vec<u8>,
    fin: bool,
}

#[derive(Debug)]
struct Recorded {
    conn: u64,
    own: bool,
    unix: u64,
    runs: Vec<Run>,
}

type Peers = BTreeMap<u64, (NodeId, SocketAddr)>;

fn parse(text: &str) -> (Peers, Vec<Recorded>) {
    let (mut peers, mut streams) = (Peers::new(), Vec::<Recorded>::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["connection", conn, "Acceptor", peer, remote] => {
                peers.insert(
                    conn.parse().unwrap(),
                    (peer.parse().unwrap(), remote.parse().unwrap()),
                );
            }
            // The acceptor sends only its Hello. The recording has the spelling of its version.
            ["connection", _, "Dialler", ..] => {}
            ["stream", conn, by, unix] => {
                let (conn, unix) = (conn.parse().unwrap(), unix.parse().unwrap());
                streams.push(Recorded { conn, own: by == "own", unix, runs: Vec::new() });
            }
            [way @ ("in" | "out"), hex, ref fin @ ..] => {
                let bytes =
                    data_encoding::HEXLOWER.decode(hex.trim_start_matches('-').as_bytes()).unwrap();
                let run = Run { out: way == "out", bytes, fin: fin == ["fin"] };
                streams.last_mut().unwrap().runs.push(run);
            }
            _ => panic!("{line}"),
        }
    }
    (peers, streams)
}

/// The messages in these frames.
fn messages(bytes: &[u8]) -> Vec<V1> {
    let mut decoder = FrameDecoder::new();
    decoder.push(Bytes::copy_from_slice(bytes));
    let mut messages = Vec::new();
    while let Some(frame) = decoder.next().unwrap() {
        let Message::V1(message) = native::decode(&frame).unwrap() else { panic!() };
        messages.push(message);
    }
    assert_eq!(decoder.buffered(), 0);
    messages
}

/// A message without its random values and remaining times.
fn constant(message: V1) -> V1 {
    let signal = |request: SignalRequest| {
        let terms = match request.terms {
            SignalTerms::Once { .. } => {
                SignalTerms::Once { expires: UnixMillis(0), nonce: [0; 16] }
            }
            SignalTerms::Plain => SignalTerms::Plain,
        };
        SignalRequest { terms, signature: Signature([0; 64]), ..request }
    };
    match message {
        V1::Hello(hello) => {
            // Without the extensions that are newer than the recording.
            let features =
                hello.features & (Hello::EXCHANGE | Hello::CLAIMS | Hello::PLAIN_SIGNALS);
            V1::Hello(Hello { agent: String::new(), features, ..hello })
        }
        V1::Call { request: question, .. } => {
            let question = match question {
                RpcRequest::Ping { .. } => RpcRequest::Ping { nonce: 0 },
                RpcRequest::Signal(request) => RpcRequest::Signal(signal(request)),
                question => question,
            };
            V1::Call { deadline_ms: 0, request: question }
        }
        V1::Exchange { token, .. } => V1::Exchange { deadline_ms: 0, token },
        message => message,
    }
}

/// When a claim was drafted, to the millisecond.
fn drafted_at(id: ClaimId) -> u64 {
    let bits = u128::from_be_bytes(*id.as_bytes());
    let (seconds, fraction) = ((bits >> 92) as u64, (bits >> 80) as u64 & 0xfff);
    seconds * 1000 + (fraction * 1000).div_ceil(4096)
}

/// The time at which the node has drafted the claim in this message, if it is one.
fn drafted(message: &V1, owner: NodeId) -> Option<u64> {
    let token = match message {
        V1::Exchange { token, .. } | V1::Token { token } => token,
        V1::Call { request: RpcRequest::SignClaim(token), .. } => token,
        _ => return None,
    };
    let claim = Claim::parse(token).unwrap();
    let first = claim.token().signatures().first()?.signer();
    (first == owner).then(|| drafted_at(claim.id()))
}

/// A node of the current version, whose driver is the test.
struct CurrentNode {
    bare: Bare,
    key: Key,
    begun: u64,
    store: BTreeMap<(Table, Bytes), Bytes>,
    /// Its outputs since the last call.
    done: Vec<Output>,
    /// Streams that it has opened and that are not compared yet.
    opened: VecDeque<StreamId>,
    requests: Vec<RequestId>,
}

impl CurrentNode {
    fn new(begun: u64) -> Self {
        let key = Key::from_seed([1; 32]);
        let bare = Bare::with_key(&key, UnixMillis(begun), |config| {
            config.claim_policy = ClaimPolicy::All;
            config.address_policy = AddressPolicy::Any;
        });
        let (store, done, opened, requests) = Default::default();
        let mut today = Self { bare, key, begun, store, done, opened, requests };
        let now = today.bare.now;
        today.bare.node.accept_protocol("echo/1".to_owned(), now).unwrap();
        today
    }

    /// The wall clock advances to then.
    fn at(&mut self, unix: u64) {
        let at = Duration::from_millis(unix.saturating_sub(self.begun)) + Duration::from_micros(1);
        let passed = at.saturating_sub(self.bare.now.since(pk_proto::Instant::ORIGIN));
        self.bare.pass(passed);
        self.settle();
    }

    /// Its effects are completed until it has nothing more to do.
    fn settle(&mut self) {
        loop {
            let outputs = self.bare.take();
            if outputs.is_empty() {
                return;
            }
            for output in &outputs {
                match output.clone() {
                    Output::OpenStream { stream, .. } => self.opened.push_back(stream),
                    Output::SendStream { stream, bytes, .. } => {
                        self.bare.input(Input::StreamWritten { stream, bytes: bytes.len() as u64 });
                    }
                    Output::Sign { id, bytes, .. } => {
                        self.bare.input(Input::Signed { id, result: Ok(self.key.sign(&bytes)) });
                    }
                    Output::Persist { id, ops, .. } => {
                        for op in ops {
                            match op {
                                StoreOp::Put { table, key, value } => {
                                    self.store.insert((table, key), value)
                                }
                                StoreOp::Delete { table, key } => self.store.remove(&(table, key)),
                                other => panic!("{other:?}"),
                            };
                        }
                        self.bare.input(Input::Persisted { id, result: Ok(()) });
                    }
                    Output::Load { id, range, .. } => {
                        let inside = |key: &Bytes| {
                            *key >= range.from && range.to.as_ref().is_none_or(|to| key < to)
                        };
                        let rows = self
                            .store
                            .iter()
                            .filter(|((table, key), _)| *table == range.table && inside(key));
                        let rows =
                            rows.map(|((_, key), value)| (key.clone(), value.clone())).collect();
                        self.bare.input(Input::Loaded { id, result: Ok((rows, false)) });
                    }
                    _ => {}
                }
            }
            self.done.extend(outputs);
        }
    }

    /// Returns the bytes that it has sent on a stream since the last call.
    fn sent(&mut self, stream: StreamId) -> (Vec<u8>, bool) {
        let sent = sent(&self.done, stream);
        self.done.retain(
            |output| !matches!(output, Output::SendStream { stream: of, .. } if *of == stream),
        );
        sent
    }

    /// Makes the request for which the recorded node sent this first message; `None` if there was
    /// none.
    fn request(&mut self, first: &V1, peer: NodeId, relayed: NodeId) -> Option<Request> {
        let (target, options) = (peer, NO);
        Some(match first {
            V1::Call { request: question, .. } => match question {
                RpcRequest::Ping { .. } => Request::PingNode { target, options },
                RpcRequest::Closest {
                    target,
                    query: ClosestNodesQuery { known: local, connected: active },
                } => {
                    let query = ClosestNodesQuery { known: *local, connected: *active };
                    Request::QueryClosestNodes { via: peer, target: *target, query, options }
                }
                RpcRequest::Claims { .. } => {
                    Request::RequestChainData { target, since: None, limit: None, options }
                }
                RpcRequest::SignClaim(token) => {
                    let claim = Claim::parse(token).unwrap();
                    let content = ClaimContent {
                        typ: claim.typ().to_owned(),
                        issuer: claim.issuer().map(str::to_owned),
                        subject: claim.subject().map(str::to_owned),
                        members: "{}".to_owned(),
                    };
                    Request::ClaimNetwork { target, content, options }
                }
                RpcRequest::Signal(_) => {
                    // The same as in the recording.
                    let now = self.bare.now;
                    self.bare.node.disconnect(relayed, now);
                    self.settle();
                    Request::ConnectThrough { target: relayed, relay: peer, options }
                }
                RpcRequest::Punch(_)
                | RpcRequest::Relay { .. }
                | RpcRequest::Circuit { .. }
                | RpcRequest::Candidates(_) => return None,
            },
            V1::Exchange { .. } => Request::ClaimNode { target, options },
            V1::Open { protocol } => {
                Request::OpenStream { target, protocol: protocol.clone(), options }
            }
            other => panic!("{other:?}"),
        })
    }
}

/// The answer to a request, instead of the recorded one for another random number.
fn answer(recorded: &[u8], asked: &V1) -> Vec<u8> {
    match asked {
        V1::Call { request: RpcRequest::Ping { nonce }, .. } => {
            assert!(matches!(messages(recorded)[..], [V1::Answer(RpcResponse::Pong { .. })]));
            native::encode(&Message::V1(V1::Answer(RpcResponse::Pong { nonce: *nonce })))
                .unwrap()
                .to_vec()
        }
        _ => recorded.to_vec(),
    }
}

#[test]
fn answers_and_requests_match_a_recording_of_a57de15() {
    let (peers, streams) = parse(RECORDED);
    let owner = Key::from_seed([1; 32]).id();
    let third = peers.values().map(|(peer, _)| *peer).max().unwrap();
    let mut today = CurrentNode::new(streams[0].unix - 1);
    let mut connected: BTreeMap<u64, ConnectionId> = BTreeMap::new();
    let (mut answered, mut asked) = (0, 0);
    for recorded in streams.iter().filter(|recorded| peers.contains_key(&recorded.conn)) {
        let (peer, remote) = peers[&recorded.conn];
        today.at(recorded.unix);
        let conn = *connected.entry(recorded.conn).or_insert_with(|| {
            let conn = ConnectionId(today.bare.next_id());
            let shared_id = 50 - recorded.conn as u8;
            today.bare.connected_over(
                Dialect::Native,
                conn,
                Side::Acceptor,
                peer,
                remote,
                shared_id,
            );
            conn
        });
        // A claim of the node contains the time at which it was drafted.
        let sent_by_it: Vec<_> = recorded
            .runs
            .iter()
            .filter(|run| run.out)
            .flat_map(|run| messages(&run.bytes))
            .collect();
        if let Some(unix) = sent_by_it.iter().find_map(|message| drafted(message, owner)) {
            today.at(unix);
        }
        let mut runs = recorded.runs.iter();
        let stream = if recorded.own {
            asked += 1;
            let (Some(first), Some(message)) = (runs.next(), sent_by_it.first()) else {
                panic!("{recorded:?}")
            };
            if let Some(request) = today.request(message, peer, third) {
                let request = today.bare.request(request);
                today.requests.push(request);
                today.settle();
            }
            let stream = today
                .opened
                .pop_front()
                .unwrap_or_else(|| panic!("nothing is asked like {message:?}"));
            let (bytes, fin) = today.sent(stream);
            let [ours] = &messages(&bytes)[..] else { panic!("{message:?}") };
            assert_eq!((constant(ours.clone()), fin), (constant(message.clone()), first.fin));
            let run = runs.next().unwrap();
            today.bare.feed(stream, &answer(&run.bytes, ours), run.fin);
            today.settle();
            stream
        } else {
            answered += 1;
            today.bare.opened(conn)
        };
        for run in runs {
            if !run.out {
                assert_eq!(today.bare.feed(stream, &run.bytes, run.fin), b"", "{recorded:?}");
                today.settle();
                continue;
            }
            let (bytes, fin) = today.sent(stream);
            if let [V1::Hello(_)] = messages(&run.bytes)[..] {
                let hello = |bytes| messages(bytes).into_iter().map(constant).collect::<Vec<_>>();
                assert_eq!(hello(&bytes), hello(&run.bytes));
            } else {
                assert_eq!(
                    bytes,
                    run.bytes,
                    "{:?} in place of {:?}",
                    messages(&bytes),
                    messages(&run.bytes)
                );
            }
            assert_eq!(fin, run.fin, "{recorded:?}");
        }
    }
    println!("{answered} streams answered, {asked} asked on");
    assert!(answered >= 10 && asked >= 8);
    assert!(today.opened.is_empty(), "it asks more: {:?}", today.done);
    let fault = |output: &&Output| matches!(output, Output::Event(Event::PeerMisbehaved { .. }));
    assert_eq!(today.done.iter().find(fault), None);
    // Every request but the one that dials afterwards has succeeded.
    let failed =
        |output: &&Output| matches!(output, Output::Event(Event::Done { result: Err(_), .. }));
    assert_eq!(today.done.iter().find(failed), None);
    let done = today
        .done
        .iter()
        .filter(|output| matches!(output, Output::Event(Event::Done { .. })))
        .count();
    assert!(done + 1 >= today.requests.len(), "{done} of {}", today.requests.len());
    assert_eq!(
        today.bare.node.chain_head().map(|head| head.seq),
        Some(3),
        "two links and a claim about a network"
    );
}

/// What the recorded node has sent as the acceptor of a connection, and an answer of it.
fn recorded_acceptor() -> (NodeId, SocketAddr, Vec<u8>, Vec<u8>) {
    let (_, streams) = parse(RECORDED);
    let (peer, remote) = RECORDED
        .lines()
        .find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            ["connection", "0", "Dialler", peer, remote] => {
                Some((peer.parse().unwrap(), remote.parse().unwrap()))
            }
            _ => None,
        })
        .unwrap();
    let received = |recorded: &Recorded| -> Vec<u8> {
        recorded.runs.iter().filter(|run| !run.out).flat_map(|run| run.bytes.clone()).collect()
    };
    let hello = received(streams.iter().find(|recorded| recorded.conn == 0).unwrap());
    let is_closest = |recorded: &&Recorded| {
        let first = recorded.runs.first().filter(|run| recorded.own && run.out);
        first.is_some_and(|run| {
            let request = &messages(&run.bytes)[0];
            matches!(request, V1::Call { request: RpcRequest::Closest { .. }, .. })
        })
    };
    let answer = received(streams.iter().find(is_closest).unwrap());
    (peer, remote, hello, answer)
}

/// A search asks directly after the Hello. The recorded peer is of a version that waits for it: it
/// answers if the Hello has arrived first, and otherwise ends the stream with code 4.
#[test]
fn early_request_is_answered_by_version_a57de15() {
    let (peer, remote, hello, answer) = recorded_acceptor();
    for overtaken in [false, true] {
        let mut today = CurrentNode::new(1_795_945_833_000);
        let data = pk_proto::NodeContactAddressData {
            mode: pk_proto::ContactMode::Direct,
            connected_time: UnixMillis(1),
            scopes: pk_proto::Scopes::GLOBAL,
        };
        let (address, how) = (remote.to_string().parse().unwrap(), Default::default());
        today.bare.node.set_node(peer, address, data, how, today.bare.now).unwrap();
        today.settle();
        let find = pk_proto::FindNodeOptions { limit: Some(1), ..Default::default() };
        let target = NodeId::from_bytes([9; 32]);
        let search = today.bare.request(Request::FindClosest { target, count: 20, find });
        today.settle();
        let dial = |output: &Output| match output {
            Output::Dial { conn, .. } => Some(*conn),
            _ => None,
        };
        let conn = today.done.iter().find_map(dial).unwrap();
        today.bare.connected(conn, Side::Dialer, peer, remote, 1);
        today.settle();
        let [control, early] = [0, 1].map(|_| today.opened.pop_front().unwrap());
        assert!(matches!(messages(&today.sent(control).0)[..], [V1::Hello(_)]));
        let question = messages(&today.sent(early).0);
        let mut stream = early;
        if overtaken {
            today.bare.input(Input::StreamReset { stream: early, code: 4 });
            today.bare.input(Input::StreamStopped { stream: early, code: 4 });
        }
        assert_eq!(today.bare.feed(control, &hello, false), b"");
        today.settle();
        if overtaken {
            stream = today.opened.pop_front().unwrap();
            let again = messages(&today.sent(stream).0);
            let [again, question] =
                [again, question].map(|messages| messages.into_iter().map(constant).collect());
            let [again, question]: [Vec<V1>; 2] = [again, question];
            assert_eq!(again, question, "the same request, after the Hello");
        }
        assert_eq!(today.bare.feed(stream, &answer, true), b"");
        today.settle();
        let done = today.done.iter().find_map(|output| match output {
            Output::Event(Event::Done { id, result }) if *id == search => Some(result.clone()),
            _ => None,
        });
        let Some(Ok(pk_proto::Reply::FindClosest(found))) = done else { panic!("{done:?}") };
        assert_eq!(found.nodes.first().map(|(node, _)| *node), Some(peer));
        assert_eq!(found.stats.calls, 1 + u32::from(overtaken));
        let fault =
            |output: &&Output| matches!(output, Output::Event(Event::PeerMisbehaved { .. }));
        assert_eq!(today.done.iter().find(fault), None);
    }
}
