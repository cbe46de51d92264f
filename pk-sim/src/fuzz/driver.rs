//! The environment of one machine: connections, streams, effects and a store, all controlled by the
//! script.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::{
    ApprovalId, Census, Config, ConnectionId, Dialect, EffectId, Event, FrameDecoder, Input,
    Instant, LeaseId, Metrics, NodeId, NodeManager, Output, RecordedCall, Replay, Reply, Request,
    RequestId, Snapshot, StartParams, StreamId, UnixMillis,
};

use super::cast::Cast;
use super::run::Run;
use crate::checkers::Checkers;
use crate::checkers::violation::Violation;
use crate::host::EPOCH;
use crate::host::store::{CrashPolicy, Job, Store};
use crate::machine::{GraphView, Machine, StoredView};
use crate::rng_streams::RngStream;
use crate::world::journal::{Entry, Journal};

/// The host of the machine, as the checkers see it.
const HOST: usize = 0;
/// The longest dial that a machine may ask for.
const MAX_DIAL: Duration = Duration::from_secs(3600);
/// Bytes of a stream of the machine that a peer stores.
const MAX_SENT: usize = 256 * 1024;
/// Bytes of a recording.
const MAX_RECORDING: usize = 64 * 1024 * 1024;

/// Modifications by which a test shows that the checks detect them. Empty in a fuzz run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Plant {
    /// In place of an output.
    pub(super) output: Option<fn(Output) -> Vec<Output>>,
    /// In place of the next timeout.
    pub(super) timeout: Option<fn(&NodeManager) -> Option<Instant>>,
    /// In place of the gauges.
    pub(super) metrics: Option<fn(Metrics) -> Metrics>,
    /// In place of the census.
    pub(super) census: Option<fn(Census) -> Census>,
    /// In place of what is closest to a probe.
    pub(super) closest: Option<fn(Vec<NodeId>) -> Vec<NodeId>>,
    /// In place of a recording.
    pub(super) recording: Option<fn(Vec<u8>) -> Vec<u8>>,
    /// In place of the rows that a machine is made from.
    pub(super) snapshot: Option<fn(Snapshot) -> Snapshot>,
}

/// A connection, as the driver knows it.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) state: ConnState,
    pub(super) dialect: Dialect,
    /// Peer, once the dial has succeeded.
    pub(super) peer: NodeId,
    /// Whether nothing was received for several round trips.
    pub(super) suspected: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ConnState {
    Dialing {
        addr: SocketAddr,
        expect: Vec<NodeId>,
        deadline: Instant,
    },
    Live,
    /// The machine has closed it.
    Closing,
}

/// A stream as the driver knows it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) conn: ConnectionId,
    /// Bytes that may still be read.
    pub(super) credit: u64,
    /// Sent by the peer, not read yet.
    pub(super) unread: VecDeque<u8>,
    /// Whether the peer's direction ends after that.
    pub(super) fin: bool,
    /// Whether nothing more is read.
    pub(super) read: bool,
    /// Sent by the machine, not confirmed.
    pub(super) unconfirmed: u64,
    /// Whether the machine's direction has ended.
    pub(super) written: bool,
    /// Data of the machine, decoded for the peer.
    pub(super) frames: FrameDecoder,
    pub(super) sent: Vec<u8>,
    /// Steps of its exchange that the peer has completed.
    pub(super) steps: u32,
    pub(super) detached: bool,
}

/// A pending effect; those of the store are pending there.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    Sign { id: EffectId, key: NodeId, bytes: Bytes },
    Resolve { id: EffectId, port: u16 },
    Browse { id: EffectId },
    ReplaceIdentity { id: EffectId },
}

/// A driver of one machine.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) node: NodeManager,
    pub(super) now: Instant,
    pub(super) config: Config,
    pub(super) trusted: bool,
    pub(super) conns: BTreeMap<ConnectionId, Conn>,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    /// Circuits: the other stream of each.
    pub(super) circuits: BTreeMap<StreamId, StreamId>,
    pub(super) effects: Vec<Effect>,
    pub(super) store: Store,
    /// Delivered completions, which a driver that breaks the contract delivers again.
    pub(super) answered: Vec<Input>,
    pub(super) requests: Vec<RequestId>,
    pub(super) leases: Vec<LeaseId>,
    pub(super) approvals: Vec<ApprovalId>,
    pub(super) stopped: bool,
    pub(super) run: Run,
    pub(super) die: RngStream,
    wall: (Instant, UnixMillis),
    plant: Plant,
    checkers: Checkers,
    journal: Journal,
    next: u64,
    lives: u8,
}

impl Driver {
    /// Creates a node with these settings. `None` if it does not start, which can be caused by its
    /// settings or clock.
    pub(super) fn new(config: Config, trusted: bool, plant: Plant) -> Option<Self> {
        let (now, unix) = (Instant::from_micros(1_000_000), UnixMillis(EPOCH));
        let mut checkers = Checkers::default();
        checkers.add_host();
        let store = Store::default();
        let node = start(&config, Cast::get().identity(1), Snapshot::default(), (now, unix), 0)?;
        checkers.started(HOST, Some(config.clone()), &store);
        if !trusted {
            checkers.distrust(HOST);
        }
        Some(Self {
            node,
            now,
            config,
            trusted,
            conns: BTreeMap::new(),
            streams: BTreeMap::new(),
            circuits: BTreeMap::new(),
            effects: Vec::new(),
            store,
            answered: Vec::new(),
            requests: Vec::new(),
            leases: Vec::new(),
            approvals: Vec::new(),
            stopped: false,
            run: Run { started: true, ..Run::default() },
            die: RngStream::new(1, 1),
            wall: (now, unix),
            plant,
            checkers,
            journal: Journal::default(),
            next: 1,
            lives: 1,
        })
    }

    /// The next odd number, of a connection or a stream of the peer.
    pub(super) fn mint(&mut self) -> u64 {
        self.next += 2;
        self.next - 2
    }

    pub(super) fn unix(&self) -> UnixMillis {
        let elapsed = u64::try_from(self.now.since(self.wall.0).as_millis()).unwrap_or(u64::MAX);
        UnixMillis(self.wall.1.0.saturating_add(elapsed))
    }

    /// The driver breaks the contract from now on.
    pub(super) fn distrust(&mut self) {
        self.checkers.distrust(HOST);
    }

    /// Ends the run with a violation, if there is one.
    pub(super) fn check(&self, checked: Result<(), Violation>) {
        if let Err(violation) = checked {
            self.fail(&violation.to_string());
        }
    }

    #[expect(clippy::panic, reason = "a broken invariant is what the fuzzer looks for")]
    pub(super) fn fail(&self, what: &str) -> ! {
        panic!("{what}\nat {:?}; the last entries:\n{}", self.now, self.journal.recent())
    }

    // -- calls

    /// Delivers an input, and executes the outputs.
    pub(super) fn input(&mut self, input: Input) {
        self.run.coverage.input(&input);
        self.journal.add(HOST, self.now, Entry::Input(input.clone()));
        let checked = self.checkers.input(HOST, &input, &self.store);
        self.check(checked);
        if let Input::WallClock(unix) = input {
            self.wall = (self.now, unix);
        }
        self.node.handle_input(input, self.now);
        self.drain();
        self.end_circuits();
    }

    /// Reports the circuits one of whose streams has ended.
    fn end_circuits(&mut self) {
        let is_open = |streams: &BTreeMap<StreamId, Stream>, circuit: (&StreamId, &StreamId)| {
            streams.contains_key(circuit.0) && streams.contains_key(circuit.1)
        };
        let over = self.circuits.iter().find(|circuit| !is_open(&self.streams, *circuit));
        let Some((stream, other)) = over.map(|(stream, other)| (*stream, *other)) else { return };
        self.circuits.remove(&stream);
        self.streams.remove(&stream);
        self.streams.remove(&other);
        self.input(Input::CircuitClosed { stream, bytes: 1000 });
    }

    /// Delivers a completion, and stores it.
    pub(super) fn answer(&mut self, input: Input) {
        if !self.trusted && self.answered.len() < 64 {
            self.answered.push(input.clone());
        }
        self.input(input);
    }

    /// Starts a request.
    pub(super) fn request(&mut self, request: &Request) {
        self.journal.add(HOST, self.now, Entry::Call(RecordedCall::Request(request.clone())));
        let begun = self.node.request(request.clone(), self.now);
        if let Ok(id) = begun {
            self.run.coverage.request(request);
            self.requests.push(id);
            let checked = self.checkers.begun(HOST, id);
            self.check(checked);
        }
        self.drain();
    }

    /// Calls any method of the machine.
    pub(super) fn call(&mut self, call: RecordedCall) {
        match call {
            RecordedCall::Input(input) => self.input(input),
            RecordedCall::Request(request) => self.request(&request),
            RecordedCall::Timeout => self.fire(),
            call => {
                self.journal.add(HOST, self.now, Entry::Call(call.clone()));
                self.node.call(call, self.now);
                self.drain();
            }
        }
    }

    /// Fires due timers.
    pub(super) fn fire(&mut self) {
        let before = self.timeout();
        self.run.coverage.timers(&self.node.census(), self.now);
        self.journal.add(HOST, self.now, Entry::Timeout);
        self.node.handle_timeout(self.now);
        let outputs = self.drain();
        if let Some(before) = before.filter(|before| *before <= self.now) {
            let checked = self.checkers.fired(HOST, before, self.timeout(), outputs);
            self.check(checked);
        }
    }

    /// Advances the clock, firing every timer on the way, at most `calls` times.
    pub(super) fn pass(&mut self, time: Duration, calls: usize) {
        let end = self.now + time;
        for _ in 0..calls {
            let Some(due) = self.timeout().filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            self.fire();
        }
        self.now = self.now.max(end);
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        self.plant.timeout.map_or_else(|| self.node.poll_timeout(), |plant| plant(&self.node))
    }

    pub(super) fn census(&self) -> Census {
        self.plant.census.unwrap_or(|census| census)(self.node.census())
    }

    // -- outputs

    fn drain(&mut self) -> u64 {
        let mut outputs = 0;
        while let Some(output) = self.node.poll_output() {
            for output in self.planted(output) {
                outputs += 1;
                self.run.coverage.output(&output);
                self.journal.add(HOST, self.now, Entry::Output(output.clone()));
                let checked = self.checkers.output(HOST, Some(self.node.phase()), &output);
                self.check(checked);
                self.perform(output);
            }
        }
        let seen = Seen { node: &self.node, plant: &self.plant };
        let checked = self.checkers.drained(HOST, &seen, &mut self.die);
        self.check(checked);
        outputs
    }

    fn planted(&self, output: Output) -> Vec<Output> {
        match self.plant.output {
            Some(plant) => plant(output),
            None => vec![output],
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Dial { conn, addr, expect, deadline } => {
                if deadline > self.now + MAX_DIAL {
                    self.fail(&format!("a dial until {deadline:?}"));
                }
                let state =
                    ConnState::Dialing { addr, expect: expect.into_iter().collect(), deadline };
                let peer = NodeId::from_bytes([0; 32]);
                self.conns
                    .insert(conn, Conn { state, dialect: Dialect::Native, peer, suspected: false });
            }
            Output::CloseConnection { conn, .. } => {
                if let Some(of) = self.conns.get_mut(&conn) {
                    of.state = ConnState::Closing;
                }
                self.streams.retain(|_, stream| stream.conn != conn);
            }
            Output::OpenStream { conn, stream } => self.open(conn, stream),
            Output::SendStream { stream, bytes, fin } => {
                if let Some(of) = self.streams.get_mut(&stream) {
                    of.unconfirmed += bytes.len() as u64;
                    of.written |= fin;
                    if of.sent.len() + bytes.len() <= MAX_SENT {
                        of.sent.extend_from_slice(&bytes);
                        of.frames.push(bytes);
                    }
                }
            }
            Output::ResetStream { stream, .. } => {
                if let Some(of) = self.streams.get_mut(&stream) {
                    (of.written, of.unconfirmed) = (true, 0);
                }
            }
            Output::StopStream { stream, .. } => {
                if let Some(of) = self.streams.get_mut(&stream) {
                    of.read = true;
                    of.unread.clear();
                }
            }
            Output::ReadCredit { stream, bytes } => {
                if let Some(of) = self.streams.get_mut(&stream) {
                    of.credit = of.credit.saturating_add(bytes);
                }
            }
            Output::DetachStream { stream, .. } => {
                if let Some(of) = self.streams.get_mut(&stream) {
                    of.detached = true;
                }
            }
            Output::AttachCircuit { stream, .. } | Output::CloseCircuit { stream } => {
                if let Some(of) = self.streams.get_mut(&stream) {
                    of.detached = true;
                }
            }
            Output::JoinCircuit { stream, other, .. } => {
                for stream in [stream, other] {
                    if let Some(of) = self.streams.get_mut(&stream) {
                        of.detached = true;
                    }
                }
                self.circuits.insert(stream, other);
            }
            Output::Sign { id, key, bytes } => self.effects.push(Effect::Sign { id, key, bytes }),
            Output::Persist { id, ops, durable } => {
                self.store.push(Job::Persist { id, ops, durable });
            }
            Output::Load { id, range, max_bytes } => {
                self.store.push(Job::Load { id, range, max_bytes });
            }
            Output::Resolve { id, port, .. } => self.effects.push(Effect::Resolve { id, port }),
            Output::Browse { id, .. } => self.effects.push(Effect::Browse { id }),
            Output::ReplaceIdentity { id, .. } => self.effects.push(Effect::ReplaceIdentity { id }),
            Output::Event(event) => self.event(&event),
            Output::CancelDial { .. }
            | Output::ProbePath { .. }
            | Output::CancelBrowse { .. }
            | Output::Punch { .. }
            | Output::Advertise { .. } => {}
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Done { id, result } => {
                self.requests.retain(|open| open != id);
                if let Ok(Reply::AcquireConnection { lease, .. }) = result {
                    self.leases.push(*lease);
                }
            }
            Event::ClaimApprovalRequested { approval, .. } => self.approvals.push(*approval),
            Event::Stopped => self.stopped = true,
            _ => {}
        }
    }

    /// A stream begins.
    pub(super) fn open(&mut self, conn: ConnectionId, stream: StreamId) {
        let of = Stream {
            conn,
            credit: 0,
            unread: VecDeque::new(),
            fin: false,
            read: false,
            unconfirmed: 0,
            written: false,
            frames: FrameDecoder::new(),
            sent: Vec::new(),
            steps: 0,
            detached: false,
        };
        self.streams.insert(stream, of);
    }

    // -- lives

    /// Replays this life from its recording; the outputs must be the same.
    pub(super) fn replay(&mut self) {
        // Without another call, the outputs of the last one would not be compared.
        self.fire();
        let Some(recording) = self.node.take_recording() else {
            self.fail("replay: the recording is lost")
        };
        let recording = self.plant.recording.unwrap_or(|recording| recording)(recording);
        let mut replay = match Replay::new(&recording) {
            Ok(replay) => replay,
            Err(error) => self.fail(&format!("replay: {error}")),
        };
        loop {
            match replay.step() {
                Ok(Some(_)) => self.run.replayed += 1,
                Ok(None) => break,
                Err(error) => self.fail(&format!("replay: {error}")),
            }
        }
    }

    /// Ends this life by a kill, and starts another one from the surviving rows. Returns whether it
    /// started: not if the clock is outside of the validity of the certificate.
    pub(super) fn restart(&mut self, crash: CrashPolicy) -> bool {
        self.replay();
        // After a clean stop nothing is lost.
        let clean = (self.trusted && self.stopped && self.node.metrics().unwritten == 0)
            .then(|| proven(&self.node));
        self.store.crash = crash;
        self.store.crash(&mut self.die);
        let rows = self.store.rows().map(|(table, key, value)| (table, key.clone(), value.clone()));
        let snapshot = match Snapshot::from_rows(rows) {
            Ok(snapshot) => self.plant.snapshot.unwrap_or(|snapshot| snapshot)(snapshot),
            Err(error) => self.fail(&format!("restart: {error}")),
        };
        let cast = Cast::get();
        let owner = snapshot.meta.map_or(cast.id(0), |meta| meta.owner);
        let identity = cast.identity(cast.generation(&owner).unwrap_or(1));
        let moment = (self.now, self.unix());
        let Some(node) = start(&self.config, identity, snapshot, moment, self.lives) else {
            return false;
        };
        if let Some(clean) = clean.filter(|clean| *clean != proven(&node)) {
            self.fail(&format!(
                "restart: stopped with {clean:?}, restarted with {:?}",
                proven(&node)
            ));
        }
        self.begin_life(node);
        true
    }

    fn begin_life(&mut self, node: NodeManager) {
        self.node = node;
        self.lives = self.lives.wrapping_add(1);
        self.run.restarts += 1;
        self.conns.clear();
        self.streams.clear();
        self.effects.clear();
        self.answered.clear();
        self.requests.clear();
        self.leases.clear();
        self.approvals.clear();
        self.stopped = false;
        self.checkers.started(HOST, Some(self.config.clone()), &self.store);
        if !self.trusted {
            self.checkers.distrust(HOST);
        }
    }

    /// The end of the run.
    pub(super) fn finish(mut self) -> Run {
        let checked = self.checkers.finish(HOST);
        self.check(checked);
        self.run.checks = self.checkers.counters;
        self.run
    }
}

fn start(
    config: &Config,
    identity: &pk_proto::Identity,
    snapshot: Snapshot,
    (now, unix): (Instant, UnixMillis),
    life: u8,
) -> Option<NodeManager> {
    let (config, identity) = (config.clone(), identity.clone());
    let start = StartParams { config, identity, snapshot, seed: [life; 32], now, unix };
    NodeManager::start_recorded(start, MAX_RECORDING).ok()
}

/// Returns the nodes that a restart must find again.
fn proven(node: &NodeManager) -> Vec<NodeId> {
    let mut nodes: Vec<_> =
        node.graph().iter().map(|(id, _)| id).filter(|id| node.is_proven(*id)).collect();
    nodes.sort_unstable();
    nodes
}

/// The machine as the checkers see it.
struct Seen<'a> {
    node: &'a NodeManager,
    plant: &'a Plant,
}

impl Machine for Seen<'_> {
    fn handle_input(&mut self, _: Input, _: Instant) {}

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_output(&mut self) -> Option<Output> {
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.plant.timeout.map_or_else(|| self.node.poll_timeout(), |plant| plant(self.node))
    }

    fn gauges(&self) -> Option<Metrics> {
        Some(self.plant.metrics.unwrap_or(|metrics| metrics)(self.node.metrics()))
    }

    fn graph_view(&self, probe: NodeId, limit: usize) -> Option<GraphView<'_>> {
        let mut view = Machine::graph_view(self.node, probe, limit)?;
        if let Some(plant) = self.plant.closest {
            view.closest = plant(view.closest);
        }
        Some(view)
    }

    fn stored_view(&self) -> Option<StoredView<'_>> {
        Machine::stored_view(self.node)
    }
}
