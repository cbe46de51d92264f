//! The Polykey node layer on tokio: [`pk_driver`] with tokio's tasks, timers, sockets and resolver.
//!
//! ```no_run
//! use pk_driver_tokio::{Node, NodeConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Keys, certificates and the graph of before; a new node where there is none.
//! let node = Node::start(NodeConfig::open("/var/lib/polykey")?).await?;
//! println!("{} listens on {:?}", node.own_id(), node.local_addrs());
//! node.shutdown().await;
//! # Ok(()) }
//! ```
#![warn(missing_docs)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

pub use pk_driver::*;

/// A node on tokio.
pub type Node = pk_driver::Node<Tokio>;

/// A lease of a connection of a [`Node`].
pub type ConnectionLease = pk_driver::ConnectionLease<Tokio>;

/// Items received over a leased connection of a [`Node`].
pub type ConnectionStream<S> = pk_driver::ConnectionStream<Tokio, S>;

/// The tokio runtime. A node uses the runtime in whose context it was started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokio;

impl Runtime for Tokio {
    fn quinn(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }

    fn resolve(&self, host: String, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }

    fn address_changes(&self) -> io::Result<AddressChanges> {
        let mut watcher = if_watch::tokio::IfWatcher::new()?;
        Ok(Box::new(move |context| watcher.poll_if_event(context).map_ok(drop)))
    }
}

/// The code of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
