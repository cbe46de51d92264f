//! The node: entry points and routing, nothing else. Requests are begun in [`requests`] and
//! ended in [`open`]; what we answer to peers is in [`serve`], getters are in [`getters`].
//!
//! Every entry moves the clock, hands the matter to the part that owns it, and then settles: the parts' events are drained
//! and passed on until nothing moves any more. Parts never see each other.

mod calls;
mod chain_data;
mod checks;
mod claims;
mod collect;
mod contacts;
mod getters;
mod loads;
mod local;
mod open;
mod refresh;
mod renewal;
mod requests;
mod search;
mod serve;
mod signalling;
mod sync;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use self::claims::Claims;
pub use self::claims::ExchangeInfo;
use self::collect::Collections;
use self::loads::Reader;
use self::open::Open;
pub(crate) use self::renewal::RETIREMENT;
use self::signalling::Signalling;
use crate::cert;
use crate::config::Config;
use crate::connect::{ConnectEvent, Connections};
use crate::cx::Cx;
use crate::error::{ConnectionErrorReason, Failure, RequestError, StartError};
use crate::graph::{DiversityLimits, NodeGraph, PendingNodes};
use crate::id::{BucketIndex, ConnectionId, EffectId, LeaseId, NodeId, RequestId};
use crate::io::{DisconnectReason, Event, Identity, Input, Output};
use crate::request::ConnectionInfo;
use crate::rpc::{Rpc, RpcEvent};
use crate::store::{GraphStore, Snapshot};
use crate::time::{Instant, UnixMillis};
use crate::timers::Timer;
use crate::trace::{Call, Recorder, Start};

/// The node layer of one Polykey node, as a machine without IO. See the [crate documentation](crate) for how to drive it.
#[derive(Debug)]
pub struct NodeManager {
    cx: Cx,
    phase: Phase,
    graph: NodeGraph,
    /// Nodes of the graph that no connection has proven; they are told to nobody.
    unproven: BTreeSet<NodeId>,
    pending: PendingNodes,
    collections: Collections,
    /// When each bucket was last refreshed.
    refreshed: BTreeMap<BucketIndex, UnixMillis>,
    /// Buckets whose refresh after a join has not begun.
    owed: BTreeSet<BucketIndex>,
    store: GraphStore,
    claims: Claims,
    signalling: Signalling,
    browses: BTreeMap<EffectId, RequestId>,
    /// Reads under way, and who waits for them.
    loads: BTreeMap<EffectId, Reader>,
    /// Links being written, and for which request.
    linking: BTreeMap<EffectId, RequestId>,
    /// Where the local network is told that we listen.
    advertised: Option<u16>,
    connections: Connections,
    rpc: Rpc,
    open: BTreeMap<RequestId, Open>,
    /// How many of them nobody asked for: parts of others, and what goes on in the background.
    parts: usize,
    /// Searches that may have something to do.
    awake: BTreeSet<RequestId>,
    recorder: Option<Recorder>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not listening yet.
    Starting,
    Running,
    /// Waiting for the connections to close.
    Stopping,
    Stopped,
}

/// A. Life, and what is done at once. Requests are in the next block.
impl NodeManager {
    /// A machine that waits for [`Input::Listening`].
    ///
    /// `seed` decides every random choice; with the same seed, snapshot and inputs a machine emits the same outputs. `unix`
    /// is what the wall clock reads at `now`.
    ///
    /// # Errors
    /// A setting outside its range, or an identity whose newest certificate is not valid at `unix`.
    pub fn new(
        config: Config,
        identity: &Identity,
        snapshot: Snapshot,
        seed: [u8; 32],
        now: Instant,
        unix: UnixMillis,
    ) -> Result<Self, StartError> {
        Self::start(Start { config, identity: identity.clone(), snapshot, seed, now, unix })
    }

    /// As [`new`](Self::new), from one value.
    pub fn start(start: Start) -> Result<Self, StartError> {
        let Start { config, identity, mut snapshot, seed, now, unix } = start;
        config.validate()?;
        let own = cert::verify_client(&identity.chain, unix.as_secs())?;
        if let Some(meta) = snapshot.meta
            && !own.chain.contains(&meta.owner)
        {
            return Err(StartError::ForeignStore { owner: meta.owner, own: own.leaf });
        }
        let diversity =
            DiversityLimits { per_bucket: config.bucket_prefix_limit, per_table: config.graph_prefix_limit };
        let claims = Claims::new(&mut snapshot);
        let mut graph = NodeGraph::new(own.leaf, config.bucket_limit, config.address_limit).with_diversity(diversity);
        for (node, contact) in snapshot.contacts {
            graph.restore(node, &contact);
        }
        Ok(Self {
            cx: Cx::new(config, own.chain, seed, now, unix),
            phase: Phase::Starting,
            graph,
            unproven: BTreeSet::new(),
            pending: PendingNodes::default(),
            collections: Collections::new(),
            refreshed: snapshot.refreshed.into_iter().collect(),
            owed: BTreeSet::new(),
            store: GraphStore::new(snapshot.meta.as_ref()),
            claims,
            signalling: Signalling::default(),
            browses: BTreeMap::new(),
            loads: BTreeMap::new(),
            linking: BTreeMap::new(),
            advertised: None,
            connections: Connections::default(),
            rpc: Rpc::default(),
            open: BTreeMap::new(),
            parts: 0,
            awake: BTreeSet::new(),
            recorder: None,
        })
    }

    /// As [`start`](Self::start), and keeps a log of everything that goes in, for [`Replay`](crate::Replay). The driver
    /// takes it with [`take_recording`](Self::take_recording) before it grows over `limit` bytes.
    pub fn start_recorded(start: Start, limit: usize) -> Result<Self, StartError> {
        let recorder = Recorder::new(&start, limit);
        Ok(Self { recorder: Some(recorder), ..Self::start(start)? })
    }

    /// What has been recorded since the last call; append it to what was there before. `None` if this machine is not
    /// recorded, or its log grew over the limit and is lost.
    pub fn take_recording(&mut self) -> Option<Vec<u8>> {
        self.recorder.as_mut().and_then(Recorder::take)
    }

    /// Does what a method of the same name does; for replaying.
    pub fn call(&mut self, call: Call, now: Instant) {
        match call {
            Call::Input(input) => self.handle_input(input, now),
            Call::Timeout => self.handle_timeout(now),
            Call::Request(request) => drop(self.request(request, now)),
            Call::Cancel(id) => self.cancel(id, now),
            Call::Release(lease) => self.release(lease, now),
            Call::Disconnect(node) => drop(self.disconnect(node, now)),
            Call::UnsetNode(node) => drop(self.unset_node(node, now)),
            Call::AcceptProtocol(protocol) => drop(self.accept_protocol(protocol, now)),
            Call::RefuseProtocol(protocol) => self.refuse_protocol(&protocol, now),
            Call::SetRefreshDelay { bucket, delay, lazy } => drop(self.set_refresh_delay(bucket, delay, lazy, now)),
            Call::AnswerClaim { ask, sign } => self.answer_claim(ask, sign, now),
            Call::ResetBuckets => self.reset_buckets(now),
            Call::Stop => self.stop(now),
        }
    }

    /// The beginning of every entry: the clock moves, and the call is recorded.
    fn enter(&mut self, now: Instant, call: impl FnOnce() -> Call) {
        self.cx.advance(now);
        if let Some(recorder) = &mut self.recorder {
            recorder.call(now, call());
        }
    }

    /// Puts every node into the bucket where the own id has it (specification: resetBuckets). A renewal does this itself.
    pub fn reset_buckets(&mut self, now: Instant) {
        self.enter(now, || Call::ResetBuckets);
        self.rebuild_graph(self.cx.own());
        self.settle();
    }

    /// Ends a lease. Nothing happens if it is over already.
    pub fn release(&mut self, lease: LeaseId, now: Instant) {
        self.enter(now, || Call::Release(lease));
        self.connections.release(&mut self.cx, lease);
    }

    /// Closes every connection with a node, by any id that it proved. Returns how many there were.
    pub fn disconnect(&mut self, node: NodeId, now: Instant) -> usize {
        self.enter(now, || Call::Disconnect(node));
        let closed = self.connections.disconnect(&mut self.cx, &node);
        self.settle();
        closed
    }

    /// Takes a node out of the graph and of the pending list of its bucket; its connections stay. Returns whether it was in
    /// the graph.
    pub fn unset_node(&mut self, node: NodeId, now: Instant) -> bool {
        self.enter(now, || Call::UnsetNode(node));
        self.unproven.remove(&node);
        if let Some(bucket) = self.cx.own().bucket_index(&node) {
            self.pending.remove(bucket, &node);
        }
        self.remove_from_graph(&node)
    }

    /// Accepts streams of an application protocol from now on; they come as [`Output::HandOver`].
    ///
    /// # Errors
    /// The name is not 1 to 64 printable ASCII characters, or `Config::protocol_limit` are accepted already.
    pub fn accept_protocol(&mut self, protocol: String, now: Instant) -> Result<(), RequestError> {
        self.enter(now, || Call::AcceptProtocol(protocol.clone()));
        checks::check_protocol(&protocol)?;
        if self.rpc.accept_protocol(&self.cx, protocol) {
            Ok(())
        } else {
            Err(RequestError::TooMany(self.cx.config.protocol_limit))
        }
    }

    /// Refuses new streams of an application protocol from now on; open ones stay.
    pub fn refuse_protocol(&mut self, protocol: &str, now: Instant) {
        self.enter(now, || Call::RefuseProtocol(protocol.into()));
        self.rpc.refuse_protocol(protocol);
    }

    /// Begins to stop: requests end with [`Failure::Stopped`](crate::Failure::Stopped), connections close with code 0, and
    /// [`Event::Stopped`] follows when all are closed, or after `Config::stop_timeout`. A second call does nothing.
    pub fn stop(&mut self, now: Instant) {
        self.enter(now, || Call::Stop);
        if matches!(self.phase, Phase::Stopping | Phase::Stopped) {
            return;
        }
        if self.phase == Phase::Starting {
            // It has never been a node of the network: there is nothing to keep.
            self.store.forget();
        }
        self.phase = Phase::Stopping;
        self.store.finish();
        self.stop_requests();
        self.advertise(&[]);
        self.connections.stop(&mut self.cx);
        self.write_graph();
        self.cx.timers.set(Timer::Stop, self.cx.now + self.cx.config.stop_timeout);
        self.settle();
    }
}

/// B. The world. Infallible: a bad peer is an event and a counter, a late or unknown number is counted and ignored.
impl NodeManager {
    /// Takes in what the world did.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        self.enter(now, || Call::Input(input.clone()));
        if self.phase == Phase::Stopped {
            self.cx.metrics.late_inputs += 1;
            return;
        }
        let Self { cx, connections, rpc, .. } = self;
        match input {
            Input::Listening { addrs } => {
                cx.set_listening(&addrs);
                if self.phase == Phase::Starting {
                    self.phase = Phase::Running;
                    cx.event(Event::Ready { addrs: addrs.clone() });
                    self.advertise(&addrs);
                    self.tell_of_doubts();
                    self.start_refreshing();
                }
            }
            Input::WallClock(unix) => cx.set_unix(unix),

            Input::Connected(connected) => {
                let incoming = self.incoming(&connected);
                self.connections.connected(&mut self.cx, connected, incoming);
            }
            Input::DialFailed { conn, why } => connections.dial_failed(cx, conn, why),
            Input::Disconnected { conn, why } => connections.disconnected(cx, conn, why),
            Input::RemoteAddressChanged { conn, addr } => connections.remote_address_changed(cx, conn, addr),
            Input::Resolved { id, result } => connections.resolved(cx, id, result),

            Input::StreamOpened { conn, stream } => rpc.stream_opened(cx, conn, stream),
            Input::StreamData { stream, bytes, fin } => rpc.stream_data(cx, stream, bytes, fin),
            Input::StreamSent { stream, bytes } => rpc.stream_sent(cx, stream, bytes),
            Input::StreamReset { stream, code } => rpc.stream_reset(cx, stream, code),
            Input::StreamStopped { stream, code } => rpc.stream_stopped(cx, stream, code),
            Input::OpenFailed { stream } => rpc.open_failed(cx, stream),
            Input::StreamClosed { stream } => {
                if let Some(conn) = rpc.stream_closed(cx, stream) {
                    connections.touch(cx, conn);
                }
            }

            Input::Persisted { id, result } => self.persisted(id, result),
            Input::Signed { id, result } => {
                if !self.claim_signed(id, &result) && !self.signal_signed(id, result) {
                    self.cx.metrics.late_inputs += 1;
                }
            }
            Input::IdentityReplaced { id, result } => {
                if !self.identity_replaced(id, result) {
                    self.cx.metrics.late_inputs += 1;
                }
            }
            Input::Discovered { id, addrs, done } => self.discovered(id, &addrs, done),

            Input::Loaded { id, result } => {
                if !self.claim_loaded(id, &result) && !self.loaded(id, result) {
                    self.cx.metrics.late_inputs += 1;
                }
            }
        }
        self.settle();
    }

    /// Fires every timer that is due at `now`, in the order of their times.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.enter(now, || Call::Timeout);
        while let Some(timer) = self.cx.timers.pop_due(self.cx.now) {
            self.cx.metrics.timeouts += 1;
            let Self { cx, connections, rpc, .. } = self;
            match timer {
                Timer::Stop => self.stopped(),
                Timer::Request(id) => self.request_deadline(id),
                Timer::RaceDeadline(id) => connections.race_deadline(cx, id),
                Timer::RaceNext(id) => connections.race_next(cx, id),
                Timer::Hello(conn) => connections.hello_overdue(cx, conn),
                Timer::Idle(conn) => self.idle(conn),
                Timer::Stream(stream) => rpc.timed_out(cx, stream),
                Timer::Stall(id, node) => self.stalled(id, &node),
                Timer::Verify(id) => self.chain_verify(id),
                Timer::Collect(bucket) => self.collect_due(bucket),
                Timer::Refresh(bucket) => self.refresh_due(bucket),
                Timer::Retry => self.retry_due(),
                Timer::Punch(addr) => self.punch_next(addr),
                Timer::ClaimRetry(id) => self.claim_retry(id),
                Timer::ClaimResume(claim) => self.resume(claim),
                Timer::Ask(ask) => self.decided(ask, false),
                Timer::Store => self.write_graph(),
            }
            self.settle();
        }
    }

    /// Drains the parts until nothing moves any more.
    fn settle(&mut self) {
        loop {
            if let Some(event) = self.connections.poll_event() {
                self.on_connect(event);
            } else if let Some(event) = self.rpc.poll_event() {
                self.on_rpc(event);
            } else if let Some(id) = self.awake.pop_first() {
                self.advance_search(id);
            } else {
                break;
            }
        }
        if self.phase == Phase::Stopping
            && self.connections.is_empty()
            && self.store.is_durable()
            && self.claims.is_idle()
            && self.linking.is_empty()
            && !self.is_renewing()
        {
            self.stopped();
        }
    }

    fn on_connect(&mut self, event: ConnectEvent) {
        match event {
            ConnectEvent::Greet { conn, .. } if self.phase == Phase::Stopping => {
                self.connections.close(&mut self.cx, conn, ConnectionErrorReason::Stopping);
            }
            ConnectEvent::Greet { conn, node, role, dialect } => {
                self.rpc.connection_opened(&mut self.cx, conn, node, role, dialect);
            }
            ConnectEvent::Opened { conn, node, role } => {
                let Some((address, data)) = self.connections.address(conn) else { return };
                if self.unproven.remove(&node) {
                    self.store.changed(&mut self.cx, node);
                }
                let chain = self.connections.chain(conn);
                let former = self.leave_former(&chain);
                self.punched(&chain);
                self.proven(node, address.clone(), data);
                if self.graph.contains(&node) {
                    for (address, data) in former {
                        self.set_in_graph(node, address, data);
                    }
                }
                self.cx.event(Event::ConnectionOpened { conn, node, role, address });
                self.offer_to_searches(node);
                self.resume_with(&chain);
            }
            ConnectEvent::Moved { conn, node } => {
                if let Some((address, data)) = self.connections.address(conn) {
                    self.proven(node, address, data);
                }
            }
            ConnectEvent::Signal { race, node, relay } => self.signal(race, node, relay),
            ConnectEvent::Closing { conn } => {
                self.rpc.connection_closed(&mut self.cx, conn, &DisconnectReason::Local);
            }
            ConnectEvent::Closed { conn, node, accepted, why, leases } => {
                for lease in leases {
                    self.cx.event(Event::LeaseLost { lease, node });
                }
                self.rpc.connection_closed(&mut self.cx, conn, &why);
                if accepted {
                    self.cx.event(Event::ConnectionClosed { conn, node, why });
                }
            }
            ConnectEvent::RaceEnded { node, waiters, result } => {
                for id in waiters {
                    self.race_ended(id, node, result.clone());
                }
            }
        }
    }

    fn on_rpc(&mut self, event: RpcEvent) {
        match event {
            RpcEvent::Hello { conn } => self.connections.accepted(&mut self.cx, conn),
            RpcEvent::Answered { request, conn, stream, result } => {
                self.connections.touch(&mut self.cx, conn);
                if !self.signal_answered(stream, &result) {
                    self.call_ended(request, conn, stream, result);
                }
            }
            RpcEvent::Asked { stream, conn, question } => {
                self.connections.touch(&mut self.cx, conn);
                self.serve(conn, stream, &question);
            }
            RpcEvent::Exchange { stream, conn, step } => {
                self.connections.touch(&mut self.cx, conn);
                self.exchange(stream, conn, step);
            }
            RpcEvent::Opened { request, result } => self.stream_opened(request, result),
            RpcEvent::Fault { conn, node, fault, fatal } => {
                self.cx.event(Event::PeerMisbehaved { conn, node, fault });
                if fatal {
                    self.connections.close(&mut self.cx, conn, ConnectionErrorReason::Fault);
                }
            }
        }
    }

    /// The idle time of a connection is over.
    fn idle(&mut self, conn: ConnectionId) {
        if self.connections.is_retired(conn) {
            self.connections.close_idle(&mut self.cx, conn);
        } else if self.connections.is_leased(conn) {
            self.connections.touch(&mut self.cx, conn);
            self.keep_alive(conn);
        } else if self.rpc.in_use(conn) {
            self.connections.touch(&mut self.cx, conn);
        } else {
            self.connections.close_idle(&mut self.cx, conn);
        }
    }

    /// What is known of an accepted connection.
    fn connection_info(&self, conn: ConnectionId) -> Option<ConnectionInfo> {
        let mut info = self.connections.info(&self.cx, conn)?;
        self.note_use(&mut info);
        Some(info)
    }

    /// Streams are use, too.
    fn note_use(&self, info: &mut ConnectionInfo) {
        if self.rpc.in_use(info.conn) {
            info.idle_in = None;
        }
    }

    fn stopped(&mut self) {
        if self.phase != Phase::Stopped {
            self.connections.abandon(&mut self.cx);
            while let Some(event) = self.connections.poll_event() {
                self.on_connect(event);
            }
            // A renewal whose outcome nobody has told us.
            self.phase = Phase::Stopped;
            while let Some(id) = self.open.keys().next().copied() {
                self.end(id, Err(Failure::Stopped));
            }
            self.cx.timers.clear();
            self.cx.event(Event::Stopped);
        }
    }
}

/// C. What the driver must do next: drain the outputs until `None`, then look at the timeout.
impl NodeManager {
    /// The next output, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.cx.poll_output()?;
        if let Some(recorder) = &mut self.recorder {
            recorder.output(&output);
        }
        Some(output)
    }

    /// When `handle_timeout` is due if nothing else happens; may lie in the past. `None` once stopped, and while there is
    /// nothing to wait for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.cx.timers.next()
    }
}
