//! Streams and calls with honest peers.

use bytes::Bytes;
use pk_proto::native::{self, Message, V1};
use pk_proto::{
    ClosestNodes, ClosestNodesQuery, ConnectionId, Event, Failure, Input, Opener, Output,
    PeerFault, Reply, Request, RequestError, RequestId, RpcRequest, RpcResponse, Side, StreamId,
};
use pk_sim::{App, AppAction, AppStream, Cluster, HostId, Link};

use crate::common::*;

fn open(cluster: &Cluster, to: HostId, protocol: &str) -> Request {
    Request::OpenStream { target: cluster.id(to), protocol: protocol.into(), options: NO }
}

fn opened(cluster: &mut Cluster, node: HostId, to: HostId, protocol: &str) -> StreamId {
    let request = open(cluster, to, protocol);
    match cluster.ask(node, request) {
        Ok(Reply::OpenStream(stream)) => stream,
        other => panic!("{other:?}"),
    }
}

fn app(cluster: &Cluster, host: HostId) -> AppStream {
    cluster.app_streams(host).last().unwrap().clone()
}

fn message(message: V1) -> Bytes {
    native::encode(&Message::V1(message)).unwrap()
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>().into()
}

/// Two connected nodes.
fn pair(seed: u64) -> Cluster {
    let mut cluster = Cluster::quiet().nodes(2).seed(seed).start();
    connect(&mut cluster, 0, 1);
    cluster
}

// -- applications

#[test]
fn application_stream_carries_every_byte_in_both_directions() {
    for length in [0, 1, 1000, 70_000, 300_000] {
        let mut cluster = pair(length as u64);
        cluster.network_mut().set_default_link(Link::ms(10).jitter(ms(15)).loss(50));
        cluster.call(1, |node, now| node.accept_protocol("echo/1".into(), now)).unwrap();
        cluster.host_mut(1).apps.insert("echo/1".into(), App::Echo);
        let sent = pattern(length);
        cluster
            .host_mut(0)
            .apps
            .insert("echo/1".into(), App::Script { send: sent.clone(), fin: true });
        let stream = opened(&mut cluster, 0, 1, "echo/1");
        cluster.drive(40 * SECOND);
        let (here, there) = (app(&cluster, 0), app(&cluster, 1));
        assert_eq!((here.stream, here.node, there.node), (stream, cluster.id(1), cluster.id(0)));
        assert!(matches!((here.opener, there.opener), (Opener::Us(_), Opener::Peer)));
        assert_eq!(
            (&there.received, there.ended, there.closed),
            (&sent.to_vec(), true, true),
            "{length} bytes"
        );
        assert_eq!(
            (&here.received, here.ended, here.closed),
            (&sent.to_vec(), true, true),
            "{length} bytes"
        );
        for node in [0, 1] {
            assert_quiet(&mut cluster, node, "echo");
            assert_eq!(
                cluster.node(node).metrics().receive_bytes,
                4,
                "the header of the control stream's next message"
            );
        }
        cluster.stop_all();
    }
}

#[test]
fn unaccepted_protocol_is_unsupported_and_ends_nothing_else() {
    let mut cluster = pair(3);
    let request = open(&cluster, 1, "late");
    assert_eq!(cluster.ask(0, request.clone()), Err(Failure::Unsupported));
    cluster.call(1, |node, now| node.accept_protocol("late".into(), now)).unwrap();
    let first = opened(&mut cluster, 0, 1, "late");
    cluster.call(1, |node, now| node.refuse_protocol("late", now));
    cluster.call(1, |node, now| node.refuse_protocol("never", now));
    assert_eq!(cluster.ask(0, request), Err(Failure::Unsupported));
    assert_eq!(cluster.node(1).metrics().unsupported, 2);
    // The open one stays, the connection too, and no peer is reported as faulty.
    assert!(cluster.app(0, first, AppAction::Send(Bytes::from_static(b"still here"), false)));
    cluster.drive(SECOND);
    assert_eq!(app(&cluster, 1).received, b"still here");
    for node in [0, 1] {
        assert_eq!(cluster.node(node).connections().len(), 1);
        assert_eq!(
            count_events(&cluster, node, |event| matches!(event, Event::PeerMisbehaved { .. })),
            0
        );
    }
    cluster.stop_all();
}

#[test]
fn names_of_protocols_are_checked_and_their_number_is_limited() {
    let mut cluster =
        Cluster::quiet().nodes(2).seed(3).config(|config| config.protocol_limit = 2).start();
    add_contact(&mut cluster, 0, 1);
    for bad in [String::new(), "a\n".into(), "ä".into(), "a".repeat(65)] {
        assert_eq!(
            cluster.call(0, |node, now| node.accept_protocol(bad.clone(), now)),
            Err(RequestError::Protocol)
        );
        let request = open(&cluster, 1, &bad);
        assert_eq!(cluster.try_request(0, request), Err(RequestError::Protocol), "{bad}");
    }
    let accept = |cluster: &mut Cluster, name: &str| {
        cluster.call(0, |node, now| node.accept_protocol(name.into(), now))
    };
    assert_eq!(accept(&mut cluster, &"a".repeat(64)), Ok(()));
    assert_eq!(accept(&mut cluster, "b c~"), Ok(()));
    assert_eq!(accept(&mut cluster, "third"), Err(RequestError::TooManyProtocols(2)));
    assert_eq!(accept(&mut cluster, "b c~"), Ok(()), "it is accepted already");
    cluster.call(0, |node, now| node.refuse_protocol("b c~", now));
    assert_eq!(accept(&mut cluster, "third"), Ok(()));
    cluster.stop_all();
}

#[test]
fn bytes_after_the_opening_are_left_to_the_application() {
    // A peer sends its opening, its first bytes and its end at once.
    for fin in [false, true] {
        let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
        cluster.call(0, |node, now| node.accept_protocol("p".into(), now)).unwrap();
        let mut peer = Peer::honest(1);
        let conn = peer.connect(&mut cluster, 0);
        let bytes = [&message(V1::Open { protocol: "p".into() })[..], &pattern(50_000)].concat();
        let stream = peer.send(&mut cluster, conn, bytes, fin);
        cluster.pull(1, |scripted_peer| scripted_peer.grant(stream, 1 << 20));
        peer.drive(&mut cluster, 5 * SECOND);
        let app = app(&cluster, 0);
        assert_eq!((app.received.len(), app.ended, app.closed), (50_000, fin, fin));
        assert_eq!(app.received, pattern(50_000));
        assert_eq!(cluster.scripted_peer(1).read(stream), (message(V1::Accepted).to_vec(), fin));
        cluster.stop_all();
    }
}

#[test]
fn core_reads_nothing_beyond_its_message() {
    let mut bare = Bare::new(|_| {});
    bare.node.accept_protocol("p".into(), bare.now).unwrap();
    let conn = bare.accept(Bare::peer(0));
    let stream = bare.opened(conn);
    let open = message(V1::Open { protocol: "p".into() });
    let bytes = [&open[..], b"body"].concat();
    assert_eq!(bare.feed(stream, &bytes, true), b"body");
    let outputs = bare.take();
    let granted: u64 = outputs
        .iter()
        .filter_map(|output| match output {
            Output::ReadCredit { bytes, .. } => Some(*bytes),
            _ => None,
        })
        .sum();
    assert_eq!(granted, open.len() as u64);
    let [.., Output::SendStream { .. }, Output::DetachStream { unread, opener: Opener::Peer, .. }] =
        &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert!(unread.is_empty());
    // A driver that reads more than its credit loses nothing, either.
    let stream = bare.opened(conn);
    bare.data(stream, &bytes, false);
    assert!(
        matches!(bare.take().last(), Some(Output::DetachStream { unread, .. }) if &unread[..] == b"body")
    );
    bare.input(Input::StreamClosed { stream });
    assert_eq!(bare.node.metrics().late_inputs, 0);
}

#[test]
fn closed_application_stream_is_counted_and_starts_the_idle_time() {
    let mut bare = Bare::new(|_| {});
    bare.node.accept_protocol("p".into(), bare.now).unwrap();
    let conn = bare.accept(Bare::peer(0));
    let stream = bare.opened(conn);
    bare.feed(stream, &message(V1::Open { protocol: "p".into() }), false);
    assert_eq!(bare.node.connections()[0].idle_in, None);
    bare.pass(100_000 * SECOND);
    bare.input(Input::StreamClosed { stream });
    let lives = bare.node.connections()[0].idle_in.unwrap();
    assert_eq!(bare.node.poll_timeout(), Some(bare.now + lives));
    assert!(lives >= 60 * SECOND);
    bare.input(Input::StreamClosed { stream });
    assert_eq!(bare.node.metrics().late_inputs, 1);
}

#[test]
fn streams_of_applications_have_their_own_limit() {
    let mut bare = Bare::new(|config| {
        config.streams_per_connection = 2;
        config.application_streams = 3;
    });
    bare.node.accept_protocol("p".into(), bare.now).unwrap();
    let conn = bare.accept(Bare::peer(0));
    // One at a time: the control stream is one of the two, an opening the other.
    let open = message(V1::Open { protocol: "p".into() });
    let streams = [0; 4].map(|_| {
        let stream = bare.opened(conn);
        bare.feed(stream, &open, false);
        stream
    });
    let outputs = bare.take();
    let handed =
        outputs.iter().filter(|output| matches!(output, Output::DetachStream { .. })).count();
    let reset = Output::ResetStream { stream: streams[3], code: 8 };
    assert!(handed == 3 && outputs.contains(&reset), "{outputs:?}");
    let metrics = bare.node.metrics();
    assert_eq!((metrics.streams_refused, metrics.connections_faulty), (1, 0));
    bare.input(Input::StreamClosed { stream: streams[0] });
    let stream = bare.opened(conn);
    bare.feed(stream, &open, false);
    assert!(matches!(bare.take().last(), Some(Output::DetachStream { .. })));
}

#[test]
fn calls_continue_beside_idle_application_streams() {
    let mut bare = Bare::new(|_| {});
    bare.node.accept_protocol("p".into(), bare.now).unwrap();
    let conn = bare.accept(Bare::peer(0));
    for _ in 0..250 {
        let stream = bare.opened(conn);
        bare.feed(stream, &message(V1::Open { protocol: "p".into() }), false);
    }
    let stream = bare.opened(conn);
    assert!(bare.credit.contains_key(&stream), "a call of the peer is read");
    assert_eq!(bare.node.metrics().streams_refused, 0);
}

#[test]
fn unanswered_opening_ends_by_its_deadline() {
    for (options, code) in [(NO, 7), (by(3 * SECOND), 0)] {
        let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
        let mut mute = Peer::honest(1);
        mute.connect(&mut cluster, 0);
        let (target, begun) = (cluster.id(1), cluster.now());
        let id = cluster.request(0, Request::OpenStream { target, protocol: "p".into(), options });
        mute.drive(&mut cluster, 20 * SECOND);
        assert_eq!(cluster.done(0, id), Some(&Err(Failure::DeadlineExceeded)));
        let (at, _) = cluster.events(0).last().unwrap();
        assert_eq!(at.since(begun), options.deadline.unwrap_or(15 * SECOND));
        let ends: Vec<_> =
            cluster.scripted_peer(1).inputs().filter(|input| ends_with(input, code)).collect();
        assert_eq!(ends.len(), 2, "reset and stop: {ends:?}");
        assert_quiet(&mut cluster, 0, "opening");
        cluster.stop_all();
    }
    // The same for a cancelled request, without a fault.
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
    let mut mute = Peer::honest(1);
    mute.connect(&mut cluster, 0);
    let request = open(&cluster, 1, "p");
    let id = cluster.request(0, request);
    mute.drive(&mut cluster, SECOND);
    cluster.cancel(0, id);
    assert_quiet(&mut cluster, 0, "cancelled");
    mute.drive(&mut cluster, SECOND);
    assert_eq!(cluster.scripted_peer(1).inputs().filter(|input| ends_with(input, 0)).count(), 2);
    cluster.stop_all();
}

fn ends_with(input: &Input, wanted: u64) -> bool {
    matches!(input, Input::StreamReset { code, .. } | Input::StreamStopped { code, .. } if *code == wanted)
}

#[test]
fn refusal_by_the_peer_is_reported_with_its_code() {
    for (code, failure) in
        [(1, Failure::Unsupported), (5, Failure::Aborted(5)), (0, Failure::Aborted(0))]
    {
        for stop in [false, true] {
            let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
            let mut peer = Peer::honest(1);
            peer.connect(&mut cluster, 0);
            let request = open(&cluster, 1, "p");
            let id = cluster.request(0, request);
            peer.drive(&mut cluster, SECOND);
            let stream = cluster.scripted_peer(1).opened().unwrap();
            let refusal = match stop {
                true => Output::StopStream { stream, code },
                false => Output::ResetStream { stream, code },
            };
            cluster.pull(1, |scripted_peer| scripted_peer.say(refusal));
            peer.drive(&mut cluster, SECOND);
            assert_eq!(cluster.done(0, id), Some(&Err(failure.clone())));
            assert_quiet(&mut cluster, 0, "refused");
            cluster.stop_all();
        }
    }
}

// -- calls

#[test]
fn ping_returns_the_round_trip_time_and_the_address() {
    let mut cluster = pair(3);
    cluster.network_mut().set_default_link(Link::ms(35));
    let request = ping(&cluster, 1);
    let pong = match cluster.ask(0, request) {
        Ok(Reply::PingNode(pong)) => pong,
        other => panic!("{other:?}"),
    };
    assert_eq!((pong.rtt, pong.address), (ms(70), cluster.address(1)));
    cluster.stop_all();
}

#[test]
fn unanswered_call_fails_at_its_timeout_and_a_late_answer_is_ignored() {
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
    let mut slow = Peer::new(1, |_| Reaction::Silence);
    slow.connect(&mut cluster, 0);
    let request = ping(&cluster, 1);
    let (id, begun) = (cluster.request(0, request), cluster.now());
    slow.drive(&mut cluster, 15 * SECOND);
    assert_eq!(cluster.done(0, id), Some(&Err(Failure::DeadlineExceeded)));
    assert_eq!(cluster.events(0).last().unwrap().0.since(begun), 15 * SECOND);
    assert_quiet(&mut cluster, 0, "not answered");
    let stream = cluster.scripted_peer(1).opened().unwrap();
    cluster.pull(1, |scripted_peer| {
        scripted_peer.send(stream, message(V1::Answer(RpcResponse::Pong { nonce: 1 })), true);
    });
    slow.drive(&mut cluster, SECOND);
    let metrics = cluster.node(0).metrics();
    assert_eq!((metrics.call_timeouts, metrics.stream_faults, metrics.connections), (1, 0, 1));
    cluster.stop_all();
}

#[test]
fn answer_must_match_its_request() {
    let closest = || RpcResponse::Closest(ClosestNodes::default());
    for (asks_ping, answer) in [
        (true, RpcResponse::Pong { nonce: 7 }),
        (true, closest()),
        (false, RpcResponse::Pong { nonce: 7 }),
    ] {
        let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
        let told = answer.clone();
        let mut liar = Peer::new(1, move |_| Reaction::answer(told.clone()));
        liar.connect(&mut cluster, 0);
        let (target, query) = (cluster.id(1), ClosestNodesQuery { known: true, connected: false });
        let request = match asks_ping {
            true => Request::PingNode { target, options: NO },
            false => Request::QueryClosestNodes { via: target, target, query, options: NO },
        };
        let id = cluster.request(0, request);
        liar.drive(&mut cluster, SECOND);
        assert_eq!(
            cluster.done(0, id),
            Some(&Err(Failure::Peer(PeerFault::Unexpected))),
            "{answer:?}"
        );
        assert_quiet(&mut cluster, 0, "misfit");
        cluster.stop_all();
    }
}

#[test]
fn call_is_answered_after_the_peer_stops_reading() {
    // STOP_SENDING does not affect the answer (docs/WIRE.md section 4).
    let mut bare = Bare::new(|_| {});
    let peer = Bare::peer(0);
    let conn = bare.accept(peer);
    let query = ClosestNodesQuery { known: true, connected: true };
    let id =
        bare.request(Request::QueryClosestNodes { via: peer, target: peer, query, options: NO });
    let stream = last_opened(&bare);
    bare.take();
    bare.input(Input::StreamStopped { stream, code: 0 });
    assert_eq!(bare.done(id), None);
    bare.feed(stream, &message(V1::Answer(RpcResponse::Closest(ClosestNodes::default()))), true);
    assert_eq!(bare.done(id), Some(Ok(Reply::QueryClosestNodes(ClosestNodes::default()))));
    assert_eq!((bare.node.connections()[0].conn, bare.node.metrics().streams), (conn, 1));
}

fn last_opened(bare: &Bare) -> StreamId {
    let opened = |output: &Output| match output {
        Output::OpenStream { stream, .. } => Some(*stream),
        _ => None,
    };
    bare.outputs.iter().rev().find_map(opened).unwrap()
}

#[test]
fn unwritten_bytes_of_an_ended_call_are_reset() {
    let peer = Bare::peer(0);
    let ends = |bare: &mut Bare| {
        let ends = bare.take().into_iter().filter_map(|output| match output {
            Output::ResetStream { stream, code } => Some((stream, "reset", code)),
            Output::StopStream { stream, code } => Some((stream, "stop", code)),
            _ => None,
        });
        ends.collect::<Vec<_>>()
    };
    // A request that is cancelled before and after it was written.
    for confirmed in [false, true] {
        let mut bare = Bare::new(|_| {});
        bare.accept(peer);
        let id = bare.request(Request::PingNode { target: peer, options: NO });
        let stream = last_opened(&bare);
        if confirmed {
            bare.input(Input::StreamWritten { stream, bytes: 1 << 20 });
        }
        bare.take();
        bare.node.cancel(id, bare.now);
        let stop = (stream, "stop", 0);
        assert_eq!(
            ends(&mut bare),
            if confirmed { vec![stop] } else { vec![(stream, "reset", 0), stop] }
        );
    }
    // An answer that is not read.
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept(peer);
    let stream = bare.opened(conn);
    bare.feed(
        stream,
        &message(V1::Call { deadline_ms: 1000, request: RpcRequest::Ping { nonce: 5 } }),
        true,
    );
    bare.take();
    bare.pass(15 * SECOND);
    assert_eq!(ends(&mut bare), [(stream, "reset", 7)]);
    assert_eq!((bare.node.metrics().send_overflows, bare.node.metrics().streams), (1, 1));
}

#[test]
fn stream_refused_by_the_transport_fails_its_call() {
    let mut bare = Bare::new(|_| {});
    let target = Bare::peer(0);
    bare.accept(target);
    let ping = bare.request(Request::PingNode { target, options: NO });
    let stream = last_opened(&bare);
    bare.input(Input::OpenFailed { stream });
    assert_eq!(bare.done(ping), Some(Err(Failure::Aborted(8))));
    let open = bare.request(Request::OpenStream { target, protocol: "p".into(), options: NO });
    let stream = last_opened(&bare);
    bare.input(Input::OpenFailed { stream });
    assert_eq!(bare.done(open), Some(Err(Failure::Aborted(8))));
    // The change of the graph by the connection is written.
    bare.pass(SECOND);
    assert_eq!((bare.node.metrics().streams, bare.node.metrics().timers), (1, 1));
}

#[test]
fn request_that_overtakes_the_hello_is_answered_after_it() {
    let mut bare = Bare::new(|_| {});
    let (target, address) = (Bare::peer(0), address("203.0.113.1:1"));
    let id = bare.request(Request::Connect { target, address, options: NO });
    bare.take();
    bare.connected(ConnectionId(0), Side::Dialer, target, "203.0.113.1:1".parse().unwrap(), 1);
    let control = last_opened(&bare);
    // The acceptor has sent Hello and a request; the stream of the request arrives first.
    let early = bare.opened(ConnectionId(0));
    let call = message(V1::Call { deadline_ms: 1000, request: RpcRequest::Ping { nonce: 5 } });
    assert_eq!(bare.feed(early, &call, true), &call[..], "nothing of it is read");
    assert_eq!(bare.feed(control, &hello(), false), b"");
    assert!(matches!(bare.done(id), Some(Ok(Reply::Connect(_)))));
    bare.take();
    assert_eq!(bare.feed(early, &call, true), b"");
    let answer = message(V1::Answer(RpcResponse::Pong { nonce: 5 }));
    assert!(bare.take().contains(&Output::SendStream { stream: early, bytes: answer, fin: true }));
    assert_eq!(bare.node.metrics().stream_faults, 0);

    // Between real nodes, on links where streams overtake each other.
    for seed in 0..30 {
        let link = Link::ms(5).jitter(ms(60));
        let mut cluster = Cluster::quiet().nodes(2).seed(seed).link(link).start();
        // 1 dials 0 at a wrong address first, and pings it as soon as it is found.
        let id = cluster.id(0);
        add_contact_at(&mut cluster, 1, id, crate::common::address("203.0.113.7:1"));
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let request = ping(&cluster, 0);
                cluster.request(1, request)
            })
            .collect();
        connect(&mut cluster, 0, 1);
        for request in asking {
            let result = cluster.await_done(1, request);
            assert!(matches!(result, Ok(Reply::PingNode(_))), "seed {seed}: {result:?}");
        }
        assert_eq!(cluster.node(0).metrics().stream_faults, 0, "seed {seed}");
        cluster.stop_all();
    }
}

#[test]
fn answers_are_sent_as_the_window_opens() {
    let mut bare = Bare::new(|config| config.send_window = 1024);
    let data = pk_proto::NodeContactAddressData {
        mode: pk_proto::ContactMode::Direct,
        connected_time: pk_proto::UnixMillis(1),
        scopes: pk_proto::Scopes::GLOBAL,
    };
    // Proven nodes are reported, and they make a long answer.
    let peers: Vec<_> = (1..=40).map(Bare::peer).collect();
    for (i, peer) in peers.iter().enumerate() {
        let conn = ConnectionId(bare.next_id());
        let remote = format!("198.51.100.{}:{}", i + 1, i + 1).parse().unwrap();
        bare.connected(conn, Side::Acceptor, *peer, remote, i as u8);
        let control = bare.opened(conn);
        bare.feed(control, &hello(), false);
        for port in 1..5 {
            let address = crate::common::address(&format!("203.0.113.{}:{port}", i + 1));
            bare.request(Request::SetNode {
                node: *peer,
                address,
                data,
                how: pk_proto::SetNodeOptions::default(),
            });
        }
    }
    let conn = bare.accept(Bare::peer(0));
    let stream = bare.opened(conn);
    let query = ClosestNodesQuery { known: true, connected: true };
    let question = RpcRequest::Closest { target: Bare::peer(0), query };
    bare.feed(stream, &message(V1::Call { deadline_ms: 1000, request: question }), true);
    let (mut answer, mut rounds, mut ended) = (Vec::new(), 0, false);
    while !ended {
        let mut sent = 0;
        for output in bare.take() {
            if let Output::SendStream { stream: of, bytes, fin } = output
                && of == stream
            {
                sent += bytes.len();
                answer.extend_from_slice(&bytes);
                ended |= fin;
            }
        }
        assert!(
            sent > 0 && sent <= 1024 && (sent == 1024 || ended || rounds % 2 == 1),
            "round {rounds}: {sent}"
        );
        let metrics = bare.node.metrics();
        assert_eq!(metrics.streams, 42);
        // The transport accepts half, then the rest.
        let taken = if rounds % 2 == 0 { sent as u64 / 2 } else { 1024 };
        bare.input(Input::StreamWritten { stream, bytes: taken });
        rounds += 1;
    }
    bare.input(Input::StreamWritten { stream, bytes: 1024 });
    assert!(rounds > 4, "{rounds} rounds");
    assert_eq!(bare.node.metrics().streams, 41, "confirmed to the end, it is over");
    assert_eq!(
        (bare.node.metrics().send_bytes > 0, bare.node.metrics().answers),
        (true, 1),
        "Hellos are not confirmed"
    );
    let Ok(Message::V1(V1::Answer(RpcResponse::Closest(closest)))) = native::decode(&answer[4..])
    else {
        panic!("cut")
    };
    assert_eq!((closest.known.len(), closest.connected.len()), (20, 20));
    assert!(closest.known.iter().all(|(_, contact)| contact.len() == 5));
}

#[test]
fn unread_application_stream_blocks_no_other_stream() {
    let mut cluster = pair(3);
    cluster.call(1, |node, now| node.accept_protocol("bulk".into(), now)).unwrap();
    cluster.host_mut(1).apps.insert("bulk".into(), App::Stalled);
    cluster
        .host_mut(0)
        .apps
        .insert("bulk".into(), App::Script { send: pattern(1 << 20), fin: true });
    for _ in 0..5 {
        opened(&mut cluster, 0, 1, "bulk");
    }
    cluster.drive(SECOND);
    assert!(cluster.transport_counters().blocked > 0);
    for (from, to) in [(0, 1), (1, 0)] {
        let request = ping(&cluster, to);
        assert!(
            matches!(cluster.ask(from, request), Ok(Reply::PingNode(pong)) if pong.rtt == ms(20))
        );
    }
    cluster.stop_all();
    assert!(
        cluster.app_streams(0).all(|stream| stream.lost),
        "the end of the connection is the end of its streams"
    );
}

#[test]
fn detach_precedes_the_end_of_its_request() {
    let mut bare = Bare::new(|_| {});
    let peer = Bare::peer(0);
    bare.accept(peer);
    let request: RequestId =
        bare.request(Request::OpenStream { target: peer, protocol: "p".into(), options: NO });
    let stream = last_opened(&bare);
    bare.take();
    let bytes = [&message(V1::Accepted)[..], b"greeting"].concat();
    assert_eq!(bare.feed(stream, &bytes, false), b"greeting");
    let outputs = bare.take();
    let [
        Output::ReadCredit { .. },
        Output::DetachStream { opener, stream: of, .. },
        Output::Event(done),
    ] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!((*opener, *of), (Opener::Us(request), stream));
    assert_eq!(*done, Event::Done { id: request, result: Ok(Reply::OpenStream(stream)) });
}
