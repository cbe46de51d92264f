//! Datagrams between connections: relayed paths, and circuits that are forwarded.

use std::net::SocketAddr;

use pk_proto::{CircuitLimits, Input, StreamId, code};

use super::{Datagram, Transport};
use crate::circuits::{Ended, Forward};

impl Transport {
    /// Executes the effect `AttachCircuit`.
    pub(super) fn attach_circuit(&mut self, stream: StreamId, addr: SocketAddr) {
        if self.carry(stream) {
            self.circuits.attach(stream, addr);
        } else if self.cx.streams.contains_key(&stream) {
            self.drop_ended(stream);
        }
    }

    /// Drops a stream of which a direction has ended, so that it cannot carry datagrams.
    fn drop_ended(&mut self, stream: StreamId) {
        self.with_stream(stream, |it, cx| it.drop_stream(cx, stream));
        self.cx.input(Input::StreamClosed { stream });
    }

    /// Executes the effect `JoinCircuit`.
    pub(super) fn join_circuit(
        &mut self,
        stream: StreamId,
        other: StreamId,
        limits: CircuitLimits,
    ) {
        let carried = [stream, other].map(|stream| self.carry(stream));
        if carried == [true, true] {
            self.circuits.join(stream, other, limits, self.cx.now);
        } else {
            for stream in [stream, other] {
                self.close_carriers(&[stream], code::NONE);
                self.with_stream(stream, |it, cx| it.drop_stream(cx, stream));
            }
            self.cx.input(Input::CircuitClosed { stream, bytes: 0 });
        }
    }

    /// Executes the effect `CloseCircuit`.
    pub(super) fn close_circuit(&mut self, stream: StreamId) {
        // The core may have decided before the stream became a path.
        if !self.carry(stream) && self.cx.streams.contains_key(&stream) {
            self.drop_ended(stream);
        }
        self.end_circuit(stream, false, code::NONE);
    }

    /// Makes a stream carry datagrams. Returns `false` if it has ended.
    fn carry(&mut self, stream: StreamId) -> bool {
        let mut carries = false;
        self.with_stream(stream, |it, cx| carries = it.carry(cx, stream));
        carries
    }

    /// Ends what a stream belongs to; `lost`: its connection has ended.
    fn end_circuit(&mut self, stream: StreamId, lost: bool, code: u64) {
        match self.circuits.end(stream) {
            Ended::Circuit { stream, other, bytes } => {
                self.close_carriers(&[stream, other], code);
                self.cx.input(Input::CircuitClosed { stream, bytes });
            }
            Ended::Path | Ended::Nothing => {
                if self.close_carriers(&[stream], code) && !lost {
                    self.cx.input(Input::StreamClosed { stream });
                }
            }
        }
    }

    /// Ends streams that carry datagrams. Returns whether there was one.
    fn close_carriers(&mut self, streams: &[StreamId], code: u64) -> bool {
        let mut closed = false;
        for stream in streams {
            self.with_stream(*stream, |it, cx| closed |= it.close_carrier(cx, *stream, code));
        }
        closed
    }

    /// Passes on the datagrams that have arrived on streams, and ends what has ended. Returns
    /// whether there was anything.
    pub(super) fn relay(&mut self) -> bool {
        let mut moved = false;
        while let Some((stream, datagram)) = self.cx.carried.pop_front() {
            moved = true;
            let len = datagram.len();
            match self.circuits.forward(stream, len, self.cx.now) {
                Forward::Here(from) => {
                    let datagram = Datagram { from, to: None, ecn: 0, bytes: &datagram };
                    self.deliver(from, &datagram);
                }
                Forward::To(other) => {
                    self.cx.metrics.datagrams_forwarded += 1;
                    self.with_stream(other, |it, cx| it.carry_datagram(cx, other, &datagram));
                }
                Forward::Dropped => self.cx.metrics.datagrams_over_rate += 1,
                Forward::Exhausted => self.end_circuit(stream, false, code::LIMIT),
                Forward::Nowhere => {}
            }
        }
        while let Some((stream, lost)) = self.cx.carriers_over.pop_front() {
            moved = true;
            self.end_circuit(stream, lost, code::NONE);
        }
        moved
    }

    /// Sends datagrams of one length, and a shorter last one, on the stream of a path.
    pub(super) fn send_on_path(&mut self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) {
        let Some(stream) = self.circuits.path(&to) else {
            self.cx.metrics.datagrams_without_path += 1;
            return;
        };
        for datagram in bytes.chunks(segment.unwrap_or(bytes.len()).max(1)) {
            self.with_stream(stream, |it, cx| it.carry_datagram(cx, stream, datagram));
        }
    }

    /// Ends the circuits that were idle for too long.
    pub(super) fn end_idle_circuits(&mut self) {
        while let Some(stream) = self.circuits.take_idle(self.cx.now) {
            self.cx.metrics.circuits_idle += 1;
            self.end_circuit(stream, false, code::NONE);
        }
    }
}
