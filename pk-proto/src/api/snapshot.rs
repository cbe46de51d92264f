//! The rows that a node loads at its start.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::claims::{ChainHead, OpenExchange, sigchain};
use crate::store::row::{SnapshotError, decode, encode};
use crate::store::table::{NodeGraphSpace, StoreOp, Table};
use crate::types::contact::NodeContact;
use crate::types::id::{BucketIndex, NodeId};
use crate::types::time::UnixMillis;

/// Key of the only row of [`Table::Meta`].
const META_KEY: &[u8] = b"node";

/// Owner of the store, and the active node graph space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMeta {
    /// Owner: the newest key of the node.
    pub owner: NodeId,
    /// Active node graph space.
    pub space: NodeGraphSpace,
}

/// Stored state of a node's last run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Owner; `None` if the store is new.
    pub meta: Option<StoreMeta>,
    /// Contacts. Those without room in the graph are dropped.
    pub contacts: Vec<(NodeId, NodeContact)>,
    /// Time of the last refresh of each bucket.
    pub refreshed: Vec<(BucketIndex, UnixMillis)>,
    /// Contacts that have left the graph because they did not respond, and when. Those over
    /// `Config::upkeep.lost_limit` are dropped.
    pub lost: Vec<(NodeId, UnixMillis, NodeContact)>,
    /// Head of the local chain; `None` if it is empty.
    pub chain: Option<ChainHead>,
    /// Unfinished claim exchanges.
    pub exchanges: Vec<OpenExchange>,
    /// Nodes on the claim allow-list.
    pub allowed: Vec<NodeId>,
    /// Issuers whose claim was answered with a claim of the local chain.
    pub answered: BTreeSet<NodeId>,
}

impl Snapshot {
    /// Tables whose rows make a snapshot; a driver loads them completely before the start.
    pub const TABLES: [Table; 9] = [
        Table::Meta,
        Table::Contacts(NodeGraphSpace::A),
        Table::Contacts(NodeGraphSpace::B),
        Table::Refresh,
        Table::ClaimHead,
        Table::Exchanges,
        Table::AllowList,
        Table::Answered,
        Table::Lost,
    ];

    /// Parses a snapshot from the rows of [`TABLES`](Self::TABLES), in any order.
    ///
    /// # Errors
    /// A row cannot be parsed by this version. Do not write to such a store.
    pub fn from_rows(
        rows: impl IntoIterator<Item = (Table, Bytes, Bytes)>,
    ) -> Result<Self, SnapshotError> {
        let mut snapshot = Self::default();
        let mut contacts: BTreeMap<NodeGraphSpace, Vec<(NodeId, NodeContact)>> = BTreeMap::new();
        let mut any = false;
        for (table, key, value) in rows {
            any = true;
            match table {
                Table::Meta if key == META_KEY => snapshot.meta = Some(decode(table, &value)?),
                Table::Meta => return Err(SnapshotError::Corrupt(table)),
                Table::Contacts(space) => {
                    let row = (node_key(table, &key)?, decode(table, &value)?);
                    contacts.entry(space).or_default().push(row);
                }
                Table::Lost => {
                    let (since, contact) = decode(table, &value)?;
                    snapshot.lost.push((node_key(table, &key)?, since, contact));
                }
                Table::Refresh => match *key {
                    [bucket] => {
                        snapshot.refreshed.push((BucketIndex(bucket), decode(table, &value)?));
                    }
                    _ => return Err(SnapshotError::Corrupt(table)),
                },
                Table::ClaimHead => snapshot.chain = Some(sigchain::read_head(&key, &value)?),
                Table::Exchanges => snapshot.exchanges.push(OpenExchange::read(&key, &value)?),
                Table::AllowList => snapshot.allowed.push(sigchain::read_allow_row(&key, &value)?),
                Table::Answered => drop(snapshot.answered.insert(sigchain::answered_issuer(&key)?)),
                Table::Claims | Table::Gestalt => {}
            }
        }
        match snapshot.meta {
            Some(meta) => snapshot.contacts = contacts.remove(&meta.space).unwrap_or_default(),
            None if any => return Err(SnapshotError::NoMeta),
            None => {}
        }
        Ok(snapshot)
    }

    /// Returns the operations that write the contacts, as the graph of `owner`, into an empty
    /// store: for tests that start from a known graph.
    pub fn graph_rows(&self, owner: NodeId) -> Vec<StoreOp> {
        let space = NodeGraphSpace::default();
        let contacts =
            self.contacts.iter().map(|(node, contact)| contact_row(space, node, contact));
        core::iter::once(meta_row(&StoreMeta { owner, space })).chain(contacts).collect()
    }
}

/// Parses the key of a row about a node.
fn node_key(table: Table, key: &[u8]) -> Result<NodeId, SnapshotError> {
    let bytes = <[u8; 32]>::try_from(key).map_err(|_| SnapshotError::Corrupt(table))?;
    Ok(NodeId::from_bytes(bytes))
}

/// Returns the row of a lost contact.
pub(crate) fn lost_row(node: &NodeId, since: UnixMillis, contact: &NodeContact) -> StoreOp {
    let key = Bytes::copy_from_slice(node.as_bytes());
    StoreOp::Put { table: Table::Lost, key, value: encode(&(since, contact)) }
}

/// Returns the owner row.
pub(crate) fn meta_row(meta: &StoreMeta) -> StoreOp {
    StoreOp::Put { table: Table::Meta, key: Bytes::from_static(META_KEY), value: encode(meta) }
}

/// Returns the row of a contact.
pub(crate) fn contact_row(space: NodeGraphSpace, node: &NodeId, contact: &NodeContact) -> StoreOp {
    let key = Bytes::copy_from_slice(node.as_bytes());
    StoreOp::Put { table: Table::Contacts(space), key, value: encode(contact) }
}

pub(crate) fn refresh_row(bucket: BucketIndex, at: UnixMillis) -> StoreOp {
    StoreOp::Put {
        table: Table::Refresh,
        key: Bytes::copy_from_slice(&[bucket.0]),
        value: encode(&at),
    }
}
