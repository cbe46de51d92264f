//! The manager: entry points and dispatch. Requests are started in [`requests`] and ended in
//! [`lifecycle`]. Requests of peers are answered in [`serve`]. Getters are in [`getters`].
//!
//! Every entry point advances the clock, calls the component that owns the state, and then calls
//! `settle`, which handles the events of the components until none is left. Components do not call
//! each other.

mod bucket_gc;
mod candidates;
mod chain_data;
mod claims;
mod effects;
mod forks;
mod getters;
mod graph_updates;
mod lifecycle;
mod mdns;
pub(crate) mod node;
mod refresh;
mod relay;
mod renewal;
mod requests;
mod responses;
mod retry;
mod room;
mod search;
mod serve;
mod signalling;
mod state;
mod store_reads;
mod sync;
mod upkeep;
mod validate;
mod writes;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub use self::node::NodeManager;
use self::state::claims::Claims;
use self::state::forks::ForkWatch;
use self::state::known_nodes::KnownNodes;
use self::state::request_table::RequestTable;
use self::state::signalling::Signalling;
use self::state::stage::is_writing;
use self::state::upkeep::Upkeep;
use self::state::writes::Writes;
use crate::api::config::Config;
use crate::api::error::{
    ConnectionErrorReason, Failure, PeerFault, RequestError, StartError, code,
};
use crate::api::event::Event;
use crate::api::input::Input;
use crate::api::output::Output;
use crate::api::recorded_call::{RecordedCall, StartParams};
use crate::api::snapshot::Snapshot;
use crate::api::transport::{DisconnectReason, Identity};
use crate::cert;
use crate::connect::event::ConnectEvent;
use crate::connect::table::Connections;
use crate::graph::{DiversityLimits, NodeGraph};
use crate::graph_writer::GraphWriter;
use crate::machine::cx::Cx;
use crate::machine::effects::SignalPurpose;
use crate::machine::phase::{Entry, Phase};
use crate::machine::record::Recorder;
use crate::machine::timer::Timer;
use crate::relay::Relay;
use crate::rpc::event::{CompletedCall, RpcEvent};
use crate::rpc::table::Rpc;
use crate::shares::Shares;
use crate::types::id::{ConnectionId, LeaseId, NodeId};
use crate::types::time::{Instant, UnixMillis};
use crate::upkeep::lost::LostContact;

/// A. Start, stop, and calls that complete at once. Requests are in the block of `requests`.
impl NodeManager {
    /// Creates a machine that waits for [`Input::Listening`].
    ///
    /// `seed` determines all random numbers: with the same seed, snapshot and inputs a machine
    /// emits the same outputs. `unix` is the wall clock at `now`.
    ///
    /// # Errors
    /// A setting is outside its range, or the newest certificate of the identity is not valid at
    /// `unix`.
    pub fn new(
        config: Config,
        identity: &Identity,
        snapshot: Snapshot,
        seed: [u8; 32],
        now: Instant,
        unix: UnixMillis,
    ) -> Result<Self, StartError> {
        Self::start(StartParams { config, identity: identity.clone(), snapshot, seed, now, unix })
    }

    /// Like [`new`](Self::new), with all arguments in one value.
    pub fn start(start: StartParams) -> Result<Self, StartError> {
        let StartParams { config, identity, mut snapshot, seed, now, unix } = start;
        config.validate()?;
        let config = config.effective();
        let own = cert::verify_client(identity.presented(), unix.as_secs())?;
        if let Some(meta) = snapshot.meta
            && !own.chain.contains(&meta.owner)
        {
            return Err(StartError::ForeignStore { owner: meta.owner, own: own.leaf });
        }
        let diversity = DiversityLimits {
            per_bucket: config.bucket_prefix_limit,
            per_table: config.graph_prefix_limit,
        };
        let claims = Claims::new(&mut snapshot);
        let mut upkeep = Upkeep::default();
        let lost = core::mem::take(&mut snapshot.lost).into_iter();
        for (node, since, contact) in lost.filter(|(node, ..)| !own.chain.contains(node)) {
            upkeep.lost.add(&config.upkeep, node, LostContact { contact, since }, 0);
        }
        let mut graph = NodeGraph::new(own.leaf, config.bucket_limit, config.address_limit)
            .with_diversity(diversity);
        for (node, contact) in
            snapshot.contacts.into_iter().filter(|(node, _)| !own.chain.contains(node))
        {
            graph.restore(node, &contact);
        }
        Ok(Self {
            cx: Cx::new(config, own.chain, seed, now, unix),
            nodes: KnownNodes::new(graph, snapshot.refreshed.into_iter().collect()),
            upkeep,
            graph_writer: GraphWriter::new(snapshot.meta.as_ref()),
            writes: Writes::default(),
            forks: ForkWatch::default(),
            claims,
            signalling: Signalling::default(),
            relay: Relay::default(),
            served: Shares::default(),
            advertised: None,
            connections: Connections::default(),
            rpc: Rpc::default(),
            requests: RequestTable::default(),
            recorder: None,
        })
    }

    /// Like [`start`](Self::start), and records all calls for [`Replay`](crate::Replay). The driver
    /// takes the log with [`take_recording`](Self::take_recording) before it exceeds `limit` bytes.
    pub fn start_recorded(start: StartParams, limit: usize) -> Result<Self, StartError> {
        let recorder = Recorder::new(&start, limit);
        Ok(Self { recorder: Some(recorder), ..Self::start(start)? })
    }

    /// Returns what was recorded since the last call; the caller appends it to the earlier parts.
    /// Returns `None` if this machine is not recorded, or if the log has exceeded its limit and is
    /// lost.
    pub fn take_recording(&mut self) -> Option<Vec<u8>> {
        self.recorder.as_mut().and_then(Recorder::take)
    }

    /// Calls the method of the same name, for replays.
    pub fn call(&mut self, call: RecordedCall, now: Instant) {
        match call {
            RecordedCall::Input(input) => self.handle_input(input, now),
            RecordedCall::Timeout => self.handle_timeout(now),
            RecordedCall::Request(request) => drop(self.request(request, now)),
            RecordedCall::Cancel(id) => self.cancel(id, now),
            RecordedCall::Release(lease) => self.release(lease, now),
            RecordedCall::Disconnect(node) => drop(self.disconnect(node, now)),
            RecordedCall::UnsetNode(node) => drop(self.unset_node(node, now)),
            RecordedCall::AcceptProtocol(protocol) => drop(self.accept_protocol(protocol, now)),
            RecordedCall::RefuseProtocol(protocol) => self.refuse_protocol(&protocol, now),
            RecordedCall::SetRefreshDelay { bucket, delay, lazy } => {
                drop(self.set_refresh_delay(bucket, delay, lazy, now));
            }
            RecordedCall::ResolveClaimApproval { approval, sign } => {
                self.resolve_claim_approval(approval, sign, now);
            }
            RecordedCall::ResetBuckets => drop(self.reset_buckets(now)),
            RecordedCall::Stop => self.stop(now),
        }
    }

    /// Starts an entry point: advances the clock, records the call, and checks whether the phase
    /// allows it. If it does not, returns the error of the phase.
    fn enter(&mut self, now: Instant, entry: Entry<'_>) -> Result<(), RequestError> {
        self.cx.advance(now);
        if let Some(recorder) = &mut self.recorder {
            recorder.call(now, entry.to_call());
        }
        let phase = self.cx.phase();
        if phase.allows_entry(&entry) {
            return Ok(());
        }
        if matches!(entry, Entry::Input(_) | Entry::ResolveClaimApproval { .. }) {
            self.cx.metrics.late_inputs += 1;
        }
        Err(phase.refusal())
    }

    /// Moves every contact into its bucket relative to the local id (specification: resetBuckets).
    /// A key renewal includes this.
    ///
    /// # Errors
    /// The node is not running. Nothing was changed.
    pub fn reset_buckets(&mut self, now: Instant) -> Result<(), RequestError> {
        self.enter(now, Entry::ResetBuckets)?;
        self.rebuild_graph(self.cx.own());
        self.settle();
        Ok(())
    }

    /// Ends a lease. Has no effect if it has ended.
    pub fn release(&mut self, lease: LeaseId, now: Instant) {
        if self.enter(now, Entry::Release(lease)).is_ok() {
            self.connections.release(&mut self.cx, lease);
        }
    }

    /// Closes every connection with a node, by any id that the node proved. Returns the number of
    /// connections. Connections that are already closing do not count, so the number is 0 while the
    /// node stops.
    pub fn disconnect(&mut self, node: NodeId, now: Instant) -> usize {
        if self.enter(now, Entry::Disconnect(node)).is_err() {
            return 0;
        }
        let closed = self.connections.disconnect(&mut self.cx, &node);
        self.settle();
        closed
    }

    /// Removes a node from the graph and from the pending list of its bucket; its connections are
    /// not affected. Returns whether it was in the graph.
    ///
    /// # Errors
    /// The node is not running. Nothing was changed.
    pub fn unset_node(&mut self, node: NodeId, now: Instant) -> Result<bool, RequestError> {
        self.enter(now, Entry::UnsetNode(node))?;
        self.nodes.unproven.remove(&node);
        if let Some(bucket) = self.cx.own().bucket_index(&node) {
            self.nodes.pending.remove(bucket, &node);
        }
        let known = self.remove_from_graph(&node);
        self.refill(&node);
        Ok(known)
    }

    /// Accepts streams of an application protocol from now on. They are passed on in
    /// [`Output::DetachStream`].
    ///
    /// # Errors
    /// The name is not 1 to 64 printable ASCII characters, `Config::protocol_limit` protocols are
    /// accepted already, or the node stops.
    pub fn accept_protocol(&mut self, protocol: String, now: Instant) -> Result<(), RequestError> {
        self.enter(now, Entry::AcceptProtocol(&protocol))?;
        validate::check_protocol(&protocol)?;
        if self.rpc.accept_protocol(&self.cx, protocol) {
            Ok(())
        } else {
            Err(RequestError::TooManyProtocols(self.cx.config.protocol_limit))
        }
    }

    /// Refuses new streams of an application protocol from now on. Open streams are not affected.
    /// Has no effect while the node stops, because it accepts no stream then.
    pub fn refuse_protocol(&mut self, protocol: &str, now: Instant) {
        if self.enter(now, Entry::RefuseProtocol(protocol)).is_ok() {
            self.rpc.refuse_protocol(protocol);
        }
    }

    /// Starts to stop the node. Requests end with [`Failure::Stopped`](crate::Failure::Stopped),
    /// and connections close with code 0. [`Event::Stopped`] is emitted when all connections are
    /// closed, or after `Config::stop_timeout`. A second call has no effect.
    pub fn stop(&mut self, now: Instant) {
        let was = self.cx.phase();
        if self.enter(now, Entry::Stop).is_err() {
            return;
        }
        if was == Phase::Starting {
            // The node has never listened, so its graph is not written.
            self.graph_writer.discard();
        }
        self.cx.set_phase(Phase::Stopping);
        self.cx.timers.set(Timer::Stop, self.cx.now + self.cx.config.stop_timeout);
        self.graph_writer.begin_shutdown();
        self.stop_requests();
        self.claims.stop_asking();
        self.advertise(&[]);
        self.signalling.stop();
        self.connections.stop(&mut self.cx);
        self.write_graph();
        self.settle();
    }

    /// Returns the phase of the node.
    pub fn phase(&self) -> Phase {
        self.cx.phase()
    }
}

/// B. Inputs and timers. These calls do not fail. A fault of a peer is an event and a counter. A
/// late input, or one with an unknown id, is counted and ignored.
impl NodeManager {
    /// Handles an input of the driver.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        if self.enter(now, Entry::Input(&input)).is_err() {
            return;
        }
        let Self { cx, connections, rpc, .. } = self;
        match input.canonical() {
            Input::Listening { addrs } => {
                cx.set_listening(&addrs);
                let first = cx.phase() == Phase::Starting;
                if first {
                    cx.set_phase(Phase::Running);
                    cx.event(Event::Ready { addrs: addrs.clone() });
                }
                self.advertise(&addrs);
                if first {
                    self.limit_times();
                    self.tell_of_doubts();
                    self.watch_forks();
                    self.start_refreshing();
                }
            }
            Input::LocalAddresses { ips } => cx.set_local(&ips),
            Input::WallClock(unix) => {
                cx.set_unix(unix);
                self.limit_times();
            }

            Input::External { addr } => rpc.set_external(cx, addr),
            Input::Connected(connected) => {
                let relayed = self.relayed_path(&connected);
                let (incoming, named) =
                    relayed.unwrap_or_else(|| (self.incoming(&connected), None));
                self.make_room_for(&connected);
                self.connections.connected(&mut self.cx, connected, incoming, named);
            }
            Input::DialFailed { conn, why } => connections.dial_failed(cx, conn, why),
            Input::Disconnected { conn, why } => connections.disconnected(cx, conn, why),
            Input::RemoteAddressChanged { conn, addr } => self.address_changed(conn, addr),
            Input::Suspected { conn } => connections.suspect(cx, conn),
            Input::Heard { conn } => connections.heard(cx, conn),

            Input::StreamOpened { conn, stream } => rpc.stream_opened(cx, conn, stream),
            Input::StreamData { stream, bytes, fin } => rpc.stream_data(cx, stream, bytes, fin),
            Input::StreamWritten { stream, bytes } => rpc.stream_written(cx, stream, bytes),
            Input::StreamReset { stream, code } => rpc.stream_reset(cx, stream, code),
            Input::StreamStopped { stream, code } => rpc.stream_stopped(cx, stream, code),
            Input::OpenFailed { stream } => rpc.open_failed(cx, stream),
            Input::StreamClosed { stream } => {
                if !self.path_ended(stream) && !self.left_stream(stream) {
                    self.cx.metrics.late_inputs += 1;
                }
            }
            Input::CircuitClosed { stream, bytes } => self.circuit_closed(stream, bytes),

            completion @ (Input::Resolved { id, .. }
            | Input::Persisted { id, .. }
            | Input::Signed { id, .. }
            | Input::IdentityReplaced { id, .. }
            | Input::Discovered { id, .. }
            | Input::Loaded { id, .. }) => self.effect_completed(id, completion),
        }
        self.settle();
    }

    /// Fires every timer that is due at `now`, in the order of the times at which they are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.enter(now, Entry::Timeout).is_err() {
            return;
        }
        while let Some(timer) = self.cx.timers.pop_due(self.cx.now) {
            self.cx.metrics.timeouts += 1;
            let Self { cx, connections, rpc, .. } = self;
            match timer {
                Timer::Stop => self.stopped(),
                Timer::Request(id) => self.request_deadline(id),
                Timer::RaceDeadline(id) => connections.race_deadline(cx, id),
                Timer::RaceNext(id) => connections.race_next(cx, id),
                Timer::RaceRelay(id) => connections.race_relay(cx, id),
                Timer::Path(stream) => self.path_due(stream),
                Timer::Upgrade(conn) => self.upgrade_due(conn),
                Timer::Hello(conn) => connections.hello_overdue(cx, conn),
                Timer::Idle(conn) => self.idle(conn),
                Timer::Silent(conn) => connections.silent(cx, conn, rpc.has_application(conn)),
                Timer::Stream(stream) => rpc.timed_out(cx, stream),
                Timer::Stall(id) => self.requests.wake(id),
                Timer::Verify(id) => self.chain_verify(id),
                Timer::Collect(bucket) => self.collect_due(bucket),
                Timer::Refresh(bucket) => self.refresh_due(bucket),
                Timer::Retry => self.retry_due(),
                Timer::Check => self.check_due(),
                Timer::Recheck => self.recheck_due(),
                Timer::Lost => self.lost_due(),
                Timer::Punch(addr) => self.punch_next(addr),
                Timer::ClaimRetry(id) => self.claim_retry(id),
                Timer::ClaimResume(claim) => self.resume(claim),
                Timer::Approval(approval) => self.approval_overdue(approval),
                Timer::ClaimTurn => self.next_turn(),
                Timer::Store => self.write_graph(),
                Timer::Evidence(write) => self.look(write),
            }
            self.settle();
        }
    }

    /// Handles the events of the components until none is left.
    fn settle(&mut self) {
        loop {
            if let Some(event) = self.connections.poll_event() {
                self.on_connect(event);
            } else if let Some(event) = self.rpc.poll_event() {
                self.on_rpc(event);
            } else if let Some(id) = self.requests.next_runnable() {
                self.advance_search(id);
            } else if !self.write_waiting() {
                break;
            }
        }
        if self.cx.phase() == Phase::Stopping
            && self.connections.is_empty()
            && self.graph_writer.is_durable()
            && !self.cx.effects.delay_stop()
            && !self.is_renewing()
        {
            self.stopped();
        }
    }

    fn on_connect(&mut self, event: ConnectEvent) {
        match event {
            ConnectEvent::Greet { conn, .. } if self.cx.phase() != Phase::Running => {
                self.connections.close(&mut self.cx, conn, ConnectionErrorReason::Stopping);
            }
            ConnectEvent::Greet { conn, node, side, dialect } => {
                self.rpc.connection_opened(&mut self.cx, conn, node, side, dialect);
                self.ask_early(conn);
            }
            ConnectEvent::Opened { conn, node, side } => self.connection_opened(conn, node, side),
            ConnectEvent::Suspected { conn, node } => self.repeat_waiting(conn, node),
            ConnectEvent::Heard { conn, node } => {
                let chain = self.connections.chain(conn);
                self.offer_to_searches(node, &chain);
                self.repeat_suspected(node);
                self.resume_with(&chain);
            }
            ConnectEvent::Moved { conn, node } => {
                if let Some((address, data)) = self.connections.address(conn) {
                    self.proven(node, address, data);
                    self.store_external(conn);
                }
            }
            ConnectEvent::Crowded { race } => self.make_room_for_dial(race),
            ConnectEvent::Signal { race, node, relay } => {
                self.signal(SignalPurpose::Dial(race), node, relay);
            }
            ConnectEvent::Relay { race, node, relay } => self.request_circuit(race, node, relay),
            ConnectEvent::Closing { conn, reason } => {
                self.carrier_lost(conn);
                self.rpc.connection_closed(&mut self.cx, conn, &DisconnectReason::Local);
                let code = reason.code() as u64;
                let reason = reason.to_string();
                self.cx.output(Output::CloseConnection { conn, code, reason });
            }
            ConnectEvent::Closed { conn, node, accepted, why, leases } => {
                for lease in leases {
                    self.cx.event(Event::LeaseLost { lease, node });
                }
                self.carrier_lost(conn);
                self.rpc.connection_closed(&mut self.cx, conn, &why);
                self.leave_path(conn);
                if matches!(why, DisconnectReason::Peer { code: code::CONNECTION_NETWORK, .. }) {
                    self.leave_network(&node);
                }
                if accepted {
                    self.connection_over(node, &why);
                    self.cx.event(Event::ConnectionClosed { conn, node, why });
                    self.keep_far();
                }
            }
            ConnectEvent::RaceEnded { node, took, waiters, result } => {
                if let Err(failures) = &result {
                    self.race_failed(node, took, failures);
                }
                for id in waiters {
                    self.race_ended(id, node, result.clone());
                }
            }
        }
    }

    fn on_rpc(&mut self, event: RpcEvent) {
        match event {
            RpcEvent::Hello { conn } => self.connections.accepted(&mut self.cx, conn),
            RpcEvent::OtherNetwork { conn, reason } => self.refuse_network(conn, reason),
            RpcEvent::External { conn, former } => self.external_changed(conn, former),
            RpcEvent::CallEnded { request, conn, stream, result } => {
                self.connections.touch(&mut self.cx, conn);
                if let Ok(CompletedCall { rtt, .. }) = &result {
                    self.connections.note_round_trip(conn, *rtt);
                }
                self.question_answered(conn, &result);
                if self.requests.get(request).is_some() {
                    self.call_ended(request, conn, stream, result);
                } else if self.relay.near.remove(&request) {
                    self.candidates_answered(conn, &result);
                } else {
                    self.signal_answered(stream, &result);
                }
            }
            RpcEvent::Request { stream, conn, request: question } => {
                self.connections.touch(&mut self.cx, conn);
                if let Some(peer) = self.connections.node(conn) {
                    self.received_from(peer);
                }
                self.serve(conn, stream, &question);
            }
            RpcEvent::Withdrawn { stream } => {
                self.network_withdrawn(stream);
                self.circuit_withdrawn(stream);
            }
            RpcEvent::Circuit { request, result } => self.circuit_answered(request, result),
            RpcEvent::Exchange { stream, conn, step } => {
                self.connections.touch(&mut self.cx, conn);
                self.exchange(stream, conn, step);
            }
            RpcEvent::Opened { request, result } => self.stream_opened(request, result),
            RpcEvent::Fault { conn, node, fault, fatal } => {
                let reason = match fault {
                    PeerFault::TooManyRefused => ConnectionErrorReason::TooManyRefused,
                    _ => ConnectionErrorReason::Fault,
                };
                self.cx.event(Event::PeerMisbehaved { conn, node, fault });
                if fatal {
                    self.cx.metrics.connections_faulty += 1;
                    self.connections.close(&mut self.cx, conn, reason);
                }
            }
        }
    }

    /// Handles the idle timer of a connection: closes the connection if nothing uses it.
    fn idle(&mut self, conn: ConnectionId) {
        if self.connections.is_retired(conn) {
            self.connections.close_idle(&mut self.cx, conn);
        } else if self.connections.is_leased(conn) || self.connections.is_kept(conn) {
            self.connections.touch(&mut self.cx, conn);
            self.keep_alive(conn);
        } else if self.rpc.in_use(conn) {
            self.connections.touch(&mut self.cx, conn);
        } else {
            self.connections.close_idle(&mut self.cx, conn);
        }
    }

    fn stopped(&mut self) {
        if self.cx.phase() != Phase::Stopped {
            self.connections.abandon(&mut self.cx);
            while let Some(event) = self.connections.poll_event() {
                self.on_connect(event);
            }
            while let Some(id) = self.requests.find(|_| true) {
                let writing = self.requests.get(id).is_some_and(|open| is_writing(&open.stage));
                let failure = if writing { self.undecided(id) } else { Failure::Stopped };
                self.end(id, Err(failure));
            }
            self.relay.clear();
            self.cx.event(Event::Stopped);
            self.cx.set_phase(Phase::Stopped);
        }
    }
}

/// C. Outputs. The driver drains the outputs until `None` and then reads the timeout.
impl NodeManager {
    /// Returns the next output. Outputs are in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.cx.poll_output()?;
        if let Some(recorder) = &mut self.recorder {
            recorder.output(&output);
        }
        Some(output)
    }

    /// Returns the time at which `handle_timeout` is due if nothing else happens. The time may be
    /// in the past. Returns `None` if there is no timer, which includes a stopped node. The value
    /// may change after any call of a method that takes `now`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.cx.timers.next()
    }
}
