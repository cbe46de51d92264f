//! Pending nodes and garbage collection of full buckets (specification: addPendingNode,
//! garbageCollectBucket).
//!
//! A round probes the nodes of a bucket, the least recently connected first, several at a time. A
//! node with a live connection counts as alive at once; the known addresses of others are dialed. A
//! node that does not respond is removed, and a pending node takes its place. A bucket has at most
//! one active round and one that waits. Only the embedder starts rounds: a node that connects to a
//! full bucket becomes pending, and takes the place of a contact that leaves (`manager/upkeep/`).

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use super::lifecycle::{OnRaceEnded, Reactions};
use super::node::NodeManager;
use super::state::bucket_gc::Collect;
use super::state::stage::{OpenRequest, Recipient, RequestStage, RoomWaiter};
use crate::api::event::Event;
use crate::api::reply::Reply;
use crate::api::request::SetNodeOptions;
use crate::graph::outcome::{SetNodeOutcome, SetNodeRejection};
use crate::graph::{Direction, NodeOrder, PendingNode};
use crate::machine::dial::DialTarget;
use crate::machine::timer::Timer;
use crate::types::address::{NodeAddress, NodeContactAddressData};
use crate::types::id::{BucketIndex, NodeId, RequestId};
use crate::types::sockets::is_relayed_address;
use crate::types::time::Instant;

impl Reactions for Collect {
    fn on_race_ended(&self) -> Option<OnRaceEnded> {
        Some(|node, id, probed, result| node.probe_ended(id, &probed, result.is_ok()))
    }
}

impl NodeManager {
    /// Adds a node to the graph after a connection has proved its address. If the bucket is full,
    /// the node becomes pending.
    pub(super) fn proven(
        &mut self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
    ) {
        if address.socket().is_some_and(|addr| is_relayed_address(&addr)) {
            // Its relay has named no address.
            return;
        }
        let outcome = self.set_in_graph(node, address.clone(), data);
        if outcome == SetNodeOutcome::Rejected(SetNodeRejection::BucketFull) {
            self.add_pending(PendingNode { node, address, data, proven: true });
        }
    }

    /// Starts a `SetNodeOptions` request. Without `block` it ends at once.
    pub(super) fn set_node_request(
        &mut self,
        id: RequestId,
        deadline: Instant,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
        how: SetNodeOptions,
    ) {
        let known = self.nodes.graph.contains(&node);
        let mut outcome = self.set_in_graph(node, address.clone(), data);
        if outcome == SetNodeOutcome::Rejected(SetNodeRejection::BucketFull) {
            if how.force {
                outcome = self.replace_oldest(node, address, data);
            } else {
                let timeout = how.options.connect_timeout.unwrap_or(self.cx.config.connect_timeout);
                let waiter = how.block.then_some(id);
                if how.block {
                    let stage = RequestStage::WaitForRoom(RoomWaiter { node });
                    self.begin(id, OpenRequest { recipient: Recipient::Embedder, deadline, stage });
                }
                self.wait_for_room(
                    PendingNode { node, address, data, proven: false },
                    waiter,
                    timeout,
                );
                if how.block {
                    return;
                }
                // The round may have ended already, or the pending list has dropped the node.
                let waits = self
                    .cx
                    .own()
                    .bucket_index(&node)
                    .is_some_and(|bucket| self.nodes.pending.contains(bucket, &node));
                if self.nodes.graph.contains(&node) {
                    outcome = SetNodeOutcome::Added;
                } else if waits {
                    outcome = SetNodeOutcome::Pending;
                }
            }
        }
        if !known && self.nodes.graph.contains(&node) && self.connections.primary(&node).is_none() {
            self.nodes.unproven.insert(node);
        }
        self.cx.event(Event::Done { id, result: Ok(Reply::SetNode(outcome)) });
    }

    /// Replaces the least recently connected node of a full bucket. If the new node is rejected,
    /// the graph is unchanged.
    fn replace_oldest(
        &mut self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
    ) -> SetNodeOutcome {
        let Some(bucket) = self.cx.own().bucket_index(&node) else {
            return SetNodeOutcome::Rejected(SetNodeRejection::OwnNode);
        };
        let oldest =
            self.nodes.graph.bucket_sorted(bucket, NodeOrder::ConnectedTime, Direction::Ascending);
        let Some(oldest) = oldest.first().map(|(oldest, _)| *oldest) else {
            return SetNodeOutcome::Rejected(SetNodeRejection::BucketFull);
        };
        let Some(before) = self.nodes.graph.unset(&oldest) else {
            return SetNodeOutcome::Rejected(SetNodeRejection::BucketFull);
        };
        let outcome = self.nodes.graph.set(node, address, self.by_our_clock(data));
        if outcome == SetNodeOutcome::Added {
            self.left_graph(&oldest);
        } else {
            // The replaced node returns because the new one was rejected.
            self.nodes.graph.restore(oldest, &before);
        }
        self.was_set(node, outcome);
        if outcome == SetNodeOutcome::Added { SetNodeOutcome::Replaced(oldest) } else { outcome }
    }

    /// Adds a node to the pending list of its bucket, and starts a round or schedules one.
    fn wait_for_room(
        &mut self,
        pending: PendingNode,
        waiter: Option<RequestId>,
        timeout: Duration,
    ) {
        let Some(bucket) = self.add_pending(pending) else { return };
        let now = self.cx.now;
        let interval = self.cx.config.collect_interval;
        let rounds = self.nodes.collections.entry(bucket).or_default();
        rounds.waiting.extend(waiter);
        let due = rounds.begun.map_or(now, |begun| begun + interval);
        if rounds.active {
            rounds.wanted = true;
        } else if waiter.is_some() || due <= now {
            self.begin_round(bucket, timeout);
        } else {
            self.cx.timers.set(Timer::Collect(bucket), due);
        }
    }

    /// Adds a node to the pending list of its bucket, and returns the bucket.
    pub(super) fn add_pending(&mut self, pending: PendingNode) -> Option<BucketIndex> {
        let bucket = self.cx.own().bucket_index(&pending.node)?;
        if self.nodes.pending.add(bucket, pending, self.cx.config.pending_limit).is_some() {
            self.cx.metrics.pending_dropped += 1;
        }
        Some(bucket)
    }

    /// Handles the timer of a bucket: starts a round if nodes are pending and none is active.
    pub(super) fn collect_due(&mut self, bucket: BucketIndex) {
        if self.nodes.pending.has(bucket)
            && self.nodes.collections.get(&bucket).is_none_or(|rounds| !rounds.active)
        {
            self.begin_round(bucket, self.cx.config.connect_timeout);
        }
    }

    /// Starts a round of a bucket.
    fn begin_round(&mut self, bucket: BucketIndex, timeout: Duration) {
        self.cx.timers.cancel(Timer::Collect(bucket));
        self.cx.metrics.collections += 1;
        let nodes =
            self.nodes.graph.bucket_sorted(bucket, NodeOrder::ConnectedTime, Direction::Ascending);
        let queue: VecDeque<_> = nodes.into_iter().map(|(node, _)| node).collect();
        let rounds = self.nodes.collections.entry(bucket).or_default();
        rounds.active = true;
        rounds.wanted = false;
        rounds.begun = Some(self.cx.now);
        let waiters = core::mem::take(&mut rounds.waiting);
        let id = self.cx.ids.request();
        // Each probe has its own timeout. This deadline limits the whole round.
        let deadline = self.cx.now + timeout * u32::try_from(queue.len() + 1).unwrap_or(u32::MAX);
        let collect =
            Collect { bucket, timeout, queue, probing: BTreeSet::new(), waiters, abandoned: false };
        self.begin(
            id,
            OpenRequest {
                recipient: Recipient::None,
                deadline,
                stage: RequestStage::Collect(collect),
            },
        );
        self.advance_round(id);
    }

    /// Starts probes of a round, up to the concurrency limit. Ends the round if no node is pending,
    /// or no node is left to probe.
    fn advance_round(&mut self, id: RequestId) {
        loop {
            let Some(collect) = self.requests.stage_mut::<Collect>(id) else { return };
            let (bucket, timeout) = (collect.bucket, collect.timeout);
            if collect.probing.len() >= self.cx.config.collect_concurrency {
                return;
            }
            let idle = collect.probing.is_empty();
            let next = collect.queue.pop_front();
            self.fill(bucket);
            if !self.nodes.pending.has(bucket) || (next.is_none() && idle) {
                return self.end(id, Err(crate::api::error::Failure::Cancelled));
            }
            let Some(node) = next else { return };
            if self.connections.live(&node).is_some() {
                continue;
            }
            let dial_target = self
                .nodes
                .graph
                .get(&node)
                .map(|contact| DialTarget::known(node, contact, timeout));
            if let Some(collect) = self.requests.stage_mut::<Collect>(id)
                && let Some(dial_target) = dial_target
            {
                collect.probing.insert(node);
                self.connections.dial(&mut self.cx, id, dial_target);
            }
        }
    }

    /// Adds pending nodes to the graph while their bucket has room.
    pub(super) fn fill(&mut self, bucket: BucketIndex) {
        while self.nodes.graph.bucket_len(bucket) < self.cx.config.bucket_limit
            && let Some(pending) = self.nodes.pending.pop(bucket)
        {
            let outcome = self.set_in_graph(pending.node, pending.address, pending.data);
            if outcome == SetNodeOutcome::Added && pending.proven {
                self.admitted(pending.node);
            }
            if outcome == SetNodeOutcome::Added
                && !pending.proven
                && self.connections.primary(&pending.node).is_none()
            {
                self.nodes.unproven.insert(pending.node);
            }
        }
    }

    /// Handles the end of a probe: removes a dead node and continues the round.
    fn probe_ended(&mut self, id: RequestId, node: &NodeId, alive: bool) {
        let Some(collect) = self.requests.stage_mut::<Collect>(id) else { return };
        if collect.probing.remove(node) {
            if !alive {
                self.cx.metrics.nodes_dead += 1;
                self.remove_from_graph(node);
            }
            self.advance_round(id);
        }
    }

    /// Ends a round. Nodes that are still pending are dropped, unless another round was requested
    /// meanwhile. Requests that wait for this round end.
    pub(super) fn round_ended(&mut self, collect: Collect) {
        if collect.abandoned {
            return;
        }
        let bucket = collect.bucket;
        self.fill(bucket);
        let again = self.nodes.collections.get_mut(&bucket).is_some_and(|rounds| {
            rounds.active = false;
            core::mem::take(&mut rounds.wanted)
        });
        if !again {
            self.cx.metrics.pending_dropped += self.nodes.pending.clear(bucket) as u64;
        }
        self.tell_waiters(collect.waiters);
        if again {
            let rounds = self.nodes.collections.get(&bucket);
            let blocked = rounds.is_some_and(|rounds| !rounds.waiting.is_empty());
            let due = rounds.and_then(|rounds| rounds.begun);
            let due = due.map_or(self.cx.now, |begun| begun + self.cx.config.collect_interval);
            if self.cx.phase() != super::Phase::Running {
                self.cx.metrics.pending_dropped += self.nodes.pending.clear(bucket) as u64;
            } else if blocked || due <= self.cx.now {
                self.begin_round(bucket, self.cx.config.connect_timeout);
            } else {
                self.cx.timers.set(Timer::Collect(bucket), due);
            }
        }
    }

    /// Ends every round, because nodes move to other buckets. Returns the requests that wait for
    /// rounds; the caller ends them.
    pub(super) fn abandon_rounds(&mut self) -> Vec<RequestId> {
        let rounds: Vec<_> = self.requests.in_stage::<Collect>().map(|(id, _)| id).collect();
        let mut waiters = Vec::new();
        for id in rounds {
            if let Some(collect) = self.requests.stage_mut::<Collect>(id) {
                waiters.append(&mut collect.waiters);
                // The round no longer has a bucket, so its end has no effect.
                self.nodes
                    .collections
                    .remove(&collect.bucket)
                    .into_iter()
                    .for_each(|rounds| waiters.extend(rounds.waiting));
                collect.abandoned = true;
            }
            self.end(id, Err(crate::api::error::Failure::Cancelled));
        }
        self.nodes.collections.clear();
        waiters
    }

    /// Removes a request from those that wait for a round of the bucket of `node`.
    pub(super) fn leave_rounds(&mut self, id: RequestId, node: &NodeId) {
        let bucket = self.cx.own().bucket_index(node);
        if let Some(rounds) = bucket.and_then(|bucket| self.nodes.collections.get_mut(&bucket)) {
            rounds.waiting.retain(|waiting| *waiting != id);
        }
    }

    /// Ends the requests that wait for room in a bucket.
    pub(super) fn tell_waiters(&mut self, waiters: Vec<RequestId>) {
        for waiter in waiters {
            if let Some(RoomWaiter { node }) = self.requests.stage(waiter) {
                let outcome = match self.nodes.graph.contains(node) {
                    true => SetNodeOutcome::Added,
                    false => SetNodeOutcome::Rejected(SetNodeRejection::BucketFull),
                };
                self.end(waiter, Ok(Reply::SetNode(outcome)));
            }
        }
    }
}
