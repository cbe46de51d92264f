//! Addresses in the local network, exchanged over a relayed connection: what the acceptor does with
//! those of the dialer (docs/DESIGN.md, Relaying).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    ConnectionId, ContactMode, Input, NodeAddress, Output, Refusal, RpcRequest, RpcResponse, Side,
};
use pk_sim::{Cluster, Dependence, NatConfig};

use crate::common::relays::{RELAY, SOURCE, TARGET, start_around};
use crate::common::{Bare, SECOND, find, messages};

const CONE: NatConfig = NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort);

/// As if the host of the acceptor had a firewall, or another network first.
#[test]
fn acceptor_that_the_dialer_cannot_reach_dials_the_dialer() {
    let mut cluster = Cluster::builder().nodes(3).seed(11).build();
    let nat = cluster.add_nat(CONE);
    for node in [SOURCE, TARGET] {
        cluster.put_behind(node, nat);
    }
    start_around(&mut cluster, &[RELAY]);
    // No host has the address that the dialer learns.
    cluster.inject(TARGET, Input::LocalAddresses { ips: vec!["10.99.99.99".parse().unwrap()] });
    let target = cluster.id(TARGET);
    assert!(find(&mut cluster, SOURCE, target).found.is_some());
    cluster.drive(45 * SECOND);
    let source = cluster.id(SOURCE);
    for (node, peer) in [(SOURCE, target), (TARGET, source)] {
        let connections = cluster.node(node).connections();
        let primary = connections.iter().find(|info| info.node == peer && info.primary).unwrap();
        assert_eq!(primary.data.mode, ContactMode::Direct);
        assert!(!primary.data.scopes.global, "its address is sent to no node");
    }
}

fn frame(message: V1) -> Bytes {
    native::encode(&Message::V1(message)).unwrap()
}

fn call(request: RpcRequest) -> Bytes {
    frame(V1::Call { deadline_ms: 5000, request })
}

/// A node in a private network, to which a relay offers circuits.
struct Acceptor {
    bare: Bare,
    relay: ConnectionId,
    /// The addresses that it has dialed.
    dialed: BTreeSet<String>,
}

impl Acceptor {
    fn new() -> Self {
        let mut bare = Bare::new(|_| {});
        bare.input(Input::LocalAddresses { ips: vec!["192.168.0.9".parse().unwrap()] });
        let mut it = Self { bare, relay: ConnectionId(0), dialed: BTreeSet::new() };
        it.relay = it.accept(1000, "198.51.100.1:1314".parse().unwrap());
        it
    }

    fn take(&mut self) -> Vec<Output> {
        let outputs = self.bare.take();
        self.dialed.extend(outputs.iter().filter_map(|output| match output {
            Output::Dial { addr, .. } => Some(addr.to_string()),
            _ => None,
        }));
        outputs
    }

    fn accept(&mut self, peer: u64, remote: SocketAddr) -> ConnectionId {
        let conn = ConnectionId(self.bare.next_id());
        self.bare.connected(conn, Side::Acceptor, Bare::peer(peer), remote, peer as u8);
        let control = self.bare.opened(conn);
        let (features, agent) = (Hello::RELAY, "test".into());
        let hello = Hello { version_min: 1, version_max: 1, features, agent };
        self.bare.feed(control, &frame(V1::Hello(hello)), false);
        conn
    }

    /// A peer connects through the relay.
    fn relayed(&mut self, peer: u64, same_network: bool) -> ConnectionId {
        let stream = self.bare.opened(self.relay);
        let source = Bare::peer(peer);
        let offer = RpcRequest::Circuit { source, address: None, same_network };
        self.bare.feed(stream, &call(offer), false);
        let attached = |output: &Output| match output {
            Output::AttachCircuit { addr, .. } => Some(*addr),
            _ => None,
        };
        let addr = self.take().iter().find_map(attached).unwrap();
        self.accept(peer, addr)
    }

    /// The peer sends its addresses. Returns the answer.
    fn offer(&mut self, conn: ConnectionId, addresses: &[&str]) -> RpcResponse {
        let addresses: Vec<NodeAddress> =
            addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.take();
        let stream = self.bare.opened(conn);
        self.bare.feed(stream, &call(RpcRequest::Candidates(addresses)), true);
        let answer = messages(&self.take(), stream).pop();
        let Some(V1::Answer(answer)) = answer else { panic!("{answer:?}") };
        answer
    }

    /// The addresses that the node has dialed in the last seconds.
    fn dialed(&mut self) -> BTreeSet<String> {
        self.bare.pass(9 * SECOND);
        self.take();
        std::mem::take(&mut self.dialed)
    }
}

#[test]
fn addresses_of_the_dialer_are_dialed_once_and_only_those_in_private_networks() {
    let mut acceptor = Acceptor::new();
    let conn = acceptor.relayed(1, true);
    let own: NodeAddress = "192.168.0.9:1314".parse().unwrap();
    let offered = [
        "192.168.0.7:1",
        "10.0.0.1:2",
        "20.0.0.1:3",
        "127.0.0.1:4",
        "[fd00::1]:5",
        "192.168.0.9:1314",
    ];
    assert_eq!(acceptor.offer(conn, &offered), RpcResponse::Candidates(vec![own]));
    let expected = ["10.0.0.1:2", "192.168.0.7:1"].map(str::to_owned);
    assert_eq!(acceptor.dialed(), BTreeSet::from(expected));
    acceptor.offer(conn, &["192.168.0.8:1"]);
    assert_eq!(acceptor.dialed(), BTreeSet::new(), "a second time");
}

#[test]
fn addresses_are_not_taken_from_another_network_or_over_a_direct_connection() {
    let mut acceptor = Acceptor::new();
    let denied = RpcResponse::Refused(Refusal::Denied);
    let elsewhere = acceptor.relayed(1, false);
    let direct = acceptor.accept(2, "192.168.0.7:9".parse().unwrap());
    for conn in [elsewhere, direct, acceptor.relay] {
        assert_eq!(acceptor.offer(conn, &["192.168.0.7:1"]), denied);
        assert_eq!(acceptor.dialed(), BTreeSet::new());
    }
}

/// Only the relay says that both ends are in one network: it can make the node dial no more than by
/// signalling.
#[test]
fn addresses_through_one_relay_are_limited_as_its_signals_are() {
    let mut acceptor = Acceptor::new();
    for peer in 0..16_u8 {
        let conn = acceptor.relayed(peer.into(), true);
        let addresses: Vec<_> = (1..=8).map(|n| format!("10.0.{peer}.{n}:1")).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        acceptor.offer(conn, &addresses);
    }
    assert_eq!(acceptor.dialed().len(), 20, "the burst of one relay");
}
