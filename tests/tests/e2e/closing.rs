//! Connections that are not in use are closed: the primary one late, the others soon, those in use
//! never.

use std::time::{Duration, Instant};

use pk_driver::{EventOrLag, Node, NodeConfig};
use pk_proto::DisconnectReason;
use pk_proto::{ConnectionInfo, Event, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{address, connect, connections_with, shutdown, start_with};
use pk_tests::wait::{sleep, soon, until};
use smol::future::zip;

pk_tests::cases!(
    unused_connection_is_closed_and_one_in_use_is_kept,
    only_the_primary_of_two_connections_stays,
);

const IDLE: Duration = Duration::from_secs(1);

async fn unused_connection_is_closed_and_one_in_use_is_kept<R: Rt>(runtime: R) {
    let soon_idle = |config: &mut NodeConfig| {
        config.core.connection_idle_timeout = IDLE;
        config.core.connection_idle_scale = Duration::ZERO;
        // Otherwise the connection stays, as the only one to the farthest contacts.
        config.core.retry_delay = Duration::ZERO;
    };
    let (a, b) =
        (start_with(&runtime, 1, soon_idle).await, start_with(&runtime, 2, soon_idle).await);
    let mut events = b.events();
    let gone = async || {
        a.connections().await.unwrap().is_empty() && b.connections().await.unwrap().is_empty()
    };
    let begun = Instant::now();
    connect(&runtime, &b, &a).await;
    until(&runtime, "the close", gone).await;
    println!("{}: closed after {:?}", R::NAME, begun.elapsed());
    assert!(begun.elapsed() >= IDLE, "it was closed early");
    let why = async {
        loop {
            if let Some(EventOrLag::Event(Event::ConnectionClosed { why, .. })) =
                events.next().await
            {
                return why;
            }
        }
    };
    // By whichever end was first.
    let why = soon(&runtime, "the event", why).await;
    assert!(
        matches!(why, DisconnectReason::Local | DisconnectReason::Peer { code: 0, .. }),
        "{why}"
    );
    // Its contact is kept.
    assert!(b.contact(a.own_id()).await.unwrap().is_some());

    let lease =
        soon(&runtime, "acquire", b.acquire_connection(a.own_id(), RequestOptions::default()))
            .await
            .unwrap();
    sleep(&runtime, 3 * IDLE).await;
    let held: Vec<_> =
        b.connections().await.unwrap().iter().map(|connection| connection.conn).collect();
    assert_eq!(held, [lease.info().conn], "it is held, and the other end knows");
    drop(lease);
    until(&runtime, "the close", gone).await;
    shutdown(&runtime, &[&a, &b]).await;
}

async fn only_the_primary_of_two_connections_stays<R: Rt>(runtime: R) {
    let change = |config: &mut NodeConfig| {
        config.core.connection_idle_timeout = IDLE;
        // Hours, in all buckets but the farthest.
        config.core.connection_idle_scale = Duration::from_secs(30 * 86_400);
    };
    let a = start_with(&runtime, 1, change).await;
    let near = (2..).find(|seed| {
        a.own_id().bucket_index(&pk_tests::node::key(*seed).node_id()).unwrap().0 < 255
    });
    let b = start_with(&runtime, near.unwrap(), change).await;
    let both = async |from: &Node<R>, to: &Node<R>| connections_with(from, to.own_id()).await;
    // Two nodes that dial each other at once often have two connections.
    let mut all: Vec<ConnectionInfo> = Vec::new();
    while all.len() < 2 {
        a.disconnect(b.own_id()).await.unwrap();
        until(&runtime, "the end", async || {
            both(&a, &b).await.is_empty() && both(&b, &a).await.is_empty()
        })
        .await;
        let dials = zip(
            a.connect(b.own_id(), address(&b), RequestOptions::default()),
            b.connect(a.own_id(), address(&a), RequestOptions::default()),
        );
        let _ = soon(&runtime, "two dials", dials).await;
        until(&runtime, "both ends of all", async || {
            let (of_a, of_b) = (both(&a, &b).await, both(&b, &a).await);
            let pending = a.metrics().await.unwrap().connections_pending
                + b.metrics().await.unwrap().connections_pending;
            pending == 0 && !of_a.is_empty() && of_a.len() == of_b.len()
        })
        .await;
        all = both(&a, &b).await;
    }
    let smallest = all.iter().map(|connection| connection.shared_id.clone()).min().unwrap();
    let one = async |node: &Node<R>, other: &Node<R>| {
        let left = both(node, other).await;
        left.len() == 1 && left[0].primary && left[0].shared_id == smallest
    };
    until(&runtime, "one is left at both ends", async || one(&a, &b).await && one(&b, &a).await)
        .await;
    // The connection stays.
    sleep(&runtime, 2 * IDLE).await;
    assert!(one(&a, &b).await && one(&b, &a).await);
    shutdown(&runtime, &[&a, &b]).await;
}
