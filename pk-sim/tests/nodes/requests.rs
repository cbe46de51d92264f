//! Requests: refused at once or ended exactly once, in every stage and by every end.

use std::collections::BTreeMap;
use std::time::Duration;

use pk_proto::{
    ClosestNodesQuery, Config, ConfigError, Event, Failure, FindEnd, FindNodeOptions, Input,
    NodeId, Output, Reply, Request, RequestError, RequestId, RequestOptions, SeedNode,
    SetNodeOutcome, SetNodeRejection,
};
use pk_sim::{Cluster, HostId};

use crate::common::*;

const QUERY: ClosestNodesQuery = ClosestNodesQuery { known: true, connected: true };

/// 0 has a contact for 1, and 1 for 2: a search of 0 for 2 has every stage.
fn chain() -> Cluster {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    wire(&mut cluster, &[(0, 1), (1, 2)]);
    cluster.call(2, |node, now| node.accept_protocol("echo".into(), now)).unwrap();
    cluster
}

/// Every request about another node.
fn requests_about(target: NodeId) -> Vec<Request> {
    let (address, options) = (address("203.0.113.1:1"), NO);
    vec![
        Request::FindNode { target, find: FindNodeOptions::default() },
        Request::PingNode { target, options },
        Request::PingNodeAddress { target, address: address.clone(), options },
        Request::Connect { target, address: address.clone(), options },
        Request::AcquireConnection { target, options },
        Request::OpenStream { target, protocol: "p".into(), options },
        Request::QueryClosestNodes { via: target, target, query: QUERY, options },
        Request::SyncNodeGraph {
            seeds: vec![SeedNode { node: target, address }],
            blocking: true,
            options,
        },
    ]
}

/// The results of a request, with their times.
fn ended(
    cluster: &Cluster,
    node: HostId,
    id: RequestId,
) -> Vec<(Duration, Result<Reply, Failure>)> {
    let end = |(at, event): &(pk_proto::Instant, Event)| match event {
        Event::Done { id: of, result } if *of == id => {
            Some((at.since(pk_proto::Instant::ORIGIN), result.clone()))
        }
        _ => None,
    };
    cluster.events(node).iter().filter_map(end).collect()
}

// -- refused at once

#[test]
fn request_before_ready_or_after_stop_is_a_typed_error() {
    let mut bare = Bare::starting(|_| {});
    let target = Bare::peer(0);
    for request in requests_about(target) {
        assert_eq!(bare.node.request(request, bare.now), Err(RequestError::NotReady));
    }
    assert_eq!(
        (bare.take(), bare.node.metrics().requests, bare.node.poll_timeout()),
        (vec![], 0, None)
    );
    bare.input(Input::Listening { addrs: vec![] });
    bare.request(Request::PingNode { target, options: NO });
    // Ready is emitted once, also if the addresses change.
    bare.input(Input::Listening { addrs: vec!["192.0.2.9:1".parse().unwrap()] });
    let ready = bare
        .take()
        .into_iter()
        .filter(|output| matches!(output, Output::Event(Event::Ready { .. })));
    assert_eq!(ready.count(), 1);
    // While the node stops, and after it.
    bare.accept(target);
    bare.node.stop(bare.now);
    assert!(!bare.node.is_stopped());
    for _ in 0..2 {
        for request in requests_about(target) {
            assert_eq!(bare.node.request(request, bare.now), Err(RequestError::Stopping));
        }
        bare.pass(2 * SECOND);
    }
    assert!(bare.node.is_stopped());
    // A machine that never listened stops, too.
    let mut bare = Bare::starting(|_| {});
    bare.node.stop(bare.now);
    assert_eq!(bare.take(), [Output::Event(Event::Stopped)]);
}

#[test]
fn local_id_is_refused_as_a_target() {
    let mut cluster = chain();
    let own = cluster.id(0);
    for request in requests_about(own) {
        let result = cluster.try_request(0, request.clone());
        match request {
            // A search for the local id is valid; the local node among the seeds is a failure of
            // that seed.
            Request::FindNode { .. } => {
                let done = cluster.await_done(0, result.unwrap());
                assert!(
                    matches!(done, Ok(Reply::FindNode(found)) if found.found.is_none() && found.stats.calls == 2)
                );
            }
            Request::SyncNodeGraph { .. } => {
                assert!(matches!(
                    cluster.await_done(0, result.unwrap()),
                    Err(Failure::NoSeedReached(_))
                ));
            }
            request => assert_eq!(result, Err(RequestError::OwnNode), "{request:?}"),
        }
    }
    let request = Request::SetNode {
        node: own,
        address: address("203.0.113.1:1"),
        data: data(&cluster, pk_proto::Scopes::GLOBAL),
        how: pk_proto::SetNodeOptions::default(),
    };
    let rejected = SetNodeOutcome::Rejected(SetNodeRejection::OwnNode);
    assert_eq!(cluster.ask(0, request), Ok(Reply::SetNode(rejected)));
    // Requesting the nodes closest to the local node is valid.
    let request =
        Request::QueryClosestNodes { via: cluster.id(1), target: own, query: QUERY, options: NO };
    assert!(matches!(cluster.ask(0, request), Ok(Reply::QueryClosestNodes(_))));
    cluster.stop_all();
}

#[test]
fn options_outside_their_ranges_are_refused_by_name() {
    let mut bare = Bare::new(|_| {});
    let target = Bare::peer(0);
    let day = 24 * 3600 * SECOND;
    let nano = Duration::from_nanos(1);
    let cases = [
        ("deadline", Some(Duration::ZERO), None, false),
        ("deadline", Some(ms(1) - nano), None, false),
        ("deadline", Some(ms(1)), None, true),
        ("deadline", Some(day), None, true),
        ("deadline", Some(day + nano), None, false),
        ("connect_timeout", None, Some(Duration::ZERO), false),
        ("connect_timeout", None, Some(ms(1)), true),
        ("connect_timeout", None, Some(3600 * SECOND), true),
        ("connect_timeout", None, Some(3601 * SECOND), false),
    ];
    for (name, deadline, connect_timeout, legal) in cases {
        let options = RequestOptions { deadline, connect_timeout };
        for request in requests_about(target) {
            let request = with(request, options);
            let result = bare.node.request(request.clone(), bare.now);
            match result {
                Ok(id) if legal => bare.node.cancel(id, bare.now),
                Err(RequestError::Option { name: named, .. }) if !legal => assert_eq!(named, name),
                other => panic!("{request:?}: {other:?}"),
            }
            bare.take();
        }
    }
    for (count, legal) in [(0, false), (1, true), (20, true), (21, false)] {
        let find = FindNodeOptions::default();
        match bare.node.find_closest(target, count, find, bare.now) {
            Ok(_) if legal => {}
            Err(RequestError::Option { name: "count", .. }) if !legal => {}
            other => panic!("{count}: {other:?}"),
        }
        bare.take();
    }
    for (name, concurrency, limit, legal) in [
        ("concurrency", Some(0), None, false),
        ("concurrency", Some(1), None, true),
        ("concurrency", Some(256), None, true),
        ("concurrency", Some(257), None, false),
        ("limit", None, Some(0), true),
        ("limit", None, Some(1024), true),
        ("limit", None, Some(1025), false),
    ] {
        let find = FindNodeOptions { concurrency, limit, ..FindNodeOptions::default() };
        match bare.node.find_node(target, find, bare.now) {
            Ok(_) if legal => {}
            Err(RequestError::Option { name: named, range }) if !legal => {
                assert_eq!(named, name);
                let text = RequestError::Option { name: named, range }.to_string();
                assert!(text.starts_with(name) && text.contains(" to "), "{text}");
            }
            other => panic!("{find:?}: {other:?}"),
        }
        bare.take();
    }
}

fn with(mut request: Request, new: RequestOptions) -> Request {
    match &mut request {
        Request::FindNode { find, .. } | Request::FindClosest { find, .. } => find.options = new,
        Request::PingNode { options, .. }
        | Request::PingNodeAddress { options, .. }
        | Request::Connect { options, .. }
        | Request::ConnectThrough { options, .. }
        | Request::AcquireConnection { options, .. }
        | Request::OpenStream { options, .. }
        | Request::QueryClosestNodes { options, .. }
        | Request::SyncNodeGraph { options, .. }
        | Request::RefreshBucket { options, .. }
        | Request::ClaimNode { options, .. }
        | Request::AddClaim { options, .. }
        | Request::ClaimNetwork { options, .. }
        | Request::AllowClaim { options, .. }
        | Request::RequestChainData { options, .. }
        | Request::Claims { options, .. }
        | Request::Gestalt { options, .. }
        | Request::Flush { options } => *options = new,
        Request::SetNode { .. } | Request::Renew { .. } | Request::QueryMdns { .. } => {}
    }
    request
}

#[test]
fn settings_outside_their_ranges_are_refused() {
    type Change = fn(&mut Config);
    let cases: [(&str, Change); 4] = [
        ("request_limit", |config| config.request_limit = 0),
        ("find_candidate_limit", |config| config.find_candidate_limit = config.bucket_limit - 1),
        ("receive_window", |config| config.receive_window = 128 * 1024 - 1),
        ("idle", |config| config.connection_idle_timeout = ms(999)),
    ];
    for (name, change) in cases {
        let mut config = Config::default();
        change(&mut config);
        let error: ConfigError = config.validate().unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        let key = pk_sim::Key::numbered(1, 1);
        let unix = pk_proto::UnixMillis(1_767_225_600_000);
        let identity = pk_sim::genesis(&key, unix);
        let now = pk_proto::Instant::ORIGIN;
        let made = pk_proto::NodeManager::new(
            config,
            &identity,
            pk_proto::Snapshot::default(),
            [0; 32],
            now,
            unix,
        );
        assert_eq!(made.err(), Some(pk_proto::StartError::Config(error)));
    }
}

#[test]
fn open_requests_are_limited() {
    for limit in [1, 3] {
        let mut cluster =
            Cluster::quiet().nodes(2).seed(3).config(|config| config.request_limit = limit).build();
        cluster.start_node(0);
        cluster.drive(SECOND);
        let request = connect_request(&cluster, 1);
        let ids: Vec<_> = (0..limit).map(|_| cluster.request(0, request.clone())).collect();
        assert_eq!(cluster.try_request(0, request.clone()), Err(RequestError::TooMany(limit)));
        assert_eq!(cluster.node(0).metrics().requests_open, limit as u64);
        // Every end of a request makes room.
        cluster.cancel(0, ids[0]);
        let again = cluster.request(0, request.clone());
        assert_eq!(cluster.try_request(0, request.clone()), Err(RequestError::TooMany(limit)));
        let _ = cluster.await_done(0, again);
        assert_eq!(cluster.node(0).metrics().requests_open, 0);
        // A request with sub-requests counts as one.
        let seeds = vec![cluster.seed_node(1)];
        cluster.start_node(1);
        let sync = Request::SyncNodeGraph { seeds, blocking: true, options: NO };
        let ids: Vec<_> = (0..limit).map(|_| cluster.request(0, sync.clone())).collect();
        for id in ids {
            assert!(matches!(cluster.await_done(0, id), Ok(Reply::SyncNodeGraph(_))));
        }
        cluster.stop_all();
    }
}

#[test]
fn refused_request_changes_nothing() {
    let mut cluster = chain();
    let before =
        (cluster.node(0).metrics(), cluster.node(0).poll_timeout(), cluster.events(0).len());
    let own = cluster.id(0);
    assert!(cluster.try_request(0, Request::PingNode { target: own, options: NO }).is_err());
    let target = cluster.id(1);
    assert!(
        cluster.try_request(0, Request::PingNode { target, options: by(Duration::ZERO) }).is_err()
    );
    assert!(
        cluster
            .try_request(0, Request::OpenStream { target, protocol: String::new(), options: NO })
            .is_err()
    );
    let after =
        (cluster.node(0).metrics(), cluster.node(0).poll_timeout(), cluster.events(0).len());
    assert_eq!(before, after);
    cluster.stop_all();
}

// -- ended once

#[test]
fn repeatedly_cancelled_request_ends_once() {
    let mut cluster = chain();
    let target = cluster.id(2);
    let ping = Request::PingNode { target, options: NO };
    // After it is done.
    let id = cluster.request(0, ping.clone());
    assert!(matches!(cluster.await_done(0, id), Ok(Reply::PingNode(_))));
    cluster.cancel(0, id);
    // Twice, and once more later.
    let second = cluster.request(0, ping.clone());
    cluster.cancel(0, second);
    cluster.cancel(0, second);
    cluster.drive(SECOND);
    cluster.cancel(0, second);
    // One that does not exist, a future one, and a sub-request.
    cluster.cancel(0, RequestId(999));
    let seeds = vec![cluster.seed_node(1)];
    let sync = cluster.request(0, Request::SyncNodeGraph { seeds, blocking: true, options: NO });
    cluster.cancel(0, RequestId(sync.0 + 1));
    assert!(
        matches!(cluster.await_done(0, sync), Ok(Reply::SyncNodeGraph(synced)) if synced.search.is_some())
    );
    assert_eq!((ended(&cluster, 0, id).len(), ended(&cluster, 0, second).len()), (1, 1));
    assert_eq!(ended(&cluster, 0, second)[0].1, Err(Failure::Cancelled));
    assert_quiet(&mut cluster, 0, "cancelled");
    cluster.stop_all();
}

/// Starts a request of every kind, interrupts it after each number of steps of the simulation, and
/// checks its result.
fn interrupt(
    how: impl Fn(&mut Cluster, RequestId),
    expect: &Failure,
) -> BTreeMap<&'static str, usize> {
    let mut interrupted = BTreeMap::new();
    let kinds = every_request(&mut chain(), 2, NO).len();
    for kind in 0..kinds {
        for steps in 0.. {
            let mut cluster = chain();
            let (name, request) = every_request(&mut cluster, 2, NO).swap_remove(kind);
            let id = cluster.request(0, request);
            for _ in 0..steps {
                cluster.step();
            }
            if cluster.done(0, id).is_some() {
                cluster.stop_all();
                break;
            }
            *interrupted.entry(name).or_default() += 1;
            how(&mut cluster, id);
            assert_eq!(
                cluster.done(0, id),
                Some(&Err(expect.clone())),
                "{name} after {steps} steps"
            );
            cluster.drive(SECOND);
            assert_eq!(ended(&cluster, 0, id).len(), 1, "{name} after {steps} steps");
            for node in 0..3 {
                // A join continues in the background only after its end.
                assert_quiet(&mut cluster, node, &format!("{name} after {steps} steps"));
            }
            // The connections that were opened meanwhile work.
            if expect == &Failure::Cancelled {
                let target = cluster.id(2);
                assert!(matches!(
                    cluster.ask(0, Request::PingNode { target, options: NO }),
                    Ok(Reply::PingNode(_))
                ));
            }
            cluster.stop_all();
        }
    }
    assert_eq!(interrupted.len(), kinds);
    interrupted
}

#[test]
fn cancelling_ends_every_request_in_every_stage() {
    let interrupted = interrupt(|cluster, id| cluster.cancel(0, id), &Failure::Cancelled);
    assert!(interrupted.values().all(|steps| *steps >= 4), "{interrupted:?}");
    assert!(interrupted["ping"] > interrupted["find"], "{interrupted:?}");
}

#[test]
fn stopping_ends_every_request_in_every_stage() {
    let stop = |cluster: &mut Cluster, _: RequestId| {
        let begun = cluster.now();
        cluster.stop(0);
        assert!(cluster.now().since(begun) <= SECOND);
    };
    let interrupted = interrupt(stop, &Failure::Stopped);
    assert!(interrupted.values().all(|steps| *steps >= 4), "{interrupted:?}");
}

#[test]
fn stopping_ends_many_requests_each_once_and_in_their_order() {
    let mut cluster = chain();
    cluster.kill(2);
    let requests = every_request(&mut cluster, 2, NO);
    let ids: Vec<_> =
        requests.into_iter().map(|(_, request)| cluster.request(0, request)).collect();
    cluster.drive(SECOND);
    let before = cluster.events(0).len();
    cluster.stop(0);
    let done: Vec<_> = cluster
        .events_since(0, before)
        .filter_map(|event| match event {
            Event::Done { id, result: Err(Failure::Stopped) } => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(done, ids);
    cluster.stop_all();
}

// -- deadlines

#[test]
fn every_request_ends_by_its_deadline() {
    // 2 is not there, and its dials would take 15 s.
    for deadline in [ms(1), ms(700), 9 * SECOND] {
        let mut cluster = chain();
        cluster.kill(2);
        cluster.drive(SECOND);
        for (name, request) in every_request(&mut cluster, 2, by(deadline)) {
            let begun = cluster.now();
            let result = cluster.ask(0, request);
            assert_eq!(cluster.now().since(begun), deadline, "{name}");
            match (name, result) {
                ("find", Ok(Reply::FindNode(outcome))) => {
                    assert_eq!(outcome.ended, FindEnd::Deadline);
                }
                (_, Err(Failure::DeadlineExceeded)) => {}
                other => panic!("{other:?}"),
            }
            cluster.drive(ms(30));
            assert_quiet(&mut cluster, 0, name);
        }
        cluster.stop_all();
    }
}

#[test]
fn deadline_applies_while_the_peer_is_silent() {
    // Connected, and then cut off.
    let mut cluster = chain();
    let target = cluster.id(2);
    connect(&mut cluster, 0, 2);
    cluster.partition(&[&[0], &[2]]);
    let options = by(2 * SECOND);
    let requests = [
        Request::PingNode { target, options },
        Request::OpenStream { target, protocol: "echo".into(), options },
        Request::QueryClosestNodes { via: target, target, query: QUERY, options },
    ];
    for request in requests {
        let begun = cluster.now();
        assert_eq!(cluster.ask(0, request), Err(Failure::DeadlineExceeded));
        assert_eq!(cluster.now().since(begun), 2 * SECOND);
        assert_quiet(&mut cluster, 0, "asked");
    }
    // A suspected connection does not prove that the node is reachable.
    let address = cluster.address(2);
    let begun = cluster.now();
    let request = Request::PingNodeAddress { target, address: address.clone(), options };
    let result = cluster.ask(0, request);
    assert!(
        matches!(result, Err(Failure::DeadlineExceeded) | Ok(Reply::PingNodeAddress(false))),
        "{result:?}"
    );
    assert_eq!(cluster.now().since(begun), 2 * SECOND);
    cluster.heal();
    cluster.stop_all();
    // A connection that is not suspected is enough for these.
    let mut cluster = chain();
    connect(&mut cluster, 0, 2);
    cluster.partition(&[&[0], &[2]]);
    for request in [
        Request::Connect { target, address: address.clone(), options },
        Request::PingNodeAddress { target, address, options },
        Request::AcquireConnection { target, options },
    ] {
        let begun = cluster.now();
        assert!(cluster.ask(0, request).is_ok());
        assert_eq!(cluster.now(), begun);
    }
    cluster.heal();
    cluster.stop_all();
}

#[test]
fn connect_timeout_is_an_option() {
    let mut cluster = chain();
    cluster.kill(2);
    let options = RequestOptions { connect_timeout: Some(3 * SECOND), ..NO };
    for (name, request) in every_request(&mut cluster, 2, options) {
        let begun = cluster.now();
        let result = cluster.ask(0, request);
        let took = cluster.now().since(begun);
        assert!((3 * SECOND..ms(3200)).contains(&took), "{name}: {took:?}");
        match (name, result) {
            ("find", Ok(Reply::FindNode(outcome))) => assert_eq!(outcome.ended, FindEnd::Exhausted),
            ("ping address", Ok(Reply::PingNodeAddress(false))) => {}
            ("connect", Err(Failure::Dial(why))) => assert_eq!(why.len(), 1),
            ("ping" | "acquire" | "open" | "ask", Err(Failure::NotFound(why))) => {
                assert_eq!(why.len(), 1);
            }
            ("sync" | "sync in the background", Err(Failure::NoSeedReached(why))) => {
                assert_eq!(why.len(), 1);
            }
            other => panic!("{other:?}"),
        }
    }
    cluster.stop_all();
}

// -- the loop

#[test]
fn requests_need_no_drain_between_them() {
    let (mut bare, peers) = (Bare::new(|_| {}), [0, 1].map(Bare::peer));
    let connect = |peer: NodeId| Request::Connect {
        target: peer,
        address: address("203.0.113.1:1"),
        options: NO,
    };
    let now = bare.now;
    let first = bare.node.request(connect(peers[0]), now).unwrap();
    let second = bare.node.request(connect(peers[1]), now).unwrap();
    bare.node.cancel(first, now);
    let third = bare.node.ping_node(peers[0], NO, now).unwrap();
    assert!(first < second && second < third);
    let outputs: Vec<_> = bare
        .take()
        .into_iter()
        .map(|output| match output {
            Output::Dial { conn, .. } => format!("dial {conn}"),
            Output::CancelDial { conn } => format!("cancel {conn}"),
            Output::Event(Event::Done { id, .. }) => format!("done {id}"),
            other => panic!("{other:?}"),
        })
        .collect();
    let ids = [first, third].map(|id| format!("done {id}"));
    assert_eq!(outputs, ["dial 0", "dial 2", "cancel 0", ids[0].as_str(), ids[1].as_str()]);
}

#[test]
fn earlier_time_does_not_set_the_clock_back() {
    let mut bare = Bare::new(|_| {});
    bare.pass(100 * SECOND);
    let late = bare.now;
    bare.node.handle_timeout(late);
    let target = Bare::peer(0);
    let request =
        Request::Connect { target, address: address("203.0.113.1:1"), options: by(5 * SECOND) };
    let id = bare.node.request(request, pk_proto::Instant::ORIGIN).unwrap();
    assert_eq!(bare.node.poll_timeout(), Some(late + 5 * SECOND));
    bare.take();
    bare.node.handle_timeout(pk_proto::Instant::ORIGIN);
    assert_eq!(bare.take(), []);
    bare.pass(5 * SECOND);
    assert_eq!(bare.done(id), Some(Err(Failure::DeadlineExceeded)));
}

#[test]
fn late_timeout_fires_all_due_timers_in_order() {
    let mut bare = Bare::new(|_| {});
    let connect = |number: u64, seconds: u32| Request::Connect {
        target: Bare::peer(number),
        address: address("203.0.113.1:1"),
        options: by(seconds * SECOND),
    };
    let ids =
        [(0, 9), (1, 3), (2, 6)].map(|(number, seconds)| bare.request(connect(number, seconds)));
    bare.take();
    bare.now = bare.now + 3600 * SECOND;
    bare.node.handle_timeout(bare.now);
    let done: Vec<_> = bare
        .take()
        .into_iter()
        .filter_map(|output| match output {
            Output::Event(Event::Done { id, .. }) => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(done, [ids[1], ids[2], ids[0]]);
    assert_eq!(bare.node.poll_timeout(), None);
}

// -- repeated requests

#[test]
fn request_is_repeated_once_if_the_peer_was_closing_the_connection() {
    let mut cluster = Cluster::quiet().nodes(2).seed(3).start();
    let target = cluster.id(1);
    let questions = [
        Request::PingNode { target, options: NO },
        Request::QueryClosestNodes { via: target, target, query: QUERY, options: NO },
    ];
    for question in questions {
        // The close is in flight when the request is sent.
        cluster.connect(0, 1).unwrap();
        let own = cluster.id(0);
        assert_eq!(cluster.call(1, |node, now| node.disconnect(own, now)), 1);
        let asked = cluster.request(0, question.clone());
        let done = cluster.await_done(0, asked);
        assert!(
            matches!(done, Ok(Reply::PingNode(_) | Reply::QueryClosestNodes(_))),
            "{question:?}: {done:?}"
        );
        assert_eq!(cluster.node(0).connections().len(), 1, "a new one");
        // A node that closes a connection itself does not need another.
        let asked = cluster.request(0, question.clone());
        assert_eq!(cluster.call(0, |node, now| node.disconnect(target, now)), 1);
        let lost = Err(Failure::ConnectionLost(pk_proto::DisconnectReason::Local));
        assert_eq!(cluster.await_done(0, asked), lost, "{question:?}");
        assert_eq!(cluster.node(0).connections().len(), 0);
    }
    assert_quiet(&mut cluster, 0, "asked");
}
