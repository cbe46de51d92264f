//! Inputs: what the driver reports.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::transport::{Connected, DialFailure, DisconnectReason};
use crate::store::table::{StoreRow, WriteFailure};
use crate::types::id::{ConnectionId, EffectId, StreamId};
use crate::types::signature::Signature;
use crate::types::sockets::canonical;
use crate::types::time::UnixMillis;

/// What happened outside of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[non_exhaustive]
pub enum Input {
    // -- the endpoint
    /// The endpoint is bound and accepts connections. Sent once after the start, and again after a
    /// change of the addresses, which does not affect connections.
    Listening {
        /// Addresses that the endpoint listens on.
        #[serde(with = "crate::types::sockets::many")]
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::sockets))]
        addrs: Vec<SocketAddr>,
    },
    /// Addresses of this machine in its networks, without that of the loopback. Sent when they are
    /// known, and after a change. Only nodes that a relay sees in the same network learn them.
    LocalAddresses {
        /// Addresses; at most 64 are used.
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::ips))]
        ips: Vec<IpAddr>,
    },
    /// Present time of the wall clock. Sent after it was set or has drifted.
    WallClock(UnixMillis),

    // -- connections
    /// A handshake succeeded and the peer's certificate chain is verified. On dialect `quic` a
    /// dialer reports it only after HANDSHAKE_DONE.
    Connected(Connected),
    /// A dial failed.
    DialFailed {
        /// Id of the dial.
        conn: ConnectionId,
        /// Reason.
        why: DialFailure,
    },
    /// A connection ended, whichever end closed it.
    Disconnected {
        /// Id of the connection.
        conn: ConnectionId,
        /// Reason.
        why: DisconnectReason,
    },
    /// Packets that require an acknowledgement were sent on a connection, and nothing was received
    /// for several round trips. The connection is *suspected* until `Heard` or `Disconnected`.
    Suspected {
        /// Id of the connection.
        conn: ConnectionId,
    },
    /// Something was received on a suspected connection, which is no longer suspected.
    Heard {
        /// Id of the connection.
        conn: ConnectionId,
    },
    /// The peer's address changed.
    RemoteAddressChanged {
        /// Id of the connection.
        conn: ConnectionId,
        /// New address of the peer.
        #[serde(with = "crate::types::sockets::one")]
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::socket))]
        addr: SocketAddr,
    },

    // -- streams
    /// The peer opened a stream. It has no credit yet.
    StreamOpened {
        /// Connection.
        conn: ConnectionId,
        /// Id of the stream, odd.
        stream: StreamId,
    },
    /// Bytes were received, within the granted credit.
    StreamData {
        /// Stream.
        stream: StreamId,
        /// Bytes; empty only with `fin`.
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::bytes))]
        bytes: Bytes,
        /// Whether the peer's direction ends after them.
        fin: bool,
    },
    /// QUIC has accepted bytes that were sent. They need not be acknowledged by the peer.
    StreamWritten {
        /// Stream.
        stream: StreamId,
        /// Number of bytes.
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::number))]
        bytes: u64,
    },
    /// The peer reset its direction.
    StreamReset {
        /// Stream.
        stream: StreamId,
        /// Application error code.
        code: u64,
    },
    /// The peer asked the local node to stop sending; the driver has answered with a reset. Data of
    /// the peer still arrives.
    StreamStopped {
        /// Stream.
        stream: StreamId,
        /// Application error code.
        code: u64,
    },
    /// Opening a stream failed; the id is no longer valid. Ignored if the connection has ended
    /// before.
    OpenFailed {
        /// Stream.
        stream: StreamId,
    },
    /// A stream that was handed over ended.
    StreamClosed {
        /// Stream.
        stream: StreamId,
    },

    /// A stream of a circuit that this node forwards ended, and with it the circuit.
    CircuitClosed {
        /// Stream of the node that has requested the circuit.
        stream: StreamId,
        /// Bytes that the circuit has carried, in both directions together.
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::number))]
        bytes: u64,
    },

    // -- completions of effects
    /// Completion of `Sign`.
    Signed {
        /// Id of the effect.
        id: EffectId,
        /// Signature. `Err` if the key is unknown or its holder refused.
        result: Result<Signature, String>,
    },
    /// Completion of `Persist`.
    Persisted {
        /// Id of the effect.
        id: EffectId,
        /// Outcome of the transaction.
        result: Result<(), WriteFailure>,
    },
    /// Completion of `Load`.
    Loaded {
        /// Id of the effect.
        id: EffectId,
        /// Rows in order, and whether the range contains more after them.
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::rows))]
        result: Result<(Vec<StoreRow>, bool), String>,
    },
    /// Completion of `Resolve`.
    Resolved {
        /// Id of the effect.
        id: EffectId,
        /// Addresses; empty for a name without addresses.
        #[serde(with = "crate::types::sockets::answer")]
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::resolved))]
        result: Result<Vec<SocketAddr>, String>,
    },
    /// Completion of `Browse`, possibly one of several.
    Discovered {
        /// Id of the effect.
        id: EffectId,
        /// Addresses of the node on the local network.
        #[serde(with = "crate::types::sockets::many")]
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::sockets))]
        addrs: Vec<SocketAddr>,
        /// Whether this is the last completion of the browse.
        done: bool,
    },
    /// Completion of `ReplaceIdentity`.
    IdentityReplaced {
        /// Id of the effect.
        id: EffectId,
        /// `Err` if the previous identity is still presented.
        result: Result<(), String>,
    },

    // -- the endpoint, later additions
    /// A router passes packets on to the endpoint that it receives at this address, or no longer
    /// does. Peers on `pk/1` are sent the address, or that there is none any longer.
    External {
        /// External address, globally routable. `None`: there is none any longer.
        #[serde(with = "crate::types::sockets::maybe")]
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::maybe_socket))]
        addr: Option<SocketAddr>,
    },
}

impl Input {
    /// Returns the input with its addresses in canonical form, in which the core compares them.
    pub(crate) fn canonical(mut self) -> Self {
        let normalize = |addr: &mut SocketAddr| *addr = canonical(*addr);
        match &mut self {
            Self::Listening { addrs }
            | Self::Discovered { addrs, .. }
            | Self::Resolved { result: Ok(addrs), .. } => {
                addrs.iter_mut().for_each(normalize);
            }
            Self::Connected(Connected { remote, local, .. }) => {
                [remote, local].into_iter().for_each(normalize);
            }
            Self::RemoteAddressChanged { addr, .. } | Self::External { addr: Some(addr) } => {
                normalize(addr);
            }
            _ => {}
        }
        self
    }
}
