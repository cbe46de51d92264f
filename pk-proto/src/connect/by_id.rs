//! Connections by the ids of their peers, so that nothing looks through all of them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::shares::decrement;
use crate::types::id::{BucketIndex, ConnectionId, NodeId};
use crate::types::nearest;

/// Connections whose handshake is complete, until the driver has reported their end.
#[derive(Debug, Default)]
pub(super) struct ById {
    /// By every id that the peer proved.
    proved: BTreeMap<NodeId, BTreeSet<ConnectionId>>,
    /// Number of accepted connections by the newest id of the peer.
    accepted: BTreeMap<NodeId, usize>,
    /// Sum of `accepted`.
    total: usize,
}

impl ById {
    /// A handshake is complete.
    pub(super) fn join(&mut self, conn: ConnectionId, chain: &[NodeId]) {
        for id in chain {
            self.proved.entry(*id).or_default().insert(conn);
        }
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, conn: ConnectionId, chain: &[NodeId]) {
        for id in chain {
            if let Some(conns) = self.proved.get_mut(id) {
                conns.remove(&conn);
                if conns.is_empty() {
                    self.proved.remove(id);
                }
            }
        }
    }

    /// A connection is accepted.
    pub(super) fn accept(&mut self, node: NodeId) {
        *self.accepted.entry(node).or_default() += 1;
        self.total += 1;
    }

    /// A connection is no longer accepted.
    pub(super) fn end(&mut self, node: &NodeId) {
        decrement(&mut self.accepted, node);
        self.total = self.total.saturating_sub(1);
    }

    /// Returns the connections with a node, by any id that it proved.
    pub(super) fn of(&self, node: &NodeId) -> impl Iterator<Item = ConnectionId> {
        self.proved.get(node).into_iter().flatten().copied()
    }

    /// Returns the number of accepted connections.
    pub(super) fn accepted(&self) -> usize {
        self.total
    }

    /// Returns the nodes with an accepted connection, the closest to `target` first.
    pub(super) fn closest(&self, target: &NodeId, limit: usize) -> Vec<NodeId> {
        nearest::closest(&self.accepted, target, limit)
    }

    /// Returns a node of a bucket of `own` with an accepted connection.
    pub(super) fn one_in(&self, own: &NodeId, bucket: BucketIndex) -> Option<NodeId> {
        // The ids of a bucket are those nearest to any one of them.
        let member = nearest::member(own, bucket);
        let nearest = self.closest(&member, 1);
        nearest.first().filter(|node| own.bucket_index(node) == Some(bucket)).copied()
    }
}
