//! The graph of a node: which nodes enter, are reported to peers, and are removed.

use pk_proto::{
    BucketIndex, ClosestNodes, ClosestNodesQuery, ContactMode, Event, NodeContactAddressData,
    NodeId, Reply, Request, RpcRequest, RpcResponse, Scopes, SetNodeOptions, SetNodeOutcome,
    UnixMillis,
};
use pk_sim::{Cluster, HostId};

use crate::common::*;

fn query_closest_nodes(
    cluster: &mut Cluster,
    node: HostId,
    via: HostId,
    target: NodeId,
) -> ClosestNodes {
    let query = ClosestNodesQuery { known: true, connected: true };
    let via = cluster.id(via);
    match cluster.ask(node, Request::QueryClosestNodes { via, target, query, options: NO }) {
        Ok(Reply::QueryClosestNodes(closest)) => closest,
        other => panic!("{other:?}"),
    }
}

fn local(closest: &ClosestNodes) -> Vec<NodeId> {
    closest.known.iter().map(|(node, _)| *node).collect()
}

fn set(
    cluster: &mut Cluster,
    node: HostId,
    of: NodeId,
    text: &str,
    scopes: Scopes,
) -> SetNodeOutcome {
    let data = data(cluster, scopes);
    match cluster.ask(
        node,
        Request::SetNode { node: of, address: address(text), data, how: SetNodeOptions::default() },
    ) {
        Ok(Reply::SetNode(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_accepted_connections_enter_the_graph() {
    let mut cluster = Cluster::quiet().nodes(3).scripted_peers(2).seed(3).start();
    // A peer that never sends Hello, in both directions.
    let mut mute = Peer::honest(3);
    mute.greets = false;
    mute.connect(&mut cluster, 0);
    let request = connect_request(&cluster, 3);
    cluster.request(0, request);
    // A peer that reports nodes that do not exist, and one that does.
    let tales =
        contacts(&cluster, &[(absent(1), "203.0.113.1:1"), (cluster.id(2), "20.0.2.1:1314")]);
    let mut teller = Peer::new(4, move |question| match question {
        RpcRequest::Ping { nonce } => Reaction::answer(RpcResponse::Pong { nonce }),
        RpcRequest::Closest { .. } => Reaction::answer(RpcResponse::Closest(ClosestNodes {
            known: tales.clone(),
            connected: vec![],
        })),
        _ => Reaction::answer(RpcResponse::Refused(pk_proto::Refusal::Busy)),
    });
    teller.connect(&mut cluster, 0);
    // A query adds no node.
    let via = cluster.id(4);
    let query = ClosestNodesQuery { known: true, connected: false };
    let asked = cluster
        .request(0, Request::QueryClosestNodes { via, target: absent(1), query, options: NO });
    teller.drive(&mut cluster, SECOND);
    assert!(
        matches!(cluster.done(0, asked), Some(Ok(Reply::QueryClosestNodes(closest))) if closest.known.len() == 2)
    );
    let nodes: Vec<_> = cluster.node(0).graph().iter().map(|(node, _)| node).collect();
    assert_eq!(nodes, [cluster.id(4)]);
    // A search adds those that could be connected, with the address of the connection.
    let own = cluster.id(0);
    let search = cluster
        .request(0, Request::FindNode { target: own, find: pk_proto::FindNodeOptions::default() });
    teller.drive(&mut cluster, 20 * SECOND);
    assert!(cluster.done(0, search).is_some());
    let mut nodes: Vec<_> =
        cluster.node(0).graph().iter().map(|(node, _)| cluster.number(node)).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, [Some(2), Some(4)]);
    let contact = cluster.node(0).contact(cluster.id(2)).unwrap();
    let data = contact.iter().next().unwrap().1;
    assert_eq!((contact.len(), data.mode, data.scopes), (1, ContactMode::Direct, Scopes::GLOBAL));
    assert_eq!(count_events(&cluster, 0, |event| matches!(event, Event::NodeAdded { .. })), 2);
    // A node that has dialed is added with its observed address.
    let there = cluster.node(2).contact(cluster.id(0)).unwrap();
    assert_eq!(there.iter().next().unwrap().0, cluster.address(0));
    cluster.stop_all();
}

#[test]
fn connection_updates_the_contact_of_its_node() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    connect(&mut cluster, 0, 1);
    let id = cluster.id(1);
    let first = cluster.node(0).contact(id).unwrap().connected_time();
    cluster.call(0, |node, now| node.disconnect(id, now));
    cluster.drive(100 * SECOND);
    connect(&mut cluster, 0, 1);
    let contact = cluster.node(0).contact(id).unwrap();
    assert_eq!(contact.len(), 1);
    assert!(contact.connected_time().0 >= first.0 + 100_000);
    assert_eq!(
        count_events(&cluster, 0, |event| matches!(event, Event::NodeAdded { .. })),
        1,
        "it was known"
    );
    cluster.stop_all();
}

#[test]
fn unset_node_keeps_its_connections() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    let id = cluster.id(1);
    assert!(cluster.call(0, |node, now| node.unset_node(id, now).unwrap()));
    assert!(!cluster.call(0, |node, now| node.unset_node(id, now).unwrap()), "once");
    assert_eq!(count_events(&cluster, 0, |event| *event == Event::NodeRemoved { node: id }), 1);
    assert_eq!((cluster.node(0).contact(id), cluster.node(0).connections().len()), (None, 2));
    let request = ping(&cluster, 1);
    assert!(matches!(cluster.ask(0, request), Ok(Reply::PingNode(_))));
    // It is still reported as connected, and not as known.
    let closest = query_closest_nodes(&mut cluster, 2, 0, id);
    assert_eq!(
        (local(&closest), closest.connected.len(), closest.connected[0].node),
        (vec![], 1, id)
    );
    // The next connection adds it again.
    cluster.call(0, |node, now| node.disconnect(id, now));
    cluster.drive(SECOND);
    connect(&mut cluster, 0, 1);
    assert!(cluster.node(0).contact(id).is_some());
    cluster.stop_all();
}

#[test]
fn node_added_by_the_embedder_is_not_sent_to_peers_until_proved() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 2, 0);
    add_contact(&mut cluster, 0, 1);
    let id = cluster.id(1);
    assert!(cluster.node(0).contact(id).is_some());
    let closest = query_closest_nodes(&mut cluster, 2, 0, id);
    assert_eq!((local(&closest), closest.connected.len()), (vec![], 0));
    // Set again, it is still not proven.
    assert_eq!(set(&mut cluster, 0, id, "203.0.113.9:9", Scopes::GLOBAL), SetNodeOutcome::Updated);
    assert_eq!(local(&query_closest_nodes(&mut cluster, 2, 0, id)), []);
    connect(&mut cluster, 0, 1);
    let closest = query_closest_nodes(&mut cluster, 2, 0, id);
    assert_eq!((local(&closest), closest.connected.len()), (vec![id], 1));
    // It stays proven if the embedder sets it again; after a removal it is unproven.
    cluster.call(0, |node, now| node.disconnect(id, now));
    cluster.drive(SECOND);
    add_contact(&mut cluster, 0, 1);
    assert_eq!(local(&query_closest_nodes(&mut cluster, 2, 0, id)), [id]);
    cluster.call(0, |node, now| node.unset_node(id, now).unwrap());
    add_contact(&mut cluster, 0, 1);
    assert_eq!(local(&query_closest_nodes(&mut cluster, 2, 0, id)), []);
    cluster.stop_all();
}

#[test]
fn connected_node_set_by_the_embedder_is_proven() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    let id = cluster.id(1);
    cluster.call(0, |node, now| node.unset_node(id, now).unwrap());
    add_contact(&mut cluster, 0, 1);
    assert_eq!(local(&query_closest_nodes(&mut cluster, 2, 0, id)), [id]);
    cluster.stop_all();
}

#[test]
fn address_of_the_local_network_is_never_sent() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    let id = cluster.id(1);
    let both = Scopes { local: true, global: true };
    set(&mut cluster, 0, id, "192.168.1.7:1", Scopes::LOCAL);
    set(&mut cluster, 0, id, "203.0.113.7:1", both);
    let closest = query_closest_nodes(&mut cluster, 2, 0, id);
    let (_, contact) = &closest.known[0];
    let mut texts: Vec<_> = contact.iter().map(|(address, _)| address.to_string()).collect();
    texts.sort();
    assert_eq!(texts, [cluster.address(1).to_string(), "203.0.113.7:1".to_owned()]);
    assert!(
        contact.iter().all(|(_, data)| data.scopes == Scopes::GLOBAL),
        "what is sent is global"
    );
    // A node without another address is not sent.
    cluster.call(0, |node, now| node.unset_node(id, now).unwrap());
    set(&mut cluster, 0, id, "192.168.1.7:1", Scopes::LOCAL);
    assert_eq!(local(&query_closest_nodes(&mut cluster, 2, 0, id)), []);
    cluster.stop_all();
}

#[test]
fn closest_nodes_exclude_the_requester_and_are_complete() {
    let mut cluster = Cluster::quiet().nodes(30).seed(3).start();
    cluster.join_all();
    let target = cluster.id(7);
    let expected: Vec<_> = {
        let mut nodes: Vec<_> =
            (1..30).filter(|node| *node != 7).map(|node| cluster.id(node)).collect();
        nodes.retain(|node| cluster.node(0).contact(*node).is_some());
        nodes.sort_by_key(|node| node.distance(&target));
        nodes.truncate(20);
        nodes
    };
    let closest = query_closest_nodes(&mut cluster, 7, 0, target);
    assert_eq!(local(&closest), expected);
    assert!(closest.connected.iter().all(|active| active.node != target));
    assert!(closest.connected.len() <= 20 && !closest.connected.is_empty());
    // Another node is reported with it, and first.
    let closest = query_closest_nodes(&mut cluster, 8, 0, target);
    assert_eq!((closest.known[0].0, closest.known.len()), (target, 20));
    cluster.stop_all();
}

#[test]
fn query_for_the_own_id_returns_the_observed_address() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    connect(&mut cluster, 1, 0);
    let (via, target) = (cluster.id(0), cluster.id(1));
    for (local, included) in [(false, true), (true, false)] {
        let query = ClosestNodesQuery { known: local, connected: true };
        let request = Request::QueryClosestNodes { via, target, query, options: NO };
        let Ok(Reply::QueryClosestNodes(closest)) = cluster.ask(1, request) else {
            panic!("no answer")
        };
        let addresses: Vec<_> = closest
            .connected
            .iter()
            .flat_map(|node| &node.connections)
            .map(|c| &c.address)
            .collect();
        let expected = cluster.address(1);
        assert_eq!(addresses, if included { vec![&expected] } else { vec![] });
        assert!(closest.connected.iter().all(|active| active.node == target));
    }
    cluster.stop_all();
}

#[test]
fn only_requested_lists_are_returned() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    for (local, active) in [(true, true), (true, false), (false, true), (false, false)] {
        let (via, query) = (cluster.id(0), ClosestNodesQuery { known: local, connected: active });
        match cluster
            .ask(2, Request::QueryClosestNodes { via, target: absent(0), query, options: NO })
        {
            Ok(Reply::QueryClosestNodes(closest)) => {
                assert_eq!(
                    (closest.known.len(), closest.connected.len()),
                    (usize::from(local), usize::from(active))
                );
            }
            other => panic!("{other:?}"),
        }
    }
    cluster.stop_all();
}

#[test]
fn active_lists_contain_the_data_of_connections() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    let target = cluster.id(1);
    let closest = query_closest_nodes(&mut cluster, 2, 0, target);
    let [active] = &closest.connected[..] else { panic!("{closest:?}") };
    let [told] = &active.connections[..] else { panic!("{active:?}") };
    let known = cluster.node(1).connections().remove(0);
    assert_eq!(
        (active.node, &told.shared_id, told.primary),
        (cluster.id(1), &known.shared_id, true)
    );
    assert_eq!(told.address, cluster.address(1));
    assert!(told.idle_in_ms.is_some_and(|ms| ms <= known.idle_in.unwrap().as_millis() as u64));
    // With a lease it is in use.
    acquire(&mut cluster, 0, 1);
    let closest = query_closest_nodes(&mut cluster, 2, 0, target);
    assert_eq!(closest.connected[0].connections[0].idle_in_ms, None);
    cluster.stop_all();
}

#[test]
fn full_bucket_admits_no_node_and_counts_the_refused_ones() {
    let mut cluster =
        Cluster::quiet().nodes(20).seed(3).config_of(0, |config| config.bucket_limit = 2).start();
    let own = cluster.id(0);
    let far: Vec<_> = (1..20)
        .filter(|node| own.bucket_index(&cluster.id(*node)) == Some(BucketIndex(255)))
        .collect();
    assert!(far.len() >= 4);
    for node in &far {
        connect(&mut cluster, 0, *node);
    }
    let bucket: Vec<_> =
        cluster.node(0).bucket(BucketIndex(255)).into_iter().map(|(id, _)| id).collect();
    let mut first: Vec<_> = far[..2].iter().map(|node| cluster.id(*node)).collect();
    first.sort_unstable();
    assert_eq!(bucket, first, "those that came first stay");
    assert_eq!(cluster.node(0).metrics().bucket_full, far.len() as u64 - 2);
    assert_eq!(cluster.node(0).metrics().connections, far.len() as u64, "their connections live");
    assert_eq!(count_events(&cluster, 0, |event| matches!(event, Event::NodeAdded { .. })), 2);
    let third = cluster.id(far[2]);
    assert_eq!(
        set(&mut cluster, 0, third, "203.0.113.1:1", Scopes::GLOBAL),
        SetNodeOutcome::Rejected(pk_proto::SetNodeRejection::BucketFull),
        "every contact is connected, so that the round ends at once"
    );
    // A known node can be updated, and a removed one makes room.
    assert_eq!(
        set(&mut cluster, 0, first[0], "203.0.113.1:1", Scopes::GLOBAL),
        SetNodeOutcome::Updated
    );
    cluster.call(0, |node, now| node.unset_node(first[0], now).unwrap());
    assert_eq!(set(&mut cluster, 0, third, "203.0.113.1:1", Scopes::GLOBAL), SetNodeOutcome::Added);
    cluster.stop_all();
}

#[test]
fn contact_keeps_its_most_recent_addresses() {
    let mut bare = Bare::new(|config| config.address_limit = 3);
    let node = Bare::peer(0);
    for (time, text) in [
        (5, "10.0.0.5:1"),
        (1, "10.0.0.1:1"),
        (9, "10.0.0.9:1"),
        (7, "10.0.0.7:1"),
        (2, "10.0.0.2:1"),
    ] {
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UnixMillis(time),
            scopes: Scopes::GLOBAL,
        };
        bare.request(Request::SetNode {
            node,
            address: address(text),
            data,
            how: SetNodeOptions::default(),
        });
    }
    let kept: Vec<_> =
        bare.node.contact(node).unwrap().iter().map(|(address, _)| address.to_string()).collect();
    assert_eq!(kept, ["10.0.0.9:1", "10.0.0.7:1", "10.0.0.5:1"]);
}

#[test]
fn stored_graph_is_proven_and_excess_contacts_are_dropped() {
    let key = pk_sim::Key::numbered(5, 0);
    let unix = UnixMillis(1_767_225_600_000);
    let known = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: unix,
        scopes: Scopes::GLOBAL,
    };
    let contact =
        |i: u64| pk_proto::NodeContact::new(address(&format!("203.0.113.{}:1", i + 1)), known);
    let mut contacts: Vec<_> = (0..200).map(|i| (absent(i), contact(i))).collect();
    contacts.push((key.id(), contact(200)));
    let snapshot = pk_proto::Snapshot { contacts, ..pk_proto::Snapshot::default() };
    let (config, now) = (pk_proto::Config::default(), pk_proto::Instant::ORIGIN);
    let identity = pk_sim::genesis(&key, unix);
    let node = pk_proto::NodeManager::new(config, &identity, snapshot, [0; 32], now, unix).unwrap();
    let graph = node.graph();
    let (far, full) = (BucketIndex(255), 20);
    let sizes: Vec<_> = graph.buckets().map(|(_, len)| len).collect();
    assert!(graph.bucket_len(far) == full && sizes.iter().all(|len| *len <= full), "{sizes:?}");
    assert!(graph.len() > 60 && graph.len() < 200 && graph.get(&key.id()).is_none());
}
