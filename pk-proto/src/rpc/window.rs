//! Credit: what peers may send on a connection, shared among its streams.
//!
//! What all streams of a connection hold or may still receive stays under `Config::receive_window`. A stream gets a little
//! at once, out of one half of the window, and the rest of a message that has announced its length in one grant, so that
//! two long messages never wait for each other.

use super::{Purpose, Rpc};
use crate::cx::Cx;
use crate::id::{ConnectionId, StreamId};
use crate::io::Output;

/// Credit of a stream before the length of its first message is known: most questions fit.
const FIRST_CREDIT: u64 = 1024;

impl Rpc {
    /// Grants what a stream needs next, or lets it wait for the connection's window. `false` if it waits.
    pub(super) fn grant(&mut self, cx: &mut Cx, id: StreamId) -> bool {
        self.account(id);
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        let Some(connection) = self.connections.get_mut(&stream.conn) else { return true };
        let reads = !stream.recv.fin && !matches!(stream.purpose, Purpose::Asked | Purpose::Answered);
        let missing = if reads { stream.recv.missing() } else { 0 };
        if missing == 0 {
            return true;
        }
        let first = stream.recv.decoder.buffered() == 0;
        let (need, window) = match first {
            true => (missing.max(FIRST_CREDIT), cx.config.receive_window / 2),
            false => (missing, cx.config.receive_window),
        };
        if connection.received.saturating_add(need) > window {
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
}
