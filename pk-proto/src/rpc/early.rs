//! Streams before the peer's Hello.
//!
//! A dialer sends its first requests directly after its own Hello, which saves a round trip. The
//! acceptor serves them once that Hello has arrived. Streams overtake each other: any stream may
//! arrive before the one with the Hello, at both ends. The acceptor reads a few early streams,
//! because each may be the one with the Hello, and holds the requests on them. The dialer, which
//! knows that stream, does not read the others.

use super::sets::StreamSet;
use super::table::{Greeting, PerConnection, Purpose, Rpc};
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{ConnectionId, StreamId};

/// Requests of a dialer before the acceptor's Hello (docs/WIRE.md section 19).
const EARLY_REQUESTS: usize = 8;

impl Rpc {
    /// Returns whether a request can be sent before the peer's Hello. Only requests that need no
    /// feature of the peer can.
    pub(crate) fn may_ask_early(&self, cx: &Cx, conn: ConnectionId) -> bool {
        // The acceptor serves nothing before it has received the network, which follows its Hello.
        let has_network = cx.config.network.is_some();
        !has_network
            && self.connections.get(&conn).is_some_and(|connection| {
                let ours = connection.streams.len() - connection.streams.theirs();
                // The control stream is one of them.
                connection.greeting == Greeting::Hello
                    && connection.control.is_some()
                    && ours <= EARLY_REQUESTS
            })
    }

    /// The peer sent its Hello: the requests that were held are served, and the streams that were
    /// opened before are read from now on.
    pub(super) fn feed_early(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let streams = self.connections.get(&conn).map(|connection| connection.streams.clone());
        for id in streams.iter().flat_map(StreamSet::iter) {
            if let Some(stream) = self.streams.get_mut(&id)
                && matches!(stream.purpose, Purpose::First)
            {
                cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
                if let Some(request) = self.held.remove(&id) {
                    stream.parked = false;
                    self.message(cx, id, request);
                }
            }
            self.grant(cx, id);
        }
    }
}

impl PerConnection {
    /// Returns whether a stream must wait for the Hello without being read.
    pub(super) fn is_early(&self, id: StreamId) -> bool {
        self.greeting != Greeting::Complete && self.control.is_some_and(|control| control != id)
    }

    /// Returns whether an acceptor that has not received the Hello has as many streams as a dialer
    /// may open before it: the control stream, and those of its early requests.
    pub(super) fn takes_no_more(&self, theirs: usize) -> bool {
        self.greeting != Greeting::Complete && self.control.is_none() && theirs > EARLY_REQUESTS
    }
}
