//! Searches, in virtual time: their routes, limits and ends (docs/DESIGN.md, Searches).

use std::collections::BTreeSet;
use std::time::Duration;

use pk_proto::{
    DialFailure, Failure, FindEnd, FindNodeOptions, FindStats, FindStepEnd, NodeId, Reply, Request,
    RequestOptions,
};
use pk_sim::{Cluster, HostId, Link};

use crate::common::*;

/// A cluster whose nodes have contacts along these edges only.
fn graph(nodes: usize, edges: &[(HostId, HostId)]) -> Cluster {
    let mut cluster = Cluster::quiet().nodes(nodes).seed(3).start();
    wire(&mut cluster, edges);
    cluster
}

fn limit(limit: usize) -> FindNodeOptions {
    FindNodeOptions { limit: Some(limit), ..FindNodeOptions::default() }
}

#[test]
fn connected_nodes_store_each_other() {
    let mut cluster = Cluster::quiet().nodes(2).start();
    assert!(
        matches!(cluster.connect(0, 1), Ok(Reply::Connect(info)) if info.node == cluster.id(1))
    );
    cluster.drive(SECOND);
    for (node, other) in [(0, 1), (1, 0)] {
        let other = cluster.id(other);
        assert!(
            cluster.node(node).contact(other).is_some(),
            "node {node} has the other in its graph"
        );
        assert_eq!(cluster.node(node).connections().len(), 1);
    }
    cluster.stop_all();
}

#[test]
fn every_node_finds_every_other_node() {
    let mut cluster = Cluster::quiet().nodes(30).seed(1).start();
    cluster.join_all();
    for from in 0..30 {
        for to in (0..30).filter(|to| *to != from) {
            let target = cluster.id(to);
            let outcome = find(&mut cluster, from, target);
            assert_eq!(outcome.ended, FindEnd::Connected, "{from} → {to}: {outcome:?}");
            assert_eq!(outcome.found.map(|(address, _)| address), Some(cluster.address(to)));
        }
    }
    cluster.stop_all();
}

// -- graphs

#[test]
fn search_follows_a_chain_to_its_end() {
    let mut cluster = graph(5, &[(0, 1), (1, 2), (2, 3), (3, 4)]);
    let target = cluster.id(4);
    let outcome = find(&mut cluster, 0, target);
    assert_consistent(&outcome);
    assert_eq!(
        outcome.found.as_ref().map(|(address, _)| address.clone()),
        Some(cluster.address(4))
    );
    assert_eq!(steps(&cluster, &outcome), [(1, None), (2, Some(1)), (3, Some(2)), (4, Some(3))]);
    let ends: Vec<_> = outcome.trace.iter().map(|step| step.end.clone()).collect();
    let answered = FindStepEnd::Answered { reported: 1, new: 1 };
    assert_eq!(ends, [answered.clone(), answered.clone(), answered, FindStepEnd::Target]);
    // Each link takes 10 ms: the handshake is a round trip, the Hellos are one, and a query is
    // sent with the Hello.
    let elapsed = ms(3 * 40 + 40);
    assert_eq!(
        outcome.stats,
        FindStats { elapsed, attempts: 4, failures: 0, calls: 3, candidates: 4 }
    );
    assert_quiet(&mut cluster, 0, "chain");
    cluster.stop_all();
}

#[test]
fn search_follows_all_branches_of_a_tree() {
    let mut cluster = graph(7, &[(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6)]);
    for (leaf, parent) in [(3, 1), (6, 2)] {
        let target = cluster.id(leaf);
        let outcome = find(&mut cluster, 0, target);
        assert_consistent(&outcome);
        assert_eq!(outcome.ended, FindEnd::Connected);
        let steps = steps(&cluster, &outcome);
        assert!(steps.contains(&(leaf, Some(parent))), "{steps:?}");
        assert!(steps.iter().all(|(node, _)| (1..=6).contains(node)), "{steps:?}");
        for node in 1..7 {
            let peer = cluster.id(node);
            cluster.call(0, |node, now| node.disconnect(peer, now));
        }
        cluster.drive(SECOND);
    }
    cluster.stop_all();
}

#[test]
fn search_in_a_cycle_ends() {
    let ring: Vec<_> =
        (0..6).flat_map(|node| [(node, (node + 1) % 6), ((node + 1) % 6, node)]).collect();
    let chords = [(0, 3), (3, 0), (1, 4), (4, 1)];
    for edges in [ring.clone(), [ring, chords.to_vec()].concat()] {
        let mut cluster = graph(6, &edges);
        let outcome = find(&mut cluster, 0, absent(0));
        assert_consistent(&outcome);
        assert_eq!(outcome.ended, FindEnd::Exhausted);
        let mut contacted: Vec<_> =
            steps(&cluster, &outcome).into_iter().map(|(node, _)| node).collect();
        contacted.sort_unstable();
        assert_eq!(contacted, [1, 2, 3, 4, 5], "every node once");
        assert_eq!(
            (outcome.stats.attempts, outcome.stats.calls, outcome.stats.candidates),
            (5, 5, 5)
        );
        assert_quiet(&mut cluster, 0, "cycle");
        cluster.stop_all();
    }
}

#[test]
fn search_takes_a_shortcut() {
    // 4 is reported by 1 at once, and by 3 after a long path.
    let mut cluster = graph(5, &[(0, 1), (1, 2), (2, 3), (3, 4), (1, 4)]);
    let target = cluster.id(4);
    let outcome = find(&mut cluster, 0, target);
    assert_consistent(&outcome);
    let steps = steps(&cluster, &outcome);
    assert!(steps.contains(&(4, Some(1))), "{steps:?}");
    assert!(steps.iter().all(|(node, _)| *node != 3), "no search takes the long path: {steps:?}");
    assert_eq!(outcome.stats.elapsed, ms(40 + 40));
    // Other dials of the search are cancelled or become ordinary connections.
    cluster.drive(SECOND);
    assert_quiet(&mut cluster, 0, "shortcut");
    cluster.stop_all();
}

#[test]
fn search_does_not_wait_for_offline_nodes() {
    // 1 and 2 are dead; the only route to 4 is through 3.
    let mut cluster = graph(5, &[(0, 1), (0, 2), (0, 3), (3, 4), (1, 4), (3, 1), (3, 2)]);
    cluster.kill(1);
    cluster.kill(2);
    let target = cluster.id(4);
    let outcome = find(&mut cluster, 0, target);
    assert_consistent(&outcome);
    assert_eq!(outcome.ended, FindEnd::Connected);
    assert!(outcome.stats.elapsed < SECOND, "{outcome:?}");
    assert_eq!(outcome.stats.failures, 0, "the search does not wait for dead nodes");
    cluster.drive(ms(100));
    assert_quiet(&mut cluster, 0, "the dials of dead nodes are cancelled");
    let metrics = cluster.node(0).metrics();
    assert_eq!((metrics.connections, metrics.dial_failures), (2, 0), "{metrics:?}");

    // With concurrency 1 each of them delays the search until it counts as stalled.
    let mut cluster = graph(5, &[(0, 1), (0, 2), (0, 3), (3, 4)]);
    cluster.kill(1);
    cluster.kill(2);
    let target = cluster.id(4);
    let find = FindNodeOptions { concurrency: Some(1), ..FindNodeOptions::default() };
    let outcome = find_with(&mut cluster, 0, target, find);
    assert_eq!(outcome.ended, FindEnd::Connected);
    assert!(outcome.stats.elapsed <= ms(2 * 500 + 100), "{outcome:?}");
    cluster.stop_all();
}

// -- self

#[test]
fn search_for_the_local_id_asks_every_reported_node() {
    let mut cluster = graph(7, &[(0, 1), (1, 2), (2, 3), (1, 4), (4, 5), (5, 6)]);
    let own = cluster.id(0);
    let outcome = find(&mut cluster, 0, own);
    assert_consistent(&outcome);
    assert_eq!((outcome.found.clone(), outcome.ended), (None, FindEnd::Exhausted));
    let contacted: BTreeSet<_> =
        steps(&cluster, &outcome).into_iter().map(|(node, _)| node).collect();
    assert_eq!(contacted, BTreeSet::from([1, 2, 3, 4, 5, 6]));
    assert_eq!(cluster.node(0).graph().len(), 6, "and knows them all now");
    assert_quiet(&mut cluster, 0, "own id");
    cluster.stop_all();
}

#[test]
fn search_for_the_local_id_ends_at_its_limit() {
    let mut cluster = graph(5, &[(0, 1), (1, 2), (2, 3), (3, 4)]);
    let own = cluster.id(0);
    let outcome = find_with(&mut cluster, 0, own, limit(2));
    assert_consistent(&outcome);
    assert_eq!(outcome.ended, FindEnd::Limit);
    assert_eq!((outcome.stats.attempts, outcome.stats.calls, outcome.stats.candidates), (2, 2, 3));
    // The two are connected, so they no longer count, and the limit allows two more.
    let outcome = find_with(&mut cluster, 0, own, limit(2));
    assert_eq!(
        (outcome.ended, outcome.stats.attempts, outcome.stats.calls),
        (FindEnd::Exhausted, 2, 4)
    );
    cluster.stop_all();
}

#[test]
fn search_contacts_only_the_closest_k_live_nodes() {
    let edges: Vec<_> = (1..10).map(|node| (0, node)).collect();
    let mut cluster = Cluster::quiet()
        .nodes(10)
        .seed(3)
        .config(|config| {
            config.bucket_limit = 4;
            config.search.doubt_find = 0;
        })
        .start();
    wire(&mut cluster, &edges);
    let target = absent(5);
    let mut nearest: Vec<_> =
        (1..10).map(|node| (cluster.id(node).distance(&target), node)).collect();
    nearest.sort_unstable();
    let known: Vec<_> = nearest
        .iter()
        .filter(|(_, node)| {
            let id = cluster.id(*node);
            cluster.node(0).contact(id).is_some()
        })
        .map(|(_, node)| *node)
        .collect();
    let outcome = find(&mut cluster, 0, target);
    let contacted: BTreeSet<_> =
        steps(&cluster, &outcome).into_iter().map(|(node, _)| node).collect();
    assert_eq!(contacted, known[..4].iter().copied().collect(), "the four closest of {known:?}");
    assert_eq!(outcome.ended, FindEnd::Exhausted);
    cluster.stop_all();
}

// -- limits

#[test]
fn limit_counts_failures_and_no_live_connections() {
    let mut cluster = graph(7, &[(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6)]);
    for live in [1, 2, 3] {
        assert!(cluster.connect(0, live).is_ok());
    }
    for dead in [4, 5, 6] {
        cluster.kill(dead);
    }
    let outcome = find_with(&mut cluster, 0, absent(1), limit(2));
    assert_consistent(&outcome);
    assert_eq!(outcome.ended, FindEnd::Limit);
    assert_eq!((outcome.stats.attempts, outcome.stats.failures), (2, 0), "{outcome:?}");
    let elapsed = outcome.stats.elapsed;
    assert!((ms(200)..2 * SECOND).contains(&elapsed), "the dead are abandoned: {outcome:?}");

    let outcome = find_with(&mut cluster, 0, absent(1), limit(0));
    assert_eq!(outcome.ended, FindEnd::Limit);
    assert_eq!((outcome.stats.attempts, outcome.stats.calls), (0, 3), "live connections are free");
    // Two at a time.
    assert_eq!(outcome.stats.elapsed, ms(40));

    let outcome = find_with(&mut cluster, 0, absent(1), limit(3));
    assert_eq!((outcome.ended, outcome.stats.attempts), (FindEnd::Exhausted, 3), "{outcome:?}");
    cluster.stop_all();
}

#[test]
fn concurrent_contacts_are_limited() {
    for concurrency in [1, 2, 3, 7] {
        let edges: Vec<_> = (1..14).map(|node| (0, node)).collect();
        let mut cluster = graph(14, &edges);
        let find = FindNodeOptions { concurrency: Some(concurrency), ..FindNodeOptions::default() };
        let outcome = find_with(&mut cluster, 0, absent(2), find);
        assert_consistent(&outcome);
        assert_eq!((outcome.ended, outcome.stats.calls), (FindEnd::Exhausted, 13));
        assert_eq!(overlap(&outcome.trace, 15 * SECOND), (concurrency, concurrency));
        cluster.stop_all();
    }
}

#[test]
fn silent_dials_end_so_that_others_start() {
    for concurrency in [1, 3] {
        let edges: Vec<_> = (1..14).map(|node| (0, node)).collect();
        let mut cluster = graph(14, &edges);
        for dead in 4..14 {
            cluster.kill(dead);
        }
        let find = FindNodeOptions { concurrency: Some(concurrency), ..FindNodeOptions::default() };
        let outcome = find_with(&mut cluster, 0, absent(2), find);
        assert_consistent(&outcome);
        assert_eq!((outcome.ended, outcome.stats.attempts), (FindEnd::Exhausted, 13));
        let (dialing, _) = overlap(&dials(&outcome.trace), SECOND);
        assert!(dialing <= concurrency, "the limit holds for silent dials: {outcome:?}");
        let answered: BTreeSet<_> = outcome
            .trace
            .iter()
            .filter(|step| matches!(step.end, FindStepEnd::Answered { .. }))
            .map(|step| step.node)
            .collect();
        assert_eq!(answered.len(), 3, "{outcome:?}");
        // Each contact with a dead node ends when it has been silent for too long, before its
        // timeout.
        assert!(outcome.stats.elapsed <= 5 * SECOND, "{outcome:?}");
        assert_quiet(&mut cluster, 0, "stalled");
        cluster.stop_all();
    }
}

// -- ends

#[test]
fn connected_target_ends_a_search_at_once() {
    let mut cluster = graph(3, &[(0, 1), (0, 2)]);
    assert!(cluster.connect(1, 0).is_ok());
    let (target, dials) = (cluster.id(1), cluster.transport_counters().dials);
    let request =
        cluster.request(0, Request::FindNode { target, find: FindNodeOptions::default() });
    let done = cluster.done(0, request).cloned();
    let Some(Ok(Reply::FindNode(outcome))) = done else { panic!("no time has passed: {done:?}") };
    assert_eq!((outcome.ended, outcome.stats), (FindEnd::Connected, FindStats::default()));
    assert_eq!(
        (outcome.found.map(|(address, _)| address), outcome.trace.len()),
        (Some(cluster.address(1)), 0)
    );
    assert_eq!(cluster.transport_counters().dials, dials);
    cluster.stop_all();
}

#[test]
fn incoming_connection_of_the_target_ends_a_search() {
    let mut cluster = graph(3, &[(0, 1)]);
    cluster.kill(1);
    let target = cluster.id(2);
    let request =
        cluster.request(0, Request::FindNode { target, find: FindNodeOptions::default() });
    cluster.drive(2 * SECOND);
    assert_eq!(cluster.done(0, request), None);
    assert!(cluster.connect(2, 0).is_ok());
    let done = cluster.await_done(0, request);
    let Ok(Reply::FindNode(outcome)) = done else { panic!("{done:?}") };
    assert_eq!((outcome.ended, outcome.stats.attempts), (FindEnd::Connected, 1));
    assert!(outcome.stats.elapsed < 3 * SECOND);
    cluster.drive(SECOND);
    assert_quiet(&mut cluster, 0, "the dial of the dead node is cancelled");
    cluster.stop_all();
}

#[test]
fn deadline_ends_a_search_with_its_results_so_far() {
    let mut cluster = graph(4, &[(0, 1), (0, 2), (0, 3)]);
    for dead in [1, 2] {
        cluster.kill(dead);
    }
    let find = FindNodeOptions { options: by(ms(200)), ..FindNodeOptions::default() };
    let outcome = find_with(&mut cluster, 0, absent(3), find);
    assert_consistent(&outcome);
    assert_eq!(
        (outcome.found.clone(), outcome.ended, outcome.stats.elapsed),
        (None, FindEnd::Deadline, ms(200))
    );
    assert_eq!((outcome.stats.attempts, outcome.stats.calls, outcome.stats.failures), (3, 1, 0));
    let pending: Vec<_> =
        outcome.trace.iter().filter(|step| step.end == FindStepEnd::Pending).collect();
    assert_eq!(pending.len(), 2, "{outcome:?}");
    cluster.drive(ms(10));
    assert_quiet(&mut cluster, 0, "deadline");
    cluster.stop_all();
}

#[test]
fn search_without_candidates_ends_at_once() {
    let mut cluster = Cluster::quiet().nodes(1).start();
    let outcome = find(&mut cluster, 0, absent(0));
    assert_eq!(
        (outcome.ended, outcome.stats, outcome.trace.len()),
        (FindEnd::Exhausted, FindStats::default(), 0)
    );
    assert!(matches!(
        cluster.ask(0, Request::PingNode { target: absent(0), options: RequestOptions::default() }),
        Err(Failure::NotFound(why)) if why.is_empty()
    ));
    cluster.stop_all();
}

#[test]
fn not_found_contains_the_dial_failures_of_the_target() {
    let mut cluster = Cluster::quiet().nodes(4).seed(3).build();
    for node in [0, 1, 3] {
        cluster.start_node(node);
    }
    cluster.drive(Duration::ZERO);
    cluster.network_mut().set_unreachable("198.51.100.1".parse().unwrap());
    cluster.network_mut().set_name("empty.example.org", Ok(Vec::new()));
    cluster.host_mut(3).refuse = Some((17, "full".to_owned()));
    let here = |cluster: &Cluster, host: HostId| cluster.address(host).to_string();
    let cases: Vec<(String, DialFailure)> = vec![
        (here(&cluster, 2), DialFailure::TimedOut),
        (here(&cluster, 3), DialFailure::Rejected { code: 17, reason: "full".into() }),
        ("198.51.100.1:1".into(), DialFailure::Transport("network unreachable".into())),
        ("missing.example.org:1".into(), DialFailure::Resolve("no such host".into())),
        ("empty.example.org:1".into(), DialFailure::Resolve("the name has no address".into())),
    ];
    for (number, (text, why)) in cases.into_iter().enumerate() {
        let target = absent(number as u64);
        let place = address(&text);
        add_contact_at(&mut cluster, 0, target, place.clone());
        let outcome = find(&mut cluster, 0, target);
        assert_consistent(&outcome);
        let steps: Vec<_> = outcome.trace.iter().filter(|step| step.node == target).collect();
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0].end, FindStepEnd::Unreachable(vec![(place.clone(), why.clone())]));
        let ping = cluster.ask(0, Request::PingNode { target, options: RequestOptions::default() });
        assert_eq!(ping, Err(Failure::NotFound(vec![(place, why.clone())])));
        let text = ping.unwrap_err().to_string();
        assert!(
            text.starts_with("the node was not found: ") && text.ends_with(&why.to_string()),
            "{text}"
        );
        cluster.call(0, |node, now| node.unset_node(target, now).unwrap());
    }
    // Another node has the address: every address that was tried has its failure.
    let target = absent(9);
    for place in [cluster.address(1), cluster.address(2)] {
        add_contact_at(&mut cluster, 0, target, place);
    }
    match cluster.ask(0, Request::PingNode { target, options: RequestOptions::default() }) {
        Err(Failure::NotFound(why)) => {
            let find = |host| {
                why.iter()
                    .find(|(address, _)| *address == cluster.address(host))
                    .map(|(_, why)| why)
            };
            assert!(matches!(find(1), Some(DialFailure::Certificate(_))), "{why:?}");
            assert_eq!((find(2), why.len()), (Some(&DialFailure::TimedOut), 2));
        }
        other => panic!("{other:?}"),
    }
    assert_quiet(&mut cluster, 0, "failures");
    cluster.stop_all();
}

#[test]
fn addresses_that_cannot_be_dialed_are_named() {
    let mut cluster = Cluster::quiet().nodes(1).start();
    cluster.network_mut().set_name("zero.example.org", Ok(vec!["0.0.0.0".parse().unwrap()]));
    for (number, text) in
        ["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "[fe80::1%eth0]:1", "zero.example.org:1"]
            .into_iter()
            .enumerate()
    {
        let target = absent(number as u64);
        add_contact_at(&mut cluster, 0, target, address(text));
        let ping = cluster.ask(0, Request::PingNode { target, options: RequestOptions::default() });
        let Err(Failure::NotFound(why)) = &ping else { panic!("{text}: {ping:?}") };
        // A name is reported besides its addresses.
        let why = match &why[..] {
            [(name, DialFailure::LeadsTo(to)), rest @ ..]
                if *name == address(text) && to.len() == rest.len() =>
            {
                rest
            }
            all => all,
        };
        assert!(matches!(why, [(_, DialFailure::Transport(_))]), "{text}: {why:?}");
        cluster.call(0, |node, now| node.unset_node(target, now).unwrap());
    }
    assert_eq!(cluster.transport_counters().dials, 0);
    cluster.stop_all();
}

// -- cancel

#[test]
fn search_cancelled_in_any_stage_leaves_no_state() {
    // Stages in the order in which they are reached: dial, handshake, Hello and query; and again
    // for the next node.
    let mut stages = BTreeSet::new();
    for after in (0..280).step_by(5) {
        let mut cluster = graph(4, &[(0, 1), (1, 2), (2, 3)]);
        let target = cluster.id(3);
        let request =
            cluster.request(0, Request::FindNode { target, find: FindNodeOptions::default() });
        cluster.drive(ms(after));
        let metrics = cluster.node(0).metrics();
        if cluster.done(0, request).is_some() {
            assert_eq!(after, 120, "the search is over by itself");
            cluster.stop_all();
            break;
        }
        stages.insert((metrics.connections, metrics.connections_pending, metrics.streams));
        cluster.cancel(0, request);
        assert_eq!(cluster.done(0, request), Some(&Err(Failure::Cancelled)), "at once");
        cluster.drive(ms(0));
        let metrics = cluster.node(0).metrics();
        assert_eq!(
            (metrics.requests_open, metrics.timers),
            (0, metrics.connections),
            "after {after} ms: {metrics:?}"
        );
        cluster.drive(ms(1));
        assert_quiet(&mut cluster, 0, &format!("after {after} ms"));
        cluster.drive(SECOND);
        for node in 0..4 {
            assert_quiet(&mut cluster, node, &format!("after {after} ms"));
        }
        cluster.stop_all();
    }
    // Three connections in turn: dialing, then greeting and querying with two streams open. The
    // target is greeted only.
    let reached: Vec<_> = stages.into_iter().collect();
    assert_eq!(reached, [(0, 1, 0), (0, 1, 2), (1, 1, 1), (1, 1, 3), (2, 1, 2), (2, 1, 3)]);
}

// -- statistics and trace

#[test]
fn trace_names_the_first_reporter_of_each_node() {
    // 1 and 2 both have a contact for 3; only 2 has one for 4.
    let mut cluster = graph(6, &[(0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5)]);
    cluster.network_mut().set_link(0, 2, Link::ms(50));
    cluster.kill(5);
    let target = cluster.id(5);
    let outcome = find(&mut cluster, 0, target);
    assert_consistent(&outcome);
    assert_eq!(outcome.ended, FindEnd::Exhausted);
    let mut steps = steps(&cluster, &outcome);
    steps.sort_unstable();
    assert_eq!(steps, [(1, None), (2, None), (3, Some(1)), (4, Some(2)), (5, Some(3))]);
    let of =
        |host: HostId| outcome.trace.iter().find(|step| step.node == cluster.id(host)).unwrap();
    assert_eq!(
        (of(1).begun, of(1).took, of(1).end.clone()),
        (ms(0), ms(40), FindStepEnd::Answered { reported: 1, new: 1 })
    );
    assert_eq!(
        (of(2).begun, of(2).took, of(2).end.clone()),
        (ms(0), ms(200), FindStepEnd::Answered { reported: 2, new: 1 })
    );
    assert_eq!((of(5).begun, of(5).took), (ms(80), 15 * SECOND));
    let why = vec![(cluster.address(5), DialFailure::TimedOut)];
    assert_eq!(of(5).end, FindStepEnd::Unreachable(why));
    let elapsed = ms(80) + 15 * SECOND;
    assert_eq!(
        outcome.stats,
        FindStats { elapsed, attempts: 5, failures: 1, calls: 4, candidates: 5 }
    );
    cluster.stop_all();
}

#[test]
fn silent_contact_does_not_block_a_search() {
    let mut cluster = Cluster::quiet().nodes(4).scripted_peers(1).seed(3).start();
    wire(&mut cluster, &[(0, 1), (1, 2)]);
    add_contact(&mut cluster, 0, 4);
    // The scripted peer sends Hello, and never answers.
    let mut mute = Peer::new(4, |_| Reaction::Silence);
    let target = cluster.id(2);
    let request =
        cluster.request(0, Request::FindNode { target, find: FindNodeOptions::default() });
    mute.drive(&mut cluster, SECOND);
    let Some(Ok(Reply::FindNode(outcome))) = cluster.done(0, request).cloned() else {
        panic!("it waits")
    };
    assert_eq!((outcome.ended, mute.asked.len()), (FindEnd::Connected, 1));
    // The search waits for an absent node for a bounded time.
    let request = cluster
        .request(0, Request::FindNode { target: absent(0), find: FindNodeOptions::default() });
    mute.drive(&mut cluster, 20 * SECOND);
    let Some(Ok(Reply::FindNode(outcome))) = cluster.done(0, request).cloned() else {
        panic!("it waits")
    };
    assert_consistent(&outcome);
    assert_eq!(outcome.ended, FindEnd::Exhausted);
    assert!((ms(200)..2 * SECOND).contains(&outcome.stats.elapsed), "{outcome:?}");
    let end =
        |id: NodeId| outcome.trace.iter().find(|step| step.node == id).map(|step| step.end.clone());
    assert_eq!(end(cluster.id(4)), Some(FindStepEnd::Pending));
    cluster.stop_all();
}

// -- many

#[test]
fn searches_are_quick_and_find_most_nodes_if_a_third_of_the_nodes_is_dead() {
    const NODES: usize = 200;
    let mut cluster =
        Cluster::quiet().nodes(NODES).seed(11).link(Link::ms(20).jitter(ms(20))).start();
    cluster.join_all();
    // Connections close for idleness, apart from those with the nearest.
    cluster.drive(20 * 60 * SECOND);
    let dead: BTreeSet<_> = (0..NODES).filter(|node| node % 10 < 3).collect();
    dead.iter().for_each(|node| cluster.kill(*node));
    cluster.drive(60 * SECOND);

    let alive: Vec<_> = (0..NODES).filter(|node| !dead.contains(node)).collect();
    let (mut times, mut found, mut dials, mut failures) = (Vec::new(), 0, 0, 0);
    for (i, from) in alive.iter().enumerate() {
        let target = alive[(i * 37 + 11) % alive.len()];
        let connected =
            cluster.node(*from).connections().iter().any(|info| info.node == cluster.id(target));
        if connected || target == *from {
            continue;
        }
        let outcome = {
            let id = cluster.id(target);
            find(&mut cluster, *from, id)
        };
        assert_consistent(&outcome);
        found += usize::from(outcome.found.is_some());
        dials += outcome.stats.attempts;
        failures += outcome
            .trace
            .iter()
            .filter(|step| dead.contains(&cluster.number(step.node).unwrap()))
            .count();
        times.push(outcome.stats.elapsed);
    }
    times.sort_unstable();
    let p = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{found} of {}: p50 {:?} p95 {:?} max {:?}, {dials} dials",
        times.len(),
        p(50),
        p(95),
        p(100)
    );
    assert!(times.len() >= 100 && failures > 0, "the dead are met: {failures}");
    assert!(found * 100 >= 99 * times.len(), "recall: {found} of {}", times.len());
    assert!(p(95) < 3 * SECOND, "{:?}", p(95));
    cluster.stop_all();
}

#[test]
fn contact_with_a_dead_connection_is_dialed_again() {
    let mut cluster = Cluster::builder().nodes(3).seed(11).start();
    cluster.connect(0, 1).unwrap();
    cluster.connect(1, 2).unwrap();
    cluster.drive(Duration::from_secs(1));
    let (id, target) = (cluster.id(0), cluster.id(2));
    assert!(cluster.node(0).contact(target).is_none());
    // The close is in flight when the query is sent on the same connection.
    assert_eq!(cluster.call(1, |node, now| node.disconnect(id, now)), 1);
    let outcome = find(&mut cluster, 0, target);
    assert_eq!(outcome.ended, FindEnd::Connected, "{outcome:?}");
    let ends: Vec<_> = outcome
        .trace
        .iter()
        .filter(|step| step.node == cluster.id(1))
        .map(|step| &step.end)
        .collect();
    assert!(
        matches!(ends[..], [FindStepEnd::NoAnswer, FindStepEnd::Answered { .. }]),
        "{outcome:?}"
    );
    cluster.stop_all();
}
