//! Real nodes, a simulated world: [`NodeManager`](pk_proto::NodeManager)s on hosts with links, stores and clocks, in virtual
//! time, with checkers that watch every word they say.
//!
//! A [`Cluster`] is what most tests want: so many nodes, started, with keys and certificates, named by their numbers.
//!
//! ```
//! use std::time::Duration;
//! use pk_proto::{FindEnd, FindNode, Reply, Request};
//! use pk_sim::{Cluster, Link};
//!
//! let link = Link::ms(40).jitter(Duration::from_millis(10)).loss(20);
//! let mut cluster = Cluster::builder().nodes(6).seed(7).link(link).config(|config| config.bucket_limit = 8).start();
//! cluster.join_all(); // each through node 0
//!
//! // A request, and how it ends.
//! let target = cluster.id(4);
//! let reply = cluster.ask(2, Request::FindNode { target, find: FindNode::default() });
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
//! - [`World`] drives any [`Machine`]: hosts, virtual time, partitions, kills; `step`, `drive`, `drive_until`, `drive_bounded`.
//!   A run is decided by its seed: [`World::digest`] is the hash of everything that was said in it.
//! - [`Host`] is what a driver is made of, with a field for everything that can be set or go wrong: keys, the transport's
//!   windows and timeouts, the delays and failures of the [`Store`], the [`App`]s behind streams that are handed over.
//! - [`Network`] and [`Link`]: who reaches whom, how late, with what losses; what names resolve to.
//! - [`Puppet`] is a machine without a will, for peers that misbehave; a cluster can have some behind its nodes.
//! - The checkers run by themselves, on every output and after every drain: requests end once; caps; windows; every node in
//!   its bucket; timers make progress; nothing is said about what is over. A violation ends the run and tells what happened
//!   last. [`CheckCounters`] say how often they looked, [`Coverage`] says which words were spoken: a test that is to prove
//!   something asserts them.
//!
//! **Time** is exact: inputs of a moment come before its timers, a timer fires when it is due, and nothing else costs time.
//! **The transport** is QUIC at the level of the vocabulary ([`pk_proto::io`]); its promises are shown one by one in
//! `tests/sim`. NATs are not simulated yet; they belong into the one function of [`Network`] that routes packets.
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
mod nat;
mod network;
mod puppet;
mod store;
mod transport;
mod wire;
mod world;

pub use app::{App, AppAction, AppStream};
pub use checkers::CheckCounters;
pub use cluster::{Cluster, ClusterBuilder};
pub use coverage::Coverage;
pub use host::{Host, TransportConfig};
pub use identity::{Key, genesis, renew};
pub use link::Link;
pub use machine::{GraphView, Machine, StoredView};
pub use nat::{Dependence, NatConfig, NatCounters, NatId};
pub use network::Network;
pub use puppet::{Actor, Puppet};
pub use store::{CrashPolicy, Store};
pub use transport::TransportCounters;
pub use world::{Boot, World, WorldCounters};

/// The number of a host in its world, from 0 in the order of their adding.
pub type HostId = usize;
