//! Sockets: both families, and errors of the system.

use std::net::SocketAddr;

use pk_host::Clock;
use pk_proto::{Failure, RequestOptions};
use pk_quic::{Effect, NodeSetup, Poll};

use super::{TestRuntime, host};
use crate::{Node, NodeConfig, NodeError};

async fn start(seed: u8, listen: &str) -> Node<TestRuntime> {
    let host = host(seed);
    let mut config = NodeConfig::new(host.key, host.identity);
    config.listen = listen.parse().unwrap();
    Node::start(config).await.unwrap()
}

async fn remote(from: &Node<TestRuntime>, to: &Node<TestRuntime>, addr: SocketAddr) -> String {
    from.disconnect(to.own_id()).await.unwrap();
    let options = RequestOptions::default();
    from.connect(to.own_id(), addr.into(), options).await.unwrap().address.to_string()
}

#[tokio::test]
async fn ipv4_address_is_reported_as_ipv4_by_an_ipv6_socket() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        println!("this machine has no IPv6");
        return;
    }
    let (a, b) = (start(1, "[::]:0").await, start(2, "[::]:0").await);
    let c = start(3, "127.0.0.1:0").await;
    let v4 = SocketAddr::from(([127, 0, 0, 1], b.local_addrs()[0].port()));
    let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, b.local_addrs()[0].port()));
    assert_eq!(remote(&a, &b, v4).await, v4.to_string());
    assert_eq!(remote(&c, &b, v4).await, v4.to_string());
    let at_b = b.connections().await.unwrap();
    let of_c = at_b.iter().find(|connection| connection.node == c.own_id()).unwrap();
    assert_eq!(of_c.address.to_string(), c.local_addrs()[0].to_string());
    assert_eq!(remote(&a, &b, v6).await, v6.to_string());
}

#[tokio::test]
async fn dial_rejected_by_the_system_fails_at_once_with_the_reason() {
    let node = start(1, "127.0.0.1:0").await;
    // From a loopback address no other machine can be reached.
    let addr: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let begun = std::time::Instant::now();
    let peer = host(9).key.node_id();
    let error = node.connect(peer, addr.into(), RequestOptions::default()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("the system cannot send there"), "{text}");
    assert!(matches!(error, NodeError::Failure(Failure::Dial(_))));
    assert!(begun.elapsed() < std::time::Duration::from_secs(3));
}

#[test]
fn core_is_informed_of_a_socket_on_another_port() {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let clock = Clock::new();
    let origin = std::time::Instant::now();
    let mut setup = NodeSetup::new(host(1), at(1), origin, clock.now(), clock.unix());
    setup.config.mdns = true;
    let mut node = pk_quic::Node::new(setup).unwrap();
    let advertised = |node: &mut pk_quic::Node| {
        let polls = std::iter::from_fn(|| node.poll());
        let ports = polls.filter_map(|poll| match poll {
            Poll::Effect(Effect::Advertise { port, .. }) => port,
            _ => None,
        });
        ports.collect::<Vec<_>>()
    };
    assert_eq!(advertised(&mut node), [1]);
    node.rebound(clock.now(), at(2));
    assert_eq!(advertised(&mut node), [2]);
    assert_eq!(node.transport().bound(), at(2));
    node.rebound(clock.now(), at(2));
    assert!(advertised(&mut node).is_empty());
}
