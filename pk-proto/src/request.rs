//! What the embedder may ask for, and what it gets. Each [`Request`] is plain data, so that a driver passes it on and a
//! recording holds it; each ends with exactly one [`Event::Done`](crate::Event::Done).

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Bound;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::address::{NodeAddress, NodeContactAddressData};
use crate::claims::{ChainFault, Claim, ClaimContent, ClaimId, Gestalt};
use crate::graph::NodeContact;
use crate::id::{BucketIndex, ConnectionId, LeaseId, NodeId, StreamId};
use crate::io::{DialFailure, Identity};
use crate::seed_node::SeedNode;

/// Limits of one request; `None` takes the value of [`Config`](crate::Config).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Options {
    /// The request ends by then, counted from now. 1 ms to 24 h; default `Config::request_deadline`.
    pub deadline: Option<Duration>,
    /// Each dial race ends by then. 1 ms to 1 h; default `Config::connect_timeout`.
    pub connect_timeout: Option<Duration>,
}

/// Limits of one search; `None` takes the value of [`Config`](crate::Config).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FindNode {
    /// Contacts waited for at a time. 1 to 64; default `Config::find_concurrency`.
    pub concurrency: Option<usize>,
    /// Which ways to try; default all.
    pub strategies: Option<Strategies>,
    /// How long the local network is asked. 1 ms to 1 h; default `Config::mdns_timeout`.
    pub mdns_timeout: Option<Duration>,
    /// Connection attempts in all. 0 (live connections only) to 1024; default `Config::find_limit`.
    pub limit: Option<usize>,
    /// Deadlines.
    pub options: Options,
}

/// How to put a node into a full bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetNode {
    /// Wait until the bucket's nodes have been probed (`true`), or end at once as `Pending`.
    pub block: bool,
    /// Take the place of the node that was connected least recently, whether it answers or not.
    pub force: bool,
    /// Deadlines; `connect_timeout` is that of each probe.
    pub options: Options,
}

/// The ways in which a search connects to nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Strategies {
    /// Dial the addresses that the graph or peers know.
    pub direct: bool,
    /// Have a node that is connected with it signal, and punch.
    pub signal: bool,
    /// Ask the local network, where `Config::mdns` is on.
    pub mdns: bool,
}

impl Default for Strategies {
    fn default() -> Self {
        Self { direct: true, signal: true, mdns: true }
    }
}

/// Which nodes to ask a peer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClosestLists {
    /// The closest nodes of its graph.
    pub local: bool,
    /// The closest nodes it is connected to.
    pub active: bool,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Search for a node and connect to it. For the own id: learn the neighbourhood; never found.
    FindNode {
        /// Whom.
        target: NodeId,
        /// Limits.
        find: FindNode,
    },
    /// Find a node and have it answer, over a live connection or a new one.
    PingNode {
        /// Whom.
        target: NodeId,
        /// Deadlines.
        options: Options,
    },
    /// Whether there is a live connection to the node, or else can be one to this address.
    PingNodeAddress {
        /// Whom; nobody else is accepted.
        target: NodeId,
        /// Where; a hostname is resolved and all its addresses are tried.
        address: NodeAddress,
        /// Deadlines.
        options: Options,
    },
    /// Connect to this address, if there is no live connection to the node.
    Connect {
        /// Whom; nobody else is accepted.
        target: NodeId,
        /// Where; a hostname is resolved and all its addresses are tried.
        address: NodeAddress,
        /// Deadlines.
        options: Options,
    },
    /// Find the node `relay` and connect through it: it signals, and both ends punch. Nothing is done if there is a live
    /// connection to the node.
    ConnectThrough {
        /// Whom; nobody else is accepted.
        target: NodeId,
        /// Who signals.
        relay: NodeId,
        /// Deadlines.
        options: Options,
    },
    /// Find a node and keep its connection from being closed for idleness until `release`.
    AcquireConnection {
        /// Whom.
        target: NodeId,
        /// Deadlines.
        options: Options,
    },
    /// Find a node and open a stream of an application protocol to it.
    OpenStream {
        /// Whom.
        target: NodeId,
        /// 1 to 64 printable ASCII characters.
        protocol: String,
        /// Deadlines.
        options: Options,
    },
    /// Find the node `via` and ask it for the nodes closest to `target`.
    AskClosest {
        /// Whom to ask.
        via: NodeId,
        /// Closest to whom.
        target: NodeId,
        /// Which nodes.
        lists: ClosestLists,
        /// Deadlines.
        options: Options,
    },
    /// Join the network: connect to the seeds, then find the own id.
    SyncNodeGraph {
        /// Where to start. May be empty if the graph knows nodes.
        seeds: Vec<SeedNode>,
        /// End with the search for the own id (`true`), or with the first connected seed.
        blocking: bool,
        /// Deadlines.
        options: Options,
    },
    /// Put a node into the graph on the embedder's word.
    SetNode {
        /// Whom.
        node: NodeId,
        /// Where.
        address: NodeAddress,
        /// What is known of the address.
        data: NodeContactAddressData,
        /// What to do about a full bucket.
        how: SetNode,
    },
    /// Look up a random id of a bucket, so that its nodes are found.
    RefreshBucket {
        /// Which.
        bucket: BucketIndex,
        /// Deadlines.
        options: Options,
    },
    /// Become another key, or present another certificate of the same one. Not given up once it has begun.
    Renew {
        /// The new certificate, issued by the present key, before the present chain.
        identity: Identity,
    },
    /// Cross-sign a claim with a node: both get one into their own chain that says they belong together (specification:
    /// claimNode). Not given up once ours is being written.
    ClaimNode {
        /// With whom.
        target: NodeId,
        /// Deadlines.
        options: Options,
    },
    /// Append a claim of another type to our chain, signed by us.
    AddClaim {
        /// What it says.
        content: ClaimContent,
        /// Deadlines.
        options: Options,
    },
    /// Append a claim about a network to our chain, `ClaimNetworkAccess` or `ClaimNetworkAuthority`, signed by us and by
    /// the node that it belongs to.
    ClaimNetwork {
        /// Who signs it besides us.
        target: NodeId,
        /// What it says.
        content: ClaimContent,
        /// Deadlines.
        options: Options,
    },
    /// Put a node on the allow-list of the claim policy, or take it off.
    AllowClaim {
        /// Whom, by any id that its certificates prove.
        node: NodeId,
        /// On, or off.
        allowed: bool,
        /// Deadlines.
        options: Options,
    },
    /// Ask the local network where a node is.
    QueryMdns {
        /// Whom.
        target: NodeId,
        /// How long; `None` is `Config::mdns_timeout`.
        timeout: Option<Duration>,
    },
    /// Find a node, read its sigchain and verify it as it comes. The claims are told by
    /// [`Event::ChainData`](crate::Event::ChainData), a page at a time; their links go into the gestalts.
    RequestChainData {
        /// Whose.
        target: NodeId,
        /// The last claim of this chain that is known already; the next one has to follow it. `None` from the beginning.
        since: Option<Claim>,
        /// End after so many claims, at least 1; `None` for all. A request from there on reads the next ones.
        limit: Option<u64>,
        /// Deadlines.
        options: Options,
    },
    /// Read claims of the own sigchain.
    Claims {
        /// Which.
        query: ClaimsQuery,
        /// Deadlines.
        options: Options,
    },
    /// Read which nodes are linked with one.
    Gestalt {
        /// With whom.
        node: NodeId,
        /// Which.
        query: GestaltQuery,
        /// Deadlines.
        options: Options,
    },
    /// Write everything that is not written yet, durably.
    Flush {
        /// Deadlines.
        options: Options,
    },
}

/// Which claims of the own sigchain to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimsQuery {
    /// Where to begin.
    pub from: Bound<ClaimId>,
    /// Where to end.
    pub to: Bound<ClaimId>,
    /// The newest first.
    pub descending: bool,
    /// How many. 1 to 1000; default 100.
    pub limit: usize,
}

impl Default for ClaimsQuery {
    fn default() -> Self {
        Self { from: Bound::Unbounded, to: Bound::Unbounded, descending: false, limit: 100 }
    }
}

impl ClaimsQuery {
    /// The one claim with this id.
    pub fn id(id: ClaimId) -> Self {
        Self { from: Bound::Included(id), to: Bound::Included(id), descending: false, limit: 1 }
    }
}

/// Which nodes of a gestalt to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GestaltQuery {
    /// Only those that the node itself is linked with.
    pub direct: bool,
    /// How many nodes. 1 to 4096; default 256. Four times as many links.
    pub limit: usize,
}

impl Default for GestaltQuery {
    fn default() -> Self {
        Self { direct: false, limit: 256 }
    }
}

impl Request {
    /// The deadlines of this request.
    pub fn options(&self) -> Options {
        match self {
            Self::FindNode { find, .. } => find.options,
            Self::PingNode { options, .. }
            | Self::PingNodeAddress { options, .. }
            | Self::Connect { options, .. }
            | Self::ConnectThrough { options, .. }
            | Self::AcquireConnection { options, .. }
            | Self::OpenStream { options, .. }
            | Self::AskClosest { options, .. }
            | Self::SyncNodeGraph { options, .. }
            | Self::RefreshBucket { options, .. }
            | Self::ClaimNode { options, .. }
            | Self::AddClaim { options, .. }
            | Self::ClaimNetwork { options, .. }
            | Self::AllowClaim { options, .. }
            | Self::RequestChainData { options, .. }
            | Self::Claims { options, .. }
            | Self::Gestalt { options, .. }
            | Self::Flush { options } => *options,
            Self::SetNode { how, .. } => how.options,
            Self::Renew { .. } | Self::QueryMdns { .. } => Options::default(),
        }
    }
}

/// How a request succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reply {
    /// A search ended; `found` says how.
    FindNode(FindOutcome),
    /// The node answered.
    PingNode(Pong),
    /// Whether the node was there.
    PingNodeAddress(bool),
    /// The connection to the node, new or not.
    Connect(ConnectionInfo),
    /// The connection is held until `release`.
    AcquireConnection {
        /// Names the lease.
        lease: LeaseId,
        /// The connection that is in use now.
        connection: ConnectionInfo,
    },
    /// The stream is the embedder's: its [`HandOver`](crate::Output::HandOver) stands before this event.
    OpenStream(StreamId),
    /// What the peer said.
    AskClosest(Closest),
    /// The network was joined.
    SyncNodeGraph(Synced),
    /// What became of the node.
    SetNode(SetNodeOutcome),
    /// The bucket was refreshed; the search for the random id.
    RefreshBucket(FindOutcome),
    /// The node is another one, or its certificate is.
    Renew {
        /// Who it was.
        old: NodeId,
        /// Who it is; the same if only the certificate is another one.
        new: NodeId,
    },
    /// Both nodes have their claim; this is ours.
    ClaimNode(ClaimId),
    /// The claim is in our chain.
    AddClaim(ClaimId),
    /// The claim is in our chain, with the signature of the node behind ours.
    ClaimNetwork(Claim),
    /// The allow-list is written.
    AllowClaim,
    /// Where the local network says the node is.
    QueryMdns(Vec<NodeAddress>),
    /// The chain was read to its end, or to where it is not one any more.
    ChainData(ChainData),
    /// Claims of the own sigchain.
    Claims(ClaimsFound),
    /// Who is linked with the node.
    Gestalt(Gestalt),
    /// Everything is written.
    Flush,
}

/// How reading a chain ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainData {
    /// How many claims were verified; all of them were told.
    pub verified: u64,
    /// The last one, to go on from another time; that of the request if none was verified.
    pub head: Option<Claim>,
    /// What is wrong with the claim behind it; `None` if the chain ends there, or goes on.
    pub fault: Option<ChainFault>,
    /// Whether the chain goes on, and only the limit of the request has ended it.
    pub more: bool,
}

/// Claims of the own sigchain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClaimsFound {
    /// In the order that was asked for; at most 1 MiB of tokens.
    pub claims: Vec<Claim>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// How a search ended, and what it cost (DESIGN section 5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindOutcome {
    /// Where the target is connected, if it is.
    pub found: Option<(NodeAddress, NodeContactAddressData)>,
    /// Why the search ended.
    pub ended: FindEnd,
    /// What it cost.
    pub stats: FindStats,
    /// Who was contacted, in the order of their beginning.
    pub trace: Vec<FindStep>,
}

/// Why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FindEnd {
    /// The target is connected.
    Connected,
    /// Nobody who is closest to the target knows of anyone closer.
    Exhausted,
    /// The limit of connection attempts was reached and all of them have ended.
    Limit,
    /// The deadline passed.
    Deadline,
}

/// What a search cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FindStats {
    /// From beginning to end.
    pub elapsed: Duration,
    /// Connection attempts that were begun.
    pub attempts: u32,
    /// Of these, how many failed.
    pub failures: u32,
    /// Questions asked.
    pub calls: u32,
    /// Different nodes heard of.
    pub candidates: u32,
}

/// One contact of a search.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindStep {
    /// Who was contacted.
    pub node: NodeId,
    /// Who told of it first; `None` if the own graph or a live connection did.
    pub told_by: Option<NodeId>,
    /// From the beginning of the search to the beginning of the contact.
    pub begun: Duration,
    /// How long it took to its end, or so far.
    pub took: Duration,
    /// How it ended.
    pub end: FindStepEnd,
}

/// How a contact of a search ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FindStepEnd {
    /// The search ended first.
    Pending,
    /// Connected; it was the target.
    Target,
    /// Answered, with this many nodes, of which so many were new to the search.
    Answered {
        /// Nodes in the answer.
        told: u32,
        /// Nodes not heard of before.
        new: u32,
    },
    /// Could not be connected; the failure of each address.
    Unreachable(Vec<(NodeAddress, DialFailure)>),
    /// Connected, but did not answer properly in time.
    NoAnswer,
}

/// An answered ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Where the node is connected.
    pub address: NodeAddress,
    /// What is known of that address.
    pub data: NodeContactAddressData,
    /// From the question to the answer over the connection.
    pub rtt: Duration,
}

/// A live connection, accepted by both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Names it on this node.
    pub conn: ConnectionId,
    /// The peer.
    pub node: NodeId,
    /// Where the peer is.
    pub address: NodeAddress,
    /// How it was made.
    pub data: NodeContactAddressData,
    /// The name of the connection that both ends share (base64url in text).
    pub shared_id: bytes::Bytes,
    /// Whether it is the one in use among the connections with this node.
    pub primary: bool,
    /// When it will be closed for idleness, from now; `None` while it is used.
    pub idle_in: Option<Duration>,
}

/// The nodes closest to a target that a peer told of; unproven.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Closest {
    /// From its graph: each node and its global addresses.
    pub local: Vec<(NodeId, NodeContact)>,
    /// From its connections: each node and where the peer sees it.
    pub active: Vec<ActiveNode>,
}

/// A node that a peer is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveNode {
    /// The node.
    pub node: NodeId,
    /// Its live connections with the peer.
    pub connections: Vec<ActiveConnection>,
}

/// One connection of an [`ActiveNode`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveConnection {
    /// The name that its two ends share.
    pub shared_id: bytes::Bytes,
    /// Where the peer sees the node.
    pub address: NodeAddress,
    /// Whether it is the one in use.
    pub primary: bool,
    /// When it will be closed for idleness, in milliseconds from the answer; `None` while it is used.
    pub idle_in_ms: Option<u64>,
}

/// How the network was joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// The seeds that are connected.
    pub seeds: Vec<NodeId>,
    /// The seeds that could not be reached, each with its cause.
    pub failed: Vec<(SeedNode, crate::error::SeedFailure)>,
    /// The search for the own id; `None` if it was not waited for.
    pub search: Option<FindOutcome>,
}

/// What became of a node that was to be put into the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SetNodeOutcome {
    /// It is new in the graph.
    Added,
    /// It was known; the address is new or newer.
    Updated,
    /// It is new, in the place of the node of its bucket that was connected least recently.
    Replaced(NodeId),
    /// Its bucket is full, and it waits for a node that no longer answers.
    Pending,
    /// It is not in the graph.
    Rejected(SetNodeRejection),
}

/// Why a node was not put into the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SetNodeRejection {
    /// It is this node itself.
    #[error("it is this node itself")]
    OwnNode,
    /// Its bucket has no room.
    #[error("its bucket is full")]
    BucketFull,
    /// There are as many nodes of its network in the graph as may be.
    #[error("there are enough nodes of its network")]
    Diversity,
}
