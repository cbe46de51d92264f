//! A dialer that the acceptor has not accepted never reports success, also if the TLS handshake
//! completed.

use std::time::Duration;

use pk_driver::{EventOrLag, Node, NodeError};
use pk_proto::{
    DialFailure, Event, Failure, FindEnd, NodeAddress, NodeId, RequestOptions, SetNodeOptions,
};
use pk_tests::Rt;
use pk_tests::certs::Presented;
use pk_tests::node::{
    address, connect, find, global_address_data, key, options, shutdown, start, start_with,
};
use pk_tests::raw::{self, NATIVE};
use pk_tests::wait::{SOON, sleep, soon, spawn};

pk_tests::cases!(
    dial_fails_if_the_acceptor_closes,
    dial_fails_if_the_acceptor_refuses_the_certificate,
    dial_fails_if_the_acceptor_sends_no_hello,
    dial_fails_if_the_acceptor_sends_garbage,
    dial_fails_if_the_acceptor_is_full,
);

/// What an acceptor does if the handshake completes on its side.
#[derive(Debug, Clone, Copy)]
enum Then {
    Close,
    Nothing,
    Garbage,
}

/// A scripted acceptor that is valid for TLS. Returns its address.
fn acceptor<R: Rt>(runtime: &R, presented: &Presented, refuse: bool, then: Then) -> NodeAddress {
    let endpoint = raw::endpoint(runtime, Some(raw::server(presented, &[NATIVE], refuse)));
    let address = NodeAddress::from_socket(endpoint.local_addr().unwrap());
    let tasks = runtime.clone();
    drop(spawn(runtime, async move {
        while let Some(incoming) = endpoint.accept().await {
            let tasks = tasks.clone();
            drop(spawn(&tasks.clone(), async move {
                let Ok(connection) = incoming.await else { return };
                match then {
                    Then::Close => connection.close(99u32.into(), b"not you"),
                    Then::Nothing => {}
                    Then::Garbage => {
                        if let Ok((mut send, _recv)) = connection.accept_bi().await {
                            let _ = send.write_all(&[0xff; 1000]).await;
                            sleep(&tasks, Duration::from_secs(30)).await;
                        }
                    }
                }
                connection.closed().await;
            }));
        }
    }));
    address
}

/// Tries every way to connect to a node and fails if one succeeds. Returns the failure of the dial.
async fn assert_never_connects<R: Rt>(
    runtime: &R,
    node: &Node<R>,
    target: NodeId,
    address: NodeAddress,
    patience: Duration,
) -> DialFailure {
    let mut events = node.events();
    let limits = options(2 * patience, patience);
    let connected = soon(runtime, "connect", node.connect(target, address.clone(), limits)).await;
    let why = match connected {
        Err(NodeError::Failure(Failure::Dial(failures))) => match failures.as_slice() {
            [(at, why)] if *at == address => why.clone(),
            other => panic!("one dial: {other:?}"),
        },
        other => panic!("connect: {other:?}"),
    };
    let there =
        soon(runtime, "ping the address", node.ping_node_address(target, address.clone(), limits))
            .await;
    assert!(!there.unwrap(), "it answers no ping");
    soon(
        runtime,
        "set",
        node.set_node(target, address.clone(), global_address_data(), SetNodeOptions::default()),
    )
    .await
    .unwrap();
    let found = soon(runtime, "find", node.find_node(target, find(limits))).await.unwrap();
    assert_eq!((found.found, found.ended), (None, FindEnd::Exhausted));
    let ping = soon(runtime, "ping", node.ping_node(target, limits)).await;
    assert!(matches!(&ping, Err(NodeError::Failure(Failure::NotFound(_)))), "{ping:?}");
    let lease = soon(runtime, "acquire", node.acquire_connection(target, limits)).await;
    assert!(matches!(&lease, Err(NodeError::Failure(Failure::NotFound(_)))), "{:?}", lease.err());
    let stream = soon(runtime, "stream", node.open_stream(target, "x", limits)).await;
    assert!(matches!(&stream, Err(NodeError::Failure(Failure::NotFound(_)))), "{:?}", stream.err());

    let metrics = node.metrics().await.unwrap();
    assert_eq!(
        (metrics.connections, metrics.connections_accepted, metrics.requests_open),
        (0, 0, 0),
        "{metrics:?}"
    );
    shutdown(runtime, &[node]).await;
    while let Some(notice) = soon(runtime, "events", events.next()).await {
        let opened = matches!(notice, EventOrLag::Event(Event::ConnectionOpened { .. }));
        assert!(!opened, "{notice:?}");
    }
    println!("{}: {why}", R::NAME);
    why
}

async fn dial_fails_if_the_acceptor_closes<R: Rt>(runtime: R) {
    let node = start(&runtime, 1).await;
    let address = acceptor(&runtime, &Presented::valid(&key(2)), false, Then::Close);
    let why = assert_never_connects(&runtime, &node, key(2).node_id(), address, SOON / 2).await;
    assert_eq!(why, DialFailure::Rejected { code: 99, reason: "not you".to_owned() });
}

async fn dial_fails_if_the_acceptor_refuses_the_certificate<R: Rt>(runtime: R) {
    let node = start(&runtime, 1).await;
    let address = acceptor(&runtime, &Presented::valid(&key(2)), true, Then::Nothing);
    let why = assert_never_connects(&runtime, &node, key(2).node_id(), address, SOON / 2).await;
    // TLS 1.3 has completed for the dialer by then: the alert arrives on an established connection.
    assert!(
        !matches!(why, DialFailure::TimedOut | DialFailure::Cancelled),
        "the refusal is reported: {why}"
    );
}

async fn dial_fails_if_the_acceptor_sends_no_hello<R: Rt>(runtime: R) {
    let node = start(&runtime, 1).await;
    let address = acceptor(&runtime, &Presented::valid(&key(2)), false, Then::Nothing);
    let why = assert_never_connects(
        &runtime,
        &node,
        key(2).node_id(),
        address,
        Duration::from_millis(500),
    )
    .await;
    assert_eq!(why, DialFailure::TimedOut);
}

async fn dial_fails_if_the_acceptor_sends_garbage<R: Rt>(runtime: R) {
    let node = start(&runtime, 1).await;
    let address = acceptor(&runtime, &Presented::valid(&key(2)), false, Then::Garbage);
    let why = assert_never_connects(&runtime, &node, key(2).node_id(), address, SOON / 2).await;
    assert!(matches!(why, DialFailure::Transport(_)), "{why}");
}

async fn dial_fails_if_the_acceptor_is_full<R: Rt>(runtime: R) {
    let full = start_with(&runtime, 1, |config| config.core.connection_limit = 1).await;
    let (first, second) = (start(&runtime, 2).await, start(&runtime, 3).await);
    connect(&runtime, &first, &full).await;
    // An unused connection would be replaced.
    let lease =
        soon(&runtime, "lease", full.acquire_connection(first.own_id(), RequestOptions::default()));
    let lease = lease.await.unwrap();
    let why =
        assert_never_connects(&runtime, &second, full.own_id(), address(&full), SOON / 2).await;
    assert_eq!(why, DialFailure::Rejected { code: 17, reason: "too many connections".to_owned() });
    assert!(full.metrics().await.unwrap().connections_refused > 0);
    soon(
        &runtime,
        "the first is served",
        first.ping_node(full.own_id(), RequestOptions::default()),
    )
    .await
    .unwrap();
    drop(lease);
    shutdown(&runtime, &[&full, &first]).await;
}
