//! The whole vocabulary between a [`NodeManager`](crate::NodeManager) and its driver, on one screen.
//!
//! The driver reports what the world did as [`Input`]; the machine says what is to be done as [`Output`], in one ordered
//! queue. Everything here is plain data with serde, so that a recording is just the log of it.
//!
//! **Numbers.** [`ConnectionId`] and [`StreamId`]: the core mints even ones, the driver odd ones for what comes in. An
//! [`EffectId`] links an effect with its one answer. Nothing is reused within one machine. An answer to a number that is
//! over (late, cancelled, unknown) is counted and ignored.
//!
//! **Connections.** [`Dial`](Output::Dial) ends with exactly one of [`Connected`](Input::Connected) and
//! [`DialFailed`](Input::DialFailed), also after [`CancelDial`](Output::CancelDial); a connection ends with exactly one
//! [`Disconnected`](Input::Disconnected), also after [`CloseConnection`](Output::CloseConnection). The end of a
//! connection ends its streams; they get no inputs of their own.
//!
//! **Streams are bytes with credit both ways.** The driver reads at most what [`ReadCredit`](Output::ReadCredit) granted,
//! so an unread stream blocks its writer inside QUIC. The core keeps at most `Config::send_window` bytes per stream that
//! [`StreamSent`](Input::StreamSent) has not confirmed, so a slow reader never fills the driver's memory. The end of the
//! peer's direction needs no credit, nor does a reset, which drops what was not read. Our direction ends with its FIN once
//! all its bytes are confirmed, with [`ResetStream`](Output::ResetStream) (also after a FIN that is not confirmed), or with
//! [`StreamStopped`](Input::StreamStopped). A stream is over for the driver when both directions have ended.
//!
//! **A driver takes every output**, in order, without waiting for any peer.

#![allow(missing_docs, reason = "one screen: the sentence of each variant explains its fields")]

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::address::{Hostname, NodeAddress};
use crate::claims::{Claim, ClaimId};
use crate::error::{Failure, PeerFault};
use crate::id::{AskId, ConnectionId, EffectId, LeaseId, NodeId, RequestId, StreamId};
use crate::request::Reply;
use crate::time::{Instant, UnixMillis};

/// What the driver must do next. Exhaustive on purpose: an ignored effect is a bug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    // -- connections
    /// Open a connection to a node that proves one of `expect` by its certificate chain. Give up at `deadline`.
    Dial { conn: ConnectionId, addr: SocketAddr, expect: BTreeSet<NodeId>, deadline: Instant },
    /// End a dial. Its `DialFailed` (or a `Connected` that was already under way) still follows. On `quic` it is under way from
    /// the end of our part of the handshake on.
    CancelDial { conn: ConnectionId },
    /// Close with an application code; the peer sees code and reason. Streams end with it.
    CloseConnection { conn: ConnectionId, code: u64, reason: String },

    // -- streams
    /// Open a bidirectional stream. Bytes may be sent at once; `OpenFailed` if it cannot be opened. The peer sees nothing of
    /// it before something is sent on it or on a later one.
    OpenStream { conn: ConnectionId, stream: StreamId },
    /// Append bytes to a stream, and its end if `fin`. `StreamSent` confirms them when QUIC has taken them.
    SendStream { stream: StreamId, bytes: Bytes, fin: bool },
    /// Abort our direction (RESET_STREAM).
    ResetStream { stream: StreamId, code: u64 },
    /// Ask the peer to abort its direction (STOP_SENDING); nothing more is read.
    StopStream { stream: StreamId, code: u64 },
    /// The driver may read this many bytes more from the stream.
    ReadCredit { stream: StreamId, bytes: u64 },
    /// From here on the stream belongs to the embedder: give it `unread` first, then what the peer sends. Credit that is left
    /// is void; what was read on it before this output was taken is still the core's. Report `StreamClosed` when it is over,
    /// and nothing else of it, except that what the core has sent is still confirmed; until then the connection counts as
    /// used.
    HandOver { conn: ConnectionId, stream: StreamId, node: NodeId, protocol: String, opener: Opener, unread: Bytes },

    // -- effects with an answer
    /// Sign with the private key of `key`, one of our own ids. Answer: `Signed`.
    Sign { id: EffectId, key: NodeId, bytes: Bytes },
    /// Apply all operations or none, durably if `durable`. Transactions are applied in order. Answer: `Persisted`.
    Persist { id: EffectId, ops: Vec<StoreOp>, durable: bool },
    /// Read rows in order of their keys, at most `max_bytes` of keys and values (but at least one row). Answer: `Loaded`.
    Load { id: EffectId, range: StoreRange, max_bytes: u64 },
    /// Resolve a name to addresses. Answer: `Resolved`.
    Resolve { id: EffectId, name: Hostname, port: u16 },
    /// Ask the local network for a node (mDNS) until `deadline`. Answers: any number of `Discovered`; the last has `done`.
    Browse { id: EffectId, node: NodeId, deadline: Instant },
    /// End a browse; its last `Discovered` still follows.
    CancelBrowse { id: EffectId },
    /// Present this identity on every handshake that starts from now on; the driver has its key. Answer: `IdentityReplaced`.
    ReplaceIdentity { id: EffectId, identity: Identity },

    // -- effects without an answer
    /// Send one datagram from the socket of the endpoint. Best effort.
    Punch { addr: SocketAddr, bytes: Bytes },
    /// Tell the local network (mDNS) that this node listens here; `None` takes it back.
    Advertise { node: NodeId, port: Option<u16> },

    /// Tell the embedder.
    Event(Event),
}

/// What the world did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Input {
    // -- the endpoint
    /// The endpoint is bound and accepts connections at these addresses. Sent once after start, and again on a change, which
    /// leaves connections as they are.
    Listening { addrs: Vec<SocketAddr> },
    /// The wall clock reads this now. Sent when it was set or has drifted.
    WallClock(UnixMillis),

    // -- connections
    /// A handshake succeeded and the peer's certificate chain is verified. On dialect `quic` a dialler reports it only
    /// after HANDSHAKE_DONE.
    Connected(Connected),
    /// A dial ended without a connection.
    DialFailed { conn: ConnectionId, why: DialFailure },
    /// A connection is over, whoever ended it.
    Disconnected { conn: ConnectionId, why: DisconnectReason },
    /// The peer's address changed.
    RemoteAddressChanged { conn: ConnectionId, addr: SocketAddr },

    // -- streams
    /// The peer opened a stream. It has no credit yet.
    StreamOpened { conn: ConnectionId, stream: StreamId },
    /// Bytes that credit was granted for; `fin` after the last one.
    StreamData { stream: StreamId, bytes: Bytes, fin: bool },
    /// QUIC has taken this many bytes that were sent.
    StreamSent { stream: StreamId, bytes: u64 },
    /// The peer aborted its direction.
    StreamReset { stream: StreamId, code: u64 },
    /// The peer asks us to stop sending; the driver has answered with a reset. What the peer sends itself still arrives.
    StreamStopped { stream: StreamId, code: u64 },
    /// A stream could not be opened. It is over. Late, if its connection has ended before.
    OpenFailed { stream: StreamId },
    /// A stream that was handed over is over.
    StreamClosed { stream: StreamId },

    // -- answers to effects
    /// Answer to `Sign`. `Err`: the key is unknown or its holder refused.
    Signed { id: EffectId, result: Result<Signature, String> },
    /// Answer to `Persist`. `Err`: nothing of it was applied.
    Persisted { id: EffectId, result: Result<(), String> },
    /// Answer to `Load`: rows in order, and whether the range holds more behind them.
    Loaded { id: EffectId, result: Result<(Vec<StoreRow>, bool), String> },
    /// Answer to `Resolve`. An empty list is a name without addresses.
    Resolved { id: EffectId, result: Result<Vec<SocketAddr>, String> },
    /// Addresses found for a `Browse`, all on the local network; `done` ends it, and nothing follows.
    Discovered { id: EffectId, addrs: Vec<SocketAddr>, done: bool },
    /// Answer to `ReplaceIdentity`. `Err`: the old identity is still presented.
    IdentityReplaced { id: EffectId, result: Result<(), String> },
}

/// What the embedder is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// The node listens and takes requests from the network.
    Ready { addrs: Vec<SocketAddr> },
    /// A request ended. Exactly one for every [`RequestId`] that was returned.
    Done { id: RequestId, result: Result<Reply, Failure> },
    /// A connection was accepted by both sides.
    ConnectionOpened { conn: ConnectionId, node: NodeId, role: Role, address: NodeAddress },
    /// An accepted connection is over.
    ConnectionClosed { conn: ConnectionId, node: NodeId, why: DisconnectReason },
    /// The connection behind a lease is gone; the lease is over.
    LeaseLost { lease: LeaseId, node: NodeId },
    /// A node entered the graph.
    NodeAdded { node: NodeId },
    /// A node left the graph.
    NodeRemoved { node: NodeId },
    /// This node has another key, and another id, from now on; it stays reachable under its old ones.
    IdentityRenewed { old: NodeId, new: NodeId },
    /// The next claims of a chain that was asked for, in its order, each verified in its place; they follow those of the event
    /// before. At most 64 KiB of tokens, or one claim.
    ChainData { id: RequestId, claims: Vec<Claim> },
    /// A peer broke the protocol. What it touched was dropped; `metrics()` counts every one, this tells of it.
    PeerMisbehaved { conn: ConnectionId, node: NodeId, fault: PeerFault },
    /// A claim is in our chain, durably. Of a link, `node` is the other one.
    ClaimAdded { claim: ClaimId, node: Option<NodeId> },
    /// A peer wants a claim signed, and the policy is to ask: `answer_claim` decides. No answer `within` is a refusal.
    ClaimAsked { ask: AskId, node: NodeId, claim: Claim, within: Duration },
    /// Our claim about this node is in our chain; the node may not have its own. What is missing is made up for when it is
    /// next connected. Said when an exchange ends so, and at the start of every life until it is settled.
    ClaimInDoubt { claim: ClaimId, node: NodeId },
    /// A claim that was in doubt is not any more: the node has its own.
    ClaimSettled { claim: ClaimId, node: NodeId },
    /// The machine has stopped. The last output.
    Stopped,
}

/// Everything about a connection whose handshake succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// The dial's number, or an odd one for an incoming connection.
    pub conn: ConnectionId,
    /// Which end of the handshake we are.
    pub role: Role,
    /// The negotiated ALPN.
    pub dialect: Dialect,
    /// The id whose key the peer proved to hold: the newest certificate.
    pub leaf: NodeId,
    /// Every id the peer's certificate chain proves, newest first; `leaf` is its first.
    pub chain: Vec<NodeId>,
    /// Which of the ids that a dial expected was found in the chain. `None` for an incoming connection.
    pub asked: Option<NodeId>,
    /// Where the peer's packets come from.
    pub remote: SocketAddr,
    /// Where ours come from.
    pub local: SocketAddr,
    /// Equal on both ends and unique: the TLS exporter with label `EXPORTER-pk-conn` on `pk/1`, the reference's
    /// connectionId on `quic` (WIRE.md section 2). Picks the primary among several connections.
    pub shared_id: Bytes,
}

/// Which end of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// We opened the connection.
    Dialler,
    /// The peer did.
    Acceptor,
}

/// Which end of a stream that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Opener {
    /// We asked for it: the answer to this request.
    Us(RequestId),
    /// The peer did.
    Peer,
}

/// The protocol spoken on a connection: its ALPN (DESIGN section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Dialect {
    /// `pk/1`.
    Native,
    /// `quic`, Polykey 1.x.
    Polykey,
}

impl Dialect {
    /// The ALPN protocol name on the wire.
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Native => b"pk/1",
            Self::Polykey => b"quic",
        }
    }

    /// The dialect of an ALPN protocol name.
    pub fn from_alpn(alpn: &[u8]) -> Option<Self> {
        [Self::Native, Self::Polykey].into_iter().find(|dialect| dialect.alpn() == alpn)
    }
}

/// Why a dial did not become a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum DialFailure {
    /// No accepted connection before the deadline.
    #[error("timed out")]
    TimedOut,
    /// We ended it ourselves.
    #[error("cancelled")]
    Cancelled,
    /// The peer closed before it accepted us: as an input, during the handshake or on dialect `quic`; on `pk/1` the core
    /// concludes it from a `Disconnected` before the Hello.
    #[error("the peer rejected us with code {code}: {reason}")]
    Rejected { code: u64, reason: String },
    /// The peer's certificate chain does not prove an expected id.
    #[error("certificate: {0}")]
    Certificate(String),
    /// No answer, although a relay had told the node to punch: both NATs are too strict for a direct connection.
    #[error("signalling was accepted, but the dial timed out")]
    TimedOutAfterSignal,
    /// A relay did not signal.
    #[error("the relay there did not signal: {0}")]
    Signal(String),
    /// The host name has no address.
    #[error("cannot resolve the host: {0}")]
    Resolve(String),
    /// Anything else below us: unreachable, TLS, version, no free port.
    #[error("transport: {0}")]
    Transport(String),
    /// The host name has these addresses. Why each of them failed stands beside it.
    #[error("leads to {}", Listed(.0))]
    LeadsTo(Vec<SocketAddr>),
}

/// Addresses, for people.
struct Listed<'a>(&'a [SocketAddr]);

impl core::fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (n, addr) in self.0.iter().enumerate() {
            write!(f, "{}{addr}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// We closed it.
    #[error("closed by us")]
    Local,
    /// The peer closed it with an application code.
    #[error("closed by the peer with code {code}: {reason}")]
    Peer { code: u64, reason: String },
    /// Nothing was heard for the idle timeout of the transport.
    #[error("timed out")]
    TimedOut,
    /// The peer lost its state (QUIC stateless reset).
    #[error("reset by the peer")]
    Reset,
    /// A protocol violation or an alert below us.
    #[error("transport: {0}")]
    Transport(String),
}

/// What a node presents in its handshakes. The keys stay with the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// DER certificates, newest first, back to the first key this node ever had (WIRE.md section 3.3).
    pub chain: Vec<Bytes>,
}

/// The 64 bytes of an Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl core::fmt::Debug for Signature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?;
        <[u8; 64]>::try_from(&bytes[..]).map(Self).map_err(|_| serde::de::Error::custom("a signature has 64 bytes"))
    }
}

/// The tables of the store. Keys and values are the core's own, versioned encodings; the driver never looks inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Table {
    /// Format version, whose store this is, active key generation, active space. Part of the snapshot.
    Meta,
    /// The contacts of one of the two spaces (specification: NodeGraphSpace). Part of the snapshot.
    Contacts(NodeGraphSpace),
    /// When each bucket was last refreshed. Part of the snapshot.
    Refresh,
    /// Id and digest of the newest claim. Part of the snapshot.
    ClaimHead,
    /// Claim exchanges that are not finished. Part of the snapshot.
    Exchanges,
    /// Who may ask us to sign claims. Part of the snapshot.
    AllowList,
    /// Signed claims by id; loaded when asked for.
    Claims,
    /// Which claim of ours answered which claim of a peer; loaded when asked for.
    Answered,
    /// Links between nodes; loaded when asked for.
    Gestalt,
}

/// One of the two halves of the stored graph, so that a renewal can fill one while the other stays whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum NodeGraphSpace {
    /// The first.
    #[default]
    A,
    /// The other.
    B,
}

/// One change to the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreOp {
    /// Insert or replace a row.
    Put { table: Table, key: Bytes, value: Bytes },
    /// Remove a row; no error if there is none.
    Delete { table: Table, key: Bytes },
    /// Remove every row of a table.
    Clear { table: Table },
}

/// Rows of one table with keys in `from..to`, ascending or descending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRange {
    /// The table.
    pub table: Table,
    /// The first key, included.
    pub from: Bytes,
    /// The end, excluded; `None` is the end of the table.
    pub to: Option<Bytes>,
    /// From the last key to the first.
    pub descending: bool,
}

/// A row of a table: key and value.
pub type StoreRow = (Bytes, Bytes);
