//! No network has more than its share of the graph, in virtual time (docs/DESIGN.md, Network
//! diversity).

use std::time::Duration;

use pk_proto::{
    ContactMode, Event, NodeContactAddressData, NodeId, Output, Reply, Request, Scopes,
    SetNodeOptions, SetNodeOutcome, SetNodeRejection, UnixMillis,
};

use crate::common::*;

const FORCE: SetNodeOptions = SetNodeOptions { block: false, force: true, options: NO };

fn set_at(bare: &mut Bare, node: NodeId, at: &str, how: SetNodeOptions) -> SetNodeOutcome {
    set_at_time(bare, node, at, 5, how)
}

fn set_at_time(
    bare: &mut Bare,
    node: NodeId,
    at: &str,
    time: u64,
    how: SetNodeOptions,
) -> SetNodeOutcome {
    let data = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: UnixMillis(time),
        scopes: Scopes::GLOBAL,
    };
    let request = bare.request(Request::SetNode { node, address: at.parse().unwrap(), data, how });
    match bare.done(request) {
        Some(Ok(Reply::SetNode(outcome))) => outcome,
        other => panic!("{other:?}"),
    }
}

/// Ids in a bucket of a node.
fn ids_in(own: NodeId, bucket: u8, count: u8) -> Vec<NodeId> {
    let id = |low: u8| {
        let mut bytes = *own.as_bytes();
        bytes[31 - usize::from(bucket / 8)] ^= 1 << (bucket % 8);
        bytes[31] ^= if bucket >= 8 { low } else { 0 };
        NodeId::from_bytes(bytes)
    };
    (0..count).map(id).collect()
}

const DIVERSITY: SetNodeOutcome = SetNodeOutcome::Rejected(SetNodeRejection::Diversity);

#[test]
fn one_network_has_at_most_two_nodes_in_a_bucket_and_ten_in_the_graph() {
    for (network, other) in [("8.8.8", "8.8.9"), ("2606:4700:1", "2606:4700:2")] {
        let at = |network: &str, n: u8| {
            if network.contains(':') {
                format!("[{network}:{n:x}::1]:1")
            } else {
                format!("{network}.{n}:1")
            }
        };
        let mut bare = Bare::new(|_| {});
        let own = bare.node.own_id();
        let mut admitted = 0;
        for bucket in [255, 254, 253, 252, 251, 250] {
            let ids = ids_in(own, bucket, 4);
            for (n, id) in ids.iter().enumerate().take(3) {
                let outcome =
                    set_at(&mut bare, *id, &at(network, n as u8), SetNodeOptions::default());
                let room = n < 2 && admitted < 10;
                assert_eq!(
                    outcome,
                    if room { SetNodeOutcome::Added } else { DIVERSITY },
                    "{bucket} {n}"
                );
                admitted += u8::from(room);
            }
            // Force is for full buckets.
            assert_eq!(set_at(&mut bare, ids[3], &at(network, 9), FORCE), DIVERSITY);
            assert_eq!(
                set_at(&mut bare, ids[3], &at(other, bucket), SetNodeOptions::default()),
                SetNodeOutcome::Added
            );
        }
        let metrics = bare.node.metrics();
        assert_eq!((admitted, metrics.nodes, metrics.diversity_refused), (10, 16, 14));
        // A removed node makes room.
        let (leaves, comes) = (ids_in(own, 255, 4)[0], ids_in(own, 255, 4)[2]);
        assert!(bare.node.unset_node(leaves, bare.now).unwrap());
        assert_eq!(
            set_at(&mut bare, comes, &at(network, 7), SetNodeOptions::default()),
            SetNodeOutcome::Added
        );
    }
}

/// A second address counts as well: a moved node gets no more room.
#[test]
fn address_in_a_full_network_is_not_stored_for_a_known_node() {
    let mut bare = Bare::new(|_| {});
    let ids = ids_in(bare.node.own_id(), 255, 3);
    for (id, at) in ids.iter().zip(["8.8.8.1:1", "8.8.8.2:1", "9.9.9.9:1"]) {
        assert_eq!(set_at(&mut bare, *id, at, SetNodeOptions::default()), SetNodeOutcome::Added);
    }
    assert_eq!(set_at(&mut bare, ids[2], "8.8.8.3:1", SetNodeOptions::default()), DIVERSITY);
    assert_eq!(
        set_at(&mut bare, ids[0], "8.8.8.3:1", SetNodeOptions::default()),
        SetNodeOutcome::Updated
    );
    assert_eq!(bare.node.contact(ids[2]).unwrap().len(), 1);
}

#[test]
fn private_networks_are_not_limited_and_the_limits_can_be_set() {
    for (at, limits, expected) in [
        ("10.0.0", (2, 10), 20),
        ("192.168.1", (2, 10), 20),
        ("8.8.8", (0, 0), 20),
        ("8.8.8", (5, 7), 5),
        ("8.8.8", (0, 7), 7),
    ] {
        let mut bare = Bare::new(|config| {
            (config.bucket_prefix_limit, config.graph_prefix_limit) = limits;
        });
        let ids = ids_in(bare.node.own_id(), 255, 20);
        for (n, id) in ids.into_iter().enumerate() {
            set_at(&mut bare, id, &format!("{at}.{n}:1"), SetNodeOptions::default());
        }
        assert_eq!(bare.node.metrics().nodes, expected, "{at} {limits:?}");
    }
}

/// A pending node whose network is full when there is room is dropped, and the next one is
/// admitted.
#[test]
fn network_limits_apply_to_pending_nodes() {
    let mut bare = Bare::new(|config| {
        config.bucket_limit = 3;
        config.collect_concurrency = 1;
        config.retry_delay = Duration::ZERO;
        config.refresh_delay = Duration::ZERO;
    });
    let ids = ids_in(bare.node.own_id(), 255, 5);
    for (id, (at, time)) in ids.iter().zip([("8.8.8.1:1", 5), ("8.8.8.2:1", 5), ("9.9.9.9:1", 1)]) {
        assert_eq!(
            set_at_time(&mut bare, *id, at, time, SetNodeOptions::default()),
            SetNodeOutcome::Added
        );
    }
    assert_eq!(
        set_at(&mut bare, ids[3], "7.7.7.7:1", SetNodeOptions::default()),
        SetNodeOutcome::Pending
    );
    assert_eq!(
        set_at(&mut bare, ids[4], "8.8.8.3:1", SetNodeOptions::default()),
        SetNodeOutcome::Pending
    );
    // No node answers. The one that is not of the full network is the oldest.
    bare.pass(16 * SECOND);
    let metrics = bare.node.metrics();
    assert_eq!((metrics.nodes_dead, metrics.diversity_refused, metrics.nodes_pending), (1, 1, 0));
    assert!(bare.node.contact(ids[3]).is_some() && bare.node.contact(ids[4]).is_none());
    assert!(bare.node.contact(ids[0]).is_some() && bare.node.contact(ids[2]).is_none());
}

/// A node that is refused for its network replaces no node, and its contact stays unchanged.
#[test]
fn forced_node_of_a_full_network_replaces_no_node() {
    let mut bare = Bare::new(|config| config.bucket_limit = 3);
    let ids = ids_in(bare.node.own_id(), 255, 5);
    for (id, (at, time)) in ids.iter().zip([("9.9.9.9:1", 1), ("8.8.8.1:1", 5), ("8.8.8.2:1", 5)]) {
        assert_eq!(
            set_at_time(&mut bare, *id, at, time, SetNodeOptions::default()),
            SetNodeOutcome::Added
        );
    }
    assert_eq!(
        set_at_time(&mut bare, ids[0], "9.9.8.9:1", 1, SetNodeOptions::default()),
        SetNodeOutcome::Updated
    );
    let before = bare.node.graph().clone();
    bare.take();
    assert_eq!(set_at(&mut bare, ids[3], "8.8.8.3:1", FORCE), DIVERSITY);
    assert_eq!(bare.node.graph(), &before);
    let told = |output: &Output| {
        matches!(output, Output::Event(Event::NodeRemoved { .. } | Event::NodeAdded { .. }))
    };
    assert!(!bare.take().iter().any(told), "no node left");
    // A node of another network replaces the oldest, whose removal is reported first.
    assert_eq!(set_at(&mut bare, ids[4], "7.7.7.7:1", FORCE), SetNodeOutcome::Replaced(ids[0]));
    let events: Vec<_> = bare.take().into_iter().filter(told).collect();
    let expected =
        [Event::NodeRemoved { node: ids[0] }, Event::NodeAdded { node: ids[4] }].map(Output::Event);
    assert_eq!(events, expected);
}
