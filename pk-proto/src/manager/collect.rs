//! Full buckets: nodes that wait for room, and garbage collection (specification: addPendingNode, garbageCollectBucket).
//!
//! A round probes the nodes of a bucket, the least recently connected first, a few at a time: a live connection answers at
//! once, else the known addresses are dialled. A node that does not answer leaves, and a waiting one takes its place. One
//! round of a bucket is active at a time and one may wait; peers alone cannot have them begin more often than
//! `collect_interval`.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use super::NodeManager;
use super::open::{Audience, Open, Stage};
use crate::address::{NodeAddress, NodeContactAddressData};
use crate::connect::Goal;
use crate::graph::{Direction, NodeOrder, PendingNode};
use crate::id::{BucketIndex, NodeId, RequestId};
use crate::io::Event;
use crate::request::{Reply, SetNode, SetNodeOutcome, SetNodeRejection};
use crate::time::Instant;
use crate::timers::Timer;

/// The rounds of one bucket.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    active: bool,
    /// Another one is due after it.
    wanted: bool,
    /// Requests that end with the next round.
    waiting: Vec<RequestId>,
    begun: Option<Instant>,
}

/// One round under way.
#[derive(Debug)]
pub(super) struct Collect {
    bucket: BucketIndex,
    timeout: Duration,
    /// Nodes to be probed, the least recently connected first.
    queue: VecDeque<NodeId>,
    probing: BTreeSet<NodeId>,
    /// Requests that end with this round.
    waiters: Vec<RequestId>,
    /// Its bucket is another one by now.
    abandoned: bool,
}

/// The rounds of all buckets that have had one.
pub(super) type Collections = BTreeMap<BucketIndex, Rounds>;

impl NodeManager {
    /// A connection has proven a node at an address: it goes into the graph, or waits for room.
    pub(super) fn proven(&mut self, node: NodeId, address: NodeAddress, data: NodeContactAddressData) {
        let outcome = self.set_in_graph(node, address.clone(), data);
        if outcome == SetNodeOutcome::Rejected(SetNodeRejection::BucketFull) {
            self.wait_for_room(PendingNode { node, address, data, proven: true }, None, self.cx.config.connect_timeout);
        }
    }

    /// The request to put a node into the graph.
    pub(super) fn set_node_request(
        &mut self,
        id: RequestId,
        deadline: Instant,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
        how: SetNode,
    ) {
        let known = self.graph.contains(&node);
        let mut outcome = self.set_in_graph(node, address.clone(), data);
        if outcome == SetNodeOutcome::Rejected(SetNodeRejection::BucketFull) {
            if how.force {
                outcome = self.replace_oldest(node, address, data);
            } else {
                let timeout = how.options.connect_timeout.unwrap_or(self.cx.config.connect_timeout);
                let waiter = how.block.then_some(id);
                if how.block {
                    let stage = Stage::WaitForRoom { node };
                    self.begin(id, Open { audience: Audience::Embedder, deadline, stage });
                }
                self.wait_for_room(PendingNode { node, address, data, proven: false }, waiter, timeout);
                if how.block {
                    return;
                }
                outcome = SetNodeOutcome::Pending;
            }
        }
        if !known && self.graph.contains(&node) && self.connections.primary(&node).is_none() {
            self.unproven.insert(node);
        }
        self.cx.event(Event::Done { id, result: Ok(Reply::SetNode(outcome)) });
    }

    fn replace_oldest(&mut self, node: NodeId, address: NodeAddress, data: NodeContactAddressData) -> SetNodeOutcome {
        let Some(bucket) = self.cx.own().bucket_index(&node) else {
            return SetNodeOutcome::Rejected(SetNodeRejection::OwnNode);
        };
        let oldest = self.graph.bucket_sorted(bucket, NodeOrder::ConnectedTime, Direction::Ascending);
        let Some(oldest) = oldest.first().map(|(oldest, _)| *oldest) else {
            return SetNodeOutcome::Rejected(SetNodeRejection::BucketFull);
        };
        let Some(before) = self.graph.unset(&oldest) else {
            return SetNodeOutcome::Rejected(SetNodeRejection::BucketFull);
        };
        let outcome = self.graph.set(node, address, data);
        if outcome == SetNodeOutcome::Added {
            self.left_graph(&oldest);
        } else {
            // Nobody leaves for a node that does not come in.
            self.graph.restore(oldest, &before);
        }
        self.was_set(node, outcome);
        if outcome == SetNodeOutcome::Added { SetNodeOutcome::Replaced(oldest) } else { outcome }
    }

    /// Puts a node on the pending list of its bucket and has the bucket collected.
    fn wait_for_room(&mut self, pending: PendingNode, waiter: Option<RequestId>, timeout: Duration) {
        let Some(bucket) = self.cx.own().bucket_index(&pending.node) else { return };
        if self.pending.add(bucket, pending, self.cx.config.pending_limit).is_some() {
            self.cx.metrics.pending_dropped += 1;
        }
        let now = self.cx.now;
        let interval = self.cx.config.collect_interval;
        let rounds = self.collections.entry(bucket).or_default();
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

    /// The next round of a bucket may begin.
    pub(super) fn collect_due(&mut self, bucket: BucketIndex) {
        if self.pending.has(bucket) && self.collections.get(&bucket).is_none_or(|rounds| !rounds.active) {
            self.begin_round(bucket, self.cx.config.connect_timeout);
        }
    }

    fn begin_round(&mut self, bucket: BucketIndex, timeout: Duration) {
        self.cx.timers.cancel(Timer::Collect(bucket));
        self.cx.metrics.collections += 1;
        let nodes = self.graph.bucket_sorted(bucket, NodeOrder::ConnectedTime, Direction::Ascending);
        let queue: VecDeque<_> = nodes.into_iter().map(|(node, _)| node).collect();
        let rounds = self.collections.entry(bucket).or_default();
        rounds.active = true;
        rounds.wanted = false;
        rounds.begun = Some(self.cx.now);
        let waiters = core::mem::take(&mut rounds.waiting);
        let id = self.cx.ids.request();
        // Probes end by themselves; this only bounds the whole.
        let deadline = self.cx.now + timeout * u32::try_from(queue.len() + 1).unwrap_or(u32::MAX);
        let collect = Collect { bucket, timeout, queue, probing: BTreeSet::new(), waiters, abandoned: false };
        self.begin(id, Open { audience: Audience::Nobody, deadline, stage: Stage::Collect(collect) });
        self.advance_round(id);
    }

    /// Lets a round do what it can.
    fn advance_round(&mut self, id: RequestId) {
        loop {
            let Some(Open { stage: Stage::Collect(collect), .. }) = self.open.get_mut(&id) else { return };
            let (bucket, timeout) = (collect.bucket, collect.timeout);
            if collect.probing.len() >= self.cx.config.find_concurrency {
                return;
            }
            let idle = collect.probing.is_empty();
            let next = collect.queue.pop_front();
            self.fill(bucket);
            if !self.pending.has(bucket) || (next.is_none() && idle) {
                return self.end(id, Err(crate::error::Failure::Cancelled));
            }
            let Some(node) = next else { return };
            if self.connections.primary(&node).is_some() {
                continue;
            }
            let goal = self.graph.get(&node).map(|contact| Goal::known(node, contact, timeout));
            if let Some(Open { stage: Stage::Collect(collect), .. }) = self.open.get_mut(&id)
                && let Some(goal) = goal
            {
                collect.probing.insert(node);
                self.connections.dial(&mut self.cx, id, goal);
            }
        }
    }

    /// Nodes that wait take the room that there is.
    pub(super) fn fill(&mut self, bucket: BucketIndex) {
        while self.graph.bucket_len(bucket) < self.cx.config.bucket_limit
            && let Some(pending) = self.pending.pop(bucket)
        {
            let outcome = self.set_in_graph(pending.node, pending.address, pending.data);
            if outcome == SetNodeOutcome::Added && !pending.proven && self.connections.primary(&pending.node).is_none()
            {
                self.unproven.insert(pending.node);
            }
        }
    }

    /// A probe of a round is over.
    pub(super) fn probe_ended(&mut self, id: RequestId, node: &NodeId, alive: bool) {
        let Some(Open { stage: Stage::Collect(collect), .. }) = self.open.get_mut(&id) else { return };
        if collect.probing.remove(node) {
            if !alive {
                self.cx.metrics.nodes_dead += 1;
                self.remove_from_graph(node);
            }
            self.advance_round(id);
        }
    }

    /// A round is over: what still waits is dropped, unless it came while the round went on; its waiters are told.
    pub(super) fn round_ended(&mut self, collect: Collect) {
        if collect.abandoned {
            return;
        }
        let bucket = collect.bucket;
        self.fill(bucket);
        let again = self.collections.get_mut(&bucket).is_some_and(|rounds| {
            rounds.active = false;
            core::mem::take(&mut rounds.wanted)
        });
        if !again {
            self.cx.metrics.pending_dropped += self.pending.clear(bucket) as u64;
        }
        self.tell_waiters(collect.waiters);
        if again {
            let rounds = self.collections.get(&bucket);
            let blocked = rounds.is_some_and(|rounds| !rounds.waiting.is_empty());
            let due = rounds.and_then(|rounds| rounds.begun);
            let due = due.map_or(self.cx.now, |begun| begun + self.cx.config.collect_interval);
            if self.phase != super::Phase::Running {
                self.pending.clear(bucket);
            } else if blocked || due <= self.cx.now {
                self.begin_round(bucket, self.cx.config.connect_timeout);
            } else {
                self.cx.timers.set(Timer::Collect(bucket), due);
            }
        }
    }

    /// Ends every round, since buckets change their places; gives the requests that wait for one, to be told afterwards.
    pub(super) fn abandon_rounds(&mut self) -> Vec<RequestId> {
        let rounds: Vec<_> =
            self.open.iter().filter(|(_, open)| matches!(open.stage, Stage::Collect(_))).map(|(id, _)| *id).collect();
        let mut waiters = Vec::new();
        for id in rounds {
            if let Some(Open { stage: Stage::Collect(collect), .. }) = self.open.get_mut(&id) {
                waiters.append(&mut collect.waiters);
                // Nothing of its bucket is left for its end to do.
                self.collections.remove(&collect.bucket).into_iter().for_each(|rounds| waiters.extend(rounds.waiting));
                collect.abandoned = true;
            }
            self.end(id, Err(crate::error::Failure::Cancelled));
        }
        self.collections.clear();
        waiters
    }

    /// Ends the requests that have waited for room.
    pub(super) fn tell_waiters(&mut self, waiters: Vec<RequestId>) {
        for waiter in waiters {
            if let Some(Open { stage: Stage::WaitForRoom { node }, .. }) = self.open.get(&waiter) {
                let outcome = match self.graph.contains(node) {
                    true => SetNodeOutcome::Added,
                    false => SetNodeOutcome::Rejected(SetNodeRejection::BucketFull),
                };
                self.end(waiter, Ok(Reply::SetNode(outcome)));
            }
        }
    }
}
