//! A new identity: another key, or another certificate of the same key (DESIGN section 7, key renewal).
//!
//! 1. One transaction writes the graph into the other half of the store and makes the new key its owner. A crash before it
//!    leaves the old node whole, a crash after it the new one; the driver's key store holds both keys until then.
//! 2. The driver presents the new identity on every handshake from now on.
//! 3. Connections of the old identity carry nothing new, finish their streams and close within 30 s. The neighbourhood of the
//!    new id is searched, which dials the nearest nodes again.
//! 4. Buckets, pending lists and refresh timers are those of the new id; rounds end; searches for ourselves begin anew.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::open::{Audience, Open, Stage, Then};
use super::{NodeManager, Phase};
use crate::cert;
use crate::claims::gestalt;
use crate::error::{Failure, RequestError};
use crate::graph::{DiversityLimits, NodeGraph, PendingNode};
use crate::id::{BucketIndex, EffectId, NodeId, RequestId};
use crate::io::{Event, Identity, Output, StoreOp, Table};
use crate::request::{FindEnd, Reply};
use crate::store::{StoreMeta, contact_row, meta_row};
use crate::timers::Timer;

/// How long connections of the old identity may finish what they are at.
pub(crate) const RETIREMENT: Duration = Duration::from_secs(30);

/// A renewal under way.
#[derive(Debug)]
pub(super) struct Renewal {
    identity: Identity,
    /// The ids of the new chain, newest first.
    chain: Vec<NodeId>,
    /// The nodes that the transaction has written.
    written: BTreeSet<NodeId>,
    /// The effect that is waited for.
    effect: EffectId,
    step: Step,
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// The transaction.
    Writing,
    /// The driver, to present the new identity.
    Replacing,
    /// The transaction that takes the first one back, since the driver could not.
    Reverting(String),
}

impl NodeManager {
    /// Whether an identity can follow ours: its chain is ours with one new key before it, or the same keys.
    pub(super) fn check_renewal(&self, identity: &Identity) -> Result<Vec<NodeId>, RequestError> {
        let proven = cert::verify_client(&identity.chain, self.cx.unix().as_secs());
        let chain = proven.map_err(|fault| RequestError::Identity(alloc::format!("{fault}")))?.chain;
        let own = self.cx.own_chain();
        let follows =
            chain == own || chain.strip_prefix(&[chain.first().copied().unwrap_or(self.cx.own())]) == Some(own);
        if !follows || (chain != own && self.cx.is_own(chain.first().unwrap_or(&self.cx.own()))) {
            return Err(RequestError::Identity("its chain does not continue that of this node".into()));
        }
        if self.open.values().any(|open| matches!(open.stage, Stage::Renew(_))) {
            return Err(RequestError::Identity("a renewal is under way".into()));
        }
        Ok(chain)
    }

    /// Begins a renewal that [`check_renewal`](Self::check_renewal) has let pass.
    pub(super) fn renew_begin(&mut self, id: RequestId, deadline: crate::time::Instant, identity: Identity) {
        let Ok(chain) = self.check_renewal(&identity) else { return };
        let effect = self.cx.ids.effect();
        let mut written = BTreeSet::new();
        let step = if chain == self.cx.own_chain() {
            self.cx.output(Output::ReplaceIdentity { id: effect, identity: identity.clone() });
            Step::Replacing
        } else {
            let ops;
            (ops, written) = self.renewal_ops(&chain);
            self.store.hold(true);
            self.cx.output(Output::Persist { id: effect, ops, durable: true });
            Step::Writing
        };
        let stage = Stage::Renew(Renewal { identity, chain, written, effect, step });
        self.begin(id, Open { audience: Audience::Embedder, deadline, stage });
        // Past its beginning a renewal is not given up: its true outcome is reported, whenever that is.
        self.cx.timers.cancel(Timer::Request(id));
    }

    /// The transaction: the other half of the graph, and whose it is; and the nodes in it.
    fn renewal_ops(&self, chain: &[NodeId]) -> (Vec<StoreOp>, BTreeSet<NodeId>) {
        let space = self.store.other_space();
        let owner = chain.first().copied().unwrap_or(self.cx.own());
        let graph = self.graph_of(owner);
        let mut ops =
            alloc::vec![StoreOp::Clear { table: Table::Contacts(space) }, StoreOp::Clear { table: Table::Refresh }];
        let mut written = BTreeSet::new();
        for (node, contact) in graph.iter().filter(|(node, _)| !self.unproven.contains(node)) {
            ops.push(contact_row(space, &node, contact));
            written.insert(node);
        }
        if let [new, old, ..] = chain {
            ops.extend(gestalt::renewal_rows(new, old));
        }
        ops.push(meta_row(&StoreMeta { owner, space }));
        (ops, written)
    }

    /// Our graph as another id sees it: the most recently connected nodes of each bucket.
    fn graph_of(&self, own: NodeId) -> NodeGraph {
        let config = &self.cx.config;
        let limits = DiversityLimits { per_bucket: config.bucket_prefix_limit, per_table: config.graph_prefix_limit };
        let mut graph = NodeGraph::new(own, config.bucket_limit, config.address_limit).with_diversity(limits);
        let mut nodes: Vec<_> = self.graph.iter().collect();
        nodes.sort_by_key(|(node, contact)| (core::cmp::Reverse(contact.connected_time()), *node));
        for (node, contact) in nodes {
            graph.restore(node, contact);
        }
        graph
    }

    /// A transaction is over. Returns whether it was one of a renewal.
    pub(super) fn renewal_persisted(&mut self, effect: EffectId, result: &Result<(), String>) -> bool {
        let Some((id, renewal)) = self.renewal(effect) else { return false };
        match (renewal.step.clone(), result) {
            (Step::Writing, Ok(())) => {
                let identity = renewal.identity.clone();
                let effect = self.cx.ids.effect();
                if let Some(Open { stage: Stage::Renew(renewal), .. }) = self.open.get_mut(&id) {
                    renewal.effect = effect;
                    renewal.step = Step::Replacing;
                }
                self.cx.output(Output::ReplaceIdentity { id: effect, identity });
            }
            (Step::Writing, Err(why)) => {
                self.cx.metrics.store_failures += 1;
                self.store.not_switched(&mut self.cx);
                self.end(id, Err(Failure::Store(why.clone())));
            }
            (Step::Reverting(cause), result) => {
                match result {
                    Ok(()) => {
                        self.store.hold(false);
                        self.store.rearm(&mut self.cx);
                    }
                    Err(_) => self.store.not_switched(&mut self.cx),
                }
                self.end(id, Err(Failure::Identity(cause)));
            }
            (Step::Replacing, _) => {}
        }
        true
    }

    /// The driver presents the new identity, or cannot. Returns whether it was waited for.
    pub(super) fn identity_replaced(&mut self, effect: EffectId, result: Result<(), String>) -> bool {
        let Some((id, renewal)) = self.renewal(effect) else { return false };
        if renewal.step != Step::Replacing {
            return false;
        }
        let (chain, written) = (renewal.chain.clone(), renewal.written.clone());
        let other_key = chain != self.cx.own_chain();
        match result {
            Ok(()) => {
                let old = self.cx.own();
                let new = chain.first().copied().unwrap_or(old);
                if other_key {
                    self.switch_to(chain, &written);
                }
                self.end(id, Ok(Reply::Renew { old, new }));
                self.write_if_awaited();
            }
            Err(why) if other_key => {
                let effect = self.cx.ids.effect();
                if let Some(Open { stage: Stage::Renew(renewal), .. }) = self.open.get_mut(&id) {
                    renewal.effect = effect;
                    renewal.step = Step::Reverting(why);
                }
                let meta = StoreMeta { owner: self.cx.own(), space: self.store.space() };
                self.cx.output(Output::Persist { id: effect, ops: alloc::vec![meta_row(&meta)], durable: true });
            }
            Err(why) => self.end(id, Err(Failure::Identity(why))),
        }
        true
    }

    fn renewal(&self, effect: EffectId) -> Option<(RequestId, &Renewal)> {
        self.open.iter().find_map(|(id, open)| match &open.stage {
            Stage::Renew(renewal) if renewal.effect == effect => Some((*id, renewal)),
            _ => None,
        })
    }

    /// Whether a renewal waits for an effect; `stop` waits for it as well.
    pub(super) fn is_renewing(&self) -> bool {
        self.open.values().any(|open| matches!(open.stage, Stage::Renew(_)))
    }

    /// From here on we are another node.
    fn switch_to(&mut self, chain: Vec<NodeId>, written: &BTreeSet<NodeId>) {
        let old = self.cx.own();
        let new = chain.first().copied().unwrap_or(old);
        self.cx.set_own(chain);
        self.rebuild_graph(new);
        // Who has found room only now is not in the transaction.
        let missing: Vec<_> = self.graph.iter().map(|(node, _)| node).filter(|node| !written.contains(node)).collect();
        for node in missing {
            self.store.changed(&mut self.cx, node);
        }
        self.store.switched(&mut self.cx);

        let Self { cx, connections, rpc, .. } = self;
        connections.retire(cx, |conn| rpc.in_use(conn));
        self.cx.event(Event::IdentityRenewed { old, new });
        self.advertise_instead_of(old);
        self.restart_self_searches(old, new);
        if self.phase == Phase::Running {
            self.search_for_self(Audience::Nobody);
        }
    }

    /// Puts every node into the bucket where the own id has it now (specification: resetBuckets). Nodes that a bucket has no
    /// room for leave, the least recently connected first.
    pub(super) fn rebuild_graph(&mut self, own: NodeId) {
        let waiters = self.abandon_rounds();
        let other = own != self.graph.own();
        let graph = self.graph_of(own);
        let before = core::mem::replace(&mut self.graph, graph);
        for (node, _) in before.iter() {
            if !self.graph.contains(&node) {
                self.unproven.remove(&node);
                self.store.changed(&mut self.cx, node);
                self.cx.event(Event::NodeRemoved { node });
            }
        }
        let pending: Vec<PendingNode> = self.pending.drain().collect();
        for waiting in pending {
            if let Some(bucket) = own.bucket_index(&waiting.node) {
                let dropped = self.pending.add(bucket, waiting, self.cx.config.pending_limit);
                self.cx.metrics.pending_dropped += u64::from(dropped.is_some());
            }
        }
        if other {
            // The buckets are other ones: when the old ones were refreshed says nothing of them.
            self.refreshed.clear();
            self.owed.clear();
        }
        for bucket in (0..=255).map(BucketIndex) {
            if other {
                self.cx.timers.cancel(Timer::Refresh(bucket));
            }
            self.cx.timers.cancel(Timer::Collect(bucket));
            // What waits comes in where there is room now; the rest gets its round.
            self.fill(bucket);
            if self.pending.has(bucket) {
                self.cx.timers.set(Timer::Collect(bucket), self.cx.now + self.cx.config.collect_interval);
            }
        }
        self.arm_useful();
        self.tell_waiters(waiters);
    }

    fn restart_self_searches(&mut self, old: NodeId, new: NodeId) {
        let searches: Vec<_> = self
            .open
            .iter()
            .filter_map(|(id, open)| match &open.stage {
                Stage::Find { lookup, then: Then::Report } if *lookup.target() == old => Some(*id),
                _ => None,
            })
            .collect();
        for id in searches {
            let Some(Open { audience, deadline, stage: Stage::Find { lookup, .. } }) = self.open.remove(&id) else {
                continue;
            };
            self.parts -= usize::from(audience != Audience::Embedder);
            for stream in lookup.streams() {
                self.rpc.cancel(&mut self.cx, stream);
            }
            self.connections.leave(&mut self.cx, id);
            let find = lookup.limits();
            lookup.finish(&mut self.cx, FindEnd::Exhausted);
            self.search(id, audience, deadline, new, &find, Then::Report);
        }
    }
}
