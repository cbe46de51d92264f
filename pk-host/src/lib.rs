//! What a Polykey node has on its host, apart from the network: keys and certificates, a store, a
//! directory with a lock, and clocks.
//!
//! Everything here is synchronous and independent of QUIC, so that a driver of any kind uses it:
//! [`KeyStore`] keeps the keys and certificates of a node, [`Store`] its tables, [`Clock`] reads
//! the time that [`pk_proto::NodeManager`] expects.
#![warn(missing_docs)]

#[cfg(feature = "redb")]
mod directory;
mod keys;
mod state;
mod store;
mod system;

#[cfg(feature = "redb")]
pub use directory::{Directory, DirectoryError};
pub use keys::identity::{
    IdentityError, Keys, Validity, create_identity, create_identity_for, dropped, relinked,
    renew_certificate, renewed, succeeded,
};
pub use keys::issue::{certified, certified_is_due, check_room};
pub use keys::key_store::{KeyStore, KeyStoreError};
pub use keys::pair::{KeyPair, KeyRing};
pub use keys::root::{RootKey, RootKeyError};
pub use keys::signer::{PendingSignature, SignatureSender, Signer, SignerError};
pub use keys::transport_secret::TransportSecret;
pub use state::HostState;
#[cfg(any(test, feature = "faults"))]
pub use store::faults::{Access, Fault, Faults, FaultyStore};
#[cfg(feature = "redb")]
pub use store::redb::{RedbStore, StoreOpenError};
pub use store::{MemoryStore, Store, StoreError};
pub use system::clock::{Clock, clock_warning, unix};
pub use system::clock_watch::ClockWatch;
pub use system::dir_lock::{DirLock, DirLockError};
pub use system::files;
