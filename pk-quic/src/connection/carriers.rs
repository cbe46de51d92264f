//! The streams of a connection that carry datagrams of other connections.

use pk_proto::StreamId;

use super::Connection;
use crate::carrier::Carrier;
use crate::cx::Cx;
use crate::settings::TransportSettings;
use crate::stream::Stream;

/// Smallest send window of a connection that carries datagrams, in bytes.
const LEAST_WINDOW: u64 = 16 * 1024;

impl Connection {
    /// Makes a stream of the core carry datagrams. Returns `false` if it cannot.
    pub(crate) fn carry(&mut self, cx: &mut Cx, id: StreamId) -> bool {
        if self.carriers.contains_key(&id) {
            return true;
        }
        let carrier = self.streams.get_mut(&id).and_then(Stream::take_carrier);
        let carries = carrier.is_some();
        if let Some((quic, queue)) = carrier {
            self.streams.remove(&id);
            self.carriers.insert(id, Carrier::new(quic, queue));
            let _ = self.quic.send_stream(quic).set_priority(0);
            // The id of the stream is free for the node protocol.
            self.reserve.add(id);
            self.dirty.insert(id);
            self.set_window(cx);
        }
        carries
    }

    /// Sends a datagram on a stream.
    pub(crate) fn carry_datagram(&mut self, cx: &mut Cx, id: StreamId, datagram: &[u8]) {
        if let Some(carrier) = self.carriers.get_mut(&id) {
            let fits = carrier.send(datagram);
            cx.metrics.datagrams_not_carried += u64::from(!fits);
            self.dirty.insert(id);
        }
    }

    /// Reads and writes what a stream carries.
    pub(super) fn pump_carrier(&mut self, cx: &mut Cx, id: StreamId) -> bool {
        let Some(carrier) = self.carriers.get_mut(&id) else { return false };
        let carried = &mut cx.carried;
        let progress = carrier.pump(&mut self.quic, |datagram| carried.push_back((id, datagram)));
        if progress.is_over {
            cx.carriers_over.push_back((id, false));
        }
        progress.moved
    }

    /// Ends a stream that carries datagrams. Returns whether there was one.
    pub(crate) fn close_carrier(&mut self, cx: &mut Cx, id: StreamId, code: u64) -> bool {
        let Some(carrier) = self.carriers.remove(&id) else { return false };
        carrier.close(&mut self.quic, code);
        self.by_quic.remove(&carrier.quic());
        self.reserve.remove(id);
        cx.streams.remove(&id);
        self.set_window(cx);
        true
    }

    /// Ends a stream that cannot carry datagrams because a direction of it has ended.
    pub(crate) fn drop_stream(&mut self, cx: &mut Cx, id: StreamId) {
        if let Some(mut stream) = self.streams.remove(&id) {
            stream.reset(&mut self.quic, 0);
            stream.stop(&mut self.quic, 0);
            cx.streams.remove(&id);
            if let Some(quic) = stream.quic() {
                self.by_quic.remove(&quic);
            }
        }
    }

    /// The connection has ended.
    pub(super) fn end_carriers(&mut self, cx: &mut Cx) {
        for id in std::mem::take(&mut self.carriers).into_keys() {
            cx.streams.remove(&id);
            cx.carriers_over.push_back((id, true));
        }
    }

    /// Sets the send window for everything but the node protocol.
    pub(super) fn set_window(&mut self, cx: &Cx) {
        self.quic.set_send_window(self.window(cx));
    }

    /// Returns the send window for everything but the node protocol. While datagrams are carried,
    /// it follows the congestion window: what QUIC accepts beyond that only waits, and delays every
    /// datagram behind it.
    pub(super) fn window(&self, cx: &Cx) -> u64 {
        let window =
            u64::from(cx.settings.send_window).saturating_sub(TransportSettings::SEND_RESERVE);
        if self.carriers.is_empty() {
            return window;
        }
        let congestion = self.quic.congestion_state().window();
        (congestion / 2 * 3).max(LEAST_WINDOW).min(window)
    }
}
