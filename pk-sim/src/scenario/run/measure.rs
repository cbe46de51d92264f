//! What is measured: traffic, tables, load.

use super::records::{Bucket, Mark, Metrics, Sampled, Snapshot, Window};
use super::state::Runner;
use crate::host::id::HostId;
use crate::machine::directory::Directory;
use crate::scenario::machine_costs::cpu_s;
use crate::wire::traffic::Traffic;

/// Nodes whose tables a snapshot compares; of larger networks so many, evenly spread.
const COMPARED: usize = 1000;
/// Nodes that a node should know.
const NEAR: usize = 20;

impl Runner<'_> {
    /// The measured time begins.
    pub(super) fn measure(&mut self) {
        self.measured.from = Some(self.mark());
    }

    /// A process ends: its connections count.
    pub(super) fn bury(&mut self, host: HostId) {
        let Some(from) = &self.measured.from else { return };
        let restarted = self.since.get(&host).is_some_and(|since| *since > from.at);
        let before = match restarted {
            true => 0,
            false => from.metrics.get(&host).copied().unwrap_or_default().accepted,
        };
        self.measured.buried += self.metrics(host).accepted.saturating_sub(before);
    }

    fn mark(&self) -> Mark {
        Mark {
            at: self.cluster.now(),
            traffic: self.cluster.traffic(),
            metrics: self.running.iter().map(|host| (*host, self.metrics(*host))).collect(),
            node_seconds: self.node_seconds(),
        }
    }

    fn metrics(&self, host: HostId) -> Metrics {
        let metrics = self.cluster.machine(host).map(pk_proto::NodeManager::metrics);
        metrics.map_or_else(Metrics::default, |metrics| Metrics {
            accepted: metrics.connections_accepted,
        })
    }

    /// The number of honest nodes changes only by churn and kills, which keep or reduce it; the
    /// average of the samples is exact enough.
    fn node_seconds(&self) -> f64 {
        let mut sum = 0.0;
        let mut last = 0.0;
        for sampled in &self.measured.series {
            sum += (sampled.at_s - last) * sampled.nodes as f64;
            last = sampled.at_s;
        }
        sum + (self.elapsed_s() - last) * self.running.len() as f64
    }

    /// Returns the traffic of the measured time. Nodes that died in it count with their transport.
    pub(super) fn window(&self) -> Option<Window> {
        let from = self.measured.from.as_ref()?;
        let now = self.mark();
        let hours = now.at.since(from.at).as_secs_f64() / 3600.0;
        let mut window = Window {
            node_hours: (now.node_seconds - from.node_seconds) / 3600.0,
            dials: 0,
            accepted: self.measured.buried,
            traffic: Traffic::default(),
            load: Vec::new(),
        };
        if window.node_hours <= 0.0 {
            return None;
        }
        for (host, traffic) in now.traffic.iter().enumerate() {
            if !self.cluster.misbehaves(host) {
                let before = from.traffic.get(host).copied().unwrap_or_default();
                window.traffic += *traffic - before;
            }
        }
        // Metrics start again with each process, the counters of the transport do not.
        window.dials = window.traffic.dials;
        for host in &self.running {
            let after = self.metrics(*host);
            let restarted = self.since.get(host).is_some_and(|since| *since > from.at);
            let before = match restarted {
                true => Metrics::default(),
                false => from.metrics.get(host).copied().unwrap_or_default(),
            };
            let accepted = after.accepted.saturating_sub(before.accepted);
            window.accepted += accepted;
            if !restarted && hours > 0.0 {
                window.load.push(accepted as f64 / hours);
            }
        }
        window.load.sort_by(f64::total_cmp);
        Some(window)
    }

    /// Compares the tables of nodes with the true network.
    pub(super) fn snapshot(&mut self) {
        let truth = self.cluster.directory();
        let hosts: Vec<_> = self.running.iter().copied().collect();
        let step = (hosts.len() / COMPARED).max(1);
        let (mut contacts, mut dead, mut known, mut possible, mut all, mut compared) =
            (0u64, 0u64, 0u64, 0u64, 0u64, 0u64);
        for host in hosts.into_iter().step_by(step) {
            let own = self.cluster.id_of_host(host);
            let table = self.contacts(host);
            contacts += table.len() as u64;
            dead += table.iter().filter(|id| !self.runs(&truth, id)).count() as u64;
            let near = truth.closest(&own, NEAR);
            let hits = near.iter().filter(|(id, _)| table.contains(id)).count();
            known += hits as u64;
            possible += near.len() as u64;
            all += u64::from(hits == near.len());
            compared += 1;
        }
        let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        self.measured.snapshots.push(Snapshot {
            dead: share(dead, contacts),
            known: share(known, possible),
            all: share(all, compared),
        });
    }

    /// Whether a node runs, honest or not.
    fn runs(&self, truth: &Directory, id: &pk_proto::NodeId) -> bool {
        let alive = |host: HostId| self.cluster.host(host).is_alive();
        truth.address(id).is_some() || self.cluster.number(*id).is_some_and(alive)
    }

    /// Adds a measurement over time.
    pub(super) fn sample(&mut self) {
        let at_s = self.elapsed_s();
        self.measured.cpu.push((at_s, cpu_s() - self.cpu));
        let mut traffic = Traffic::default();
        for (host, of_host) in self.cluster.traffic().into_iter().enumerate() {
            if !self.cluster.misbehaves(host) {
                traffic += of_host;
            }
        }
        let nodes = self.running.len();
        let mut sampled = Sampled { at_s, nodes, ..Sampled::default() };
        sampled.connections = 2.0 * self.cluster.connection_count() as f64 / nodes.max(1) as f64;
        let accepted = traffic.handshakes;
        if let Some((before_s, before, before_accepted)) = self.measured.last {
            let node_hours = (at_s - before_s) * nodes as f64 / 3600.0;
            if node_hours > 0.0 {
                let since = traffic - before;
                sampled.dials = since.dials as f64 / node_hours;
                sampled.accepted = (accepted - before_accepted) as f64 / node_hours;
                sampled.bytes = since.stream_bytes as f64 / node_hours;
                sampled.datagrams = since.datagrams as f64 / node_hours;
            }
        }
        self.measured.last = Some((at_s, traffic, accepted));
        self.measured.series.push(sampled);
    }

    /// Returns the occupancy of the buckets of all nodes.
    pub(super) fn buckets(&self) -> Vec<Bucket> {
        let truth = self.cluster.directory();
        let hosts: Vec<_> = self.running.iter().copied().collect();
        let step = (hosts.len() / COMPARED).max(1);
        let compared: Vec<_> = hosts.into_iter().step_by(step).collect();
        let mut buckets = Vec::new();
        for depth in 0..256usize {
            let index = u8::try_from(255 - depth).unwrap_or(0);
            let mut sizes = Vec::new();
            let mut possible = Vec::new();
            for host in &compared {
                let Some(node) = self.cluster.machine(*host) else { continue };
                sizes.push(node.bucket(pk_proto::BucketIndex(index)).len());
                possible.push(truth.beside(&node.own_id(), depth).len());
            }
            sizes.sort_unstable();
            possible.sort_unstable();
            let (Some(least), Some(most)) = (sizes.first(), sizes.last()) else { break };
            let (median, there) = (sizes[sizes.len() / 2], possible[possible.len() / 2]);
            if *most == 0 && possible.last() == Some(&0) {
                break;
            }
            buckets.push(Bucket { index, contacts: [*least, median, *most], possible: there });
        }
        buckets
    }
}
