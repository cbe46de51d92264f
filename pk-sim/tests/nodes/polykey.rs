//! A node with a peer that follows the protocol of Polykey 1.x, violates it, or sends nothing
//! (docs/WIRE.md section 4), in virtual time.

use std::time::Duration;

use pk_proto::polykey::{
    ObjectDecoder, ObjectFault, RemoteError, Response, parse_request, parse_response, write_error,
    write_request, write_result,
};
use pk_proto::{
    ClosestNodesQuery, ConnectionId, DisconnectReason, Event, Failure, Input, Opener, Output,
    PeerFault, Refusal, Reply, Request, RequestId, StreamId, UnixMillis,
};

use crate::common::{Bare, NO, SECOND, sent};

const CLOSEST: &str = "nodesClosestActiveConnectionsGet";

/// A valid request.
fn question() -> Vec<u8> {
    let params = format!("{{\"nodeIdEncoded\":\"{}\"}}", Bare::peer(9));
    write_request(CLOSEST, &params, None).to_vec()
}

/// The transport has accepted all sent bytes.
fn confirm(bare: &mut Bare, outputs: &[Output], stream: StreamId) {
    let bytes = sent(outputs, stream).0.len() as u64;
    bare.input(Input::StreamWritten { stream, bytes });
}

fn resets(outputs: &[Output]) -> Vec<(StreamId, &'static str, u64)> {
    let end = |output: &Output| match output {
        Output::ResetStream { stream, code } => Some((*stream, "reset", *code)),
        Output::StopStream { stream, code } => Some((*stream, "stop", *code)),
        _ => None,
    };
    outputs.iter().filter_map(end).collect()
}

fn faults(outputs: &[Output]) -> Vec<PeerFault> {
    let fault = |output: &Output| match output {
        Output::Event(Event::PeerMisbehaved { fault, .. }) => Some(fault.clone()),
        _ => None,
    };
    outputs.iter().filter_map(fault).collect()
}

/// Objects of an answer.
fn objects(bytes: &[u8]) -> Vec<bytes::Bytes> {
    let mut decoder = ObjectDecoder::new(1 << 20, 1 << 20);
    decoder.push(bytes);
    let objects: Vec<_> = std::iter::from_fn(|| decoder.next().unwrap()).collect();
    assert_eq!(decoder.buffered(), 0);
    objects
}

/// The class and the message of an answer that is only an error.
fn error(bytes: &[u8]) -> (String, String) {
    match &objects(bytes)[..] {
        [object] => match parse_response(object) {
            Ok(Response::Error(RemoteError { class, message })) => (class, message),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Checks that no stream and no byte of one is stored, and no timer except those of the connection
/// and of the store.
fn assert_no_state_left(bare: &Bare, what: &str) {
    let metrics = bare.node.metrics();
    let held = (metrics.streams, metrics.receive_bytes, metrics.send_bytes);
    assert_eq!(held, (0, 0, 0), "{what}");
    assert!(metrics.timers <= 2, "{what}: {metrics:?}");
}

/// Checks that a request of a peer is answered.
fn assert_serves(bare: &mut Bare, conn: ConnectionId, what: &str) {
    let stream = bare.opened(conn);
    assert!(bare.feed(stream, &question(), true).is_empty(), "{what}");
    let outputs = bare.take();
    let (_, fin) = sent(&outputs, stream);
    assert!(fin && resets(&outputs).is_empty(), "{what}: {outputs:?}");
    confirm(bare, &outputs, stream);
    assert_no_state_left(bare, what);
}

// -- served

#[test]
fn request_is_answered_however_its_bytes_are_split() {
    let bytes = [b" \n\t".as_slice(), &question(), b"  "].concat();
    for size in 1..=bytes.len() {
        let mut bare = Bare::new(|_| {});
        let conn = bare.accept_polykey(Bare::peer(0));
        let stream = bare.opened(conn);
        let mut fin = false;
        for (i, chunk) in bytes.chunks(size).enumerate() {
            fin = (i + 1) * size >= bytes.len();
            assert!(bare.feed(stream, chunk, fin).is_empty());
        }
        assert!(fin);
        let outputs = bare.take();
        // The only connection is that of the asking node, which is not reported to itself.
        assert_eq!(sent(&outputs, stream), (Vec::new(), true), "chunks of {size}");
        assert_eq!((resets(&outputs), faults(&outputs)), (vec![], vec![]), "chunks of {size}");
        assert_no_state_left(&bare, "answered");
    }
}

/// The caller of the reference keeps its side open until it has the result: it must not receive a
/// stop, and its further bytes are not read.
#[test]
fn caller_is_not_stopped_and_ends_its_side() {
    for (more, reset) in [(false, false), (true, false), (false, true)] {
        let mut bare = Bare::new(|_| {});
        let conn = bare.accept_polykey(Bare::peer(0));
        let stream = bare.opened(conn);
        bare.feed(stream, &question(), false);
        let outputs = bare.take();
        assert!(sent(&outputs, stream).1);
        assert_eq!(resets(&outputs), []);
        if more {
            bare.feed(stream, &question(), false);
            let outputs = bare.take();
            assert_eq!((sent(&outputs, stream), resets(&outputs)), ((Vec::new(), false), vec![]));
        }
        let streams = bare.node.metrics().streams;
        assert_eq!(streams, 1, "until it ends");
        match reset {
            true => bare.input(Input::StreamReset { stream, code: 0 }),
            false => bare.data(stream, b"", true),
        }
        assert_eq!((resets(&bare.take()), bare.node.metrics().stream_faults), (vec![], 0));
        assert_no_state_left(&bare, "ended");
    }
    // It never ends its side: the request ends at its timeout, and the peer is not reported as
    // faulty.
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    let stream = bare.opened(conn);
    bare.feed(stream, &question(), false);
    bare.take();
    bare.pass(15 * SECOND);
    let outputs = bare.take();
    assert_eq!((resets(&outputs), faults(&outputs)), (vec![(stream, "stop", 0)], vec![]));
    assert_no_state_left(&bare, "silent");
    assert_serves(&mut bare, conn, "afterwards");
}

#[test]
fn invalid_parameters_are_answered_with_an_error() {
    let id = Bare::peer(9).to_string();
    let (good, bad) = (
        format!("{{\"nodeIdEncoded\":\"{id}\"}}"),
        "Node ID must be multibase base32hex encoded public-keys",
    );
    let other = "Input data failed validation";
    let signature = "A".repeat(86);
    let cases = [
        (CLOSEST, "{}".to_owned(), other),
        (CLOSEST, "{\"nodeIdEncoded\":7}".to_owned(), other),
        (CLOSEST, "{\"nodeIdEncoded\":null}".to_owned(), other),
        (CLOSEST, "{\"nodeIdEncoded\":\"\"}".to_owned(), bad),
        (CLOSEST, "{\"nodeIdEncoded\":\"nonsense\"}".to_owned(), bad),
        ("nodesClosestLocalNodesGet", format!("{{\"nodeIdEncoded\":\"{}\"}}", &id[..52]), bad),
        ("nodesConnectionSignalInitial", good.clone(), other),
        (
            "nodesConnectionSignalInitial",
            format!("{{\"targetNodeIdEncoded\":\"v\",\"signature\":\"{signature}\"}}"),
            bad,
        ),
        ("nodesConnectionSignalFinal", good.clone(), other),
        ("nodesCrossSignClaim", "{}".to_owned(), other),
        ("nodesClaimNetworkSign", "{}".to_owned(), other),
        ("nodesClaimsGet", "{\"claimIdEncoded\":7}".to_owned(), other),
    ];
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    let count = cases.len() as u64;
    for (method, params, message) in cases {
        let stream = bare.opened(conn);
        bare.feed(stream, &write_request(method, &params, None), true);
        let outputs = bare.take();
        let (bytes, fin) = sent(&outputs, stream);
        assert_eq!(
            error(&bytes),
            ("ErrorValidation".to_owned(), message.to_owned()),
            "{method} {params}"
        );
        assert!(
            fin && resets(&outputs).is_empty() && faults(&outputs).is_empty(),
            "{method} {params}"
        );
        confirm(&mut bare, &outputs, stream);
        assert_no_state_left(&bare, method);
    }
    assert_eq!(bare.node.metrics().questions_invalid, count);
    assert_serves(&mut bare, conn, "afterwards");
}

#[test]
fn refused_signal_returns_its_error_class() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    let (own, peer, other, signature) =
        (bare.node.own_id(), Bare::peer(0), Bare::peer(9), "A".repeat(86));
    let address = "{\"host\":\"77.0.0.1\",\"port\":7}";
    let initial =
        |target| format!("{{\"targetNodeIdEncoded\":\"{target}\",\"signature\":\"{signature}\"}}");
    let finale = |source| {
        format!(
            "{{\"sourceNodeIdEncoded\":\"{source}\",\"targetNodeIdEncoded\":\"{own}\",\"address\":{address},\
             \"requestSignature\":\"{signature}\",\"relaySignature\":\"{signature}\"}}"
        )
    };
    for (method, params, class) in [
        (
            "nodesConnectionSignalInitial",
            initial(other),
            "ErrorNodeConnectionManagerConnectionNotFound",
        ),
        (
            "nodesConnectionSignalInitial",
            initial(peer),
            "ErrorNodesConnectionSignalRelayVerificationFailed",
        ),
        (
            "nodesConnectionSignalFinal",
            finale(other),
            "ErrorNodesConnectionSignalRelayVerificationFailed",
        ),
        (
            "nodesConnectionSignalFinal",
            finale(own),
            "ErrorNodesConnectionSignalRequestVerificationFailed",
        ),
    ] {
        let stream = bare.opened(conn);
        bare.feed(stream, &write_request(method, &params, None), false);
        let (bytes, fin) = sent(&bare.take(), stream);
        assert_eq!((&error(&bytes).0[..], fin), (class, true), "{method}");
        bare.data(stream, b"", true);
    }
    // The reference accepts 20 at once.
    let mut limited = 0;
    for _ in 0..40 {
        let stream = bare.opened(conn);
        bare.feed(
            stream,
            &write_request("nodesConnectionSignalInitial", &initial(peer), None),
            true,
        );
        let (bytes, _) = sent(&bare.take(), stream);
        limited += usize::from(error(&bytes).0 == "ErrorNodeConnectionManagerRequestRateExceeded");
    }
    assert!((20..=22).contains(&limited), "{limited}");
}

#[test]
fn unknown_method_is_stopped_and_reset_with_code_1() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    for method in
        ["nodesClaimNetworkVerify", "", "vaultsscan", "nodesclaimsget", "constructor", "__proto__"]
    {
        let stream = bare.opened(conn);
        bare.feed(stream, &write_request(method, "{}", None), false);
        let outputs = bare.take();
        assert_eq!(resets(&outputs), [(stream, "reset", 1), (stream, "stop", 1)], "{method}");
        assert_eq!(
            (sent(&outputs, stream), faults(&outputs)),
            ((Vec::new(), false), vec![]),
            "{method}"
        );
        assert_no_state_left(&bare, method);
    }
    assert_eq!(bare.node.metrics().unsupported, 6);
    assert_serves(&mut bare, conn, "afterwards");
}

// -- abused

#[test]
fn malformed_message_resets_the_stream_and_keeps_the_connection() {
    use ObjectFault::{NotAMessage, NotAnObject, TooLong};
    let long = [b"{\"method\":\"".to_vec(), vec![b'x'; 1 << 20]].concat();
    let deep = vec![b'{'; 200];
    let array = [b"[".as_slice(), &question(), b"]"].concat();
    let cases: Vec<(&str, Vec<u8>, ObjectFault)> = vec![
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec(), NotAnObject),
        ("a frame of pk/1", vec![0, 0, 0, 9, 0, 1], NotAnObject),
        ("an array", array, NotAnObject),
        ("a byte order mark", [b"\xef\xbb\xbf".as_slice(), &question()].concat(), NotAnObject),
        ("a control byte in a string", b"{\"method\":\"a\nb\"".to_vec(), NotAnObject),
        ("too deep", deep, NotAnObject),
        ("1 MB", long, TooLong),
        ("an empty object", b"{}".to_vec(), NotAMessage),
        ("an answer", write_result("{}").to_vec(), NotAMessage),
        ("no method", b"{\"jsonrpc\":\"2.0\",\"id\":null,\"params\":{}}".to_vec(), NotAMessage),
        ("no version", format!("{{\"method\":\"{CLOSEST}\",\"params\":{{}}}}").into(), NotAMessage),
        (
            "another version",
            format!("{{\"method\":\"{CLOSEST}\",\"jsonrpc\":\"1.0\",\"params\":{{}}}}").into(),
            NotAMessage,
        ),
        (
            "a method that is a number",
            b"{\"method\":7,\"jsonrpc\":\"2.0\",\"params\":{}}".to_vec(),
            NotAMessage,
        ),
        (
            "parameters that are a list",
            format!("{{\"method\":\"{CLOSEST}\",\"jsonrpc\":\"2.0\",\"params\":[]}}").into(),
            NotAMessage,
        ),
        (
            "a method twice",
            b"{\"method\":\"a\",\"method\":\"b\",\"jsonrpc\":\"2.0\"}".to_vec(),
            NotAMessage,
        ),
        ("a comma too many", b"{\"method\":\"a\",\"jsonrpc\":\"2.0\",}".to_vec(), NotAMessage),
        ("brackets that do not match", b"{]".to_vec(), NotAMessage),
        ("no UTF-8", b"{\"method\":\"\xff\",\"jsonrpc\":\"2.0\"}".to_vec(), NotAMessage),
        ("half a surrogate", b"{\"method\":\"\\ud800\",\"jsonrpc\":\"2.0\"}".to_vec(), NotAMessage),
    ];
    for (what, bytes, fault) in cases {
        let mut bare = Bare::new(|_| {});
        let conn = bare.accept_polykey(Bare::peer(0));
        let stream = bare.opened(conn);
        let left = bare.feed(stream, &bytes, false).len();
        let outputs = bare.take();
        let code = if fault == TooLong { 2 } else { 4 };
        assert_eq!(resets(&outputs), [(stream, "reset", code), (stream, "stop", code)], "{what}");
        assert_eq!(faults(&outputs), [PeerFault::Object(fault)], "{what}");
        assert!(
            !outputs.iter().any(|output| matches!(output, Output::CloseConnection { .. })),
            "{what}"
        );
        // A message that is too long is not read to its end.
        assert_eq!(left > 800_000, fault == TooLong, "{what}");
        assert_eq!(bare.node.metrics().stream_faults, 1, "{what}");
        assert_no_state_left(&bare, what);
        assert_serves(&mut bare, conn, what);
    }
}

#[test]
fn peer_that_repeats_malformed_messages_is_disconnected() {
    let mut bare = Bare::new(|config| config.fault_limit = 3);
    let conn = bare.accept_polykey(Bare::peer(0));
    for round in 1..=3 {
        let stream = bare.opened(conn);
        bare.feed(stream, b"nonsense", false);
        let outputs = bare.take();
        let closed =
            outputs.iter().any(|output| matches!(output, Output::CloseConnection { code: 16, .. }));
        assert_eq!(closed, round == 3, "{round}");
    }
}

#[test]
fn silent_streams_and_incomplete_messages_time_out() {
    for said in [&b""[..], b"   ", b"{", b"{\"method\":\"nodesC"] {
        // Nothing more comes: 15 seconds.
        let mut bare = Bare::new(|_| {});
        let conn = bare.accept_polykey(Bare::peer(0));
        let stream = bare.opened(conn);
        bare.feed(stream, said, false);
        bare.take();
        bare.pass(Duration::from_millis(14_999));
        assert_eq!(resets(&bare.take()), []);
        bare.pass(Duration::from_millis(1));
        let outputs = bare.take();
        assert_eq!(resets(&outputs), [(stream, "reset", 7), (stream, "stop", 7)], "{said:?}");
        assert_no_state_left(&bare, "silence");
        assert_serves(&mut bare, conn, "after silence");

        // The peer ends its side.
        let stream = bare.opened(conn);
        bare.feed(stream, said, true);
        let outputs = bare.take();
        assert_eq!(
            (resets(&outputs), faults(&outputs)),
            (vec![(stream, "reset", 4)], vec![PeerFault::Truncated])
        );
        assert_no_state_left(&bare, "half-close");

        // The peer resets or stops the stream.
        for stop in [true, false] {
            let stream = bare.opened(conn);
            bare.feed(stream, said, false);
            bare.take();
            match stop {
                true => bare.input(Input::StreamStopped { stream, code: 5 }),
                false => bare.input(Input::StreamReset { stream, code: 5 }),
            }
            let other = if stop { (stream, "stop", 0) } else { (stream, "reset", 0) };
            assert_eq!(resets(&bare.take()), [other]);
            assert_no_state_left(&bare, "reset");
        }
        assert_serves(&mut bare, conn, "after resets");
    }
}

/// Endless white space uses no memory, and ends at the timeout.
#[test]
fn endless_white_space_uses_no_memory_and_times_out() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    let stream = bare.opened(conn);
    for _ in 0..15 {
        assert!(bare.feed(stream, &[b' '; 100_000], false).is_empty());
        assert!(bare.node.metrics().receive_bytes <= 4096);
        bare.take();
        bare.pass(SECOND);
    }
    assert_eq!(resets(&bare.take()), [(stream, "reset", 7), (stream, "stop", 7)]);
    assert_no_state_left(&bare, "white space");
}

/// Credit counts bytes, and never exceeds the window, for any number of incomplete messages.
#[test]
fn incomplete_messages_use_at_most_the_receive_window() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    let begun = [b"{\"method\":\"".to_vec(), vec![b'x'; 100_000]].concat();
    let streams: Vec<_> = (0..50).map(|_| bare.opened(conn)).collect();
    for stream in &streams {
        bare.feed(*stream, &begun, false);
        let metrics = bare.node.metrics();
        assert!(metrics.receive_bytes <= bare.node.config().receive_window, "{metrics:?}");
    }
    bare.pass(15 * SECOND);
    assert_no_state_left(&bare, "half messages");
}

#[test]
fn unread_answer_is_reset_at_its_timeout() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    let stream = bare.opened(conn);
    bare.feed(stream, &write_request(CLOSEST, "{}", None), true);
    let outputs = bare.take();
    assert!(!sent(&outputs, stream).0.is_empty());
    // It is never confirmed.
    bare.pass(15 * SECOND);
    let outputs = bare.take();
    assert_eq!(
        (resets(&outputs), faults(&outputs)),
        (vec![(stream, "reset", 7)], vec![PeerFault::NotReading])
    );
    assert_no_state_left(&bare, "unread");
}

/// Every step of a valid call, at which the peer resets, stops or disconnects.
#[test]
fn reset_at_any_point_ends_only_the_stream() {
    for steps in 0..3 {
        for end in ["reset", "stop", "both", "gone"] {
            let mut bare = Bare::new(|_| {});
            let conn = bare.accept_polykey(Bare::peer(0));
            let stream = bare.opened(conn);
            if steps > 0 {
                bare.feed(stream, &question()[..20], false);
            }
            if steps > 1 {
                bare.feed(stream, &question()[20..], false);
            }
            match end {
                "reset" => bare.input(Input::StreamReset { stream, code: 1 }),
                "stop" => bare.input(Input::StreamStopped { stream, code: 1 }),
                "both" => {
                    bare.input(Input::StreamStopped { stream, code: 1 });
                    bare.input(Input::StreamReset { stream, code: 1 });
                }
                _ => bare.input(Input::Disconnected { conn, why: DisconnectReason::TimedOut }),
            }
            bare.pass(20 * SECOND);
            assert_no_state_left(&bare, &format!("{end} after {steps}"));
            assert_eq!(faults(&bare.take()), []);
        }
    }
}

// -- calls of the local node

/// A connection with a peer of the reference, a request for it, and the streams that the node has
/// opened.
fn asking(
    request: impl FnOnce(pk_proto::NodeId) -> Request,
) -> (Bare, ConnectionId, RequestId, Vec<StreamId>) {
    let mut bare = Bare::new(|_| {});
    let target = Bare::peer(0);
    let conn = bare.accept_polykey(target);
    let id = bare.request(request(target));
    let opened = |output: &Output| match output {
        Output::OpenStream { stream, .. } => Some(*stream),
        _ => None,
    };
    let streams = bare.outputs.iter().filter_map(opened).collect();
    (bare, conn, id, streams)
}

fn ping(target: pk_proto::NodeId) -> Request {
    Request::PingNode { target, options: NO }
}

fn ask(target: pk_proto::NodeId) -> Request {
    Request::QueryClosestNodes {
        via: target,
        target,
        query: ClosestNodesQuery { known: true, connected: true },
        options: NO,
    }
}

#[test]
fn each_call_sends_one_message_and_the_end() {
    let (mut bare, _, _, streams) = asking(ask);
    let outputs = bare.take();
    let mut methods = Vec::new();
    for stream in &streams {
        let sends = outputs.iter().filter(
            |output| matches!(output, Output::SendStream { stream: of, .. } if of == stream),
        );
        assert_eq!(sends.count(), 1, "in one write");
        let (bytes, fin) = sent(&outputs, *stream);
        let request = parse_request(&bytes).unwrap();
        assert!(fin);
        assert_eq!(request.timeout, Some(15 * SECOND));
        methods.push(request.method.into_owned());
    }
    assert_eq!(methods, ["nodesClosestLocalNodesGet", CLOSEST]);
}

/// A responder of the reference stops the caller's side when it has read the request: that is no
/// error.
#[test]
fn stop_after_the_request_is_no_error() {
    let (mut bare, _, id, streams) = asking(ping);
    let [stream] = streams[..] else { panic!("{streams:?}") };
    bare.input(Input::StreamStopped { stream, code: 0 });
    assert_eq!(bare.done(id), None);
    bare.feed(stream, b"", true);
    assert!(matches!(bare.done(id), Some(Ok(Reply::PingNode(_)))));
    assert_eq!(resets(&bare.take()), []);
    assert_no_state_left(&bare, "stopped");
}

#[test]
fn answer_is_read_however_its_bytes_are_split() {
    let result = |node| {
        let contact =
            "{\"1.2.3.4-5\":{\"mode\":\"direct\",\"connectedTime\":7,\"scopes\":[\"global\"]}}";
        write_result(&format!("{{\"nodeIdEncoded\":\"{node}\",\"nodeContact\":{contact}}}"))
    };
    let bytes = [&result(Bare::peer(1))[..], b" \n", &result(Bare::peer(2)), b" "].concat();
    for size in 1..=bytes.len() {
        let (mut bare, _, id, streams) = asking(ask);
        let [local, active] = streams[..] else { panic!("{streams:?}") };
        bare.feed(active, b"", true);
        for chunk in bytes.chunks(size) {
            assert_eq!(bare.done(id), None);
            assert!(bare.feed(local, chunk, false).is_empty());
        }
        bare.feed(local, b"", true);
        let Some(Ok(Reply::QueryClosestNodes(closest))) = bare.done(id) else { panic!("{size}") };
        let told: Vec<_> = closest.known.iter().map(|(node, _)| *node).collect();
        assert_eq!(told, [Bare::peer(1), Bare::peer(2)]);
        let outputs = bare.take();
        for stream in streams {
            confirm(&mut bare, &outputs, stream);
        }
        assert_no_state_left(&bare, "answered");
    }
}

#[test]
fn query_succeeds_if_one_of_its_two_calls_succeeds() {
    let (mut bare, _, id, streams) = asking(ask);
    let [local, active] = streams[..] else { panic!("{streams:?}") };
    bare.input(Input::StreamReset { stream: local, code: 1 });
    assert_eq!(bare.done(id), None);
    bare.feed(active, b"", true);
    assert_eq!(bare.done(id), Some(Ok(Reply::QueryClosestNodes(Default::default()))));
    // If both fail, the query fails.
    let (mut bare, _, id, streams) = asking(ask);
    for stream in streams {
        bare.input(Input::StreamReset { stream, code: 1 });
    }
    assert_eq!(bare.done(id), Some(Err(Failure::Unsupported)));
    assert_no_state_left(&bare, "reset");
}

#[test]
fn error_fails_the_request_with_the_matching_failure() {
    for (class, failure) in [
        ("ErrorNodePermissionDenied", Failure::Refused(Refusal::Denied)),
        ("ErrorNodeConnectionManagerRequestRateExceeded", Failure::Refused(Refusal::RateLimited)),
        ("ErrorParse", Failure::Remote { class: "ErrorParse".into(), message: "why".into() }),
        ("TypeError", Failure::Remote { class: "TypeError".into(), message: "why".into() }),
    ] {
        let (mut bare, _, id, streams) = asking(ping);
        let error = RemoteError { class: class.into(), message: "why".into() };
        bare.feed(streams[0], &write_error(&error, "d", 1, UnixMillis(0)), true);
        assert_eq!(bare.done(id), Some(Err(failure)), "{class}");
        let outputs = bare.take();
        confirm(&mut bare, &outputs, streams[0]);
        assert_eq!(faults(&outputs), []);
        assert_no_state_left(&bare, class);
    }
}

#[test]
fn malformed_answer_is_a_fault_and_fails_the_request() {
    let node = Bare::peer(1);
    let known = |contact: &str| {
        write_result(&format!("{{\"nodeIdEncoded\":\"{node}\",\"nodeContact\":{contact}}}"))
            .to_vec()
    };
    let many = known("{}").repeat(257);
    for (what, bytes, fault) in [
        ("nothing like it", b"<html>".to_vec(), PeerFault::Object(ObjectFault::NotAnObject)),
        ("a question", question(), PeerFault::Object(ObjectFault::NotAMessage)),
        (
            "no result",
            b"{\"jsonrpc\":\"2.0\",\"id\":null}".to_vec(),
            PeerFault::Object(ObjectFault::NotAMessage),
        ),
        (
            "of another method",
            write_result("{\"nodeId\":\"x\"}").to_vec(),
            PeerFault::Object(ObjectFault::NotAMessage),
        ),
        ("no map", known("[]"), PeerFault::Object(ObjectFault::NotAMessage)),
        ("no contact", known("{\"1.2.3.4-5\":7}"), PeerFault::Object(ObjectFault::NotAMessage)),
        ("too much", many, PeerFault::TooMuch),
        ("half a message", b"{\"jsonrpc\"".to_vec(), PeerFault::Truncated),
    ] {
        let (mut bare, conn, id, streams) = asking(ask);
        let [local, active] = streams[..] else { panic!("{streams:?}") };
        bare.input(Input::StreamReset { stream: active, code: 1 });
        bare.feed(local, &bytes, fault == PeerFault::Truncated);
        let expected = match bare.done(id) {
            // Results before the limit are an answer.
            Some(Ok(Reply::QueryClosestNodes(closest))) => {
                closest.known.len() == 256 && fault == PeerFault::TooMuch
            }
            // The result has the failure of the first failed call.
            Some(Err(Failure::Unsupported)) => fault != PeerFault::TooMuch,
            other => panic!("{what}: {other:?}"),
        };
        assert!(expected, "{what}");
        assert_eq!(faults(&bare.take()), [fault], "{what}");
        assert_no_state_left(&bare, what);
        assert_serves(&mut bare, conn, what);
    }
}

#[test]
fn invalid_addresses_in_an_answer_are_ignored() {
    let (mut bare, _, id, streams) = asking(ask);
    let [local, active] = streams[..] else { panic!("{streams:?}") };
    let data = |mode: &str, time: &str| {
        format!("{{\"mode\":\"{mode}\",\"connectedTime\":{time},\"scopes\":[]}}")
    };
    let contact = [
        ("1.2.3.4-5", data("direct", "7")),
        ("0:0:0:0:0:ffff:102:304-6", data("signal", "8.5")),
        ("1.2.3.4-0", data("direct", "7")),
        ("nowhere", data("direct", "7")),
        ("1.2.3.5-5", data("tunnel", "7")),
        ("1.2.3.6-5", data("direct", "-7")),
    ];
    let contact: Vec<_> = contact.iter().map(|(key, data)| format!("\"{key}\":{data}")).collect();
    let (node, contact) = (Bare::peer(1), contact.join(","));
    bare.feed(
        local,
        &write_result(&format!("{{\"nodeIdEncoded\":\"{node}\",\"nodeContact\":{{{contact}}}}}")),
        true,
    );
    let connections = "{\"a\":{\"host\":\"::ffff:1.2.3.4\",\"hostName\":\"h\",\"port\":5,\"timeout\":9.25,\"primary\":true},\
                        \"b\":{\"host\":\"no host\",\"port\":5,\"primary\":false}}";
    bare.feed(
        active,
        &write_result(&format!("{{\"nodeId\":\"{node}\",\"connections\":{connections}}}")),
        true,
    );
    let Some(Ok(Reply::QueryClosestNodes(closest))) = bare.done(id) else {
        panic!("{:?}", bare.outputs)
    };
    let told: Vec<_> = closest.known[0].1.iter().map(|(address, _)| address.to_string()).collect();
    assert_eq!(told, ["1.2.3.4:6", "1.2.3.4:5"]);
    let [connection] = &closest.connected[0].connections[..] else { panic!("{closest:?}") };
    assert_eq!(
        (connection.address.to_string(), connection.idle_in_ms),
        ("1.2.3.4:5".to_owned(), Some(9))
    );
}

// -- detached streams

#[test]
fn bytes_received_before_the_detach_is_executed_are_delivered() {
    let mut bare = Bare::new(|_| {});
    bare.node.accept_protocol("polykey:vaultsGitInfoGet".to_owned(), bare.now).unwrap();
    let conn = bare.accept_polykey(Bare::peer(0));
    let stream = bare.opened(conn);
    let header =
        write_request("vaultsGitInfoGet", "{\"vaultNameOrId\":\"v\",\"action\":\"pull\"}", None);
    bare.drain();
    // Read in one turn of the driver, which executes the outputs afterwards.
    for (bytes, fin) in [(&header[..], false), (b"raw", false), (b" bytes", true)] {
        let bytes = bytes::Bytes::copy_from_slice(bytes);
        bare.node.handle_input(Input::StreamData { stream, bytes, fin }, bare.now);
    }
    let outputs = bare.take();
    let handed = outputs.iter().find_map(|output| match output {
        Output::DetachStream { protocol, opener, unread, .. } => {
            Some((protocol.clone(), *opener, unread.clone()))
        }
        _ => None,
    });
    let (protocol, opener, unread) = handed.unwrap();
    assert_eq!((&protocol[..], opener), ("polykey:vaultsGitInfoGet", Opener::Peer));
    assert_eq!(unread, [&header[..], b"raw bytes"].concat());
    assert_eq!(resets(&outputs), []);
    assert_eq!(bare.node.metrics().late_inputs, 0);
    // The core has no state of it.
    bare.data(stream, b"late", false);
    assert_eq!((bare.take(), bare.node.metrics().late_inputs), (vec![], 1));
}
