//! A scripted client that violates the dialect of the reference: every message is soon answered
//! with an error or a reset, and no state remains.

use std::time::Duration;

use pk_driver::{Node, unix_now};
use pk_proto::Dialect;
use pk_proto::claims::{Claim, ClaimContent, ClaimId, ClaimLinkNode, ClaimPolicy, SignedToken};
use pk_proto::polykey::{MAX_OBJECT, ObjectDecoder};
use pk_tests::Rt;
use pk_tests::certs::Presented;
use pk_tests::node::{connect, key, shutdown, socket, start, start_with};
use pk_tests::raw;
use pk_tests::wait::{all, sleep, soon, until};
use quinn::{Connection, ReadError, ReadToEndError, RecvStream, SendStream, VarInt};
use serde_json::{Value, json};

pk_tests::cases!(
    request_is_read_however_it_is_split,
    malformed_requests_are_refused,
    invalid_parameters_are_named_in_the_error,
    message_of_a_megabyte_is_refused,
    silent_stream_is_reset,
    stream_can_be_cancelled_at_any_point,
    exchange_can_be_cancelled_at_any_point,
    peer_that_repeats_faults_is_disconnected,
);

/// Every method of the node layer, and parameters that it understands.
fn requests() -> Vec<(&'static str, Value)> {
    let node = key(9).node_id();
    let token = json!({ "payload": "e30", "signatures": [{ "protected": "e30", "signature": "A".repeat(86) }] });
    let signature = "A".repeat(86);
    vec![
        ("nodesClosestLocalNodesGet", json!({ "nodeIdEncoded": node })),
        ("nodesClosestActiveConnectionsGet", json!({ "nodeIdEncoded": node })),
        (
            "nodesConnectionSignalInitial",
            json!({ "targetNodeIdEncoded": node, "signature": signature }),
        ),
        (
            "nodesConnectionSignalFinal",
            json!({
                "sourceNodeIdEncoded": node, "targetNodeIdEncoded": node,
                "address": { "host": "127.0.0.1", "port": 9 },
                "requestSignature": signature, "relaySignature": signature,
            }),
        ),
        ("nodesClaimsGet", json!({ "claimIdEncoded": "" })),
        ("nodesCrossSignClaim", json!({ "signedTokenEncoded": token })),
        ("nodesClaimNetworkSign", json!({ "signedTokenEncoded": token })),
    ]
}

fn request(method: &str, params: &Value) -> Vec<u8> {
    json!({ "method": method, "jsonrpc": "2.0", "id": null, "params": params })
        .to_string()
        .into_bytes()
}

/// A request that is answered with at least one result.
fn good() -> Vec<u8> {
    request("nodesClosestActiveConnectionsGet", &json!({ "nodeIdEncoded": key(9).node_id() }))
}

/// A misbehaving client, and the node that it is connected to.
struct BadClient<R> {
    node: Node<R>,
    /// A node to report.
    other: Node<R>,
    connection: Connection,
}

/// How a call ended.
#[derive(Debug)]
enum End {
    /// With these results, if any.
    Results(Vec<Value>),
    /// With this error, and nothing after it.
    Error(Value),
    /// With a reset.
    Reset(u64),
}

impl End {
    /// The class of the error.
    fn class(&self) -> Option<&str> {
        match self {
            Self::Error(error) => error.pointer("/data/type").and_then(Value::as_str),
            _ => None,
        }
    }
}

impl<R: Rt> BadClient<R> {
    async fn begin(runtime: &R, fault_limit: u32) -> Self {
        let node = start_with(runtime, 1, |config| {
            config.core.call_timeout = Duration::from_secs(2);
            config.core.fault_limit = fault_limit;
            config.core.claim_policy = ClaimPolicy::All;
        })
        .await;
        let other = start(runtime, 3).await;
        connect(runtime, &other, &node).await;
        let endpoint = raw::endpoint(runtime, None);
        let presented = Presented::valid(&key(2));
        let config = raw::client(Some(&presented), &[Dialect::Polykey.alpn()], raw::transport());
        let connection =
            soon(runtime, "connect", raw::dial(&endpoint, config, socket(&node))).await.unwrap();
        Self { node, other, connection }
    }

    async fn open(&self) -> (SendStream, RecvStream) {
        self.connection.open_bi().await.unwrap()
    }

    /// Sends all bytes and the end, and waits for the end of the answer.
    async fn call(&self, runtime: &R, what: &str, bytes: &[u8]) -> End {
        let (mut send, recv) = self.open().await;
        // Fails if the node has ended the stream.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        end(runtime, what, recv).await
    }

    /// Checks that a valid call succeeds on the same connection, and that no state of the invalid
    /// ones remains.
    async fn assert_serves_and_ends(self, runtime: &R) {
        let end = self.call(runtime, "a good call", &good()).await;
        assert!(matches!(&end, End::Results(results) if !results.is_empty()), "{end:?}");
        let metrics = self.node.metrics().await.unwrap();
        assert_eq!(metrics.connections_accepted, 2, "{metrics:?}");
        self.assert_ends(runtime).await;
    }

    /// Checks that the streams of the client end while it is connected, and the connection after
    /// that.
    async fn assert_ends(self, runtime: &R) {
        shutdown(runtime, &[&self.other]).await;
        until(runtime, "no stream is left", async || {
            self.node.driver_metrics().transport.streams == 0
        })
        .await;
        self.connection.close(VarInt::from_u32(0), b"");
        until(runtime, "no connection is left", async || {
            self.node.driver_metrics().transport.connections == 0
        })
        .await;
        shutdown(runtime, &[&self.node]).await;
    }
}

/// Reads to the end.
async fn end<R: Rt>(runtime: &R, what: &str, mut recv: RecvStream) -> End {
    let bytes = match soon(runtime, what, recv.read_to_end(1 << 20)).await {
        Ok(bytes) => bytes,
        Err(ReadToEndError::Read(ReadError::Reset(code))) => return End::Reset(code.into_inner()),
        Err(error) => panic!("{what}: {error}"),
    };
    let messages = serde_json::Deserializer::from_slice(&bytes)
        .into_iter::<Value>()
        .collect::<Result<Vec<_>, _>>();
    let mut messages = messages.unwrap_or_else(|error| panic!("{what}: no JSON: {error}"));
    for message in &messages {
        let members: Vec<_> =
            message.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        assert_eq!(message.get("jsonrpc"), Some(&json!("2.0")), "{what}: {message}");
        assert!(members.contains(&"id") && members.len() == 3, "{what}: {message}");
    }
    let error = messages.iter().position(|message| message.get("error").is_some());
    match error {
        Some(at) => {
            assert_eq!(at + 1, messages.len(), "{what}: there is more after the error");
            let error = messages
                .pop()
                .and_then(|mut message| Some(message.get_mut("error")?.take()))
                .unwrap();
            assert!(error.get("code").is_some_and(Value::is_i64), "{what}: {error}");
            assert!(error.get("message").is_some_and(Value::is_string), "{what}: {error}");
            End::Error(error)
        }
        None => End::Results(
            messages.iter_mut().map(|message| message.get_mut("result").unwrap().take()).collect(),
        ),
    }
}

async fn request_is_read_however_it_is_split<R: Rt>(runtime: R) {
    let bad_client = BadClient::begin(&runtime, 1_000_000).await;
    let good = good();
    for at in 1..good.len() {
        let (mut send, recv) = bad_client.open().await;
        let (first, second) = good.split_at(at);
        send.write_all(first).await.unwrap();
        // So that they do not leave in one packet.
        sleep(&runtime, Duration::from_millis(1)).await;
        send.write_all(second).await.unwrap();
        send.finish().unwrap();
        let end = end(&runtime, "split in two", recv).await;
        assert!(
            matches!(&end, End::Results(results) if !results.is_empty()),
            "split at {at}: {end:?}"
        );
    }
    let (mut send, recv) = bad_client.open().await;
    for byte in &good {
        send.write_all(&[*byte]).await.unwrap();
        sleep(&runtime, Duration::from_micros(500)).await;
    }
    // A call of the reference keeps its side open until it has its results.
    let end_of_bytes = end(&runtime, "byte by byte", recv).await;
    assert!(
        matches!(&end_of_bytes, End::Results(results) if !results.is_empty()),
        "{end_of_bytes:?}"
    );
    send.finish().ok();

    for space in [" ", "\n\t\r ", &" ".repeat(1000)] {
        let end =
            bad_client.call(&runtime, "after spaces", &[space.as_bytes(), &good].concat()).await;
        assert!(matches!(&end, End::Results(results) if !results.is_empty()), "{end:?}");
    }
    bad_client.assert_serves_and_ends(&runtime).await;
}

async fn malformed_requests_are_refused<R: Rt>(runtime: R) {
    let bad_client = BadClient::begin(&runtime, 1_000_000).await;
    let text = String::from_utf8(good()).unwrap();
    let deep = |depth| [vec![b'['; depth], vec![b']'; depth]].concat();
    let with_params = |params: &[u8]| {
        [b"{\"method\":\"nodesClosestLocalNodesGet\",\"jsonrpc\":\"2.0\",\"params\":", params, b"}"]
            .concat()
    };
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("spaces", b"   ".to_vec()),
        ("an array", b"[]".to_vec()),
        ("a number", b"12".to_vec()),
        ("a text", b"\"x\"".to_vec()),
        ("garbage", vec![0xa5; 100]),
        ("zeroes", vec![0; 100]),
        ("our own dialect", raw::hello().to_vec()),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("an empty object", b"{}".to_vec()),
        ("a broken object", b"{\"method\":}".to_vec()),
        ("no UTF-8", b"{\"method\":\"\xff\xfe\",\"jsonrpc\":\"2.0\",\"params\":{}}".to_vec()),
        (
            "a control byte in a text",
            b"{\"method\":\"a\nb\",\"jsonrpc\":\"2.0\",\"params\":{}}".to_vec(),
        ),
        ("too deep", with_params(&deep(1000))),
        ("too deep, without an end", with_params(&vec![b'['; 1000])),
        ("half a request", text.as_bytes()[..text.len() / 2].to_vec()),
        ("all but the last byte", text.as_bytes()[..text.len() - 1].to_vec()),
        ("no method", text.replace("method", "methid").into_bytes()),
        ("no parameters", text.replace("params", "parems").into_bytes()),
        (
            "a method that is a number",
            text.replace("\"nodesClosestActiveConnectionsGet\"", "7").into_bytes(),
        ),
        (
            "a method that is nothing",
            text.replace("\"nodesClosestActiveConnectionsGet\"", "null").into_bytes(),
        ),
        ("an unknown method", text.replace("nodesClosest", "nodesFarthest").into_bytes()),
        (
            "a method without a name",
            text.replace("nodesClosestActiveConnectionsGet", "").into_bytes(),
        ),
        (
            "a method with a long name",
            text.replace("nodesClosest", &"x".repeat(10_000)).into_bytes(),
        ),
        (
            "a method of objects",
            text.replace("nodesClosestActiveConnectionsGet", "constructor").into_bytes(),
        ),
        ("a response", b"{\"jsonrpc\":\"2.0\",\"result\":{},\"id\":null}".to_vec()),
        (
            "an error",
            b"{\"jsonrpc\":\"2.0\",\"error\":{\"code\":1,\"message\":\"\"},\"id\":null}".to_vec(),
        ),
        ("parameters that are a text", with_params(b"\"x\"")),
        ("parameters that are a list", with_params(b"[1]")),
        ("parameters that are nothing", with_params(b"null")),
    ];
    for (what, bytes) in bad {
        let end = bad_client.call(&runtime, what, &bytes).await;
        println!("{}: {what}: {end:?}", R::NAME);
        assert!(matches!(end, End::Error(_) | End::Reset(_)), "{what}: {end:?}");
    }
    bad_client.assert_serves_and_ends(&runtime).await;
}

async fn invalid_parameters_are_named_in_the_error<R: Rt>(runtime: R) {
    let bad_client = BadClient::begin(&runtime, 1_000_000).await;
    let wrong = [
        json!(null),
        json!(7),
        json!(-1.5e300),
        json!(true),
        json!([]),
        json!({}),
        json!(""),
        json!("x"),
        json!("v".repeat(70_000)),
    ];
    for (method, params) in requests() {
        let names: Vec<_> = params.as_object().unwrap().keys().cloned().collect();
        for name in names {
            if name == "claimIdEncoded" {
                // The reference never looks at it.
                continue;
            }
            let mut variants = vec![params.clone()];
            variants[0].as_object_mut().unwrap().remove(&name);
            for value in &wrong {
                let mut variant = params.clone();
                variant[&name] = value.clone();
                variants.push(variant);
            }
            for variant in variants {
                let what = format!("{method} without a proper {name}");
                let end = bad_client.call(&runtime, &what, &request(method, &variant)).await;
                match &end {
                    End::Error(error) => {
                        let data = error
                            .pointer("/data/data")
                            .unwrap_or_else(|| panic!("{what}: {error}"));
                        // The reference cannot decode a request without any of these.
                        for (member, is) in [
                            ("message", Value::is_string as fn(&Value) -> bool),
                            ("timestamp", Value::is_string),
                            ("data", Value::is_object),
                            ("description", Value::is_string),
                            ("exitCode", Value::is_number),
                        ] {
                            assert!(
                                data.get(member).is_some_and(is),
                                "{what}: {member} of {error}"
                            );
                        }
                        assert!(
                            end.class().is_some_and(|class| class.starts_with("Error")),
                            "{what}: {error}"
                        );
                    }
                    End::Reset(_) => {}
                    End::Results(_) => panic!("{what}: {variant}: {end:?}"),
                }
            }
        }
    }
    for method in ["nodesClosestLocalNodesGet", "nodesClosestActiveConnectionsGet"] {
        for id in ["", "v", "hello", &"v".repeat(53)] {
            let end = bad_client
                .call(&runtime, method, &request(method, &json!({ "nodeIdEncoded": id })))
                .await;
            assert_eq!(end.class(), Some("ErrorValidation"), "{id}: {end:?}");
        }
    }
    // Members that may be absent or have any value.
    let good: Value = serde_json::from_slice(&good()).unwrap();
    for id in [json!(7), json!("x")] {
        let mut request = good.clone();
        request["id"] = id;
        let end = bad_client.call(&runtime, "an id", request.to_string().as_bytes()).await;
        assert!(matches!(&end, End::Results(results) if !results.is_empty()), "{end:?}");
    }
    let mut request = good.clone();
    request.as_object_mut().unwrap().remove("id");
    let end = bad_client.call(&runtime, "no id", request.to_string().as_bytes()).await;
    assert!(matches!(&end, End::Results(results) if !results.is_empty()), "{end:?}");
    for timeout in
        [json!(null), json!(15_000), json!(1e300), json!(0), json!(-1), json!("x"), json!({})]
    {
        let mut request = good.clone();
        request["params"]["metadata"] = json!({ "timeout": timeout });
        // It ends in any case.
        bad_client.call(&runtime, "a timeout", request.to_string().as_bytes()).await;
    }
    bad_client.assert_serves_and_ends(&runtime).await;
}

async fn message_of_a_megabyte_is_refused<R: Rt>(runtime: R) {
    let bad_client = BadClient::begin(&runtime, 1_000_000).await;
    let filler = "x".repeat(1 << 20);
    let node = key(9).node_id();
    for (what, bytes) in [
        ("a long parameter", request("nodesClaimsGet", &json!({ "claimIdEncoded": filler }))),
        (
            "a long one more",
            request("nodesClosestLocalNodesGet", &json!({ "nodeIdEncoded": node, "x": filler })),
        ),
        ("a long name", format!("{{\"{filler}\":1}}").into_bytes()),
        ("a text without an end", format!("{{\"{filler}").into_bytes()),
        ("spaces without an end", " ".repeat(1 << 20).into_bytes()),
        ("a method without an end", format!("{{\"method\":\"{filler}").into_bytes()),
    ] {
        let (mut send, recv) = bad_client.open().await;
        let write = async {
            // Fails as soon as the node ends the stream. The end is never sent.
            let written = send.write_all(&bytes).await;
            written.is_err()
        };
        let (stopped, end) = smol::future::zip(write, end(&runtime, what, recv)).await;
        println!("{}: {what}: {end:?}, stopped early: {stopped}", R::NAME);
        assert!(matches!(end, End::Error(_) | End::Reset(_)), "{what}: {end:?}");
    }
    bad_client.assert_serves_and_ends(&runtime).await;
}

async fn silent_stream_is_reset<R: Rt>(runtime: R) {
    let bad_client = BadClient::begin(&runtime, 1_000_000).await;
    let good = good();
    let mut open = Vec::new();
    for len in [1, 10, good.len() - 1] {
        let (mut send, recv) = bad_client.open().await;
        send.write_all(&good[..len]).await.unwrap();
        open.push((send, recv));
    }
    // A call of more than one message, of which the second never comes.
    let ends = all(open.into_iter().map(|(send, recv)| async {
        let end = end(&runtime, "silence", recv).await;
        drop(send);
        end
    }))
    .await;
    for end in &ends {
        assert!(matches!(end, End::Reset(7)), "timed out: {end:?}");
    }
    bad_client.assert_serves_and_ends(&runtime).await;
}

async fn stream_can_be_cancelled_at_any_point<R: Rt>(runtime: R) {
    let bad_client = BadClient::begin(&runtime, 1_000_000).await;
    let mut ends = 0;
    for (method, params) in requests() {
        let bytes = request(method, &params);
        for at in (0..=bytes.len()).step_by(7).chain([bytes.len()]) {
            for how in 0..4 {
                let (mut send, mut recv) = bad_client.open().await;
                send.write_all(&bytes[..at]).await.unwrap();
                let code = VarInt::from_u32(at as u32 % 9);
                match how {
                    0 => drop(send.reset(code)),
                    1 => drop(recv.stop(code)),
                    2 => drop((send.reset(code), recv.stop(code))),
                    // A half-close: nothing more is sent, and the answer is read.
                    _ => {
                        let _ = send.finish();
                        end(&runtime, method, recv).await;
                        ends += 1;
                        continue;
                    }
                }
                if how == 1 {
                    // The rest may still be sent.
                    let _ = send.write_all(&bytes[at..]).await;
                    let _ = send.finish();
                }
                if at % 5 == 0 {
                    sleep(&runtime, Duration::from_millis(1)).await;
                }
            }
        }
    }
    println!("{}: {ends} half-closed calls were answered", R::NAME);
    bad_client.assert_serves_and_ends(&runtime).await;
}

/// What a claimer does when it has the first answer.
#[derive(Debug, Clone, Copy)]
enum Then {
    Silence,
    HalfClose,
    Reset,
    Stop,
    Nonsense,
    AnotherMethod,
    ItsOwnClaimAgain,
    OneSignature,
    TheRightThing,
}

async fn exchange_can_be_cancelled_at_any_point<R: Rt>(runtime: R) {
    let bad_client = BadClient::begin(&runtime, 1_000_000).await;
    let (us, them) = (key(2), bad_client.node.own_id());
    let link = ClaimContent::link(&ClaimLinkNode { issuer: us.node_id(), subject: them });
    let mut last = None;
    let method = "nodesCrossSignClaim";
    let message = |token: &str| {
        let token: Value = serde_json::from_str(token).unwrap();
        request(method, &json!({ "signedTokenEncoded": token }))
    };
    for then in [
        Then::Silence,
        Then::HalfClose,
        Then::Reset,
        Then::Stop,
        Then::Nonsense,
        Then::AnotherMethod,
        Then::ItsOwnClaimAgain,
        Then::OneSignature,
        Then::TheRightThing,
    ] {
        let id = ClaimId::next(&us.node_id(), unix_now(), last).unwrap();
        last = Some(id);
        let claim = Claim::draft(&link, id, unix_now(), None).unwrap();
        let signature = us.sign(&claim.signing_input(&us.node_id()));
        let claim = claim.sign(us.node_id(), signature).unwrap().into_claim().token().to_json();
        let (mut send, mut recv) = bad_client.open().await;
        send.write_all(&message(&claim)).await.unwrap();
        // Our claim with its signature, and its own.
        let mut decoder = ObjectDecoder::new(MAX_OBJECT, MAX_OBJECT);
        let mut answers = Vec::new();
        while answers.len() < 2 {
            match decoder.next().unwrap() {
                Some(object) => answers.push(serde_json::from_slice::<Value>(&object).unwrap()),
                None => {
                    let chunk = soon(&runtime, "the answers", recv.read_chunk(1 << 16, true))
                        .await
                        .unwrap();
                    decoder.push(&chunk.expect("there are two").bytes);
                }
            }
        }
        let mut theirs =
            SignedToken::parse(answers[1]["result"]["signedTokenEncoded"].to_string().as_bytes())
                .unwrap();
        let half = theirs.to_json();
        let signature = us.sign(&theirs.signing_input(&us.node_id()));
        theirs.add_signature(us.node_id(), signature).unwrap();
        let second = match then {
            Then::Silence | Then::HalfClose | Then::Reset | Then::Stop => Vec::new(),
            Then::Nonsense => b"[1,2,3]".to_vec(),
            Then::AnotherMethod => good(),
            Then::ItsOwnClaimAgain => message(&claim),
            Then::OneSignature => message(&half),
            Then::TheRightThing => message(&theirs.to_json()),
        };
        send.write_all(&second).await.unwrap();
        match then {
            Then::Silence => {}
            Then::Reset => drop(send.reset(VarInt::from_u32(5))),
            Then::Stop => drop((send.reset(VarInt::from_u32(5)), recv.stop(VarInt::from_u32(5)))),
            _ => drop(send.finish()),
        }
        if !matches!(then, Then::Stop) {
            let end = end(&runtime, "the end of an exchange", recv).await;
            println!("{}: {then:?}: {end:?}", R::NAME);
            match then {
                Then::TheRightThing => {
                    assert!(matches!(&end, End::Results(more) if more.is_empty()), "{end:?}");
                }
                _ => assert!(matches!(end, End::Error(_) | End::Reset(_)), "{then:?}: {end:?}"),
            }
        }
        let seq = bad_client.node.chain_head().await.unwrap().map(|head| head.seq);
        assert_eq!(seq, matches!(then, Then::TheRightThing).then_some(1), "{then:?}");
    }
    bad_client.assert_serves_and_ends(&runtime).await;
}

async fn peer_that_repeats_faults_is_disconnected<R: Rt>(runtime: R) {
    let bad_client = BadClient::begin(&runtime, 16).await;
    for n in 0..1000 {
        let Ok((mut send, mut recv)) = bad_client.connection.open_bi().await else {
            println!(
                "{}: closed after {n} faults: {:?}",
                R::NAME,
                bad_client.connection.close_reason()
            );
            assert!(n >= 16, "{n}");
            let reason = bad_client.connection.close_reason().expect("it is closed");
            assert!(raw::close_code(&reason).is_some(), "{reason}");
            bad_client.assert_ends(&runtime).await;
            return;
        };
        if send.write_all(b"[]").await.is_ok() {
            let _ = send.finish();
            let _ = soon(&runtime, "the end", recv.read_to_end(1 << 16)).await;
        }
    }
    panic!("it does not stop listening");
}
