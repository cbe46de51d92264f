//! Networks: what a connection needs after the Hellos before it is accepted, if this node belongs
//! to a network (docs/DESIGN.md, Network isolation).
//!
//! On `pk/1` both sides send their network on the control stream, if both belong to one. On `quic`
//! the dialer authenticates the connection with a call of several messages (docs/WIRE.md section
//! 14). An acceptor that requires its network answers nothing else before.

use bytes::Bytes;

use super::event::RpcEvent;
use super::table::{Authentication, Greeting, Purpose, Rpc};
use crate::api::error::{ConnectionErrorReason, Failure, PeerFault, code};
use crate::api::transport::Side;
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{ConnectionId, StreamId};
use crate::types::network_id::NetworkId;
use crate::types::refusal::Refusal;
use crate::wire::codec;
use crate::wire::native::hello::Hello;
use crate::wire::parsed_message::{NetworkMessage, StreamFormat};
use crate::wire::polykey::AuthenticationError;

impl Rpc {
    /// The handshake of a connection on `quic` is complete. The dialer authenticates the connection
    /// if this node belongs to a network. An acceptor that requires it waits for that.
    pub(super) fn authenticate(&mut self, cx: &mut Cx, conn: ConnectionId, side: Side) {
        match &cx.config.network {
            Some(network) if side == Side::Dialer => {
                let (bytes, format) = codec::authenticate(network, cx.config.hello_timeout);
                let purpose = |_| Purpose::Authentication(Authentication::Accept);
                self.set_greeting(conn, Greeting::Network);
                self.open(cx, conn, purpose, Some(format), bytes, false);
            }
            Some(_) if cx.config.network_required => self.set_greeting(conn, Greeting::Network),
            Some(_) | None => self.accept_connection(cx, conn),
        }
    }

    /// The Hellos of a connection on `pk/1` are exchanged. If both sides belong to a network, their
    /// networks follow, on the control stream.
    pub(super) fn name_network(&mut self, cx: &mut Cx, conn: ConnectionId, control: StreamId) {
        let features = self.connections.get(&conn).map_or(0, |connection| connection.features);
        match cx.config.network.clone() {
            Some(network) if features & Hello::NETWORK != 0 => {
                self.set_greeting(conn, Greeting::Network);
                if let Some(bytes) = codec::network(network) {
                    self.send(cx, control, bytes, false);
                }
            }
            _ => self.judge(cx, conn, None),
        }
    }

    /// The peer has sent its network on the control stream.
    pub(super) fn network_named(&mut self, cx: &mut Cx, conn: ConnectionId, peer: &NetworkId) {
        self.judge(cx, conn, Some(peer));
    }

    /// Accepts a connection, or refuses the network of its peer.
    fn judge(&mut self, cx: &mut Cx, conn: ConnectionId, peer: Option<&NetworkId>) {
        match refusal(cx, peer) {
            None => self.accept_connection(cx, conn),
            Some(reason) => self.events.push_back(RpcEvent::OtherNetwork { conn, reason }),
        }
    }

    fn accept_connection(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if connection.greeting != Greeting::Complete {
            connection.greeting = Greeting::Complete;
            self.events.push_back(RpcEvent::Hello { conn });
            if self.external.is_some() {
                self.name_external(cx, conn);
            }
            self.feed_early(cx, conn);
        }
    }

    fn set_greeting(&mut self, conn: ConnectionId, greeting: Greeting) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.greeting = greeting;
        }
    }

    // -- authentication on `quic`

    /// The peer starts an authentication.
    pub(super) fn authentication_begun(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        message: &NetworkMessage,
        format: StreamFormat,
    ) {
        let Some(network) = cx.config.network.clone() else {
            // As a node that does not know the method.
            if let Some(stream) = self.abort(cx, id, code::UNSUPPORTED) {
                self.unsupported(cx, stream.conn);
            }
            return;
        };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.format = format;
        let NetworkMessage::Member(peer) = message else {
            return self.out_of_order(cx, id);
        };
        if let Some(reason) = refusal(cx, peer.as_ref()) {
            return self.refuse(cx, id, reason);
        }
        stream.purpose = Purpose::Authentication(Authentication::Responding);
        cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
        for message in [NetworkMessage::Accepted, NetworkMessage::Member(Some(network))] {
            self.say(cx, id, &message);
        }
    }

    /// The peer has sent the next message of an authentication.
    pub(super) fn authentication_continued(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        step: Authentication,
        message: &NetworkMessage,
    ) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (conn, format) = (stream.conn, stream.format);
        let next = match (step, message) {
            (Authentication::Accept, NetworkMessage::Accepted) => Authentication::Network,
            (Authentication::Network, NetworkMessage::Member(peer)) => {
                if let Some(reason) = refusal(cx, peer.as_ref()) {
                    return self.refuse(cx, id, reason);
                }
                Authentication::End
            }
            (Authentication::End, NetworkMessage::Accepted) => {
                stream.purpose = Purpose::Ended;
                cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
                self.send(cx, id, Bytes::new(), true);
                return self.accept_connection(cx, conn);
            }
            (Authentication::Responding, NetworkMessage::Accepted) => {
                if let Some(bytes) = codec::authentication(format, message) {
                    self.respond(cx, id, bytes);
                }
                self.stop_reading(cx, id);
                return self.accept_connection(cx, conn);
            }
            _ => return self.out_of_order(cx, id),
        };
        stream.purpose = Purpose::Authentication(next);
        if next == Authentication::End {
            self.say(cx, id, &NetworkMessage::Accepted);
        }
    }

    /// The peer has refused the local call, with an error or without a handler for it. A node that
    /// does not know the method belongs to no network.
    pub(super) fn authentication_refused(&mut self, cx: &mut Cx, id: StreamId, unknown: bool) {
        let Some(stream) = self.abort(cx, id, code::NONE) else { return };
        if unknown {
            self.judge(cx, stream.conn, None);
        } else {
            let reason = ConnectionErrorReason::OtherNetwork;
            self.events.push_back(RpcEvent::OtherNetwork { conn: stream.conn, reason });
        }
    }

    /// The stream of an authentication has ended for another reason. A connection that waits for it
    /// cannot be accepted.
    pub(super) fn authentication_lost(&mut self, conn: ConnectionId, failure: &Failure) {
        let waits = self
            .connections
            .get(&conn)
            .is_some_and(|connection| connection.greeting == Greeting::Network);
        if waits && !matches!(failure, Failure::ConnectionLost(_)) {
            let reason = ConnectionErrorReason::NoNetwork;
            self.events.push_back(RpcEvent::OtherNetwork { conn, reason });
        }
    }

    /// A peer that has not named its network sent another request.
    pub(super) fn deny(&mut self, cx: &mut Cx, id: StreamId) {
        cx.metrics.requests_denied += 1;
        let Some(conn) = self.end_with(cx, id, AuthenticationError::Denied) else { return };
        self.refused(cx, conn, Refusal::Denied);
    }

    fn say(&mut self, cx: &mut Cx, id: StreamId, message: &NetworkMessage) {
        let format = self.streams.get(&id).map(|stream| stream.format);
        if let Some(bytes) = format.and_then(|format| codec::authentication(format, message)) {
            self.send(cx, id, bytes, false);
        }
    }

    fn refuse(&mut self, cx: &mut Cx, id: StreamId, reason: ConnectionErrorReason) {
        if let Some(conn) = self.end_with(cx, id, AuthenticationError::Network) {
            self.events.push_back(RpcEvent::OtherNetwork { conn, reason });
        }
    }

    fn out_of_order(&mut self, cx: &mut Cx, id: StreamId) {
        cx.metrics.stream_faults += 1;
        let Some(conn) = self.end_with(cx, id, AuthenticationError::Protocol) else { return };
        if let Some(node) = self.connections.get(&conn).map(|connection| connection.node) {
            let fault = PeerFault::Unexpected;
            self.events.push_back(RpcEvent::Fault { conn, node, fault, fatal: true });
        }
    }

    /// Ends a stream, one of the peer with an error. Returns its connection.
    fn end_with(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        why: AuthenticationError,
    ) -> Option<ConnectionId> {
        let stream = self.streams.get_mut(&id)?;
        let conn = stream.conn;
        if id.is_ours() {
            self.abort(cx, id, code::NONE);
            return Some(conn);
        }
        stream.purpose = Purpose::Responding;
        let error = codec::network_refused(stream.format, why, cx.unix());
        if let Some(bytes) = error {
            self.respond(cx, id, bytes);
        }
        self.stop_reading(cx, id);
        Some(conn)
    }
}

/// Returns why a peer with this network, or without one, is refused.
fn refusal(cx: &Cx, peer: Option<&NetworkId>) -> Option<ConnectionErrorReason> {
    let network = cx.config.network.as_ref()?;
    match peer {
        Some(peer) if peer == network => None,
        Some(_) => Some(ConnectionErrorReason::OtherNetwork),
        None => cx.config.network_required.then_some(ConnectionErrorReason::NoNetwork),
    }
}
