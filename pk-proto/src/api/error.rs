//! Errors, by cause: [`StartError`] and [`RequestError`] are faults of the embedder and returned at
//! once, [`Failure`] is the result of a failed request, [`PeerFault`] is a fault of a peer.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::config::ConfigError;
use super::transport::{DialFailure, DisconnectReason};
use crate::cert::CertificateFault;
use crate::claims::{ClaimFault, ClaimId, ExchangeFault};
use crate::store::table::WriteFailure;
use crate::types::id::NodeId;
use crate::types::seed_node::SeedNode;
use crate::wire::fault::{RemoteFailure, Unsupported, WireFault};
use crate::wire::frame::FrameFault;
use crate::wire::polykey::ObjectFault;

/// Why a machine could not be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is outside its range.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The store belongs to another node.
    #[error("the store belongs to node {owner}, not to {own}")]
    ForeignStore {
        /// Owner of the store.
        owner: NodeId,
        /// Id of this node.
        own: NodeId,
    },
    /// The certificate chain of the identity is invalid.
    #[error("identity: {0}")]
    Identity(#[from] CertificateFault),
}

/// Why a request was refused at once. Nothing was changed, and there is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// `Event::Ready` has not been emitted yet.
    #[error("the node is not ready: it is not listening yet")]
    NotReady,
    /// `stop` was called.
    #[error("the node is stopping or has stopped")]
    Stopping,
    /// The target is this node (any id of its certificate chain).
    #[error("the target is this node")]
    OwnNode,
    /// `Config::request_limit` requests are open.
    #[error("too many open requests (request_limit {0})")]
    TooMany(usize),
    /// `Config::protocol_limit` application protocols are accepted.
    #[error("too many application protocols (protocol_limit {0})")]
    TooManyProtocols(usize),
    /// `Config::open_exchange_limit` claims of this node wait for confirmation by their peers.
    #[error("too many unconfirmed claims (open_exchange_limit {0})")]
    TooManyExchanges(usize),
    /// `Config::allow_list_limit` nodes are on the allow-list, or being added.
    #[error("too many nodes on the allow-list (allow_list_limit {0})")]
    AllowListFull(usize),
    /// An option is outside its range.
    #[error("{name} must be {range}")]
    Option {
        /// Name of the option.
        name: &'static str,
        /// Valid values.
        range: &'static str,
    },
    /// The name of an application protocol is not 1 to 64 printable ASCII characters.
    #[error("a protocol name must have 1 to 64 printable ASCII characters")]
    Protocol,
    /// The new identity is not a successor of the present one.
    #[error("the new identity is refused: {0}")]
    Identity(String),
    /// The claim is malformed.
    #[error("the claim is invalid: {0}")]
    Claim(ClaimFault),
    /// The claim is a link, which `claim_node` creates, or neither its issuer nor its subject is
    /// this node.
    #[error(
        "this node must be the issuer or the subject of the claim, and link claims must be \
        created with claim_node"
    )]
    ForeignClaim,
    /// There is no seed node and no contact to start from.
    #[error("no seed node was given, and the graph is empty")]
    NoSeeds,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// `cancel` was called.
    #[error("cancelled")]
    Cancelled,
    /// The node was stopped.
    #[error("the node was stopped")]
    Stopped,
    /// The deadline was exceeded.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// No connection to the node was established. Contains the failed dials of the search, if there
    /// were any.
    #[error("the node was not found{}", dials(.0))]
    NotFound(Vec<(crate::types::address::NodeAddress, DialFailure)>),
    /// No seed node was reached. Contains the cause of each.
    #[error("no seed node could be reached{}", seeds(.0))]
    NoSeedReached(Vec<(SeedNode, SeedFailure)>),
    /// The connection ended before the answer arrived.
    #[error("the connection was lost: {0}")]
    ConnectionLost(DisconnectReason),
    /// The peer does not support this application protocol or message.
    #[error("not supported by the peer")]
    Unsupported,
    /// The peer reset the stream with this code instead of answering.
    #[error("the peer reset the call with code {0}")]
    Aborted(u64),
    /// The peer refused the request.
    #[error("the peer refused: {0}")]
    Refused(#[from] crate::types::refusal::Refusal),
    /// The peer answered with an exception without a counterpart here (Polykey 1.x).
    #[error("the peer answered with an error: {class}: {message}")]
    Remote {
        /// Class of the exception.
        class: String,
        /// Message of the exception.
        message: String,
    },
    /// The driver could not present the new identity; the old one is still in use.
    #[error("the new identity could not be presented: {0}")]
    Identity(String),
    /// The store failed. Nothing was written.
    #[error("the store failed: {0}")]
    Store(String),
    /// The peer violated the protocol.
    #[error("the peer violated the protocol: {0}")]
    Peer(#[from] PeerFault),
    /// The claim is committed locally, but the peer has not confirmed it. The exchange resumes when
    /// the peer is connected; then [`Event::ClaimConfirmed`](crate::Event::ClaimConfirmed) follows.
    #[error("claim {0} is committed locally, but the peer has not confirmed it")]
    ClaimUnconfirmed(ClaimId),
    /// The driver did not sign, or returned an invalid signature.
    #[error("signing failed: {0}")]
    Signing(String),
    /// No connection to the given address was established.
    #[error("could not connect{}", dials(.0))]
    Dial(Vec<(crate::types::address::NodeAddress, DialFailure)>),
    /// The store failed during the write, and its outcome is unknown. The node determines it when
    /// the store can be read again. For a claim, [`Event::ClaimAdded`](crate::Event::ClaimAdded)
    /// follows if it was applied.
    #[error("the store failed, and it is unknown whether the change was written: {0}")]
    OutcomeUnknown(String),
    /// Nothing was written. The outcome of an earlier write is unknown until the store can be read
    /// again, and so is the head of the local chain.
    #[error("the head of the local chain is unknown until the store can be read again: {0}")]
    HeadUnknown(String),
    /// The store accepts no more writes. Nothing was written.
    #[error("the store is closed: {0}")]
    StoreClosed(String),
}

impl Failure {
    /// Returns the failure that a reset or stop of a stream by the peer means for what waits for
    /// it.
    pub(crate) fn aborted(code: u64) -> Self {
        if code == code::UNSUPPORTED { Self::Unsupported } else { Self::Aborted(code) }
    }
}

impl From<WriteFailure> for Failure {
    fn from(failure: WriteFailure) -> Self {
        match failure {
            WriteFailure::NotApplied(why) => Self::Store(why),
            WriteFailure::Unknown(why) => Self::OutcomeUnknown(why),
            WriteFailure::Closed(why) => Self::StoreClosed(why),
        }
    }
}

impl From<RemoteFailure> for Failure {
    fn from(failure: RemoteFailure) -> Self {
        match failure {
            RemoteFailure::Refused(refusal) => Self::Refused(refusal),
            RemoteFailure::Exception { class, message } => Self::Remote { class, message },
        }
    }
}

impl From<Unsupported> for Failure {
    fn from(_: Unsupported) -> Self {
        Self::Unsupported
    }
}

/// Why a seed node was not reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SeedFailure {
    /// The seed node is this node.
    #[error("it is this node")]
    OwnNode,
    /// All dials to its addresses failed; contains each failure.
    #[error("could not connect{}", dials(.0))]
    Dial(Vec<(crate::types::address::NodeAddress, DialFailure)>),
    /// Another seed node was connected before this one answered.
    #[error("still pending when another seed node was connected")]
    NotWaitedFor,
}

/// What a peer did wrong. Each fault has a counter in `metrics()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum PeerFault {
    /// A frame is invalid.
    #[error("frame: {0}")]
    Frame(#[from] FrameFault),
    /// The bytes are not a message of Polykey 1.x.
    #[error("message: {0}")]
    Object(#[from] ObjectFault),
    /// A message that is not allowed in this state, such as a second Hello or an answer without a
    /// request.
    #[error("unexpected message")]
    Unexpected,
    /// An answer has more entries than the protocol allows.
    #[error("too many entries in an answer")]
    TooMuch,
    /// The stream ended before a message was complete.
    #[error("the stream ended inside a message")]
    Truncated,
    /// The connection has more streams than allowed.
    #[error("too many streams")]
    TooManyStreams,
    /// The peer sends requests but does not read the answers.
    #[error("the peer does not read the answers to its requests")]
    NotReading,
    /// No Hello was received within `Config::hello_timeout`.
    #[error("no Hello in time")]
    NoHello,
    /// No common version.
    #[error("no common version")]
    Version,
    /// More refused requests than [`Config::fault_limit`](crate::Config::fault_limit) allows.
    #[error("too many refused requests")]
    TooManyRefused,
    /// The peer violated the rules of a claim exchange, or requested a signature that is not
    /// allowed.
    #[error("claims: {0}")]
    Claims(#[from] ExchangeFault),
    /// More streams before the Hello than the protocol allows, or a message on one of them that is
    /// neither the Hello nor a request.
    #[error("too early: no Hello yet")]
    TooEarly,
}

impl From<WireFault> for PeerFault {
    fn from(fault: WireFault) -> Self {
        match fault {
            WireFault::Frame(fault) => Self::Frame(fault),
            WireFault::Object(fault) => Self::Object(fault),
        }
    }
}

fn dials(failures: &[(crate::types::address::NodeAddress, DialFailure)]) -> String {
    list(failures.iter().map(|(address, why)| alloc::format!("{address} {why}")))
}

fn seeds(failures: &[(SeedNode, SeedFailure)]) -> String {
    list(failures.iter().map(|(seed, why)| alloc::format!("{seed} {why}")))
}

fn list(parts: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for (i, part) in parts.enumerate() {
        text.push_str(if i == 0 { ": " } else { "; " });
        text.push_str(&part);
    }
    text
}

/// Application error codes of `CloseConnection`, `ResetStream` and `StopStream` (specification:
/// ConnectionErrorCode; stream codes 0 to 7 as in docs/WIRE.md section 2).
pub mod code {
    /// Connection: a graceful end. Stream: no particular reason.
    pub const NONE: u64 = 0;
    /// Stream: there is no handler for this message or protocol.
    pub const UNSUPPORTED: u64 = 1;
    /// Stream: a message is too long.
    pub const MESSAGE_TOO_LONG: u64 = 2;
    /// Stream: a message is malformed.
    pub const MALFORMED: u64 = 4;
    /// Stream: the call timed out.
    pub const TIMED_OUT: u64 = 7;
    /// Stream: a limit is exceeded.
    pub const LIMIT: u64 = 8;
    /// Connection: the peer violated the protocol.
    pub const CONNECTION_FAULT: u64 = 16;
    /// Connection: a limit is exceeded.
    pub const CONNECTION_LIMIT: u64 = 17;
    /// Connection: both ends are the same node.
    pub const CONNECTION_SELF: u64 = 18;
    /// Connection: the nodes belong to different networks.
    pub const CONNECTION_NETWORK: u64 = 19;
}

/// Code with which a connection is closed (specification: ConnectionErrorCode). Peers may send
/// others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[repr(u64)]
pub enum ConnectionErrorCode {
    /// A graceful end.
    None = code::NONE,
    /// The peer violated the protocol.
    Fault = code::CONNECTION_FAULT,
    /// A limit is exceeded.
    Limit = code::CONNECTION_LIMIT,
    /// Both ends are the same node.
    SameNode = code::CONNECTION_SELF,
    /// The nodes belong to different networks.
    Network = code::CONNECTION_NETWORK,
}

/// Reason for closing a connection, which is sent to its peer (specification:
/// ConnectionErrorReason).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    thiserror::Error,
)]
#[non_exhaustive]
pub enum ConnectionErrorReason {
    /// Neither the embedder nor a dial race needs it.
    #[error("")]
    NotNeeded,
    /// The node stops.
    #[error("stopping")]
    Stopping,
    /// It was unused for its idle timeout.
    #[error("idle")]
    Idle,
    /// It belongs to a former identity of the node.
    #[error("renewed")]
    Renewed,
    /// The limit of connections is reached, in total or with this node.
    #[error("too many connections")]
    TooMany,
    /// The network of the peer has its share of the incoming connections.
    #[error("too many connections from this network")]
    TooManyOfNetwork,
    /// It was unused, and another connection needed its place.
    #[error("evicted")]
    Evicted,
    /// Both ends are the same node.
    #[error("both ends are the same node")]
    SameNode,
    /// The peer has sent no Hello.
    #[error("no Hello in time")]
    NoHello,
    /// The peer violated the protocol.
    #[error("protocol fault")]
    Fault,
    /// The peer repeats requests that are refused.
    #[error("too many refused requests")]
    TooManyRefused,
    /// The peer belongs to another network.
    #[error("the nodes belong to different networks")]
    OtherNetwork,
    /// The relay through which it runs has ended the circuit.
    #[error("the relay has ended the circuit")]
    RelayLost,
    /// The peer names no network, and this node requires its own.
    #[error("this node accepts only nodes of its network")]
    NoNetwork,
}

impl ConnectionErrorReason {
    /// Returns the code of the reason.
    pub const fn code(self) -> ConnectionErrorCode {
        match self {
            Self::NotNeeded
            | Self::Stopping
            | Self::Idle
            | Self::Renewed
            | Self::Evicted
            | Self::RelayLost => ConnectionErrorCode::None,
            Self::TooMany | Self::TooManyOfNetwork => ConnectionErrorCode::Limit,
            Self::SameNode => ConnectionErrorCode::SameNode,
            Self::NoHello | Self::Fault | Self::TooManyRefused => ConnectionErrorCode::Fault,
            Self::OtherNetwork | Self::NoNetwork => ConnectionErrorCode::Network,
        }
    }
}
