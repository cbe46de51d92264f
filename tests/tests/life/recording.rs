//! A run that is written to a file, and replayed.

use std::fs;

use pk_driver::{Node, NodeError, Record, StartError};
use pk_proto::{RecordedCall, Replay, Request, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{config, connect, shutdown, start, start_with};
use pk_tests::wait::{soon, until};

pk_tests::cases!(run_is_recorded_and_replayed, recording_ends_at_its_limit_and_can_be_replayed);

const PINGS: usize = 20;

/// Replays a recording; fails if the outputs differ. Returns its calls.
fn replay(bytes: &[u8]) -> Vec<RecordedCall> {
    let mut replay = Replay::new(bytes).unwrap();
    let mut calls = Vec::new();
    while let Some(step) = replay.step().unwrap() {
        calls.push(step.call);
    }
    calls
}

fn pings(calls: &[RecordedCall]) -> usize {
    calls
        .iter()
        .filter(|call| matches!(call, RecordedCall::Request(Request::PingNode { .. })))
        .count()
}

/// A short run with some calls.
async fn run<R: Rt>(runtime: &R, record: Record, meanwhile: impl AsyncFnOnce()) {
    let a = start_with(runtime, 1, |config| config.record = Some(record)).await;
    let b = start(runtime, 2).await;
    connect(runtime, &a, &b).await;
    for _ in 0..PINGS {
        soon(runtime, "ping", a.ping_node(b.own_id(), RequestOptions::default())).await.unwrap();
    }
    meanwhile().await;
    shutdown(runtime, &[&a, &b]).await;
}

async fn run_is_recorded_and_replayed<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logs").join("run.pktr");
    run(&runtime, Record::file(&path), async || {
        // It is written while the node runs, and can be read meanwhile.
        until(&runtime, "the pings in the file", async || {
            fs::read(&path).is_ok_and(|bytes| !bytes.is_empty() && pings(&replay(&bytes)) == PINGS)
        })
        .await;
    })
    .await;
    let whole = fs::read(&path).unwrap();
    let calls = replay(&whole);
    println!("{}: {} calls, {} bytes", R::NAME, calls.len(), whole.len());
    assert_eq!(pings(&calls), PINGS);
    assert!(calls.contains(&RecordedCall::Stop), "the end is missing");

    // An existing file is not overwritten.
    let mut again = config(1);
    again.record = Some(Record::file(&path));
    let error = soon(&runtime, "start", Node::start_on(runtime.clone(), again)).await.unwrap_err();
    assert!(matches!(error, NodeError::Start(StartError::Record { .. })), "{error}");
    assert_eq!(fs::read(&path).unwrap(), whole);
}

async fn recording_ends_at_its_limit_and_can_be_replayed<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let (long, short) = (dir.path().join("long"), dir.path().join("short"));
    run(&runtime, Record::file(&long), async || {}).await;
    let limit = fs::metadata(&long).unwrap().len() * 2 / 3;
    run(&runtime, Record::File { path: short.clone(), limit }, async || {}).await;
    let cut = fs::read(&short).unwrap();
    assert_eq!(cut.len() as u64, limit);
    let calls = replay(&cut);
    assert!(
        (1..PINGS).contains(&pings(&calls)) && !calls.contains(&RecordedCall::Stop),
        "{calls:?}"
    );
}
