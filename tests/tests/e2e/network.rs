//! Nodes join, find, ping and query each other, and exchange data over streams.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pk_driver::{Node, NodeError, Record};
use pk_proto::DisconnectReason;
use pk_proto::{
    ClosestNodesQuery, Event, FindEnd, FindNodeOptions, NodeAddress, NodeId, Replay,
    RequestOptions, SeedNode,
};
use pk_tests::Rt;
use pk_tests::node::{
    address, connect, connections_with, echo, exchange, find, join, options, seed, shutdown,
    socket, start, start_with,
};
use pk_tests::wait::{soon, try_within, until};
use smol::future::zip;
use smol::stream::StreamExt;

pk_tests::cases!(
    two_nodes_join_find_ping_and_exchange_streams,
    node_is_found_through_another,
    seed_can_be_a_host_name,
    each_failed_seed_is_named,
    lease_keeps_a_connection_open,
    connection_stays_open_while_items_come_over_it,
    nodes_that_dial_each_other_at_once_agree_on_a_primary,
    node_on_all_addresses_is_reached_over_both_families,
    recorded_run_is_replayed,
);

async fn two_nodes_join_find_ping_and_exchange_streams<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    echo(&runtime, &a, "echo/1").await;

    let joined = join(&runtime, &b, seed(&a)).await;
    assert_eq!((joined.seeds, joined.failed), (vec![a.own_id()], vec![]));
    assert!(joined.search.is_some(), "it was waited for");

    let found =
        soon(&runtime, "find", b.find_node(a.own_id(), FindNodeOptions::default())).await.unwrap();
    assert_eq!(found.found.map(|(address, _)| address), Some(address(&a)));
    assert_eq!(found.ended, FindEnd::Connected);
    let pong =
        soon(&runtime, "ping", b.ping_node(a.own_id(), RequestOptions::default())).await.unwrap();
    assert_eq!(pong.address, address(&a));
    assert!(!pong.rtt.is_zero());
    // The other direction, over the same connection.
    let pong = soon(&runtime, "ping back", a.ping_node(b.own_id(), RequestOptions::default()))
        .await
        .unwrap();
    assert_eq!(pong.address, address(&b), "B is seen where it listens");
    let there = b.ping_node_address(a.own_id(), address(&a), RequestOptions::default());
    assert!(soon(&runtime, "ping an address", there).await.unwrap());
    assert_eq!(a.connections().await.unwrap().len(), 1);
    assert_eq!(b.connections().await.unwrap().len(), 1);

    exchange(&runtime, &b, a.own_id(), "echo/1", 1024 * 1024).await;

    let itself =
        b.find_node(b.own_id(), find(options(Duration::from_secs(5), Duration::from_secs(5))));
    let itself = soon(&runtime, "find oneself", itself).await.unwrap();
    assert_eq!(itself.found, None, "no node finds itself");
    shutdown(&runtime, &[&a, &b]).await;
}

async fn node_is_found_through_another<R: Rt>(runtime: R) {
    let (a, b, c) = (start(&runtime, 1).await, start(&runtime, 2).await, start(&runtime, 3).await);
    echo(&runtime, &b, "echo/1").await;
    join(&runtime, &b, seed(&a)).await;
    // Not a join, which would have met B already.
    connect(&runtime, &c, &a).await;

    let query = ClosestNodesQuery { known: true, connected: true };
    let closest = c.query_closest_nodes(a.own_id(), b.own_id(), query, RequestOptions::default());
    let closest = soon(&runtime, "ask for the closest", closest).await.unwrap();
    let local: Vec<_> = closest
        .known
        .iter()
        .map(|(node, contact)| (*node, contact.iter().next().cloned()))
        .collect();
    assert!(
        matches!(local.as_slice(), [(node, Some((at, _)))] if *node == b.own_id() && *at == address(&b)),
        "A reports B and not C itself: {closest:?}"
    );
    let active: Vec<_> =
        closest.connected.iter().map(|active| (active.node, active.connections.len())).collect();
    assert_eq!(active, [(b.own_id(), 1)]);
    let one_list = ClosestNodesQuery { known: false, connected: true };
    let closest =
        c.query_closest_nodes(a.own_id(), b.own_id(), one_list, RequestOptions::default());
    assert!(soon(&runtime, "ask for one list", closest).await.unwrap().known.is_empty());

    let found =
        soon(&runtime, "find", c.find_node(b.own_id(), FindNodeOptions::default())).await.unwrap();
    assert_eq!(found.found.map(|(address, _)| address), Some(address(&b)));
    let step = found.trace.iter().find(|step| step.node == b.own_id()).expect("B was contacted");
    assert_eq!(step.reported_by, Some(a.own_id()), "A reported B");
    exchange(&runtime, &c, b.own_id(), "echo/1", 1000).await;

    // Every node now has a contact for every other node.
    join(&runtime, &c, seed(&a)).await;
    let ids = |nodes: Vec<(NodeId, _)>| {
        nodes.into_iter().map(|(node, _): (NodeId, pk_proto::NodeContact)| node).collect()
    };
    let known: BTreeSet<_> = ids(c.closest_nodes(c.own_id(), 20).await.unwrap());
    assert_eq!(known, BTreeSet::from([a.own_id(), b.own_id()]));
    shutdown(&runtime, &[&a, &b, &c]).await;
}

async fn seed_can_be_a_host_name<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    let named: SeedNode =
        format!("pk://{}@localhost:{}", a.own_id(), socket(&a).port()).parse().unwrap();
    assert_eq!(join(&runtime, &b, named).await.seeds, [a.own_id()]);
    shutdown(&runtime, &[&a, &b]).await;
}

async fn each_failed_seed_is_named<R: Rt>(runtime: R) {
    let b = start(&runtime, 2).await;
    let hole = pk_tests::socket::BlackHole::open();
    let absent = pk_tests::node::key(9).node_id();
    let silent = SeedNode { node: absent, address: hole.address() };
    let unknown: SeedNode = format!("pk://{absent}@name.invalid:1314").parse().unwrap();
    let itself = seed(&b);
    let limits = options(Duration::from_secs(5), Duration::from_millis(500));
    let joined =
        b.sync_node_graph(vec![silent.clone(), unknown.clone(), itself.clone()], true, limits);
    let error = soon(&runtime, "a join that fails", joined).await.unwrap_err().to_string();
    assert!(error.contains("no seed node could be reached"), "{error}");
    for (what, seed) in [("timed out", &silent), ("", &unknown), ("it is this node", &itself)] {
        assert!(
            error.contains(what) && error.contains(&seed.to_string()),
            "{seed} and {what:?} are not in: {error}"
        );
    }
    // On a machine without a reachable resolver, it fails no earlier than the other.
    assert!(
        error.contains("failed to resolve") || error.matches("timed out").count() == 2,
        "{error}"
    );
    assert_eq!(b.metrics().await.unwrap().requests_open, 0);
    shutdown(&runtime, &[&b]).await;
}

async fn lease_keeps_a_connection_open<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    echo(&runtime, &a, "echo/1").await;
    connect(&runtime, &b, &a).await;
    let held = async |node: &Node<R>, by: &Node<R>| {
        let connections = connections_with(by, node.own_id()).await;
        connections.iter().any(|connection| connection.idle_in.is_none())
    };

    assert!(!held(&a, &b).await);
    let lease =
        soon(&runtime, "acquire", b.acquire_connection(a.own_id(), RequestOptions::default()))
            .await
            .unwrap();
    let other =
        soon(&runtime, "acquire", b.acquire_connection(a.own_id(), RequestOptions::default()))
            .await
            .unwrap();
    assert_eq!(lease.node(), a.own_id());
    drop(other);
    assert_eq!(b.connections().await.unwrap().len(), 1, "leases share a connection");
    assert!(held(&a, &b).await, "one lease is left");
    drop(lease);
    until(&runtime, "the release", async || !held(&a, &b).await).await;

    let with = b.with_conn(a.own_id(), RequestOptions::default(), async |lease| {
        assert!(held(&a, &b).await);
        let mut stream = lease.open_stream("echo/1").await.unwrap();
        stream.write_all(b"with a connection").await.unwrap();
        stream.finish().unwrap();
        stream.read_to_end(100).await.unwrap()
    });
    assert_eq!(soon(&runtime, "with_conn", with).await.unwrap(), b"with a connection");
    until(&runtime, "the release", async || !held(&a, &b).await).await;

    // A lease reports its loss.
    let mut lease =
        soon(&runtime, "acquire", b.acquire_connection(a.own_id(), RequestOptions::default()))
            .await
            .unwrap();
    assert_eq!(a.disconnect(b.own_id()).await.unwrap(), 1);
    soon(&runtime, "the loss", lease.lost()).await;
    soon(&runtime, "the loss again", lease.lost()).await;
    shutdown(&runtime, &[&a, &b]).await;
}

async fn connection_stays_open_while_items_come_over_it<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    echo(&runtime, &a, "echo/1").await;
    connect(&runtime, &b, &a).await;
    let held = async || {
        b.connections().await.unwrap().iter().any(|connection| connection.idle_in.is_none())
    };
    // A new stream for each item; no stream is open between two of them.
    let items = async || {
        let with = b.with_conn_stream(a.own_id(), RequestOptions::default(), async |lease| {
            Ok(smol::stream::unfold((lease, 0u8), async |(lease, n)| {
                let mut stream = lease.open_stream("echo/1").await.ok().filter(|_| n < 3)?;
                stream.write_all(&[n]).await.ok()?;
                stream.finish().ok()?;
                Some((stream.read_to_end(10).await.ok()?, (lease, n + 1)))
            }))
        });
        soon(&runtime, "with_conn_stream", with).await.unwrap()
    };
    let mut all = items().await;
    assert_eq!(all.lease().map(pk_driver::ConnectionLease::node), Some(a.own_id()));
    let mut seen = Vec::new();
    while let Some(item) = soon(&runtime, "an item", all.next()).await {
        assert!(held().await);
        seen.push(item);
    }
    assert_eq!(seen, [[0], [1], [2]]);
    until(&runtime, "the release at the end", async || !held().await).await;
    assert!(all.lease().is_none() && soon(&runtime, "the end again", all.next()).await.is_none());
    // Abandoned before it is complete.
    let mut some = items().await;
    assert!(soon(&runtime, "an item", some.next()).await.is_some() && held().await);
    drop(some);
    until(&runtime, "the release of the dropped", async || !held().await).await;
    // If there are no items, no lease is kept.
    let none = b.with_conn_stream(a.own_id(), RequestOptions::default(), async |_| {
        Err::<smol::stream::Empty<()>, _>(NodeError::Closed)
    });
    assert!(matches!(soon(&runtime, "with_conn_stream", none).await, Err(NodeError::Closed)));
    until(&runtime, "the release after an error", async || !held().await).await;
    shutdown(&runtime, &[&a, &b]).await;
}

async fn nodes_that_dial_each_other_at_once_agree_on_a_primary<R: Rt>(runtime: R) {
    const ROUNDS: usize = 20;
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    let mut doubled = 0;
    // Nothing is in flight on either side.
    let quiet = async |node: &Node<R>| {
        let (core, driver) = (node.metrics().await.unwrap(), node.driver_metrics());
        core.connections_pending == 0
            && driver.transport.handshakes_pending == 0
            && driver.transport.dials_pending == 0
    };
    for _ in 0..ROUNDS {
        let (from_a, from_b) = soon(
            &runtime,
            "two dials",
            zip(
                a.connect(b.own_id(), address(&b), RequestOptions::default()),
                b.connect(a.own_id(), address(&a), RequestOptions::default()),
            ),
        )
        .await;
        assert_eq!((from_a.unwrap().node, from_b.unwrap().node), (b.own_id(), a.own_id()));
        // Both ends accept on their own time.
        let mut connections = 0;
        until(&runtime, "agreement", async || {
            let of_a = connections_with(&a, b.own_id()).await;
            let of_b = connections_with(&b, a.own_id()).await;
            let names = |all: &[pk_proto::ConnectionInfo], primary: bool| -> BTreeSet<_> {
                let chosen = all.iter().filter(|one| one.primary || !primary);
                chosen.map(|one| one.shared_id.clone()).collect()
            };
            connections = of_a.len();
            quiet(&a).await
                && quiet(&b).await
                && !of_a.is_empty()
                && names(&of_a, false) == names(&of_b, false)
                && names(&of_a, true) == names(&of_b, true)
                && names(&of_a, true).len() == 1
        })
        .await;
        doubled += usize::from(connections == 2);
        assert!(connections <= 2);
        // The primary connection serves both directions.
        soon(&runtime, "ping", a.ping_node(b.own_id(), RequestOptions::default())).await.unwrap();
        soon(&runtime, "ping", b.ping_node(a.own_id(), RequestOptions::default())).await.unwrap();
        let mut events = b.events();
        a.disconnect(b.own_id()).await.unwrap();
        let closed = async {
            loop {
                if let Some(pk_driver::EventOrLag::Event(Event::ConnectionClosed { why, .. })) =
                    events.next().await
                {
                    return why;
                }
            }
        };
        let why = soon(&runtime, "the close", closed).await;
        assert!(matches!(why, DisconnectReason::Peer { code: 0, .. }), "{why}");
        until(&runtime, "the end of all", async || {
            quiet(&a).await
                && quiet(&b).await
                && a.connections().await.unwrap().is_empty()
                && b.connections().await.unwrap().is_empty()
        })
        .await;
    }
    println!("{}: two connections in {doubled} of {ROUNDS} rounds", R::NAME);
    shutdown(&runtime, &[&a, &b]).await;
}

async fn node_on_all_addresses_is_reached_over_both_families<R: Rt>(runtime: R) {
    let everywhere: SocketAddr = "[::]:0".parse().unwrap();
    let a = start_with(&runtime, 1, |config| config.listen = everywhere).await;
    let port = socket(&a).port();
    for (seed, from) in [(2, "127.0.0.1"), (3, "::1")] {
        let from: IpAddr = from.parse().unwrap();
        if std::net::UdpSocket::bind((from, 0)).is_err() {
            println!("{}: this machine has no {from}", R::NAME);
            continue;
        }
        let b = start_with(&runtime, seed, |config| config.listen.set_ip(from)).await;
        let at = NodeAddress::from_socket(SocketAddr::new(from, port));
        let connected = b.connect(a.own_id(), at.clone(), RequestOptions::default());
        assert_eq!(soon(&runtime, "connect", connected).await.unwrap().address, at);
        // IPv4 addresses are reported as IPv4, also by a dual-stack socket.
        let pong = soon(&runtime, "ping back", a.ping_node(b.own_id(), RequestOptions::default()))
            .await
            .unwrap();
        assert_eq!(pong.address, address(&b));
        shutdown(&runtime, &[&b]).await;
    }
    shutdown(&runtime, &[&a]).await;
}

async fn recorded_run_is_replayed<R: Rt>(runtime: R) {
    let c =
        start_with(&runtime, 3, |config| config.record = Some(Record::Memory(1024 * 1024))).await;
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    echo(&runtime, &b, "echo/1").await;
    join(&runtime, &b, seed(&a)).await;
    join(&runtime, &c, seed(&a)).await;
    let mut recording = c.take_recording().await.unwrap().unwrap();
    soon(&runtime, "find", c.find_node(b.own_id(), FindNodeOptions::default())).await.unwrap();
    exchange(&runtime, &c, b.own_id(), "echo/1", 10_000).await;
    // A dropped call is recorded, too.
    let hole = pk_tests::socket::BlackHole::open();
    let dropped =
        c.connect(pk_tests::node::key(9).node_id(), hole.address(), RequestOptions::default());
    assert!(try_within(&runtime, Duration::from_millis(100), dropped).await.is_none());
    shutdown(&runtime, &[&a]).await;
    until(&runtime, "the end of A", async || connections_with(&c, a.own_id()).await.is_empty())
        .await;
    recording.extend(c.take_recording().await.unwrap().unwrap());
    let seen: Vec<_> = c.closest_nodes(c.own_id(), 20).await.unwrap();
    shutdown(&runtime, &[&b, &c]).await;

    let mut replay = Replay::new(&recording).unwrap();
    let mut steps = 0;
    while replay.step().unwrap_or_else(|error| panic!("step {steps}: {error}")).is_some() {
        steps += 1;
    }
    let repeated: Vec<_> = replay.machine().closest_nodes(c.own_id(), 20);
    let repeated: Vec<_> =
        repeated.into_iter().map(|(node, contact)| (node, contact.clone())).collect();
    assert_eq!(repeated, seen);
    println!("{}: {steps} steps in {} bytes", R::NAME, recording.len());
    assert!(steps > 20, "only {steps} steps");
}
