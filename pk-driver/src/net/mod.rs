//! The socket of a node, and the addresses that it can have.

pub(crate) mod interfaces;
pub(crate) mod socket;
