//! Exchanges: streams with several messages each way (DESIGN section 6), in whatever dialect.
//!
//! Both sides send tokens, which are nothing but bytes here, in the order that the claims machines know. The side that began
//! ends its direction when it has all; the other one when it has committed, or in place of its next token with a refusal.

use bytes::Bytes;

use super::call::{Answer, Refusal};
use super::native::Hello;
use super::{Purpose, Rpc, codec};
use crate::cx::Cx;
use crate::error::{Failure, PeerFault, code};
use crate::id::{ConnectionId, StreamId};
use crate::io::{Dialect, DisconnectReason};
use crate::time::Instant;
use crate::timers::Timer;

/// How far the peer's part in an exchange has come.
#[derive(Debug)]
pub(crate) enum ExchangeStep {
    /// The peer begins one, with its first token.
    Begun(Bytes),
    /// Its next token.
    Token(Bytes),
    /// It has said all that it will. Our direction may still be open.
    Finished,
    /// The stream is gone. A refusal of the peer is [`Failure::Refused`].
    Failed(Failure),
}

impl Rpc {
    /// Begins an exchange with a first token. Everything that follows is an `RpcEvent::Exchange` of this stream; it fails at
    /// `deadline`.
    ///
    /// # Errors
    /// `Unsupported` by the peer, or the connection is gone. Nothing was sent.
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
        let (bytes, form) = first.ok_or(Failure::Aborted(code::MESSAGE_TOO_LONG))?;
        let stream = self.open(cx, conn, |_| Purpose::Exchange { ours: true }, Some(form), bytes, false).ok_or(lost)?;
        cx.timers.set(Timer::Stream(stream), deadline);
        cx.metrics.calls += 1;
        Ok(stream)
    }

    /// Sends the next token of ours. Nothing happens if the stream is gone.
    pub(crate) fn exchange_token(&mut self, cx: &mut Cx, stream: StreamId, token: Bytes) {
        let Some(form) = self.exchange_form(stream) else { return };
        self.exchange_heard(cx, stream);
        match codec::token(form, token) {
            Some(bytes) => self.send(cx, stream, bytes, false),
            None => self.give_up(cx, stream, code::MESSAGE_TOO_LONG, Failure::Aborted(code::MESSAGE_TOO_LONG)),
        }
    }

    /// We have said all. The stream is over, without an event, once the peer has, too.
    pub(crate) fn exchange_finish(&mut self, cx: &mut Cx, stream: StreamId) {
        if self.exchange_form(stream).is_some() {
            self.exchange_heard(cx, stream);
            self.send(cx, stream, Bytes::new(), true);
        }
    }

    /// Ends an exchange of the peer with a refusal; no event follows.
    pub(crate) fn exchange_refuse(&mut self, cx: &mut Cx, stream: StreamId, refusal: Refusal) {
        if self.exchange_form(stream).is_some() {
            self.answer_last(cx, stream, Answer::Refused(refusal));
            self.stop_reading(cx, stream);
        }
    }

    /// Ends an exchange of the peer, who broke its rules, with a refusal; no event follows but the fault.
    pub(crate) fn exchange_refuse_fault(&mut self, cx: &mut Cx, id: StreamId, refusal: Refusal, fault: PeerFault) {
        if let Some(conn) = self.streams.get(&id).map(|stream| stream.conn) {
            cx.metrics.stream_faults += 1;
            self.exchange_refuse(cx, id, refusal);
            self.fault(cx, conn, fault);
        }
    }

    /// A peer broke the rules of claims outside of an exchange.
    pub(crate) fn count_fault(&mut self, cx: &mut Cx, conn: ConnectionId, fault: PeerFault) {
        cx.metrics.stream_faults += 1;
        self.fault(cx, conn, fault);
    }

    /// What a connection speaks; `None` if it is gone.
    pub(crate) fn dialect(&self, conn: ConnectionId) -> Option<Dialect> {
        self.connections.get(&conn).map(|connection| connection.dialect)
    }

    /// Whether the peer of a connection signs claims: exchanges, and those about networks.
    pub(crate) fn speaks_exchanges(&self, conn: ConnectionId) -> bool {
        let connection = self.connections.get(&conn);
        connection.is_some_and(|of| of.dialect == Dialect::Polykey || of.features & Hello::EXCHANGE != 0)
    }

    /// Ends an exchange of ours whose peer broke its rules; it fails, and the fault follows.
    pub(crate) fn exchange_fault(&mut self, cx: &mut Cx, stream: StreamId, fault: PeerFault) {
        self.fail(cx, stream, fault);
    }

    /// From now on an exchange or a question waits until then, whatever was agreed before.
    pub(crate) fn wait_until(&mut self, cx: &mut Cx, stream: StreamId, until: Instant) {
        let purpose = self.streams.get(&stream).map(|stream| &stream.purpose);
        if let Some(Purpose::Exchange { .. } | Purpose::Asked) = purpose {
            cx.timers.set(Timer::Stream(stream), until);
        }
    }

    /// An exchange of the peer fails only when it has been silent for as long as a call may take; one of ours at its
    /// deadline.
    pub(super) fn exchange_heard(&mut self, cx: &mut Cx, stream: StreamId) {
        if let Some(Purpose::Exchange { ours: false }) = self.streams.get(&stream).map(|stream| &stream.purpose) {
            cx.timers.set(Timer::Stream(stream), cx.now + cx.config.call_timeout);
        }
    }

    fn exchange_form(&self, stream: StreamId) -> Option<codec::Form> {
        let stream = self.streams.get(&stream)?;
        matches!(stream.purpose, Purpose::Exchange { .. }).then_some(stream.form)
    }
}
