//! No node and no network uses up the resources of others: for each table that peers can fill, an
//! attacker fills it, and an honest peer is still served.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pk_proto::native::{self, Message, V1};
use pk_proto::{
    Connected, ConnectionId, Dialect, DisconnectReason, EffectId, Event, FrameDecoder, Input,
    NodeId, Output, PeerFault, Refusal, Request, RpcRequest, RpcResponse, Side, SignalTerms,
    StreamId, UnixMillis,
};
use pk_sim::Key;

use crate::common::signals::request_on;
use crate::common::*;

/// A machine with many peers, whose driver executes its closes.
struct Crowd {
    bare: Bare,
    open: BTreeSet<ConnectionId>,
    /// The code and the reason with which connections were closed.
    closed: BTreeMap<ConnectionId, (u64, String)>,
    dials: Vec<ConnectionId>,
    store_reads: Vec<EffectId>,
    faults: Vec<PeerFault>,
}

impl Crowd {
    fn new(change: impl FnOnce(&mut pk_proto::Config)) -> Self {
        let bare = Bare::new(|config| {
            // Connections end only by what is tested here.
            config.connection_idle_timeout = 24 * 3600 * SECOND;
            change(config);
        });
        let (open, closed) = (BTreeSet::new(), BTreeMap::new());
        Self { bare, open, closed, dials: Vec::new(), store_reads: Vec::new(), faults: Vec::new() }
    }

    /// Executes the outputs of the machine. Returns the bytes that it sent on a stream.
    fn settle(&mut self, of: StreamId) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let outputs = self.bare.take();
            if outputs.is_empty() {
                return bytes;
            }
            bytes.extend(sent(&outputs, of).0);
            outputs.into_iter().for_each(|output| self.perform(output));
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::CloseConnection { conn, code, reason } => {
                self.open.remove(&conn);
                self.closed.insert(conn, (code, reason));
                self.bare.input(Input::Disconnected { conn, why: DisconnectReason::Local });
            }
            Output::SendStream { stream, bytes, .. } => {
                self.bare.input(Input::StreamWritten { stream, bytes: bytes.len() as u64 });
            }
            Output::Dial { conn, .. } => self.dials.push(conn),
            Output::Load { id, .. } => self.store_reads.push(id),
            Output::Sign { id, bytes, .. } => {
                let signature = Key::numbered(77, 0).sign(&bytes);
                self.bare.input(Input::Signed { id, result: Ok(signature) });
            }
            Output::Persist { id, .. } => self.bare.input(Input::Persisted { id, result: Ok(()) }),
            Output::Event(Event::PeerMisbehaved { fault, .. }) => self.faults.push(fault),
            _ => {}
        }
    }

    /// A handshake completes.
    fn connected(&mut self, conn: ConnectionId, side: Side, node: NodeId, at: &str) {
        self.bare.input(Input::Connected(Connected {
            conn,
            side,
            dialect: Dialect::Native,
            leaf: node,
            chain: vec![node],
            matched_id: (side == Side::Dialer).then_some(node),
            remote: at.parse().unwrap(),
            local: "192.0.2.1:1314".parse().unwrap(),
            shared_id: Bytes::copy_from_slice(&conn.0.to_be_bytes()),
        }));
    }

    /// A node connects and sends Hello.
    ///
    /// # Errors
    /// The code and reason of the refusal.
    fn accept(&mut self, node: NodeId, at: &str) -> Result<ConnectionId, (u64, String)> {
        let conn = ConnectionId(self.bare.next_id());
        self.open.insert(conn);
        self.connected(conn, Side::Acceptor, node, at);
        let control = self.bare.opened(conn);
        self.bare.feed(control, &hello(), false);
        self.settle(control);
        self.bare.credit.clear();
        match self.closed.get(&conn) {
            Some(reason) => Err(reason.clone()),
            None => Ok(conn),
        }
    }

    /// A peer starts a request and does not continue: its connection is in use.
    fn use_connection(&mut self, conn: ConnectionId) -> StreamId {
        let stream = self.bare.opened(conn);
        self.bare.feed(stream, &[0, 0], false);
        self.settle(stream);
        stream
    }

    /// A peer sends a request. Returns the immediate answer.
    fn ask(&mut self, conn: ConnectionId, question: RpcRequest) -> Option<RpcResponse> {
        let call =
            native::encode(&Message::V1(V1::Call { deadline_ms: 15_000, request: question }))
                .unwrap();
        let stream = self.bare.opened(conn);
        self.bare.feed(stream, &call, true);
        let mut decoder = FrameDecoder::new();
        decoder.push(self.settle(stream).into());
        match decoder.next().unwrap().map(|frame| native::decode(&frame).unwrap()) {
            Some(Message::V1(V1::Answer(answer))) => Some(answer),
            _ => None,
        }
    }

    /// The embedder dials a node; returns the dial, if there is one.
    fn dial(&mut self, node: NodeId, at: &str) -> Option<ConnectionId> {
        let request = Request::Connect { target: node, address: address(at), options: NO };
        self.bare.request(request);
        self.settle(StreamId(0));
        self.dials.pop()
    }

    /// A dial succeeds.
    fn complete_dial(&mut self, conn: ConnectionId, node: NodeId, at: &str) {
        self.connected(conn, Side::Dialer, node, at);
        let opened = |output: &Output| match output {
            Output::OpenStream { stream, .. } => Some(*stream),
            _ => None,
        };
        let control = self.bare.outputs.iter().find_map(opened).unwrap();
        self.bare.feed(control, &hello(), false);
        self.settle(control);
    }
}

const EVICTED: (u64, &str) = (0, "evicted");
const FULL: (u64, &str) = (17, "too many connections");
const FULL_NETWORK: (u64, &str) = (17, "too many connections from this network");

fn refusal(reason: &(u64, String)) -> (u64, &str) {
    (reason.0, &reason.1)
}

// -- connections

#[test]
fn connections_of_many_keys_of_one_network_use_only_its_share() {
    let mut crowd = Crowd::new(|_| {});
    let old: Vec<_> =
        (0..50).map(|n| crowd.accept(absent(n), &format!("20.0.{n}.1:1")).unwrap()).collect();
    // One of their own network, which uses its connection all the time.
    let busy = crowd.accept(absent(60), "66.6.6.200:1").unwrap();
    crowd.use_connection(busy);
    let mut most = 0;
    for n in 0..4200 {
        crowd.bare.pass(ms(1));
        crowd.accept(absent(1000 + n), &format!("66.6.6.6:{}", 1 + n)).unwrap();
        most = most.max(crowd.bare.node.metrics().connections);
        if n % 100 == 0 {
            assert!(crowd.accept(absent(100 + n / 100), &format!("30.0.{}.1:1", n / 100)).is_ok());
            let dial = crowd.dial(absent(200 + n / 100), "40.0.0.1:1");
            let conn = dial.unwrap_or_else(|| panic!("no dial after {n} keys"));
            crowd.bare.input(Input::DialFailed { conn, why: pk_proto::DialFailure::TimedOut });
        }
    }
    let metrics = crowd.bare.node.metrics();
    assert_eq!((metrics.connections_refused, metrics.connections_evicted), (0, 4201 - 1024));
    assert!(most <= 1024 + 50 + 42, "{most}");
    assert!(crowd.closed.values().all(|reason| refusal(reason) == EVICTED));
    assert!(
        old.iter().chain([&busy]).all(|conn| crowd.open.contains(conn)),
        "the connections of others live"
    );
    assert_eq!(crowd.bare.node.connections().len(), 1024 + 50 + 42);
    // A further node of that network is accepted as well.
    assert!(crowd.accept(absent(61), "66.6.6.201:1").is_ok());
    // No state of the closed ones is left.
    for conn in crowd.open.clone() {
        crowd.bare.input(Input::Disconnected { conn, why: DisconnectReason::TimedOut });
    }
    let metrics = crowd.bare.node.metrics();
    assert_eq!((metrics.connections, metrics.connections_pending, metrics.streams), (0, 0, 0));
}

/// Peers that complete their handshake and send no Hello use no more than the others.
#[test]
fn silent_handshakes_of_one_network_replace_each_other() {
    let mut crowd = Crowd::new(|config| config.connection_limit = 40);
    for n in 0..100 {
        let conn = ConnectionId(crowd.bare.next_id());
        crowd.connected(conn, Side::Acceptor, absent(n), &format!("66.6.6.6:{}", 1 + n));
        // An incomplete Hello does not count as a use of the connection.
        let stream = crowd.bare.opened(conn);
        crowd.bare.feed(stream, &hello()[..2], false);
        crowd.settle(stream);
    }
    let metrics = crowd.bare.node.metrics();
    assert_eq!(
        (metrics.connections_pending, metrics.connections_evicted, metrics.streams),
        (10, 90, 10)
    );
    assert!(crowd.accept(absent(200), "20.0.0.1:1").is_ok());
}

#[test]
fn full_table_evicts_by_size_of_network_and_last_use() {
    // 36 places for incoming connections, 10 for one network; one node of each network gets into
    // the graph.
    let mut crowd = Crowd::new(|config| {
        config.connection_limit = 40;
        config.graph_prefix_limit = 1;
    });
    let accept_many = |crowd: &mut Crowd, network: u64, count: u64| -> Vec<ConnectionId> {
        let at = |n| format!("20.0.{network}.{}:1", 1 + n);
        let mut conns = Vec::new();
        for n in 0..count {
            crowd.bare.pass(ms(10));
            conns.push(crowd.accept(absent(100 * network + n), &at(n)).unwrap());
        }
        conns
    };
    let networks: Vec<_> = [(1, 10), (2, 10), (3, 10), (4, 6)]
        .map(|(network, count)| accept_many(&mut crowd, network, count))
        .into();
    // The contact of each network is its first one. The second one of network 3 is in use, the
    // third was used last.
    let stream = crowd.use_connection(networks[2][1]);
    crowd.bare.pass(SECOND);
    assert_eq!(
        crowd.ask(networks[2][2], RpcRequest::Ping { nonce: 1 }),
        Some(RpcResponse::Pong { nonce: 1 })
    );
    // A lease holds the second one of network 2.
    crowd.bare.request(Request::AcquireConnection { target: absent(201), options: NO });
    crowd.settle(StreamId(0));
    assert_eq!(crowd.bare.node.metrics().connections_evicted, 0);

    let mut gone = Vec::new();
    for n in 0..6 {
        crowd.bare.pass(ms(10));
        let before: BTreeSet<_> = crowd.closed.keys().copied().collect();
        assert!(crowd.accept(absent(5000 + n), &format!("50.0.{n}.1:1")).is_ok());
        let new: Vec<_> = crowd.closed.iter().filter(|(conn, _)| !before.contains(conn)).collect();
        let [(conn, reason)] = new[..] else { panic!("{new:?}") };
        assert_eq!(refusal(reason), EVICTED);
        gone.push(*conn);
    }
    // Alternating between the networks with the most connections, in each the oldest use first.
    let expected = [
        networks[2][3],
        networks[1][2],
        networks[0][1],
        networks[2][4],
        networks[1][3],
        networks[0][2],
    ];
    assert_eq!(gone, expected);
    // A connection that is no longer in use makes room.
    crowd.bare.input(Input::StreamReset { stream, code: 0 });
    assert!(crowd.open.contains(&networks[2][1]));
}

#[test]
fn network_with_its_share_in_use_is_refused_with_the_reason() {
    let mut crowd = Crowd::new(|config| config.connection_limit = 40);
    for n in 0..10 {
        let conn = crowd.accept(absent(n), &format!("66.6.6.{n}:1")).unwrap();
        crowd.use_connection(conn);
    }
    let refused = crowd.accept(absent(20), "66.6.6.66:1").unwrap_err();
    assert_eq!(refusal(&refused), FULL_NETWORK);
    assert!(crowd.accept(absent(21), "20.0.0.1:1").is_ok());
    assert_eq!(crowd.bare.node.metrics().connections_refused, 1);
    // The peer moves to another network: its place there is free, and taken here.
    let moved = *crowd.open.first().unwrap();
    crowd
        .bare
        .input(Input::RemoteAddressChanged { conn: moved, addr: "77.7.7.7:1".parse().unwrap() });
    assert!(crowd.accept(absent(22), "66.6.6.67:1").is_ok());
    // The share can be the complete table.
    let mut crowd = Crowd::new(|config| {
        config.connection_limit = 40;
        config.network_share = 100;
    });
    let (here, refused): (Vec<_>, Vec<_>) = (0..40)
        .map(|n| {
            crowd.accept(absent(n), &format!("66.6.6.{n}:1")).map(|conn| crowd.use_connection(conn))
        })
        .partition(Result::is_ok);
    assert_eq!((here.len(), refused.len()), (36, 4));
    assert!(refused.iter().all(|refused| refusal(refused.as_ref().unwrap_err()) == FULL));
}

/// Many nodes of a network that arrive within a moment may all be contacts.
#[test]
fn network_full_of_contacts_that_have_just_arrived_lets_the_next_one_in() {
    let mut crowd = Crowd::new(|config| {
        config.connection_limit = 40;
        (config.bucket_prefix_limit, config.graph_prefix_limit) = (0, 0);
    });
    let contacts: Vec<_> =
        (0..10).map(|n| crowd.accept(absent(n), &format!("66.6.6.{n}:1")).unwrap()).collect();
    assert!((0..10).all(|n| crowd.bare.node.contact(absent(n)).is_some()));
    assert!(crowd.accept(absent(20), "66.6.6.66:1").is_ok());
    let closed: Vec<_> =
        crowd.closed.iter().map(|(conn, reason)| (*conn, refusal(reason))).collect();
    assert_eq!(closed, [(contacts[0], EVICTED)]);
    // A connection of another network does not replace that of a contact.
    assert!(crowd.accept(absent(21), "20.0.0.1:1").is_ok());
    assert_eq!(crowd.closed.len(), 1);
}

/// A node that is killed and restarted repeatedly connects beside the connections of its former
/// processes.
#[test]
fn further_connection_of_a_node_takes_the_place_of_its_unused_one() {
    let mut crowd = Crowd::new(|_| {});
    let conns: Vec<_> = (0..4)
        .map(|_| {
            crowd.bare.pass(ms(10));
            crowd.accept(absent(0), "20.0.0.1:1").unwrap()
        })
        .collect();
    let stream = crowd.use_connection(conns[0]);
    for expected in [conns[1], conns[2]] {
        let before: BTreeSet<_> = crowd.closed.keys().copied().collect();
        crowd.bare.pass(ms(10));
        crowd.accept(absent(0), "20.0.0.1:1").unwrap();
        let new: Vec<_> = crowd.closed.iter().filter(|(conn, _)| !before.contains(conn)).collect();
        let [(conn, reason)] = new[..] else { panic!("{new:?}") };
        assert_eq!((*conn, refusal(reason)), (expected, EVICTED), "the oldest use first");
    }
    // All in use.
    let open: Vec<_> = crowd.open.iter().copied().filter(|conn| *conn != conns[0]).collect();
    for conn in open {
        crowd.use_connection(conn);
    }
    assert_eq!(refusal(&crowd.accept(absent(0), "20.0.0.1:1").unwrap_err()), FULL);
    crowd.bare.input(Input::StreamReset { stream, code: 0 });
    assert!(crowd.accept(absent(0), "20.0.0.1:1").is_ok());
    assert_eq!(crowd.bare.node.metrics().connections, 4);
}

#[test]
fn dials_have_reserved_slots_and_replace_incoming_connections_beyond_them() {
    let mut crowd = Crowd::new(|config| config.connection_limit = 40);
    let mut streams = Vec::new();
    for n in 0..36 {
        let conn = crowd.accept(absent(n), &format!("20.0.{n}.1:1")).unwrap();
        streams.push(crowd.use_connection(conn));
    }
    assert_eq!(refusal(&crowd.accept(absent(50), "20.0.50.1:1").unwrap_err()), FULL);
    for n in 0..4 {
        let (node, at) = (absent(100 + n), format!("40.0.{n}.1:1"));
        let dial = crowd.dial(node, &at).unwrap();
        crowd.complete_dial(dial, node, &at);
    }
    assert_eq!(crowd.bare.node.connections().len(), 40);
    // All in use: there is no room for one more.
    assert_eq!(crowd.dial(absent(110), "40.0.10.1:1"), None);
    let metrics = crowd.bare.node.metrics();
    assert_eq!((metrics.connections_evicted, metrics.requests_open), (0, 0));
    // One is no longer in use, but its node is known and has no other: it is kept.
    crowd.bare.input(Input::StreamReset { stream: streams[0], code: 0 });
    assert_eq!(crowd.dial(absent(111), "40.0.11.1:1"), None);
    assert_eq!(crowd.bare.node.unset_node(absent(0), crowd.bare.now), Ok(true));
    assert!(crowd.dial(absent(112), "40.0.12.1:1").is_some());
    assert_eq!(crowd.bare.node.metrics().connections_evicted, 1);
}

// -- faults

fn unknown_message() -> Vec<u8> {
    frame(4, &[0, 77, 0, 0])
}

#[test]
fn repeated_unknown_messages_end_the_connection() {
    let mut crowd = Crowd::new(|_| {});
    let conn = crowd.accept(absent(0), "20.0.0.1:1").unwrap();
    let last = (0..1000).find(|_| {
        let stream = crowd.bare.opened(conn);
        crowd.bare.feed(stream, &unknown_message(), true);
        crowd.settle(stream);
        crowd.closed.contains_key(&conn)
    });
    assert_eq!(last, Some(127), "an eighth of a fault each");
    assert_eq!(refusal(&crowd.closed[&conn]), (16, "protocol fault"));
    assert_eq!(crowd.bare.node.metrics().connections_faulty, 1);
    // A node that sends one occasionally is not closed.
    let conn = crowd.accept(absent(1), "20.0.1.1:1").unwrap();
    for _ in 0..1000 {
        crowd.bare.pass(10 * SECOND);
        let stream = crowd.bare.opened(conn);
        crowd.bare.feed(stream, &unknown_message(), true);
        crowd.settle(stream);
    }
    assert!(crowd.open.contains(&conn));
}

#[test]
fn repeated_refused_requests_end_the_connection() {
    let claim = || RpcRequest::SignClaim(Bytes::from_static(b"{}"));
    let mut crowd = Crowd::new(|_| {});
    let conn = crowd.accept(absent(0), "20.0.0.1:1").unwrap();
    let denied = Some(RpcResponse::Refused(Refusal::Denied));
    let last =
        (0..1000).find(|_| crowd.ask(conn, claim()) != denied || crowd.closed.contains_key(&conn));
    assert_eq!(last, Some(255), "a sixteenth of a fault each");
    assert_eq!(refusal(&crowd.closed[&conn]), (16, "too many refused requests"));
    assert_eq!(crowd.faults, [PeerFault::TooManyRefused], "reported once");
    // Over hours it can be refused any number of times, and faults in between count as usual.
    let conn = crowd.accept(absent(1), "20.0.1.1:1").unwrap();
    for _ in 0..1000 {
        crowd.bare.pass(10 * SECOND);
        assert_eq!(crowd.ask(conn, claim()), denied);
    }
    for n in 0..15 {
        assert!(crowd.open.contains(&conn), "{n}");
        let stream = crowd.bare.opened(conn);
        crowd.bare.feed(stream, &[0], true);
        crowd.settle(stream);
    }
    assert!(crowd.open.contains(&conn));
    // A refusal because of the load of others is no fault of the peer.
    let mut crowd = Crowd::new(|config| config.claims_serve_limit = 1);
    let other = crowd.accept(absent(0), "20.0.0.1:1").unwrap();
    let conn = crowd.accept(absent(1), "20.0.1.1:1").unwrap();
    assert_eq!(crowd.ask(other, RpcRequest::Claims { after: None, max_bytes: 1 }), None);
    for _ in 0..1000 {
        let answer = crowd.ask(conn, RpcRequest::Claims { after: None, max_bytes: 1 });
        assert_eq!(answer, Some(RpcResponse::Refused(Refusal::Busy)));
    }
    assert!(crowd.open.contains(&conn));
}

/// The same holds on the dialect of the reference for methods that do not exist.
#[test]
fn repeated_unknown_methods_end_a_connection_over_quic() {
    let call = br#"{"method":"noSuchMethod","jsonrpc":"2.0","id":null,"params":{}}"#;
    for (apart, end) in [(ms(0), Some(255)), (10 * SECOND, None)] {
        let mut crowd = Crowd::new(|_| {});
        let conn = crowd.bare.accept_polykey(Bare::peer(0));
        let last = (0..1000).find(|_| {
            crowd.bare.pass(apart);
            let stream = crowd.bare.opened(conn);
            crowd.bare.feed(stream, call, true);
            crowd.settle(stream);
            crowd.closed.contains_key(&conn)
        });
        assert_eq!(last, end);
    }
}

// -- reads of claims

#[test]
fn claim_reads_of_one_network_leave_room_for_others() {
    let claims = || RpcRequest::Claims { after: None, max_bytes: 1000 };
    let mut crowd = Crowd::new(|_| {});
    let busy = |crowd: &mut Crowd, conn, count: usize| {
        (0..count)
            .filter(|_| crowd.ask(conn, claims()) == Some(RpcResponse::Refused(Refusal::Busy)))
            .count()
    };
    // 64 reads: 16 for one network, 8 for one node.
    let conns: Vec<_> =
        (0..5).map(|n| crowd.accept(absent(n), &format!("66.6.6.{n}:1")).unwrap()).collect();
    let again = crowd.accept(absent(0), "66.6.6.0:2").unwrap();
    assert_eq!(
        (busy(&mut crowd, conns[0], 20), busy(&mut crowd, again, 1)),
        (12, 1),
        "on whichever connection"
    );
    assert_eq!((busy(&mut crowd, conns[1], 20), busy(&mut crowd, conns[2], 20)), (12, 20));
    assert_eq!(crowd.store_reads.len(), 16);
    let other = crowd.accept(absent(9), "20.0.0.1:1").unwrap();
    assert_eq!(busy(&mut crowd, other, 1), 0);
    assert_eq!(crowd.bare.node.metrics().shares_refused, 12 + 1 + 12 + 20);
    // A completed read makes room, also if its peer has disconnected.
    for conn in conns {
        crowd.bare.input(Input::Disconnected { conn, why: DisconnectReason::Reset });
    }
    for id in std::mem::take(&mut crowd.store_reads) {
        crowd.bare.input(Input::Loaded { id, result: Ok((Vec::new(), false)) });
    }
    crowd.settle(StreamId(0));
    assert_eq!(busy(&mut crowd, again, 8), 0);
}

// -- signals

/// Two peers signal as long and as often as the limits allow, with the longest allowed validity.
#[test]
fn two_peers_cannot_use_up_all_nonces() {
    let mut crowd = Crowd::new(|_| {});
    let key = |n| Key::numbered(5, n);
    let conns: Vec<_> =
        (0..6).map(|n| crowd.accept(key(n).id(), &format!("20.0.{n}.1:1")).unwrap()).collect();
    let (start, begun) = (crowd.bare.now, UnixMillis(1_767_225_600_000));
    let mut nonce = 0u64;
    let mut signal = |crowd: &mut Crowd, from: u64, to: u64| {
        nonce += 1;
        let unix = UnixMillis(begun.0 + crowd.bare.now.since(start).as_millis() as u64);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&nonce.to_be_bytes());
        let terms = SignalTerms::Once { expires: UnixMillis(unix.0 + 115_000), nonce: bytes };
        let answer = crowd.ask(
            conns[from as usize],
            RpcRequest::Signal(request_on(&key(from), key(to).id(), terms)),
        );
        let calls: Vec<_> = std::mem::take(&mut crowd.bare.outputs);
        assert!(calls.is_empty());
        matches!(answer, Some(RpcResponse::Signalled { .. }))
    };
    let mut passed = 0;
    for _ in 0..2400 {
        crowd.bare.pass(ms(100));
        crowd.settle(StreamId(0));
        for (from, to) in [(0, 2), (1, 3)] {
            passed += usize::from(signal(&mut crowd, from, to));
        }
    }
    assert!(passed > 2000, "{passed}");
    assert!(signal(&mut crowd, 4, 5), "after {passed} signals of two peers");
}

/// Requests to a target that never answers are limited for each peer.
#[test]
fn signals_to_a_silent_target_are_bounded_for_each_peer() {
    let mut crowd = Crowd::new(|config| config.call_timeout = 3600 * SECOND);
    let key = |n| Key::numbered(5, n);
    let conns: Vec<_> =
        (0..3).map(|n| crowd.accept(key(n).id(), &format!("20.0.{n}.1:1")).unwrap()).collect();
    let (start, begun) = (crowd.bare.now, UnixMillis(1_767_225_600_000));
    let mut nonce = 0u8;
    let mut signal = |crowd: &mut Crowd, from: u64| {
        // Valid for a second, so that no nonce is remembered for long.
        nonce = nonce.wrapping_add(1);
        let unix = UnixMillis(begun.0 + crowd.bare.now.since(start).as_millis() as u64);
        let terms = SignalTerms::Once { expires: UnixMillis(unix.0 + 1000), nonce: [nonce; 16] };
        crowd.ask(
            conns[from as usize],
            RpcRequest::Signal(request_on(&key(from), key(2).id(), terms)),
        )
    };
    let mut passed = 0;
    for _ in 0..300 {
        crowd.bare.pass(ms(200));
        passed += usize::from(matches!(signal(&mut crowd, 0), Some(RpcResponse::Signalled { .. })));
    }
    assert_eq!(passed, 128, "half of a quarter of 1,024");
    assert!(
        matches!(signal(&mut crowd, 1), Some(RpcResponse::Signalled { .. })),
        "others are served"
    );
    // The requests end with the connection of the target.
    crowd.bare.input(Input::Disconnected { conn: conns[2], why: DisconnectReason::Reset });
    crowd.settle(StreamId(0));
    crowd.accept(key(2).id(), "20.0.2.1:1").unwrap();
    assert!(matches!(signal(&mut crowd, 0), Some(RpcResponse::Signalled { .. })));
}
