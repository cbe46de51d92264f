//! Joining the network: all seeds at once, then the search for the own id from whoever answers first.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use super::NodeManager;
use super::open::{Audience, Open, Stage, Then};
use super::search::outcome;
use crate::address::{Host, NodeAddress};
use crate::connect::{Goal, Learnt};
use crate::error::{Failure, SeedFailure};
use crate::id::{NodeId, RequestId};
use crate::io::DialFailure;
use crate::request::{FindNode, FindOutcome, Options, Reply, Synced};
use crate::seed_node::SeedNode;

/// A join under way.
#[derive(Debug)]
pub(super) struct Sync {
    blocking: bool,
    /// For every dial, of the seeds and of the search.
    connect_timeout: Duration,
    /// Seeds that are being dialled.
    waiting: BTreeMap<NodeId, Vec<SeedNode>>,
    reached: Vec<NodeId>,
    failed: Vec<(SeedNode, SeedFailure)>,
    /// The search for the own id, once it has begun.
    pub(super) search: Option<RequestId>,
    outcome: Option<FindOutcome>,
}

impl Sync {
    pub(super) fn new(blocking: bool, connect_timeout: Duration) -> Self {
        Self {
            blocking,
            connect_timeout,
            waiting: BTreeMap::new(),
            reached: Vec::new(),
            failed: Vec::new(),
            search: None,
            outcome: None,
        }
    }
}

impl NodeManager {
    /// Dials every seed. Seeds of one node are its addresses and race each other.
    pub(super) fn sync_begin(&mut self, id: RequestId, seeds: Vec<SeedNode>) {
        let none = seeds.is_empty();
        let Some(Open { stage: Stage::Sync(sync), .. }) = self.open.get_mut(&id) else { return };
        let timeout = sync.connect_timeout;
        for seed in seeds {
            if self.cx.is_own(&seed.node) {
                sync.failed.push((seed, SeedFailure::OwnNode));
            } else {
                sync.waiting.entry(seed.node).or_default().push(seed);
            }
        }
        let mut dials = Vec::new();
        let mut live = Vec::new();
        for (node, seeds) in &sync.waiting {
            if self.connections.primary(node).is_some() {
                live.push(*node);
            } else {
                let addresses: Vec<_> = seeds.iter().map(|seed| seed.address.clone()).collect();
                dials.push((*node, addresses));
            }
        }
        for (node, addresses) in dials {
            self.connections.dial(&mut self.cx, id, Goal::at(node, addresses, Learnt::DIRECT, timeout).urgent());
        }
        for node in live {
            self.sync_seed_ended(id, node, None);
        }
        if none {
            self.sync_search(id);
        }
        self.sync_check(id);
    }

    /// A seed is connected (`None`) or cannot be.
    pub(super) fn sync_seed_ended(
        &mut self,
        id: RequestId,
        node: NodeId,
        failures: Option<Vec<(NodeAddress, DialFailure)>>,
    ) {
        let Some(Open { stage: Stage::Sync(sync), .. }) = self.open.get_mut(&id) else { return };
        let Some(seeds) = sync.waiting.remove(&node) else { return };
        match failures {
            None => {
                sync.reached.push(node);
                self.sync_search(id);
            }
            Some(failures) => {
                let failed =
                    seeds.iter().map(|seed| (seed.clone(), SeedFailure::Dial(of_seed(seed, &seeds, &failures))));
                sync.failed.extend(failed);
            }
        }
        self.sync_check(id);
    }

    /// Begins the search for the own id, once.
    fn sync_search(&mut self, id: RequestId) {
        let Some(Open { deadline, stage: Stage::Sync(sync), .. }) = self.open.get_mut(&id) else { return };
        if sync.search.is_some() || sync.outcome.is_some() {
            return;
        }
        let search = self.cx.ids.request();
        let deadline = *deadline;
        let options = Options { deadline: None, connect_timeout: Some(sync.connect_timeout) };
        let audience = if sync.blocking { Audience::Parent(id) } else { Audience::Join };
        sync.search = sync.blocking.then_some(search);
        let own = self.cx.own();
        let find = FindNode { options, ..FindNode::default() };
        self.search(search, audience, deadline, own, &find, Then::Report);
        if audience == Audience::Join {
            self.sync_done(id);
        }
    }

    /// The search for the own id is over.
    pub(super) fn sync_search_ended(&mut self, id: RequestId, result: Result<Reply, Failure>) {
        let Some(Open { stage: Stage::Sync(sync), .. }) = self.open.get_mut(&id) else { return };
        sync.search = None;
        sync.outcome = outcome(result);
        self.refresh_after_join();
        self.sync_done(id);
    }

    /// Ends the join if no seed is left and none was reached.
    fn sync_check(&mut self, id: RequestId) {
        let Some(Open { stage: Stage::Sync(sync), .. }) = self.open.get_mut(&id) else { return };
        if sync.waiting.is_empty() && sync.search.is_none() && sync.outcome.is_none() && sync.reached.is_empty() {
            let failed = core::mem::take(&mut sync.failed);
            self.end(id, Err(Failure::NoSeedReached(failed)));
        }
    }

    fn sync_done(&mut self, id: RequestId) {
        let Some(Open { stage: Stage::Sync(sync), .. }) = self.open.get_mut(&id) else { return };
        let late = core::mem::take(&mut sync.waiting).into_values().flatten();
        sync.failed.extend(late.map(|seed| (seed, SeedFailure::NotWaitedFor)));
        let synced = Synced {
            seeds: core::mem::take(&mut sync.reached),
            failed: core::mem::take(&mut sync.failed),
            search: sync.outcome.take(),
        };
        self.end(id, Ok(Reply::SyncNodeGraph(synced)));
    }
}

/// What of the failures of a node concerns one of its seeds: that of its address; for a name, those of addresses that no
/// other seed has.
fn of_seed(
    seed: &SeedNode,
    all: &[SeedNode],
    failures: &[(NodeAddress, DialFailure)],
) -> Vec<(NodeAddress, DialFailure)> {
    let is_name = matches!(seed.address.host, Host::Name(_));
    let concerns = |address: &NodeAddress| {
        *address == seed.address || is_name && all.iter().all(|other| other.address != *address)
    };
    let own: Vec<_> = failures.iter().filter(|(address, _)| concerns(address)).cloned().collect();
    if own.is_empty() { failures.to_vec() } else { own }
}
