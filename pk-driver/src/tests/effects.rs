//! Effects: stores and names.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pk_host::{Store, StoreError};
use pk_proto::{EffectId, StoreOp, StoreRange, StoreRow, Table, WriteFailure};
use pk_quic::{Effect, Response};

use super::Bench;
use crate::config::DriverConfig;

#[tokio::test]
async fn persist_load_and_resolve_are_answered() {
    let mut bench = Bench::new(1, DriverConfig::default());
    let id = EffectId(1);
    let (table, row) = (Table::Claims, Bytes::from_static(b"row"));
    let put = StoreOp::Put { table, key: row.clone(), value: row.clone() };
    bench.effect(Effect::Persist { id, ops: vec![put], durable: true });
    assert_eq!(bench.answer().await, Response::Persisted { id, result: Ok(()) });
    let range = StoreRange { table, from: Bytes::new(), to: None, descending: false };
    bench.effect(Effect::Load { id, range, max_bytes: 100 });
    let rows = vec![(row.clone(), row)];
    assert_eq!(bench.answer().await, Response::Loaded { id, result: Ok((rows, false)) });

    let resolve = |name: &str| Effect::Resolve { id, name: name.parse().unwrap(), port: 5 };
    bench.effect(resolve("some.example"));
    let result = Ok(vec!["192.0.2.1:5".parse().unwrap()]);
    assert_eq!(bench.answer().await, Response::Resolved { id, result });
    bench.effect(resolve("none.example"));
    let result = Err("no such name".to_owned());
    assert_eq!(bench.answer().await, Response::Resolved { id, result });
    assert_eq!((bench.cx.metrics.resolutions_failed, bench.cx.metrics.writes), (1, 1));
}

/// With and without mDNS, a browse ends.
#[cfg(not(feature = "mdns"))]
#[tokio::test]
async fn browse_without_mdns_returns_nothing() {
    let mut bench = Bench::new(1, DriverConfig::default());
    let node = pk_host::KeyPair::from_seed(&[2; 32]).node_id();
    let (id, deadline) = (EffectId(1), pk_proto::Instant::FAR_FUTURE);
    bench.effect(Effect::Browse { id, node, deadline });
    assert_eq!(bench.answer().await, Response::Discovered { id, addrs: vec![], done: true });
    bench.effect(Effect::CancelBrowse { id });
    bench.effect(Effect::Advertise { node, port: Some(1) });
    bench.silence().await;
    assert_eq!(bench.cx.metrics.advertisements_ignored, 1);
}

#[tokio::test]
async fn name_resolution_without_an_answer_times_out() {
    let resolve_timeout = Duration::from_millis(50);
    let mut bench = Bench::new(1, DriverConfig { resolve_timeout, ..DriverConfig::default() });
    let id = EffectId(3);
    bench.effect(Effect::Resolve { id, name: "never.example".parse().unwrap(), port: 5 });
    let result = Err("time limit exceeded".to_owned());
    assert_eq!(bench.answer().await, Response::Resolved { id, result });
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
async fn store_on_its_thread_answers_in_order_and_is_closed_at_the_end() {
    let written = Arc::new(AtomicUsize::new(0));
    let store = Box::new(Slow(Arc::clone(&written)));
    let mut bench = Bench::with_store(1, DriverConfig::default(), store);
    let persist = |id| Effect::Persist { id: EffectId(id), ops: vec![], durable: true };
    for id in [1, 2, 3] {
        bench.effect(persist(id));
    }
    let result = |id| {
        if id == 2 { Err(WriteFailure::NotApplied("the disk is full".to_owned())) } else { Ok(()) }
    };
    for id in [1, 2, 3] {
        let expected = Response::Persisted { id: EffectId(id), result: result(id) };
        assert_eq!(bench.answer().await, expected);
    }
    assert_eq!(written.load(Ordering::SeqCst), 3);
    // Effects that were requested before the stop are completed before the end.
    bench.effect(persist(4));
    let tasks = bench.tasks.watch();
    drop(bench);
    tokio::time::timeout(super::PATIENCE, tasks.idle()).await.expect("the thread ends");
    assert_eq!((written.load(Ordering::SeqCst), Arc::strong_count(&written)), (4, 1));
}
