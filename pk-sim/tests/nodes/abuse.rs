//! Attacks of a hostile peer that have no effect, in virtual time; each is one test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bytes::Bytes;
use pk_proto::{
    ActiveConnection, ActiveNode, BucketIndex, ClosestNodes, ClosestNodesQuery, Connected,
    ConnectionId, Dialect, Event, FindNodeOptions, Input, NodeContact, NodeId, Reply, Request,
    RpcRequest, RpcResponse, Scopes, Side, UnixMillis,
};
use pk_sim::{Cluster, HostId, Key};

use crate::common::signals::{in_seconds, punch, request};
use crate::common::*;

// -- the pending list

/// A node has connected to a bare machine from this address, and was accepted. `shared` tells
/// connections apart.
fn accept_from(bare: &mut Bare, peer: NodeId, at: &str, shared: u64) -> ConnectionId {
    let conn = ConnectionId(bare.next_id());
    bare.input(Input::Connected(Connected {
        conn,
        side: Side::Acceptor,
        dialect: Dialect::Native,
        leaf: peer,
        chain: vec![peer],
        matched_id: None,
        remote: at.parse().unwrap(),
        local: "192.0.2.1:1314".parse().unwrap(),
        shared_id: Bytes::copy_from_slice(&shared.to_be_bytes()),
    }));
    let control = bare.opened(conn);
    bare.feed(control, &hello(), false);
    conn
}

fn close(bare: &mut Bare, conn: ConnectionId) {
    bare.input(Input::Disconnected { conn, why: pk_proto::DisconnectReason::TimedOut });
}

/// Ids of the farthest bucket of a bare machine.
fn far(bare: &Bare) -> impl Iterator<Item = NodeId> + use<> {
    let own = bare.node.own_id();
    (0..).map(absent).filter(move |id| own.bucket_index(id) == Some(BucketIndex(255)))
}

/// A peer that connects from one network under ten thousand ids uses a bounded number of pending
/// places, leaves room for others, and causes probes no more often than the interval allows.
#[test]
fn peer_cannot_fill_the_pending_list() {
    let mut bare = Bare::new(|config| config.bucket_limit = 4);
    let mut ids = far(&bare);
    // The bucket is full of connected nodes, so that no node is removed.
    for (i, id) in ids.by_ref().take(4).enumerate() {
        accept_from(&mut bare, id, &format!("20.0.{i}.1:1"), i as u64);
    }
    assert_eq!(bare.node.bucket(BucketIndex(255)).len(), 4);
    // An honest node connects: it waits.
    let dead = far(&bare).next().unwrap();
    bare.node.disconnect(dead, bare.now);
    let honest = ids.next().unwrap();
    accept_from(&mut bare, honest, "30.0.0.1:1", 99);
    assert_eq!(bare.node.metrics().nodes_pending, 1);
    let mut most = 0;
    for (i, id) in ids.take(10_000).enumerate() {
        let conn = accept_from(
            &mut bare,
            id,
            &format!("66.6.6.{}:{}", i % 250, 1 + i % 60_000),
            100 + i as u64,
        );
        close(&mut bare, conn);
        bare.take();
        most = most.max(bare.node.metrics().nodes_pending);
    }
    assert_eq!(most, 20, "as many as wait at most in one bucket");
    let metrics = bare.node.metrics();
    assert_eq!((metrics.collections, metrics.dials), (0, 0), "whatever knocks");
    // There is room. The honest node may not get it, but it was pending to the end.
    bare.node.unset_node(dead, bare.now).unwrap();
    bare.drain();
    let members: BTreeSet<_> =
        bare.node.bucket(BucketIndex(255)).into_iter().map(|(id, _)| id).collect();
    assert!(!members.contains(&dead));
    assert_eq!(members.len(), 4);
    assert!(bare.node.metrics().pending_dropped >= 10_000 - 20);
}

// -- punches

/// A relay and thousands of ids, each with a valid signature, request punches at one victim.
#[test]
fn peer_cannot_cause_more_punches_than_the_limits_allow() {
    let seed = 6;
    // The limit that ends its connection after refused requests is raised here; `limits.rs` tests
    // it.
    let patient = |config: &mut pk_proto::Config| config.fault_limit = 1_000_000;
    let mut cluster =
        Cluster::quiet().nodes(1).scripted_peers(1).seed(seed).config(patient).start();
    let mut relay = Peer::honest(1);
    let conn = relay.connect(&mut cluster, 0);
    let (own, relay_key) = (cluster.id(0), Key::numbered(seed, 1));
    let victim: IpAddr = "203.0.113.50".parse().unwrap();
    let seconds = 60;
    let (mut accepted, mut number) = (0, 0);
    for _ in 0..seconds {
        let expires = in_seconds(&cluster, 0, 100);
        let questions: Vec<_> = (0..40)
            .map(|_| {
                number += 1;
                let source = Key::numbered(seed + 1, number);
                let at = format!("{victim}:{}", 1 + number).parse().unwrap();
                RpcRequest::Punch(Box::new(punch(
                    &relay_key,
                    source.id(),
                    at,
                    request(&source, own, expires, 0),
                )))
            })
            .collect();
        let answers = relay.ask(&mut cluster, conn, questions);
        accepted += answers.iter().filter(|answer| **answer == Some(RpcResponse::Punching)).count();
    }
    // Three at a time, each for fifteen seconds.
    assert!((3..=3 * (seconds / 15 + 1)).contains(&accepted), "{accepted}");
    let datagrams = cluster.coverage().count("Output::Punch");
    assert!(datagrams <= 9 * accepted as u64, "{datagrams}");
    let metrics = cluster.node(0).metrics();
    assert!(metrics.dials <= accepted as u64, "{metrics:?}");
    assert_eq!(metrics.punches + metrics.punches_refused, 40 * seconds as u64);

    // Many victims instead of one: the total is limited, and so are the requests of one relay.
    let expires = in_seconds(&cluster, 0, 100);
    cluster.drive(60 * SECOND);
    let before = cluster.node(0).metrics().punches;
    let questions = (0..80).map(|i| {
        let source = Key::numbered(seed + 2, i);
        let at = format!("203.0.{i}.1:1").parse().unwrap();
        RpcRequest::Punch(Box::new(punch(
            &relay_key,
            source.id(),
            at,
            request(&source, own, expires, 0),
        )))
    });
    let questions = questions.collect();
    relay.ask(&mut cluster, conn, questions);
    let more = cluster.node(0).metrics().punches - before;
    assert!((20..=31).contains(&more), "twenty at once, ten a second: {more}");
    cluster.stop_all();
}

// -- dials

/// Returns what a search of a bare machine dials if a peer reports `lie` to it.
fn dials_after(
    lie: &ClosestNodes,
    find: FindNodeOptions,
    change: impl FnOnce(&mut pk_proto::Config),
) -> Vec<std::net::SocketAddr> {
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).config(change).start();
    add_contact(&mut cluster, 0, 1);
    let lie = lie.clone();
    let mut liar = Peer::new(1, move |_| Reaction::answer(RpcResponse::Closest(lie.clone())));
    let request = cluster.request(0, Request::FindNode { target: absent(7), find });
    liar.drive(&mut cluster, 120 * SECOND);
    assert!(cluster.done(0, request).is_some(), "it hangs");
    assert!(!liar.asked.is_empty());
    cluster
        .dials(0)
        .iter()
        .map(|(_, addr)| *addr)
        .filter(|addr| *addr != cluster.host(1).addrs()[0])
        .collect()
}

fn contact(addresses: impl IntoIterator<Item = String>) -> NodeContact {
    let data = pk_proto::NodeContactAddressData {
        mode: pk_proto::ContactMode::Direct,
        connected_time: UnixMillis(1),
        scopes: Scopes::GLOBAL,
    };
    addresses.into_iter().map(|text| (address(&text), data)).collect()
}

/// A peer reports every node at as many ports of one victim as fit into an answer.
#[test]
fn peer_cannot_cause_a_burst_of_dials() {
    let local = (0..20).map(|i| {
        let addresses = (0..8).map(|port| format!("203.0.113.50:{}", 1 + 8 * i + port));
        (absent(100 + i), contact(addresses))
    });
    let lie = ClosestNodes { known: local.collect(), connected: Vec::new() };
    let dials = dials_after(&lie, FindNodeOptions::default(), |_| {});
    // An answer contains at most twenty nodes, and a search dials at most five addresses of each
    // from one answer.
    assert!(!dials.is_empty() && dials.len() <= 20 * 5, "{}", dials.len());
    let few =
        dials_after(&lie, FindNodeOptions { limit: Some(3), ..FindNodeOptions::default() }, |_| {});
    assert!(!few.is_empty() && few.len() <= 2 * 5, "{}", few.len());
    let narrow = dials_after(&lie, FindNodeOptions::default(), |config| config.dial_limit = 2);
    assert!(narrow.len() <= dials.len());
}

#[test]
fn peer_cannot_cause_dials_in_the_local_network() {
    let private = [
        "127.0.0.1:22",
        "10.1.2.3:80",
        "172.16.0.1:80",
        "192.168.1.1:80",
        "169.254.169.254:80",
        "100.64.0.1:80",
        "[::1]:22",
        "[fe80::1]:80",
        "[fd00::1]:80",
        "[::ffff:127.0.0.1]:22",
        "localhost:22",
        "router.local:80",
    ];
    let local =
        private.iter().zip(100..).map(|(text, i)| (absent(i), contact([(*text).to_owned()])));
    let connection = |text: &str| ActiveConnection {
        shared_id: Bytes::from_static(b"x"),
        address: address(text),
        primary: true,
        idle_in_ms: None,
    };
    let active = private
        .iter()
        .zip(200..)
        .map(|(text, i)| ActiveNode { node: absent(i), connections: vec![connection(text)] });
    let honest = (absent(300), contact(["203.0.113.9:1".to_owned()]));
    let lie = ClosestNodes { known: local.chain([honest]).collect(), connected: active.collect() };
    let dials = dials_after(&lie, FindNodeOptions::default(), |_| {});
    assert_eq!(dials, ["203.0.113.9:1".parse().unwrap()], "the honest one alone");
    // The assertion can fail: without the policy they are dialed.
    let open = dials_after(&lie, FindNodeOptions::default(), |config| {
        config.address_policy = pk_proto::AddressPolicy::Any;
    });
    assert!(open.iter().any(|addr| addr.ip().is_loopback()), "{open:?}");
}

/// For the source and for the target: neither the address that a relay returns nor the one that it
/// requests punches to.
#[test]
fn relay_cannot_cause_dials_or_punches_in_the_local_network() {
    let seed = 6;
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(3).seed(seed).start();
    let mut relay = Peer::honest(1);
    let conn = relay.connect(&mut cluster, 0);
    let (own, relay_key, source) = (cluster.id(0), Key::numbered(seed, 1), Key::numbered(seed, 2));
    let expires = in_seconds(&cluster, 0, 100);
    for (i, at) in
        ["127.0.0.1:22", "192.168.1.1:80", "[fe80::1]:80", "10.0.0.1:1"].into_iter().enumerate()
    {
        let punch =
            punch(&relay_key, source.id(), address(at), request(&source, own, expires, i as u8));
        let answer = relay.ask_one(&mut cluster, conn, RpcRequest::Punch(Box::new(punch)));
        assert_eq!(answer, Some(RpcResponse::Refused(pk_proto::Refusal::Address)), "{at}");
    }
    assert_eq!(
        (cluster.coverage().count("Output::Punch"), cluster.node(0).metrics().dials),
        (0, 0)
    );
    // A relay that reports that the target is connected to it.
    let target = absent(5);
    for (scripted_peer, at) in [(2, "127.0.0.1:22"), (3, "192.168.1.1:80")] {
        let mut liar = Peer::new(scripted_peer, move |question| {
            Reaction::answer(match question {
                RpcRequest::Closest { .. } => {
                    let connection = ActiveConnection {
                        shared_id: Bytes::from_static(b"x"),
                        address: address("192.168.1.1:80"),
                        primary: true,
                        idle_in_ms: None,
                    };
                    let active = vec![ActiveNode { node: target, connections: vec![connection] }];
                    RpcResponse::Closest(ClosestNodes { known: Vec::new(), connected: active })
                }
                RpcRequest::Signal(_) => RpcResponse::Signalled { address: address(at) },
                RpcRequest::Ping { nonce } => RpcResponse::Pong { nonce },
                RpcRequest::Punch(_) => RpcResponse::Punching,
                _ => RpcResponse::Refused(pk_proto::Refusal::Busy),
            })
        });
        liar.connect(&mut cluster, 0);
        let request =
            cluster.request(0, Request::FindNode { target, find: FindNodeOptions::default() });
        liar.drive(&mut cluster, 60 * SECOND);
        assert!(cluster.done(0, request).is_some());
        assert!(
            liar.asked.iter().any(|question| matches!(question, RpcRequest::Signal(_))),
            "it was asked to signal"
        );
        let ours: Vec<_> =
            (1..4).map(|scripted_peer| cluster.host(scripted_peer).addrs()[0]).collect();
        assert!(
            cluster.dials(0).iter().all(|(_, addr)| ours.contains(addr)),
            "{at}: {:?}",
            cluster.dials(0)
        );
    }
    cluster.stop_all();
}

// -- what is stored

/// Only nodes that a handshake has proven are in the graph and the store, whatever a peer reports.
#[test]
fn no_address_is_stored_for_an_unproven_node() {
    let mut cluster = Cluster::quiet().nodes(3).scripted_peers(1).seed(3).start();
    connect(&mut cluster, 0, 1);
    add_contact(&mut cluster, 0, 3);
    // It reports a node that does not exist, a real one at the peer's own address, and itself at
    // another address.
    let (real, liar_id, at) = (cluster.id(2), cluster.id(3), cluster.address(3).to_string());
    let elsewhere = "203.0.113.9:1".to_owned();
    let local = vec![
        (absent(1), contact(["203.0.113.8:1".to_owned(), at.clone()])),
        (real, contact([at.clone()])),
        (liar_id, contact([elsewhere.clone()])),
    ];
    let lie = ClosestNodes { known: local, connected: Vec::new() };
    let mut liar = Peer::new(3, move |_| Reaction::answer(RpcResponse::Closest(lie.clone())));
    for target in [absent(1), real, liar_id, cluster.id(0)] {
        let request =
            cluster.request(0, Request::FindNode { target, find: FindNodeOptions::default() });
        liar.drive(&mut cluster, 60 * SECOND);
        assert!(cluster.done(0, request).is_some());
    }
    assert!(!liar.asked.is_empty());
    liar.drive(&mut cluster, 10 * SECOND);
    let stored: BTreeMap<NodeId, Vec<String>> = cluster
        .node(0)
        .graph()
        .iter()
        .map(|(node, contact)| {
            (node, contact.iter().map(|(address, _)| address.to_string()).collect())
        })
        .collect();
    assert!(!stored.contains_key(&absent(1)) && !stored.contains_key(&real), "{stored:?}");
    assert_eq!(
        stored.get(&liar_id),
        Some(&vec![at]),
        "where it was really connected, and nowhere else"
    );
    // The checkers of the simulator have compared the store with the graph.
    assert!(cluster.check_counters().stored > 0);
    let ids: BTreeSet<Vec<u8>> =
        cluster.host(0).store.rows().map(|(_, key, _)| key.to_vec()).collect();
    assert!(
        !ids.contains(absent(1).as_bytes().as_slice()) && !ids.contains(real.as_bytes().as_slice())
    );
    cluster.stop_all();
}

// -- what is sent to peers

/// Returns all addresses that a node sends about another one: those in both lists, and those of
/// signalling.
fn reported_addresses(cluster: &mut Cluster, asker: HostId, of: NodeId) -> BTreeSet<String> {
    let (via, query) = (cluster.id(0), ClosestNodesQuery { known: true, connected: true });
    let Ok(Reply::QueryClosestNodes(closest)) =
        cluster.ask(asker, Request::QueryClosestNodes { via, target: of, query, options: NO })
    else {
        panic!("no answer")
    };
    let local = closest
        .known
        .iter()
        .filter(|(node, _)| *node == of)
        .flat_map(|(_, contact)| contact.iter());
    let local = local.map(|(address, _)| address.to_string());
    let active = closest
        .connected
        .iter()
        .filter(|active| active.node == of)
        .flat_map(|active| &active.connections);
    local.chain(active.map(|connection| connection.address.to_string())).collect()
}

/// Node 1 was found on the local network of node 0. No other node receives its address: not while
/// it is connected, not later when its address is dialed again from the graph, not by signalling.
#[test]
fn local_addresses_are_not_sent_to_peers() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).config(|config| config.mdns = true).build();
    (0..2).for_each(|node| cluster.host_mut(node).lan = Some(1));
    (0..3).for_each(|node| cluster.start_node(node));
    cluster.drive(SECOND);
    connect(&mut cluster, 2, 0);
    let home = cluster.id(1);
    assert!(find(&mut cluster, 0, home).found.unwrap().1.scopes == Scopes::LOCAL);
    cluster.drive(SECOND);
    assert_eq!(reported_addresses(&mut cluster, 2, home), BTreeSet::new(), "while it is connected");
    // A relay does not connect node 2 either.
    let outcome = find(&mut cluster, 2, home);
    assert_eq!((outcome.found, cluster.node(1).metrics().punches), (None, 0));

    // The connection ends; a search dials the stored address.
    cluster.call(0, |node, now| node.disconnect(home, now));
    cluster.drive(SECOND);
    assert_eq!(reported_addresses(&mut cluster, 2, home), BTreeSet::new(), "while it is not");
    let strategies =
        Some(pk_proto::Strategies { direct: true, signal: false, mdns: false, relay: false });
    let outcome = find_with(
        &mut cluster,
        0,
        home,
        FindNodeOptions { strategies, ..FindNodeOptions::default() },
    );
    assert_eq!(outcome.found.unwrap().1.scopes, Scopes::LOCAL, "learnt as it was");
    cluster.drive(SECOND);
    assert_eq!(reported_addresses(&mut cluster, 2, home), BTreeSet::new(), "dialed again");

    // The same if the other node connects.
    cluster.call(0, |node, now| node.disconnect(home, now));
    cluster.drive(SECOND);
    connect(&mut cluster, 1, 0);
    assert_eq!(
        reported_addresses(&mut cluster, 2, home),
        BTreeSet::new(),
        "it has connected to us"
    );
    let events = count_events(
        &cluster,
        0,
        |event| matches!(event, Event::ConnectionOpened { node, .. } if *node == home),
    );
    assert_eq!(events, 3);
    // The assertion can fail: an address of the public network is sent.
    let (at, other) = (cluster.address(2).to_string(), cluster.id(2));
    connect(&mut cluster, 1, 0);
    assert_eq!(reported_addresses(&mut cluster, 1, other), BTreeSet::from([at]));
    cluster.stop_all();
}
