//! Two nodes on loopback, on smol. The cases themselves are in `tests/`; this shows that the binding works.

#![allow(clippy::unwrap_used, reason = "the helpers belong to tests, too")]

use std::time::{Duration, Instant};

use pk_driver_smol::pk_proto::{FindNode, Options};
use pk_driver_smol::{KeyPair, Node, NodeConfig};

/// UDP and other sockets that this process has open.
#[cfg(target_os = "linux")]
fn sockets() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    let target = |file: std::io::Result<std::fs::DirEntry>| std::fs::read_link(file.unwrap().path());
    files
        .map(target)
        .filter(|target| target.as_ref().is_ok_and(|target| target.to_string_lossy().starts_with("socket:")))
        .count()
}

#[cfg(not(target_os = "linux"))]
fn sockets() -> usize {
    0
}

async fn start(seed: u8) -> Node {
    let mut config = NodeConfig::ephemeral(KeyPair::from_seed(&[seed; 32])).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    Node::start(config).await.unwrap()
}

#[test]
fn two_nodes_find_each_other_and_leave_nothing() {
    smol::block_on(two_nodes());
}

async fn two_nodes() {
    let before = sockets();
    let (a, b) = (start(1).await, start(2).await);
    let address = b.local_addrs()[0].into();
    let begun = Instant::now();
    let connection = a.connect(b.own_id(), address, Options::default()).await.unwrap();
    println!("smol: connected in {:?}", begun.elapsed());
    assert_eq!(connection.node, b.own_id());
    let found = a.find_node(b.own_id(), FindNode::default()).await.unwrap();
    assert!(found.found.is_some(), "{found:?}");
    let begun = Instant::now();
    let pong = b.ping_node(a.own_id(), Options::default()).await.unwrap();
    println!("smol: pinged in {:?}, rtt {:?}", begun.elapsed(), pong.rtt);

    let begun = Instant::now();
    a.shutdown().await;
    println!("smol: shut down in {:?}", begun.elapsed());
    b.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!((a.driver_metrics().tasks, b.driver_metrics().tasks), (0, 0));
    assert_eq!(sockets(), before, "every socket is closed");
}
