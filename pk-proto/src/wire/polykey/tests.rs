//! Messages captured between real nodes (`wire_capture.json`), and their signatures
//! (`signalling.json`).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde_json::Value;

use super::format::PolykeyFormat;
use super::*;
use crate::claims::ChainVerifier;
use crate::types::address::NodeAddress;
use crate::types::id::NodeId;
use crate::types::refusal::Refusal;
use crate::types::signature::{Signature, verify};
use crate::types::time::UnixMillis;
use crate::wire::closest::{ActiveConnection, ActiveNode, ClosestNodes, ClosestNodesQuery};
use crate::wire::fault::RemoteFailure;
use crate::wire::message::{
    ClaimsPage, PunchRequest, RpcRequest, RpcResponse, SignalRequest, SignalTerms,
};
use crate::wire::parsed_message;
use crate::wire::parsed_message::ParsedMessage;
use crate::wire::signal::{address_text, relay_bytes, request_bytes};

const MINUTE: Duration = Duration::from_secs(60);

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn capture() -> Value {
    vectors(include_str!("../../../tests/vectors/wire_capture.json"))
}

fn signalling() -> Value {
    vectors(include_str!("../../../tests/vectors/signalling.json"))
}

/// The bytes that one side of a section has written on a stream; `client` has dialed.
fn captured_text(section: &str, conn: &str, stream: u64) -> String {
    let capture = capture();
    let sections = capture["sections"].as_array().unwrap();
    let section =
        sections.iter().find(|it| it["name"].as_str().unwrap().starts_with(section)).unwrap();
    let chunks = section["wire"].as_array().unwrap().iter();
    let written = chunks.filter(|chunk| {
        chunk["dir"] == "out" && chunk["conn"] == conn && chunk["stream"] == stream
    });
    written.map(|chunk| chunk["bytes"].as_str().unwrap()).collect()
}

fn objects(text: &str) -> Vec<Bytes> {
    let mut decoder = ObjectDecoder::new(MAX_FIRST_OBJECT, MAX_OBJECT);
    decoder.push(text.as_bytes());
    let objects: Vec<_> = core::iter::from_fn(|| decoder.next().unwrap()).collect();
    assert_eq!(decoder.buffered(), 0);
    objects
}

/// The decoded only message of a caller.
fn first(text: &str) -> (ParsedMessage, PolykeyFormat) {
    let [object] = &objects(text)[..] else { panic!("{text}") };
    let said = read(object, PolykeyFormat::First).unwrap();
    let format = match &said {
        ParsedMessage::Request { format, .. }
        | ParsedMessage::Exchange { format, .. }
        | ParsedMessage::Invalid { format, .. } => *format,
        other => panic!("{other:?}"),
    };
    let parsed_message::StreamFormat::Polykey(format) = format else { panic!("{format:?}") };
    (said, format)
}

fn question(text: &str) -> (RpcRequest, PolykeyFormat) {
    match first(text) {
        (ParsedMessage::Request { request: question, .. }, format) => (question, format),
        other => panic!("{other:?}"),
    }
}

/// The format of a response to this.
fn answering(format: PolykeyFormat) -> PolykeyFormat {
    match format {
        PolykeyFormat::Call { method, .. } => PolykeyFormat::Call { method, ours: true },
        format => format,
    }
}

/// The request as this node writes it, with the captured timeout.
fn written_request(question: &RpcRequest, captured: &str) -> String {
    let (_, calls) = encode_call(question, MINUTE);
    let [(bytes, _)] = &calls[..] else { panic!("{calls:?}") };
    let timeout = if captured.contains("\"timeout\":null") { "null" } else { "15000" };
    String::from_utf8(bytes.to_vec())
        .unwrap()
        .replace("\"timeout\":60000", &format!("\"timeout\":{timeout}"))
}

fn node(letter: &str) -> NodeId {
    capture()[letter].as_str().unwrap().parse().unwrap()
}

fn address(text: &str) -> NodeAddress {
    text.parse().unwrap()
}

#[test]
fn requests_of_the_reference_are_read_and_written_to_the_byte() {
    let closest = |local, active| RpcRequest::Closest {
        target: node("A"),
        query: ClosestNodesQuery { known: local, connected: active },
    };
    for (section, stream, expected) in [
        ("nodesClosestLocalNodesGet", 0, closest(true, false)),
        ("nodesClosestActiveConnectionsGet", 4, closest(false, true)),
    ] {
        let text = captured_text(section, "client", stream);
        assert_eq!(question(&text).0, expected);
        assert_eq!(written_request(&expected, &text), text);
    }
    for (conn, stream) in [("client", 24), ("server", 1)] {
        let text = captured_text("nodesConnectionSignalInitial/Final", conn, stream);
        let text = objects(&text)
            .first()
            .map(|object| String::from_utf8(object.to_vec()).unwrap())
            .unwrap();
        let (question, _) = question(&text);
        assert_eq!(written_request(&question, &text), text);
        match question {
            RpcRequest::Signal(signal) => {
                assert_eq!((signal.target, signal.terms), (node("C"), SignalTerms::Plain));
                let bytes = request_bytes(&node("A"), &signal.target, &signal.terms);
                assert!(verify(&node("A"), &bytes, &signal.signature.0).is_ok());
            }
            RpcRequest::Punch(punch) => {
                let PunchRequest {
                    source,
                    address: at,
                    address_text: text,
                    request,
                    relay_signature,
                } = *punch;
                assert_eq!(
                    (source, request.target, at.clone()),
                    (node("A"), node("C"), address("127.0.0.1:60918"))
                );
                assert_eq!(text, address_text(&SignalTerms::Plain, &at));
                let bytes = relay_bytes(&source, &text, &request);
                assert!(verify(&node("B"), &bytes, &relay_signature.0).is_ok());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn answers_of_the_reference_are_read_and_written_to_the_byte() {
    // No answers: no bytes.
    let (_, format) = question(&captured_text("nodesClosestLocalNodesGet", "client", 0));
    assert_eq!(captured_text("nodesClosestLocalNodesGet", "server", 0), "");
    assert_eq!(answer(format, RpcResponse::Closest(ClosestNodes::default()), UnixMillis(0)), "");

    let (_, format) = question(&captured_text("nodesClosestActiveConnectionsGet", "client", 4));
    let text = captured_text("nodesClosestActiveConnectionsGet", "server", 4);
    let mut closest = ClosestNodes::default();
    for object in objects(&text) {
        match read(&object, answering(format)).unwrap() {
            ParsedMessage::Part(Some(RpcResponse::Closest(part))) => {
                closest.connected.extend(part.connected);
            }
            other => panic!("{other:?}"),
        }
    }
    let connection = |id: &str, at, idle_in_ms| ActiveConnection {
        shared_id: id.to_owned().into(),
        address: address(at),
        primary: true,
        idle_in_ms,
    };
    let [a, c] = &closest.connected[..] else { panic!("{closest:?}") };
    let id = "RoupehCr-j9zfWH85ljEGknUqVBdawD3opzP29IvWaVfsRABBEkx1Q";
    assert_eq!(
        *a,
        ActiveNode {
            node: node("A"),
            connections: [connection(id, "127.0.0.1:60918", None)].into()
        }
    );
    let id = "W2jxlCLNauytTR9hyIh8WMeiWfO4Mc908kI3SMOMI3oMw-Wo8lAMzg";
    assert_eq!(
        *c,
        ActiveNode {
            node: node("C"),
            connections: [connection(id, "127.0.0.1:41940", Some(87_743))].into()
        }
    );
    assert_eq!(answer(format, RpcResponse::Closest(closest), UnixMillis(0)), text);
    // As the response to a ping, all of this only shows that the peer is alive.
    for object in objects(&text) {
        assert!(matches!(read(&object, PolykeyFormat::Alive), Ok(ParsedMessage::Part(None))));
    }

    let signalling =
        |conn, stream| captured_text("nodesConnectionSignalInitial/Final", conn, stream);
    let (_, initial) = question(&signalling("client", 24));
    let text = signalling("server", 24);
    match read(&objects(&text)[0], answering(initial)).unwrap() {
        ParsedMessage::Response(RpcResponse::Signalled { address: at }) => {
            assert_eq!(at, address("127.0.0.1:41940"));
            assert_eq!(
                answer(initial, RpcResponse::Signalled { address: at }, UnixMillis(0)),
                text
            );
        }
        other => panic!("{other:?}"),
    }
    let (_, finale) = question(&signalling("server", 1));
    let text = signalling("client", 1);
    assert!(matches!(
        read(&objects(&text)[0], answering(finale)),
        Ok(ParsedMessage::Response(RpcResponse::Punching))
    ));
    assert_eq!(answer(finale, RpcResponse::Punching, UnixMillis(0)), text);
}

#[test]
fn exchange_of_the_reference_is_read_and_written_to_the_byte() {
    for (section, caller, responder, stream) in [
        ("nodesCrossSignClaim A->B", "client", "server", 16),
        ("nodesCrossSignClaim B->A", "server", "client", 1),
    ] {
        let [asked, answered] =
            [captured_text(section, caller, stream), captured_text(section, responder, stream)];
        let [request_1, request_2] = &objects(&asked)[..] else { panic!("{asked}") };
        let (ParsedMessage::Exchange { token: token_1, timeout, .. }, format) =
            first(core::str::from_utf8(request_1).unwrap())
        else {
            panic!("{request_1:?}")
        };
        assert_eq!(timeout, None);
        let Ok(ParsedMessage::Token(token_2)) = read(request_2, format) else {
            panic!("{request_2:?}")
        };
        let text = |bytes: &Bytes| core::str::from_utf8(bytes).unwrap().to_owned();
        let (written, ours) = exchange(&text(&token_1), MINUTE);
        assert_eq!(text(&written).replace("60000", "null"), text(request_1));
        assert_eq!(token(ours, &text(&token_2)), request_2);
        let mut results = String::new();
        for object in objects(&answered) {
            let Ok(ParsedMessage::Token(result)) = read(&object, ours) else {
                panic!("{object:?}")
            };
            results.push_str(&text(&token(format, &text(&result))));
        }
        assert_eq!(results, answered);
    }
}

#[test]
fn claims_of_the_reference_are_read_and_written_to_the_byte() {
    let asked_for = captured_text("nodesClaimsGet", "client", 20);
    let (claims, format) = question(&asked_for);
    assert!(matches!(claims, RpcRequest::Claims { after: None, .. }));
    assert_eq!(written_request(&claims, &asked_for), asked_for);
    let answered = captured_text("nodesClaimsGet", "server", 20);
    let mut page = ClaimsPage::default();
    for object in objects(&answered) {
        match read(&object, answering(format)).unwrap() {
            ParsedMessage::Part(Some(RpcResponse::Claims(part))) => page.claims.extend(part.claims),
            other => panic!("{other:?}"),
        }
    }
    // The captured claims are a valid chain, prevDigest included.
    let mut verifier = ChainVerifier::new([node("B")].into());
    for (id, token) in &page.claims {
        let claim = verifier.read(Some(*id), token).unwrap();
        verifier.verify(&claim).unwrap();
    }
    assert_eq!(page.claims.len(), 2);
    assert_eq!(answer(format, RpcResponse::Claims(page), UnixMillis(0)), answered);

    let asked_for = captured_text("nodesClaimNetworkSign", "client", 32);
    let (network, format) = question(&asked_for);
    assert_eq!(written_request(&network, &asked_for), asked_for);
    let answered = captured_text("nodesClaimNetworkSign", "server", 32);
    match read(&objects(&answered)[0], answering(format)).unwrap() {
        ParsedMessage::Response(RpcResponse::SignedClaim(token)) => {
            assert_eq!(answer(format, RpcResponse::SignedClaim(token), UnixMillis(0)), answered);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_of_the_reference_are_read_as_the_matching_failures() {
    let text = captured_text("nodesCrossSignClaim refused by ACL", "client", 12);
    let (_, format) = first(&text);
    let answered = captured_text("nodesCrossSignClaim refused by ACL", "server", 12);
    let failed = read(&objects(&answered)[0], answering(format)).unwrap();
    assert!(
        matches!(failed, ParsedMessage::Failure(RemoteFailure::Refused(Refusal::Denied))),
        "{failed:?}"
    );
    // The error that this node writes has the same members, except for the stack and the message.
    let ours = answer(format, RpcResponse::Refused(Refusal::Denied), UnixMillis(1_795_334_936_519));
    let mut theirs: Value = serde_json::from_str(&answered).unwrap();
    assert!(theirs["error"]["data"]["data"].as_object_mut().unwrap().remove("stack").is_some());
    let ours = core::str::from_utf8(&ours).unwrap().replace(&Refusal::Denied.to_string(), "");
    assert_eq!(serde_json::from_str::<Value>(&ours).unwrap(), theirs);

    let section = "nodesClosestLocalNodesGet with invalid node id";
    let (ParsedMessage::Invalid { why, .. }, _) = first(&captured_text(section, "client", 8))
    else {
        panic!()
    };
    let answered = captured_text(section, "server", 8);
    let failed = read(
        &objects(&answered)[0],
        PolykeyFormat::Call { method: Method::ClosestLocal, ours: true },
    )
    .unwrap();
    assert!(matches!(failed, ParsedMessage::Failure(RemoteFailure::Exception { class, message })
        if class == "ErrorValidation" && message == "Node ID must be multibase base32hex encoded public-keys"));
    let mut theirs: Value = serde_json::from_str(&answered).unwrap();
    assert!(theirs["error"]["data"]["data"].as_object_mut().unwrap().remove("stack").is_some());
    let ours: Value = serde_json::from_slice(&invalid(why, UnixMillis(1_795_334_936_070))).unwrap();
    assert_eq!(ours, theirs);

    let unknown = captured_text("unknown method", "client", 28);
    let object = objects(&unknown).remove(0);
    let Ok(ParsedMessage::Open { protocol, header }) = read(&object, PolykeyFormat::First) else {
        panic!("{unknown}")
    };
    assert_eq!((&protocol[..], header), ("polykey:nodesClaimNetworkVerify", object));
}

#[test]
fn source_and_relay_sign_the_same_bytes_as_the_reference() {
    let vectors = signalling();
    let text = |name: &str| vectors[name].as_str().unwrap().to_owned();
    let id = |name: &str| text(name).parse::<NodeId>().unwrap();
    let signature = |name: &str| {
        let bytes = data_encoding::BASE64URL_NOPAD.decode(text(name).as_bytes()).unwrap();
        Signature(bytes.try_into().unwrap())
    };
    let (source, target, relay) = (id("source"), id("target"), id("relay"));
    let terms = SignalTerms::Plain;
    let signed = request_bytes(&source, &target, &terms);
    assert_eq!(HEXLOWER.encode(&signed), text("requestDataHex"));
    assert!(verify(&source, &signed, &signature("requestSignature").0).is_ok());
    let request = SignalRequest { target, terms, signature: signature("requestSignature") };
    let at = address("127.0.0.1:55555");
    assert_eq!(address_text(&terms, &at), text("addressJson"));
    let signed = relay_bytes(&source, &text("addressJson"), &request);
    assert_eq!(HEXLOWER.encode(&signed), text("relayDataHex"));
    assert!(verify(&relay, &signed, &signature("relaySignature").0).is_ok());

    for (params, question) in [
        ("nodesConnectionSignalInitialParams", RpcRequest::Signal(request.clone())),
        (
            "nodesConnectionSignalFinalParams",
            RpcRequest::Punch(alloc::boxed::Box::new(PunchRequest {
                source,
                address: at,
                address_text: text("addressJson"),
                request,
                relay_signature: signature("relaySignature"),
            })),
        ),
    ] {
        let (_, calls) = encode_call(&question, MINUTE);
        let mut written: Value = serde_json::from_slice(&calls[0].0).unwrap();
        let written = written["params"].as_object_mut().unwrap();
        assert!(written.remove("metadata").is_some());
        assert_eq!(Value::Object(written.clone()), vectors[params]);
    }
}

#[test]
fn mapped_address_is_signed_as_received_and_used_in_canonical_form() {
    let signature = Signature([7; 64]);
    let text = r#"{"host":"::ffff:127.0.0.1","port":55555}"#;
    let request = SignalRequest { target: node("C"), terms: SignalTerms::Plain, signature };
    let at = address("127.0.0.1:55555");
    let punch = PunchRequest {
        source: node("A"),
        address: at.clone(),
        address_text: text.to_owned(),
        request: request.clone(),
        relay_signature: signature,
    };
    let (_, calls) = encode_call(&RpcRequest::Punch(alloc::boxed::Box::new(punch.clone())), MINUTE);
    let (read, _) = question(core::str::from_utf8(&calls[0].0).unwrap());
    assert_eq!(read, RpcRequest::Punch(alloc::boxed::Box::new(punch)));
    let bytes = relay_bytes(&node("A"), text, &request);
    assert!(bytes.windows(text.len()).any(|window| window == text.as_bytes()));
    assert_ne!(bytes, relay_bytes(&node("A"), &address_text(&SignalTerms::Plain, &at), &request));
}
