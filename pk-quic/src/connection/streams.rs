//! The streams of a connection.

use bytes::Bytes;
use pk_proto::{Input, StreamId};
use quinn_proto::{Dir, VarInt};

use super::Connection;
use crate::cx::Cx;
use crate::event::{Opened, TransportEvent};
use crate::reasons::StreamError;
use crate::reserve;
use crate::settings::TransportSettings;
use crate::stream::{Read, Stream};

/// Priority of the streams of the node protocol; that of applications is 0.
const CORE_PRIORITY: i32 = 1;

impl Connection {
    pub(super) fn accept_streams(&mut self, cx: &mut Cx) {
        let Some(conn) = self.id.filter(|_| self.is_live()) else { return };
        while let Some(quic) = self.quic.streams().accept(Dir::Bi) {
            let stream = cx.stream_id();
            self.add(cx, stream, Stream::new(Some(quic)));
            self.by_quic.insert(quic, stream);
            self.dirty.insert(stream);
            let _ = self.quic.send_stream(quic).set_priority(CORE_PRIORITY);
            cx.input(Input::StreamOpened { conn, stream });
        }
    }

    pub(super) fn add(&mut self, cx: &mut Cx, id: StreamId, stream: Stream) {
        cx.streams.insert(id, self.handle.0);
        self.streams.insert(id, stream);
    }

    /// Executes the effect `OpenStream`.
    pub(crate) fn open_stream(&mut self, cx: &mut Cx, id: StreamId) {
        if self.is_live() {
            self.add(cx, id, Stream::new(None));
            self.waiting.push_back(id);
        }
    }

    pub(super) fn open_waiting(&mut self) -> bool {
        let mut moved = false;
        while let Some(id) = self.waiting.front().copied() {
            let Some(stream) = self.streams.get_mut(&id) else {
                // The core ended it while it waited.
                self.waiting.pop_front();
                continue;
            };
            let Some(quic) = self.quic.streams().open(Dir::Bi) else { break };
            self.waiting.pop_front();
            self.by_quic.insert(quic, id);
            self.dirty.insert(id);
            let _ = self.quic.send_stream(quic).set_priority(CORE_PRIORITY);
            stream.attach(&mut self.quic, quic);
            moved = true;
        }
        moved
    }

    /// Sends and reads on all streams with something to do, those of the node protocol first.
    pub(super) fn pump(&mut self, cx: &mut Cx) -> bool {
        if self.dirty.is_empty() {
            return false;
        }
        let mut moved = false;
        let patience = self.patience(cx);
        let dirty = std::mem::take(&mut self.dirty);
        let window = self.window(cx);
        if !self.carriers.is_empty() {
            self.quic.set_send_window(window);
        }
        for applications in [false, true] {
            for id in &dirty {
                if applications && self.carriers.contains_key(id) {
                    moved |= self.pump_carrier(cx, *id);
                    continue;
                }
                let Some(stream) = self.streams.get_mut(id) else { continue };
                if stream.is_application() != applications {
                    continue;
                }
                if stream.sends() {
                    self.liveness.before_send(cx.now, &self.quic.stats());
                    self.quic.set_send_window(cx.settings.send_window.into());
                    let sent = stream.pump_send(&mut self.quic, *id, &mut cx.events);
                    self.quic.set_send_window(window);
                    if sent > 0 || !stream.sends() {
                        moved = true;
                        self.liveness.sent_on(cx.now, patience);
                    }
                }
                moved |= stream.pump_recv(&mut self.quic, *id, &mut cx.events);
                self.reserve.note(*id, stream);
                if stream.sends() {
                    // Blocked; room may become free without an event.
                    self.dirty.insert(*id);
                }
                self.forget_if_over(cx, *id);
            }
        }
        moved
    }

    /// Gives ids and window back that applications use.
    pub(super) fn keep_reserve(&mut self, cx: &mut Cx) {
        if !self.is_live() {
            return;
        }
        while let Some(id) = self.reserve.excess() {
            let Some(stream) = self.streams.get_mut(&id) else {
                self.reserve.forget(id);
                continue;
            };
            cx.metrics.streams_unread += 1;
            stream.reset(&mut self.quic, reserve::CODE);
            stream.stop(&mut self.quic, reserve::CODE);
            stream.fail(id, &mut cx.events);
            self.reserve.forget(id);
            self.forget_if_over(cx, id);
        }
        if let Some(streams) = self.reserve.changed_streams() {
            let streams = VarInt::from_u64(streams).unwrap_or(VarInt::MAX);
            self.quic.set_max_concurrent_streams(Dir::Bi, streams);
        }
        if let Some(window) = self.reserve.changed_window() {
            self.quic.set_receive_window(VarInt::from_u64(window).unwrap_or(VarInt::MAX));
        }
    }

    /// Executes an output of the core on a stream.
    pub(crate) fn with_stream(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        action: impl FnOnce(&mut Stream, &mut quinn_proto::Connection),
    ) {
        if let Some(stream) = self.streams.get_mut(&id) {
            action(stream, &mut self.quic);
            self.dirty.insert(id);
            self.forget_if_over(cx, id);
        }
    }

    /// Executes the effect `DetachStream`.
    pub(crate) fn detach(&mut self, cx: &mut Cx, opened: Opened, unread: Bytes) {
        let id = opened.stream;
        let Some(stream) = self.streams.get_mut(&id).filter(|it| !it.is_application()) else {
            return;
        };
        stream.detach(unread);
        cx.application_streams += 1;
        if let Some(quic) = stream.quic() {
            let _ = self.quic.send_stream(quic).set_priority(0);
        }
        self.reserve.add(id);
        self.dirty.insert(id);
        let network = Some(self.network);
        cx.events.push_back(TransportEvent::Opened(Opened { network, ..opened }));
    }

    pub(super) fn forget_if_over(&mut self, cx: &mut Cx, id: StreamId) {
        if self.streams.get(&id).is_some_and(Stream::is_over)
            && let Some(stream) = self.streams.remove(&id)
        {
            cx.streams.remove(&id);
            if let Some(quic) = stream.quic() {
                self.by_quic.remove(&quic);
            }
            if stream.is_application() {
                cx.application_streams -= 1;
                self.reserve.remove(id);
                cx.input(Input::StreamClosed { stream: id });
            }
        }
    }

    // -- the embedder

    /// Reads from an application stream.
    pub(crate) fn read(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        max: usize,
    ) -> Result<Read, StreamError> {
        let stream = self.streams.get_mut(&id).ok_or(StreamError::Ended)?;
        let read = stream.take(max);
        if let Ok(Read::Bytes(bytes)) = &read {
            debug_assert!(!bytes.is_empty() || max == 0, "an empty read");
            // Reading grants the peer more, and refills the buffer.
            stream.fill(&mut self.quic, id, TransportSettings::APPLICATION_BUFFER, &mut cx.events);
            self.used(cx);
        }
        if let Some(stream) = self.streams.get(&id) {
            self.reserve.note(id, stream);
        }
        self.forget_if_over(cx, id);
        read
    }

    /// Writes to an application stream.
    pub(crate) fn write(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        bytes: &[u8],
    ) -> Result<usize, StreamError> {
        self.set_window(cx);
        let stream = self.streams.get_mut(&id).ok_or(StreamError::Ended)?;
        let written = stream.write(&mut self.quic, bytes);
        self.used(cx);
        self.forget_if_over(cx, id);
        written
    }

    pub(super) fn used(&mut self, cx: &Cx) {
        self.uses += 1;
        let patience = self.patience(cx);
        let quic = &self.quic;
        self.liveness.look_if_used(cx.now, || quic.stats(), patience, self.uses);
    }
}
