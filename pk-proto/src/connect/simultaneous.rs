//! Simultaneous dials with room for one connection: both ends keep the same one.

use bytes::Bytes;

use super::connection::State;
use super::table::Connections;
use crate::api::transport::Side;
use crate::types::id::{ConnectionId, NodeId, RaceId};

impl Connections {
    /// Returns the connection with a node that the other end has started, as seen from `side`: of
    /// several, the one with the greatest shared id. If both ends dial at once and there is room
    /// for one connection, both keep the one with the smaller id.
    pub(super) fn opposite(&self, node: &NodeId, side: Side) -> Option<ConnectionId> {
        let counted = self.by_id().of(node).filter_map(|conn| match self.state(conn)? {
            State::Greeting { connection, .. } | State::Live { connection, .. } => {
                Some((conn, connection))
            }
            _ => None,
        });
        let of_node = counted.filter(|(_, other)| other.node == *node && other.side != side);
        of_node.max_by_key(|(_, other)| other.shared_id.clone()).map(|(conn, _)| conn)
    }

    /// Returns whether a connection has a greater shared id than this one.
    pub(super) fn is_behind(&self, conn: ConnectionId, shared_id: &Bytes) -> bool {
        self.connection(conn).is_some_and(|connection| connection.shared_id > *shared_id)
    }

    /// Returns whether a connection can take over a race: the peer has not accepted it, and no race
    /// waits for it.
    pub(super) fn can_take_over(&self, conn: ConnectionId) -> bool {
        matches!(self.state(conn), Some(State::Greeting { race: None, .. }))
    }

    /// One connection is closed in favour of another one with its node: the race of the first
    /// continues with the other. Returns the race, if it has not ended.
    pub(super) fn hand_race(
        &mut self,
        id: RaceId,
        from: ConnectionId,
        to: ConnectionId,
    ) -> Option<RaceId> {
        let race = self.races.get_mut(id)?;
        if let Some(dial) = race.dialing.remove(&from) {
            race.dialing.insert(to, dial);
        }
        Some(id)
    }
}
