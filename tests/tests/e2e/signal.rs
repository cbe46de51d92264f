//! Nodes that cannot reach each other connect through one that both are connected to.

use std::time::Duration;

use pk_driver::Node;
use pk_proto::{ContactMode, DialFailure, FindEnd, FindNodeOptions, FindStepEnd, RequestOptions};
use pk_tests::Rt;
use pk_tests::firewall::Firewalled;
use pk_tests::node::{
    address, connections_with, echo, exchange, find, options, shutdown, start, start_with,
};
use pk_tests::wait::{soon, until};

pk_tests::cases!(
    two_nodes_behind_firewalls_connect_through_a_relay,
    failed_hole_punching_is_reported_as_such,
);

/// A node behind a firewall, connected to the relay, and its firewall.
async fn behind_firewall<R: Rt>(
    runtime: &R,
    relay: &Node<R>,
    seed: u8,
) -> (Node<Firewalled<R>>, Firewalled<R>) {
    let wall = Firewalled::new(runtime.clone());
    // Without relayed connections, which `pk-cli/tests/nat` has.
    let node = start_with(&wall, seed, |config| config.core.relay.paths = 0).await;
    let connected = node.connect(relay.own_id(), address(relay), RequestOptions::default());
    soon(runtime, "connect to the relay", connected).await.unwrap();
    until(runtime, "the relay's end of it", async || {
        !connections_with(relay, node.own_id()).await.is_empty()
    })
    .await;
    (node, wall)
}

async fn two_nodes_behind_firewalls_connect_through_a_relay<R: Rt>(runtime: R) {
    let relay = start(&runtime, 1).await;
    let ((a, wall), (b, _)) =
        (behind_firewall(&runtime, &relay, 2).await, behind_firewall(&runtime, &relay, 3).await);
    // No packet gets through from outside.
    let stranger = start(&runtime, 4).await;
    let patience = Duration::from_millis(700);
    let knocked = stranger.connect(a.own_id(), address(&a), options(2 * patience, patience));
    soon(&runtime, "a knock", knocked).await.unwrap_err();
    assert!(wall.stopped() > 0);
    shutdown(&runtime, &[&stranger]).await;

    let found =
        soon(&runtime, "find", a.find_node(b.own_id(), FindNodeOptions::default())).await.unwrap();
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    let (at, data) = found.found.clone().unwrap();
    assert_eq!((at, data.mode), (address(&b), ContactMode::Signal), "{found:?}");
    println!("{}: through a relay in {:?}", R::NAME, found.stats.elapsed);
    assert_eq!(relay.metrics().await.unwrap().signals_relayed, 1);
    assert_eq!(a.metrics().await.unwrap().signals_sent, 1);
    assert!(
        b.driver_metrics().transport.punches > 0
            && b.driver_metrics().transport.punches_dropped == 0
    );
    until(&runtime, "the other end", async || {
        let there = connections_with(&b, a.own_id()).await;
        there
            .iter()
            .any(|connection| connection.primary && connection.data.mode == ContactMode::Signal)
    })
    .await;
    for (node, other) in [(&a, &b), (&b, &a)] {
        let contact = node.contact(other.own_id()).await.unwrap().unwrap();
        assert!(contact.iter().all(|(_, data)| data.mode == ContactMode::Signal), "{contact:?}");
    }
    echo(&wall, &b, "echo/1").await;
    exchange(&wall, &a, b.own_id(), "echo/1", 100_000).await;
    // It no longer needs the relay.
    shutdown(&runtime, &[&relay]).await;
    exchange(&wall, &a, b.own_id(), "echo/1", 1000).await;
    shutdown(&wall, &[&a, &b]).await;
}

async fn failed_hole_punching_is_reported_as_such<R: Rt>(runtime: R) {
    let relay = start(&runtime, 1).await;
    let ((a, _), (b, wall)) =
        (behind_firewall(&runtime, &relay, 2).await, behind_firewall(&runtime, &relay, 3).await);
    // As if both ends were behind symmetric NATs: sent packets admit none from the other end.
    wall.block_new_addresses();
    let patience = Duration::from_secs(2);
    let find = find(options(4 * patience, patience));
    let found = soon(&runtime, "find", a.find_node(b.own_id(), find)).await.unwrap();
    assert_eq!((found.found, found.ended), (None, FindEnd::Exhausted));
    let step = found.trace.iter().rev().find(|step| step.node == b.own_id()).map(|step| &step.end);
    let Some(FindStepEnd::Unreachable(failures)) = step else { panic!("{step:?}") };
    assert!(
        failures.iter().any(|(_, why)| *why == DialFailure::TimedOutAfterSignal),
        "{failures:?}"
    );
    let ping =
        soon(&runtime, "ping", a.ping_node(b.own_id(), options(4 * patience, patience))).await;
    let said = ping.unwrap_err().to_string();
    assert!(said.contains("signalling was accepted"), "{said}");
    println!("{}: {said}", R::NAME);
    assert!(b.driver_metrics().transport.punches > 0);
    assert_eq!(a.metrics().await.unwrap().requests_open, 0);
    shutdown(&wall, &[&a, &b]).await;
    shutdown(&runtime, &[&relay]).await;
}
