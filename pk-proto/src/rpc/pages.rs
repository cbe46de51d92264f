//! Chains of claims on Polykey 1.x. The reference tells a whole chain in one answer; above this file it is asked for and told
//! page by page, as on `pk/1`, so that nobody ever holds more than a page.
//!
//! As a client: an answer stops being read when a page is full, and goes on when the next page is asked for. As a server: the
//! next page is asked for when all of the one before is with the transport.

use bytes::Bytes;

use super::call::{Answer, ClaimsPage, Question};
use super::{Answered, Purpose, Rpc, RpcEvent};
use crate::claims::ClaimId;
use crate::cx::Cx;
use crate::error::code;
use crate::id::{ConnectionId, RequestId, StreamId};
use crate::native::MAX_CLAIMS;
use crate::time::Instant;
use crate::timers::Timer;

/// Bytes of tokens that are put into one page for a peer.
pub(super) const SERVED_BYTES: u32 = 48 * 1024;

/// How far a chain is told to us.
#[derive(Debug)]
pub(super) struct Paging {
    /// Claims up to this one are not wanted, or were told before.
    after: Option<ClaimId>,
    max_bytes: u64,
    bytes: u64,
    /// The page is full: nothing is read until the next one is asked for.
    pub(super) parked: bool,
}

impl Paging {
    /// The paging of an answer to this, if it is one that has pages.
    pub(super) fn of(question: &Question) -> Option<Self> {
        match question {
            Question::Claims { after, max_bytes } => {
                Some(Self { after: *after, max_bytes: u64::from(*max_bytes), bytes: 0, parked: false })
            }
            _ => None,
        }
    }

    /// Takes in what the peer tells next; whether it is news. The reference tells its whole chain, whatever it is asked for.
    pub(super) fn take(&mut self, page: &ClaimsPage) -> bool {
        let bytes: usize = page.claims.iter().map(|(_, token)| token.len()).sum();
        self.bytes = self.bytes.saturating_add(bytes as u64);
        page.claims.first().is_some_and(|(id, _)| self.after.is_none_or(|after| *id > after))
    }

    /// Whether the page is full. What was skipped counts as well: it took its time.
    pub(super) fn is_full(&self, page: &ClaimsPage) -> bool {
        !page.claims.is_empty() && (self.bytes >= self.max_bytes || page.claims.len() >= MAX_CLAIMS)
    }
}

impl Rpc {
    /// Ends a page that is full, if it is: the answer is there, and its stream waits.
    pub(super) fn park(&mut self, cx: &mut Cx, id: StreamId, handle: StreamId) {
        let Some(call) = self.calls.get_mut(&handle) else { return };
        let Some(paging) = &mut call.paging else { return };
        let Some(Answer::Claims(page)) = &mut call.answer else { return };
        if !paging.is_full(page) {
            return;
        }
        paging.parked = true;
        paging.after = page.claims.last().map(|(id, _)| *id);
        let answer = Answer::Claims(ClaimsPage { more: true, ..core::mem::take(page) });
        let (request, conn) = (call.request, call.conn);
        let answered = Answered { answer, rtt: cx.now.since(call.begun) };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.parked = true;
        }
        // Whoever does not come back for the next page within this time begins anew.
        cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
        self.events.push_back(RpcEvent::Answered { request, conn, stream: handle, result: Ok(answered) });
    }

    /// Goes on with an answer that was parked, if this is the question for its next page.
    pub(super) fn unpark(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        request: RequestId,
        question: &Question,
        deadline: Instant,
    ) -> Option<StreamId> {
        let Question::Claims { after, max_bytes } = question else { return None };
        let (handle, call) = self.calls.iter_mut().find(|(_, call)| {
            let parked = call.paging.as_ref().is_some_and(|paging| paging.parked && paging.after == *after);
            parked && call.request == request && call.conn == conn
        })?;
        let (handle, part) = (*handle, *call.parts.first()?);
        call.paging = Some(Paging { after: *after, max_bytes: u64::from(*max_bytes), bytes: 0, parked: false });
        call.begun = cx.now;
        if let Some(stream) = self.streams.get_mut(&part) {
            stream.parked = false;
        }
        cx.timers.set(Timer::Stream(part), deadline);
        self.read(cx, part);
        Some(handle)
    }

    /// Whether a call has said its page, and nobody has asked for the next one.
    pub(super) fn is_parked(&self, handle: StreamId) -> bool {
        self.calls.get(&handle).and_then(|call| call.paging.as_ref()).is_some_and(|paging| paging.parked)
    }

    // -- theirs

    /// Sends a page that is not the last one.
    pub(super) fn answer_page(&mut self, cx: &mut Cx, stream: StreamId, last: ClaimId, bytes: Bytes) {
        if let Some(open) = self.streams.get_mut(&stream) {
            open.purpose = Purpose::Paging { after: last };
            cx.timers.set(Timer::Stream(stream), cx.now + cx.config.call_timeout);
            self.send(cx, stream, bytes, false);
            self.next_page(cx, stream);
        }
    }

    /// Asks for the next page of an answer of ours, if the one before is on its way.
    pub(super) fn next_page(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Purpose::Paging { after } = stream.purpose else { return };
        if stream.send.is_done() {
            // The peer has stopped reading.
            self.abort(cx, id, code::NONE);
        } else if stream.send.pending() == 0 {
            stream.purpose = Purpose::Asked;
            let conn = stream.conn;
            cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
            let question = Question::Claims { after: Some(after), max_bytes: SERVED_BYTES };
            self.events.push_back(RpcEvent::Asked { stream: id, conn, question });
        }
    }
}
