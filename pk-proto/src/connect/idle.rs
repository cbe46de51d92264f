//! When unused connections close, leases, which hold them, and the connections that are kept open.

use alloc::vec::Vec;
use core::time::Duration;

use super::connection::{Connection, State};
use super::room::RECENT;
use super::table::Connections;
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{BucketIndex, ConnectionId, LeaseId, NodeId};
use crate::types::time::Instant;

impl Connections {
    /// A connection was used: its idle time starts again.
    pub(crate) fn touch(&mut self, cx: &mut Cx, conn: ConnectionId) {
        // A retired connection closes at its time, however much it is used.
        if self.note_use(conn, cx.now, RECENT) {
            self.arm(cx, conn);
        }
    }

    /// Sets the idle timer of an accepted connection.
    pub(super) fn arm(&self, cx: &mut Cx, conn: ConnectionId) {
        if let Some(State::Live { connection, .. }) = self.state(conn) {
            let idle_at = self.idle_at(cx, conn, connection);
            // The peer does not know that it stays open: something must be sent before its idle
            // timeout.
            let margin = cx.config.connection_idle_timeout / 2;
            let at = match connection.leases.is_empty() {
                true if !self.is_kept(conn) => idle_at,
                // That is the same at both ends. Nothing depends on when something is sent.
                true if self.kept.far != Some(conn) => idle_at - margin,
                _ => connection.used_at + margin,
            };
            cx.timers.set(Timer::Idle(conn), at);
        }
    }

    /// Returns when a connection closes if it is not used.
    pub(super) fn idle_at(&self, cx: &Cx, conn: ConnectionId, connection: &Connection) -> Instant {
        let is_primary = self.primary(&connection.node) == Some(conn);
        connection.used_at + idle_timeout(cx, &connection.node, is_primary)
    }

    /// Returns whether a lease holds a connection.
    pub(crate) fn is_leased(&self, conn: ConnectionId) -> bool {
        self.connection(conn).is_some_and(|connection| !connection.leases.is_empty())
    }

    /// Returns whether a connection is kept open although nothing uses it.
    pub(crate) fn is_kept(&self, conn: ConnectionId) -> bool {
        self.kept.contains(conn)
    }

    /// Keeps the live connections with these nodes open, too, and no others.
    pub(crate) fn keep_near<'a>(
        &mut self,
        cx: &mut Cx,
        nodes: impl IntoIterator<Item = &'a NodeId>,
    ) {
        let next = nodes.into_iter().filter_map(|node| self.live(node)).collect();
        let before = core::mem::replace(&mut self.kept.near, next);
        let changed: Vec<_> = before.symmetric_difference(&self.kept.near).copied().collect();
        changed.into_iter().for_each(|conn| self.arm(cx, conn));
    }

    /// Returns the number of connections that `keep_near` keeps open.
    pub(crate) fn kept_near(&self) -> usize {
        self.kept.near.len()
    }

    /// Keeps one live connection with a node of a bucket open, as long as it is the primary one
    /// with its node. Nothing changes if one is kept already, or there is none.
    pub(crate) fn keep_one_in(&mut self, cx: &mut Cx, bucket: BucketIndex) {
        let own = cx.own();
        let is_in = |conn: &ConnectionId| {
            let node = self.connection(*conn).map(|connection| connection.node);
            node.is_some_and(|node| own.bucket_index(&node) == Some(bucket))
        };
        if self.kept.far.is_some_and(|kept| is_in(&kept) && self.is_primary(kept)) {
            return;
        }
        let next = self.by_id().one_in(&own, bucket).and_then(|node| self.live(&node));
        if let Some(next) = next {
            let before = self.kept.far.replace(next);
            before.into_iter().chain([next]).for_each(|conn| self.arm(cx, conn));
        }
    }

    /// Leases a connection until `release`.
    pub(crate) fn acquire(&mut self, cx: &mut Cx, conn: ConnectionId) -> Option<LeaseId> {
        self.connection(conn)?;
        let lease = cx.ids.lease();
        self.add_lease(conn, lease);
        self.touch(cx, conn);
        Some(lease)
    }

    /// Ends a lease; has no effect if it has ended.
    pub(crate) fn release(&mut self, cx: &mut Cx, lease: LeaseId) {
        if let Some(conn) = self.remove_lease(lease) {
            self.touch(cx, conn);
        }
    }

    /// One connection with a node is gone: the next one is primary now, and lives longer.
    pub(super) fn promote(&self, cx: &mut Cx, node: &NodeId) {
        if let Some(next) = self.primary(node) {
            self.arm(cx, next);
        }
    }
}

/// Returns 60 s, and for a primary connection up to 2 h more, depending on distance (docs/WIRE.md
/// section 9). Integers only.
fn idle_timeout(cx: &Cx, node: &NodeId, primary: bool) -> Duration {
    let base = cx.config.connection_idle_timeout;
    match cx.own().bucket_index(node) {
        Some(bucket) if primary => {
            base + cx.config.connection_idle_scale * u32::from(255 - bucket.0) / 255
        }
        _ => base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::config::Config;
    use crate::types::time::UnixMillis;

    /// The vectors `stickyIdleTimeout` of `pk-proto/tests/vectors/distance.json`, in whole
    /// milliseconds.
    #[test]
    fn nearer_primary_connections_have_longer_idle_timeouts() {
        let own = NodeId::from_bytes([0; 32]);
        let cx =
            Cx::new(Config::default(), alloc::vec![own], [0; 32], Instant::ORIGIN, UnixMillis(0));
        for (bucket, ms) in
            [(255u8, 60_000), (254, 88_235), (200, 1_612_941), (128, 3_645_882), (0, 7_260_000)]
        {
            let mut bytes = [0; 32];
            bytes[31 - usize::from(bucket / 8)] = 1 << (bucket % 8);
            let node = NodeId::from_bytes(bytes);
            assert_eq!(own.bucket_index(&node).map(|index| index.0), Some(bucket));
            assert_eq!(idle_timeout(&cx, &node, true).as_millis(), ms, "bucket {bucket}");
            assert_eq!(idle_timeout(&cx, &node, false).as_millis(), 60_000);
        }
    }
}
