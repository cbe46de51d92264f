//! The node: entry points, and routing between the parts.

use alloc::string::String;
use alloc::vec::Vec;

use crate::config::Config;
use crate::cx::Cx;
use crate::error::{RequestError, StartError};
use crate::graph::NodeContact;
use crate::id::{BucketIndex, LeaseId, NodeId, RequestId};
use crate::io::{Identity, Input, Output};
use crate::metrics::Metrics;
use crate::request::{ConnectionInfo, Request};
use crate::time::{Instant, UnixMillis};

/// What a node knew when it last ran.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    /// The graph.
    pub contacts: Vec<(NodeId, NodeContact)>,
}

/// The node layer of one Polykey node, as a machine without IO.
#[derive(Debug)]
pub struct NodeManager {
    cx: Cx,
}

impl NodeManager {
    /// Makes a machine.
    pub fn new(
        config: Config,
        identity: Identity,
        snapshot: Snapshot,
        seed: [u8; 32],
        now: Instant,
        unix: UnixMillis,
    ) -> Result<Self, StartError> {
        let _ = (identity, snapshot);
        config.validate()?;
        Ok(Self { cx: Cx::new(config, Vec::new(), seed, now, unix) })
    }

    /// Begins a request.
    pub fn request(&mut self, request: Request, now: Instant) -> Result<RequestId, RequestError> {
        let _ = (request, now);
        Err(RequestError::NotReady)
    }

    /// Ends a request early.
    pub fn cancel(&mut self, id: RequestId, now: Instant) {
        let _ = (id, now);
    }

    /// Ends a lease. Does nothing if it is over already.
    pub fn release(&mut self, lease: LeaseId, now: Instant) {
        let _ = (lease, now);
    }

    /// Closes every connection with a node and returns how many.
    pub fn disconnect(&mut self, node: NodeId, now: Instant) -> usize {
        let _ = (node, now);
        0
    }

    /// Takes a node out of the graph; its connections stay. Returns whether it was there.
    pub fn unset_node(&mut self, node: NodeId, now: Instant) -> bool {
        let _ = (node, now);
        false
    }

    /// Accepts streams of an application protocol from now on.
    pub fn accept_protocol(&mut self, protocol: String) -> Result<(), RequestError> {
        let _ = protocol;
        Ok(())
    }

    /// Refuses new streams of an application protocol from now on.
    pub fn refuse_protocol(&mut self, protocol: &str) {
        let _ = protocol;
    }

    /// Begins to stop.
    pub fn stop(&mut self, now: Instant) {
        let _ = now;
    }

    /// Takes in what the world did.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        let _ = (input, now);
    }

    /// Fires every timer that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// What the driver must do next, in order; drain until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.cx.poll_output()
    }

    /// When `handle_timeout` is to be called, if nothing else happens; `None` once stopped.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.cx.timers.next()
    }

    /// The id of the newest key.
    pub fn own_id(&self) -> NodeId {
        self.cx.own()
    }

    /// The nodes of one bucket.
    pub fn bucket(&self, index: BucketIndex) -> Vec<(NodeId, &NodeContact)> {
        let _ = index;
        Vec::new()
    }

    /// The nodes of the graph closest to a target, nearest first; exact.
    pub fn closest_nodes(&self, target: NodeId, limit: usize) -> Vec<(NodeId, &NodeContact)> {
        let _ = (target, limit);
        Vec::new()
    }

    /// What is known of a node.
    pub fn contact(&self, node: NodeId) -> Option<&NodeContact> {
        let _ = node;
        None
    }

    /// The accepted connections.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        Vec::new()
    }

    /// The counters.
    pub fn metrics(&self) -> Metrics {
        self.cx.metrics
    }

    /// Whether `Event::Stopped` has been emitted.
    pub fn is_stopped(&self) -> bool {
        false
    }
}
