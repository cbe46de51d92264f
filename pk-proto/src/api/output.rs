//! Outputs: what the driver must do.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::event::Event;
use super::transport::{Identity, Opener};
use crate::store::table::{StoreOp, StoreRange};
use crate::types::address::Hostname;
use crate::types::id::{ConnectionId, EffectId, NodeId, StreamId};
use crate::types::time::Instant;

/// What a circuit may carry, in both directions together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitLimits {
    /// Node that has requested the circuit.
    pub owner: NodeId,
    /// Bytes per second of all circuits of the owner; datagrams beyond it are dropped.
    pub owner_rate: u64,
    /// Bytes per second of all circuits.
    pub rate: u64,
    /// Bytes after which the circuit ends.
    pub volume: u64,
    /// Time without a datagram after which it ends.
    pub idle_timeout: Duration,
}

/// What the driver must do next. Exhaustive on purpose: an ignored output is a bug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    // -- connections
    /// Open a connection to a node whose certificate chain proves an expected id. Ends with exactly
    /// one of `Connected` and `DialFailed`.
    Dial {
        /// Id of the new connection, even.
        conn: ConnectionId,
        /// Address to dial.
        #[serde(with = "crate::types::sockets::one")]
        addr: SocketAddr,
        /// Expected ids, at least one.
        expect: BTreeSet<NodeId>,
        /// Time at which the dial fails with `TimedOut`.
        deadline: Instant,
    },
    /// Cancel a dial. Exactly one of `DialFailed` and `Connected` still follows; on `quic` it is
    /// `Connected` if the local part of the handshake is already complete.
    CancelDial {
        /// Id of the dial.
        conn: ConnectionId,
    },
    /// Close a connection. Its streams end. `Disconnected` follows.
    CloseConnection {
        /// Id of the connection.
        conn: ConnectionId,
        /// Application error code for the peer.
        code: u64,
        /// Reason for the peer, UTF-8.
        reason: String,
    },

    // -- streams
    /// Open a bidirectional stream. Bytes may be sent at once; `OpenFailed` follows if it cannot be
    /// opened. The peer does not see the stream before something is sent on it or on a later one.
    OpenStream {
        /// Connection.
        conn: ConnectionId,
        /// Id of the new stream, even.
        stream: StreamId,
    },
    /// Send bytes on a stream. `StreamWritten` confirms them when QUIC has accepted them.
    SendStream {
        /// Stream.
        stream: StreamId,
        /// Bytes to append; may be empty.
        bytes: Bytes,
        /// Whether the sending direction ends after them.
        fin: bool,
    },
    /// Reset the sending direction (RESET_STREAM).
    ResetStream {
        /// Stream.
        stream: StreamId,
        /// Application error code.
        code: u64,
    },
    /// Ask the peer to reset its direction (STOP_SENDING); nothing more is read.
    StopStream {
        /// Stream.
        stream: StreamId,
        /// Application error code.
        code: u64,
    },
    /// Allow the driver to read more bytes from a stream.
    ReadCredit {
        /// Stream.
        stream: StreamId,
        /// Number of additional bytes.
        bytes: u64,
    },
    /// Hand a stream over to the embedder: `unread` first, then what the peer sends. Unused read
    /// credit is revoked; bytes that were read before this output are still delivered to the core.
    /// After this output report only `StreamWritten` for bytes of the core, and finally
    /// `StreamClosed`. The connection counts as in use until then.
    DetachStream {
        /// Connection of the stream.
        conn: ConnectionId,
        /// Stream.
        stream: StreamId,
        /// Peer.
        node: NodeId,
        /// Application protocol.
        protocol: String,
        /// Side that opened the stream.
        opener: Opener,
        /// Bytes that the core has read and not used.
        unread: Bytes,
    },

    // -- relayed paths
    /// Use a stream as a path of datagrams to another node: the address is that of its other end
    /// from now on, in `Dial` and `Connected`. `StreamClosed` follows when the stream has ended,
    /// unless its connection has ended before.
    AttachCircuit {
        /// Stream, on which both ends have sent everything that belongs to the core.
        stream: StreamId,
        /// Address of the path ([`is_relayed_address`](crate::is_relayed_address)).
        #[serde(with = "crate::types::sockets::one")]
        addr: SocketAddr,
    },
    /// Forward the datagrams of two streams to each other. `CircuitClosed` follows when one of
    /// them, or its connection, has ended; the driver then ends the other.
    JoinCircuit {
        /// Stream of the node that has requested the circuit.
        stream: StreamId,
        /// Stream of the other end.
        other: StreamId,
        /// What the circuit may carry.
        limits: CircuitLimits,
    },
    /// End a stream that was handed over to carry datagrams, and is a path or nothing yet.
    /// `StreamClosed` follows, unless its connection has ended before.
    CloseCircuit {
        /// Stream.
        stream: StreamId,
    },
    /// Try to move a connection that this node has dialed through a relay to a direct path: send it
    /// one datagram from here to an address of its peer. `RemoteAddressChanged` follows if both
    /// ends reach each other.
    ProbePath {
        /// Connection.
        conn: ConnectionId,
        /// Address of its peer.
        #[serde(with = "crate::types::sockets::one")]
        addr: SocketAddr,
    },

    // -- effects with a completion
    /// Sign with a private key. Completion: `Signed`.
    Sign {
        /// Id of the effect.
        id: EffectId,
        /// Node id of the key, one of the local ids.
        key: NodeId,
        /// Bytes to sign.
        bytes: Bytes,
    },
    /// Apply a transaction, completely or not at all. Transactions are applied in order, and reads
    /// show earlier ones. Completion: `Persisted`.
    Persist {
        /// Id of the effect.
        id: EffectId,
        /// Operations, in order.
        ops: Vec<StoreOp>,
        /// Whether the transaction must survive a power failure once it is completed.
        durable: bool,
    },
    /// Read rows in order of their keys. Completion: `Loaded`.
    Load {
        /// Id of the effect.
        id: EffectId,
        /// Rows to read.
        range: StoreRange,
        /// Maximum size of keys and values, in bytes. At least one row is returned.
        max_bytes: u64,
    },
    /// Resolve a host name. Completion: `Resolved`.
    Resolve {
        /// Id of the effect.
        id: EffectId,
        /// Host name.
        name: Hostname,
        /// UDP port of the resulting addresses.
        port: u16,
    },
    /// Search for a node on the local network (mDNS). Completions: any number of `Discovered`; the
    /// last one has `done`.
    Browse {
        /// Id of the effect.
        id: EffectId,
        /// Node to search for.
        node: NodeId,
        /// Time at which the search ends.
        deadline: Instant,
    },
    /// End a browse; its last `Discovered` still follows.
    CancelBrowse {
        /// Id of the browse.
        id: EffectId,
    },
    /// Present another identity in every handshake that starts from now on. Completion:
    /// `IdentityReplaced`.
    ReplaceIdentity {
        /// Id of the effect.
        id: EffectId,
        /// New identity, whose key the driver has.
        identity: Identity,
    },

    // -- effects without a completion
    /// Send one datagram from the socket of the endpoint, on a best-effort basis.
    Punch {
        /// Destination.
        #[serde(with = "crate::types::sockets::one")]
        addr: SocketAddr,
        /// Payload.
        bytes: Bytes,
    },
    /// Advertise this node on the local network (mDNS).
    Advertise {
        /// Id of this node.
        node: NodeId,
        /// UDP port; `None` withdraws the advertisement.
        port: Option<u16>,
    },

    /// Deliver an event to the embedder.
    Event(Event),
}
