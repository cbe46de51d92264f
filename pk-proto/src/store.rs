//! What is kept over restarts: the encodings of the rows, and the writing of the graph behind its changes.
//!
//! Rows are bytes for every store (see [`Table`]); what they mean is here, with its version. The graph is written behind:
//! changes are gathered for `store_delay`, then one transaction at a time is under way; one that fails is tried again, and
//! memory is never behind. [`flush`](crate::NodeManager::request) waits until everything is written durably.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::claims::{ChainHead, OpenExchange, sigchain};
use crate::cx::Cx;
use crate::graph::{NodeContact, NodeGraph};
use crate::id::{BucketIndex, EffectId, NodeId, RequestId};
use crate::io::{NodeGraphSpace, Output, StoreOp, Table};
use crate::time::UnixMillis;
use crate::timers::Timer;

/// The version of every row that this program writes, and the newest it reads.
const FORMAT: u8 = 1;
/// The one row of [`Table::Meta`].
const META_KEY: &[u8] = b"node";
/// The longest wait before a failed write is tried again.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Whose store it is, and which half of the graph is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMeta {
    /// The node whose graph this is: its newest key.
    pub owner: NodeId,
    /// The half that holds the graph.
    pub space: NodeGraphSpace,
}

/// What a node knew when it last ran.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Whose; `None` if the store is new.
    pub meta: Option<StoreMeta>,
    /// The graph. What has no room in it any more is left out.
    pub contacts: Vec<(NodeId, NodeContact)>,
    /// When each bucket was last refreshed.
    pub refreshed: Vec<(BucketIndex, UnixMillis)>,
    /// Where the node's chain of claims ends; `None` if it has none.
    pub chain: Option<ChainHead>,
    /// Exchanges of claims that are not finished.
    pub exchanges: Vec<OpenExchange>,
    /// Who may have claims signed.
    pub allowed: Vec<NodeId>,
}

impl Snapshot {
    /// The tables whose rows make a snapshot; a driver loads them whole before the start.
    pub const TABLES: [Table; 7] = [
        Table::Meta,
        Table::Contacts(NodeGraphSpace::A),
        Table::Contacts(NodeGraphSpace::B),
        Table::Refresh,
        Table::ClaimHead,
        Table::Exchanges,
        Table::AllowList,
    ];

    /// Reads a snapshot from the rows of [`TABLES`](Self::TABLES), in any order.
    ///
    /// # Errors
    /// A row that this version cannot read. Nothing should be written to such a store.
    pub fn from_rows(rows: impl IntoIterator<Item = (Table, Bytes, Bytes)>) -> Result<Self, SnapshotError> {
        let mut snapshot = Self::default();
        let mut contacts: BTreeMap<NodeGraphSpace, Vec<(NodeId, NodeContact)>> = BTreeMap::new();
        let mut any = false;
        for (table, key, value) in rows {
            any = true;
            match table {
                Table::Meta if key == META_KEY => snapshot.meta = Some(decode(table, &value)?),
                Table::Meta => return Err(SnapshotError::Corrupt(table)),
                Table::Contacts(space) => {
                    let node = <[u8; 32]>::try_from(&key[..]).map_err(|_| SnapshotError::Corrupt(table))?;
                    contacts.entry(space).or_default().push((NodeId::from_bytes(node), decode(table, &value)?));
                }
                Table::Refresh => match *key {
                    [bucket] => snapshot.refreshed.push((BucketIndex(bucket), decode(table, &value)?)),
                    _ => return Err(SnapshotError::Corrupt(table)),
                },
                Table::ClaimHead => snapshot.chain = Some(sigchain::read_head(&key, &value)?),
                Table::Exchanges => snapshot.exchanges.push(OpenExchange::read(&key, &value)?),
                Table::AllowList => snapshot.allowed.push(sigchain::read_allow_row(&key, &value)?),
                Table::Claims | Table::Answered | Table::Gestalt => {}
            }
        }
        match snapshot.meta {
            Some(meta) => snapshot.contacts = contacts.remove(&meta.space).unwrap_or_default(),
            None if any => return Err(SnapshotError::NoMeta),
            None => {}
        }
        Ok(snapshot)
    }
}

/// Why rows are not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Written by a later version.
    #[error("the store has format {found}; this program reads up to format {FORMAT}")]
    Newer {
        /// The format found.
        found: u8,
    },
    /// A row that no version has written.
    #[error("the store is damaged: a row of {0:?} cannot be read")]
    Corrupt(Table),
    /// Rows, but not the one that says whose they are.
    #[error("the store is damaged: it does not say whose it is")]
    NoMeta,
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    // Plain data in memory: there is nothing in it that postcard cannot write.
    let mut row = alloc::vec![FORMAT];
    row.extend(postcard::to_allocvec(value).unwrap_or_default());
    row.into()
}

pub(crate) fn decode<T: for<'de> Deserialize<'de>>(table: Table, value: &[u8]) -> Result<T, SnapshotError> {
    match value.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            _ => Err(SnapshotError::Corrupt(table)),
        },
        Some((found, _)) if *found > FORMAT => Err(SnapshotError::Newer { found: *found }),
        _ => Err(SnapshotError::Corrupt(table)),
    }
}

/// The row that says whose the store is.
pub(crate) fn meta_row(meta: &StoreMeta) -> StoreOp {
    StoreOp::Put { table: Table::Meta, key: Bytes::from_static(META_KEY), value: encode(meta) }
}

/// The row of a node.
pub(crate) fn contact_row(space: NodeGraphSpace, node: &NodeId, contact: &NodeContact) -> StoreOp {
    let key = Bytes::copy_from_slice(node.as_bytes());
    StoreOp::Put { table: Table::Contacts(space), key, value: encode(contact) }
}

fn refresh_row(bucket: BucketIndex, at: UnixMillis) -> StoreOp {
    StoreOp::Put { table: Table::Refresh, key: Bytes::copy_from_slice(&[bucket.0]), value: encode(&at) }
}

/// What of the graph has changed and is not written yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Changes {
    meta: bool,
    nodes: BTreeSet<NodeId>,
    buckets: BTreeSet<BucketIndex>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        usize::from(self.meta) + self.nodes.len() + self.buckets.len()
    }

    fn merge(&mut self, other: Self) {
        self.meta |= other.meta;
        self.nodes.extend(other.nodes);
        self.buckets.extend(other.buckets);
    }
}

/// Writes the graph behind its changes.
#[derive(Debug, Default)]
pub(crate) struct GraphStore {
    space: NodeGraphSpace,
    held: bool,
    changes: Changes,
    /// The transaction under way, what is in it, and whether it is durable.
    writing: Option<(EffectId, Changes, bool)>,
    /// Something is written that a crash of the machine may undo.
    loose: bool,
    /// Failed in a row.
    failures: u32,
    /// Requests that wait until everything is written.
    flushing: Vec<RequestId>,
    /// The node stops: what is written now is the last, and has to survive.
    last: bool,
    /// Changes that were given up.
    forgotten: usize,
}

impl GraphStore {
    pub(crate) fn new(meta: Option<&StoreMeta>) -> Self {
        let changes = Changes { meta: meta.is_none(), ..Changes::default() };
        Self { space: meta.map(|meta| meta.space).unwrap_or_default(), changes, ..Self::default() }
    }

    /// The half of the graph that is not in use.
    pub(crate) fn other_space(&self) -> NodeGraphSpace {
        match self.space {
            NodeGraphSpace::A => NodeGraphSpace::B,
            NodeGraphSpace::B => NodeGraphSpace::A,
        }
    }

    /// Writes nothing while held: which half is in use is being decided.
    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// The row that says whose the store is, if it may not be there yet: whoever else writes writes it too, because rows
    /// without it are a damaged store.
    pub(crate) fn missing_meta(&self, owner: NodeId) -> Option<StoreOp> {
        let missing = self.changes.meta || self.writing.as_ref().is_some_and(|(_, changes, _)| changes.meta);
        (missing && !self.held).then(|| meta_row(&StoreMeta { owner, space: self.space }))
    }

    /// The half of the graph that is in use.
    pub(crate) fn space(&self) -> NodeGraphSpace {
        self.space
    }

    /// A node came, changed or went.
    pub(crate) fn changed(&mut self, cx: &mut Cx, node: NodeId) {
        self.changes.nodes.insert(node);
        self.arm(cx);
    }

    /// A bucket was refreshed.
    pub(crate) fn refreshed(&mut self, cx: &mut Cx, bucket: BucketIndex) {
        self.changes.buckets.insert(bucket);
        self.arm(cx);
    }

    /// A transaction has written the graph whole into the other half, which is in use from now on. What has changed since
    /// is still to be written.
    pub(crate) fn switched(&mut self, cx: &mut Cx) {
        self.space = self.other_space();
        self.changes.meta = false;
        self.changes.buckets.clear();
        self.loose = false;
        self.held = false;
        self.rearm(cx);
    }

    /// A transaction that would have changed the owner failed, and may have been written nevertheless: the store is told
    /// again whose it is.
    pub(crate) fn not_switched(&mut self, cx: &mut Cx) {
        self.changes.meta = true;
        self.held = false;
        self.rearm(cx);
    }

    /// What has changed is not worth writing, or there is no time for it.
    pub(crate) fn forget(&mut self) {
        self.forgotten += core::mem::take(&mut self.changes).len();
        self.loose = false;
    }

    /// The node stops: from now on everything is written durably.
    pub(crate) fn finish(&mut self) {
        self.last = true;
    }

    /// A request waits until everything is written.
    pub(crate) fn flush(&mut self, request: RequestId) {
        self.flushing.push(request);
    }

    /// Whether nothing is left to write and nothing is being written.
    fn is_idle(&self) -> bool {
        self.changes.is_empty() && self.writing.is_none()
    }

    /// Changes that are not in the store; while it is being decided which half is in use, that one as well.
    pub(crate) fn unwritten(&self) -> usize {
        let writing = self.writing.as_ref().map_or(0, |(_, changes, _)| changes.len());
        self.changes.len() + writing + usize::from(self.held) + self.forgotten
    }

    /// Whether everything is written, and would survive a crash.
    pub(crate) fn is_durable(&self) -> bool {
        self.is_idle() && !self.loose
    }

    /// Writes what has changed, unless a transaction is under way: then it follows that one. If requests wait for it, it is
    /// durable, and makes what was written before durable too; so it is due even if nothing has changed.
    pub(crate) fn write(
        &mut self,
        cx: &mut Cx,
        graph: &NodeGraph,
        unproven: &BTreeSet<NodeId>,
        refreshed: &BTreeMap<BucketIndex, UnixMillis>,
    ) {
        let wanted = !self.changes.is_empty() || !self.flushing.is_empty() || (self.last && self.loose);
        if self.held || self.writing.is_some() || !wanted {
            return;
        }
        cx.timers.cancel(Timer::Store);
        let changes = core::mem::take(&mut self.changes);
        let mut ops = Vec::new();
        if changes.meta {
            ops.push(meta_row(&StoreMeta { owner: graph.own(), space: self.space }));
        }
        for node in &changes.nodes {
            // What no connection has proven is not kept.
            ops.push(match graph.get(node).filter(|_| !unproven.contains(node)) {
                Some(contact) => contact_row(self.space, node, contact),
                None => {
                    StoreOp::Delete { table: Table::Contacts(self.space), key: Bytes::copy_from_slice(node.as_bytes()) }
                }
            });
        }
        for bucket in &changes.buckets {
            if let Some(at) = refreshed.get(bucket) {
                ops.push(refresh_row(*bucket, *at));
            }
        }
        let (id, durable) = (cx.ids.effect(), self.last || !self.flushing.is_empty());
        self.writing = Some((id, changes, durable));
        cx.output(Output::Persist { id, ops, durable });
    }

    /// A transaction is over. `None` if it was not one of the graph; else the requests that have waited for it, and how it
    /// ended.
    pub(crate) fn persisted(
        &mut self,
        cx: &mut Cx,
        id: EffectId,
        result: Result<(), String>,
    ) -> Option<(Vec<RequestId>, Result<(), String>)> {
        let (_, changes, durable) = self.writing.take_if(|(writing, ..)| *writing == id)?;
        match &result {
            Ok(()) => {
                self.failures = 0;
                self.loose = !durable;
            }
            Err(_) => {
                cx.metrics.store_failures += 1;
                self.failures = self.failures.saturating_add(1);
                self.changes.merge(changes);
                self.arm(cx);
            }
        }
        let over = result.is_err() || self.is_durable();
        Some((if over { core::mem::take(&mut self.flushing) } else { Vec::new() }, result))
    }

    /// Whether requests wait for the next transaction.
    pub(crate) fn is_flushing(&self) -> bool {
        !self.flushing.is_empty()
    }

    fn arm(&mut self, cx: &mut Cx) {
        if !self.held && self.writing.is_none() && cx.timers.get(Timer::Store).is_none() {
            let delay = cx.config.store_delay * (1 << self.failures.min(6));
            let delay = if self.failures == 0 { delay } else { delay.clamp(Duration::from_secs(1), MAX_RETRY) };
            cx.timers.set(Timer::Store, cx.now + delay);
        }
    }

    /// After a transaction: what has changed in the meantime is written in its turn.
    pub(crate) fn rearm(&mut self, cx: &mut Cx) {
        if !self.changes.is_empty() || self.is_flushing() {
            self.arm(cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ContactMode, NodeContactAddressData, Scopes};
    use crate::config::Config;
    use crate::time::Instant;

    fn row(op: StoreOp) -> (Table, Bytes, Bytes) {
        match op {
            StoreOp::Put { table, key, value } => (table, key, value),
            other => panic!("{other:?}"),
        }
    }

    fn rows() -> Vec<(Table, Bytes, Bytes)> {
        let meta = StoreMeta { owner: NodeId::from_bytes([1; 32]), space: NodeGraphSpace::B };
        let data =
            NodeContactAddressData { mode: ContactMode::Signal, connected_time: UnixMillis(5), scopes: Scopes::LOCAL };
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
    fn a_snapshot_is_the_half_in_use() {
        let snapshot = Snapshot::from_rows(rows()).unwrap();
        assert_eq!(snapshot.meta.map(|meta| meta.space), Some(NodeGraphSpace::B));
        assert_eq!(snapshot.contacts.len(), 1);
        assert_eq!(snapshot.contacts[0].0, NodeId::from_bytes([2; 32]));
        assert_eq!(snapshot.refreshed, [(BucketIndex(255), UnixMillis(77))]);
        assert_eq!(Snapshot::from_rows([]), Ok(Snapshot::default()));
    }

    /// A store that has written its first row, as `durable` says, and the context it did it in.
    fn written(durable: bool) -> (GraphStore, Cx, NodeGraph) {
        let own = NodeId::from_bytes([1; 32]);
        let mut cx = Cx::new(Config::default(), alloc::vec![own], [0; 32], Instant::ORIGIN, UnixMillis(0));
        let (mut store, graph) = (GraphStore::new(None), NodeGraph::new(own, 20, 5));
        if durable {
            store.flush(RequestId(0));
        }
        let (id, ops, wanted) = write(&mut store, &mut cx, &graph).unwrap();
        assert_eq!((ops, wanted), (1, durable));
        let waiters = if durable { Vec::from([RequestId(0)]) } else { Vec::new() };
        assert_eq!(store.persisted(&mut cx, id, Ok(())), Some((waiters, Ok(()))));
        (store, cx, graph)
    }

    /// Has it write: the effect, how many operations, whether durable.
    fn write(store: &mut GraphStore, cx: &mut Cx, graph: &NodeGraph) -> Option<(EffectId, usize, bool)> {
        store.write(cx, graph, &BTreeSet::new(), &BTreeMap::new());
        match cx.poll_output()? {
            Output::Persist { id, ops, durable } => Some((id, ops.len(), durable)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flush_makes_durable_what_was_written_before_it() {
        let (mut store, mut cx, graph) = written(false);
        assert!(store.is_idle() && !store.is_durable());
        assert_eq!(write(&mut store, &mut cx, &graph), None, "nobody waits");
        store.flush(RequestId(7));
        let (id, ops, durable) = write(&mut store, &mut cx, &graph).unwrap();
        assert_eq!((ops, durable), (0, true));
        // One more comes while it is under way: the same transaction serves both.
        store.flush(RequestId(8));
        let served = Some((Vec::from([RequestId(7), RequestId(8)]), Ok(())));
        assert_eq!(store.persisted(&mut cx, id, Ok(())), served);
        assert!(store.is_durable());

        let (store, ..) = written(true);
        assert!(store.is_durable());
    }

    #[test]
    fn a_flush_waits_for_a_durable_transaction_after_the_one_under_way() {
        let (mut store, mut cx, graph) = written(true);
        store.changed(&mut cx, NodeId::from_bytes([2; 32]));
        let (loose, _, durable) = write(&mut store, &mut cx, &graph).unwrap();
        assert!(!durable);
        store.flush(RequestId(7));
        assert_eq!(write(&mut store, &mut cx, &graph), None, "one at a time");
        assert_eq!(store.persisted(&mut cx, loose, Ok(())), Some((Vec::new(), Ok(()))));
        let (id, ops, durable) = write(&mut store, &mut cx, &graph).unwrap();
        assert_eq!((ops, durable), (0, true));
        assert_eq!(store.persisted(&mut cx, id, Ok(())), Some((Vec::from([RequestId(7)]), Ok(()))));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_of_its_own() {
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
