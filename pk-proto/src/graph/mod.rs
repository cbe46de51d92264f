//! NodeGraph: the contacts of this node, in Kademlia's buckets.

mod bucket;
mod bucket_set;
mod contact;
mod diversity;
mod pending;
mod table;

pub use contact::NodeContact;
pub use diversity::DiversityLimits;
pub(crate) use pending::{PendingNode, PendingNodes};
pub use table::{Direction, NodeGraph, NodeOrder};
