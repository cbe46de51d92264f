//! Nodes in directories, and stores that exist longer than their nodes.

use std::path::Path;
use std::sync::{Arc, Mutex};

use pk_driver::{KeyStore, MemoryStore, Node, NodeConfig, RedbStore, Store, StoreError};
use pk_proto::{NodeId, Snapshot, StoreOp, StoreRange, StoreRow, WriteFailure};
use pk_tests::Rt;
use pk_tests::socket::loopback;
use pk_tests::wait::soon;

/// Starts the node of a directory.
pub(crate) async fn open<R: Rt>(runtime: &R, dir: &Path) -> Node<R> {
    open_with(runtime, dir, |_| {}).await
}

/// Starts the node of a directory with other settings.
pub(crate) async fn open_with<R: Rt>(
    runtime: &R,
    dir: &Path,
    change: impl FnOnce(&mut NodeConfig),
) -> Node<R> {
    let mut config = NodeConfig::open(dir).unwrap();
    config.listen = loopback();
    change(&mut config);
    soon(runtime, "start", Node::start_on(runtime.clone(), config)).await.unwrap()
}

/// What the store of a directory contains while no node runs there.
pub(crate) fn snapshot(dir: &Path) -> Snapshot {
    Snapshot::from_rows(RedbStore::open(dir.join("store.redb")).unwrap().load().unwrap()).unwrap()
}

/// The owner of the store of a directory.
pub(crate) fn owner(dir: &Path) -> Option<NodeId> {
    snapshot(dir).meta.map(|meta| meta.owner)
}

/// The names of the files of keys and certificates in the key store of a directory, sorted. The
/// transport secret is neither.
pub(crate) fn key_files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("keys")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "transport.key");
    names.sort();
    names
}

/// The current key of a directory, read without its store.
pub(crate) fn present_key(dir: &Path) -> NodeId {
    KeyStore::new(dir).load_key().unwrap().unwrap().node_id()
}

/// A store that exists longer than its node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<MemoryStore>>);

impl Store for Kept {
    fn apply(&mut self, ops: &[StoreOp], durable: bool) -> Result<(), WriteFailure> {
        self.0.lock().unwrap().apply(ops, durable)
    }

    fn range(
        &mut self,
        range: &StoreRange,
        max_bytes: u64,
    ) -> Result<(Vec<StoreRow>, bool), StoreError> {
        self.0.lock().unwrap().range(range, max_bytes)
    }
}
