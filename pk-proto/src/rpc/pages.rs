//! Claim chains on Polykey 1.x. The reference sends a whole chain in one answer; above this file it
//! is requested and sent page by page, as on `pk/1`, so that at most one page is in memory.
//!
//! Client: reading an answer pauses when a page is full, and continues when the next page is
//! requested. Server: the next page is requested when the previous one was passed to the transport.

use bytes::Bytes;

use super::event::{CompletedCall, RpcEvent};
use super::paging::Paging;
use super::table::{Purpose, Rpc};
use crate::api::error::code;
use crate::claims::ClaimId;
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{ConnectionId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::message::{ClaimsPage, RpcRequest, RpcResponse, SERVED_BYTES};

impl Rpc {
    /// Completes a page that is full: it is the answer, and its stream waits.
    pub(super) fn park(&mut self, cx: &mut Cx, id: StreamId, handle: StreamId) {
        let Some(call) = self.calls.get_mut(&handle) else { return };
        let Some(paging) = &mut call.paging else { return };
        let Some(RpcResponse::Claims(page)) = &mut call.answer else { return };
        if !paging.is_full(page) {
            return;
        }
        paging.parked = true;
        paging.after = page.claims.last().map(|(id, _)| *id);
        let answer = RpcResponse::Claims(ClaimsPage { more: true, ..core::mem::take(page) });
        let (request, conn) = (call.request, call.conn);
        let answered = CompletedCall { answer, rtt: cx.now.since(call.begun) };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.parked = true;
        }
        self.parked.insert((conn, handle));
        // A caller that does not request the next page within this time starts again.
        cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
        self.events.push_back(RpcEvent::CallEnded {
            request,
            conn,
            stream: handle,
            result: Ok(answered),
        });
    }

    /// Continues a paused answer, if this is the request for its next page.
    pub(super) fn unpark(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        request: RequestId,
        question: &RpcRequest,
        deadline: Instant,
    ) -> Option<StreamId> {
        let RpcRequest::Claims { after, max_bytes } = question else { return None };
        let continues = |handle: &StreamId| {
            self.calls.get(handle).is_some_and(|call| {
                let paging = call.paging.as_ref();
                let parked = paging.is_some_and(|paging| paging.parked && paging.after == *after);
                parked && call.request == request && call.conn == conn
            })
        };
        let all = (conn, StreamId(u64::MIN))..=(conn, StreamId(u64::MAX));
        let handle = self.parked.range(all).map(|(_, handle)| *handle).find(continues)?;
        let call = self.calls.get_mut(&handle)?;
        let part = *call.parts.first()?;
        self.parked.remove(&(conn, handle));
        call.paging = Some(Paging {
            after: *after,
            max_bytes: u64::from(*max_bytes),
            bytes: 0,
            parked: false,
        });
        call.begun = cx.now;
        if let Some(stream) = self.streams.get_mut(&part) {
            stream.parked = false;
        }
        cx.timers.set(Timer::Stream(part), deadline);
        self.read(cx, part);
        Some(handle)
    }

    /// Returns whether a call has returned its page, and the next one was not requested.
    pub(super) fn is_parked(&self, handle: StreamId) -> bool {
        self.calls
            .get(&handle)
            .and_then(|call| call.paging.as_ref())
            .is_some_and(|paging| paging.parked)
    }

    // -- calls of peers

    /// Sends a page that is not the last one.
    pub(super) fn answer_page(
        &mut self,
        cx: &mut Cx,
        stream: StreamId,
        last: ClaimId,
        bytes: Bytes,
    ) {
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
            stream.purpose = Purpose::Responding;
            let conn = stream.conn;
            cx.timers.set(Timer::Stream(id), cx.now + cx.config.call_timeout);
            let question = RpcRequest::Claims { after: Some(after), max_bytes: SERVED_BYTES };
            self.events.push_back(RpcEvent::Request { stream: id, conn, request: question });
        }
    }
}
