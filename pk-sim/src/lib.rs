//! pk-sim
#![forbid(unsafe_code)]

mod app;
mod checkers;
mod cluster;
mod dice;
mod effects;
mod host;
mod identity;
mod journal;
mod link;
mod machine;
mod network;
mod store;
mod transport;
mod wire;
mod world;

pub use app::*;
pub use checkers::*;
pub use cluster::*;
pub use host::*;
pub use identity::{Key, genesis, renew};
pub use link::*;
pub use machine::*;
pub use network::*;
pub use store::*;
pub use world::*;

/// The number of a host in its world, from 0 in the order of their adding.
pub type HostId = usize;
