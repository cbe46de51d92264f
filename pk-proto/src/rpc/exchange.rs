//! Exchanges: streams with several messages in each direction (docs/DESIGN.md, Claims), in both
//! dialects.
//!
//! Both sides send tokens, which are plain bytes here, in the order that the claim machines
//! determine. The initiator ends its direction when it has everything; the responder when it has
//! committed, or with a refusal instead of its next token.

use bytes::Bytes;

use super::table::{Purpose, Rpc};
use crate::api::error::{Failure, PeerFault, code};
use crate::api::transport::DisconnectReason;
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{ConnectionId, StreamId};
use crate::types::refusal::Refusal;
use crate::types::time::Instant;
use crate::wire::codec;
use crate::wire::dialect::Dialect;
use crate::wire::message::RpcResponse;
use crate::wire::native::hello::Hello;
use crate::wire::parsed_message::StreamFormat;

impl Rpc {
    /// Starts an exchange with a first token. Everything that follows is an `RpcEvent::Exchange` of
    /// this stream; it fails at `deadline`.
    ///
    /// # Errors
    /// The peer does not support it, or the connection is gone. Nothing was sent.
    pub(crate) fn begin_exchange(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        token: Bytes,
        deadline: Instant,
    ) -> Result<StreamId, Failure> {
        let lost = Failure::ConnectionLost(DisconnectReason::Local);
        let Some(connection) = self.connections.get(&conn) else { return Err(lost) };
        let dialect = connection.dialect;
        if !self.speaks_exchanges(conn) {
            return Err(Failure::Unsupported);
        }
        let first = codec::exchange(dialect, token, deadline.since(cx.now));
        let (bytes, format) = first.ok_or(Failure::Aborted(code::MESSAGE_TOO_LONG))?;
        let stream = self
            .open(cx, conn, |_| Purpose::Exchange { ours: true }, Some(format), bytes, false)
            .ok_or(lost)?;
        cx.timers.set(Timer::Stream(stream), deadline);
        cx.metrics.calls += 1;
        Ok(stream)
    }

    /// Sends the next token. Has no effect if the stream is gone.
    pub(crate) fn exchange_token(&mut self, cx: &mut Cx, stream: StreamId, token: Bytes) {
        let Some(format) = self.exchange_form(stream) else { return };
        self.exchange_heard(cx, stream);
        match codec::token(format, token) {
            Some(bytes) => self.send(cx, stream, bytes, false),
            None => self.give_up(
                cx,
                stream,
                code::MESSAGE_TOO_LONG,
                Failure::Aborted(code::MESSAGE_TOO_LONG),
            ),
        }
    }

    /// Ends the local direction. The stream ends, without an event, once the peer's has, too.
    pub(crate) fn exchange_finish(&mut self, cx: &mut Cx, stream: StreamId) {
        if self.exchange_form(stream).is_some() {
            self.exchange_heard(cx, stream);
            self.send(cx, stream, Bytes::new(), true);
        }
    }

    /// Ends an exchange of the peer with a refusal; no event follows.
    pub(crate) fn exchange_refuse(&mut self, cx: &mut Cx, stream: StreamId, refusal: Refusal) {
        let conn = self.streams.get(&stream).map(|stream| stream.conn);
        self.exchange_end(cx, stream, refusal);
        if let Some(conn) = conn {
            self.refused(cx, conn, refusal);
        }
    }

    fn exchange_end(&mut self, cx: &mut Cx, stream: StreamId, refusal: Refusal) {
        if self.exchange_form(stream).is_some() {
            self.answer_last(cx, stream, RpcResponse::Refused(refusal));
            self.stop_reading(cx, stream);
        }
    }

    /// Ends an exchange of the peer that violated its rules, with a refusal; only the fault
    /// follows.
    pub(crate) fn exchange_refuse_fault(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        refusal: Refusal,
        fault: PeerFault,
    ) {
        if let Some(conn) = self.streams.get(&id).map(|stream| stream.conn) {
            cx.metrics.stream_faults += 1;
            self.exchange_end(cx, id, refusal);
            self.fault(cx, conn, fault);
        }
    }

    /// A peer violated the rules of claims outside of an exchange.
    pub(crate) fn count_fault(&mut self, cx: &mut Cx, conn: ConnectionId, fault: PeerFault) {
        cx.metrics.stream_faults += 1;
        self.fault(cx, conn, fault);
    }

    /// Returns the dialect of a connection; `None` if it is gone.
    pub(crate) fn dialect(&self, conn: ConnectionId) -> Option<Dialect> {
        self.connections.get(&conn).map(|connection| connection.dialect)
    }

    /// Returns whether the peer of a connection signs claims: exchanges, and those about networks.
    pub(crate) fn speaks_exchanges(&self, conn: ConnectionId) -> bool {
        let connection = self.connections.get(&conn);
        connection
            .is_some_and(|of| of.dialect == Dialect::Polykey || of.features & Hello::EXCHANGE != 0)
    }

    /// Ends a local exchange whose peer violated its rules; it fails, and the fault follows.
    pub(crate) fn exchange_fault(&mut self, cx: &mut Cx, stream: StreamId, fault: PeerFault) {
        self.fail(cx, stream, fault);
    }

    /// Sets the time until which an exchange or a call waits.
    pub(crate) fn wait_until(&mut self, cx: &mut Cx, stream: StreamId, until: Instant) {
        let purpose = self.streams.get(&stream).map(|stream| &stream.purpose);
        if let Some(Purpose::Exchange { .. } | Purpose::Responding) = purpose {
            cx.timers.set(Timer::Stream(stream), until);
        }
    }

    /// An exchange of the peer fails only after a silence of `call_timeout`; a local one at its
    /// deadline.
    pub(super) fn exchange_heard(&mut self, cx: &mut Cx, stream: StreamId) {
        if let Some(Purpose::Exchange { ours: false }) =
            self.streams.get(&stream).map(|stream| &stream.purpose)
        {
            cx.timers.set(Timer::Stream(stream), cx.now + cx.config.call_timeout);
        }
    }

    fn exchange_form(&self, stream: StreamId) -> Option<StreamFormat> {
        let stream = self.streams.get(&stream)?;
        matches!(stream.purpose, Purpose::Exchange { .. }).then_some(stream.format)
    }
}
