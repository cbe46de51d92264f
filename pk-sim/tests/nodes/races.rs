//! Dials, in virtual time: several addresses of a node race, requests share races (RFC 8305).

use std::time::Duration;

use pk_proto::{
    ConnectionId, ContactMode, DialFailure, Event, Failure, FindEnd, FindNodeOptions, Input,
    Instant, NodeContactAddressData, Output, Reply, Request, RequestOptions, Scopes,
    SetNodeOptions, Side, UnixMillis,
};
use pk_sim::{Cluster, Link};

use crate::common::*;

// -- races

#[test]
fn dead_first_address_costs_one_delay() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    let target = cluster.id(1);
    add_contact(&mut cluster, 0, 1);
    // Set last, so dialed first.
    add_contact_at(&mut cluster, 0, target, address("198.51.100.7:1"));
    let outcome = find(&mut cluster, 0, target);
    assert_consistent(&outcome);
    assert_eq!((outcome.ended, outcome.stats.elapsed), (FindEnd::Connected, ms(250 + 40)));
    assert_eq!((outcome.stats.attempts, outcome.stats.failures), (1, 0), "a race is one attempt");
    assert_eq!(outcome.found.map(|(address, _)| address), Some(cluster.address(1)));
    assert_eq!(cluster.node(0).metrics().dials, 2);
    cluster.drive(ms(1));
    assert_quiet(&mut cluster, 0, "the winner cancels the rest");
    cluster.stop_all();
}

#[test]
fn failed_address_starts_the_next_dial_at_once() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    let target = cluster.id(1);
    cluster.network_mut().set_unreachable("198.51.100.7".parse().unwrap());
    add_contact(&mut cluster, 0, 1);
    add_contact_at(&mut cluster, 0, target, address("198.51.100.7:1"));
    let outcome = find(&mut cluster, 0, target);
    assert_eq!(
        (outcome.ended, outcome.stats.elapsed),
        (FindEnd::Connected, ms(40)),
        "the next begins at once"
    );
    assert_eq!(cluster.node(0).metrics().dial_failures, 1);
    cluster.stop_all();
}

#[test]
fn two_searches_for_one_node_share_its_dials() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).link(Link::ms(100)).start();
    add_contact(&mut cluster, 0, 1);
    let target = cluster.id(1);
    let find = Request::FindNode { target, find: FindNodeOptions::default() };
    let first = cluster.request(0, find.clone());
    cluster.drive(ms(50));
    let second = cluster.request(0, find.clone());
    let third = cluster.request(0, find);
    cluster.cancel(0, second);
    let mut ends = Vec::new();
    for id in [first, third] {
        match cluster.await_done(0, id) {
            Ok(Reply::FindNode(outcome)) => {
                ends.push((outcome.ended, outcome.stats.elapsed, outcome.stats.attempts));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ends, [(FindEnd::Connected, ms(400), 1), (FindEnd::Connected, ms(350), 1)]);
    assert_eq!(cluster.node(0).metrics().dials, 1);
    assert_eq!(cluster.node(1).metrics().connections, 1);
    cluster.stop_all();
}

#[test]
fn race_runs_until_its_last_waiter_leaves() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    add_contact(&mut cluster, 0, 1);
    cluster.kill(1);
    let target = cluster.id(1);
    let find = Request::FindNode { target, find: FindNodeOptions::default() };
    let requests = [0, 1, 2].map(|_| cluster.request(0, find.clone()));
    cluster.drive(SECOND);
    for (left, id) in [2, 1, 0].into_iter().zip(requests) {
        assert_eq!(cluster.node(0).metrics().connections_pending, 1, "{left} others wait");
        cluster.cancel(0, id);
        cluster.drive(ms(1));
    }
    assert_quiet(&mut cluster, 0, "no request waits");
    cluster.stop_all();
}

#[test]
fn request_that_joins_a_race_adds_its_addresses() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    let target = cluster.id(1);
    add_contact_at(&mut cluster, 0, target, address("198.51.100.7:1"));
    let find = Request::FindNode { target, find: FindNodeOptions::default() };
    let first = cluster.request(0, find.clone());
    cluster.drive(SECOND);
    // Meanwhile the right address becomes known.
    add_contact(&mut cluster, 0, 1);
    let second = cluster.request(0, find);
    for id in [second, first] {
        match cluster.await_done(0, id) {
            Ok(Reply::FindNode(outcome)) => {
                assert_eq!(outcome.ended, FindEnd::Connected);
                assert!(outcome.stats.elapsed <= ms(1000 + 250 + 40), "{outcome:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    cluster.stop_all();
}

#[test]
fn request_that_joins_a_race_keeps_its_own_timeout() {
    for (first, second) in [(1, 15), (15, 1)] {
        let mut cluster = Cluster::quiet().nodes(2).seed(3).build();
        cluster.start_node(0);
        cluster.drive(Duration::ZERO);
        add_contact(&mut cluster, 0, 1);
        let target = cluster.id(1);
        let ping = |seconds: u32| RequestOptions {
            connect_timeout: Some(seconds * SECOND),
            ..RequestOptions::default()
        };
        let first_id = cluster.request(0, Request::PingNode { target, options: ping(first) });
        cluster.drive(ms(500));
        let second_id = cluster.request(0, Request::PingNode { target, options: ping(second) });
        cluster.drive(3 * SECOND);
        let (hasty, patient) =
            if first < second { (first_id, second_id) } else { (second_id, first_id) };
        let why = vec![(cluster.address(1), DialFailure::TimedOut)];
        assert_eq!(
            cluster.done(0, hasty),
            Some(&Err(Failure::NotFound(why))),
            "{first} s, {second} s"
        );
        let ended = cluster
            .events(0)
            .iter()
            .find(|(_, event)| matches!(event, Event::Done { id, .. } if *id == hasty));
        let due = if first < second { ms(1000) } else { ms(1500) };
        assert_eq!(ended.unwrap().0.since(Instant::ORIGIN), due);
        assert_eq!(cluster.done(0, patient), None);
        cluster.start_node(1);
        assert!(
            matches!(cluster.await_done(0, patient), Ok(Reply::PingNode(_))),
            "{first} s, {second} s"
        );
        assert_eq!(cluster.node(0).metrics().dials, 1 + u64::from(first < second));
        cluster.stop_all();
    }
}

/// The addresses that a machine dials, with times, until the race fails.
fn dialed(bare: &mut Bare, patience: Duration) -> Vec<(Duration, String)> {
    let (begun, mut dials) = (bare.now, Vec::new());
    while bare.now.since(begun) < patience {
        for output in bare.take() {
            if let Output::Dial { addr, expect, deadline, .. } = output {
                assert_eq!((expect.len(), deadline), (1, begun + 15 * SECOND));
                dials.push((bare.now.since(begun), addr.to_string()));
            }
        }
        bare.pass(ms(10));
    }
    dials
}

#[test]
fn dials_of_a_node_alternate_by_family_with_a_delay() {
    let mut bare = Bare::new(|_| {});
    let node = Bare::peer(0);
    let known = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: UnixMillis(5),
        scopes: Scopes::GLOBAL,
    };
    // Of equal times, the address that was set last is first.
    for text in ["10.0.0.3:1", "[2001:db8::2]:1", "[2001:db8::1]:1", "10.0.0.2:1", "10.0.0.1:1"] {
        bare.request(Request::SetNode {
            node,
            address: address(text),
            data: known,
            how: SetNodeOptions::default(),
        });
    }
    bare.take();
    let request =
        bare.request(Request::FindNode { target: node, find: FindNodeOptions::default() });
    let order = ["[2001:db8::1]:1", "10.0.0.1:1", "[2001:db8::2]:1", "10.0.0.2:1", "10.0.0.3:1"];
    let expected: Vec<_> = order
        .iter()
        .enumerate()
        .map(|(i, text)| (ms(250 * i as u64), (*text).to_owned()))
        .collect();
    assert_eq!(dialed(&mut bare, 14 * SECOND), expected);

    // The third answers: the others are cancelled in the same call.
    bare.connected(ConnectionId(4), Side::Dialer, node, "[2001:db8::2]:1".parse().unwrap(), 1);
    let control = bare.outputs.iter().find_map(|output| match output {
        Output::OpenStream { stream, .. } => Some(*stream),
        _ => None,
    });
    bare.take();
    bare.data(control.unwrap(), &hello(), false);
    let cancelled: Vec<_> = bare
        .outputs
        .iter()
        .filter_map(|output| match output {
            Output::CancelDial { conn } => Some(conn.0),
            _ => None,
        })
        .collect();
    assert_eq!(cancelled, [0, 2, 6, 8]);
    assert!(
        matches!(bare.done(request), Some(Ok(Reply::FindNode(outcome))) if outcome.found.is_some())
    );
}

#[test]
fn names_are_resolved_during_the_race_and_add_all_their_addresses() {
    let mut bare = Bare::new(|_| {});
    let target = Bare::peer(0);
    let options = RequestOptions::default();
    bare.request(Request::PingNodeAddress {
        target,
        address: address("seed.example.org:7"),
        options,
    });
    let outputs = bare.take();
    let [Output::Resolve { id, name, port: 7 }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(name.as_str(), "seed.example.org");
    bare.pass(SECOND);
    let sockets =
        ["192.0.2.7:7", "192.0.2.8:7", "[2001:db8::7]:7"].map(|text| text.parse().unwrap());
    bare.input(Input::Resolved { id: *id, result: Ok(sockets.to_vec()) });
    let (first, mut dials) = (bare.now, Vec::new());
    for _ in 0..3 {
        for output in bare.take() {
            if let Output::Dial { addr, .. } = output {
                dials.push((bare.now.since(first), addr.to_string()));
            }
        }
        bare.pass(ms(250));
    }
    let order = ["[2001:db8::7]:7", "192.0.2.7:7", "192.0.2.8:7"];
    let expected: Vec<_> = order
        .iter()
        .enumerate()
        .map(|(i, text)| (ms(250 * i as u64), (*text).to_owned()))
        .collect();
    assert_eq!(dials, expected);
}

#[test]
fn dials_over_the_limit_are_queued() {
    let mut cluster =
        Cluster::quiet().nodes(6).seed(3).config_of(0, |config| config.dial_limit = 2).start();
    let requests: Vec<_> = (1..6)
        .map(|node| {
            let (target, address) = (cluster.id(node), cluster.address(node));
            cluster.request(
                0,
                Request::Connect { target, address, options: RequestOptions::default() },
            )
        })
        .collect();
    assert_eq!(cluster.node(0).metrics().connections_pending, 2);
    for request in requests {
        assert!(matches!(cluster.await_done(0, request), Ok(Reply::Connect(_))));
        assert!(
            cluster.node(0).metrics().connections_pending <= 4,
            "dials, and connections without Hello"
        );
    }
    let metrics = cluster.node(0).metrics();
    assert_eq!((metrics.connections, metrics.dials), (5, 5), "{metrics:?}");
    assert!(metrics.dials_delayed >= 3, "{metrics:?}");

    // A dial that was never started is reported as such.
    let mut cluster =
        Cluster::quiet().nodes(3).seed(3).config_of(0, |config| config.dial_limit = 1).build();
    cluster.start_node(0);
    cluster.drive(Duration::ZERO);
    let requests = [1, 2].map(|node| {
        let (target, address) = (cluster.id(node), cluster.address(node));
        cluster.request(0, Request::Connect { target, address, options: RequestOptions::default() })
    });
    for (node, request) in [1, 2].into_iter().zip(requests) {
        let why = vec![(cluster.address(node), DialFailure::TimedOut)];
        assert_eq!(cluster.await_done(0, request), Err(Failure::Dial(why)));
    }
    cluster.stop_all();
}

/// Searches in the background dial dead nodes, fifteen seconds each; a request that waits for a
/// connection is not delayed by that.
#[test]
fn background_dials_leave_a_slot_for_the_embedder() {
    for limit in [2, 4, 8] {
        let background = |config: &mut pk_proto::Config| {
            config.dial_limit = limit;
        };
        let mut cluster = Cluster::quiet().nodes(2).seed(3).config(background).start();
        for i in 0..60 {
            add_contact_at(&mut cluster, 0, absent(i), address(&format!("203.0.{i}.1:1")));
        }
        // The search of a join without seeds, for which no request waits.
        let join = Request::SyncNodeGraph { seeds: Vec::new(), blocking: false, options: NO };
        assert!(cluster.ask(0, join).is_ok());
        cluster.drive(5 * SECOND);
        let places = [1, 3, 6][[2, 4, 8].iter().position(|of| *of == limit).unwrap()];
        assert_eq!(cluster.node(0).metrics().connections_pending, places, "of {limit}");
        assert!(cluster.node(0).metrics().dials_delayed > 0);
        let begun = cluster.now();
        assert!(matches!(cluster.connect(0, 1), Ok(Reply::Connect(_))), "of {limit}");
        assert!(cluster.now().since(begun) < SECOND);
        cluster.stop_all();
    }
}
