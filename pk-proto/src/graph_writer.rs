//! Delayed writes of the graph.
//!
//! Changes are collected for `store_delay`, then one transaction at a time is in progress; a failed
//! one is retried, and memory is never behind. [`flush`](crate::NodeManager::request) waits until
//! everything is written durably.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use crate::api::output::Output;
use crate::api::snapshot::{StoreMeta, contact_row, lost_row, meta_row, refresh_row};
use crate::graph::NodeGraph;
use crate::machine::cx::Cx;
use crate::machine::effects::{EffectOwner, PersistOwner};
use crate::machine::timer::Timer;
use crate::store::table::{NodeGraphSpace, StoreOp, Table, WriteFailure};
use crate::types::contact::NodeContact;
use crate::types::id::{BucketIndex, NodeId, RequestId};
use crate::types::time::UnixMillis;

/// Half of the first delay before a failed write with waiting requests is retried.
const FLUSH_RETRY: Duration = Duration::from_millis(500);
/// Maximum delay before a failed write is retried.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Changes of the graph that are not written yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Changes {
    meta: bool,
    nodes: BTreeSet<NodeId>,
    buckets: BTreeSet<BucketIndex>,
    /// Contacts that were lost, or are no longer.
    lost: BTreeSet<NodeId>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        usize::from(self.meta) + self.nodes.len() + self.buckets.len() + self.lost.len()
    }

    fn merge(&mut self, other: Self) {
        self.meta |= other.meta;
        self.nodes.extend(other.nodes);
        self.buckets.extend(other.buckets);
        self.lost.extend(other.lost);
    }
}

/// Writes changes of the graph after a delay.
#[derive(Debug, Default)]
pub(crate) struct GraphWriter {
    space: NodeGraphSpace,
    paused: bool,
    changes: Changes,
    /// The changes of the transaction in progress, and whether it is durable.
    writing: Option<(Changes, bool)>,
    /// Whether something is written that a crash of the machine may undo.
    has_nondurable: bool,
    /// Number of consecutive failures.
    failures: u32,
    /// Requests that wait until everything is written.
    flushing: BTreeSet<RequestId>,
    /// Whether the node is stopping: what is written now must be durable.
    stopping: bool,
    /// Number of changes that were dropped.
    dropped: usize,
    /// Why the outcome of the last transaction is unknown, if it is.
    doubt: Option<String>,
    /// Whether the store accepts no more transactions.
    closed: bool,
}

impl GraphWriter {
    pub(crate) fn new(meta: Option<&StoreMeta>) -> Self {
        let changes = Changes { meta: meta.is_none(), ..Changes::default() };
        Self { space: meta.map(|meta| meta.space).unwrap_or_default(), changes, ..Self::default() }
    }

    /// Returns the inactive node graph space.
    pub(crate) fn other_space(&self) -> NodeGraphSpace {
        match self.space {
            NodeGraphSpace::A => NodeGraphSpace::B,
            NodeGraphSpace::B => NodeGraphSpace::A,
        }
    }

    /// Pauses writes while the active space is being changed.
    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Returns the owner row if it may not have been written yet. Other writers include it in their
    /// transaction, because a store with rows but no owner is refused as damaged.
    pub(crate) fn missing_meta(&self, owner: NodeId) -> Option<StoreOp> {
        (self.misses_meta() && !self.paused)
            .then(|| meta_row(&StoreMeta { owner, space: self.space }))
    }

    /// Returns whether the owner of the store is not known yet, because a renewal that writes first
    /// decides it. Until then nothing else is written, because rows without an owner are a damaged
    /// store.
    pub(crate) fn awaits_owner(&self) -> bool {
        self.paused && self.misses_meta()
    }

    fn misses_meta(&self) -> bool {
        self.changes.meta || self.writing.as_ref().is_some_and(|(changes, _)| changes.meta)
    }

    /// Returns the active node graph space.
    pub(crate) fn space(&self) -> NodeGraphSpace {
        self.space
    }

    /// A contact was added, changed or removed.
    pub(crate) fn changed(&mut self, cx: &mut Cx, node: NodeId) {
        self.changes.nodes.insert(node);
        self.arm(cx);
    }

    /// A bucket was refreshed.
    pub(crate) fn refreshed(&mut self, cx: &mut Cx, bucket: BucketIndex) {
        self.changes.buckets.insert(bucket);
        self.arm(cx);
    }

    /// A contact was lost, or is no longer.
    pub(crate) fn lost_changed(&mut self, cx: &mut Cx, node: NodeId) {
        self.changes.lost.insert(node);
        self.arm(cx);
    }

    /// A transaction has written the whole graph to the other space, which is active from now on.
    /// Later changes are still to be written.
    pub(crate) fn space_switched(&mut self, cx: &mut Cx) {
        self.space = self.other_space();
        self.changes.meta = false;
        self.changes.buckets.clear();
        self.has_nondurable = false;
        self.paused = false;
        self.rearm(cx);
    }

    /// A transaction that would have changed the owner failed, and may have been applied: the owner
    /// row is written again.
    pub(crate) fn space_not_switched(&mut self, cx: &mut Cx) {
        self.changes.meta = true;
        self.paused = false;
        self.rearm(cx);
    }

    /// Drops the changes, because they need not be written or there is no time.
    pub(crate) fn discard(&mut self) {
        let has_nondurable = core::mem::take(&mut self.has_nondurable);
        self.dropped += core::mem::take(&mut self.changes).len() + usize::from(has_nondurable);
    }

    /// The node stops: everything is written durably from now on.
    pub(crate) fn begin_shutdown(&mut self) {
        self.stopping = true;
    }

    /// A request waits until everything is written.
    pub(crate) fn flush(&mut self, request: RequestId) {
        self.flushing.insert(request);
    }

    /// A request no longer waits.
    pub(crate) fn leave(&mut self, request: RequestId) {
        self.flushing.remove(&request);
    }

    /// Returns whether nothing is left to write and nothing is being written.
    fn is_idle(&self) -> bool {
        self.changes.is_empty() && self.writing.is_none()
    }

    /// Returns the number of changes that are not written, including the owner row while the active
    /// space is being changed. After `stop`, all changes that a crash would undo count as one.
    pub(crate) fn unwritten(&self) -> usize {
        let writing = self.writing.as_ref().map_or(0, |(changes, _)| changes.len());
        let has_nondurable = self.stopping && self.has_nondurable;
        self.changes.len()
            + writing
            + usize::from(self.paused)
            + usize::from(has_nondurable)
            + self.dropped
    }

    /// Returns the number of requests that wait until everything is written.
    pub(crate) fn flushes(&self) -> usize {
        self.flushing.len()
    }

    /// Returns whether everything is written and would survive a crash.
    pub(crate) fn is_durable(&self) -> bool {
        self.is_idle() && !self.has_nondurable
    }

    /// Writes the changes, unless a transaction is in progress: then they follow it. If requests
    /// wait, the transaction is durable and makes earlier ones durable too, so that it is needed
    /// even without changes.
    pub(crate) fn write(
        &mut self,
        cx: &mut Cx,
        graph: &NodeGraph,
        unproven: &BTreeSet<NodeId>,
        refreshed: &BTreeMap<BucketIndex, UnixMillis>,
        lost: impl Fn(&NodeId) -> Option<(UnixMillis, NodeContact)>,
    ) {
        let wanted = !self.changes.is_empty()
            || !self.flushing.is_empty()
            || (self.stopping && self.has_nondurable);
        if self.paused || self.writing.is_some() || !wanted {
            return;
        }
        cx.timers.cancel(Timer::Store);
        let changes = core::mem::take(&mut self.changes);
        let mut ops = Vec::new();
        if changes.meta {
            ops.push(meta_row(&StoreMeta { owner: graph.own(), space: self.space }));
        }
        for node in &changes.nodes {
            // Contacts that no connection has proved are not stored.
            ops.push(match graph.get(node).filter(|_| !unproven.contains(node)) {
                Some(contact) => contact_row(self.space, node, contact),
                None => StoreOp::Delete {
                    table: Table::Contacts(self.space),
                    key: Bytes::copy_from_slice(node.as_bytes()),
                },
            });
        }
        for bucket in &changes.buckets {
            if let Some(at) = refreshed.get(bucket) {
                ops.push(refresh_row(*bucket, *at));
            }
        }
        for node in &changes.lost {
            ops.push(match lost(node) {
                Some((since, contact)) => lost_row(node, since, &contact),
                None => StoreOp::Delete {
                    table: Table::Lost,
                    key: Bytes::copy_from_slice(node.as_bytes()),
                },
            });
        }
        let id = cx.effects.begin(EffectOwner::Persist(PersistOwner::Graph));
        let durable = self.stopping || !self.flushing.is_empty();
        self.writing = Some((changes, durable));
        cx.output(Output::Persist { id, ops, durable });
    }

    /// The transaction has completed. Returns the requests that waited for it, and its result;
    /// `None` if there is no transaction.
    pub(crate) fn persisted(
        &mut self,
        cx: &mut Cx,
        result: Result<(), WriteFailure>,
    ) -> Option<(Vec<RequestId>, Result<(), WriteFailure>)> {
        let (changes, durable) = self.writing.take()?;
        self.doubt = None;
        match &result {
            Ok(()) => {
                self.failures = 0;
                self.has_nondurable = !durable;
            }
            Err(failure) => {
                cx.metrics.store_failures += 1;
                self.failures = self.failures.saturating_add(1);
                self.changes.merge(changes);
                match failure {
                    // Rows contain state and not changes, so that they can be written again,
                    // whatever the outcome.
                    WriteFailure::Unknown(why) => {
                        cx.metrics.writes_unknown += 1;
                        self.doubt = Some(why.clone());
                    }
                    WriteFailure::Closed(_) => self.closed = true,
                    WriteFailure::NotApplied(_) => {}
                }
                self.arm(cx);
            }
        }
        // Requests wait until the outcome is known, except at the end.
        let over = match &result {
            Ok(()) => self.is_durable(),
            Err(WriteFailure::Unknown(_)) => self.stopping,
            Err(_) => true,
        };
        let over = if over { core::mem::take(&mut self.flushing) } else { BTreeSet::new() };
        Some((over.into_iter().collect(), result))
    }

    /// Returns why the outcome of the last transaction is unknown, if it is.
    pub(crate) fn doubt(&self) -> Option<&str> {
        self.doubt.as_deref()
    }

    /// Returns whether requests wait for the next transaction.
    pub(crate) fn is_flushing(&self) -> bool {
        !self.flushing.is_empty()
    }

    fn arm(&mut self, cx: &mut Cx) {
        if !self.paused
            && !self.closed
            && self.writing.is_none()
            && cx.timers.get(Timer::Store).is_none()
        {
            // A flush is not delayed by the retry delay of other writes.
            let delay = if self.is_flushing() { FLUSH_RETRY } else { cx.config.store_delay };
            let delay = delay * (1 << self.failures.min(6));
            let delay = if self.failures == 0 {
                delay
            } else {
                delay.clamp(Duration::from_secs(1), MAX_RETRY)
            };
            cx.timers.set(Timer::Store, cx.now + delay);
        }
    }

    /// After a transaction: later changes are written in turn.
    pub(crate) fn rearm(&mut self, cx: &mut Cx) {
        if !self.changes.is_empty() || self.is_flushing() {
            self.arm(cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::config::Config;
    use crate::api::snapshot::Snapshot;
    use crate::store::row::SnapshotError;
    use crate::types::address::ContactMode;
    use crate::types::address::NodeContactAddressData;
    use crate::types::address::Scopes;
    use crate::types::time::Instant;

    fn row(op: StoreOp) -> (Table, Bytes, Bytes) {
        match op {
            StoreOp::Put { table, key, value } => (table, key, value),
            other => panic!("{other:?}"),
        }
    }

    fn rows() -> Vec<(Table, Bytes, Bytes)> {
        let meta = StoreMeta { owner: NodeId::from_bytes([1; 32]), space: NodeGraphSpace::B };
        let data = NodeContactAddressData {
            mode: ContactMode::Signal,
            connected_time: UnixMillis(5),
            scopes: Scopes::LOCAL,
        };
        let contact = NodeContact::new("10.0.0.1:1314".parse().unwrap(), data);
        let other = NodeId::from_bytes([3; 32]);
        [
            meta_row(&meta),
            contact_row(NodeGraphSpace::B, &NodeId::from_bytes([2; 32]), &contact),
            contact_row(NodeGraphSpace::A, &other, &contact),
            refresh_row(BucketIndex(255), UnixMillis(77)),
        ]
        .map(row)
        .into()
    }

    #[test]
    fn snapshot_contains_the_active_space() {
        let snapshot = Snapshot::from_rows(rows()).unwrap();
        assert_eq!(snapshot.meta.map(|meta| meta.space), Some(NodeGraphSpace::B));
        assert_eq!(snapshot.contacts.len(), 1);
        assert_eq!(snapshot.contacts[0].0, NodeId::from_bytes([2; 32]));
        assert_eq!(snapshot.refreshed, [(BucketIndex(255), UnixMillis(77))]);
        assert_eq!(Snapshot::from_rows([]), Ok(Snapshot::default()));
    }

    /// A store that has written its first row, durably or not, and its context.
    fn written(durable: bool) -> (GraphWriter, Cx, NodeGraph) {
        let own = NodeId::from_bytes([1; 32]);
        let mut cx =
            Cx::new(Config::default(), alloc::vec![own], [0; 32], Instant::ORIGIN, UnixMillis(0));
        cx.set_phase(crate::machine::phase::Phase::Running);
        let (mut store, graph) = (GraphWriter::new(None), NodeGraph::new(own, 20, 5));
        if durable {
            store.flush(RequestId(0));
        }
        let (ops, wanted) = write(&mut store, &mut cx, &graph).unwrap();
        assert_eq!((ops, wanted), (1, durable));
        let waiters = if durable { Vec::from([RequestId(0)]) } else { Vec::new() };
        assert_eq!(store.persisted(&mut cx, Ok(())), Some((waiters, Ok(()))));
        (store, cx, graph)
    }

    /// Starts a write. Returns the number of operations, and whether it is durable.
    fn write(store: &mut GraphWriter, cx: &mut Cx, graph: &NodeGraph) -> Option<(usize, bool)> {
        store.write(cx, graph, &BTreeSet::new(), &BTreeMap::new(), |_| None);
        match cx.poll_output()? {
            Output::Persist { ops, durable, .. } => Some((ops.len(), durable)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flush_makes_durable_what_was_written_before_it() {
        let (mut store, mut cx, graph) = written(false);
        assert!(store.is_idle() && !store.is_durable());
        assert_eq!(write(&mut store, &mut cx, &graph), None, "no request waits");
        store.flush(RequestId(7));
        let (ops, durable) = write(&mut store, &mut cx, &graph).unwrap();
        assert_eq!((ops, durable), (0, true));
        // Another request while it is in progress: the same transaction serves both.
        store.flush(RequestId(8));
        let served = Some((Vec::from([RequestId(7), RequestId(8)]), Ok(())));
        assert_eq!(store.persisted(&mut cx, Ok(())), served);
        assert!(store.is_durable());

        let (store, ..) = written(true);
        assert!(store.is_durable());
    }

    #[test]
    fn flush_waits_for_a_durable_transaction_after_the_one_in_progress() {
        let (mut store, mut cx, graph) = written(true);
        store.changed(&mut cx, NodeId::from_bytes([2; 32]));
        let (_, durable) = write(&mut store, &mut cx, &graph).unwrap();
        assert!(!durable);
        store.flush(RequestId(7));
        assert_eq!(write(&mut store, &mut cx, &graph), None, "one at a time");
        assert_eq!(store.persisted(&mut cx, Ok(())), Some((Vec::new(), Ok(()))));
        let (ops, durable) = write(&mut store, &mut cx, &graph).unwrap();
        assert_eq!((ops, durable), (0, true));
        assert_eq!(store.persisted(&mut cx, Ok(())), Some((Vec::from([RequestId(7)]), Ok(()))));
    }

    #[test]
    fn each_unreadable_row_is_a_distinct_error() {
        let with = |change: fn(&mut Vec<(Table, Bytes, Bytes)>)| {
            let mut rows = rows();
            change(&mut rows);
            Snapshot::from_rows(rows).unwrap_err()
        };
        assert_eq!(with(|rows| drop(rows.remove(0))), SnapshotError::NoMeta);
        let newer = with(|rows| rows[1].2 = [&[9], &rows[1].2[1..]].concat().into());
        assert_eq!(newer, SnapshotError::Newer { found: 9 });
        for bad in [
            with(|rows| rows[1].2 = Bytes::new()),
            with(|rows| rows[1].2 = rows[1].2.slice(..5)),
            with(|rows| rows[1].2 = [&rows[1].2[..], &[0]].concat().into()),
            with(|rows| rows[1].2 = [&[0], &rows[1].2[1..]].concat().into()),
            with(|rows| rows[1].1 = Bytes::from_static(b"short")),
        ] {
            assert_eq!(bad, SnapshotError::Corrupt(Table::Contacts(NodeGraphSpace::B)));
        }
        assert_eq!(with(|rows| rows[3].1 = Bytes::new()), SnapshotError::Corrupt(Table::Refresh));
        assert_eq!(with(|rows| rows[0].1 = Bytes::new()), SnapshotError::Corrupt(Table::Meta));
    }
}
