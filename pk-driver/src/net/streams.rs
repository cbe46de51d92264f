//! One stream of the core over a quinn stream, with credit in both directions.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use pk_proto::{ConnectionId, Input, NodeId, Opener, StreamId};
use pk_quic::reasons::varint;
use pk_quic::{RecvEnd, SendEnd};
use quinn::{ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};

use crate::cx::Cx;
use crate::system::runtime::{BoxFuture, poll_once};

/// Reads and writes of one stream before others are served.
const STEPS: usize = 16;
/// Maximum length of one read, in bytes.
const READ: u64 = 16 * 1024;

/// A stream that the core drives.
pub(super) struct CoreStream {
    pub(super) conn: ConnectionId,
    /// Wakes the pump for this stream.
    waker: Waker,
    send: Send,
    recv: Recv,
    pub(super) detach: Option<PendingDetach>,
}

/// Destination of the stream when QUIC has accepted everything that the core sent.
pub(super) struct PendingDetach {
    pub(super) node: NodeId,
    pub(super) protocol: String,
    pub(super) opener: Opener,
    pub(super) unread: Bytes,
}

/// The sending direction.
struct Send {
    /// `None` while the stream waits to be opened, and after its end.
    stream: Option<SendStream>,
    queue: VecDeque<Bytes>,
    fin: bool,
    /// Whether QUIC has accepted data since the last [`CoreStream::take_sent`].
    sent: bool,
    end: Option<SendEnd>,
    /// Resolves when the peer stops this direction, even while nothing is to be sent. Created only
    /// where it is polled.
    stopped: Option<BoxFuture<Result<Option<VarInt>, StoppedError>>>,
}

/// The receiving direction.
struct Recv {
    /// `None` while the stream waits to be opened, and after its end.
    stream: Option<RecvStream>,
    credit: u64,
    end: Option<RecvEnd>,
}

impl CoreStream {
    /// Creates a stream that is not open yet.
    pub(super) fn new(conn: ConnectionId, waker: Waker) -> Self {
        Self {
            conn,
            waker,
            send: Send {
                stream: None,
                queue: VecDeque::new(),
                fin: false,
                sent: false,
                end: None,
                stopped: None,
            },
            recv: Recv { stream: None, credit: 0, end: None },
            detach: None,
        }
    }

    /// The stream is open. Executes what was decided before.
    pub(super) fn attach(&mut self, mut send: SendStream, mut recv: RecvStream) {
        match self.send.end {
            // Only a reset ends this direction before the stream is open.
            Some(SendEnd::Ours(code)) => drop(send.reset(varint(code))),
            _ => self.send.stream = Some(send),
        }
        match self.recv.end {
            Some(RecvEnd::Ours(code)) => drop(recv.stop(varint(code))),
            _ => self.recv.stream = Some(recv),
        }
        self.touch();
    }

    /// Schedules the stream to be polled in this turn.
    pub(super) fn touch(&self) {
        self.waker.wake_by_ref();
    }

    // -- outputs of the core

    pub(super) fn send(&mut self, bytes: Bytes, fin: bool) {
        if self.send.end.is_none() && !self.send.fin {
            if !bytes.is_empty() {
                self.send.queue.push_back(bytes);
            }
            self.send.fin = fin;
            self.touch();
        }
    }

    pub(super) fn credit(&mut self, bytes: u64) {
        self.recv.credit = self.recv.credit.saturating_add(bytes);
        self.touch();
    }

    pub(super) fn reset(&mut self, code: u64) {
        if self.send.end.is_none() {
            if let Some(stream) = &mut self.send.stream {
                let _ = stream.reset(varint(code));
            }
            self.send.end(SendEnd::Ours(code));
        }
    }

    pub(super) fn stop(&mut self, code: u64) {
        if self.recv.end.is_none() {
            if let Some(stream) = &mut self.recv.stream {
                let _ = stream.stop(varint(code));
            }
            self.recv.end(RecvEnd::Ours(code));
        }
    }

    /// Returns whether data waits to be passed to QUIC.
    pub(super) fn sends(&self) -> bool {
        self.send.stream.is_some() && (self.send.fin || !self.send.queue.is_empty())
    }

    /// Returns whether QUIC has accepted data since the last call.
    pub(super) fn take_sent(&mut self) -> bool {
        std::mem::take(&mut self.send.sent)
    }

    /// Returns whether the request was sent completely and the response is not complete yet.
    pub(super) fn waits(&self) -> bool {
        self.send.end == Some(SendEnd::Finished) && self.recv.end.is_none()
    }

    /// Returns whether both directions have ended.
    pub(super) fn is_over(&self) -> bool {
        self.send.end.is_some() && self.recv.end.is_some()
    }

    // -- events of QUIC

    /// Sends and reads as much as possible. Returns whether the stream is ready to be handed over.
    pub(super) fn poll(&mut self, cx: &mut Cx, id: StreamId) -> bool {
        let mut context = Context::from_waker(&self.waker);
        let mut again = self.send.poll(cx, id, &mut context);
        if self.detach.is_some() {
            let flushed = self.send.end.is_some()
                || (self.send.stream.is_some() && self.send.queue.is_empty());
            if !flushed && again {
                self.touch();
            }
            return flushed;
        }
        again |= self.recv.poll(cx, id, &mut context);
        if again {
            self.touch();
        }
        false
    }

    /// Returns the halves in their current state, for the embedder.
    pub(super) fn into_halves(self) -> (Result<SendStream, SendEnd>, Result<RecvStream, RecvEnd>) {
        (
            self.send.stream.ok_or(self.send.end.unwrap_or(SendEnd::Ours(0))),
            self.recv.stream.ok_or(self.recv.end.unwrap_or(RecvEnd::Ours(0))),
        )
    }
}

impl Send {
    /// Returns whether there is more to do at once.
    fn poll(&mut self, cx: &mut Cx, id: StreamId, context: &mut Context<'_>) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut sent = 0;
        let mut stopped = None;
        let mut steps = STEPS;
        while !self.queue.is_empty() && steps > 0 {
            steps -= 1;
            match poll_once(context, stream.write_chunks(self.queue.make_contiguous())) {
                Poll::Ready(Ok(written)) => {
                    sent += written.bytes as u64;
                    self.queue.drain(..written.chunks);
                }
                Poll::Ready(Err(WriteError::Stopped(code))) => {
                    stopped = Some(code);
                    break;
                }
                // The end of the connection is reported elsewhere.
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        if sent > 0 {
            self.sent = true;
            cx.input(Input::StreamWritten { stream: id, bytes: sent });
        }
        if stopped.is_none() && self.queue.is_empty() {
            if self.fin {
                // An error means that it has ended already.
                let _ = stream.finish();
                self.sent = true;
                self.end(SendEnd::Finished);
                return false;
            }
            let watch = self.stopped.get_or_insert_with(|| Box::pin(stream.stopped()));
            if let Poll::Ready(result) = watch.as_mut().poll(context) {
                // It is not polled again. Anything but a stop is the end of the connection, which
                // is reported elsewhere.
                *watch = Box::pin(std::future::pending());
                stopped = result.ok().flatten();
            }
        }
        if let Some(code) = stopped {
            let _ = stream.reset(code);
            self.end(SendEnd::Stopped(code.into_inner()));
            cx.input(Input::StreamStopped { stream: id, code: code.into_inner() });
        }
        steps == 0
    }

    fn end(&mut self, end: SendEnd) {
        self.end = Some(end);
        self.stream = None;
        self.stopped = None;
        self.queue.clear();
    }
}

impl Recv {
    /// Returns whether there is more to do at once.
    fn poll(&mut self, cx: &mut Cx, id: StreamId, context: &mut Context<'_>) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        // The last bytes are reported together with the end, so that each chunk waits for the next
        // one.
        let mut held: Option<Bytes> = None;
        for _ in 0..STEPS {
            // Without credit nothing is read, but the end is detected and a waker is registered.
            let max = usize::try_from(self.credit.min(READ)).unwrap_or(usize::MAX);
            match poll_once(context, stream.read_chunk(max, true)) {
                Poll::Ready(Ok(Some(chunk))) if chunk.bytes.is_empty() => {
                    // There are bytes but no credit. Credit wakes the stream; until then a peer
                    // reset is not detected, because the only quinn call that reports it makes
                    // later reads fail.
                    release(cx, id, held, false);
                    return false;
                }
                Poll::Ready(Ok(Some(chunk))) => {
                    release(cx, id, held.take(), false);
                    self.credit = self.credit.saturating_sub(chunk.bytes.len() as u64);
                    // A copy, because the chunk is a slice of whole packets and would keep them in
                    // memory.
                    held = Some(Bytes::copy_from_slice(&chunk.bytes));
                }
                Poll::Ready(Ok(None)) => {
                    release(cx, id, Some(held.unwrap_or_default()), true);
                    self.end(RecvEnd::Finished);
                    return false;
                }
                Poll::Ready(Err(ReadError::Reset(code))) => {
                    release(cx, id, held, false);
                    self.reset(cx, id, code);
                    return false;
                }
                // The end of the connection is reported elsewhere.
                Poll::Ready(Err(_)) | Poll::Pending => {
                    release(cx, id, held, false);
                    return false;
                }
            }
        }
        release(cx, id, held, false);
        true
    }

    fn reset(&mut self, cx: &mut Cx, id: StreamId, code: VarInt) {
        // The first end counts: after a reset quinn would report that the stream was finished.
        self.end(RecvEnd::Reset(code.into_inner()));
        cx.input(Input::StreamReset { stream: id, code: code.into_inner() });
    }

    fn end(&mut self, end: RecvEnd) {
        self.end = Some(end);
        self.stream = None;
    }
}

fn release(cx: &mut Cx, stream: StreamId, bytes: Option<Bytes>, fin: bool) {
    if let Some(bytes) = bytes {
        cx.input(Input::StreamData { stream, bytes, fin });
    }
}
