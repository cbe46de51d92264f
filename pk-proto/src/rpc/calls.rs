//! Calls in both directions, and streams opened for applications.

use alloc::collections::BTreeSet;
use alloc::string::String;
use core::time::Duration;

use bytes::Bytes;

use super::event::{CompletedCall, RpcEvent};
use super::paging::Paging;
use super::table::{Call, Purpose, Rpc};
use crate::api::error::{Failure, PeerFault, code};
use crate::api::transport::DisconnectReason;
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{ConnectionId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::codec;
use crate::wire::dialect::Dialect;
use crate::wire::message::{RpcRequest, RpcResponse};
use crate::wire::polykey::PARTS_LIMIT;

impl Rpc {
    // -- local calls

    /// Sends a request; ends with `RpcEvent::CallEnded` by `deadline`, unless cancelled. `None` if
    /// the connection is gone.
    pub(crate) fn call(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        request: RequestId,
        question: RpcRequest,
        deadline: Instant,
    ) -> Option<StreamId> {
        if let Some(stream) = self.unpark(cx, conn, request, &question, deadline) {
            return Some(stream);
        }
        cx.metrics.calls += 1;
        let connection = self.connections.get(&conn)?;
        let pages = connection.dialect == Dialect::Polykey;
        let mut paging = Paging::of(&question).filter(|_| pages);
        let encoded = codec::encode_call(
            connection.dialect,
            connection.features,
            question,
            deadline.since(cx.now),
        );
        if encoded.streams.is_empty() {
            // An empty request, or there is no way to send it.
            let stream = cx.ids.stream();
            let answered = encoded
                .default_response
                .map(|answer| CompletedCall { answer, rtt: Duration::ZERO });
            let result = answered.ok_or(Failure::Unsupported);
            self.events.push_back(RpcEvent::CallEnded { request, conn, stream, result });
            return Some(stream);
        }
        let mut first = None;
        for (bytes, format) in encoded.streams {
            let purpose = |stream| Purpose::Call { call: first.unwrap_or(stream) };
            let stream = self.open(cx, conn, purpose, Some(format), bytes, true)?;
            cx.timers.set(Timer::Stream(stream), deadline);
            let first = *first.get_or_insert(stream);
            let call = self.calls.entry(first).or_insert_with(|| Call {
                request,
                conn,
                begun: cx.now,
                parts: BTreeSet::new(),
                answer: encoded.default_response.clone(),
                paging: paging.take(),
                answered: false,
                messages: 0,
                failure: None,
            });
            call.parts.insert(stream);
        }
        first
    }

    /// Opens a stream of an application protocol; ends with `RpcEvent::Opened` by `deadline`,
    /// unless cancelled. On Polykey 1.x such a stream belongs to the embedder at once: its first
    /// message is the call.
    ///
    /// # Errors
    /// The connection is gone, or has no such streams. Nothing was sent.
    pub(crate) fn open_protocol(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        request: RequestId,
        protocol: String,
        deadline: Instant,
    ) -> Result<StreamId, Failure> {
        let lost = Failure::ConnectionLost(DisconnectReason::Local);
        let Some(connection) = self.connections.get(&conn) else { return Err(lost) };
        match codec::open(connection.dialect, &protocol)? {
            Some(bytes) => {
                let purpose = |_| Purpose::Open { request, protocol };
                let stream = self.open(cx, conn, purpose, None, bytes, false).ok_or(lost)?;
                cx.timers.set(Timer::Stream(stream), deadline);
                Ok(stream)
            }
            None => {
                let stream = self
                    .open(cx, conn, |_| Purpose::Ended, None, Bytes::new(), false)
                    .ok_or(lost)?;
                self.opened(cx, stream, request, protocol);
                Ok(stream)
            }
        }
    }

    /// Cancels a call, an opening or an exchange; no event follows.
    pub(crate) fn cancel(&mut self, cx: &mut Cx, stream: StreamId) {
        match self.calls.remove(&stream) {
            Some(call) => {
                call.parts.into_iter().for_each(|part| drop(self.abort(cx, part, code::NONE)));
            }
            None => drop(self.abort(cx, stream, code::NONE)),
        }
    }

    /// Handles the answer of a peer to a call, or to a part of it.
    ///
    /// # Errors
    /// The answer exceeds the limits.
    pub(super) fn part_answered(
        &mut self,
        call: StreamId,
        answer: Option<RpcResponse>,
    ) -> Result<(), PeerFault> {
        let Some(call) = self.calls.get_mut(&call) else { return Ok(()) };
        call.messages = call.messages.saturating_add(1);
        if call.messages > PARTS_LIMIT && call.paging.is_none() {
            return Err(PeerFault::TooMuch);
        }
        match (&mut call.answer, answer) {
            (Some(RpcResponse::Claims(known)), Some(RpcResponse::Claims(more))) => {
                if call.paging.as_mut().is_none_or(|paging| paging.take(&more)) {
                    known.claims.extend(more.claims);
                }
            }
            (Some(RpcResponse::Closest(known)), Some(RpcResponse::Closest(more))) => {
                known.known.extend(more.known);
                known.connected.extend(more.connected);
            }
            (known, Some(answer)) => *known = Some(answer),
            (_, None) => {}
        }
        call.answered = true;
        Ok(())
    }

    /// A stream of a call has ended. The answers of some parts are an answer.
    pub(super) fn part_ended(
        &mut self,
        cx: &Cx,
        call: StreamId,
        part: StreamId,
        failure: Option<Failure>,
    ) {
        if self.is_parked(call) {
            // No request waits: a caller that needs more sends another request.
            self.calls.remove(&call);
        }
        let Some(open) = self.calls.get_mut(&call) else { return };
        open.parts.remove(&part);
        open.answered |= failure.is_none();
        open.failure = open.failure.take().or(failure);
        if open.parts.is_empty()
            && let Some(Call { request, conn, begun, answer, answered, failure, .. }) =
                self.calls.remove(&call)
        {
            let rtt = cx.now.since(begun);
            let result = match (answer.filter(|_| answered), failure) {
                (Some(answer), _) => Ok(CompletedCall { answer, rtt }),
                (None, Some(Failure::Refused(refusal))) => {
                    Ok(CompletedCall { answer: RpcResponse::Refused(refusal), rtt })
                }
                (None, failure) => Err(failure.unwrap_or(Failure::Aborted(code::NONE))),
            };
            self.events.push_back(RpcEvent::CallEnded { request, conn, stream: call, result });
        }
    }
}
