//! Real nodes in a simulated world: [`NodeManager`](pk_proto::NodeManager)s on hosts with links,
//! stores and clocks, in virtual time, with checkers for all inputs and outputs.
//!
//! Most tests use a [`Cluster`]: a number of nodes, started, with keys and certificates, identified
//! by number.
//!
//! ```
//! use std::time::Duration;
//! use pk_proto::{FindEnd, FindNodeOptions, Reply, Request};
//! use pk_sim::{Cluster, Link};
//!
//! let link = Link::ms(40).jitter(Duration::from_millis(10)).loss(20);
//! let mut cluster = Cluster::builder().nodes(6).seed(7).link(link).config(|config| config.bucket_limit = 8).start();
//! cluster.join_all(); // each through node 0
//!
//! // A request, and how it ends.
//! let target = cluster.id(4);
//! let reply = cluster.ask(2, Request::FindNode { target, find: FindNodeOptions::default() });
//! assert!(matches!(reply, Ok(Reply::FindNode(outcome)) if outcome.ended == FindEnd::Connected));
//!
//! // What goes wrong in the world: a partition that outlasts the idle timeout, a process that is killed.
//! cluster.partition(&[&[0, 1, 2], &[3, 4, 5]]);
//! cluster.drive(Duration::from_secs(60));
//! assert!(cluster.node(2).connections().iter().all(|info| info.node != target));
//! cluster.heal();
//! cluster.kill(0);
//! assert!(cluster.connect(2, 4).is_ok());
//!
//! // Every request has ended once, nothing was over its cap, no timer got stuck: or this would not be reached.
//! cluster.stop_all();
//! assert!(cluster.check_counters().requests > 6);
//! ```
//!
//! The parts:
//!
//! - [`World`] drives any [`Machine`]: hosts, virtual time, partitions, kills; `step`, `drive`,
//!   `drive_until`, `drive_bounded`. A run is determined by its seed: [`World::digest`] is the hash
//!   of all inputs and outputs.
//! - [`Host`] has a field for everything that can be set or fail: keys, the transport's windows and
//!   timeouts, the delays and failures of the [`Store`], the [`App`]s for streams that are handed
//!   over.
//! - [`Network`] and [`Link`]: reachability, latency and losses between hosts, NATs
//!   ([`NatConfig`]), and name resolution.
//! - [`ScriptedPeer`] is a scripted peer, for peers that misbehave; a cluster can have some after
//!   its nodes.
//! - The checkers run automatically, on every output and after every drain: requests end once;
//!   limits; windows; every node is in its bucket; timers make progress; no output refers to
//!   anything that has ended. A violation ends the run and prints the last entries.
//!   [`CheckCounters`] are the numbers of checks, [`Coverage`] the parts of the vocabulary that
//!   occurred: a test that is to prove something asserts them.
//!
//! - [`PacketWorld`] runs whole nodes, QUIC included, over virtual datagrams.
//! - [`fuzz`] contains the bodies of the fuzz targets that drive whole machines.
//!
//! **Time** is exact: the inputs of a moment come before its timers, a timer fires when it is due,
//! and nothing else takes time. **The transport** is QUIC at the level of [`pk_proto::api`];
//! `tests/simulator` verifies its properties. NATs follow RFC 4787.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "fuzz"),
    allow(dead_code, reason = "some parts serve only the fuzz targets")
)]

mod checkers;
mod cluster;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod host;
mod machine;
mod network;
mod packets;
pub mod report;
mod rng_streams;
pub mod scenario;
mod stats;
mod transport;
mod wire;
mod world;

pub use checkers::set::CheckerSet;
pub use checkers::violation::CheckCounters;
pub use cluster::Cluster;
pub use cluster::builder::ClusterBuilder;
pub use cluster::growth::Joined;
pub use cluster::warm::Warm;
pub use host::app::{App, AppAction, AppStream};
pub use host::id::HostId;
pub use host::identity::{Key, genesis, renew};
pub use host::store::{CrashPolicy, Store, WriteFault};
pub use host::{Host, TransportConfig};
pub use machine::coverage::Coverage;
pub use machine::directory::Directory;
pub use machine::misbehaving::{Conspiracy, MisbehavingPeer, Misbehavior, MisbehaviorCounters};
pub use machine::scripted_peer::{Actor, ScriptedPeer};
pub use machine::{GraphView, Machine, StoredView};
pub use network::link::Link;
pub use network::nat::{Dependence, NatConfig, NatCounters, NatId};
pub use network::{Network, Place};
pub use packets::{
    Meter, PROTOCOL, PacketCounters, PacketHost, PacketWorld, PathCounters, PathLimits, Reader,
    Seen,
};
pub use stats::Sample;
pub use transport::TransportCounters;
pub use wire::traffic::Traffic;
pub use world::observation::Observation;
pub use world::{Boot, Completed, World, WorldCounters};
