//! A node in a directory, over several runs.

use pk_driver::{NodeConfig, RedbStore, StartError, StoreOpenError};
use pk_proto::{Config, FindEnd, FindNodeOptions, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{address, connections_with, join, seed, shutdown, start, start_with};
use pk_tests::wait::{soon, until};
use smol::future::zip;

use crate::kit::{open, open_with, snapshot};

pk_tests::cases!(
    restarted_node_joins_without_a_seed,
    restarted_node_rejoins_automatically,
    directory_is_used_by_one_node_at_a_time,
    directory_is_private_to_its_owner,
    flushed_contacts_are_in_the_store,
);

async fn restarted_node_joins_without_a_seed<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let a = open(&runtime, dir.path()).await;
    let (b, c, d) = (start(&runtime, 2).await, start(&runtime, 3).await, start(&runtime, 4).await);
    join(&runtime, &b, seed(&c)).await;
    join(&runtime, &d, seed(&c)).await;
    join(&runtime, &a, seed(&b)).await;
    let id = a.own_id();
    shutdown(&runtime, &[&a]).await;
    assert!(!snapshot(dir.path()).contacts.is_empty());
    // A node joins while it is stopped.
    let late = start(&runtime, 5).await;
    join(&runtime, &late, seed(&d)).await;

    let a = open(&runtime, dir.path()).await;
    assert_eq!(a.own_id(), id);
    let found = soon(&runtime, "find", a.find_node(late.own_id(), FindNodeOptions::default()))
        .await
        .unwrap();
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    let synced = soon(&runtime, "join", a.sync_node_graph(vec![], true, RequestOptions::default()))
        .await
        .unwrap();
    assert!(synced.seeds.is_empty() && synced.search.is_some());
    shutdown(&runtime, &[&a, &b, &c, &d, &late]).await;
}

async fn restarted_node_rejoins_automatically<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (open(&runtime, dir.path()).await, start(&runtime, 2).await);
    join(&runtime, &a, seed(&b)).await;
    shutdown(&runtime, &[&a]).await;
    // No request is made.
    let a = open_with(&runtime, dir.path(), |config| {
        config.core.retry_delay = Config::default().retry_delay / 45;
    })
    .await;
    until(&runtime, "rejoin", async || !connections_with(&a, b.own_id()).await.is_empty()).await;
    shutdown(&runtime, &[&a, &b]).await;
}

async fn directory_is_used_by_one_node_at_a_time<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let a = open(&runtime, dir.path()).await;
    let error = NodeConfig::open(dir.path()).unwrap_err();
    assert!(matches!(error, StartError::Open(StoreOpenError::InUse { .. })), "{error}");
    println!("{error}");
    shutdown(&runtime, &[&a]).await;
    let a = open(&runtime, dir.path()).await;
    // The directory is free when the shutdown has returned, and not before.
    zip(a.shutdown(), a.shutdown()).await;
    drop(RedbStore::open(dir.path().join("store.redb")).unwrap());
    // A failed start releases the directory.
    let mut config = NodeConfig::open(dir.path()).unwrap();
    config.driver.transport.keep_alive = std::time::Duration::ZERO;
    soon(&runtime, "start", pk_driver::Node::start_on(runtime.clone(), config)).await.unwrap_err();
    let taken = start(&runtime, 9).await;
    let mut config = NodeConfig::open(dir.path()).unwrap();
    config.listen = pk_tests::node::socket(&taken);
    soon(&runtime, "start", pk_driver::Node::start_on(runtime.clone(), config)).await.unwrap_err();
    shutdown(&runtime, &[&open(&runtime, dir.path()).await, &taken]).await;
}

async fn directory_is_private_to_its_owner<R: Rt>(runtime: R) {
    use std::os::unix::fs::PermissionsExt;

    fn modes(path: &std::path::Path, all: &mut Vec<(std::path::PathBuf, u32)>) {
        let metadata = std::fs::metadata(path).unwrap();
        all.push((path.to_owned(), metadata.permissions().mode() & 0o777));
        if metadata.is_dir() {
            std::fs::read_dir(path).unwrap().for_each(|entry| modes(&entry.unwrap().path(), all));
        }
    }

    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new");
    let record = dir.join("logs").join("run.pktr");
    let a =
        open_with(&runtime, &dir, |config| config.record = Some(pk_driver::Record::file(&record)))
            .await;
    soon(&runtime, "renewal", a.renew()).await.unwrap();
    soon(&runtime, "flush", a.flush()).await.unwrap();
    let check = || {
        let mut all = Vec::new();
        modes(&dir, &mut all);
        // Directory, lock, keys with four files, store, logs with one.
        assert_eq!(all.len(), 10, "{all:?}");
        assert!(
            all.iter().all(|(path, mode)| *mode == if path.is_dir() { 0o700 } else { 0o600 }),
            "{all:?}"
        );
    };
    check();
    shutdown(&runtime, &[&a]).await;
    check();
}

async fn flushed_contacts_are_in_the_store<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    // Nothing is written without a flush.
    let lazy =
        |config: &mut NodeConfig| config.core.store_delay = std::time::Duration::from_secs(3600);
    let a = open_with(&runtime, dir.path(), lazy).await;
    let b = start_with(&runtime, 2, |_| {}).await;
    pk_tests::node::connect(&runtime, &b, &a).await;
    soon(&runtime, "flush", a.flush()).await.unwrap();
    // The state that a crash would leave.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("store.redb"), copy.path().join("store.redb")).unwrap();
    let kept = snapshot(copy.path());
    assert_eq!(kept.meta.map(|meta| meta.owner), Some(a.own_id()));
    assert_eq!(kept.contacts.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [b.own_id()]);
    assert!(kept.contacts[0].1.iter().any(|(at, _)| *at == address(&b)));
    shutdown(&runtime, &[&a, &b]).await;
}
