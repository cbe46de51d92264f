//! The two halves of one stream: what waits to be sent, and what the peer may still send.

use alloc::collections::VecDeque;

use bytes::Bytes;

use super::codec::Decoder;
use crate::cx::Cx;
use crate::id::StreamId;
use crate::io::{Dialect, Output};

/// Our direction: a queue behind a window of bytes that the transport has not confirmed.
#[derive(Debug, Default)]
pub(super) struct SendHalf {
    queue: VecDeque<Bytes>,
    queued: u64,
    unconfirmed: u64,
    fin: Fin,
}

/// How far the end of our direction has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Fin {
    /// More may follow.
    #[default]
    Open,
    /// It follows the queue.
    Queued,
    /// The driver has it.
    Sent,
    /// We or the peer aborted; nothing is sent any more.
    Aborted,
}

/// The queue of a stream is over its limit: the peer asks, but does not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl SendHalf {
    /// Appends bytes, and the end if `fin`. On overflow nothing is appended.
    pub(super) fn send(&mut self, cx: &mut Cx, stream: StreamId, bytes: Bytes, fin: bool) -> Result<(), Overflow> {
        if self.fin != Fin::Open {
            return Ok(());
        }
        let queued = self.queued.saturating_add(bytes.len() as u64);
        if queued > cx.config.send_queue_limit {
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

    /// The transport took this many bytes.
    pub(super) fn confirm(&mut self, cx: &mut Cx, stream: StreamId, bytes: u64) {
        self.unconfirmed = self.unconfirmed.saturating_sub(bytes);
        self.flush(cx, stream);
    }

    /// Drops what waits; nothing is sent any more.
    pub(super) fn abort(&mut self) {
        self.queue.clear();
        self.queued = 0;
        self.unconfirmed = 0;
        self.fin = Fin::Aborted;
    }

    /// Whether our direction has ended: aborted, or everything including the end is with the transport.
    pub(super) fn is_done(&self) -> bool {
        match self.fin {
            Fin::Sent => self.unconfirmed == 0,
            Fin::Aborted => true,
            Fin::Open | Fin::Queued => false,
        }
    }

    /// Bytes that wait here or in the driver.
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

/// The peer's direction: what it may still send, and what has come of a message that is not whole.
#[derive(Debug)]
pub(super) struct RecvHalf {
    pub(super) decoder: Decoder,
    /// Granted, not arrived.
    pub(super) credit: u64,
    over: bool,
}

impl RecvHalf {
    pub(super) fn new(dialect: Dialect, window: u64) -> Self {
        Self { decoder: Decoder::new(dialect, window), credit: 0, over: false }
    }

    /// Nothing comes any more: the peer has ended or aborted its direction, or we have asked it to.
    pub(super) fn end(&mut self) {
        self.over = true;
        self.credit = 0;
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// What this half may cost in memory: what it holds and what may still come.
    pub(super) fn cost(&self) -> u64 {
        self.credit.saturating_add(self.decoder.buffered() as u64)
    }

    /// Bytes to grant so that the message under way can become whole.
    pub(super) fn missing(&self) -> u64 {
        (self.decoder.wanted() as u64).saturating_sub(self.credit)
    }
}
