//! The machine below `NodeManager`: one endpoint, its connections and their streams.

mod datagrams;
mod outputs;
mod relay;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant as StdInstant;

use pk_host::{KeyPair, TransportSecret};
use pk_proto::{ConnectionId, Identity, Input, Instant, StreamId, UnixMillis, is_relayed_address};
use quinn_proto::{Endpoint, ServerConfig, TransportConfig};

use crate::cids::Generator;
use crate::circuits::Circuits;
use crate::clock::{Origin, WallClock};
use crate::config;
use crate::connection::Connection;
use crate::cx::Cx;
use crate::event::TransportEvent;
use crate::metrics::TransportMetrics;
use crate::queue;
use crate::resets::{ResetKey, ResetLimit};
use crate::settings::{SettingsError, TransportSettings};
use crate::simulation::TlsRandom;
use crate::tls::Tls;

/// Length of the random number for connection ids and that of quinn-proto, from one seed.
const SEEDS: [&str; 2] = ["pk-quic 2026 connection id numbers", "pk-quic 2026 quinn-proto"];

/// Maximum number of datagrams outside of connections that wait to be sent. Peers cause them, and a
/// socket without room takes none.
const UNSENT: usize = 256;

/// A datagram that was received.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Address of the sender.
    pub from: SocketAddr,
    /// Local address that received it, if known.
    pub to: Option<IpAddr>,
    /// The two bits of explicit congestion notification, 0 if unknown.
    pub ecn: u8,
    /// Payload of one datagram. The caller splits what the system has joined.
    pub bytes: &'a [u8],
}

/// Datagrams to send, whose bytes are in the buffer of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Destination.
    pub to: SocketAddr,
    /// The two bits of explicit congestion notification.
    pub ecn: u8,
    /// Number of bytes.
    pub size: usize,
    /// Length of each datagram but the last, if there is more than one.
    pub segment_size: Option<usize>,
    /// Local address to send from, if it matters.
    pub from: Option<IpAddr>,
    /// Whether this is the first datagram of a dial. If the system cannot send it, the caller calls
    /// `unreachable`, and the dial fails at once. Other datagrams may be lost.
    pub is_first: bool,
}

/// What a transport needs.
#[derive(Debug)]
pub struct TransportSetup<'a> {
    /// Settings.
    pub settings: TransportSettings,
    /// Certificates that are presented.
    pub identity: &'a Identity,
    /// Key of the newest certificate.
    pub key: &'a KeyPair,
    /// Secret from which the keys of resets, connection ids and tokens are derived.
    pub secret: &'a TransportSecret,
    /// Random bytes that no other transport with this secret was given.
    pub seed: [u8; 32],
    /// Address that the socket listens on.
    pub bound: SocketAddr,
    /// The moment of [`Instant::ORIGIN`]. The transport reads no clock; quinn-proto only needs its
    /// instants in this form.
    pub origin: StdInstant,
    /// Present time.
    pub now: Instant,
    /// Present wall time, by which certificates are judged.
    pub unix: UnixMillis,
}

/// QUIC as a state machine, in the vocabulary of the core.
///
/// After each call all events are processed; poll [`poll_event`](Self::poll_event) and
/// [`poll_transmit`](Self::poll_transmit) until `None`, then read
/// [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Transport {
    cx: Cx,
    endpoint: Endpoint,
    tls: Tls,
    /// Of a simulator.
    tls_random: Option<TlsRandom>,
    server: ServerConfig,
    transport: Arc<TransportConfig>,
    /// For connections over relayed paths.
    relayed: Arc<TransportConfig>,
    connections: BTreeMap<usize, Box<Connection>>,
    by_id: BTreeMap<ConnectionId, usize>,
    /// Connections whose events are to be processed.
    touched: BTreeSet<usize>,
    /// Connections that may have datagrams to send.
    sending: BTreeSet<usize>,
    timeouts: BTreeMap<usize, Instant>,
    due: BTreeSet<(Instant, usize)>,
    /// Datagrams that belong to no connection: at most [`UNSENT`].
    answers: VecDeque<(Transmit, Vec<u8>)>,
    reset_limit: ResetLimit,
    circuits: Circuits,
    /// Own addresses, if known: packets are not sent from others.
    own: Option<BTreeSet<IpAddr>>,
    is_closed: bool,
}

/// Why a transport cannot be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A setting is outside of its range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// TLS cannot be configured.
    #[error("TLS: {0}")]
    Tls(String),
}

impl Transport {
    /// Creates a transport that accepts connections.
    ///
    /// # Errors
    ///
    /// A setting is outside of its range, or rustls refuses the identity.
    pub fn new(setup: TransportSetup<'_>) -> Result<Self, TransportError> {
        Self::create(setup, None)
    }

    /// Creates a transport for a simulator: its datagrams depend on the setup and on what it
    /// receives, byte by byte.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub fn simulated(setup: TransportSetup<'_>, random: TlsRandom) -> Result<Self, TransportError> {
        Self::create(setup, Some(random))
    }

    fn create(
        setup: TransportSetup<'_>,
        tls_random: Option<TlsRandom>,
    ) -> Result<Self, TransportError> {
        let TransportSetup { settings, identity, key, secret, seed, bound, origin, now, unix } =
            setup;
        settings.validate()?;
        let wall = WallClock::default();
        let tls = Tls::new(identity, key, &settings.dialects, Arc::new(wall.clone()));
        let tls = tls_random.map_or(tls.clone(), |random| tls.with_random(random));
        let transport = config::transport(&settings);
        let relayed = config::transport(&TransportSettings { segments: 1, ..settings.clone() });
        // The endpoint requires a TLS configuration, but every handshake is accepted with its own.
        let (server_tls, _) = tls.server().map_err(TransportError::Tls)?;
        let tokens = config::token_key(&secret.token_key());
        let mut server = config::server(&settings, &transport, server_tls, tokens);
        server.time_source(Arc::new(wall.clone()));
        let [numbers, rng] = SEEDS.map(|context| blake3::derive_key(context, &seed));
        let cid_key = secret.connection_id_key();
        let mut endpoint =
            config::endpoint(Arc::new(ResetKey::new(secret.reset_key())), move || {
                Box::new(Generator::new(&cid_key, &numbers))
            });
        endpoint.rng_seed(Some(rng));
        let endpoint = Endpoint::new(
            Arc::new(endpoint),
            Some(Arc::new(server.clone())),
            settings.mtu_discovery,
            None,
        );
        Ok(Self {
            cx: Cx::new(settings, Origin::new(origin), wall, canonical(bound), now, unix),
            endpoint,
            tls,
            tls_random,
            server,
            transport,
            relayed,
            connections: BTreeMap::new(),
            by_id: BTreeMap::new(),
            touched: BTreeSet::new(),
            sending: BTreeSet::new(),
            timeouts: BTreeMap::new(),
            due: BTreeSet::new(),
            answers: VecDeque::new(),
            reset_limit: ResetLimit::default(),
            circuits: Circuits::default(),
            own: None,
            is_closed: false,
        })
    }

    // -- the network

    /// Handles one datagram. One that is longer than
    /// [`MAX_DATAGRAM`](TransportSettings::MAX_DATAGRAM) is dropped, because its data would keep
    /// all of it in memory.
    pub fn handle_datagram(&mut self, now: Instant, datagram: Datagram<'_>) {
        self.cx.advance(now);
        if datagram.bytes.len() > TransportSettings::MAX_DATAGRAM {
            self.cx.metrics.datagrams_too_long += 1;
            return;
        }
        self.deliver(canonical(datagram.from), &datagram);
        self.settle();
    }

    /// Writes datagrams to `buf`, which it clears, at most `max` of one length and a shorter last
    /// one. The caller sends them, or drops them like the network.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        max: usize,
        buf: &mut Vec<u8>,
    ) -> Option<Transmit> {
        self.cx.advance(now);
        buf.clear();
        while let Some((transmit, bytes)) = self.answers.pop_front() {
            if is_relayed_address(&transmit.to) {
                self.send_on_path(transmit.to, &bytes, None);
                self.settle();
                continue;
            }
            buf.extend_from_slice(&bytes);
            return Some(transmit);
        }
        let max = max.clamp(1, self.cx.settings.segments);
        while let Some(handle) = self.sending.first().copied() {
            if let Some(connection) = self.connections.get_mut(&handle)
                && let Some(transmit) = connection.poll_transmit(&mut self.cx, max, buf)
            {
                let is_first = connection.sent_first();
                if is_relayed_address(&transmit.destination) {
                    let bytes = buf.get(..transmit.size).unwrap_or_default().to_vec();
                    self.send_on_path(transmit.destination, &bytes, transmit.segment_size);
                    self.settle();
                    continue;
                }
                return Some(Transmit { is_first, ..self.outgoing(&transmit) });
            }
            self.sending.remove(&handle);
            self.touched.insert(handle);
            self.settle_after_transmit(handle);
        }
        buf.clear();
        None
    }

    /// A connection has nothing to send; its timers are set by that.
    fn settle_after_transmit(&mut self, handle: usize) {
        self.touched.remove(&handle);
        if let Some(connection) = self.connections.get_mut(&handle) {
            connection.service(&mut self.cx, &mut self.endpoint);
        }
        self.arm(handle);
        if !(self.cx.carried.is_empty() && self.cx.carriers_over.is_empty()) {
            self.settle();
        }
    }

    // -- time

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        debug_assert!(self.touched.is_empty(), "a connection was not processed");
        let connection = self.due.first().map(|(at, _)| *at);
        [connection, self.circuits.due()].into_iter().flatten().min()
    }

    /// Handles everything that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.cx.advance(now);
        while let Some((at, handle)) = self.due.first().copied()
            && at <= self.cx.now
        {
            self.due.pop_first();
            self.timeouts.remove(&handle);
            if let Some(connection) = self.connections.get_mut(&handle) {
                connection.handle_timeout(&mut self.cx);
                self.touched.insert(handle);
            }
        }
        self.end_idle_circuits();
        self.settle();
    }

    /// Sets the wall clock, which advances with the time of the calls from then on.
    pub fn set_wall_clock(&mut self, now: Instant, unix: UnixMillis) {
        self.cx.set_wall_clock(now, unix);
    }

    fn with(&mut self, conn: ConnectionId, action: impl FnOnce(&mut Connection, &mut Cx)) {
        if let Some(handle) = self.by_id.get(&conn).copied()
            && self.connections.get(&handle).and_then(|it| it.id()) == Some(conn)
        {
            self.at(handle, action);
        }
    }

    /// A stream that does not exist ended with its connection.
    fn with_stream(&mut self, stream: StreamId, action: impl FnOnce(&mut Connection, &mut Cx)) {
        if let Some(handle) = self.cx.streams.get(&stream).copied() {
            self.at(handle, action);
        }
    }

    fn at(&mut self, handle: usize, action: impl FnOnce(&mut Connection, &mut Cx)) {
        if let Some(connection) = self.connections.get_mut(&handle) {
            action(connection, &mut self.cx);
            self.touched.insert(handle);
        }
    }

    /// Presents another identity in handshakes that start from now on.
    pub fn replace_identity(&mut self, identity: &Identity, key: &KeyPair) {
        let clock = Arc::new(self.cx.wall.clone());
        let tls = Tls::new(identity, key, &self.cx.settings.dialects, clock);
        self.tls = self.tls_random.map_or(tls.clone(), |random| tls.with_random(random));
    }

    // -- the loop

    /// Processes the events of touched connections.
    fn settle(&mut self) {
        loop {
            while let Some(handle) = self.touched.pop_first() {
                if let Some(connection) = self.connections.get_mut(&handle) {
                    connection.service(&mut self.cx, &mut self.endpoint);
                    self.sending.insert(handle);
                }
                self.arm(handle);
            }
            if !self.relay() {
                break;
            }
        }
    }

    /// Sets the timeout of a connection, or removes the connection if QUIC has forgotten it.
    fn arm(&mut self, handle: usize) {
        let next = match self.connections.get_mut(&handle) {
            Some(connection) if connection.quic.is_drained() => {
                self.connections.remove(&handle);
                self.sending.remove(&handle);
                None
            }
            Some(connection) => {
                if let Some(id) = connection.id() {
                    self.by_id.insert(id, handle);
                }
                connection.poll_timeout(&self.cx)
            }
            None => None,
        };
        let before = match next {
            Some(next) => self.timeouts.insert(handle, next),
            None => self.timeouts.remove(&handle),
        };
        if before != next {
            before.map(|before| self.due.remove(&(before, handle)));
            next.map(|next| self.due.insert((next, handle)));
        }
    }

    /// Returns the next event. Must be called until there is none.
    pub fn poll_event(&mut self) -> Option<TransportEvent> {
        self.settle();
        let event = queue::take(&mut self.cx.events)?;
        if let TransportEvent::Input(
            Input::Disconnected { conn, .. } | Input::DialFailed { conn, .. },
        ) = &event
        {
            self.by_id.remove(conn);
        }
        Some(event)
    }

    // -- the system

    /// The local addresses changed to these; connections announce it. An empty list: unknown.
    pub fn local_changed(&mut self, now: Instant, own: &[IpAddr]) {
        self.cx.advance(now);
        self.own = (!own.is_empty()).then(|| own.iter().map(IpAddr::to_canonical).collect());
        for (handle, connection) in &mut self.connections {
            connection.local_changed(&self.cx);
            self.touched.insert(*handle);
        }
        self.settle();
    }

    /// The system cannot send to an address: dials to it fail whose first datagram was not sent.
    pub fn unreachable(&mut self, now: Instant, to: SocketAddr, why: &str) {
        self.cx.advance(now);
        for handle in self.cx.dialing.clone() {
            if let Some(connection) = self.connections.get_mut(&handle)
                && connection.unreachable(&mut self.cx, canonical(to), why)
            {
                self.touched.insert(handle);
            }
        }
        self.settle();
    }

    /// The socket is bound to another address from now on.
    pub fn rebound(&mut self, now: Instant, bound: SocketAddr) {
        self.cx.bound = canonical(bound);
        self.cx.advance(now);
        for (handle, connection) in &mut self.connections {
            connection.local_changed(&self.cx);
            self.touched.insert(*handle);
        }
        self.settle();
    }

    /// Closes every connection. No other is accepted or dialed.
    pub fn close(&mut self, now: Instant) {
        self.cx.advance(now);
        self.is_closed = true;
        for (handle, connection) in &mut self.connections {
            connection.stop(&mut self.cx);
            self.touched.insert(*handle);
        }
        self.settle();
    }

    /// Returns whether QUIC has forgotten every connection.
    pub fn is_drained(&self) -> bool {
        self.connections.is_empty() && self.answers.is_empty()
    }

    /// Returns the address that the endpoint listens on.
    pub fn bound(&self) -> SocketAddr {
        self.cx.bound
    }

    /// Returns the counters.
    pub fn metrics(&self) -> TransportMetrics {
        let applications = self.cx.application_streams;
        let core = self.cx.streams.len().saturating_sub(applications);
        let (all, dials) = (self.connections.len() as u64, self.cx.dialing.len() as u64);
        let open = dials + self.cx.metrics.handshakes_pending + self.cx.metrics.connections;
        let (paths, circuits) = self.circuits.count();
        TransportMetrics {
            paths: paths as u64,
            circuits: circuits as u64,
            dials_pending: dials,
            connections_closing: all.saturating_sub(open),
            streams: core as u64,
            application_streams: applications as u64,
            ..self.cx.metrics
        }
    }
}

/// Returns an address in the form of the core: IPv4 addresses are IPv4, also where an IPv6 socket
/// sees them.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, addr.port())),
        // With its interface, if it is link-local.
        IpAddr::V6(_) => addr,
    }
}
