//! Nodes of the cases, and their common actions.

use std::net::SocketAddr;
use std::time::Duration;

use pk_driver::{KeyPair, Node, NodeConfig, Runtime};
use pk_proto::{
    ConnectionInfo, ContactMode, FindNodeOptions, NodeAddress, NodeContactAddressData, NodeId,
    RequestOptions, Scopes, SeedNode, Synced, UnixMillis,
};
use smol::future::try_zip;
use smol::io::{AsyncReadExt, AsyncWriteExt};

use crate::socket::loopback;
use crate::wait::{soon, spawn, within};

/// The key of a node of a case.
pub fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

/// The configuration of a node of a case: on a free port of 127.0.0.1, otherwise with the defaults.
pub fn config(seed: u8) -> NodeConfig {
    let mut config = NodeConfig::ephemeral(key(seed)).expect("the clock is not off by decades");
    config.listen = loopback();
    config
}

/// Starts a node.
pub async fn start<R: Runtime>(runtime: &R, seed: u8) -> Node<R> {
    start_with(runtime, seed, |_| {}).await
}

/// Starts a node with other settings.
pub async fn start_with<R: Runtime>(
    runtime: &R,
    seed: u8,
    change: impl FnOnce(&mut NodeConfig),
) -> Node<R> {
    let mut config = config(seed);
    change(&mut config);
    let node = soon(runtime, "start of a node", Node::start_on(runtime.clone(), config)).await;
    node.unwrap_or_else(|error| panic!("a node does not start: {error}"))
}

/// Where a node listens.
pub fn socket<R>(node: &Node<R>) -> SocketAddr {
    *node.local_addrs().first().expect("a node listens somewhere")
}

/// Where a node listens.
pub fn address<R>(node: &Node<R>) -> NodeAddress {
    NodeAddress::from_socket(socket(node))
}

/// A node as a seed of others.
pub fn seed<R>(node: &Node<R>) -> SeedNode {
    SeedNode { node: node.own_id(), address: address(node) }
}

/// Joins the network of a seed.
///
/// A stopped node delays the join by one second instead of the default of fifteen.
pub async fn join<R: Runtime>(runtime: &R, node: &Node<R>, seed: SeedNode) -> Synced {
    let options = RequestOptions { deadline: None, connect_timeout: Some(Duration::from_secs(1)) };
    let joined = soon(runtime, "join", node.sync_node_graph(vec![seed], true, options)).await;
    joined.unwrap_or_else(|error| panic!("a node does not join: {error}"))
}

/// Connects one node to another.
pub async fn connect<R: Runtime>(runtime: &R, from: &Node<R>, to: &Node<R>) -> ConnectionInfo {
    let connected = from.connect(to.own_id(), address(to), RequestOptions::default());
    soon(runtime, "connect", connected)
        .await
        .unwrap_or_else(|error| panic!("a node does not connect: {error}"))
}

/// The connections with a node.
pub async fn connections_with<R>(node: &Node<R>, peer: NodeId) -> Vec<ConnectionInfo> {
    let all = node.connections().await.expect("the node runs");
    all.into_iter().filter(|connection| connection.node == peer).collect()
}

/// Shuts nodes down, and fails if they do not end in time.
pub async fn shutdown<R: Runtime>(runtime: &R, nodes: &[&Node<R>]) {
    for node in nodes {
        soon(runtime, "shutdown", node.shutdown()).await;
        assert_eq!(node.driver_metrics().tasks, 0, "a node that has shut down has tasks");
    }
}

/// Options with a deadline for the request and for each dial.
pub fn options(deadline: Duration, connect_timeout: Duration) -> RequestOptions {
    RequestOptions { deadline: Some(deadline), connect_timeout: Some(connect_timeout) }
}

/// A search with these options.
pub fn find(options: RequestOptions) -> FindNodeOptions {
    FindNodeOptions { options, ..FindNodeOptions::default() }
}

/// Data of an address that an embedder adds.
pub fn global_address_data() -> NodeContactAddressData {
    NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: UnixMillis(0),
        scopes: Scopes::GLOBAL,
    }
}

/// Returns all received bytes on streams of this protocol, as long as the node runs.
pub async fn echo<R: Runtime>(runtime: &R, node: &Node<R>, protocol: &str) {
    let mut acceptor = node.accept_streams(protocol).await.expect("the protocol is free");
    let tasks = runtime.clone();
    drop(spawn(runtime, async move {
        while let Some(mut stream) = acceptor.accept().await {
            drop(spawn(&tasks, async move {
                while let Ok(Some(chunk)) = stream.read_chunk(16 * 1024).await {
                    if stream.write_all(&chunk).await.is_err() {
                        return;
                    }
                }
                let _ = stream.finish();
                // Dropping a finished stream aborts nothing.
            }));
        }
    }));
}

/// Sends this many bytes to the [`echo`] of a node and gets as many back, both at once.
pub async fn exchange<R: Runtime>(
    runtime: &R,
    node: &Node<R>,
    peer: NodeId,
    protocol: &str,
    len: usize,
) {
    let stream =
        soon(runtime, "open a stream", node.open_stream(peer, protocol, RequestOptions::default()))
            .await;
    let stream = stream.unwrap_or_else(|error| panic!("no stream: {error}"));
    assert_eq!((stream.node(), stream.protocol()), (peer, protocol));
    // Multiplicative hashing: every byte differs from its neighbours, so that a misplaced one is
    // detected.
    let sent: Vec<u8> =
        (0..len).map(|i| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let (mut recv, mut send) = smol::io::split(stream);
    let write = async {
        send.write_all(&sent).await?;
        send.close().await
    };
    let mut received = Vec::new();
    let both = try_zip(write, recv.read_to_end(&mut received));
    within(runtime, Duration::from_secs(40), "echo", both)
        .await
        .unwrap_or_else(|error| panic!("no echo: {error}"));
    assert!(sent == received, "the echo of {len} bytes has {} bytes, or others", received.len());
}
