//! Requests: the entry points, from the call to what it begins. How a request ends is in `open`.

use alloc::vec::Vec;
use core::time::Duration;

use super::NodeManager;
use super::claims::{Claiming, standing};
use super::open::{Asked, Audience, DialThen, Open, Stage, Then, is_persisting};
use super::sync::Sync;
use crate::address::{NodeAddress, NodeContactAddressData};
use crate::claims::Claim;
use crate::connect::{Goal, Learnt};
use crate::error::{Failure, RequestError};
use crate::id::{BucketIndex, NodeId, RequestId};
use crate::io::Identity;
use crate::request::{ClaimsQuery, FindNode, GestaltQuery, Options, Reply, Request, SetNode};
use crate::seed_node::SeedNode;
use crate::time::Instant;
use crate::trace::Call;

/// A. Ours: checked at once; then exactly one [`Event::Done`](crate::Event::Done) for the id that was returned.
impl NodeManager {
    /// Begins a request. The named methods below are shorthands.
    ///
    /// # Errors
    /// Nothing was begun then: the node does not run, the target is itself, an option is out of its range, or there are
    /// too many requests.
    pub fn request(&mut self, request: Request, now: Instant) -> Result<RequestId, RequestError> {
        self.enter(now, || Call::Request(request.clone()));
        self.check(&request)?;
        let id = self.cx.ids.request();
        self.cx.metrics.requests += 1;
        let options = request.options();
        let deadline = self.cx.now + options.deadline.unwrap_or(self.cx.config.request_deadline);
        let timeout = options.connect_timeout.unwrap_or(self.cx.config.connect_timeout);
        let audience = Audience::Embedder;
        match request {
            Request::FindNode { target, find } => self.search(id, audience, deadline, target, &find, Then::Report),
            Request::PingNode { target, options } => {
                self.search_then(id, deadline, target, options, Then::Ping { asked: Asked::Never });
            }
            Request::AcquireConnection { target, options } => {
                self.search_then(id, deadline, target, options, Then::Acquire);
            }
            Request::OpenStream { target, protocol, options } => {
                self.search_then(id, deadline, target, options, Then::OpenStream { protocol });
            }
            Request::AskClosest { via, target, lists, options } => {
                self.search_then(id, deadline, via, options, Then::AskClosest { target, lists, asked: Asked::Never });
            }
            Request::PingNodeAddress { target, address, .. } => {
                let goal = Goal::at(target, [address], Learnt::DIRECT, timeout);
                self.dial_request(id, deadline, goal, DialThen::Ping);
            }
            Request::Connect { target, address, .. } => {
                let goal = Goal::at(target, [address], Learnt::DIRECT, timeout);
                self.dial_request(id, deadline, goal, DialThen::Connect);
            }
            Request::ConnectThrough { target, relay, options } => {
                let goal = Goal { relays: alloc::vec![relay], ..Goal::at(target, [], Learnt::SIGNALLED, timeout) };
                match self.connections.primary(&target) {
                    Some(_) => self.dial_request(id, deadline, goal, DialThen::Connect),
                    None => self.search_then(id, deadline, relay, options, Then::ConnectThrough { goal }),
                }
            }
            Request::SyncNodeGraph { seeds, blocking, .. } => {
                self.begin(id, Open { audience, deadline, stage: Stage::Sync(Sync::new(blocking, timeout)) });
                self.sync_begin(id, seeds);
            }
            Request::SetNode { node, address, data, how } => {
                self.set_node_request(id, deadline, node, address, data, how);
            }
            Request::RefreshBucket { bucket, options } => {
                self.mark_refreshed(bucket);
                self.refresh(id, audience, deadline, bucket, &FindNode { options, ..FindNode::default() });
            }
            Request::ClaimNode { target, options } => {
                self.search_then(id, deadline, target, options, Then::ClaimNode(Claiming::new(target, options)));
            }
            Request::AddClaim { content, .. } => {
                let stage = self.own_begin(id, content, None);
                self.begin(id, Open { audience, deadline, stage });
            }
            Request::ClaimNetwork { target, content, options } => {
                self.search_then(id, deadline, target, options, Then::ClaimNetwork { content });
            }
            Request::AllowClaim { node, allowed, .. } => self.allow_begin(id, deadline, node, allowed),
            Request::Renew { identity } => self.renew_begin(id, deadline, identity),
            Request::QueryMdns { target, timeout } => {
                let timeout = timeout.unwrap_or(self.cx.config.mdns_timeout);
                let effect = self.browse(id, target, self.cx.now + timeout);
                let stage = Stage::QueryMdns { effect, found: Vec::new() };
                self.begin(id, Open { audience, deadline: deadline.max(self.cx.now + timeout * 2), stage });
            }
            Request::RequestChainData { target, since, limit, options } => {
                self.search_then(id, deadline, target, options, Then::ChainData { since, limit });
            }
            Request::Claims { query, .. } => self.claims_request(id, deadline, query),
            Request::Gestalt { node, query, .. } => self.gestalt_request(id, deadline, node, query),
            Request::Flush { .. } => {
                self.begin(id, Open { audience, deadline, stage: Stage::Flush });
                if self.store.is_durable() {
                    self.end(id, Ok(Reply::Flush));
                } else {
                    self.store.flush(id);
                    self.write_graph();
                }
            }
        }
        self.settle();
        Ok(id)
    }

    /// Searches for a node and connects to it (specification: findNode). For the own id: learns the neighbourhood.
    pub fn find_node(&mut self, target: NodeId, find: FindNode, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::FindNode { target, find }, now)
    }

    /// Finds a node and has it answer (specification: pingNode).
    pub fn ping_node(&mut self, target: NodeId, options: Options, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::PingNode { target, options }, now)
    }

    /// Whether a node is connected, or else can be at this address (specification: pingNodeAddress).
    pub fn ping_node_address(
        &mut self,
        target: NodeId,
        address: NodeAddress,
        options: Options,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::PingNodeAddress { target, address, options }, now)
    }

    /// Finds a node and holds its connection (specification: acquireConnection).
    pub fn acquire_connection(
        &mut self,
        target: NodeId,
        options: Options,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::AcquireConnection { target, options }, now)
    }

    /// Joins the network (specification: syncNodeGraph).
    pub fn sync_node_graph(
        &mut self,
        seeds: Vec<SeedNode>,
        blocking: bool,
        options: Options,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::SyncNodeGraph { seeds, blocking, options }, now)
    }

    /// Puts a node into the graph on the embedder's word (specification: setNode). It is told to nobody until a connection
    /// proves it.
    pub fn set_node(
        &mut self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
        how: SetNode,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::SetNode { node, address, data, how }, now)
    }

    /// Looks up a random id of a bucket (specification: refreshBucket).
    pub fn refresh_bucket(
        &mut self,
        bucket: BucketIndex,
        options: Options,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::RefreshBucket { bucket, options }, now)
    }

    /// Cross-signs a claim with a node: both get one into their own chain (specification: claimNode).
    pub fn claim_node(&mut self, target: NodeId, options: Options, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::ClaimNode { target, options }, now)
    }

    /// Puts a node on the allow-list of the claim policy, durably.
    pub fn allow_claim(&mut self, node: NodeId, options: Options, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::AllowClaim { node, allowed: true, options }, now)
    }

    /// Takes a node off the allow-list of the claim policy, durably.
    pub fn disallow_claim(&mut self, node: NodeId, options: Options, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::AllowClaim { node, allowed: false, options }, now)
    }

    /// Asks the local network where a node is (specification: queryMDNS).
    pub fn query_mdns(
        &mut self,
        target: NodeId,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::QueryMdns { target, timeout }, now)
    }

    /// Becomes another key, or presents another certificate of the same one (DESIGN section 7, key renewal).
    pub fn renew(&mut self, identity: Identity, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::Renew { identity }, now)
    }

    /// Reads and verifies the sigchain of a node, behind the last claim of it that is known, as far as `limit` (specification:
    /// requestChainData).
    pub fn request_chain_data(
        &mut self,
        target: NodeId,
        since: Option<Claim>,
        limit: Option<u64>,
        options: Options,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::RequestChainData { target, since, limit, options }, now)
    }

    /// Reads claims of the own sigchain.
    pub fn claims(&mut self, query: ClaimsQuery, options: Options, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::Claims { query, options }, now)
    }

    /// Reads which nodes are linked with one.
    pub fn gestalt(
        &mut self,
        node: NodeId,
        query: GestaltQuery,
        options: Options,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.request(Request::Gestalt { node, query, options }, now)
    }

    /// Writes everything that is not written yet, durably.
    pub fn flush(&mut self, options: Options, now: Instant) -> Result<RequestId, RequestError> {
        self.request(Request::Flush { options }, now)
    }

    /// Ends a request early; its `Event::Done` says `Cancelled`. Nothing happens if it is over already.
    pub fn cancel(&mut self, id: RequestId, now: Instant) {
        self.enter(now, || Call::Cancel(id));
        // Past the point of no return of a renewal or a claim its true outcome is reported.
        let ends = |open: &Open| {
            open.audience == Audience::Embedder
                && !matches!(open.stage, Stage::Renew(_))
                && !is_persisting(&open.stage)
                && standing(&open.stage).is_none()
        };
        if self.open.get(&id).is_some_and(ends) {
            self.end(id, Err(Failure::Cancelled));
            self.settle();
        }
    }
}
