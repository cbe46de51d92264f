//! How connections and nodes end, in virtual time.

use bytes::Bytes;
use pk_proto::{
    ConnectionId, DialFailure, DisconnectReason, Event, Failure, FindEnd, Input, Output, Reply,
    Request, RequestError, Side,
};
use pk_sim::{Cluster, Link};

use crate::common::*;

// -- ends

#[test]
fn disconnect_closes_every_connection_with_a_node() {
    let (mut cluster, mut peer, _, _) = two_connections(1);
    let (id, stranger) = (cluster.id(1), absent(1));
    assert_eq!(cluster.call(0, |node, now| node.disconnect(stranger, now)), 0);
    assert_eq!(cluster.call(0, |node, now| node.disconnect(id, now)), 2);
    assert_eq!(cluster.node(0).connections().len(), 0, "at once");
    assert_eq!(
        cluster.call(0, |node, now| node.disconnect(id, now)),
        0,
        "they are closing already"
    );
    peer.drive(&mut cluster, SECOND);
    let ends: Vec<_> = cluster
        .scripted_peer(1)
        .inputs()
        .filter(|input| matches!(input, Input::Disconnected { .. }))
        .collect();
    let graceful = |input: &&Input| matches!(input, Input::Disconnected { why, .. } if *why == self::peer(0, ""));
    assert!(ends.len() == 2 && ends.iter().all(graceful), "{ends:?}");
    assert!(cluster.node(0).contact(id).is_some());
    assert_quiet(&mut cluster, 0, "disconnect");
    cluster.stop_all();
}

#[test]
fn disconnect_cancels_a_dial_that_waits_for_the_hello() {
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(3).start();
    let request = connect_request(&cluster, 1);
    let waiting = cluster.request(0, request);
    cluster.drive(SECOND);
    let id = cluster.id(1);
    assert_eq!(cluster.call(0, |node, now| node.disconnect(id, now)), 1);
    let why = vec![(cluster.address(1), DialFailure::Cancelled)];
    assert_eq!(cluster.done(0, waiting), Some(&Err(Failure::Dial(why))));
    cluster.stop_all();
}

#[test]
fn killed_peer_is_reported_after_the_idle_timeout() {
    let config = |config: &mut pk_proto::Config| config.call_timeout = 60 * SECOND;
    let mut cluster = Cluster::quiet().nodes(4).seed(3).config(config).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 0, 2);
    cluster.drive(25 * SECOND);
    cluster.kill(1);
    let killed = cluster.now();
    // Connected nodes find it, and receive nothing.
    let request = ping(&cluster, 1);
    let asking = cluster.request(0, request);
    // Others receive its contact from connected ones.
    connect(&mut cluster, 3, 0);
    let target = cluster.id(1);
    let found = find(&mut cluster, 3, target);
    assert_consistent(&found);
    assert_eq!((found.found.is_none(), found.ended), (true, FindEnd::Exhausted));
    assert!(cluster.now().since(killed) < 16 * SECOND, "the dial's patience, no more");
    assert!(cluster.done(0, asking).is_none());

    cluster.drive(30 * SECOND);
    let ends = closed(&cluster, 0);
    assert!(matches!(&ends[..], [(_, _, DisconnectReason::TimedOut)]), "{ends:?}");
    let gone = ends[0].0.since(killed);
    // Nothing was received for 30 s: the last packet was at most the 10 s of a keep-alive before.
    assert!((20 * SECOND..=30 * SECOND).contains(&gone), "{gone:?}");
    // The connection was suspected, so the node was searched for again, and was not found.
    let why = vec![(cluster.address(1), DialFailure::TimedOut)];
    assert_eq!(cluster.done(0, asking), Some(&Err(Failure::NotFound(why.clone()))));
    let request = ping(&cluster, 1);
    assert_eq!(cluster.ask(0, request), Err(Failure::NotFound(why)));
    for node in [0, 2, 3] {
        assert_quiet(&mut cluster, node, "killed");
    }
    cluster.stop_all();
}

#[test]
fn requests_for_a_dead_node_end_by_their_deadline() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    connect(&mut cluster, 2, 1);
    cluster.kill(0);
    let (target, begun) = (cluster.id(0), cluster.now());
    for deadline in [ms(1), ms(500), 3 * SECOND] {
        let options = by(deadline);
        let failed = cluster.ask(2, Request::PingNode { target, options });
        assert_eq!(failed, Err(Failure::DeadlineExceeded));
        let found = find_with(
            &mut cluster,
            2,
            target,
            pk_proto::FindNodeOptions { options, ..Default::default() },
        );
        assert_eq!(
            (found.found.clone(), found.ended, found.stats.elapsed),
            (None, FindEnd::Deadline, deadline)
        );
    }
    assert_eq!(cluster.now().since(begun), 2 * (ms(501) + 3 * SECOND));
    cluster.stop_all();
}

#[test]
fn connection_survives_a_short_partition_and_ends_in_a_long_one() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    connect(&mut cluster, 0, 1);
    cluster.partition(&[&[0], &[1]]);
    let request = ping(&cluster, 1);
    let asking = cluster.request(0, request);
    cluster.drive(10 * SECOND);
    cluster.heal();
    assert!(
        matches!(cluster.await_done(0, asking), Ok(Reply::PingNode(pong)) if pong.rtt >= 10 * SECOND)
    );
    assert!(closed(&cluster, 0).is_empty() && closed(&cluster, 1).is_empty());

    cluster.partition(&[&[0], &[1]]);
    cluster.drive(60 * SECOND);
    for node in [0, 1] {
        let ends = closed(&cluster, node);
        // A dial beside the silent connection may have made another one, which was not needed.
        let (last, others) = ends.split_last().unwrap();
        assert!(matches!(last, (_, _, DisconnectReason::TimedOut)), "node {node}: {ends:?}");
        assert!(
            others.iter().all(|(.., why)| *why == DisconnectReason::Local),
            "node {node}: {ends:?}"
        );
        assert_quiet(&mut cluster, node, "partition");
    }
    let request = ping(&cluster, 1);
    assert!(matches!(cluster.ask(0, request), Err(Failure::NotFound(_))));
    cluster.heal();
    let request = ping(&cluster, 1);
    assert!(matches!(cluster.ask(0, request), Ok(Reply::PingNode(_))));
    cluster.stop_all();
}

#[test]
fn moved_peer_is_stored_at_its_new_address() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    connect(&mut cluster, 0, 1);
    cluster.rehome(1, vec!["203.0.113.5:9".parse().unwrap()]);
    cluster.drive(SECOND);
    assert_eq!(cluster.node(0).connections()[0].address, address("203.0.113.5:9"));
    // The contact has both addresses, the newer first.
    let contact = cluster.node(0).contact(cluster.id(1)).unwrap();
    let known: Vec<_> = contact.iter().map(|(address, _)| address.to_string()).collect();
    assert_eq!(known, ["203.0.113.5:9".to_owned(), "20.0.1.1:1314".to_owned()]);
    let target = cluster.id(1);
    let found = find(&mut cluster, 0, target);
    assert_eq!(found.found.map(|(address, _)| address), Some(address("203.0.113.5:9")));
    cluster.stop_all();
}

// -- stop

#[test]
fn stop_closes_everything_gracefully_and_reports_it_last() {
    let mut cluster = Cluster::quiet().nodes(4).seed(3).start();
    for to in [1, 2] {
        connect(&mut cluster, 0, to);
    }
    let (lease, _) = acquire(&mut cluster, 0, 1);
    connect(&mut cluster, 3, 0);
    let request = ping(&cluster, 1);
    let (asking, events) = (cluster.request(0, request), cluster.events(0).len());
    let begun = cluster.now();
    cluster.stop(0);
    assert!(cluster.now().since(begun) <= ms(10), "it waits for no peer");
    let told: Vec<_> = cluster.events_since(0, events).cloned().collect();
    assert!(
        matches!(&told[0], Event::Done { id, result: Err(Failure::Stopped) } if *id == asking),
        "{told:?}"
    );
    assert_eq!(told.last(), Some(&Event::Stopped));
    let closed_here = told.iter().filter(|event| {
        matches!(event, Event::ConnectionClosed { why: DisconnectReason::Local, .. })
    });
    assert_eq!((closed_here.count(), lost(&cluster, 0)), (3, vec![lease]));
    assert_eq!(told.len(), 1 + 3 + 1 + 1);
    assert_eq!((cluster.node(0).poll_timeout(), cluster.node(0).metrics().connections), (None, 0));

    let request = ping(&cluster, 1);
    assert_eq!(cluster.try_request(0, request), Err(RequestError::Stopping));
    cluster.call(0, pk_proto::NodeManager::stop);
    cluster.drive(SECOND);
    for node in 1..4 {
        let ends = closed(&cluster, node);
        assert!(matches!(&ends[..], [(_, _, why)] if *why == peer(0, "")), "node {node}: {ends:?}");
        assert_quiet(&mut cluster, node, "the peer has stopped");
    }
    cluster.stop_all();
}

#[test]
fn dial_to_a_stopping_node_is_rejected() {
    // It waits for its driver, which is slow.
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    cluster.host_mut(0).input_delay = ms(500);
    let request = connect_request(&cluster, 0);
    let dialing = cluster.request(2, request);
    cluster.drive(ms(400));
    cluster.stop(0);
    let result = cluster.await_done(2, dialing);
    assert!(
        matches!(&result, Err(Failure::Dial(why)) if matches!(why[0].1, DialFailure::Rejected { code: 0, .. })),
        "{result:?}"
    );
    assert_eq!(
        count_events(&cluster, 0, |event| matches!(event, Event::ConnectionOpened { .. })),
        1
    );
    cluster.stop_all();
}

#[test]
fn late_inputs_about_a_closing_connection_have_no_effect() {
    // Requests arrive while the connection is being closed; the checkers detect anything that is
    // sent on it.
    for after in [0, 5, 10, 15, 20, 30, 45] {
        let mut cluster =
            Cluster::quiet().nodes(2).seed(3).link(Link::ms(10).jitter(ms(3))).start();
        connect(&mut cluster, 0, 1);
        cluster.host_mut(0).input_delay = ms(40);
        cluster.host_mut(1).input_delay = ms(15);
        let ids: Vec<_> = (0..20)
            .map(|_| {
                let request = ping(&cluster, 0);
                cluster.request(1, request)
            })
            .collect();
        cluster.drive(ms(after));
        let id = cluster.id(1);
        cluster.call(0, |node, now| node.disconnect(id, now));
        cluster.drive(SECOND);
        for id in ids {
            let result = cluster.done(1, id);
            assert!(
                matches!(result, Some(Ok(_) | Err(Failure::ConnectionLost(_)))),
                "{after} ms: {result:?}"
            );
        }
        for node in [0, 1] {
            assert_quiet(&mut cluster, node, &format!("{after} ms"));
        }
        cluster.stop_all();
    }
}

#[test]
fn calls_on_a_locally_closed_connection_fail_at_once() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    connect(&mut cluster, 0, 1);
    let request = ping(&cluster, 1);
    let asking = cluster.request(0, request);
    let id = cluster.id(1);
    cluster.call(0, |node, now| node.disconnect(id, now));
    assert_eq!(
        cluster.done(0, asking),
        Some(&Err(Failure::ConnectionLost(DisconnectReason::Local)))
    );
    cluster.stop_all();
}

#[test]
fn stop_is_forced_when_the_driver_does_not_answer() {
    let mut bare = Bare::new(|_| {});
    let peers = [0, 1].map(Bare::peer);
    let conns = peers.map(|peer| bare.accept(peer));
    let acquired = bare.request(Request::AcquireConnection { target: peers[0], options: NO });
    let Some(Ok(Reply::AcquireConnection { lease, .. })) = bare.done(acquired) else {
        panic!("{:?}", bare.outputs)
    };
    let address = address("203.0.113.1:1");
    let dialing = bare.request(Request::Connect { target: Bare::peer(2), address, options: NO });
    bare.take();
    bare.node.stop(bare.now);
    let begun = bare.now;
    let outputs = bare.take();
    assert!(
        outputs
            .contains(&Output::Event(Event::Done { id: dialing, result: Err(Failure::Stopped) }))
    );
    let closes = outputs
        .iter()
        .filter(|output| matches!(output, Output::CloseConnection { code: 0, .. }))
        .count();
    assert_eq!(closes, 2, "{outputs:?}");
    assert!(!bare.node.is_stopped());
    // Of two connections, one is reported; the dial is not.
    bare.input(Input::Disconnected { conn: conns[1], why: DisconnectReason::Local });
    bare.pass(ms(999));
    assert!(!bare.node.is_stopped());
    bare.pass(ms(1));
    assert!(bare.node.is_stopped());
    assert_eq!(bare.now.since(begun), SECOND);
    let events: Vec<_> = bare
        .take()
        .into_iter()
        .map(|output| match output {
            Output::Event(event) => event,
            other => panic!("{other:?}"),
        })
        .collect();
    let gone = |i: usize| Event::ConnectionClosed {
        conn: conns[i],
        node: peers[i],
        why: DisconnectReason::Local,
    };
    assert_eq!(
        events,
        [gone(1), Event::LeaseLost { lease, node: peers[0] }, gone(0), Event::Stopped]
    );
    assert_eq!((bare.node.poll_timeout(), bare.node.metrics().connections_pending), (None, 0));
    // Later inputs are counted.
    bare.input(Input::Disconnected { conn: conns[0], why: DisconnectReason::Local });
    assert!(bare.take().is_empty());
    assert_eq!(bare.node.metrics().late_inputs, 1);
}

#[test]
fn handshake_that_completes_after_its_dial_was_cancelled_is_closed() {
    let mut bare = Bare::new(|_| {});
    let target = Bare::peer(0);
    let request =
        bare.request(Request::Connect { target, address: address("203.0.113.1:1"), options: NO });
    bare.node.cancel(request, bare.now);
    let outputs = bare.take();
    assert!(outputs.contains(&Output::CancelDial { conn: ConnectionId(0) }), "{outputs:?}");
    bare.connected(ConnectionId(0), Side::Dialer, target, "203.0.113.1:1".parse().unwrap(), 1);
    let close = Output::CloseConnection { conn: ConnectionId(0), code: 0, reason: String::new() };
    assert_eq!(bare.take(), [close], "and nothing is opened on it");
    assert_eq!(bare.node.connections(), []);
    bare.input(Input::Disconnected { conn: ConnectionId(0), why: DisconnectReason::Local });
    assert_eq!((bare.take(), bare.node.poll_timeout()), (vec![], None));
}

#[test]
fn inputs_about_finished_ids_are_counted_and_ignored() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept(Bare::peer(0));
    let (timeout, gone) = (bare.node.poll_timeout(), ConnectionId(77));
    let (stream, effect) = (pk_proto::StreamId(79), pk_proto::EffectId(9));
    let late = vec![
        Input::DialFailed { conn: gone, why: DialFailure::TimedOut },
        Input::Disconnected { conn: gone, why: DisconnectReason::TimedOut },
        Input::RemoteAddressChanged { conn: gone, addr: "203.0.113.1:1".parse().unwrap() },
        Input::StreamOpened { conn: gone, stream },
        Input::StreamData { stream, bytes: Bytes::from_static(b"abc"), fin: true },
        Input::StreamReset { stream, code: 1 },
        Input::StreamStopped { stream, code: 1 },
        Input::StreamClosed { stream },
        Input::Resolved { id: effect, result: Ok(vec![]) },
        Input::Signed { id: effect, result: Err("no".into()) },
        Input::Persisted { id: effect, result: Ok(()) },
        Input::Loaded { id: effect, result: Ok((vec![], false)) },
        Input::Discovered { id: effect, addrs: vec![], done: true },
        Input::IdentityReplaced { id: effect, result: Ok(()) },
    ];
    let count = late.len() as u64;
    for input in late {
        bare.input(input.clone());
        assert_eq!(bare.take(), [], "{input:?}");
    }
    assert_eq!(bare.node.metrics().late_inputs, count);
    // An id that is in use already, and a dial that does not exist.
    bare.connected(conn, Side::Acceptor, Bare::peer(1), "203.0.113.1:1".parse().unwrap(), 1);
    bare.connected(
        ConnectionId(8),
        Side::Dialer,
        Bare::peer(1),
        "203.0.113.1:1".parse().unwrap(),
        1,
    );
    assert_eq!((bare.take(), bare.node.metrics().late_inputs), (vec![], count + 2));
    assert_eq!((bare.node.connections().len(), bare.node.poll_timeout()), (1, timeout));
    // Confirmations of bytes on an ended stream are usual.
    bare.input(Input::StreamWritten { stream, bytes: 5 });
    bare.input(Input::OpenFailed { stream });
    assert_eq!(bare.take(), []);
}
