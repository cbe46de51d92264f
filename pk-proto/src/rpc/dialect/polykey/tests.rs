//! What real nodes said to each other (`wire_capture.json`), and what they signed (`signalling.json`).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde_json::Value;

use super::*;
use crate::claims::ChainVerifier;
use crate::id::NodeId;
use crate::io::Signature;
use crate::request::{ActiveConnection, ActiveNode, Closest, ClosestLists};
use crate::rpc::codec::{self, Said};
use crate::rpc::{Answer, ClaimsPage, PunchRequest, Question, Refusal, SignalRequest, SignalTerms};
use crate::signal::{address_text, relay_bytes, request_bytes};
use crate::signature::verify;
use crate::time::UnixMillis;
use crate::{Failure, NodeAddress};

const MINUTE: Duration = Duration::from_secs(60);

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn capture() -> Value {
    vectors(include_str!("../../../../tests/vectors/wire_capture.json"))
}

fn signalling() -> Value {
    vectors(include_str!("../../../../tests/vectors/signalling.json"))
}

/// What one side of a section has written on one of its streams, in its order; `client` dialled.
fn said(section: &str, conn: &str, stream: u64) -> String {
    let capture = capture();
    let sections = capture["sections"].as_array().unwrap();
    let section = sections.iter().find(|it| it["name"].as_str().unwrap().starts_with(section)).unwrap();
    let chunks = section["wire"].as_array().unwrap().iter();
    let written = chunks.filter(|chunk| chunk["dir"] == "out" && chunk["conn"] == conn && chunk["stream"] == stream);
    written.map(|chunk| chunk["bytes"].as_str().unwrap()).collect()
}

fn objects(text: &str) -> Vec<Bytes> {
    let mut decoder = ObjectDecoder::new(MAX_FIRST_OBJECT, MAX_OBJECT);
    decoder.push(text.as_bytes());
    let objects: Vec<_> = core::iter::from_fn(|| decoder.next().unwrap()).collect();
    assert_eq!(decoder.buffered(), 0);
    objects
}

/// The one message of a caller, as it is read.
fn first(text: &str) -> (Said, Form) {
    let [object] = &objects(text)[..] else { panic!("{text}") };
    let said = read(object, Form::First).unwrap();
    let form = match &said {
        Said::Call { form, .. } | Said::Exchange { form, .. } | Said::Invalid { form, .. } => *form,
        other => panic!("{other:?}"),
    };
    let codec::Form::Polykey(form) = form else { panic!("{form:?}") };
    (said, form)
}

fn question(text: &str) -> (Question, Form) {
    match first(text) {
        (Said::Call { question, .. }, form) => (question, form),
        other => panic!("{other:?}"),
    }
}

/// How what a peer answers to this is read.
fn answering(form: Form) -> Form {
    match form {
        Form::Call { method, .. } => Form::Call { method, ours: true },
        form => form,
    }
}

/// What we write to ask this: of the timeout, which is ours, as was captured.
fn asked(question: &Question, captured: &str) -> String {
    let (_, calls) = calls(question, MINUTE);
    let [(bytes, _)] = &calls[..] else { panic!("{calls:?}") };
    let timeout = if captured.contains("\"timeout\":null") { "null" } else { "15000" };
    String::from_utf8(bytes.to_vec()).unwrap().replace("\"timeout\":60000", &format!("\"timeout\":{timeout}"))
}

fn node(letter: &str) -> NodeId {
    capture()[letter].as_str().unwrap().parse().unwrap()
}

fn address(text: &str) -> NodeAddress {
    text.parse().unwrap()
}

#[test]
fn the_questions_of_the_reference_are_read_and_written_to_the_byte() {
    let closest = |local, active| Question::Closest { target: node("A"), lists: ClosestLists { local, active } };
    for (section, stream, expected) in [
        ("nodesClosestLocalNodesGet", 0, closest(true, false)),
        ("nodesClosestActiveConnectionsGet", 4, closest(false, true)),
    ] {
        let text = said(section, "client", stream);
        assert_eq!(question(&text).0, expected);
        assert_eq!(asked(&expected, &text), text);
    }
    for (conn, stream) in [("client", 24), ("server", 1)] {
        let text = said("nodesConnectionSignalInitial/Final", conn, stream);
        let text = objects(&text).first().map(|object| String::from_utf8(object.to_vec()).unwrap()).unwrap();
        let (question, _) = question(&text);
        assert_eq!(asked(&question, &text), text);
        match question {
            Question::Signal(signal) => {
                assert_eq!((signal.target, signal.terms), (node("C"), SignalTerms::Plain));
                let bytes = request_bytes(&node("A"), &signal.target, &signal.terms);
                assert!(verify(&node("A"), &bytes, &signal.signature.0).is_ok());
            }
            Question::Punch(punch) => {
                let PunchRequest { source, address: at, address_text: text, request, relay_signature } = *punch;
                assert_eq!((source, request.target, at.clone()), (node("A"), node("C"), address("127.0.0.1:60918")));
                assert_eq!(text, address_text(&SignalTerms::Plain, &at));
                let bytes = relay_bytes(&source, &text, &request);
                assert!(verify(&node("B"), &bytes, &relay_signature.0).is_ok());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_answers_of_the_reference_are_read_and_written_to_the_byte() {
    // No answers: no bytes.
    let (_, form) = question(&said("nodesClosestLocalNodesGet", "client", 0));
    assert_eq!(said("nodesClosestLocalNodesGet", "server", 0), "");
    assert_eq!(answer(form, Answer::Closest(Closest::default()), UnixMillis(0)), "");

    let (_, form) = question(&said("nodesClosestActiveConnectionsGet", "client", 4));
    let text = said("nodesClosestActiveConnectionsGet", "server", 4);
    let mut closest = Closest::default();
    for object in objects(&text) {
        match read(&object, answering(form)).unwrap() {
            Said::Part(Some(Answer::Closest(part))) => closest.active.extend(part.active),
            other => panic!("{other:?}"),
        }
    }
    let connection = |id: &str, at, idle_in_ms| ActiveConnection {
        shared_id: id.to_owned().into(),
        address: address(at),
        primary: true,
        idle_in_ms,
    };
    let [a, c] = &closest.active[..] else { panic!("{closest:?}") };
    let id = "RoupehCr-j9zfWH85ljEGknUqVBdawD3opzP29IvWaVfsRABBEkx1Q";
    assert_eq!(*a, ActiveNode { node: node("A"), connections: [connection(id, "127.0.0.1:60918", None)].into() });
    let id = "W2jxlCLNauytTR9hyIh8WMeiWfO4Mc908kI3SMOMI3oMw-Wo8lAMzg";
    assert_eq!(
        *c,
        ActiveNode { node: node("C"), connections: [connection(id, "127.0.0.1:41940", Some(87_743))].into() }
    );
    assert_eq!(answer(form, Answer::Closest(closest), UnixMillis(0)), text);
    // To a ping, all of this says no more than that it is there.
    for object in objects(&text) {
        assert!(matches!(read(&object, Form::Alive), Ok(Said::Part(None))));
    }

    let signalling = |conn, stream| said("nodesConnectionSignalInitial/Final", conn, stream);
    let (_, initial) = question(&signalling("client", 24));
    let text = signalling("server", 24);
    match read(&objects(&text)[0], answering(initial)).unwrap() {
        Said::Answer(Answer::Signalled { address: at }) => {
            assert_eq!(at, address("127.0.0.1:41940"));
            assert_eq!(answer(initial, Answer::Signalled { address: at }, UnixMillis(0)), text);
        }
        other => panic!("{other:?}"),
    }
    let (_, finale) = question(&signalling("server", 1));
    let text = signalling("client", 1);
    assert!(matches!(read(&objects(&text)[0], answering(finale)), Ok(Said::Answer(Answer::Punching))));
    assert_eq!(answer(finale, Answer::Punching, UnixMillis(0)), text);
}

#[test]
fn the_exchange_of_the_reference_is_read_and_written_to_the_byte() {
    for (section, caller, responder, stream) in
        [("nodesCrossSignClaim A->B", "client", "server", 16), ("nodesCrossSignClaim B->A", "server", "client", 1)]
    {
        let [asked, answered] = [said(section, caller, stream), said(section, responder, stream)];
        let [request_1, request_2] = &objects(&asked)[..] else { panic!("{asked}") };
        let (Said::Exchange { token: token_1, timeout, .. }, form) = first(core::str::from_utf8(request_1).unwrap())
        else {
            panic!("{request_1:?}")
        };
        assert_eq!(timeout, None);
        let Ok(Said::Token(token_2)) = read(request_2, form) else { panic!("{request_2:?}") };
        let text = |bytes: &Bytes| core::str::from_utf8(bytes).unwrap().to_owned();
        let (written, ours) = exchange(&text(&token_1), MINUTE);
        assert_eq!(text(&written).replace("60000", "null"), text(request_1));
        assert_eq!(token(ours, &text(&token_2)), request_2);
        let mut results = String::new();
        for object in objects(&answered) {
            let Ok(Said::Token(result)) = read(&object, ours) else { panic!("{object:?}") };
            results.push_str(&text(&token(form, &text(&result))));
        }
        assert_eq!(results, answered);
    }
}

#[test]
fn the_claims_of_the_reference_are_read_and_written_to_the_byte() {
    let asked_for = said("nodesClaimsGet", "client", 20);
    let (claims, form) = question(&asked_for);
    assert!(matches!(claims, Question::Claims { after: None, .. }));
    assert_eq!(asked(&claims, &asked_for), asked_for);
    let answered = said("nodesClaimsGet", "server", 20);
    let mut page = ClaimsPage::default();
    for object in objects(&answered) {
        match read(&object, answering(form)).unwrap() {
            Said::Part(Some(Answer::Claims(part))) => page.claims.extend(part.claims),
            other => panic!("{other:?}"),
        }
    }
    // What was told is a chain that verifies, prevDigest included.
    let mut verifier = ChainVerifier::new([node("B")].into());
    for (id, token) in &page.claims {
        let claim = verifier.read(Some(*id), token).unwrap();
        verifier.verify(&claim).unwrap();
    }
    assert_eq!(page.claims.len(), 2);
    assert_eq!(answer(form, Answer::Claims(page), UnixMillis(0)), answered);

    let asked_for = said("nodesClaimNetworkSign", "client", 32);
    let (network, form) = question(&asked_for);
    assert_eq!(asked(&network, &asked_for), asked_for);
    let answered = said("nodesClaimNetworkSign", "server", 32);
    match read(&objects(&answered)[0], answering(form)).unwrap() {
        Said::Answer(Answer::SignedClaim(token)) => {
            assert_eq!(answer(form, Answer::SignedClaim(token), UnixMillis(0)), answered);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_errors_of_the_reference_mean_what_they_say() {
    let text = said("nodesCrossSignClaim refused by ACL", "client", 12);
    let (_, form) = first(&text);
    let answered = said("nodesCrossSignClaim refused by ACL", "server", 12);
    let failed = read(&objects(&answered)[0], answering(form)).unwrap();
    assert!(matches!(failed, Said::Failed(Failure::Refused(Refusal::Denied))), "{failed:?}");
    // What we say in its place has the very members, but for the stack and what we say.
    let ours = answer(form, Answer::Refused(Refusal::Denied), UnixMillis(1_795_334_936_519));
    let mut theirs: Value = serde_json::from_str(&answered).unwrap();
    assert!(theirs["error"]["data"]["data"].as_object_mut().unwrap().remove("stack").is_some());
    let ours = core::str::from_utf8(&ours).unwrap().replace(&Refusal::Denied.to_string(), "");
    assert_eq!(serde_json::from_str::<Value>(&ours).unwrap(), theirs);

    let section = "nodesClosestLocalNodesGet with invalid node id";
    let (Said::Invalid { why, .. }, _) = first(&said(section, "client", 8)) else { panic!() };
    let answered = said(section, "server", 8);
    let failed = read(&objects(&answered)[0], Form::Call { method: Method::ClosestLocal, ours: true }).unwrap();
    assert!(matches!(failed, Said::Failed(Failure::Remote { class, message })
        if class == "ErrorValidation" && message == "Node ID must be multibase base32hex encoded public-keys"));
    let mut theirs: Value = serde_json::from_str(&answered).unwrap();
    assert!(theirs["error"]["data"]["data"].as_object_mut().unwrap().remove("stack").is_some());
    let ours: Value = serde_json::from_slice(&invalid(why, UnixMillis(1_795_334_936_070))).unwrap();
    assert_eq!(ours, theirs);

    let unknown = said("unknown method", "client", 28);
    let object = objects(&unknown).remove(0);
    let Ok(Said::Open { protocol, header }) = read(&object, Form::First) else { panic!("{unknown}") };
    assert_eq!((&protocol[..], header), ("polykey:nodesClaimNetworkVerify", object));
}

#[test]
fn what_source_and_relay_sign_is_what_the_reference_signs() {
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
        ("nodesConnectionSignalInitialParams", Question::Signal(request.clone())),
        (
            "nodesConnectionSignalFinalParams",
            Question::Punch(alloc::boxed::Box::new(PunchRequest {
                source,
                address: at,
                address_text: text("addressJson"),
                request,
                relay_signature: signature("relaySignature"),
            })),
        ),
    ] {
        let (_, calls) = calls(&question, MINUTE);
        let mut written: Value = serde_json::from_slice(&calls[0].0).unwrap();
        let written = written["params"].as_object_mut().unwrap();
        assert!(written.remove("metadata").is_some());
        assert_eq!(Value::Object(written.clone()), vectors[params]);
    }
}

#[test]
fn a_mapped_address_is_signed_as_it_was_told_and_used_as_what_it_is() {
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
    let (_, calls) = calls(&Question::Punch(alloc::boxed::Box::new(punch.clone())), MINUTE);
    let (read, _) = question(core::str::from_utf8(&calls[0].0).unwrap());
    assert_eq!(read, Question::Punch(alloc::boxed::Box::new(punch)));
    let bytes = relay_bytes(&node("A"), text, &request);
    assert!(bytes.windows(text.len()).any(|window| window == text.as_bytes()));
    assert_ne!(bytes, relay_bytes(&node("A"), &address_text(&SignalTerms::Plain, &at), &request));
}
