//! Full buckets, in virtual time: which nodes stay, are pending, and are admitted (docs/DESIGN.md,
//! Node graph).

use pk_proto::{
    BucketIndex, Config, ContactMode, Event, Failure, NodeAddress, NodeContactAddressData, Reply,
    Request, RequestId, RequestOptions, Scopes, SetNodeOptions, SetNodeOutcome, SetNodeRejection,
    UnixMillis,
};
use pk_sim::{Cluster, HostId, Key};

use crate::common::*;

const FAR: BucketIndex = BucketIndex(255);
/// Room in a bucket of node 0.
const ROOM: usize = 3;

/// Node 0, and nodes of its farthest bucket: `members` fill it, in the order of their connections,
/// `others` are there too.
struct Full {
    cluster: Cluster,
    members: Vec<HostId>,
    others: Vec<HostId>,
}

/// A seed under which at least so many of the other nodes are in the farthest bucket of node 0.
fn seed_with(count: usize, wanted: usize) -> u64 {
    let id = |seed, node| Key::numbered(seed, node).id();
    let far = |seed| {
        (1..count as u64)
            .filter(|node| id(seed, 0).bucket_index(&id(seed, *node)) == Some(FAR))
            .count()
            >= wanted
    };
    (0..).find(|seed| far(*seed)).unwrap()
}

fn far_nodes(cluster: &Cluster) -> Vec<HostId> {
    let own = cluster.id(0);
    (1..cluster.len()).filter(|node| own.bucket_index(&cluster.id(*node)) == Some(FAR)).collect()
}

fn full_with(change: impl FnOnce(&mut Config)) -> Full {
    let others = 5;
    let seed = seed_with(10, ROOM + others);
    let mut cluster = Cluster::quiet()
        .nodes(10)
        .seed(seed)
        .config_of(0, |config| {
            config.bucket_limit = ROOM;
            change(config);
        })
        .start();
    let far = far_nodes(&cluster);
    let (members, others) = (far[..ROOM].to_vec(), far[ROOM..ROOM + others].to_vec());
    for member in &members {
        connect(&mut cluster, 0, *member);
        cluster.drive(SECOND);
    }
    assert_eq!(cluster.node(0).bucket(FAR).len(), ROOM);
    Full { cluster, members, others }
}

fn full() -> Full {
    full_with(|_| {})
}

impl Full {
    /// Whether node 0 has a node in its graph.
    fn has(&self, node: HostId) -> bool {
        self.cluster.node(0).contact(self.cluster.id(node)).is_some()
    }

    fn has_all(&self, nodes: &[HostId]) -> bool {
        nodes.iter().all(|node| self.has(*node))
    }

    /// Ends every connection of node 0; its contacts stay.
    fn disconnect(&mut self) {
        for member in self.members.clone() {
            let peer = self.cluster.id(member);
            self.cluster.call(0, |node, now| node.disconnect(peer, now));
        }
        self.cluster.drive(SECOND);
        assert_eq!(self.cluster.node(0).connections().len(), 0);
    }

    /// The embedder adds a node to the graph of node 0.
    fn set(&mut self, node: HostId, how: SetNodeOptions) -> RequestId {
        let request = set_node(&self.cluster, node, how);
        self.cluster.request(0, request)
    }

    fn outcome(&self, request: RequestId) -> Option<SetNodeOutcome> {
        match self.cluster.done(0, request)? {
            Ok(Reply::SetNode(outcome)) => Some(*outcome),
            other => panic!("{other:?}"),
        }
    }

    fn dials(&self) -> u64 {
        self.cluster.node(0).metrics().dials
    }
}

fn set_node(cluster: &Cluster, node: HostId, how: SetNodeOptions) -> Request {
    let data = data(cluster, Scopes::GLOBAL);
    Request::SetNode { node: cluster.id(node), address: cluster.address(node), data, how }
}

const BLOCK: SetNodeOptions = SetNodeOptions { block: true, force: false, options: NO };
const FORCE: SetNodeOptions = SetNodeOptions { block: false, force: true, options: NO };
const FULL: SetNodeOutcome = SetNodeOutcome::Rejected(SetNodeRejection::BucketFull);

// -- nodes that stay

#[test]
fn full_bucket_keeps_connected_nodes_without_probing_them() {
    let mut full = full();
    let dials = full.dials();
    connect(&mut full.cluster, full.others[0], 0);
    full.cluster.drive(30 * SECOND);
    assert!(full.has_all(&full.members.clone()) && !full.has(full.others[0]));
    let metrics = full.cluster.node(0).metrics();
    assert_eq!(
        (metrics.collections, metrics.pending_dropped, metrics.nodes_dead, metrics.nodes_pending),
        (0, 0, 0, 1)
    );
    assert_eq!((full.dials(), metrics.calls), (dials, 0));
    // A round of the embedder finds them connected.
    let request = full.set(full.others[0], BLOCK);
    assert_eq!(full.outcome(request), Some(FULL));
    let metrics = full.cluster.node(0).metrics();
    assert_eq!((metrics.collections, metrics.pending_dropped, metrics.nodes_pending), (1, 1, 0));
    assert_eq!((full.dials(), metrics.calls), (dials, 0), "a live connection answers at once");
    full.cluster.stop_all();
}

#[test]
fn full_bucket_keeps_nodes_that_answer_a_dial() {
    let mut full = full();
    full.disconnect();
    let (dials, calls) = (full.dials(), full.cluster.node(0).metrics().calls);
    connect(&mut full.cluster, full.others[0], 0);
    full.set(full.others[0], SetNodeOptions::default());
    full.cluster.drive(30 * SECOND);
    assert!(full.has_all(&full.members.clone()) && !full.has(full.others[0]));
    let metrics = full.cluster.node(0).metrics();
    assert_eq!((metrics.collections, metrics.pending_dropped, metrics.nodes_dead), (1, 1, 0));
    // Each once, at its last address, and no node received a query: a probe is not a search.
    assert_eq!((full.dials() - dials, metrics.calls), (ROOM as u64, calls));
    full.cluster.stop_all();
}

#[test]
fn pending_node_replaces_a_dead_node() {
    for dead in 0..ROOM {
        let mut full = full();
        full.disconnect();
        full.cluster.kill(full.members[dead]);
        connect(&mut full.cluster, full.others[0], 0);
        full.set(full.others[0], SetNodeOptions::default());
        full.cluster.drive(30 * SECOND);
        for (place, member) in full.members.clone().into_iter().enumerate() {
            assert_eq!(full.has(member), place != dead);
        }
        assert!(full.has(full.others[0]));
        let metrics = full.cluster.node(0).metrics();
        assert_eq!((metrics.nodes_dead, metrics.pending_dropped, metrics.nodes_pending), (1, 0, 0));
        let node = full.cluster.id(full.others[0]);
        assert_eq!(count_events(&full.cluster, 0, |event| *event == Event::NodeAdded { node }), 1);
        assert!(full.cluster.node(0).is_proven(node));
        full.cluster.stop_all();
    }
}

/// Pending nodes are admitted while there is room, the newest first.
#[test]
fn newest_pending_nodes_are_admitted_first() {
    let mut full = full();
    full.disconnect();
    full.cluster.kill(full.members[0]);
    full.cluster.kill(full.members[2]);
    for other in full.others.clone() {
        connect(&mut full.cluster, other, 0);
        full.cluster.drive(ms(100));
    }
    assert_eq!(full.cluster.node(0).metrics().nodes_pending, 5);
    full.set(full.others[4], SetNodeOptions::default());
    full.cluster.drive(120 * SECOND);
    let bucket: Vec<_> =
        full.cluster.node(0).bucket(FAR).into_iter().map(|(node, _)| node).collect();
    let mut expected: Vec<_> =
        [full.members[1], full.others[4], full.others[3]].map(|node| full.cluster.id(node)).into();
    expected.sort_unstable();
    assert_eq!(bucket, expected);
    assert_eq!(full.cluster.node(0).metrics().nodes_pending, 0);
    full.cluster.stop_all();
}

/// The least recently connected one first, and no more than necessary.
#[test]
fn garbage_collection_probes_least_recently_connected_first_and_no_more_than_needed() {
    let mut full = full_with(|config| config.collect_concurrency = 1);
    full.disconnect();
    full.cluster.kill(full.members[0]);
    let dials = full.dials();
    connect(&mut full.cluster, full.others[0], 0);
    full.set(full.others[0], SetNodeOptions::default());
    full.cluster.drive(30 * SECOND);
    assert!(full.has(full.others[0]) && !full.has(full.members[0]));
    assert_eq!(full.dials() - dials, 1, "the first one was dead, so the others are left alone");
    full.cluster.stop_all();
}

#[test]
fn probes_dial_known_addresses_and_few_run_at_a_time() {
    for concurrency in [1, 2, 3] {
        let mut full = full_with(|config| config.collect_concurrency = concurrency);
        full.disconnect();
        for member in full.members.clone() {
            full.cluster.kill(member);
        }
        let calls = full.cluster.node(0).metrics().calls;
        let request = full.set(full.others[0], BLOCK);
        let mut most = 0;
        while full.outcome(request).is_none() {
            full.cluster.step();
            most = most.max(full.cluster.node(0).metrics().connections_pending);
        }
        assert_eq!(full.outcome(request), Some(SetNodeOutcome::Added));
        assert_eq!((most, full.cluster.node(0).metrics().calls), (concurrency as u64, calls));
        full.cluster.stop_all();
    }
}

// -- force and block

#[test]
fn forced_node_replaces_the_oldest_at_once() {
    let mut full = full();
    let oldest = full.cluster.id(full.members[0]);
    let request = full.set(full.others[0], FORCE);
    assert_eq!(full.outcome(request), Some(SetNodeOutcome::Replaced(oldest)));
    assert!(full.has(full.others[0]) && !full.has(full.members[0]));
    let metrics = full.cluster.node(0).metrics();
    assert_eq!((metrics.collections, metrics.nodes_pending, metrics.nodes), (0, 0, ROOM as u64));
    // If there is room, force makes no difference.
    let known = full.set(full.others[0], FORCE);
    assert_eq!(full.outcome(known), Some(SetNodeOutcome::Updated));
    let gone = full.cluster.id(full.members[1]);
    full.cluster.call(0, |node, now| node.unset_node(gone, now).unwrap());
    let added = full.set(full.members[1], FORCE);
    assert_eq!(full.outcome(added), Some(SetNodeOutcome::Added));
    full.cluster.stop_all();
}

#[test]
fn non_blocking_set_node_completes_at_once_as_pending() {
    let mut full = full();
    full.disconnect();
    full.cluster.kill(full.members[1]);
    let begun = full.cluster.now();
    let request = full.set(full.others[0], SetNodeOptions::default());
    assert_eq!((full.outcome(request), full.cluster.now()), (Some(SetNodeOutcome::Pending), begun));
    assert_eq!(full.cluster.node(0).metrics().nodes_pending, 1);
    full.cluster.drive(20 * SECOND);
    assert!(full.has(full.others[0]) && !full.has(full.members[1]));
    assert!(
        !full.cluster.node(0).is_proven(full.cluster.id(full.others[0])),
        "no node has connected to it"
    );
    full.cluster.stop_all();
}

#[test]
fn blocking_set_node_completes_with_the_outcome_of_the_round() {
    // Every node answers.
    let mut full = full();
    full.disconnect();
    let request = full.set(full.others[0], BLOCK);
    assert_eq!(full.outcome(request), None);
    full.cluster.drive(SECOND);
    assert_eq!(full.outcome(request), Some(FULL));
    assert!(!full.has(full.others[0]));

    // One does not: as soon as that is known.
    let mut full = full_dead();
    let timeout = RequestOptions { connect_timeout: Some(4 * SECOND), deadline: None };
    let begun = full.cluster.now();
    let request = full.set(full.others[0], SetNodeOptions { options: timeout, ..BLOCK });
    let reply = full.cluster.await_done(0, request);
    assert_eq!(reply, Ok(Reply::SetNode(SetNodeOutcome::Added)));
    assert_eq!(
        full.cluster.now().since(begun),
        4 * SECOND,
        "each probe has the time that was given"
    );
    full.cluster.stop_all();
}

/// A full bucket without connections, the second node of it dead.
fn full_dead() -> Full {
    let mut full = full();
    full.disconnect();
    full.cluster.kill(full.members[1]);
    full
}

#[test]
fn blocking_set_node_that_ends_early_keeps_its_node_pending() {
    for cancel in [false, true] {
        let mut full = full_dead();
        let request = full.set(full.others[0], SetNodeOptions { options: by(2 * SECOND), ..BLOCK });
        full.cluster.drive(SECOND);
        if cancel {
            full.cluster.cancel(0, request);
        }
        full.cluster.drive(SECOND);
        let expected = if cancel { Failure::Cancelled } else { Failure::DeadlineExceeded };
        assert_eq!(full.cluster.done(0, request), Some(&Err(expected)));
        full.cluster.drive(20 * SECOND);
        assert!(full.has(full.others[0]), "the round went on");
        full.cluster.stop_all();
    }
    let mut full = full_dead();
    let request = full.set(full.others[0], BLOCK);
    full.cluster.drive(SECOND);
    full.cluster.stop(0);
    assert_eq!(full.cluster.done(0, request), Some(&Err(Failure::Stopped)));
    full.cluster.stop_all();
}

/// For any number of requests one round runs and one is queued, and each request ends with its
/// round.
#[test]
fn one_round_is_active_and_one_is_queued() {
    let mut full = full_dead();
    let first = full.set(full.others[0], BLOCK);
    full.cluster.drive(SECOND);
    let more: Vec<_> =
        full.others[1..].to_vec().iter().map(|node| full.set(*node, BLOCK)).collect();
    assert_eq!(full.cluster.node(0).metrics().collections, 1);
    full.cluster.drive(SECOND);
    assert_eq!(full.cluster.node(0).metrics().collections, 1);
    assert!(full.cluster.await_done(0, first).is_ok());
    for request in &more {
        assert!(full.cluster.await_done(0, *request).is_ok());
    }
    assert_eq!(full.cluster.node(0).metrics().collections, 2);
    // One place became free; the newest pending node at that time has it.
    let outcomes: Vec<_> = std::iter::once(&first)
        .chain(&more)
        .map(|request| full.outcome(*request).unwrap())
        .collect();
    assert_eq!(outcomes, [FULL, FULL, FULL, FULL, SetNodeOutcome::Added], "{outcomes:?}");
    full.cluster.drive(300 * SECOND);
    assert_eq!(full.cluster.node(0).metrics().collections, 2);
    assert_eq!(full.cluster.node(0).metrics().nodes_pending, 0);
    full.cluster.stop_all();
}

// -- newcomers

#[test]
fn peers_that_keep_connecting_start_no_round_and_cause_no_dial() {
    let mut full = full();
    full.disconnect();
    let dials = full.dials();
    for round in 0..100 {
        let other = full.others[round % full.others.len()];
        connect(&mut full.cluster, other, 0);
        full.cluster.drive(2 * SECOND);
        leave(&mut full, other);
    }
    let metrics = full.cluster.node(0).metrics();
    assert_eq!((metrics.collections, full.dials() - dials, metrics.upkeep_dials), (0, 0, 0));
    assert_eq!((metrics.nodes_pending, metrics.pending_dropped), (5, 0));
    assert!(full.has_all(&full.members.clone()));
    full.cluster.stop_all();
}

/// A node closes its connections with node 0.
fn leave(full: &mut Full, node: HostId) {
    let peer = full.cluster.id(0);
    full.cluster.call(node, |node, now| node.disconnect(peer, now));
    full.cluster.drive(SECOND);
}

/// A node connects to node 0, asks it something, and leaves.
fn ask_and_leave(full: &mut Full, node: HostId) {
    let (via, target) = (full.cluster.id(0), full.cluster.id(node));
    add_contact(&mut full.cluster, node, 0);
    let query = pk_proto::ClosestNodesQuery { known: true, connected: true };
    let request = Request::QueryClosestNodes { via, target, query, options: NO };
    assert!(full.cluster.ask(node, request).is_ok());
    leave(full, node);
}

/// Time from which on a contact counts as silent for newcomers.
const FRESH: std::time::Duration = std::time::Duration::from_secs(15 * 60);

#[test]
fn newest_pending_node_takes_the_place_of_a_removed_contact() {
    let mut full = full();
    full.disconnect();
    for other in full.others.clone() {
        connect(&mut full.cluster, other, 0);
        full.cluster.drive(SECOND);
    }
    let gone = full.cluster.id(full.members[1]);
    assert!(full.cluster.call(0, |node, now| node.unset_node(gone, now).unwrap()));
    assert!(full.has(full.others[4]) && !full.has(full.members[1]));
    assert!(full.cluster.node(0).is_proven(full.cluster.id(full.others[4])));
    assert_eq!(full.cluster.node(0).bucket_meta(FAR).pending, 4, "the others still wait");
    full.cluster.stop_all();
}

#[test]
fn question_of_a_newcomer_probes_the_oldest_contact_after_a_long_silence() {
    let mut full = full();
    full.disconnect();
    full.cluster.kill(full.members[0]);
    let dials = full.dials();
    let other = full.others[0];
    ask_and_leave(&mut full, other);
    assert_eq!(full.dials(), dials, "every contact was connected a short time ago");
    full.cluster.drive(FRESH);
    connect(&mut full.cluster, full.others[1], 0);
    full.cluster.drive(SECOND);
    let other = full.others[1];
    leave(&mut full, other);
    assert_eq!(full.dials(), dials, "a node that only connects wants no room");
    let other = full.others[0];
    ask_and_leave(&mut full, other);
    assert_eq!(full.dials() - dials, 1, "one contact is probed");
    for other in full.others.clone().into_iter().skip(1) {
        ask_and_leave(&mut full, other);
    }
    assert_eq!(full.dials() - dials, 1, "and no other within the interval");
    full.cluster.drive(20 * SECOND);
    assert!(!full.has(full.members[0]) && full.has_all(&full.members[1..]));
    assert!(full.has(full.others[4]), "the newest has its place");
    full.cluster.stop_all();
}

#[test]
fn contact_that_answers_the_probe_of_a_newcomer_stays() {
    let mut full = full();
    full.disconnect();
    full.cluster.drive(FRESH);
    let dials = full.dials();
    let other = full.others[0];
    ask_and_leave(&mut full, other);
    full.cluster.drive(20 * SECOND);
    assert_eq!(full.dials() - dials, 1);
    assert!(full.has_all(&full.members.clone()) && !full.has(full.others[0]));
    assert_eq!(full.cluster.node(0).metrics().nodes_dead, 0);
    full.cluster.stop_all();
}

#[test]
fn asking_node_that_is_near_takes_the_place_of_the_farthest_contact_of_its_bucket() {
    let near = |seed: u64| {
        let own = Key::numbered(seed, 0).id();
        let distance = |node: &HostId| own.distance(&Key::numbered(seed, *node as u64).id());
        let mut near: Vec<HostId> = (1..24)
            .filter(|node| distance(node).bucket_index() == Some(BucketIndex(254)))
            .collect();
        near.sort_by_key(distance);
        near
    };
    let seed = (0..).find(|seed| near(*seed).len() >= 9).unwrap();
    let near = near(seed);
    let cluster = Cluster::quiet()
        .nodes(24)
        .seed(seed)
        .config_of(0, |config| config.bucket_limit = ROOM)
        .start();
    let mut full = Full { cluster, members: near[6..9].to_vec(), others: near[..6].to_vec() };
    for member in full.members.clone() {
        connect(&mut full.cluster, 0, member);
        full.cluster.drive(SECOND);
    }
    full.disconnect();
    for next in (2..6).rev() {
        connect(&mut full.cluster, near[next], 0);
        full.cluster.drive(SECOND);
        leave(&mut full, near[next]);
        assert!(!full.has(near[next]), "it has only connected");
        ask_and_leave(&mut full, near[next]);
        assert!(full.has_all(&near[next..next + ROOM]), "{next}");
    }
    ask_and_leave(&mut full, near[8]);
    ask_and_leave(&mut full, near[1]);
    assert!(full.has_all(&near[2..2 + ROOM]), "one is farther, and four have already left");
    full.cluster.drive(std::time::Duration::from_secs(6 * 3600));
    ask_and_leave(&mut full, near[1]);
    assert!(full.has_all(&near[1..=ROOM]));
    full.cluster.stop_all();
}

// -- one node

#[test]
fn updates_of_one_node_do_not_conflict() {
    let mut cluster = Cluster::quiet().nodes(2).start();
    let node = cluster.id(1);
    let at = |port: u16, time: u64| {
        let address: NodeAddress = format!("8.8.8.8:{port}").parse().unwrap();
        let connected_time = UnixMillis(time);
        (
            address,
            NodeContactAddressData {
                mode: ContactMode::Direct,
                connected_time,
                scopes: Scopes::GLOBAL,
            },
        )
    };
    let requests: Vec<_> = [(1, 10), (2, 30), (1, 20), (3, 5)]
        .map(|(port, time)| {
            let (address, data) = at(port, time);
            cluster.request(
                0,
                Request::SetNode { node, address, data, how: SetNodeOptions::default() },
            )
        })
        .into();
    let outcomes: Vec<_> = requests
        .iter()
        .map(|request| cluster.done(0, *request).unwrap().clone().unwrap())
        .collect();
    let updated = Reply::SetNode(SetNodeOutcome::Updated);
    assert_eq!(
        outcomes,
        [Reply::SetNode(SetNodeOutcome::Added), updated.clone(), updated.clone(), updated]
    );
    let contact: Vec<_> = cluster.node(0).contact(node).unwrap().iter().cloned().collect();
    assert_eq!(contact, [at(2, 30), at(1, 20), at(3, 5)]);
    cluster.stop_all();
}

#[test]
fn pending_node_has_one_entry_with_its_newest_address() {
    let mut full = full_dead();
    let node = full.cluster.id(full.others[0]);
    let first = full.set(full.others[0], BLOCK);
    let newer: NodeAddress = "9.9.9.9:9".parse().unwrap();
    let data = data(&full.cluster, Scopes::GLOBAL);
    let second = full
        .cluster
        .request(0, Request::SetNode { node, address: newer.clone(), data, how: BLOCK });
    assert_eq!(full.cluster.node(0).metrics().nodes_pending, 1);
    for request in [first, second] {
        assert_eq!(full.cluster.await_done(0, request), Ok(Reply::SetNode(SetNodeOutcome::Added)));
    }
    let contact: Vec<_> = full.cluster.node(0).contact(node).unwrap().iter().cloned().collect();
    assert_eq!(contact, [(newer, data)]);
    full.cluster.stop_all();
}

#[test]
fn unset_pending_node_is_not_admitted() {
    let mut full = full_dead();
    let request = full.set(full.others[0], BLOCK);
    let node = full.cluster.id(full.others[0]);
    full.cluster.drive(SECOND);
    assert!(!full.cluster.call(0, |machine, now| machine.unset_node(node, now).unwrap()));
    assert_eq!(full.cluster.node(0).metrics().nodes_pending, 0);
    assert!(full.cluster.await_done(0, request).is_ok());
    full.cluster.drive(60 * SECOND);
    assert_eq!((full.outcome(request), full.has(full.others[0])), (Some(FULL), false));
    full.cluster.stop_all();
}

/// An unproven pending node becomes proven by a connection, and stays proven if the embedder sets
/// it.
#[test]
fn proof_counts_for_a_pending_node_that_the_embedder_added_first() {
    for proof_first in [false, true] {
        let mut full = full_dead();
        if proof_first {
            connect(&mut full.cluster, full.others[0], 0);
            full.set(full.others[0], SetNodeOptions::default());
        } else {
            full.set(full.others[0], SetNodeOptions::default());
            connect(&mut full.cluster, full.others[0], 0);
        }
        full.cluster.drive(60 * SECOND);
        let node = full.cluster.id(full.others[0]);
        assert!(full.has(full.others[0]) && full.cluster.node(0).is_proven(node), "{proof_first}");
        full.cluster.stop_all();
    }
}

#[test]
fn local_id_is_rejected() {
    let mut cluster = Cluster::quiet().nodes(2).start();
    for how in [SetNodeOptions::default(), BLOCK, FORCE] {
        let request = set_node(&cluster, 0, how);
        let rejected = Ok(Reply::SetNode(SetNodeOutcome::Rejected(SetNodeRejection::OwnNode)));
        assert_eq!(cluster.ask(0, request), rejected);
    }
    assert_eq!(cluster.node(0).metrics().nodes, 0);
    cluster.stop_all();
}

// -- resetBuckets

/// Every node is in its bucket already: nothing changes, but a round in progress ends, and the
/// requests that waited for it are answered.
#[test]
fn reset_buckets_ends_rounds_and_changes_nothing_else() {
    let mut full = full_dead();
    let request = full.set(full.others[0], BLOCK);
    full.cluster.drive(SECOND);
    assert!(full.outcome(request).is_none());
    full.cluster.call(0, pk_proto::NodeManager::reset_buckets).unwrap();
    assert_eq!(full.outcome(request), Some(FULL));
    assert!(full.has_all(&full.members.clone()));
    let meta = full.cluster.node(0).bucket_meta(FAR);
    assert_eq!((meta.count, meta.pending), (ROOM, 1));
    // The pending node has its round later.
    full.cluster.drive(120 * SECOND);
    let meta = full.cluster.node(0).bucket_meta(FAR);
    assert_eq!((meta.count, meta.pending), (ROOM, 0));
    assert!(full.has(full.others[0]), "it is there once the dead have left");
    full.cluster.stop_all();
}
