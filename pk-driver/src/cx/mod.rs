//! Context passed to every component of the pump.

pub(crate) mod deadlines;
pub(crate) mod ready;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use pk_proto::{ConnectionId, EffectId, Input, Instant, LeaseId, RequestId, StreamId};

use crate::config::DriverConfig;
use crate::cx::deadlines::Deadlines;
use crate::cx::ready::ReadyQueue;
use crate::job::StoreJob;
use crate::metrics::DriverMetrics;
use crate::stream::detached::DetachedStream;
use pk_host::KeyRing;

/// Everything that can wake the pump, except its timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum WakeSource {
    /// Incoming handshakes, or the end of the endpoint.
    Endpoint,
    /// Calls of the embedder.
    Commands,
    /// Completions of a store on its own thread.
    Store,
    /// The endpoint has drained.
    Drained,
    /// An incoming handshake.
    Handshake(u64),
    /// A dial.
    Dial(ConnectionId),
    /// A connection: incoming streams, room for outgoing ones, its end.
    Connection(ConnectionId),
    /// The check of a connection for silence is due.
    Liveness(ConnectionId),
    /// A stream of the core.
    Stream(StreamId),
    /// The embedder dropped a stream.
    Detached(StreamId),
    /// The resolution of a host name.
    Resolve(EffectId),
    /// The embedder dropped a request.
    Request(RequestId),
    /// The embedder dropped a lease.
    Lease(LeaseId),
    /// The embedder dropped an acceptor.
    Acceptor(u64),
    /// An event of mDNS.
    #[cfg_attr(
        not(feature = "mdns"),
        allow(dead_code, reason = "without mDNS nothing uses this key")
    )]
    Mdns,
    /// The deadline of a search by mDNS.
    #[cfg_attr(
        not(feature = "mdns"),
        allow(dead_code, reason = "without mDNS nothing uses this key")
    )]
    Browse(EffectId),
    /// The check of the certificate is due.
    Certificate,
    /// The wall clock may have been set.
    Clock,
    /// The recording is to be written.
    Recording,
}

/// Context that every component receives as `&mut Cx`, as in the core.
#[derive(Debug)]
pub(crate) struct Cx {
    /// Time of the call.
    pub(crate) now: Instant,
    pub(crate) config: Arc<DriverConfig>,
    pub(crate) ready: Arc<ReadyQueue<WakeSource>>,
    pub(crate) deadlines: Deadlines<WakeSource>,
    pub(crate) keys: KeyRing,
    pub(crate) metrics: DriverMetrics,
    /// Inputs for the core, which the pump delivers when the component returns.
    pub(crate) inputs: VecDeque<Input>,
    /// Streams that were handed over to the embedder.
    pub(crate) detached: VecDeque<DetachedStream>,
    /// Store jobs of the driver itself.
    pub(crate) jobs: VecDeque<StoreJob>,
}

impl Cx {
    pub(crate) fn new(config: DriverConfig, now: Instant) -> Self {
        Self {
            now,
            config: Arc::new(config),
            ready: ReadyQueue::new(),
            deadlines: Deadlines::new(),
            keys: KeyRing::default(),
            metrics: DriverMetrics::default(),
            inputs: VecDeque::new(),
            detached: VecDeque::new(),
            jobs: VecDeque::new(),
        }
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
    }

    /// Returns the waker of a new source. The source is polled once in this turn, because it has
    /// not registered the waker yet.
    pub(crate) fn source(&self, key: WakeSource) -> Waker {
        let waker = self.ready.waker(key);
        waker.wake_by_ref();
        waker
    }
}
