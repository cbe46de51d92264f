//! How nodes end, and what happens to requests in progress then.

use std::time::Duration;

use pk_driver::{EventOrLag, Node, NodeError, StreamError};
use pk_proto::DisconnectReason;
use pk_proto::{
    BucketIndex, ClosestNodesQuery, Event, Failure, FindNodeOptions, NodeId, RequestOptions,
    SetNodeOptions,
};
use pk_tests::Rt;
use pk_tests::certs::Presented;
use pk_tests::node::{
    address, connect, echo, global_address_data, key, options, seed, shutdown, socket, start,
};
use pk_tests::raw;
use pk_tests::socket::BlackHole;
use pk_tests::wait::{soon, spawn, until};
use pk_tests::watched::Watched;
use smol::future::{poll_once, zip};

pk_tests::cases!(
    stopping_node_closes_its_connections,
    shutdown_can_be_repeated,
    stopped_node_returns_typed_errors,
    requests_in_progress_end_with_the_node,
    dropped_node_shuts_down,
    dropped_request_is_cancelled,
);

/// Waits for the end of the connection with a node. Returns the reason that its peer reports.
async fn wait_for_close(events: &mut pk_driver::Events, of: NodeId) -> DisconnectReason {
    loop {
        match events.next().await {
            Some(EventOrLag::Event(Event::ConnectionClosed { node, why, .. })) if node == of => {
                return why;
            }
            Some(_) => {}
            None => panic!("the listener's own node has ended"),
        }
    }
}

async fn stopping_node_closes_its_connections<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    let mut acceptor = a.accept_streams("held/1").await.unwrap();
    connect(&runtime, &b, &a).await;
    let mut stream =
        soon(&runtime, "open", b.open_stream(a.own_id(), "held/1", RequestOptions::default()))
            .await
            .unwrap();
    let held = soon(&runtime, "accept", acceptor.accept()).await.unwrap();
    let mut lease =
        soon(&runtime, "acquire", b.acquire_connection(a.own_id(), RequestOptions::default()))
            .await
            .unwrap();
    let endpoint = raw::endpoint(&runtime, None);
    let presented = Presented::valid(&key(3));
    let raw =
        soon(&runtime, "dial", raw::dial(&endpoint, raw::valid_client(&presented), socket(&a)))
            .await
            .unwrap();
    let _control = soon(&runtime, "greet", raw::greet(&raw)).await.unwrap();

    let mut events = b.events();
    shutdown(&runtime, &[&a]).await;
    let graceful = DisconnectReason::Peer { code: 0, reason: String::new() };
    assert_eq!(soon(&runtime, "goodbye", wait_for_close(&mut events, a.own_id())).await, graceful);
    let closed = soon(&runtime, "the raw peer's goodbye", raw.closed()).await;
    assert_eq!(raw::close_code(&closed), Some(0), "{closed}");
    soon(&runtime, "the loss of the lease", lease.lost()).await;
    let read = soon(&runtime, "the end of the stream", stream.read(&mut [0; 10])).await;
    assert_eq!(read, Err(StreamError::ConnectionLost(graceful)));
    assert!(soon(&runtime, "the acceptor's end", acceptor.accept()).await.is_none());
    drop(held);
    shutdown(&runtime, &[&b]).await;
}

async fn shutdown_can_be_repeated<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    connect(&runtime, &b, &a).await;
    let same = a.clone();
    soon(&runtime, "two shutdowns at once", zip(a.shutdown(), same.shutdown())).await;
    soon(&runtime, "a third", a.shutdown()).await;
    soon(&runtime, "of a clone", same.shutdown()).await;
    assert_eq!(a.driver_metrics().tasks, 0);
    // A shutdown whose future is dropped continues.
    let _finished = poll_once(b.shutdown()).await;
    until(&runtime, "the end of B", async || b.driver_metrics().tasks == 0).await;
    // The port is free again at once.
    let again = pk_tests::node::start_with(&runtime, 1, |config| config.listen = socket(&a)).await;
    assert_eq!(socket(&again), socket(&a));
    shutdown(&runtime, &[&again]).await;
}

async fn stopped_node_returns_typed_errors<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    let (them, at) = (b.own_id(), address(&b));
    connect(&runtime, &a, &b).await;
    let id = a.own_id();
    let mut events = a.events();
    shutdown(&runtime, &[&a]).await;

    async fn closed<R: Rt, T>(
        runtime: &R,
        what: &str,
        call: impl Future<Output = Result<T, NodeError>>,
    ) {
        match soon(runtime, what, call).await {
            Err(NodeError::Closed) => {}
            Err(error) => panic!("{what}: {error:?}"),
            Ok(_) => panic!("{what} succeeds after the shutdown"),
        }
    }
    let options = RequestOptions::default();
    let query = ClosestNodesQuery { known: true, connected: true };
    closed(&runtime, "find", a.find_node(them, FindNodeOptions::default())).await;
    closed(&runtime, "ping", a.ping_node(them, options)).await;
    closed(&runtime, "ping an address", a.ping_node_address(them, at.clone(), options)).await;
    closed(&runtime, "connect", a.connect(them, at.clone(), options)).await;
    closed(&runtime, "acquire", a.acquire_connection(them, options)).await;
    closed(&runtime, "with_conn", a.with_conn(them, options, async |_| ())).await;
    closed(&runtime, "open a stream", a.open_stream(them, "x", options)).await;
    closed(&runtime, "accept", a.accept_streams("x")).await;
    closed(&runtime, "ask for the closest", a.query_closest_nodes(them, them, query, options))
        .await;
    closed(&runtime, "join", a.sync_node_graph(vec![seed(&b)], true, options)).await;
    closed(&runtime, "set", a.set_node(them, at, global_address_data(), SetNodeOptions::default()))
        .await;
    closed(&runtime, "unset", a.unset_node(them)).await;
    closed(&runtime, "disconnect", a.disconnect(them)).await;
    closed(&runtime, "bucket", a.bucket(BucketIndex(255))).await;
    closed(&runtime, "closest", a.closest_nodes(them, 20)).await;
    closed(&runtime, "contact", a.contact(them)).await;
    closed(&runtime, "connections", a.connections()).await;
    closed(&runtime, "metrics", a.metrics()).await;
    closed(&runtime, "flush", a.flush()).await;
    // Calls that need no peer still work.
    assert_eq!(a.own_id(), id);
    assert!(a.driver_metrics().turns > 0);
    let mut last = None;
    while let Some(notice) = soon(&runtime, "the end of the events", events.next()).await {
        last = Some(notice);
    }
    assert_eq!(last, Some(EventOrLag::Event(Event::Stopped)));
    assert_eq!(soon(&runtime, "no more events", events.next()).await, None);
    assert_eq!(soon(&runtime, "no events at all", a.events().next()).await, None);
    shutdown(&runtime, &[&b]).await;
}

async fn requests_in_progress_end_with_the_node<R: Rt>(runtime: R) {
    let a = start(&runtime, 1).await;
    let hole = BlackHole::open();
    let absent = key(9).node_id();
    let limits = options(Duration::from_secs(60), Duration::from_secs(60));
    soon(
        &runtime,
        "set",
        a.set_node(absent, hole.address(), global_address_data(), SetNodeOptions::default()),
    )
    .await
    .unwrap();
    let requests = {
        let (node, address) = (a.clone(), hole.address());
        let connect =
            spawn(&runtime, async move { node.connect(absent, address, limits).await.map(drop) });
        let node = a.clone();
        let ping = spawn(&runtime, async move { node.ping_node(absent, limits).await.map(drop) });
        let node = a.clone();
        let acquire =
            spawn(&runtime, async move { node.acquire_connection(absent, limits).await.map(drop) });
        [connect, ping, acquire]
    };
    until(&runtime, "three requests", async || a.metrics().await.unwrap().requests_open == 3).await;
    shutdown(&runtime, &[&a]).await;
    for request in requests {
        let ended = request.join(&runtime, "the end of a request").await;
        assert!(matches!(ended, Err(NodeError::Failure(Failure::Stopped))), "{ended:?}");
    }
}

async fn dropped_node_shuts_down<R: Rt>(runtime: R) {
    let watched = Watched::new(runtime.clone());
    let b = start(&runtime, 2).await;
    let mut events = b.events();
    {
        let a = start(&watched, 1).await;
        echo(&runtime, &b, "echo/1").await;
        let joined = a.connect(b.own_id(), address(&b), RequestOptions::default());
        soon(&runtime, "connect", joined).await.unwrap();
        let clone: Node<_> = a.clone();
        drop(a);
        soon(&runtime, "ping by a clone", clone.ping_node(b.own_id(), RequestOptions::default()))
            .await
            .unwrap();
        assert!(watched.seen().tasks > 0);
    }
    let why = soon(&runtime, "goodbye", wait_for_close(&mut events, key(1).node_id())).await;
    assert_eq!(why, DisconnectReason::Peer { code: 0, reason: String::new() });
    until(&runtime, "the end of its tasks", async || watched.seen().tasks == 0).await;
    until(&runtime, "the end of its socket", async || watched.seen().sockets == 0).await;
    assert_eq!(watched.seen().timers, 0);
    shutdown(&runtime, &[&b]).await;
}

async fn dropped_request_is_cancelled<R: Rt>(runtime: R) {
    let a = start(&runtime, 1).await;
    let hole = BlackHole::open();
    let absent = key(9).node_id();
    let limits = options(Duration::from_secs(60), Duration::from_secs(60));
    soon(
        &runtime,
        "set",
        a.set_node(absent, hole.address(), global_address_data(), SetNodeOptions::default()),
    )
    .await
    .unwrap();
    let open = async || a.metrics().await.unwrap().requests_open;

    let mut connect = Box::pin(a.connect(absent, hole.address(), limits));
    let mut ping = Box::pin(a.ping_node(absent, limits));
    let mut stream = Box::pin(a.open_stream(absent, "x", limits));
    until(&runtime, "three requests", async || {
        assert!(poll_once(&mut connect).await.is_none());
        assert!(poll_once(&mut ping).await.is_none());
        assert!(poll_once(&mut stream).await.is_none());
        open().await == 3
    })
    .await;
    until(&runtime, "dials", async || a.driver_metrics().transport.dials_pending == 2).await;
    drop(ping);
    until(&runtime, "the end of one", async || open().await == 2).await;
    assert_eq!(
        a.driver_metrics().transport.dials_pending,
        2,
        "another request still waits for that dial"
    );
    drop((connect, stream));
    until(&runtime, "the end of all", async || open().await == 0).await;
    until(&runtime, "the end of the dials", async || {
        a.driver_metrics().transport.dials_pending == 0
    })
    .await;
    let metrics = a.metrics().await.unwrap();
    assert_eq!(
        (metrics.requests_open, metrics.connections_pending, metrics.streams),
        (0, 0, 0),
        "{metrics:?}"
    );
    // Dropped before it was started: nothing starts.
    drop(a.ping_node(absent, limits));
    assert_eq!(a.metrics().await.unwrap().requests, metrics.requests);
    shutdown(&runtime, &[&a]).await;
}

/// The runtime ends first: its tasks are dropped at their current point. Only the runtime of tokio
/// can end.
#[test]
fn node_survives_the_end_of_its_tokio_runtime() {
    let _slot = pk_tests::case::slot();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let node = runtime.block_on(start(&pk_tests::Tokio, 1));
    runtime.shutdown_timeout(Duration::from_secs(5));
    smol::block_on(async {
        let smol = pk_tests::Smol;
        let ended =
            soon(&smol, "a request", node.ping_node(key(2).node_id(), RequestOptions::default()))
                .await;
        assert!(matches!(ended, Err(NodeError::Closed)), "{ended:?}");
        soon(&smol, "shutdown", node.shutdown()).await;
        assert_eq!(node.driver_metrics().tasks, 0);
    });
}
