//! Real nodes in a simulated network.

use std::time::Duration;

use pk_proto::{FindNode, Reply, Request};
use pk_sim::{Cluster, Link};

#[test]
fn nodes_join_and_find_each_other() {
    let mut cluster = Cluster::builder().nodes(8).seed(1).link(Link::ms(20).jitter(Duration::from_millis(5))).start();
    cluster.join_all();
    let target = cluster.id(3);
    let reply = cluster.ask(6, Request::FindNode { target, find: FindNode::default() });
    assert!(matches!(&reply, Ok(Reply::FindNode(outcome)) if outcome.found.is_some()), "{reply:?}");
    cluster.stop_all();
    println!("{:?} {:?} {:?}", cluster.counters(), cluster.check_counters(), cluster.transport_counters());
}
