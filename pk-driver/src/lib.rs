//! The driver of the Polykey node layer: the IO around [`pk_proto::NodeManager`].
//!
//! One task per node, the pump, connects the core to a QUIC endpoint, a store, the clock and the
//! API handles. It is generic over a small [`Runtime`] trait. `pk-driver-tokio` and
//! `pk-driver-smol` implement that trait and provide the same [`Node`].
#![warn(missing_docs)]

mod config;
mod cx;
mod error;
mod job;
#[cfg_attr(not(feature = "mdns"), path = "mdns/none.rs")]
mod mdns;
mod metrics;
mod net;
mod node;
mod port_mapping;
mod pump;
mod stream;
mod system;
#[cfg(test)]
mod tests;

pub use config::{DriverConfig, DriverConfigError, MdnsConfig, MdnsInterfaces, PortMappingConfig};
pub use error::{NodeError, StartError};
pub use metrics::DriverMetrics;
pub use node::Node;
pub use node::config::NodeConfig;
pub use node::events::{EventOrLag, Events};
pub use node::lease::{ConnectionLease, ConnectionStream};
pub use node::renewal::{CertificateFailure, Renewed};
#[cfg(any(test, feature = "faults"))]
pub use pk_host::{Access, Fault, Faults, FaultyStore};
pub use pk_host::{
    DirLock, DirLockError, IdentityError, KeyPair, KeyStore, KeyStoreError, MemoryStore,
    PendingSignature, RootKey, RootKeyError, SignatureSender, Signer, SignerError, Store,
    StoreError, TransportSecret, clock_warning, create_identity, create_identity_for,
    renew_certificate, unix as unix_now,
};
#[cfg(feature = "redb")]
pub use pk_host::{RedbStore, StoreOpenError};
pub use pk_proto;
pub use pk_quic::{SettingsError, StreamError, TransportMetrics, TransportSettings};
pub use port_mapping::failure::PortMappingFailure;
pub use port_mapping::lease::{PortMapping, PortMappingEvent, PortMappingProtocol};
pub use pump::recording::Record;
pub use quinn;
pub use stream::Stream;
pub use stream::accept::StreamAcceptor;
pub use system::runtime::{AddressChanges, BoxFuture, Runtime};
