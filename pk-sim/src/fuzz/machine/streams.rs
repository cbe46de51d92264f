//! Streams: what peers send, what the machine reads, and how both directions end.

use pk_proto::{ConnectionId, Input, StreamId};

use super::Play;
use crate::fuzz::driver::ConnState;
use crate::fuzz::peers;
use crate::fuzz::script::Script;

/// Bytes of a stream that are unread, at most.
const MAX_UNREAD: usize = 1 << 20;

impl Play<'_> {
    pub(super) fn peer_stream(&mut self, conn: ConnectionId) -> StreamId {
        let stream = StreamId(self.driver.mint());
        self.driver.open(conn, stream);
        self.driver.input(Input::StreamOpened { conn, stream });
        stream
    }

    pub(super) fn peer_opens(&mut self) {
        let Some(conn) = self.live() else { return };
        for (bytes, fin) in peers::opening(&mut self.script, &self.driver, conn) {
            if self.driver.conns.get(&conn).is_none_or(|of| of.state != ConnState::Live) {
                return;
            }
            let stream = self.peer_stream(conn);
            let bytes = self.spoilt(bytes);
            self.peer_writes(stream, &bytes, fin);
        }
    }

    /// A peer begins an exchange, or asks for a signature of a claim about a network.
    pub(super) fn peer_claims(&mut self) {
        let Some(conn) = self.live() else { return };
        let Some((bytes, fin)) = peers::claiming(&mut self.script, &self.driver, conn) else {
            return;
        };
        let stream = self.peer_stream(conn);
        self.peer_writes(stream, &bytes, fin);
    }

    pub(super) fn peer_answers(&mut self) {
        let Some(stream) = self.stream() else { return };
        if let Some((bytes, fin)) = peers::answer(&mut self.script, &mut self.driver, stream) {
            let bytes = self.spoilt(bytes);
            self.peer_writes(stream, &bytes, fin);
        }
    }

    pub(super) fn peer_sends(&mut self) {
        let Some(stream) = self.stream() else { return };
        let (bytes, fin) = (self.script.bytes(), self.script.below(4) == 0);
        self.peer_writes(stream, bytes, fin);
    }

    /// Occasionally modifies what a peer sends.
    pub(super) fn spoilt(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let at = |script: &mut Script<'_>, length: usize| {
            usize::from(u16::from_be_bytes([script.byte(), script.byte()])) % length
        };
        match self.script.byte() {
            248..=251 if !bytes.is_empty() => {
                let at = at(&mut self.script, bytes.len());
                bytes[at] ^= self.script.byte();
            }
            252 | 253 if !bytes.is_empty() => bytes.truncate(at(&mut self.script, bytes.len())),
            254 => bytes.extend_from_slice(self.script.bytes()),
            255 => bytes.extend(vec![0x20; 70_000]),
            _ => {}
        }
        bytes
    }

    /// The peer sends; the machine reads as far as it has granted credit.
    pub(super) fn peer_writes(&mut self, stream: StreamId, bytes: &[u8], fin: bool) {
        if let Some(of) = self.driver.streams.get_mut(&stream)
            && !of.fin
            && !of.read
            && of.unread.len() < MAX_UNREAD
        {
            of.unread.extend(bytes);
            of.fin = fin;
        }
        self.deliver(stream, usize::MAX);
    }

    /// Reads at most so many bytes of a stream. Returns whether there was something.
    pub(super) fn deliver(&mut self, stream: StreamId, most: usize) -> bool {
        let Some(of) = self.driver.streams.get_mut(&stream).filter(|of| !of.read && !of.detached)
        else {
            return false;
        };
        let credit = usize::try_from(of.credit).unwrap_or(usize::MAX);
        let length = of.unread.len().min(credit).min(most);
        let bytes: Vec<u8> = of.unread.drain(..length).collect();
        of.credit -= length as u64;
        let fin = of.fin && of.unread.is_empty();
        of.read |= fin;
        if bytes.is_empty() && !fin {
            return false;
        }
        self.driver.input(Input::StreamData { stream, bytes: bytes.into(), fin });
        true
    }

    /// Confirms at most so many bytes of a stream. Returns whether there was something.
    pub(super) fn confirm(&mut self, stream: StreamId, most: u64) -> bool {
        let Some(of) = self.driver.streams.get_mut(&stream) else { return false };
        let bytes = of.unconfirmed.min(most);
        of.unconfirmed -= bytes;
        if bytes > 0 {
            self.driver.input(Input::StreamWritten { stream, bytes });
        }
        bytes > 0
    }

    pub(super) fn stream_goes_on(&mut self) {
        let Some(stream) = self.stream() else { return };
        let (what, some) = (self.script.byte() % 8, self.script.byte());
        let code = some.into();
        let Some(of) = self.driver.streams.get_mut(&stream) else { return };
        match what {
            0 | 1 => drop(self.confirm(stream, 1 + u64::from(some) * 64)),
            2 | 3 => drop(self.deliver(stream, 1 + 8 * usize::from(some))),
            4 if !of.read && !of.detached => {
                of.read = true;
                of.unread.clear();
                self.driver.input(Input::StreamReset { stream, code });
            }
            5 if !of.written && !of.detached => {
                (of.written, of.unconfirmed) = (true, 0);
                self.driver.input(Input::StreamStopped { stream, code });
            }
            6 if stream.is_ours() && !of.detached && of.unread.is_empty() && of.sent.is_empty() => {
                self.driver.streams.remove(&stream);
                self.driver.input(Input::OpenFailed { stream });
            }
            7 => self.close_app(stream),
            _ => {}
        }
    }

    /// The application is done with a stream that was handed over.
    pub(super) fn close_app(&mut self, stream: StreamId) {
        if self.driver.streams.get(&stream).is_some_and(|of| of.detached) {
            self.driver.streams.remove(&stream);
            let circuit = self.driver.circuits.iter().find(|(a, b)| [**a, **b].contains(&stream));
            match circuit.map(|(stream, other)| (*stream, *other)) {
                Some((stream, other)) => {
                    self.driver.circuits.remove(&stream);
                    self.driver.streams.remove(&stream);
                    self.driver.streams.remove(&other);
                    self.driver.input(Input::CircuitClosed { stream, bytes: 1000 });
                }
                None => self.driver.input(Input::StreamClosed { stream }),
            }
        }
    }

    pub(super) fn stream(&mut self) -> Option<StreamId> {
        self.script.pick(self.driver.streams.keys().copied().collect::<Vec<_>>())
    }
}
