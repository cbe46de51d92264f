//! Helpers of the toys: ids, timers, and conversations of framed messages on streams.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;
use pk_proto::{ConnectionId, EffectId, Event, Instant, NodeId, Output, Signature, StreamId};
use pk_sim::{Host, Key, genesis};
use serde::{Deserialize, Serialize};

/// Bytes of a message's length.
const LENGTH: usize = 2;

/// All messages between toys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    // -- search
    /// A message of a newer version.
    Novelty,
    /// Asks for the address of a node.
    Where(NodeId),
    /// The address, if it is known.
    Known(bool),
    /// Asks a relay to announce a dial: target, nonce, the source's signature of both.
    Signal(NodeId, u64, Sig),
    /// The address of the target.
    At(SocketAddr),
    /// Announces a dial to the target: the source and its address, its nonce and signature, and the
    /// relay's signature of all that.
    Relay(NodeId, SocketAddr, u64, Sig, Sig),

    // -- claims
    /// A claim that its issuer has signed.
    Half(Claim, Sig),
    /// The subject's signature of that, and its own claim with its signature.
    Full(Sig, Claim, Sig),
    /// The signature of the subject's claim.
    Last(Sig),

    // -- renewal
    /// The name of an application protocol: the following bytes belong to the application.
    Protocol(String),
}

/// A claim of a link between two nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub jti: u64,
    pub iat: u64,
    pub issuer: NodeId,
    pub subject: NodeId,
    pub previous: Option<u64>,
}

/// A signature of the toys.
pub type Sig = Signature;

/// Numbers, timers and outputs of a toy machine.
#[derive(Debug, Default)]
pub struct Kit {
    pub now: Instant,
    outputs: VecDeque<Output>,
    timers: BTreeMap<&'static str, Instant>,
    connections: u64,
    streams: u64,
    effects: u64,
    conversations: BTreeMap<StreamId, Conversation>,
}

/// A stream of messages: each with its length in two bytes before it.
#[derive(Debug)]
struct Conversation {
    conn: ConnectionId,
    received: Vec<u8>,
    /// Granted and not used.
    credit: usize,
    /// The peer has ended its direction.
    ended: bool,
}

impl Kit {
    pub fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub fn event(&mut self, event: Event) {
        self.output(Output::Event(event));
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // -- timers

    pub fn set(&mut self, timer: &'static str, at: Instant) {
        self.timers.insert(timer, at);
    }

    pub fn clear(&mut self, timer: &'static str) {
        self.timers.remove(timer);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.values().min().copied()
    }

    pub fn pop_due(&mut self, now: Instant) -> Option<&'static str> {
        let (timer, _) = self.timers.iter().find(|(_, at)| **at <= now)?;
        let timer = *timer;
        self.timers.remove(timer);
        Some(timer)
    }

    // -- numbers

    pub fn effect(&mut self) -> EffectId {
        self.effects += 1;
        EffectId(self.effects - 1)
    }

    pub fn sign(&mut self, key: NodeId, message: &impl Serialize) -> EffectId {
        let id = self.effect();
        self.output(Output::Sign { id, key, bytes: bytes(message) });
        id
    }

    pub fn dial(&mut self, addr: SocketAddr, expect: NodeId, deadline: Instant) -> ConnectionId {
        self.connections += 2;
        let conn = ConnectionId(self.connections - 2);
        self.output(Output::Dial { conn, addr, expect: [expect].into(), deadline });
        conn
    }

    // -- conversations

    /// Opens a stream on which nothing is sent yet, so that the peer does not see it.
    pub fn open_silent(&mut self, conn: ConnectionId) -> StreamId {
        self.streams += 2;
        let stream = StreamId(self.streams - 2);
        self.output(Output::OpenStream { conn, stream });
        self.opened(conn, stream);
        stream
    }

    pub fn open(&mut self, conn: ConnectionId, message: &Message, fin: bool) -> StreamId {
        let stream = self.open_silent(conn);
        self.send(stream, message, fin);
        stream
    }

    /// The peer or the local node opened a stream.
    pub fn opened(&mut self, conn: ConnectionId, stream: StreamId) {
        self.conversations
            .insert(stream, Conversation { conn, received: Vec::new(), credit: 0, ended: false });
        self.grant(stream);
    }

    pub fn send(&mut self, stream: StreamId, message: &Message, fin: bool) {
        let message = bytes(message);
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        self.output(Output::SendStream {
            stream,
            bytes: [&length[..], &message].concat().into(),
            fin,
        });
    }

    pub fn finish(&mut self, stream: StreamId) {
        self.output(Output::SendStream { stream, bytes: Bytes::new(), fin: true });
    }

    /// Aborts both directions.
    pub fn abort(&mut self, stream: StreamId, code: u64) {
        self.output(Output::StopStream { stream, code });
        self.output(Output::ResetStream { stream, code });
        self.conversations.remove(&stream);
    }

    /// Bytes of a conversation: the messages that are complete with them.
    pub fn received(&mut self, stream: StreamId, bytes: &[u8], fin: bool) -> Vec<Message> {
        let Some(conversation) = self.conversations.get_mut(&stream) else { return Vec::new() };
        conversation.received.extend_from_slice(bytes);
        conversation.credit -= bytes.len();
        conversation.ended |= fin;
        let mut messages = Vec::new();
        while let Some((length, rest)) = conversation.received.split_first_chunk::<LENGTH>() {
            let length = u16::from_be_bytes(*length).into();
            let Some(message) = rest.get(..length) else { break };
            messages.push(postcard::from_bytes(message).unwrap());
            conversation.received.drain(..LENGTH + length);
        }
        if messages.is_empty() {
            self.grant(stream);
        }
        messages
    }

    /// Room for the length of the next message, or for the rest of a message; no more, because
    /// bytes beyond a message after which the stream is detached would be lost.
    pub fn grant(&mut self, stream: StreamId) {
        let Some(conversation) = self.conversations.get_mut(&stream) else { return };
        let wanted = match conversation.received.split_first_chunk::<LENGTH>() {
            None => LENGTH,
            Some((length, _)) => LENGTH + usize::from(u16::from_be_bytes(*length)),
        };
        let missing = wanted - conversation.received.len() - conversation.credit;
        if missing > 0 && !conversation.ended {
            conversation.credit += missing;
            self.output(Output::ReadCredit { stream, bytes: missing as u64 });
        }
    }

    /// The connection of a conversation.
    pub fn conn(&self, stream: StreamId) -> Option<ConnectionId> {
        self.conversations.get(&stream).map(|conversation| conversation.conn)
    }

    /// A stream no longer belongs to an exchange. Returns the received bytes that were not decoded.
    pub fn forget(&mut self, stream: StreamId) -> Bytes {
        self.conversations
            .remove(&stream)
            .map(|conversation| conversation.received.into())
            .unwrap_or_default()
    }

    /// A connection and its streams have ended.
    pub fn forget_connection(&mut self, conn: ConnectionId) {
        self.conversations.retain(|_, conversation| conversation.conn != conn);
    }
}

/// The encoding that is signed, stored and sent.
pub fn bytes(message: &impl Serialize) -> Bytes {
    postcard::to_allocvec(message).unwrap().into()
}

/// Whether a node signed a message.
pub fn signed(by: &NodeId, message: &impl Serialize, signature: &Sig) -> bool {
    pk_proto::verify(by, &bytes(message), &signature.0).is_ok()
}

/// The `index`-th host of a walk, in a network of its own.
pub fn host(index: u64) -> Host {
    let key = Key::numbered(42, index);
    let identity = genesis(&key, pk_proto::UnixMillis(1_767_000_000_000));
    Host::new(vec![SocketAddr::from(([10, 0, index as u8, 1], 1314))], key, identity)
}

pub fn id(index: u64) -> NodeId {
    Key::numbered(42, index).id()
}
