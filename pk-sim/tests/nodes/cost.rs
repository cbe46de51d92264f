//! Which nodes a search contacts first, in virtual time: candidates ordered by cost of contact
//! (docs/DESIGN.md, Searches).

use pk_proto::{FindNodeOptions, NodeId};
use pk_sim::{Cluster, HostId};

use crate::common::*;

/// Of two nodes that are about as close to the target, the one that costs less is contacted first,
/// although it is the farther one: a query on a connection, before a signal through a relay, before
/// a dial.
#[test]
fn cheapest_of_equally_close_candidates_is_contacted_first() {
    let target = absent(9);
    let distance = |cluster: &Cluster, node: HostId| cluster.id(node).distance(&target);
    let class = |cluster: &Cluster, node: HostId| target.bucket_index(&cluster.id(node)).unwrap();
    // Of the others, 1, 2 and 3 are in one bucket of the target, each nearer than the next; 4 is
    // the relay, farther away.
    let fits = |seed: &u64| {
        let cluster = Cluster::quiet().nodes(5).seed(*seed).build();
        let near = [1, 2, 3].map(|node| class(&cluster, node));
        near[0] == near[1]
            && near[1] == near[2]
            && class(&cluster, 4) > near[0]
            && distance(&cluster, 1) < distance(&cluster, 2)
            && distance(&cluster, 2) < distance(&cluster, 3)
    };
    let seed = (0..).find(fits).unwrap();
    let mut cluster = Cluster::quiet().nodes(5).seed(seed).start();
    // 1 is known by its address alone, 2 is connected with the relay, 3 is connected, and so is the
    // relay.
    add_contact(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 4);
    connect(&mut cluster, 0, 3);
    connect(&mut cluster, 0, 4);
    cluster.drive(SECOND);
    let find = FindNodeOptions { concurrency: Some(1), ..FindNodeOptions::default() };
    let outcome = find_with(&mut cluster, 0, target, find);
    let order: Vec<_> = steps(&cluster, &outcome).into_iter().map(|(node, _)| node).collect();
    let place = |node: HostId| order.iter().position(|of| *of == node).unwrap();
    assert_eq!(place(3), 0, "{order:?}");
    // When the relay is asked its turn has come by distance, so 1 is dialed before any node reports
    // 2.
    assert_eq!(place(1), 1, "{order:?}");

    // Now the relay answers first: 2 is signalled, before 1 is dialed.
    cluster.call(0, |node, now| node.disconnect(cluster_id(seed, 1), now));
    cluster.call(0, |node, now| node.disconnect(cluster_id(seed, 2), now));
    cluster.call(0, |node, now| node.disconnect(cluster_id(seed, 3), now));
    for node in [1, 2, 3] {
        cluster.call(0, |machine, now| machine.unset_node(cluster_id(seed, node), now).unwrap());
    }
    for node in [1, 2, 3] {
        cluster.call(4, |machine, now| machine.unset_node(cluster_id(seed, node), now).unwrap());
    }
    cluster.drive(SECOND);
    connect(&mut cluster, 4, 2);
    add_contact(&mut cluster, 4, 1);
    cluster.drive(SECOND);
    let outcome = find_with(&mut cluster, 0, target, find);
    let order: Vec<_> = steps(&cluster, &outcome).into_iter().map(|(node, _)| node).collect();
    assert_eq!(order[..2], [4, 2], "{order:?}");
    cluster.stop_all();
}

fn cluster_id(seed: u64, node: u64) -> NodeId {
    pk_sim::Key::numbered(seed, node).id()
}
