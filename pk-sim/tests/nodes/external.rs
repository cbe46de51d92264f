//! External addresses: a node whose router passes packets on to it sends the address to its peers,
//! which store it as an address of that node.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    ClosestNodesQuery, ConnectionId, Event, Input, NodeAddress, NodeContact, NodeId, Output,
    PeerFault, Reply, Request, Side, StreamId,
};
use pk_sim::Cluster;

use crate::common::relays::{RELAY, SOURCE, TARGET, separate, start_around};
use crate::common::*;

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn external(address: &str) -> V1 {
    V1::External { address: Some(NodeAddress::from_socket(socket(address))) }
}

const WITHDRAWN: V1 = V1::External { address: None };

fn frame(message: V1) -> Bytes {
    native::encode(&Message::V1(message)).unwrap()
}

fn hello_with(features: u64) -> Bytes {
    frame(V1::Hello(Hello { version_min: 1, version_max: 1, features, agent: "test".into() }))
}

/// A peer has dialed from this address and sent Hello. Returns the connection, its control stream,
/// and what the node has sent there.
fn accept(bare: &mut Bare, remote: &str, features: u64) -> (ConnectionId, StreamId, Vec<V1>) {
    let conn = ConnectionId(bare.next_id());
    bare.connected(conn, Side::Acceptor, Bare::peer(1), socket(remote), 9);
    let control = bare.opened(conn);
    bare.feed(control, &hello_with(features), false);
    let outputs = bare.take();
    let opened = |it: &Output| matches!(it, Output::Event(Event::ConnectionOpened { .. }));
    assert!(outputs.iter().any(opened));
    (conn, control, messages(&outputs, control))
}

/// The addresses in the contact of a node, the newest first.
fn stored(bare: &Bare, node: NodeId) -> Vec<String> {
    let contact = bare.node.contact(node).into_iter();
    contact.flat_map(NodeContact::iter).map(|(address, _)| address.to_string()).collect()
}

#[test]
fn external_address_is_sent_after_the_hello_and_when_it_changes_to_peers_that_understand_it() {
    let mut bare = Bare::new(|_| {});
    bare.input(Input::External { addr: Some(socket("203.0.113.7:1")) });
    let (_, control, sent) = accept(&mut bare, "198.51.100.1:1314", Hello::EXTERNAL);
    assert!(
        matches!(sent[0], V1::Hello(Hello { features, .. }) if features & Hello::EXTERNAL != 0)
    );
    assert_eq!(sent[1..], [external("203.0.113.7:1")]);

    let mut change = |addr: Option<&str>| {
        bare.input(Input::External { addr: addr.map(socket) });
        let outputs = bare.take();
        messages(&outputs, control)
    };
    assert_eq!(change(Some("203.0.113.7:1")), [], "the same");
    assert_eq!(change(Some("203.0.113.7:2")), [external("203.0.113.7:2")]);
    assert_eq!(change(None), [WITHDRAWN]);
    assert_eq!(change(Some("0.0.0.0:2")), [], "no host can have it");
    let (_, _, sent) = accept(&mut bare, "198.51.100.2:1314", Hello::EXTERNAL);
    assert_eq!(sent.len(), 1, "there is nothing to withdraw: {sent:?}");

    // A node of an earlier version.
    let mut bare = Bare::new(|_| {});
    bare.input(Input::External { addr: Some(socket("203.0.113.7:1")) });
    let (_, control, sent) = accept(&mut bare, "198.51.100.1:1314", Hello::CLAIMS);
    assert_eq!(sent.len(), 1, "{sent:?}");
    bare.input(Input::External { addr: Some(socket("203.0.113.7:2")) });
    assert_eq!(messages(&bare.take(), control), []);
}

#[test]
fn external_address_is_stored_if_it_is_at_the_host_from_which_the_peer_is_connected() {
    let peer = Bare::peer(1);
    for (remote, named, is_stored) in [
        ("20.0.0.1:9", "20.0.0.1:1314", true),
        ("20.0.0.1:9", "20.0.0.2:1314", false),
        ("20.0.0.1:9", "[2600::1]:1314", false),
        ("20.0.0.1:9", "10.0.0.1:1314", false),
        ("10.0.0.1:9", "20.0.0.1:1314", false),
        // Which is of the class from which it is connected.
        ("10.0.0.1:9", "10.0.0.1:1314", true),
    ] {
        let mut bare = Bare::new(|_| {});
        let (_, control, _) = accept(&mut bare, remote, Hello::EXTERNAL);
        bare.feed(control, &frame(external(named)), false);
        let expected = if is_stored { vec![named, remote] } else { vec![remote] };
        let expected: Vec<_> =
            expected.iter().map(|it| NodeAddress::from_socket(socket(it)).to_string()).collect();
        assert_eq!(stored(&bare, peer), expected, "{remote} names {named}");
        let metrics = bare.node.metrics();
        let counted = (metrics.externals_stored, metrics.externals_refused);
        assert_eq!(counted, (u64::from(is_stored), u64::from(!is_stored)));
        assert_eq!(faults(&bare.take()), []);
    }
}

#[test]
fn peer_can_name_a_bounded_number_of_addresses() {
    let mut bare = Bare::new(|_| {});
    let (_, control, _) = accept(&mut bare, "20.0.0.1:9", Hello::EXTERNAL);
    for port in 1..=100 {
        bare.feed(control, &frame(external(&format!("20.0.0.1:{port}"))), false);
    }
    let metrics = bare.node.metrics();
    assert_eq!((metrics.externals_stored, metrics.externals_refused), (8, 92));
    assert_eq!(metrics.externals_withdrawn, 8, "each takes the place of the one before");
    assert_eq!(stored(&bare, Bare::peer(1)), ["20.0.0.1:9"], "the last one was refused");
    assert_eq!(bare.node.metrics().connections, 1);
}

#[test]
fn external_address_that_has_ended_is_no_address_of_the_contact_any_longer() {
    let peer = Bare::peer(1);
    let after = |named: &[V1]| {
        let mut bare = Bare::new(|_| {});
        let (_, control, _) = accept(&mut bare, "20.0.0.1:9", Hello::EXTERNAL);
        for message in named {
            bare.feed(control, &frame(message.clone()), false);
        }
        assert_eq!(faults(&bare.take()), []);
        (stored(&bare, peer), bare.node.metrics().externals_withdrawn)
    };
    let (first, second) = (external("20.0.0.1:1"), external("20.0.0.1:2"));
    let seen = || vec!["20.0.0.1:9".to_owned()];
    assert_eq!(after(&[first.clone(), WITHDRAWN]), (seen(), 1));
    assert_eq!(after(&[first.clone(), WITHDRAWN, WITHDRAWN]), (seen(), 1));
    assert_eq!(after(&[WITHDRAWN]), (seen(), 0));
    assert_eq!(after(&[external("20.0.0.2:1"), WITHDRAWN]), (seen(), 0));
    let second_only = vec!["20.0.0.1:2".to_owned(), "20.0.0.1:9".to_owned()];
    assert_eq!(after(&[first.clone(), second]), (second_only, 1), "another one replaces it");
    let both = vec!["20.0.0.1:1".to_owned(), "20.0.0.1:9".to_owned()];
    assert_eq!(after(&[first.clone(), first]), (both, 0), "the same");
    // From there the peer is connected.
    assert_eq!(after(&[external("20.0.0.1:9"), WITHDRAWN]), (seen(), 0));
}

#[test]
fn external_address_is_withdrawn_when_no_connection_of_the_peer_shows_it() {
    let mut bare = Bare::new(|_| {});
    let named = frame(external("20.0.0.1:1"));
    let both = ["20.0.0.1:9", "20.0.0.1:10"].map(|remote| {
        let (_, control, _) = accept(&mut bare, remote, Hello::EXTERNAL);
        bare.feed(control, &named, false);
        control
    });
    bare.feed(both[0], &frame(WITHDRAWN), false);
    assert!(stored(&bare, Bare::peer(1)).contains(&"20.0.0.1:1".to_owned()));
    bare.feed(both[1], &frame(WITHDRAWN), false);
    assert!(!stored(&bare, Bare::peer(1)).contains(&"20.0.0.1:1".to_owned()));
}

/// A node that moves learns its new external address before its connections follow, or after.
#[test]
fn external_address_is_stored_when_the_peer_is_connected_from_its_host() {
    let mut bare = Bare::new(|_| {});
    let (conn, control, _) = accept(&mut bare, "20.0.0.1:9", Hello::EXTERNAL);
    bare.feed(control, &frame(external("20.0.0.2:1")), false);
    assert_eq!(stored(&bare, Bare::peer(1)), ["20.0.0.1:9"]);
    bare.input(Input::RemoteAddressChanged { conn, addr: socket("20.0.0.2:9") });
    let known = stored(&bare, Bare::peer(1));
    assert_eq!(known, ["20.0.0.2:1", "20.0.0.2:9", "20.0.0.1:9"]);
}

#[test]
fn external_address_before_the_hello_or_on_another_stream_is_a_fault() {
    let mut bare = Bare::new(|_| {});
    let conn = ConnectionId(bare.next_id());
    bare.connected(conn, Side::Acceptor, Bare::peer(1), socket("20.0.0.1:9"), 9);
    let control = bare.opened(conn);
    bare.feed(control, &frame(external("20.0.0.1:1")), false);
    assert_eq!(faults(&bare.take()), [PeerFault::TooEarly]);

    let mut bare = Bare::new(|_| {});
    let (conn, ..) = accept(&mut bare, "20.0.0.1:9", Hello::EXTERNAL);
    let stream = bare.opened(conn);
    bare.feed(stream, &frame(external("20.0.0.1:1")), false);
    assert_eq!(faults(&bare.take()), [PeerFault::Unexpected]);
    assert_eq!(bare.node.metrics().externals_stored, 0);
}

/// A network of three nodes: what the first has as its external address, and what a third node
/// learns of it through the second.
struct Named {
    cluster: Cluster,
}

impl Named {
    fn change(&mut self, of: usize, addr: Option<SocketAddr>) {
        self.cluster.call(of, |node, now| node.handle_input(Input::External { addr }, now));
        self.cluster.drive(Duration::from_secs(1));
    }

    fn mapped(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.cluster.address(node).socket().unwrap().ip(), 4444)
    }

    /// The addresses of node 0 that node 1 sends to node 2.
    fn reported(&mut self) -> Vec<NodeAddress> {
        let (via, target) = (self.cluster.id(1), self.cluster.id(0));
        let query = ClosestNodesQuery { known: true, connected: false };
        let request = Request::QueryClosestNodes { via, target, query, options: NO };
        let Ok(Reply::QueryClosestNodes(closest)) = self.cluster.ask(2, request) else { panic!() };
        let known = closest.known.iter().find(|(node, _)| *node == target);
        known.iter().flat_map(|(_, it)| it.iter()).map(|(it, _)| it.clone()).collect()
    }

    /// The external addresses that a node has stored, and those that it has refused.
    fn counted(&self, node: usize) -> (u64, u64) {
        let metrics = self.cluster.node(node).metrics();
        (metrics.externals_stored, metrics.externals_refused)
    }
}

#[test]
fn address_reaches_a_third_node_through_a_peer_that_was_connected_until_it_has_ended() {
    let mut cluster = Cluster::quiet().nodes(3).seed(11).start();
    for (from, to) in [(0, 1), (2, 1)] {
        add_contact(&mut cluster, from, to);
        cluster.connect(from, to).unwrap();
    }
    let mut named = Named { cluster };
    let (own, mapped) = (named.cluster.address(0), named.mapped(0));
    named.change(0, Some(mapped));
    assert_eq!(named.reported(), [NodeAddress::from_socket(mapped), own.clone()]);
    named.change(0, None);
    assert_eq!(named.reported(), [own]);
    named.cluster.stop_all();
}

/// The relay names the address of the peer, so that it could name that of a third host.
#[test]
fn external_address_over_a_relayed_connection_is_stored_when_the_connection_is_direct() {
    let mut cluster = Cluster::builder().nodes(3).seed(1).build();
    separate(&mut cluster);
    start_around(&mut cluster, &[RELAY]);
    let target = cluster.id(TARGET);
    assert!(find(&mut cluster, SOURCE, target).found.is_some());
    let mut named = Named { cluster };
    let mapped = named.mapped(TARGET);
    named.change(TARGET, Some(mapped));
    assert_eq!((named.counted(RELAY), named.counted(SOURCE)), ((1, 0), (0, 1)));
    let knows = |named: &Named| {
        let contact = named.cluster.node(SOURCE).contact(target).unwrap();
        contact.iter().any(|(address, _)| *address == NodeAddress::from_socket(mapped))
    };
    assert!(!knows(&named));
    named.cluster.heal();
    named.cluster.drive(Duration::from_secs(30));
    assert_eq!(named.cluster.node(SOURCE).metrics().connections_upgraded, 1);
    assert!(knows(&named));
    assert_eq!(named.counted(SOURCE), (1, 1));
}
