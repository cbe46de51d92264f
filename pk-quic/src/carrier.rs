//! A stream that carries datagrams of another connection (docs/WIRE.md section 23).
//!
//! Each datagram follows its length, two bytes in network order. The stream is reliable, so that a
//! queue in front of it would only grow and delay: datagrams that do not fit in a short one are
//! dropped, as a router does, and the congestion control of the connection inside notices.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use quinn_proto::{Connection, ReadError, StreamId as QuicStream, WriteError};

use crate::settings::TransportSettings;

/// Maximum number of bytes that wait for the stream.
const QUEUE: usize = 64 * 1024;

/// Length of the header of a datagram.
const HEADER: usize = 2;

/// A datagram in a frame is empty, or longer than any node accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadFrame;

/// A stream that carries datagrams.
#[derive(Debug)]
pub(crate) struct Carrier {
    quic: QuicStream,
    /// Bytes of the core before the first datagram, and frames.
    queue: VecDeque<Bytes>,
    queued: usize,
    frames: Frames,
}

/// Splits received bytes into datagrams.
#[derive(Debug, Default)]
struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Adds bytes, and passes on each complete datagram.
    fn push(&mut self, bytes: &[u8], mut datagram: impl FnMut(Bytes)) -> Result<(), BadFrame> {
        self.buffer.extend_from_slice(bytes);
        while let Some(header) = self.buffer.first_chunk::<HEADER>() {
            let len = usize::from(u16::from_be_bytes(*header));
            if !(1..=TransportSettings::MAX_DATAGRAM).contains(&len) {
                return Err(BadFrame);
            }
            if self.buffer.len() < HEADER + len {
                break;
            }
            self.buffer.advance(HEADER);
            datagram(self.buffer.split_to(len).freeze());
        }
        Ok(())
    }
}

/// What a carrier did.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Whether something was read or written.
    pub(crate) moved: bool,
    /// Whether the stream has ended, or its peer sends no frames.
    pub(crate) is_over: bool,
}

impl Carrier {
    /// A stream of QUIC, before whose first datagram `queue` is sent.
    pub(crate) fn new(quic: QuicStream, queue: VecDeque<Bytes>) -> Self {
        let queued = queue.iter().map(Bytes::len).sum();
        Self { quic, queue, queued, frames: Frames::default() }
    }

    pub(crate) fn quic(&self) -> QuicStream {
        self.quic
    }

    /// Queues a datagram. Returns `false` if it is dropped because too much waits.
    pub(crate) fn send(&mut self, datagram: &[u8]) -> bool {
        let Ok(len) = u16::try_from(datagram.len()) else { return false };
        let fits = self.queued + datagram.len() <= QUEUE;
        if fits {
            let frame = [&len.to_be_bytes()[..], datagram].concat();
            self.queued += frame.len();
            self.queue.push_back(frame.into());
        }
        fits
    }

    /// Writes what QUIC accepts, and passes on each datagram that has arrived.
    pub(crate) fn pump(&mut self, conn: &mut Connection, datagram: impl FnMut(Bytes)) -> Progress {
        let mut progress = Progress::default();
        while !self.queue.is_empty() {
            match conn.send_stream(self.quic).write_chunks(self.queue.make_contiguous()) {
                Ok(written) => {
                    progress.moved = true;
                    self.queued = self.queued.saturating_sub(written.bytes);
                    self.queue.drain(..written.chunks);
                }
                Err(WriteError::Blocked) => break,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                    progress.is_over = true;
                    break;
                }
            }
        }
        self.read(conn, &mut progress, datagram);
        progress
    }

    fn read(
        &mut self,
        conn: &mut Connection,
        progress: &mut Progress,
        mut datagram: impl FnMut(Bytes),
    ) {
        let mut recv = conn.recv_stream(self.quic);
        let Ok(mut chunks) = recv.read(true) else {
            progress.is_over = true;
            return;
        };
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => {
                    progress.moved = true;
                    if self.frames.push(&chunk.bytes, &mut datagram).is_err() {
                        progress.is_over = true;
                        break;
                    }
                }
                Ok(None) | Err(ReadError::Reset(_)) => {
                    progress.is_over = true;
                    break;
                }
                Err(ReadError::Blocked) => break,
            }
        }
        let _ = chunks.finalize();
    }

    /// Ends both directions.
    pub(crate) fn close(&self, conn: &mut Connection, code: u64) {
        let code = crate::reasons::varint(code);
        // An error means that the direction has ended already.
        let _ = conn.send_stream(self.quic).reset(code);
        let _ = conn.recv_stream(self.quic).stop(code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(pieces: &[&[u8]]) -> (Vec<Bytes>, Result<(), BadFrame>) {
        let (mut frames, mut datagrams) = (Frames::default(), Vec::new());
        let mut result = Ok(());
        for piece in pieces {
            result = result.and_then(|()| frames.push(piece, |datagram| datagrams.push(datagram)));
        }
        (datagrams, result)
    }

    #[test]
    fn datagrams_are_found_in_bytes_however_they_are_cut() {
        let bytes = [0, 3, 1, 2, 3, 0, 1, 9, 0, 2, 7, 8];
        let expected: [&[u8]; 3] = [&[1, 2, 3], &[9], &[7, 8]];
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(frames(&[head, tail]), (expected.map(Bytes::from_static).to_vec(), Ok(())));
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(frames(&single).0.len(), 3);
    }

    #[test]
    fn frame_without_a_datagram_or_too_long_is_refused_after_the_valid_ones() {
        let (datagrams, result) = frames(&[&[0, 1, 5, 0, 0]]);
        assert_eq!((datagrams.len(), result), (1, Err(BadFrame)));
        let longest = TransportSettings::MAX_DATAGRAM as u16;
        assert_eq!(frames(&[&longest.to_be_bytes()]).1, Ok(()));
        assert_eq!(frames(&[&(longest + 1).to_be_bytes()]).1, Err(BadFrame));
    }
}
