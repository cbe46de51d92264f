//! Requests: their entry points, and how each request starts. `open` ends requests.

use alloc::vec::Vec;
use core::time::Duration;

use super::claims::committed;
use super::node::NodeManager;
use super::state::outgoing::OutgoingClaim;
use super::state::repeats::Repeats;
use super::state::stage::{
    MdnsQuery, OnConnected, OnDialed, OpenRequest, Recipient, RequestStage, is_writing,
};
use super::state::sync::Sync;
use crate::api::error::{Failure, RequestError};
use crate::api::reply::Reply;
use crate::api::request::{
    ClaimsQuery, FindNodeOptions, GestaltQuery, Request, RequestOptions, SetNodeOptions,
};
use crate::api::transport::Identity;
use crate::claims::Claim;
use crate::machine::dial::{AddressOrigin, DialTarget};
use crate::machine::phase::Entry;
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::{BucketIndex, NodeId, RequestId};
use crate::types::seed_node::SeedNode;
use crate::types::time::Instant;

/// A. Requests. A request is checked at once. If it is accepted, exactly one
/// [`Event::Done`](crate::Event::Done) follows for the returned id.
impl NodeManager {
    /// Starts a request. The named methods below are shorthands.
    ///
    /// # Errors
    /// The node is not running, the target is the local node, an option is outside its range, or a
    /// limit is reached. Nothing was started.
    pub fn request(&mut self, request: Request, now: Instant) -> Result<RequestId, RequestError> {
        self.enter(now, Entry::Request(&request))?;
        let request = request.canonical();
        self.check(&request)?;
        let id = self.cx.ids.request();
        self.cx.metrics.requests += 1;
        let options = request.options();
        let deadline = self.cx.now + options.deadline.unwrap_or(self.cx.config.request_deadline);
        let timeout = options.connect_timeout.unwrap_or(self.cx.config.connect_timeout);
        let recipient = Recipient::Embedder;
        match request {
            // A search for a local id never finds it. It populates the nearby buckets of the newest
            // id.
            Request::FindNode { target, find } if self.cx.is_own(&target) => {
                self.search(id, recipient, deadline, self.cx.own(), &find, OnConnected::Report);
            }
            Request::FindNode { target, find } => {
                self.search(id, recipient, deadline, target, &find, OnConnected::Report);
            }
            Request::FindClosest { target, count, find } => {
                let on_connected = OnConnected::ReportClosest { count };
                self.search(id, recipient, deadline, target, &find, on_connected);
            }
            Request::PingNode { target, options } => {
                self.search_then(
                    id,
                    deadline,
                    target,
                    options,
                    OnConnected::Ping { repeats: Repeats::default() },
                );
            }
            Request::AcquireConnection { target, options } => {
                self.search_then(id, deadline, target, options, OnConnected::Acquire);
            }
            Request::OpenStream { target, protocol, options } => {
                let on_connected =
                    OnConnected::OpenStream { protocol, repeats: Repeats::default() };
                self.search_then(id, deadline, target, options, on_connected);
            }
            Request::QueryClosestNodes { via, target, query, options } => {
                let on_connected =
                    OnConnected::QueryClosestNodes { target, query, repeats: Repeats::default() };
                self.search_then(id, deadline, via, options, on_connected);
            }
            Request::PingNodeAddress { target, address, .. } => {
                let dial_target = DialTarget::at(target, [address], AddressOrigin::DIRECT, timeout);
                self.dial_request(id, deadline, dial_target, OnDialed::Ping);
            }
            Request::Connect { target, address, .. } => {
                let dial_target = DialTarget::at(target, [address], AddressOrigin::DIRECT, timeout);
                self.dial_request(id, deadline, dial_target, OnDialed::Connect);
            }
            Request::ConnectThrough { target, relay, options } => {
                let dial_target = DialTarget {
                    relays: alloc::vec![relay],
                    relayed: true,
                    ..DialTarget::at(target, [], AddressOrigin::SIGNALLED, timeout)
                };
                match self.connections.live(&target) {
                    Some(_) => self.dial_request(id, deadline, dial_target, OnDialed::Connect),
                    None => self.search_then(
                        id,
                        deadline,
                        relay,
                        options,
                        OnConnected::ConnectThrough { dial_target },
                    ),
                }
            }
            Request::SyncNodeGraph { seeds, blocking, .. } => {
                self.begin(
                    id,
                    OpenRequest {
                        recipient,
                        deadline,
                        stage: RequestStage::Sync(Sync::new(blocking, timeout)),
                    },
                );
                self.sync_begin(id, seeds);
            }
            Request::SetNode { node, address, data, how } => {
                self.set_node_request(id, deadline, node, address, data, how);
            }
            Request::RefreshBucket { bucket, options } => {
                self.mark_refreshed(bucket);
                self.refresh(
                    id,
                    recipient,
                    deadline,
                    bucket,
                    self.cx.config.bucket_limit,
                    &FindNodeOptions { options, ..FindNodeOptions::default() },
                );
            }
            Request::ClaimNode { target, options } => {
                self.search_then(
                    id,
                    deadline,
                    target,
                    options,
                    OnConnected::ClaimNode(OutgoingClaim::new(target, options)),
                );
            }
            Request::AddClaim { content, .. } => {
                let stage = self.self_issued_begin(id, content, None);
                self.begin(id, OpenRequest { recipient, deadline, stage });
            }
            Request::ClaimNetwork { target, content, options } => {
                self.search_then(
                    id,
                    deadline,
                    target,
                    options,
                    OnConnected::ClaimNetwork { content },
                );
            }
            Request::AllowClaim { node, allowed, .. } => {
                self.allow_begin(id, deadline, node, allowed);
            }
            Request::Renew { identity } => self.renew_begin(id, deadline, identity),
            Request::QueryMdns { target, timeout } => {
                let timeout = timeout.unwrap_or(self.cx.config.mdns_timeout);
                let effect = self.browse(id, target, self.cx.now + timeout);
                let stage = RequestStage::QueryMdns(MdnsQuery { effect, found: Vec::new() });
                self.begin(
                    id,
                    OpenRequest {
                        recipient,
                        deadline: deadline.max(self.cx.now + timeout * 2),
                        stage,
                    },
                );
            }
            Request::RequestChainData { target, since, limit, options } => {
                self.search_then(
                    id,
                    deadline,
                    target,
                    options,
                    OnConnected::ChainData { since, limit },
                );
            }
            Request::Claims { query, .. } => self.claims_request(id, deadline, query),
            Request::Gestalt { node, query, .. } => self.gestalt_request(id, deadline, node, query),
            Request::Flush { .. } => {
                self.begin(id, OpenRequest { recipient, deadline, stage: RequestStage::Flush });
                if self.graph_writer.is_durable() {
                    self.end(id, Ok(Reply::Flush));
                } else {
                    self.graph_writer.flush(id);
                    self.write_graph();
                }
            }
        }
        self.settle();
        Ok(id)
    }

    /// Searches for a node and connects to it (specification: findNode). Searching for the local id
    /// populates the nearby buckets.
    pub fn find_node(
        &mut self,
        target: NodeId,
        find: FindNodeOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::FindNode { target, find }, now)
    }

    /// Searches for the `count` nodes closest to an id, which need not be that of a node. At the
    /// deadline the request ends with those found so far.
    pub fn find_closest(
        &mut self,
        target: NodeId,
        count: usize,
        find: FindNodeOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::FindClosest { target, count, find }, now)
    }

    /// Searches for a node and sends it a ping (specification: pingNode).
    pub fn ping_node(
        &mut self,
        target: NodeId,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::PingNode { target, options }, now)
    }

    /// Checks whether a node is connected, or a connection to this address succeeds (specification:
    /// pingNodeAddress).
    pub fn ping_node_address(
        &mut self,
        target: NodeId,
        address: NodeAddress,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::PingNodeAddress { target, address, options }, now)
    }

    /// Searches for a node and leases its connection (specification: acquireConnection).
    pub fn acquire_connection(
        &mut self,
        target: NodeId,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::AcquireConnection { target, options }, now)
    }

    /// Joins the network (specification: syncNodeGraph).
    pub fn sync_node_graph(
        &mut self,
        seeds: Vec<SeedNode>,
        blocking: bool,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::SyncNodeGraph { seeds, blocking, options }, now)
    }

    /// Adds a node to the graph without having connected to it (specification: setNode). It is not
    /// sent to peers until a connection has proved it.
    pub fn set_node(
        &mut self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
        how: SetNodeOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::SetNode { node, address, data, how }, now)
    }

    /// Searches for a random id of a bucket (specification: refreshBucket).
    pub fn refresh_bucket(
        &mut self,
        bucket: BucketIndex,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::RefreshBucket { bucket, options }, now)
    }

    /// Cross-signs a claim with a node: the chains of both then contain a claim that links them
    /// (specification: claimNode).
    pub fn claim_node(
        &mut self,
        target: NodeId,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::ClaimNode { target, options }, now)
    }

    /// Adds a node to the allow-list of the claim policy, durably.
    pub fn allow_claim(
        &mut self,
        node: NodeId,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::AllowClaim { node, allowed: true, options }, now)
    }

    /// Removes a node from the allow-list of the claim policy, durably.
    pub fn disallow_claim(
        &mut self,
        node: NodeId,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::AllowClaim { node, allowed: false, options }, now)
    }

    /// Queries the local network for the addresses of a node (specification: queryMDNS).
    pub fn query_mdns(
        &mut self,
        target: NodeId,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::QueryMdns { target, timeout }, now)
    }

    /// Rotates the node key, or replaces the certificate of the current key (docs/DESIGN.md, Key
    /// renewal).
    pub fn renew(&mut self, identity: Identity, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::Renew { identity }, now)
    }

    /// Reads and verifies the sigchain of a node after the claim `since`, at most `limit` claims
    /// (specification: requestChainData).
    pub fn request_chain_data(
        &mut self,
        target: NodeId,
        since: Option<Claim>,
        limit: Option<u64>,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::RequestChainData { target, since, limit, options }, now)
    }

    /// Reads claims of the local chain.
    pub fn claims(
        &mut self,
        query: ClaimsQuery,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::Claims { query, options }, now)
    }

    /// Reads the gestalt of a node: the nodes that are linked with it.
    pub fn gestalt(
        &mut self,
        node: NodeId,
        query: GestaltQuery,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::Gestalt { node, query, options }, now)
    }

    /// Writes all pending changes durably.
    pub fn flush(
        &mut self,
        options: RequestOptions,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::Flush { options }, now)
    }

    /// Cancels a request. The request ends with `Cancelled` unless its result is already decided.
    /// Has no effect if the request has ended.
    pub fn cancel(&mut self, id: RequestId, now: Instant) {
        if self.enter(now, Entry::Cancel(id)).is_err() {
            return;
        }
        // After its point of no return, a renewal or a claim reports its true outcome instead.
        let ends = |open: &OpenRequest| {
            open.recipient == Recipient::Embedder
                && !is_writing(&open.stage)
                && committed(&open.stage).is_none()
        };
        if self.requests.get(id).is_some_and(ends) {
            self.end(id, Err(Failure::Cancelled));
            self.settle();
        }
    }
}
