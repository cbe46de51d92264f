//! What every connection receives: the time, settings, events and counters.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant as StdInstant};

use bytes::Bytes;
use pk_proto::cert::CertificateFault;
use pk_proto::{ConnectionId, DisconnectReason, Input, Instant, Network, StreamId, UnixMillis};

use crate::admission::AdmissionControl;
use crate::clock::{Origin, WallClock};
use crate::event::TransportEvent;
use crate::metrics::TransportMetrics;
use crate::reasons::StreamError;
use crate::settings::TransportSettings;
use crate::stream::{Read, Remains};

/// Shortest interval of warnings about the validity of certificates.
const WARNING_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Context that every connection receives as `&mut Cx`, as in the core.
#[derive(Debug)]
pub(crate) struct Cx {
    /// Time of the call, in both forms.
    pub(crate) now: Instant,
    pub(crate) at: StdInstant,
    pub(crate) origin: Origin,
    pub(crate) wall: WallClock,
    /// The wall clock when it was last set.
    unix: (Instant, UnixMillis),
    pub(crate) settings: TransportSettings,
    /// Address that the endpoint listens on.
    pub(crate) bound: SocketAddr,
    pub(crate) events: VecDeque<TransportEvent>,
    pub(crate) metrics: TransportMetrics,
    pub(crate) admission: AdmissionControl,
    /// Outgoing handshakes in progress, by their handles in quinn-proto.
    pub(crate) dialing: BTreeSet<usize>,
    /// Connection of each stream, by its handle in quinn-proto.
    pub(crate) streams: BTreeMap<StreamId, usize>,
    /// Number of them that were handed over.
    pub(crate) application_streams: usize,
    pub(crate) remains: Unread,
    /// Datagrams that have arrived on streams.
    pub(crate) carried: VecDeque<(StreamId, Bytes)>,
    /// Streams that carry datagrams and have ended, and whether their connection has.
    pub(crate) carriers_over: VecDeque<(StreamId, bool)>,
    next_stream: u64,
    next_connection: u64,
    /// Time of the last warning about the validity of a peer's certificate.
    warned_about_time: Option<Instant>,
}

/// Application streams with unread bytes whose connections have ended.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    streams: BTreeMap<StreamId, Remains>,
    bytes: usize,
}

impl Cx {
    pub(crate) fn new(
        settings: TransportSettings,
        origin: Origin,
        wall: WallClock,
        bound: SocketAddr,
        now: Instant,
        unix: UnixMillis,
    ) -> Self {
        wall.set(unix);
        Self {
            now,
            unix: (now, unix),
            at: origin.std(now),
            origin,
            wall,
            bound,
            events: VecDeque::new(),
            metrics: TransportMetrics::default(),
            admission: AdmissionControl::new(
                settings.handshake_limit,
                settings.handshake_network_limit,
            ),
            settings,
            dialing: BTreeSet::new(),
            streams: BTreeMap::new(),
            application_streams: 0,
            remains: Unread::default(),
            carried: VecDeque::new(),
            carriers_over: VecDeque::new(),
            next_stream: 1,
            next_connection: 1,
            warned_about_time: None,
        }
    }

    /// Advances both clocks; that of the calls never goes back.
    pub(crate) fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.at = self.origin.std(self.now);
        let (since, unix) = self.unix;
        let elapsed = u64::try_from(self.now.since(since).as_millis()).unwrap_or(u64::MAX);
        self.wall.set(UnixMillis(unix.0.saturating_add(elapsed)));
    }

    /// Sets the wall clock.
    pub(crate) fn set_wall_clock(&mut self, now: Instant, unix: UnixMillis) {
        self.now = self.now.max(now);
        self.unix = (self.now, unix);
        self.advance(now);
    }

    /// Logs that a peer was refused because of the validity of its certificate. If the local clock
    /// is wrong, all peers are refused, so that one warning is enough.
    pub(crate) fn warn_about_time(&mut self, fault: &CertificateFault) {
        if self.warned_about_time.is_none_or(|at| self.now.since(at) >= WARNING_INTERVAL) {
            self.warned_about_time = Some(self.now);
            tracing::warn!("a peer was refused: {fault}");
        }
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.events.push_back(TransportEvent::Input(input));
    }

    /// Returns the id of a new stream of a peer.
    pub(crate) fn stream_id(&mut self) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream += 2;
        id
    }

    /// Returns the id of a new incoming connection.
    pub(crate) fn connection_id(&mut self) -> ConnectionId {
        let id = ConnectionId(self.next_connection);
        self.next_connection += 2;
        id
    }

    /// An incoming handshake failed.
    pub(crate) fn handshake_failed(&mut self, network: Network) {
        self.metrics.handshakes_failed += 1;
        self.admission.failed(network, self.now);
    }
}

impl Unread {
    /// Keeps what can still be read of a stream. Beyond `limit` bytes the oldest streams lose it.
    pub(crate) fn keep(&mut self, id: StreamId, remains: Remains, limit: usize) {
        self.bytes += remains.len();
        self.streams.insert(id, remains);
        while self.bytes > limit
            && let Some((_, oldest)) = self.streams.pop_first()
        {
            self.bytes -= oldest.len();
        }
    }

    pub(crate) fn take(&mut self, id: StreamId, max: usize) -> Option<Result<Read, StreamError>> {
        let remains = self.streams.get_mut(&id)?;
        let read = remains.take(max);
        match &read {
            Ok(Read::Bytes(bytes)) => self.bytes -= bytes.len(),
            _ => drop(self.streams.remove(&id)),
        }
        Some(read)
    }

    pub(crate) fn why(&self, id: StreamId) -> Option<&DisconnectReason> {
        self.streams.get(&id).map(|remains| &remains.why)
    }

    pub(crate) fn forget(&mut self, id: StreamId) {
        if let Some(remains) = self.streams.remove(&id) {
            self.bytes -= remains.len();
        }
    }
}
