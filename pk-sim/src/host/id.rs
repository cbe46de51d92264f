//! The number of a host.

/// Number of a host in its world, from 0 in the order of creation.
pub type HostId = usize;
