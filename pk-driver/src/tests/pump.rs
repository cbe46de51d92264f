//! The pump: turns, timers, effects, handles dropped by the embedder, and shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pk_proto::{
    DisconnectReason, EffectId, Event, Failure, Input, LeaseId, NodeId, Output, Reply, RequestId,
    StoreOp, StoreRange, StoreRow, Table, WriteFailure,
};
use tokio::sync::oneshot;

use super::{Rig, Setup, Told};
use crate::error::NodeError;
use crate::pump::handle_registry::Response;
use crate::stream::accept::AcceptQueue;
use pk_host::{Store, StoreError};

#[tokio::test]
async fn an_idle_pump_does_not_turn() {
    let (mut a, mut b) = (Rig::start(1).await, Rig::start(2).await);
    a.connect(&mut b).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = a.metrics(|_| true).await.turns;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(a.metrics(|_| true).await.turns, before, "with a live connection and nothing to do");
}

#[tokio::test]
async fn a_timer_fires_once_and_not_before_its_time() {
    let mut rig = Rig::start(1).await;
    let before = rig.metrics(|_| true).await.turns;
    let set = |rig: &Rig, wait: Duration| {
        let handle = rig.handle.clone();
        async move {
            let set = handle.call(move |_, cx, core| {
                let at = cx.now + wait;
                core.timeout = Some(at);
                at
            });
            set.await.unwrap()
        }
    };
    let at = set(&rig, Duration::from_millis(50)).await;
    let Told::Timeout(now) = rig.told().await else { panic!("no timeout") };
    assert!(now >= at && now.since(at) < Duration::from_secs(1), "{at:?} {now:?}");
    rig.silence().await;
    // Earlier than the armed one, and in the past.
    set(&rig, Duration::from_secs(3600)).await;
    set(&rig, Duration::from_millis(20)).await;
    assert!(matches!(rig.told().await, Told::Timeout(_)));
    set(&rig, Duration::ZERO).await;
    assert!(matches!(rig.told().await, Told::Timeout(_)));
    // Cleared: nothing fires.
    set(&rig, Duration::from_millis(30)).await;
    rig.handle.call(|_, _, core| core.timeout = None).await.unwrap();
    rig.silence().await;
    let turns = rig.metrics(|_| true).await.turns - before;
    assert!(turns <= 16, "{turns} turns for 5 calls and 3 timers");
}

#[tokio::test]
async fn effects_are_answered() {
    let mut rig = Rig::start(1).await;
    let (id, key) = (EffectId(1), rig.id);
    rig.output(Output::Sign { id, key, bytes: Bytes::from_static(b"claim") }).await;
    let Input::Signed { result: Ok(signature), .. } = rig.input().await else {
        panic!("not signed")
    };
    assert_eq!(pk_proto::verify(&key, b"claim", &signature.0), Ok(()));
    rig.output(Output::Sign { id, key: NodeId::from_bytes([1; 32]), bytes: Bytes::new() }).await;
    assert!(matches!(rig.input().await, Input::Signed { result: Err(_), .. }));

    let (table, row) = (Table::Claims, Bytes::from_static(b"row"));
    let put = StoreOp::Put { table, key: row.clone(), value: row.clone() };
    rig.output(Output::Persist { id, ops: vec![put], durable: true }).await;
    assert_eq!(rig.input().await, Input::Persisted { id, result: Ok(()) });
    let range = StoreRange { table, from: Bytes::new(), to: None, descending: false };
    rig.output(Output::Load { id, range, max_bytes: 100 }).await;
    assert_eq!(
        rig.input().await,
        Input::Loaded { id, result: Ok((vec![(row.clone(), row)], false)) }
    );

    let resolve = |name: &str| Output::Resolve { id, name: name.parse().unwrap(), port: 5 };
    rig.output(resolve("some.example")).await;
    assert_eq!(
        rig.input().await,
        Input::Resolved { id, result: Ok(vec!["192.0.2.1:5".parse().unwrap()]) }
    );
    rig.output(resolve("none.example")).await;
    assert_eq!(rig.input().await, Input::Resolved { id, result: Err("no such name".to_owned()) });

    let metrics = rig.metrics(|metrics| metrics.resolutions_failed == 1).await;
    assert_eq!((metrics.signatures, metrics.writes), (2, 1));
}

/// With and without mDNS, a browse ends.
#[cfg(not(feature = "mdns"))]
#[tokio::test]
async fn without_mdns_the_local_network_has_nothing_to_say() {
    let mut rig = Rig::start(1).await;
    let (id, deadline) = (EffectId(1), pk_proto::Instant::FAR_FUTURE);
    rig.output(Output::Browse { id, node: rig.id, deadline }).await;
    assert_eq!(rig.input().await, Input::Discovered { id, addrs: vec![], done: true });
    rig.output(Output::CancelBrowse { id }).await;
    rig.output(Output::Advertise { node: rig.id, port: Some(1) }).await;
    rig.silence().await;
    rig.metrics(|metrics| metrics.advertisements_ignored == 1).await;
}

#[tokio::test]
async fn name_resolution_without_an_answer_times_out() {
    let mut setup = Setup::new(1);
    setup.driver.resolve_timeout = Duration::from_millis(50);
    let mut rig = setup.start().await;
    let id = EffectId(3);
    rig.output(Output::Resolve { id, name: "never.example".parse().unwrap(), port: 5 }).await;
    assert_eq!(
        rig.input().await,
        Input::Resolved { id, result: Err("time limit exceeded".to_owned()) }
    );
}

#[tokio::test]
async fn a_request_that_is_dropped_is_cancelled_and_a_late_lease_goes_back() {
    let mut rig = Rig::start(1).await;
    let id = RequestId(7);
    let (caller, answer) = oneshot::channel();
    rig.handle.call(move |registry, cx, _| registry.wait(cx, id, caller)).await.unwrap();
    rig.silence().await;
    drop(answer);
    assert_eq!(rig.told().await, Told::Cancel(id));
    rig.output(Output::Event(Event::Done { id, result: Ok(acquired(5)) })).await;
    assert_eq!(rig.told().await, Told::Release(LeaseId(5)));
}

fn acquired(lease: u64) -> Reply {
    let address = "192.0.2.1:5".parse().unwrap();
    let data = pk_proto::NodeContactAddressData {
        mode: pk_proto::ContactMode::Direct,
        connected_time: pk_proto::UnixMillis(0),
        scopes: pk_proto::Scopes::GLOBAL,
    };
    let connection = pk_proto::ConnectionInfo {
        conn: pk_proto::ConnectionId(0),
        node: NodeId::from_bytes([2; 32]),
        address,
        data,
        shared_id: Bytes::new(),
        primary: true,
        suspected: false,
        idle_in: None,
    };
    Reply::AcquireConnection { lease: LeaseId(lease), connection }
}

async fn lease(rig: &Rig, id: u64) -> Response {
    let (caller, answer) = oneshot::channel();
    let request = RequestId(id);
    rig.handle.call(move |registry, cx, _| registry.wait(cx, request, caller)).await.unwrap();
    rig.output(Output::Event(Event::Done { id: request, result: Ok(acquired(id)) })).await;
    answer.await.unwrap().unwrap()
}

#[tokio::test]
async fn a_lease_is_released_when_dropped_and_told_when_lost() {
    let mut rig = Rig::start(1).await;
    drop(lease(&rig, 1).await.lease);
    assert_eq!(rig.told().await, Told::Release(LeaseId(1)));
    let held = lease(&rig, 2).await;
    let mut events = rig.handle.events.subscribe().unwrap();
    let lost = Event::LeaseLost { lease: LeaseId(2), node: rig.id };
    rig.output(Output::Event(lost.clone())).await;
    held.lease.unwrap().await.unwrap();
    assert_eq!(events.recv().await.unwrap(), lost);
    rig.silence().await;
}

#[tokio::test]
async fn an_answer_reaches_its_caller_and_only_it() {
    let rig = Rig::start(1).await;
    let mut events = rig.handle.events.subscribe().unwrap();
    let (caller, answer) = oneshot::channel();
    let id = RequestId(1);
    rig.handle.call(move |registry, cx, _| registry.wait(cx, id, caller)).await.unwrap();
    rig.output(Output::Event(Event::Done { id, result: Err(Failure::DeadlineExceeded) })).await;
    assert!(matches!(answer.await.unwrap(), Err(NodeError::Failure(Failure::DeadlineExceeded))));
    let node = rig.id;
    rig.output(Output::Event(Event::NodeAdded { node })).await;
    assert_eq!(events.recv().await.unwrap(), Event::NodeAdded { node });
}

#[tokio::test]
async fn a_dropped_acceptor_refuses_from_then_on() {
    let mut rig = Rig::start(1).await;
    let accept = |rig: &Rig| {
        let handle = rig.handle.clone();
        async move {
            let (streams, accepted) = AcceptQueue::new("test/1".to_owned(), 1);
            handle
                .call(move |registry, cx, _| registry.accept(cx, "test/1".to_owned(), streams))
                .await
                .unwrap();
            accepted
        }
    };
    let accepted = accept(&rig).await;
    assert!(rig.handle.call(|registry, _, _| registry.accepts("test/1")).await.unwrap());
    drop(accepted);
    assert_eq!(rig.told().await, Told::RefuseProtocol("test/1".to_owned()));
    // Dropped and replaced before the pump has noticed: the new one stays.
    let first = accept(&rig).await;
    let handle = rig.handle.clone();
    let (streams, _second) = AcceptQueue::new("test/1".to_owned(), 1);
    handle
        .call(move |registry, cx, _| {
            drop(first);
            registry.accept(cx, "test/1".to_owned(), streams);
        })
        .await
        .unwrap();
    rig.silence().await;
    assert!(rig.handle.call(|registry, _, _| registry.accepts("test/1")).await.unwrap());
}

#[tokio::test]
async fn a_shutdown_is_clean_for_the_peer_and_leaves_no_task_and_no_port() {
    let (mut a, mut b) = (Rig::start(1).await, Rig::start(2).await);
    let (_, theirs) = a.connect(&mut b).await;
    let begun = Instant::now();
    a.shutdown().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let why = DisconnectReason::Peer { code: 0, reason: String::new() };
    assert_eq!(b.input().await, Input::Disconnected { conn: theirs, why });
    std::net::UdpSocket::bind(a.addr).expect("the port is free");
    assert!(matches!(a.handle.call(|_, _, _| ()).await, Err(NodeError::Closed)));
}

#[tokio::test]
async fn a_pump_without_handles_ends_by_itself() {
    let rig = Rig::start(1).await;
    let tasks = rig.handle.tasks.clone();
    drop(rig);
    tokio::time::timeout(super::PATIENCE, tasks.idle()).await.expect("all tasks end");
}

#[tokio::test]
async fn a_peer_that_does_not_answer_does_not_hold_up_the_shutdown() {
    // A peer that disappears without a close leaves a connection that never drains by itself.
    let (mut a, mut b) = (Rig::start(1).await, Rig::start(2).await);
    a.connect(&mut b).await;
    b.handle.call(|_, _, _| std::thread::sleep(Duration::from_millis(700))).await.unwrap();
    let begun = Instant::now();
    a.shutdown().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// A slow store.
struct Slow(Arc<AtomicUsize>);

impl Store for Slow {
    fn apply(&mut self, _: &[StoreOp], _: bool) -> Result<(), WriteFailure> {
        std::thread::sleep(Duration::from_millis(20));
        let count = self.0.fetch_add(1, Ordering::SeqCst);
        if count == 1 {
            Err(WriteFailure::NotApplied("the disk is full".to_owned()))
        } else {
            Ok(())
        }
    }

    fn range(&mut self, _: &StoreRange, _: u64) -> Result<(Vec<StoreRow>, bool), StoreError> {
        Ok((Vec::new(), false))
    }
}

#[tokio::test]
async fn a_store_on_its_thread_answers_in_order_and_is_closed_at_the_end() {
    let written = Arc::new(AtomicUsize::new(0));
    let mut rig =
        Setup { store: Box::new(Slow(Arc::clone(&written))), ..Setup::new(1) }.start().await;
    for id in [1, 2, 3] {
        rig.output(Output::Persist { id: EffectId(id), ops: vec![], durable: true }).await;
    }
    let result = |id| {
        if id == 2 { Err(WriteFailure::NotApplied("the disk is full".to_owned())) } else { Ok(()) }
    };
    for id in [1, 2, 3] {
        assert_eq!(rig.input().await, Input::Persisted { id: EffectId(id), result: result(id) });
    }
    assert_eq!(written.load(Ordering::SeqCst), 3);
    // What was requested before the stop is done before the end.
    rig.output(Output::Persist { id: EffectId(4), ops: vec![], durable: true }).await;
    rig.shutdown().await;
    assert_eq!((written.load(Ordering::SeqCst), Arc::strong_count(&written)), (4, 1));
}
