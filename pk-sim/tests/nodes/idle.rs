//! An idle node does no work.

use pk_proto::{NodeManager, Reply, Request};
use pk_sim::{App, Cluster, HostId, Link, WorldCounters};

use crate::common::*;

const HOUR: u32 = 3600;

/// Timers that have fired at each node.
fn fired(cluster: &Cluster) -> Vec<u64> {
    (0..cluster.len()).map(|node| cluster.node(node).metrics().timeouts).collect()
}

#[test]
fn settled_network_wakes_for_due_timers_only_and_then_not_at_all() {
    let mut cluster =
        Cluster::quiet().nodes(20).seed(3).link(Link::ms(20).jitter(ms(10)).loss(10)).start();
    cluster.join_all();
    cluster.drive(SECOND);
    let (before, timers) = (cluster.counters(), fired(&cluster));
    let connections: u64 = (0..20).map(|node| cluster.node(node).metrics().connections).sum();
    assert!(connections > 100 && connections.is_multiple_of(2));
    (0..20).for_each(|node| assert_quiet(&mut cluster, node, "settled"));

    // In three hours every connection closes, each by one timer at one of its ends, or by one at
    // both at the same moment.
    cluster.drive(3 * HOUR * SECOND);
    let after = cluster.counters();
    let (woken, fired_then): (u64, u64) = (
        after.timeouts - before.timeouts,
        fired(&cluster).iter().zip(&timers).map(|(after, before)| after - before).sum(),
    );
    assert_eq!(after.spurious_timeouts, 0);
    assert!(woken <= fired_then, "no call without a due timer: {woken} calls, {fired_then} timers");
    assert!((connections / 2..=connections).contains(&fired_then), "{fired_then} of {connections}");
    // One input for each end of a connection; one output to close it, and one event at each end.
    assert_eq!(after.inputs - before.inputs, connections);
    assert_eq!(after.outputs - before.outputs, connections + fired_then);
    assert!((0..20).all(|node| cluster.node(node).connections().is_empty()));

    // Then nothing happens for a day.
    let quiet = cluster.counters();
    cluster.drive(24 * HOUR * SECOND);
    assert_eq!(cluster.counters(), quiet);
    assert!((0..20).all(|node| cluster.node(node).poll_timeout().is_none()));
    cluster.stop_all();
}

#[test]
fn leased_connection_costs_one_ping_in_half_the_idle_time() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    add_contact(&mut cluster, 0, 1);
    acquire(&mut cluster, 0, 1);
    // Changes of the graph are written by a timer as well.
    cluster.drive(SECOND);
    let (before, timers) = (cluster.counters(), fired(&cluster));
    cluster.drive(24 * HOUR * SECOND);
    let after = cluster.counters();
    let pings = u64::from(24 * HOUR / 30);
    let woken = after.timeouts - before.timeouts;
    // The next is counted from the answer to the last.
    assert!((pings - 2..=pings).contains(&woken), "{woken}");
    assert_eq!(
        fired(&cluster),
        [timers[0] + woken, timers[1]],
        "the peer is woken by nothing but packets"
    );
    assert_eq!((after.spurious_timeouts, cluster.node(1).metrics().answers), (0, woken));
    // Opening, request and credit; the answer's credit and its end; at the peer, two credits, the
    // answer, the end.
    let each = (after.outputs - before.outputs) / woken;
    assert!(each <= 10, "{each} outputs a ping");
    assert_eq!(cluster.node(0).connections().len(), 1);
    cluster.stop_all();
}

#[test]
fn connection_in_use_is_checked_once_per_idle_time() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    cluster.call(1, |node, now| node.accept_protocol("hold".into(), now)).unwrap();
    cluster.host_mut(0).apps.insert("hold".into(), App::Stalled);
    add_contact(&mut cluster, 0, 1);
    let open = Request::OpenStream { target: cluster.id(1), protocol: "hold".into(), options: NO };
    assert!(matches!(cluster.ask(0, open), Ok(Reply::OpenStream(_))));
    cluster.drive(SECOND);
    let (before, timers) = (cluster.counters(), fired(&cluster));
    cluster.drive(24 * HOUR * SECOND);
    let after = cluster.counters();
    let looks = 24 * HOUR / primary_timeout(&cluster, 0, 1).as_secs() as u32;
    for (node, before) in timers.into_iter().enumerate() {
        let looked = cluster.node(node).metrics().timeouts - before;
        assert!(
            looked <= u64::from(looks) + 1 && looked >= u64::from(looks) - 1,
            "{looked} of {looks}"
        );
    }
    assert_eq!(
        (after.outputs, after.inputs, after.spurious_timeouts),
        (before.outputs, before.inputs, 0)
    );
    cluster.stop_all();
}

#[test]
fn early_wakeup_does_nothing() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    connect(&mut cluster, 0, 1);
    cluster.kill(2);
    add_contact(&mut cluster, 0, 2);
    // Changes of the graph are written by a timer that is due at once.
    cluster.drive(SECOND);
    let request = ping(&cluster, 2);
    let asking = cluster.request(0, request);
    let state = |cluster: &Cluster, node: HostId| {
        let node: &NodeManager = cluster.node(node);
        (node.poll_timeout(), node.metrics(), node.graph().clone())
    };
    let (before, outputs): (_, WorldCounters) = (state(&cluster, 0), cluster.counters());
    for _ in 0..100 {
        cluster.spurious_timeout(0);
    }
    assert_eq!((state(&cluster, 0), cluster.counters().outputs), (before, outputs.outputs));
    assert_eq!(cluster.counters().spurious_timeouts, 100);
    assert!(cluster.done(0, asking).is_none());
    cluster.stop_all();
}
