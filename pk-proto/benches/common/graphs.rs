//! Node graphs with the limits of the default settings.

use pk_proto::{DiversityLimits, NodeAddress, NodeGraph, NodeId};

use super::{DATA, address, ids};

/// Ids that a graph is filled from.
const CANDIDATES: usize = 100_000;

/// A filled graph, and what is done with it.
pub struct Graphs {
    /// Filled from random ids, most of which it has rejected.
    pub full: NodeGraph,
    /// The contacts of that graph in the order in which they were added.
    pub contacts: Vec<(NodeId, NodeAddress)>,
    /// Ids that a full bucket rejects.
    pub rejected: Vec<(NodeId, NodeAddress)>,
    /// Random targets.
    pub targets: Vec<NodeId>,
    /// Targets that share three bytes with the local id.
    pub near: Vec<NodeId>,
}

impl Graphs {
    pub fn new() -> Self {
        let mut full = empty();
        let (mut contacts, mut rejected) = (Vec::new(), Vec::new());
        for (number, node) in ids(CANDIDATES, 1).into_iter().enumerate() {
            let list = match full.set(node, address(number), DATA) {
                pk_proto::SetNodeOutcome::Added => &mut contacts,
                _ => &mut rejected,
            };
            list.push((node, address(number)));
        }
        rejected.truncate(1000);
        let near = |id: NodeId| {
            let mut bytes = *id.as_bytes();
            bytes[..3].copy_from_slice(&full.own().as_bytes()[..3]);
            NodeId::from_bytes(bytes)
        };
        let near = ids(500, 2).into_iter().map(near).collect();
        Self { full, contacts, rejected, targets: ids(500, 3), near }
    }
}

/// A graph without contacts.
pub fn empty() -> NodeGraph {
    let limits = DiversityLimits { per_bucket: 2, per_table: 10 };
    NodeGraph::new(ids(1, 0)[0], 20, 5).with_diversity(limits)
}

/// Adds or updates contacts.
pub fn set(graph: &mut NodeGraph, contacts: Vec<(NodeId, NodeAddress)>) {
    for (node, address) in contacts {
        std::hint::black_box(graph.set(node, address, DATA));
    }
}

/// Searches for the 20 closest contacts of each target.
pub fn closest(graph: &NodeGraph, targets: &[NodeId]) {
    for target in targets {
        std::hint::black_box(graph.closest(target, 20));
    }
}
