//! Peers that violate the protocol or abuse it: each is counted, reported, and limited.

use bytes::Bytes;
use pk_proto::native::{self, Message, V1};
use pk_proto::{
    ClosestNodesQuery, ConnectionId, DisconnectReason, Event, Failure, FrameFault, Input,
    MAX_FRAME, Output, PeerFault, Reply, Request, RequestOptions, RpcRequest, RpcResponse, Side,
    StreamId,
};
use pk_sim::{Cluster, HostId};

use crate::common::*;

fn message(message: V1) -> Vec<u8> {
    native::encode(&Message::V1(message)).unwrap().to_vec()
}

fn call() -> Vec<u8> {
    message(V1::Call { deadline_ms: 1000, request: RpcRequest::Ping { nonce: 1 } })
}

fn closest_call() -> Vec<u8> {
    let query = ClosestNodesQuery { known: true, connected: true };
    message(V1::Call {
        deadline_ms: 1000,
        request: RpcRequest::Closest { target: absent(0), query },
    })
}

/// A frame of a kind that only a later version knows.
fn unknown_message(length: usize) -> Vec<u8> {
    let mut payload = vec![0; length];
    payload[..2].copy_from_slice(&[0, 77]);
    frame(length as u32, &payload)
}

fn faults(outputs: &[Output]) -> Vec<PeerFault> {
    let fault = |output: &Output| match output {
        Output::Event(Event::PeerMisbehaved { fault, .. }) => Some(fault.clone()),
        _ => None,
    };
    outputs.iter().filter_map(fault).collect()
}

fn has_closed(outputs: &[Output]) -> bool {
    let reason = "protocol fault";
    outputs.iter().any(|output| matches!(output, Output::CloseConnection { code: 16, reason: is, .. } if is == reason))
}

/// A node in a world with a scripted peer that has dialed it.
fn victim(change: impl FnOnce(&mut pk_proto::Config)) -> (Cluster, Peer, ConnectionId) {
    let mut cluster =
        Cluster::quiet().nodes(2).scripted_peers(1).seed(3).config_of(0, change).build();
    // The transport has no limits here: the core applies its own.
    cluster.host_mut(0).transport.stream_limit = 100_000;
    (0..3).for_each(|host| cluster.start_node(host));
    cluster.drive(SECOND);
    let mut peer = Peer::honest(2);
    let conn = peer.connect(&mut cluster, 0);
    (cluster, peer, conn)
}

fn end_of_scripted_peer(cluster: &Cluster) -> Option<DisconnectReason> {
    cluster.scripted_peer(2).inputs().find_map(|input| match input {
        Input::Disconnected { why, .. } => Some(why.clone()),
        _ => None,
    })
}

/// Checks that a node still serves: another node can connect, and is answered.
fn assert_serves(cluster: &mut Cluster, node: HostId) {
    let other = 1 - node;
    connect(cluster, other, node);
    let request = ping(cluster, node);
    assert!(matches!(cluster.ask(other, request), Ok(Reply::PingNode(_))));
}

// -- what is not the protocol

#[test]
fn each_protocol_violation_has_its_fault_and_result() {
    use FrameFault::{Malformed, TooLong, Unknown};
    let future = unknown_message(100);
    let trailing = frame(call().len() as u32 - 3, &[&call()[4..], b"x"].concat());
    let list = [[0, 2, 1, 21].as_slice(), &[7; 21 * 33]].concat();
    // The first bytes of a peer after its Hello, the fault, and whether the connection ends.
    let frame_fault = PeerFault::Frame;
    let cases = vec![
        (
            "garbage",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            false,
            frame_fault(TooLong(0x4745_5420)),
            2,
            true,
        ),
        ("too long by one", frame(65_537, b""), false, frame_fault(TooLong(65_537)), 2, true),
        ("empty", frame(0, b""), false, frame_fault(Malformed), 4, true),
        ("not a message", frame(3, &[0, 1, 9]), false, frame_fault(Malformed), 4, true),
        ("a message and a half", trailing, false, frame_fault(Malformed), 4, true),
        (
            "a list over its cap",
            frame(list.len() as u32, &list),
            false,
            frame_fault(Malformed),
            4,
            true,
        ),
        ("from the future", future, false, frame_fault(Unknown), 1, false),
        ("another version", frame(2, &[1, 0]), false, frame_fault(Unknown), 1, false),
        ("nothing at all", Vec::new(), true, PeerFault::Truncated, 4, false),
        ("half a header", vec![0, 0], true, PeerFault::Truncated, 4, false),
        ("half a message", call()[..9].to_vec(), true, PeerFault::Truncated, 4, false),
        ("a second Hello", hello().to_vec(), false, PeerFault::Unexpected, 4, false),
        (
            "an answer",
            message(V1::Answer(RpcResponse::Pong { nonce: 1 })),
            false,
            PeerFault::Unexpected,
            4,
            false,
        ),
        ("an acceptance", message(V1::Accepted), false, PeerFault::Unexpected, 4, false),
    ];
    for (name, bytes, fin, fault, code, fatal) in cases {
        let mut bare = Bare::new(|_| {});
        let conn = bare.accept(Bare::peer(0));
        let quiet = bare.node.metrics();
        let stream = bare.opened(conn);
        bare.feed(stream, &bytes, fin);
        let outputs = bare.take();
        assert_eq!(faults(&outputs), std::slice::from_ref(&fault), "{name}");
        assert_eq!(has_closed(&outputs), fatal, "{name}");
        assert!(outputs.contains(&Output::ResetStream { stream, code }), "{name}: {outputs:?}");
        let stops =
            outputs.iter().filter(|output| matches!(output, Output::StopStream { .. })).count();
        assert_eq!(stops, usize::from(!fin), "{name}: {outputs:?}");
        let metrics = bare.node.metrics();
        assert_eq!(metrics.stream_faults, 1, "{name}");
        assert_eq!(metrics.unsupported, u64::from(fault == frame_fault(Unknown)), "{name}");
        if fatal {
            // The timer is that of the store: the peer has entered the graph.
            assert_eq!((metrics.connections, metrics.streams, metrics.timers), (0, 0, 1), "{name}");
            bare.input(Input::Disconnected { conn, why: DisconnectReason::Local });
            assert!(matches!(bare.take()[..], [Output::Event(Event::ConnectionClosed { .. })]));
        } else {
            let left =
                (metrics.connections, metrics.streams, metrics.receive_bytes, metrics.timers);
            assert_eq!(left, (1, quiet.streams, quiet.receive_bytes, quiet.timers), "{name}");
            // It is served as before.
            let stream = bare.opened(conn);
            bare.feed(stream, &call(), true);
            let answered = |output: &Output| matches!(output, Output::SendStream { stream: of, fin: true, .. } if *of == stream);
            assert!(bare.take().iter().any(answered), "{name}");
        }
    }
}

#[test]
fn control_stream_accepts_only_one_hello() {
    let later = |bytes: Vec<u8>| [hello().to_vec(), bytes].concat();
    let cases: Vec<(&str, Vec<u8>, bool, PeerFault)> = vec![
        ("a second Hello", later(hello().to_vec()), false, PeerFault::Unexpected),
        ("a question", later(call()), false, PeerFault::Unexpected),
        ("its end", later(Vec::new()), true, PeerFault::Truncated),
        (
            "from the future",
            later(unknown_message(9)),
            false,
            PeerFault::Frame(FrameFault::Unknown),
        ),
    ];
    for (name, bytes, fin, fault) in cases {
        let mut bare = Bare::new(|_| {});
        let conn = ConnectionId(bare.next_id());
        bare.connected(conn, Side::Acceptor, Bare::peer(0), "198.51.100.1:1".parse().unwrap(), 1);
        let control = bare.opened(conn);
        bare.feed(control, &bytes, fin);
        let outputs = bare.take();
        assert_eq!((faults(&outputs), has_closed(&outputs)), (vec![fault], false), "{name}");
        assert_eq!(bare.node.connections().len(), 1, "{name}: accepted by its Hello, and it lives");
        assert_eq!(
            (bare.node.metrics().streams, bare.node.metrics().receive_bytes),
            (0, 0),
            "{name}"
        );
        // It still closes when it is idle.
        bare.pass(3 * 3600 * SECOND);
        assert_eq!(bare.node.connections().len(), 0, "{name}");
    }
}

#[test]
fn no_request_is_served_before_the_hello() {
    for (first, fault) in
        [(call(), None), (message(V1::Open { protocol: "p".into() }), Some(PeerFault::TooEarly))]
    {
        let mut bare = Bare::new(|_| {});
        bare.node.accept_protocol("p".into(), bare.now).unwrap();
        let conn = ConnectionId(bare.next_id());
        bare.connected(conn, Side::Acceptor, Bare::peer(0), "198.51.100.1:1".parse().unwrap(), 1);
        let stream = bare.opened(conn);
        bare.feed(stream, &first, true);
        let outputs = bare.take();
        assert_eq!(faults(&outputs), Vec::from_iter(fault.clone()));
        let served = |output: &Output| {
            matches!(output, Output::SendStream { .. } | Output::DetachStream { .. })
        };
        assert!(!outputs.iter().any(served), "{outputs:?}");
        assert_eq!((bare.node.metrics().answers, bare.node.graph().len()), (0, 0));
        let (held, refused) = (u64::from(fault.is_none()), u64::from(fault.is_some()));
        let metrics = bare.node.metrics();
        assert_eq!((metrics.early_requests, metrics.early_refused), (held, refused));
        // The Hello is not too late.
        let control = bare.opened(conn);
        bare.feed(control, &hello(), false);
        assert_eq!(bare.node.connections().len(), 1);
    }
}

#[test]
fn unsolicited_answers_count_as_late_inputs() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept(Bare::peer(0));
    bare.data(StreamId(4), &message(V1::Answer(RpcResponse::Pong { nonce: 1 })), true);
    assert_eq!((bare.take(), bare.node.metrics().late_inputs), (vec![], 1));
    assert_eq!(bare.node.connections()[0].conn, conn);
}

#[test]
fn stream_ended_by_the_peer_is_not_ended_again() {
    // Every purpose of a stream, reset and stopped by the peer in both orders: no output names an
    // ended stream.
    let query = ClosestNodesQuery { known: true, connected: true };
    let peer = Bare::peer(0);
    for (reset, stop) in [(true, false), (false, true), (true, true)] {
        for case in 0..5 {
            let mut bare = Bare::new(|config| config.send_window = 1024);
            bare.node.accept_protocol("p".into(), bare.now).unwrap();
            let conn = bare.accept(peer);
            let stream = match case {
                // Of the local node: a request, an opening. Of the peer: nothing yet, an incomplete
                // message, a request.
                0 => {
                    bare.request(Request::QueryClosestNodes {
                        via: peer,
                        target: peer,
                        query,
                        options: RequestOptions::default(),
                    });
                    StreamId(0)
                }
                1 => {
                    let protocol = "p".into();
                    bare.request(Request::OpenStream {
                        target: peer,
                        protocol,
                        options: RequestOptions::default(),
                    });
                    StreamId(0)
                }
                _ => bare.opened(conn),
            };
            match case {
                3 => drop(bare.feed(stream, &call()[..7], false)),
                4 => drop(bare.feed(stream, &closest_call(), false)),
                _ => {}
            }
            bare.take();
            // A completely sent request has not ended before it is confirmed.
            let (mut reading, mut writing) = (case != 4, true);
            let ends = [
                reset.then_some((Input::StreamReset { stream, code: 9 }, true)),
                stop.then_some((Input::StreamStopped { stream, code: 9 }, false)),
            ];
            let twice = [ends.clone(), ends].concat();
            for (end, of_peer) in twice.into_iter().flatten() {
                bare.input(end);
                *(if of_peer { &mut reading } else { &mut writing }) = false;
                for output in bare.take() {
                    match output {
                        Output::StopStream { stream: of, .. } if of == stream => {
                            assert!(reading, "case {case}: stopped again");
                            reading = false;
                        }
                        Output::ResetStream { stream: of, .. } if of == stream => {
                            assert!(writing, "case {case}: reset again");
                            writing = false;
                        }
                        Output::SendStream { stream: of, .. } if of == stream => {
                            assert!(writing, "case {case}");
                        }
                        _ => {}
                    }
                }
            }
            bare.pass(20 * SECOND);
            let metrics = bare.node.metrics();
            assert_eq!(
                (metrics.streams, metrics.requests_open),
                (1, 0),
                "case {case}: {metrics:?}"
            );
        }
    }
}

#[test]
fn too_many_faults_end_the_connection() {
    let (mut cluster, mut peer, conn) = victim(|config| config.fault_limit = 5);
    for i in 1..=5 {
        assert_eq!(end_of_scripted_peer(&cluster), None, "{i}");
        peer.send(&mut cluster, conn, message(V1::Accepted), true);
        peer.drive(&mut cluster, SECOND);
    }
    let why = DisconnectReason::Peer { code: 16, reason: "protocol fault".into() };
    assert_eq!(end_of_scripted_peer(&cluster), Some(why));
    assert_eq!(count_events(&cluster, 0, |event| matches!(event, Event::PeerMisbehaved { .. })), 5);
    assert_quiet(&mut cluster, 0, "faults");
    assert_serves(&mut cluster, 0);
    cluster.stop_all();
}

// -- too much

#[test]
fn long_unknown_messages_are_read_in_turns() {
    // 100 streams announce the longest message at once; the window has room for four at a time.
    for (window, streams) in [(256 * 1024, 99), (128 * 1024, 99), (128 * 1024, 250)] {
        let (mut cluster, mut peer, conn) = victim(|config| {
            config.receive_window = window;
            config.streams_per_connection = 1 + streams;
            // They count, and so many at once would end the connection: see `limits.rs`.
            config.fault_limit = 100;
        });
        let ids: Vec<_> = (0..streams)
            .map(|_| {
                // The header on every stream first, so that every stream starts.
                let bytes = unknown_message(MAX_FRAME);
                let stream = peer.send(&mut cluster, conn, bytes[..10].to_vec(), false);
                cluster.pull(2, |scripted_peer| {
                    scripted_peer.send(stream, bytes[10..].to_vec(), false);
                });
                stream
            })
            .collect();
        let mut most = 0;
        for _ in 0..1400 {
            peer.drive(&mut cluster, ms(5));
            most = most.max(cluster.node(0).metrics().receive_bytes);
        }
        assert!(most <= window && most > window / 2, "{most}");
        let metrics = cluster.node(0).metrics();
        let end =
            (metrics.unsupported, metrics.stream_timeouts, metrics.streams, metrics.receive_bytes);
        assert_eq!(end, (streams as u64, 0, 1, 4), "{metrics:?}");
        let refused = |input: &&Input| matches!(input, Input::StreamReset { stream, code: 1 } if ids.contains(stream));
        assert_eq!(cluster.scripted_peer(2).inputs().filter(refused).count(), streams);
        assert_eq!(
            (end_of_scripted_peer(&cluster), cluster.node(0).connections().len()),
            (None, 1)
        );
        // The checkers have compared each grant with the windows.
        assert!(cluster.check_counters().grants >= 2 * streams as u64);
        cluster.stop_all();
    }
}

#[test]
fn requests_among_long_messages_are_answered() {
    let (mut cluster, mut peer, conn) = victim(|_| {});
    for _ in 0..90 {
        peer.send(&mut cluster, conn, unknown_message(MAX_FRAME), false);
    }
    let stream = peer.send(&mut cluster, conn, call(), true);
    cluster.pull(2, |scripted_peer| scripted_peer.grant(stream, 1000));
    // Requests of the victim on the same connection are answered, too.
    let request = ping(&cluster, 2);
    let asking = cluster.request(0, request);
    peer.drive(&mut cluster, 5 * SECOND);
    assert_eq!(
        cluster.scripted_peer(2).read(stream),
        (message(V1::Answer(RpcResponse::Pong { nonce: 1 })), true)
    );
    assert!(
        matches!(cluster.done(0, asking), Some(Ok(Reply::PingNode(_)))),
        "{:?}",
        cluster.done(0, asking)
    );
    cluster.stop_all();
}

#[test]
fn endless_streams_are_refused_and_end_the_connection() {
    for bytes in [&b"x"[..], &call()[..8]] {
        let (mut cluster, mut peer, conn) = victim(|_| {});
        for _ in 0..500 {
            peer.send(&mut cluster, conn, bytes.to_vec(), false);
        }
        let mut most = 0;
        for _ in 0..50 {
            peer.drive(&mut cluster, ms(1));
            most = most.max(cluster.node(0).metrics().streams);
        }
        let metrics = cluster.node(0).metrics();
        assert!(most <= 100, "{most}");
        assert_eq!(metrics.streams_refused, 16, "then the connection goes");
        assert_eq!((metrics.connections, metrics.streams, metrics.receive_bytes), (0, 0, 0));
        assert!(matches!(
            end_of_scripted_peer(&cluster),
            Some(DisconnectReason::Peer { code: 16, .. })
        ));
        assert_quiet(&mut cluster, 0, "endless");
        assert_serves(&mut cluster, 0);
        cluster.stop_all();
    }
}

#[test]
fn streams_with_incomplete_messages_time_out() {
    let (mut cluster, mut peer, conn) = victim(|_| {});
    // A byte a second each: no byte resets the time.
    let slow: Vec<_> =
        (0..20).map(|_| peer.send(&mut cluster, conn, frame(1000, b"begun"), false)).collect();
    for second in 1..15 {
        cluster.pull(2, |scripted_peer| {
            slow.iter().for_each(|stream| scripted_peer.send(*stream, vec![1], false));
        });
        peer.drive(&mut cluster, SECOND);
        let metrics = cluster.node(0).metrics();
        assert_eq!((metrics.stream_timeouts, metrics.streams), (0, 21), "after {second} s");
        assert!(metrics.receive_bytes <= 20 * 1004 + 4);
    }
    peer.drive(&mut cluster, 2 * SECOND);
    let metrics = cluster.node(0).metrics();
    // They are all due at the same instant; the sixteenth ends the connection, and the others with
    // it.
    assert_eq!((metrics.stream_timeouts, metrics.connections, metrics.streams), (16, 0, 0));
    assert!(matches!(
        end_of_scripted_peer(&cluster),
        Some(DisconnectReason::Peer { code: 16, .. })
    ));
    assert_quiet(&mut cluster, 0, "never finished");
    assert_serves(&mut cluster, 0);
    cluster.stop_all();
}

#[test]
fn peer_that_never_reads_answers_is_disconnected() {
    let (mut cluster, mut peer, conn) = victim(|config| {
        config.send_window = 1024;
        config.fault_limit = 10;
    });
    // Nothing leaves the victim's transport.
    cluster.host_mut(2).transport.stream_window = 0;
    for number in 0..30 {
        let place = address(&format!("203.0.113.{}:1", number + 1));
        add_contact_at(&mut cluster, 0, absent(number), place);
    }
    connect(&mut cluster, 1, 0);
    let asked: Vec<_> =
        (0..50).map(|_| peer.send(&mut cluster, conn, closest_call(), true)).collect();
    peer.drive(&mut cluster, 10 * SECOND);
    let metrics = cluster.node(0).metrics();
    assert_eq!((metrics.answers, metrics.streams), (50, 2 + 50), "answered, and not read");
    // The checkers compare every stream with its window; the sum is the memory of the answers.
    assert!(
        metrics.send_bytes > 50 * 40 && metrics.send_bytes < 51 * 4096,
        "{}",
        metrics.send_bytes
    );
    peer.drive(&mut cluster, 6 * SECOND);
    let metrics = cluster.node(0).metrics();
    assert_eq!((metrics.send_overflows, metrics.connections, metrics.streams), (10, 1, 1));
    let told =
        |event: &Event| matches!(event, Event::PeerMisbehaved { fault: PeerFault::NotReading, .. });
    assert_eq!(count_events(&cluster, 0, told), 10);
    assert!(matches!(
        end_of_scripted_peer(&cluster),
        Some(DisconnectReason::Peer { code: 16, .. })
    ));
    assert!(asked.iter().all(|stream| cluster.scripted_peer(2).read(*stream).0.is_empty()));
    cluster.stop_all();
}

#[test]
fn peer_that_repeats_hello_is_disconnected() {
    let (mut cluster, mut peer, conn) = victim(|_| {});
    for _ in 0..99 {
        peer.send(&mut cluster, conn, hello(), false);
    }
    peer.drive(&mut cluster, SECOND);
    let metrics = cluster.node(0).metrics();
    assert_eq!((metrics.stream_faults, metrics.connections), (16, 0));
    assert_eq!(
        count_events(&cluster, 0, |event| matches!(event, Event::PeerMisbehaved { .. })),
        16
    );
    assert_serves(&mut cluster, 0);
    cluster.stop_all();
}

#[test]
fn acceptor_that_violates_the_protocol_before_its_hello_is_not_connected() {
    for (hello, fault) in [
        (vec![0xff; 40], PeerFault::Frame(FrameFault::TooLong(u32::MAX))),
        (call(), PeerFault::Unexpected),
        (unknown_message(50), PeerFault::Frame(FrameFault::Unknown)),
    ] {
        let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
        let mut peer = Peer::honest(1);
        peer.hello = hello.into();
        let request = connect_request(&cluster, 1);
        let id = cluster.request(0, request);
        peer.drive(&mut cluster, 20 * SECOND);
        let result = cluster.done(0, id);
        assert!(
            matches!(result, Some(Err(Failure::Dial(why))) if why.len() == 1),
            "{fault}: {result:?}"
        );
        let told = |event: &Event| matches!(event, Event::PeerMisbehaved { fault: of, .. } if *of == fault);
        assert_eq!(count_events(&cluster, 0, told), 1, "{fault}");
        assert_eq!(cluster.node(0).graph().len(), 0);
        assert_quiet(&mut cluster, 0, "no Hello");
        cluster.stop_all();
    }
}

/// Random bytes on random streams have no effect except counted faults.
#[test]
fn random_bytes_cause_only_counted_faults() {
    let mut ends = 0;
    for seed in 0..40u64 {
        let (mut cluster, mut peer, conn) = victim(|_| {});
        let noise = blake3_noise(seed);
        for (i, chunk) in noise.chunks(97).enumerate() {
            if end_of_scripted_peer(&cluster).is_some() {
                break;
            }
            // Half of them start with a frame header.
            let bytes = if i % 2 == 0 { frame(chunk.len() as u32, chunk) } else { chunk.to_vec() };
            peer.send(&mut cluster, conn, bytes, i % 3 == 0);
            peer.drive(&mut cluster, ms(7));
        }
        peer.drive(&mut cluster, 20 * SECOND);
        ends += usize::from(end_of_scripted_peer(&cluster).is_some());
        assert!(cluster.node(0).metrics().stream_faults > 0);
        assert_serves(&mut cluster, 0);
        cluster.stop_all();
    }
    assert!(ends > 30, "{ends}");
}

fn blake3_noise(seed: u64) -> Vec<u8> {
    let mut noise = Vec::new();
    for block in 0..30u64 {
        noise.extend_from_slice(pk_sim::Key::numbered(seed, block).id().as_bytes());
    }
    noise
}

/// Bytes of a refused stream are all dropped.
#[test]
fn refused_stream_leaves_no_state() {
    let mut bare = Bare::new(|config| config.streams_per_connection = 2);
    let conn = bare.accept(Bare::peer(0));
    // One stream is for the Hellos, and this one is the other.
    bare.opened(conn);
    let quiet = bare.node.metrics();
    for _ in 0..15 {
        let stream = bare.opened(conn);
        assert!(!bare.credit.contains_key(&stream));
        bare.input(Input::StreamData { stream, bytes: Bytes::from(vec![0; 100]), fin: true });
        bare.input(Input::StreamReset { stream, code: 0 });
    }
    let metrics = bare.node.metrics();
    assert_eq!((metrics.streams_refused, metrics.late_inputs), (15, 30));
    assert_eq!(
        (metrics.streams, metrics.timers, metrics.receive_bytes),
        (quiet.streams, quiet.timers, quiet.receive_bytes)
    );
}
