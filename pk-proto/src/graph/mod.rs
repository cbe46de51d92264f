//! NodeGraph: the contacts of this node, in Kademlia's buckets.

mod contact;

pub use contact::NodeContact;
