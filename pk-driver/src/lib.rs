//! The driver of the Polykey node layer: everything that [`pk_proto::NodeManager`] must not do itself.
//!
//! One pump per node moves bytes, time and wishes between the core, a QUIC endpoint, a store and the embedder. It is
//! written once, over a small [`Runtime`] trait; `pk-driver-tokio` and `pk-driver-smol` bind it, and give the same
//! [`Node`].
#![warn(missing_docs)]

mod accept;
mod blocking;
mod clock;
mod config;
mod core;
mod cx;
mod deadlines;
mod desk;
mod error;
mod events;
#[cfg(any(test, feature = "faults"))]
mod faults;
mod files;
mod identity;
mod key_store;
mod keys;
mod launch;
mod lease;
#[cfg_attr(not(feature = "mdns"), path = "mdns_none.rs")]
mod mdns;
mod metrics;
mod net;
mod node;
mod node_claims;
mod node_config;
mod node_graph;
mod node_renewal;
mod pump;
mod ready;
mod recording;
#[cfg(feature = "redb")]
mod redb_store;
mod renewal;
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
pub use config::{DriverConfig, DriverConfigError, MdnsConfig, MdnsInterfaces};
pub use error::{NodeError, StartError, StreamError};
pub use events::{Events, Notice};
#[cfg(any(test, feature = "faults"))]
pub use faults::{Access, Fault, Faults, FaultyStore};
pub use identity::{IdentityError, create_identity, create_identity_for, renew_certificate};
pub use key_store::{KeyStore, KeyStoreError};
pub use keys::KeyPair;
pub use lease::{ConnectionLease, ConnectionStream};
pub use metrics::DriverMetrics;
pub use node::Node;
pub use node_config::NodeConfig;
pub use pk_proto;
pub use quinn;
pub use recording::Record;
#[cfg(feature = "redb")]
pub use redb_store::{RedbStore, StoreOpenError};
pub use renewal::Renewed;
pub use runtime::{BoxFuture, Runtime};
pub use store::{MemoryStore, Store, StoreError};
pub use stream::Stream;
