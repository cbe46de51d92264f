//! What a node starts from.

use pk_proto::{Identity, Snapshot};

use crate::keys::pair::KeyPair;
use crate::keys::transport_secret::TransportSecret;

/// What a node starts from, apart from the network.
#[derive(Debug)]
pub struct HostState {
    /// Present key.
    pub key: KeyPair,
    /// Certificates of the key.
    pub identity: Identity,
    /// Secret of the transport.
    pub secret: TransportSecret,
    /// Stored rows of the last run.
    pub snapshot: Snapshot,
    /// New random bytes.
    pub seed: [u8; 32],
}
