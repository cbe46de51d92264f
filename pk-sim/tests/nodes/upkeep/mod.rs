//! Upkeep of the graph, in virtual time: dead contacts leave, live ones stay, whatever the network
//! does (docs/DESIGN.md, Upkeep of the graph).

mod away;
mod dead;
mod lost;
mod nat;

use std::time::Duration;

use pk_sim::{Cluster, HostId};

use crate::common::SECOND;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A network with default settings whose nodes have joined and settled.
fn settled(nodes: usize, change: impl FnOnce(&mut pk_proto::Config)) -> Cluster {
    let mut cluster = Cluster::builder().nodes(nodes).seed(11).config(change).start();
    cluster.join_all();
    cluster.drive(10 * MINUTE);
    cluster
}

/// Whether a node has another one as a contact.
fn knows(cluster: &Cluster, node: HostId, other: HostId) -> bool {
    cluster.node(node).contact(cluster.id(other)).is_some()
}

/// The number of contacts of a node.
fn contacts(cluster: &Cluster, node: HostId) -> usize {
    cluster.node(node).graph().len()
}

/// The number of dials of a node so far.
fn dials(cluster: &Cluster, node: HostId) -> u64 {
    cluster.node(node).metrics().dials
}
