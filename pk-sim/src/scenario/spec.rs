//! The content of a scenario file (docs/SIMULATOR.md).

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use crate::machine::misbehaving::Misbehavior;

/// A scenario: nodes, links, events, and the figures that must hold.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub struct Scenario {
    /// Name. That of the file, which need not contain it.
    #[serde(skip)]
    pub name: String,
    /// What it shows, in one sentence.
    pub about: String,
    /// Number of honest nodes at the start. Range 2–1,000,000.
    pub nodes: usize,
    /// Duration after the start, in hours. Range 0.001–10,000.
    pub hours: f64,
    /// How the network starts.
    pub start: Start,
    /// Whether `.ci/run` runs it. Default `false`.
    #[serde(default)]
    pub ci: bool,
    /// Whether it also runs without the searches, and the difference is `search_dials`. Default
    /// `false`.
    #[serde(default)]
    pub twin: bool,
    /// Whether all checkers run. Default `false`.
    #[serde(default)]
    pub checkers: bool,
    /// Joins of `start = "join"`.
    #[serde(default)]
    pub join: JoinSpec,
    /// Starts with full tables.
    #[serde(default)]
    pub warm: WarmSpec,
    /// Links.
    #[serde(default)]
    pub link: LinkSpec,
    /// NATs. Default none.
    pub nat: Option<NatSpec>,
    /// Settings of the nodes that differ from the default.
    #[serde(default)]
    pub config: ConfigSpec,
    /// Peers that misbehave from the start. Default none.
    #[serde(default)]
    pub peers: Vec<PeersSpec>,
    /// Events. Default none.
    #[serde(default)]
    pub event: Vec<Spanned<EventSpec>>,
    /// What is measured when.
    #[serde(default)]
    pub measure: MeasureSpec,
    /// Figures that must hold.
    #[serde(default)]
    pub expect: Vec<Spanned<ExpectSpec>>,
}

/// How the network starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The nodes join through seeds; the duration begins when all have joined.
    Join,
    /// The tables and stores are filled from the true network.
    Warm,
    /// The tables are filled, but not the stores, which saves memory; nodes forget them when they
    /// restart.
    WarmUnstored,
}

/// Joins at the start.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JoinSpec {
    /// Number of nodes that the others join through. Default 4, range 1–1000.
    pub seeds: usize,
    /// Time within which the joins start, in seconds. Default 60, range 0–86,400.
    pub window_s: f64,
}

impl Default for JoinSpec {
    fn default() -> Self {
        Self { seeds: 4, window_s: 60.0 }
    }
}

/// Starts with full tables. A node begins with a search for its own id, whose connections need
/// much memory for a few minutes, so that not all nodes of a large network start at once: those
/// whose ids begin with the same bits do, because they search for each other.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmSpec {
    /// Number of nodes that start at once, approximately. Default 4000, range 100–1,000,000.
    pub at_once: usize,
    /// Time until the next ones start, in seconds. Default 20, range 0–3600.
    pub every_s: f64,
}

impl Default for WarmSpec {
    fn default() -> Self {
        Self { at_once: 4000, every_s: 20.0 }
    }
}

/// Links between hosts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkSpec {
    /// One-way latency, in milliseconds. Default 80, range 0–10,000.
    pub latency_ms: u64,
    /// Maximum random addition to it, in milliseconds. Default 40, range 0–10,000.
    pub jitter_ms: u64,
    /// Lost packets, in per mille. Default 0, range 0–900.
    pub loss_per_mille: u16,
    /// Side of a square on which the hosts are placed at random; their distance, in milliseconds,
    /// is added to the latency. Default 0, range 0–10,000.
    pub spread_ms: u64,
}

impl Default for LinkSpec {
    fn default() -> Self {
        Self { latency_ms: 80, jitter_ms: 40, loss_per_mille: 0, spread_ms: 0 }
    }
}

/// NATs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatSpec {
    /// Nodes behind NATs, in percent; the seeds are not. Range 0–100.
    pub percent: u32,
    /// Kinds of NATs, in turn. Default `["port-restricted"]`.
    #[serde(default = "port_restricted")]
    pub kinds: Vec<NatKind>,
    /// Nodes behind each NAT. Default 1, range 1–10,000.
    #[serde(default = "one")]
    pub hosts: usize,
}

fn port_restricted() -> Vec<NatKind> {
    vec![NatKind::PortRestricted]
}

fn one() -> usize {
    1
}

/// Kind of a NAT (RFC 3489 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatKind {
    /// One port for all peers, open to all.
    FullCone,
    /// One port, open to addresses that were sent to.
    Restricted,
    /// One port, open to addresses and ports that were sent to.
    PortRestricted,
    /// A port for each peer.
    Symmetric,
}

/// Settings of the nodes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigSpec {
    /// `Config::refresh_delay`, in seconds; 0 disables.
    pub refresh_delay_s: Option<f64>,
    /// `Config::retry_delay`, in seconds; 0 disables.
    pub retry_delay_s: Option<f64>,
    /// `Config::collect_interval`, in seconds.
    pub collect_interval_s: Option<f64>,
    /// `Config::connection_idle_timeout`, in seconds.
    pub connection_idle_timeout_s: Option<f64>,
    /// `Config::bucket_limit`.
    pub bucket_limit: Option<usize>,
    /// Whether every node signs all claims. Default `false`: none.
    #[serde(default)]
    pub sign_claims: bool,
}

/// Peers that misbehave from the start.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeersSpec {
    /// Behavior.
    pub behavior: Misbehavior,
    /// Their share of all hosts, in percent. Range 0–90.
    pub percent: u32,
}

/// An event. Which fields an event has is in docs/SIMULATOR.md.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventSpec {
    /// Time after the start, in seconds. Range 0 to the duration.
    pub at_s: f64,
    /// What happens.
    #[serde(rename = "do")]
    pub action: Action,
    /// Number of nodes, or of searches, joins and the like.
    pub count: Option<usize>,
    /// Share of the running nodes, in percent.
    pub percent: Option<u32>,
    /// Duration, in seconds.
    pub for_s: Option<f64>,
    /// Interval, in seconds.
    pub every_s: Option<f64>,
    /// Mean lifetime, in seconds.
    pub lifetime_s: Option<f64>,
    /// Searches: between any nodes or across the partition.
    pub pairs: Option<Pairs>,
    /// Peers: behavior.
    pub behavior: Option<Misbehavior>,
    /// Peers: number of networks (/24) that they are in.
    pub networks: Option<usize>,
    /// Peers: number of bits that their ids share with that of the victim.
    pub near_bits: Option<u32>,
    /// Clocks: offset, in seconds.
    pub offset_s: Option<i64>,
    /// Loss of the links, in per mille.
    pub loss_per_mille: Option<u16>,
}

/// What an event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Searches.
    Search,
    /// New nodes join.
    Join,
    /// Nodes are killed and stay so.
    Kill,
    /// Nodes are killed and start again at once, from their stores.
    Restart,
    /// Each node lives for an exponential time and is replaced by a new one.
    Churn,
    /// Two halves of the network lose each other.
    Partition,
    /// All partitions end.
    Heal,
    /// Nodes lose the network for a while.
    Away,
    /// Processes stop for a while.
    Freeze,
    /// Clocks are set.
    Clock,
    /// Nodes get new addresses.
    Roam,
    /// Peers that misbehave appear and connect to one node.
    Attack,
    /// Pairs of nodes cross-sign claims, and verify chains of each other.
    Claims,
    /// The loss of all links changes.
    Loss,
    /// All NATs restart.
    RebootNats,
    /// The tables are compared with the true network.
    Snapshot,
}

/// Nodes between which is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairs {
    /// Any nodes.
    #[default]
    Any,
    /// Nodes of different halves of the partition.
    Across,
    /// Nodes that were killed: the target is dead.
    Dead,
}

/// What is measured when.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeasureSpec {
    /// Traffic is measured in the last so many seconds. Default all.
    pub last_s: Option<f64>,
    /// First snapshot of the tables, in seconds. Default none but at the end.
    pub snapshot_from_s: Option<f64>,
    /// Interval of snapshots, in seconds. Default 3600.
    pub snapshot_every_s: Option<f64>,
}

/// A figure that must hold.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectSpec {
    /// Name of the figure.
    pub figure: String,
    /// Largest value that holds.
    pub max: Option<f64>,
    /// Smallest value that holds.
    pub min: Option<f64>,
    /// The limit is this figure times `max` or `min`.
    pub times: Option<String>,
    /// Applies from this number of nodes on. Default 0.
    #[serde(default)]
    pub nodes_from: usize,
    /// Applies up to this number of nodes. Default all.
    #[serde(default = "all")]
    pub nodes_to: usize,
}

fn all() -> usize {
    usize::MAX
}

/// A place in a file.
pub(super) type Span = Range<usize>;
