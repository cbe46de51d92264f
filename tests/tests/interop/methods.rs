//! Methods beyond the node layer (vaults, notifications): the embedder serves them and calls them,
//! on raw streams.

use pk_driver::{Node, Stream, unix_now};
use pk_interop::Polykey;
use pk_proto::polykey::{
    self, MAX_FIRST_OBJECT, MAX_OBJECT, ObjectDecoder, PREFIX, RemoteError, Response,
    parse_request, parse_response,
};
use pk_proto::{NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{shutdown, start};
use pk_tests::wait::{soon, spawn};
use serde_json::json;

use crate::kit::{ask, ask_expecting_error, dial, polykey_node};

cases!(
    polykey_node_calls_methods_of_the_embedder,
    embedder_calls_methods_of_a_polykey_node,
    unserved_method_returns_an_error_of_the_reference,
);

/// The first object of a stream, and what was read behind it.
async fn first(stream: &mut Stream) -> (Vec<u8>, Vec<u8>) {
    let mut decoder = ObjectDecoder::new(MAX_FIRST_OBJECT, MAX_OBJECT);
    loop {
        if let Some(object) = decoder.next().unwrap() {
            return (object.to_vec(), decoder.into_unread().to_vec());
        }
        let chunk =
            stream.read_chunk(decoder.wanted()).await.unwrap().expect("the stream has an object");
        decoder.push(&chunk);
    }
}

/// Serves a method: `with` receives the parameters, and its output is written before the end.
async fn serve<R: Rt>(
    runtime: &R,
    node: &Node<R>,
    method: &'static str,
    with: impl Fn(&str) -> Vec<u8> + Send + 'static,
) {
    let mut acceptor = node.accept_streams(format!("{PREFIX}{method}")).await.unwrap();
    drop(spawn(runtime, async move {
        while let Some(mut stream) = acceptor.accept().await {
            let (object, _) = first(&mut stream).await;
            let request = parse_request(&object).unwrap();
            assert_eq!(request.method, method);
            stream.write_all(&with(request.params)).await.unwrap();
            stream.finish_and_wait().await.ok();
        }
    }));
}

async fn polykey_node_calls_methods_of_the_embedder<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dial(&runtime, &ours, &peer).await;
    let via = ours.own_id();
    // Several results.
    let vault = |n: u32| json!({ "vaultIdEncoded": format!("v{n}"), "vaultName": "x", "vaultPermissions": ["clone"] });
    serve(&runtime, &ours, "vaultsScan", move |_| {
        (0..300).flat_map(|n| polykey::write_result(&vault(n).to_string())).collect()
    })
    .await;
    let scan = json!({ "via": via, "method": "vaultsScan", "params": {} });
    let scanned = ask(&runtime, &peer, "stream", scan).await;
    assert_eq!(scanned, (0..300).map(vault).collect::<serde_json::Value>());
    // One result, made of the parameters; and an error.
    serve(&runtime, &ours, "notificationsSend", |params| {
        let params: serde_json::Value = serde_json::from_str(params).unwrap();
        if params["signedNotificationEncoded"] == json!("good") {
            return polykey::write_result("{}").to_vec();
        }
        let error = RemoteError {
            class: "ErrorNodePermissionDenied".to_owned(),
            message: "not you".to_owned(),
        };
        polykey::write_error(&error, "Permission denied", 77, unix_now()).to_vec()
    })
    .await;
    let send = |what: &str| {
        let params = json!({ "signedNotificationEncoded": what });
        json!({ "via": via, "method": "notificationsSend", "params": params })
    };
    assert_eq!(ask(&runtime, &peer, "unary", send("good")).await, json!({}));
    let error = ask_expecting_error(&runtime, &peer, "unary", send("bad")).await;
    assert_eq!(
        error.find("ErrorNodePermissionDenied").map(|error| &*error.message),
        Some("not you"),
        "{error}"
    );
    // One result, and then bytes in both directions: an echo.
    let mut acceptor = ours.accept_streams(format!("{PREFIX}vaultsGitInfoGet")).await.unwrap();
    let echo = spawn(&runtime, async move {
        let mut stream = acceptor.accept().await.unwrap();
        let (_, mut bytes) = first(&mut stream).await;
        stream.write_all(&polykey::write_result("{\"vaultName\":\"x\"}")).await.unwrap();
        while let Some(chunk) = stream.read_chunk(4096).await.unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        stream.write_all(&bytes).await.unwrap();
        stream.finish_and_wait().await.unwrap();
    });
    let text = "0123456789".repeat(10_000);
    let params = json!({ "vaultNameOrId": "x", "action": "clone" });
    let with = json!({ "via": via, "method": "vaultsGitInfoGet", "params": params, "send": text });
    let answer = ask(&runtime, &peer, "raw", with).await;
    assert_eq!((&answer["result"], &answer["bytes"]), (&json!({ "vaultName": "x" }), &json!(text)));
    echo.join(&runtime, "the echo").await;
    assert_eq!(ours.connections().await.unwrap().len(), 1);
    shutdown(&runtime, &[&ours]).await;
}

/// Calls a method of a Polykey node and reads the whole answer.
async fn call<R: Rt>(
    runtime: &R,
    ours: &Node<R>,
    to: NodeId,
    method: &str,
    params: &str,
) -> Vec<String> {
    let stream = ours.open_stream(to, format!("{PREFIX}{method}"), RequestOptions::default());
    let mut stream = soon(runtime, "open", stream).await.unwrap();
    stream.write_all(&polykey::write_request(method, params, None)).await.unwrap();
    stream.finish().unwrap();
    let Ok(bytes) = soon(runtime, method, stream.read_to_end(1 << 20)).await else {
        return vec!["reset".to_owned()];
    };
    let mut decoder = ObjectDecoder::new(MAX_FIRST_OBJECT, MAX_FIRST_OBJECT);
    decoder.push(&bytes);
    let mut responses = Vec::new();
    while let Some(object) = decoder.next().unwrap() {
        responses.push(match parse_response(&object).unwrap() {
            Response::Result(result) => result.to_owned(),
            Response::Error(error) => error.class,
        });
    }
    responses
}

async fn embedder_calls_methods_of_a_polykey_node<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dial(&runtime, &ours, &peer).await;
    let to = peer.node_id();
    assert_eq!(call(&runtime, &ours, to, "vaultsScan", "{}").await, [""; 0], "it has no vaults");
    let refused =
        call(&runtime, &ours, to, "notificationsSend", "{\"signedNotificationEncoded\":\"x\"}")
            .await;
    println!("{}: {refused:?}", R::NAME);
    assert!(matches!(&refused[..], [class] if class.ends_with("Error")), "{refused:?}");
    assert_eq!(call(&runtime, &ours, to, "nothingOfTheKind", "{}").await, ["reset"]);
    assert_eq!(ours.connections().await.unwrap().len(), 1);
    shutdown(&runtime, &[&ours]).await;
}

/// The local node returns the errors of a node that shares nothing, by the classes of the
/// reference, for any number of calls.
async fn unserved_method_returns_an_error_of_the_reference<R: Rt>(runtime: R, polykey: Polykey) {
    let (peer, ours) = (polykey_node(&runtime, &polykey).await, start(&runtime, 1).await);
    dial(&runtime, &ours, &peer).await;
    let denied = format!("No permissions found for {}", peer.node_id());
    let calls = [
        ("stream", "vaultsScan", json!({}), "ErrorVaultsPermissionDenied", &*denied),
        (
            "raw",
            "vaultsGitInfoGet",
            json!({ "vaultNameOrId": "x", "action": "clone" }),
            "ErrorVaultsVaultUndefined",
            "",
        ),
        (
            "raw",
            "vaultsGitPackGet",
            json!({ "nameOrId": "x", "vaultAction": "clone" }),
            "ErrorVaultsVaultUndefined",
            "",
        ),
        (
            "unary",
            "notificationsSend",
            json!({ "signedNotificationEncoded": "x" }),
            "ErrorNotificationsPermissionsNotFound",
            "",
        ),
    ];
    for _ in 0..8 {
        for (kind, method, params, class, message) in &calls {
            let with =
                json!({ "via": ours.own_id(), "method": method, "params": params, "send": "0000" });
            let error = ask_expecting_error(&runtime, &peer, kind, with).await;
            let found = error.find(class).unwrap_or_else(|| panic!("{method}: {error}"));
            assert_eq!(found.message, *message, "{method}: {error}");
        }
    }
    assert_eq!(ours.connections().await.unwrap().len(), 1);
    assert_eq!(ours.metrics().await.unwrap().stream_faults, 0);
    shutdown(&runtime, &[&ours]).await;
}
