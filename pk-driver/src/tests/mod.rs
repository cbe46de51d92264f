//! The parts of a pump, and whole nodes on tokio.

mod effects;
mod handles;
#[cfg(feature = "mdns")]
mod mdns;
mod pump;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use pk_host::{Clock, HostState, KeyPair, MemoryStore, Store, TransportSecret, create_identity};
use pk_proto::{Config, Snapshot};
use pk_quic::{Effect, NodeSetup, Response};
use tokio::time::timeout;

use crate::config::DriverConfig;
use crate::cx::ready::ReadyQueue;
use crate::cx::{Cx, WakeSource};
use crate::job::StoreJob;
use crate::mdns::Mdns;
use crate::pump::resolver::Resolver;
use crate::pump::store_backend::StoreBackend;
use crate::stream::shared::SharedNode;
use crate::system::runtime::{AddressChanges, BoxFuture, Runtime};
use crate::system::tasks::Tasks;

/// Time limit, longer than any step of these tests takes.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Default)]
pub(crate) struct TestRuntime;

impl Runtime for TestRuntime {
    fn quinn(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }

    fn resolve(&self, host: String, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            match host.as_str() {
                "never.example" => std::future::pending().await,
                "none.example" => Err(io::Error::other("no such name")),
                _ => Ok(vec![SocketAddr::from(([192, 0, 2, 1], port))]),
            }
        })
    }

    fn address_changes(&self) -> io::Result<AddressChanges> {
        Ok(Box::new(|_| Poll::Pending))
    }
}

fn host(seed: u8) -> HostState {
    let key = KeyPair::from_seed(&[seed; 32]);
    HostState {
        identity: create_identity(&key, pk_host::unix()).unwrap(),
        secret: TransportSecret::of_key(&key),
        key,
        snapshot: Snapshot::default(),
        seed: [seed; 32],
    }
}

/// A state machine without IO, as used by the pump.
fn state_machine(seed: u8, bound: SocketAddr) -> (pk_quic::Node, Clock) {
    let clock = Clock::new();
    let origin = std::time::Instant::now();
    let mut setup = NodeSetup::new(host(seed), bound, origin, clock.now(), clock.unix());
    setup.config = Config::default();
    (pk_quic::Node::new(setup).unwrap(), clock)
}

fn context(seed: u8, config: DriverConfig) -> (Cx, Clock) {
    let (node, clock) = state_machine(seed, SocketAddr::from(([127, 0, 0, 1], 1)));
    let ready = ReadyQueue::new();
    let node = SharedNode::new(node, clock.clone(), ready.waker(WakeSource::Streams));
    (Cx::new(config, node, ready, clock.now()), clock)
}

/// The parts of a pump that execute effects.
pub(crate) struct Bench {
    pub(crate) cx: Cx,
    clock: Clock,
    store: StoreBackend,
    resolver: Resolver<TestRuntime>,
    pub(crate) mdns: Mdns,
    pub(crate) tasks: Tasks,
}

impl Bench {
    pub(crate) fn new(seed: u8, config: DriverConfig) -> Self {
        Self::with_store(seed, config, Box::new(MemoryStore::new()))
    }

    pub(crate) fn with_store(seed: u8, config: DriverConfig, store: Box<dyn Store>) -> Self {
        let (cx, clock) = context(seed, config);
        let tasks = Tasks::new(TestRuntime.quinn());
        Self {
            store: StoreBackend::new(&cx, store, &tasks).unwrap(),
            cx,
            clock,
            resolver: Resolver::new(TestRuntime),
            mdns: Mdns::new(SocketAddr::from(([127, 0, 0, 1], 1)), tasks.clone()),
            tasks,
        }
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        let Self { cx, store, resolver, mdns, .. } = self;
        cx.now = self.clock.now();
        match effect {
            Effect::Persist { .. } | Effect::Load { .. } => {
                store.begin(cx, StoreJob::Effect(effect));
            }
            Effect::Resolve { id, name, port } => resolver.begin(cx, id, &name, port),
            Effect::Browse { id, node, deadline } => mdns.browse(cx, id, node, deadline),
            Effect::CancelBrowse { id } => mdns.end_browse(cx, id),
            Effect::Advertise { node, port } => mdns.advertise(cx, node, port),
            Effect::Sign { .. } => panic!("the node signs"),
        }
    }

    /// One turn.
    fn turn(&mut self) {
        let Self { cx, store, resolver, mdns, .. } = self;
        cx.now = self.clock.now();
        while let Some(source) = cx.ready.pop() {
            match source {
                WakeSource::Store => store.poll(cx),
                WakeSource::Resolve(id) => resolver.poll(cx, id),
                WakeSource::Mdns => mdns.poll(cx),
                WakeSource::MdnsGroup => mdns.poll_group(cx),
                _ => {}
            }
        }
        while let Some(source) = cx.deadlines.pop_due(cx.now) {
            match source {
                WakeSource::Resolve(id) => resolver.timed_out(cx, id),
                WakeSource::Browse(id) => mdns.end_browse(cx, id),
                WakeSource::Mdns => mdns.resume(cx),
                WakeSource::MdnsGroup => mdns.poll_group(cx),
                _ => {}
            }
        }
    }

    /// Takes turns until a condition is true.
    pub(crate) async fn until<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let looks = async {
            loop {
                self.turn();
                if let Some(found) = look(self) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, looks).await.expect("in time")
    }

    /// The next completion.
    pub(crate) async fn answer(&mut self) -> Response {
        self.until(|bench| bench.cx.answers.pop_front()).await
    }

    /// Takes turns for some time.
    #[cfg_attr(not(feature = "mdns"), allow(dead_code, reason = "only mDNS takes time"))]
    pub(crate) async fn pass(&mut self, time: Duration) {
        let end = std::time::Instant::now() + time;
        while std::time::Instant::now() < end {
            self.turn();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Checks that nothing is completed for some time.
    pub(crate) async fn silence(&mut self) {
        for _ in 0..20 {
            self.turn();
            assert_eq!(self.cx.answers.pop_front(), None);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
