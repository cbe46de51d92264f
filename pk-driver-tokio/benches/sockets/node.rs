//! The work of two nodes.

use std::net::SocketAddr;

use pk_driver_tokio::pk_proto::{ClosestNodesQuery, NodeId, RequestOptions};
use pk_driver_tokio::{KeyPair, Node, NodeConfig};

/// Contacts of the node that is asked.
const CONTACTS: u8 = 20;

/// Starts a node on loopback with room for many connections.
pub(crate) async fn start(seed: u64) -> Node {
    start_with(seed, |_| {}).await
}

/// Like [`start`], with other settings.
pub(crate) async fn start_with(seed: u64, change: impl FnOnce(&mut NodeConfig)) -> Node {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut config = NodeConfig::ephemeral(KeyPair::from_seed(&bytes)).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.core.connection_limit = 16_384;
    config.core.connection_idle_timeout = std::time::Duration::from_secs(3600);
    change(&mut config);
    Node::start(config).await.unwrap()
}

pub(crate) struct Nodes {
    a: Node,
    b: Node,
    others: Vec<Node>,
    id: NodeId,
    addr: SocketAddr,
}

impl Nodes {
    pub(crate) async fn start() -> Self {
        let (a, b) = (start(1).await, start(2).await);
        let (id, addr) = (b.own_id(), b.local_addrs()[0]);
        let mut others = Vec::new();
        for seed in 0..CONTACTS {
            let other = start(100 + u64::from(seed)).await;
            other.connect(id, addr.into(), RequestOptions::default()).await.unwrap();
            others.push(other);
        }
        a.connect(id, addr.into(), RequestOptions::default()).await.unwrap();
        Self { a, b, others, id, addr }
    }

    pub(crate) async fn pings(&self, count: usize) {
        for _ in 0..count {
            self.a.ping_node(self.id, RequestOptions::default()).await.unwrap();
        }
    }

    pub(crate) async fn parallel(&self, tasks: usize, each: usize) {
        let tasks: Vec<_> = (0..tasks)
            .map(|_| {
                let (a, id) = (self.a.clone(), self.id);
                tokio::spawn(async move {
                    for _ in 0..each {
                        a.ping_node(id, RequestOptions::default()).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }

    pub(crate) async fn closest(&self, count: usize) {
        let query = ClosestNodesQuery { known: true, connected: true };
        for _ in 0..count {
            let answer = self
                .a
                .query_closest_nodes(self.id, self.a.own_id(), query, RequestOptions::default())
                .await
                .unwrap();
            assert!(answer.known.len() >= usize::from(CONTACTS) - 1, "{}", answer.known.len());
        }
    }

    pub(crate) async fn connects(&self, count: usize) {
        for _ in 0..count {
            self.a.disconnect(self.id).await.unwrap();
            while self.a.connections().await.unwrap().iter().any(|it| it.node == self.id) {
                tokio::task::yield_now().await;
            }
            self.a.connect(self.id, self.addr.into(), RequestOptions::default()).await.unwrap();
            self.a.ping_node(self.id, RequestOptions::default()).await.unwrap();
        }
    }

    pub(crate) async fn bulk(&self, bytes: usize) {
        bulk(&self.a, &self.b, bytes).await;
    }

    pub(crate) async fn stop(self) {
        for node in [self.a, self.b].into_iter().chain(self.others) {
            node.shutdown().await;
        }
    }
}

/// One node sends a stream to another one with which it is connected, which reads it.
pub(crate) async fn bulk(from: &Node, to: &Node, bytes: usize) {
    let mut acceptor = to.accept_streams("bulk/1").await.unwrap();
    let reader = tokio::spawn(async move {
        let mut stream = acceptor.accept().await.unwrap();
        let mut all = 0;
        while let Some(chunk) = stream.read_chunk(1 << 20).await.unwrap() {
            all += chunk.len();
        }
        all
    });
    let options = RequestOptions::default();
    let mut stream = from.open_stream(to.own_id(), "bulk/1", options).await.unwrap();
    let chunk = vec![7; 64 * 1024];
    for _ in 0..bytes / chunk.len() {
        stream.write_all(&chunk).await.unwrap();
    }
    stream.finish().unwrap();
    assert_eq!(reader.await.unwrap(), bytes);
}
