//! Directories that a node must not start in: a clear error, and every file unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pk_driver::{
    KeyStoreError, Node, NodeConfig, NodeError, RedbStore, StartError, Store, StoreOpenError,
};
use pk_proto::{NodeGraphSpace, SnapshotError, StoreOp, Table};
use pk_tests::Rt;
use pk_tests::node::{connect, shutdown, start};
use pk_tests::wait::soon;

use crate::kit::{open, owner};

pk_tests::cases!(
    store_of_another_node_is_refused,
    unreadable_store_is_refused,
    damaged_store_file_is_refused
);

/// Every file of a directory.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

/// Tries to start a node in a directory, which fails.
async fn refused<R: Rt>(runtime: &R, dir: &Path) -> StartError {
    let before = files(dir);
    let start = async { Node::start_on(runtime.clone(), NodeConfig::open(dir)?).await };
    let started: Result<_, NodeError> = soon(runtime, "start", start).await;
    let error = match started {
        Err(NodeError::Start(error)) => error,
        other => panic!("{other:?}"),
    };
    println!("{error}");
    assert!(files(dir) == before, "a file was changed");
    error
}

/// A directory in which a node has run and met another one.
async fn used_directory<R: Rt>(runtime: &R) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (open(runtime, dir.path()).await, start(runtime, 2).await);
    connect(runtime, &a, &b).await;
    shutdown(runtime, &[&a, &b]).await;
    dir
}

async fn store_of_another_node_is_refused<R: Rt>(runtime: R) {
    let (ours, theirs) = (used_directory(&runtime).await, used_directory(&runtime).await);
    fs::copy(theirs.path().join("store.redb"), ours.path().join("store.redb")).unwrap();
    let error = refused(&runtime, ours.path()).await;
    let them = owner(theirs.path()).unwrap();
    assert!(
        matches!(&error, StartError::Core(pk_proto::StartError::ForeignStore { owner, .. }) if *owner == them),
        "{error}"
    );
    // If there is no key, none is created: the key of the store is missing.
    fs::remove_dir_all(ours.path().join("keys")).unwrap();
    let error = refused(&runtime, ours.path()).await;
    assert!(
        matches!(error, StartError::Keys(KeyStoreError::Missing { owner, .. }) if owner == them),
        "{error}"
    );
}

async fn unreadable_store_is_refused<R: Rt>(runtime: R) {
    let dir = used_directory(&runtime).await;
    let path = dir.path().join("store.redb");
    let row = |table| {
        let rows = RedbStore::open(&path).unwrap().load().unwrap();
        let (_, key, value) = rows.into_iter().find(|(of, ..)| *of == table).unwrap();
        (key, value)
    };
    let put = |table, key: &Bytes, value: Bytes| {
        let op = StoreOp::Put { table, key: key.clone(), value };
        RedbStore::open(&path).unwrap().apply(&[op], true).unwrap();
    };
    for table in [Table::Meta, Table::Contacts(NodeGraphSpace::A)] {
        let (key, value) = row(table);
        let newer = [&[9], &value[1..]].concat();
        put(table, &key, newer.into());
        let error = refused(&runtime, dir.path()).await;
        assert!(
            matches!(error, StartError::Snapshot(SnapshotError::Newer { found: 9 })),
            "{error}"
        );
        put(table, &key, value.slice(..value.len() - 1));
        let error = refused(&runtime, dir.path()).await;
        assert!(matches!(error, StartError::Snapshot(SnapshotError::Corrupt(_))), "{error}");
        put(table, &key, value);
    }
    let (key, value) = row(Table::Meta);
    RedbStore::open(&path)
        .unwrap()
        .apply(&[StoreOp::Delete { table: Table::Meta, key: key.clone() }], true)
        .unwrap();
    let error = refused(&runtime, dir.path()).await;
    assert!(matches!(error, StartError::Snapshot(SnapshotError::NoMeta)), "{error}");
    put(Table::Meta, &key, value);
    shutdown(&runtime, &[&open(&runtime, dir.path()).await]).await;
}

async fn damaged_store_file_is_refused<R: Rt>(runtime: R) {
    let dir = used_directory(&runtime).await;
    let path = dir.path().join("store.redb");
    let whole = fs::read(&path).unwrap();
    let zeroed = || {
        let mut bytes = whole.clone();
        let half = bytes.len() / 2;
        bytes[512..half].fill(0);
        bytes
    };
    let garbage = || [&whole[..9], &[0xa5; 20_000][..]].concat();
    for bytes in [
        whole[..whole.len() / 2].to_vec(),
        whole[..4096].to_vec(),
        whole[..64].to_vec(),
        zeroed(),
        garbage(),
    ] {
        fs::write(&path, &bytes).unwrap();
        let error = refused(&runtime, dir.path()).await;
        assert!(matches!(error, StartError::Open(StoreOpenError::Damaged { .. })), "{error}");
    }
    for bytes in [&b""[..], b"something else"] {
        fs::write(&path, bytes).unwrap();
        let error = refused(&runtime, dir.path()).await;
        assert!(matches!(error, StartError::Open(StoreOpenError::Foreign { .. })), "{error}");
    }
    fs::write(&path, &whole).unwrap();
    shutdown(&runtime, &[&open(&runtime, dir.path()).await]).await;
}
