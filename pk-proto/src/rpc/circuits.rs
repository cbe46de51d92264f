//! Streams that become paths of datagrams: circuits of a relay (docs/DESIGN.md, Relaying).
//!
//! Such a stream has one request and one answer. After the answer nothing on it belongs to the
//! core: it is handed over to the transport, which carries or forwards datagrams on it.

use alloc::vec::Vec;

use super::event::RpcEvent;
use super::table::{Purpose, Rpc};
use crate::api::error::{Failure, PeerFault};
use crate::api::transport::DisconnectReason;
use crate::machine::cx::Cx;
use crate::machine::timer::Timer;
use crate::types::id::{ConnectionId, RequestId, StreamId};
use crate::types::time::Instant;
use crate::wire::codec;
use crate::wire::message::{RpcRequest, RpcResponse};
use crate::wire::parsed_message::StreamFormat;

impl Rpc {
    /// Requests a circuit from a relay, or offers one to a node; ends with `RpcEvent::Circuit` by
    /// `deadline`, unless cancelled.
    ///
    /// # Errors
    /// The connection is gone, or its peer knows no circuits. Nothing was sent.
    pub(crate) fn open_circuit(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        request: RequestId,
        question: RpcRequest,
        deadline: Instant,
    ) -> Result<StreamId, Failure> {
        let lost = Failure::ConnectionLost(DisconnectReason::Local);
        let Some(connection) = self.connections.get(&conn) else { return Err(lost) };
        let (dialect, features) = (connection.dialect, connection.features);
        let encoded = codec::encode_call(dialect, features, question, deadline.since(cx.now));
        let Some((bytes, format)) = encoded.streams.into_iter().next() else {
            return Err(Failure::Unsupported);
        };
        cx.metrics.calls += 1;
        let purpose = |_| Purpose::Circuit { request };
        let stream = self.open(cx, conn, purpose, Some(format), bytes, false).ok_or(lost)?;
        cx.timers.set(Timer::Stream(stream), deadline);
        Ok(stream)
    }

    /// The peer has answered the local request for a circuit.
    pub(super) fn circuit_answered(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        request: RequestId,
        answer: RpcResponse,
    ) {
        if self.streams.get(&id).is_some_and(|stream| stream.recv.is_over()) {
            return self.fail(cx, id, PeerFault::Truncated);
        }
        self.hand_over(cx, id);
        self.events.push_back(RpcEvent::Circuit { request, result: Ok((id, answer)) });
    }

    /// Accepts a request of a peer for a circuit: sends the answer and hands the stream over.
    /// Returns whether the peer still waits.
    pub(crate) fn accept_circuit(
        &mut self,
        cx: &mut Cx,
        id: StreamId,
        answer: RpcResponse,
    ) -> bool {
        let waits = self.streams.get(&id).is_some_and(|stream| {
            matches!(stream.purpose, Purpose::CircuitRequested) && !stream.recv.is_over()
        });
        if !waits {
            return false;
        }
        let Ok(bytes) = codec::answer(StreamFormat::Native, answer, cx.unix()) else {
            return false;
        };
        cx.metrics.answers += 1;
        self.send(cx, id, bytes, false);
        self.hand_over(cx, id);
        true
    }

    /// Takes a stream out of the table; the transport has it from now on.
    fn hand_over(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(stream) = self.remove(cx, id) else { return };
        if let Some(connection) = self.connections.get_mut(&stream.conn) {
            connection.detached.insert(id);
            self.detached.insert(id, stream.conn);
        }
        self.feed(cx, stream.conn);
    }

    /// Returns the streams of a connection that were handed over.
    pub(crate) fn detached_on(&self, conn: ConnectionId) -> Vec<StreamId> {
        let connection = self.connections.get(&conn);
        connection.map(|connection| connection.detached.iter().collect()).unwrap_or_default()
    }
}
