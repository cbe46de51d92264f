//! The figures of a run.

use std::collections::BTreeMap;

use super::Run;
use super::records::Snapshot;
use super::state::{Runner, Totals};
use crate::scenario::figures::{Outcome, rounded};
use crate::scenario::machine_costs::{cpu_s, rss_bytes};
use crate::scenario::spec::{Action, ExpectSpec};
use crate::stats::Sample;

/// Figures by name.
type Figures = BTreeMap<&'static str, f64>;

impl Runner<'_> {
    /// Returns what another run is compared with.
    pub(super) fn totals(&self) -> Totals {
        let dials = self.cluster.transport_counters().dials;
        Totals { dials, victim_dials: self.victim.as_ref().and_then(|victim| victim.ended) }
    }

    fn origin_s(&self) -> f64 {
        self.origin.as_micros() as f64 / 1e6
    }

    fn has(&self, action: Action) -> bool {
        self.scenario.event.iter().any(|event| event.get_ref().action == action)
    }

    /// Ends the run, and computes its figures.
    pub(super) fn into_run(self, twin: Option<Totals>, rss_before: u64) -> Run {
        let mut figures = Figures::new();
        let window = self.window();
        let virtual_s = self.cluster.now().as_micros() as f64 / 1e6;
        let cpu = cpu_s() - self.cpu;
        let nodes = self.options.nodes.unwrap_or(self.scenario.nodes).max(2);
        figures.insert("virtual_s", virtual_s);
        figures.insert("cpu_s", cpu);
        if let Some(rss) = rss_bytes() {
            figures.insert("rss_bytes", rss as f64);
            figures.insert("bytes_per_node", rss.saturating_sub(rss_before) as f64 / nodes as f64);
        }
        let days = virtual_s / 86_400.0 * nodes as f64;
        figures.insert("cpu_s_per_node_day", cpu / days.max(1e-9));
        if let Some(window) = &window {
            let traffic = window.traffic;
            for (name, total) in [
                ("dials_per_node_hour", window.dials),
                ("accepted_per_node_hour", window.accepted),
                ("stream_bytes_per_node_hour", traffic.stream_bytes),
                ("datagrams_per_node_hour", traffic.datagrams),
                ("handshakes_per_node_hour", traffic.handshakes),
                ("messages_per_node_hour", traffic.messages),
                ("wire_bytes_per_node_hour", traffic.wire_bytes),
            ] {
                figures.insert(name, total as f64 / window.node_hours);
            }
        }
        self.of_searches(&mut figures, twin);
        self.of_joins(&mut figures);
        self.of_tables(&mut figures);
        self.of_attacks(&mut figures, twin);
        self.of_claims(&mut figures);
        let trace_hash = self.cluster.digest().to_hex().to_string();
        let failed = self.failed(&figures, nodes);
        let outcome = Outcome {
            scenario: self.scenario.name.clone(),
            nodes,
            seed: self.options.seed,
            figures,
            trace_hash,
            failed,
        };
        let buckets = self.buckets();
        let origin = self.origin_s();
        let after = |points: Vec<(f64, f64)>| {
            points.into_iter().map(|(at, took)| (at - origin, took)).collect()
        };
        Run {
            outcome,
            buckets,
            series: self.measured.series,
            searches: after(self.requests.searches),
            joins: after(self.requests.joins),
            load: window.map_or_else(Vec::new, |window| window.load),
            path: self.requests.path,
        }
    }

    fn of_searches(&self, figures: &mut Figures, twin: Option<Totals>) {
        let requests = &self.requests;
        if requests.ended == 0 {
            return;
        }
        let ended = requests.ended as f64;
        figures.insert("searches", ended);
        figures.insert("found_rate", requests.found as f64 / ended);
        figures.insert("own_attempts", requests.attempts as f64);
        figures.insert("attempts_mean", requests.attempts as f64 / ended);
        figures.insert("rpcs_mean", requests.calls as f64 / ended);
        if requests.across > 0 {
            let rate = requests.across_found as f64 / requests.across as f64;
            figures.insert("across_found_rate", rate);
        }
        let took = Sample::new(requests.searches.iter().map(|(_, took)| *took));
        for (name, percent) in [("p50_ms", 50.0), ("p95_ms", 95.0)] {
            if let Some(took) = took.percentile(percent) {
                figures.insert(name, took);
            }
        }
        if let Some(twin) = twin.filter(|_| self.has(Action::Search)) {
            let dials = self.cluster.transport_counters().dials;
            figures.insert("search_dials", dials as f64 - twin.dials as f64);
        }
        if let (Some(first), Some(last)) = (requests.first_search, requests.last_search) {
            let second = |at: pk_proto::Instant| at.since(self.origin).as_secs_f64();
            let (from, to) = (second(first), second(last) + 1.0);
            let before = from - (to - from);
            if before >= 0.0 {
                let cpu = |at| self.cpu_at(at);
                let spent = (cpu(to) - cpu(from)) - (cpu(from) - cpu(before));
                figures.insert("cpu_ms_per_search", spent.max(0.0) * 1000.0 / ended);
            }
        }
    }

    /// Returns the CPU time until a moment, interpolated between measurements.
    fn cpu_at(&self, at_s: f64) -> f64 {
        let after = self.measured.cpu.partition_point(|(at, _)| *at < at_s);
        match (self.measured.cpu.get(after.wrapping_sub(1)), self.measured.cpu.get(after)) {
            (Some((a, x)), Some((b, y))) if b > a => x + (y - x) * (at_s - a) / (b - a),
            (_, Some((_, cpu))) | (Some((_, cpu)), None) => *cpu,
            (None, None) => 0.0,
        }
    }

    fn of_joins(&self, figures: &mut Figures) {
        let requests = &self.requests;
        // Those of the start only if the scenario has no others.
        let origin = self.origin_s();
        let later: Vec<f64> =
            requests.joins.iter().filter(|(at, _)| *at >= origin).map(|(_, took)| *took).collect();
        let all = requests.joins.iter().map(|(_, took)| *took);
        let took = if later.is_empty() { Sample::new(all) } else { Sample::new(later) };
        if let Some(p95) = took.percentile(95.0) {
            figures.insert("join_p95_ms", p95);
            figures.insert("joins", took.len() as f64);
            figures.insert("join_failures", requests.join_failures as f64);
        }
        if requests.ended > 0 || !took.is_empty() {
            figures.insert("requests_lost", requests.open() as f64);
        }
    }

    fn of_tables(&self, figures: &mut Figures) {
        let snapshots = &self.measured.snapshots;
        let of = |value: fn(&Snapshot) -> f64| Sample::new(snapshots.iter().map(value));
        let (dead, known, all) = (of(|s| s.dead), of(|s| s.known), of(|s| s.all));
        for (name, value) in [
            ("dead_contacts", dead.mean()),
            ("worst_dead_contacts", dead.max()),
            ("closest20_known", known.mean()),
            ("worst_closest20_known", known.min()),
            ("nodes_with_all20", all.mean()),
            ("worst_nodes_with_all20", all.min()),
        ] {
            if let Some(value) = value {
                figures.insert(name, value);
            }
        }
        if let Some(lost) = self.measured.contacts_lost {
            figures.insert("contacts_lost", lost as f64);
        }
        let running = self.running.len().max(1) as f64;
        let metrics = self.running.iter().filter_map(|host| self.cluster.machine(*host));
        let (mut contacts, mut connections, mut relayed) = (0, 0, 0);
        for metrics in metrics.map(pk_proto::NodeManager::metrics) {
            contacts += metrics.nodes;
            connections += metrics.connections;
            relayed += metrics.connections_relayed;
        }
        figures.insert("contacts_mean", contacts as f64 / running);
        figures.insert("connections_mean", connections as f64 / running);
        if self.scenario.nat.is_some() {
            figures.insert("relayed", relayed as f64);
        }
        if self.has(Action::Kill) {
            let gone: Vec<_> =
                self.gone.iter().map(|host| self.cluster.id_of_host(*host)).collect();
            let known = |host: &usize| {
                let contacts = self.contacts(*host);
                gone.iter().filter(|id| contacts.contains(*id)).count()
            };
            figures.insert("gone_known", self.running.iter().map(known).sum::<usize>() as f64);
            let dials =
                |host: &usize| self.cluster.watched_dials(self.cluster.host(*host).addrs()[0]);
            let dials: u64 = self.gone.iter().map(dials).sum();
            figures.insert("gone_dials_per_node", dials as f64 / running);
        }
    }

    fn of_attacks(&self, figures: &mut Figures, twin: Option<Totals>) {
        if let Some(victim) = &self.victim {
            let now = self.contacts(victim.host);
            let alive: Vec<_> = victim
                .contacts
                .iter()
                .filter(|id| {
                    self.cluster.number(**id).is_some_and(|host| self.running.contains(&host))
                })
                .collect();
            let kept = alive.iter().filter(|id| now.contains(**id)).count();
            figures.insert("honest_kept", kept as f64 / alive.len().max(1) as f64);
            if let Some(dials) = victim.ended {
                figures.insert("victim_dials", dials as f64);
                if let Some(calm) = twin.and_then(|twin| twin.victim_dials) {
                    figures.insert("attack_dials", dials as f64 - calm as f64);
                }
            }
        }
        let liars = (0..self.cluster.len()).filter(|host| self.cluster.misbehaves(*host));
        let done: Vec<_> = liars.map(|host| self.cluster.misbehavior(host)).collect();
        if !done.is_empty() {
            figures.insert(
                "lies",
                done.iter().map(|done| done.lies + done.ignored).sum::<u64>() as f64,
            );
        }
    }

    fn of_claims(&self, figures: &mut Figures) {
        let requests = &self.requests;
        if requests.claims > 0 {
            figures.insert("claims", requests.claims as f64);
            figures
                .insert("claims_rate", requests.claims_committed as f64 / requests.claims as f64);
        }
        if requests.chains > 0 {
            let rate = requests.chains_verified as f64 / requests.chains as f64;
            figures.insert("chains_verified", rate);
        }
        if requests.forged_read > 0 {
            figures.insert("forged_accepted", requests.forged_accepted as f64);
        }
    }

    /// Returns the expected figures that do not hold.
    fn failed(&self, figures: &Figures, nodes: usize) -> Vec<String> {
        let expected = self.scenario.expect.iter().map(toml::Spanned::get_ref);
        expected
            .filter(|expect| (expect.nodes_from..=expect.nodes_to).contains(&nodes))
            .filter_map(|expect| fault(expect, figures))
            .collect()
    }
}

/// Returns why an expected figure does not hold, if it does not.
fn fault(expect: &ExpectSpec, figures: &Figures) -> Option<String> {
    let name = expect.figure.as_str();
    let Some(value) = figures.get(name).copied() else {
        return Some(format!("{name} was not measured"));
    };
    let base = match &expect.times {
        None => 1.0,
        Some(other) => match figures.get(other.as_str()) {
            Some(value) => *value,
            None => return Some(format!("{other} was not measured")),
        },
    };
    let of = expect.times.as_ref().map_or(String::new(), |other| format!(" times {other}"));
    if let Some(max) = expect.max.filter(|max| value > max * base + 1e-9) {
        return Some(format!("{name} is {}, more than {max}{of}", rounded(value)));
    }
    let min = expect.min.filter(|min| value < min * base - 1e-9)?;
    Some(format!("{name} is {}, less than {min}{of}", rounded(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figure_that_does_not_hold_is_named_with_its_limit() {
        let figures =
            Figures::from([("found_rate", 0.9), ("search_dials", 12.0), ("own_attempts", 10.0)]);
        let expect = |figure: &str, max, min, times: Option<&str>| ExpectSpec {
            figure: figure.into(),
            max,
            min,
            times: times.map(str::to_owned),
            nodes_from: 0,
            nodes_to: 9,
        };
        let holds = |expect| fault(&expect, &figures);
        assert_eq!(holds(expect("found_rate", None, Some(0.9), None)), None);
        assert_eq!(holds(expect("search_dials", Some(1.2), None, Some("own_attempts"))), None);
        let cases = [
            (expect("found_rate", None, Some(0.95), None), "found_rate is 0.9, less than 0.95"),
            (expect("search_dials", Some(11.0), None, None), "search_dials is 12, more than 11"),
            (
                expect("search_dials", Some(1.1), None, Some("own_attempts")),
                "search_dials is 12, more than 1.1 times own_attempts",
            ),
            (expect("p50_ms", Some(1.0), None, None), "p50_ms was not measured"),
        ];
        for (expect, text) in cases {
            assert_eq!(holds(expect).as_deref(), Some(text));
        }
    }
}
