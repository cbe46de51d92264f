//! Streams of application protocols.

pub(crate) mod accept;
pub(crate) mod detached;
pub(crate) mod usage;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use pk_host::unix;
use pk_proto::NodeId;
use pk_quic::reasons::{disconnect_reason, varint};
use pk_quic::{RecvEnd, SendEnd, StreamError};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tokio::sync::oneshot;

use self::usage::Usage;
use crate::system::runtime::poll_once;

/// A bidirectional stream of an application protocol, with an authenticated node.
///
/// Each direction ends separately: the sending one by [`finish`](Self::finish) or
/// [`reset`](Self::reset), the receiving one at the end of the peer's data or by
/// [`stop`](Self::stop). **Dropping the stream aborts directions that have not ended**, by reset
/// and stop with code 0. Call `finish` to have all data delivered.
///
/// The connection counts as used until both directions have ended or the stream is dropped. A
/// stream that outlives its node keeps the node's socket open.
///
/// Also implements [`tokio::io::AsyncRead`] and [`AsyncWrite`](tokio::io::AsyncWrite), and their
/// counterparts in `futures-io`; closing it there calls [`finish`](Self::finish).
#[derive(Debug)]
pub struct Stream {
    node: NodeId,
    protocol: String,
    send: Result<SendStream, SendEnd>,
    recv: Result<RecvStream, RecvEnd>,
    /// Data that was received before the stream was handed over.
    unread: Bytes,
    usage: Arc<Usage>,
    /// Dropped at the end of the stream, which informs the pump.
    token: Option<oneshot::Receiver<Infallible>>,
}

impl Stream {
    pub(crate) fn new(
        node: NodeId,
        protocol: String,
        send: Result<SendStream, SendEnd>,
        recv: Result<RecvStream, RecvEnd>,
        unread: Bytes,
        usage: Arc<Usage>,
    ) -> Self {
        Self { node, protocol, send, recv, unread, usage, token: None }
    }

    /// Attaches the stream to the pump.
    pub(crate) fn attach_guard(&mut self, token: oneshot::Receiver<Infallible>) {
        self.token = Some(token);
        self.untie_if_over();
    }

    /// Returns the peer.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Returns the protocol of the stream.
    pub fn protocol(&self) -> &str {
        &self.protocol
    }

    /// Reads available bytes, or waits for some. Returns `Ok(0)` at the end of the peer's data, or
    /// for an empty buffer.
    ///
    /// Cancel safe: dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`StreamError::Reset`] and [`StreamError::Ended`] are final for this direction,
    /// [`StreamError::ConnectionLost`] for both.
    pub async fn read(&mut self, buf: &mut [u8]) -> Result<usize, StreamError> {
        poll_fn(|cx| self.poll_read(cx, buf)).await
    }

    /// Like [`read`](Self::read), without a copy: at most `max` bytes; `None` at the end of the
    /// peer's data.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_read_chunk(cx, max)).await
    }

    /// Reads to the end of the peer's data.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read). If there are more than `limit` bytes, the stream is stopped
    /// with code 2 (too long). Data that was read before an error is lost.
    pub async fn read_to_end(&mut self, limit: usize) -> Result<Vec<u8>, StreamError> {
        let mut all = Vec::new();
        while let Some(chunk) = self.read_chunk(64 * 1024).await? {
            if all.len().saturating_add(chunk.len()) > limit {
                self.stop(pk_proto::code::MESSAGE_TOO_LONG);
                return Err(StreamError::Ended);
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// Sends some of the bytes, at least one unless there are none, and returns the number. Waits
    /// while the send window is full.
    ///
    /// Cancel safe: dropping the future sends nothing.
    ///
    /// # Errors
    ///
    /// [`StreamError::Stopped`] and [`StreamError::Ended`] are final for this direction,
    /// [`StreamError::ConnectionLost`] for both.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        poll_fn(|cx| self.poll_write(cx, bytes)).await
    }

    /// Sends all bytes. If the future is dropped, some of them may have been sent.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write); some of the bytes may have been sent.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Finishes the sending direction: all written data is delivered, then the end, unless the
    /// connection is lost first.
    ///
    /// # Errors
    ///
    /// The sending direction has already ended, locally or by the peer.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        let stream = self.send.as_mut().map_err(|end| send_error(*end))?;
        let _ = stream.finish();
        self.end_send(SendEnd::Finished);
        self.usage.used();
        Ok(())
    }

    /// Resets the sending direction: data that has not arrived may never arrive. Has no effect if
    /// the direction has ended.
    pub fn reset(&mut self, code: u64) {
        if let Ok(stream) = &mut self.send {
            let _ = stream.reset(varint(code));
            self.end_send(SendEnd::Ours(code));
        }
    }

    /// Stops the receiving direction: nothing more is read. Has no effect if the direction has
    /// ended.
    pub fn stop(&mut self, code: u64) {
        self.unread = Bytes::new();
        if let Ok(stream) = &mut self.recv {
            let _ = stream.stop(varint(code));
            self.end_recv(RecvEnd::Ours(code));
        }
    }

    /// Waits until the peer has acknowledged all data and the end, after [`finish`](Self::finish).
    ///
    /// Consumes the stream, which ends with this call, also if the future is dropped.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write).
    pub async fn finish_and_wait(mut self) -> Result<(), StreamError> {
        let stream = self.send.as_mut().map_err(|end| send_error(*end))?;
        let _ = stream.finish();
        self.usage.used();
        match stream.stopped().await {
            Ok(None) => {
                self.end_send(SendEnd::Finished);
                Ok(())
            }
            Ok(Some(code)) => Err(StreamError::Stopped(code.into_inner())),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(lost(&error)),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Ended),
        }
    }

    // -- the same as polls, for both families of traits

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, StreamError>> {
        if !self.unread.is_empty() {
            let len = self.unread.len().min(buf.len());
            self.unread.copy_to_slice(buf.get_mut(..len).unwrap_or_default());
            return Poll::Ready(Ok(len));
        }
        let stream = match &mut self.recv {
            Ok(stream) => stream,
            Err(end) => return Poll::Ready(read_end(*end).map(|()| 0)),
        };
        match ready!(stream.poll_read(cx, buf)) {
            Ok(0) if !buf.is_empty() => {
                self.end_recv(RecvEnd::Finished);
                Poll::Ready(Ok(0))
            }
            Ok(len) => {
                self.usage.used();
                Poll::Ready(Ok(len))
            }
            Err(error) => Poll::Ready(Err(self.read_failed(error))),
        }
    }

    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Ok(Some(self.unread.split_to(self.unread.len().min(max)))));
        }
        let stream = match &mut self.recv {
            Ok(stream) => stream,
            Err(end) => return Poll::Ready(read_end(*end).map(|()| None)),
        };
        match ready!(poll_once(cx, stream.read_chunk(max, true))) {
            Ok(Some(chunk)) => {
                self.usage.used();
                Poll::Ready(Ok(Some(chunk.bytes)))
            }
            Ok(None) => {
                self.end_recv(RecvEnd::Finished);
                Poll::Ready(Ok(None))
            }
            Err(error) => Poll::Ready(Err(self.read_failed(error))),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, StreamError>> {
        let stream = match &mut self.send {
            Ok(stream) => stream,
            Err(end) => return Poll::Ready(Err(send_error(*end))),
        };
        match ready!(Pin::new(&mut *stream).poll_write(cx, bytes)) {
            Ok(len) => {
                self.usage.used();
                Poll::Ready(Ok(len))
            }
            Err(WriteError::Stopped(code)) => {
                let _ = stream.reset(code);
                self.end_send(SendEnd::Stopped(code.into_inner()));
                Poll::Ready(Err(StreamError::Stopped(code.into_inner())))
            }
            Err(WriteError::ConnectionLost(error)) => Poll::Ready(Err(lost(&error))),
            Err(WriteError::ClosedStream | WriteError::ZeroRttRejected) => {
                self.end_send(SendEnd::Finished);
                Poll::Ready(Err(StreamError::Ended))
            }
        }
    }

    fn read_failed(&mut self, error: ReadError) -> StreamError {
        match error {
            ReadError::Reset(code) => {
                // The first end counts: after a reset quinn would report that the stream was
                // finished.
                self.end_recv(RecvEnd::Reset(code.into_inner()));
                StreamError::Reset(code.into_inner())
            }
            ReadError::ConnectionLost(error) => lost(&error),
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => {
                self.end_recv(RecvEnd::Finished);
                StreamError::Ended
            }
        }
    }

    fn end_send(&mut self, end: SendEnd) {
        self.send = Err(end);
        self.untie_if_over();
    }

    fn end_recv(&mut self, end: RecvEnd) {
        self.recv = Err(end);
        self.untie_if_over();
    }

    fn untie_if_over(&mut self) {
        if self.send.is_err() && self.recv.is_err() {
            self.token = None;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reset(0);
        self.stop(0);
    }
}

fn send_error(end: SendEnd) -> StreamError {
    match end {
        SendEnd::Stopped(code) => StreamError::Stopped(code),
        SendEnd::Finished | SendEnd::Ours(_) => StreamError::Ended,
    }
}

fn read_end(end: RecvEnd) -> Result<(), StreamError> {
    match end {
        RecvEnd::Finished => Ok(()),
        RecvEnd::Reset(code) => Err(StreamError::Reset(code)),
        RecvEnd::Ours(_) => Err(StreamError::Ended),
    }
}

fn lost(error: &quinn::ConnectionError) -> StreamError {
    StreamError::ConnectionLost(disconnect_reason(error, unix()))
}

impl tokio::io::AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = ready!(self.get_mut().poll_read(cx, buf.initialize_unfilled()))?;
        buf.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write(cx, bytes).map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish().map_err(Into::into))
    }
}

impl futures_io::AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_read(cx, buf).map_err(Into::into)
    }
}

impl futures_io::AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write(cx, bytes).map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish().map_err(Into::into))
    }
}
