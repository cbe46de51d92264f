//! Connections that are kept open although nothing uses them.

use alloc::collections::BTreeSet;

use crate::types::id::ConnectionId;

/// The connections that are kept open; all are live.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// One with a node of the farther half.
    pub(super) far: Option<ConnectionId>,
    /// Those with near nodes, of a node behind a NAT.
    pub(super) near: BTreeSet<ConnectionId>,
}

impl Kept {
    /// Returns whether a connection is kept open.
    pub(super) fn contains(&self, conn: ConnectionId) -> bool {
        self.far == Some(conn) || self.near.contains(&conn)
    }

    /// A connection is not live any longer.
    pub(super) fn remove(&mut self, conn: ConnectionId) {
        self.far = self.far.filter(|far| *far != conn);
        self.near.remove(&conn);
    }
}
