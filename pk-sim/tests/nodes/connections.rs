//! Connections: from the dial to the end, in virtual time.

use bytes::Bytes;
use pk_proto::{
    ClosestNodesQuery, Connected, ConnectionId, DialFailure, Dialect, DisconnectReason, Event,
    Failure, Input, LeaseId, Output, Reply, Request, RequestError, Side,
};
use pk_sim::{Cluster, HostId, Key, genesis, renew};

use crate::common::*;

// -- accepted

#[test]
fn connection_counts_only_after_the_hello_of_the_peer() {
    let mut cluster = Cluster::quiet().nodes(2).scripted_peers(1).seed(3).start();
    let mut mute = Peer::honest(2);
    mute.greets = false;
    let request = connect_request(&cluster, 2);
    let waiting = cluster.request(0, request);
    let (target, address) = (cluster.id(2), cluster.address(2));
    let asking = cluster.request(0, Request::PingNodeAddress { target, address, options: NO });
    mute.drive(&mut cluster, 9 * SECOND);
    // The handshake has completed long ago.
    assert!(
        cluster
            .scripted_peer(2)
            .connected()
            .is_some_and(|connected| connected.side == Side::Acceptor)
    );
    assert_eq!((cluster.done(0, waiting), cluster.done(0, asking)), (None, None));
    let node = cluster.node(0);
    assert_eq!(
        (node.connections().len(), node.graph().len(), node.metrics().connections_pending),
        (0, 0, 2)
    );
    // It is not sent to peers, either.
    let (via, target) = (cluster.id(0), cluster.id(2));
    connect(&mut cluster, 1, 0);
    let query = ClosestNodesQuery { known: true, connected: true };
    match cluster.ask(1, Request::QueryClosestNodes { via, target, query, options: NO }) {
        Ok(Reply::QueryClosestNodes(closest)) => {
            assert_eq!((closest.known.len(), closest.connected.len()), (0, 0));
        }
        other => panic!("{other:?}"),
    }
    mute.drive(&mut cluster, 2 * SECOND);
    let why = vec![(cluster.address(2), DialFailure::TimedOut)];
    assert_eq!(cluster.done(0, waiting), Some(&Err(Failure::Dial(why))));
    assert_eq!(cluster.done(0, asking), Some(&Ok(Reply::PingNodeAddress(false))));
    assert_eq!(cluster.node(0).metrics().hello_timeouts, 2);
    assert_eq!(
        count_events(&cluster, 0, |event| matches!(event, Event::ConnectionOpened { .. })),
        1,
        "only node 1"
    );
    let ends: Vec<_> = cluster
        .scripted_peer(2)
        .inputs()
        .filter(|input| matches!(input, Input::Disconnected { .. }))
        .collect();
    let no_hello = |input: &&Input| {
        matches!(input, Input::Disconnected { why: DisconnectReason::Peer { code: 16, reason }, .. }
            if reason == "no Hello in time")
    };
    assert_eq!((ends.len(), ends.iter().all(no_hello)), (2, true), "{ends:?}");

    // A Hello just before the timeout is accepted.
    let request = connect_request(&cluster, 2);
    let waiting = cluster.request(0, request);
    mute.drive(&mut cluster, 5 * SECOND);
    mute.greets = true;
    mute.drive(&mut cluster, SECOND);
    assert!(matches!(cluster.done(0, waiting), Some(Ok(Reply::Connect(_)))));
    cluster.stop_all();
}

#[test]
fn acceptor_closes_a_silent_dialer_at_the_hello_timeout() {
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
    let mut mute = Peer::honest(1);
    mute.greets = false;
    mute.connect(&mut cluster, 0);
    mute.drive(&mut cluster, 8 * SECOND);
    assert_eq!(cluster.node(0).metrics().connections_pending, 1);
    mute.drive(&mut cluster, 2 * SECOND);
    let metrics = cluster.node(0).metrics();
    assert_eq!(
        (metrics.connections, metrics.connections_pending, metrics.hello_timeouts),
        (0, 0, 1)
    );
    let last = cluster.scripted_peer(1).inputs().next_back();
    assert!(
        matches!(last, Some(Input::Disconnected { why, .. }) if *why == peer(16, "no Hello in time")),
        "{last:?}"
    );
    assert_quiet(&mut cluster, 0, "silent dialer");
    cluster.stop_all();
}

#[test]
fn rejected_dial_never_reports_success() {
    // Over the limit of connections.
    let mut cluster = Cluster::quiet()
        .nodes(3)
        .seed(3)
        .config_of(1, |config| config.connection_limit = 1)
        .start();
    connect(&mut cluster, 0, 1);
    let why = DialFailure::Rejected { code: 17, reason: "too many connections".into() };
    let failures = vec![(cluster.address(1), why)];
    assert_eq!(cluster.connect(2, 1), Err(Failure::Dial(failures.clone())));
    add_contact(&mut cluster, 2, 1);
    let request = ping(&cluster, 1);
    assert_eq!(cluster.ask(2, request), Err(Failure::NotFound(failures)));
    let (target, address) = (cluster.id(1), cluster.address(1));
    let there = cluster.ask(2, Request::PingNodeAddress { target, address, options: NO });
    assert_eq!(there, Ok(Reply::PingNodeAddress(false)));
    assert_eq!(cluster.node(1).metrics().connections_refused, 3);
    for (node, opened) in [(1, 1), (2, 0)] {
        assert_eq!(
            count_events(&cluster, node, |event| matches!(event, Event::ConnectionOpened { .. })),
            opened
        );
        cluster.drive(SECOND);
        assert_quiet(&mut cluster, node, "rejected");
    }
    cluster.stop_all();

    // Refused by the peer's driver, before its machine is informed.
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    cluster.host_mut(1).refuse = Some((5, "no".to_owned()));
    let why = vec![(cluster.address(1), DialFailure::Rejected { code: 5, reason: "no".into() })];
    assert_eq!(cluster.connect(0, 1), Err(Failure::Dial(why)));
    cluster.stop_all();

    // Another version of the protocol.
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
    let mut old = Peer::honest(1);
    old.hello = {
        let hello = pk_proto::native::Hello {
            version_min: 2,
            version_max: 9,
            features: 0,
            agent: String::new(),
        };
        pk_proto::native::encode(&pk_proto::native::Message::V1(pk_proto::native::V1::Hello(hello)))
            .unwrap()
    };
    let request = connect_request(&cluster, 1);
    let waiting = cluster.request(0, request);
    old.drive(&mut cluster, SECOND);
    let result = cluster.done(0, waiting);
    assert!(matches!(result, Some(Err(Failure::Dial(why))) if why.len() == 1), "{result:?}");
    let told = |event: &Event| {
        matches!(event, Event::PeerMisbehaved { fault: pk_proto::PeerFault::Version, .. })
    };
    assert_eq!(count_events(&cluster, 0, told), 1);
    assert_quiet(&mut cluster, 0, "version");
    cluster.stop_all();
}

#[test]
fn connection_to_the_local_node_is_refused() {
    // 1 has the key of 0, and dials it.
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).build();
    let (key, unix) = (Key::numbered(3, 0), pk_proto::UnixMillis(1_767_000_000_000));
    cluster.host_mut(1).keys.insert(key.id(), key.clone());
    cluster.host_mut(1).identity = genesis(&key, unix);
    cluster.start_node(0);
    cluster.start_node(1);
    cluster.drive(SECOND);
    let mut twin = Peer::honest(1);
    twin.connect(&mut cluster, 0);
    twin.drive(&mut cluster, SECOND);
    let last = cluster.scripted_peer(1).inputs().next_back();
    let expected = peer(18, "both ends are the same node");
    assert!(matches!(last, Some(Input::Disconnected { why, .. }) if *why == expected), "{last:?}");
    assert_eq!(cluster.node(0).metrics().connections_to_self, 1);
    assert_quiet(&mut cluster, 0, "twin");
    cluster.stop_all();

    // 1 has a new key since 0 was copied from it: both have different ids, and are one node.
    let mut cluster = Cluster::quiet().nodes(2).seed(3).build();
    let (old, new) = (Key::numbered(3, 0), Key::numbered(3, 1));
    cluster.host_mut(1).identity = renew(&genesis(&old, unix), &old, &new, unix);
    cluster.start_node(0);
    cluster.start_node(1);
    cluster.drive(SECOND);
    let why = DialFailure::Transport("both ends are the same node".into());
    assert_eq!(cluster.connect(0, 1), Err(Failure::Dial(vec![(cluster.address(1), why)])));
    let request = connect_request(&cluster, 0);
    assert_eq!(
        cluster.try_request(1, request),
        Err(RequestError::OwnNode),
        "its old id is its own, too"
    );
    cluster.drive(SECOND);
    assert_eq!((cluster.node(0).graph().len(), cluster.node(1).graph().len()), (0, 0));
    cluster.stop_all();
}

// -- both at once

#[test]
fn simultaneous_dials_end_with_the_same_primary() {
    let (mut both, mut second) = (0, 0);
    for offset in (0..=100).step_by(5) {
        for seed in 1..8 {
            let mut cluster = Cluster::quiet().nodes(2).seed(seed).start();
            if primary_timeout(&cluster, 0, 1) == 60 * SECOND {
                continue;
            }
            let requests = [0, 1].map(|node| {
                let request = connect_request(&cluster, 1 - node);
                let id = cluster.request(node, request);
                if node == 0 {
                    cluster.drive(ms(offset));
                }
                id
            });
            cluster.drive(SECOND);
            for (node, request) in [0, 1].into_iter().zip(requests) {
                let done = cluster.done(node, request);
                assert!(
                    matches!(done, Some(Ok(Reply::Connect(_)))),
                    "offset {offset}, seed {seed}: {done:?}"
                );
            }
            let ids = |cluster: &Cluster, node: HostId| {
                let mut infos = cluster.node(node).connections();
                infos.sort_by(|a, b| a.shared_id.cmp(&b.shared_id));
                assert!(
                    infos.iter().enumerate().all(|(i, info)| info.primary == (i == 0)),
                    "{infos:?}"
                );
                infos.into_iter().map(|info| info.shared_id).collect::<Vec<Bytes>>()
            };
            let connections = ids(&cluster, 0);
            assert_eq!(connections, ids(&cluster, 1), "offset {offset}, seed {seed}");
            assert!((1..=2).contains(&connections.len()), "offset {offset}, seed {seed}");
            if connections.len() == 2 {
                both += 1;
                // Whichever was accepted first.
                second += usize::from(cluster.node(0).connections()[0].primary);
            }
            cluster.drive(60 * SECOND);
            assert_eq!(ids(&cluster, 0), connections[..1], "the other one was idle for 60 s");
            assert_eq!(ids(&cluster, 1), connections[..1]);
            let lives = primary_timeout(&cluster, 0, 1) - ms(1500);
            cluster.drive(lives - 60 * SECOND);
            assert_eq!(ids(&cluster, 0), connections[..1]);
            cluster.drive(2 * SECOND);
            assert_eq!((ids(&cluster, 0), ids(&cluster, 1)), (vec![], vec![]));
            for node in [0, 1] {
                assert_quiet(&mut cluster, node, "after both dialed");
            }
            cluster.stop_all();
        }
    }
    assert!(
        both >= 5 && second > 0 && second < both,
        "{both} pairs, {second}: both orders are met"
    );
}

// -- idle

#[test]
fn unused_connection_closes_by_its_distance() {
    let mut cluster = Cluster::quiet().nodes(12).seed(3).start();
    let mut buckets = std::collections::BTreeSet::new();
    for to in 1..12 {
        let info = connect(&mut cluster, 0, to);
        let (opened, lives) = (cluster.now(), primary_timeout(&cluster, 0, to));
        buckets.insert(lives);
        assert_eq!((info.primary, info.idle_in), (true, Some(lives)));
        cluster.drive(lives - ms(11));
        // Getters return values at the time of the last call.
        cluster.spurious_timeout(0);
        assert_eq!(cluster.node(0).connections()[0].idle_in, Some(ms(11)));
        cluster.drive(SECOND);
        // The dialer is the last to accept, so the acceptor's time is over first.
        assert_eq!(
            closed(&cluster, to),
            [(opened - ms(10) + lives, ConnectionId(1), DisconnectReason::Local)]
        );
        let end = closed(&cluster, 0).pop().unwrap();
        assert_eq!(end, (opened + lives, info.conn, peer(0, "idle")));
        assert_quiet(&mut cluster, 0, "idle");
        assert!(cluster.node(0).contact(cluster.id(to)).is_some(), "the graph keeps it");
    }
    assert!(buckets.len() >= 3, "different distances: {buckets:?}");
    cluster.stop_all();
}

#[test]
fn use_restarts_the_idle_time_on_both_sides() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    connect(&mut cluster, 0, 1);
    let lives = primary_timeout(&cluster, 0, 1);
    for _ in 0..5 {
        cluster.drive(lives - SECOND);
        let request = ping(&cluster, 1);
        assert!(matches!(cluster.ask(0, request), Ok(Reply::PingNode(_))));
        assert_eq!(cluster.node(0).connections()[0].idle_in, Some(lives));
    }
    assert_eq!(cluster.transport_counters().handshakes, 1);
    cluster.drive(lives + SECOND);
    assert_eq!((cluster.node(0).connections().len(), cluster.node(1).connections().len()), (0, 0));
    cluster.stop_all();
}

#[test]
fn lease_keeps_a_connection_open_until_it_is_released() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    add_contact(&mut cluster, 0, 1);
    let (first, info) = acquire(&mut cluster, 0, 1);
    assert_eq!(info.idle_in, None);
    let (second, same) = acquire(&mut cluster, 0, 1);
    assert_eq!(same.conn, info.conn);
    let lives = primary_timeout(&cluster, 0, 1);
    cluster.drive(4 * lives);
    cluster.call(0, |node, now| node.release(first, now));
    // Releasing twice is releasing once, and releasing an unknown lease has no effect.
    cluster.call(0, |node, now| node.release(first, now));
    cluster.call(0, |node, now| node.release(LeaseId(99), now));
    cluster.drive(4 * lives);
    let infos = cluster.node(0).connections();
    assert!(
        infos.len() == 1 && infos[0].conn == info.conn && infos[0].idle_in.is_none(),
        "{infos:?}"
    );
    assert!(closed(&cluster, 1).is_empty(), "the peer, who knows of no lease, does not close it");

    cluster.call(0, |node, now| node.release(second, now));
    assert_eq!(cluster.node(0).connections()[0].idle_in, Some(lives));
    let released = cluster.now();
    cluster.drive(lives + SECOND);
    let ends = closed(&cluster, 0);
    let (at, conn, _) = &ends[0];
    // The peer received our last packet up to half a minute before.
    assert!(
        ends.len() == 1
            && *conn == info.conn
            && *at <= released + lives
            && *at >= released + lives - 31 * SECOND
    );
    assert!(lost(&cluster, 0).is_empty(), "they were released");
    assert_quiet(&mut cluster, 0, "released");
    cluster.stop_all();
}

#[test]
fn lease_of_an_ended_connection_is_lost_once() {
    for kill in [true, false] {
        let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
        add_contact(&mut cluster, 0, 1);
        let (first, _) = acquire(&mut cluster, 0, 1);
        let (second, _) = acquire(&mut cluster, 0, 1);
        let (third, _) = acquire(&mut cluster, 0, 1);
        cluster.call(0, |node, now| node.release(second, now));
        if kill {
            cluster.kill(1);
        } else {
            let own = cluster.id(0);
            assert_eq!(cluster.call(1, |node, now| node.disconnect(own, now)), 1);
        }
        cluster.drive(40 * SECOND);
        assert_eq!(lost(&cluster, 0), [first, third]);
        for lease in [first, second, third] {
            cluster.call(0, |node, now| node.release(lease, now));
        }
        assert_quiet(&mut cluster, 0, "lost");
        cluster.stop_all();
        assert_eq!(lost(&cluster, 0), [first, third]);
    }
}

#[test]
fn application_stream_keeps_a_connection_open_on_both_sides() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    cluster.host_mut(0).apps.insert("hold".into(), pk_sim::App::Stalled);
    cluster.call(1, |node, now| node.accept_protocol("hold".into(), now)).unwrap();
    add_contact(&mut cluster, 0, 1);
    let target = cluster.id(1);
    let stream = match cluster
        .ask(0, Request::OpenStream { target, protocol: "hold".into(), options: NO })
    {
        Ok(Reply::OpenStream(stream)) => stream,
        other => panic!("{other:?}"),
    };
    let lives = primary_timeout(&cluster, 0, 1);
    cluster.drive(4 * lives);
    for node in [0, 1] {
        let infos = cluster.node(node).connections();
        assert!(infos.len() == 1 && infos[0].idle_in.is_none(), "node {node}: {infos:?}");
    }
    let end = |cluster: &mut Cluster, action| assert!(cluster.app(0, stream, action));
    end(&mut cluster, pk_sim::AppAction::Reset(0));
    end(&mut cluster, pk_sim::AppAction::Stop(0));
    cluster.drive(SECOND);
    let over = cluster.now();
    for node in [0, 1] {
        let idle = cluster.node(node).connections()[0].idle_in.unwrap();
        assert!(idle <= lives && idle > lives - SECOND, "node {node}: {idle:?}");
    }
    cluster.drive(lives);
    assert!(closed(&cluster, 0)[0].0 >= over + lives - SECOND);
    assert_quiet(&mut cluster, 0, "hold");
    cluster.stop_all();
}

// -- several connections with one node

/// The connections on which a scripted peer has received requests.
fn connections_of_requests(cluster: &Cluster) -> Vec<ConnectionId> {
    let asked = |input: &Input| match input {
        Input::StreamOpened { conn, .. } => Some(*conn),
        _ => None,
    };
    cluster.scripted_peer(1).inputs().filter_map(asked).collect()
}

#[test]
fn only_the_primary_is_used_and_the_next_replaces_it() {
    let mut orders = [0; 2];
    for seed in 0..6 {
        let (mut cluster, mut peer, conns, _) = two_connections(seed);
        let infos = cluster.node(0).connections();
        let primary = usize::from(infos[1].primary);
        assert!(infos[primary].primary && !infos[1 - primary].primary);
        assert!(infos[primary].shared_id < infos[1 - primary].shared_id);
        orders[primary] += 1;
        for _ in 0..5 {
            let request = ping(&cluster, 1);
            let id = cluster.request(0, request);
            peer.drive(&mut cluster, SECOND);
            assert!(matches!(cluster.done(0, id), Some(Ok(Reply::PingNode(_)))));
        }
        assert_eq!(connections_of_requests(&cluster), [conns[primary]; 5]);

        // A question that is in progress when its connection ends is not moved.
        let request = ping(&cluster, 1);
        let id = cluster.request(0, request);
        let conn = conns[primary];
        cluster.pull(1, |scripted_peer| {
            scripted_peer.say(Output::CloseConnection { conn, code: 7, reason: "moved".into() });
        });
        peer.drive(&mut cluster, SECOND);
        let why = DisconnectReason::Peer { code: 7, reason: "moved".into() };
        assert_eq!(cluster.done(0, id), Some(&Err(Failure::ConnectionLost(why))));
        let infos = cluster.node(0).connections();
        assert!(infos.len() == 1 && infos[0].primary, "{infos:?}");
        let before = connections_of_requests(&cluster).len();
        let request = ping(&cluster, 1);
        let id = cluster.request(0, request);
        peer.drive(&mut cluster, SECOND);
        assert!(matches!(cluster.done(0, id), Some(Ok(Reply::PingNode(_)))));
        assert_eq!(connections_of_requests(&cluster)[before..], [conns[1 - primary]]);
        cluster.stop_all();
    }
    assert!(orders[0] > 0 && orders[1] > 0, "the first or the second may be primary: {orders:?}");
}

#[test]
fn non_primary_connection_closes_after_60_seconds() {
    let mut orders = [0; 2];
    for seed in 0..6 {
        let (mut cluster, mut peer, _, opened) = two_connections(seed);
        let infos = cluster.node(0).connections();
        let primary = usize::from(infos[1].primary);
        orders[primary] += 1;
        let other = 1 - primary;
        peer.drive(&mut cluster, 70 * SECOND);
        let ends = closed(&cluster, 0);
        assert_eq!(
            ends,
            [(opened[other] + 60 * SECOND, infos[other].conn, DisconnectReason::Local)],
            "seed {seed}"
        );
        // The idle time of the primary one starts at its last use.
        let lives = primary_timeout(&cluster, 0, 1);
        let rest = (opened[primary] + lives).since(cluster.now());
        peer.drive(&mut cluster, rest + SECOND);
        assert_eq!(closed(&cluster, 0)[1].0, opened[primary] + lives, "seed {seed}");
        cluster.stop_all();
    }
    assert!(orders[0] > 0 && orders[1] > 0, "{orders:?}");
}

#[test]
fn connections_of_one_node_are_limited() {
    let mut cluster = Cluster::quiet()
        .nodes(2)
        .scripted_peers(1)
        .seed(3)
        .config_of(0, |config| config.connections_per_node = 2)
        .start();
    let mut greedy = Peer::honest(2);
    for _ in 0..5 {
        greedy.connect(&mut cluster, 0);
    }
    let metrics = cluster.node(0).metrics();
    assert_eq!(
        (metrics.connections, metrics.connections_evicted, metrics.connections_refused),
        (2, 3, 0)
    );
    let evicted = |input: &&Input| matches!(input, Input::Disconnected { why, .. } if *why == peer(0, "evicted"));
    assert_eq!(cluster.scripted_peer(2).inputs().filter(evicted).count(), 3);
    // There is room for others.
    connect(&mut cluster, 1, 0);
    assert_eq!(cluster.node(0).metrics().connections, 3);
    cluster.stop_all();
}

#[test]
fn connection_limit_applies_in_both_directions() {
    let mut cluster = Cluster::quiet()
        .nodes(8)
        .seed(3)
        .config_of(0, |config| config.connection_limit = 3)
        .start();
    // The checkers hold it at every moment, dials included.
    let dials: Vec<_> = (1..8)
        .map(|to| {
            let request = connect_request(&cluster, to);
            cluster.request(0, request)
        })
        .collect();
    cluster.drive(30 * SECOND);
    let reached = dials.iter().filter(|id| matches!(cluster.done(0, **id), Some(Ok(_)))).count();
    assert_eq!((reached, cluster.node(0).metrics().connections), (3, 3));
    for id in dials {
        if let Some(Err(failure)) = cluster.done(0, id) {
            let Failure::Dial(why) = failure else { panic!("{failure:?}") };
            assert!(
                matches!(&why[..], [(_, DialFailure::Transport(why))] if why == "too many connections"),
                "{why:?}"
            );
        }
    }
    for from in 1..8 {
        let request = connect_request(&cluster, 0);
        let _ = cluster.ask(from, request);
    }
    assert_eq!(cluster.node(0).metrics().connections, 3);
    // One leaves, another enters.
    let leaving = cluster.node(0).connections()[0].node;
    assert_eq!(cluster.call(0, |node, now| node.disconnect(leaving, now)), 1);
    cluster.drive(SECOND);
    let to = (1..8)
        .find(|to| cluster.node(0).connections().iter().all(|info| info.node != cluster.id(*to)))
        .unwrap();
    connect(&mut cluster, 0, to);
    cluster.stop_all();
}

/// A machine that has dialed a peer and cancelled the dial, and the dial.
fn cancelled_dial() -> (Bare, ConnectionId) {
    let mut bare = Bare::new(|_| {});
    let address = "198.51.100.1:1314".parse().unwrap();
    let request = bare.request(Request::Connect { target: Bare::peer(0), address, options: NO });
    let dials = |outputs: &[Output]| {
        let dials = outputs.iter().filter_map(|output| match output {
            Output::Dial { conn, .. } => Some(*conn),
            _ => None,
        });
        dials.collect::<Vec<_>>()
    };
    let [conn] = dials(&bare.take())[..] else { panic!("one dial") };
    bare.node.cancel(request, bare.now);
    assert!(bare.take().contains(&Output::CancelDial { conn }));
    (bare, conn)
}

/// The handshake completes nevertheless. Returns whether the connection is closed.
fn is_closed_at_once(bare: &mut Bare, conn: ConnectionId, dialect: Dialect) -> bool {
    let peer = Bare::peer(0);
    bare.input(Input::Connected(Connected {
        conn,
        side: Side::Dialer,
        dialect,
        leaf: peer,
        chain: vec![peer],
        matched_id: Some(peer),
        remote: "198.51.100.1:1314".parse().unwrap(),
        local: "192.0.2.1:1314".parse().unwrap(),
        shared_id: Bytes::from_static(b"name"),
    }));
    bare.take().iter().any(
        |output| matches!(output, Output::CloseConnection { conn: closed, .. } if *closed == conn),
    )
}

#[test]
fn connection_of_a_cancelled_dial_is_closed_except_on_quic() {
    let (mut bare, conn) = cancelled_dial();
    assert!(is_closed_at_once(&mut bare, conn, Dialect::Native));
    // The reference would send calls over it: it must stay open like any other.
    let (mut bare, conn) = cancelled_dial();
    assert!(!is_closed_at_once(&mut bare, conn, Dialect::Polykey));
    assert_eq!(bare.node.connections().len(), 1);
    bare.pass(3 * 3600 * SECOND);
    assert!(
        bare.take().iter().any(|output| matches!(output, Output::CloseConnection { .. })),
        "it was idle"
    );
    // Not if the local node is stopping.
    let (mut bare, conn) = cancelled_dial();
    bare.node.stop(bare.now);
    assert!(is_closed_at_once(&mut bare, conn, Dialect::Polykey));
}
