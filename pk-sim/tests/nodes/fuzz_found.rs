//! Faults that the fuzz targets `machine` and `pair` found, each as the shortest run that
//! reproduces it.

use std::time::Duration;

use pk_proto::claims::ClaimPolicy;
use pk_proto::native::{self, Message, V1};
use pk_proto::polykey::write_request;
use pk_proto::{
    BucketIndex, Config, ContactMode, DisconnectReason, Input, NodeContactAddressData, NodeId,
    Output, Request, RpcRequest, Scopes, SetNodeOptions, StoreOp, Table, UnixMillis, WriteFailure,
};
use pk_sim::{Cluster, Dependence, Key, NatConfig, genesis, renew};

use crate::common::chains::Draft;
use crate::common::signals::{punch, request};
use crate::common::*;

/// The wall clock of a bare machine.
const UNIX: UnixMillis = UnixMillis(1_767_225_600_000);

/// A store that does not answer, and an application that asks for a flush again and again: each
/// request stayed in a list until the transaction ended.
#[test]
fn ended_flush_is_removed() {
    let mut bare = Bare::new(|_| {});
    for _ in 0..3 {
        let flush = bare.request(Request::Flush { options: by(ms(1)) });
        bare.pass(ms(2));
        assert!(bare.done(flush).is_some());
    }
    let persists =
        bare.outputs.iter().filter(|output| matches!(output, Output::Persist { .. })).count();
    assert_eq!((persists, bare.node.census().flushes), (1, 0));
}

/// The same for requests that wait for room in a bucket that is being probed.
#[test]
fn ended_request_for_room_is_removed() {
    let mut bare = Bare::new(|config| config.bucket_limit = 1);
    let own = bare.node.own_id();
    let far: Vec<NodeId> = (0..)
        .map(absent)
        .filter(|id| own.bucket_index(id) == Some(BucketIndex(255)))
        .take(4)
        .collect();
    for (number, node) in far.into_iter().enumerate() {
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UNIX,
            scopes: Scopes::GLOBAL,
        };
        let how = SetNodeOptions { block: true, force: false, options: by(ms(1)) };
        let address = address(&format!("20.0.{number}.1:1"));
        let set = bare.request(Request::SetNode { node, address, data, how });
        bare.pass(Duration::from_micros(1100));
        assert!(bare.done(set).is_some());
    }
    // The round of the second one continues; the third and the fourth have waited for the next.
    let census = bare.node.census();
    assert_eq!((census.collections, census.collection_waiters), (1, 0));
}

/// The timers of a punch are dropped when the node stops; its entry was not.
#[test]
fn punch_ends_when_the_node_stops() {
    let mut bare = Bare::new(|_| {});
    let (relay, source) = (Key::numbered(77, 1), Key::numbered(77, 2));
    let conn = bare.accept(relay.id());
    let asked = request(&source, bare.node.own_id(), UnixMillis(UNIX.0 + 10_000), 1);
    let question =
        RpcRequest::Punch(Box::new(punch(&relay, source.id(), address("20.0.9.1:1314"), asked)));
    let stream = bare.opened(conn);
    bare.feed(
        stream,
        &native::encode(&Message::V1(V1::Call { deadline_ms: 5000, request: question })).unwrap(),
        true,
    );
    assert_eq!(bare.node.census().punches, 1);
    bare.node.stop(bare.now);
    bare.drain();
    assert_eq!(bare.node.census().punches, 0);
}

/// In a store without an owner row, a renewal was being written when another row was; the renewal
/// failed, and the store had rows without an owner, from which no node can start.
#[test]
fn rows_are_not_written_before_their_owner() {
    for failure in [WriteFailure::NotApplied("full".into()), WriteFailure::Unknown("broken".into())]
    {
        let mut bare = Bare::new(|_| {});
        let (old, new) = (Key::numbered(77, 0), Key::numbered(77, 100));
        bare.request(Request::Renew { identity: renew(&genesis(&old, UNIX), &old, &new, UNIX) });
        let first = bare.take();
        let Some(Output::Persist { id, .. }) =
            first.iter().find(|output| matches!(output, Output::Persist { .. }))
        else {
            panic!("a renewal is written: {first:?}")
        };
        let allow = Request::AllowClaim { node: Bare::peer(1), allowed: true, options: by(SECOND) };
        bare.request(allow);
        bare.input(Input::Persisted { id: *id, result: Err(failure) });
        // The store is read to learn whether it was written; it was not.
        if let Some(Output::Load { id, .. }) =
            bare.outputs.iter().find(|output| matches!(output, Output::Load { .. }))
        {
            let id = *id;
            bare.input(Input::Loaded { id, result: Ok((Vec::new(), false)) });
        }
        let mut writes = 0;
        for output in bare.take() {
            let Output::Persist { ops, .. } = output else { continue };
            writes += 1;
            let has_owner =
                ops.iter().any(|op| matches!(op, StoreOp::Put { table: Table::Meta, .. }));
            assert!(has_owner, "{ops:?}");
        }
        assert!(writes > 0);
    }
}

/// A peer sends a request, and stops reading before the store has answered: its stream has ended
/// for the transport, and stayed in the table until the answer was there.
#[test]
fn request_whose_peer_stopped_reading_has_no_stream() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept_polykey(Bare::peer(1));
    let stream = bare.opened(conn);
    let question = write_request("nodesClaimsGet", "{\"claimIdEncoded\":\"\"}", None);
    assert!(bare.feed(stream, &question, true).is_empty());
    assert!(matches!(bare.take()[..], [.., Output::Load { .. }]));
    bare.input(Input::StreamStopped { stream, code: 0 });
    assert_eq!(bare.node.census().streams, 0);
}

/// The last transaction makes durable what was written before it. If it failed, the stopped node
/// did not report which rows the store may lose.
#[test]
fn rows_that_a_stopped_node_may_lose_count_as_unwritten() {
    let mut bare = Bare::new(|_| {});
    bare.accept(Bare::peer(1));
    bare.pass(2 * SECOND);
    bare.persist_all();
    bare.take();
    assert_eq!(bare.node.metrics().unwritten, 0);
    bare.node.stop(bare.now);
    let outputs = bare.take();
    let last = outputs.iter().find_map(|output| match output {
        Output::Persist { id, durable: true, .. } => Some(*id),
        _ => None,
    });
    assert_eq!(bare.node.metrics().unwritten, 1);
    bare.input(Input::Persisted {
        id: last.unwrap(),
        result: Err(WriteFailure::NotApplied("full".into())),
    });
    bare.pass(2 * SECOND);
    assert!(bare.node.is_stopped());
    assert_eq!(bare.node.metrics().unwritten, 1);
}

/// An approval request stays after the end of the connection of its peer until its timeout; its
/// timer is dropped when the node stops, and the request was not.
#[test]
fn approval_request_ends_when_the_node_stops() {
    for leaves in [false, true] {
        let mut bare = Bare::new(|config| config.claim_policy = ClaimPolicy::Ask);
        let (peer, own) = (Key::numbered(77, 2), bare.node.own_id());
        let conn = bare.accept(peer.id());
        let stream = bare.opened(conn);
        let token = Draft::link(peer.id(), own, None).signed(&[&peer]).token().to_json().into();
        let first =
            native::encode(&Message::V1(V1::Exchange { deadline_ms: 60_000, token })).unwrap();
        bare.feed(stream, &first, false);
        let outputs = bare.take();
        let [.., Output::Load { id, .. }] = outputs[..] else { panic!("{outputs:?}") };
        bare.input(Input::Loaded { id, result: Ok((Vec::new(), false)) });
        assert_eq!(bare.node.census().approvals, 1);
        if leaves {
            bare.input(Input::Disconnected { conn, why: DisconnectReason::TimedOut });
            assert_eq!(bare.node.census().approvals, 1);
        }
        bare.node.stop(bare.now);
        bare.drain();
        assert_eq!(bare.node.census().approvals, 0);
    }
}

/// Times that are later than the clock are limited a millisecond apart. One of them came before a
/// time that stayed, so that the addresses of a node were no longer sorted.
#[test]
fn limited_times_keep_addresses_sorted() {
    let mut bare = Bare::new(|_| {});
    let (node, later) = (Bare::peer(1), |ms| UnixMillis(UNIX.0 + ms));
    bare.input(Input::WallClock(later(1000)));
    for (number, unix) in [UNIX, later(900), later(1000)].into_iter().enumerate() {
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: unix,
            scopes: Scopes::GLOBAL,
        };
        let address = address(&format!("20.0.{number}.1:1"));
        bare.request(Request::SetNode { node, address, data, how: SetNodeOptions::default() });
    }
    bare.input(Input::WallClock(UNIX));
    let contact = bare.node.graph().get(&node).unwrap();
    let times: Vec<_> = contact.iter().map(|(_, data)| data.connected_time).collect();
    assert_eq!(times, [UNIX; 3]);
}

/// When a stream ended, its credit was granted to the next one before the driver had stopped using
/// it, so that the connection had more credit than its window for a short time.
#[test]
fn credit_of_a_stream_is_granted_to_others_only_after_its_end() {
    let mut bare = Bare::new(|config| config.receive_window = 128 * 1024);
    let conn = bare.accept(Bare::peer(1));
    let long = 60_000_u32.to_be_bytes();
    let ask = |bare: &mut Bare| {
        let stream = bare.opened(conn);
        bare.data(stream, &long, false);
        stream
    };
    let (first, _) = (ask(&mut bare), ask(&mut bare));
    bare.pass(SECOND);
    let third = ask(&mut bare);
    let granted = |output: &Output| matches!(output, Output::ReadCredit { stream, bytes: 60_000 } if *stream == third);
    assert!(!bare.outputs.iter().any(granted), "it waits");
    bare.pass(Config::default().call_timeout - SECOND);
    let granted = bare.outputs.iter().position(granted).unwrap();
    let stopped =
        |output: &Output| matches!(output, Output::StopStream { stream, .. } if *stream == first);
    let stopped = bare.outputs.iter().position(stopped).unwrap();
    assert!(stopped < granted, "{stopped}, {granted}");
}

// -- of the simulator

/// Behind a NAT a keep-alive confirms a connection, and a restarted process answered it for its
/// predecessor.
#[test]
fn restarted_process_does_not_keep_an_old_connection_behind_a_nat_alive() {
    let mut cluster = Cluster::quiet().nodes(2).seed(1).build();
    let nat = cluster.add_nat(NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort));
    cluster.put_behind(1, nat);
    (0..2).for_each(|node| cluster.start_node(node));
    cluster.host_mut(0).transport.stateless_reset = false;
    cluster.drive(SECOND);
    assert!(cluster.connect(1, 0).is_ok());
    let target = cluster.id(0);
    let lease = Request::AcquireConnection { target, options: by(SECOND) };
    assert!(cluster.ask(1, lease).is_ok());
    let before: Vec<_> = cluster.node(1).connections().iter().map(|info| info.conn).collect();
    assert!(!before.is_empty());
    cluster.restart(0);
    cluster.drive(60 * SECOND);
    // The new process may be connected; the connections of the old one are closed.
    let after = cluster.node(1).connections();
    assert!(after.iter().all(|info| !before.contains(&info.conn)), "{before:?}, {after:?}");
}

/// A driver whose delay became shorter reported the end of a connection before its beginning.
#[test]
fn driver_reports_in_order_after_its_delay_shrinks() {
    let mut cluster = Cluster::quiet().nodes(2).seed(1).start();
    cluster.host_mut(1).input_delay = 5 * SECOND;
    let (target, address) = (cluster.id(1), cluster.address(1));
    let dial = cluster.request(0, Request::Connect { target, address, options: by(10 * SECOND) });
    cluster.drive(SECOND);
    cluster.host_mut(1).input_delay = Duration::ZERO;
    cluster.cancel(0, dial);
    // The checkers detect the fault.
    cluster.drive(20 * SECOND);
    assert!(cluster.coverage().count("Input::Disconnected") > 0);
}
