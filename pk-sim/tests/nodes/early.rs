//! Requests directly after the Hello of the dialer: a search saves a round trip per new contact,
//! and an acceptor holds a few until it has received the Hello.

use bytes::Bytes;
use pk_proto::native::{self, Message, V1};
use pk_proto::{
    ClosestNodes, ConnectionId, ContactMode, Dialect, DisconnectReason, FindNodeOptions, Input,
    NodeContactAddressData, NodeId, Output, PeerFault, Reply, Request, RequestId, RpcRequest,
    RpcResponse, Scopes, SetNodeOptions, Side, StreamId, UnixMillis,
};
use pk_sim::{Cluster, Link};

use crate::common::*;

const CONTACT: &str = "203.0.113.1:1";

fn message(message: V1) -> Bytes {
    native::encode(&Message::V1(message)).unwrap()
}

fn closest() -> Bytes {
    message(V1::Answer(RpcResponse::Closest(ClosestNodes::default())))
}

/// What was sent on each stream of a connection, message by message.
fn sent_on(outputs: &[Output], conn: ConnectionId) -> Vec<(StreamId, Vec<V1>)> {
    let opened = outputs.iter().filter_map(|output| match output {
        Output::OpenStream { conn: on, stream } if *on == conn => Some(*stream),
        _ => None,
    });
    opened.map(|stream| (stream, messages(outputs, stream))).collect()
}

fn is_question(messages: &[V1]) -> bool {
    matches!(messages, [V1::Call { request: RpcRequest::Closest { .. }, .. }])
}

/// The only dial of these outputs.
fn dialed(outputs: &[Output]) -> ConnectionId {
    let dials = outputs.iter().filter_map(|output| match output {
        Output::Dial { conn, .. } => Some(*conn),
        _ => None,
    });
    let dials: Vec<_> = dials.collect();
    let [conn] = dials[..] else { panic!("{dials:?}") };
    conn
}

/// A node that dials its only contact for this many searches.
struct Dialer {
    bare: Bare,
    contact: NodeId,
    conn: ConnectionId,
    searches: Vec<RequestId>,
}

impl Dialer {
    fn new(searches: u64, addresses: &[&str]) -> Self {
        let mut bare = Bare::new(|_| {});
        let contact = Bare::peer(0);
        for at in addresses {
            let data = NodeContactAddressData {
                mode: ContactMode::Direct,
                connected_time: UnixMillis(1),
                scopes: Scopes::GLOBAL,
            };
            let how = SetNodeOptions::default();
            bare.node.set_node(contact, address(at), data, how, bare.now).unwrap();
        }
        bare.take();
        let search = |number| {
            let (target, find) = (absent(number), FindNodeOptions::default());
            bare.request(Request::FindClosest { target, count: 20, find })
        };
        let searches = (0..searches).map(search).collect();
        let conn = dialed(&bare.take());
        Self { bare, contact, conn, searches }
    }

    fn shake_hands(&mut self, dialect: Dialect) -> Vec<(StreamId, Vec<V1>)> {
        let remote = CONTACT.parse().unwrap();
        self.bare.connected_over(dialect, self.conn, Side::Dialer, self.contact, remote, 1);
        match dialect {
            Dialect::Native => sent_on(&self.bare.take(), self.conn),
            Dialect::Polykey => Vec::new(),
        }
    }

    fn found(&self) -> Vec<NodeId> {
        let done = self.searches.iter().filter_map(|search| match self.bare.done(*search) {
            Some(Ok(Reply::FindClosest(outcome))) => outcome.nodes.first().map(|(node, _)| *node),
            _ => None,
        });
        done.collect()
    }
}

#[test]
fn search_asks_directly_after_its_hello_and_reads_after_that_of_its_peer() {
    let mut dialer = Dialer::new(1, &[CONTACT]);
    let sent = dialer.shake_hands(Dialect::Native);
    let [(control, hello_sent), (question, asked)] = &sent[..] else { panic!("{sent:?}") };
    assert!(matches!(hello_sent[..], [V1::Hello(_)]) && is_question(asked), "{sent:?}");
    assert_eq!(dialer.bare.node.metrics().connections, 0, "the peer has not accepted it yet");
    let bare = &mut dialer.bare;
    assert_eq!(bare.feed(*question, &closest(), true), &closest()[..], "not read before the Hello");
    assert_eq!(bare.feed(*control, &hello(), false), b"");
    assert_eq!(bare.feed(*question, &closest(), true), b"");
    assert_eq!(dialer.found(), [dialer.contact]);
    let outputs = dialer.bare.take();
    assert_eq!(sent_on(&outputs, dialer.conn), [], "it asks once");
    assert_eq!(faults(&outputs), []);
}

#[test]
fn on_quic_nothing_changes() {
    let mut dialer = Dialer::new(1, &[CONTACT]);
    dialer.shake_hands(Dialect::Polykey);
    let outputs = dialer.bare.take();
    let opened = outputs.iter().filter(|output| matches!(output, Output::OpenStream { .. }));
    assert_eq!(opened.count(), 2, "a call for each list, after the handshake");
    assert_eq!(dialer.bare.node.metrics().connections, 1);
}

#[test]
fn dialer_sends_no_more_than_an_acceptor_holds() {
    let mut dialer = Dialer::new(12, &[CONTACT]);
    let sent = dialer.shake_hands(Dialect::Native);
    assert_eq!(sent.iter().filter(|(_, messages)| is_question(messages)).count(), 8);
    let early: Vec<_> = sent.iter().skip(1).map(|(stream, _)| *stream).collect();
    dialer.bare.feed(sent[0].0, &hello(), false);
    let later = sent_on(&dialer.bare.take(), dialer.conn);
    assert_eq!(later.len(), 4, "the others are sent after the Hello: {later:?}");
    for stream in early.into_iter().chain(later.into_iter().map(|(stream, _)| stream)) {
        dialer.bare.feed(stream, &closest(), true);
    }
    assert_eq!(dialer.found(), [dialer.contact; 12]);
}

#[test]
fn acceptor_holds_a_bounded_number_of_requests_until_the_hello() {
    for hello_is in [0, 4, 8] {
        let mut bare = Bare::new(|_| {});
        let conn = ConnectionId(bare.next_id());
        bare.connected(conn, Side::Acceptor, Bare::peer(0), "198.51.100.1:1".parse().unwrap(), 1);
        let streams: Vec<_> = (0..9).map(|_| bare.opened(conn)).collect();
        let ping =
            |nonce| message(V1::Call { deadline_ms: 1000, request: RpcRequest::Ping { nonce } });
        for (at, stream) in streams.iter().enumerate().filter(|(at, _)| *at != hello_is) {
            assert_eq!(bare.feed(*stream, &ping(at as u64), true), b"");
        }
        assert_eq!(faults(&bare.take()), []);
        let metrics = bare.node.metrics();
        assert_eq!((metrics.early_requests, metrics.early_refused, metrics.answers), (8, 0, 0));
        // One more than a dialer may send.
        let stream = bare.opened(conn);
        let outputs = bare.take();
        assert_eq!(faults(&outputs), [PeerFault::TooEarly]);
        assert!(outputs.contains(&Output::ResetStream { stream, code: 8 }), "{outputs:?}");
        assert_eq!(bare.node.metrics().early_refused, 1);
        assert_eq!(bare.feed(streams[hello_is], &hello(), false), b"");
        let outputs = bare.take();
        for (at, stream) in streams.iter().enumerate().filter(|(at, _)| *at != hello_is) {
            let pong = message(V1::Answer(RpcResponse::Pong { nonce: at as u64 }));
            assert_eq!(sent(&outputs, *stream), (pong.to_vec(), true), "stream {at}");
        }
        assert_eq!(bare.node.connections().len(), 1);
        assert_eq!(bare.node.metrics().stream_faults, 0);
    }
}

#[test]
fn requests_that_are_held_end_with_their_connection() {
    let mut bare = Bare::new(|_| {});
    let conn = ConnectionId(bare.next_id());
    bare.connected(conn, Side::Acceptor, Bare::peer(0), "198.51.100.1:1".parse().unwrap(), 1);
    let ping = message(V1::Call { deadline_ms: 1000, request: RpcRequest::Ping { nonce: 1 } });
    let streams: Vec<_> = (0..2).map(|_| bare.opened(conn)).collect();
    for stream in &streams {
        bare.feed(*stream, &ping, true);
    }
    bare.input(Input::StreamReset { stream: streams[0], code: 0 });
    assert_eq!(bare.node.metrics().streams, 1, "the peer has withdrawn it");
    // No Hello arrives.
    bare.pass(60 * SECOND);
    bare.input(Input::Disconnected { conn, why: DisconnectReason::Local });
    let metrics = bare.node.metrics();
    assert_eq!((metrics.hello_timeouts, metrics.answers, metrics.streams), (1, 0, 0));
    assert_eq!((metrics.receive_bytes, metrics.timers), (0, 0));
}

#[test]
fn early_question_on_a_connection_that_ends_is_sent_again_on_the_next() {
    let mut dialer = Dialer::new(1, &[CONTACT, "203.0.113.1:2"]);
    let first = dialer.shake_hands(Dialect::Native);
    let why = DisconnectReason::TimedOut;
    dialer.bare.input(Input::Disconnected { conn: dialer.conn, why });
    // The race continues with the next address.
    dialer.conn = dialed(&dialer.bare.take());
    let sent = dialer.shake_hands(Dialect::Native);
    let [(control, _), (question, asked)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(*asked, first[1].1, "the same question");
    dialer.bare.feed(*control, &hello(), false);
    dialer.bare.feed(*question, &closest(), true);
    assert_eq!(dialer.found(), [dialer.contact]);
}

#[test]
fn new_contact_costs_two_round_trips() {
    // 0 knows 1, which knows 2: two connections and one question.
    let link = Link::ms(50);
    let mut cluster = Cluster::quiet().nodes(3).seed(1).link(link).start();
    wire(&mut cluster, &[(0, 1), (1, 2)]);
    let target = cluster.id(2);
    let outcome = find(&mut cluster, 0, target);
    assert!(outcome.found.is_some());
    let answered = &outcome.trace[0];
    assert_eq!(answered.took, ms(200), "handshake, question: {:?}", outcome.trace);
    assert_eq!(outcome.stats.elapsed, ms(400), "{:?}", outcome.trace);
    assert_eq!(cluster.node(1).metrics().stream_faults, 0);
    cluster.stop_all();
}

#[test]
fn early_questions_survive_links_on_which_streams_overtake_each_other() {
    let mut held = 0;
    for seed in 0..20 {
        let link = Link::ms(5).jitter(ms(60)).loss(20);
        let mut cluster = Cluster::quiet().nodes(4).seed(seed).link(link).start();
        wire(&mut cluster, &[(0, 1), (1, 2), (2, 3)]);
        let target = cluster.id(3);
        let outcome = find(&mut cluster, 0, target);
        assert!(outcome.found.is_some(), "seed {seed}: {outcome:?}");
        for node in 0..4 {
            let metrics = cluster.node(node).metrics();
            assert_eq!((metrics.stream_faults, metrics.early_refused), (0, 0), "seed {seed}");
            held += metrics.early_requests;
        }
        cluster.stop_all();
    }
    assert!(held > 5, "the case is reached: {held}");
}
