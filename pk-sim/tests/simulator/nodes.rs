//! Real nodes in the simulator: checkers run on them, they can restart, and scripted peers can
//! join.

use pk_proto::{Event, Failure, FindNodeOptions, Input, Replay, Reply, Request, RequestError};
use pk_sim::{Cluster, Link};

use crate::{SECOND, ms};

fn find(cluster: &Cluster, target: usize) -> Request {
    Request::FindNode { target: cluster.id(target), find: FindNodeOptions::default() }
}

#[test]
fn every_checker_runs_on_real_nodes() {
    let mut cluster =
        Cluster::quiet().nodes(6).seed(3).link(Link::ms(30).jitter(ms(20)).loss(50)).start();
    cluster.join_all();
    for node in 1..6 {
        let request = find(&cluster, 6 - node);
        drop(cluster.try_request(node, request));
    }
    cluster.stop_all();
    let checks = cluster.check_counters();
    assert!(
        checks.requests >= 9 && checks.gauges > 100 && checks.sends > 10 && checks.grants > 10,
        "{checks:?}"
    );
    assert!(checks.nodes > 20 && checks.searches > 5 && checks.timers > 0, "{checks:?}");
    assert!(checks.outputs > 100 && checks.inputs > 100, "{checks:?}");
    assert_eq!(cluster.counters().spurious_timeouts, 0);
    assert!(cluster.coverage().count("Event::NodeAdded") > 10);
}

#[test]
fn same_seed_gives_the_same_nodes_and_the_same_run() {
    let run = |seed| {
        let mut cluster =
            Cluster::quiet().nodes(4).seed(seed).link(Link::ms(30).jitter(ms(20)).loss(50)).start();
        cluster.join_all();
        cluster.stop_all();
        (cluster.id(0), cluster.digest())
    };
    assert_eq!(run(5), run(5));
    let (one, other) = (run(5), run(6));
    assert!(one.0 != other.0 && one.1 != other.1);
}

#[test]
fn killed_node_restarts_with_its_stored_rows() {
    let mut cluster = Cluster::quiet().nodes(3).start();
    cluster.join_all();
    let open = find(&cluster, 2);
    let open = cluster.request(1, open);
    cluster.kill(1);
    assert!(cluster.machine(1).is_none() && cluster.done(1, open).is_none());
    cluster.start_node(1);
    cluster.drive(SECOND);
    assert_eq!(cluster.node(1).metrics().nodes, 2);
    let request = find(&cluster, 2);
    assert!(
        matches!(cluster.ask(1, request), Ok(Reply::FindNode(outcome)) if outcome.found.is_some())
    );
    cluster.restart(1);
    assert_eq!(cluster.node(1).metrics().nodes, 2);
    cluster.stop_all();
}

#[test]
fn requests_can_be_refused_cancelled_and_stopped() {
    let mut cluster =
        Cluster::quiet().nodes(2).config_of(1, |config| config.request_limit = 1).build();
    cluster.start_node(0);
    let request = find(&cluster, 1);
    assert_eq!(cluster.try_request(0, request.clone()), Err(RequestError::NotReady));
    cluster.drive(SECOND);
    let seeds = vec![cluster.seed_node(1)];
    let sync = Request::SyncNodeGraph { seeds, blocking: true, options: Default::default() };
    let [cancelled, stopped] = [0, 1].map(|_| cluster.request(0, sync.clone()));
    cluster.cancel(0, cancelled);
    assert_eq!(cluster.await_done(0, cancelled), Err(Failure::Cancelled));
    cluster.stop(0);
    assert_eq!(cluster.await_done(0, stopped), Err(Failure::Stopped));
    assert_eq!(cluster.try_request(0, request), Err(RequestError::Stopping));
    assert!(matches!(cluster.events(0).last(), Some((_, Event::Stopped))));
    cluster.finish();
}

#[test]
fn scripted_peer_can_misbehave() {
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).start();
    let (addr, node) = (cluster.host(0).addrs()[0], cluster.id(0));
    let deadline = cluster.now() + SECOND;
    let conn = cluster.pull(1, |scripted_peer| scripted_peer.dial(addr, node, deadline));
    assert!(cluster.drive_until(|cluster| cluster.scripted_peer(1).connected().is_some(), SECOND));
    cluster.pull(1, |scripted_peer| {
        let stream = scripted_peer.open(conn);
        scripted_peer.send(stream, "this is not the protocol", false);
    });
    cluster.drive_bounded(1000, |cluster| {
        cluster.scripted_peer(1).inputs().any(|input| matches!(input, Input::Disconnected { .. }))
    });
    assert!(cluster.events_since(0, 0).any(|event| matches!(event, Event::PeerMisbehaved { .. })));
    cluster.stop_all();
}

#[test]
fn recorded_node_can_be_replayed() {
    let mut cluster = Cluster::quiet().nodes(2).recorded(1 << 20).start();
    cluster.join_all();
    let recording = cluster.call(1, |node, _| node.take_recording()).unwrap();
    let mut replay = Replay::new(&recording).unwrap();
    let steps = std::iter::from_fn(|| replay.step().unwrap()).count();
    assert!(steps > 5, "{steps}");
    assert_eq!(replay.machine().metrics(), cluster.node(1).metrics());
    cluster.stop_all();
}
