//! What surrounds a machine: addresses, keys, a store, the settings of its driver.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use pk_proto::{Config, Dialect, EffectId, Identity, Input, Instant, NodeId, UnixMillis};

use crate::app::App;
use crate::identity::Key;
use crate::store::Store;

/// When every world begins: 2026-01-01T00:00:00Z, in milliseconds.
pub(crate) const EPOCH: u64 = 1_767_225_600_000;

/// A host: what its driver is made of. Every public field may be changed at any time.
#[derive(Debug, Clone)]
pub struct Host {
    /// The private keys; `Sign` and `ReplaceIdentity` need them.
    pub keys: BTreeMap<NodeId, Key>,
    /// What is presented in handshakes that begin from now on. `ReplaceIdentity` sets it.
    pub identity: Identity,
    /// The ALPN protocols, best first. The acceptor's order decides.
    pub dialects: Vec<Dialect>,
    /// The settings of the transport.
    pub transport: TransportConfig,
    /// Incoming handshakes are refused before the machine hears of them, with this code and reason.
    pub refuse: Option<(u64, String)>,
    /// From something happening to the machine hearing of it.
    pub input_delay: Duration,
    /// How long a signature takes; `None` answers in the same drain.
    pub sign_delay: Option<Duration>,
    /// How long a name takes to resolve.
    pub resolve_delay: Duration,
    /// The local network it is on, for mDNS.
    pub lan: Option<u32>,
    /// How far its wall clock is ahead, in milliseconds.
    pub clock_skew: i64,
    /// The store.
    pub store: Store,
    /// The applications behind the streams that are handed over, by protocol; [`App::Sink`] for all others.
    pub apps: BTreeMap<String, App>,
    /// The caps that the checkers hold the machine to; `None` checks none.
    pub caps: Option<Config>,
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) alive: bool,
    /// Whether it takes packets: from `Listening` until it stopped or was killed.
    pub(crate) listening: bool,
    /// Counts the lives, so that what was meant for an earlier one is dropped.
    pub(crate) life: u32,
    /// Answers that are due before anything else happens.
    pub(crate) at_once: VecDeque<Input>,
    pub(crate) adverts: BTreeMap<NodeId, u16>,
    pub(crate) browses: BTreeMap<EffectId, NodeId>,
    pub(crate) punches: BTreeMap<SocketAddr, u64>,
    next_connection: u64,
    next_stream: u64,
}

/// How a host's transport is set. Where both ends have a say, the smaller value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportConfig {
    /// A connection on which nothing is heard for so long is over.
    pub idle_timeout: Duration,
    /// Something is sent at least so often.
    pub keep_alive: Duration,
    /// Bytes of a stream that are on their way or unread at this host.
    pub stream_window: u64,
    /// Streams of a connection that the peer may have open.
    pub stream_limit: u32,
    /// The most bytes that arrive in one piece.
    pub piece: usize,
    /// Pieces of a thousand that are cut in two before the machine sees them.
    pub cut_per_mille: u16,
    /// Whether the end of a stream, like its bytes, shows only while there is credit. The real driver shows it at once;
    /// a machine that does well without is on the safe side.
    pub fin_needs_credit: bool,
    /// Whether packets of a connection that this host has forgotten, in this life, are answered with a reset.
    pub stateless_reset: bool,
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
        }
    }
}

impl Host {
    /// A host at these addresses with this identity, whose newest key is `key`.
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
            life: 0,
            at_once: VecDeque::new(),
            adverts: BTreeMap::new(),
            browses: BTreeMap::new(),
            punches: BTreeMap::new(),
            next_connection: 1,
            next_stream: 1,
        }
    }

    /// Where it listens.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Whether its process runs.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Punch datagrams that arrived here, by source address.
    pub fn punches(&self) -> &BTreeMap<SocketAddr, u64> {
        &self.punches
    }

    /// What it tells the local network: nodes and their ports.
    pub fn adverts(&self) -> &BTreeMap<NodeId, u16> {
        &self.adverts
    }

    /// The time on its wall clock.
    pub(crate) fn unix(&self, now: Instant) -> UnixMillis {
        UnixMillis((EPOCH + now.as_micros() / 1000).saturating_add_signed(self.clock_skew))
    }

    /// A new process. Its numbers start again, as a driver's do.
    pub(crate) fn begin(&mut self) {
        self.alive = true;
        self.listening = true;
        (self.next_connection, self.next_stream) = (1, 1);
    }

    /// The end of the process.
    pub(crate) fn end(&mut self) {
        self.alive = false;
        self.listening = false;
        self.life += 1;
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
