//! NodeGraph: the contacts of this node, in Kademlia's buckets.

mod bucket;
mod bucket_set;
mod contact;
mod table;

pub use contact::NodeContact;
pub use table::{Direction, NodeGraph, NodeOrder};
