//! Requests of the embedder. Each [`Request`] is plain data, so that a driver can forward it and a
//! recording store it; each ends with exactly one [`Event::Done`](crate::Event::Done).

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Bound;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::transport::Identity;
use crate::claims::{Claim, ClaimContent, ClaimId};
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::{BucketIndex, NodeId};
use crate::types::seed_node::SeedNode;
use crate::wire::closest::ClosestNodesQuery;

/// Timeouts of one request; `None` uses the value of [`Config`](crate::Config).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct RequestOptions {
    /// Time limit of the request. Default `Config::request_deadline`, range 1 ms–24 h.
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::some_duration))]
    pub deadline: Option<Duration>,
    /// Time limit of each dial race. Default `Config::connect_timeout`, range 1 ms–1 h.
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::some_duration))]
    pub connect_timeout: Option<Duration>,
}

/// Limits of one search; `None` uses the value of [`Config`](crate::Config).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct FindNodeOptions {
    /// Contacts in progress that were dialed, silent ones included, and contacts that are waited
    /// for. If it is reached, a silent contact ends so that another starts. Without it the search
    /// chooses, up to `Config::find_concurrency`. Range 1–256.
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::some_count))]
    pub concurrency: Option<usize>,
    /// Strategies to use. Default all.
    pub strategies: Option<Strategies>,
    /// Duration of the mDNS query. Default `Config::mdns_timeout`, range 1 ms–1 h.
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::some_duration))]
    pub mdns_timeout: Option<Duration>,
    /// Connection attempts in total. Without it the search chooses, up to `Config::find_limit`.
    /// Range 0–1024; 0 uses live connections only.
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::some_count))]
    pub limit: Option<usize>,
    /// Timeouts of this request.
    pub options: RequestOptions,
}

/// How to add a node to a full bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct SetNodeOptions {
    /// Whether to wait until the contacts of the bucket have been probed (`true`), or to end at
    /// once as `Pending`.
    pub block: bool,
    /// Whether to replace the contact that was connected least recently, without probing it.
    pub force: bool,
    /// Timeouts; `connect_timeout` is that of each probe.
    pub options: RequestOptions,
}

/// Strategies by which a search connects to nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Strategies {
    /// Dial addresses from the graph and from peers.
    pub direct: bool,
    /// Ask a node that is connected with the target to signal, and punch.
    pub signal: bool,
    /// Query the local network, if `Config::mdns` is on.
    pub mdns: bool,
    /// Connect through a node that is connected with the target and relays, if `signal` has not
    /// succeeded within `relay.delay`.
    pub relay: bool,
}

impl Default for Strategies {
    fn default() -> Self {
        Self { direct: true, signal: true, mdns: true, relay: true }
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Request {
    /// Search for a node and connect to it. Searching for the local node id populates the nearby
    /// buckets and never finds a node.
    FindNode {
        /// Target node.
        target: NodeId,
        /// Limits of the search.
        find: FindNodeOptions,
    },
    /// Search for a node and send it a ping, over a live connection or a new one.
    PingNode {
        /// Target node.
        target: NodeId,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Check whether there is a live connection to the node, or a connection to this address
    /// succeeds.
    PingNodeAddress {
        /// Target node; a connection to any other node is not accepted.
        target: NodeId,
        /// Address; a host name is resolved and all its addresses are tried.
        address: NodeAddress,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Connect to this address, unless there is a live connection to the node.
    Connect {
        /// Target node; a connection to any other node is not accepted.
        target: NodeId,
        /// Address; a host name is resolved and all its addresses are tried.
        address: NodeAddress,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Search for the node `relay` and connect by signalling through it; both ends punch. Nothing
    /// is done if there is a live connection to the target.
    ConnectThrough {
        /// Target node; a connection to any other node is not accepted.
        target: NodeId,
        /// Relay.
        relay: NodeId,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Search for a node and keep its connection from being closed for idleness until `release`.
    AcquireConnection {
        /// Target node.
        target: NodeId,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Search for a node and open a stream of an application protocol to it.
    OpenStream {
        /// Target node.
        target: NodeId,
        /// Protocol, 1 to 64 printable ASCII characters.
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::protocol))]
        protocol: String,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Search for the node `via` and request its nodes closest to `target`.
    QueryClosestNodes {
        /// Node that is asked.
        via: NodeId,
        /// Target of the distance.
        target: NodeId,
        /// Requested lists.
        query: ClosestNodesQuery,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Join the network: connect to the seed nodes, then search for the local id.
    SyncNodeGraph {
        /// Seed nodes. May be empty if the graph has contacts.
        seeds: Vec<SeedNode>,
        /// Whether to end after the search for the local id (`true`), or when the first seed node
        /// is connected.
        blocking: bool,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Add a node to the graph without having connected to it.
    SetNode {
        /// Node to add.
        node: NodeId,
        /// Address of the node.
        address: NodeAddress,
        /// Data of the address.
        data: NodeContactAddressData,
        /// What to do if the bucket is full.
        how: SetNodeOptions,
    },
    /// Refresh a bucket: search for a random id in its range.
    RefreshBucket {
        /// Bucket.
        bucket: BucketIndex,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Rotate the node key, or replace the certificate of the present key. Cannot be cancelled once
    /// started.
    Renew {
        /// New certificate, issued by the present key, followed by the present chain.
        identity: Identity,
    },
    /// Cross-sign a claim with a node: the chains of both then contain a claim that links them
    /// (specification: claimNode). Cannot be cancelled once the claim is being written.
    ClaimNode {
        /// Target node.
        target: NodeId,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Append a claim of another type to the local chain, signed by the local node.
    AddClaim {
        /// Content of the claim.
        content: ClaimContent,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Append a claim about a network to the local chain, `ClaimNetworkAccess` or
    /// `ClaimNetworkAuthority`, signed by the local node and by the node that the network belongs
    /// to.
    ClaimNetwork {
        /// Node that signs it in addition.
        target: NodeId,
        /// Content of the claim.
        content: ClaimContent,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Add a node to the allow-list of the claim policy, or remove it.
    AllowClaim {
        /// Node, by any id that its certificates prove.
        node: NodeId,
        /// Whether to add (`true`) or to remove it.
        allowed: bool,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Query the local network for the addresses of a node.
    QueryMdns {
        /// Target node.
        target: NodeId,
        /// Duration of the query; `None` uses `Config::mdns_timeout`.
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::some_duration))]
        timeout: Option<Duration>,
    },
    /// Search for a node, read its sigchain and verify it. The claims are emitted as
    /// [`Event::ChainData`](crate::Event::ChainData), page by page; their links are added to the
    /// gestalts.
    RequestChainData {
        /// Target node.
        target: NodeId,
        /// Last known claim of this chain, which the next one must follow. `None` reads from the
        /// start.
        since: Option<Claim>,
        /// Number of claims after which to end, at least 1; `None` for all. A request with `since`
        /// continues from there.
        limit: Option<u64>,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Read claims of the local chain.
    Claims {
        /// Query.
        query: ClaimsQuery,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Read the nodes that are linked with a node.
    Gestalt {
        /// Node.
        node: NodeId,
        /// Query.
        query: GestaltQuery,
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Write all pending changes durably.
    Flush {
        /// Timeouts of this request.
        options: RequestOptions,
    },
    /// Search for the nodes closest to an id, which need not be that of a node. The local node is
    /// never among them. At its deadline the request ends with those found so far.
    FindClosest {
        /// Target of the distance.
        target: NodeId,
        /// Number of nodes. Range 1–20, because a response contains 20 nodes.
        #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::count))]
        count: usize,
        /// Limits of the search. It does not query mDNS.
        find: FindNodeOptions,
    },
}

/// Selection of claims of the local chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct ClaimsQuery {
    /// First claim.
    pub from: Bound<ClaimId>,
    /// Last claim.
    pub to: Bound<ClaimId>,
    /// Whether to return the newest first.
    pub descending: bool,
    /// Maximum number of claims. Default 100, range 1–1000.
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::count))]
    pub limit: usize,
}

impl Default for ClaimsQuery {
    fn default() -> Self {
        Self { from: Bound::Unbounded, to: Bound::Unbounded, descending: false, limit: 100 }
    }
}

impl ClaimsQuery {
    /// Returns a query for the claim with this id.
    pub fn id(id: ClaimId) -> Self {
        Self { from: Bound::Included(id), to: Bound::Included(id), descending: false, limit: 1 }
    }
}

/// Selection of nodes of a gestalt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct GestaltQuery {
    /// Only nodes with a link to the node itself.
    pub direct: bool,
    /// Maximum number of nodes; the limit of links is four times as high. Default 256, range
    /// 1–4096.
    #[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::count))]
    pub limit: usize,
}

impl Default for GestaltQuery {
    fn default() -> Self {
        Self { direct: false, limit: 256 }
    }
}

impl Request {
    /// Returns the request with its addresses in canonical form.
    pub(crate) fn canonical(mut self) -> Self {
        let normalize = |address: &mut NodeAddress| *address = address.clone().canonical();
        match &mut self {
            Self::PingNodeAddress { address, .. }
            | Self::Connect { address, .. }
            | Self::SetNode { address, .. } => {
                normalize(address);
            }
            Self::SyncNodeGraph { seeds, .. } => {
                seeds.iter_mut().for_each(|seed| normalize(&mut seed.address));
            }
            _ => {}
        }
        self
    }

    /// Returns the timeouts of this request.
    pub fn options(&self) -> RequestOptions {
        match self {
            Self::FindNode { find, .. } | Self::FindClosest { find, .. } => find.options,
            Self::PingNode { options, .. }
            | Self::PingNodeAddress { options, .. }
            | Self::Connect { options, .. }
            | Self::ConnectThrough { options, .. }
            | Self::AcquireConnection { options, .. }
            | Self::OpenStream { options, .. }
            | Self::QueryClosestNodes { options, .. }
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
            Self::Renew { .. } | Self::QueryMdns { .. } => RequestOptions::default(),
        }
    }
}
