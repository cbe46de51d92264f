//! A new identity: another key, or another certificate of the same key (docs/DESIGN.md, Key
//! renewal).
//!
//! 1. One transaction writes the graph into the inactive node graph space and makes the new key the
//!    owner of the store. After a crash before the transaction the node has its old identity, after
//!    a crash behind it the new one. Until then the driver's key store has both keys.
//! 2. The driver presents the new identity on every handshake.
//! 3. Connections of the old identity accept no new streams, finish their open streams and close
//!    within 30 s. A search for the new id dials the nearest nodes again.
//! 4. A chain has at most [`MAX_CHAIN_LEN`](crate::cert::fault::MAX_CHAIN_LEN) certificates. Beyond
//!    that the oldest are dropped. The ids that only they prove no longer reach this node, and
//!    claims signed by these ids no longer verify ([`Event::FormerIdsDropped`]).
//! 5. Buckets, pending lists and refresh timers are rebuilt for the new id. Garbage collections
//!    end. Searches for the local node restart.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use super::node::NodeManager;
use super::state::renewal::{Renewal, Step};
use super::state::stage::{OpenRequest, Recipient, RequestStage};
use super::state::writes::Evidence;
use crate::api::error::{Failure, RequestError};
use crate::api::event::Event;
use crate::api::output::Output;
use crate::api::reply::Reply;
use crate::api::snapshot::{StoreMeta, contact_row, meta_row};
use crate::api::transport::Identity;
use crate::cert;
use crate::claims::gestalt;
use crate::graph::{DiversityLimits, NodeGraph, PendingNode};
use crate::machine::effects::EffectOwner;
use crate::machine::phase::Phase;
use crate::machine::timer::Timer;
use crate::store::table::{StoreOp, Table, WriteFailure};
use crate::types::id::{BucketIndex, NodeId, RequestId};

impl NodeManager {
    /// Checks whether an identity can replace the current one. Its chain must be the current chain,
    /// with or without one new key in front. A chain of the maximum length may end earlier. Returns
    /// the ids of the new chain.
    pub(super) fn check_renewal(&self, identity: &Identity) -> Result<Vec<NodeId>, RequestError> {
        let presented = identity.presented();
        let proven = cert::verify_client(presented, self.cx.unix().as_secs());
        let chain =
            proven.map_err(|fault| RequestError::Identity(alloc::format!("{fault}")))?.chain;
        let own = self.cx.own_chain();
        let before = match chain.split_first() {
            Some((new, before)) if !self.cx.is_own(new) => before,
            _ => &chain[..],
        };
        let whole = before.len() == own.len() || presented.len() == cert::MAX_CHAIN_LEN;
        if before.is_empty() || !own.starts_with(before) || !whole {
            return Err(RequestError::Identity(
                "its certificate chain does not continue that of the local node".into(),
            ));
        }
        if self.is_renewing() {
            return Err(RequestError::Identity("another renewal is in progress".into()));
        }
        Ok(chain)
    }

    /// Starts a renewal that [`check_renewal`](Self::check_renewal) has accepted.
    pub(super) fn renew_begin(
        &mut self,
        id: RequestId,
        deadline: crate::types::time::Instant,
        identity: Identity,
    ) {
        let Ok(chain) = self.check_renewal(&identity) else { return };
        let identity = identity.shortened();
        let mut written = BTreeSet::new();
        let step = if chain.first() == self.cx.own_chain().first() {
            self.replace_identity(id, identity.clone());
            Step::Replacing
        } else {
            let ops;
            (ops, written) = self.renewal_ops(&chain);
            self.graph_writer.pause(true);
            let owner = chain.first().copied().unwrap_or(self.cx.own());
            let evidence = Evidence::of(&meta_row(&StoreMeta {
                owner,
                space: self.graph_writer.other_space(),
            }));
            self.persist_owner(id, ops, evidence);
            Step::Writing
        };
        let stage = RequestStage::Renew(Renewal { identity, chain, written, step });
        self.begin(id, OpenRequest { recipient: Recipient::Embedder, deadline, stage });
        // A renewal that has started is not cancelled. It reports its true outcome without a time
        // limit, unless the store does not know the outcome.
        self.cx.timers.cancel(Timer::Request(id));
    }

    /// Returns the transaction, which writes the inactive space and the owner row, and the nodes
    /// that it writes.
    fn renewal_ops(&self, chain: &[NodeId]) -> (Vec<StoreOp>, BTreeSet<NodeId>) {
        let space = self.graph_writer.other_space();
        let owner = chain.first().copied().unwrap_or(self.cx.own());
        let graph = self.graph_of(owner);
        let mut ops = alloc::vec![
            StoreOp::Clear { table: Table::Contacts(space) },
            StoreOp::Clear { table: Table::Refresh }
        ];
        let mut written = BTreeSet::new();
        for (node, contact) in graph.iter().filter(|(node, _)| !self.nodes.unproven.contains(node))
        {
            ops.push(contact_row(space, &node, contact));
            written.insert(node);
        }
        if let [new, old, ..] = chain {
            ops.extend(gestalt::renewal_rows(new, old));
        }
        ops.push(meta_row(&StoreMeta { owner, space }));
        (ops, written)
    }

    /// Returns the graph relative to another local id. A full bucket has its most recently
    /// connected nodes.
    fn graph_of(&self, own: NodeId) -> NodeGraph {
        let config = &self.cx.config;
        let limits = DiversityLimits {
            per_bucket: config.bucket_prefix_limit,
            per_table: config.graph_prefix_limit,
        };
        let mut graph =
            NodeGraph::new(own, config.bucket_limit, config.address_limit).with_diversity(limits);
        let mut nodes: Vec<_> = self.nodes.graph.iter().collect();
        nodes.sort_by_key(|(node, contact)| (core::cmp::Reverse(contact.connected_time()), *node));
        for (node, contact) in nodes {
            graph.restore(node, contact);
            if let Some(at) = self.nodes.graph.seen(&node) {
                graph.set_seen(&node, at);
            }
        }
        graph
    }

    /// Handles the outcome of a transaction of a renewal.
    pub(super) fn renewal_persisted(&mut self, id: RequestId, result: &Result<(), WriteFailure>) {
        let Some(renewal) = self.requests.stage::<Renewal>(id) else { return };
        match (renewal.step.clone(), result) {
            (Step::Writing, Ok(())) => {
                let identity = renewal.identity.clone();
                if let Some(renewal) = self.requests.stage_mut::<Renewal>(id) {
                    renewal.step = Step::Replacing;
                }
                self.replace_identity(id, identity);
            }
            (Step::Writing, Err(why)) => {
                self.cx.metrics.store_failures += 1;
                self.graph_writer.space_not_switched(&mut self.cx);
                self.end(id, Err(why.clone().into()));
            }
            (Step::Reverting(cause), result) => {
                match result {
                    Ok(()) => {
                        self.graph_writer.pause(false);
                        self.graph_writer.rearm(&mut self.cx);
                    }
                    Err(_) => self.graph_writer.space_not_switched(&mut self.cx),
                }
                self.end(id, Err(Failure::Identity(cause)));
            }
            (Step::Replacing, _) => {}
        }
    }

    /// Requests that the driver present the new identity.
    fn replace_identity(&mut self, id: RequestId, identity: Identity) {
        let id = self.cx.effects.begin(EffectOwner::ReplaceIdentity(id));
        self.cx.output(Output::ReplaceIdentity { id, identity });
    }

    /// Handles the result of the driver. If the driver cannot present a new key, another
    /// transaction restores the old owner before the request fails.
    pub(super) fn identity_replaced(&mut self, id: RequestId, result: Result<(), String>) {
        let Some(renewal) = self.requests.stage::<Renewal>(id) else { return };
        let (chain, written) = (renewal.chain.clone(), renewal.written.clone());
        let other_key = chain.first() != self.cx.own_chain().first();
        match result {
            Ok(()) => {
                let old = self.cx.own();
                let new = chain.first().copied().unwrap_or(old);
                let dropped: Vec<_> = self
                    .cx
                    .own_chain()
                    .iter()
                    .filter(|own| !chain.contains(own))
                    .copied()
                    .collect();
                if other_key {
                    self.switch_to(chain, &written);
                } else {
                    self.cx.set_own(chain);
                }
                if !dropped.is_empty() {
                    self.cx.event(Event::FormerIdsDropped { ids: dropped });
                }
                self.end(id, Ok(Reply::Renew { old, new }));
                self.write_if_awaited();
            }
            Err(why) if other_key => {
                if let Some(renewal) = self.requests.stage_mut::<Renewal>(id) {
                    renewal.step = Step::Reverting(why);
                }
                let meta =
                    meta_row(&StoreMeta { owner: self.cx.own(), space: self.graph_writer.space() });
                let evidence = Evidence::of(&meta);
                self.persist_owner(id, alloc::vec![meta], evidence);
            }
            Err(why) => self.end(id, Err(Failure::Identity(why))),
        }
    }

    /// Returns whether a renewal waits for an effect. `stop` waits for it as well.
    pub(super) fn is_renewing(&self) -> bool {
        self.requests.in_stage::<Renewal>().next().is_some()
    }

    /// Switches to the new identity: graph, connections, advertisement and searches.
    fn switch_to(&mut self, chain: Vec<NodeId>, written: &BTreeSet<NodeId>) {
        let old = self.cx.own();
        let new = chain.first().copied().unwrap_or(old);
        self.cx.set_own(chain);
        self.rebuild_graph(new);
        // Nodes that were admitted after the transaction are not in it.
        let missing: Vec<_> = self
            .nodes
            .graph
            .iter()
            .map(|(node, _)| node)
            .filter(|node| !written.contains(node))
            .collect();
        for node in missing {
            self.graph_writer.changed(&mut self.cx, node);
        }
        self.graph_writer.space_switched(&mut self.cx);

        // Before their connections close: nothing is sent on one that does.
        let searches = self.end_self_searches(old);
        let Self { cx, connections, rpc, .. } = self;
        connections.retire(cx, |conn| rpc.in_use(conn));
        self.cx.event(Event::IdentityRenewed { old, new });
        self.advertise_instead_of(old);
        self.restart_self_searches(new, searches);
        if self.cx.phase() == Phase::Running {
            self.search_for_self(Recipient::None);
        }
    }

    /// Moves every node into its bucket relative to a local id (specification: resetBuckets). If a
    /// bucket is full, its least recently connected nodes are removed.
    pub(super) fn rebuild_graph(&mut self, own: NodeId) {
        let waiters = self.abandon_rounds();
        let other = own != self.nodes.graph.own();
        let graph = self.graph_of(own);
        let before = core::mem::replace(&mut self.nodes.graph, graph);
        for (node, _) in before.iter() {
            if !self.nodes.graph.contains(&node) {
                self.nodes.unproven.remove(&node);
                self.upkeep.failing.remove(&node);
                self.upkeep.reaches.remove(&node);
                self.graph_writer.changed(&mut self.cx, node);
                self.cx.event(Event::NodeRemoved { node });
            }
        }
        let pending: Vec<PendingNode> = self.nodes.pending.drain().collect();
        for waiting in pending {
            if let Some(bucket) = own.bucket_index(&waiting.node) {
                let dropped = self.nodes.pending.add(bucket, waiting, self.cx.config.pending_limit);
                self.cx.metrics.pending_dropped += u64::from(dropped.is_some());
            }
        }
        if other {
            // The buckets contain other nodes, so the stored times of refreshes do not apply to
            // them.
            self.nodes.refreshed.clear();
            self.nodes.due_after_join.clear();
        }
        for bucket in (0..=255).map(BucketIndex) {
            if other {
                self.cx.timers.cancel(Timer::Refresh(bucket));
            }
            self.cx.timers.cancel(Timer::Collect(bucket));
            // Pending nodes enter buckets with free room. The others wait for a garbage collection.
            self.fill(bucket);
            if self.nodes.pending.has(bucket) {
                self.cx
                    .timers
                    .set(Timer::Collect(bucket), self.cx.now + self.cx.config.collect_interval);
            }
        }
        self.arm_useful();
        self.keep_far();
        self.tell_waiters(waiters);
    }
}
