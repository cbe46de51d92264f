//! A scripted peer: a test determines its outputs, and it stores its inputs.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;
use pk_proto::{
    Connected, ConnectionId, EffectId, Input, Instant, NodeId, NodeManager, Output, StreamId,
};

use crate::machine::misbehaving::MisbehavingPeer;
use crate::machine::{GraphView, Machine, StoredView};

/// A machine controlled by a test: for peers that misbehave, and for tests of the simulator itself.
#[derive(Debug, Default)]
pub struct ScriptedPeer {
    /// Inputs with their times.
    pub heard: Vec<(Instant, Input)>,
    /// Time of its timer; firing clears it.
    pub timer: Option<Instant>,
    outputs: VecDeque<Output>,
    connections: u64,
    streams: u64,
    effects: u64,
}

impl ScriptedPeer {
    /// Queues an output.
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

    /// Sends bytes, with the end if `fin`.
    pub fn send(&mut self, stream: StreamId, bytes: impl Into<Bytes>, fin: bool) {
        self.say(Output::SendStream { stream, bytes: bytes.into(), fin });
    }

    /// Grants credit.
    pub fn grant(&mut self, stream: StreamId, bytes: u64) {
        self.say(Output::ReadCredit { stream, bytes });
    }

    /// Returns the next effect id.
    pub fn effect(&mut self) -> EffectId {
        self.effects += 1;
        EffectId(self.effects - 1)
    }

    /// Returns all inputs, without the times.
    pub fn inputs(&self) -> impl DoubleEndedIterator<Item = &Input> {
        self.heard.iter().map(|(_, input)| input)
    }

    /// Returns the newest connection.
    pub fn connected(&self) -> Option<&Connected> {
        self.inputs().rev().find_map(|input| match input {
            Input::Connected(connected) => Some(connected),
            _ => None,
        })
    }

    /// Returns the newest stream that a peer opened.
    pub fn opened(&self) -> Option<StreamId> {
        self.inputs().rev().find_map(|input| match input {
            Input::StreamOpened { stream, .. } => Some(*stream),
            _ => None,
        })
    }

    /// Returns what was read from a stream, and whether it has ended.
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

    /// Returns the number of bytes of a stream that the transport has accepted.
    pub fn sent(&self, of: StreamId) -> u64 {
        let sent = self.inputs().map(|input| match input {
            Input::StreamWritten { stream, bytes } if *stream == of => *bytes,
            _ => 0,
        });
        sent.sum()
    }
}

impl Machine for ScriptedPeer {
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

/// Machine of a host of a [`Cluster`](crate::Cluster).
#[derive(Debug)]
pub enum Actor {
    /// A real node.
    Node(Box<NodeManager>),
    /// A peer controlled by the test.
    ScriptedPeer(ScriptedPeer),
    /// A peer that misbehaves.
    Misbehaving(Box<MisbehavingPeer>),
}

impl Actor {
    fn machine(&self) -> &dyn Machine {
        match self {
            Self::Node(node) => &**node,
            Self::ScriptedPeer(scripted_peer) => scripted_peer,
            Self::Misbehaving(peer) => &**peer,
        }
    }

    fn machine_mut(&mut self) -> &mut dyn Machine {
        match self {
            Self::Node(node) => &mut **node,
            Self::ScriptedPeer(scripted_peer) => scripted_peer,
            Self::Misbehaving(peer) => &mut **peer,
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

    fn phase(&self) -> Option<pk_proto::Phase> {
        self.machine().phase()
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
