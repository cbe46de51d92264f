//! A node as an embedder uses it. On tokio only: the code is the same on every runtime.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are helpers of tests")]

use std::time::{Duration, Instant};

use pk_driver_tokio::pk_proto::{
    ConnectionInfo, DialFailure, Event, Failure, FindEnd, FindNodeOptions, Replay, RequestError,
    RequestOptions,
};
use pk_driver_tokio::{
    EventOrLag, KeyPair, Node, NodeConfig, NodeError, Record, StartError, StreamError,
    create_identity, unix_now,
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn config(seed: u8) -> NodeConfig {
    let mut config = NodeConfig::ephemeral(KeyPair::from_seed(&[seed; 32])).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    config
}

async fn start(seed: u8) -> Node {
    Node::start(config(seed)).await.unwrap()
}

async fn connect(a: &Node, b: &Node) -> ConnectionInfo {
    a.connect(b.own_id(), b.local_addrs()[0].into(), RequestOptions::default()).await.unwrap()
}

async fn within_limit<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not complete in time"))
}

#[tokio::test]
async fn failed_start_returns_the_reason() {
    let first = start(1).await;
    let addr = first.local_addrs()[0];
    let mut second = config(2);
    second.listen = addr;
    let error = Node::start(second).await.unwrap_err();
    assert!(matches!(error, NodeError::Start(StartError::Bind { .. })));
    assert!(
        error.to_string().starts_with(&format!("cannot listen on UDP {addr}: Address")),
        "{error}"
    );

    let mut bad = config(3);
    bad.driver.accept_limit = 0;
    let error = Node::start(bad).await.unwrap_err();
    assert_eq!(error.to_string(), "driver configuration: accept_limit is 0; it must be 1 to 65536");
    let mut bad = config(3);
    bad.core.find_limit = 0;
    let error = Node::start(bad).await.unwrap_err();
    assert_eq!(error.to_string(), "configuration: find_limit is 0; it must be 1 to 1024");
    let mut bad = config(3);
    bad.identity = create_identity(&KeyPair::from_seed(&[4; 32]), unix_now()).unwrap();
    let error = Node::start(bad).await.unwrap_err();
    assert!(matches!(error, NodeError::Start(StartError::ForeignKey { .. })), "{error}");
    let mut bad = config(3);
    bad.identity.chain.clear();
    let error = Node::start(bad).await.unwrap_err();
    assert_eq!(error.to_string(), "identity: an identity needs at least one certificate");
}

#[tokio::test]
async fn applications_exchange_data_over_streams() {
    let (a, b) = (start(1).await, start(2).await);
    connect(&a, &b).await;
    let mut acceptor = b.accept_streams("echo/1").await.unwrap();
    let error = b.accept_streams("echo/1").await.unwrap_err();
    assert_eq!(error.to_string(), "protocol `echo/1` already has an acceptor");
    let error = b.accept_streams("").await.unwrap_err();
    assert!(matches!(error, NodeError::Request(RequestError::Protocol)), "{error}");
    let peer = a.own_id();
    let echo = tokio::spawn(async move {
        while let Some(mut stream) = acceptor.accept().await {
            assert_eq!((stream.node(), stream.protocol()), (peer, "echo/1"));
            let (mut from, mut to) = tokio::io::split(&mut stream);
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            tokio::io::AsyncWriteExt::shutdown(&mut to).await.unwrap();
        }
    });
    for len in [0, 1, 100_000] {
        let sent: Vec<u8> = (0..len).map(|i: u32| i.to_le_bytes()[0]).collect();
        let received = a
            .with_conn(b.own_id(), RequestOptions::default(), async |conn| {
                let mut stream = conn.open_stream("echo/1").await?;
                let writing = sent.clone();
                stream.write_all(&writing).await.unwrap();
                stream.finish().unwrap();
                Ok::<_, NodeError>(stream.read_to_end(1 << 20).await.unwrap())
            })
            .await
            .unwrap();
        assert_eq!(received.unwrap(), sent);
    }
    let error =
        a.open_stream(b.own_id(), "unknown/1", RequestOptions::default()).await.unwrap_err();
    assert!(matches!(error, NodeError::Failure(Failure::Unsupported)), "{error}");
    b.shutdown().await;
    within_limit("the echo's end", echo).await.unwrap();
    a.shutdown().await;
}

#[tokio::test]
async fn stream_ends_with_its_connection_and_dropped_acceptor_refuses_streams() {
    let (a, b) = (start(1).await, start(2).await);
    connect(&a, &b).await;
    let mut acceptor = b.accept_streams("x/1").await.unwrap();
    let mut stream = a.open_stream(b.own_id(), "x/1", RequestOptions::default()).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut accepted = within_limit("accept", acceptor.accept()).await.unwrap();
    assert_eq!(accepted.read_chunk(10).await.unwrap().unwrap(), "hello");
    drop(acceptor);
    let refused = async {
        loop {
            match a.open_stream(b.own_id(), "x/1", RequestOptions::default()).await {
                // The stream may have arrived between the drop and the pump's notification of it.
                Ok(mut stream) => assert!(stream.read_chunk(1).await.is_err()),
                Err(error) => return error,
            }
        }
    };
    let error = within_limit("refusal", refused).await;
    assert!(matches!(error, NodeError::Failure(Failure::Unsupported)), "{error}");
    assert_eq!(b.disconnect(a.own_id()).await.unwrap(), 1);
    let error = within_limit("loss", stream.read_chunk(10)).await.unwrap_err();
    assert!(matches!(error, StreamError::ConnectionLost(_)), "{error}");
    let error = within_limit("loss", accepted.read_chunk(10)).await.unwrap_err();
    assert!(matches!(error, StreamError::ConnectionLost(_)), "{error}");
}

#[tokio::test]
async fn full_acceptor_refuses_with_its_own_code() {
    let (a, mut small) = (start(1).await, config(2));
    small.driver.accept_limit = 1;
    let b = Node::start(small).await.unwrap();
    connect(&a, &b).await;
    let _acceptor = b.accept_streams("x/1").await.unwrap();
    let _waiting = a.open_stream(b.own_id(), "x/1", RequestOptions::default()).await.unwrap();
    match a.open_stream(b.own_id(), "x/1", RequestOptions::default()).await {
        Err(NodeError::Failure(Failure::Aborted(8))) => {}
        Err(error) => panic!("{error}"),
        // The peer's core had accepted before its acceptor was found full.
        Ok(mut stream) => {
            let error = within_limit("refusal", stream.read_chunk(1)).await.unwrap_err();
            assert_eq!(error, StreamError::Reset(8));
        }
    }
    assert_eq!(b.driver_metrics().accepts_refused, 1);
}

#[tokio::test]
async fn every_listener_receives_all_events_or_the_number_of_lost_ones() {
    let (a, mut forgetful) = (start(1).await, config(2));
    forgetful.driver.event_limit = 2;
    let b = Node::start(forgetful).await.unwrap();
    let (mut quick, mut slow) = (b.events(), b.events());
    connect(&a, &b).await;
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(EventOrLag::Event(Event::ConnectionOpened { .. }))) {
        seen.push(within_limit("event", quick.next()).await.unwrap());
    }
    a.shutdown().await;
    while !matches!(seen.last(), Some(EventOrLag::Event(Event::ConnectionClosed { .. }))) {
        seen.push(within_limit("event", quick.next()).await.unwrap());
    }
    b.shutdown().await;
    assert!(matches!(within_limit("event", slow.next()).await, Some(EventOrLag::Lagged(_))));
    let mut last = None;
    while let Some(notice) = within_limit("event", slow.next()).await {
        last = Some(notice);
    }
    assert_eq!(last, Some(EventOrLag::Event(Event::Stopped)));
    assert_eq!(b.events().next().await, None);
}

#[tokio::test]
async fn dropped_call_is_cancelled() {
    let a = start(1).await;
    // Bound, but never answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (absent, address) =
        (KeyPair::from_seed(&[9; 32]).node_id(), silent.local_addr().unwrap().into());
    let call = a.connect(absent, address, RequestOptions::default());
    assert!(timeout(Duration::from_millis(100), call).await.is_err());
    let gone = async {
        while a.metrics().await.unwrap().requests_open > 0
            || a.driver_metrics().transport.dials_pending > 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within_limit("cancelling", gone).await;
}

#[tokio::test]
async fn lease_reports_the_loss_of_its_connection() {
    let (a, b) = (start(1).await, start(2).await);
    connect(&a, &b).await;
    let mut lease = a.acquire_connection(b.own_id(), RequestOptions::default()).await.unwrap();
    assert_eq!((lease.node(), lease.info().node), (b.own_id(), b.own_id()));
    assert!(timeout(Duration::from_millis(50), lease.lost()).await.is_err());
    b.shutdown().await;
    within_limit("loss", lease.lost()).await;
    within_limit("loss", lease.lost()).await;
}

#[tokio::test]
async fn wrong_node_at_an_address_is_refused() {
    let (a, b) = (start(1).await, start(2).await);
    let absent = KeyPair::from_seed(&[9; 32]).node_id();
    let address: pk_driver_tokio::pk_proto::NodeAddress = b.local_addrs()[0].into();
    let error = a.connect(absent, address.clone(), RequestOptions::default()).await.unwrap_err();
    let NodeError::Failure(Failure::Dial(failures)) = &error else { panic!("{error}") };
    assert!(matches!(&failures[..], [(_, DialFailure::Certificate(_))]), "{error}");
    assert!(
        !a.ping_node_address(absent, address.clone(), RequestOptions::default()).await.unwrap()
    );
    assert!(a.ping_node_address(b.own_id(), address, RequestOptions::default()).await.unwrap());
}

#[tokio::test]
async fn open_requests_fail_at_the_shutdown() {
    let a = start(1).await;
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let absent = KeyPair::from_seed(&[9; 32]).node_id();
    let address = silent.local_addr().unwrap().into();
    let waiting = {
        let a = a.clone();
        tokio::spawn(async move { a.connect(absent, address, RequestOptions::default()).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    // Twice, concurrently: both wait for the same end.
    tokio::join!(a.shutdown(), a.shutdown());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, NodeError::Failure(Failure::Stopped)), "{error}");
    let error = a.find_node(absent, FindNodeOptions::default()).await.unwrap_err();
    assert!(matches!(error, NodeError::Closed), "{error}");
    assert_eq!(a.driver_metrics().tasks, 0);
    a.shutdown().await;
}

#[tokio::test]
async fn dropped_node_closes_its_connections() {
    let (a, b) = (start(1).await, start(2).await);
    connect(&a, &b).await;
    let mut events = b.events();
    drop(a);
    let closed = async {
        loop {
            if let Some(EventOrLag::Event(Event::ConnectionClosed { why, .. })) =
                events.next().await
            {
                return why;
            }
        }
    };
    assert_eq!(
        within_limit("the close", closed).await.to_string(),
        "closed by the peer with code 0: "
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_follows_a_chain_of_nodes_to_its_end() {
    let mut nodes = Vec::new();
    for seed in 1..=8 {
        nodes.push(start(seed).await);
    }
    // Each has a contact only for the next.
    for pair in nodes.windows(2) {
        connect(&pair[0], &pair[1]).await;
    }
    let last = nodes.last().unwrap().own_id();
    let found = nodes[0].find_node(last, FindNodeOptions::default()).await.unwrap();
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    nodes[0].flush().await.unwrap();
    let begun = Instant::now();
    for node in &nodes {
        node.shutdown().await;
        assert_eq!(node.driver_metrics().tasks, 0);
    }
    println!("8 nodes shut down in {:?}", begun.elapsed());
}

#[tokio::test]
async fn recorded_run_can_be_replayed() {
    let mut recorded = config(1);
    recorded.record = Some(Record::Memory(1 << 20));
    let (a, b) = (Node::start(recorded).await.unwrap(), start(2).await);
    connect(&a, &b).await;
    a.ping_node(b.own_id(), RequestOptions::default()).await.unwrap();
    let mut recording = a.take_recording().await.unwrap().unwrap();
    b.ping_node(a.own_id(), RequestOptions::default()).await.unwrap();
    recording.extend(a.take_recording().await.unwrap().unwrap());
    let mut replay = Replay::new(&recording).unwrap();
    let mut steps = 0;
    while replay.step().unwrap().is_some() {
        steps += 1;
    }
    assert!(steps > 10, "{steps}");
    assert_eq!(replay.machine().own_id(), a.own_id());
    assert_eq!(b.take_recording().await.unwrap(), None);
}
