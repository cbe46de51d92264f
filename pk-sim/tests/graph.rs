//! The graph of a node: who enters, who is told of, who leaves.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use common::*;
use pk_proto::{
    Answer, BucketIndex, Closest, ClosestLists, ContactMode, Event, NodeContactAddressData, NodeId, Question, Reply,
    Request, Scopes, SetNode, SetNodeOutcome, UnixMillis,
};
use pk_sim::{Cluster, HostId};

fn ask_closest(cluster: &mut Cluster, node: HostId, via: HostId, target: NodeId) -> Closest {
    let lists = ClosestLists { local: true, active: true };
    let via = cluster.id(via);
    match cluster.ask(node, Request::AskClosest { via, target, lists, options: NO }) {
        Ok(Reply::AskClosest(closest)) => closest,
        other => panic!("{other:?}"),
    }
}

fn local(closest: &Closest) -> Vec<NodeId> {
    closest.local.iter().map(|(node, _)| *node).collect()
}

fn set(cluster: &mut Cluster, node: HostId, of: NodeId, text: &str, scopes: Scopes) -> SetNodeOutcome {
    let data = data(cluster, scopes);
    match cluster.ask(node, Request::SetNode { node: of, address: address(text), data, how: SetNode::default() }) {
        Ok(Reply::SetNode(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_accepted_connections_enter_the_graph() {
    let mut cluster = Cluster::quiet().nodes(3).puppets(2).seed(3).start();
    // A peer that never greets, in both directions.
    let mut mute = Peer::honest(3);
    mute.greets = false;
    mute.connect(&mut cluster, 0);
    let request = connect_request(&cluster, 3);
    cluster.request(0, request);
    // A peer that tells of nodes that are not there, and one that is there.
    let tales = told(&cluster, &[(nobody(1), "203.0.113.1:1"), (cluster.id(2), "20.0.2.1:1314")]);
    let mut teller = Peer::new(4, move |question| match question {
        Question::Ping { nonce } => Reaction::answer(Answer::Pong { nonce }),
        Question::Closest { .. } => Reaction::answer(Answer::Closest(Closest { local: tales.clone(), active: vec![] })),
        _ => Reaction::answer(Answer::Refused(pk_proto::Refusal::Busy)),
    });
    teller.connect(&mut cluster, 0);
    // Asking for them enters nobody.
    let via = cluster.id(4);
    let lists = ClosestLists { local: true, active: false };
    let asked = cluster.request(0, Request::AskClosest { via, target: nobody(1), lists, options: NO });
    teller.drive(&mut cluster, SECOND);
    assert!(matches!(cluster.done(0, asked), Some(Ok(Reply::AskClosest(closest))) if closest.local.len() == 2));
    let nodes: Vec<_> = cluster.node(0).graph().iter().map(|(node, _)| node).collect();
    assert_eq!(nodes, [cluster.id(4)]);
    // Searching enters those that could be connected, by the address at which they were.
    let own = cluster.id(0);
    let search = cluster.request(0, Request::FindNode { target: own, find: pk_proto::FindNode::default() });
    teller.drive(&mut cluster, 20 * SECOND);
    assert!(cluster.done(0, search).is_some());
    let mut nodes: Vec<_> = cluster.node(0).graph().iter().map(|(node, _)| cluster.number(node)).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, [Some(2), Some(4)]);
    let contact = cluster.node(0).contact(cluster.id(2)).unwrap();
    let data = contact.iter().next().unwrap().1;
    assert_eq!((contact.len(), data.mode, data.scopes), (1, ContactMode::Direct, Scopes::GLOBAL));
    assert_eq!(count_events(&cluster, 0, |event| matches!(event, Event::NodeAdded { .. })), 2);
    // Who dialled us is entered by the address it was seen at.
    let there = cluster.node(2).contact(cluster.id(0)).unwrap();
    assert_eq!(there.iter().next().unwrap().0, cluster.address(0));
    cluster.stop_all();
}

#[test]
fn a_connection_renews_what_is_known_of_its_node() {
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
    assert_eq!(count_events(&cluster, 0, |event| matches!(event, Event::NodeAdded { .. })), 1, "it was known");
    cluster.stop_all();
}

#[test]
fn taking_a_node_out_keeps_its_connections() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    let id = cluster.id(1);
    assert!(cluster.call(0, |node, now| node.unset_node(id, now)));
    assert!(!cluster.call(0, |node, now| node.unset_node(id, now)), "once");
    assert_eq!(count_events(&cluster, 0, |event| *event == Event::NodeRemoved { node: id }), 1);
    assert_eq!((cluster.node(0).contact(id), cluster.node(0).connections().len()), (None, 2));
    let request = ping(&cluster, 1);
    assert!(matches!(cluster.ask(0, request), Ok(Reply::PingNode(_))));
    // It is still told as connected, and as nothing else.
    let closest = ask_closest(&mut cluster, 2, 0, id);
    assert_eq!((local(&closest), closest.active.len(), closest.active[0].node), (vec![], 1, id));
    // The next connection puts it back.
    cluster.call(0, |node, now| node.disconnect(id, now));
    cluster.drive(SECOND);
    connect(&mut cluster, 0, 1);
    assert!(cluster.node(0).contact(id).is_some());
    cluster.stop_all();
}

#[test]
fn a_node_on_the_embedders_word_is_told_to_nobody_until_it_is_proven() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 2, 0);
    tell(&mut cluster, 0, 1);
    let id = cluster.id(1);
    assert!(cluster.node(0).contact(id).is_some());
    let closest = ask_closest(&mut cluster, 2, 0, id);
    assert_eq!((local(&closest), closest.active.len()), (vec![], 0));
    // Set again, it is no more proven than before.
    assert_eq!(set(&mut cluster, 0, id, "203.0.113.9:9", Scopes::GLOBAL), SetNodeOutcome::Updated);
    assert_eq!(local(&ask_closest(&mut cluster, 2, 0, id)), []);
    connect(&mut cluster, 0, 1);
    let closest = ask_closest(&mut cluster, 2, 0, id);
    assert_eq!((local(&closest), closest.active.len()), (vec![id], 1));
    // Proven it stays, whatever the embedder says; forgotten, it begins anew.
    cluster.call(0, |node, now| node.disconnect(id, now));
    cluster.drive(SECOND);
    tell(&mut cluster, 0, 1);
    assert_eq!(local(&ask_closest(&mut cluster, 2, 0, id)), [id]);
    cluster.call(0, |node, now| node.unset_node(id, now));
    tell(&mut cluster, 0, 1);
    assert_eq!(local(&ask_closest(&mut cluster, 2, 0, id)), []);
    cluster.stop_all();
}

#[test]
fn whom_the_embedder_sets_while_it_is_connected_is_proven() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    let id = cluster.id(1);
    cluster.call(0, |node, now| node.unset_node(id, now));
    tell(&mut cluster, 0, 1);
    assert_eq!(local(&ask_closest(&mut cluster, 2, 0, id)), [id]);
    cluster.stop_all();
}

#[test]
fn an_address_of_the_local_network_is_never_told() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    let id = cluster.id(1);
    let both = Scopes { local: true, global: true };
    set(&mut cluster, 0, id, "192.168.1.7:1", Scopes::LOCAL);
    set(&mut cluster, 0, id, "203.0.113.7:1", both);
    let closest = ask_closest(&mut cluster, 2, 0, id);
    let (_, contact) = &closest.local[0];
    let mut texts: Vec<_> = contact.iter().map(|(address, _)| address.to_string()).collect();
    texts.sort();
    assert_eq!(texts, [cluster.address(1).to_string(), "203.0.113.7:1".to_owned()]);
    assert!(contact.iter().all(|(_, data)| data.scopes == Scopes::GLOBAL), "what is told is global");
    // A node with no other address is not told at all.
    cluster.call(0, |node, now| node.unset_node(id, now));
    set(&mut cluster, 0, id, "192.168.1.7:1", Scopes::LOCAL);
    assert_eq!(local(&ask_closest(&mut cluster, 2, 0, id)), []);
    cluster.stop_all();
}

#[test]
fn the_asker_is_not_told_of_itself_and_the_answer_is_full_nevertheless() {
    let mut cluster = Cluster::quiet().nodes(30).seed(3).start();
    cluster.join_all();
    let target = cluster.id(7);
    let expected: Vec<_> = {
        let mut nodes: Vec<_> = (1..30).filter(|node| *node != 7).map(|node| cluster.id(node)).collect();
        nodes.retain(|node| cluster.node(0).contact(*node).is_some());
        nodes.sort_by_key(|node| node.distance(&target));
        nodes.truncate(20);
        nodes
    };
    let closest = ask_closest(&mut cluster, 7, 0, target);
    assert_eq!(local(&closest), expected);
    assert!(closest.active.iter().all(|active| active.node != target));
    assert!(closest.active.len() <= 20 && !closest.active.is_empty());
    // Somebody else is told of it, first of all.
    let closest = ask_closest(&mut cluster, 8, 0, target);
    assert_eq!((closest.local[0].0, closest.local.len()), (target, 20));
    cluster.stop_all();
}

#[test]
fn only_the_lists_that_were_asked_for_are_told() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    for (local, active) in [(true, true), (true, false), (false, true), (false, false)] {
        let (via, lists) = (cluster.id(0), ClosestLists { local, active });
        match cluster.ask(2, Request::AskClosest { via, target: nobody(0), lists, options: NO }) {
            Ok(Reply::AskClosest(closest)) => {
                assert_eq!((closest.local.len(), closest.active.len()), (usize::from(local), usize::from(active)));
            }
            other => panic!("{other:?}"),
        }
    }
    cluster.stop_all();
}

#[test]
fn connections_are_told_with_what_is_known_of_them() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 0);
    let target = cluster.id(1);
    let closest = ask_closest(&mut cluster, 2, 0, target);
    let [active] = &closest.active[..] else { panic!("{closest:?}") };
    let [told] = &active.connections[..] else { panic!("{active:?}") };
    let known = cluster.node(1).connections().remove(0);
    assert_eq!((active.node, &told.shared_id, told.primary), (cluster.id(1), &known.shared_id, true));
    assert_eq!(told.address, cluster.address(1));
    assert!(told.idle_in_ms.is_some_and(|ms| ms <= known.idle_in.unwrap().as_millis() as u64));
    // Held by a lease, it is used.
    acquire(&mut cluster, 0, 1);
    let closest = ask_closest(&mut cluster, 2, 0, target);
    assert_eq!(closest.active[0].connections[0].idle_in_ms, None);
    cluster.stop_all();
}

#[test]
fn a_full_bucket_takes_nobody_and_counts_them() {
    let mut cluster = Cluster::quiet().nodes(20).seed(3).config_of(0, |config| config.bucket_limit = 2).start();
    let own = cluster.id(0);
    let far: Vec<_> = (1..20).filter(|node| own.bucket_index(&cluster.id(*node)) == Some(BucketIndex(255))).collect();
    assert!(far.len() >= 4);
    for node in &far {
        connect(&mut cluster, 0, *node);
    }
    let bucket: Vec<_> = cluster.node(0).bucket(BucketIndex(255)).into_iter().map(|(id, _)| id).collect();
    let mut first: Vec<_> = far[..2].iter().map(|node| cluster.id(*node)).collect();
    first.sort_unstable();
    assert_eq!(bucket, first, "those that came first stay");
    assert_eq!(cluster.node(0).metrics().bucket_full, far.len() as u64 - 2);
    assert_eq!(cluster.node(0).metrics().connections, far.len() as u64, "their connections live");
    assert_eq!(count_events(&cluster, 0, |event| matches!(event, Event::NodeAdded { .. })), 2);
    let third = cluster.id(far[2]);
    assert_eq!(set(&mut cluster, 0, third, "203.0.113.1:1", Scopes::GLOBAL), SetNodeOutcome::Pending);
    // A known node may be updated, and one that leaves makes room.
    assert_eq!(set(&mut cluster, 0, first[0], "203.0.113.1:1", Scopes::GLOBAL), SetNodeOutcome::Updated);
    cluster.call(0, |node, now| node.unset_node(first[0], now));
    assert_eq!(set(&mut cluster, 0, third, "203.0.113.1:1", Scopes::GLOBAL), SetNodeOutcome::Added);
    cluster.stop_all();
}

#[test]
fn a_node_keeps_the_addresses_where_it_was_last() {
    let mut bare = Bare::new(|config| config.address_limit = 3);
    let node = Bare::peer(0);
    for (time, text) in [(5, "10.0.0.5:1"), (1, "10.0.0.1:1"), (9, "10.0.0.9:1"), (7, "10.0.0.7:1"), (2, "10.0.0.2:1")]
    {
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UnixMillis(time),
            scopes: Scopes::GLOBAL,
        };
        bare.request(Request::SetNode { node, address: address(text), data, how: SetNode::default() });
    }
    let kept: Vec<_> = bare.node.contact(node).unwrap().iter().map(|(address, _)| address.to_string()).collect();
    assert_eq!(kept, ["10.0.0.9:1", "10.0.0.7:1", "10.0.0.5:1"]);
}

#[test]
fn a_stored_graph_is_proven_and_what_has_no_room_in_it_is_left_out() {
    let key = pk_sim::Key::numbered(5, 0);
    let unix = UnixMillis(1_767_225_600_000);
    let known = NodeContactAddressData { mode: ContactMode::Direct, connected_time: unix, scopes: Scopes::GLOBAL };
    let contact = |i: u64| pk_proto::NodeContact::new(address(&format!("203.0.113.{}:1", i + 1)), known);
    let mut contacts: Vec<_> = (0..200).map(|i| (nobody(i), contact(i))).collect();
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
