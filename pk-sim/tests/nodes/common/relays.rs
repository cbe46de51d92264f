//! Networks around relays: two nodes that are connected with nothing else.

use std::time::Duration;

use pk_proto::Config;
use pk_sim::{Cluster, HostId, NatConfig};

use super::SECOND;

pub const RELAY: HostId = 0;
pub const SOURCE: HostId = 1;
pub const TARGET: HostId = 2;

/// A relay, and two nodes that are connected to it, each behind the given NAT.
pub fn behind_nats(
    seed: u64,
    [source, target]: [Option<NatConfig>; 2],
    change: impl FnOnce(&mut Config),
) -> Cluster {
    let mut cluster = Cluster::builder().nodes(3).seed(seed).config(change).build();
    for (node, nat) in [(SOURCE, source), (TARGET, target)] {
        if let Some(config) = nat {
            let nat = cluster.add_nat(config);
            cluster.put_behind(node, nat);
        }
    }
    start_around(&mut cluster, &[RELAY]);
    cluster
}

/// Starts all nodes, and connects source and target to the relays.
pub fn start_around(cluster: &mut Cluster, relays: &[HostId]) {
    (0..cluster.len()).for_each(|node| cluster.start_node(node));
    cluster.drive(Duration::ZERO);
    for relay in relays {
        for node in [SOURCE, TARGET] {
            cluster.connect(node, *relay).unwrap();
        }
    }
    cluster.drive(SECOND);
}

/// Source and target do not reach each other.
pub fn separate(cluster: &mut Cluster) {
    cluster.cut(SOURCE, TARGET);
    cluster.cut(TARGET, SOURCE);
}
