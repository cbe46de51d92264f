//! Questions and their answers, ours and theirs, and streams that we open for applications.

use alloc::collections::BTreeSet;
use alloc::string::String;
use core::time::Duration;

use bytes::Bytes;

use super::call::{Answer, Question};
use super::pages::Paging;
use super::polykey::PARTS_LIMIT;
use super::{Answered, Purpose, Rpc, RpcEvent, codec};
use crate::cx::Cx;
use crate::error::{Failure, PeerFault, code};
use crate::id::{ConnectionId, RequestId, StreamId};
use crate::io::{Dialect, DisconnectReason};
use crate::time::Instant;
use crate::timers::Timer;

/// A question of ours that is not answered yet. A dialect may need several streams for it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) request: RequestId,
    pub(super) conn: ConnectionId,
    pub(super) begun: Instant,
    /// The streams that have not ended.
    pub(super) parts: BTreeSet<StreamId>,
    /// What was answered so far, or is if no part fails.
    pub(super) answer: Option<Answer>,
    /// Of an answer that has pages.
    pub(super) paging: Option<Paging>,
    /// A part has ended well, or has said something.
    answered: bool,
    /// Messages of the answer.
    messages: u32,
    /// Why the first part that failed did.
    failure: Option<Failure>,
}

impl Rpc {
    // -- ours

    /// Asks a question; ends with `RpcEvent::Answered` by `deadline`, unless cancelled. `None` if the connection is gone.
    pub(crate) fn call(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        request: RequestId,
        question: Question,
        deadline: Instant,
    ) -> Option<StreamId> {
        if let Some(stream) = self.unpark(cx, conn, request, &question, deadline) {
            return Some(stream);
        }
        cx.metrics.calls += 1;
        let connection = self.connections.get(&conn)?;
        let pages = connection.dialect == Dialect::Polykey;
        let mut paging = Paging::of(&question).filter(|_| pages);
        let calls = codec::calls(connection.dialect, connection.features, question, deadline.since(cx.now));
        if calls.parts.is_empty() {
            // Nothing is asked for, or there is no way to ask.
            let stream = cx.ids.stream();
            let answered = calls.otherwise.map(|answer| Answered { answer, rtt: Duration::ZERO });
            let result = answered.ok_or(Failure::Unsupported);
            self.events.push_back(RpcEvent::Answered { request, conn, stream, result });
            return Some(stream);
        }
        let mut first = None;
        for (bytes, form) in calls.parts {
            let purpose = |stream| Purpose::Call { call: first.unwrap_or(stream) };
            let stream = self.open(cx, conn, purpose, Some(form), bytes, true)?;
            cx.timers.set(Timer::Stream(stream), deadline);
            let first = *first.get_or_insert(stream);
            let call = self.calls.entry(first).or_insert_with(|| Call {
                request,
                conn,
                begun: cx.now,
                parts: BTreeSet::new(),
                answer: calls.otherwise.clone(),
                paging: paging.take(),
                answered: false,
                messages: 0,
                failure: None,
            });
            call.parts.insert(stream);
        }
        first
    }

    /// Opens a stream of an application protocol; ends with `RpcEvent::Opened` by `deadline`, unless cancelled. On Polykey 1.x
    /// such a stream is the embedder's at once: its first message is the call.
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
                let stream = self.open(cx, conn, |_| Purpose::Ended, None, Bytes::new(), false).ok_or(lost)?;
                self.opened(cx, stream, request, protocol);
                Ok(stream)
            }
        }
    }

    /// Gives up a call, an opening or an exchange; no event follows.
    pub(crate) fn cancel(&mut self, cx: &mut Cx, stream: StreamId) {
        match self.calls.remove(&stream) {
            Some(call) => call.parts.into_iter().for_each(|part| drop(self.abort(cx, part, code::NONE))),
            None => drop(self.abort(cx, stream, code::NONE)),
        }
    }

    /// What a peer says to a question of ours, or to a part of it.
    ///
    /// # Errors
    /// It says more than anybody may.
    pub(super) fn part_answered(&mut self, call: StreamId, answer: Option<Answer>) -> Result<(), PeerFault> {
        let Some(call) = self.calls.get_mut(&call) else { return Ok(()) };
        call.messages = call.messages.saturating_add(1);
        if call.messages > PARTS_LIMIT && call.paging.is_none() {
            return Err(PeerFault::TooMuch);
        }
        match (&mut call.answer, answer) {
            (Some(Answer::Claims(known)), Some(Answer::Claims(more))) => {
                if call.paging.as_mut().is_none_or(|paging| paging.take(&more)) {
                    known.claims.extend(more.claims);
                }
            }
            (Some(Answer::Closest(known)), Some(Answer::Closest(more))) => {
                known.local.extend(more.local);
                known.active.extend(more.active);
            }
            (known, Some(answer)) => *known = Some(answer),
            (_, None) => {}
        }
        call.answered = true;
        Ok(())
    }

    /// A stream of a question of ours has ended. What some of its parts have answered is an answer.
    pub(super) fn part_ended(&mut self, cx: &Cx, call: StreamId, part: StreamId, failure: Option<Failure>) {
        if self.is_parked(call) {
            // Nobody waits: who wants more asks anew.
            self.calls.remove(&call);
        }
        let Some(open) = self.calls.get_mut(&call) else { return };
        open.parts.remove(&part);
        open.answered |= failure.is_none();
        open.failure = open.failure.take().or(failure);
        if open.parts.is_empty()
            && let Some(Call { request, conn, begun, answer, answered, failure, .. }) = self.calls.remove(&call)
        {
            let rtt = cx.now.since(begun);
            let result = match (answer.filter(|_| answered), failure) {
                (Some(answer), _) => Ok(Answered { answer, rtt }),
                (None, Some(Failure::Refused(refusal))) => Ok(Answered { answer: Answer::Refused(refusal), rtt }),
                (None, failure) => Err(failure.unwrap_or(Failure::Aborted(code::NONE))),
            };
            self.events.push_back(RpcEvent::Answered { request, conn, stream: call, result });
        }
    }

    // -- theirs

    /// Answers a question of a peer. Nothing happens if the peer does not wait for it any more.
    pub(crate) fn answer(&mut self, cx: &mut Cx, stream: StreamId, answer: Answer) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if !matches!(open.purpose, Purpose::Asked) {
            return;
        }
        cx.metrics.answers += 1;
        self.answer_last(cx, stream, answer);
    }

    /// Says the last thing on a stream of the peer.
    pub(super) fn answer_last(&mut self, cx: &mut Cx, stream: StreamId, answer: Answer) {
        let Some(form) = self.streams.get(&stream).map(|stream| stream.form) else { return };
        let next = match &answer {
            Answer::Claims(page) if page.more && form.is_list() => page.claims.last().map(|(id, _)| *id),
            _ => None,
        };
        match codec::answer(form, answer, cx.unix()) {
            Ok(bytes) => match next {
                Some(last) => self.answer_page(cx, stream, last, bytes),
                None => self.answer_with(cx, stream, bytes),
            },
            Err(_) => drop(self.abort(cx, stream, code::MESSAGE_TOO_LONG)),
        }
    }

    pub(super) fn answer_with(&mut self, cx: &mut Cx, stream: StreamId, bytes: Bytes) {
        if let Some(open) = self.streams.get_mut(&stream) {
            open.purpose = Purpose::Answered;
            cx.timers.set(Timer::Stream(stream), cx.now + cx.config.call_timeout);
            self.send(cx, stream, bytes, true);
        }
    }
}
