//! What every part of the pump works with.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use pk_proto::{ConnectionId, EffectId, Input, Instant, LeaseId, RequestId, StreamId};

use crate::config::DriverConfig;
use crate::deadlines::Deadlines;
use crate::desk::HandedOver;
use crate::keys::KeyRing;
use crate::metrics::DriverMetrics;
use crate::ready::ReadyQueue;
use crate::store_place::Job;

/// Everything that can wake the pump, but for its timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// Incoming handshakes, or the end of the endpoint.
    Endpoint,
    /// Calls of the embedder.
    Commands,
    /// Answers of a store on its own thread.
    Store,
    /// The endpoint has drained.
    Drained,
    /// An incoming handshake.
    Handshake(u64),
    /// A dial.
    Dial(ConnectionId),
    /// A connection: incoming streams, room for outgoing ones, its end.
    Connection(ConnectionId),
    /// A stream of the core.
    Stream(StreamId),
    /// The embedder let go of a stream.
    Handed(StreamId),
    /// A host name.
    Resolve(EffectId),
    /// The embedder let go of a request.
    Request(RequestId),
    /// The embedder let go of a lease.
    Lease(LeaseId),
    /// The embedder let go of an acceptor.
    Acceptor(u64),
    /// The local network has something to say.
    #[cfg_attr(not(feature = "mdns"), allow(dead_code, reason = "nobody is there to say anything"))]
    Mdns,
    /// A search of the local network.
    #[cfg_attr(not(feature = "mdns"), allow(dead_code, reason = "nobody is there to say anything"))]
    Browse(EffectId),
    /// The certificate is to be looked at.
    Certificate,
    /// The recording is to be taken.
    Recording,
}

/// Handed as `&mut Cx` to every part, as the core does.
#[derive(Debug)]
pub(crate) struct Cx {
    /// When the part was called.
    pub(crate) now: Instant,
    pub(crate) config: Arc<DriverConfig>,
    pub(crate) ready: Arc<ReadyQueue<Key>>,
    pub(crate) deadlines: Deadlines<Key>,
    pub(crate) keys: KeyRing,
    pub(crate) metrics: DriverMetrics,
    /// What the core is to be told; the pump tells it when the part returns.
    pub(crate) inputs: VecDeque<Input>,
    /// Streams that have come to the embedder.
    pub(crate) handed: VecDeque<HandedOver>,
    /// What the driver itself wants of the store.
    pub(crate) jobs: VecDeque<Job>,
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
            handed: VecDeque::new(),
            jobs: VecDeque::new(),
        }
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
    }

    /// A waker for a new source, which is to be polled first in this turn: until then it has not registered the waker.
    pub(crate) fn source(&self, key: Key) -> Waker {
        let waker = self.ready.waker(key);
        waker.wake_by_ref();
        waker
    }
}
