//! Changes of the graph. Every change is emitted as an event, counted, and written after a delay.

use alloc::vec::Vec;

use super::node::NodeManager;
use crate::api::error::{ConnectionErrorReason, Failure};
use crate::api::event::Event;
use crate::api::reply::Reply;
use crate::api::transport::Side;
use crate::graph::outcome::{SetNodeOutcome, SetNodeRejection};
use crate::machine::effects::PersistOwner;
use crate::machine::phase::Phase;
use crate::store::table::WriteFailure;
use crate::types::address::{ContactMode, NodeAddress, NodeContactAddressData};
use crate::types::id::{ConnectionId, NodeId};

impl NodeManager {
    /// Both ends have accepted a connection: the node is a contact from now on, and everything that
    /// waits for it continues.
    pub(super) fn connection_opened(&mut self, conn: ConnectionId, node: NodeId, side: Side) {
        let Some((address, data)) = self.connections.address(conn) else { return };
        if self.nodes.unproven.remove(&node) {
            self.graph_writer.changed(&mut self.cx, node);
        }
        let chain = self.connections.chain(conn);
        let former = self.leave_former(&chain);
        if self.connections.is_relayed(conn) {
            self.cx.metrics.connections_relayed += 1;
            self.watch_path(conn);
            self.offer_candidates(conn);
        } else {
            self.punched(&chain);
            self.move_relayed(&node, &address);
        }
        let new = !self.nodes.graph.contains(&node);
        self.proven(node, address.clone(), data);
        chain.iter().skip(1).for_each(|former| self.refill(former));
        let how = (data.mode == ContactMode::Direct).then_some(side);
        self.node_responds(node, how, new);
        self.keep_far();
        if self.nodes.graph.contains(&node) {
            for (address, data) in former {
                self.set_in_graph(node, address, data);
            }
        }
        self.cx.event(Event::ConnectionOpened { conn, node, side, address });
        self.offer_to_searches(node, &chain);
        self.repeat_suspected(node);
        self.resume_with(&chain);
    }

    /// Adds a node to the graph or updates it, and emits the event. A connection time later than
    /// the local clock is replaced by the current time.
    pub(super) fn set_in_graph(
        &mut self,
        node: NodeId,
        address: NodeAddress,
        data: NodeContactAddressData,
    ) -> SetNodeOutcome {
        // The graph itself rejects only the newest local id.
        let outcome = match self.cx.is_own(&node) {
            true => SetNodeOutcome::Rejected(SetNodeRejection::OwnNode),
            false => self.nodes.graph.set(node, address, self.by_our_clock(data)),
        };
        self.was_set(node, outcome);
        outcome
    }

    /// Returns the data with a connection time that is not later than the local clock.
    pub(super) fn by_our_clock(&self, mut data: NodeContactAddressData) -> NodeContactAddressData {
        data.connected_time = data.connected_time.min(self.cx.unix());
        data
    }

    /// Limits the connection times in the graph after the wall clock was set or the graph was
    /// loaded. A time in the future would rank the contact as the most recent one until the clock
    /// reaches it.
    pub(super) fn limit_times(&mut self) {
        // Stored times are limited when the node starts.
        if self.cx.phase() != Phase::Running {
            return;
        }
        let unix = self.cx.unix();
        for node in self.nodes.graph.limit_times(unix) {
            self.graph_writer.changed(&mut self.cx, node);
        }
    }

    /// Counts the outcome of adding a node to the graph. If the graph has changed, emits the event
    /// and schedules the write.
    pub(super) fn was_set(&mut self, node: NodeId, outcome: SetNodeOutcome) {
        match outcome {
            SetNodeOutcome::Rejected(SetNodeRejection::BucketFull) => {
                self.cx.metrics.bucket_full += 1;
            }
            SetNodeOutcome::Rejected(SetNodeRejection::Diversity) => {
                self.cx.metrics.diversity_refused += 1;
            }
            SetNodeOutcome::Rejected(_) => {}
            SetNodeOutcome::Added
            | SetNodeOutcome::Updated
            | SetNodeOutcome::Replaced(_)
            | SetNodeOutcome::Pending => {
                if outcome == SetNodeOutcome::Added {
                    self.cx.event(Event::NodeAdded { node });
                }
                self.graph_writer.changed(&mut self.cx, node);
                if let Some(bucket) = self.cx.own().bucket_index(&node) {
                    self.bucket_touched(bucket);
                }
            }
        }
    }

    /// Removes the former ids of a node that has renewed its key, because the graph has only its
    /// newest id. Returns the addresses of the former ids that a connection had proved.
    pub(super) fn leave_former(
        &mut self,
        chain: &[NodeId],
    ) -> Vec<(NodeAddress, NodeContactAddressData)> {
        let mut known = Vec::new();
        for former in chain.iter().skip(1) {
            if let Some(bucket) = self.cx.own().bucket_index(former) {
                self.nodes.pending.remove(bucket, former);
            }
            if self.is_proven(*former) {
                known.extend(
                    self.nodes
                        .graph
                        .get(former)
                        .into_iter()
                        .flat_map(|contact| contact.iter().rev().cloned()),
                );
            }
            self.remove_from_graph(former);
        }
        known
    }

    /// A peer has sent another external address than `former`, or that it has none any longer.
    pub(super) fn external_changed(&mut self, conn: ConnectionId, former: Option<NodeAddress>) {
        let named = self.rpc.external_of(conn);
        let withdrawn = former.filter(|former| named != Some(former));
        let is_named = named.is_some();
        if let Some(former) = withdrawn {
            self.withdraw_external(conn, &former);
        }
        if is_named && !self.store_external(conn) {
            self.cx.metrics.externals_refused += 1;
        }
    }

    /// Stores the external address that a peer has sent on a connection as the address of the
    /// connection is stored. It must be at the same host, so that no node can let others dial a
    /// third one. Of a relayed connection only the relay says where its peer is. Returns whether it
    /// is stored.
    pub(super) fn store_external(&mut self, conn: ConnectionId) -> bool {
        let Some(address) = self.rpc.external_of(conn).cloned() else { return false };
        let observed = self.connections.node(conn).zip(self.connections.address(conn));
        let Some((node, (observed, data))) = observed else { return false };
        let is_its_own = !self.connections.is_relayed(conn)
            && address.host == observed.host
            && self.cx.accepts_address(&address, Some(&observed));
        let is_stored = is_its_own && self.nodes.graph.contains(&node);
        if is_stored {
            self.cx.metrics.externals_stored += 1;
            self.set_in_graph(node, address, data);
        }
        is_stored
    }

    /// A peer has withdrawn an external address: it is no address of the contact any longer, unless
    /// a connection with the peer shows otherwise. The last address of a contact stays.
    fn withdraw_external(&mut self, conn: ConnectionId, former: &NodeAddress) {
        let Some(node) = self.connections.node(conn) else { return };
        let is_shown = self.connections.connections_with(&node).any(|conn| {
            let at = self.connections.address(conn);
            at.is_some_and(|(at, _)| at == *former) || self.rpc.external_of(conn) == Some(former)
        });
        if !is_shown && self.nodes.graph.unset_address(&node, former) {
            self.cx.metrics.externals_withdrawn += 1;
            self.graph_writer.changed(&mut self.cx, node);
        }
    }

    /// The peer of a connection does not belong to the local network: closes the connection. The
    /// node leaves the graph, under every id that it has proved.
    pub(super) fn refuse_network(&mut self, conn: ConnectionId, reason: ConnectionErrorReason) {
        self.cx.metrics.connections_of_other_networks += 1;
        let chain = self.connections.chain(conn);
        self.connections.close(&mut self.cx, conn, reason);
        chain.iter().for_each(|node| self.leave_network(node));
    }

    /// A node belongs to another network: it is no contact, does not wait to be one, and is not
    /// remembered as a lost one.
    pub(super) fn leave_network(&mut self, node: &NodeId) {
        if let Some(bucket) = self.cx.own().bucket_index(node) {
            self.nodes.pending.remove(bucket, node);
        }
        self.remove_from_graph(node);
        self.refill(node);
        if self.upkeep.lost.remove(node) {
            self.graph_writer.lost_changed(&mut self.cx, *node);
        }
    }

    /// Removes a node from the graph and emits the event. Returns whether it was in the graph.
    pub(super) fn remove_from_graph(&mut self, node: &NodeId) -> bool {
        let there = self.nodes.graph.unset(node).is_some();
        if there {
            self.left_graph(node);
        }
        there
    }

    /// Emits that a node was removed from the graph, and schedules the write.
    pub(super) fn left_graph(&mut self, node: &NodeId) {
        self.nodes.unproven.remove(node);
        self.upkeep.failing.remove(node);
        self.upkeep.reaches.remove(node);
        self.graph_writer.changed(&mut self.cx, *node);
        self.cx.event(Event::NodeRemoved { node: *node });
    }

    /// Starts to write the changes of the graph.
    pub(super) fn write_graph(&mut self) {
        self.graph_writer.write(
            &mut self.cx,
            &self.nodes.graph,
            &self.nodes.unproven,
            &self.nodes.refreshed,
            |node| self.upkeep.lost.get(node).map(|lost| (lost.since, lost.contact.clone())),
        );
    }

    /// Passes the known outcome of a transaction to its owner.
    pub(super) fn written(&mut self, owner: PersistOwner, result: Result<(), WriteFailure>) {
        match owner {
            PersistOwner::Claim { writer, appends } => {
                self.claim_persisted(writer, appends, &result);
            }
            PersistOwner::Renewal(request) => {
                self.renewal_persisted(request, &result);
                self.write_if_awaited();
            }
            PersistOwner::Links(request) => self.links_persisted(request, &result),
            PersistOwner::Graph => self.graph_persisted(result),
        }
    }

    /// Handles the outcome of a transaction of the graph.
    fn graph_persisted(&mut self, result: Result<(), WriteFailure>) {
        let Some((flushed, result)) = self.graph_writer.persisted(&mut self.cx, result) else {
            return;
        };
        for request in flushed {
            self.end(request, result.clone().map(|()| Reply::Flush).map_err(Failure::from));
        }
        if result.is_err() && self.cx.phase() == Phase::Stopping {
            // A node that stops does not retry.
            self.graph_writer.discard();
        }
        // After a failure the retry is delayed, even if requests wait for it.
        if result.is_err() || !self.write_if_awaited() {
            self.graph_writer.rearm(&mut self.cx);
        }
    }

    /// Writes the changes of the graph at once if a request or `stop` waits for them. Returns
    /// whether this is so.
    pub(super) fn write_if_awaited(&mut self) -> bool {
        let awaited = self.graph_writer.is_flushing() || self.cx.phase() == Phase::Stopping;
        if awaited {
            self.write_graph();
        }
        awaited
    }
}
