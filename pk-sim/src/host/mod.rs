//! The environment of a machine: addresses, keys, a store, the settings of its driver.

pub(crate) mod app;
pub(crate) mod id;
pub(crate) mod identity;
pub(crate) mod store;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use pk_proto::{Config, Dialect, EffectId, Identity, Input, Instant, NodeId, UnixMillis};

use crate::host::app::App;
use crate::host::identity::Key;
use crate::host::store::Store;

/// Start time of every world: 2026-01-01T00:00:00Z, in milliseconds.
pub(crate) const EPOCH: u64 = 1_767_225_600_000;

/// A host with the settings of its driver. Every public field may be changed at any time.
#[derive(Debug, Clone)]
pub struct Host {
    /// Private keys, which `Sign` and `ReplaceIdentity` need.
    pub keys: BTreeMap<NodeId, Key>,
    /// Identity presented in handshakes that start from now on. `ReplaceIdentity` sets it.
    pub identity: Identity,
    /// Dialects, the preferred one first. The acceptor's order decides.
    pub dialects: Vec<Dialect>,
    /// Settings of the transport.
    pub transport: TransportConfig,
    /// Code and reason with which incoming handshakes are refused before the machine sees them.
    pub refuse: Option<(u64, String)>,
    /// Delay between an event and its input.
    pub input_delay: Duration,
    /// Duration of a signature; `None` completes it in the same drain.
    pub sign_delay: Option<Duration>,
    /// Duration of a name resolution.
    pub resolve_delay: Duration,
    /// Its local network, for mDNS.
    pub lan: Option<u32>,
    /// Offset of its wall clock, in milliseconds.
    pub clock_skew: i64,
    /// Store.
    pub store: Store,
    /// Applications for streams that are handed over, by protocol; [`App::Sink`] for all others.
    pub apps: BTreeMap<String, App>,
    /// Limits that the checkers verify; `None` verifies none.
    pub caps: Option<Config>,
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) alive: bool,
    /// Whether it receives packets: from `Listening` until it stopped or was killed.
    pub(crate) listening: bool,
    /// Time of the newest pending input.
    pub(crate) reported: Instant,
    /// Whether its process is stopped, as by SIGSTOP: it does nothing, and its inputs wait.
    pub(crate) frozen: bool,
    /// Inputs that are delivered when it continues.
    pub(crate) thawing: Vec<Input>,
    /// Number of its life; events for an earlier one are dropped.
    pub(crate) life: u32,
    /// Completions that are due before anything else.
    pub(crate) at_once: VecDeque<Input>,
    pub(crate) adverts: BTreeMap<NodeId, u16>,
    pub(crate) browses: BTreeMap<EffectId, NodeId>,
    pub(crate) punches: BTreeMap<SocketAddr, u64>,
    next_connection: u64,
    next_stream: u64,
}

/// Transport settings of a host. Where both ends have a setting, the smaller value applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportConfig {
    /// Time without a packet from the peer after which a connection is closed.
    pub idle_timeout: Duration,
    /// Interval of keep-alive packets.
    pub keep_alive: Duration,
    /// Bytes of a stream that are in flight or unread at this host.
    pub stream_window: u64,
    /// Maximum number of open streams of the peer on a connection.
    pub stream_limit: u32,
    /// Maximum length of one piece of data, in bytes.
    pub piece: usize,
    /// Per mille of pieces that are split before the machine sees them.
    pub cut_per_mille: u16,
    /// Whether the end of a stream, like its bytes, is reported only while there is credit. The
    /// real driver reports it at once; a machine that works without is on the safe side.
    pub fin_needs_credit: bool,
    /// Whether packets of an unknown connection of this life are answered with a reset.
    pub stateless_reset: bool,
    /// Whether this also applies to connections of an earlier life, because the keys are derived
    /// from a stored secret. Nodes of Polykey 1.x store none.
    pub keeps_secret: bool,
    /// Time without an answer, after something was sent, until a connection is suspected; three
    /// round trips if that is longer.
    pub suspect_delay: Duration,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            stream_window: 64 * 1024,
            stream_limit: 100,
            piece: 4096,
            cut_per_mille: 250,
            fin_needs_credit: false,
            stateless_reset: true,
            keeps_secret: true,
            suspect_delay: Duration::from_millis(500),
        }
    }
}

impl Host {
    /// Creates a host at these addresses with this identity, whose newest key is `key`.
    pub fn new(addrs: Vec<SocketAddr>, key: Key, identity: Identity) -> Self {
        Self {
            keys: BTreeMap::from([(key.id(), key)]),
            identity,
            dialects: vec![Dialect::Native, Dialect::Polykey],
            transport: TransportConfig::default(),
            refuse: None,
            input_delay: Duration::ZERO,
            sign_delay: None,
            resolve_delay: Duration::from_millis(20),
            lan: None,
            clock_skew: 0,
            store: Store::default(),
            apps: BTreeMap::new(),
            caps: None,
            addrs,
            alive: false,
            listening: false,
            reported: Instant::ORIGIN,
            frozen: false,
            thawing: Vec::new(),
            life: 0,
            at_once: VecDeque::new(),
            adverts: BTreeMap::new(),
            browses: BTreeMap::new(),
            punches: BTreeMap::new(),
            next_connection: 1,
            next_stream: 1,
        }
    }

    /// Returns the addresses that it listens on.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Returns whether its process runs.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Returns the number of punch datagrams that arrived here, by source address.
    pub fn punches(&self) -> &BTreeMap<SocketAddr, u64> {
        &self.punches
    }

    /// Returns what it advertises on the local network: nodes and their ports.
    pub fn adverts(&self) -> &BTreeMap<NodeId, u16> {
        &self.adverts
    }

    /// Returns its wall clock.
    pub(crate) fn unix(&self, now: Instant) -> UnixMillis {
        UnixMillis((EPOCH + now.as_micros() / 1000).saturating_add_signed(self.clock_skew))
    }

    /// Starts a new process. Its ids start again, as a driver's do.
    pub(crate) fn begin(&mut self) {
        self.alive = true;
        self.listening = true;
        (self.next_connection, self.next_stream) = (1, 1);
    }

    /// Ends the process.
    pub(crate) fn end(&mut self) {
        self.alive = false;
        self.listening = false;
        self.frozen = false;
        self.thawing.clear();
        self.life += 1;
        self.reported = Instant::ORIGIN;
        self.at_once.clear();
        self.adverts.clear();
        self.browses.clear();
    }

    pub(crate) fn mint_connection(&mut self) -> pk_proto::ConnectionId {
        self.next_connection += 2;
        pk_proto::ConnectionId(self.next_connection - 2)
    }

    pub(crate) fn mint_stream(&mut self) -> pk_proto::StreamId {
        self.next_stream += 2;
        pk_proto::StreamId(self.next_stream - 2)
    }
}
