//! The Polykey node layer on smol: [`pk_driver`] with smol's tasks, timers, sockets and resolver.
//! It starts no tokio runtime and needs none.
//!
//! ```no_run
//! use pk_driver_smol::{Node, NodeConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! smol::block_on(async {
//!     // Keys, certificates and the graph of before; a new node where there is none.
//!     let node = Node::start(NodeConfig::open("/var/lib/polykey")?).await?;
//!     println!("{} listens on {:?}", node.own_id(), node.local_addrs());
//!     node.shutdown().await;
//!     Ok(())
//! })
//! # }
//! ```
#![warn(missing_docs)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

pub use pk_driver::*;

/// A node on smol.
pub type Node = pk_driver::Node<Smol>;

/// A lease of a connection of a [`Node`].
pub type ConnectionLease = pk_driver::ConnectionLease<Smol>;

/// Items received over a leased connection of a [`Node`].
pub type ConnectionStream<S> = pk_driver::ConnectionStream<Smol, S>;

/// The smol runtime: its global executor, with `SMOL_THREADS` threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct Smol;

impl Runtime for Smol {
    fn quinn(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::SmolRuntime)
    }

    fn resolve(&self, host: String, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>> {
        Box::pin(smol::net::resolve((host, port)))
    }

    fn address_changes(&self) -> io::Result<AddressChanges> {
        let mut watcher = if_watch::smol::IfWatcher::new()?;
        Ok(Box::new(move |context| watcher.poll_if_event(context).map_ok(drop)))
    }
}
