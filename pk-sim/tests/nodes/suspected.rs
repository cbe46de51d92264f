//! Connections that are suspected: peers that were killed, restarted, stopped or cut off, in
//! virtual time.

use std::time::Duration;

use pk_proto::{
    ClosestNodesQuery, ConnectionId, DialFailure, Dialect, DisconnectReason, Event, Failure,
    FindEnd, Input, NodeContact, Output, Reply, Request, Side,
};
use pk_sim::{App, Cluster, HostId};

use crate::common::*;

/// Nodes that are connected with each other. If `forgetful`, they send no resets after a restart,
/// like nodes of Polykey 1.x.
fn connected(nodes: usize, seed: u64, forgetful: bool) -> Cluster {
    let mut cluster = Cluster::quiet().nodes(nodes).seed(seed).start();
    for node in 0..nodes {
        cluster.host_mut(node).transport.keeps_secret = !forgetful;
    }
    for node in 1..nodes {
        connect(&mut cluster, 0, node);
    }
    cluster.drive(SECOND);
    cluster
}

/// The result of a request, and its duration.
fn timed(
    cluster: &mut Cluster,
    node: HostId,
    request: Request,
) -> (Result<Reply, Failure>, Duration) {
    let begun = cluster.now();
    let result = cluster.ask(node, request);
    (result, cluster.now().since(begun))
}

fn repeatable(cluster: &Cluster, target: HostId) -> Vec<Request> {
    let (via, target) = (cluster.id(target), cluster.id(target));
    let query = ClosestNodesQuery { known: true, connected: true };
    vec![
        Request::PingNode { target, options: NO },
        Request::QueryClosestNodes { via, target, query, options: NO },
        Request::OpenStream { target, protocol: "echo/1".into(), options: NO },
        Request::RequestChainData { target, since: None, limit: None, options: NO },
        Request::FindNode { target, find: pk_proto::FindNodeOptions::default() },
        Request::AcquireConnection { target, options: NO },
    ]
}

// -- restarted

#[test]
fn restarted_peer_is_used_again_at_once_by_every_request() {
    for forgetful in [false, true] {
        for which in 0..6 {
            let mut cluster = connected(2, 5, forgetful);
            cluster.call(1, |node, now| node.accept_protocol("echo/1".into(), now)).unwrap();
            cluster.restart(1);
            cluster.drive(SECOND);
            cluster.call(1, |node, now| node.accept_protocol("echo/1".into(), now)).unwrap();
            let request = repeatable(&cluster, 1)[which].clone();
            let (result, took) = timed(&mut cluster, 0, request.clone());
            assert!(result.is_ok(), "{request:?}: {result:?}");
            let limit = if forgetful { ms(800) } else { ms(200) };
            // A request for the connection itself returns the existing one.
            assert!(took <= limit, "{forgetful} {request:?}: {took:?}");
            cluster.drive(10 * SECOND);
            let request = ping(&cluster, 1);
            let (result, _) = timed(&mut cluster, 0, request);
            assert!(result.is_ok(), "{result:?}");
            cluster.stop_all();
        }
    }
}

#[test]
fn many_dead_connections_with_one_peer_do_not_use_up_a_request() {
    for forgetful in [false, true] {
        let mut cluster = Cluster::quiet().nodes(2).seed(9).start();
        cluster.host_mut(1).transport.keeps_secret = !forgetful;
        // Each process connects, and is killed without a close.
        for _ in 0..7 {
            connect(&mut cluster, 1, 0);
            cluster.drive(ms(300));
            cluster.restart(1);
            cluster.drive(ms(1));
        }
        connect(&mut cluster, 1, 0);
        cluster.drive(ms(300));
        // Each process connects once or twice, and each connection may have replaced a dead one.
        let dead = cluster.node(0).connections().len() - 1;
        assert!((2..=3).contains(&dead), "{dead}");
        let request = ping(&cluster, 1);
        let (result, took) = timed(&mut cluster, 0, request);
        assert!(result.is_ok() && took < 2 * SECOND, "{forgetful}: {result:?} after {took:?}");
        // Detected dead connections are closed soon; the others do not disturb.
        cluster.drive(40 * SECOND);
        assert_eq!(cluster.node(0).connections().len(), 1);
        cluster.assert_primaries_agree();
        cluster.stop_all();
    }
}

#[test]
fn live_connection_is_used_while_the_primary_is_suspected() {
    let mut before = [0, 0];
    for seed in 0..8 {
        let mut cluster = Cluster::quiet().nodes(2).seed(seed).start();
        cluster.host_mut(1).transport.keeps_secret = false;
        connect(&mut cluster, 1, 0);
        let dead = cluster.node(0).connections()[0].shared_id.clone();
        cluster.restart(1);
        cluster.drive(ms(1));
        connect(&mut cluster, 1, 0);
        let infos = cluster.node(0).connections();
        let primary = infos.iter().find(|info| info.primary).unwrap();
        before[usize::from(primary.shared_id == dead)] += 1;
        let (dials, _) = (cluster.dials(0).len(), ());
        let request = ping(&cluster, 1);
        let (result, took) = timed(&mut cluster, 0, request);
        assert!(result.is_ok() && took < SECOND, "{result:?} after {took:?}");
        assert_eq!(cluster.dials(0).len(), dials, "there was a connection");
        if primary.shared_id == dead {
            assert_eq!(cluster.node(0).metrics().requests_repeated, 1);
            let infos = cluster.node(0).connections();
            let now = infos.iter().find(|info| info.primary).unwrap();
            assert!(
                now.shared_id != dead
                    && infos.iter().any(|info| info.suspected && info.shared_id == dead)
            );
            // It stays silent beside a live one.
            cluster.drive(6 * SECOND);
            assert_eq!(
                (cluster.node(0).connections().len(), cluster.node(0).metrics().connections_silent),
                (1, 1)
            );
        }
        cluster.drive(40 * SECOND);
        assert_eq!(cluster.assert_primaries_agree(), 2);
        cluster.stop_all();
    }
    assert!(before[0] > 0 && before[1] > 0, "both kinds of rounds: {before:?}");
}

#[test]
fn request_in_progress_is_repeated_when_its_peer_restarts() {
    let mut cluster = connected(2, 3, true);
    let request = ping(&cluster, 1);
    let asked = cluster.request(0, request);
    cluster.restart(1);
    let begun = cluster.now();
    assert!(matches!(cluster.await_done(0, asked), Ok(Reply::PingNode(_))));
    assert!(cluster.now().since(begun) < SECOND);
    assert_eq!(cluster.node(0).metrics().requests_repeated, 1);
    cluster.stop_all();
}

#[test]
fn restarted_contact_is_dialed_again_by_the_search() {
    let mut cluster = connected(2, 11, true);
    let (via, target) = (cluster.id(1), absent(1));
    cluster.restart(1);
    let outcome = find(&mut cluster, 0, target);
    let ends: Vec<_> =
        outcome.trace.iter().filter(|step| step.node == via).map(|step| &step.end).collect();
    use pk_proto::FindStepEnd::{Answered, NoAnswer};
    assert!(matches!(ends[..], [NoAnswer, Answered { .. }]), "{outcome:?}");
    assert!(outcome.stats.elapsed < SECOND, "{outcome:?}");
    cluster.stop_all();
}

// -- slow, not dead

#[test]
fn answer_on_the_suspected_connection_completes_the_request() {
    let mut cluster = connected(3, 7, false);
    let before = (cluster.dials(0).len(), cluster.node(0).connections().len());
    let request = ping(&cluster, 1);
    let asked = cluster.request(0, request);
    cluster.freeze(1);
    cluster.drive(2 * SECOND);
    assert_eq!(cluster.node(0).metrics().connections_suspected, 1);
    assert_eq!(cluster.dials(0).len(), before.0 + 1, "one race, however long it takes");
    cluster.thaw(1);
    assert!(matches!(cluster.await_done(0, asked), Ok(Reply::PingNode(_))));
    cluster.drive(20 * SECOND);
    let metrics = cluster.node(0).metrics();
    assert_eq!((metrics.connections_heard, metrics.connections_silent), (1, 0));
    assert_eq!(cluster.dials(0).len(), before.0 + 1);
    assert_eq!(cluster.node(0).connections().len(), before.1);
    cluster.assert_primaries_agree();
    cluster.stop_all();
}

#[test]
fn resumed_process_suspects_and_dials_no_node() {
    let mut cluster = connected(5, 13, false);
    let requests: Vec<_> = (1..5).map(|to| (to, ping(&cluster, to))).collect();
    let asked: Vec<_> =
        requests.into_iter().map(|(_, request)| cluster.request(0, request)).collect();
    cluster.freeze(0);
    cluster.drive(10 * SECOND);
    let dials = cluster.dials(0).len();
    cluster.thaw(0);
    for id in asked {
        assert!(matches!(cluster.await_done(0, id), Ok(Reply::PingNode(_))));
    }
    cluster.drive(10 * SECOND);
    assert_eq!(
        (cluster.dials(0).len(), cluster.node(0).metrics().connections_suspected),
        (dials, 0)
    );
    cluster.stop_all();
}

/// Every peer is silent, because the local network is down.
#[test]
fn isolated_node_makes_few_dials_and_recovers() {
    let mut cluster = connected(21, 17, false);
    let others: Vec<_> = (1..21).collect();
    cluster.partition(&[&[0], &others]);
    let dials = cluster.dials(0).len();
    let asked: Vec<_> = others.iter().map(|to| ping(&cluster, *to)).collect();
    let asked: Vec<_> = asked.into_iter().map(|request| cluster.request(0, request)).collect();
    cluster.drive(5 * SECOND);
    assert_eq!(cluster.node(0).metrics().connections_suspected, 20);
    assert!(cluster.dials(0).len() - dials <= 3, "{}", cluster.dials(0).len() - dials);
    cluster.heal();
    for id in asked {
        assert!(matches!(cluster.await_done(0, id), Ok(Reply::PingNode(_))));
    }
    cluster.drive(60 * SECOND);
    assert_eq!(cluster.node(0).metrics().connections_heard, 20);
    cluster.assert_primaries_agree();
    cluster.stop_all();
}

/// Packets arrive in one direction only: only one end suspects.
#[test]
fn one_way_loss_is_suspected_by_one_end_and_both_agree_afterwards() {
    let mut cluster = connected(3, 19, false);
    cluster.cut(1, 0);
    let request = ping(&cluster, 1);
    let asked = cluster.request(0, request);
    cluster.drive(3 * SECOND);
    let suspects = |cluster: &Cluster, node: HostId| {
        cluster.node(node).connections().iter().filter(|info| info.suspected).count()
    };
    assert_eq!(suspects(&cluster, 0), 1);
    cluster.heal();
    assert!(matches!(cluster.await_done(0, asked), Ok(Reply::PingNode(_))));
    cluster.drive(60 * SECOND);
    assert_eq!((suspects(&cluster, 0), suspects(&cluster, 1)), (0, 0));
    assert!(cluster.assert_primaries_agree() >= 2);
    cluster.stop_all();
}

#[test]
fn streams_of_applications_survive_a_suspicion() {
    let mut cluster = connected(2, 23, false);
    cluster.host_mut(1).apps.insert("echo/1".into(), App::Echo);
    cluster.call(1, |node, now| node.accept_protocol("echo/1".into(), now)).unwrap();
    let (target, protocol) = (cluster.id(1), "echo/1".to_owned());
    assert!(cluster.ask(0, Request::OpenStream { target, protocol, options: NO }).is_ok());
    let held = cluster.node(0).connections()[0].conn;
    cluster.freeze(1);
    let request = ping(&cluster, 1);
    let asked = cluster.request(0, request);
    cluster.drive(8 * SECOND);
    cluster.thaw(1);
    cluster.await_done(0, asked).unwrap();
    // Also where the dial was accepted before the old connection received data.
    cluster.drive(10 * SECOND);
    assert!(cluster.node(0).connections().iter().any(|info| info.conn == held));
    assert!(cluster.app_streams(0).all(|stream| !stream.closed));
    cluster.stop_all();
}

// -- single machines

fn closest(bare: &Bare, peer: u64) -> Vec<(ConnectionId, bool, bool)> {
    let infos = bare.node.connections().into_iter().filter(|info| info.node == Bare::peer(peer));
    infos.map(|info| (info.conn, info.primary, info.suspected)).collect()
}

/// A connection of peer 1.
fn polykey(bare: &mut Bare) -> ConnectionId {
    let conn = ConnectionId(bare.next_id());
    bare.connected_over(
        Dialect::Polykey,
        conn,
        Side::Acceptor,
        Bare::peer(1),
        "198.51.100.1:1314".parse().unwrap(),
        9,
    );
    conn
}

fn dials(outputs: &[Output]) -> Vec<ConnectionId> {
    let dial = |output: &Output| match output {
        Output::Dial { conn, .. } => Some(*conn),
        _ => None,
    };
    outputs.iter().filter_map(dial).collect()
}

#[test]
fn suspicion_causes_no_dial_and_a_request_dials_once() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(1));
    bare.accept_polykey(Bare::peer(2));
    bare.take();
    bare.input(Input::Suspected { conn });
    assert_eq!(dials(&bare.take()), []);
    let ask =
        |bare: &mut Bare| bare.request(Request::PingNode { target: Bare::peer(1), options: NO });
    let first = ask(&mut bare);
    assert_eq!(dials(&bare.take()).len(), 1, "where the connection leads");
    let second = ask(&mut bare);
    bare.pass(ms(400));
    assert_eq!(dials(&bare.take()), []);
    // The connection receives data: both requests are sent on it, and the dial is cancelled.
    bare.input(Input::Heard { conn });
    let outputs = bare.take();
    let opened =
        |output: &&Output| matches!(output, Output::OpenStream { conn: on, .. } if *on == conn);
    assert_eq!(outputs.iter().filter(opened).count(), 2);
    assert!(outputs.iter().any(|output| matches!(output, Output::CancelDial { .. })));
    assert_eq!((bare.done(first), bare.done(second)), (None, None));
    // An unexpected input is only counted.
    let late = bare.node.metrics().late_inputs;
    for input in [Input::Heard { conn }, Input::Suspected { conn: ConnectionId(999) }] {
        bare.input(input);
    }
    assert_eq!(bare.node.metrics().late_inputs, late + 2);
}

#[test]
fn peer_that_dies_before_its_hello_is_dialed_a_second_time() {
    let mut bare = Bare::new(|_| {});
    let remote = "192.0.2.9:9".parse().unwrap();
    let address = pk_proto::NodeAddress::from_socket(remote);
    let asked = bare.request(Request::Connect { target: Bare::peer(1), address, options: NO });
    let first = dials(&bare.take())[0];
    bare.connected(first, Side::Dialer, Bare::peer(1), remote, 3);
    bare.take();
    bare.input(Input::Suspected { conn: first });
    let second = dials(&bare.take());
    assert_eq!(second.len(), 1, "beside the one that is silent");
    // Once, however often the peer is silent.
    for input in [Input::Heard { conn: first }, Input::Suspected { conn: first }] {
        bare.input(input);
        assert_eq!(dials(&bare.take()), []);
    }
    bare.connected(second[0], Side::Dialer, Bare::peer(1), remote, 5);
    let control = bare.outputs.iter().find_map(|output| match output {
        Output::OpenStream { stream, conn } if *conn == second[0] => Some(*stream),
        _ => None,
    });
    bare.data(control.unwrap(), &hello(), false);
    assert!(matches!(bare.done(asked), Some(Ok(Reply::Connect(_)))));
    let closed =
        |output: &Output| matches!(output, Output::CloseConnection { conn, .. } if *conn == first);
    assert!(bare.take().iter().any(closed), "the silent one is not needed");
}

#[test]
fn failed_dial_leaves_the_suspected_connection_to_answer() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(1));
    bare.take();
    let asked = bare.request(Request::PingNode { target: Bare::peer(1), options: NO });
    let opened = bare.take().into_iter().find_map(|output| match output {
        Output::OpenStream { stream, .. } => Some(stream),
        _ => None,
    });
    bare.input(Input::Suspected { conn });
    let dial = dials(&bare.take());
    bare.input(Input::DialFailed { conn: dial[0], why: DialFailure::Transport("refused".into()) });
    assert_eq!(bare.done(asked), None);
    // The request is still open.
    let reset = |output: &Output| matches!(output, Output::ResetStream { stream, .. } | Output::StopStream { stream, .. } if Some(*stream) == opened);
    assert!(!bare.outputs.iter().any(reset));
    // The peer connects again: the request is sent on that connection.
    let again = polykey(&mut bare);
    let outputs = bare.take();
    assert!(
        outputs
            .iter()
            .any(|output| matches!(output, Output::OpenStream { conn, .. } if *conn == again))
    );
    assert!(outputs.iter().any(reset), "and cancelled on the other");
    assert_eq!(closest(&bare, 1), [(conn, false, true), (again, true, false)]);
}

#[test]
fn unsuspected_connection_with_the_smallest_shared_id_is_primary() {
    let mut bare = Bare::new(|_| {});
    let mut conns = Vec::new();
    for shared_id in [5, 3, 9] {
        let conn = ConnectionId(bare.next_id());
        let remote = "192.0.2.9:9".parse().unwrap();
        bare.connected_over(
            Dialect::Polykey,
            conn,
            Side::Acceptor,
            Bare::peer(1),
            remote,
            shared_id,
        );
        conns.push(conn);
    }
    let primary = |bare: &Bare| closest(bare, 1).iter().find(|(_, primary, _)| *primary).unwrap().0;
    assert_eq!(primary(&bare), conns[1]);
    bare.input(Input::Suspected { conn: conns[1] });
    assert_eq!(primary(&bare), conns[0]);
    bare.input(Input::Suspected { conn: conns[0] });
    assert_eq!(primary(&bare), conns[2]);
    bare.input(Input::Suspected { conn: conns[2] });
    assert_eq!(primary(&bare), conns[1], "all are suspected");
    bare.input(Input::Heard { conn: conns[0] });
    assert_eq!(primary(&bare), conns[0]);
    // The end of a connection never makes a suspected one primary before a live one.
    bare.input(Input::Heard { conn: conns[2] });
    bare.input(Input::Disconnected { conn: conns[0], why: DisconnectReason::Reset });
    assert_eq!(primary(&bare), conns[2]);
    // The silent connection is closed, the live one is not.
    bare.take();
    bare.pass(6 * SECOND);
    let closes: Vec<_> = bare
        .take()
        .into_iter()
        .filter(|output| matches!(output, Output::CloseConnection { .. }))
        .collect();
    assert!(
        matches!(&closes[..], [Output::CloseConnection { conn, code: 0, .. }] if *conn == conns[1]),
        "{closes:?}"
    );
}

#[test]
fn suspected_nodes_are_not_sent_to_peers() {
    let mut cluster = connected(3, 29, true);
    let query = ClosestNodesQuery { known: false, connected: true };
    let ask = |cluster: &mut Cluster| match cluster.ask(
        2,
        Request::QueryClosestNodes {
            via: cluster.id(0),
            target: cluster.id(1),
            query,
            options: NO,
        },
    ) {
        Ok(Reply::QueryClosestNodes(closest)) => closest.connected.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(ask(&mut cluster), 1);
    cluster.kill(1);
    let request = ping(&cluster, 1);
    cluster.request(0, request);
    cluster.drive(SECOND);
    assert_eq!(ask(&mut cluster), 0);
    cluster.stop_all();
}

#[test]
fn dead_connections_do_not_block_a_new_one() {
    let mut bare = Bare::new(|config| config.connections_per_node = 2);
    let dead: Vec<_> = (0..2).map(|_| bare.accept_polykey(Bare::peer(1))).collect();
    bare.input(Input::Suspected { conn: dead[1] });
    bare.take();
    let third = polykey(&mut bare);
    let conns: Vec<_> = closest(&bare, 1).into_iter().map(|(conn, ..)| conn).collect();
    assert_eq!(conns, [dead[0], third]);
    let evicted = bare.node.metrics().connections_evicted;
    polykey(&mut bare);
    let metrics = bare.node.metrics();
    assert_eq!(
        (metrics.connections, metrics.connections_evicted),
        (2, evicted + 1),
        "of those that live, two do"
    );
}

/// A suspected connection with a lease is not closed; an unused one makes room instead.
#[test]
fn leased_suspected_connection_stays_and_an_unused_one_makes_room() {
    let mut bare = Bare::new(|config| config.connections_per_node = 2);
    let first = bare.accept_polykey(Bare::peer(1));
    let lease = Request::AcquireConnection { target: Bare::peer(1), options: by(SECOND) };
    let lease = bare.request(lease);
    assert!(matches!(bare.done(lease), Some(Ok(_))));
    let second = bare.accept_polykey(Bare::peer(1));
    bare.input(Input::Suspected { conn: first });
    bare.take();
    let third = polykey(&mut bare);
    let conns: Vec<_> = closest(&bare, 1).into_iter().map(|(conn, ..)| conn).collect();
    assert!(conns.contains(&third) && !conns.contains(&second), "{conns:?}");
    assert_eq!(bare.node.metrics().connections_refused, 0);
}

/// Kills, stops and cuts at random, with requests all the time: afterwards all nodes agree, and
/// every request has ended.
#[test]
fn both_ends_use_the_same_connection_after_random_faults() {
    for seed in 0..12 {
        let mut cluster = connected(5, 100 + seed, seed % 2 == 0);
        for round in 0..6 {
            let victim = 1 + (usize::try_from(seed).unwrap() + round) % 4;
            match (seed + round as u64) % 4 {
                0 => cluster.restart(victim),
                1 => cluster.freeze(victim),
                2 => cluster.cut(victim, 0),
                _ => cluster.cut(0, victim),
            }
            for (from, to) in [(0, victim), (0, 1 + victim % 4), (1 + (victim + 1) % 4, 0)] {
                if !cluster.host(from).is_alive() {
                    continue;
                }
                let request = ping(&cluster, to);
                cluster.request(from, request);
            }
            cluster.drive(ms(400 * (1 + round as u64)));
            (1..5).for_each(|node| cluster.thaw(node));
            cluster.heal();
            cluster.drive(ms(300));
        }
        cluster.drive(60 * SECOND);
        cluster.assert_primaries_agree();
        assert!(cluster.transport_counters().suspicions > 0);
        cluster.stop_all();
    }
}

#[test]
fn search_for_a_dead_peer_does_not_succeed() {
    let mut cluster = connected(2, 31, true);
    let target = cluster.id(1);
    cluster.kill(1);
    let request = ping(&cluster, 1);
    cluster.request(0, request);
    cluster.drive(SECOND);
    let outcome = find(&mut cluster, 0, target);
    assert!(outcome.ended != FindEnd::Connected && outcome.found.is_none(), "{outcome:?}");
    assert_eq!(
        count_events(&cluster, 0, |event| matches!(event, Event::ConnectionOpened { .. })),
        1
    );
    let _: Option<&NodeContact> = cluster.node(0).contact(target);
    cluster.stop_all();
}
