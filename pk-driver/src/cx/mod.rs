//! Context passed to every component of the pump.

pub(crate) mod deadlines;
pub(crate) mod ready;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use pk_proto::{EffectId, Instant, LeaseId, NodeManager, RequestId};
use pk_quic::Response;

use crate::config::DriverConfig;
use crate::cx::deadlines::Deadlines;
use crate::cx::ready::ReadyQueue;
use crate::job::StoreJob;
use crate::metrics::DriverMetrics;
use crate::stream::shared::SharedNode;

/// Everything that can wake the pump, except its timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum WakeSource {
    /// Datagrams.
    Socket,
    /// Room in the socket for datagrams that could not be sent.
    Writable,
    /// The embedder used a stream: the state machine has something to do.
    Streams,
    /// Calls of the embedder.
    Commands,
    /// Completions of a store on its own thread.
    Store,
    /// The time limit of the shutdown.
    Drained,
    /// The resolution of a host name.
    Resolve(EffectId),
    /// The embedder dropped a request.
    Request(RequestId),
    /// The embedder dropped a lease.
    Lease(LeaseId),
    /// The embedder dropped an acceptor.
    Acceptor(u64),
    /// An event of the standard groups of mDNS.
    #[cfg_attr(
        not(feature = "mdns"),
        allow(dead_code, reason = "without mDNS nothing uses this key")
    )]
    Mdns,
    /// Datagrams of the other groups of mDNS, or what is due there.
    #[cfg_attr(
        not(feature = "mdns"),
        allow(dead_code, reason = "without mDNS nothing uses this key")
    )]
    MdnsGroup,
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
    /// The addresses of this machine may have changed.
    Interfaces,
    /// A task of the port mapping has ended, or something of it is due.
    PortMapping,
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
    pub(crate) metrics: DriverMetrics,
    /// The state machine.
    pub(crate) node: SharedNode,
    /// Completions of effects, which the pump delivers when the component returns.
    pub(crate) answers: VecDeque<Response>,
    /// Store jobs of the driver itself.
    pub(crate) jobs: VecDeque<StoreJob>,
}

impl Cx {
    pub(crate) fn new(
        config: DriverConfig,
        node: SharedNode,
        ready: Arc<ReadyQueue<WakeSource>>,
        now: Instant,
    ) -> Self {
        Self {
            now,
            config: Arc::new(config),
            ready,
            deadlines: Deadlines::new(),
            metrics: DriverMetrics::default(),
            node,
            answers: VecDeque::new(),
            jobs: VecDeque::new(),
        }
    }

    /// Calls the core.
    pub(crate) fn core<T>(&self, call: impl FnOnce(&mut NodeManager, Instant) -> T) -> T {
        self.node.with(|node| node.update(self.now, call))
    }

    pub(crate) fn answer(&mut self, answer: Response) {
        self.answers.push_back(answer);
    }

    /// Returns the waker of a new source. The source is polled once in this turn, because it has
    /// not registered the waker yet.
    pub(crate) fn source(&self, key: WakeSource) -> Waker {
        let waker = self.ready.waker(key);
        waker.wake_by_ref();
        waker
    }
}
