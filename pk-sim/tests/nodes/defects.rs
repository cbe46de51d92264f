//! The known defects of the reference that belong to nodes (docs/DESIGN.md, Known defects of the
//! reference), each beside a plant: a check passes on the local node, and fails on a model of the
//! reference. Those of certificates are in pk-proto (`tests/certificates.rs`, against the verdicts
//! of the reference), that of joining is in `refresh.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use pk_proto::signal::request_bytes;
use pk_proto::{
    BucketIndex, Config, ContactMode, Direction, FindNodeOptions, NodeContactAddressData,
    NodeGraph, NodeId, NodeOrder, Refusal, Reply, Request, RpcRequest, RpcResponse, Scopes,
    SetNodeOptions, SetNodeOutcome, UnixMillis, verify,
};
use pk_sim::{Cluster, HostId, Key};

use crate::common::signals::{in_seconds, request};
use crate::common::*;

type Check = Result<(), String>;

fn id(number: u64) -> NodeId {
    Key::numbered(41, number).id()
}

/// The graph of `id(0)` with `count` nodes.
fn graph(count: u64) -> NodeGraph {
    let mut graph = NodeGraph::new(id(0), 20, 5);
    for number in 1..=count {
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UnixMillis(number * 7919 % 1000),
            scopes: Scopes::GLOBAL,
        };
        graph.set(id(number), address("10.0.0.1:1"), data);
    }
    graph
}

// -- closest nodes inexact below the target's bucket

/// Checks that a rule returns the same closest nodes as sorting all.
fn check_exact(graph: &NodeGraph, closest: impl Fn(&NodeId, usize) -> Vec<NodeId>) -> Check {
    for target in (1000..1200).map(id) {
        let mut expected: Vec<_> = graph.iter().map(|(node, _)| node).collect();
        expected.sort_by_key(|node| node.distance(&target));
        expected.truncate(20);
        let given = closest(&target, 20);
        if given != expected {
            return Err(format!("closest to {target}: {given:?}, not {expected:?}"));
        }
    }
    Ok(())
}

/// The reference takes the target's bucket, then all nearer ones in one go, then the farther ones,
/// until there are enough, and sorts only these.
fn closest_of_the_reference(graph: &NodeGraph, target: &NodeId, limit: usize) -> Vec<NodeId> {
    let own = graph.own();
    let at = own.bucket_index(target).unwrap().0;
    let order = std::iter::once(at)
        .chain((0..at).rev())
        .chain((u16::from(at) + 1..256).map(|index| index as u8));
    let mut nodes: Vec<NodeId> = Vec::new();
    for index in order {
        if nodes.len() >= limit {
            break;
        }
        // In the order of the bucket, independent of the target.
        nodes.extend(
            graph.bucket(BucketIndex(index)).map(|(node, _)| node).take(limit - nodes.len()),
        );
    }
    nodes.sort_by_key(|node| node.distance(target));
    nodes
}

#[test]
fn closest_nodes_are_exact() {
    let graph = graph(400);
    let ids = |nodes: Vec<(NodeId, &pk_proto::NodeContact)>| {
        nodes.into_iter().map(|(node, _)| node).collect()
    };
    check_exact(&graph, |target, limit| ids(graph.closest(target, limit))).unwrap();
    let planted =
        check_exact(&graph, |target, limit| closest_of_the_reference(&graph, target, limit));
    assert!(planted.unwrap_err().contains("closest to"));
}

// -- descending bucket listing throws

/// Checks that every bucket can be listed in both directions, and that each is the reverse of the
/// other.
fn check_listing(
    graph: &NodeGraph,
    list: impl Fn(BucketIndex, NodeOrder, Direction) -> Result<Vec<NodeId>, String>,
) -> Check {
    for bucket in (0..=255).map(BucketIndex) {
        for order in [NodeOrder::NodeId, NodeOrder::Distance, NodeOrder::ConnectedTime] {
            let mut up = list(bucket, order, Direction::Ascending)?;
            let down = list(bucket, order, Direction::Descending)?;
            up.reverse();
            if up != down || down.len() != graph.bucket_len(bucket) {
                return Err(format!("bucket {bucket} by {order:?}: {down:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn buckets_are_listed_in_both_directions() {
    let graph = graph(400);
    let ours = |bucket, order, direction| {
        Ok(graph
            .bucket_sorted(bucket, order, direction)
            .into_iter()
            .map(|(node, _)| node)
            .collect())
    };
    check_listing(&graph, ours).unwrap();
    // The reference reads keys of its database with a range whose ends are not exchanged for the
    // reverse order.
    let planted = check_listing(&graph, |bucket, order, direction| match direction {
        Direction::Ascending => ours(bucket, order, direction),
        Direction::Descending => {
            Err("the range is empty: its lower end is above its upper one".to_owned())
        }
    });
    assert!(planted.is_err());
}

// -- 256 duplicate refresh tasks after a restart

/// Checks that every bucket has at most one refresh after any number of starts.
fn check_one_refresh(tasks: &[BTreeMap<u8, usize>]) -> Check {
    for (life, tasks) in tasks.iter().enumerate() {
        if let Some((bucket, count)) = tasks.iter().find(|(_, count)| **count > 1) {
            return Err(format!("after {life} restarts bucket {bucket} has {count} refreshes"));
        }
        if tasks.is_empty() {
            return Err(format!("after {life} restarts there are none"));
        }
    }
    Ok(())
}

#[test]
fn restart_duplicates_no_refresh() {
    let config = |config: &mut Config| config.retry_delay = Duration::ZERO;
    let mut cluster = Cluster::builder().nodes(6).seed(4).config(config).start();
    cluster.join_all();
    let mut lives = Vec::new();
    for _ in 0..4 {
        cluster.drive(60 * SECOND);
        // Refreshes that start within twice their delay, if they are not reset: one for each timer,
        // and no other.
        let node = cluster.node(3);
        let timers = (0..=255).filter(|bucket| node.refresh_at(BucketIndex(*bucket)).is_some());
        let timers: BTreeMap<u8, usize> = timers.map(|bucket| (bucket, 1)).collect();
        let metrics = node.metrics();
        assert_eq!(metrics.timers, timers.len() as u64 + metrics.connections, "{metrics:?}");
        lives.push(timers);
        cluster.stop(3);
        cluster.restart(3);
    }
    check_one_refresh(&lives).unwrap();
    // The reference finds the tasks of its last run in its database and creates all 256 again.
    let mut found: BTreeMap<u8, usize> = BTreeMap::new();
    let planted: Vec<_> = (0..4)
        .map(|_| {
            (0..=255).for_each(|bucket| *found.entry(bucket).or_default() += 1);
            found.clone()
        })
        .collect();
    assert!(check_one_refresh(&planted).is_err());
    cluster.stop_all();
}

// -- unbounded pending map

fn check_bounded(waiting: &[u64], limit: u64) -> Check {
    match waiting.iter().find(|count| **count > limit) {
        Some(count) => Err(format!("{count} wait, where {limit} may")),
        None if waiting.contains(&limit) => Ok(()),
        None => Err("the limit was never reached".to_owned()),
    }
}

#[test]
fn pending_nodes_are_bounded() {
    let mut bare = Bare::new(|config| config.bucket_limit = 1);
    let own = bare.node.own_id();
    let far: Vec<_> = (0..)
        .map(id)
        .filter(|id| own.bucket_index(id) == Some(BucketIndex(255)))
        .take(300)
        .collect();
    let mut of_the_reference = BTreeSet::new();
    let (mut waiting, mut planted) = (Vec::new(), Vec::new());
    for (i, node) in far.into_iter().enumerate() {
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UnixMillis(1),
            scopes: Scopes::GLOBAL,
        };
        let address = address(&format!("20.{}.{}.1:1", i / 256, i % 256));
        bare.request(Request::SetNode { node, address, data, how: SetNodeOptions::default() });
        waiting.push(bare.node.metrics().nodes_pending);
        if i > 0 {
            of_the_reference.insert(node);
        }
        planted.push(of_the_reference.len() as u64);
    }
    let limit = bare.node.config().pending_limit as u64;
    check_bounded(&waiting, limit).unwrap();
    assert!(check_bounded(&planted, limit).is_err());
}

// -- a garbage collection probes by searches, and locks its bucket meanwhile

/// A node whose bucket is full with a dead node, and its dials and calls while another node is
/// added.
struct Full {
    cluster: Cluster,
    dead: HostId,
    newcomer: HostId,
    bystander: HostId,
    before: (usize, u64),
}

fn full() -> Full {
    let far = |seed: u64, node: u64| {
        Key::numbered(seed, 0).id().bucket_index(&Key::numbered(seed, node).id())
            == Some(BucketIndex(255))
    };
    // Of the others, 1 to 3 are far and 4 is not.
    let seed = (0..).find(|seed| (1..4).all(|node| far(*seed, node)) && !far(*seed, 4)).unwrap();
    let mut cluster = Cluster::quiet()
        .nodes(5)
        .seed(seed)
        .config_of(0, |config: &mut Config| config.bucket_limit = 1)
        .start();
    connect(&mut cluster, 0, 1);
    let dead = cluster.id(1);
    cluster.call(0, |node, now| node.disconnect(dead, now));
    cluster.drive(SECOND);
    cluster.kill(1);
    // A node that a search would ask.
    connect(&mut cluster, 0, 4);
    cluster.drive(SECOND);
    let before = (cluster.dials(0).len(), cluster.node(0).metrics().calls);
    Full { cluster, dead: 1, newcomer: 2, bystander: 3, before }
}

impl Full {
    fn set(&mut self, node: HostId, block: bool) -> pk_proto::RequestId {
        let (data, address) = (data(&self.cluster, Scopes::GLOBAL), self.cluster.address(node));
        let how = SetNodeOptions { block, force: false, options: NO };
        let node = self.cluster.id(node);
        self.cluster.request(0, Request::SetNode { node, address, data, how })
    }

    /// Checks that a probe dials the known addresses of the node, and sends no request to others.
    fn check_probed_by_dials(&self) -> Check {
        let known = self.cluster.host(self.dead).addrs();
        let dialed: Vec<SocketAddr> =
            self.cluster.dials(0)[self.before.0..].iter().map(|(_, addr)| *addr).collect();
        let asked = self.cluster.node(0).metrics().calls - self.before.1;
        if dialed.is_empty() || !dialed.iter().all(|addr| known.contains(addr)) || asked > 0 {
            return Err(format!("dialed `{dialed:?}`, asked {asked} questions"));
        }
        Ok(())
    }
}

#[test]
fn probe_dials_without_a_search() {
    let mut ours = full();
    ours.set(2, false);
    ours.cluster.drive(20 * SECOND);
    assert_eq!(ours.cluster.node(0).metrics().nodes_dead, 1);
    ours.check_probed_by_dials().unwrap();
    ours.cluster.stop_all();
    // The reference pings each node of the bucket, and its ping is a search.
    let mut planted = full();
    let request = ping(&planted.cluster, planted.dead);
    assert!(planted.cluster.ask(0, request).is_err());
    assert!(planted.check_probed_by_dials().unwrap_err().contains("questions"));
    planted.cluster.stop_all();
}

/// Checks that, while a probe of a silent node is in progress, other nodes of its bucket are
/// handled at once, and changes are written.
fn check_not_blocked(full: &mut Full, wait: bool) -> Check {
    full.set(full.newcomer, false);
    full.cluster.drive(SECOND);
    if full.cluster.node(0).metrics().connections_pending == 0 {
        return Err("no probe is in progress".to_owned());
    }
    let begun = full.cluster.now();
    let request = full.set(full.bystander, wait);
    // A member of the bucket changes as well, and the embedder reads it.
    let member = full.set(full.dead, wait);
    for (request, wanted) in [(request, SetNodeOutcome::Pending), (member, SetNodeOutcome::Updated)]
    {
        let outcome = full.cluster.await_done(0, request);
        let took = full.cluster.now().since(begun);
        if took > Duration::ZERO || outcome != Ok(Reply::SetNode(wanted)) {
            return Err(format!("{outcome:?} after {took:?}"));
        }
    }
    full.cluster.drive(ms(10));
    match full.cluster.node(0).metrics() {
        metrics if metrics.connections_pending == 0 => Err("the probe ended before".to_owned()),
        metrics if metrics.unwritten > 0 => {
            Err(format!("{} changes are held back", metrics.unwritten))
        }
        _ => Ok(()),
    }
}

#[test]
fn silent_peer_blocks_no_bucket_and_no_transaction() {
    let mut ours = full();
    check_not_blocked(&mut ours, false).unwrap();
    ours.cluster.stop_all();
    // As if a node that enters the bucket had to wait for the round.
    let mut planted = full();
    assert!(check_not_blocked(&mut planted, true).unwrap_err().contains("after"));
    planted.cluster.stop_all();
    // As if the transaction were open until the peer answers: a store that takes as long.
    let mut planted = full();
    planted.cluster.host_mut(0).store.delay = 15 * SECOND;
    assert!(check_not_blocked(&mut planted, false).unwrap_err().contains("held back"));
    planted.cluster.stop_all();
}

// -- signalling replayable

/// Checks that a repeated signal is refused.
fn check_refused_when_replayed(mut relay: impl FnMut() -> RpcResponse) -> Check {
    let answers = [relay(), relay(), relay()];
    match &answers {
        [
            RpcResponse::Signalled { .. },
            RpcResponse::Refused(Refusal::Replayed),
            RpcResponse::Refused(Refusal::Replayed),
        ] => Ok(()),
        _ => Err(format!("{answers:?}")),
    }
}

#[test]
fn replayed_signal_is_refused() {
    let seed = 6;
    let mut cluster = Cluster::quiet().nodes(2).scripted_peers(1).seed(seed).start();
    connect(&mut cluster, 1, 0);
    let (source, target) = (Key::numbered(seed, 2), cluster.id(1));
    let mut peer = Peer::honest(2);
    let conn = peer.connect(&mut cluster, 0);
    let signed = request(&source, target, in_seconds(&cluster, 0, 60), 1);
    check_refused_when_replayed(|| {
        peer.ask_one(&mut cluster, conn, RpcRequest::Signal(signed.clone())).unwrap()
    })
    .unwrap();
    // The reference verifies only the signature, which is valid the second time as well.
    let at = cluster.address(1);
    let planted = check_refused_when_replayed(|| {
        let bytes = request_bytes(&source.id(), &target, &signed.terms);
        match verify(&source.id(), &bytes, &signed.signature.0) {
            Ok(()) => RpcResponse::Signalled { address: at.clone() },
            Err(_) => RpcResponse::Refused(Refusal::Signature),
        }
    });
    assert!(planted.is_err());
    cluster.stop_all();
}

// -- dead dials serialise a search

/// The duration of a search by a node that has contacts for dead nodes and for one farther node
/// with a contact for the target.
fn time_to_find_behind_dead_nodes(change: impl FnOnce(&mut Config)) -> Duration {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).config(change).start();
    wire(&mut cluster, &[(0, 1), (1, 2)]);
    let target = cluster.id(2);
    // Dead nodes that are nearer to the target than the one with its contact.
    let helper = cluster.id(1).distance(&target);
    let dead = (0..).map(absent).filter(|id| id.distance(&target) < helper);
    for (i, node) in dead.take(6).enumerate() {
        add_contact_at(&mut cluster, 0, node, address(&format!("203.0.{i}.1:1")));
    }
    let find = FindNodeOptions { options: by(600 * SECOND), ..FindNodeOptions::default() };
    let outcome = find_with(&mut cluster, 0, target, find);
    assert_eq!(outcome.ended, pk_proto::FindEnd::Connected, "{outcome:?}");
    let elapsed = outcome.stats.elapsed;
    cluster.stop_all();
    elapsed
}

fn check_quick(elapsed: Duration) -> Check {
    if elapsed < 3 * SECOND { Ok(()) } else { Err(format!("{elapsed:?}")) }
}

#[test]
fn dead_nodes_do_not_serialise_a_search() {
    check_quick(time_to_find_behind_dead_nodes(|_| {})).unwrap();
    // The reference waits for each dial to time out before it starts the next one.
    let planted = check_quick(time_to_find_behind_dead_nodes(|config| {
        config.search.round_trip = 60 * SECOND;
        config.search.near_dialed = 0;
    }));
    assert!(planted.is_err());
}
