//! The node graph: the contacts of this node in Kademlia buckets.

mod bucket;
mod bucket_set;
mod diversity;
pub(crate) mod outcome;
mod pending;
mod table;

pub use self::diversity::{DiversityLimits, is_global_unicast};
pub use self::outcome::{SetNodeOutcome, SetNodeRejection};
pub(crate) use self::pending::{PendingNode, PendingNodes};
pub use self::table::{Direction, NodeGraph, NodeOrder};
