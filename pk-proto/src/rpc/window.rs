//! Credit: what peers may send on a connection, shared among its streams.
//!
//! On `pk/1` a stream gets credit for the header of a message, and then for the rest of it in one grant: never for more than
//! that one message. So what follows an opening is never read here, but by the application that takes the stream over, and two
//! long messages never wait for each other. On `quic` nobody says how long a message is: credit goes in steps up to the limit
//! of one, and what was read behind an opening is handed over with the stream. What all streams of a connection hold or may still receive stays under
//! `Config::receive_window`; who does not fit waits, in order.

use super::{PerConnection, Rpc};
use crate::cx::Cx;
use crate::id::{ConnectionId, StreamId};
use crate::io::Output;

impl Rpc {
    /// Grants what a stream needs next, or lets it wait for the connection's window. `false` if it waits.
    pub(super) fn grant(&mut self, cx: &mut Cx, id: StreamId) -> bool {
        self.account(id);
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        let Some(connection) = self.connections.get_mut(&stream.conn) else { return true };
        if stream.recv.is_over() || !stream.reads() || connection.is_early(id) {
            return true;
        }
        let need = stream.recv.missing();
        if need == 0 {
            return true;
        }
        let first = connection.starved.front().is_none_or(|first| *first == id);
        if !first || connection.received.saturating_add(need) > cx.config.receive_window {
            if !connection.starved.contains(&id) {
                connection.starved.push_back(id);
            }
            return false;
        }
        stream.recv.credit = stream.recv.credit.saturating_add(need);
        cx.output(Output::ReadCredit { stream: id, bytes: need });
        self.account(id);
        true
    }

    /// Brings the sum of its connection up to date with what a stream costs now.
    fn account(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(connection) = self.connections.get_mut(&stream.conn) else { return };
        let cost = stream.recv.cost();
        connection.received = connection.received.saturating_sub(stream.cost).saturating_add(cost);
        stream.cost = cost;
    }

    /// Serves the streams that wait for credit, in their order, as far as the window reaches.
    pub(super) fn feed(&mut self, cx: &mut Cx, conn: ConnectionId) {
        while let Some(id) = self.connections.get(&conn).and_then(|connection| connection.starved.front().copied()) {
            if !self.grant(cx, id) {
                return;
            }
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.starved.retain(|starved| *starved != id);
            }
        }
    }

    /// The peer said Hello: the streams that it opened before are read from now on.
    pub(super) fn feed_early(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let streams = self.connections.get(&conn).map(|connection| connection.streams.clone());
        for id in streams.into_iter().flatten() {
            self.grant(cx, id);
        }
    }
}

impl PerConnection {
    /// Whether a stream has to wait for the Hello. Streams overtake each other: an acceptor that has said Hello may ask on
    /// the next one, and the question be here first. A dialler does so only once it was greeted.
    fn is_early(&self, id: StreamId) -> bool {
        !self.hello && self.control.is_some_and(|control| control != id)
    }
}
