//! Outputs of the core, and calls of the embedder on its streams.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use pk_proto::{
    ConnectionId, DialFailure, DisconnectReason, Input, Instant, NodeId, Opener, Output, StreamId,
    is_relayed_address,
};
use quinn_proto::ConnectionHandle;

use super::{Transmit, Transport};
use crate::config;
use crate::connection::Connection;
use crate::event::{Opened, TransportEvent};
use crate::reasons::StreamError;
use crate::stream::{Read, Remains, Stream};
use crate::tls::{SERVER_NAME, TlsVerdict};

impl Transport {
    /// Executes an output of the core that is for the network. Returns any other one. The streams
    /// that it concerns are served by the next [`poll_event`](Self::poll_event), once for all
    /// outputs before it.
    pub fn execute(&mut self, now: Instant, output: Output) -> Option<Output> {
        self.cx.advance(now);
        match output {
            Output::Dial { conn, addr, expect, deadline } => {
                self.dial(conn, addr, expect.into_iter().collect(), deadline);
            }
            Output::CancelDial { conn } => self.with(conn, Connection::cancel_dial),
            Output::CloseConnection { conn, code, reason } => {
                self.with(conn, |it, cx| it.close(cx, code, &reason));
            }
            Output::OpenStream { conn, stream } => {
                self.with(conn, |it, cx| it.open_stream(cx, stream));
            }
            Output::SendStream { stream, bytes, fin } => self.with_stream(stream, |it, cx| {
                it.with_stream(cx, stream, |stream, _| stream.send(bytes, fin));
            }),
            Output::ReadCredit { stream, bytes } => self.with_stream(stream, |it, cx| {
                it.with_stream(cx, stream, |stream, _| stream.credit(bytes));
            }),
            Output::ResetStream { stream, code } => self.with_stream(stream, |it, cx| {
                it.with_stream(cx, stream, |stream, quic| stream.reset(quic, code));
            }),
            Output::StopStream { stream, code } => self.with_stream(stream, |it, cx| {
                it.with_stream(cx, stream, |stream, quic| stream.stop(quic, code));
            }),
            Output::DetachStream { conn, stream, node, protocol, opener, unread } => {
                // What the core has sent on the stream is no progress of its next holder.
                self.settle();
                let opened = Opened { conn, stream, node, protocol, opener, network: None };
                if self.cx.streams.contains_key(&stream) {
                    self.with_stream(stream, |it, cx| it.detach(cx, opened, unread));
                } else {
                    self.ended_before(opened, unread);
                }
            }
            Output::AttachCircuit { stream, addr } => self.attach_circuit(stream, addr),
            Output::JoinCircuit { stream, other, limits } => {
                self.join_circuit(stream, other, limits);
            }
            Output::CloseCircuit { stream } => self.close_circuit(stream),
            Output::ProbePath { conn, addr } if self.can_send_to(addr) => {
                self.with(conn, |it, cx| it.probe(cx, addr));
            }
            Output::ProbePath { .. } => {}
            Output::Punch { addr, .. } if !self.can_send_to(addr) => {
                self.cx.metrics.punches_dropped += 1;
            }
            Output::Punch { addr, bytes } => {
                let transmit = Transmit {
                    to: addr,
                    ecn: 0,
                    size: bytes.len(),
                    segment_size: None,
                    from: None,
                    is_first: false,
                };
                let is_sent = self.send_alone(transmit, bytes.to_vec());
                self.cx.metrics.punches += u64::from(is_sent);
            }
            other => return Some(other),
        }
        None
    }

    fn dial(
        &mut self,
        conn: ConnectionId,
        addr: SocketAddr,
        expect: Vec<NodeId>,
        deadline: Instant,
    ) {
        match self.start_dial(addr, expect) {
            Ok((parts, verdict)) => {
                let handle = parts.0.0;
                let connection = Connection::dialed(&mut self.cx, parts, conn, verdict, deadline);
                self.by_id.insert(conn, handle);
                self.insert(handle, connection);
            }
            Err(error) => {
                let why = DialFailure::Transport(error);
                self.cx.input(Input::DialFailed { conn, why });
            }
        }
    }

    fn start_dial(
        &mut self,
        addr: SocketAddr,
        expect: Vec<NodeId>,
    ) -> Result<((ConnectionHandle, quinn_proto::Connection), TlsVerdict), String> {
        let bound = self.cx.bound;
        if is_relayed_address(&addr) {
            self.circuits.path(&addr).ok_or("the relay has ended the circuit")?;
        } else if !self.can_send_to(addr) {
            return Err(format!(
                "this node listens on {bound} and therefore cannot dial IPv6 addresses"
            ));
        }
        if self.is_closed {
            return Err("the node is stopping".to_owned());
        }
        let (tls, verdict) = self.tls.client(expect)?;
        let transport = if is_relayed_address(&addr) { &self.relayed } else { &self.transport };
        let mut client = config::client(transport, tls);
        if let Some(random) = self.tls_random {
            client.initial_dst_cid_provider(Arc::new(move || random.connection_id()));
        }
        self.endpoint
            .connect(self.cx.at, client, addr, SERVER_NAME)
            .map(|parts| (parts, verdict))
            .map_err(|error| error.to_string())
    }

    fn can_send_to(&self, addr: SocketAddr) -> bool {
        self.cx.bound.is_ipv6() || addr.is_ipv4()
    }

    /// A stream ended before it was handed over. Who requested it still receives it.
    fn ended_before(&mut self, opened: Opened, unread: Bytes) {
        let stream = opened.stream;
        if matches!(opened.opener, Opener::Us(_)) {
            let why = "the stream ended before it was handed over".to_owned();
            let why = DisconnectReason::Transport(why);
            let limit = self.cx.settings.application_memory as usize;
            self.cx.remains.keep(stream, Remains::new(unread, why.clone()), limit);
            self.cx.events.push_back(TransportEvent::Opened(opened));
            self.cx.events.push_back(TransportEvent::Lost { stream, why });
        }
        self.cx.input(Input::StreamClosed { stream });
    }

    // -- application streams

    /// Reads at most `max` bytes from an application stream, without blocking.
    ///
    /// # Errors
    ///
    /// The peer reset the stream, the local node ended it, or its connection was lost.
    pub fn read(
        &mut self,
        now: Instant,
        stream: StreamId,
        max: usize,
    ) -> Result<Read, StreamError> {
        self.cx.advance(now);
        if let Some(read) = self.cx.remains.take(stream, max) {
            return read;
        }
        let mut read = Err(StreamError::Ended);
        self.with_stream(stream, |it, cx| read = it.read(cx, stream, max));
        self.settle();
        read
    }

    /// Writes to an application stream, without blocking. Returns the number of accepted bytes; if
    /// they are fewer, [`TransportEvent::Writable`](crate::TransportEvent::Writable) follows.
    ///
    /// # Errors
    ///
    /// The peer stopped the stream, the local node ended it, or its connection was lost.
    pub fn write(
        &mut self,
        now: Instant,
        stream: StreamId,
        bytes: &[u8],
    ) -> Result<usize, StreamError> {
        self.cx.advance(now);
        if let Some(why) = self.cx.remains.why(stream) {
            return Err(StreamError::ConnectionLost(why.clone()));
        }
        let mut written = Err(StreamError::Ended);
        self.with_stream(stream, |it, cx| written = it.write(cx, stream, bytes));
        self.settle();
        written
    }

    /// Ends the sending direction of an application stream; what was written is delivered.
    pub fn finish(&mut self, now: Instant, stream: StreamId) {
        self.end(now, stream, Stream::finish);
    }

    /// Resets the sending direction of an application stream.
    pub fn reset(&mut self, now: Instant, stream: StreamId, code: u64) {
        self.end(now, stream, |stream, quic| stream.reset(quic, code));
    }

    /// Stops the receiving direction of an application stream; unread bytes are dropped.
    pub fn stop(&mut self, now: Instant, stream: StreamId, code: u64) {
        self.cx.remains.forget(stream);
        self.end(now, stream, |stream, quic| stream.stop(quic, code));
    }

    fn end(
        &mut self,
        now: Instant,
        id: StreamId,
        action: impl FnOnce(&mut Stream, &mut quinn_proto::Connection),
    ) {
        self.cx.advance(now);
        self.with_stream(id, |it, cx| {
            it.with_stream(cx, id, |stream, quic| {
                if stream.is_application() {
                    action(stream, quic);
                }
            });
        });
        self.settle();
    }
}
