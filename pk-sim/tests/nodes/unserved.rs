//! Calls of a Polykey 1.x node that the local node does not serve, or not in time: they receive an
//! error that the node can show to its user, and never a reset, which it shows as `[object
//! Object]`. In virtual time.

use pk_proto::claims::ClaimPolicy;
use pk_proto::polykey::{
    ObjectDecoder, RemoteError, Response, parse_response, write_further, write_request,
};
use pk_proto::{ConnectionId, Event, Input, Output, StreamId};
use pk_sim::Key;

use crate::common::chains::link;
use crate::common::{Bare, SECOND, sent};

const METHODS: [(&str, &str, &str); 4] = [
    ("vaultsScan", "{}", "ErrorVaultsPermissionDenied"),
    ("vaultsGitInfoGet", r#"{"vaultNameOrId":"x","action":"clone"}"#, "ErrorVaultsVaultUndefined"),
    ("vaultsGitPackGet", r#"{"nameOrId":"x","vaultAction":"pull"}"#, "ErrorVaultsVaultUndefined"),
    (
        "notificationsSend",
        r#"{"signedNotificationEncoded":"a.b.c"}"#,
        "ErrorNotificationsPermissionsNotFound",
    ),
];

/// The only error of an answer, after which the node has ended its side and neither reset nor
/// stopped the other one.
#[track_caller]
fn error(outputs: &[Output], stream: StreamId) -> RemoteError {
    let (bytes, fin) = sent(outputs, stream);
    assert!(fin, "{outputs:?}");
    let ended =
        |output: &&Output| matches!(output, Output::ResetStream { .. } | Output::StopStream { .. });
    assert_eq!(outputs.iter().find(ended), None);
    let mut decoder = ObjectDecoder::new(1 << 20, 1 << 20);
    decoder.push(&bytes);
    let object = decoder.next().unwrap().unwrap();
    assert_eq!(decoder.buffered(), 0);
    match parse_response(&object) {
        Ok(Response::Error(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// The transport has accepted all sent bytes, and the peer ends its side.
fn end(bare: &mut Bare, outputs: &[Output], stream: StreamId) {
    let bytes = sent(outputs, stream).0.len() as u64;
    bare.input(Input::StreamWritten { stream, bytes });
    bare.data(stream, b"", true);
    assert_eq!(bare.node.metrics().streams, 0);
}

fn assert_no_fault(bare: &mut Bare, conn: ConnectionId) {
    let outputs = bare.take();
    let fault = |output: &&Output| {
        matches!(
            output,
            Output::Event(Event::PeerMisbehaved { .. }) | Output::CloseConnection { .. }
        )
    };
    assert_eq!(outputs.iter().find(fault), None);
    let metrics = bare.node.metrics();
    assert_eq!(
        (metrics.stream_faults, metrics.claim_faults, metrics.connections),
        (0, 0, 1),
        "{conn:?}"
    );
}

/// A Polykey node sends these calls as often as its user wants.
#[test]
fn calls_for_vaults_and_notifications_return_the_errors_of_a_node_without_them() {
    for (method, params, class) in METHODS {
        let mut bare = Bare::new(|_| {});
        let conn = bare.accept_polykey(Bare::peer(0));
        for _ in 0..20 {
            let stream = bare.opened(conn);
            bare.feed(stream, &write_request(method, params, None), false);
            let outputs = bare.take();
            let error = error(&outputs, stream);
            assert_eq!(error.class, class, "{method}");
            let message = match method {
                "vaultsScan" => format!("No permissions found for {}", Bare::peer(0)),
                _ => String::new(),
            };
            assert_eq!(error.message, message, "{method}");
            end(&mut bare, &outputs, stream);
            // As often as users do.
            bare.pass(2 * SECOND);
        }
        assert_no_fault(&mut bare, conn);
        assert_eq!(bare.node.metrics().unsupported, 20);
    }
}

/// Bytes after the header of a raw call are not read, and use no more than the credit of a stream.
#[test]
fn bytes_after_the_header_of_a_raw_call_are_not_read() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    let stream = bare.opened(conn);
    let (method, params, class) = METHODS[2];
    let bytes = [&write_request(method, params, None)[..], &[0; 1 << 20]].concat();
    let left = bare.feed(stream, &bytes, true).len();
    assert!(left > 1 << 19, "{left}");
    assert!(bare.node.metrics().receive_bytes <= 256 * 1024);
    let outputs = bare.take();
    assert_eq!(error(&outputs, stream).class, class);
    end(&mut bare, &outputs, stream);
    assert_no_fault(&mut bare, conn);
}

#[test]
fn parameters_of_another_form_are_an_error_and_unknown_methods_are_reset() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    let stream = bare.opened(conn);
    bare.feed(stream, &write_request("vaultsGitInfoGet", r#"{"vaultNameOrId":[1]}"#, None), false);
    assert_eq!(error(&bare.take(), stream).class, "ErrorValidation");
    // Polykey 1.15.1 resets unknown methods in the same way.
    for method in ["nodesClaimNetworkVerify", "nodesAuditEventsGet", "nodesAuthenticateConnection"]
    {
        let stream = bare.opened(conn);
        bare.feed(stream, &write_request(method, "{}", None), false);
        let outputs = bare.take();
        assert!(
            outputs.contains(&Output::ResetStream { stream, code: 1 }),
            "{method}: {outputs:?}"
        );
        assert!(outputs.contains(&Output::StopStream { stream, code: 1 }), "{method}: {outputs:?}");
    }
}

/// A store that does not answer.
#[test]
fn unanswered_request_returns_an_error_at_its_timeout() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(0));
    let stream = bare.opened(conn);
    bare.feed(stream, &write_request("nodesClaimsGet", r#"{"claimIdEncoded":""}"#, None), true);
    bare.pass(16 * SECOND);
    let error = error(&bare.take(), stream);
    assert_eq!(
        (&*error.class, &*error.message),
        ("ErrorNodeConnectionManagerRequestRateExceeded", "busy")
    );
}

/// A peer that waits for a signature of the local node, which is not made.
#[test]
fn unanswered_exchange_returns_an_error_at_its_timeout() {
    let mut bare = Bare::new(|config| config.claim_policy = ClaimPolicy::All);
    let peer = Key::numbered(77, 1);
    let conn = bare.accept_polykey(peer.id());
    let stream = bare.opened(conn);
    let claim = link(&peer, &Key::numbered(77, 0), None);
    let mut token = claim.token().encoded();
    token.signatures.truncate(1);
    let token = pk_proto::claims::SignedToken::try_from(&token).unwrap().to_json();
    let params = format!("{{\"signedTokenEncoded\":{token}}}");
    bare.feed(stream, &write_request("nodesCrossSignClaim", &params, None), false);
    let load = bare.take().into_iter().find_map(|output| match output {
        Output::Load { id, .. } => Some(id),
        _ => None,
    });
    bare.input(Input::Loaded { id: load.unwrap(), result: Ok((vec![], false)) });
    assert!(bare.take().iter().any(|output| matches!(output, Output::Sign { .. })));
    bare.pass(16 * SECOND);
    let outputs = bare.take();
    assert_eq!(error(&outputs, stream).message, "busy");
    assert_eq!(bare.node.metrics().exchanges, 0);
    // Its further bytes are not read.
    bare.feed(stream, &write_further("nodesCrossSignClaim", &params), false);
    end(&mut bare, &outputs, stream);
    assert_no_fault(&mut bare, conn);
}
