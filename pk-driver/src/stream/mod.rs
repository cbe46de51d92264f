//! Streams of application protocols.

pub(crate) mod accept;
pub(crate) mod shared;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use pk_proto::{NodeId, StreamId};
use pk_quic::{RecvEnd, SendEnd, StreamError};

use self::shared::SharedNode;

/// A bidirectional stream of an application protocol, with an authenticated node.
///
/// Each direction ends separately: the sending one by [`finish`](Self::finish) or
/// [`reset`](Self::reset), the receiving one at the end of the peer's data or by
/// [`stop`](Self::stop). **Dropping the stream aborts directions that have not ended**, by reset
/// and stop with code 0. Call `finish` to have all data delivered.
///
/// The connection counts as used until both directions have ended or the stream is dropped; a
/// finished direction has ended when the peer has acknowledged it. Streams that outlive their node
/// end with [`StreamError::ConnectionLost`].
///
/// Also implements [`tokio::io::AsyncRead`] and [`AsyncWrite`](tokio::io::AsyncWrite), and their
/// counterparts in `futures-io`; closing it there calls [`finish`](Self::finish).
#[derive(Debug)]
pub struct Stream {
    shared: SharedNode,
    id: StreamId,
    node: NodeId,
    protocol: String,
    send: Result<(), SendEnd>,
    recv: Result<(), RecvEnd>,
}

impl Stream {
    /// Returns the handle of a stream that the state machine has handed over.
    pub(crate) fn new(shared: SharedNode, id: StreamId, node: NodeId, protocol: String) -> Self {
        Self { shared, id, node, protocol, send: Ok(()), recv: Ok(()) }
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
        self.send.map_err(send_error)?;
        self.shared.use_stream(|node, now| node.finish(now, self.id));
        self.send = Err(SendEnd::Finished);
        Ok(())
    }

    /// Resets the sending direction: data that has not arrived may never arrive. Has no effect if
    /// the direction has ended.
    pub fn reset(&mut self, code: u64) {
        if self.send.is_ok() {
            self.shared.use_stream(|node, now| node.reset(now, self.id, code));
            self.send = Err(SendEnd::Ours(code));
        }
    }

    /// Stops the receiving direction: nothing more is read. Has no effect if the direction has
    /// ended.
    pub fn stop(&mut self, code: u64) {
        if self.recv.is_ok() {
            self.shared.use_stream(|node, now| node.stop_stream(now, self.id, code));
            self.recv = Err(RecvEnd::Ours(code));
        }
    }

    /// Waits until the peer has acknowledged all data and the end, after [`finish`](Self::finish).
    ///
    /// Consumes the stream. If the future is dropped, the data is delivered nevertheless.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write).
    pub async fn finish_and_wait(mut self) -> Result<(), StreamError> {
        self.finish()?;
        poll_fn(|cx| self.shared.poll_delivered(self.id, cx)).await
    }

    // -- the same as polls, for both families of traits

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, StreamError>> {
        if buf.is_empty() {
            return Poll::Ready(self.recv.or_else(read_end).map(|()| 0));
        }
        let bytes = ready!(self.poll_read_chunk(cx, buf.len()))?.unwrap_or_default();
        if let Some(buf) = buf.get_mut(..bytes.len()) {
            buf.copy_from_slice(&bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        if let Err(end) = self.recv {
            return Poll::Ready(read_end(end).map(|()| None));
        }
        let read = ready!(self.shared.poll_read(self.id, max, cx));
        match read {
            Ok(Some(_)) | Err(StreamError::ConnectionLost(_)) => {}
            Ok(None) => self.recv = Err(RecvEnd::Finished),
            // The first end counts.
            Err(StreamError::Reset(code)) => self.recv = Err(RecvEnd::Reset(code)),
            Err(_) => self.recv = Err(RecvEnd::Ours(0)),
        }
        Poll::Ready(read)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, StreamError>> {
        self.send.map_err(send_error)?;
        let written = ready!(self.shared.poll_write(self.id, bytes, cx));
        match written {
            Ok(_) | Err(StreamError::ConnectionLost(_)) => {}
            Err(StreamError::Stopped(code)) => self.send = Err(SendEnd::Stopped(code)),
            Err(_) => self.send = Err(SendEnd::Ours(0)),
        }
        Poll::Ready(written)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reset(0);
        self.stop(0);
        self.shared.forget(self.id);
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
