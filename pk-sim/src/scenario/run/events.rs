//! The events of a run.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use pk_proto::{Instant, NodeId};

use super::setup::link;
use super::state::{Runner, Step, Victim, seconds};
use crate::host::id::HostId;
use crate::host::identity::Key;
use crate::scenario::spec::{Action, EventSpec};

/// Number of measurements over time.
const SAMPLES: u32 = 240;
/// Keys that are tried for one that shares bits with the victim, times the expected number.
const PATIENCE: u64 = 64;

impl Runner<'_> {
    /// Plans everything that the scenario contains.
    pub(super) fn plan(&mut self) {
        let (origin, duration) = (self.origin, self.duration);
        let scenario = self.scenario;
        for event in &scenario.event {
            let event = event.get_ref().clone();
            self.at(origin + seconds(event.at_s), Step::Event(event));
        }
        let measure = self.scenario.measure.clone();
        let from =
            measure.last_s.map_or(Duration::ZERO, |last| duration.saturating_sub(seconds(last)));
        self.at(origin + from, Step::Measure);
        if let Some(first) = measure.snapshot_from_s {
            let every = seconds(measure.snapshot_every_s.unwrap_or(3600.0));
            let mut at = seconds(first);
            // The last one is that of the end.
            while at + every / 2 < duration {
                self.at(origin + at, Step::Snapshot);
                at += every;
            }
        }
        for sample in 0..=SAMPLES {
            self.at(origin + duration / SAMPLES * sample, Step::Sample);
        }
    }

    pub(super) fn perform(&mut self, step: Step) {
        match step {
            Step::Event(event) => self.event(&event),
            Step::Search(pairs) => self.search(pairs),
            Step::Join => {
                self.join_new();
            }
            Step::Claim => self.claim(),
            Step::Die { host, mean_s, until } => self.die(host, mean_s, until),
            Step::Return => self.come_back(),
            Step::Thaw(hosts) => hosts.into_iter().for_each(|host| self.cluster.thaw(host)),
            Step::Attacker { host, every } => self.attacker(host, every),
            Step::EndAttack => self.end_attack(),
            Step::Snapshot => self.snapshot(),
            Step::Sample => self.sample(),
            Step::Measure => self.measure(),
        }
    }

    /// Plans `count` steps, evenly spread over the duration of an event.
    fn spread(&mut self, event: &EventSpec, step: &Step) {
        let now = self.cluster.now();
        let rest = self.end().since(now);
        let span = event.for_s.map_or(rest, seconds).min(rest);
        let count = event.count.unwrap_or(1);
        for index in 0..count {
            let at = Duration::from_secs_f64(span.as_secs_f64() * index as f64 / count as f64);
            self.at(now + at, step.clone());
        }
    }

    fn event(&mut self, event: &EventSpec) {
        match event.action {
            Action::Search => self.spread(event, &Step::Search(event.pairs.unwrap_or_default())),
            Action::Join => self.spread(event, &Step::Join),
            Action::Claims => self.spread(event, &Step::Claim),
            Action::Kill => self.selected(event).into_iter().for_each(|host| self.kill(host)),
            Action::Restart => {
                let hosts = self.selected(event);
                hosts.iter().for_each(|host| {
                    self.bury(*host);
                    self.cluster.kill(*host);
                    self.requests.killed(*host);
                });
                hosts.into_iter().for_each(|host| {
                    self.cluster.start_node(host);
                    self.since.insert(host, self.cluster.now());
                });
            }
            Action::Churn => self.churn(event),
            Action::Partition => self.partition(),
            Action::Heal => self.cluster.heal(),
            Action::Away => self.go_away(event),
            Action::Freeze => {
                let hosts = self.selected(event);
                hosts.iter().for_each(|host| self.cluster.freeze(*host));
                let back = self.cluster.now() + seconds(event.for_s.unwrap_or(0.0));
                self.at(back, Step::Thaw(hosts));
            }
            Action::Clock => {
                let offset = event.offset_s.unwrap_or(0).saturating_mul(1000);
                self.selected(event)
                    .into_iter()
                    .for_each(|host| self.cluster.set_clock(host, offset));
            }
            Action::Roam => self.selected(event).into_iter().for_each(|host| self.roam(host)),
            Action::Attack => self.attack(event),
            Action::Loss => {
                let loss = event.loss_per_mille.unwrap_or(0);
                let link = link(&self.scenario.link).loss(loss);
                self.cluster.network_mut().set_default_link(link);
            }
            Action::RebootNats => {
                (0..self.nats).for_each(|nat| self.cluster.network_mut().reboot_nat(nat));
            }
            Action::Snapshot => self.snapshot(),
        }
    }

    /// Returns the nodes that an event selects: `count`, or `percent` of those that run.
    fn selected(&mut self, event: &EventSpec) -> Vec<HostId> {
        let running: Vec<_> = self.running.iter().copied().collect();
        let percent = event.percent.unwrap_or(0) as usize;
        let count = event.count.unwrap_or(running.len() * percent / 100);
        self.choose(running, count)
    }

    fn kill(&mut self, host: HostId) {
        self.bury(host);
        self.cluster.kill(host);
        self.requests.killed(host);
        self.running.remove(&host);
        self.joined.remove(&host);
        self.gone.push(host);
        let addr = self.cluster.host(host).addrs()[0];
        self.cluster.watch_dials(addr);
    }

    /// A new node joins through two nodes at random.
    fn join_new(&mut self) -> HostId {
        let seeds: Vec<_> = self.joined.iter().copied().collect();
        let seeds = match self.scenario.nat {
            // Only a node that is not behind a NAT can be a seed.
            Some(_) => {
                let network = self.cluster.network();
                seeds.into_iter().filter(|host| !network.is_behind_nat(*host)).collect()
            }
            None => seeds,
        };
        let seeds = self.choose(seeds, 2);
        let host = self.cluster.add_node(self.config.clone());
        self.place(host);
        self.cluster.start_node(host);
        // It is ready when it listens.
        let now = self.cluster.now();
        while self.cluster.step_by(now) {}
        self.running.insert(host);
        self.since.insert(host, now);
        self.begin_join(host, &seeds);
        host
    }

    fn churn(&mut self, event: &EventSpec) {
        let mean_s = event.lifetime_s.unwrap_or(3600.0);
        let now = self.cluster.now();
        let until = event.for_s.map_or(self.end(), |length| now + seconds(length));
        let hosts: Vec<_> = self.running.iter().copied().collect();
        for host in hosts {
            let life = self.exponential(mean_s);
            self.at(now + life, Step::Die { host, mean_s, until });
        }
    }

    fn die(&mut self, host: HostId, mean_s: f64, until: Instant) {
        if self.cluster.now() > until || !self.running.contains(&host) {
            return;
        }
        self.kill(host);
        let new = self.join_new();
        let dies = self.cluster.now() + self.exponential(mean_s);
        self.at(dies, Step::Die { host: new, mean_s, until });
    }

    fn partition(&mut self) {
        let hosts: Vec<HostId> = (0..self.cluster.len()).collect();
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for host in hosts {
            let side = self.die.below(2) == 0;
            self.halves.insert(host, side);
            if side { left.push(host) } else { right.push(host) }
        }
        self.cluster.partition(&[&left, &right]);
    }

    fn go_away(&mut self, event: &EventSpec) {
        self.finish_away();
        self.cluster.heal();
        self.lost_at_return = 0;
        let hosts = self.selected(event);
        self.away = self.running.iter().map(|host| (*host, self.contacts(*host))).collect();
        let away: BTreeSet<_> = hosts.iter().copied().collect();
        let rest: Vec<HostId> =
            (0..self.cluster.len()).filter(|host| !away.contains(host)).collect();
        let mut groups: Vec<Vec<HostId>> = hosts.iter().map(|host| vec![*host]).collect();
        groups.push(rest);
        let groups: Vec<&[HostId]> = groups.iter().map(|group| &group[..]).collect();
        self.cluster.partition(&groups);
        let back = self.cluster.now() + seconds(event.for_s.unwrap_or(0.0));
        self.at(back, Step::Return);
    }

    /// All nodes have the network again. What was lost is counted now, and again at the end, or
    /// when others go away.
    fn come_back(&mut self) {
        self.lost_at_return = self.lost();
        self.cluster.heal();
    }

    /// Counts the contacts that were lost since the last nodes went away.
    pub(super) fn finish_away(&mut self) {
        if self.away.is_empty() {
            return;
        }
        let lost = self.lost().max(self.lost_at_return);
        self.away.clear();
        *self.measured.contacts_lost.get_or_insert(0) += lost;
    }

    fn lost(&self) -> u64 {
        let alive: BTreeSet<_> =
            self.running.iter().map(|host| self.cluster.id_of_host(*host)).collect();
        let mut lost = 0;
        for (host, contacts) in &self.away {
            if self.running.contains(host) {
                let now = self.contacts(*host);
                lost += contacts.intersection(&alive).filter(|id| !now.contains(*id)).count();
            }
        }
        lost as u64
    }

    pub(super) fn contacts(&self, host: HostId) -> BTreeSet<NodeId> {
        let machine = self.cluster.machine(host);
        machine.into_iter().flat_map(|node| node.graph().iter().map(|(id, _)| id)).collect()
    }

    /// A host gets a new address.
    fn roam(&mut self, host: HostId) {
        if self.cluster.network().is_behind_nat(host) {
            return;
        }
        self.measured.roamed += 1;
        let [.., a, b, c] = self.measured.roamed.to_be_bytes();
        let ip = Ipv4Addr::new(100u8.wrapping_add(a), b, c, 1);
        self.cluster.rehome(host, vec![SocketAddr::new(IpAddr::V4(ip), 1314)]);
    }

    // -- attacks

    fn attack(&mut self, event: &EventSpec) {
        let joined: Vec<_> = self.joined.iter().copied().collect();
        let known = self.victim.as_ref().map(|victim| victim.host);
        let Some(victim) = known.or_else(|| self.choose(joined, 1).pop()) else { return };
        if self.victim.is_none() {
            let contacts = self.contacts(victim);
            let dials = self.dials_of(victim);
            self.victim = Some(Victim { host: victim, contacts, dials, ended: None });
        }
        let now = self.cluster.now();
        let rest = self.end().since(now);
        let span = event.for_s.map_or(rest, seconds).min(rest);
        self.at(now + span, Step::EndAttack);
        let Some(behavior) = event.behavior.filter(|_| !self.quiet) else { return };
        let count = event.count.unwrap_or(1);
        let networks = event.networks.unwrap_or(count);
        let every = event.every_s.map_or(Duration::ZERO, seconds);
        let mut serial = 0;
        for index in 0..count {
            let key = self.near_key(victim, event.near_bits.unwrap_or(0), &mut serial);
            let (network, place) = (index % networks, index / networks);
            let [.., high, low] = (network as u64).to_be_bytes();
            let port = 1314 + u16::try_from(place / 250).unwrap_or(0);
            let place = u8::try_from(place % 250 + 1).unwrap_or(1);
            let addr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(150, high, low, place)), port);
            let host = self.cluster.add_misbehaving_at(behavior, key, addr);
            // A repeated attack starts with all peers in the first tenth of its time.
            let within = if every.is_zero() { span } else { span / 10 };
            let at = Duration::from_secs_f64(within.as_secs_f64() * index as f64 / count as f64);
            self.at(now + at, Step::Attacker { host, every });
        }
    }

    /// Returns a key whose id shares bits with the victim.
    fn near_key(&self, victim: HostId, bits: u32, serial: &mut u64) -> Key {
        let id = self.cluster.id_of_host(victim);
        let mut key = Key::numbered(!self.options.seed, *serial);
        for _ in 0..PATIENCE << bits {
            key = Key::numbered(!self.options.seed, *serial);
            *serial += 1;
            let shared = id.bucket_index(&key.id()).map_or(256, |bucket| 255 - u32::from(bucket.0));
            if shared >= bits {
                break;
            }
        }
        key
    }

    fn attacker(&mut self, host: HostId, every: Duration) {
        let Some(victim) = self.victim.as_ref().map(|victim| victim.host) else { return };
        self.cluster.start_node(host);
        let target = (self.cluster.id_of_host(victim), self.cluster.host(victim).addrs()[0]);
        self.cluster.conspire();
        self.cluster.instruct(host, |peer, now| peer.dial_in_turn(vec![target], now, every));
    }

    pub(super) fn dials_of(&self, host: HostId) -> u64 {
        self.cluster.machine(host).map_or(0, |node| node.metrics().dials)
    }

    /// Counts the dials of the victim during the attack.
    pub(super) fn end_attack(&mut self) {
        let Some(victim) = self.victim.as_ref().filter(|victim| victim.ended.is_none()) else {
            return;
        };
        let dials = self.dials_of(victim.host).saturating_sub(victim.dials);
        if let Some(victim) = &mut self.victim {
            victim.ended = Some(dials);
        }
    }
}
