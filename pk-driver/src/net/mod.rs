//! The socket of a node.

pub(crate) mod socket;
