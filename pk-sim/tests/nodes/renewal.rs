//! A node renews its key, in virtual time: what stays, what ends, what is repeated (docs/DESIGN.md,
//! Key renewal).

use std::collections::BTreeSet;
use std::time::Duration;

use pk_proto::{
    BucketIndex, Event, Failure, FindEnd, FindNodeOptions, Identity, Input, NodeId, Output, Reply,
    Request, RequestError, Scopes, SetNodeOptions, SetNodeOutcome, StoreOp, Table, UnixMillis,
    WriteFailure,
};
use pk_sim::{Cluster, CrashPolicy, HostId, Key, genesis, renew};

use crate::common::*;

/// A network in which all nodes have connected.
fn network(nodes: usize, seed: u64) -> Cluster {
    let mut cluster = Cluster::quiet().nodes(nodes).seed(seed).start();
    cluster.join_all();
    cluster.drive(SECOND);
    cluster
}

fn renewed(reply: Result<Reply, Failure>) -> (NodeId, NodeId) {
    match reply {
        Ok(Reply::Renew { old, new }) => (old, new),
        other => panic!("{other:?}"),
    }
}

fn has_contact(cluster: &Cluster, node: HostId, id: NodeId) -> bool {
    cluster.node(node).contact(id).is_some()
}

// -- ids

#[test]
fn renewed_node_is_found_under_its_new_id_and_under_every_old_one() {
    let mut cluster = network(12, 3);
    let (first, second) = renewed(cluster.renew(3));
    cluster.drive(60 * SECOND);
    let (again, third) = renewed(cluster.renew(3));
    assert_eq!(again, second);
    cluster.drive(60 * SECOND);
    let own = count_events(&cluster, 3, |event| matches!(event, Event::IdentityRenewed { .. }));
    assert_eq!((own, cluster.id(3)), (2, third));
    for seeker in [0, 5, 9] {
        for id in [third, second, first] {
            assert_eq!(
                find(&mut cluster, seeker, id).ended,
                FindEnd::Connected,
                "{seeker} looks for {id}"
            );
        }
        // It is one node, with its newest id.
        assert!(
            has_contact(&cluster, seeker, third)
                && !has_contact(&cluster, seeker, first)
                && !has_contact(&cluster, seeker, second)
        );
    }
    cluster.stop_all();
}

#[test]
fn connection_under_an_old_id_moves_the_contact_with_its_addresses() {
    let mut cluster = Cluster::quiet().nodes(2).seed(5).start();
    connect(&mut cluster, 0, 1);
    let old = cluster.id(1);
    let elsewhere = address("203.0.113.7:9");
    let request = Request::SetNode {
        node: old,
        address: elsewhere.clone(),
        data: data(&cluster, Scopes::GLOBAL),
        how: SetNodeOptions::default(),
    };
    assert_eq!(cluster.ask(0, request), Ok(Reply::SetNode(SetNodeOutcome::Updated)));
    let (_, new) = renewed(cluster.renew(1));
    cluster.drive(60 * SECOND);
    let target = old;
    assert!(matches!(
        cluster.ask(0, Request::PingNode { target, options: NO }),
        Ok(Reply::PingNode(_))
    ));
    assert_eq!(cluster.node(0).contact(old), None);
    let addresses: BTreeSet<_> = cluster
        .node(0)
        .contact(new)
        .unwrap()
        .iter()
        .map(|(address, _)| address.to_string())
        .collect();
    assert_eq!(addresses, BTreeSet::from([cluster.address(1).to_string(), elsewhere.to_string()]));
    cluster.stop_all();
}

#[test]
fn every_id_of_the_chain_is_treated_as_the_local_node() {
    let mut cluster = network(4, 2);
    let (old, new) = renewed(cluster.renew(0));
    for target in [old, new] {
        let refused = cluster.try_request(0, Request::PingNode { target, options: NO });
        assert_eq!(refused, Err(RequestError::OwnNode));
    }
    // Others report it under its old id, which cannot be dialed.
    cluster.drive(120 * SECOND);
    let at = cluster.address(0);
    add_contact_at(&mut cluster, 2, old, at);
    let outcome = find(&mut cluster, 0, absent(1));
    assert!(outcome.trace.iter().all(|step| step.node != old && step.node != new), "{outcome:?}");
    assert_eq!(cluster.node(0).metrics().connections_to_self, 0);
    cluster.stop_all();
}

#[test]
fn identity_that_does_not_continue_the_chain_is_refused() {
    let unix = UnixMillis(1_767_225_600_000);
    let [own, next, stranger] = [0, 500, 900].map(|number| Key::numbered(77, number));
    let mut bare = Bare::new(|_| {});
    let longer = renew(&renew(&genesis(&own, unix), &own, &next, unix), &next, &stranger, unix);
    let wrong = [
        genesis(&stranger, unix),
        renew(&genesis(&stranger, unix), &stranger, &next, unix),
        Identity { chain: Vec::new() },
        Identity { chain: vec![b"no certificate".as_slice().into()] },
        longer,
    ];
    for identity in wrong {
        let refused = bare.node.request(Request::Renew { identity }, bare.now);
        assert!(matches!(refused, Err(RequestError::Identity(_))), "{refused:?}");
    }
    assert!(bare.take().is_empty());
}

// -- step by step

/// A machine with contacts, and an identity for its renewal.
fn ready() -> (Bare, Identity, NodeId) {
    let unix = UnixMillis(1_767_225_600_000);
    let [own, next] = [0, 500].map(|number| Key::numbered(77, number));
    let mut bare = Bare::new(|config| config.store_delay = Duration::ZERO);
    bare.accept(Bare::peer(1));
    bare.pass(Duration::ZERO);
    for output in bare.take() {
        if let Output::Persist { id, .. } = output {
            bare.input(Input::Persisted { id, result: Ok(()) });
        }
    }
    bare.take();
    (bare, renew(&genesis(&own, unix), &own, &next, unix), next.id())
}

fn persist(outputs: &[Output]) -> (pk_proto::EffectId, Vec<StoreOp>, bool) {
    match outputs {
        [Output::Persist { id, ops, durable }] => (*id, ops.clone(), *durable),
        other => panic!("{other:?}"),
    }
}

#[test]
fn renewal_is_first_written_in_one_durable_transaction() {
    let (mut bare, identity, new) = ready();
    let (old, request) =
        (bare.node.own_id(), bare.request(Request::Renew { identity: identity.clone() }));
    let (id, ops, durable) = persist(&bare.take());
    assert!(durable);
    let puts = |wanted: fn(&Table) -> bool| {
        ops.iter().filter(|op| matches!(op, StoreOp::Put { table, .. } if wanted(table))).count()
    };
    assert_eq!(puts(|table| *table == Table::Meta), 1);
    assert_eq!(puts(|table| matches!(table, Table::Contacts(_))), 1);
    assert_eq!(bare.node.own_id(), old, "nothing has changed before it is written");

    bare.input(Input::Persisted { id, result: Ok(()) });
    let id = match &bare.take()[..] {
        [Output::ReplaceIdentity { id, identity: shown }] if *shown == identity => *id,
        other => panic!("{other:?}"),
    };
    assert_eq!(bare.node.own_id(), old, "nothing has changed before it is presented");
    bare.input(Input::IdentityReplaced { id, result: Ok(()) });
    assert_eq!(bare.node.own_id(), new);
    assert_eq!(bare.done(request), Some(Ok(Reply::Renew { old, new })));
}

#[test]
fn refused_renewal_write_changes_nothing_and_owner_row_is_written_again() {
    let (mut bare, identity, _) = ready();
    let (old, request) =
        (bare.node.own_id(), bare.request(Request::Renew { identity: identity.clone() }));
    let (id, ..) = persist(&bare.take());
    bare.input(Input::Persisted { id, result: Err(WriteFailure::NotApplied("full".into())) });
    assert_eq!(bare.done(request), Some(Err(Failure::Store("full".into()))));
    assert_eq!(bare.node.own_id(), old);
    bare.take();
    bare.pass(10 * SECOND);
    let (id, ops, _) = persist(&bare.take());
    assert!(ops.iter().any(|op| matches!(op, StoreOp::Put { table: Table::Meta, .. })), "{ops:?}");
    bare.input(Input::Persisted { id, result: Ok(()) });
    // The renewal can be repeated.
    bare.request(Request::Renew { identity });
    persist(&bare.take());
}

#[test]
fn renewal_is_reverted_if_the_driver_cannot_present_the_identity() {
    let (mut bare, identity, _) = ready();
    let (old, request) = (bare.node.own_id(), bare.request(Request::Renew { identity }));
    let (id, ..) = persist(&bare.take());
    bare.input(Input::Persisted { id, result: Ok(()) });
    let Some(Output::ReplaceIdentity { id, .. }) = bare.take().pop() else { panic!("not asked") };
    bare.input(Input::IdentityReplaced { id, result: Err("no key".into()) });
    let (id, ops, durable) = persist(&bare.take());
    assert!(durable && matches!(ops[..], [StoreOp::Put { table: Table::Meta, .. }]), "{ops:?}");
    bare.input(Input::Persisted { id, result: Ok(()) });
    assert_eq!(bare.done(request), Some(Err(Failure::Identity("no key".into()))));
    assert_eq!(bare.node.own_id(), old);
}

#[test]
fn renewal_is_not_cancelled_and_has_no_deadline_and_only_one_runs() {
    let (mut bare, identity, new) = ready();
    let request = bare.request(Request::Renew { identity: identity.clone() });
    let (id, ..) = persist(&bare.take());
    bare.node.cancel(request, bare.now);
    bare.pass(600 * SECOND);
    assert_eq!(bare.done(request), None);
    let second = bare.node.request(Request::Renew { identity }, bare.now);
    assert!(matches!(second, Err(RequestError::Identity(_))), "{second:?}");
    bare.take();
    bare.input(Input::Persisted { id, result: Ok(()) });
    let Some(Output::ReplaceIdentity { id, .. }) = bare.take().pop() else { panic!("not asked") };
    bare.input(Input::IdentityReplaced { id, result: Ok(()) });
    assert!(matches!(bare.done(request), Some(Ok(Reply::Renew { new: is, .. })) if is == new));
}

#[test]
fn stop_waits_for_a_renewal_and_reports_its_outcome_if_there_is_one() {
    for answered in [true, false] {
        let (mut bare, identity, _) = ready();
        let request = bare.request(Request::Renew { identity });
        let (id, ..) = persist(&bare.take());
        bare.node.stop(bare.now);
        bare.drain();
        let conns = bare.take().into_iter().filter_map(|output| match output {
            Output::CloseConnection { conn, .. } => Some(conn),
            _ => None,
        });
        for conn in conns.collect::<Vec<_>>() {
            bare.input(Input::Disconnected { conn, why: pk_proto::DisconnectReason::Local });
        }
        assert!(!bare.node.is_stopped());
        if answered {
            bare.input(Input::Persisted {
                id,
                result: Err(WriteFailure::NotApplied("full".into())),
            });
            assert_eq!(bare.done(request), Some(Err(Failure::Store("full".into()))));
        } else {
            bare.pass(2 * SECOND);
            // The store may have written it.
            assert!(matches!(bare.done(request), Some(Err(Failure::OutcomeUnknown(_)))));
        }
        bare.pass(2 * SECOND);
        assert!(matches!(bare.take().last(), Some(Output::Event(Event::Stopped))), "{answered}");
    }
}

#[test]
fn new_certificate_of_the_same_key_keeps_connections() {
    let mut cluster = network(3, 4);
    let (id, conns) = (cluster.id(1), cluster.node(1).connections().len());
    assert!(conns > 0);
    let unix = UnixMillis(cluster.unix(1).0 - 3_600_000);
    let identity = genesis(&cluster.host(1).keys[&id].clone(), unix);
    assert_ne!(cluster.host(1).identity, identity);
    let reply = cluster.ask(1, Request::Renew { identity: identity.clone() });
    assert_eq!(renewed(reply), (id, id));
    assert_eq!(cluster.host(1).identity, identity);
    cluster.drive(SECOND);
    assert_eq!(cluster.node(1).connections().len(), conns);
    assert_eq!(
        count_events(&cluster, 1, |event| matches!(event, Event::IdentityRenewed { .. })),
        0
    );
    cluster.stop_all();
}

// -- connections

/// The nodes that a node is connected with.
fn connected_nodes(cluster: &Cluster, node: HostId) -> BTreeSet<NodeId> {
    cluster.node(node).connections().into_iter().map(|info| info.node).collect()
}

#[test]
fn old_connections_finish_their_streams_and_close_within_thirty_seconds() {
    let mut cluster = Cluster::quiet().nodes(4).seed(6).start();
    cluster.host_mut(1).apps.insert("echo".into(), pk_sim::App::Echo);
    cluster.call(1, |node, now| node.accept_protocol("echo".into(), now)).unwrap();
    let idle = connect(&mut cluster, 0, 2);
    let (lease, leased) = acquire_at(&mut cluster, 0, 3);
    connect(&mut cluster, 0, 1);
    let target = cluster.id(1);
    let opened =
        cluster.ask(0, Request::OpenStream { target, protocol: "echo".into(), options: NO });
    let Ok(Reply::OpenStream(stream)) = opened else { panic!("{opened:?}") };
    let used = cluster.node(0).connections().into_iter().find(|info| info.node == target).unwrap();

    let begun = cluster.now();
    renewed(cluster.renew(0));
    cluster.drive(SECOND);
    let ended = closed(&cluster, 0);
    assert!(ended.iter().any(|(_, conn, _)| *conn == idle.conn), "it was not in use: {ended:?}");
    assert!(
        ended.iter().all(|(_, conn, _)| *conn != used.conn && *conn != leased.conn),
        "{ended:?}"
    );
    // The stream still works.
    assert!(cluster.app(
        0,
        stream,
        pk_sim::AppAction::Send(b"still here".as_slice().into(), false)
    ));
    cluster.drive(SECOND);
    let echoed = cluster.app_streams(0).find(|app| app.stream == stream).unwrap();
    assert_eq!(echoed.received.as_slice(), b"still here");

    cluster.drive(30 * SECOND);
    for (conn, what) in [(used.conn, "a stream"), (leased.conn, "a lease")] {
        let end = closed(&cluster, 0).into_iter().find(|(_, closed, _)| *closed == conn).unwrap();
        assert!(end.0.since(begun) <= 31 * SECOND, "{what}: {:?}", end.0.since(begun));
    }
    assert_eq!(lost(&cluster, 0), [lease]);
    cluster.stop_all();
}

/// A lease on a node that was never found, at its address.
fn acquire_at(
    cluster: &mut Cluster,
    node: HostId,
    to: HostId,
) -> (pk_proto::LeaseId, pk_proto::ConnectionInfo) {
    connect(cluster, node, to);
    acquire(cluster, node, to)
}

#[test]
fn nearest_nodes_are_dialed_again_under_the_new_id() {
    let mut cluster = network(12, 3);
    let before = closed(&cluster, 4).len();
    let (_, new) = renewed(cluster.renew(4));
    assert!(closed(&cluster, 4).len() >= before);
    cluster.drive(5 * SECOND);
    let mut nearest: Vec<_> =
        (0..12).filter(|node| *node != 4).map(|node| cluster.id(node)).collect();
    nearest.sort_by_key(|id| id.distance(&new));
    let partners = connected_nodes(&cluster, 4);
    assert!(nearest[..5].iter().all(|id| partners.contains(id)), "{partners:?}");
    // They have a contact for the new id, and none for the old one.
    for id in &nearest[..5] {
        let node = cluster.number(*id).unwrap();
        assert!(has_contact(&cluster, node, new), "{node}");
    }
    cluster.stop_all();
}

#[test]
fn dial_in_progress_is_repeated_with_the_new_identity() {
    let mut cluster = Cluster::quiet().nodes(2).seed(7).link(pk_sim::Link::ms(200)).start();
    let request = cluster.request(0, connect_request(&cluster, 1));
    cluster.drive(ms(100));
    let (_, new) = renewed(cluster.renew(0));
    assert_eq!(cluster.done(0, request), None);
    assert!(matches!(cluster.await_done(0, request), Ok(Reply::Connect(_))));
    cluster.drive(SECOND);
    assert_eq!(connected_nodes(&cluster, 1), BTreeSet::from([new]));
    cluster.stop_all();
}

// -- the graph

#[test]
fn buckets_timers_and_pending_nodes_follow_the_new_id() {
    let mut cluster =
        Cluster::builder().nodes(24).seed(8).config(|config| config.bucket_limit = 4).start();
    cluster.join_all();
    cluster.drive(300 * SECOND);
    let old = cluster.id(7);
    let before = cluster.node(7).graph().len();
    let (_, new) = renewed(cluster.renew(7));
    let node = cluster.node(7);
    assert_eq!(node.graph().own(), new);
    // The checkers of the simulator look at the place of each node; this compares the contacts with
    // those before.
    assert!(node.graph().len() > before / 2, "{} of {before}", node.graph().len());
    let nearest = node.graph().buckets().next().unwrap().0.0;
    for index in 0..=255 {
        let armed = node.refresh_at(BucketIndex(index)).is_some();
        assert_eq!(armed, index >= nearest, "bucket {index}, the nearest is {nearest}");
        assert_eq!(node.refreshed_at(BucketIndex(index)), None, "of another bucket than before");
    }
    assert_ne!(old, new);
    cluster.drive(Duration::from_secs(2 * 3600));
    assert!(cluster.check_counters().stored > 0);
    cluster.stop_all();
}

/// Ids in bucket `in_a` of one node and bucket `in_b` of another.
fn ids_between(a: NodeId, in_a: u8, b: NodeId, in_b: u8, count: usize) -> Vec<NodeId> {
    let lies = |id: &NodeId| {
        a.bucket_index(id) == Some(BucketIndex(in_a))
            && b.bucket_index(id) == Some(BucketIndex(in_b))
    };
    (0..).map(absent).filter(lies).take(count).collect()
}

#[test]
fn renewal_ends_a_garbage_collection_round_and_completes_its_waiters() {
    let unix = UnixMillis(1_767_225_600_000);
    let own = Key::numbered(77, 0);
    // The farthest bucket of the old id is spread over the nearer ones of the new id.
    let next = (500..).map(|number| Key::numbered(77, number));
    let next = next
        .into_iter()
        .find(|key| own.id().bucket_index(&key.id()) == Some(BucketIndex(255)))
        .unwrap();
    let identity = renew(&genesis(&own, unix), &own, &next, unix);
    let mut bare = Bare::new(|config| {
        config.store_delay = Duration::from_secs(3000);
        config.bucket_limit = 2;
    });
    let block =
        SetNodeOptions { block: true, force: false, options: by(Duration::from_secs(7200)) };
    let set = |bare: &mut Bare, node: NodeId, how: SetNodeOptions, number: u8| {
        let data = pk_proto::NodeContactAddressData {
            mode: pk_proto::ContactMode::Direct,
            connected_time: unix,
            scopes: Scopes::GLOBAL,
        };
        bare.request(Request::SetNode {
            node,
            address: address(&format!("10.0.0.{number}:1")),
            data,
            how,
        })
    };
    let [same, other] = [254, 253].map(|bucket| ids_between(own.id(), 255, next.id(), bucket, 3));
    for (number, node) in same[..2].iter().enumerate() {
        set(&mut bare, *node, SetNodeOptions::default(), number as u8 + 1);
    }
    // The first waits for the round in progress, the others for the one after it.
    let waiters = [(same[2], false), (other[0], true), (other[1], true)];
    let waiting: Vec<_> = waiters
        .iter()
        .enumerate()
        .map(|(i, (node, _))| set(&mut bare, *node, block, i as u8 + 10))
        .collect();
    assert!(waiting.iter().all(|request| bare.done(*request).is_none()), "rounds are in progress");
    let dials = bare.take().iter().filter(|output| matches!(output, Output::Dial { .. })).count();
    assert_eq!(dials, 2);

    let request = bare.request(Request::Renew { identity });
    let (id, ..) = persist(&bare.take());
    bare.input(Input::Persisted { id, result: Ok(()) });
    let Some(Output::ReplaceIdentity { id, .. }) = bare.take().pop() else { panic!("not asked") };
    bare.input(Input::IdentityReplaced { id, result: Ok(()) });
    assert!(matches!(bare.done(request), Some(Ok(Reply::Renew { .. }))));
    for (request, (node, has_room)) in waiting.iter().zip(waiters) {
        let full = SetNodeOutcome::Rejected(pk_proto::SetNodeRejection::BucketFull);
        let outcome = if has_room { SetNodeOutcome::Added } else { full };
        assert_eq!(bare.done(*request), Some(Ok(Reply::SetNode(outcome))), "{node}");
        assert_eq!(bare.node.contact(node).is_some(), has_room);
    }
    // Nodes that are still pending have a later round of the new bucket.
    assert_eq!(bare.node.metrics().nodes_pending, 1);
    bare.pass(61 * SECOND);
    assert_eq!(bare.node.metrics().collections, 2);
}

// -- searches

#[test]
fn renewal_restarts_searches_for_the_local_id_and_continues_others() {
    let mut cluster = Cluster::quiet().nodes(10).seed(3).link(pk_sim::Link::ms(300)).start();
    wire(&mut cluster, &[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]);
    let (own, other) = (cluster.id(0), cluster.id(6));
    let find = FindNodeOptions::default();
    let of_self = cluster.request(0, Request::FindNode { target: own, find });
    let of_other = cluster.request(0, Request::FindNode { target: other, find });
    cluster.drive(ms(500));
    let (_, new) = renewed(cluster.renew(0));
    assert!(
        cluster.done(0, of_self).is_none() && cluster.done(0, of_other).is_none(),
        "both are in progress"
    );
    let Ok(Reply::FindNode(outcome)) = cluster.await_done(0, of_self) else {
        panic!("not a search")
    };
    assert_eq!((outcome.ended, &outcome.found), (FindEnd::Exhausted, &None));
    assert!(
        outcome.trace.iter().any(|step| matches!(step.end, pk_proto::FindStepEnd::Answered { .. }))
    );
    let Ok(Reply::FindNode(outcome)) = cluster.await_done(0, of_other) else {
        panic!("not a search")
    };
    assert_eq!(outcome.ended, FindEnd::Connected);
    assert!(has_contact(&cluster, 1, new));
    cluster.stop_all();
}

#[test]
fn restarted_search_for_the_local_id_keeps_its_limit() {
    let mut cluster = Cluster::quiet().nodes(10).seed(3).link(pk_sim::Link::ms(300)).start();
    wire(&mut cluster, &[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]);
    let find = FindNodeOptions { limit: Some(0), ..FindNodeOptions::default() };
    cluster
        .request(0, Request::FindNode { target: cluster.id(1), find: FindNodeOptions::default() });
    cluster.drive(2 * SECOND);
    let limited = cluster.request(0, Request::FindNode { target: cluster.id(0), find });
    cluster.drive(ms(100));
    renewed(cluster.renew(0));
    let Ok(Reply::FindNode(outcome)) = cluster.await_done(0, limited) else {
        panic!("not a search")
    };
    assert_eq!((outcome.ended, outcome.stats.attempts), (FindEnd::Limit, 0));
    cluster.stop_all();
}

// -- crashes

/// Kills a node this long after the start of its renewal. Returns whether the renewal had ended,
/// and whether the node has the new key afterwards.
fn killed_after(pause: Duration, crash: CrashPolicy) -> (bool, bool) {
    let mut cluster = network(6, 9);
    cluster.host_mut(2).store.delay = ms(10);
    cluster.host_mut(2).store.crash = crash;
    assert_eq!(cluster.ask(2, Request::Flush { options: NO }), Ok(Reply::Flush));
    let (old, known) = (cluster.id(2), cluster.node(2).graph().len());
    let request = cluster.begin_renewal(2).unwrap();
    cluster.drive(pause);
    let over = matches!(cluster.done(2, request), Some(Ok(Reply::Renew { .. })));
    cluster.kill(2);
    // The node runs with the key that its store names, and with a complete graph of that key.
    cluster.start_node(2);
    cluster.drive(Duration::ZERO);
    let is_new = cluster.id(2) != old;
    assert_eq!(cluster.node(2).graph().own(), cluster.id(2));
    assert!(cluster.node(2).graph().len() == known, "{} of {known}", cluster.node(2).graph().len());
    cluster.drive(120 * SECOND);
    let id = cluster.id(2);
    for id in [id, old] {
        assert_eq!(find(&mut cluster, 4, id).ended, FindEnd::Connected);
    }
    cluster.stop_all();
    (over, is_new)
}

#[test]
fn crash_leaves_the_old_or_the_new_key_and_keeps_an_acknowledged_renewal() {
    let mut seen = BTreeSet::new();
    for crash in [CrashPolicy::Lose, CrashPolicy::Keep] {
        for pause in [0, 5, 9, 10, 11, 20, 100] {
            let (over, is_new) = killed_after(ms(pause), crash);
            assert!(!over || is_new, "{crash:?} after {pause} ms");
            seen.insert((over, is_new));
        }
    }
    assert_eq!(
        seen,
        BTreeSet::from([(false, false), (false, true), (true, true)]),
        "all three were seen"
    );
}
