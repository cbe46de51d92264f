//! A run that is written to a file, and replayed.

use std::fs;

use pk_driver::{Node, NodeError, Record, StartError};
use pk_proto::Replay;
use pk_tests::Rt;
use pk_tests::node::{config, connect, shutdown, start, start_with};
use pk_tests::wait::{seen_within, soon};

pk_tests::cases!(a_run_is_written_down_and_replayed);

fn replay(bytes: &[u8]) -> usize {
    let mut replay = Replay::new(bytes).unwrap();
    let mut steps = 0;
    while replay.step().unwrap().is_some() {
        steps += 1;
    }
    steps
}

async fn a_run_is_written_down_and_replayed<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logs").join("run.pktr");
    let a = start_with(&runtime, 1, |config| config.record = Some(Record::file(&path))).await;
    let b = start(&runtime, 2).await;
    connect(&runtime, &a, &b).await;
    // It is written while the node runs, and can be read meanwhile.
    let patience = pk_tests::wait::SOON;
    let some = seen_within(&runtime, patience, "some of it", async || {
        fs::read(&path).ok().filter(|bytes| !bytes.is_empty()).map(|bytes| replay(&bytes))
    });
    let some = some.await;
    shutdown(&runtime, &[&a, &b]).await;
    let whole = fs::read(&path).unwrap();
    let all = replay(&whole);
    println!("{}: {some} steps while it ran, {all} in all, {} bytes", R::NAME, whole.len());
    assert!(all > 10 && all >= some, "{all} of {some}");

    // A file is not written over, and ends at its limit.
    let mut again = config(1);
    again.record = Some(Record::file(&path));
    let error = soon(&runtime, "start", Node::start_on(runtime.clone(), again)).await.unwrap_err();
    assert!(matches!(error, NodeError::Start(StartError::Record { .. })), "{error}");
    assert_eq!(fs::read(&path).unwrap(), whole);
    let short = dir.path().join("short");
    let limited = Record::File { path: short.clone(), limit: 3000 };
    let a = start_with(&runtime, 1, |config| config.record = Some(limited)).await;
    let b = start(&runtime, 2).await;
    connect(&runtime, &a, &b).await;
    shutdown(&runtime, &[&a, &b]).await;
    let cut = fs::read(&short).unwrap();
    assert_eq!(cut.len(), 3000);
    replay(&cut);
}
