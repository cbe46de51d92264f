//! Networks in which some nodes support only Polykey 1.x (`quic`), in virtual time.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::{
    ClosestNodesQuery, ContactMode, DialFailure, Dialect, Event, Failure, FindStepEnd, Reply,
    Request, Side, polykey,
};
use pk_sim::{App, Cluster, ClusterBuilder, Dependence, HostId, NatConfig};

use crate::common::{NO, SECOND, assert_consistent, connect, find, ping};

/// Starts a cluster in which these nodes are like those of the reference.
fn mixed(builder: ClusterBuilder, reference: &[HostId]) -> Cluster {
    let mut cluster = builder.build();
    for node in reference {
        cluster.host_mut(*node).dialects = vec![Dialect::Polykey];
    }
    (0..cluster.len()).for_each(|node| cluster.start_node(node));
    cluster.drive(Duration::ZERO);
    cluster
}

/// Checks that nothing is in progress, also on connections without a control stream.
fn assert_no_state_left(cluster: &mut Cluster) {
    cluster.drive(20 * SECOND);
    for node in 0..cluster.len() {
        let metrics = cluster.node(node).metrics();
        let (streams, bytes) = (metrics.streams, (metrics.receive_bytes, metrics.send_bytes));
        assert_eq!(
            (streams, bytes, metrics.requests_open),
            (0, (0, 0), 0),
            "node {node}: {metrics:?}"
        );
        assert_eq!(
            (metrics.stream_faults, metrics.stream_timeouts, metrics.call_timeouts),
            (0, 0, 0),
            "node {node}"
        );
    }
}

#[test]
fn every_request_works_over_quic_in_both_directions() {
    let mut cluster = mixed(Cluster::quiet().nodes(3).seed(1), &[0, 1, 2]);
    let info = connect(&mut cluster, 0, 1);
    assert!(
        info.shared_id
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    );
    connect(&mut cluster, 1, 2);
    cluster.drive(SECOND);
    // In both directions of the one connection.
    for (from, to) in [(0, 1), (1, 0)] {
        assert!(matches!(cluster.ask(from, ping(&cluster, to)), Ok(Reply::PingNode(_))));
    }
    let ask = |cluster: &mut Cluster, query| {
        let request = Request::QueryClosestNodes {
            via: cluster.id(1),
            target: cluster.id(2),
            query,
            options: NO,
        };
        match cluster.ask(0, request) {
            Ok(Reply::QueryClosestNodes(closest)) => closest,
            other => panic!("{other:?}"),
        }
    };
    let both = ask(&mut cluster, ClosestNodesQuery { known: true, connected: true });
    let [(local, contact)] = &both.known[..] else { panic!("{both:?}") };
    let [active] = &both.connected[..] else { panic!("{both:?}") };
    assert_eq!((*local, active.node), (cluster.id(2), cluster.id(2)));
    assert_eq!(contact.iter().next().unwrap().0, cluster.address(2));
    let connections = cluster.node(1).connections();
    let there = connections.iter().find(|info| info.node == cluster.id(2)).unwrap();
    assert_eq!(active.connections[0].shared_id, there.shared_id);
    let local = ask(&mut cluster, ClosestNodesQuery { known: true, connected: false });
    assert_eq!((&local.known, local.connected.len()), (&both.known, 0));
    let active = ask(&mut cluster, ClosestNodesQuery { known: false, connected: true });
    assert_eq!(
        (active.connected[0].node, active.connected.len(), active.known.len()),
        (cluster.id(2), 1, 0)
    );
    assert_eq!(
        ask(&mut cluster, ClosestNodesQuery { known: false, connected: false }),
        Default::default()
    );
    assert_no_state_left(&mut cluster);
    cluster.stop_all();
}

#[test]
fn both_sides_of_simultaneous_dials_keep_the_same_primary() {
    for seed in 0..10 {
        let mut cluster = mixed(Cluster::quiet().nodes(2).seed(seed), &[0]);
        let requests = [(0, 1), (1, 0)].map(|(from, to)| {
            let (target, address) = (cluster.id(to), cluster.address(to));
            cluster.request(from, Request::Connect { target, address, options: NO })
        });
        cluster.drive(SECOND);
        for (node, request) in requests.into_iter().enumerate() {
            assert!(matches!(cluster.await_done(node, request), Ok(Reply::Connect(_))));
        }
        let primary = [0, 1].map(|node| {
            let connections = cluster.node(node).connections();
            connections.into_iter().find(|info| info.primary).unwrap().shared_id
        });
        assert_eq!(primary[0], primary[1]);
        assert_eq!([0, 1].map(|node| cluster.node(node).connections().len()), [2, 2]);
        cluster.stop_all();
    }
}

#[test]
fn all_nodes_find_each_other_in_a_mixed_network() {
    for (seed, reference) in [
        (1, &[0, 3, 5, 8][..]),
        (2, &[1, 2, 4, 6, 7, 9, 11]),
        (3, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ] {
        let mut cluster = mixed(Cluster::builder().nodes(12).seed(seed), reference);
        cluster.join_all();
        cluster.drive(60 * SECOND);
        assert!(cluster.assert_converged() > 0);
        for from in 0..cluster.len() {
            for to in (0..cluster.len()).filter(|to| *to != from) {
                let target = cluster.id(to);
                let outcome = find(&mut cluster, from, target);
                assert!(outcome.found.is_some(), "{from} → {to}: {outcome:?}");
                assert_consistent(&outcome);
            }
        }
        cluster.stop_all();
    }
}

const CONE: NatConfig = NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort);

/// Source, relay and target each with both dialects or like the reference, in every combination: a
/// relay that supports both dialects connects any two of its peers.
#[test]
fn every_mix_of_source_relay_and_target_dialects_connects() {
    const RELAY: HostId = 0;
    for mask in 0..8u32 {
        let reference: Vec<_> = (0..3).filter(|node| mask & (1 << node) != 0).collect();
        let mut cluster = Cluster::builder().nodes(3).seed(u64::from(mask)).build();
        for node in [1, 2] {
            let nat = cluster.add_nat(CONE);
            cluster.put_behind(node, nat);
        }
        for node in &reference {
            cluster.host_mut(*node).dialects = vec![Dialect::Polykey];
        }
        (0..3).for_each(|node| cluster.start_node(node));
        cluster.drive(Duration::ZERO);
        for node in [1, 2] {
            cluster.connect(node, RELAY).unwrap();
        }
        cluster.drive(SECOND);
        let target = cluster.id(2);
        let outcome = find(&mut cluster, 1, target);
        assert!(outcome.found.is_some(), "like the reference: {reference:?}: {outcome:?}");
        let connections = cluster.node(1).connections();
        let info = connections.iter().find(|info| info.node == target && info.primary).unwrap();
        assert_eq!(info.data.mode, ContactMode::Signal, "{reference:?}");
        let relay = cluster.node(RELAY).metrics();
        assert_eq!(relay.signals_relayed, 1, "{reference:?}");
        // Only nodes without this knowledge send such a request: a target of the reference accepts
        // plain signals only.
        let ours = |node| !reference.contains(&node);
        let told = ours(0) && ours(1) && !ours(2);
        assert_eq!(relay.signals_refused, u64::from(told), "{reference:?}");
        cluster.stop_all();
    }
}

#[test]
fn relay_over_quic_reports_a_lost_target() {
    let mut cluster = Cluster::quiet().nodes(3).seed(4).build();
    let nat = cluster.add_nat(CONE);
    cluster.put_behind(2, nat);
    for node in 0..3 {
        cluster.host_mut(node).dialects = vec![Dialect::Polykey];
        cluster.start_node(node);
    }
    cluster.drive(Duration::ZERO);
    for node in [1, 2] {
        connect(&mut cluster, node, 0);
    }
    cluster.drive(SECOND);
    let target = cluster.id(2);
    // The relay is reported as connected to the target, but by then it no longer is.
    let request = cluster.request(1, Request::FindNode { target, find: Default::default() });
    let gone = |cluster: &Cluster| {
        let outputs = cluster.node(0).metrics();
        outputs.answers >= 2
    };
    assert!(cluster.drive_until(gone, SECOND));
    cluster.call(0, |node, now| node.disconnect(target, now));
    let Ok(Reply::FindNode(outcome)) = cluster.await_done(1, request) else { panic!() };
    let step = outcome.trace.iter().rev().find(|step| step.node == target).unwrap();
    let FindStepEnd::Unreachable(failures) = &step.end else { panic!("{outcome:?}") };
    let not_connected = DialFailure::Signal(pk_proto::Refusal::NotConnected.to_string());
    assert!(failures.iter().any(|(_, why)| *why == not_connected), "{failures:?}");
    cluster.stop_all();
}

#[test]
fn renewed_node_is_dialed_by_its_old_id_over_quic() {
    for reference in [&[0][..], &[1], &[0, 1]] {
        let mut cluster = mixed(Cluster::quiet().nodes(2).seed(5), reference);
        let (old, address) = (cluster.id(1), cluster.address(1));
        let Ok(Reply::Renew { new, .. }) = cluster.renew(1) else { panic!() };
        let request = Request::Connect { target: old, address, options: NO };
        let Ok(Reply::Connect(info)) = cluster.ask(0, request) else { panic!() };
        assert_eq!(info.node, new);
        // The other end has the id of its peer, whichever of them dialed.
        cluster.drive(SECOND);
        let opened = cluster.events(1).iter().rev().find_map(|(_, event)| match event {
            Event::ConnectionOpened { node, side, .. } => Some((*node, *side)),
            _ => None,
        });
        assert_eq!(opened, Some((cluster.id(0), Side::Acceptor)));
        assert!(matches!(
            cluster.ask(0, Request::PingNode { target: old, options: NO }),
            Ok(Reply::PingNode(_))
        ));
        cluster.stop_all();
    }
}

#[test]
fn other_methods_are_streams_of_the_embedder() {
    for reference in [&[][..], &[0], &[1], &[0, 1]] {
        let mut cluster = mixed(Cluster::quiet().nodes(2).seed(6), reference);
        let protocol = || "polykey:vaultsScan".to_owned();
        cluster.call(1, |node, now| node.accept_protocol(protocol(), now)).unwrap();
        let request = polykey::write_request("vaultsScan", "{}", Some(15 * SECOND));
        let result =
            Bytes::from([&polykey::write_result("{\"vaultName\":\"v\"}")[..], b"raw"].concat());
        cluster
            .host_mut(0)
            .apps
            .insert(protocol(), App::Script { send: request.clone(), fin: true });
        cluster
            .host_mut(1)
            .apps
            .insert(protocol(), App::Script { send: result.clone(), fin: true });
        connect(&mut cluster, 0, 1);
        let target = cluster.id(1);
        let reply =
            cluster.ask(0, Request::OpenStream { target, protocol: protocol(), options: NO });
        cluster.drive(SECOND);
        let ours = cluster.app_streams(0).next().unwrap();
        assert_eq!(reply, Ok(Reply::OpenStream(ours.stream)));
        assert_eq!((ours.received.as_slice(), ours.closed), (&result[..], true), "{reference:?}");
        let theirs = cluster.app_streams(1).next().unwrap();
        assert_eq!(
            (theirs.received.as_slice(), theirs.closed),
            (&request[..], true),
            "{reference:?}"
        );
        let parsed = polykey::parse_request(&theirs.received).unwrap();
        assert_eq!((&parsed.method[..], parsed.timeout), ("vaultsScan", Some(15 * SECOND)));
        cluster.stop_all();
    }
}

#[test]
fn requests_unknown_to_the_reference_are_unsupported() {
    let mut cluster = mixed(Cluster::quiet().nodes(2).seed(7), &[0, 1]);
    connect(&mut cluster, 0, 1);
    let target = cluster.id(1);
    // An application stream: this dialect has none, and nothing is sent.
    let open =
        |protocol: &str| Request::OpenStream { target, protocol: protocol.to_owned(), options: NO };
    assert_eq!(cluster.ask(0, open("echo")), Err(Failure::Unsupported));
    // A method without a handler: the embedder receives the same error as any caller.
    let request = polykey::write_request("nodesUnheardOf", "{}", None);
    cluster
        .host_mut(0)
        .apps
        .insert("polykey:nodesUnheardOf".to_owned(), App::Script { send: request, fin: true });
    assert!(matches!(cluster.ask(0, open("polykey:nodesUnheardOf")), Ok(Reply::OpenStream(_))));
    cluster.drive(SECOND);
    let stream = cluster.app_streams(0).next().unwrap();
    assert_eq!((stream.reset, stream.received.len(), stream.closed), (Some(1), 0, true));
    assert_eq!(cluster.node(1).metrics().unsupported, 1);
    assert_no_state_left(&mut cluster);
    cluster.stop_all();
}

/// A node of the reference searches for itself every 45 seconds, by both calls on every connection,
/// and refreshes every hour: neither causes a dial or leaves state.
#[test]
fn searches_of_the_reference_cause_no_dials_and_leave_no_state() {
    let mut cluster = mixed(Cluster::quiet().nodes(6).seed(8), &[0, 1, 2]);
    cluster.join_all();
    cluster.drive(20 * SECOND);
    let before: Vec<_> = (0..6).map(|node| cluster.node(node).metrics()).collect();
    let own = cluster.id(1);
    let mut answered = BTreeSet::new();
    for _ in 0..20 {
        let outcome = find(&mut cluster, 1, own);
        assert_eq!(outcome.stats.attempts, 0, "{outcome:?}");
        answered.extend(
            outcome
                .trace
                .iter()
                .filter(|step| matches!(step.end, FindStepEnd::Answered { .. }))
                .map(|step| step.node),
        );
        cluster.drive(45 * SECOND);
    }
    assert_eq!(answered.len(), 5);
    for (node, before) in before.iter().enumerate() {
        let after = cluster.node(node).metrics();
        assert_eq!(
            (after.dials, after.connections_accepted),
            (before.dials, before.connections_accepted),
            "node {node}"
        );
        assert_eq!(
            (after.nodes, after.nodes_pending),
            (before.nodes, before.nodes_pending),
            "node {node}"
        );
    }
    cluster.stop_all();
}
