//! Plain values: ids, times, addresses, signatures. The lowest layer, which imports nothing from
//! the others.

pub(crate) mod address;
pub(crate) mod contact;
#[cfg(feature = "arbitrary")]
pub(crate) mod generators;
pub(crate) mod id;
pub(crate) mod nearest;
pub(crate) mod network;
pub(crate) mod network_id;
pub(crate) mod queue;
pub(crate) mod refusal;
pub(crate) mod seed_node;
pub(crate) mod signature;
pub(crate) mod sockets;
pub(crate) mod time;

pub use self::address::{
    ContactMode, Host, Hostname, NodeAddress, NodeAddressScope, NodeContactAddressData,
    ParseAddressError, Scopes,
};
pub use self::contact::NodeContact;
pub use self::id::{
    ApprovalId, BucketIndex, ConnectionId, Distance, EffectId, LeaseId, NodeId, NodeIdEncoded,
    ParseNodeIdError, RequestId, StreamId,
};
pub use self::network::Network;
pub use self::network_id::{NetworkId, NetworkIdError};
pub use self::refusal::Refusal;
pub use self::seed_node::{ParseSeedNodeError, SeedNode};
pub use self::signature::{Signature, SignatureFault, verify};
pub use self::sockets::is_relayed_address;
pub use self::time::{Instant, UnixMillis};
