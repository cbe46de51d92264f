//! What a run remembers: open requests, and what was measured.

use std::collections::BTreeMap;

use pk_proto::{Instant, RequestId};

use crate::host::id::HostId;
use crate::scenario::spec::Pairs;
use crate::wire::traffic::Traffic;

/// Open requests, and what ended ones have shown.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) open: BTreeMap<(HostId, u32, RequestId), Open>,
    /// Virtual time of the end and duration of each search for a target that was not connected, in
    /// seconds and milliseconds.
    pub(super) searches: Vec<(f64, f64)>,
    pub(super) joins: Vec<(f64, f64)>,
    pub(super) join_failures: u64,
    pub(super) ended: u64,
    pub(super) found: u64,
    pub(super) across: u64,
    pub(super) across_found: u64,
    pub(super) attempts: u64,
    pub(super) calls: u64,
    pub(super) claims: u64,
    pub(super) claims_committed: u64,
    pub(super) chains: u64,
    pub(super) chains_verified: u64,
    pub(super) forged_read: u64,
    pub(super) forged_accepted: u64,
    pub(super) path: Option<Path>,
    /// When the first search started, and the last one ended.
    pub(super) first_search: Option<Instant>,
    pub(super) last_search: Option<Instant>,
}

/// An open request.
#[derive(Debug, Clone)]
pub(super) enum Open {
    Search {
        target: HostId,
        pairs: Pairs,
        connected: bool,
        begun: Instant,
    },
    Join {
        begun: Instant,
    },
    Claim {
        target: HostId,
        begun: Instant,
    },
    Chain {
        target: HostId,
        begun: Instant,
    },
    /// The chain of a peer that forges claims.
    Forged,
}

/// A search as a path through the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    /// Duration, in milliseconds.
    pub took_ms: f64,
    /// Contacts, in the order of their starts.
    pub steps: Vec<PathStep>,
}

/// A contact of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct PathStep {
    /// Contact that reported it, as an index; `None` if the node knew it.
    pub from: Option<usize>,
    /// Number of leading bits that its id shares with the target. Range 0–256.
    pub depth: u32,
    /// Start after that of the search, in milliseconds.
    pub begun_ms: f64,
    /// Duration, in milliseconds.
    pub took_ms: f64,
    /// How it ended: `target`, `answered`, `silent`, `unreachable` or `pending`.
    pub end: &'static str,
}

impl Requests {
    pub(super) fn joins_open(&self) -> usize {
        self.open.values().filter(|open| matches!(open, Open::Join { .. })).count()
    }

    /// Number of open searches and joins.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// A host was killed: its requests will not end.
    pub(super) fn killed(&mut self, host: HostId) {
        self.open.retain(|(of, ..), _| *of != host);
    }
}

/// Measurements of a run.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// The measured time began.
    pub(super) from: Option<Mark>,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) series: Vec<Sampled>,
    pub(super) last: Option<(f64, Traffic, u64)>,
    /// CPU time until some moments after the start, in seconds.
    pub(super) cpu: Vec<(f64, f64)>,
    pub(super) contacts_lost: Option<u64>,
    pub(super) roamed: u64,
    /// Connections in the measured time of nodes that were killed.
    pub(super) buried: u64,
}

/// Totals at a moment.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) at: Instant,
    pub(super) traffic: Vec<Traffic>,
    pub(super) metrics: BTreeMap<HostId, Metrics>,
    pub(super) node_seconds: f64,
}

/// Counters of a node that are measured.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Metrics {
    pub(super) accepted: u64,
}

/// Traffic of the measured time.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) node_hours: f64,
    pub(super) dials: u64,
    pub(super) accepted: u64,
    pub(super) traffic: Traffic,
    /// Accepted connections of each node that ran throughout, per hour.
    pub(super) load: Vec<f64>,
}

/// The tables at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Snapshot {
    pub(super) dead: f64,
    pub(super) known: f64,
    pub(super) all: f64,
}

/// A measurement over time. Rates are those since the one before.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sampled {
    /// Time after the start, in seconds.
    pub at_s: f64,
    /// Honest nodes that run.
    pub nodes: usize,
    /// Dials per node and hour.
    pub dials: f64,
    /// Accepted connections per node and hour.
    pub accepted: f64,
    /// Bytes on streams per node and hour.
    pub bytes: f64,
    /// Datagrams per node and hour.
    pub datagrams: f64,
    /// Ends of live connections per node.
    pub connections: f64,
}

/// Occupancy of the buckets of one distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Index, 255 for the farthest.
    pub index: u8,
    /// Contacts of the nodes: the smallest number, the median and the largest.
    pub contacts: [usize; 3],
    /// Median number of nodes that there are in the network.
    pub possible: usize,
}
