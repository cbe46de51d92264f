//! A whole node without IO: `NodeManager` and its transport in one value.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant as StdInstant;

use pk_host::{HostState, KeyPair, KeyRing, TransportSecret};
use pk_proto::cert::Certificate;
use pk_proto::{
    Config, DisconnectReason, EffectId, Event, Identity, Input, Instant, NodeId, NodeManager,
    Output, Request, RequestError, RequestId, Snapshot, StartError, StartParams, StreamId,
    UnixMillis,
};

use crate::effect::{Effect, Response};
use crate::event::{Opened, TransportEvent};
use crate::queue;
use crate::reasons::StreamError;
use crate::settings::TransportSettings;
use crate::simulation::{Crossing, TlsRandom};
use crate::stream::Read;
use crate::transport::{Datagram, Transmit, Transport, TransportError, TransportSetup};

/// What a node starts from.
#[derive(Debug)]
pub struct NodeSetup {
    /// Settings of the core. `streams_per_connection` and `application_streams` apply to the
    /// transport as well.
    pub config: Config,
    /// Settings of the transport.
    pub transport: TransportSettings,
    /// Certificates that are presented.
    pub identity: Identity,
    /// Key of the newest certificate.
    pub key: KeyPair,
    /// Secret of the transport, the same as in earlier runs.
    pub secret: TransportSecret,
    /// Stored rows of the last run.
    pub snapshot: Snapshot,
    /// Random bytes that no other run was given.
    pub seed: [u8; 32],
    /// Address that the socket listens on.
    pub bound: SocketAddr,
    /// The moment of [`Instant::ORIGIN`], for quinn-proto.
    pub origin: StdInstant,
    /// Present time.
    pub now: Instant,
    /// Present wall time.
    pub unix: UnixMillis,
    /// Recording of the core's inputs, with at most this many bytes between two calls of
    /// [`NodeManager::take_recording`]; `None` records nothing.
    pub record: Option<usize>,
}

impl NodeSetup {
    /// Returns the setup with default settings. `bound` is the address that the socket listens on,
    /// `origin` the moment of [`Instant::ORIGIN`].
    pub fn new(
        host: HostState,
        bound: SocketAddr,
        origin: StdInstant,
        now: Instant,
        unix: UnixMillis,
    ) -> Self {
        let HostState { key, identity, secret, snapshot, seed } = host;
        Self {
            config: Config::default(),
            transport: TransportSettings::default(),
            identity,
            key,
            secret,
            snapshot,
            seed,
            bound,
            origin,
            now,
            unix,
            record: None,
        }
    }
}

/// Why a node cannot be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A setting of the core is outside its range, or the identity is invalid.
    #[error(transparent)]
    Core(#[from] StartError),
    /// A setting of the transport is outside its range, or rustls refuses the identity.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// What a node reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Poll {
    /// Something to do, which ends with [`Node::answer`].
    Effect(Effect),
    /// An event of the core. After [`Event::Stopped`] only datagrams remain to be sent.
    Event(Event),
    /// An application stream, opened by either side.
    Opened(Opened),
    /// An application stream has bytes, or has ended.
    Readable(StreamId),
    /// An application stream accepts bytes again, or was stopped.
    Writable(StreamId),
    /// The finished direction of an application stream has ended: the peer acknowledged all data
    /// and the end, or stopped reading before that.
    Delivered {
        /// Stream.
        stream: StreamId,
        /// [`StreamError::Stopped`] if the peer stopped reading.
        result: Result<(), StreamError>,
    },
    /// The connection of an application stream was lost. What was received can still be read.
    Lost {
        /// Stream.
        stream: StreamId,
        /// Why the connection ended.
        why: DisconnectReason,
    },
}

/// A node of the network, without IO.
///
/// Each call processes everything that follows from it. After each call, poll
/// [`poll`](Self::poll) and [`poll_transmit`](Self::poll_transmit) until `None`; then read
/// [`poll_timeout`](Self::poll_timeout), and call [`handle_timeout`](Self::handle_timeout) at that
/// time.
#[derive(Debug)]
pub struct Node {
    manager: NodeManager,
    transport: Transport,
    keys: KeyRing,
    polls: VecDeque<Poll>,
    /// Inputs and outputs of the core, for a simulator.
    crossings: Option<Vec<Crossing>>,
    now: Instant,
    signatures: u64,
}

impl Node {
    /// Creates a node that listens.
    ///
    /// # Errors
    ///
    /// [`NodeError`].
    pub fn new(setup: NodeSetup) -> Result<Self, NodeError> {
        Self::create(setup, None)
    }

    /// Creates a node for a simulator: its datagrams depend on the setup and on what it receives,
    /// byte by byte, and [`take_crossings`](Self::take_crossings) returns the inputs and outputs of
    /// its core.
    ///
    /// # Errors
    ///
    /// [`NodeError`].
    pub fn simulated(setup: NodeSetup, random: TlsRandom) -> Result<Self, NodeError> {
        Self::create(setup, Some(random))
    }

    fn create(setup: NodeSetup, random: Option<TlsRandom>) -> Result<Self, NodeError> {
        let NodeSetup { config, mut transport, key, secret, snapshot, seed, now, unix, .. } = setup;
        let identity = setup.identity.shortened();
        transport.streams = config.streams_per_connection;
        transport.application_streams = config.application_streams;
        let transport = TransportSetup {
            settings: transport,
            identity: &identity,
            key: &key,
            secret: &secret,
            seed,
            bound: setup.bound,
            origin: setup.origin,
            now,
            unix,
        };
        let transport = match random {
            Some(random) => Transport::simulated(transport, random)?,
            None => Transport::new(transport)?,
        };
        let start = StartParams { config, identity, snapshot, seed, now, unix };
        let manager = match setup.record {
            Some(limit) => NodeManager::start_recorded(start, limit)?,
            None => NodeManager::start(start)?,
        };
        let mut keys = KeyRing::default();
        keys.add(key);
        let crossings = random.map(|_| Vec::new());
        let polls = VecDeque::new();
        let mut node = Self { manager, transport, keys, polls, crossings, now, signatures: 0 };
        let addrs = vec![node.transport.bound()];
        node.input(Input::Listening { addrs });
        node.settle();
        Ok(node)
    }

    // -- the network and the time

    /// Handles one datagram.
    pub fn handle_datagram(&mut self, now: Instant, datagram: Datagram<'_>) {
        self.advance(now);
        self.transport.handle_datagram(self.now, datagram);
        self.settle();
    }

    /// Writes datagrams to `buf`, which it clears: at most `max` of one length.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        max: usize,
        buf: &mut Vec<u8>,
    ) -> Option<Transmit> {
        self.advance(now);
        let transmit = self.transport.poll_transmit(self.now, max, buf);
        self.settle();
        transmit
    }

    /// Returns the time of the next timeout.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [self.manager.poll_timeout(), self.transport.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    /// Handles everything that is due. Pass the datagrams that have arrived first.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        self.transport.handle_timeout(self.now);
        self.settle();
        if self.manager.poll_timeout().is_some_and(|at| at <= self.now) {
            self.manager.handle_timeout(self.now);
            self.settle();
        }
    }

    /// Corrects the wall clock.
    pub fn set_wall_clock(&mut self, now: Instant, unix: UnixMillis) {
        self.advance(now);
        self.transport.set_wall_clock(self.now, unix);
        self.input(Input::WallClock(unix));
        self.settle();
    }

    /// The local addresses changed: connections announce it. `own` are all of them; an empty list
    /// means that they are unknown.
    pub fn local_changed(&mut self, now: Instant, own: &[IpAddr]) {
        self.advance(now);
        self.transport.local_changed(self.now, own);
        self.settle();
    }

    /// Informs the core of the addresses of this machine in its networks, which only nodes in the
    /// same network learn. Call it when they are known, and after a change.
    pub fn set_local_addresses(&mut self, now: Instant, ips: Vec<IpAddr>) {
        self.advance(now);
        self.input(Input::LocalAddresses { ips });
        self.settle();
    }

    /// The socket is bound to another address from now on, from which connections continue. The
    /// core is informed.
    pub fn rebound(&mut self, now: Instant, bound: SocketAddr) {
        self.advance(now);
        self.transport.rebound(self.now, bound);
        let addrs = vec![self.transport.bound()];
        self.input(Input::Listening { addrs });
        self.settle();
    }

    /// A router passes packets on to the socket that it receives at this address, or no longer
    /// does. The core is informed, which sends the address to peers.
    pub fn set_external(&mut self, now: Instant, addr: Option<SocketAddr>) {
        self.advance(now);
        self.input(Input::External { addr });
        self.settle();
    }

    /// The system cannot send to an address: dials to it fail whose first datagram was not sent.
    pub fn unreachable(&mut self, now: Instant, to: SocketAddr, why: &str) {
        self.advance(now);
        self.transport.unreachable(self.now, to, why);
        self.settle();
    }

    // -- requests

    /// Starts a request. One [`Event::Done`] with its id follows.
    ///
    /// # Errors
    ///
    /// The request was refused. Nothing was done.
    pub fn request(&mut self, now: Instant, request: Request) -> Result<RequestId, RequestError> {
        self.update(now, |manager, now| manager.request(request, now))
    }

    /// Calls the core, and processes what follows.
    pub fn update<T>(
        &mut self,
        now: Instant,
        call: impl FnOnce(&mut NodeManager, Instant) -> T,
    ) -> T {
        self.advance(now);
        let result = call(&mut self.manager, self.now);
        self.settle();
        result
    }

    /// Stops the node: ends its requests and closes its connections. [`Event::Stopped`] follows.
    pub fn stop(&mut self, now: Instant) {
        self.update(now, NodeManager::stop);
    }

    /// Adds a private key to sign with, such as the next one before a renewal.
    pub fn add_key(&mut self, key: KeyPair) {
        self.keys.add(key);
    }

    /// Removes a private key, such as that of a failed renewal.
    pub fn remove_key(&mut self, id: &NodeId) {
        self.keys.remove(id);
    }

    /// Completes an effect.
    pub fn answer(&mut self, now: Instant, answer: Response) {
        self.advance(now);
        self.input(answer.into());
        self.settle();
    }

    /// Returns what happened next.
    pub fn poll(&mut self) -> Option<Poll> {
        queue::take(&mut self.polls)
    }

    // -- application streams

    /// Reads at most `max` bytes, without blocking.
    ///
    /// # Errors
    ///
    /// The peer reset the stream, the local node ended it, or its connection was lost.
    pub fn read(
        &mut self,
        now: Instant,
        stream: StreamId,
        max: usize,
    ) -> Result<Read, StreamError> {
        self.advance(now);
        let read = self.transport.read(self.now, stream, max);
        self.settle();
        read
    }

    /// Writes without blocking. Returns the number of accepted bytes; if they are fewer,
    /// [`Poll::Writable`] follows.
    ///
    /// # Errors
    ///
    /// The peer stopped the stream, the local node ended it, or its connection was lost.
    pub fn write(
        &mut self,
        now: Instant,
        stream: StreamId,
        bytes: &[u8],
    ) -> Result<usize, StreamError> {
        self.advance(now);
        let written = self.transport.write(self.now, stream, bytes);
        self.settle();
        written
    }

    /// Ends the sending direction; what was written is delivered.
    pub fn finish(&mut self, now: Instant, stream: StreamId) {
        self.advance(now);
        self.transport.finish(self.now, stream);
        self.settle();
    }

    /// Resets the sending direction.
    pub fn reset(&mut self, now: Instant, stream: StreamId, code: u64) {
        self.advance(now);
        self.transport.reset(self.now, stream, code);
        self.settle();
    }

    /// Stops the receiving direction; unread bytes are dropped.
    pub fn stop_stream(&mut self, now: Instant, stream: StreamId, code: u64) {
        self.advance(now);
        self.transport.stop(self.now, stream, code);
        self.settle();
    }

    // -- getters

    /// Returns the core.
    pub fn manager(&self) -> &NodeManager {
        &self.manager
    }

    /// Returns the transport.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Takes the inputs and outputs of the core since the last call, in order. Empty unless the
    /// node is [`simulated`](Self::simulated).
    pub fn take_crossings(&mut self) -> Vec<Crossing> {
        self.crossings.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Returns the number of signatures that the core requested and the node made.
    pub fn signatures(&self) -> u64 {
        self.signatures
    }

    /// Returns whether the node has stopped and QUIC has forgotten its connections. A process may
    /// end earlier: when the core has stopped and everything was sent.
    pub fn is_over(&self) -> bool {
        self.manager.is_stopped() && self.transport.is_drained()
    }

    // -- the loop

    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Passes an input to the core.
    fn input(&mut self, input: Input) {
        if let Some(crossings) = &mut self.crossings {
            crossings.push(Crossing::Input(input.clone()));
        }
        self.manager.handle_input(input, self.now);
    }

    /// Passes events and outputs between the core and the transport until there are none. The core
    /// receives an input when its outputs were executed.
    fn settle(&mut self) {
        loop {
            while let Some(output) = self.manager.poll_output() {
                if let Some(crossings) = &mut self.crossings {
                    let (output, phase) = (output.clone(), self.manager.phase());
                    crossings.push(Crossing::Output { output, phase });
                }
                if let Some(output) = self.transport.execute(self.now, output) {
                    self.execute(output);
                }
            }
            match self.transport.poll_event() {
                Some(TransportEvent::Input(input)) => self.input(input),
                Some(TransportEvent::Opened(opened)) => self.polls.push_back(Poll::Opened(opened)),
                Some(TransportEvent::Readable(id)) => self.polls.push_back(Poll::Readable(id)),
                Some(TransportEvent::Writable(id)) => self.polls.push_back(Poll::Writable(id)),
                Some(TransportEvent::Delivered { stream, result }) => {
                    self.polls.push_back(Poll::Delivered { stream, result });
                }
                Some(TransportEvent::Lost { stream, why }) => {
                    self.polls.push_back(Poll::Lost { stream, why });
                }
                None => break,
            }
        }
    }

    /// Executes an output that is not for the network.
    fn execute(&mut self, output: Output) {
        let effect = match output {
            Output::Sign { id, key, bytes } if self.keys.get(&key).is_some() => {
                self.signatures += 1;
                let result = self.keys.sign(&key, &bytes);
                self.input(Input::Signed { id, result });
                return;
            }
            Output::ReplaceIdentity { id, identity } => return self.replace(id, &identity),
            Output::Event(event) => {
                if event == Event::Stopped {
                    self.transport.close(self.now);
                }
                self.polls.push_back(Poll::Event(event));
                return;
            }
            Output::Sign { id, key, bytes } => Effect::Sign { id, key, bytes },
            Output::Persist { id, ops, durable } => Effect::Persist { id, ops, durable },
            Output::Load { id, range, max_bytes } => Effect::Load { id, range, max_bytes },
            Output::Resolve { id, name, port } => Effect::Resolve { id, name, port },
            Output::Browse { id, node, deadline } => Effect::Browse { id, node, deadline },
            Output::CancelBrowse { id } => Effect::CancelBrowse { id },
            Output::Advertise { node, port } => Effect::Advertise { node, port },
            // The transport has executed them.
            Output::Dial { .. }
            | Output::CancelDial { .. }
            | Output::CloseConnection { .. }
            | Output::OpenStream { .. }
            | Output::SendStream { .. }
            | Output::ResetStream { .. }
            | Output::StopStream { .. }
            | Output::ReadCredit { .. }
            | Output::DetachStream { .. }
            | Output::AttachCircuit { .. }
            | Output::JoinCircuit { .. }
            | Output::CloseCircuit { .. }
            | Output::ProbePath { .. }
            | Output::Punch { .. } => return,
        };
        self.polls.push_back(Poll::Effect(effect));
    }

    fn replace(&mut self, id: EffectId, identity: &Identity) {
        let result = self.try_replace(identity);
        self.input(Input::IdentityReplaced { id, result });
    }

    fn try_replace(&mut self, identity: &Identity) -> Result<(), String> {
        let newest = identity.chain.first().ok_or("an identity without a certificate")?;
        let newest = Certificate::parse(newest).map_err(|fault| fault.to_string())?.node_id();
        let key = self.keys.get(&newest).ok_or_else(|| format!("no private key of {newest}"))?;
        self.transport.replace_identity(identity, key);
        Ok(())
    }
}
