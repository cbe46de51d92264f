//! The figures of a run, and the result as one object.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// A figure: what it is, and by how much it may change without notice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Name, as in scenario files and results.
    pub name: &'static str,
    /// Unit, for people.
    pub unit: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Whether it is a whole number.
    pub whole: bool,
    /// Whether it depends on the machine, so that it is not compared.
    pub machine: bool,
    /// Share of the recorded value by which it may differ. Range 0–1.
    pub relative: f64,
    /// Difference that is allowed in any case, in its unit.
    pub absolute: f64,
}

const fn figure(
    name: &'static str,
    unit: &'static str,
    (whole, machine): (bool, bool),
    (relative, absolute): (f64, f64),
    about: &'static str,
) -> Figure {
    Figure { name, unit, about, whole, machine, relative, absolute }
}

const WHOLE: (bool, bool) = (true, false);
const REAL: (bool, bool) = (false, false);
const MACHINE: (bool, bool) = (false, true);
const MACHINE_WHOLE: (bool, bool) = (true, true);

/// All figures, in the order of the result.
#[rustfmt::skip]
pub const FIGURES: [Figure; 46] = [
    figure("virtual_s", "s", REAL, (0.05, 5.0), "duration of the run in virtual time, the joins of the start included"),
    figure("cpu_s", "s", MACHINE, (0.0, 0.0), "CPU time of the run"),
    figure("rss_bytes", "bytes", MACHINE_WHOLE, (0.0, 0.0), "resident memory of the process at the end"),
    figure("bytes_per_node", "bytes", MACHINE_WHOLE, (0.0, 0.0), "resident memory that the run added, per node"),
    figure("dials_per_node_hour", "1/h", REAL, (0.1, 0.5), "dials of a node in one hour"),
    figure("accepted_per_node_hour", "1/h", REAL, (0.1, 1.0), "connections of a node that were accepted in one hour, as dialer or acceptor"),
    figure("stream_bytes_per_node_hour", "bytes/h", REAL, (0.1, 500.0), "bytes that a node sent on streams in one hour"),
    figure("datagrams_per_node_hour", "1/h", REAL, (0.1, 20.0), "datagrams that a node sent in one hour"),
    figure("searches", "", WHOLE, (0.02, 5.0), "searches that ended, of nodes that ran throughout"),
    figure("search_dials", "", REAL, (0.1, 20.0), "dials of all nodes beyond those of the same run without the searches"),
    figure("own_attempts", "", WHOLE, (0.1, 20.0), "connection attempts of the searches themselves"),
    figure("found_rate", "", REAL, (0.0, 0.003), "share of the searches that found their target"),
    figure("across_found_rate", "", REAL, (0.0, 0.01), "share of the searches across the partition that found their target"),
    figure("p50_ms", "ms", REAL, (0.1, 30.0), "median duration of the searches for targets that were not connected"),
    figure("p95_ms", "ms", REAL, (0.1, 50.0), "95th percentile of that"),
    figure("join_p95_ms", "ms", REAL, (0.1, 50.0), "95th percentile of the duration of joins, from the request to its end"),
    figure("rpcs_mean", "", REAL, (0.1, 0.3), "calls of a search"),
    figure("attempts_mean", "", REAL, (0.1, 0.3), "connection attempts of a search"),
    figure("dead_contacts", "", REAL, (0.1, 0.01), "share of contacts that do not run, mean of the snapshots"),
    figure("worst_dead_contacts", "", REAL, (0.1, 0.015), "the same, worst snapshot"),
    figure("closest20_known", "", REAL, (0.0, 0.005), "share of the true 20 closest nodes that a node knows, mean of the snapshots"),
    figure("worst_closest20_known", "", REAL, (0.0, 0.01), "the same, worst snapshot"),
    figure("nodes_with_all20", "", REAL, (0.0, 0.03), "share of the nodes that know all of them, mean of the snapshots"),
    figure("worst_nodes_with_all20", "", REAL, (0.0, 0.05), "the same, worst snapshot"),
    figure("honest_kept", "", REAL, (0.0, 0.03), "share of the honest contacts of the attacked node that it still has at the end"),
    figure("victim_dials", "", WHOLE, (0.1, 3.0), "dials of the attacked node during the attack"),
    figure("attack_dials", "", REAL, (0.1, 5.0), "dials of the attacked node beyond those of the same run without the attack"),
    figure("join_failures", "", WHOLE, (0.0, 2.0), "joins that failed"),
    figure("joins", "", WHOLE, (0.02, 3.0), "joins that ended, of nodes that ran throughout"),
    figure("requests_lost", "", WHOLE, (0.0, 1.0), "searches and joins of running nodes that have not ended at the end"),
    figure("contacts_lost", "", WHOLE, (0.0, 2.0), "contacts that running nodes had at the last `away` and lost, though they run"),
    figure("gone_known", "", WHOLE, (0.0, 0.0), "contacts, in all graphs, of nodes that were killed"),
    figure("gone_dials_per_node", "", REAL, (0.1, 5.0), "dials of a node to killed nodes"),
    figure("claims", "", WHOLE, (0.02, 2.0), "claims that were requested of running nodes"),
    figure("claims_rate", "", REAL, (0.0, 0.01), "share of them that both nodes committed"),
    figure("chains_verified", "", REAL, (0.0, 0.01), "share of the chains of honest nodes that were read and verified"),
    figure("forged_accepted", "", WHOLE, (0.0, 0.0), "forged claims that were accepted"),
    figure("relayed", "", WHOLE, (0.1, 5.0), "relayed connections of running nodes, at both ends"),
    figure("lies", "", WHOLE, (0.2, 50.0), "responses of misbehaving peers that were lies, or none"),
    figure("contacts_mean", "", REAL, (0.05, 2.0), "contacts of a node at the end"),
    figure("connections_mean", "", REAL, (0.1, 1.0), "connections of a node at the end"),
    figure("handshakes_per_node_hour", "1/h", REAL, (0.1, 1.0), "handshakes that a node completed in one hour, as dialer or acceptor"),
    figure("messages_per_node_hour", "1/h", REAL, (0.1, 20.0), "messages that a node sent in one hour: steps of handshakes, pieces of streams, closes"),
    figure("wire_bytes_per_node_hour", "bytes/h", REAL, (0.1, 2000.0), "bytes of the datagrams that a node sent in one hour"),
    figure("cpu_ms_per_search", "ms", MACHINE, (0.0, 0.0), "CPU time of the searches beyond that of an equal time before them, per search"),
    figure("cpu_s_per_node_day", "s/d", MACHINE, (0.0, 0.0), "CPU time of a node and virtual day"),
];

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Scenario.
    pub scenario: String,
    /// Nodes at the start.
    pub nodes: usize,
    /// Seed.
    pub seed: u64,
    /// Figures by name; those that were not measured are missing.
    pub figures: BTreeMap<&'static str, f64>,
    /// Hash of everything that happened, as hexadecimal digits.
    pub trace_hash: String,
    /// Figures that do not hold, for people. Empty if all hold.
    pub failed: Vec<String>,
}

impl Outcome {
    /// Returns whether all expected figures hold.
    pub fn ok(&self) -> bool {
        self.failed.is_empty()
    }

    /// Returns a figure, if it was measured.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }
}

/// Rounds to six digits after the point: more of them mean nothing.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("scenario", &self.scenario)?;
        map.serialize_entry("nodes", &self.nodes)?;
        map.serialize_entry("seed", &self.seed)?;
        for figure in &FIGURES {
            match self.get(figure.name) {
                Some(value) if figure.whole => {
                    map.serialize_entry(figure.name, &(value.round() as i64))?;
                }
                Some(value) => map.serialize_entry(figure.name, &rounded(value))?,
                None => map.serialize_entry(figure.name, &None::<f64>)?,
            }
        }
        map.serialize_entry("trace_hash", &self.trace_hash)?;
        map.serialize_entry("failed", &self.failed)?;
        map.serialize_entry("ok", &self.ok())?;
        map.end()
    }
}
