//! The driver of the Polykey node layer: everything that [`pk_proto::NodeManager`] must not do itself.
//!
//! One pump per node moves bytes, time and wishes between the core, a QUIC endpoint, a store and the embedder. It is
//! written once, over a small [`Runtime`] trait; `pk-driver-tokio` and `pk-driver-smol` bind it, and give the same
//! [`Node`].
#![warn(missing_docs)]

mod accept;
mod clock;
mod config;
mod core;
mod cx;
mod deadlines;
mod desk;
mod error;
mod events;
mod identity;
mod key_store;
mod keys;
mod launch;
mod lease;
mod metrics;
mod net;
mod node;
mod node_config;
mod node_graph;
mod pump;
mod ready;
mod resolver;
mod runtime;
mod store;
mod store_place;
mod stream;
mod tasks;
#[cfg(test)]
mod tests;

pub use accept::StreamAcceptor;
pub use clock::unix as now;
pub use config::{DriverConfig, DriverConfigError};
pub use error::{NodeError, StartError, StreamError};
pub use events::{Events, Notice};
pub use identity::{IdentityError, create_identity, renew_certificate};
pub use key_store::{KeyStore, KeyStoreError};
pub use keys::KeyPair;
pub use lease::ConnectionLease;
pub use metrics::DriverMetrics;
pub use node::Node;
pub use node_config::NodeConfig;
pub use pk_proto;
pub use quinn;
pub use runtime::{BoxFuture, Runtime};
pub use store::{MemoryStore, Store, StoreError};
pub use stream::Stream;
