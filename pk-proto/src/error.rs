//! Errors by whose fault they are: [`StartError`] and [`RequestError`] are ours and known at once, [`Failure`] is how a
//! request ended, [`PeerFault`] is theirs.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::cert::CertificateFault;
use crate::claims::{ClaimFault, ClaimId, ExchangeFault};
use crate::config::ConfigError;
use crate::id::NodeId;
use crate::io::{DialFailure, DisconnectReason};
use crate::rpc::FrameFault;
use crate::rpc::polykey::ObjectFault;
use crate::seed_node::SeedNode;

/// Why a machine could not be made. There is none then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is outside its range.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The store belongs to another node.
    #[error("the store belongs to node {owner}, not to {own}")]
    ForeignStore {
        /// Whose it is.
        owner: NodeId,
        /// Who we are.
        own: NodeId,
    },
    /// The certificate chain of the identity proves nothing.
    #[error("identity: {0}")]
    Identity(#[from] CertificateFault),
}

/// Why a request was refused on the spot. Nothing was changed, no id was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// `Event::Ready` has not been yet.
    #[error("the node has not started: it is not listening yet")]
    NotReady,
    /// `stop` was called.
    #[error("the node is stopping or has stopped")]
    Stopping,
    /// The target is this node itself (any id of its certificate chain).
    #[error("the target is this node itself")]
    OwnNode,
    /// `Config::request_limit` requests are open.
    #[error("{0} requests are open, which is the limit")]
    TooMany(usize),
    /// An option is outside its range.
    #[error("{name} must be {range}")]
    Option {
        /// The option.
        name: &'static str,
        /// What it may be.
        range: &'static str,
    },
    /// A name of an application protocol is not 1 to 64 printable ASCII characters.
    #[error("a protocol name is 1 to 64 printable ASCII characters")]
    Protocol,
    /// The new identity cannot follow the present one.
    #[error("the new identity is refused: {0}")]
    Identity(String),
    /// The claim has not the form of one.
    #[error("the claim cannot be made: {0}")]
    Claim(ClaimFault),
    /// The claim is a link, which `claim_node` makes, or neither its issuer nor its subject is this node.
    #[error("a claim of our chain is issued by this node or about it, and links are made by both of their nodes")]
    ForeignClaim,
    /// There is nobody to start from.
    #[error("no seed node was given, and the graph is empty")]
    NoSeeds,
}

/// How a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// `cancel` was called.
    #[error("cancelled")]
    Cancelled,
    /// The node was stopped.
    #[error("the node was stopped")]
    Stopped,
    /// The deadline passed.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// No connection to the node could be found: the search ended, and this is why its dials failed, if it made any.
    #[error("the node was not found{}", dials(.0))]
    NotFound(Vec<(crate::address::NodeAddress, DialFailure)>),
    /// None of the seeds could be reached; each with its cause.
    #[error("no seed node could be reached{}", seeds(.0))]
    NoSeedReached(Vec<(SeedNode, SeedFailure)>),
    /// The connection ended before the answer came.
    #[error("the connection was lost: {0}")]
    ConnectionLost(DisconnectReason),
    /// The peer does not take this application protocol, or does not know this question.
    #[error("the peer does not support this")]
    Unsupported,
    /// The peer ended the stream with this code instead of answering.
    #[error("the peer aborted the call with code {0}")]
    Aborted(u64),
    /// The peer refused.
    #[error("the peer refused: {0}")]
    Refused(#[from] crate::rpc::Refusal),
    /// The peer answered with an exception that has no other meaning here (Polykey 1.x).
    #[error("the peer answered with an error: {class}: {message}")]
    Remote {
        /// The name of its class.
        class: String,
        /// What it says.
        message: String,
    },
    /// The driver could not present the new identity; the old one stays.
    #[error("the new identity could not be presented: {0}")]
    Identity(String),
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(String),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Peer(#[from] PeerFault),
    /// Our claim is in our chain, but the peer may not have its own. The exchange is resumed when the peer is connected;
    /// [`Event::ClaimSettled`](crate::Event::ClaimSettled) follows then.
    #[error("claim {0} stands, but the peer has not confirmed its own")]
    ClaimInDoubt(ClaimId),
    /// The holder of our key did not sign, or not properly.
    #[error("signing failed: {0}")]
    Signing(String),
    /// No connection to the address that was asked for.
    #[error("could not connect{}", dials(.0))]
    Dial(Vec<(crate::address::NodeAddress, DialFailure)>),
}

/// Why a seed node could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SeedFailure {
    /// The seed is this node itself.
    #[error("it is this node itself")]
    OwnNode,
    /// Its addresses were dialled in vain, each with its failure.
    #[error("could not connect{}", dials(.0))]
    Dial(Vec<(crate::address::NodeAddress, DialFailure)>),
    /// The network was joined through others before this one answered.
    #[error("not waited for")]
    NotWaitedFor,
}

/// What a peer did wrong. Each has a counter in `metrics()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum PeerFault {
    /// A frame is not one of the protocol.
    #[error("frame: {0}")]
    Frame(#[from] FrameFault),
    /// Bytes are not a message of Polykey 1.x.
    #[error("message: {0}")]
    Object(#[from] ObjectFault),
    /// A message that has no place here, such as a second Hello or an answer to nothing.
    #[error("unexpected message")]
    Unexpected,
    /// An answer with more entries than the protocol allows.
    #[error("an answer over its limit")]
    TooMuch,
    /// The stream ended before a whole message.
    #[error("the stream ended inside a message")]
    Truncated,
    /// More streams than a connection may have.
    #[error("too many streams")]
    TooManyStreams,
    /// The peer asks, but does not read the answers.
    #[error("the peer does not read what it asked for")]
    NotReading,
    /// No Hello within its time.
    #[error("no Hello in time")]
    NoHello,
    /// Nothing in common in the versions.
    #[error("no common version")]
    Version,
    /// It broke the rules of an exchange of claims, or asked us to sign what we do not.
    #[error("claims: {0}")]
    Claims(#[from] ExchangeFault),
}

fn dials(failures: &[(crate::address::NodeAddress, DialFailure)]) -> String {
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

/// The application codes of `CloseConnection`, `ResetStream` and `StopStream` (specification: ConnectionErrorCode; stream
/// codes 0 to 7 as in WIRE.md section 2).
pub mod code {
    /// Connection: a graceful end. Stream: nothing in particular.
    pub const NONE: u64 = 0;
    /// Stream: there is no handler for this message or protocol.
    pub const UNSUPPORTED: u64 = 1;
    /// Stream: a message over the limit.
    pub const MESSAGE_TOO_LONG: u64 = 2;
    /// Stream: the bytes are not the protocol.
    pub const MALFORMED: u64 = 4;
    /// Stream: the call timed out.
    pub const TIMED_OUT: u64 = 7;
    /// Stream: over a limit of ours.
    pub const LIMIT: u64 = 8;
    /// Connection: the peer broke the protocol.
    pub const CONNECTION_FAULT: u64 = 16;
    /// Connection: over a limit of ours.
    pub const CONNECTION_LIMIT: u64 = 17;
    /// Connection: both ends are the same node.
    pub const CONNECTION_SELF: u64 = 18;
}

/// The code with which a connection is closed (specification: ConnectionErrorCode). Peers may send others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[repr(u64)]
pub enum ConnectionErrorCode {
    /// A graceful end.
    None = code::NONE,
    /// The peer broke the protocol.
    Fault = code::CONNECTION_FAULT,
    /// Over a limit of ours.
    Limit = code::CONNECTION_LIMIT,
    /// Both ends are the same node.
    SameNode = code::CONNECTION_SELF,
}

/// Why we close a connection, as its peer is told (specification: ConnectionErrorReason).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionErrorReason {
    /// The embedder, or a dial race that it has lost, has no use for it.
    #[error("")]
    NotNeeded,
    /// The node stops.
    #[error("stopping")]
    Stopping,
    /// Nobody has used it for its time.
    #[error("idle")]
    Idle,
    /// It is of an identity that the node no longer has.
    #[error("renewed")]
    Renewed,
    /// There are as many connections as may be, in all or with this node.
    #[error("too many connections")]
    TooMany,
    /// Both ends are the same node.
    #[error("both ends are the same node")]
    SameNode,
    /// The peer has not said Hello.
    #[error("no Hello in time")]
    NoHello,
    /// The peer broke the protocol.
    #[error("protocol fault")]
    Fault,
}

impl ConnectionErrorReason {
    /// The code that goes with it.
    pub const fn code(self) -> ConnectionErrorCode {
        match self {
            Self::NotNeeded | Self::Stopping | Self::Idle | Self::Renewed => ConnectionErrorCode::None,
            Self::TooMany => ConnectionErrorCode::Limit,
            Self::SameNode => ConnectionErrorCode::SameNode,
            Self::NoHello | Self::Fault => ConnectionErrorCode::Fault,
        }
    }
}
