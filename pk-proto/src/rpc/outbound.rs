//! What this node sends on streams: local streams, and answers to peers.

use bytes::Bytes;

use super::table::{Authentication, Fin, Purpose, Rpc, SendHalf, Stream};
use crate::api::error::{Failure, PeerFault, code};
use crate::api::output::Output;
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{ConnectionId, StreamId};
use crate::wire::codec;
use crate::wire::message::RpcResponse;
use crate::wire::parsed_message::StreamFormat;

/// The queue of a stream exceeds its limit: the peer sends requests, but does not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Rpc {
    // -- answers

    /// Answers a call of a peer. Has no effect if the peer no longer waits.
    pub(crate) fn answer(&mut self, cx: &mut Cx, stream: StreamId, answer: RpcResponse) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if !matches!(open.purpose, Purpose::Responding | Purpose::CircuitRequested) {
            return;
        }
        cx.metrics.answers += 1;
        let conn = open.conn;
        let refusal = if let RpcResponse::Refused(refusal) = answer { Some(refusal) } else { None };
        self.answer_last(cx, stream, answer);
        if let Some(refusal) = refusal {
            self.refused(cx, conn, refusal);
        }
    }

    /// Sends the last message on a stream of the peer.
    pub(super) fn answer_last(&mut self, cx: &mut Cx, stream: StreamId, answer: RpcResponse) {
        let Some(format) = self.streams.get(&stream).map(|stream| stream.format) else { return };
        let next = match &answer {
            RpcResponse::Claims(page) if page.more && format.is_list() => {
                page.claims.last().map(|(id, _)| *id)
            }
            _ => None,
        };
        match codec::answer(format, answer, cx.unix()) {
            Ok(bytes) => match next {
                Some(last) => self.answer_page(cx, stream, last, bytes),
                None => self.respond(cx, stream, bytes),
            },
            Err(_) => drop(self.abort(cx, stream, code::MESSAGE_TOO_LONG)),
        }
    }

    /// Sends an encoded last message.
    pub(super) fn respond(&mut self, cx: &mut Cx, stream: StreamId, bytes: Bytes) {
        if let Some(open) = self.streams.get_mut(&stream) {
            open.purpose = Purpose::Responded;
            cx.timers.set(Timer::Stream(stream), cx.now + cx.config.call_timeout);
            self.send(cx, stream, bytes, true);
        }
    }

    // -- streams

    /// Opens a local stream, whose purpose may depend on its id, with its first message. `None` if
    /// the connection is gone.
    pub(super) fn open(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        purpose: impl FnOnce(StreamId) -> Purpose,
        format: Option<StreamFormat>,
        bytes: Bytes,
        fin: bool,
    ) -> Option<StreamId> {
        let connection = self.connections.get_mut(&conn)?;
        let id = cx.ids.stream();
        connection.streams.insert(id);
        let dialect = connection.dialect;
        let format = format.unwrap_or(StreamFormat::first(dialect));
        self.streams.insert(id, Stream::new(cx, conn, dialect, purpose(id), format));
        cx.output(Output::OpenStream { conn, stream: id });
        self.send(cx, id, bytes, fin);
        self.grant(cx, id);
        Some(id)
    }

    /// Sends bytes on a stream, and ends the local direction if `fin`. If the peer does not read,
    /// the stream ends, and that is a fault of the peer.
    pub(super) fn send(&mut self, cx: &mut Cx, id: StreamId, bytes: Bytes, fin: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let conn = stream.conn;
        let before = stream.send.pending();
        let sent = stream.send.send(cx, id, bytes, fin);
        self.unsent = (self.unsent + stream.send.pending()).saturating_sub(before);
        if sent.is_err() {
            cx.metrics.send_overflows += 1;
            self.give_up(cx, id, code::LIMIT, Failure::Aborted(code::LIMIT));
            self.fault(cx, conn, PeerFault::NotReading);
        } else {
            self.end_if_over(cx, id);
        }
    }

    // -- inputs

    /// The transport has accepted bytes of a stream.
    pub(crate) fn stream_written(&mut self, cx: &mut Cx, id: StreamId, bytes: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = stream.send.pending();
        stream.send.confirm(cx, id, bytes);
        self.unsent = (self.unsent + stream.send.pending()).saturating_sub(before);
        self.next_page(cx, id);
        self.end_if_over(cx, id);
    }

    /// The peer stops reading. For a local call that does not affect the answer (docs/WIRE.md
    /// section 4).
    pub(crate) fn stream_stopped(&mut self, cx: &mut Cx, id: StreamId, code: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        self.unsent = self.unsent.saturating_sub(stream.send.pending());
        stream.send.abort();
        match stream.purpose {
            Purpose::Call { .. } | Purpose::Responding | Purpose::Ended => self.end_if_over(cx, id),
            // The reference does so with code 1 before it sends the reason of a refusal.
            Purpose::Exchange { .. }
                if code == code::NONE || stream.format != StreamFormat::Native =>
            {
                self.end_if_over(cx, id);
            }
            Purpose::Responded => self.end_if_over(cx, id),
            Purpose::Paging { .. } => self.next_page(cx, id),
            Purpose::Control => self.fail(cx, id, PeerFault::Unexpected),
            Purpose::Authentication(Authentication::Accept) if code == code::UNSUPPORTED => {
                self.authentication_refused(cx, id, true);
            }
            Purpose::Authentication(_)
            | Purpose::First
            | Purpose::Open { .. }
            | Purpose::Circuit { .. }
            | Purpose::CircuitRequested
            | Purpose::Exchange { .. } => {
                self.give_up(cx, id, code::NONE, Failure::aborted(code));
            }
        }
    }
}

impl SendHalf {
    /// Appends bytes, with the end if `fin`. On overflow nothing is appended.
    pub(super) fn send(
        &mut self,
        cx: &mut Cx,
        stream: StreamId,
        bytes: Bytes,
        fin: bool,
    ) -> Result<(), Overflow> {
        if self.fin != Fin::Open {
            return Ok(());
        }
        let queued = self.queued.saturating_add(bytes.len() as u64);
        let room = cx.config.send_window.saturating_sub(self.unconfirmed);
        // What fits into the window does not wait.
        if queued.saturating_sub(room) > cx.config.send_queue_limit {
            return Err(Overflow);
        }
        self.queued = queued;
        if !bytes.is_empty() {
            self.queue.push_back(bytes);
        }
        if fin {
            self.fin = Fin::Queued;
        }
        self.flush(cx, stream);
        Ok(())
    }

    /// The transport accepted this number of bytes.
    pub(super) fn confirm(&mut self, cx: &mut Cx, stream: StreamId, bytes: u64) {
        self.unconfirmed = self.unconfirmed.saturating_sub(bytes);
        self.flush(cx, stream);
    }

    /// Drops waiting data; nothing more is sent.
    pub(super) fn abort(&mut self) {
        self.queue.clear();
        self.queued = 0;
        self.unconfirmed = 0;
        self.fin = Fin::Aborted;
    }

    /// Returns whether the sending direction has ended: reset, or everything including the end is
    /// passed to the transport.
    pub(super) fn is_done(&self) -> bool {
        match self.fin {
            Fin::Sent => self.unconfirmed == 0,
            Fin::Aborted => true,
            Fin::Open | Fin::Queued => false,
        }
    }

    /// Returns the number of bytes that wait here or in the driver.
    pub(super) fn pending(&self) -> u64 {
        self.queued.saturating_add(self.unconfirmed)
    }

    fn flush(&mut self, cx: &mut Cx, stream: StreamId) {
        while let Some(mut bytes) = self.queue.pop_front() {
            let room = cx.config.send_window.saturating_sub(self.unconfirmed);
            if room == 0 {
                self.queue.push_front(bytes);
                return;
            }
            if bytes.len() as u64 > room {
                let rest = bytes.split_off(usize::try_from(room).unwrap_or(usize::MAX));
                self.queue.push_front(rest);
            }
            let len = bytes.len() as u64;
            self.queued = self.queued.saturating_sub(len);
            self.unconfirmed = self.unconfirmed.saturating_add(len);
            let fin = self.queue.is_empty() && self.fin == Fin::Queued;
            if fin {
                self.fin = Fin::Sent;
            }
            cx.output(Output::SendStream { stream, bytes, fin });
        }
        if self.fin == Fin::Queued {
            self.fin = Fin::Sent;
            cx.output(Output::SendStream { stream, bytes: Bytes::new(), fin: true });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::config::Config;
    use crate::machine::phase::Phase;
    use crate::types::id::NodeId;
    use crate::types::time::Instant;
    use crate::types::time::UnixMillis;
    use crate::wire::frame::MAX_FRAME;

    #[test]
    fn longest_message_fits_the_smallest_queue_and_no_more_does() {
        let config = Config { send_window: 1024, send_queue_limit: 64 * 1024, ..Config::default() };
        assert_eq!(config.validate(), Ok(()));
        let own = NodeId::from_bytes([1; 32]);
        let mut cx = Cx::new(config, alloc::vec![own], [0; 32], Instant::ORIGIN, UnixMillis(0));
        cx.set_phase(Phase::Running);
        let (mut half, stream) = (SendHalf::default(), StreamId(0));
        let longest = Bytes::from(alloc::vec![0; 4 + MAX_FRAME]);
        assert_eq!(half.send(&mut cx, stream, longest.clone(), false), Ok(()));
        assert_eq!(half.send(&mut cx, stream, longest, false), Err(Overflow));
        let most = 64 * 1024 + 1024 - half.pending();
        let rest = Bytes::from(alloc::vec![0; usize::try_from(most).unwrap()]);
        assert_eq!(half.send(&mut cx, stream, rest, false), Ok(()));
        assert_eq!(half.send(&mut cx, stream, Bytes::from_static(b"x"), false), Err(Overflow));
    }
}
