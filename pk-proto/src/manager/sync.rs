//! Joining the network: dials all seeds at once, and starts the search for the local id when the
//! first seed is connected.

use alloc::vec::Vec;

use super::lifecycle::{OnRaceEnded, Reactions};
use super::node::NodeManager;
use super::search::outcome;
use super::state::request_table::Entry;
use super::state::stage::{OnConnected, Recipient};
use super::state::sync::Sync;
use crate::api::error::{Failure, SeedFailure};
use crate::api::reply::{Reply, Synced};
use crate::api::request::{FindNodeOptions, RequestOptions};
use crate::api::transport::DialFailure;
use crate::machine::dial::{AddressOrigin, DialTarget};
use crate::types::address::{Host, NodeAddress};
use crate::types::id::{NodeId, RequestId};
use crate::types::seed_node::SeedNode;

impl Reactions for Sync {
    fn on_race_ended(&self) -> Option<OnRaceEnded> {
        Some(|node, id, seed, result| node.sync_seed_ended(id, seed, result.err()))
    }
}

impl NodeManager {
    /// Dials every seed. Seeds with the same node id are addresses of one node, which one race
    /// dials.
    pub(super) fn sync_begin(&mut self, id: RequestId, seeds: Vec<SeedNode>) {
        let none = seeds.is_empty();
        let Some(sync) = self.requests.stage_mut::<Sync>(id) else { return };
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
            if self.connections.live(node).is_some() {
                live.push(*node);
            } else {
                let addresses: Vec<_> = seeds.iter().map(|seed| seed.address.clone()).collect();
                dials.push((*node, addresses));
            }
        }
        for (node, addresses) in dials {
            self.connections.dial(
                &mut self.cx,
                id,
                DialTarget::at(node, addresses, AddressOrigin::DIRECT, timeout).foreground(),
            );
        }
        for node in live {
            self.sync_seed_ended(id, node, None);
        }
        if none {
            self.sync_search(id);
        }
        self.sync_check(id);
    }

    /// Handles a seed that is connected (`failures` is `None`) or could not be dialed.
    fn sync_seed_ended(
        &mut self,
        id: RequestId,
        node: NodeId,
        failures: Option<Vec<(NodeAddress, DialFailure)>>,
    ) {
        let Some(sync) = self.requests.stage_mut::<Sync>(id) else { return };
        let Some(seeds) = sync.waiting.remove(&node) else { return };
        match failures {
            None => {
                sync.reached.push(node);
                self.sync_search(id);
            }
            Some(failures) => {
                let failed = seeds.iter().map(|seed| {
                    (seed.clone(), SeedFailure::Dial(of_seed(seed, &seeds, &failures)))
                });
                sync.failed.extend(failed);
            }
        }
        self.sync_check(id);
    }

    /// Starts the search for the local id, once.
    fn sync_search(&mut self, id: RequestId) {
        let Some(Entry { deadline, payload: sync, .. }) = self.requests.entry::<Sync>(id) else {
            return;
        };
        if sync.search.is_some() || sync.outcome.is_some() {
            return;
        }
        let search = self.cx.ids.request();
        let options =
            RequestOptions { deadline: None, connect_timeout: Some(sync.connect_timeout) };
        let recipient = if sync.blocking { Recipient::Parent(id) } else { Recipient::Join };
        sync.search = sync.blocking.then_some(search);
        let own = self.cx.own();
        let find = FindNodeOptions { options, ..FindNodeOptions::default() };
        self.search(search, recipient, deadline, own, &find, OnConnected::Report);
        if recipient == Recipient::Join {
            self.sync_done(id);
        }
    }

    /// Handles the end of the search for the local id.
    pub(super) fn sync_search_ended(&mut self, id: RequestId, result: Result<Reply, Failure>) {
        let Some(sync) = self.requests.stage_mut::<Sync>(id) else { return };
        sync.search = None;
        sync.outcome = outcome(result);
        self.refresh_after_join();
        self.sync_done(id);
    }

    /// Ends the join with a failure if no seed is left and none was reached.
    fn sync_check(&mut self, id: RequestId) {
        let Some(sync) = self.requests.stage_mut::<Sync>(id) else { return };
        if sync.waiting.is_empty()
            && sync.search.is_none()
            && sync.outcome.is_none()
            && sync.reached.is_empty()
        {
            let failed = core::mem::take(&mut sync.failed);
            self.end(id, Err(Failure::NoSeedReached(failed)));
        }
    }

    /// Ends the join with success. Seeds that are still being dialed are reported as
    /// `NotWaitedFor`.
    fn sync_done(&mut self, id: RequestId) {
        let Some(sync) = self.requests.stage_mut::<Sync>(id) else { return };
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

/// Returns those failures of a node that belong to one of its seeds: failures of the seed's address
/// or, if the seed has a host name, of addresses that no other seed has.
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
