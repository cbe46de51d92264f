//! Helpers of the cases: nodes of the reference and local nodes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use pk_driver::{Node, Runtime};
use pk_interop::{Peer, PeerError, Polykey, RemoteError, Settings, for_tests};
use pk_proto::{ConnectionInfo, NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::case::{alone, run_within};
use pk_tests::node::{connections_with, socket};
use pk_tests::wait::{soon, until, within};
use serde_json::{Value, json};

/// Maximum duration of a case, unless the case sets another.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// Limit for operations of the reference: it starts slowly, and its failing dials take 15 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Declares tests as `pk_tests::cases` does, of cases that take the reference too. `alone`: one of
/// these cases runs at a time.
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        $(cases!(@case run, $name);)+
    };
    (alone $($name:ident),+ $(,)?) => {
        $(cases!(@case run_alone, $name);)+
    };
    (@case $run:ident, $name:ident) => {
        mod $name {
            use $crate::kit::{LIMIT, $run};

            #[test]
            fn tokio() {
                $run(LIMIT, stringify!($name), super::$name::<pk_tests::Tokio>);
            }

            #[test]
            fn smol() {
                $run(LIMIT, stringify!($name), super::$name::<pk_tests::Smol>);
            }
        }
    };
}

/// Declares tests that run on one runtime only, since they take long.
macro_rules! long_cases {
    ($($name:ident within $limit:expr),+ $(,)?) => {
        $(mod $name {
            use super::*;

            #[test]
            fn tokio() {
                $crate::kit::run($limit, stringify!($name), super::$name::<pk_tests::Tokio>);
            }
        })+
    };
}

/// Runs a case in a slot, if the reference is available.
pub(crate) fn run<R: Rt, F: Future<Output = ()> + 'static>(
    limit: Duration,
    name: &str,
    case: fn(R, Polykey) -> F,
) {
    if let Some(polykey) = polykey() {
        let polykey = polykey.clone();
        run_within(limit, name, move |runtime| case(runtime, polykey));
    }
}

/// Runs a case as `run` does, but beside no other one that is run so.
pub(crate) fn run_alone<R: Rt, F: Future<Output = ()> + 'static>(
    limit: Duration,
    name: &str,
    case: fn(R, Polykey) -> F,
) {
    let _alone = alone();
    run(limit, name, case);
}

/// Directory of the reference, which is installed once for this target directory.
pub(crate) fn package() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("pk-interop")
}

fn polykey() -> Option<&'static Polykey> {
    static POLYKEY: OnceLock<Option<Polykey>> = OnceLock::new();
    POLYKEY.get_or_init(|| for_tests(package())).as_ref()
}

/// Starts a node of the reference.
pub(crate) async fn start_polykey<R: Runtime>(
    runtime: &R,
    polykey: &Polykey,
    settings: Settings,
) -> Peer {
    let peer =
        within(runtime, PATIENCE, "the start of a Polykey node", polykey.start(settings)).await;
    peer.unwrap_or_else(|error| panic!("{error}"))
}

/// Starts a node of the reference with the defaults.
pub(crate) async fn polykey_node<R: Runtime>(runtime: &R, polykey: &Polykey) -> Peer {
    start_polykey(runtime, polykey, Settings::default()).await
}

/// Sends a command to a node of the reference. Returns its result.
pub(crate) async fn ask<R: Runtime>(runtime: &R, peer: &Peer, what: &str, with: Value) -> Value {
    let said = format!("{what} {with}");
    let answer = within(runtime, PATIENCE, &said, peer.ask(what, with)).await;
    answer.unwrap_or_else(|error| panic!("{said}: {error}"))
}

/// Sends a command to a node of the reference, which must fail. Returns its error.
pub(crate) async fn ask_expecting_error<R: Runtime>(
    runtime: &R,
    peer: &Peer,
    what: &str,
    with: Value,
) -> RemoteError {
    let said = format!("{what} {with}");
    match within(runtime, PATIENCE, &said, peer.ask(what, with)).await {
        Err(PeerError::Threw(error)) => error,
        other => panic!("{said}: {other:?}"),
    }
}

/// The local node dials a Polykey node.
pub(crate) async fn dial<R: Runtime>(runtime: &R, ours: &Node<R>, theirs: &Peer) -> ConnectionInfo {
    let connected =
        ours.connect(theirs.node_id(), theirs.seed().address, RequestOptions::default());
    let connected = soon(runtime, "we dial a Polykey node", connected).await;
    let connected = connected.unwrap_or_else(|error| panic!("we do not connect: {error}"));
    knows(runtime, theirs, ours.own_id()).await;
    connected
}

/// A Polykey node dials the local node. Returns its id of the connection.
pub(crate) async fn dialed<R: Runtime>(runtime: &R, theirs: &Peer, ours: &Node<R>) -> String {
    let connected = ask(runtime, theirs, "connect", target(ours.own_id(), reached(ours))).await;
    assert_eq!(text(&connected, "nodeId"), ours.own_id().to_string());
    let name = text(&connected, "connectionId").to_owned();
    // By the certificate chain, since the Polykey node may have renewed its key.
    until(runtime, "we have it too", async || {
        let all = ours.connections().await.unwrap_or_default();
        all.iter().any(|connection| connection.shared_id == name)
    })
    .await;
    name
}

/// One Polykey node dials another.
pub(crate) async fn introduce<R: Runtime>(runtime: &R, from: &Peer, to: &Peer) {
    ask(runtime, from, "connect", target(to.node_id(), to.reached())).await;
    knows(runtime, to, from.node_id()).await;
}

/// Waits until the Polykey node has a connection, and the node in its graph: it verifies the dialer
/// after the handshake.
async fn knows<R: Runtime>(runtime: &R, theirs: &Peer, node: NodeId) {
    until(runtime, "they have it too", async || {
        !polykey_connections(runtime, theirs, node).await.is_empty()
            && ask(runtime, theirs, "graph", json!({})).await.get(node.to_string()).is_some()
    })
    .await;
}

/// The IPv4 address of a local node on this machine.
pub(crate) fn reached<R>(node: &Node<R>) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], socket(node).port()))
}

/// A node and its address as arguments of a command.
pub(crate) fn target(node: NodeId, addr: SocketAddr) -> Value {
    json!({ "nodeId": node, "host": addr.ip(), "port": addr.port() })
}

/// A text in a result of a Polykey node.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// A list in a result of a Polykey node.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

/// The connections of a Polykey node with a node: their ids, and whether each is primary.
pub(crate) async fn polykey_connections<R: Runtime>(
    runtime: &R,
    peer: &Peer,
    node: NodeId,
) -> Vec<(String, bool)> {
    let all = ask(runtime, peer, "connections", json!({})).await;
    let with = list(&all).iter().filter(|one| text(one, "nodeId") == node.to_string());
    let mut with: Vec<_> = with
        .map(|one| {
            (text(one, "connectionId").to_owned(), one.get("primary") == Some(&Value::Bool(true)))
        })
        .collect();
    with.sort();
    with
}

/// The connections of the local node with a node: their ids, and whether each is primary.
pub(crate) async fn local_connections<R>(ours: &Node<R>, node: NodeId) -> Vec<(String, bool)> {
    let with = connections_with(ours, node).await.into_iter();
    let mut with: Vec<_> = with
        .map(|one| (String::from_utf8_lossy(&one.shared_id).into_owned(), one.primary))
        .collect();
    with.sort();
    with
}

/// Closes the connections of a node with a peer until there are none. The peer may connect again
/// meanwhile: Polykey nodes search whenever a node connects.
pub(crate) async fn disconnected<R: Rt>(runtime: &R, node: &Node<R>, peer: NodeId) {
    until(runtime, "it is gone", async || {
        node.disconnect(peer).await.unwrap();
        connections_with(node, peer).await.is_empty()
    })
    .await;
}
