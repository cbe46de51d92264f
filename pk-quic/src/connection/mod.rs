//! One connection, from its first packet until QUIC has forgotten it.

mod carriers;
mod paths;
mod streams;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;
use pk_proto::{
    Connected, ConnectionId, DialFailure, Dialect, DisconnectReason, Input, Instant, Network, Side,
    StreamId,
};
use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{
    ConnectionError, ConnectionHandle, ConnectionId as Cid, Endpoint, Event, StreamEvent,
    StreamId as QuicStream,
};

use crate::carrier::Carrier;
use crate::cids::shared_id;
use crate::cx::Cx;
use crate::event::TransportEvent;
use crate::follow::Followed;
use crate::liveness::{Finding, Liveness, patience};
use crate::reasons::{dial_failure, disconnect_reason, varint};
use crate::reserve::Reserve;
use crate::stream::Stream;
use crate::tls::TlsVerdict;
use crate::unvalidated::Unvalidated;

/// Label of the TLS exporter from which both ends derive the shared id of a connection.
const EXPORTER: &[u8] = b"EXPORTER-pk-conn";

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) quic: quinn_proto::Connection,
    handle: ConnectionHandle,
    id: Option<ConnectionId>,
    stage: Stage,
    side: Side,
    network: Network,
    /// The peer's address as the core knows it.
    remote: SocketAddr,
    verdict: TlsVerdict,
    /// Ids of both ends in the last packet with a long header.
    ids: Option<(Cid, Cid)>,
    streams: BTreeMap<StreamId, Stream>,
    by_quic: BTreeMap<QuicStream, StreamId>,
    /// Streams that carry datagrams of other connections.
    carriers: BTreeMap<StreamId, Carrier>,
    /// Local streams that are not open yet: the peer limits how many may be.
    waiting: VecDeque<StreamId>,
    /// Streams with something to send or to read.
    dirty: BTreeSet<StreamId>,
    reserve: Reserve,
    liveness: Liveness,
    /// Reads and writes of the embedder.
    uses: u64,
    followed: Option<Followed>,
    /// Where the next datagram goes instead, to find a direct path.
    probe: Option<SocketAddr>,
    /// Of an acceptor: where the dialer is since it has moved.
    unvalidated: Option<Unvalidated>,
}

/// How far a connection is.
#[derive(Debug)]
enum Stage {
    /// The local node has dialed, and the peer has not accepted it yet. On dialect `quic` only
    /// HANDSHAKE_DONE shows that it has.
    Dialing { deadline: Instant, is_complete: bool, has_sent_handshake: bool },
    /// The peer has dialed.
    Accepting { deadline: Instant },
    /// The core knows the connection.
    Live,
    /// The core no longer knows it. If it is withdrawn, no packet may complete the handshake.
    Closed { is_withdrawn: bool },
}

impl Stage {
    fn enter(&self, cx: &mut Cx, handle: usize) {
        match self {
            Self::Dialing { .. } => drop(cx.dialing.insert(handle)),
            Self::Accepting { .. } => cx.metrics.handshakes_pending += 1,
            Self::Live => cx.metrics.connections += 1,
            Self::Closed { .. } => {}
        }
    }

    fn leave(&self, cx: &mut Cx, handle: usize) {
        match self {
            Self::Dialing { .. } => drop(cx.dialing.remove(&handle)),
            Self::Accepting { .. } => cx.metrics.handshakes_pending -= 1,
            Self::Live => cx.metrics.connections -= 1,
            Self::Closed { .. } => {}
        }
    }
}

impl Connection {
    pub(crate) fn dialed(
        cx: &mut Cx,
        (handle, quic): (ConnectionHandle, quinn_proto::Connection),
        id: ConnectionId,
        verdict: TlsVerdict,
        deadline: Instant,
    ) -> Self {
        let stage = Stage::Dialing { deadline, is_complete: false, has_sent_handshake: false };
        Self::new(cx, handle, quic, Some(id), stage, Side::Dialer, verdict)
    }

    pub(crate) fn accepted(
        cx: &mut Cx,
        (handle, quic): (ConnectionHandle, quinn_proto::Connection),
        verdict: TlsVerdict,
    ) -> Self {
        let stage = Stage::Accepting { deadline: cx.now + cx.settings.handshake_timeout };
        Self::new(cx, handle, quic, None, stage, Side::Acceptor, verdict)
    }

    fn new(
        cx: &mut Cx,
        handle: ConnectionHandle,
        quic: quinn_proto::Connection,
        id: Option<ConnectionId>,
        stage: Stage,
        side: Side,
        verdict: TlsVerdict,
    ) -> Self {
        let remote = quic.remote_address();
        stage.enter(cx, handle.0);
        Self {
            quic,
            handle,
            id,
            stage,
            side,
            network: Network::of(remote.ip()),
            remote,
            verdict,
            ids: None,
            streams: BTreeMap::new(),
            by_quic: BTreeMap::new(),
            carriers: BTreeMap::new(),
            probe: None,
            waiting: VecDeque::new(),
            dirty: BTreeSet::new(),
            reserve: Reserve::new(&cx.settings),
            liveness: Liveness::default(),
            uses: 0,
            followed: None,
            unvalidated: None,
        }
    }

    pub(crate) fn id(&self) -> Option<ConnectionId> {
        self.id.filter(|_| !matches!(self.stage, Stage::Closed { .. }))
    }

    fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Live)
    }

    /// The only place where the stage changes, except for what is noted in it. Returns the one
    /// before.
    fn enter(&mut self, cx: &mut Cx, stage: Stage) -> Stage {
        self.stage.leave(cx, self.handle.0);
        stage.enter(cx, self.handle.0);
        std::mem::replace(&mut self.stage, stage)
    }

    // -- time

    /// Returns the time of the next timeout.
    pub(crate) fn poll_timeout(&mut self, cx: &Cx) -> Option<Instant> {
        let quic = self.quic.poll_timeout().map(|at| cx.origin.core(at));
        let deadline = match self.stage {
            Stage::Dialing { deadline, .. } | Stage::Accepting { deadline } => Some(deadline),
            Stage::Live | Stage::Closed { .. } => None,
        };
        let look = self.liveness.due().filter(|_| self.is_live());
        let followed = self.followed.as_ref().and_then(Followed::deadline);
        // While datagrams are held back, later ones than now.
        let held = self.followed.as_ref().and_then(Followed::next_send).filter(|at| *at > cx.now);
        [quic, deadline, look, followed, held].into_iter().flatten().min()
    }

    /// Handles what is due.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Cx) {
        if self.quic.poll_timeout().is_some_and(|at| at <= cx.at) {
            let known = self.quic.remote_address();
            self.quic.handle_timeout(cx.at);
            if self.quic.remote_address() != known {
                // The validation of an address has failed. quinn-proto 0.11.19 leaves the timer of
                // packets that were sent there (quinn-rs/quinn issue 2658); this sets it again.
                self.quic.ping();
            }
        }
        match self.stage {
            Stage::Dialing { deadline, .. } if deadline <= cx.now => {
                self.end_dial(cx, DialFailure::TimedOut);
            }
            Stage::Accepting { deadline } if deadline <= cx.now => {
                cx.metrics.handshakes_timed_out += 1;
                cx.admission.failed(self.network, cx.now);
                self.leave(cx, 0, b"");
                self.enter(cx, Stage::Closed { is_withdrawn: false });
            }
            Stage::Live if self.liveness.due().is_some_and(|due| due <= cx.now) => self.look(cx),
            _ => {}
        }
        let overdue = |followed: &Followed| followed.deadline().is_some_and(|at| at <= cx.now);
        if self.followed.as_mut().is_some_and(|followed| followed.take_settled(cx.now)) {
            // The lost packets of the former path count as congestion of the new one.
            self.quic.path_changed(cx.at);
        } else if self.followed.as_ref().is_some_and(overdue) {
            cx.metrics.follow_failed += 1;
            let former = self.followed.as_ref().map_or(self.remote, Followed::validated);
            self.return_to(cx, former);
        }
    }

    fn look(&mut self, cx: &mut Cx) {
        let Some(conn) = self.id else { return };
        let waits = self.streams.values().any(Stream::waits);
        let (patience, stats) = (self.patience(cx), self.quic.stats());
        match self.liveness.look_due(cx.now, &stats, patience, waits, self.uses) {
            Finding::Silent => cx.input(Input::Suspected { conn }),
            Finding::Heard => cx.input(Input::Heard { conn }),
            Finding::Quiet | Finding::Active | Finding::Late | Finding::Suspected => {}
        }
    }

    fn patience(&self, cx: &Cx) -> std::time::Duration {
        patience(self.quic.rtt(), cx.settings.suspect_delay, cx.settings.idle_timeout)
    }

    // -- the loop

    /// Handles all events of QUIC, and passes on what waits, until nothing changes.
    pub(crate) fn service(&mut self, cx: &mut Cx, endpoint: &mut Endpoint) {
        loop {
            let mut moved = false;
            while let Some(event) = self.quic.poll() {
                moved = true;
                self.event(cx, event);
            }
            moved |= self.confirm(cx);
            moved |= self.note_address(cx);
            moved |= self.open_waiting();
            moved |= self.pump(cx);
            self.keep_reserve(cx);
            while let Some(event) = self.quic.poll_endpoint_events() {
                moved = true;
                if let Some(event) = endpoint.handle_event(self.handle, event) {
                    self.quic.handle_event(event);
                }
            }
            if !moved {
                break;
            }
        }
        if self.is_live() && self.liveness.is_suspected() {
            self.look(cx);
        }
    }

    fn event(&mut self, cx: &mut Cx, event: Event) {
        match event {
            Event::Connected => match &mut self.stage {
                Stage::Dialing { is_complete, .. } => *is_complete = true,
                Stage::Accepting { .. } => self.connected(cx),
                Stage::Live | Stage::Closed { .. } => {}
            },
            Event::ConnectionLost { reason } => self.lost(cx, &reason),
            Event::Stream(StreamEvent::Opened { .. }) => self.accept_streams(cx),
            Event::Stream(StreamEvent::Readable { id }) => {
                self.dirty.extend(self.by_quic.get(&id).copied());
            }
            Event::Stream(StreamEvent::Writable { id }) => {
                if let Some(id) = self.by_quic.get(&id).copied() {
                    self.dirty.insert(id);
                    if let Some(stream) = self.streams.get_mut(&id) {
                        stream.writable(id, &mut cx.events);
                    }
                }
            }
            Event::Stream(StreamEvent::Stopped { id, error_code }) => {
                if let Some(id) = self.by_quic.get(&id).copied()
                    && let Some(stream) = self.streams.get_mut(&id)
                {
                    stream.stopped(&mut self.quic, id, error_code.into_inner(), &mut cx.events);
                    self.forget_if_over(cx, id);
                } else {
                    self.dirty.extend(self.by_quic.get(&id).copied());
                }
            }
            Event::Stream(StreamEvent::Finished { id }) => {
                if let Some(id) = self.by_quic.get(&id).copied()
                    && let Some(stream) = self.streams.get_mut(&id)
                {
                    stream.delivered(id, &mut cx.events);
                    self.forget_if_over(cx, id);
                }
            }
            Event::Stream(StreamEvent::Available { .. })
            | Event::HandshakeDataReady
            | Event::DatagramReceived
            | Event::DatagramsUnblocked => {}
        }
    }

    /// Completes a dial when the peer has accepted the local node, as far as the handshake shows
    /// it.
    fn confirm(&mut self, cx: &mut Cx) -> bool {
        if !matches!(self.stage, Stage::Dialing { is_complete: true, .. }) {
            return false;
        }
        // On `pk/1` the Hello of the peer shows it.
        let accepted = self.dialect() != Some(Dialect::Polykey)
            || self.quic.stats().frame_rx.handshake_done > 0;
        if accepted {
            self.connected(cx);
        }
        accepted
    }

    /// The handshake succeeded: reports the connection to the core.
    fn connected(&mut self, cx: &mut Cx) {
        match self.describe(cx) {
            Ok(connected) => {
                if self.side == Side::Acceptor {
                    cx.admission.succeeded(self.network);
                }
                self.id = Some(connected.conn);
                self.enter(cx, Stage::Live);
                self.remote = connected.remote;
                cx.input(Input::Connected(connected));
                self.accept_streams(cx);
            }
            Err(why) => {
                if self.side == Side::Acceptor {
                    cx.handshake_failed(self.network);
                    self.leave(cx, 0, b"");
                    self.enter(cx, Stage::Closed { is_withdrawn: false });
                } else {
                    self.end_dial(cx, DialFailure::Transport(why.to_owned()));
                }
            }
        }
    }

    fn describe(&self, cx: &mut Cx) -> Result<Connected, &'static str> {
        let Some(Ok(verified)) = self.verdict.get() else {
            return Err("a handshake ended without verification of the peer");
        };
        let dialect = self.dialect().ok_or("no application protocol was negotiated")?;
        let shared_id = match dialect {
            Dialect::Native => {
                self.exported().ok_or("the TLS exporter of the connection failed")?
            }
            Dialect::Polykey => {
                let (own, peer) =
                    self.ids.as_ref().ok_or("the connection ids of the handshake are unknown")?;
                shared_id(own, peer)
            }
        };
        let local = self.quic.local_ip().unwrap_or_else(|| cx.bound.ip()).to_canonical();
        Ok(Connected {
            conn: self.id.unwrap_or_else(|| cx.connection_id()),
            side: self.side,
            dialect,
            leaf: verified.leaf,
            chain: verified.chain.clone(),
            matched_id: verified.matched_id,
            remote: self.quic.remote_address(),
            local: SocketAddr::new(local, cx.bound.port()),
            shared_id,
        })
    }

    fn dialect(&self) -> Option<Dialect> {
        let data = self.quic.crypto_session().handshake_data()?.downcast::<HandshakeData>().ok()?;
        Dialect::from_alpn(&data.protocol?)
    }

    /// Returns the shared id of a connection on `pk/1`.
    fn exported(&self) -> Option<Bytes> {
        let mut name = [0; 32];
        self.quic.crypto_session().export_keying_material(&mut name, EXPORTER, b"").ok()?;
        Some(Bytes::copy_from_slice(&name))
    }

    fn note_address(&mut self, cx: &mut Cx) -> bool {
        let known = self.quic.remote_address();
        let moved = self.followed.is_none() && self.is_live() && known != self.remote;
        if moved {
            self.report_address(cx, known);
        }
        moved
    }

    // -- the end

    /// Closes the connection at the peer.
    fn leave(&mut self, cx: &Cx, code: u64, reason: &[u8]) {
        self.quic.close(cx.at, varint(code), Bytes::copy_from_slice(reason));
    }

    /// Executes the effect `CloseConnection`.
    pub(crate) fn close(&mut self, cx: &mut Cx, code: u64, reason: &str) {
        if self.is_live() {
            self.leave(cx, code, reason.as_bytes());
            self.lost(cx, &ConnectionError::LocallyClosed);
        }
    }

    /// Executes the effect `CancelDial`. A dial whose handshake may be complete for the peer
    /// continues until it is confirmed or fails, because the reference misses so early a close.
    pub(crate) fn cancel_dial(&mut self, cx: &mut Cx) {
        if matches!(self.stage, Stage::Dialing { has_sent_handshake: false, .. }) {
            self.end_dial(cx, DialFailure::Cancelled);
        }
    }

    /// The system cannot send to the peer's address. Ends a dial whose first datagram failed; when
    /// later ones do, the network may recover. Returns whether it did.
    pub(crate) fn unreachable(&mut self, cx: &mut Cx, to: SocketAddr, why: &str) -> bool {
        let fails = self.quic.remote_address() == to && self.sent_first();
        if fails {
            let why = format!("the system cannot send there: {why}");
            self.end_dial(cx, DialFailure::Transport(why));
        }
        fails
    }

    /// Returns whether the only datagram so far was the first one of a dial.
    pub(crate) fn sent_first(&self) -> bool {
        matches!(self.stage, Stage::Dialing { .. }) && self.quic.stats().udp_tx.ios <= 1
    }

    fn end_dial(&mut self, cx: &mut Cx, why: DialFailure) {
        let Stage::Dialing { has_sent_handshake, .. } = self.stage else { return };
        self.leave(cx, 0, b"");
        self.enter(cx, Stage::Closed { is_withdrawn: !has_sent_handshake });
        if let Some(conn) = self.id {
            cx.input(Input::DialFailed { conn, why });
        }
    }

    /// Closes the connection when the node stops.
    pub(crate) fn stop(&mut self, cx: &mut Cx) {
        match self.stage {
            Stage::Dialing { .. } => self.end_dial(cx, DialFailure::Cancelled),
            Stage::Live => self.close(cx, 0, ""),
            Stage::Accepting { .. } => {
                cx.handshake_failed(self.network);
                self.leave(cx, 0, b"");
                self.enter(cx, Stage::Closed { is_withdrawn: false });
            }
            Stage::Closed { .. } => {}
        }
    }

    fn lost(&mut self, cx: &mut Cx, error: &ConnectionError) {
        let unix = cx.wall.get();
        let before = self.enter(cx, Stage::Closed { is_withdrawn: false });
        match (before, self.id) {
            (Stage::Dialing { .. }, Some(conn)) => {
                let why = dial_failure(error, self.verdict.get(), unix);
                cx.input(Input::DialFailed { conn, why });
            }
            (Stage::Accepting { .. }, _) => {
                tracing::debug!(%error, "an incoming handshake failed");
                cx.handshake_failed(self.network);
                if let Some(Err(fault)) = self.verdict.get()
                    && fault.is_of_time()
                {
                    cx.warn_about_time(fault);
                }
            }
            (Stage::Live, Some(conn)) => {
                let why = disconnect_reason(error, unix);
                self.end_streams(cx, &why);
                cx.input(Input::Disconnected { conn, why });
            }
            _ => {}
        }
    }

    /// The core still receives data that arrived before and that it has credit for; so does the
    /// embedder.
    fn end_streams(&mut self, cx: &mut Cx, why: &DisconnectReason) {
        let limit = cx.settings.application_memory as usize;
        for (id, mut stream) in std::mem::take(&mut self.streams) {
            cx.streams.remove(&id);
            if stream.is_application() {
                cx.application_streams -= 1;
                stream.fill(&mut self.quic, id, usize::MAX, &mut cx.events);
                if let Some(remains) = stream.into_remains(why) {
                    cx.remains.keep(id, remains, limit);
                    cx.events.push_back(TransportEvent::Readable(id));
                }
                cx.events.push_back(TransportEvent::Lost { stream: id, why: why.clone() });
            } else {
                stream.pump_recv(&mut self.quic, id, &mut cx.events);
            }
        }
        self.end_carriers(cx);
        self.by_quic.clear();
        self.waiting.clear();
        self.dirty.clear();
    }
}
