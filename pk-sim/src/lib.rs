//! pk-sim
#![forbid(unsafe_code)]

mod app;
mod checkers;
mod cluster;
mod coverage;
mod dice;
mod effects;
mod host;
mod identity;
mod journal;
mod link;
mod machine;
mod network;
mod puppet;
mod store;
mod transport;
mod wire;
mod world;

pub use app::{App, AppAction, AppStream};
pub use checkers::{CheckCounters, Violation};
pub use cluster::{Cluster, ClusterBuilder};
pub use coverage::Coverage;
pub use host::{Host, TransportConfig};
pub use identity::{Key, genesis, renew};
pub use link::Link;
pub use machine::{GraphView, Machine};
pub use network::Network;
pub use puppet::{Actor, Puppet};
pub use store::{CrashPolicy, Store};
pub use transport::TransportCounters;
pub use world::{Boot, World, WorldCounters};

/// The number of a host in its world, from 0 in the order of their adding.
pub type HostId = usize;
