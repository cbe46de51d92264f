//! Pumps with a scripted core: which inputs the driver produces.

mod dialects;
mod handshakes;
#[cfg(feature = "mdns")]
mod mdns;
mod pump;
mod streams;
mod tls;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pk_proto::{
    Connected, ConnectionId, DialFailure, Event, Identity, Input, Instant, LeaseId, NodeId, Output,
    RequestId,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::config::DriverConfig;
use crate::pump::core::Core;
use crate::pump::handle::Handle;
use crate::pump::spawn::{PumpConfig, spawn_pump};
use crate::system::runtime::{BoxFuture, Runtime};
use pk_host::KeyPair;
use pk_host::TransportSecret;
use pk_host::create_identity;
use pk_host::{MemoryStore, Store};

/// Longer than anything in these tests takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A core that executes commands of the test and reports its inputs.
#[derive(Debug)]
pub(crate) struct Script {
    id: NodeId,
    outputs: VecDeque<Output>,
    told: mpsc::UnboundedSender<Told>,
    timeout: Option<Instant>,
    /// Credit that every incoming stream gets at once.
    credit: u64,
}

/// An input of a [`Script`].
#[derive(Debug, PartialEq)]
pub(crate) enum Told {
    Input(Input),
    Timeout(Instant),
    Cancel(RequestId),
    Release(LeaseId),
    RefuseProtocol(String),
}

impl Script {
    pub(crate) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    fn tell(&self, told: Told) {
        let _ = self.told.send(told);
    }
}

impl Core for Script {
    fn handle_input(&mut self, input: Input, _: Instant) {
        if let Input::Listening { addrs } = &input {
            let addrs = addrs.clone();
            self.output(Output::Event(Event::Ready { addrs }));
        }
        if let Input::StreamOpened { stream, .. } = input
            && self.credit > 0
        {
            self.output(Output::ReadCredit { stream, bytes: self.credit });
        }
        self.tell(Told::Input(input));
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.timeout = None;
        self.tell(Told::Timeout(now));
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.timeout
    }

    fn cancel(&mut self, id: RequestId, _: Instant) {
        self.tell(Told::Cancel(id));
    }

    fn release(&mut self, lease: LeaseId, _: Instant) {
        self.tell(Told::Release(lease));
    }

    fn refuse_protocol(&mut self, protocol: &str, _: Instant) {
        self.tell(Told::RefuseProtocol(protocol.to_owned()));
    }

    fn stop(&mut self, _: Instant) {
        self.output(Output::Event(Event::Stopped));
    }

    fn own_id(&self) -> NodeId {
        self.id
    }

    fn take_recording(&mut self) -> Option<Vec<u8>> {
        None
    }
}

#[derive(Debug, Clone)]
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
}

/// A pump with a script.
pub(crate) struct Rig {
    pub(crate) id: NodeId,
    pub(crate) addr: SocketAddr,
    pub(crate) handle: Handle<Script>,
    told: mpsc::UnboundedReceiver<Told>,
    next_conn: u64,
}

/// How a rig differs from the default.
pub(crate) struct Setup {
    pub(crate) key: KeyPair,
    pub(crate) identity: Identity,
    pub(crate) listen: SocketAddr,
    pub(crate) streams: usize,
    pub(crate) driver: DriverConfig,
    pub(crate) store: Box<dyn Store>,
}

impl Setup {
    pub(crate) fn new(seed: u8) -> Self {
        let key = KeyPair::from_seed(&[seed; 32]);
        let identity = create_identity(&key, pk_host::unix()).unwrap();
        Self {
            key,
            identity,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            streams: 100,
            driver: DriverConfig::default(),
            store: Box::new(MemoryStore::new()),
        }
    }

    pub(crate) async fn start(self) -> Rig {
        let (told, hears) = mpsc::unbounded_channel();
        let id = self.key.node_id();
        let config = PumpConfig {
            transport_secret: TransportSecret::of_key(&self.key),
            key: self.key,
            identity: self.identity,
            listen: self.listen,
            streams: self.streams,
            driver: self.driver,
            store: self.store,
            record: None,
        };
        let script =
            |_, _| Ok(Script { id, outputs: VecDeque::new(), told, timeout: None, credit: 0 });
        let (handle, ready) = spawn_pump(TestRuntime, config, script, |_| None).unwrap();
        ready.await.unwrap();
        let addr = handle.status.read().addrs[0];
        let mut rig = Rig { id, addr, handle, told: hears, next_conn: 0 };
        assert_eq!(rig.input().await, Input::Listening { addrs: vec![addr] });
        rig
    }
}

impl Rig {
    pub(crate) async fn start(seed: u8) -> Self {
        Setup::new(seed).start().await
    }

    /// The core produces this output.
    pub(crate) async fn output(&self, output: Output) {
        self.handle.call(move |_, _, core| core.output(output)).await.unwrap();
    }

    /// The next input or timeout of the core.
    pub(crate) async fn told(&mut self) -> Told {
        timeout(PATIENCE, self.told.recv())
            .await
            .expect("the core receives an input in time")
            .unwrap()
    }

    /// The next input of the core.
    pub(crate) async fn input(&mut self) -> Input {
        match self.told().await {
            Told::Input(input) => input,
            other => panic!("{other:?} is not an input"),
        }
    }

    /// The core receives nothing for a while.
    pub(crate) async fn silence(&mut self) {
        if let Ok(input) = timeout(Duration::from_millis(100), self.told.recv()).await {
            panic!("received {input:?}");
        }
    }

    /// Starts a dial and returns its id.
    pub(crate) async fn dial(&mut self, addr: SocketAddr, expect: &[NodeId]) -> ConnectionId {
        let conn = ConnectionId(self.next_conn);
        self.next_conn += 2;
        let expect: BTreeSet<NodeId> = expect.iter().copied().collect();
        let call = self.handle.call(move |_, cx, core: &mut Script| {
            let deadline = cx.now + Duration::from_secs(10);
            core.output(Output::Dial { conn, addr, expect, deadline });
        });
        call.await.unwrap();
        conn
    }

    pub(crate) async fn connected(&mut self) -> Connected {
        match self.input().await {
            Input::Connected(connected) => connected,
            other => panic!("{other:?} is not a connection"),
        }
    }

    pub(crate) async fn dial_failed(&mut self) -> DialFailure {
        match self.input().await {
            Input::DialFailed { why, .. } => why,
            other => panic!("{other:?} is not a failure"),
        }
    }

    /// Connects two rigs.
    pub(crate) async fn connect(&mut self, other: &mut Self) -> (ConnectionId, ConnectionId) {
        self.dial(other.addr, &[other.id]).await;
        let (ours, theirs) = tokio::join!(self.connected(), other.connected());
        (ours.conn, theirs.conn)
    }

    /// Waits until the published metrics satisfy a condition.
    pub(crate) async fn metrics(
        &self,
        enough: impl Fn(&crate::DriverMetrics) -> bool,
    ) -> crate::DriverMetrics {
        let look = async {
            loop {
                let metrics = self.handle.status.read().metrics;
                if enough(&metrics) {
                    return metrics;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, look)
            .await
            .unwrap_or_else(|_| panic!("{:?}", self.handle.status.read().metrics))
    }

    pub(crate) async fn shutdown(&self) {
        self.handle.call(|_, cx, core| core.stop(cx.now)).await.unwrap();
        timeout(PATIENCE, self.handle.tasks.idle()).await.expect("all tasks end");
    }
}
