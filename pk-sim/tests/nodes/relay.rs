//! Relayed connections in virtual time: requests, refusals, limits, loss, and the change to a
//! direct path (docs/DESIGN.md, Relaying).

use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    Config, ConnectionId, ContactMode, DialFailure, FindOutcome, FindStepEnd, FrameDecoder, NodeId,
    Output, Refusal, RelayPolicy, Reply, Request, RpcRequest, RpcResponse, Scopes, StreamId,
};
use pk_sim::{App, Cluster, HostId, NatConfig};

use crate::common::relays::{RELAY, SOURCE, TARGET, behind_nats, separate, start_around};
use crate::common::{NO, Peer, SECOND, assert_consistent, find};

const SECOND_RELAY: HostId = 3;

/// Public relays, and two nodes that are connected to them and cannot reach each other.
fn apart(seed: u64, relays: usize, change: impl FnOnce(&mut Config)) -> Cluster {
    let mut cluster = Cluster::builder().nodes(2 + relays).seed(seed).config(change).build();
    separate(&mut cluster);
    start_around(&mut cluster, &[RELAY, SECOND_RELAY][..relays]);
    cluster
}

/// The mode of the primary connection of a node with another one.
fn mode(cluster: &Cluster, node: HostId, with: HostId) -> Option<ContactMode> {
    let peer = cluster.id(with);
    let connections = cluster.node(node).connections();
    connections.iter().find(|info| info.node == peer && info.primary).map(|info| info.data.mode)
}

fn modes(cluster: &Cluster) -> [Option<ContactMode>; 2] {
    [mode(cluster, SOURCE, TARGET), mode(cluster, TARGET, SOURCE)]
}

fn found_by_relay(cluster: &mut Cluster) -> FindOutcome {
    let target = cluster.id(TARGET);
    let outcome = find(cluster, SOURCE, target);
    assert!(outcome.found.is_some(), "{outcome:?}");
    assert_consistent(&outcome);
    cluster.drive(SECOND / 10);
    assert_eq!(modes(cluster), [Some(ContactMode::Relay); 2]);
    outcome
}

fn relay_failures(outcome: &FindOutcome, node: NodeId) -> Vec<String> {
    let step = outcome.trace.iter().rev().find(|step| step.node == node).unwrap();
    let FindStepEnd::Unreachable(failures) = &step.end else { panic!("{:?}", step.end) };
    let reasons = failures.iter().filter_map(|(_, why)| match why {
        DialFailure::Relay(why) => Some(why.clone()),
        _ => None,
    });
    reasons.collect()
}

#[test]
fn nodes_behind_any_nats_connect_directly_where_that_is_possible_and_otherwise_by_relay() {
    let sides: Vec<_> =
        std::iter::once(None).chain(NatConfig::all().into_iter().map(Some)).collect();
    let (mut direct, mut relayed) = (0, 0);
    for source in &sides {
        for target in &sides {
            let mut cluster = behind_nats(7, [*source, *target], |_| {});
            let possible = cluster.network().direct_path_possible(SOURCE, TARGET);
            let id = cluster.id(TARGET);
            let outcome = find(&mut cluster, SOURCE, id);
            let what = format!("{source:?} → {target:?}: {outcome:?}");
            assert!(outcome.found.is_some(), "{what}");
            assert!(outcome.stats.elapsed < 5 * SECOND, "{what}");
            assert_consistent(&outcome);
            // Punching may take longer than the relay.
            cluster.drive(45 * SECOND);
            let is_direct = modes(&cluster).map(|mode| mode != Some(ContactMode::Relay));
            assert_eq!(is_direct, [possible; 2], "{what}: {:?}", modes(&cluster));
            *(if possible { &mut direct } else { &mut relayed }) += 1;
        }
    }
    assert_eq!((direct, relayed), (277, 84));
}

#[test]
fn node_without_a_direct_path_is_found_by_relay_a_second_after_punching_has_started() {
    let mut cluster = apart(1, 1, |_| {});
    let outcome = found_by_relay(&mut cluster);
    let elapsed = outcome.stats.elapsed;
    assert!(elapsed > SECOND && elapsed < 2 * SECOND, "{elapsed:?}");
    let metrics = [RELAY, SOURCE, TARGET].map(|node| cluster.node(node).metrics());
    assert_eq!((metrics[0].circuits, metrics[0].circuits_opened), (1, 1));
    assert_eq!((metrics[1].circuits_requested, metrics[1].relayed_paths), (1, 1));
    assert_eq!((metrics[1].connections_relayed, metrics[2].connections_relayed), (1, 1));
}

#[test]
fn contact_by_relay_has_the_address_that_the_relay_sees_and_is_sent_to_no_node() {
    let mut cluster = apart(2, 1, |_| {});
    found_by_relay(&mut cluster);
    let (source, target) = (cluster.id(SOURCE), cluster.id(TARGET));
    let contact = cluster.node(SOURCE).contact(target).unwrap().clone();
    let (address, data) = contact.iter().next().unwrap();
    assert_eq!((address, data.mode), (&cluster.address(TARGET), ContactMode::Relay));
    let query = pk_proto::ClosestNodesQuery { known: true, connected: true };
    let ask = Request::QueryClosestNodes { via: source, target, query, options: NO };
    let Ok(Reply::QueryClosestNodes(closest)) = cluster.ask(RELAY, ask) else { panic!() };
    let nodes = closest.known.iter().map(|(node, _)| *node);
    let nodes = nodes.chain(closest.connected.iter().map(|active| active.node));
    assert!(!nodes.into_iter().any(|node| node == target), "{closest:?}");
}

#[test]
fn relayed_connection_ends_with_its_relay_and_another_relay_is_used() {
    let mut cluster = apart(3, 2, |_| {});
    found_by_relay(&mut cluster);
    let by = [RELAY, SECOND_RELAY]
        .into_iter()
        .find(|relay| cluster.node(*relay).metrics().circuits == 1)
        .unwrap();
    let other = RELAY + SECOND_RELAY - by;
    cluster.stop(by);
    cluster.drive(SECOND);
    assert_eq!(modes(&cluster), [None; 2]);
    found_by_relay(&mut cluster);
    assert_eq!(cluster.node(other).metrics().circuits, 1);
    // A relay that disappears without a word.
    cluster.kill(other);
    cluster.drive(60 * SECOND);
    assert_eq!(modes(&cluster), [None; 2]);
    assert_eq!(cluster.node(SOURCE).metrics().relayed_paths, 0);
}

#[test]
fn relayed_connection_becomes_direct_with_its_streams_when_a_path_opens() {
    let mut cluster = apart(4, 1, |_| {});
    cluster.call(TARGET, |node, now| node.accept_protocol("hold".into(), now)).unwrap();
    cluster.host_mut(SOURCE).apps.insert("hold".into(), App::Stalled);
    cluster.host_mut(TARGET).apps.insert("hold".into(), App::Stalled);
    found_by_relay(&mut cluster);
    let target = cluster.id(TARGET);
    let open = Request::OpenStream { target, protocol: "hold".into(), options: NO };
    let Ok(Reply::OpenStream(stream)) = cluster.ask(SOURCE, open) else { panic!() };
    cluster.drive(60 * SECOND);
    assert_eq!(modes(&cluster), [Some(ContactMode::Relay); 2]);
    cluster.heal();
    cluster.drive(30 * SECOND);
    assert_eq!(modes(&cluster), [Some(ContactMode::Signal); 2]);
    let app = cluster.app_streams(SOURCE).find(|app| app.stream == stream).unwrap();
    assert!(!app.closed && !app.lost);
    cluster.drive(15 * SECOND);
    let metrics = [RELAY, SOURCE, TARGET].map(|node| cluster.node(node).metrics());
    assert_eq!(metrics.map(|metrics| (metrics.circuits, metrics.relayed_paths)), [(0, 0); 3]);
    assert_eq!(metrics[1].connections_upgraded, 1);
}

#[test]
fn relay_refuses_by_its_policy_and_names_the_reason() {
    let refused = |change: fn(&mut Config)| {
        let mut cluster = apart(5, 1, change);
        let target = cluster.id(TARGET);
        let outcome = find(&mut cluster, SOURCE, target);
        assert_eq!(outcome.found, None);
        relay_failures(&outcome, target)
    };
    let denied = format!("the peer refused: {}", Refusal::Denied);
    let busy = format!("the peer refused: {}", Refusal::Busy);
    let off = refused(|config| config.relay.policy = RelayPolicy::Off);
    assert_eq!(off, [denied]);
    let full = refused(|config| config.relay.circuits = 0);
    assert_eq!(full, [busy]);
}

/// A peer of a node, which sends requests by hand.
struct Owner {
    peer: Peer,
    conn: ConnectionId,
}

impl Owner {
    fn new(cluster: &mut Cluster, host: HostId, to: HostId) -> Self {
        let mut peer = Peer::honest(host);
        let hello =
            Hello { version_min: 1, version_max: 1, features: Hello::RELAY, agent: "peer".into() };
        peer.hello = native::encode(&Message::V1(V1::Hello(hello))).unwrap();
        let conn = peer.connect(cluster, to);
        Self { peer, conn }
    }

    /// Sends a request, and leaves the stream open. Returns it, and the answer if there is one.
    fn ask(
        &mut self,
        cluster: &mut Cluster,
        request: RpcRequest,
    ) -> (StreamId, Option<RpcResponse>) {
        let call = native::encode(&Message::V1(V1::Call { deadline_ms: 5000, request })).unwrap();
        let stream = self.peer.send(cluster, self.conn, call, false);
        cluster.pull(self.peer.host(), |peer| peer.grant(stream, 1 << 16));
        self.peer.drive(cluster, SECOND);
        let mut decoder = FrameDecoder::new();
        decoder.push(cluster.scripted_peer(self.peer.host()).read(stream).0.into());
        let answer = decoder.next().unwrap().map(|payload| native::decode(&payload).unwrap());
        let answer = answer.map(|message| match message {
            Message::V1(V1::Answer(answer)) => answer,
            other => panic!("{other:?}"),
        });
        (stream, answer)
    }
}

/// A relay and its peers: nodes 1 and 2, and scripted ones that send requests by hand.
fn beside_peers(
    seed: u64,
    peers: usize,
    change: impl FnOnce(&mut Config),
) -> (Cluster, Vec<Owner>) {
    let mut cluster =
        Cluster::builder().nodes(3).scripted_peers(peers).seed(seed).config(change).start();
    for node in [SOURCE, TARGET] {
        cluster.connect(node, RELAY).unwrap();
    }
    let owners = (3..3 + peers).map(|host| Owner::new(&mut cluster, host, RELAY)).collect();
    (cluster, owners)
}

#[test]
fn circuit_to_the_requester_to_the_relay_or_to_an_unknown_node_is_refused() {
    let (mut cluster, mut owners) = beside_peers(6, 1, |_| {});
    let owner = &mut owners[0];
    let own = cluster.id(owner.peer.host());
    let absent = crate::common::absent(1);
    let expected = [
        (own, Refusal::NotTarget),
        (cluster.id(RELAY), Refusal::NotTarget),
        (absent, Refusal::NotConnected),
    ];
    for (target, refusal) in expected {
        let (_, answer) = owner.ask(&mut cluster, RpcRequest::Relay { target });
        assert_eq!(answer, Some(RpcResponse::Refused(refusal)), "{target}");
    }
    let metrics = cluster.node(RELAY).metrics();
    assert_eq!((metrics.circuits_refused, metrics.circuits), (3, 0));
}

#[test]
fn relayed_connection_carries_no_circuit_so_that_none_runs_in_a_loop() {
    let mut cluster = apart(7, 1, |config| config.relay.policy = RelayPolicy::All);
    found_by_relay(&mut cluster);
    let (source, relay) = (cluster.id(SOURCE), cluster.id(RELAY));
    let through = Request::ConnectThrough { target: source, relay, options: NO };
    assert!(cluster.ask(TARGET, through).is_ok(), "the connection exists");
    assert_eq!(cluster.node(TARGET).metrics().circuits, 0);
    // No node learns of it, so that none requests a circuit over it.
    let query = pk_proto::ClosestNodesQuery { known: false, connected: true };
    let ask =
        Request::QueryClosestNodes { via: cluster.id(TARGET), target: source, query, options: NO };
    let Ok(Reply::QueryClosestNodes(closest)) = cluster.ask(RELAY, ask) else { panic!() };
    assert!(closest.connected.iter().all(|active| active.node != source), "{closest:?}");
}

#[test]
fn circuits_that_are_never_closed_fill_only_the_share_of_their_owner() {
    let (mut cluster, mut owners) = beside_peers(8, 2, |config| config.relay.circuits_per_node = 3);
    let (source, target) = (cluster.id(SOURCE), cluster.id(TARGET));
    for count in 1..=5 {
        let (_, answer) = owners[0].ask(&mut cluster, RpcRequest::Relay { target });
        let expected = if count <= 3 {
            RpcResponse::Circuit { address: Some(cluster.address(TARGET)), same_network: false }
        } else {
            RpcResponse::Refused(Refusal::RateLimited)
        };
        assert_eq!(answer, Some(expected), "{count}");
    }
    let (_, answer) = owners[1].ask(&mut cluster, RpcRequest::Relay { target: source });
    assert!(matches!(answer, Some(RpcResponse::Circuit { .. })), "{answer:?}");
    assert_eq!(cluster.node(RELAY).metrics().circuits, 4);
    // The target closes a path that no connection uses.
    cluster.drive(20 * SECOND);
    assert_eq!(cluster.node(TARGET).metrics().relayed_paths, 0);
    assert_eq!(cluster.node(RELAY).metrics().circuits, 0);
}

#[test]
fn one_relay_opens_only_a_quarter_of_the_paths_of_a_node() {
    let mut cluster = Cluster::builder()
        .nodes(1)
        .scripted_peers(2)
        .seed(9)
        .config(|config| config.relay.paths = 8)
        .start();
    let mut relays: Vec<_> =
        [1, 2].map(|host| Owner::new(&mut cluster, host, RELAY)).into_iter().collect();
    let offer = |number| RpcRequest::Circuit {
        source: crate::common::absent(number),
        address: Some(crate::common::address("198.51.100.7:1314")),
        same_network: false,
    };
    let mut accepted = |cluster: &mut Cluster, relay: usize, number| {
        let (_, answer) = relays[relay].ask(cluster, offer(number));
        match answer.unwrap() {
            RpcResponse::Circuit { .. } => true,
            RpcResponse::Refused(Refusal::RateLimited) => false,
            other => panic!("{other:?}"),
        }
    };
    let first: Vec<_> = (0..4).map(|number| accepted(&mut cluster, 0, number)).collect();
    assert_eq!(first, [true, true, false, false]);
    assert!(accepted(&mut cluster, 1, 9));
    let own = cluster.id(RELAY);
    let to_self = RpcRequest::Circuit { source: own, address: None, same_network: false };
    let (_, answer) = relays[1].ask(&mut cluster, to_self);
    assert_eq!(answer, Some(RpcResponse::Refused(Refusal::NotTarget)));
}

#[test]
fn requester_that_leaves_or_a_target_that_is_silent_leaves_no_circuit() {
    let (mut cluster, mut owners) = beside_peers(10, 2, |_| {});
    let silent = cluster.id(owners[1].peer.host());
    // The other peer does not react.
    let (_, answer) = owners[0].ask(&mut cluster, RpcRequest::Relay { target: silent });
    assert_eq!((answer, cluster.node(RELAY).metrics().circuits), (None, 1));
    owners[0].peer.drive(&mut cluster, 10 * SECOND);
    assert_eq!(cluster.node(RELAY).metrics().circuits, 0);
    let target = cluster.id(TARGET);
    let (stream, answer) = owners[0].ask(&mut cluster, RpcRequest::Relay { target });
    assert!(matches!(answer, Some(RpcResponse::Circuit { .. })));
    cluster.pull(owners[0].peer.host(), |peer| peer.say(Output::ResetStream { stream, code: 0 }));
    cluster.drive(SECOND);
    let metrics = [RELAY, TARGET].map(|node| cluster.node(node).metrics());
    assert_eq!((metrics[0].circuits, metrics[1].relayed_paths), (0, 0));
}

/// Two nodes behind one NAT find each other; then they stay connected for a minute.
fn behind_one_nat(config: NatConfig) -> Cluster {
    let mut cluster = Cluster::builder().nodes(3).seed(11).build();
    let nat = cluster.add_nat(config);
    for node in [SOURCE, TARGET] {
        cluster.put_behind(node, nat);
    }
    start_around(&mut cluster, &[RELAY]);
    let target = cluster.id(TARGET);
    let outcome = find(&mut cluster, SOURCE, target);
    assert!(outcome.found.is_some() && outcome.stats.elapsed < 5 * SECOND, "{outcome:?}");
    cluster.drive(45 * SECOND);
    cluster
}

#[test]
fn nodes_behind_one_nat_without_hairpinning_find_each_other_over_the_local_network() {
    for config in NatConfig::all() {
        assert!(!config.hairpinning);
        let cluster = behind_one_nat(config);
        assert_eq!(modes(&cluster), [Some(ContactMode::Direct); 2], "{config:?}");
        let target = cluster.id(TARGET);
        let connections = cluster.node(SOURCE).connections();
        let local = connections.iter().find(|info| info.node == target && info.primary).unwrap();
        assert_eq!(local.address, cluster.address(TARGET));
        assert_eq!(local.data.scopes, Scopes::LOCAL, "its address is sent to no node");
    }
}

#[test]
fn nodes_behind_one_nat_with_hairpinning_are_connected_without_a_relay() {
    for config in NatConfig::all() {
        let cluster = behind_one_nat(NatConfig { hairpinning: true, ..config });
        let is_direct = modes(&cluster).map(|mode| mode.is_some_and(|it| it != ContactMode::Relay));
        assert_eq!(is_direct, [true; 2], "{config:?}");
    }
}

#[test]
fn local_addresses_are_sent_only_over_a_relayed_connection_to_a_node_of_the_same_network() {
    let (mut cluster, mut owners) = beside_peers(12, 1, |_| {});
    let candidates = RpcRequest::Candidates(vec![crate::common::address("10.0.0.9:1314")]);
    let (_, answer) = owners[0].ask(&mut cluster, candidates);
    assert_eq!(answer, Some(RpcResponse::Refused(Refusal::Denied)));
    assert!(cluster.dials(RELAY).is_empty());
}

#[test]
fn circuit_does_not_lead_into_another_network() {
    let mut cluster = Cluster::builder()
        .nodes(3)
        .seed(13)
        .config_of(SOURCE, |config| config.network = "alpha".parse().ok())
        .config_of(TARGET, |config| config.network = "beta".parse().ok())
        .build();
    separate(&mut cluster);
    start_around(&mut cluster, &[RELAY]);
    let target = cluster.id(TARGET);
    let outcome = find(&mut cluster, SOURCE, target);
    assert_eq!(outcome.found, None);
    let reasons = relay_failures(&outcome, target);
    assert!(reasons.iter().any(|why| why.contains("different networks")), "{reasons:?}");
    cluster.drive(30 * SECOND);
    assert_eq!(cluster.node(RELAY).metrics().circuits, 0);
    assert_eq!(cluster.node(SOURCE).contact(target), None);
}
