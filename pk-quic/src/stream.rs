//! One bidirectional stream: of the core, with credit in both directions, or of an application,
//! which reads and writes without blocking.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use pk_proto::{DisconnectReason, Input, StreamId};
use quinn_proto::{Connection, ReadError, StreamId as QuicStream, WriteError};

use crate::event::TransportEvent;
use crate::reasons::{StreamError, varint};
use crate::settings::TransportSettings;

/// Maximum length of one read for the core, in bytes.
const READ: u64 = 16 * 1024;

/// Chunks below this length are copied, because a chunk is a slice of whole packets and keeps them
/// in memory.
const COPIED: usize = 1024;

/// How the sending direction of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendEnd {
    /// By a finish.
    Finished,
    /// The peer stopped it.
    Stopped(u64),
    /// Reset locally.
    Ours(u64),
}

/// How the receiving direction of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecvEnd {
    /// By a finish of the peer.
    Finished,
    /// The peer reset it.
    Reset(u64),
    /// Stopped locally.
    Ours(u64),
}

/// Result of a read that does not block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// Bytes of the peer, at least one.
    Bytes(Bytes),
    /// There are none now. An event follows when there are.
    Blocked,
    /// The peer has finished its direction.
    End,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// `None` while the stream waits to be opened.
    quic: Option<QuicStream>,
    /// Bytes of the core that QUIC has not accepted.
    queue: VecDeque<Bytes>,
    fin: bool,
    send_end: Option<SendEnd>,
    credit: u64,
    recv_end: Option<RecvEnd>,
    /// Since the stream was handed over.
    application: Option<Application>,
}

/// The state of a stream that was handed over.
#[derive(Debug, Default)]
struct Application {
    /// Unread bytes.
    buffer: VecDeque<Bytes>,
    buffered: usize,
    /// Whether QUIC has more unread bytes.
    is_full: bool,
    /// Whether the last read found something, so that the next readable byte is not reported.
    told_readable: bool,
    /// Whether the last write was accepted completely.
    told_writable: bool,
    /// Whether the peer has acknowledged everything, and the end.
    delivered: bool,
    /// Whether the embedder knows how each direction ended. Until then the stream is kept.
    knows_recv_end: bool,
    knows_send_end: bool,
}

impl Stream {
    /// Returns a stream that waits to be opened, or one of the peer.
    pub(crate) fn new(quic: Option<QuicStream>) -> Self {
        Self {
            quic,
            queue: VecDeque::new(),
            fin: false,
            send_end: None,
            credit: 0,
            recv_end: None,
            application: None,
        }
    }

    pub(crate) fn quic(&self) -> Option<QuicStream> {
        self.quic
    }

    pub(crate) fn is_application(&self) -> bool {
        self.application.is_some()
    }

    /// Returns whether both directions have ended. One of an application has ended only when the
    /// embedder knows it, and what was written is delivered.
    pub(crate) fn is_over(&self) -> bool {
        let Some(application) = &self.application else {
            return self.send_end.is_some() && self.recv_end.is_some();
        };
        let sent = match self.send_end {
            Some(SendEnd::Finished) => application.delivered,
            Some(SendEnd::Stopped(_)) => application.knows_send_end,
            Some(SendEnd::Ours(_)) => true,
            None => false,
        };
        let received = match self.recv_end {
            Some(RecvEnd::Finished | RecvEnd::Reset(_)) => application.knows_recv_end,
            Some(RecvEnd::Ours(_)) => true,
            None => false,
        };
        sent && received
    }

    /// Returns whether data waits to be passed to QUIC.
    pub(crate) fn sends(&self) -> bool {
        self.quic.is_some() && self.send_end.is_none() && (self.fin || !self.queue.is_empty())
    }

    /// Returns whether the request was sent completely and the response is not complete yet.
    pub(crate) fn waits(&self) -> bool {
        self.send_end == Some(SendEnd::Finished) && self.recv_end.is_none()
    }

    /// Unread bytes in the buffer, and whether QUIC has more.
    pub(crate) fn unread(&self) -> (usize, bool) {
        self.application.as_ref().map_or((0, false), |it| (it.buffered, it.is_full))
    }

    /// The stream is open. Executes what was decided before.
    pub(crate) fn attach(&mut self, conn: &mut Connection, quic: QuicStream) {
        self.quic = Some(quic);
        if let Some(SendEnd::Ours(code)) = self.send_end {
            let _ = conn.send_stream(quic).reset(varint(code));
        }
        if let Some(RecvEnd::Ours(code)) = self.recv_end {
            let _ = conn.recv_stream(quic).stop(varint(code));
        }
    }

    // -- outputs of the core

    pub(crate) fn send(&mut self, bytes: Bytes, fin: bool) {
        if self.send_end.is_none() && !self.fin {
            if !bytes.is_empty() {
                self.queue.push_back(bytes);
            }
            self.fin = fin;
        }
    }

    pub(crate) fn credit(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add(bytes);
    }

    pub(crate) fn reset(&mut self, conn: &mut Connection, code: u64) {
        if self.send_end.is_none() {
            if let Some(quic) = self.quic {
                let _ = conn.send_stream(quic).reset(varint(code));
            }
            self.end_send(SendEnd::Ours(code));
        }
        if let Some(application) = &mut self.application {
            application.knows_send_end = true;
        }
    }

    pub(crate) fn stop(&mut self, conn: &mut Connection, code: u64) {
        if self.recv_end.is_none() {
            if let Some(quic) = self.quic {
                let _ = conn.recv_stream(quic).stop(varint(code));
            }
            self.recv_end = Some(RecvEnd::Ours(code));
        }
        if let Some(application) = &mut self.application {
            application.clear();
            application.knows_recv_end = true;
        }
    }

    /// Hands the stream over to the embedder. `unread` was read by the core.
    pub(crate) fn detach(&mut self, unread: Bytes) {
        let mut application = Application::default();
        application.push(unread);
        self.application = Some(application);
    }

    /// Takes the stream of QUIC, and what the core has sent on it and QUIC has not accepted, so
    /// that the stream can carry datagrams. `None` if a direction has ended or the stream is not
    /// open.
    pub(crate) fn take_carrier(&mut self) -> Option<(QuicStream, VecDeque<Bytes>)> {
        let is_open = self.send_end.is_none()
            && self.recv_end.is_none()
            && !self.fin
            && self.application.is_none();
        let quic = self.quic.filter(|_| is_open)?;
        Some((quic, std::mem::take(&mut self.queue)))
    }

    // -- events of QUIC

    /// The peer stopped the sending direction. Returns the input of the core.
    pub(crate) fn stopped(
        &mut self,
        conn: &mut Connection,
        id: StreamId,
        code: u64,
        events: &mut VecDeque<TransportEvent>,
    ) {
        if let Some(quic) = self.quic {
            let _ = conn.send_stream(quic).reset(varint(code));
        }
        if self.send_end.is_none() {
            self.end_send(SendEnd::Stopped(code));
            events.push_back(match self.application {
                Some(_) => TransportEvent::Writable(id),
                None => TransportEvent::Input(Input::StreamStopped { stream: id, code }),
            });
        } else if self.send_end == Some(SendEnd::Finished)
            && let Some(application) = &mut self.application
            && !application.delivered
        {
            application.knows_send_end = true;
            self.end_send(SendEnd::Stopped(code));
            let result = Err(StreamError::Stopped(code));
            events.push_back(TransportEvent::Delivered { stream: id, result });
        }
    }

    /// The peer has acknowledged everything, and the end.
    pub(crate) fn delivered(&mut self, id: StreamId, events: &mut VecDeque<TransportEvent>) {
        if let Some(application) = &mut self.application {
            application.delivered = true;
            events.push_back(TransportEvent::Delivered { stream: id, result: Ok(()) });
        }
    }

    /// QUIC accepts more. Reports it if a write was cut short.
    pub(crate) fn writable(&mut self, id: StreamId, events: &mut VecDeque<TransportEvent>) {
        let room = self.queue.is_empty() && self.send_end.is_none();
        if let Some(application) = &mut self.application
            && room
            && !std::mem::replace(&mut application.told_writable, true)
        {
            events.push_back(TransportEvent::Writable(id));
        }
    }

    /// Passes bytes of the core to QUIC. Returns their number.
    pub(crate) fn pump_send(
        &mut self,
        conn: &mut Connection,
        id: StreamId,
        events: &mut VecDeque<TransportEvent>,
    ) -> u64 {
        let Some(quic) = self.quic.filter(|_| self.send_end.is_none()) else { return 0 };
        let mut sent = 0;
        let mut stopped = None;
        while !self.queue.is_empty() {
            match conn.send_stream(quic).write_chunks(self.queue.make_contiguous()) {
                Ok(written) => {
                    sent += written.bytes as u64;
                    self.queue.drain(..written.chunks);
                }
                Err(WriteError::Stopped(code)) => {
                    stopped = Some(code.into_inner());
                    break;
                }
                Err(WriteError::Blocked | WriteError::ClosedStream) => break,
            }
        }
        if sent > 0 {
            events
                .push_back(TransportEvent::Input(Input::StreamWritten { stream: id, bytes: sent }));
        }
        if let Some(code) = stopped {
            self.stopped(conn, id, code, events);
        } else if self.queue.is_empty() {
            if self.fin {
                // An error means that it has ended already.
                let _ = conn.send_stream(quic).finish();
                self.end_send(SendEnd::Finished);
            } else if sent > 0 {
                self.writable(id, events);
            }
        }
        sent
    }

    /// Reads what is there: for the core within its credit, for an application into the buffer.
    /// Returns whether anything was read.
    pub(crate) fn pump_recv(
        &mut self,
        conn: &mut Connection,
        id: StreamId,
        events: &mut VecDeque<TransportEvent>,
    ) -> bool {
        if self.application.is_some() {
            return self.fill(conn, id, TransportSettings::APPLICATION_BUFFER, events);
        }
        let Some(quic) = self.quic.filter(|_| self.recv_end.is_none()) else { return false };
        let mut recv = conn.recv_stream(quic);
        let Ok(mut chunks) = recv.read(true) else { return false };
        // The last bytes are reported together with the end, so that each chunk waits for the next
        // one.
        let mut held: Option<Bytes> = None;
        let mut reset = None;
        let mut moved = false;
        let data = |bytes, fin| TransportEvent::Input(Input::StreamData { stream: id, bytes, fin });
        loop {
            // Without credit nothing is read, but the end is detected.
            match chunks.next(usize::try_from(self.credit.min(READ)).unwrap_or(usize::MAX)) {
                Ok(Some(chunk)) if chunk.bytes.is_empty() => break,
                Ok(Some(chunk)) => {
                    moved = true;
                    events.extend(held.take().map(|bytes| data(bytes, false)));
                    self.credit = self.credit.saturating_sub(chunk.bytes.len() as u64);
                    held = Some(Bytes::copy_from_slice(&chunk.bytes));
                }
                Ok(None) => {
                    moved = true;
                    events.push_back(data(held.take().unwrap_or_default(), true));
                    self.recv_end = Some(RecvEnd::Finished);
                    break;
                }
                Err(ReadError::Reset(code)) => {
                    reset = Some(code.into_inner());
                    break;
                }
                Err(ReadError::Blocked) => break,
            }
        }
        let _ = chunks.finalize();
        events.extend(held.map(|bytes| data(bytes, false)));
        if let Some(code) = reset {
            moved = true;
            self.recv_end = Some(RecvEnd::Reset(code));
            events.push_back(TransportEvent::Input(Input::StreamReset { stream: id, code }));
        }
        moved
    }

    /// Reads into the buffer of the application until it has `limit` bytes.
    pub(crate) fn fill(
        &mut self,
        conn: &mut Connection,
        id: StreamId,
        limit: usize,
        events: &mut VecDeque<TransportEvent>,
    ) -> bool {
        let Some(application) = &mut self.application else { return false };
        let mut moved = false;
        if let Some(quic) = self.quic.filter(|_| self.recv_end.is_none())
            && let Ok(mut chunks) = conn.recv_stream(quic).read(true)
        {
            application.is_full = false;
            loop {
                match chunks.next(limit.saturating_sub(application.buffered)) {
                    Ok(Some(chunk)) if chunk.bytes.is_empty() => {
                        application.is_full = true;
                        break;
                    }
                    Ok(Some(chunk)) => application.push(chunk.bytes),
                    Ok(None) => {
                        self.recv_end = Some(RecvEnd::Finished);
                        break;
                    }
                    Err(ReadError::Reset(code)) => {
                        // The first end counts, and a reset drops unread bytes.
                        self.recv_end = Some(RecvEnd::Reset(code.into_inner()));
                        application.clear();
                        break;
                    }
                    Err(ReadError::Blocked) => break,
                }
                moved = true;
            }
            let _ = chunks.finalize();
            moved |= self.recv_end.is_some();
        }
        if (application.buffered > 0 || self.recv_end.is_some()) && !application.told_readable {
            application.told_readable = true;
            events.push_back(TransportEvent::Readable(id));
        }
        moved
    }

    // -- the embedder

    /// Takes buffered bytes, at most `max`.
    pub(crate) fn take(&mut self, max: usize) -> Result<Read, StreamError> {
        let application = self.application.as_mut().ok_or(StreamError::Ended)?;
        if let Some(bytes) = application.pop(max) {
            return Ok(Read::Bytes(bytes));
        }
        application.knows_recv_end |= self.recv_end.is_some();
        match self.recv_end {
            None => {
                application.told_readable = false;
                Ok(Read::Blocked)
            }
            Some(RecvEnd::Finished) => Ok(Read::End),
            Some(RecvEnd::Reset(code)) => Err(StreamError::Reset(code)),
            Some(RecvEnd::Ours(_)) => Err(StreamError::Ended),
        }
    }

    /// Passes bytes of the embedder to QUIC. Returns the number of accepted ones.
    pub(crate) fn write(
        &mut self,
        conn: &mut Connection,
        mut bytes: &[u8],
    ) -> Result<usize, StreamError> {
        let application = self.application.as_mut().ok_or(StreamError::Ended)?;
        application.knows_send_end |= self.send_end.is_some();
        match self.send_end {
            Some(SendEnd::Stopped(code)) => return Err(StreamError::Stopped(code)),
            Some(SendEnd::Finished | SendEnd::Ours(_)) => return Err(StreamError::Ended),
            None if self.fin => return Err(StreamError::Ended),
            None => {}
        }
        let len = bytes.len();
        let Some(quic) = self.quic.filter(|_| self.queue.is_empty()) else {
            application.told_writable = false;
            return Ok(0);
        };
        // Until QUIC refuses, because only then does it report room.
        while !bytes.is_empty() {
            match conn.send_stream(quic).write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(WriteError::Blocked | WriteError::ClosedStream) => {
                    application.told_writable = false;
                    break;
                }
                Err(WriteError::Stopped(code)) => {
                    let _ = conn.send_stream(quic).reset(code);
                    application.knows_send_end = true;
                    self.end_send(SendEnd::Stopped(code.into_inner()));
                    return Err(StreamError::Stopped(code.into_inner()));
                }
            }
        }
        Ok(len - bytes.len())
    }

    /// Reports that the stream was ended without the embedder.
    pub(crate) fn fail(&mut self, id: StreamId, events: &mut VecDeque<TransportEvent>) {
        if let Some(application) = &mut self.application
            && !std::mem::replace(&mut application.told_readable, true)
        {
            events.push_back(TransportEvent::Readable(id));
        }
    }

    /// Ends the sending direction after what was written.
    pub(crate) fn finish(&mut self, conn: &mut Connection) {
        if let Some(application) = &mut self.application {
            application.knows_send_end = true;
        }
        if self.send_end.is_none() {
            self.fin = true;
            if let Some(quic) = self.quic.filter(|_| self.queue.is_empty()) {
                let _ = conn.send_stream(quic).finish();
                self.end_send(SendEnd::Finished);
            }
        }
    }

    /// Returns what remains readable after the end of the connection; `None` for a stream of the
    /// core.
    pub(crate) fn into_remains(self, why: &DisconnectReason) -> Option<Remains> {
        let buffer = self.application?.buffer;
        let end = match self.recv_end {
            Some(RecvEnd::Finished) => Ok(()),
            Some(RecvEnd::Reset(code)) => Err(StreamError::Reset(code)),
            Some(RecvEnd::Ours(_)) => return None,
            None => Err(StreamError::ConnectionLost(why.clone())),
        };
        Some(Remains { buffer, end, why: why.clone() })
    }

    fn end_send(&mut self, end: SendEnd) {
        self.send_end = Some(end);
        self.queue.clear();
    }
}

impl Application {
    fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.buffered += bytes.len();
        if bytes.len() >= COPIED {
            self.buffer.push_back(bytes);
            return;
        }
        let last = self.buffer.pop_back().map(Bytes::try_into_mut);
        match last {
            Some(Ok(mut last)) if last.len() < TransportSettings::APPLICATION_BUFFER => {
                last.extend_from_slice(&bytes);
                self.buffer.push_back(last.freeze());
            }
            last => {
                let last = last.map(|last| last.map_or_else(|bytes| bytes, BytesMut::freeze));
                self.buffer.extend(last);
                self.buffer.push_back(Bytes::copy_from_slice(&bytes));
            }
        }
    }

    fn pop(&mut self, max: usize) -> Option<Bytes> {
        let mut bytes = self.buffer.pop_front()?;
        if bytes.len() > max {
            let rest = bytes.split_off(max);
            self.buffer.push_front(rest);
        }
        self.buffered -= bytes.len();
        Some(bytes)
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.buffered = 0;
        self.is_full = false;
    }
}

/// Unread bytes of an application stream whose connection has ended.
#[derive(Debug)]
pub(crate) struct Remains {
    buffer: VecDeque<Bytes>,
    end: Result<(), StreamError>,
    pub(crate) why: DisconnectReason,
}

impl Remains {
    pub(crate) fn new(unread: Bytes, why: DisconnectReason) -> Self {
        let buffer = if unread.is_empty() { VecDeque::new() } else { VecDeque::from([unread]) };
        Self { buffer, end: Err(StreamError::ConnectionLost(why.clone())), why }
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.iter().map(Bytes::len).sum()
    }

    pub(crate) fn take(&mut self, max: usize) -> Result<Read, StreamError> {
        let Some(mut bytes) = self.buffer.pop_front() else {
            return self.end.clone().map(|()| Read::End);
        };
        if bytes.len() > max {
            let rest = bytes.split_off(max);
            self.buffer.push_front(rest);
        }
        Ok(Read::Bytes(bytes))
    }
}
