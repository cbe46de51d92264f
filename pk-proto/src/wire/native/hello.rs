//! The first message of `pk/1`.

use alloc::string::String;

/// Versions and extensions of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Hello {
    /// Oldest supported version.
    pub version_min: u16,
    /// Newest supported version.
    pub version_max: u16,
    /// One bit per supported extension.
    pub features: u64,
    /// Name of the software, for people; at most [`MAX_AGENT`](super::MAX_AGENT) bytes.
    pub agent: String,
}

impl Hello {
    /// Extension: `Exchange` and `SignedToken`, and the request `SignClaim`.
    pub const EXCHANGE: u64 = 1;
    /// Extension: the request `Claims`.
    pub const CLAIMS: u64 = 2;
    /// Extension: signals that involve a node of Polykey 1.x, with
    /// [`SignalTerms::Plain`](crate::SignalTerms::Plain).
    pub const PLAIN_SIGNALS: u64 = 4;
    /// The node belongs to a network: if the peer does, too, both send
    /// [`V1::Network`](super::V1::Network) after their Hellos.
    pub const NETWORK: u64 = 8;
    /// Extension: the requests `Relay`, `Circuit` and `Candidates`. A node with it may still refuse
    /// to relay.
    pub const RELAY: u64 = 16;
    /// Extension: [`V1::External`](super::V1::External).
    pub const EXTERNAL: u64 = 32;
}
