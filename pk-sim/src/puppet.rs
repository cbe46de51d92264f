//! A machine without a will: it says what a test makes it say, and remembers what it hears.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;
use pk_proto::{Connected, ConnectionId, EffectId, Input, Instant, NodeId, NodeManager, Output, StreamId};

use crate::machine::{GraphView, Machine, StoredView};

/// A machine that a test moves: for peers that misbehave, and for tests of the simulator itself.
#[derive(Debug, Default)]
pub struct Puppet {
    /// What it was told, and when.
    pub heard: Vec<(Instant, Input)>,
    /// When its timer is due; firing clears it.
    pub timer: Option<Instant>,
    outputs: VecDeque<Output>,
    connections: u64,
    streams: u64,
    effects: u64,
}

impl Puppet {
    /// Says this next.
    pub fn say(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Dials one node.
    pub fn dial(&mut self, addr: SocketAddr, expect: NodeId, deadline: Instant) -> ConnectionId {
        self.connections += 2;
        let conn = ConnectionId(self.connections - 2);
        self.say(Output::Dial { conn, addr, expect: BTreeSet::from([expect]), deadline });
        conn
    }

    /// Opens a stream.
    pub fn open(&mut self, conn: ConnectionId) -> StreamId {
        self.streams += 2;
        let stream = StreamId(self.streams - 2);
        self.say(Output::OpenStream { conn, stream });
        stream
    }

    /// Sends bytes, and the end if `fin`.
    pub fn send(&mut self, stream: StreamId, bytes: impl Into<Bytes>, fin: bool) {
        self.say(Output::SendStream { stream, bytes: bytes.into(), fin });
    }

    /// Grants credit.
    pub fn grant(&mut self, stream: StreamId, bytes: u64) {
        self.say(Output::ReadCredit { stream, bytes });
    }

    /// The next effect's number.
    pub fn effect(&mut self) -> EffectId {
        self.effects += 1;
        EffectId(self.effects - 1)
    }

    /// Everything it was told, without the times.
    pub fn inputs(&self) -> impl DoubleEndedIterator<Item = &Input> {
        self.heard.iter().map(|(_, input)| input)
    }

    /// The newest connection it was told of.
    pub fn connected(&self) -> Option<&Connected> {
        self.inputs().rev().find_map(|input| match input {
            Input::Connected(connected) => Some(connected),
            _ => None,
        })
    }

    /// The newest stream that a peer opened.
    pub fn opened(&self) -> Option<StreamId> {
        self.inputs().rev().find_map(|input| match input {
            Input::StreamOpened { stream, .. } => Some(*stream),
            _ => None,
        })
    }

    /// What was read from a stream, and whether it has ended.
    pub fn read(&self, of: StreamId) -> (Vec<u8>, bool) {
        let mut read = (Vec::new(), false);
        for input in self.inputs() {
            if let Input::StreamData { stream, bytes, fin } = input
                && *stream == of
            {
                read.0.extend_from_slice(bytes);
                read.1 |= fin;
            }
        }
        read
    }

    /// Bytes of a stream that the transport has taken.
    pub fn sent(&self, of: StreamId) -> u64 {
        let sent = self.inputs().map(|input| match input {
            Input::StreamSent { stream, bytes } if *stream == of => *bytes,
            _ => 0,
        });
        sent.sum()
    }
}

impl Machine for Puppet {
    fn handle_input(&mut self, input: Input, now: Instant) {
        self.heard.push((now, input));
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.timer = self.timer.filter(|due| *due > now);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.timer
    }
}

/// What runs on a host of a [`Cluster`](crate::Cluster).
#[derive(Debug)]
pub enum Actor {
    /// A real node.
    Node(Box<NodeManager>),
    /// A peer in the hands of the test.
    Puppet(Puppet),
}

impl Actor {
    fn machine(&self) -> &dyn Machine {
        match self {
            Self::Node(node) => &**node,
            Self::Puppet(puppet) => puppet,
        }
    }

    fn machine_mut(&mut self) -> &mut dyn Machine {
        match self {
            Self::Node(node) => &mut **node,
            Self::Puppet(puppet) => puppet,
        }
    }
}

impl Machine for Actor {
    fn handle_input(&mut self, input: Input, now: Instant) {
        self.machine_mut().handle_input(input, now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.machine_mut().handle_timeout(now);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.machine_mut().poll_output()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.machine().poll_timeout()
    }

    fn gauges(&self) -> Option<pk_proto::Metrics> {
        self.machine().gauges()
    }

    fn graph_view(&self, probe: NodeId, limit: usize) -> Option<GraphView<'_>> {
        self.machine().graph_view(probe, limit)
    }

    fn stored_view(&self) -> Option<StoredView<'_>> {
        self.machine().stored_view()
    }
}
